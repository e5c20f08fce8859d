"""The verb `scaling train`: trains one run in its folder, or resumes it, and prints how it ended."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import jax
import tyro

from scaling.config.run_config import RunConfig
from scaling.errors import InputError
from scaling.exit_codes import DIVERGED
from scaling.files import write_json
from scaling.record.run_folder import read_result
from scaling.terminal import printable
from scaling.training.failures import report_failure
from scaling.training.session import with_data_fingerprint
from scaling.training.train import train as train_run

DEFAULT = RunConfig()


def train(
    config: Annotated[RunConfig, tyro.conf.arg(name="")] = DEFAULT,
    folder: Path | None = None,
    file: Path | None = None,
    quiet: bool = False,
    json: Path | None = None,
) -> int:
    """Train one run. The same command again resumes it, or prints its result when it is done.

    Compiled programs are kept in the user's cache folder for the next run of the same shape. JAX_COMPILATION_CACHE_DIR
    names another folder; JAX_ENABLE_COMPILATION_CACHE=false keeps none.

    Args:
        config: the fields of the run.
        folder: the run folder; out/train/<run_id> when not given. If it holds a config.json, the flags change that
            config.
        file: a config.json that the flags change, instead of the folder's own or the defaults.
        quiet: print no progress bar.
        json: also write the result to this file.
    """
    del file  # scaling.cli has read it into `config`
    if folder is None:
        config = with_data_fingerprint(config)
        folder = Path("out/train") / config.run_id
    try:
        status = train_run(config, folder, quiet=quiet)
    except InputError:
        raise
    except Exception as error:
        return report_failure(error)
    result = read_result(folder)
    if jax.process_index() == 0 and result is not None:
        row, units = result["row"], {"loss": "nats/token", "bits_per_byte": "bits/byte"}
        losses = [f"{row[name]:.4f} {unit}" for name, unit in units.items() if row.get(name) is not None]
        facts = f"loss {', '.join(losses) or 'not recorded'}" if status == "done" else result["reason"]
        print(printable(f"{folder}: {status}, {facts}"))
        if json:
            write_json(json, {"folder": str(folder), **result})
    return DIVERGED if status == "diverged" else 0

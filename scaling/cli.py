"""`scaling VERB ...`: train one run, run a sweep, fit a law, check its forecast. Every verb has --help."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from scaling.config import RunConfig, load
from scaling.record import CONFIG
from scaling.strict import InputError

STOPPED, DIVERGED = 75, 4


def base_config(arguments: list[str]) -> RunConfig:
    """What the flags of `train` override: the folder's own config, a --file, or the defaults."""
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    peek.add_argument("--folder", type=Path)
    peek.add_argument("--file", type=Path)
    found, _ = peek.parse_known_args(arguments)
    if found.file:
        return load(found.file)
    if found.folder and (found.folder / CONFIG).exists():
        return load(found.folder / CONFIG)
    return RunConfig()


def build_app(base: RunConfig) -> tyro.extras.SubcommandApp:
    """All verbs. Heavy imports wait inside them, so that --help is quick and `fit` never loads Flax."""
    app = tyro.extras.SubcommandApp()

    @app.command
    def train(
        config: Annotated[RunConfig, tyro.conf.arg(name="")] = base,
        folder: Path | None = None,
        file: Path | None = None,
        quiet: bool = False,
    ) -> int:
        """Train one run. The same command again resumes it, or says that it is done.

        Args:
            config: every field of the run.
            folder: the run folder; out/train/<run_id> when not given. Its config.json is the base of the flags.
            file: a config.json to start from instead.
            quiet: no progress bar.
        """
        del file
        return _train(config, folder or Path("out/train") / config.run_id, quiet)

    return app


def _train(config: RunConfig, folder: Path, quiet: bool) -> int:
    from scaling.monitor import Stopped
    from scaling.record import read_result
    from scaling.train import train

    try:
        status = train(config, folder, quiet=quiet)
    except Stopped as stopped:
        print(f"{folder}: {stopped}", file=sys.stderr)
        return STOPPED
    result = read_result(folder) or {}
    loss, bits = result["row"].get("loss"), result["row"].get("bits_per_byte")
    facts = f"loss {loss:.4f} nats/token, {bits:.4f} bits/byte" if loss is not None else result["reason"]
    print(f"{folder}: {status}, {facts}")
    return DIVERGED if status == "diverged" else 0


def user_errors() -> tuple[type[Exception], ...]:
    """The exceptions that mean bad input, by the packages loaded so far."""
    results = sys.modules.get("analysis.results")
    return (InputError, *([results.TableError] if results else []))


def main(arguments: list[str] | None = None) -> None:
    """Entry point. Exit codes: 0 done, 1 a run failed, 2 bad input (one line on stderr), 4 diverged, 75 stopped."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        base = base_config(arguments) if arguments[:1] == ["train"] else RunConfig()
        code: Any = build_app(base).cli(prog="scaling", description=__doc__, args=arguments)
    except KeyboardInterrupt:
        code = 130
    except Exception as error:
        if not isinstance(error, user_errors()):
            raise
        Console(stderr=True, soft_wrap=True).print(f"[red]error:[/] {error}", highlight=False)
        code = 2
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()

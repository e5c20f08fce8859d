"""The verb `scaling export`: writes a checkpoint in the formats of other libraries."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro
from rich.table import Table

from scaling.export.export import export_run
from scaling.files import write_json
from scaling.terminal import make_console
from scaling.training.restore import restore_model


def export(
    run: Annotated[Path, tyro.conf.Positional],
    out: Path | None = None,
    step: int | None = None,
    stablehlo: bool = False,
    json: Path | None = None,
) -> None:
    """Write a run in the formats of other libraries: model.safetensors, config.json and tokenizer files in Hugging
    Face's form, and run.py, which generates text with numpy and safetensors alone.

    Args:
        run: the run folder.
        out: the folder to write; out/export/<run_id> when not given. An older export there is replaced.
        step: step of the checkpoint; the last one when not given.
        stablehlo: also write forward.stablehlo, the model as jax.export serialises it for CPUs, CUDA and TPUs.
        json: also write the names and sizes of the files to this file.
    """
    restored = restore_model(run, step)
    folder = out if out is not None else Path("out/export") / restored.config.run_id
    files = export_run(restored, folder, stablehlo=stablehlo)
    table = Table("file", "bytes", box=None)
    for path in files:
        table.add_row(path.name, f"{path.stat().st_size:,}")
    console = make_console(highlight=False, soft_wrap=True)
    console.print(table)
    console.print(f"step {restored.step:,} of {restored.config.run_id}: python {folder / 'run.py'} 'a prompt'")
    if restored.config.precision.compute != "float32":
        console.print(f"the run computed in {restored.config.precision.compute}; what is written computes in float32")
    if json is not None:
        written = {path.name: path.stat().st_size for path in files}
        facts = {"run_id": restored.config.run_id, "step": restored.step, "tokens": restored.tokens}
        write_json(json, {**facts, "out": str(folder), "files": written})

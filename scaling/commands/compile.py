"""The verb `scaling compile`: what a run would need on TPUs that are not there."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from scaling.accounting import counts
from scaling.accounting.chips import Topology, parse_topology
from scaling.accounting.model_shapes import find_published_model
from scaling.config.run_config import DataConfig, MeshConfig, PrecisionConfig, RunConfig, load_config
from scaling.errors import InputError
from scaling.files import write_json
from scaling.model import sharding
from scaling.performance.compile_ahead import estimate_step, require_libtpu
from scaling.performance.roofline import Estimate
from scaling.training.memory import GIB

TOKENS_PER_PARAMETER = 20  # Hoffmann et al. 2022, table 3
Remat = Literal["none", "dots", "full"]
Compute = Literal["float32", "bfloat16"]


def compile_for_tpu(
    model: str,
    /,
    topology: str = "",
    mesh: str | None = None,
    slices: int = 1,
    sequence_length: int | None = None,
    batch_per_chip: int | None = None,
    batch_sequences: int | None = None,
    microbatch: int | None = None,
    remat: Remat | None = None,
    compute: Compute | None = None,
    attention: str | None = None,
    tokens: int | None = None,
    json: Path | None = None,
) -> None:
    """Compile the train step for a TPU topology, without TPUs: memory, FLOPs, collectives, and the least time it takes.

    Args:
        model: a published shape, as llama-3.2-1b, or the path of a config.json, whose fields are then the defaults.
        topology: chip and slice, as v5e:16x16 or v5p:4x8x8. Must be given.
        mesh: data=..,fsdp=..,tensor=..; what is left out is 1, but data takes the rest. By default fsdp over a slice.
        slices: that many slices, joined by a data-centre network, which only the data axis crosses.
        sequence_length: tokens of a sequence; 2048.
        batch_per_chip: sequences of a batch for each chip; 1.
        batch_sequences: sequences of a batch over all chips, instead of batch_per_chip.
        microbatch: sequences over all chips of one gradient computation; the batch.
        remat: what the backward pass recomputes; full.
        compute: dtype of the matrix products; bfloat16.
        attention: the attention kernel, as in model.attention.
        tokens: budget for the chip-hours; 20 for each parameter.
        json: also write the same facts to this file.
    """
    if not topology:
        raise InputError("topology: must be given, as --topology v5e:4x4")
    target = parse_topology(topology, slices)
    batch = (batch_per_chip or 1) * target.chips if batch_sequences is None else batch_sequences
    given: dict[str, Any] = {
        "sequence_length": sequence_length,
        "batch_sequences": batch if batch_sequences or batch_per_chip else None,
        "microbatch_sequences": microbatch,
    }
    config = load_config(model) if model.endswith(".json") else published_run(model, target)
    data = dataclasses.replace(config.data, **{key: value for key, value in given.items() if value is not None})
    options: dict[str, Any] = {
        key: value for key, value in {"remat": remat, "attention": attention}.items() if value is not None
    }
    config = RunConfig(
        model=dataclasses.replace(config.model, **options),
        data=data,
        precision=PrecisionConfig(compute) if compute else config.precision,
        mesh=parse_mesh(mesh) if mesh is not None else config.mesh,
        tokens=max(tokens or config.tokens, data.batch_tokens),
    )
    sharding.axis_sizes(config.mesh, target.chips, target.slices)
    require_libtpu()
    made = estimate_step(config, target)
    show(made, model)
    if json is not None:
        write_json(json, {"model": model} | made.facts())


def published_run(model: str, target: Topology, mesh: MeshConfig | None = None) -> RunConfig:
    """A run of a published shape: one sequence of 2048 tokens a chip, bfloat16, all recomputed, 20 tokens a parameter,
    weights over a whole slice unless `mesh` says else. Raises InputError on an unknown name."""
    named = dataclasses.replace(find_published_model(model).model, remat="full")
    return RunConfig(
        model=named,
        data=DataConfig(sequence_length=2048, batch_sequences=target.chips),
        precision=PrecisionConfig("bfloat16"),
        mesh=mesh or MeshConfig(data=target.slices, fsdp=target.chips // target.slices),
        tokens=TOKENS_PER_PARAMETER * counts.count_params(named).total,
    )


def parse_mesh(text: str) -> MeshConfig:
    """`data=4,fsdp=4,tensor=1` -> that mesh. Raises InputError on anything else."""
    found = re.fullmatch(r"(data|fsdp|tensor)=(\d+)(?:,(data|fsdp|tensor)=(\d+)){0,2}", text)
    pairs = [part.partition("=") for part in text.split(",")]
    names = [name for name, _, _ in pairs]
    if not found or len(set(names)) < len(names):
        raise InputError(f"mesh {text!r}: must be as data=4,fsdp=4,tensor=1, each at most once")
    return MeshConfig(**{name: int(size) for name, _, size in pairs})


def show(made: Estimate, name: str) -> None:
    """Prints an estimate: memory, work, collectives, bounds."""
    console = Console()
    mesh = ",".join(f"{axis}={size}" for axis, size in made.mesh.items())
    slices = f" x {made.slices} slices" if made.slices > 1 else ""
    title = (
        f"{name}: {made.params:,} parameters on {made.topology}{slices}, {made.chips} chips, {mesh}; "
        f"{made.batch_sequences} x {made.sequence_length} tokens a step, "
        f"remat {made.remat}, {made.compute}, attention {made.attention}"
    )
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    for label, value in rows(made):
        table.add_row(label, value)
    console.print(table)
    if made.collectives:
        console.print(collectives(made))


def rows(made: Estimate) -> list[tuple[str, str]]:
    """What the table says, line by line."""
    gib = {key: getattr(made, key) / GIB for key in ("peak", "hbm", "arguments", "live", "code")}
    best, worst = made.overlapped_seconds, made.sequential_seconds
    engines = ", ".join(f"{name} {value * 1e3:.1f}" for name, value in made.engines.items() if value)
    repeated = made.flops_chip * made.chips / made.flops
    return [
        (
            "memory a chip",
            f"{gib['peak']:.2f} of {gib['hbm']:.0f} GiB: fits "
            f"(state and batch {gib['arguments']:.2f}, more on the way {gib['live'] - gib['arguments']:.2f}, "
            f"code {gib['code']:.2f})",
        ),
        ("FLOPs a step", f"{made.flops:.3e} with recomputation, {made.useful_flops:.3e} without (attention halved)"),
        ("FLOPs a chip", f"{made.flops_chip:.3e}, {repeated:.2f}x its share"),
        ("HBM a chip", f"{made.hbm_bytes / 1e9:.1f} GB a step"),
        ("milliseconds", f"{engines} (rooflines)"),
        ("step", f"{best * 1e3:.1f} ms if they overlap perfectly, {worst * 1e3:.1f} ms if not at all"),
        ("tokens/s", f"{made.batch_tokens / best:,.0f} to {made.batch_tokens / worst:,.0f}"),
        ("MFU", f"{made.mfu(best):.1%} to {made.mfu(worst):.1%} (attention halved); bounds, not measurements"),
        (
            "chip-hours",
            f"{made.chip_hours(best):,.0f} to {made.chip_hours(worst):,.0f} for {made.tokens:.3g} tokens",
        ),
        ("compiled in", f"{made.compile_seconds:.0f} s"),
    ]


def collectives(made: Estimate) -> Table:
    """One row for each kind of collective over each set of mesh axes."""
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    for heading in ("collective", "axes", "devices", "times", "MB a chip", "ms"):
        table.add_column(heading, justify="left" if heading in ("collective", "axes") else "right", no_wrap=True)
    for one in made.collectives:
        table.add_row(
            one.kind,
            one.axes,
            str(one.devices),
            f"{one.count:,}",
            f"{one.sent / 1e6:,.1f}",
            f"{one.seconds * 1e3:.2f}",
        )
    return table

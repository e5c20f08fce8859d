"""The verb `scaling compile`: compiles a training step for TPUs that are not there, and prints what it would need."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any, Literal

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
from scaling.terminal import make_console
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
    """Compile the training step for a TPU topology, without TPUs: memory, FLOPs, collectives, and bounds of its time.

    Args:
        model: name of a published model, as llama-3.2-1b, or the path of a config.json, whose fields are the defaults.
        topology: required: chip and slice, as v5e:16x16 or v5p:4x8x8.
        mesh: devices per axis, as data=2,fsdp=8,tensor=1; an axis that is left out has 1, but data takes the rest. By
            default fsdp spans a slice, and data the slices.
        slices: number of slices, joined by a data-centre network, which only the data axis crosses.
        sequence_length: tokens of a sequence; 2048 for a published model.
        batch_per_chip: sequences of a batch for each chip; 1 for a published model.
        batch_sequences: sequences of a batch over all chips, instead of --batch-per-chip.
        microbatch: sequences over all chips of one gradient computation; the whole batch by default.
        remat: what the backward pass recomputes; full for a published model.
        compute: dtype of the matrix products; bfloat16 for a published model.
        attention: the attention kernel, as in model.attention.
        tokens: training tokens for which chip-hours are computed; 20 for each parameter of a published model.
        json: also write what is printed to this file.
    """
    if not topology:
        raise InputError("--topology: required, a chip and its slice, as --topology v5e:4x4")
    target = parse_topology(topology, slices)
    batch = (batch_per_chip or 1) * target.chips if batch_sequences is None else batch_sequences
    data_fields: dict[str, Any] = {
        "sequence_length": sequence_length,
        "batch_sequences": batch if batch_sequences or batch_per_chip else None,
        "microbatch_sequences": microbatch,
    }
    config = load_config(model) if model.endswith(".json") else published_run(model, target)
    data = dataclasses.replace(config.data, **{key: value for key, value in data_fields.items() if value is not None})
    model_fields: dict[str, Any] = {
        key: value for key, value in {"remat": remat, "attention": attention}.items() if value is not None
    }
    config = RunConfig(
        model=dataclasses.replace(config.model, **model_fields),
        data=data,
        precision=PrecisionConfig(compute) if compute else config.precision,
        mesh=parse_mesh(mesh) if mesh is not None else config.mesh,
        tokens=max(tokens or config.tokens, data.batch_tokens),
    )
    sharding.axis_sizes(config.mesh, target.chips, target.slices)
    require_libtpu()
    estimate = estimate_step(config, target)
    print_estimate(estimate, model)
    if json is not None:
        write_json(json, {"model": model} | estimate.facts())


def published_run(model: str, target: Topology, mesh: MeshConfig | None = None) -> RunConfig:
    """A run of a published model: one sequence of 2048 tokens for each chip, bfloat16, full recomputation, 20 tokens
    for each parameter, weights split over a whole slice unless `mesh` says otherwise. Raises InputError on an unknown
    name."""
    published = dataclasses.replace(find_published_model(model).model, remat="full")
    return RunConfig(
        model=published,
        data=DataConfig(sequence_length=2048, batch_sequences=target.chips),
        precision=PrecisionConfig("bfloat16"),
        mesh=mesh or MeshConfig(data=target.slices, fsdp=target.chips // target.slices),
        tokens=TOKENS_PER_PARAMETER * counts.count_params(published).total,
    )


def parse_mesh(text: str) -> MeshConfig:
    """`data=4,fsdp=4,tensor=1` as a mesh. Raises InputError on text of another form."""
    match = re.fullmatch(r"(data|fsdp|tensor)=(\d+)(?:,(data|fsdp|tensor)=(\d+)){0,2}", text)
    pairs = [part.partition("=") for part in text.split(",")]
    names = [name for name, _, _ in pairs]
    if not match or len(set(names)) < len(names):
        raise InputError(f"mesh {text!r}: must be as data=4,fsdp=4,tensor=1, each at most once")
    return MeshConfig(**{name: int(size) for name, _, size in pairs})


def print_estimate(estimate: Estimate, name: str) -> None:
    """Prints an estimate: memory, FLOPs, collectives, and bounds of the time of a step."""
    console = make_console()
    mesh = ",".join(f"{axis}={size}" for axis, size in estimate.mesh.items())
    slices = f" x {estimate.slices} slices" if estimate.slices > 1 else ""
    title = (
        f"{name}: {estimate.params:,} parameters on {estimate.topology}{slices}, {estimate.chips} chips, {mesh}; "
        f"{estimate.batch_sequences} x {estimate.sequence_length} tokens a step, "
        f"remat {estimate.remat}, {estimate.compute}, attention {estimate.attention}"
    )
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    for label, value in estimate_rows(estimate):
        table.add_row(label, value)
    console.print(table)
    if estimate.collectives:
        console.print(collective_table(estimate))


def estimate_rows(estimate: Estimate) -> list[tuple[str, str]]:
    """The rows of the table, (label, text)."""
    gib = {key: getattr(estimate, key) / GIB for key in ("peak", "hbm", "arguments", "live", "code")}
    best, worst = estimate.overlapped_seconds, estimate.sequential_seconds
    engines = ", ".join(f"{name} {value * 1e3:.1f}" for name, value in estimate.engines.items() if value)
    repeated = estimate.flops_chip * estimate.chips / estimate.flops
    return [
        (
            "memory a chip",
            f"{gib['peak']:.2f} of {gib['hbm']:.0f} GiB: fits "
            f"(state and batch {gib['arguments']:.2f}, more on the way {gib['live'] - gib['arguments']:.2f}, "
            f"code {gib['code']:.2f})",
        ),
        (
            "FLOPs a step",
            f"{estimate.flops:.3e} with recomputation, {estimate.useful_flops:.3e} without (attention halved)",
        ),
        ("FLOPs a chip", f"{estimate.flops_chip:.3e}, {repeated:.2f}x its share"),
        ("HBM a chip", f"{estimate.hbm_bytes / 1e9:.1f} GB a step"),
        ("milliseconds", f"{engines} (rooflines)"),
        ("step", f"{best * 1e3:.1f} ms if they overlap perfectly, {worst * 1e3:.1f} ms if not at all"),
        ("tokens/s", f"{estimate.batch_tokens / best:,.0f} to {estimate.batch_tokens / worst:,.0f}"),
        ("MFU", f"{estimate.mfu(best):.1%} to {estimate.mfu(worst):.1%} (attention halved); bounds, not measurements"),
        (
            "chip-hours",
            f"{estimate.chip_hours(best):,.0f} to {estimate.chip_hours(worst):,.0f} for {estimate.tokens:.3g} tokens",
        ),
        ("compiled in", f"{estimate.compile_seconds:.0f} s"),
    ]


def collective_table(estimate: Estimate) -> Table:
    """The table of collectives: a row for each kind over each set of mesh axes."""
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    for heading in ("collective", "axes", "devices", "times", "MB a chip", "ms"):
        table.add_column(heading, justify="left" if heading in ("collective", "axes") else "right", no_wrap=True)
    for collective in estimate.collectives:
        table.add_row(
            collective.kind,
            collective.axes,
            str(collective.devices),
            f"{collective.count:,}",
            f"{collective.sent / 1e6:,.1f}",
            f"{collective.seconds * 1e3:.2f}",
        )
    return table

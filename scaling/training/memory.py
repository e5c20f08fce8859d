"""Estimates the memory that a run needs on each device, before anything is compiled, and lists smaller configs that may
fit. `scaling compile` confirms the estimates with the compiler; training checks its state before it starts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from scaling.accounting import counts
from scaling.config.run_config import RunConfig
from scaling.errors import InputError
from scaling.model.attention import choose_kernel
from scaling.model.loss import chunk_count

GIB = 2**30
MeshSizes = tuple[int, int, int]


def state_bytes(abstract_state: Any) -> int:
    """Bytes on each device of a training state whose leaves carry their shardings: weights, moments, counters."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(abstract_state)
    )


def check_memory(abstract_state: Any, memory: float) -> None:
    """Raises InputError when weights and optimizer state alone need more than `memory`, the bytes of a device.

    Gradients (a third of the state in float32) and activations come on top; only the compiler knows those.
    """
    needed = state_bytes(abstract_state)
    if needed > memory:
        factor = math.ceil(needed / memory)
        raise InputError(
            f"weights and optimizer state: {needed / GIB:.1f} GiB on each device, which has {memory / GIB:.1f}; "
            f"mesh.fsdp or mesh.tensor {factor} times larger would hold them"
        )


def estimate_bytes(config: RunConfig, sizes: MeshSizes) -> float:
    """Peak bytes on each device of a mesh of (data, fsdp, tensor): state, gradients, activations. An estimate (ours).

    Counted are: weights, two moments and gradients in float32, and gradients once more where microbatches sum them; two
    layers and the head gathered in the compute dtype, and the head's gradient in float32; logits of one chunk
    (scaling/model/loss.py). Activations: with remat "full" one residual stream a layer and all of one layer; without
    remat all of every layer. Only the reference attention keeps scores, in float32 and once more in the compute dtype.
    """
    data, fsdp, tensor = sizes
    model, T = config.model, config.data.sequence_length
    width = {"float32": 4, "bfloat16": 2}[config.precision.compute]  # bytes of a number in the compute dtype
    params = counts.count_params(model)
    state = 16 * params.total / (fsdp * tensor)  # weight, two moments and gradient: four float32
    sequences = (config.data.microbatch_sequences or config.data.batch_sequences) / (data * fsdp)
    tokens = sequences * T
    accumulated = 4 * params.total / (fsdp * tensor) if config.data.microbatch_sequences else 0.0
    gathered = width * 2 * params.blocks / model.depth / tensor + (4 + width) * model.vocab_size * model.width
    rows = max(round(sequences), 1)
    logits = tokens * model.vocab_size * (4 + width) / chunk_count(rows, T, model.vocab_size)
    # Numbers a token of one layer: 8 M + 2 K D of attention, 4 F of the feed-forward block.
    attention = 8 * model.width + 2 * model.num_kv_heads * model.head_width
    layer = tokens * width * (attention + 4 * model.num_ff) / tensor
    kernel = choose_kernel(model, jnp.dtype(config.precision.compute), T, "tpu")
    scores = sequences * model.heads / tensor * T * T * (4 + width) if kernel == "xla" else 0.0
    stream = tokens * width * model.width
    # What each layer keeps for the backward pass, in residual streams.
    by_remat = {"full": 1, "dots": 1 + layer / (2 * stream), "none": 1 + (layer + scores) / stream}
    return state + accumulated + gathered + logits + layer + scores + model.depth * stream * by_remat[model.remat]


def smaller_configs(config: RunConfig, sizes: MeshSizes, slices: int = 1) -> Iterator[tuple[str, RunConfig, MeshSizes]]:
    """Changes that need less memory, smallest change first, as (flags of `scaling compile`, config, mesh sizes).

    In this order: recompute activations, a smaller microbatch, a smaller batch, weights sharded over more devices of
    one of the `slices`, heads and hidden widths sharded over more devices.
    """
    base = config
    if config.model.remat != "full":
        base = dataclasses.replace(config, model=dataclasses.replace(config.model, remat="full"))
        yield "--remat full", base, sizes
    rows = sizes[0] * sizes[1]
    batch, micro = config.data.batch_sequences, config.data.microbatch_sequences or config.data.batch_sequences
    words = "--remat full " if base is not config else ""
    smaller_micro = sorted((n for n in range(rows, micro, rows) if batch % n == 0), reverse=True)
    for size in smaller_micro:
        data = dataclasses.replace(config.data, microbatch_sequences=size)
        yield f"{words}--microbatch {size}", dataclasses.replace(base, data=data), sizes
    for size in (n for n in (batch // 2**k for k in range(1, batch.bit_length())) if n and n % rows == 0):
        data = dataclasses.replace(config.data, batch_sequences=size, microbatch_sequences=None)
        yield f"{words}--batch-sequences {size}", dataclasses.replace(base, data=data), sizes
    if smaller_micro:
        data = dataclasses.replace(config.data, microbatch_sequences=smaller_micro[-1])
        base = dataclasses.replace(base, data=data)
        words += f"--microbatch {smaller_micro[-1]} "
    for factor in range(2, sizes[0] // slices + 1):
        if sizes[0] % (factor * slices) == 0 and config.model.width % (sizes[1] * factor * sizes[2]) == 0:
            mesh = (sizes[0] // factor, sizes[1] * factor, sizes[2])
            yield f"{words}--mesh data={mesh[0]},fsdp={mesh[1]},tensor={mesh[2]}", base, mesh
    yield from _more_tensor(words, base, sizes)


def _more_tensor(words: str, config: RunConfig, sizes: MeshSizes) -> Iterator[tuple[str, RunConfig, MeshSizes]]:
    """Heads and hidden widths sharded over more devices, taken from fsdp: a device holds as much of the state as before
    and more sequences."""
    model = config.model
    for factor in (2, 4, 8):
        tensor = sizes[2] * factor
        if sizes[1] % factor == 0 and all(n % tensor == 0 for n in (model.heads, model.num_kv_heads, model.num_ff)):
            mesh = (sizes[0], sizes[1] // factor, tensor)
            batch, rows = config.data.batch_sequences, mesh[0] * mesh[1]
            data = dataclasses.replace(config.data, microbatch_sequences=rows) if batch % rows == 0 else config.data
            text = f"--mesh data={mesh[0]},fsdp={mesh[1]},tensor={mesh[2]} --microbatch {data.microbatch_sequences}"
            yield words.split("--microbatch")[0] + text, dataclasses.replace(config, data=data), mesh


def likely_fitting_changes(
    config: RunConfig, sizes: MeshSizes, memory: float, scale: float = 1.0, slices: int = 1
) -> list[tuple[str, RunConfig, MeshSizes]]:
    """The changes of `smaller_configs` that may fit in `memory` bytes a device, likeliest first: those whose estimate
    times `scale` fits, smallest change first; then those whose estimate alone fits, least memory first.

    scale: what the compiler reported for the config, divided by its estimate.
    """
    changes = list(smaller_configs(config, sizes, slices))
    estimates = [estimate_bytes(changed, changed_sizes) for _, changed, changed_sizes in changes]
    likely = [change for needed, change in zip(estimates, changes, strict=True) if needed * scale <= memory]
    possible = sorted((needed, i) for i, needed in enumerate(estimates) if needed <= memory < needed * scale)
    return likely + [changes[i] for _, i in possible]

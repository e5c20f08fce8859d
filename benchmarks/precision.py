"""Measures what bfloat16 costs in loss: one run in float32 and in bfloat16, and float32 from other initial weights.

    python benchmarks/precision.py --json benchmarks/precision.json --figure docs/precision.png

All runs see the same batches in the same order (the standard library's source, as bytes); the two precisions also start
from the same weights. Master weights, softmax and loss are float32 in both. Curves are moving averages of the training
loss, so a difference at a step is between averages over the same tokens. The spread
over initial weights is the scale: a sweep of one seed cannot see a smaller difference.
"""

from __future__ import annotations

import datetime
import functools
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import jax
import matplotlib as mpl
import numpy as np
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from scaling.accounting import counts
from scaling.config.run_config import (
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    PrecisionConfig,
    RunConfig,
    ScheduleConfig,
)
from scaling.data.prepare import prepare
from scaling.data.shards import TokenShards, open_shards
from scaling.data.tokenizer import load_tokenizer
from scaling.measurements import validation_loss
from scaling.model import sharding
from scaling.record.environment import describe_environment
from scaling.training.prefetch import prefetch
from scaling.training.train import step_input
from scaling.training.train_step import build_program

FLOAT, BF16 = "float32", "bfloat16"
WINDOW = 50  # steps in a moving average
KEPT = 120  # points of a curve in the JSON
INK, ACCENT, FAINT = "#1c1d21", "#c2410c", "#8b8f98"


@dataclass(frozen=True)
class Curve:
    """One run. losses: nats per token of each step, [steps]. validation: nats per token after the last, as trained;
    in_float32: of the same weights multiplied in float32, hence without what rounding does to one forward pass."""

    name: str
    precision: str
    weights: int
    kernel: str
    losses: np.ndarray
    validation: float
    validation_stderr: float
    in_float32: float
    seconds: float

    @property
    def smoothed(self) -> np.ndarray:
        """[steps - WINDOW + 1]; entry i is the average over steps i to i + WINDOW."""
        return np.convolve(self.losses, np.full(WINDOW, 1 / WINDOW), mode="valid")


def run(name: str, config: RunConfig, weights: int, tokens: TokenShards) -> Curve:
    """Trains on the batches of `config`, from the initial weights of seed `weights`."""
    program = build_program(config, sharding.make_mesh(config.mesh))
    state = program.init(jax.random.key(weights))
    losses, start = [], time.perf_counter()
    with prefetch(functools.partial(step_input, config, tokens, program.mesh), range(config.steps)) as feeds:
        for given in feeds:
            state, metrics = program.step(state, given.tokens_BS, given.rates)
            losses.append(metrics["loss"])
    values = np.array(jax.device_get(losses), np.float64)
    seconds = time.perf_counter() - start
    measure = validation_loss.validation_loss(tokens, config.data.sequence_length, program.mesh)
    vocabulary, budget = load_tokenizer(config.data.vocabulary), config.measure.validation_tokens
    exact = build_program(replace(config, precision=PrecisionConfig(FLOAT)), program.mesh).model
    nats, in_float32 = (
        measure.run(model, state.params, vocabulary, jax.random.key(0), budget)["nats"]
        for model in (program.model, exact)
    )
    return Curve(
        name=name,
        precision=config.precision.compute,
        weights=weights,
        kernel=program.model.kernel,
        losses=values,
        validation=nats[0],
        validation_stderr=nats[2],
        in_float32=in_float32[0],
        seconds=seconds,
    )


def differences(curve: Curve, base: Curve) -> dict[str, float]:
    """Of a curve from the base, in nats per token; positive is worse."""
    apart = curve.smoothed - base.smoothed
    last = slice(len(apart) // 2, None)
    return {
        "smoothed_mean": float(apart.mean()),
        "smoothed_mean_absolute": float(np.abs(apart).mean()),
        "smoothed_largest": float(np.abs(apart).max()),
        "second_half_mean": float(apart[last].mean()),
        "second_half_largest": float(np.abs(apart[last]).max()),
        "validation": curve.validation - base.validation,
        "validation_in_float32": curve.in_float32 - base.in_float32,
    }


def gather_results(config: RunConfig, curves: Mapping[str, Curve]) -> dict[str, Any]:
    """Everything as plain JSON: what was run, where, the curves thinned, and the differences with their ratio."""
    base, others = curves[FLOAT], [one for one in curves.values() if one.weights != curves[FLOAT].weights]
    half, apart = differences(curves[BF16], base), {one.name: differences(one, base) for one in others}
    yardstick = {key: float(np.mean([abs(one[key]) for one in apart.values()])) for key in half}
    every = max((config.steps - WINDOW + 1) // KEPT, 1)
    return {
        "date": datetime.date.today().isoformat(),
        "environment": describe_environment(base.kernel),
        "params": counts.count_params(config.model).total,
        "run": {"steps": config.steps, "tokens": config.tokens, "corpus": config.data.corpus, "window_steps": WINDOW}
        | {"width": config.model.width, "depth": config.model.depth, "batch_tokens": config.data.batch_tokens}
        | {"learning_rate": config.optimizer.learning_rate, "seed_of_the_order": config.seed},
        "bfloat16_minus_float32": half,
        "other_weights_minus_float32": apart,
        "ratio_to_other_weights": {key: abs(half[key]) / yardstick[key] for key in half},
        "runs": [
            {"name": one.name, "precision": one.precision, "weights": one.weights, "attention_kernel": one.kernel}
            | {"validation": one.validation, "validation_stderr": one.validation_stderr, "seconds": one.seconds}
            | {"validation_in_float32": one.in_float32}
            | {"step": list(range(WINDOW, config.steps + 1, every)), "smoothed": one.smoothed[::every].tolist()}
            for one in curves.values()
        ],
    }


def report(facts: Mapping[str, Any]) -> str:
    """The differences, in lines."""
    half, ratio = facts["bfloat16_minus_float32"], facts["ratio_to_other_weights"]
    lines = [f"{'nats per token':<28}{'bfloat16 - float32':>20}{'share of what other weights do':>32}"]
    lines += [f"{key.replace('_', ' '):<28}{value:>+20.5f}{ratio[key]:>31.0%} " for key, value in half.items()]
    for one in facts["runs"]:
        value = f"{one['validation']:.4f} +- {one['validation_stderr']:.4f}"
        lines.append(
            f"{one['name']:<28}{value:>20} validation, {one['seconds']:.0f} s, attention {one['attention_kernel']}"
        )
    return "\n".join(lines)


def figure(facts: Mapping[str, Any]) -> Figure:
    """Smoothed training loss, and below it what separates each run from float32."""
    settings = {"font.size": 9.5, "axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left"}
    base = np.array(next(one["smoothed"] for one in facts["runs"] if one["name"] == FLOAT))
    with mpl.rc_context(settings):
        canvas = Figure(figsize=(7.2, 5.4), layout="constrained")
        top, below = canvas.subplots(2, sharex=True, height_ratios=(1, 1))
        styles = {FLOAT: (INK, 2.2, "-"), BF16: (ACCENT, 1.6, "--")}
        for one in facts["runs"]:
            colour, width, line = styles.get(one["name"], (FAINT, 1.0, "-"))
            x = np.array(one["step"]) * facts["run"]["batch_tokens"]
            top.plot(x, one["smoothed"], line, color=colour, linewidth=width)
            if one["name"] != FLOAT:
                below.plot(x, np.array(one["smoothed"]) - base, line, color=colour, linewidth=width)
        batch_tokens = facts["run"]["batch_tokens"]
        _labels(top, facts["runs"], batch_tokens, lambda one: one["smoothed"][-1])
        others = [one for one in facts["runs"] if one["name"] != FLOAT]
        _labels(below, others, batch_tokens, lambda one: one["smoothed"][-1] - base[-1])
        below.axhline(0, color=INK, linewidth=0.8, zorder=0)
        plain = FuncFormatter(lambda value, _: f"{value:g}")
        top.set(xscale="log", yscale="log", ylabel="training loss, nats per token")
        top.yaxis.set(major_locator=LogLocator(subs=(1, 1.5, 2, 3, 4, 5)), major_formatter=plain)
        top.yaxis.set(minor_locator=NullLocator(), minor_formatter=NullFormatter())
        below.set(xlabel="tokens", ylabel="minus float32, nats per token")
        below.xaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), minor_locator=NullLocator())
        below.xaxis.set(major_formatter=FuncFormatter(lambda value, _: f"{value:,.0f}"))
        half = facts["bfloat16_minus_float32"]
        top.set_title(f"{facts['params']:,} parameters, averages over {facts['run']['window_steps']} steps")
        below.set_title(
            f"bfloat16 less float32: {half['smoothed_mean']:+.4f} on average, {half['validation']:+.4f} in validation"
        )
    return canvas


def _labels(axes: Axes, runs: list[Any], batch_tokens: int, end: Callable[[Any], float]) -> None:
    """Names at the ends of curves, in the order of the curves and apart where these meet."""
    for place, one in enumerate(sorted(runs, key=end)):
        colour = {FLOAT: INK, BF16: ACCENT}.get(one["name"], FAINT)
        offset = (8, 12 * (place - (len(runs) - 1) / 2))
        x = one["step"][-1] * batch_tokens
        axes.annotate(one["name"], (x, end(one)), offset, textcoords="offset points", va="center", color=colour)


def main(
    json_: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
    figure_: Annotated[Path | None, tyro.conf.arg(name="figure")] = None,
    directory: Path = Path("out/corpora"),
    steps: int = 1000,
    others: int = 2,
) -> None:
    """Train, compare, print and write.

    Args:
      json_: File for the facts.
      figure_: File for the figure, .png or .svg.
      directory: Where the corpus is prepared, or will be.
      steps: Optimizer steps of each run.
      others: Runs in float32 from other initial weights.
    """
    prepare("stdlib", directory, backend="plain")
    tokens = open_shards(directory, "stdlib")
    data = DataConfig(corpus="stdlib", fingerprint=tokens.fingerprint, batch_sequences=8, directory=str(directory))
    config = RunConfig(
        model=ModelConfig(width=64, depth=4, heads=4),
        data=data,
        optimizer=OptimizerConfig(learning_rate=4e-3),
        schedule=ScheduleConfig(warmup_tokens=steps // 20 * data.batch_tokens),
        tokens=steps * data.batch_tokens,
    )
    curves = {
        FLOAT: run(FLOAT, config, 0, tokens),
        BF16: run(BF16, replace(config, precision=PrecisionConfig("bfloat16")), 0, tokens),
    }
    for weights in range(1, others + 1):
        name = f"float32, weights {weights}"
        curves[name] = run(name, config, weights, tokens)
    facts = gather_results(config, curves)
    print(report(facts))
    if json_:
        json_.write_text(json.dumps(facts, indent=1) + "\n")
    if figure_:
        figure(facts).savefig(figure_, dpi=200)


if __name__ == "__main__":
    tyro.cli(main)

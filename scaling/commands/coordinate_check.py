"""The verb `scaling coord-check`: whether activations change alike at every width and depth in the first steps of
training (the coordinate check of Yang et al. 2022, muP, appendix D.1).

Models of several sizes train for a few steps. Measured is the root mean square, over the entries of each kind of
activation on one fixed batch, of the change since the start. Under a right parametrisation it does not depend on size
once sizes are large. Where theory says that it does, the slope of log change in log size is 1/2 or more in absolute
value: BOUND is half of that.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import Progress
from rich.table import Table

from scaling.config.run_config import DataConfig, MeshConfig, ModelConfig, OptimizerConfig, RunConfig
from scaling.data.shards import gather_batch, open_shards
from scaling.errors import InputError
from scaling.files import write_json
from scaling.model import sharding
from scaling.model.decoder import Block, Decoder, logits, matmul_precision
from scaling.model.parametrization import simplest_equivalent
from scaling.record.environment import describe_environment
from scaling.terminal import make_console
from scaling.training.schedule import Rates
from scaling.training.train_step import build_program

Parametrization = Literal["standard", "mup", "completep"]
Axis = Literal["width", "depth"]
KINDS = ("embedding", "attention", "ff", "residual", "logits")
BOUND = 0.25
BATCH, SEQUENCE = 8, 64
COLOURS = {"standard": "#1c1d21", "mup": "#c2410c", "completep": "#0f766e"}


@dataclass(frozen=True)
class Trend:
    """How the change of one kind of activation depends on width or depth. changes: after the last step, one for each
    size, the geometric mean over seeds."""

    axis: Axis
    parametrization: Parametrization
    kind: str
    sizes: tuple[int, ...]
    changes: tuple[float, ...]

    @property
    def slope(self) -> float:
        """Slope of log change in log size, by least squares."""
        return float(np.polyfit(np.log(self.sizes), np.log(self.changes), 1)[0])

    @property
    def verdict(self) -> str:
        """flat, grows or shrinks."""
        return "flat" if abs(self.slope) <= BOUND else "grows" if self.slope > 0 else "shrinks"


@functools.partial(jax.jit, static_argnames="model")
def activations(model: Decoder, params: Any, tokens_BT: jax.Array) -> dict[str, jax.Array]:
    """Activations by kind: embedding and residual (the output of the last block) [B, T, M]; attention and ff (what each
    branch adds, before its multiplier) [L, B, T, M]; logits [B, T, V]."""
    block = Block(model.config, model.kernel)

    # Scan over the layers, and keep the output of both branches of each.
    def layer(x_BTM: jax.Array, weights: Any) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        out: Any = block.apply(
            {"params": weights}, x_BTM, None, capture_intermediates=_is_branch, mutable=["intermediates"]
        )
        (x_BTM, _), seen = out
        ((attention_BTM, _),), (ff_BTM,) = (seen["intermediates"][name]["__call__"] for name in ("attention", "ff"))
        return x_BTM, (attention_BTM, ff_BTM)

    with matmul_precision(model):
        embedding_BTM = params["embedding"][tokens_BT].astype(model.dtype)
        residual_BTM, (attention_LBTM, ff_LBTM) = jax.lax.scan(layer, embedding_BTM, params["blocks"])
    arrays = (embedding_BTM, attention_LBTM, ff_LBTM, residual_BTM, logits(model, params, tokens_BT))
    return dict(zip(KINDS, arrays, strict=True))


def _is_branch(module: Any, method: str) -> bool:
    return method == "__call__" and module.name in ("attention", "ff")


@jax.jit
def rms_change(now: dict[str, jax.Array], start: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Root mean square of now - start for each kind of activation."""
    return jax.tree.map(lambda a, b: jnp.sqrt(jnp.mean((a - b) ** 2)), now, start)


def activation_changes(config: RunConfig, tokens_SBS: np.ndarray, seeds: int) -> np.ndarray:
    """Trains a model and returns the change since the start after each step, [seeds, steps, len(KINDS)].

    tokens_SBS: a batch [B, T + 1] for each step; activations are those on the first.
    """
    program = build_program(config, sharding.make_mesh(MeshConfig()))
    rates = Rates(np.float32(config.optimizer.learning_rate), np.float32(config.optimizer.weight_decay))
    out = np.zeros((seeds, len(tokens_SBS), len(KINDS)))
    probe_BT = jnp.asarray(tokens_SBS[0][:, :-1])
    for seed in range(seeds):
        state = program.init(jax.random.key(seed))
        start = activations(program.model, state.params, probe_BT)
        for step, tokens_BS in enumerate(tokens_SBS):
            state, _ = program.step(state, jnp.asarray(tokens_BS), rates)
            changes = rms_change(activations(program.model, state.params, probe_BT), start)
            out[seed, step] = [float(changes[kind]) for kind in KINDS]
    return out


def model_of_size(
    width: int, depth: int, parametrization: Parametrization, base: tuple[int, int], head: int
) -> ModelConfig:
    """A model of one size, with heads of one width and normalised queries and keys as the recipes have them. Layers are
    scanned, not unrolled, which compiles fastest. base: (width, depth) of the base size. head: width of a head."""
    if width % head:
        raise InputError(f"widths = {width}: must be a multiple of head_width={head}")
    return ModelConfig(
        width=width,
        depth=depth,
        heads=width // head,
        qk_norm=True,
        parametrization=parametrization,
        base_width=base[0],
        base_depth=base[1],
        unroll=1,
    )


def fit_trends(
    changes: dict[ModelConfig, np.ndarray], widths: Sequence[int], depths: Sequence[int], head: int
) -> list[Trend]:
    """The trend of each kind of activation, under each parametrisation, along each axis: widths at the first depth, and
    depths at the first width. changes: of each model that `simplest_equivalent` gives, from `activation_changes`."""
    base, out = (widths[0], depths[0]), []
    for parametrization, axis in itertools.product(get_args(Parametrization), get_args(Axis)):
        sizes = tuple(widths if axis == "width" else depths)
        models = [
            model_of_size(*((s, base[1]) if axis == "width" else (base[0], s)), parametrization, base, head)
            for s in sizes
        ]
        last = np.array([np.exp(np.log(changes[simplest_equivalent(model)][:, -1]).mean(axis=0)) for model in models])
        out += [
            Trend(axis, parametrization, kind, sizes, tuple(map(float, last[:, k]))) for k, kind in enumerate(KINDS)
        ]
    return out


def coord_check(
    widths: tuple[int, ...] = (32, 64, 128, 256),
    depths: tuple[int, ...] = (2, 4, 8, 16),
    steps: int = 5,
    seeds: int = 3,
    learning_rate: float = 2**-7,
    head_width: int = 16,
    corpus: str = "stdlib",
    directory: Path = Path("out/corpora"),
    figure: Path | None = None,
    json: Path | None = None,
) -> None:
    """Check that activations change alike at every width and depth, under each parametrisation.

    Args:
        widths: model widths, trained at the first depth; the first one is the base width.
        depths: numbers of layers, trained at the first width; the first one is the base depth.
        steps: training steps before activations are compared.
        seeds: number of initial weights; changes are averaged over them.
        learning_rate: learning rate at the base size.
        head_width: width of a head at every size; the number of heads grows.
        corpus: name of a prepared corpus.
        directory: folder of the prepared corpora.
        figure: also draw the changes into this file, .png or .svg.
        json: also write what is printed to this file.
    """
    for name, value in {"widths": len(set(widths)), "depths": len(set(depths))}.items():
        if value < 2:
            raise InputError(f"{name}: {value} given; a slope needs two different sizes or more")
    if steps < 1 or seeds < 1:
        raise InputError(f"steps = {steps}, seeds = {seeds}: both must be 1 or more")
    tokens = open_shards(directory, corpus)
    data = DataConfig(corpus=corpus, fingerprint=tokens.fingerprint, sequence_length=SEQUENCE, batch_sequences=BATCH)
    base = (widths[0], depths[0])
    sizes = [(w, base[1]) for w in widths] + [(base[0], d) for d in depths]
    models = {
        simplest_equivalent(model_of_size(*size, p, base, head_width))
        for size in sizes
        for p in get_args(Parametrization)
    }
    shapes: Any = {"batch_sequences": BATCH, "sequence_length": SEQUENCE, "vocab_size": ModelConfig.vocab_size}
    batches = np.stack([gather_batch(tokens, seed=0, step=step, **shapes) for step in range(steps)])
    changes = {}
    with Progress(console=make_console(stderr=True), transient=True) as progress:
        bar = progress.add_task("sizes", total=len(models))
        for model in sorted(models, key=lambda m: (m.width, m.depth, m.parametrization)):
            config = RunConfig(model=model, data=data, optimizer=OptimizerConfig(learning_rate=learning_rate))
            changes[model] = activation_changes(config, batches, seeds)
            progress.advance(bar)
    trends = fit_trends(changes, widths, depths, head_width)
    print_trends(trends, steps)
    if figure is not None:
        draw_trends(trends, figure, steps)
    if json is not None:
        setting = {"steps": steps, "seeds": seeds, "learning_rate": learning_rate, "head_width": head_width}
        setting |= {"corpus": corpus, "fingerprint": tokens.fingerprint, "bound": BOUND}
        rows = [asdict(trend) | {"slope": trend.slope, "verdict": trend.verdict} for trend in trends]
        write_json(json, {"setting": setting, "environment": describe_environment("blocked"), "trends": rows})


def print_trends(trends: list[Trend], steps: int) -> None:
    """Prints a table for each axis: a row for each kind of activation under each parametrisation."""
    for axis in ("width", "depth"):
        of_axis = [trend for trend in trends if trend.axis == axis]
        table = Table(title=f"root mean square change after {steps} steps, by {axis}", title_justify="left")
        for name in ("parametrisation", "activation", *map(str, of_axis[0].sizes), f"slope in log {axis}", ""):
            table.add_column(name, justify="left" if name in ("parametrisation", "activation", "") else "right")
        for t in of_axis:
            numbers = [f"{value:.3g}" for value in t.changes]
            table.add_row(t.parametrization, t.kind, *numbers, f"{t.slope:+.2f}", t.verdict)
        make_console().print(table)


def draw_trends(trends: list[Trend], path: Path, steps: int) -> None:
    """Draws a column for each kind of activation, a row for each axis, and a line for each parametrisation: the
    change over that of the base size."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        canvas = Figure(figsize=(10.5, 4.8), layout="constrained")
        grid = canvas.subplots(2, len(KINDS), sharey=True)
        for row, axis in enumerate(get_args(Axis)):
            for column, kind in enumerate(KINDS):
                _draw_panel(grid[row, column], [t for t in trends if (t.axis, t.kind) == (axis, kind)])
            grid[row, 0].set_ylabel(f"RMS change in {steps} steps,\nover that of the base")
        handles = grid[0, 0].get_lines()
        canvas.legend(handles, get_args(Parametrization), loc="outside upper left", ncols=3, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(path, dpi=180)


def _draw_panel(axes: Any, trends: list[Trend]) -> None:
    """Draws one kind of activation along one axis."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    for t in trends:
        line = "--" if t.parametrization == "mup" else "-"
        relative = np.array(t.changes) / t.changes[0]
        axes.plot(t.sizes, relative, line, color=COLOURS[t.parametrization], marker="o", markersize=3.5)
    slopes = ", ".join(f"{t.slope:+.2f}" for t in trends)
    axes.set_title(f"{trends[0].kind}\nslopes {slopes}", fontsize=8.5, loc="left")
    axes.set(xscale="log", yscale="log", xlabel=trends[0].axis)
    axes.xaxis.set(major_locator=FixedLocator(trends[0].sizes), minor_locator=NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))

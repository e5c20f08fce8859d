"""`scaling coord-check`: do activations move alike at every width and depth? (Yang et al. 2022, appendix D.1.)

A few steps from random weights; then the root mean square, over the entries of each kind of activation on one fixed
batch, of the change since the start. Under a right parametrisation it does not depend on size once sizes are large. A
slope in log size that theory gets wrong is 1/2 or more in absolute value, so half of that is the bound.
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
from rich.console import Console
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
from scaling.training.optimizer import Rates
from scaling.training.train_step import build_program

Parametrization = Literal["standard", "mup", "completep"]
Axis = Literal["width", "depth"]
KINDS = ("embedding", "attention", "ff", "residual", "logits")
BOUND = 0.25
BATCH, SEQUENCE = 8, 64
COLOURS = {"standard": "#1c1d21", "mup": "#c2410c", "completep": "#0f766e"}


@dataclass(frozen=True)
class Trend:
    """How the change of one kind of activation follows one axis. changes: after the last step, one a size, the
    geometric mean over seeds. slope: of log change in log size, least squares."""

    axis: Axis
    parametrization: Parametrization
    kind: str
    sizes: tuple[int, ...]
    changes: tuple[float, ...]

    @property
    def slope(self) -> float:
        return float(np.polyfit(np.log(self.sizes), np.log(self.changes), 1)[0])

    @property
    def verdict(self) -> str:
        return "flat" if abs(self.slope) <= BOUND else "grows" if self.slope > 0 else "shrinks"


@functools.partial(jax.jit, static_argnames="model")
def activations(model: Decoder, params: Any, tokens_BT: jax.Array) -> dict[str, jax.Array]:
    """embedding, residual (what the last block leaves) [B, T, M]; attention, ff (what each branch adds, before its
    multiplier) [L, B, T, M]; logits [B, T, V]."""
    block = Block(model.config, model.kernel)

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
    found = (embedding_BTM, attention_LBTM, ff_LBTM, residual_BTM, logits(model, params, tokens_BT))
    return dict(zip(KINDS, found, strict=True))


def _is_branch(module: Any, method: str) -> bool:
    return method == "__call__" and module.name in ("attention", "ff")


@jax.jit
def rms_change(now: dict[str, jax.Array], start: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Root mean square of now - start, by kind."""
    return jax.tree.map(lambda a, b: jnp.sqrt(jnp.mean((a - b) ** 2)), now, start)


def activation_changes(config: RunConfig, tokens_SBS: np.ndarray, seeds: int) -> np.ndarray:
    """Change since the start after each step, [seeds, steps, len(KINDS)]. tokens_SBS: a batch [B, T + 1] each step."""
    program = build_program(config, sharding.make_mesh(MeshConfig()))
    rates = Rates(np.float32(config.optimizer.learning_rate), np.float32(config.optimizer.weight_decay))
    out = np.zeros((seeds, len(tokens_SBS), len(KINDS)))
    probe_BT = jnp.asarray(tokens_SBS[0][:, :-1])
    for seed in range(seeds):
        state = program.init(jax.random.key(seed))
        start = activations(program.model, state.params, probe_BT)
        for step, tokens_BS in enumerate(tokens_SBS):
            state, _ = program.step(state, jnp.asarray(tokens_BS), rates)
            found = rms_change(activations(program.model, state.params, probe_BT), start)
            out[seed, step] = [float(found[kind]) for kind in KINDS]
    return out


def model_of_size(
    width: int, depth: int, parametrization: Parametrization, base: tuple[int, int], head: int
) -> ModelConfig:
    """Heads of one width, queries and keys normalised, as in recipe.py; layers looped, which compiles soonest."""
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
    found: dict[ModelConfig, np.ndarray], widths: Sequence[int], depths: Sequence[int], head: int
) -> list[Trend]:
    """Widths at the first depth, depths at the first width. found: what `moved` gave each model of `simplest`."""
    base, out = (widths[0], depths[0]), []
    for parametrization, axis in itertools.product(get_args(Parametrization), get_args(Axis)):
        sizes = tuple(widths if axis == "width" else depths)
        models = [
            model_of_size(*((s, base[1]) if axis == "width" else (base[0], s)), parametrization, base, head)
            for s in sizes
        ]
        last = np.array([np.exp(np.log(found[simplest_equivalent(model)][:, -1]).mean(axis=0)) for model in models])
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
    """Train a few steps at each width and depth under each parametrisation; show how far activations move.

    The first width and depth are the base, at which all three are one.

    Args:
        widths: in multiples of head_width; two or more.
        depths: layers; two or more.
        steps: optimizer steps from random weights, at a constant learning rate.
        seeds: of initial weights; changes are averaged over them.
        learning_rate: at the base size.
        head_width: of every size; heads grow in number.
        corpus: a prepared corpus.
        directory: where it is prepared.
        figure: also draw the changes into this file, .png or .svg.
        json: also write the same facts to this file.
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
    wanted = {
        simplest_equivalent(model_of_size(*size, p, base, head_width))
        for size in sizes
        for p in get_args(Parametrization)
    }
    shapes: Any = {"batch_sequences": BATCH, "sequence_length": SEQUENCE, "vocab_size": ModelConfig.vocab_size}
    batches = np.stack([gather_batch(tokens, seed=0, step=step, **shapes) for step in range(steps)])
    found = {}
    with Progress(transient=True) as progress:
        bar = progress.add_task("sizes", total=len(wanted))
        for model in sorted(wanted, key=lambda m: (m.width, m.depth, m.parametrization)):
            config = RunConfig(model=model, data=data, optimizer=OptimizerConfig(learning_rate=learning_rate))
            found[model] = activation_changes(config, batches, seeds)
            progress.advance(bar)
    result = fit_trends(found, widths, depths, head_width)
    show(result, steps)
    if figure is not None:
        draw(result, figure, steps)
    if json is not None:
        setting = {"steps": steps, "seeds": seeds, "learning_rate": learning_rate, "head_width": head_width}
        setting |= {"corpus": corpus, "fingerprint": tokens.fingerprint, "bound": BOUND}
        rows = [asdict(trend) | {"slope": trend.slope, "verdict": trend.verdict} for trend in result]
        write_json(json, {"setting": setting, "environment": describe_environment("blocked"), "trends": rows})


def show(found: list[Trend], steps: int) -> None:
    """A row a kind of activation under each parametrisation, along each axis."""
    for axis in ("width", "depth"):
        here = [trend for trend in found if trend.axis == axis]
        table = Table(title=f"root mean square change after {steps} steps, by {axis}", title_justify="left")
        for name in ("parametrisation", "activation", *map(str, here[0].sizes), f"slope in log {axis}", ""):
            table.add_column(name, justify="left" if name in ("parametrisation", "activation", "") else "right")
        for t in here:
            numbers = [f"{value:.3g}" for value in t.changes]
            table.add_row(t.parametrization, t.kind, *numbers, f"{t.slope:+.2f}", t.verdict)
        Console().print(table)


def draw(found: list[Trend], path: Path, steps: int) -> None:
    """A column a kind of activation, a row an axis, a line a parametrisation; changes are relative to the base's."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        canvas = Figure(figsize=(10.5, 4.8), layout="constrained")
        grid = canvas.subplots(2, len(KINDS), sharey=True)
        for row, axis in enumerate(get_args(Axis)):
            for column, kind in enumerate(KINDS):
                _panel(grid[row, column], [t for t in found if (t.axis, t.kind) == (axis, kind)])
            grid[row, 0].set_ylabel(f"RMS change in {steps} steps,\nover that of the base")
        handles = grid[0, 0].get_lines()
        canvas.legend(handles, get_args(Parametrization), loc="outside upper left", ncols=3, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(path, dpi=180)


def _panel(axes: Any, found: list[Trend]) -> None:
    """One kind of activation along one axis."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    for t in found:
        line = "--" if t.parametrization == "mup" else "-"
        relative = np.array(t.changes) / t.changes[0]
        axes.plot(t.sizes, relative, line, color=COLOURS[t.parametrization], marker="o", markersize=3.5)
    slopes = ", ".join(f"{t.slope:+.2f}" for t in found)
    axes.set_title(f"{found[0].kind}\nslopes {slopes}", fontsize=8.5, loc="left")
    axes.set(xscale="log", yscale="log", xlabel=found[0].axis)
    axes.xaxis.set(major_locator=FixedLocator(found[0].sizes), minor_locator=NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))

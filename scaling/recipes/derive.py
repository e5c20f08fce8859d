"""One dial: how a recipe comes from a size or a compute budget to every hyperparameter of a run.

recipe.py holds the recipes, rules.py their rules. Sizes are params_matmul, budgets exact FLOPs with causal attention
halved (accounting.py), whatever the recipe: what the columns `params_matmul` and `flops` of a results table hold.

Not in the design's list of modules: recipe.py is data, this is what reads it.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from scaling.accounting.counts import ParamCounts, count_params, train_flops
from scaling.accounting.model_shapes import PUBLISHED_MODELS
from scaling.config.run_config import (
    DataConfig,
    MeasureConfig,
    ModelConfig,
    OptimizerConfig,
    PrecisionConfig,
    RunConfig,
    ScheduleConfig,
)
from scaling.errors import InputError, suggest_name
from scaling.files import read_json
from scaling.recipes import rules

Size = tuple[int, int] | float | str
SIZE_FORMS = "must be parameters as 124M or 1e9, a depth as d12, a shape as w64xd4, or a published name"
SIZE_TOLERANCE = 1.25  # how far outside its shapes, in ratio, a recipe still takes the outermost


@dataclass(frozen=True)
class PartialRun:
    """What is known when a rule is asked: the shape; then tokens, batch_tokens, learning_rate, each 0 before it is."""

    model: ModelConfig
    sequence_length: int
    tokens: int = 0
    batch_tokens: int = 0
    learning_rate: float = 0.0

    @property
    def params(self) -> ParamCounts:
        return count_params(self.model)

    @property
    def flops_per_token(self) -> float:
        return train_flops(self.model, self.sequence_length, 1, "exact_causal")


@dataclass(frozen=True)
class Rule:
    """One number. text: the rule in a few words; source: paper and equation, or "ours"; origin: as a rule, or by a scan
    that measured it."""

    value: Callable[[PartialRun], float]
    text: str
    source: str
    origin: Literal["rule", "scan"] = "rule"


def load_measured_rate(path: Path) -> Rule:
    """The learning rate as scans measured it: what `scaling rates --out` wrote. Raises InputError when it did not."""
    given = read_json(path)
    try:
        law, source = given["law"], given["source"]
        at, exponent = (float(law["at"]), float(law["rate"])), float(law["exponent"])
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: not what `scaling rates --out` writes ({error!r})") from None
    text = f"{at[1]:g} (N / {at[0]:g})^{exponent:g}"
    return Rule(lambda k: rules.scale_learning_rate(k.params.matmul, at, exponent), text, source, origin="scan")


@dataclass(frozen=True)
class DerivedNumber:
    """One number of a derivation: the field of the config that it fills, its value, the rule, the source."""

    what: str
    value: Any
    rule: str
    source: str


@dataclass(frozen=True)
class Recipe:
    """Every hyperparameter from one dial, as plain data.

    shapes: the (width, depth) it makes, of which a size takes the nearest. batch: sequences a step. warmup: tokens.
    final: schedule.final_fraction. schedule, optimizer: what no rule gives.
    """

    name: str
    source: str
    shapes: Callable[[], tuple[tuple[int, int], ...]]
    shapes_source: str
    heads: Callable[[int], int]
    horizon: Rule
    batch: Rule
    learning_rate: Rule
    weight_decay: Rule
    warmup: Rule
    final_fraction: Rule
    schedule: ScheduleConfig
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    vocab_size: int = 32_000
    sequence_length: int = 2048
    compute: Literal["float32", "bfloat16"] = "bfloat16"
    validation_tokens: int = 4_194_304

    def __call__(
        self,
        size: Size | None = None,
        tokens: int | None = None,
        *,
        flops: float | None = None,
        corpus: str = "stdlib",
        vocabulary: str = "byte",
        vocab_size: int | None = None,
        seed: int = 0,
    ) -> RunConfig:
        """The run of a size, of a budget in FLOPs, or of both. tokens: floored to whole batches; where neither they nor
        a budget are given, by rule.

        Raises InputError when the size is of no known form, beyond the recipe's shapes or has no even head width.
        """
        known, lines = derive(self, size, tokens, flops=flops, vocab_size=vocab_size)
        given = {line.what: line.value for line in lines}
        asked = {"size": None if size is None else format_size(size), "flops": None if flops is None else f"{flops:g}"}
        dial = ", ".join(f"{name}={text}" for name, text in asked.items() if text is not None)
        schedule = {name: given[f"schedule.{name}"] for name in ("warmup_tokens", "final_fraction")}
        optimizer = {name: given[f"optimizer.{name}"] for name in ("learning_rate", "weight_decay")}
        return RunConfig(
            model=known.model,
            data=DataConfig(
                corpus=corpus,
                vocabulary=vocabulary,
                sequence_length=known.sequence_length,
                batch_sequences=given["data.batch_sequences"],
            ),
            optimizer=dataclasses.replace(self.optimizer, **optimizer),
            schedule=dataclasses.replace(self.schedule, **schedule),
            precision=PrecisionConfig(self.compute),
            measure=MeasureConfig(validation_tokens=self.validation_tokens),
            tokens=known.tokens,
            seed=seed,
            name=f"w{known.model.width}-d{known.model.depth}-{known.tokens / 1e6:.3g}M",
            recipe=f"{self.name}({dial}, tokens={known.tokens})",
            learning_rate_from=f"{self.learning_rate.origin}: {self.learning_rate.source}",
        )


def explain(
    recipe: Recipe,
    size: Size | None = None,
    tokens: int | None = None,
    *,
    flops: float | None = None,
    vocab_size: int | None = None,
) -> tuple[DerivedNumber, ...]:
    """How the recipe comes to each number of its run, in order. Raises InputError as the recipe itself does."""
    return derive(recipe, size, tokens, flops=flops, vocab_size=vocab_size)[1]


def derive(
    recipe: Recipe, size: Size | None, tokens: int | None, *, flops: float | None, vocab_size: int | None
) -> tuple[PartialRun, tuple[DerivedNumber, ...]]:
    """What the rules of a recipe give, one after the other, and how. The recipe's own call reads its lines."""
    if size is None and flops is None:
        raise InputError(f"{recipe.name}: needs a size or a budget in FLOPs; a size {SIZE_FORMS}")
    if tokens is not None and flops is not None:
        raise InputError(f"{recipe.name}: takes tokens = {tokens} or flops = {flops:g}, not both: one gives the other")
    if flops is not None and not 0 < flops < math.inf:
        raise InputError(f"flops = {flops:g}: must be more than 0")
    if size is None:
        known = _nearest(recipe, optimal_params(recipe, float(flops or 0), vocab_size), vocab_size)
        shape = ("the shape nearest the optimum", recipe.shapes_source)
    else:
        known, shape = resolve_size(recipe, size, vocab_size)
    horizon = (f"{recipe.horizon.text}, in whole batches", recipe.horizon.source)
    if tokens is not None:
        known, horizon = dataclasses.replace(known, tokens=tokens), ("as given, in whole batches", "given")
    elif flops is not None:
        known = dataclasses.replace(known, tokens=round(flops / known.flops_per_token))
        horizon = (f"what {flops:g} FLOPs pay for at this size", "given: exact FLOPs, causal attention halved")
    else:
        known = dataclasses.replace(known, tokens=round(recipe.horizon.value(known)))
    batch = max(int(recipe.batch.value(known)), 1)
    batch_tokens = batch * known.sequence_length
    whole = max(known.tokens // batch_tokens, 1) * batch_tokens
    known = dataclasses.replace(known, tokens=whole, batch_tokens=batch_tokens)
    known = dataclasses.replace(known, learning_rate=recipe.learning_rate.value(known))
    lines = (
        DerivedNumber("model.width", known.model.width, *shape),
        DerivedNumber("model.depth", known.model.depth, *shape),
        DerivedNumber("model.heads", known.model.heads, *shape),
        DerivedNumber("tokens", known.tokens, *horizon),
        DerivedNumber("data.batch_sequences", batch, recipe.batch.text, recipe.batch.source),
        DerivedNumber("optimizer.kind", recipe.optimizer.kind, "of the recipe", recipe.source),
        _line("optimizer.learning_rate", known.learning_rate, recipe.learning_rate),
        _line("optimizer.weight_decay", recipe.weight_decay.value(known), recipe.weight_decay),
        DerivedNumber("schedule.kind", recipe.schedule.kind, "of the recipe", recipe.source),
        _line("schedule.warmup_tokens", int(recipe.warmup.value(known)), recipe.warmup),
        _line("schedule.final_fraction", recipe.final_fraction.value(known), recipe.final_fraction),
    )
    return known, lines


def _line(what: str, value: Any, rule: Rule) -> DerivedNumber:
    return DerivedNumber(what, value, rule.text, rule.source)


def optimal_params(recipe: Recipe, flops: float, vocab_size: int | None = None) -> float:
    """params_matmul at which the recipe's own horizon costs `flops`, interpolated between its shapes.

    Raises InputError when the budget is beyond them.
    """
    shapes = _shapes(recipe, vocab_size)
    points = sorted((one.flops_per_token * recipe.horizon.value(one), one.params.matmul) for one in shapes)
    if not points[0][0] <= flops <= points[-1][0]:
        least, most = points[0][0], points[-1][0]
        raise InputError(f"flops = {flops:g}: the shapes of {recipe.name} spend {least:.2g} to {most:.2g}")
    (low, few), (high, many) = next((a, b) for a, b in itertools.pairwise(points) if a[0] <= flops <= b[0])
    return few * (many / few) ** (math.log(flops / low) / math.log(high / low))


def resolve_size(recipe: Recipe, size: Size, vocab_size: int | None = None) -> tuple[PartialRun, tuple[str, str]]:
    """The shape of a size, and how it was found: rule and source. Raises InputError on a size of no known form."""
    if isinstance(size, str) and size in PUBLISHED_MODELS:
        shape = PUBLISHED_MODELS[size]
        model = dataclasses.replace(shape.model, vocab_size=vocab_size or shape.model.vocab_size)
        return PartialRun(model, shape.sequence_length), ("as published", shape.source)
    if isinstance(size, str) and (found := re.fullmatch(r"w(\d+)x?d(\d+)", size)):
        size = (int(found[1]), int(found[2]))
    if isinstance(size, tuple):
        return _of_shape(recipe, size, vocab_size), ("as given, heads by the recipe", recipe.shapes_source)
    if isinstance(size, str) and (found := re.fullmatch(r"d(\d+)", size)):
        return _of_shape(recipe, _of_depth(recipe, int(found[1])), vocab_size), ("of that depth", recipe.shapes_source)
    count = parse_count(size) if isinstance(size, str) else float(size)
    if count is None:
        raise InputError(f"size {size!r}: {SIZE_FORMS}{suggest_name(str(size), PUBLISHED_MODELS)}")
    return _nearest(recipe, count, vocab_size), ("the nearest shape", recipe.shapes_source)


def parse_count(text: str) -> float | None:
    """124M -> 1.24e8: a number above 0, with K, M, B or T for powers of a thousand; None for any other text."""
    found = re.fullmatch(r"(\d+(?:\.\d*)?(?:e[+-]?\d+)?)([KMBT]?)", text, re.IGNORECASE)
    value = float(found[1]) * 1000.0 ** " KMBT".index(found[2].upper() or " ") if found else 0.0
    return value if 0 < value < math.inf else None


def format_size(size: Size) -> str:
    """A size as one would write it."""
    return f"w{size[0]}xd{size[1]}" if isinstance(size, tuple) else size if isinstance(size, str) else f"{size:g}"


def _of_shape(recipe: Recipe, shape: tuple[int, int], vocab_size: int | None) -> PartialRun:
    width, depth = shape
    V = vocab_size or recipe.vocab_size
    model = ModelConfig(vocab_size=V, width=width, depth=depth, heads=recipe.heads(max(width, 1)), qk_norm=True)
    return PartialRun(model, recipe.sequence_length)


@functools.lru_cache(maxsize=64)
def _shapes(recipe: Recipe, vocab_size: int | None) -> tuple[PartialRun, ...]:
    """All that a recipe makes, the least params_matmul first."""
    made = (_of_shape(recipe, shape, vocab_size) for shape in recipe.shapes())
    return tuple(sorted(made, key=lambda one: one.params.matmul))


def _of_depth(recipe: Recipe, depth: int) -> tuple[int, int]:
    shapes = recipe.shapes()
    found = [shape for shape in shapes if shape[1] == depth]
    if not found:
        closest = min(shapes, key=lambda shape: abs(shape[1] - depth))[1]
        raise InputError(f"size d{depth}: {recipe.name} makes no shape of this depth; the closest is d{closest}")
    return found[0]


def _nearest(recipe: Recipe, count: float, vocab_size: int | None) -> PartialRun:
    known = _shapes(recipe, vocab_size)
    least, most = known[0].params.matmul, known[-1].params.matmul
    if not least / SIZE_TOLERANCE <= count <= most * SIZE_TOLERANCE:
        said = f"size {count:g}: {recipe.name} makes {least:.2g} to {most:.2g} params_matmul"
        raise InputError(
            f"{said} with a vocabulary of {known[0].model.vocab_size}; name a shape, as w64xd4, or a recipe"
        )
    return min(known, key=lambda one: abs(math.log(one.params.matmul / count)))

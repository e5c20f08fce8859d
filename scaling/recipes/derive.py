"""How a recipe derives every hyperparameter of a run from one dial: a model size or a compute budget.

recipes.py holds the recipes, rules.py their rules. Sizes are params_matmul and budgets are exact FLOPs with causal
attention halved (scaling/accounting/counts.py), like the columns `params_matmul` and `flops` of a results table.
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
from typing import Any, Literal, NotRequired, TypedDict

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
from scaling.quantities import parse_quantity
from scaling.recipes import rules

Size = tuple[int, int] | float | str
SIZE_FORMS = "must be parameters as 124M or 1e9, a depth as d12, a shape as w64xd4, or a published name"
SIZE_TOLERANCE = 1.25
"""By how much a size may exceed the largest shape of a recipe, or fall short of its smallest, as a ratio."""


@dataclass(frozen=True)
class PartialRun:
    """The numbers of a run that are derived so far, on which the next rule depends: the model, then tokens,
    batch_tokens and learning_rate, each 0 until it is derived."""

    model: ModelConfig
    sequence_length: int
    tokens: int = 0
    batch_tokens: int = 0
    learning_rate: float = 0.0

    @property
    def params(self) -> ParamCounts:
        """Parameters of the model by group."""
        return count_params(self.model)

    @property
    def flops_per_token(self) -> float:
        """Training FLOPs of a token, causal attention halved."""
        return train_flops(self.model, self.sequence_length, 1, "exact_causal")


@dataclass(frozen=True)
class Rule:
    """The rule that gives one number.

    Attributes:
        value: the number, from what is derived before it.
        text: the rule as a formula or in a few words.
        source: paper and equation, or "ours".
        origin: whether it comes from a rule, or from a scan that measured it.
    """

    value: Callable[[PartialRun], float]
    text: str
    source: str
    origin: Literal["rule", "scan"] = "rule"


class MeasuredLaw(TypedDict):
    """The law in a file of learning rates: `rate` is the best learning rate at `at` parameters."""

    at: float
    rate: float
    exponent: float


class MeasuredRates(TypedDict):
    """The part of a file of `scaling rates --out` that a recipe reads."""

    schema: NotRequired[Literal[1]]
    source: str
    law: MeasuredLaw


def load_measured_rate(path: Path) -> Rule:
    """The learning-rate rule that scans measured, from a file of `scaling rates --out`. Raises InputError when the file
    is not one."""
    remedy = "give a file that `scaling rates TABLE --out FILE` wrote"
    content: MeasuredRates = read_json(path, MeasuredRates, remedy=remedy)
    law, source = content["law"], content["source"]
    for name, low, high in (("at", 1.0, 1e18), ("rate", 1e-12, 1e6), ("exponent", -10.0, 10.0)):
        if not low <= law[name] <= high:
            raise InputError(f"{path}: law.{name} = {law[name]}: must be in [{low:g}, {high:g}]; {remedy}")
    at, exponent = (float(law["at"]), float(law["rate"])), float(law["exponent"])
    text = f"{at[1]:g} (N / {at[0]:g})^{exponent:g}"
    return Rule(lambda k: rules.scale_learning_rate(k.params.matmul, at, exponent), text, source, origin="scan")


@dataclass(frozen=True)
class DerivedNumber:
    """One number of a derivation. what: the field of the config that it fills, dotted."""

    what: str
    value: Any
    rule: str
    source: str


@dataclass(frozen=True)
class Recipe:
    """Rules for every hyperparameter of a run; calling it with a size or a budget gives the run.

    Attributes:
        name: name of the recipe, as in `scaling cost --recipe`.
        source: where its rules come from.
        shapes: the (width, depth) pairs that it makes; a size takes the nearest.
        shapes_source: where the shapes come from.
        heads: width -> number of heads.
        horizon: training tokens.
        batch: sequences of an optimizer step.
        learning_rate: peak learning rate.
        weight_decay: decoupled weight decay.
        warmup: warm-up, in tokens.
        final_fraction: fraction of the peak learning rate at the end.
        schedule, optimizer: the fields that no rule gives.
        vocab_size: ids of the vocabulary, where the caller names none.
        sequence_length: tokens of a sequence.
        compute: dtype of matrix products.
        validation_tokens: size of the validation set.
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
        """The run of a size, of a budget in FLOPs, or of both.

        Args:
            size: parameters (params_matmul) as a number or as text ("124M"), a depth ("d12"), a shape ("w64xd4" or
                (64, 4)), or the name of a published model.
            tokens: training tokens, floored to whole batches; the recipe's rule where neither these nor flops are
                given.
            flops: compute budget.
            corpus, vocabulary, seed: as in the config of the run.
            vocab_size: ids of the vocabulary; the recipe's, unless given.
        Raises:
            InputError: a size of no known form, outside the recipe's shapes, or without an even head width.
        """
        run, derivation = derive(self, size, tokens, flops=flops, vocab_size=vocab_size)
        fields = {number.what: number.value for number in derivation}
        dial = {"size": None if size is None else format_size(size), "flops": None if flops is None else f"{flops:g}"}
        dial_text = ", ".join(f"{name}={text}" for name, text in dial.items() if text is not None)
        schedule = {name: fields[f"schedule.{name}"] for name in ("warmup_tokens", "final_fraction")}
        optimizer = {name: fields[f"optimizer.{name}"] for name in ("learning_rate", "weight_decay")}
        return RunConfig(
            model=run.model,
            data=DataConfig(
                corpus=corpus,
                vocabulary=vocabulary,
                sequence_length=run.sequence_length,
                batch_sequences=fields["data.batch_sequences"],
            ),
            optimizer=dataclasses.replace(self.optimizer, **optimizer),
            schedule=dataclasses.replace(self.schedule, **schedule),
            precision=PrecisionConfig(self.compute),
            measure=MeasureConfig(validation_tokens=self.validation_tokens),
            tokens=run.tokens,
            seed=seed,
            name=f"w{run.model.width}-d{run.model.depth}-{run.tokens / 1e6:.3g}M",
            recipe=f"{self.name}({dial_text}, tokens={run.tokens})",
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
    """How the recipe derives each number of a run, in order, with rule and source. Raises InputError as the recipe
    does."""
    return derive(recipe, size, tokens, flops=flops, vocab_size=vocab_size)[1]


def derive(
    recipe: Recipe, size: Size | None, tokens: int | None, *, flops: float | None, vocab_size: int | None
) -> tuple[PartialRun, tuple[DerivedNumber, ...]]:
    """Applies the rules of a recipe one after the other. Returns the derived run, and each number with its rule."""
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
    """params_matmul at which the recipe's own horizon costs `flops`, interpolated between its shapes as a power law.

    Raises InputError when the budget is outside of what they cost.
    """
    shapes = _shapes(recipe, vocab_size)
    points = sorted((shape.flops_per_token * recipe.horizon.value(shape), shape.params.matmul) for shape in shapes)
    if not points[0][0] <= flops <= points[-1][0]:
        least, most = points[0][0], points[-1][0]
        raise InputError(f"flops = {flops:g}: the shapes of {recipe.name} spend {least:.2g} to {most:.2g}")
    (low, few), (high, many) = next((a, b) for a, b in itertools.pairwise(points) if a[0] <= flops <= b[0])
    return few * (many / few) ** (math.log(flops / low) / math.log(high / low))


def resolve_size(recipe: Recipe, size: Size, vocab_size: int | None = None) -> tuple[PartialRun, tuple[str, str]]:
    """The model of a size, and the rule and source that gave it. Raises InputError on a size of no known form."""
    if isinstance(size, str) and size in PUBLISHED_MODELS:
        shape = PUBLISHED_MODELS[size]
        model = dataclasses.replace(shape.model, vocab_size=vocab_size or shape.model.vocab_size)
        return PartialRun(model, shape.sequence_length), ("as published", shape.source)
    if isinstance(size, str) and (match := re.fullmatch(r"w(\d+)x?d(\d+)", size)):
        size = (int(match[1]), int(match[2]))
    if isinstance(size, tuple):
        return _of_shape(recipe, size, vocab_size), ("as given, heads by the recipe", recipe.shapes_source)
    if isinstance(size, str) and (match := re.fullmatch(r"d(\d+)", size)):
        return _of_shape(recipe, _of_depth(recipe, int(match[1])), vocab_size), ("of that depth", recipe.shapes_source)
    try:
        count = float(parse_quantity(size)) if isinstance(size, str) else float(size)
    except ValueError:
        raise InputError(f"size {size!r}: {SIZE_FORMS}{suggest_name(str(size), PUBLISHED_MODELS)}") from None
    return _nearest(recipe, count, vocab_size), ("the nearest shape", recipe.shapes_source)


def format_size(size: Size) -> str:
    """A size as text: w64xd4 for a shape, a number in short form, or the text itself."""
    return f"w{size[0]}xd{size[1]}" if isinstance(size, tuple) else size if isinstance(size, str) else f"{size:g}"


def _of_shape(recipe: Recipe, shape: tuple[int, int], vocab_size: int | None) -> PartialRun:
    width, depth = shape
    V = vocab_size or recipe.vocab_size
    model = ModelConfig(vocab_size=V, width=width, depth=depth, heads=recipe.heads(max(width, 1)), qk_norm=True)
    return PartialRun(model, recipe.sequence_length)


@functools.lru_cache(maxsize=64)
def _shapes(recipe: Recipe, vocab_size: int | None) -> tuple[PartialRun, ...]:
    """Every shape of a recipe, the smallest params_matmul first."""
    runs = (_of_shape(recipe, shape, vocab_size) for shape in recipe.shapes())
    return tuple(sorted(runs, key=lambda run: run.params.matmul))


def _of_depth(recipe: Recipe, depth: int) -> tuple[int, int]:
    """The first shape of a recipe with that many layers. Raises InputError when there is none."""
    shapes = recipe.shapes()
    matching = [shape for shape in shapes if shape[1] == depth]
    if not matching:
        closest = min(shapes, key=lambda shape: abs(shape[1] - depth))[1]
        raise InputError(f"size d{depth}: {recipe.name} makes no shape of this depth; the closest is d{closest}")
    return matching[0]


def _nearest(recipe: Recipe, count: float, vocab_size: int | None) -> PartialRun:
    """The shape of a recipe whose params_matmul is nearest to `count`, in ratio. Raises InputError when none is
    near."""
    shapes = _shapes(recipe, vocab_size)
    least, most = shapes[0].params.matmul, shapes[-1].params.matmul
    if not least / SIZE_TOLERANCE <= count <= most * SIZE_TOLERANCE:
        raise InputError(
            f"size {count:g}: {recipe.name} makes {least:.2g} to {most:.2g} params_matmul with a vocabulary of "
            f"{shapes[0].model.vocab_size}; name a shape, as w64xd4, or another recipe"
        )
    return min(shapes, key=lambda run: abs(math.log(run.params.matmul / count)))

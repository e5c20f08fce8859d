"""The verb `scaling cost`: the whole recipe of a size or a budget, rule by rule, and what the run would take.

Arithmetic alone: nothing is compiled or measured. Not in the design's list of modules: the verb beside recipe.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from scaling.accounting.chips import CHIPS
from scaling.accounting.counts import PEAK_BFLOAT16, Convention, count_params, train_flops
from scaling.accounting.model_shapes import PUBLISHED_MODELS, PublishedModel
from scaling.accounting.published import published_arithmetic
from scaling.config.overrides import flatten, overlay, parse_overrides
from scaling.config.run_config import RunConfig, to_dict
from scaling.data.tokenizer import load_tokenizer
from scaling.errors import InputError, suggest_name
from scaling.files import write_json
from scaling.recipes.derive import DerivedNumber, Recipe, explain, parse_count
from scaling.recipes.recipes import RECIPES

GIB = 2**30
CONVENTIONS: tuple[Convention, ...] = ("6nd", "exact", "exact_causal")
PEAKS = {name: peak for name, peak in PEAK_BFLOAT16 if "TPU" not in name} | {
    f"TPU {name}": chip.peak_bfloat16 for name, chip in CHIPS.items()
}
"""Dense bfloat16 peak of one chip, FLOP/s, from the data sheets."""


def cost(
    size: Annotated[str | None, tyro.conf.Positional] = None,
    recipe: str = "chinchilla",
    flops: float | None = None,
    tokens: str | None = None,
    overrides: Annotated[tuple[str, ...], tyro.conf.arg(name="set")] = (),
    corpus: str = "stdlib",
    vocabulary: str | None = None,
    vocab_size: int | None = None,
    mfu: float = 0.4,
    chips: int = 1,
    json: Path | None = None,
    config: Path | None = None,
) -> None:
    """Print the whole recipe of a size or a budget: each number with its rule and paper, counts, FLOPs, memory, time.

    Args:
        size: parameters (params_matmul) as 124M or 1e9, a depth as d12, a shape as w64xd4, or a published name as
            llama-2-70b.
        recipe: which rules: small, chinchilla, step_law or nanochat.
        flops: a compute budget, which gives the size or, beside one, the tokens; exact FLOPs, causal attention halved.
        tokens: the horizon, as 20B; by the recipe's rule when not given.
        overrides: fields set beside the recipe and recorded as such, as model.width=512 optimizer.learning_rate=1e-3.
        corpus: the corpus that the written config names.
        vocabulary: byte, or the path of a SentencePiece model, whose size the model then has.
        vocab_size: ids of the model's vocabulary; that of the recipe when neither is given.
        mfu: the share of a chip's peak for which the time is worked out.
        chips: how many chips share the run, at the same share each.
        json: also write the same facts to this file.
        config: write the run to this file, as `scaling train --file` takes it.
    """
    chosen = find_recipe(recipe)
    horizon = None if tokens is None else parse_count(tokens)
    if tokens is not None and horizon is None:
        raise InputError(f"tokens = {tokens!r}: must be a number above 0, as 20B or 2e10")
    if not 0 < mfu <= 1:
        raise InputError(f"mfu = {mfu:g}: must be above 0 and at most 1")
    if chips < 1:
        raise InputError(f"chips = {chips}: must be 1 or more")
    if vocab_size is None and vocabulary is not None:
        vocab_size = load_tokenizer(vocabulary).size
    dial: dict[str, Any] = {
        "size": size,
        "tokens": None if horizon is None else round(horizon),
        "flops": flops,
        "vocab_size": vocab_size,
    }
    given = chosen(**dial, corpus=corpus, vocabulary=vocabulary or "byte")
    run = overlay(given, parse_overrides(overrides))
    lines = with_overrides(explain(chosen, **dial), run)
    found = cost_facts(run, mfu, chips)
    show(run, lines, found)
    shape = PUBLISHED_MODELS.get(size or "")
    if shape is not None:
        show_published(shape)
        found["published"] = [dataclasses.asdict(line) for line in published_arithmetic(shape)]
    if json is not None:
        derivation = [dataclasses.asdict(line) for line in lines]
        write_json(json, {"recipe": chosen.name, "lines": derivation, "config": to_dict(run)} | found)
    if config is not None:
        write_json(config, to_dict(run))
        Console().print(f"written to {config}: scaling train --file {config}", soft_wrap=True, highlight=False)


def find_recipe(name: str) -> Recipe:
    """The recipe of that name. Raises InputError with the nearest name when there is none."""
    for one in RECIPES:
        if one.name == name.replace("-", "_"):
            return one
    raise InputError(f"unknown recipe {name}{suggest_name(name, (one.name for one in RECIPES))}")


def with_overrides(lines: Sequence[DerivedNumber], run: RunConfig) -> tuple[DerivedNumber, ...]:
    """The derivation with what was set beside the recipe in its place, or at the end where no rule gave the field."""
    fields = flatten(to_dict(run))
    paths = [path for path in (text.partition("=")[0] for text in run.overrides) if path in fields]
    out = [
        DerivedNumber(line.what, fields[line.what], f"set; by the recipe {_short(line.value)}", "override")
        if line.what in paths
        else line
        for line in lines
    ]
    given = {line.what for line in lines}
    return (*out, *(DerivedNumber(path, fields[path], "set", "override") for path in paths if path not in given))


def cost_facts(run: RunConfig, mfu: float, chips: int) -> dict[str, Any]:
    """Counts under every convention, training FLOPs under every convention, bytes, and hours at a stated MFU.

    memory_bytes: weights in 2 bytes; training state in float32: weights 4, moments 8, of Muon's matrices 4.
    hours: exact FLOPs with causal attention halved, over chips * mfu * peak.
    """
    model, data, counts = run.model, run.data, count_params(run.model)
    tokens = run.steps * data.batch_tokens
    spent = {name: train_flops(model, data.sequence_length, tokens, name) for name in CONVENTIONS}
    moments = 8 * counts.total - (4 * counts.blocks if run.optimizer.kind == "muon" else 0)
    return {
        "run_id": run.run_id,
        "params": {"total": counts.total, "non_embedding": counts.non_embedding, "matmul": counts.matmul},
        "flops": spent,
        "tokens": tokens,
        "tokens_per_param": tokens / counts.matmul,
        "steps": run.steps,
        "batch_tokens": data.batch_tokens,
        "memory_bytes": {"weights": 2 * counts.total, "training_state": 4 * counts.total + moments},
        "mfu": mfu,
        "chips": chips,
        "hours": {name: spent["exact_causal"] / (chips * mfu * peak) / 3600 for name, peak in PEAKS.items()},
    }


def show(run: RunConfig, lines: Sequence[DerivedNumber], found: dict[str, Any]) -> None:
    """Prints the recipe, then what the run is and takes."""
    console = Console()
    recipe = Table(title=run.recipe, title_justify="left", box=None, pad_edge=False, collapse_padding=True)
    for heading in ("field", "value", "rule", "source"):
        number = heading == "value"
        recipe.add_column(heading, justify="right" if number else "left", no_wrap=number or heading == "field")
    for line in lines:
        recipe.add_row(line.what, _short(line.value), line.rule, line.source)
    console.print(recipe)
    sums = Table(box=None, pad_edge=False, show_header=False)
    for label, text in cost_rows(found):
        sums.add_row(label, text)
    console.print()
    console.print(sums)
    if run.data.vocabulary == "byte" and run.model.vocab_size != load_tokenizer("byte").size:
        console.print(
            f"the model has {run.model.vocab_size:,} ids, bytes have 259: --vocabulary names a SentencePiece model",
            soft_wrap=True,
            highlight=False,
        )


def show_published(shape: PublishedModel) -> None:
    """Prints a published model's arithmetic, a line a product."""
    console = Console()
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    table.add_column(justify="right", no_wrap=True)
    for line in published_arithmetic(shape):
        table.add_row(line.what, line.product, line.text)
    console.print("\nas published, by arithmetic alone")
    console.print(table)
    sources = [shape.source, *([shape.training.source] if shape.training else [])]
    console.print("; ".join(sources), soft_wrap=True, highlight=False)


def cost_rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """What the second table says, line by line."""
    count, spent, memory = found["params"], found["flops"], found["memory_bytes"]
    at = f"at {found['mfu']:.0%} of peak on {found['chips']} chip{'s' if found['chips'] > 1 else ''}"
    hours = ", ".join(f"{name} {format_hours(value)}" for name, value in found["hours"].items())
    return [
        (
            "parameters",
            f"{count['total']:,} in all, {count['non_embedding']:,} without the input embedding, "
            f"{count['matmul']:,} that a token is multiplied by (N above)",
        ),
        ("tokens", f"{found['tokens']:,}: {found['tokens_per_param']:.3g} a parameter"),
        ("steps", f"{found['steps']:,} of {found['batch_tokens']:,} tokens"),
        (
            "FLOPs",
            f"{spent['6nd']:.3e} by 6 N D, {spent['exact']:.3e} with attention, "
            f"{spent['exact_causal']:.3e} with half of it (causal)",
        ),
        (
            "memory",
            f"weights {memory['weights'] / GIB:,.3g} GiB in 2 bytes; weights and moments of training "
            f"{memory['training_state'] / GIB:,.3g} GiB in float32, activations and gradients beside them",
        ),
        (f"time {at}", f"{hours}: arithmetic, not a measurement"),
    ]


def _short(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def format_hours(hours: float) -> str:
    """Hours as one reads them: seconds, minutes, hours or days."""
    if hours < 1:
        return f"{hours * 60:.2g} min" if hours > 1 / 60 else f"{hours * 3600:.2g} s"
    return f"{hours:.3g} h" if hours < 72 else f"{hours / 24:,.0f} days"

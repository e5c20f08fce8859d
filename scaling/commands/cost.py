"""The verb `scaling cost`: prints the recipe of a size or a budget, rule by rule, and what the run would take.

Everything is computed from the config; nothing is compiled or measured.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
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
from scaling.recipes.derive import DerivedNumber, Recipe, explain
from scaling.recipes.recipes import RECIPES
from scaling.terminal import make_console

GIB = 2**30
CONVENTIONS: tuple[Convention, ...] = ("6nd", "exact", "exact_causal")
PEAKS = {name: peak for name, peak in PEAK_BFLOAT16 if "TPU" not in name} | {
    f"TPU {name}": chip.peak_bfloat16 for name, chip in CHIPS.items()
}
"""Dense bfloat16 peak of each chip, FLOP/s, from the data sheets."""


def cost(
    size: Annotated[str | None, tyro.conf.Positional] = None,
    recipe: str = "chinchilla",
    flops: float | None = None,
    tokens: int | None = None,
    overrides: Annotated[tuple[str, ...], tyro.conf.arg(name="set")] = (),
    corpus: str = "stdlib",
    vocabulary: str | None = None,
    vocab_size: int | None = None,
    mfu: float = 0.4,
    chips: int = 1,
    json: Path | None = None,
    config: Path | None = None,
) -> None:
    """Print the recipe of a size or a budget, each number with its rule and source, and its parameters, FLOPs, memory
    and time.

    Args:
        size: parameters (params_matmul) as 124M or 1e9, a depth as d12, a shape as w64xd4, or a published model as
            llama-2-70b. Required unless --flops is given.
        recipe: the rules: small, chinchilla, step_law or nanochat.
        flops: compute budget in FLOPs, causal attention halved. It gives the size or, with a size, the tokens.
        tokens: training tokens, as 20B; by the recipe's rule when not given.
        overrides: fields that replace the recipe's, as model.width=512 optimizer.learning_rate=1e-3; the run records
            them.
        corpus: corpus of the config that --config writes.
        vocabulary: byte, or the path of a SentencePiece model, which gives the vocabulary's size.
        vocab_size: ids of the vocabulary; the recipe's when neither this nor --vocabulary is given.
        mfu: fraction of a chip's peak FLOP/s for which the time is computed, from 0 to 1.
        chips: number of chips that share the run, each at that fraction.
        json: also write what is printed to this file.
        config: also write the run to this file, for `scaling train --file`.
    """
    rules = find_recipe(recipe)
    if tokens is not None and tokens < 1:
        raise InputError(f"--tokens {tokens}: must be above 0, as 20B or 2e10")
    if not 0 < mfu <= 1:
        raise InputError(f"mfu = {mfu:g}: must be above 0 and at most 1")
    if chips < 1:
        raise InputError(f"chips = {chips}: must be 1 or more")
    if vocab_size is None and vocabulary is not None:
        vocab_size = load_tokenizer(vocabulary).size
    dial: dict[str, Any] = {
        "size": size,
        "tokens": tokens,
        "flops": flops,
        "vocab_size": vocab_size,
    }
    recipe_run = rules(**dial, corpus=corpus, vocabulary=vocabulary or "byte")
    run = overlay(recipe_run, parse_overrides(overrides))
    derivation = with_overrides(explain(rules, **dial), run)
    facts = cost_facts(run, mfu, chips)
    print_cost(run, derivation, facts)
    published = PUBLISHED_MODELS.get(size or "")
    if published is not None:
        print_published(published)
        facts["published"] = [dataclasses.asdict(line) for line in published_arithmetic(published)]
    if json is not None:
        lines = [dataclasses.asdict(number) for number in derivation]
        write_json(json, {"recipe": rules.name, "lines": lines, "config": to_dict(run)} | facts)
    if config is not None:
        write_json(config, to_dict(run))
        make_console().print(
            f"written to {config}: scaling train --file {shlex.quote(str(config))}", soft_wrap=True, highlight=False
        )


def find_recipe(name: str) -> Recipe:
    """The recipe of a name. Raises InputError, with the nearest name, when there is none."""
    for recipe in RECIPES:
        if recipe.name == name.replace("-", "_"):
            return recipe
    raise InputError(f"unknown recipe {name}{suggest_name(name, (recipe.name for recipe in RECIPES))}")


def with_overrides(derivation: Sequence[DerivedNumber], run: RunConfig) -> tuple[DerivedNumber, ...]:
    """The derivation with the overrides of a run: in the place of the rule, or at the end where no rule gave the
    field."""
    fields = flatten(to_dict(run))
    paths = [path for path in (text.partition("=")[0] for text in run.overrides) if path in fields]
    numbers = [
        DerivedNumber(number.what, fields[number.what], f"set; by the recipe {_short(number.value)}", "override")
        if number.what in paths
        else number
        for number in derivation
    ]
    derived = {number.what for number in derivation}
    return (*numbers, *(DerivedNumber(path, fields[path], "set", "override") for path in paths if path not in derived))


def cost_facts(run: RunConfig, mfu: float, chips: int) -> dict[str, Any]:
    """Parameter counts and training FLOPs under every convention, memory in bytes, and hours at a fraction of peak.

    memory_bytes: weights in 2 bytes each; training state in float32, which is 4 bytes for a weight, 8 for its two
    moments in AdamW, and 4 for the momentum of Muon's matrices. hours: FLOPs with causal attention halved, over
    chips * mfu * peak.
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


def print_cost(run: RunConfig, derivation: Sequence[DerivedNumber], facts: dict[str, Any]) -> None:
    """Prints the recipe as a table, and the facts of the run as another."""
    console = make_console()
    recipe = Table(title=run.recipe, title_justify="left", box=None, pad_edge=False, collapse_padding=True)
    for heading in ("field", "value", "rule", "source"):
        is_value = heading == "value"
        recipe.add_column(heading, justify="right" if is_value else "left", no_wrap=is_value or heading == "field")
    for number in derivation:
        recipe.add_row(number.what, _short(number.value), number.rule, number.source)
    console.print(recipe)
    facts_table = Table(box=None, pad_edge=False, show_header=False)
    for label, text in cost_rows(facts):
        facts_table.add_row(label, text)
    console.print()
    console.print(facts_table)
    if run.data.vocabulary == "byte" and run.model.vocab_size != load_tokenizer("byte").size:
        console.print(
            f"the model has {run.model.vocab_size:,} ids, bytes have 259: --vocabulary names a SentencePiece model",
            soft_wrap=True,
            highlight=False,
        )


def print_published(published: PublishedModel) -> None:
    """Prints the arithmetic of a published model, a row for each product."""
    console = make_console()
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    table.add_column(justify="right", no_wrap=True)
    for line in published_arithmetic(published):
        table.add_row(line.what, line.product, line.text)
    console.print("\nas published, computed from its shape")
    console.print(table)
    sources = [published.source, *([published.training.source] if published.training else [])]
    console.print("; ".join(sources), soft_wrap=True, highlight=False)


def cost_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """The rows of the table of facts, (label, text)."""
    count, spent, memory = facts["params"], facts["flops"], facts["memory_bytes"]
    at = f"at {facts['mfu']:.0%} of peak on {facts['chips']} chip{'s' if facts['chips'] > 1 else ''}"
    hours = ", ".join(f"{name} {format_hours(value)}" for name, value in facts["hours"].items())
    return [
        (
            "parameters",
            f"{count['total']:,} in all, {count['non_embedding']:,} without the input embedding, "
            f"{count['matmul']:,} that a token is multiplied by (N above)",
        ),
        ("tokens", f"{facts['tokens']:,}: {facts['tokens_per_param']:.3g} a parameter"),
        ("steps", f"{facts['steps']:,} of {facts['batch_tokens']:,} tokens"),
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
    """Hours as text, in seconds, minutes, hours or days."""
    if hours < 1:
        return f"{hours * 60:.2g} min" if hours > 1 / 60 else f"{hours * 3600:.2g} s"
    return f"{hours:.3g} h" if hours < 72 else f"{hours / 24:,.0f} days"

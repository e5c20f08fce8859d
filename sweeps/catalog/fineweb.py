"""What the sweeps for one accelerator share: a web corpus, its vocabularies, and recipes whose horizons share a trunk.

Learning rates and batch sizes come from Step Law: on its 17 public (N, D) points its rule costs 0.07 % of the loss
against the best of 47 to 120 runs, where the rates and batch sizes of Brown et al. 2020 and Hoffmann et al. 2022 cost
1.6 % (tests/scaling/recipes/test_recipes.py, LOG.md 2026-11-22). Below its 2e8 parameters it is an extrapolation: scan
the learning rates of a few sizes first (`scan_learning_rates` in sweeps/grids.py).

To use another corpus, change CORPUS here, for all sweeps at once. Planning and training download nothing; to prepare:

    scaling data vocabulary 'hf:HuggingFaceFW/fineweb-edu?config=sample-10BT' --size 32000 --documents 100000
    scaling data prepare 'hf:HuggingFaceFW/fineweb-edu?config=sample-10BT' \\
        --vocabulary out/vocabularies/hf-fineweb_edu-4e4af959-32000.model
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from scaling.accounting.counts import PEAK_BFLOAT16
from scaling.config.run_config import RunConfig, ScheduleConfig
from scaling.data.corpora import parse_corpus
from scaling.recipes.derive import PartialRun, Recipe, Rule
from scaling.record.run_folder import result_row
from sweeps.trunks import share_trunks

CORPUS = "hf:HuggingFaceFW/fineweb-edu?config=sample-10BT"
CORPUS_TOKENS = 10_500_000_000
"""About the number of tokens of the corpus with 32,000 ids. No horizon is longer, unless a sweep means to repeat it."""
MFU = 0.4
PEAK = dict(PEAK_BFLOAT16)["H200"]


def vocabulary_path(size: int) -> str:
    """Where `scaling data vocabulary` writes the tokenizer of the corpus with `size` ids."""
    return str(Path("out/vocabularies") / f"{parse_corpus(CORPUS).slug}-{size}.model")


def corpus_arguments(size: int = 32_000) -> dict[str, Any]:
    """The arguments of a recipe that name the corpus and its vocabulary of `size` ids."""
    return {"corpus": CORPUS, "vocabulary": vocabulary_path(size), "vocab_size": size}


def with_shared_trunk(recipe: Recipe, warmup: Callable[[PartialRun], float], words: str) -> Recipe:
    """The recipe with the same batch size, learning rate and warm-up at every horizon of a size.

    So the horizons of a size can share a trunk (sweeps/trunks.py). Batch size and learning rate are those of the
    recipe's own horizon; the schedule ends in a cooldown to 0 over a fifth of the budget (Hägele et al. 2024).

    warmup: length of the warm-up in tokens. words: its description.
    """

    def at_own_horizon(rule: Rule) -> Rule:
        """The rule, evaluated at the recipe's own horizon whatever the run's horizon is."""

        def value(known: PartialRun) -> float:
            return rule.value(replace(known, tokens=round(recipe.horizon.value(known))))

        return replace(rule, value=value, text=f"at D = {recipe.horizon.text}, {rule.text}")

    return replace(
        recipe,
        name=f"{recipe.name}_trunked",
        batch=at_own_horizon(recipe.batch),
        learning_rate=at_own_horizon(recipe.learning_rate),
        warmup=Rule(warmup, words, "Porian et al. 2024, section 3.3; bound ours"),
        final_fraction=Rule(lambda known: 0.0, "0", "Hägele et al. 2024"),
        schedule=ScheduleConfig(kind="wsd", cooldown_fraction=0.2),
    )


def h200_hours(cells: Sequence[RunConfig]) -> float:
    """Hours of one H200 at 40 % of its peak, with shared trunks counted once. Arithmetic, not a measurement."""
    spent = (result_row(cell, tokens=cell.tokens, unique_tokens=None)["flops_spent"] for cell in share_trunks(cells))
    return sum(spent) / (MFU * PEAK) / 3600


def describe_cost(cells: Sequence[RunConfig]) -> str:
    """The cost in words, for the description of a sweep."""
    return f"about {h200_hours(cells):.3g} H200-hours at {MFU:.0%} MFU"

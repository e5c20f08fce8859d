"""Recipes: shapes that fit, rules as their papers print them, whole batches, derivations that are the run."""

import dataclasses
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from scaling.accounting.counts import count_params, train_flops
from scaling.accounting.model_shapes import PUBLISHED_MODELS
from scaling.config.run_config import RunConfig
from scaling.errors import InputError
from scaling.quantities import parse_quantity
from scaling.recipes import recipes, rules
from scaling.recipes.derive import explain, load_measured_rate, optimal_params
from scaling.recipes.recipes import RECIPES, chinchilla, nanochat, small, step_law


@pytest.mark.parametrize(
    ("width", "heads"), [(8, 1), (16, 1), (24, 2), (32, 2), (48, 3), (64, 4), (72, 6), (80, 5), (128, 8)]
)
def test_fewest_heads_of_even_width(width: int, heads: int) -> None:
    assert rules.fewest_heads(width, 16) == heads
    assert small((width, 2)).model.heads == heads


def test_odd_width_is_bad_input() -> None:
    with pytest.raises(InputError, match=r"heads.*\b33\b"):
        small((33, 1))


def test_learning_rate_of_small_is_the_stated_power_law() -> None:
    at, rate = recipes.SMALL_RATE
    given = {size: small(size).optimizer.learning_rate for size in ((16, 2), (64, 4))}
    counts = {size: count_params(small(size).model).matmul for size in given}
    for size, found in given.items():
        assert found == pytest.approx(rate * (counts[size] / at) ** recipes.SMALL_EXPONENT, rel=1e-3)


def test_batch_follows_the_budget_and_is_never_empty() -> None:
    given = [small((16, 2), 1 << power).data.batch_sequences for power in (19, 20, 21, 22, 30)]
    assert given == [2, 2, 4, 4, 32]
    assert small((16, 2), 1).steps == small((16, 2), 1).data.batch_sequences == 1


def test_warmup_grows_with_size_between_its_bounds() -> None:
    budget = 10_000_000
    assert rules.porian_warmup(100, budget, 2_048, 20) == 20 * 2_048
    assert rules.porian_warmup(200_000, budget, 2_048, 20) == 200_000
    assert rules.porian_warmup(10**9, budget, 2_048, 20) == budget // 10
    assert rules.warmup_of_steps(2000, 10**9, 1_000) == 2_000_000
    assert rules.warmup_of_steps(2000, 10**6, 1_000) == 100_000


def test_small_derives_everything_from_size_and_budget() -> None:
    run = small((48, 3), 1_000_000, corpus="zipf", seed=7)
    assert (run.model.width, run.model.depth, run.data.corpus, run.seed) == (48, 3, "zipf", 7)
    assert run.tokens == 1_000_000 // run.data.batch_tokens * run.data.batch_tokens
    assert run.recipe == f"small(size=w48xd3, tokens={run.tokens})"
    assert run.learning_rate_from.startswith("rule: ")
    assert 0 < run.schedule.warmup_tokens <= 0.1 * run.tokens
    assert small((64, 3), 1_000_000).optimizer.learning_rate < run.optimizer.learning_rate


def test_step_law_is_what_its_paper_prints() -> None:
    """At 1e9 parameters and 1e11 tokens: 1.79 * 3.828e-7 * 2382 and .58 * 1.909e6, by hand."""
    assert rules.step_law_learning_rate(1e9, 1e11) == pytest.approx(1.633e-3, rel=2e-3)
    assert rules.step_law_batch(1e11) == pytest.approx(1.107e6, rel=2e-3)
    run = step_law("1e9")
    assert run.optimizer.learning_rate == pytest.approx(
        rules.step_law_learning_rate(count_params(run.model).blocks, run.tokens), rel=1e-3
    )
    assert step_law((128, 2), 10**9).optimizer.learning_rate == 2**-7
    assert run.schedule.final_fraction * run.optimizer.learning_rate == pytest.approx(1e-5, rel=1e-3)


def test_step_law_finds_the_valley_of_its_public_runs_and_older_rates_do_not(shared_data: Path) -> None:
    """Of 1,911 runs at 17 (N, D), those nearest to a rule's rate and batch against the best of their (N, D)."""
    runs = pd.read_csv(shared_data / "steplaw" / "data" / "dense_lr_bs_loss.csv")
    exponent = rules.power_law_exponent(recipes.GPT_3_RATE, recipes.CHINCHILLA_RATE)
    lost: dict[str, list[float]] = {"step_law": [], "chinchilla": []}
    for (n, d), cell in runs.groupby(["N", "D"]):  # pyrefly: ignore
        head = 32_000 * float(cell["h"].iloc[0])
        asked = {
            "step_law": (rules.step_law_learning_rate(n, d), rules.step_law_batch(d)),
            "chinchilla": (
                rules.scale_learning_rate(n + head, recipes.GPT_3_RATE, exponent),
                rules.scale_batch(d, recipes.CHINCHILLA_BATCH),
            ),
        }
        for name, (rate, batch) in asked.items():
            apart = np.log(cell["lr"] / rate) ** 2 + np.log(cell["bs"] * 2048 / batch) ** 2
            lost[name].append(cell["smooth loss"][apart.idxmin()] / cell["smooth loss"].min() - 1)
    best = runs.loc[runs.groupby(["N", "D"])["smooth loss"].idxmin(), "lr"]
    assert best.max() == pytest.approx(recipes.STEP_LAW_HIGHEST, rel=1e-3)
    assert len(lost["step_law"]) == 17
    assert np.median(lost["step_law"]) < 0.001
    assert max(lost["step_law"]) < 0.004
    assert 0.01 < np.median(lost["chinchilla"]) < 0.03
    assert min(lost["chinchilla"]) > max(lost["step_law"])


def test_chinchilla_passes_through_what_was_published() -> None:
    """Chinchilla itself: 70B, 80 layers of 8192, 64 heads, 1.4e12 tokens, 1e-4, batches of 3e6 to the power of two."""
    run = chinchilla("70B")
    assert (run.model.width, run.model.depth, run.model.heads) == (8192, 80, 64)
    assert run.tokens == pytest.approx(1.4e12, rel=0.1)
    assert run.optimizer.learning_rate == pytest.approx(1e-4, rel=0.05)
    assert abs(math.log2(run.data.batch_tokens / (3e6 * (run.tokens / 1.4e12) ** 0.383))) <= 0.5
    assert (run.schedule.kind, run.schedule.final_fraction) == ("cosine", 0.1)
    gpt_3 = chinchilla((768, 12), vocab_size=50_257)
    assert gpt_3.optimizer.learning_rate == pytest.approx(6e-4, rel=0.02)


def test_nanochat_turns_depth() -> None:
    d12, d20 = nanochat("d12"), nanochat("d20")
    assert (d12.model.width, d12.model.heads, d20.model.width, d20.model.heads) == (768, 6, 1280, 10)
    assert d12.data.batch_tokens == 2**19
    assert d12.optimizer.kind == "muon"
    assert d12.tokens / count_params(d12.model).matmul == pytest.approx(12, rel=0.01)
    averaged = [c.optimizer.learning_rate * c.optimizer.weight_decay * c.steps for c in (d12, d20)]
    assert averaged == pytest.approx([0.02 * 0.28 * 2520 / 4] * 2, rel=2e-3)
    assert nanochat("d3").model.width == 256


@pytest.mark.parametrize("one", RECIPES, ids=lambda one: one.name)
def test_bigger_sizes_are_bigger_runs(one: recipes.Recipe) -> None:
    runs = [one(size) for size in (1e7, 2e7, 4e7)]
    for less, more in itertools.pairwise(runs):
        assert count_params(less.model).matmul < count_params(more.model).matmul
        assert less.tokens < more.tokens
        assert less.data.batch_sequences <= more.data.batch_sequences
    assert all(run.steps * run.data.batch_tokens == run.tokens for run in runs)
    assert all(run.schedule.warmup_tokens <= 0.1 * run.tokens for run in runs)


@pytest.mark.parametrize("one", RECIPES, ids=lambda one: one.name)
def test_an_explanation_is_the_run_with_a_source_for_every_number(one: recipes.Recipe) -> None:
    run, lines = one("1e7", seed=3), explain(one, "1e7")
    for line in lines:
        value: Any = run
        for name in line.what.split("."):
            value = getattr(value, name)
        assert value == line.value
        assert line.rule
        assert line.source
    assert {"tokens", "model.depth", "optimizer.learning_rate", "schedule.warmup_tokens"} < {
        line.what for line in lines
    }


@pytest.mark.parametrize(
    ("size", "shape"),
    [("w96xd3", (96, 3)), ("w96d3", (96, 3)), ((96, 3), (96, 3)), ("d12", (768, 12)), ("llama-2-7b", (4096, 32))],
)
def test_forms_of_a_size(size: Any, shape: tuple[int, int]) -> None:
    made = chinchilla(size, 10**9)
    assert (made.model.width, made.model.depth) == shape


def test_a_published_name_keeps_its_shape() -> None:
    run = chinchilla("llama-2-70b")
    assert run.model == PUBLISHED_MODELS["llama-2-70b"].model
    assert run.data.sequence_length == PUBLISHED_MODELS["llama-2-70b"].sequence_length


def test_a_number_takes_the_nearest_shape() -> None:
    others = [count_params(chinchilla(shape, 10**9).model).matmul for shape in rules.hoffmann_shapes()]
    for text in ("30M", "1.2e8", "2B"):
        wanted = parse_quantity(text)
        made = count_params(chinchilla(text).model).matmul
        assert abs(math.log(made / wanted)) < math.log(1.35)
        assert min(abs(math.log(other / wanted)) for other in others) == abs(math.log(made / wanted))


def test_a_budget_is_spent_at_the_recipes_own_ratio() -> None:
    for flops in (1e17, 1e19, 1e21):
        run = chinchilla(flops=flops)
        spent = train_flops(run.model, run.data.sequence_length, run.tokens, "exact_causal")
        assert spent == pytest.approx(flops, rel=0.01)
        assert 12 < run.tokens / count_params(run.model).matmul < 30
        assert optimal_params(chinchilla, flops) == pytest.approx(count_params(run.model).matmul, rel=0.3)
    assert chinchilla(flops=1e19).recipe.startswith("chinchilla(flops=1e+19, tokens=")


def test_a_scanned_rate_says_so_in_every_run(tmp_path: Path) -> None:
    found = {"law": {"at": 1e5, "rate": 4e-3, "exponent": -0.5}, "source": "eight rates at three sizes"}
    (tmp_path / "rates.json").write_text(json.dumps(found))
    tuned = dataclasses.replace(small, learning_rate=load_measured_rate(tmp_path / "rates.json"))
    run, before = tuned((48, 3), 1_000_000), small((48, 3), 1_000_000)
    assert run.optimizer.learning_rate == pytest.approx(4e-3 * (count_params(run.model).matmul / 1e5) ** -0.5, rel=1e-3)
    assert run.learning_rate_from == "scan: eight rates at three sizes"
    same = {"optimizer": before.optimizer, "learning_rate_from": before.learning_rate_from}
    assert dataclasses.replace(run, **same) == before
    (tmp_path / "rates.json").write_text('{"law": 3}')
    with pytest.raises(InputError, match=r"rates\.json"):
        load_measured_rate(tmp_path / "rates.json")


def test_a_recipe_is_no_part_of_what_a_run_is() -> None:
    run = small((48, 3), 1_000_000)
    assert dataclasses.replace(run, recipe="", learning_rate_from="").run_id == run.run_id
    assert isinstance(run, RunConfig)


@pytest.mark.parametrize(
    ("size", "says"),
    [
        ("124X", r"size.*'124X'.*124M.*gpt-1300m"),
        ("llama-2-70", r"size.*'llama-2-70'.*llama-2-70b"),
        ("d11", r"size.*\bd11\b.*chinchilla.*\bd1[02]\b"),
        ("1e15", r"size.*1e\+15.*chinchilla.*params_matmul.*32000"),
        ("0", r"size 0\b"),
        (None, "chinchilla.*size.*124M"),
        ("w0xd2", r"ModelConfig\.width.*\b0\b"),
    ],
)
def test_bad_sizes_say_what_would_be_right(size: Any, says: str) -> None:
    with pytest.raises(InputError, match=says) as error:
        chinchilla(size)
    assert "\n" not in str(error.value)


def test_bad_budgets_say_what_a_recipe_spends() -> None:
    with pytest.raises(InputError, match=r"flops.*1e\+40.*chinchilla"):
        chinchilla(flops=1e40)
    with pytest.raises(InputError, match=r"tokens.*\b1000\b.*flops.*1e\+18"):
        chinchilla("1e8", 1000, flops=1e18)
    with pytest.raises(InputError, match=r"flops.*-1\b"):
        chinchilla("1e8", flops=-1)


def test_a_size_and_a_budget_give_the_tokens() -> None:
    run = chinchilla((640, 10), flops=1e18)
    assert train_flops(run.model, run.data.sequence_length, run.tokens, "exact_causal") == pytest.approx(1e18, rel=0.01)
    assert run.recipe == f"chinchilla(size=w640xd10, flops=1e+18, tokens={run.tokens})"


@pytest.mark.parametrize("text", ["", "M", "-3", "1e", "0", "12Q", "1e400", "nan"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(InputError, match="size"):
        chinchilla(text)

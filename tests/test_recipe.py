"""The small recipe: shapes that fit, rules that move the right way, and budgets of whole batches."""

import math

import pytest

from scaling import recipe
from scaling.accounting import params
from scaling.strict import InputError


@pytest.mark.parametrize(
    ("width", "heads"), [(8, 1), (16, 1), (24, 2), (32, 2), (48, 3), (64, 4), (72, 6), (80, 5), (128, 8)]
)
def test_fewest_heads_of_even_width(width, heads):
    assert recipe.heads(width) == heads
    assert recipe.model(width, 2).heads == heads


def test_odd_width_is_bad_input():
    with pytest.raises(InputError, match="heads"):
        recipe.model(33, 1)


def test_learning_rate_is_the_stated_power_law():
    at, rate = recipe.LEARNING_RATE_AT
    assert recipe.learning_rate(int(at)) == pytest.approx(rate)
    ratio = recipe.learning_rate(int(at) * 16) / recipe.learning_rate(int(at))
    assert math.log(ratio, 16) == pytest.approx(recipe.LEARNING_RATE_EXPONENT, abs=1e-3)


def test_batch_follows_the_budget_and_is_never_empty():
    assert [recipe.batch_sequences(1 << power) for power in (19, 20, 21, 22, 30)] == [2, 2, 4, 4, 32]
    assert recipe.batch_sequences(1) == 1


def test_warmup_grows_with_size_between_its_bounds():
    budget = 10_000_000
    assert recipe.warmup_tokens(100, 2_048, budget) == recipe.WARMUP_STEPS_AT_LEAST * 2_048
    assert recipe.warmup_tokens(200_000, 2_048, budget) == int(200_000 * recipe.WARMUP_TOKENS_PER_PARAM)
    assert recipe.warmup_tokens(10**9, 2_048, budget) == int(recipe.WARMUP_FRACTION_AT_MOST * budget)


def test_small_derives_everything_from_size_and_budget():
    run = recipe.small((48, 3), 1_000_000, corpus="zipf", seed=7)
    assert (run.model.width, run.model.depth, run.data.corpus, run.seed) == (48, 3, "zipf", 7)
    assert run.tokens == 1_000_000 // run.data.batch_tokens * run.data.batch_tokens
    assert run.steps * run.data.batch_tokens == run.tokens
    assert run.optimizer.learning_rate == recipe.learning_rate(params(run.model).matmul)
    assert 0 < run.schedule.warmup_tokens <= recipe.WARMUP_FRACTION_AT_MOST * run.tokens
    assert recipe.small((64, 3), 1_000_000).optimizer.learning_rate < run.optimizer.learning_rate

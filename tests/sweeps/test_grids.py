"""Overlays are strict; combinators are what their names say."""

import dataclasses
import itertools

import pytest

from scaling.accounting.counts import count_params, train_flops
from scaling.config.overrides import parse_overrides
from scaling.config.run_config import ModelConfig, RunConfig
from scaling.errors import InputError
from scaling.recipes import recipes
from sweeps.grids import apply, axis, chain, geometric, grid, isoflop, overlay, product, scan_learning_rates, zipped

BASE = RunConfig()


def test_overlay_replaces_dotted_fields_and_nothing_else():
    changed = overlay(BASE, {"model.width": 64, "seed": 3, "data.batch_sequences": 8})
    assert (changed.model.width, changed.seed, changed.data.batch_sequences) == (64, 3, 8)
    assert overlay(changed, {"model.width": 128, "seed": 0, "data.batch_sequences": 16}) == BASE


def test_overlay_notes_what_it_changes_of_a_recipe_and_nothing_else():
    given = dataclasses.replace(BASE, recipe="ours")
    assert overlay(given, {"seed": 3, "name": "other", "measure.keep": 2}).overrides == ()
    once = overlay(given, {"optimizer.learning_rate": 0.5, "seed": 1, "model.depth": BASE.model.depth})
    assert once.overrides == ("optimizer.learning_rate=0.5",)
    again = overlay(once, {"optimizer.learning_rate": 0.25, "model.width": 64})
    assert again.overrides == ("optimizer.learning_rate=0.25", "model.width=64")
    assert overlay(BASE, {"optimizer.learning_rate": 0.5}).overrides == ()


def test_overlay_notes_a_later_field_that_returns_to_its_default():
    few = recipes.small("w64xd4", 65_536)
    few = dataclasses.replace(few, data=dataclasses.replace(few.data, unique_tokens=4_096))
    assert overlay(few, {"data.unique_tokens": None}).overrides == ("data.unique_tokens=None",)


def test_a_learning_rate_that_is_set_no_longer_says_it_came_by_rule():
    given = dataclasses.replace(BASE, recipe="ours", learning_rate_from="rule: ours")
    assert overlay(given, {"optimizer.learning_rate": 0.5}).learning_rate_from == "override"
    assert overlay(given, {"optimizer": dataclasses.replace(BASE.optimizer, learning_rate=0.5)}).learning_rate_from == (
        "override"
    )
    assert overlay(given, {"optimizer.weight_decay": 0.5}).learning_rate_from == "rule: ours"
    told = overlay(given, {"optimizer.learning_rate": 0.5, "learning_rate_from": "scan: mine"})
    assert told.learning_rate_from == "scan: mine"


def test_texts_become_an_overlay_by_the_types_of_their_fields():
    texts = ["model.width=96", "tokens=1e6", "optimizer.learning_rate=1e-3", "data.corpus=zipf?facts=512"]
    assert parse_overrides(
        [*texts, "data.unique_tokens=400K", "model.tied=true", "z.y=1.0", "optimizer.weight_decay=1"]
    ) == {
        "model.width": 96,
        "tokens": 1_000_000,
        "optimizer.learning_rate": 0.001,
        "data.corpus": "zipf?facts=512",
        "data.unique_tokens": 400_000,
        "model.tied": True,
        "z.y": 1.0,
        "optimizer.weight_decay": 1,
    }
    assert type(parse_overrides(["tokens=1e6"])["tokens"]) is int
    assert overlay(BASE, parse_overrides(texts)).tokens == 1_000_000


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (["model.width"], r"--set.*'model\.width'"),
        (["=3"], "--set.*'=3'"),
        (["tokens=7X"], r"--set tokens=7X"),
        (["seed=1", "seed=2"], r"--set.*\bseed\b.*\b1\b.*\b2\b"),
    ],
)
def test_texts_that_are_no_overlay(texts, says):
    with pytest.raises(InputError, match=says):
        parse_overrides(texts)


def test_overlay_takes_a_whole_part():
    shape = ModelConfig(width=96, depth=2, heads=3)
    assert overlay(BASE, {"model": shape}).model == shape


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("model.widht", r"\bmodel\.widht\b.*\bwidth\b"),
        ("modle.width", r"\bmodle\b.*\bmodel\b"),
        ("sede", r"\bsede\b.*\bseed\b"),
        ("tokens.count", r"\btokens\.count\b.*\btokens\b"),
        ("model.width.deep", r"\bmodel\.width\.deep\b.*\bmodel\.width\b"),
    ],
)
def test_unknown_field_names_the_nearest(path, says):
    with pytest.raises(InputError, match=says):
        overlay(BASE, {path: 1})


def test_overlay_checks_values():
    with pytest.raises(InputError, match=r"\bheads\b.*\b5\b"):
        overlay(BASE, {"model.heads": 5})


@pytest.mark.parametrize(("path", "seed"), [("seed", 7 + 2**32), ("seed", -1), ("data.order", 2**63)])
def test_a_seed_that_would_be_the_same_run_as_a_smaller_one_is_refused(path, seed):
    with pytest.raises(InputError, match=rf"\b{path.rpartition('.')[2]}\b.*{seed}\b.*\b{2**32}\b"):
        apply(RunConfig(), axis(path, 7, seed))


def test_product_zip_and_chain():
    width, depth = axis("model.width", 32, 64), axis("model.depth", 1, 2)
    assert product(width, depth) == (
        {"model.width": 32, "model.depth": 1},
        {"model.width": 32, "model.depth": 2},
        {"model.width": 64, "model.depth": 1},
        {"model.width": 64, "model.depth": 2},
    )
    assert zipped(width, depth) == (
        {"model.width": 32, "model.depth": 1},
        {"model.width": 64, "model.depth": 2},
    )
    assert chain(width, depth) == (
        {"model.width": 32},
        {"model.width": 64},
        {"model.depth": 1},
        {"model.depth": 2},
    )
    runs = apply(BASE, product(zipped(width, depth), axis("seed", 0, 1)))
    assert [(r.model.width, r.model.depth, r.seed) for r in runs] == [(32, 1, 0), (32, 1, 1), (64, 2, 0), (64, 2, 1)]


@pytest.mark.parametrize("other", [axis("model.width", 3, 4), ({"model": ModelConfig()},) * 2])
def test_one_field_from_two_axes_is_refused(other):
    for combine in (product, zipped):
        with pytest.raises(InputError, match=r"\bmodel\b.*\bmodel\.width\b"):
            combine(axis("model.width", 32, 64), other)


def test_a_longer_name_is_not_a_clash():
    assert len(product(axis("model.ff_width", 8), axis("model.ff", 1))) == 1


def test_zip_refuses_unequal_lengths():
    with pytest.raises(InputError, match=r"\b2\b.*\b3\b"):
        zipped(axis("seed", 0, 1), axis("tokens", 1, 2, 3))


def test_grid_is_sizes_by_horizons():
    cells = grid(lambda size, tokens: overlay(BASE, {"model.width": size, "tokens": tokens}), [32, 64], [4096, 8192])
    assert [(c.model.width, c.tokens) for c in cells] == [(32, 4096), (32, 8192), (64, 4096), (64, 8192)]


def test_geometric_has_exact_ends_and_equal_ratios():
    found = geometric(1e17, 1e19, 5)
    assert found[0] == 1e17
    assert found[-1] == 1e19
    assert [b / a for a, b in itertools.pairwise(found)] == pytest.approx([10**0.5] * 4)
    assert geometric(3, 3, 1) == (3.0,)


@pytest.mark.parametrize("arguments", [(0, 1, 2), (2, 1, 2), (1, 2, 0), (1, 2, 1), (1, float("inf"), 3)])
def test_geometric_refuses(arguments):
    with pytest.raises(InputError, match="geometric"):
        geometric(*arguments)


def test_isoflop_spends_each_budget_at_every_size_about_the_optimum():
    budgets = (1e17, 1e18)
    cells = isoflop(recipes.chinchilla, flops=budgets, sizes=7, span=16, corpus="zipf", seed=3)
    assert len(cells) == len({c.run_id for c in cells}) == 14
    assert {(c.data.corpus, c.seed) for c in cells} == {("zipf", 3)}
    for budget, runs in zip(budgets, (cells[:7], cells[7:]), strict=True):
        counts = [count_params(c.model).matmul for c in runs]
        spent = [train_flops(c.model, c.data.sequence_length, c.tokens, "exact_causal") for c in runs]
        assert spent == pytest.approx([budget] * 7, rel=0.01)
        assert counts == sorted(counts)
        assert counts[-1] / counts[0] == pytest.approx(16, rel=0.4)
        assert runs[3].tokens / counts[3] == pytest.approx(20, rel=0.4)
        assert runs[0].tokens / counts[0] > 100
        assert runs[-1].tokens / counts[-1] < 3


def test_isoflop_refuses_sizes_that_are_one_shape():
    with pytest.raises(InputError, match=r"\b1e\+17\b.*\b7\b.*\bw\d+xd\d+\b.*\b2\b"):
        isoflop(recipes.chinchilla, flops=(1e17,), sizes=7, span=2)


def test_a_scan_is_one_run_at_several_rates_each_of_which_says_so():
    base = recipes.small((16, 2), 100_000)
    runs = scan_learning_rates(base, (0.5, 1, 2))
    rates = [run.optimizer.learning_rate for run in runs]
    assert rates == pytest.approx([base.optimizer.learning_rate * factor for factor in (0.5, 1, 2)], rel=1e-3)
    assert runs[1].run_id == base.run_id
    assert len({run.run_id for run in runs}) == len({run.name for run in runs}) == 3
    assert all(run.learning_rate_from.startswith("scan: ") for run in runs)
    assert [len(run.overrides) for run in runs] == [1, 0, 1]

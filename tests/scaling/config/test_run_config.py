from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from scaling.config.fields import canonical_json
from scaling.config.run_config import (
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    from_dict,
    load_config,
    to_dict,
)
from scaling.errors import InputError
from scaling.training.schedule import step_learning_rate
from tests.conftest import ROOT

GOLDEN = ROOT / "tests" / "golden" / "default_run.json"
BASE = RunConfig(
    model=ModelConfig(heads=4, parametrization="completep"),
    optimizer=OptimizerConfig(kind="muon"),
    schedule=ScheduleConfig(kind="wsd"),
    mesh=MeshConfig(data=4),
)
"""One of which every field counts: base_depth for completep, momentum for muon, cooldown_fraction for wsd."""


def leaves(kind: type, path: tuple[str, ...] = (), hashed: bool = True) -> list[tuple[tuple[str, ...], bool]]:
    """Every field of a config, with whether it is hashed."""
    out: list[tuple[tuple[str, ...], bool]] = []
    for spec in dataclasses.fields(kind):
        default = getattr(kind(), spec.name)
        counts = hashed and spec.metadata.get("hashed", True)
        here = (*path, spec.name)
        out += leaves(type(default), here, counts) if dataclasses.is_dataclass(default) else [(here, counts)]
    return out


def changed(path: tuple[str, ...]) -> RunConfig:
    """The base run with one field set to another valid value."""
    data = to_dict(BASE)
    node = data
    for name in path[:-1]:
        node = node[name]
    old = node[path[-1]]
    choices: dict[str, Any] = {
        "heads": 8,
        "kv_heads": 2,
        "ff_width": 99,
        "kind": "adamw" if "optimizer" in path else "cosine",
        "parametrization": "mup",
        "momentum": 0.5,
        "compute": "bfloat16",
        "attention": "xla",
        "remat": "full",
        "width": 256,
        "beta1": 0.5,
        "beta2": 0.5,
        "tokens": 2_097_152,
        "unique_tokens": 4096,
    }
    if path[-1] in choices:
        node[path[-1]] = choices[path[-1]]
    elif isinstance(old, list | tuple):
        node[path[-1]] = [1] if path[-1] == "branch_at_steps" else ["model.width=8"]
    elif isinstance(old, bool):
        node[path[-1]] = not old
    elif isinstance(old, str):
        node[path[-1]] = old + "x"
    elif old is None:
        node[path[-1]] = 8
    else:
        node[path[-1]] = old / 2 if isinstance(old, float) else old + 1
    if path[-1] == "final_fraction":
        node[path[-1]] = 0.5
    return from_dict(data)


@pytest.mark.parametrize(
    ("path", "hashed"), leaves(RunConfig), ids=lambda x: ".".join(x) if isinstance(x, tuple) else ""
)
def test_every_field_is_hashed_exactly_when_it_changes_the_result(path: tuple[str, ...], hashed: bool) -> None:
    assert changed(path) != BASE
    assert (changed(path).run_id != BASE.run_id) is hashed


def test_what_changes_no_result_is_this_and_nothing_else() -> None:
    unhashed = {".".join(path) for path, hashed in leaves(RunConfig) if not hashed}
    assert unhashed == {
        *("model.remat", "model.unroll", "model.attention", "data.microbatch_sequences", "data.directory"),
        *("mesh.data", "mesh.fsdp", "mesh.tensor", "name", "sweep"),
        *("recipe", "overrides", "learning_rate_from", "branch_of", "priority", "measure.branch_at_steps"),
        *("measure.every_tokens", "measure.log_every_steps", "measure.checkpoint_every_tokens", "measure.keep"),
    }


def test_a_section_that_a_config_gains_changes_no_run_id() -> None:
    @dataclasses.dataclass(frozen=True)
    class Stage:
        kind: str = "pretrain"

    section = dataclasses.field(default_factory=Stage, metadata={"hash_default": False})
    grown = dataclasses.make_dataclass("RunConfig", [("stage", Stage, section)], bases=(RunConfig,), frozen=True)
    assert grown().run_id == RunConfig().run_id != grown(stage=Stage("finetune")).run_id


def test_fields_that_a_choice_ignores_make_no_other_run() -> None:
    assert from_dict({"model": {"base_width": 8, "base_depth": 8}}).run_id == RunConfig().run_id
    assert from_dict({"optimizer": {"momentum": 0.5}}).run_id == RunConfig().run_id
    mup = {"parametrization": "mup"}
    assert from_dict({"model": mup | {"base_depth": 8}}).run_id == from_dict({"model": mup}).run_id
    assert from_dict({"data": {"order": 0}}).run_id == RunConfig().run_id != from_dict({"data": {"order": 1}}).run_id


def test_the_step_where_a_branch_leaves_is_the_first_whose_rate_depends_on_the_budget() -> None:
    wsd = ScheduleConfig(kind="wsd", warmup_tokens=2_000, cooldown_fraction=0.3)
    for tokens in (20_480, 22_528, 40_960, 61_440, 63_000):
        config = RunConfig(schedule=wsd, tokens=tokens)
        rates = [step_learning_rate(step, config) for step in range(config.steps)]
        peak = config.optimizer.learning_rate
        assert rates[1] == peak
        assert config.branch_step == 1 + max(step for step, rate in enumerate(rates) if rate == peak)
    assert RunConfig().branch_step == 0


def test_tokens_that_make_no_whole_batch_make_no_other_run() -> None:
    assert RunConfig(tokens=4096).run_id == RunConfig(tokens=4097).run_id != RunConfig(tokens=6144).run_id


def test_json_round_trip_keeps_everything() -> None:
    for path, _ in leaves(RunConfig):
        config = changed(path)
        assert from_dict(json.loads(canonical_json(to_dict(config)))) == config


def test_a_default_spelt_out_is_the_same_run() -> None:
    spelt = RunConfig(model=ModelConfig(kv_heads=4, ff_width=ModelConfig().num_ff))
    assert spelt.run_id == RunConfig().run_id
    assert (
        from_dict({"optimizer": {"learning_rate": 1}}).run_id == from_dict({"optimizer": {"learning_rate": 1.0}}).run_id
    )


def test_a_changed_default_shows_in_review() -> None:
    """Rewrite tests/golden/default_run.json by hand when a default is meant to change: every run_id changes with it."""
    golden = json.loads(GOLDEN.read_text())
    assert golden == {"run_id": RunConfig().run_id, "config": to_dict(RunConfig())}


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ({"modle": {}}, r"\bmodle\b.*\bmodel\b"),
        ({"model": {"widht": 64}}, r"model\.widht\b.*\bwidth\b"),
        ({"optimizer": {"xyzzy": 1}}, r"optimizer\.xyzzy\b.*\blearning_rate\b"),
        ({"model": {"heads": 3}}, r"ModelConfig\.heads.*\b3\b.*width=128"),
        ({"model": {"width": 12, "heads": 4}}, r"\bheads\b.*\b4\b.*\b3\b"),
        ({"model": {"kv_heads": 3}}, r"\bkv_heads\b.*\b3\b.*\bheads=4"),
        ({"model": {"depth": 0}}, r"ModelConfig\.depth\b.{1,5}\b0\b"),
        ({"model": {"width": "64"}}, r"ModelConfig\.width.*'64'"),
        ({"model": {"width": True}}, r"ModelConfig\.width.*\bTrue\b"),
        ({"model": 3}, r"\bmodel\b.*\b3\b"),
        ({"optimizer": {"learning_rate": float("inf")}}, r"\blearning_rate\b.*\binf\b"),
        ({"optimizer": {"beta2": 1.0}}, r"\bbeta2\b.*\b1\.0\b.*\[0, 1\)"),
        ({"schedule": {"kind": "cosin"}}, r"\bkind\b.*'cosin'.*'cosine'.*'wsd'"),
        ({"schedule": {"warmup_tokens": 2_000_000}}, r"\bwarmup_tokens\b.*\b2000000\b"),
        ({"data": {"unique_tokens": 127}}, r"\bunique_tokens\b.*\b127\b.*sequence_length=128\b"),
        ({"data": {"microbatch_sequences": 5}}, r"\bmicrobatch_sequences\b.*\b5\b.*\bbatch_sequences=16\b"),
        ({"tokens": 100}, r"\btokens\b.*\b100\b.*\b2048\b"),
        ({"schema": 99}, r"\bschema\b.*\b99\b"),
        ({"seed": -1}, r"RunConfig\.seed\b.*-1\b"),
        ({"seed": 7 + 2**32}, r"RunConfig\.seed\b.*\b4294967303\b.*\b4294967296\b"),
        ({"data": {"order": 2**63}}, r"DataConfig\.order\b.*\b9223372036854775808\b.*\b4294967296\b"),
        ({"data": {"directory": "gs://b/corpora"}}, r"DataConfig\.directory\b.*gs://b/corpora"),
        ({"data": {"vocabulary": "s3://b/v.model"}}, r"DataConfig\.vocabulary\b.*s3://b/v\.model"),
    ],
)
def test_bad_values_are_named(data: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named) as error:
        from_dict(data)
    assert "\n" not in str(error.value)


def test_load_names_the_file(tmp_path: Path) -> None:
    torn = tmp_path / "torn.json"
    torn.write_text('{"schema": 1, "mod')
    with pytest.raises(InputError, match=r"torn\.json"):
        load_config(torn)
    with pytest.raises(InputError, match=r"absent\.json"):
        load_config(tmp_path / "absent.json")
    torn.write_text('{"model": {"widht": 1}}')
    with pytest.raises(InputError, match=r"torn\.json.*model\.widht\b.*\bwidth\b"):
        load_config(torn)

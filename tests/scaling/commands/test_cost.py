"""`scaling cost` as a user meets it: numbers that are arithmetic, a config that is the run, one line for bad input."""

import json
import re
from pathlib import Path

import pytest

from scaling.accounting.counts import count_params, train_flops
from scaling.commands import cost as cost_verb
from scaling.config.run_config import load_config
from scaling.recipes.recipes import chinchilla, nanochat
from tests.conftest import in_process


def cost(place: Path, *arguments: object) -> dict:
    done = in_process("cost", *arguments, "--json", place / "facts.json", "--config", place / "config.json", cwd=place)
    assert done.returncode == 0, done.stderr
    return json.loads((place / "facts.json").read_text()) | {"said": done.stdout}


def test_a_size_is_explained_and_written_as_a_run(tmp_path: Path) -> None:
    facts = cost(tmp_path, "124M")
    run = load_config(tmp_path / "config.json")
    assert run == chinchilla("124M")
    assert facts["run_id"] == run.run_id
    assert facts["params"] == {
        name: getattr(count_params(run.model), name) for name in ("total", "non_embedding", "matmul")
    }
    for name in ("6nd", "exact", "exact_causal"):
        assert facts["flops"][name] == train_flops(run.model, 2048, run.tokens, name)  # pyrefly: ignore
    assert facts["steps"] * facts["batch_tokens"] == run.tokens
    assert facts["tokens_per_param"] == pytest.approx(20, rel=0.01)
    for text in (
        "model.width",
        "Hoffmann et al. 2022",
        "Power Lines",
        f"{run.tokens:,}",
        f"{count_params(run.model).total:,}",
        "H200",
    ):
        assert text in facts["said"]


def test_memory_and_time_are_arithmetic_by_hand(tmp_path: Path) -> None:
    """Llama 2 of 70 billion: 68,976,648,192 numbers; the same FLOPs take half the time on twice the chips."""
    facts = cost(tmp_path, "llama-2-70b", "--chips", 2, "--mfu", 0.5)
    assert facts["memory_bytes"] == {"weights": 2 * 68_976_648_192, "training_state": 12 * 68_976_648_192}
    assert facts["hours"]["H200"] == pytest.approx(facts["flops"]["exact_causal"] / (2 * 0.5 * 989e12) / 3600)
    assert facts["hours"]["TPU v5e"] == pytest.approx(facts["flops"]["exact_causal"] / 197e12 / 3600)
    assert facts["config"]["model"]["kv_heads"] == 8


def test_muon_keeps_one_moment_of_the_matrices_of_blocks(tmp_path: Path) -> None:
    facts, counts = cost(tmp_path, "d12", "--recipe", "nanochat"), count_params(nanochat("d12").model)
    assert facts["memory_bytes"]["training_state"] == 12 * counts.total - 4 * counts.blocks


def test_what_is_set_is_recorded_and_shown_as_an_override(tmp_path: Path) -> None:
    facts = cost(tmp_path, "124M", "--set", "optimizer.learning_rate=2e-3", "optimizer.beta2=0.99", "measure.keep=3")
    run = load_config(tmp_path / "config.json")
    assert run.overrides == ("optimizer.learning_rate=0.002", "optimizer.beta2=0.99")
    assert (run.optimizer.learning_rate, run.learning_rate_from, run.measure.keep) == (2e-3, "override", 3)
    lines = {line["what"]: line for line in facts["lines"]}
    assert lines["optimizer.learning_rate"]["value"] == 2e-3
    assert "0.0005924" in lines["optimizer.learning_rate"]["rule"], "what the recipe gave"
    assert lines["optimizer.beta2"]["source"] == "override"
    assert lines["tokens"]["source"] != "override"
    assert "override" in facts["said"]


def test_a_budget_is_spent(tmp_path: Path) -> None:
    facts = cost(tmp_path, "--flops", 1e19)
    assert facts["flops"]["exact_causal"] == pytest.approx(1e19, rel=0.01)
    assert cost(tmp_path, "w640xd10", "--flops", 1e18)["flops"]["exact_causal"] == pytest.approx(1e18, rel=0.01)


def test_tokens_and_vocabulary_are_the_users(tmp_path: Path) -> None:
    facts = cost(tmp_path, "w64xd4", "--tokens", "4M", "--recipe", "step-law", "--vocabulary", "byte")
    assert facts["config"]["model"]["vocab_size"] == 259
    assert facts["tokens"] == pytest.approx(4e6, rel=0.05)
    assert "--vocabulary" not in facts["said"]
    assert re.search(r"32,000\b.*\b259\b.*--vocabulary", cost(tmp_path, "124M")["said"]), "byte ids are too few"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["124X"], r"size.*'124X'.*124M"),
        ([], r"chinchilla.*\bsize\b.*124M"),
        (["1e8", "--recipe", "chinchila"], r"recipe.*\bchinchila\b.*\bchinchilla\b"),
        (["1e8", "--set", "model.widht=3"], r"model\.widht\b.*\bwidth\b"),
        (["1e8", "--set", "model.width"], r"--set.*'model\.width'.*FIELD=VALUE"),
        (["1e8", "--set", "model.heads=7"], r"ModelConfig\.heads.*\b7\b.*width=\d+"),
        (["1e8", "--mfu", 40], r"\bmfu\b.*\b40\b.*\b0\b.*\b1\b"),
        (["1e8", "--chips", 0], r"\bchips\b.*\b0\b"),
        (["1e8", "--tokens", "many"], r"\btokens\b.*\bmany\b"),
        (["1e8", "--tokens", "1B", "--flops", 1e19], r"\btokens\b.*\b1000000000\b.*\bflops\b.*1e\+19"),
        (["1e8", "--vocabulary", "absent.model"], r"absent\.model"),
        (["--flops", -1], r"\bflops\b.*-1\b"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, arguments: list, named: str) -> None:
    done = in_process("cost", *arguments, "--json", "facts.json", cwd=tmp_path)
    assert done.returncode == 2
    assert re.search(named, done.stderr)
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_hours_read_well() -> None:
    assert [cost_verb.format_hours(hours) for hours in (1e-3, 0.5, 1.14, 30, 100)] == [
        "3.6 s",
        "30 min",
        "1.14 h",
        "30 h",
        "4 days",
    ]

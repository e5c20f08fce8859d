from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis.forecasting.saved_fit import SavedFit
from analysis.report import checklist, evidence
from analysis.report.evidence import Evidence
from tests.conftest import ROOT
from tests.support import reported as planted


@pytest.fixture(scope="module")
def gathered(reported: Path) -> Evidence:
    return evidence.gather(reported)


def answers(gathered: Evidence) -> dict[str, tuple[str, str]]:
    return {item.key: (item.answer, item.evidence) for item in checklist.fill_checklist(gathered)}


def refitted(gathered: Evidence, **document: Any) -> Evidence:
    return replace(gathered, fit=SavedFit({**gathered.fit.document, **document}))


def test_a_whole_sweep_answers_every_item(gathered: Evidence) -> None:
    filled = answers(gathered)
    assert {key for key, (answer, _) in filled.items() if answer != "yes"} == {"seeds", "downstream"}
    for key, part in {
        "counting": "params_matmul.*params_total",
        "flops": "6.00.*6.00",
        "range": "240x.*30x.*16x",
        "apart": r"\b5\b.*\b4\b",
        "rates": r"\b19\b.*scan: scans",
        "inside": r"\b4\b.*\b4\b",
        "schedule": "20 wsd",
        "data": r"\btales\b.*\bbyte\b.*\bf1f1\b.*\b4\.1k\b",
        "left-out": r"\b1\b",
        "held-out": r"\b1\b.*\b1\b.*90%",
        "code": r"\bc0ffeec0ffee\b.*\b9\.9\.9\b",
        "hardware": r"\babacus\b.*\bbeads\b",
        "table": r"\b21\b",
    }.items():
        assert re.search(part, filled[key][1]), key


@pytest.mark.parametrize(
    ("key", "answer", "table"),
    [
        ("repeated", "yes", {"unique_tokens": 1e6}),
        ("schedule", "no", {"schedule": "constant"}),
        ("schedule", "no", {"flags": "undertrained"}),
        ("inside", "no", {"flags": "lr_at_bound"}),
        ("bytes", "no", {"bits_per_byte": float("nan")}),
    ],
)
def test_what_the_table_says_changes_the_answer(
    gathered: Evidence, key: str, answer: str, table: dict[str, Any]
) -> None:
    changed = answers(replace(gathered, table=planted.planted_table().assign(**table)))[key]
    assert changed[0] == answer
    assert changed[1] != answers(gathered)[key][1]


@pytest.mark.parametrize(
    ("key", "answer", "document"),
    [
        ("counting", "unknown", {"params_column": "params"}),
        ("held-out", "no", {"held_out": []}),
        ("beyond", "no", {"held_out": []}),
        ("form", "no", {"choice": None}),
        ("optimum", "no", {"reached": 1}),
        ("optimum", "no", {"bounds_hit": ["E"]}),
        ("otherwise", "no", {"sensitivity": None}),
        ("rates", "unknown", {"learning_rates": {}}),
        ("rates", "no", {"learning_rates": {"override": 19}}),
    ],
)
def test_what_the_fit_says_changes_the_answer(
    gathered: Evidence, key: str, answer: str, document: dict[str, Any]
) -> None:
    assert answers(refitted(gathered, **document))[key][0] == answer


@pytest.mark.parametrize(
    ("key", "answer", "missing"),
    [
        ("backtest", "no", {"backtest": pd.DataFrame(), "missing": {"backtest": "too few"}}),
        ("code", "unknown", {"environments": {}}),
        ("code", "no", {"environments": {"a": {"commit": "x"}, "b": {"commit": "y"}}}),
        ("hardware", "unknown", {"environments": {}}),
        ("data", "unknown", {"configs": {}}),
        ("inside", "unknown", {"rate_law": None}),
        ("table", "no", {"table_unchanged": False}),
        ("table", "no", {"table_unchanged": None}),
    ],
)
def test_what_is_not_there_is_not_claimed(gathered: Evidence, key: str, answer: str, missing: dict[str, Any]) -> None:
    assert answers(replace(gathered, **missing))[key][0] == answer


def test_three_seeds_are_counted(gathered: Evidence) -> None:
    tables = [planted.planted_table().assign(seed=seed) for seed in range(3)]
    assert answers(replace(gathered, table=pd.concat(tables, ignore_index=True)))["seeds"][0] == "yes"


@pytest.mark.parametrize(("key", "lacking"), [("seeds", "params"), ("repeated", "tokens")])
def test_a_table_made_elsewhere_need_not_tell(gathered: Evidence, key: str, lacking: str) -> None:
    elsewhere = planted.planted_table().rename(columns={"params_matmul": "N", "tokens": "D"})
    answer, reason = answers(replace(gathered, table=elsewhere))[key]
    assert answer == "unknown"
    assert re.search(rf"\b{lacking}\b", reason)
    nothing = answers(replace(gathered, table=planted.planted_table().assign(status="failed")))[key]
    assert nothing[0] == "unknown"


def test_the_document_gives_a_reason_for_every_item() -> None:
    """There is one heading for each item, in the page's order, and each names a source or says the bound is ours."""
    text = (ROOT / "docs" / "checklist.md").read_text()
    headed = re.findall(r"^### (.+) \(`(.+)`\)$", text, re.M)
    assert headed == [(what, key) for key, what, _ in checklist.CHECKLIST]
    parts = re.split(r"^### .+$", text, flags=re.M)[1:]
    assert all(re.search(r"20\d\d|[Oo]urs", part) for part in parts)

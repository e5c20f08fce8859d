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
from tests.support import reported as made


@pytest.fixture(scope="module")
def found(reported: Path) -> Evidence:
    return evidence.gather(reported)


def answers(found: Evidence) -> dict[str, tuple[str, str]]:
    return {item.key: (item.answer, item.evidence) for item in checklist.fill_checklist(found)}


def refitted(found: Evidence, **document: Any) -> Evidence:
    return replace(found, fit=SavedFit({**found.fit.document, **document}))


def test_a_whole_sweep_answers_every_item(found: Evidence) -> None:
    said = answers(found)
    assert {key for key, (answer, _) in said.items() if answer != "yes"} == {"seeds", "downstream"}
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
        assert re.search(part, said[key][1]), key


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
def test_what_the_table_says_changes_the_answer(found: Evidence, key: str, answer: str, table: dict[str, Any]) -> None:
    changed = answers(replace(found, table=made.planted_table().assign(**table)))[key]
    assert changed[0] == answer
    assert changed[1] != answers(found)[key][1]


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
def test_what_the_fit_says_changes_the_answer(found: Evidence, key: str, answer: str, document: dict[str, Any]) -> None:
    assert answers(refitted(found, **document))[key][0] == answer


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
def test_what_is_not_there_is_not_claimed(found: Evidence, key: str, answer: str, missing: dict[str, Any]) -> None:
    assert answers(replace(found, **missing))[key][0] == answer


def test_three_seeds_are_counted(found: Evidence) -> None:
    tables = [made.planted_table().assign(seed=seed) for seed in range(3)]
    assert answers(replace(found, table=pd.concat(tables, ignore_index=True)))["seeds"][0] == "yes"


@pytest.mark.parametrize(("key", "lacking"), [("seeds", "params"), ("repeated", "tokens")])
def test_a_table_made_elsewhere_need_not_tell(found: Evidence, key: str, lacking: str) -> None:
    elsewhere = made.planted_table().rename(columns={"params_matmul": "N", "tokens": "D"})
    answer, said = answers(replace(found, table=elsewhere))[key]
    assert answer == "unknown"
    assert re.search(rf"\b{lacking}\b", said)
    nothing = answers(replace(found, table=made.planted_table().assign(status="failed")))[key]
    assert nothing[0] == "unknown"


def test_the_document_gives_a_reason_for_every_item() -> None:
    """One heading an item, in the order of the page, and a source or a word of whose bound it is."""
    text = (ROOT / "docs" / "checklist.md").read_text()
    headed = re.findall(r"^### (.+) \(`(.+)`\)$", text, re.M)
    assert headed == [(what, key) for key, what, _ in checklist.CHECKLIST]
    parts = re.split(r"^### .+$", text, flags=re.M)[1:]
    assert all(re.search(r"20\d\d|[Oo]urs", part) for part in parts)

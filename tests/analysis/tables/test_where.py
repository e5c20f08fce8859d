from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

from analysis.errors import TableError
from analysis.tables.where import filter_rows


def table_of_kinds() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "corpus": ["c4", "pile", "c4", "the web and more"],
            "flops": [1e18, 2.15e18, 1e19, np.nan],
            "depth": [2, 4, 8, 16],
            "used in fit": [True, False, True, True],
            "cloze/accuracy": [0.1, 0.2, 0.3, 0.4],
            "flags": ["", "rising", None, "lr_at_bound, rising"],
            "empty": [np.nan] * 4,
        }
    )


@pytest.mark.parametrize(
    ("expression", "rows"),
    [
        ("", [0, 1, 2, 3]),
        ("corpus==c4", [0, 2]),
        ("corpus!='c4'", [1, 3]),
        ('"corpus" == "the web and more"', [3]),
        ("flops==2.15e18", [1]),
        ("flops!=2.15e18", [0, 2, 3]),
        ("flops>1000000000000000000", [1, 2]),
        ("flops>=2_150_000T", [1, 2]),
        ("flops<inf", [0, 1, 2]),
        ("depth >= 4 and depth<16", [1, 2]),
        ("depth<=4 and corpus==c4 and flops<1e19", [0]),
        ("used in fit==True", [0, 2, 3]),
        ("used in fit!=true", [1]),
        ("cloze/accuracy>0.25", [2, 3]),
        ("depth==4.0", [1]),
        ("flags==", [0, 2]),
        ("flags!=", [1, 3]),
        ("flags=='' and depth>2", [2]),
        ("flags== and depth>2", [2]),
        ("depth>2 and flags==rising", [1]),
        ("empty==", [0, 1, 2, 3]),
    ],
)
def test_where_keeps_the_rows_that_it_says(expression: str, rows: list[int]) -> None:
    table = table_of_kinds()
    pd.testing.assert_frame_equal(filter_rows(table, expression), table.iloc[rows])


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("corpsu==c4", [r"\bcorpsu\b", r"\bcorpus\b.*\bcorpus\b"]),
        ("corpus==c5", ["--where corpus==c5", "c4, pile, the web and more"]),
        ("corpus==c4 and depth==4", ["--where depth==4", "depth.* 2, 8"]),
        ("flops==many", ["--where flops==many"]),
        ("flops<7X", ["--where flops<7X"]),
        ("corpus<c5", ["--where corpus<c5", "==.*!="]),
        ("depth=4", ["--where depth=4", "=="]),
        ("depth==", ["--where depth=="]),
        ("depth==4 and ", ["--where depth=="]),
        ("depth==4 and corpus", [r"--where corpus\b", "=="]),
        ("__import__('os')", [r"--where __import__\('os'\)", "=="]),
    ],
)
def test_where_names_the_clause_that_is_wrong(expression: str, words: list[str]) -> None:
    with pytest.raises(TableError) as error:
        filter_rows(table_of_kinds(), expression)
    assert "\n" not in str(error.value)
    for word in words:
        assert re.search(word, str(error.value))


def test_where_of_many_numbers_says_their_range() -> None:
    table = pd.DataFrame({"x": np.arange(100.0)})
    with pytest.raises(TableError, match=r"\bx\b.*\b0\b.*\b99\b"):
        filter_rows(table, "x==100")


def test_flops_can_be_compared_where_they_can_be_computed() -> None:
    table = pd.DataFrame({"params": [1e9, 2e9, 4e9], "tokens": [1e10] * 3})
    for rows in (table, table.assign(flops=[6e19, np.nan, 2.4e20]), table.assign(flops=np.nan)):
        assert filter_rows(rows, "flops<=1.2e20").index.tolist() == [0, 1]
    with pytest.raises(TableError, match=r"--where flops<1\b.*6e\+19"):
        filter_rows(table, "flops<1")
    with pytest.raises(TableError, match=r"--where flops<1\b.*lacks"):
        filter_rows(table.drop(columns="params"), "flops<1")

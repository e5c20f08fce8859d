"""Tables of the verbs are printed in full on a narrow terminal."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.table import Table

from analysis.commands.printing import make_console, print_table, print_warnings
from analysis.commands.rates import rates
from scaling.cli import with_current_names
from tests.support import reported


def test_a_row_is_one_line_however_narrow_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    table = Table("name", "note", box=None, pad_edge=False)
    table.add_row("n" * 90, "a note of several words " * 5)
    console = make_console()
    print_table(table, console)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ["name", "note"],
        ["n" * 90, *["a", "note", "of", "several", "words"] * 5],
    ]
    assert console.width == 20, "other lines are printed as before"


def test_rates_prints_names_and_numbers_in_full(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    reported.scan_table().to_csv(tmp_path / "t.csv", index=False)
    rates(tmp_path / "t.csv")
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["scan", "N", "tried", "best", "law", "loss"]
    for line, size in zip(lines, reported.SIZES, strict=False):
        assert f"{size:,.0f}" in line.split()
        assert "…" not in line


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (["fit", "t.csv", "--params", "params_total"], ["fit", "t.csv", "--params-column", "params_total"]),
        (["forecast", "--lock=a.json", "--params-value", "1"], ["forecast", "--seal=a.json", "--params-value", "1"]),
        (["isoflop", "t.csv", "--at", "1e20"], ["isoflop", "t.csv", "--bias-flops", "1e20"]),
    ],
)
def test_flags_of_the_last_release_still_work(old: list[str], new: list[str]) -> None:
    assert with_current_names(old) == new


def test_brackets_and_colons_in_names_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("N[/x]", box=None, pad_edge=False)
    table.add_row("[bold]a :smile:")
    print_table(table)
    make_console().print("N[/x]")
    print_warnings(["[/x]"])
    assert capsys.readouterr().out.split() == ["N[/x]", "[bold]a", ":smile:", "N[/x]", "warning:", "[/x]"]

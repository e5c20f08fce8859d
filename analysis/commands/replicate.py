"""`scaling replicate`: recomputes published numbers from public tables, one table a study."""

from __future__ import annotations

import difflib
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from analysis import files
from analysis.commands.printing import make_console, print_table
from analysis.errors import TableError
from analysis.replicate import approach2, chinchilla, curves, datablations, gadre, nanochat, porian, steplaw
from analysis.replicate import fetch as fetching
from analysis.replicate.study import UNEXPLAINED, Comparison, Replication
from analysis.tables.public import DATA_FOLDER

STUDIES = (
    chinchilla.STUDY, gadre.STUDY, datablations.STUDY, porian.STUDY, steplaw.STUDY, approach2.STUDY, nanochat.STUDY,
    curves.STUDY,
)  # fmt: skip
FETCH_FOLDER = Path("out/public")
COLOURS = {"differs": "red", "explained": "yellow", "not an optimum": "yellow"}
UNEXPLAINED_DIFFERENCE = 1


def replicate(
    names: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[NAME ...]")] = (),
    data: Path | None = None,
    fetch: bool = False,
    json: Path | None = None,
) -> int:
    """Recompute published numbers from the public tables, and print the published number, ours, the difference and a
    verdict.

    It exits with 1 if a number differs without a known reason.

    Args:
      names: Studies to recompute, by name. Default: all.
      data: Folder of the public tables. Default: ../shared/data if that exists, else out/public.
      fetch: Download missing tables from their original repositories, into --data or out/public.
      json: Also write the rows to this file, as JSON. Default: no file.
    """
    studies = choose_studies(names)
    folder = data or (FETCH_FOLDER if fetch or not DATA_FOLDER.is_dir() else DATA_FOLDER)
    if data and not data.is_dir() and not fetch:
        raise TableError(f"--data {data}: no such folder; --fetch makes and fills it")
    rows: list[Comparison] = []
    skipped: dict[str, str] = {}
    console = make_console()
    for study in studies:
        missing = why_missing(study, folder, fetch)
        if missing and study.name in names:
            raise TableError(f"{study.name}: {missing}")
        if missing:
            skipped[study.name] = missing
            console.print(Text.assemble("\n", (study.name, "bold"), f" skipped: {missing}"))
            continue
        study_rows = study.run(folder / study.folder)
        print_study(console, study, study_rows)
        rows += study_rows
    counts = Counter(row.verdict for row in rows)
    console.print("\n" + ", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    if json:
        facts = {"data": str(folder), "rows": [asdict(row) for row in rows], "counts": dict(counts), "skipped": skipped}
        files.write_json(json, facts)
    return UNEXPLAINED_DIFFERENCE if counts[UNEXPLAINED] else 0


def choose_studies(names: tuple[str, ...]) -> list[Replication]:
    """The studies of these names; all if there are none. Raises TableError for a name that no study has."""
    known = {study.name: study for study in STUDIES}
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise TableError(f"{name}: no such study; {hint}there are {', '.join(known)}")
    return [study for study in STUDIES if not names or study.name in names]


def why_missing(study: Replication, folder: Path, fetch: bool) -> str:
    """Why the study cannot run on that folder, after downloading its tables if `fetch`; empty if it can."""
    if fetch and study.files:
        fetching.fetch_files(study, folder)
    if not study.folder or (folder / study.folder).is_dir():
        return ""
    advice = study.why_not_fetched or "--fetch gets it, or give --data"
    return f"no {folder / study.folder}; {advice}"


def print_study(console: Console, study: Replication, rows: list[Comparison]) -> None:
    """Prints the rows of a study, and below them its notes, numbered."""
    table = Table("", box=None, pad_edge=False)
    for heading in ("published", "ours", "difference"):
        table.add_column(heading, justify="right")
    table.add_column("verdict")
    notes = list(dict.fromkeys(row.note for row in rows if row.note))
    for row in rows:
        mark = f" ({notes.index(row.note) + 1})" if row.note else ""
        verdict = Text.assemble((row.verdict, COLOURS.get(row.verdict, "green")), mark)
        numbers = f"{row.published:.6g}", f"{row.ours:.6g}", f"{row.difference:+.2g}"
        table.add_row(row.quantity, *numbers, verdict)
    console.print(Text.assemble("\n", (study.name, "bold"), f"  {study.source}"))
    print_table(table, console)
    for number, note in enumerate(notes, 1):
        console.print(f"({number}) {note}")

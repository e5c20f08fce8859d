"""`scaling replicate`: published numbers beside ours, one table a study."""

from __future__ import annotations

import difflib
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from analysis import files
from analysis.errors import TableError
from analysis.replicate import approach2, chinchilla, curves, datablations, gadre, nanochat, porian, steplaw
from analysis.replicate import fetch as public
from analysis.replicate.study import UNEXPLAINED, Row, Study

STUDIES = (
    chinchilla.STUDY, gadre.STUDY, datablations.STUDY, porian.STUDY, steplaw.STUDY, approach2.STUDY, nanochat.STUDY,
    curves.STUDY,
)  # fmt: skip
DATA, FETCHED = Path("../shared/data"), Path("out/public")
COLOURS = {"differs": "red", "explained": "yellow", "not an optimum": "yellow"}
UNEXPLAINED_DIFFERENCE = 1


def replicate(
    names: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[NAME ...]")] = (),
    data: Path | None = None,
    fetch: bool = False,
    json: Path | None = None,
) -> int:
    """Recompute published numbers from the public tables: published | ours | difference | verdict.

    Exits with 1 if any number differs without a reason that was checked.

    Args:
      names: Studies; all unless given.
      data: Folder of the public tables; ../shared/data where that exists.
      fetch: Get what is missing from the original repositories, into --data or out/public.
      json: Also write the rows to this file.
    """
    studies = choose_studies(names)
    folder = data or (FETCHED if fetch or not DATA.is_dir() else DATA)
    if data and not data.is_dir() and not fetch:
        raise TableError(f"--data {data}: no such folder; with --fetch it is made and filled")
    rows: list[Row] = []
    skipped: dict[str, str] = {}
    console = Console(soft_wrap=True, highlight=False)
    for study in studies:
        missing = why_missing(study, folder, fetch)
        if missing and study.name in names:
            raise TableError(f"{study.name}: {missing}")
        if missing:
            skipped[study.name] = missing
            console.print(f"\n[bold]{study.name}[/] skipped: {missing}")
            continue
        found = study.run(folder / study.folder)
        print_study(console, study, found)
        rows += found
    counts = Counter(row.verdict for row in rows)
    console.print("\n" + ", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    if json:
        facts = {"data": str(folder), "rows": [asdict(row) for row in rows], "counts": dict(counts), "skipped": skipped}
        files.write_json(json, facts)
    return UNEXPLAINED_DIFFERENCE if counts[UNEXPLAINED] else 0


def choose_studies(names: tuple[str, ...]) -> list[Study]:
    """The studies of those names, all for none. Raises TableError on a name that no study has."""
    known = {study.name: study for study in STUDIES}
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise TableError(f"{name}: no such study; {hint}there are {', '.join(known)}")
    return [study for study in STUDIES if not names or study.name in names]


def why_missing(study: Study, folder: Path, fetch: bool) -> str:
    """Why the study cannot run on that folder, after fetching if asked; empty when it can."""
    if fetch and study.files:
        public.fetch(study, folder)
    if not study.folder or (folder / study.folder).is_dir():
        return ""
    advice = study.unfetched or "--fetch gets it, or give --data"
    return f"no {folder / study.folder}; {advice}"


def print_study(console: Console, study: Study, rows: list[Row]) -> None:
    """Prints one study's rows, its notes numbered below."""
    table = Table("", box=None, pad_edge=False)
    for heading in ("published", "ours", "difference"):
        table.add_column(heading, justify="right")
    table.add_column("verdict")
    notes = list(dict.fromkeys(row.note for row in rows if row.note))
    for row in rows:
        mark = f" ({notes.index(row.note) + 1})" if row.note else ""
        verdict = f"[{COLOURS.get(row.verdict, 'green')}]{row.verdict}[/]{mark}"
        numbers = f"{row.published:.6g}", f"{row.ours:.6g}", f"{row.difference:+.2g}"
        table.add_row(row.quantity, *numbers, verdict)
    console.print(f"\n[bold]{study.name}[/]  {study.source}")
    console.print(table)
    for number, note in enumerate(notes, 1):
        console.print(f"({number}) {note}")

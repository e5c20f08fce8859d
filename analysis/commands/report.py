"""`scaling report`: draws the figures and writes the page of a fitted sweep."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from analysis import files


def report(directory: Path, scans: Path | None = None, json: Path | None = None) -> Path:
    """Draw the figures of a fitted sweep and write one self-contained page, report.html.

    Args:
      directory: A folder that holds fit.json.
      scans: Learning-rate scans to show: a table, a sweep folder, or the JSON of `scaling rates --out`. Unless given,
        those of the table itself, or of the sweep beside it that its runs name.
      json: Also write the paths of the page and its figures, and the checklist, to this file.
    """
    from analysis.report import report as page

    with Console(stderr=True).status("reading") as status:
        path, figures, asked, failed = page.write_report(directory, scans, report_progress=status.update)
    for part, why in failed.items():
        Console(stderr=True, soft_wrap=True, highlight=False).print(
            f"[yellow]could not be made:[/] {part}: {escape(why)}"
        )
    console = Console(soft_wrap=True, highlight=False)
    counts = Counter(item.answer for item in asked)
    console.print(f"wrote {path} and {len(figures)} figures in {directory / 'figures'}")
    console.print(f"checklist: {', '.join(f'{counts[answer]} {answer}' for answer in ('yes', 'no', 'unknown'))}")
    for item in asked:
        if item.answer != "yes":
            console.print(f"  {item.answer}: {escape(item.requirement)}: {escape(item.evidence)}")
    if json:
        said = [asdict(item) for item in asked]
        made = {"report": str(path), "figures": [str(f) for f in figures], "checklist": said, "failed": failed}
        files.write_json(json, made)
    return path

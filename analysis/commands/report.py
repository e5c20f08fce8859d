"""`scaling report`: draws the figures of a fitted sweep and writes its page."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path

from analysis import files
from analysis.commands.printing import make_console
from analysis.terminal import labelled


def report(directory: Path, scans: Path | None = None, json: Path | None = None) -> Path:
    """Draw the figures of a fitted sweep and write one self-contained page, report.html.

    Args:
      directory: A folder that holds fit.json.
      scans: Learning-rate scans to show: a table, a sweep folder, or the JSON of `scaling rates --out`. Default: those
        in the table itself, else those of the sweep beside it that its runs name.
      json: Also write the paths of the page and its figures, and the checklist, to this file, as JSON. Default: no
        file.
    """
    from analysis.report import report as page

    with make_console(stderr=True).status("reading") as status:
        path, figures, checklist, failed = page.write_report(directory, scans, report_progress=status.update)
    for part, why in failed.items():
        make_console(stderr=True).print(labelled("could not be made:", "yellow", f"{part}: {why}"))
    console = make_console()
    counts = Counter(item.answer for item in checklist)
    console.print(f"wrote {path} and {len(figures)} figures in {directory / 'figures'}")
    console.print(f"checklist: {', '.join(f'{counts[answer]} {answer}' for answer in ('yes', 'no', 'unknown'))}")
    for item in checklist:
        if item.answer != "yes":
            console.print(f"  {item.answer}: {item.requirement}: {item.evidence}")
    if json:
        items = [asdict(item) for item in checklist]
        facts = {"report": str(path), "figures": [str(f) for f in figures], "checklist": items, "failed": failed}
        files.write_json(json, facts)
    return path

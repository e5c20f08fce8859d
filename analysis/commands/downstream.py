"""`scaling downstream`: which tasks of a table rise with compute, by which law, and how far that law can be trusted.

Beside downstream.py, as design_verb.py is beside design.py: that one computes, this one reads files and prints.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from analysis import files
from analysis.downstream import decisions, task_table
from analysis.downstream import study as task_study
from analysis.downstream.decisions import Decisions
from analysis.downstream.study import Study
from analysis.errors import TableError
from analysis.plots import downstream as downstream_plot
from analysis.plots import style
from analysis.tables import checkpoints, results
from analysis.tables import where as clauses


def downstream(
    table: Path,
    task: tuple[str, ...] = (),
    columns: str = "",
    where: str = "",
    params_column: str | None = None,
    holdout: str = "none",
    by: str | None = None,
    draws: int = 400,
    level: float = 0.9,
    seed: int = 0,
    out: Path | None = None,
    json: Path | None = None,
) -> dict[str, Any]:
    """Say which downstream tasks rise with compute, by which law of accuracy, with its interval and back-test error.

    One-step laws (accuracy from compute, or from parameters and tokens) are compared with two-step ones (first bits per
    byte of the right answer, or the loss) on runs above a half, a third and a fifth of the largest compute.

    Args:
      table: A sweep folder, or a CSV, Parquet or JSONL file, with columns <task>/accuracy and <task>/chance.
      task: Tasks to study; all that the table has enough runs of unless given.
      columns: Names in a table made elsewhere, as in params=N,tokens=D,loss=L.
      where: Rows to use, as in "corpus==c4".
      params_column: Which count of parameters to use: params_matmul (default for own tables), params_total, ...
      holdout: Runs that nothing here may see: largest, none, or a number of FLOPs, at or above which runs are held out.
      by: A column that names recipes: how often do small runs tell which of two does better at the largest scale?
      draws: Resamples of trunks.
      level: Nominal probability of the intervals.
      seed: Seed of the resamples.
      out: Also draw the figures into this folder.
      json: Also write the same facts to this file.
    """
    for name, right, good in (
        ("draws", "at least 20", draws >= 20),
        ("level", "between 0 and 1", 0 < level < 1),
    ):
        if not good:
            raise TableError(f"--{name} {locals()[name]}: must be {right}")
    rows = clauses.filter_rows(results.read_table(table, results.parse_columns(columns)), where)
    names = task or tuple(task_table.some_tasks(rows))
    options: dict[str, Any] = {
        "holdout": holdout,
        "params": params_column,
        "draws": draws,
        "level": level,
        "seed": seed,
    }
    options["checkpoints"] = checkpoints.load_evaluations_beside(table)
    shown = track(names, description="tasks", transient=True, console=Console(stderr=True))
    if task:
        found, left_out = [task_study.study(rows, name, **options) for name in shown], {}
    else:
        found, left_out = task_study.survey(rows, shown, **options)
    decided, undecided = _decided(rows, by, names, params_column, strict=bool(task)) if by else ([], {})
    _print(found)
    _print_left_out("not studied", left_out)
    _print_decisions(decided)
    _print_left_out("not decided", undecided)
    facts: dict[str, Any] = {"tasks": [study.facts() for study in found], "not_studied": left_out}
    if by:
        facts |= {"decisions": [entry.facts() for entry in decided], "not_decided": undecided}
    if out:
        facts["figures"] = [str(path) for path in _draw(found, decided, out)]
    if json:
        files.write_json(json, facts)
    return facts


def _decided(
    rows: pd.DataFrame, by: str, names: tuple[str, ...], params_column: str | None, *, strict: bool
) -> tuple[list[Decisions], dict[str, str]]:
    """(decisions of the loss and of each task that allows them, task -> why not); a task that does not is an error
    where strict."""
    of_loss = decisions.decision_accuracy(rows, by, params=params_column)
    found: list[Decisions] = []
    left_out: dict[str, str] = {}
    for name in names:
        try:
            found.append(decisions.decision_accuracy(rows, by, name, params=params_column))
        except TableError as error:
            if strict:
                raise
            left_out[name] = str(error)
    return [*found, of_loss], left_out


def _print(found: list[Study]) -> None:
    console = Console(soft_wrap=True, highlight=False)
    level = found[0].level
    heads = ("task", "verdict", "runs", "chance", "best", "signal/noise", "needed", "tau", "p", "law")
    table = Table(*heads, "error", "no change", f"at 10x compute ({level:.0%})", box=None, pad_edge=False)
    for study in found:
        t = study.trend
        counts = (str(len(study.points)), f"{study.chance:.3g}", f"{study.points['accuracy'].max():.3f}")
        ratio = f"{t.ratio:.1f}" if np.isfinite(t.ratio) else "unknown"
        tests = (ratio, f"{t.needed:.1f}", f"{t.tau:+.2f}", f"{t.p:.2g}")
        table.add_row(study.task, study.verdict, *counts, *tests, *_law_cells(study))
    console.width = max(console.width, console.measure(table, options=console.options.update(width=1000)).maximum)
    console.print(table)
    for study in found:
        _print_task(study, console)


def _print_left_out(what: str, why: dict[str, str]) -> None:
    console = Console(soft_wrap=True, highlight=False)
    for task, reason in why.items():
        console.print(f"[bold]{escape(task)}[/]: {what}; {escape(reason)}")


def _law_cells(study: Study) -> tuple[str, ...]:
    if study.trial is None:
        return ("none", "", "", "")
    far = study.curve().iloc[-1]
    errors = (f"{error:.3f}" if error == error else "-" for error in (study.trial.error, study.trial.naive))
    return (study.trial.best.name, *errors, f"{far['predicted']:.3f} ({far['low']:.3f} to {far['high']:.3f})")


def _print_task(study: Study, console: Console) -> None:
    """What the row of the table has no room for."""
    console.print(f"[bold]{escape(study.task)}[/]: {study.verdict}; {escape(study.trend.reason)}")
    if study.trial is None or study.model is None:
        return
    scored = sorted(zip(study.trial.scores, (road.name for road in study.trial.roads), strict=True))
    said = ", ".join(f"{name} {score:.3f}" for score, name in scored if score == score)
    cuts = ", ".join(f"{factor:g}x" for factor in study.trial.cuts)
    if said:
        console.print(f"  back-test (tops of {cuts} held out), mean error of accuracy: {said}")
    own = study.model.members[0]
    for step, rows in zip(own.road.steps, own.values, strict=True):
        numbers = ", ".join(f"{n} = {v:.4g}" for n, v in zip(step.law.parameters, rows[0], strict=True))
        console.print(f"  {step.response} by {escape(step.law.formula)}; {numbers}")
    for row in study.held_out.to_dict("records"):
        inside = "inside" if row["inside"] else "OUTSIDE"
        console.print(
            f"  held out {row['run_id']}: predicted {row['predicted']:.3f} ({row['low']:.3f} to {row['high']:.3f}), "
            f"measured {row['accuracy']:.3f}, {inside}"
        )
    for note in study.model.warnings:
        console.print(f"  [yellow]warning:[/] {escape(note)}")


def _print_decisions(decided: list[Decisions]) -> None:
    if not decided:
        return
    console = Console(soft_wrap=True, highlight=False)
    first = decided[0]
    console.print(
        f"decisions by {first.by} ({', '.join(first.recipes)}) at N = {first.target['params']:,.0f}, "
        f"D = {first.target['tokens']:,.0f}: share of pairs told rightly from smaller runs"
    )
    table = Table("", "pairs", "FLOPs", "by ranking", "by laws", box=None, pad_edge=False)
    for entry in decided:
        for place, row in enumerate(entry.levels.to_dict("records")):
            laws = "-" if row["laws"] != row["laws"] else f"{row['laws']:.0%}"
            named = (entry.name, str(entry.pairs)) if place == 0 else ("", "")
            ranking = "-" if row["ranking"] != row["ranking"] else f"{row['ranking']:.0%}"
            table.add_row(*named, f"{row['flops']:.2g}", ranking, laws)
    console.print(table)


def _draw(found: list[Study], decided: list[Decisions], out: Path) -> list[Path]:
    drawn = downstream_plot.figures(found, decided)
    return [style.save(figure, out / f"{name}.{kind}") for name, figure in drawn.items() for kind in ("svg", "png")]

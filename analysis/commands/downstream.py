"""`scaling downstream`: which downstream tasks rise with compute, by which law, and how far that law can be trusted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from analysis import api, files
from analysis.commands.printing import make_console, print_table, print_warnings
from analysis.downstream import decisions, task_table
from analysis.downstream import study as task_study
from analysis.downstream.decisions import Decisions
from analysis.downstream.study import Study
from analysis.errors import TableError
from analysis.plots import downstream as downstream_plot
from analysis.plots import style
from analysis.tables import checkpoints, results, run_status


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
    """Test which downstream tasks rise with compute, and fit a law of accuracy to those that do, with its interval and
    its back-test error.

    One-step laws (accuracy from compute, or from parameters and tokens) and two-step laws (first the bits per byte of
    the right answer, or the loss, then accuracy from that) are compared on the runs above a half, a third and a fifth
    of the largest compute.

    Args:
      table: A sweep folder, or a CSV, Parquet or JSONL file, with columns <task>/accuracy and <task>/chance.
      task: Tasks to study. Default: all that enough runs of the table have.
      columns: Names of columns in a table made elsewhere, as in params=N,tokens=D,loss=L. Default: as they are.
      where: Rows to use, as in "corpus==c4". Default: all rows.
      params_column: The count of parameters to use, such as params_matmul or params_total. Default: params if the table
        has it, else params_matmul.
      holdout: Runs that no fit may see: none, largest, or a number of FLOPs at or above which runs are held out.
      by: A column that names recipes: also count how often small runs rank two recipes as the largest runs do. Default:
        none.
      draws: Number of bootstrap resamples of trunks, at least 20.
      level: Nominal probability of the intervals, between 0 and 1.
      seed: Seed of the bootstrap.
      out: Also draw the figures into this folder. Default: no figures.
      json: Also write what is printed to this file, as JSON. Default: no file.
    """
    for flag, value, rule, is_valid in (
        ("--draws", draws, "at least 20", draws >= 20),
        ("--level", level, "between 0 and 1", 0 < level < 1),
    ):
        if not is_valid:
            raise TableError(f"{flag} {value}: must be {rule}")
    rows = api.load(table, columns=results.parse_columns(columns), where=where)
    if "loss" in rows:
        print_warnings(results.measured_rows(run_status.done_rows(rows), "loss")[1])
    names = task or tuple(task_table.require_task_names(rows))
    options: dict[str, Any] = {
        "holdout": holdout,
        "params": params_column,
        "draws": draws,
        "level": level,
        "seed": seed,
    }
    options["checkpoints"] = checkpoints.load_evaluations_beside(table)
    tracked_names = track(names, description="tasks", transient=True, console=make_console(stderr=True))
    if task:
        studies, not_studied = [task_study.study(rows, name, **options) for name in tracked_names], {}
    else:
        studies, not_studied = task_study.survey(rows, tracked_names, **options)
    decided, not_decided = _score_decisions(rows, by, names, params_column, strict=bool(task)) if by else ([], {})
    _print(studies)
    _print_left_out("not studied", not_studied)
    _print_decisions(decided)
    _print_left_out("not decided", not_decided)
    facts: dict[str, Any] = {"tasks": [study.facts() for study in studies], "not_studied": not_studied}
    if by:
        facts |= {"decisions": [entry.facts() for entry in decided], "not_decided": not_decided}
    if out:
        facts["figures"] = [str(path) for path in _draw(studies, decided, out)]
    if json:
        files.write_json(json, facts)
    return facts


def _score_decisions(
    rows: pd.DataFrame, by: str, names: tuple[str, ...], params_column: str | None, *, strict: bool
) -> tuple[list[Decisions], dict[str, str]]:
    """(decision accuracy of each task that allows it and of the loss, task -> why it does not). strict: raise
    TableError for a task that does not."""
    of_loss = decisions.decision_accuracy(rows, by, params=params_column)
    decided: list[Decisions] = []
    left_out: dict[str, str] = {}
    for name in names:
        try:
            decided.append(decisions.decision_accuracy(rows, by, name, params=params_column))
        except TableError as error:
            if strict:
                raise
            left_out[name] = str(error)
    return [*decided, of_loss], left_out


def _print(studies: list[Study]) -> None:
    console = make_console()
    level = studies[0].level
    heads = ("task", "verdict", "runs", "chance", "best", "signal/noise", "needed", "tau", "p", "law")
    table = Table(*heads, "error", "no change", f"at 10x compute ({level:.0%})", box=None, pad_edge=False)
    for study in studies:
        t = study.trend
        counts = (str(len(study.points)), f"{study.chance:.3g}", f"{study.points['accuracy'].max():.3f}")
        ratio = f"{t.ratio:.1f}" if np.isfinite(t.ratio) else "unknown"
        tests = (ratio, f"{t.ratio_needed:.1f}", f"{t.tau:+.2f}", f"{t.p:.2g}")
        table.add_row(study.task, study.verdict, *counts, *tests, *_law_cells(study))
    print_table(table, console)
    for study in studies:
        _print_task(study, console)


def _print_left_out(state: str, reasons: dict[str, str]) -> None:
    console = make_console()
    for task, reason in reasons.items():
        console.print(Text.assemble((task, "bold"), f": {state}; {reason}"))


def _law_cells(study: Study) -> tuple[str, ...]:
    """The last cells of a row: the law, its back-test error, that of no change, and the forecast at 10x compute."""
    if study.backtest is None:
        return ("none", "", "", "")
    far = study.curve().iloc[-1]
    errors = (f"{error:.3f}" if error == error else "-" for error in (study.backtest.error, study.backtest.persistence))
    return (study.backtest.best.name, *errors, f"{far['predicted']:.3f} ({far['low']:.3f} to {far['high']:.3f})")


def _print_task(study: Study, console: Console) -> None:
    """Prints below the table what its row has no room for: reasons, back-test, parameters, held-out runs, warnings."""
    console.print(Text.assemble((study.task, "bold"), f": {study.verdict}; {study.trend.reason}"))
    if study.backtest is None or study.accuracy_forecast is None:
        return
    scored = sorted(zip(study.backtest.scores, (model.name for model in study.backtest.models), strict=True))
    ranking = ", ".join(f"{name} {score:.3f}" for score, name in scored if score == score)
    cuts = ", ".join(f"{factor:g}x" for factor in study.backtest.cuts)
    if ranking:
        console.print(f"  back-test (tops of {cuts} held out), mean error of accuracy: {ranking}")
    best_fit = study.accuracy_forecast.members[0]
    for step, rows in zip(best_fit.model.steps, best_fit.values, strict=True):
        numbers = ", ".join(f"{n} = {v:.4g}" for n, v in zip(step.law.parameters, rows[0], strict=True))
        console.print(f"  {step.response} by {step.law.formula}; {numbers}")
    for row in study.held_out.to_dict("records"):
        inside = "inside" if row["inside"] else "OUTSIDE"
        console.print(
            f"  held out {row['run_id']}: predicted {row['predicted']:.3f} ({row['low']:.3f} to {row['high']:.3f}), "
            f"measured {row['accuracy']:.3f}, {inside}"
        )
    for note in study.accuracy_forecast.warnings:
        console.print(Text.assemble("  ", ("warning:", "yellow"), f" {note}"))


def _print_decisions(decided: list[Decisions]) -> None:
    """Prints how often smaller runs rank two recipes as the largest do, one line a level of compute."""
    if not decided:
        return
    console = make_console()
    first = decided[0]
    console.print(
        f"decisions by {first.by} ({', '.join(first.recipes)}) at N = {first.target['params']:,.0f}, "
        f"D = {first.target['tokens']:,.0f}: share of pairs told rightly from smaller runs"
    )
    table = Table("", "pairs", "FLOPs", "by ranking", "by laws", box=None, pad_edge=False)
    for entry in decided:
        for place, row in enumerate(entry.levels.to_dict("records")):
            laws = "-" if row["laws"] != row["laws"] else f"{row['laws']:.0%}"
            heading = (entry.name, str(entry.pairs)) if place == 0 else ("", "")
            ranking = "-" if row["ranking"] != row["ranking"] else f"{row['ranking']:.0%}"
            table.add_row(*heading, f"{row['flops']:.2g}", ranking, laws)
    print_table(table, console)


def _draw(studies: list[Study], decided: list[Decisions], out: Path) -> list[Path]:
    figures = downstream_plot.figures(studies, decided)
    return [style.save(figure, out / f"{name}.{kind}") for name, figure in figures.items() for kind in ("svg", "png")]

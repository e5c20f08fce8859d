"""What a folder holds about one law: its fit, its runs, what they logged, what they ran on. `scaling report` reads it.

Not in the design's list of modules: the page and its checklist say the same facts, gathered once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis import api
from analysis.errors import TableError
from analysis.fitting import learning_rate_law
from analysis.fitting.learning_rate_law import RateLaw
from analysis.forecasting import backtest as holdout
from analysis.forecasting import saved_fit
from analysis.forecasting.saved_fit import SavedFit
from analysis.plots import fit as fit_plot
from analysis.report.tolerate import Attempts
from analysis.tables import checkpoints, curve_collapse, flags, results, table_checks
from analysis.tables.curve_collapse import Collapse

if TYPE_CHECKING:
    from analysis.downstream.study import Study

MOST_READ = 500
"""Run folders whose environment and config are read; of more, as many in equal steps."""
DRAWS = 200


@dataclass(frozen=True)
class Evidence:
    """Everything that a page about a fit can show.

    table: every run behind the fit, failed ones too, of the rows and under the names of columns that the fit was asked
    for; the fit's own points where the table is gone.
    unchanged: whether the table still has the hash that the fit names; None where it is gone.
    curves, rates: None where there are none. backtest: rows of `holdout.forecasts`, perhaps none.
    studies: of the tasks that can have one; unstudied: task -> why not, of the others.
    environments, configs: run_id -> what its folder says, of at most MOST_READ runs. plan: plan.json, empty if none;
    plan_hash: its sha256. missing: section -> why it has nothing to show, in one sentence; failed: those of
    them that no TableError foresaw.
    """

    name: str
    fit: SavedFit
    table: pd.DataFrame
    unchanged: bool | None = None
    curves: Collapse | None = None
    backtest: pd.DataFrame = field(default_factory=pd.DataFrame)
    rates: RateLaw | None = None
    studies: tuple[Study, ...] = ()
    unstudied: Mapping[str, str] = field(default_factory=dict)
    environments: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    plan: Mapping[str, Any] = field(default_factory=dict)
    plan_hash: str = ""
    missing: Mapping[str, str] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def done(self) -> pd.DataFrame:
        """The rows of the table that are done."""
        return self.table[self.table["status"] == "done"] if "status" in self.table else self.table

    @cached_property
    def flagged(self) -> dict[str, str]:
        """run_id -> flags, of the rows that have any."""
        return table_checks.marked(self.table) if {"run_id", "flags"} <= set(self.table) else {}

    @property
    def off(self) -> list[str] | None:
        """The runs that the table flags as off the collapse; None for a table without flags."""
        if "flags" not in self.table:
            return None
        return [run for run, words in self.flagged.items() if "off_collapse" in words.split(", ")]

    @cached_property
    def points(self) -> pd.DataFrame:
        """Fitted and held-out points together, by training FLOPs."""
        return _points(self.fit)

    def told(self, *path: str) -> list[str]:
        """The distinct values of one entry of the runs' configs, as text, in order of their first run."""
        return _distinct(_at(config, path) for config in self.configs.values())

    def ran_on(self, *path: str) -> list[str]:
        """The same of their environments."""
        return _distinct(_at(environment, path) for environment in self.environments.values())


def gather(
    directory: Path, scans: Path | None = None, *, draws: int = DRAWS, say: Callable[[str], None] = lambda _: None
) -> Evidence:
    """Reads what a folder with a fit.json has.

    Args:
      scans: a table or JSON of learning-rate scans; else those of the table itself, or of the sweep beside this one
        that the runs name, are taken.
      draws: resamples of the back-test.
      say: is told what is being done.
    Raises:
      TableError: no fit, one of a law that has no figures, or scans that were named and cannot be read.
    """
    fit = saved_fit.load(directory / "fit.json")
    fit_plot.drawable(fit)
    path = directory / fit.document["table"]["path"]
    named = None if scans is None else _named_rates(scans, fit)
    attempts = Attempts()
    table, unchanged = attempts("table", lambda: _table(fit, path), (_points(fit), None))
    folder = path if path.is_dir() else path.parent

    def attempt(section: str, what: str, make: Callable[[], Any], otherwise: Any) -> Any:
        say(what)
        return attempts(section, make, otherwise)

    both = _points(fit)
    studies, unstudied = attempt("downstream", "downstream tasks", lambda: _studies(table, fit, path), ((), {}))
    runs = folder / "runs"
    configs, environments = (_said(runs, table, f"{name}.json") for name in ("config", "environment"))
    plan = folder / "plan.json"
    return Evidence(
        name=directory.resolve().name,
        fit=fit,
        table=table,
        unchanged=unchanged,
        curves=attempt("curves", "loss curves", lambda: _curves(runs, table, fit), None),
        backtest=attempt("backtest", "back-test", lambda: _backtest(both, draws, fit), pd.DataFrame()),
        rates=named or attempt("rates", "learning rates", lambda: _rates(directory, table, fit), None),
        studies=studies,
        unstudied=unstudied,
        environments=environments,
        configs=configs,
        plan=_json(plan),
        plan_hash=hashlib.sha256(plan.read_bytes()).hexdigest() if plan.is_file() else "",
        missing=attempts.missing,
        failed=attempts.failed,
    )


def _table(fit: SavedFit, path: Path) -> tuple[pd.DataFrame, bool | None]:
    origin = fit.document["table"]
    try:
        table = api.load(path, columns=origin.get("columns"), where=origin.get("where", ""))
        return table, results.content_hash(path) == origin["sha256"]
    except TableError:
        return _points(fit), None


def _points(fit: SavedFit) -> pd.DataFrame:
    return pd.concat([fit.points, fit.held_out], ignore_index=True)


def _curves(runs: Path, table: pd.DataFrame, fit: SavedFit) -> Collapse:
    """The curves of the runs beside one another, reduced by the fit's floor. Raises TableError where there are none, or
    too few that can be compared."""
    if not runs.is_dir() or not {"run_id", "tokens", "loss"} <= set(table):
        raise TableError("the folder of the table holds no runs with their logged steps")
    found = curve_collapse.compare(table, flags.read_curves(runs, table["run_id"]), fit.values.get("E"))
    if found.cells.empty:
        why = ", ".join(f"{count} {reason}" for reason, count in found.left_out.items())
        raise TableError(f"too few runs whose curves can be compared: {why or 'none is done'}")
    return found


def _backtest(points: pd.DataFrame, draws: int, fit: SavedFit) -> pd.DataFrame:
    found = holdout.forecasts(points, draws=draws, seed=fit.document["seed"])
    if found.empty:
        raise TableError("too few runs: no cut in compute leaves enough below it and any above it")
    return found


def _named_rates(given: Path, fit: SavedFit) -> RateLaw:
    if given.suffix == ".json":
        return learning_rate_law.read(given)
    return learning_rate_law.rate_law(learning_rate_law.scans(results.read(given), fit.document["params_column"]))


def _rates(directory: Path, table: pd.DataFrame, fit: SavedFit) -> RateLaw:
    column = fit.document["params_column"]
    if "learning_rate" not in table:
        raise TableError("the table has no column learning_rate")
    try:
        return learning_rate_law.rate_law(learning_rate_law.scans(table, column))
    except TableError as error:
        beside = directory.resolve().parent / _scanned(fit)
        if not _scanned(fit) or not beside.is_dir():
            raise TableError(f"{error}; name scans with --scans FILE") from None
        return learning_rate_law.rate_law(learning_rate_law.scans(results.read(beside), column))


def _scanned(fit: SavedFit) -> str:
    """The sweep that the runs name as that of their scans, as in "scan: stdlib_rates: ..."; "" where they name none."""
    for how in fit.document.get("learning_rates", {}):
        kind, _, rest = how.partition(": ")
        name = rest.partition(":")[0]
        if kind == "scan" and name.isidentifier():
            return name
    return ""


def _studies(table: pd.DataFrame, fit: SavedFit, path: Path) -> tuple[tuple[Study, ...], dict[str, str]]:
    """(studies, task -> why it has none), as `scaling downstream` finds them in the table at the path."""
    if not any(str(name).endswith("/chance") for name in table):
        raise TableError("the table has no task; `scaling eval` measures them")
    from analysis.downstream import study, task_table

    document = fit.document
    options = {"holdout": document["holdout"], "params": document["params_column"], "level": document["level"]}
    tasks = task_table.some_tasks(table)
    found, left_out = study.survey(table, tasks, checkpoints=checkpoints.beside(path), **options)
    return tuple(found), left_out


def _said(runs: Path, table: pd.DataFrame, file: str) -> dict[str, dict[str, Any]]:
    """run_id -> one file of its folder, of those that have it."""
    names = [str(name) for name in table["run_id"]] if "run_id" in table and runs.is_dir() else []
    some = np.unique(np.linspace(0, len(names) - 1, min(len(names), MOST_READ)).astype(int)) if names else []
    found = {names[at]: _json(runs / names[at] / file) for at in some}
    return {name: said for name, said in found.items() if said}


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _distinct(found: Iterable[Any]) -> list[str]:
    said = (", ".join(map(str, each)) if isinstance(each, list) else str(each) for each in found if each is not None)
    return list(dict.fromkeys(said))


def _at(entry: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        entry = entry.get(name) if isinstance(entry, Mapping) else None
    return entry

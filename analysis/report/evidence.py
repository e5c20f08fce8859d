"""Everything that a folder holds about one fit: the runs, their logs, configs and environments. `scaling report` shows
it on a page, and answers a checklist from it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis import api, files
from analysis.errors import TableError
from analysis.fitting import learning_rate_law
from analysis.fitting.learning_rate_law import RateLaw
from analysis.forecasting import backtest, saved_fit
from analysis.forecasting.saved_fit import SavedFit
from analysis.plots import fit as fit_plot
from analysis.report.tolerate import Tolerant
from analysis.tables import checkpoints, curve_collapse, flags, results, run_status, table_checks
from analysis.tables.curve_collapse import Collapse
from analysis.tables.run_files import CONFIG, ENVIRONMENT, PLAN, RUNS

if TYPE_CHECKING:
    from analysis.downstream.study import Study

MAX_RUN_FOLDERS = 500
"""Run folders whose environment and config are read; of more runs, as many are read, in equal steps of the table."""
BACKTEST_DRAWS = 200


@dataclass(frozen=True)
class Evidence:
    """Everything that a page about a fit can show.

    Attributes:
      name: of the folder.
      fit: the saved fit.
      table: every run behind the fit, failed ones too, with the `where` and the column names that the fit was made
        with; the fit's own points if the table no longer exists.
      table_unchanged: whether the table still has the hash that the fit records; None if the table no longer exists.
      collapse: the loss curves compared with one another; None without curves.
      backtest: rows of `analysis.forecasting.backtest.backtest_forecasts`, perhaps none.
      rate_law: the learning-rate scans and their law; None without scans.
      studies: of the downstream tasks that have enough runs.
      not_studied: task -> reason, for the other tasks.
      environments, configs: run_id -> environment.json and config.json of the run, for at most MAX_RUN_FOLDERS runs.
      plan, plan_hash: plan.json and its sha256; empty without one.
      missing: section -> the reason why it has nothing to show, in one sentence.
      failed: the part of `missing` that an unexpected exception caused, not a TableError.
    """

    name: str
    fit: SavedFit
    table: pd.DataFrame
    table_unchanged: bool | None = None
    collapse: Collapse | None = None
    backtest: pd.DataFrame = field(default_factory=pd.DataFrame)
    rate_law: RateLaw | None = None
    studies: tuple[Study, ...] = ()
    not_studied: Mapping[str, str] = field(default_factory=dict)
    environments: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    plan: Mapping[str, Any] = field(default_factory=dict)
    plan_hash: str = ""
    missing: Mapping[str, str] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def done_rows(self) -> pd.DataFrame:
        """The rows of the table whose status is done."""
        return run_status.done_rows(self.table)

    @cached_property
    def flags_by_run(self) -> dict[str, str]:
        """run_id -> flags, of the rows that have any."""
        return table_checks.flags_by_run(self.table) if {"run_id", "flags"} <= set(self.table) else {}

    @property
    def off_collapse(self) -> list[str] | None:
        """The ids of the runs that the table flags as off the collapse; None for a table without flags."""
        if "flags" not in self.table:
            return None
        return [run for run, names in self.flags_by_run.items() if "off_collapse" in names.split(", ")]

    @cached_property
    def all_points(self) -> pd.DataFrame:
        """Fitted and held-out points together, by training FLOPs."""
        return _all_points(self.fit)

    def config_values(self, *path: str) -> list[str]:
        """The distinct values of one field of the runs' configs, as text, in order of their first run."""
        return _distinct(_lookup(config, path) for config in self.configs.values())

    def environment_values(self, *path: str) -> list[str]:
        """The distinct values of one entry of the runs' environments, likewise."""
        return _distinct(_lookup(environment, path) for environment in self.environments.values())


def gather(
    directory: Path,
    scans: Path | None = None,
    *,
    draws: int = BACKTEST_DRAWS,
    report_progress: Callable[[str], None] = lambda _: None,
) -> Evidence:
    """Reads everything that a folder with a fit.json holds about the fit.

    Args:
      scans: a table or JSON of learning-rate scans. Default: those in the table itself, else those of the sweep beside
        this one that the runs name.
      draws: bootstrap resamples of the back-test.
      report_progress: called with the name of each step.
    Raises:
      TableError: no fit, a fit of a law that has no figures, or `scans` that cannot be read.
    """
    fit = saved_fit.read_fit(directory / "fit.json")
    fit_plot.available_figures(fit)
    path = directory / fit.document["table"]["path"]
    named_law = None if scans is None else _read_rate_law(scans, fit)
    tolerant = Tolerant()
    table, table_unchanged = tolerant("table", lambda: _table(fit, path), (_all_points(fit), None))
    folder = path if path.is_dir() else path.parent

    def attempt(section: str, step: str, make: Callable[[], Any], default: Any) -> Any:
        report_progress(step)
        return tolerant(section, make, default)

    all_points = _all_points(fit)
    studies, not_studied = attempt("downstream", "downstream tasks", lambda: _studies(table, fit, path), ((), {}))
    runs = folder / RUNS
    configs, environments = (_load_of_runs(runs, table, name) for name in (CONFIG, ENVIRONMENT))
    plan = folder / PLAN
    return Evidence(
        name=directory.resolve().name,
        fit=fit,
        table=table,
        table_unchanged=table_unchanged,
        collapse=attempt("curves", "loss curves", lambda: _collapse(runs, table, fit), None),
        backtest=attempt("backtest", "back-test", lambda: _backtest(all_points, draws, fit), pd.DataFrame()),
        rate_law=named_law or attempt("rates", "learning rates", lambda: _rate_law(directory, table, fit), None),
        studies=studies,
        not_studied=not_studied,
        environments=environments,
        configs=configs,
        plan=load_json(plan),
        plan_hash=hashlib.sha256(plan.read_bytes()).hexdigest() if plan.is_file() else "",
        missing=tolerant.missing,
        failed=tolerant.failed,
    )


def _table(fit: SavedFit, path: Path) -> tuple[pd.DataFrame, bool | None]:
    """(table behind the fit, whether it still has the hash that the fit records)."""
    origin = fit.document["table"]
    try:
        table, now = api.load_with_origin(path, columns=origin.get("columns"), where=origin.get("where", ""))
        return table, now["sha256"] == origin["sha256"]
    except TableError:
        return _all_points(fit), None


def _all_points(fit: SavedFit) -> pd.DataFrame:
    return pd.concat([fit.points, fit.held_out], ignore_index=True)


def _collapse(runs: Path, table: pd.DataFrame, fit: SavedFit) -> Collapse:
    """The loss curves of the runs, compared after subtracting the fit's irreducible loss. Raises TableError without
    curves, or with too few that can be compared."""
    if not runs.is_dir() or not {"run_id", "tokens", "loss"} <= set(table):
        raise TableError("the folder of the table holds no runs with their logged steps")
    collapse = curve_collapse.compare_curves(table, flags.read_curves(runs, table["run_id"]), fit.values.get("E"))
    if collapse.cells.empty:
        why = ", ".join(f"{count} {reason}" for reason, count in collapse.left_out.items())
        raise TableError(f"too few runs whose curves can be compared: {why or 'none is done'}")
    return collapse


def _backtest(points: pd.DataFrame, draws: int, fit: SavedFit) -> pd.DataFrame:
    forecasts = backtest.backtest_forecasts(points, draws=draws, seed=fit.document["seed"])
    if forecasts.empty:
        raise TableError("too few runs: no cut in compute leaves enough below it and any above it")
    return forecasts


def _read_rate_law(path: Path, fit: SavedFit) -> RateLaw:
    """The law of the JSON or of the table of scans that --scans names."""
    if path.suffix == ".json":
        return learning_rate_law.read_rate_law(path)
    return learning_rate_law.fit_rate_law(
        learning_rate_law.find_scans(results.read_table(path), fit.document["params_column"])
    )


def _rate_law(directory: Path, table: pd.DataFrame, fit: SavedFit) -> RateLaw:
    column = fit.document["params_column"]
    if "learning_rate" not in table:
        raise TableError("the table has no column learning_rate")
    try:
        return learning_rate_law.fit_rate_law(learning_rate_law.find_scans(table, column))
    except TableError as error:
        sweep = _sweep_of_scans(fit)
        folder = directory.resolve().parent / sweep
        if not sweep or not folder.is_dir():
            raise TableError(f"{error}; name scans with --scans FILE") from None
        return learning_rate_law.fit_rate_law(learning_rate_law.find_scans(results.read_table(folder), column))


def _sweep_of_scans(fit: SavedFit) -> str:
    """The sweep of the scans, as the runs name it in "scan: stdlib_rates: ..."; "" if they name none."""
    for how in fit.document.get("learning_rates", {}):
        kind, _, rest = how.partition(": ")
        name = rest.partition(":")[0]
        if kind == "scan" and name.isidentifier():
            return name
    return ""


def _studies(table: pd.DataFrame, fit: SavedFit, path: Path) -> tuple[tuple[Study, ...], dict[str, str]]:
    """(studies, task -> why it has none), as `scaling downstream` makes them of the table at the path."""
    if not any(str(name).endswith("/chance") for name in table):
        raise TableError("the table has no task; `scaling eval` measures them")
    from analysis.downstream import study, task_table

    document = fit.document
    options = {"holdout": document["holdout"], "params": document["params_column"], "level": document["level"]}
    tasks = task_table.require_task_names(table)
    studies, left_out = study.survey(table, tasks, checkpoints=checkpoints.load_evaluations_beside(path), **options)
    return tuple(studies), left_out


def _load_of_runs(runs: Path, table: pd.DataFrame, file: str) -> dict[str, dict[str, Any]]:
    """run_id -> the content of one file of its run folder, for the runs that have the file. Of more than
    MAX_RUN_FOLDERS runs, every k-th is read."""
    ids = [str(name) for name in table["run_id"]] if "run_id" in table and runs.is_dir() else []
    places = np.unique(np.linspace(0, len(ids) - 1, min(len(ids), MAX_RUN_FOLDERS)).astype(int)) if ids else []
    contents = {ids[place]: load_json(runs / ids[place] / file) for place in places}
    return {run_id: content for run_id, content in contents.items() if content}


def load_json(path: Path) -> dict[str, Any]:
    """The JSON object of a file; empty if the file is missing or, with a warning, damaged."""
    if not path.is_file():
        return {}
    try:
        return files.read_json(path, dict[str, Any], remedy="the report says nothing of it")
    except TableError as error:
        files.warn_once(str(error))
        return {}


def _distinct(values: Iterable[Any]) -> list[str]:
    texts = (", ".join(map(str, v)) if isinstance(v, list) else str(v) for v in values if v is not None)
    return list(dict.fromkeys(texts))


def _lookup(entry: Any, path: tuple[str, ...]) -> Any:
    """The value at a path of keys in nested mappings; None if a key is missing."""
    for name in path:
        entry = entry.get(name) if isinstance(entry, Mapping) else None
    return entry

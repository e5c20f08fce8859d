"""The run folder: the files that a run leaves, and how they are written and read. `analysis` reads nothing else.

    <sweep>/runs/<run_id>/
      config.json        the whole config and its schema version
      environment.json   run_id and hashed fields of the config, versions, devices, commit, attention kernel that ran,
                         of the last session
      metrics.jsonl      one line a logged step, appended by process 0; a torn last line is legal and ignored
      attempts.jsonl     one line as an attempt at the run begins and one as it ends (sweeps/running/attempt_log.py)
      checkpoints/       Orbax checkpoints, from which the run resumes
      branches/          Orbax checkpoints from which other runs branch (scaling/training/branching.py)
      evaluations.jsonl  one line an evaluation of a checkpoint (scaling/record/evaluations.py)
      result.json        written once, by rename: {"schema", "status", "reason", "row", "measurements"}, and
                         "traceback" where the run failed
      train.lock         locked by the process that trains; run.lock and lease.json: by the runner that claimed the
                         run (sweeps/running/claims.py)
      log.txt            what the training process printed

`row` holds columns of the results table (scaling/record/schema.py); `measurements` maps "<task>/<metric>" to
[value, n, stderr].
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, NotRequired, TypedDict

import numpy as np

from scaling.accounting import counts as accounting
from scaling.config.overrides import differing_fields
from scaling.config.run_config import RunConfig, from_dict, hashed_dict, load_config, to_dict
from scaling.errors import BusyError, InputError
from scaling.files import append_json_line, lock_file, read_json, read_json_lines, write_json
from scaling.record.environment import describe_environment
from scaling.record.schema import ResultRow, check_row

SCHEMA = 1
Status = Literal["done", "diverged", "failed"]


class Value(NamedTuple):
    """One measured number: what it is computed from n items (questions, tokens, documents; 0 for a known constant), and
    its standard error (nan where it is not known)."""

    value: float
    n: int
    stderr: float


JsonValue = tuple[float | None, int, float | None]
"""A Value in JSON: a list of three, with null for numbers that are not finite."""


class MetricsLine(TypedDict):
    """A line of metrics.jsonl. Numbers that are not finite are null; a line may have further ones."""

    step: int
    tokens: NotRequired[int]
    loss: NotRequired[float | None]
    grad_norm: NotRequired[float | None]
    learning_rate: NotRequired[float | None]
    validation_loss: NotRequired[float | None]
    tokens_per_second: NotRequired[float | None]


class Result(TypedDict):
    """The content of result.json."""

    schema: Literal[1]
    status: Status
    reason: str
    traceback: NotRequired[str]
    row: ResultRow
    measurements: dict[str, JsonValue]


# Names inside a run folder.
CONFIG, ENVIRONMENT, METRICS, RESULT = "config.json", "environment.json", "metrics.jsonl", "result.json"
CHECKPOINTS, BRANCHES, EVALUATIONS, ATTEMPTS = "checkpoints", "branches", "evaluations.jsonl", "attempts.jsonl"
TRAIN_LOCK, RUN_LOCK, LEASE, LOG_FILE = "train.lock", "run.lock", "lease.json", "log.txt"
# Names inside the folder of a sweep.
PLAN, RUNS = "plan.json", "runs"


def read_config(folder: Path) -> RunConfig:
    """The config in a run folder. Raises InputError where it is absent or torn, or was edited so that it is no longer
    that of the run that the folder holds."""
    config = load_config(folder / CONFIG)
    check_folder(folder, config)
    return config


def check_folder(folder: Path, config: RunConfig) -> None:
    """Raises InputError, with the fields that differ, when a run folder holds another run than that of `config`.

    The folder says which run it holds by its name where that is a run_id, by its environment.json, which each session
    writes, by its result.json and by its config.json.
    """
    name = folder.absolute().name
    environment = _read_object(folder / ENVIRONMENT, TrainedRun)
    run_ids = {
        "its name": name if re.fullmatch("[0-9a-f]{12}", name) else None,  # a user may give any other name
        ENVIRONMENT: environment.get("run_id"),
        RESULT: _read_object(folder / RESULT, ResultOfRun).get("row", {}).get("run_id"),
    }
    known_fields = {environment.get("run_id"): environment.get("config")}
    if (folder / CONFIG).exists() and not holds_config(folder, config):
        stored = load_config(folder / CONFIG)
        run_ids[CONFIG], known_fields[stored.run_id] = stored.run_id, hashed_dict(stored)
    for source, run_id in run_ids.items():
        if run_id is not None and run_id != config.run_id:
            fields = known_fields.get(run_id) or _planned_fields(folder, run_id)
            difference = f": {differing_fields(fields, hashed_dict(config))}" if fields else ""
            raise InputError(
                f"{folder}: holds run {run_id} by {source}, not {config.run_id}{difference}; give another folder, or "
                f"restore {CONFIG} where it was edited"
            )


class TrainedRun(TypedDict, total=False):
    """The entries of environment.json that say which run was trained; earlier versions did not write them.

    run_id: its id. config: the fields that it is a hash of, as `hashed_dict` gives them.
    """

    run_id: str
    config: dict[str, Any]


class ResultOfRun(TypedDict):
    """The part of result.json that says which run ended."""

    row: TrainedRun


def describe_run(config: RunConfig) -> TrainedRun:
    """What environment.json says of the run that was trained."""
    return {"run_id": config.run_id, "config": hashed_dict(config)}


def _planned_fields(folder: Path, run_id: str) -> dict[str, Any] | None:
    """The hashed fields of a run by the plan of the sweep that its folder belongs to, where there is one."""
    cells = _read_object(folder.absolute().parent.parent / PLAN).get("cells", ())
    with contextlib.suppress(InputError, KeyError, TypeError):
        return next((hashed_dict(from_dict(cell["config"])) for cell in cells if cell["run_id"] == run_id), None)
    return None


def _read_object(path: Path, expected: Any = Any) -> dict[str, Any]:
    """The object in a JSON file; an empty one where the file is absent or not as expected."""
    try:
        content = read_json(path, expected)
    except InputError:
        return {}
    return content if isinstance(content, dict) else {}


def holds_config(folder: Path, config: RunConfig) -> bool:
    """Whether a run folder's config.json is whole and says exactly `config`."""
    try:
        return read_json(folder / CONFIG) == to_dict(config)
    except InputError:
        return False


def write_config(folder: Path, config: RunConfig, *, durable: bool = True) -> None:
    """Writes config.json unless it says the same already, so that an attempt at a run writes it once at most: the
    runner before it starts a planned run, or else the training process. durable: as for `write_json`."""
    if not holds_config(folder, config):
        write_json(folder / CONFIG, to_dict(config), durable=durable)


@contextlib.contextmanager
def locked_run_folder(folder: Path, config: RunConfig, kernel: str, **about: Any) -> Iterator[None]:
    """Holds a run folder, new or old, so that no other process trains in it, and writes its config.json and
    environment.json.

    kernel: the attention kernel that runs. about: further fields of environment.json. Raises InputError when the folder
    holds another run, BusyError when another process trains in it.
    """
    check_folder(folder, config)
    folder.mkdir(parents=True, exist_ok=True)
    with lock_file(folder / TRAIN_LOCK, wait=False) as is_ours:
        if not is_ours:
            raise BusyError(f"{folder}: another process trains in it; wait for it, or give another folder")
        write_config(folder, config)
        write_json(folder / ENVIRONMENT, {**describe_run(config), **describe_environment(kernel), **about})
        yield


def append_metrics(folder: Path, line: dict[str, Any]) -> None:
    """Appends one line to metrics.jsonl. Numbers that are not finite become null."""
    append_json_line(folder / METRICS, {name: _finite(value) for name, value in line.items()})


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl in order of step. Lines of one step (after a resume) are joined; the last value
    counts. Lines that are damaged are left out, with a warning."""
    by_step: dict[int, dict[str, Any]] = {}
    for _, line in read_json_lines(folder / METRICS, MetricsLine):
        by_step[line["step"]] = by_step.get(line["step"], {}) | line
    return [by_step[step] for step in sorted(by_step)]


def result_row(config: RunConfig, *, tokens: int, unique_tokens: int | None) -> dict[str, Any]:
    """The columns of a result's row that follow from the config and the tokens trained on.

    unique_tokens: distinct tokens among them; None where that is not known.
    """
    model, T = config.model, config.data.sequence_length
    params = accounting.count_params(model)
    trunk_tokens = (config.steps - config.own_steps) * config.data.batch_tokens
    if unique_tokens is not None and config.data.unique_tokens is not None:
        unique_tokens = min(unique_tokens, config.data.unique_tokens // T * T)
    return {
        "run_id": config.run_id,
        "sweep": config.sweep,
        "params_total": params.total,
        "params_non_embedding": params.non_embedding,
        "params_matmul": params.matmul,
        "width": model.width,
        "depth": model.depth,
        "tokens": tokens,
        "unique_tokens": unique_tokens,
        "flops": accounting.train_flops(model, T, tokens, "exact_causal"),
        "flops_6nd": accounting.train_flops(model, T, tokens, "6nd"),
        "seed": config.seed,
        "learning_rate": config.optimizer.learning_rate,
        "batch_tokens": config.data.batch_tokens,
        "budget_tokens": config.steps * config.data.batch_tokens,
        "unique_limit": config.data.unique_tokens,
        "schedule": config.schedule.kind,
        "parametrization": model.parametrization,
        "optimizer": config.optimizer.kind,
        "weight_decay": config.optimizer.weight_decay,
        "branch_of": config.branch_of,
        "flops_spent": accounting.train_flops(model, T, max(tokens - trunk_tokens, 0), "exact_causal"),
        "recipe": config.recipe,
        "overrides": "; ".join(config.overrides),
        "learning_rate_from": config.learning_rate_from,
    }


def write_result(
    folder: Path,
    *,
    status: Status,
    row: dict[str, Any],
    measurements: dict[str, Value],
    reason: str = "",
    traceback: str = "",
    durable: bool = True,
) -> None:
    """Writes result.json by rename. Numbers that are not finite become null, since JSON has none.

    row: columns of scaling/record/schema.py; ValueError on any other. traceback: of a failed run. durable: as for
    `write_json`.
    """
    check_row(row)
    write_json(
        folder / RESULT,
        {
            "schema": SCHEMA,
            "status": status,
            "reason": reason,
            **({"traceback": traceback} if traceback else {}),
            "row": {name: _finite(value) for name, value in row.items()},
            "measurements": to_json(measurements),
        },
        durable=durable,
    )


def to_json(measurements: dict[str, Value]) -> dict[str, list[Any]]:
    """Measured values as JSON: [value, n, stderr], with null for numbers that are not finite."""
    return {name: [_finite(v), int(n), _finite(e)] for name, (v, n, e) in measurements.items()}


def _finite(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value


def read_result(folder: Path) -> Result | None:
    """The content of result.json; None when the run has not ended. Raises InputError when the file is damaged."""
    path = folder / RESULT
    remedy = "rename it and train the run again; `scaling sweep run` does both"
    return read_json(path, Result, remedy=remedy) if path.exists() else None

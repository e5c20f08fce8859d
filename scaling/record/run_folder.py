"""The run folder and the results schema: the one contract between training and analysis.

    <sweep>/runs/<run_id>/
      config.json        the whole config and its schema version
      environment.json   versions, devices, commit, attention kernel that ran, of the last session
      metrics.jsonl      one line a logged step, appended by host 0; a torn last line is legal and ignored
      attempts.jsonl     one line as an attempt at the run begins and one as it ends (sweeps/running/attempt_log.py)
      checkpoints/       Orbax, to go on from
      branches/          Orbax, states that other runs branch from (scaling/training/branching.py)
      evaluations.jsonl  one line an evaluation of a checkpoint (scaling/record/evaluations.py)
      result.json        written once, by rename: {"schema", "status", "reason", "row", "measurements"}; a failed
                         run's has its "traceback" too

`row` holds the columns of the results table below; `measurements` maps "<name>/<metric>" to [value, n, stderr].

Columns of the results table, one row per finished point:
    run_id, sweep, status      identity; status is done | diverged | failed
    flags, reason              what is wrong with the run, and why; written when a table is made
    (analysis/tables/flags.py)
    params_total               every trained number
    params_non_embedding       total less the input embedding (a tied head counts as embedding)
    params_matmul              numbers that a token is multiplied by: blocks and head, tied or not, no norms
    width, depth               model width; number of layers
    tokens, unique_tokens      target tokens trained on; how many of them were distinct (min of tokens and the corpus)
    flops                      exact training FLOPs, head and attention included, causal attention halved
    flops_6nd                  6 * params_matmul * tokens
    loss, loss_stderr          validation loss, nats per token, and its standard error (over sequences)
    bits_per_byte              the same loss in bits per byte of text
    seed, learning_rate, schedule       as in the config
    batch_tokens               tokens per optimizer step
    budget_tokens              tokens that the run was to train on, whole batches; `tokens` where it did not diverge
    unique_limit               data.unique_tokens: how many of the corpus it was to train on; null for all
    parametrization, optimizer, weight_decay        as in the config
    branch_of                  run_id of the trunk this run branched from; empty for a run of its own
    flops_spent                the part of `flops` that this run spent itself: a branch leaves out what its trunk did
    recipe, overrides          the rule that gave the config, and what was set beside it; empty when written by hand
    learning_rate_from         how the learning rate was found: a rule, or the scan that measured it
    seconds, tokens_per_second          wall time of the session that ended the run (not compile), and its rate
    <name>/<metric>, <name>/<metric>_stderr     one pair per measurement
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from scaling.accounting import counts as accounting
from scaling.config.run_config import RunConfig, load_config, to_dict
from scaling.errors import BusyError, InputError
from scaling.files import append_json_line, lock_file, read_json, read_json_lines, write_json
from scaling.record.environment import describe_environment

SCHEMA = 1
Status = Literal["done", "diverged", "failed"]


class Value(NamedTuple):
    """One measured number: what it is computed from n items (questions, tokens, documents; 0 for a known constant), and
    its standard error (nan where it is not known)."""

    value: float
    n: int
    stderr: float


# Names inside a run folder.
CONFIG, ENVIRONMENT, METRICS, RESULT = "config.json", "environment.json", "metrics.jsonl", "result.json"
CHECKPOINTS, BRANCHES, EVALUATIONS, ATTEMPTS = "checkpoints", "branches", "evaluations.jsonl", "attempts.jsonl"
TRAIN_LOCK, RUN_LOCK, LEASE, LOG_FILE = "train.lock", "run.lock", "lease.json", "log.txt"
# Names inside the folder of a sweep.
PLAN, RUNS = "plan.json", "runs"


def check_folder(folder: Path, config: RunConfig) -> None:
    """Raises InputError when a run folder holds another run."""
    path = folder / CONFIG
    if path.exists() and (held := load_config(path)).run_id != config.run_id:
        raise InputError(f"{folder}: holds run {held.run_id}, not {config.run_id}; give another folder")


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
    """The run folder, begun or gone on with, and nobody else's meanwhile.

    Writes config, and environment with what is said `about` it. Raises InputError when it holds another run, or another
    process trains in it.
    """
    check_folder(folder, config)
    folder.mkdir(parents=True, exist_ok=True)
    with lock_file(folder / TRAIN_LOCK, wait=False) as is_ours:
        if not is_ours:
            raise BusyError(f"{folder}: another process trains in it; wait for it, or give another folder")
        write_config(folder, config)
        write_json(folder / ENVIRONMENT, describe_environment(kernel) | about)
        yield


def append_metrics(folder: Path, line: dict[str, Any]) -> None:
    """Appends one line to the logged ones."""
    append_json_line(folder / METRICS, {name: _finite(value) for name, value in line.items()})


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The logged lines in order of step, torn lines ignored; of lines of one step (a resume) the last counts."""
    by_step: dict[int, dict[str, Any]] = {}
    for _, line in read_json_lines(folder / METRICS):
        by_step[line["step"]] = by_step.get(line["step"], {}) | line
    return [by_step[step] for step in sorted(by_step)]


def result_row(config: RunConfig, *, tokens: int, unique_tokens: int | None) -> dict[str, Any]:
    """The columns of a row that follow from the config and the tokens trained on; `unique_tokens` None if unknown."""
    model, T = config.model, config.data.sequence_length
    groups = accounting.count_params(model)
    shared = (config.steps - config.own_steps) * config.data.batch_tokens
    if unique_tokens is not None and config.data.unique_tokens is not None:
        unique_tokens = min(unique_tokens, config.data.unique_tokens // T * T)
    return {
        "run_id": config.run_id,
        "sweep": config.sweep,
        "params_total": groups.total,
        "params_non_embedding": groups.non_embedding,
        "params_matmul": groups.matmul,
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
        "flops_spent": accounting.train_flops(model, T, max(tokens - shared, 0), "exact_causal"),
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
    """Writes result.json by rename. Non-finite numbers become null: JSON has none. traceback: of a failed run. durable:
    as for `write_json`."""
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
    """Measurements as JSON has them; numbers that are not finite become null."""
    return {name: [_finite(v), int(n), _finite(e)] for name, (v, n, e) in measurements.items()}


def _finite(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value


def read_result(folder: Path) -> dict[str, Any] | None:
    """The result of a run folder; None when the run has not ended. Raises InputError when the file is torn."""
    path = folder / RESULT
    return read_json(path) if path.exists() else None

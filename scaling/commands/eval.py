"""The verb `scaling eval`: evaluates checkpoints of a run, or of every finished run of a sweep, on tasks."""

from __future__ import annotations

import contextlib
import math
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from scaling.accounting.counts import count_params
from scaling.config.fields import canonical_json
from scaling.config.run_config import RunConfig
from scaling.errors import InputError
from scaling.files import warn_once, write_json
from scaling.measurements import Measurement
from scaling.measurements.registry import CORPUS_TASKS, build_measurements, task_budget
from scaling.record.evaluations import Evaluation, append_evaluation, read_evaluations
from scaling.record.run_folder import CONFIG, EVALUATIONS, RUNS, Value, read_config, read_result, to_json
from scaling.terminal import labelled, make_console
from scaling.training import simulated_run
from scaling.training.checksums import DamagedCheckpointError
from scaling.training.restore import checkpoint_steps, restore_model

Evaluations = Sequence[tuple[Path, Evaluation]]
"""Evaluations, each with its run folder."""


@dataclass(frozen=True)
class Checkpoint:
    """A saved step of a run, and the measurements that it is evaluated by."""

    folder: Path
    config: RunConfig
    step: int
    measurements: tuple[Measurement, ...]


def evaluate(
    path: Path,
    tasks: str = "",
    step: str = "last",
    budget: int | None = None,
    seed: int = 0,
    include: Path | None = None,
    trust_task_code: bool = False,
    rerun: bool = False,
    json: Path | None = None,
) -> None:
    """Evaluate checkpoints of a run, or of every finished run of a sweep, on tasks.

    Each evaluation is a line of evaluations.jsonl in the run folder; `scaling sweep collect` takes those of the last
    step into the results table. An evaluation with the same budget and seed that is there already is not repeated, even
    if the task has changed since; --rerun repeats it.

    Args:
        path: a run folder or a sweep folder.
        tasks: names, joined by commas: cloze, closers (held-out text of the corpus), brackets, copy, recall, addition
            (generated); names of lm-evaluation-harness's tasks; seqio:TASK@MODULE. All built-in tasks when not given.
        step: last, all (of the checkpoints that are kept), or the number of a step.
        budget: largest number of questions of each task; a default of each task when not given.
        seed: seed of the questions.
        include: a folder of YAML tasks for lm-evaluation-harness.
        trust_task_code: let the files in that folder run any Python code: functions by !function, templates outside of
            the sandbox, metrics and data sets that are scripts. Give it only for files that you have read.
        rerun: repeat evaluations that are there already, for example after a task was edited.
        json: also write the evaluations to this file.
    """
    if budget is not None and budget < 1:
        raise InputError(f"--budget {budget}: must be 1 or more")
    console = make_console(soft_wrap=True, highlight=False)
    names = tuple(dict.fromkeys(name.strip() for name in tasks.split(",") if name.strip()))
    runs, notes = select_steps(find_runs(path), step)
    checkpoints: list[Checkpoint] = []
    for folder, config, steps in runs:
        measurements, skipped = build_measurements(names, config.data, include, budget, seed, trust_task_code)
        checkpoints += [Checkpoint(folder, config, saved_step, measurements) for saved_step in steps]
        notes += skipped
    for note in dict.fromkeys(notes):
        console.print(labelled("left out:", "yellow", note))
    for note in mixed_data_notes(checkpoints):
        console.print(labelled("note:", "yellow", note))
    evaluated, damaged = run_measurements(checkpoints, budget, seed, rerun)
    evaluations = [
        (checkpoint.folder, evaluation)
        for checkpoint in checkpoints
        for measurement in checkpoint.measurements
        if (evaluation := read_evaluations(checkpoint.folder).get((measurement.name, checkpoint.step)))
    ]
    if evaluations:
        table = task_table(evaluations) if len(checkpoints) == 1 else checkpoint_table(checkpoints, evaluations)
        console.print(table)
        earlier = len(evaluations) - evaluated
        hint = " (--rerun repeats those)" if earlier else ""
        console.print(f"{evaluated} evaluated now, {earlier} earlier{hint}; kept in {EVALUATIONS} of each run folder")
        if json:
            write_json(json, [evaluation_to_json(folder, evaluation) for folder, evaluation in evaluations])
    for error in damaged[1:]:
        console.print(labelled("left out:", "yellow", error))
    if damaged:
        raise damaged[0]


def find_runs(path: Path) -> list[tuple[Path, RunConfig]]:
    """The run of a run folder, or the finished runs of a sweep folder, those of one model shape side by side, so that
    each program is compiled once. Raises InputError when there are none, or when they are simulated."""
    if (path / CONFIG).exists():
        runs = [(path, read_config(path))]
    elif (path / RUNS).is_dir():
        folders = sorted(folder for folder in (path / RUNS).iterdir() if (folder / CONFIG).exists())
        runs = []
        for folder in folders:
            try:
                if (result := read_result(folder)) is not None and result["status"] == "done":
                    runs.append((folder, read_config(folder)))
            except InputError as error:
                warn_once(f"{folder.name} is left out: {error}")
        if not runs:
            raise InputError(
                f"{path}: none of its {len(folders)} runs is done: scaling sweep run {shlex.quote(path.name)}"
            )
    else:
        raise InputError(f"{path}: {'neither a run nor a sweep with runs/' if path.is_dir() else 'no such folder'}")
    for folder, config in runs:
        if simulated_run.is_simulated(config):
            raise InputError(f"{folder}: corpus {config.data.corpus!r} is simulated: there is no model to evaluate")
    return sorted(runs, key=lambda run: (canonical_json(asdict(run[1].model)), run[1].data.sequence_length))


def select_steps(
    runs: Sequence[tuple[Path, RunConfig]], step: str
) -> tuple[list[tuple[Path, RunConfig, list[int]]], list[str]]:
    """The runs that have a checkpoint of --step, with its steps; and why the others are left out. Raises InputError
    when none has one."""
    selected, reasons = [], []
    for folder, config in runs:
        try:
            selected.append((folder, config, select_steps_of_run(folder, step)))
        except InputError as error:
            reasons.append(str(error))
    if not selected:
        raise InputError(reasons[0])
    return selected, reasons


def select_steps_of_run(folder: Path, step: str) -> list[int]:
    """The saved steps of a run that --step names. Raises InputError when there are none."""
    saved = checkpoint_steps(folder)
    if step not in ("last", "all") and not step.isdecimal():
        raise InputError(f"--step {step}: must be last, all, or the number of a step")
    if not saved:
        raise InputError(f"{folder}: no checkpoint to evaluate: train the run, or give another")
    if step.isdecimal() and int(step) not in saved:
        raise InputError(f"{folder}: --step {step}: checkpoints are kept of {', '.join(map(str, saved))}")
    return saved if step == "all" else [saved[-1] if step == "last" else int(step)]


def mixed_data_notes(checkpoints: Sequence[Checkpoint]) -> list[str]:
    """A warning where checkpoints are evaluated on held-out text of different corpora, or cut differently."""
    used = {measurement.name for checkpoint in checkpoints for measurement in checkpoint.measurements}
    names = [name for name in CORPUS_TASKS if name in used]
    data = [
        checkpoint.config.data
        for checkpoint in checkpoints
        if any(measurement.name in names for measurement in checkpoint.measurements)
    ]
    kinds = {(part.corpus, part.vocabulary, part.fingerprint, part.sequence_length) for part in data}
    if len(kinds) < 2:
        return []
    return [
        f"{' and '.join(names)}: the runs are of {len(kinds)} kinds of corpus, vocabulary and sequence_length, whose "
        "questions may differ: compare runs of one kind only"
    ]


def run_measurements(
    checkpoints: Sequence[Checkpoint], budget: int | None, seed: int, rerun: bool
) -> tuple[int, list[DamagedCheckpointError]]:
    """Evaluates what is not evaluated yet, or everything with `rerun`, and appends each evaluation at once. Returns how
    many it made, and what is wrong with the checkpoints that are damaged and so were left out."""
    evaluated, damaged = 0, []
    with _progress(sum(len(checkpoint.measurements) for checkpoint in checkpoints)) as show:
        for checkpoint in checkpoints:
            folder, step = checkpoint.folder, checkpoint.step
            earlier, trained = read_evaluations(folder), None
            for measurement in checkpoint.measurements:
                show(f"{checkpoint.config.name or folder.name} {measurement.name}")
                before, questions = earlier.get((measurement.name, step)), task_budget(measurement.name, budget)
                if not rerun and before is not None and (before.budget, before.seed) == (questions, seed):
                    continue
                try:
                    trained = trained or restore_model(folder, step)
                except DamagedCheckpointError as error:
                    damaged.append(error)
                    break
                key = jax.random.key(seed)
                values = measurement.run(trained.model, trained.params, trained.tokenizer, key, questions)
                named = {f"{measurement.name}/{metric}": value for metric, value in values.items()}
                append_evaluation(folder, Evaluation(step, trained.tokens, measurement.name, questions, seed, named))
                evaluated += 1
    return evaluated, damaged


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[str], None]]:
    """A progress bar on a terminal, nothing elsewhere. Yields show(text), which is called as each evaluation begins."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=make_console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("", total=total)

        def show(text: str) -> None:
            progress.update(task, description=text, advance=int(progress.tasks[0].description != ""))

        yield show
        progress.update(task, completed=total)


def task_table(evaluations: Evaluations) -> Table:
    """The table of one checkpoint: a row for each task."""
    table = Table("task", "chance", "accuracy", "bits/byte", "choice nats", "n", "others", box=None, pad_edge=False)
    usual = ("accuracy", "bits_per_byte", "choice_nats", "chance", "ceiling", "centred")
    for _, evaluation in evaluations:
        by_metric = {name.partition("/")[2]: value for name, value in evaluation.measurements.items()}
        others = [f"{metric} {_with_stderr(value)}" for metric, value in by_metric.items() if metric not in usual]
        chance, *cells = (_with_stderr(by_metric.get(metric)) for metric in ("chance", *usual[:3]))
        n = max(n for _, n, _ in by_metric.values())
        table.add_row(evaluation.task, chance, *cells, str(n), ", ".join(others))
    return table


def checkpoint_table(checkpoints: Sequence[Checkpoint], evaluations: Evaluations) -> Table:
    """The table of several checkpoints, small models first: a row for each, with the accuracy of each task, or its
    first value where it has none. The last row has the largest standard error of each task."""
    by_checkpoint = {(folder, evaluation.step, evaluation.task): evaluation for folder, evaluation in evaluations}
    names = dict.fromkeys(evaluation.task for _, evaluation in evaluations)
    table = Table("run", "params", "tokens", *names, box=None, pad_edge=False, padding=(0, 1))
    by_task = {name: [evaluation for _, evaluation in evaluations if evaluation.task == name] for name in names}
    chances = (by_task[name][0].measurements.get(f"{name}/chance") for name in names)
    table.add_row("chance", "", "", *map(_format_value, chances))
    sized = [
        (
            count_params(checkpoint.config.model).matmul,
            checkpoint.step * checkpoint.config.data.batch_tokens,
            checkpoint,
        )
        for checkpoint in checkpoints
    ]
    for size, tokens, checkpoint in sorted(sized, key=lambda row: row[:2]):
        of_checkpoint = [by_checkpoint.get((checkpoint.folder, checkpoint.step, name)) for name in names]
        cells = [_format_value(_headline(evaluation)) if evaluation else "" for evaluation in of_checkpoint]
        table.add_row(checkpoint.folder.name, str(size), str(tokens), *cells)
    errors = [np.nanmax([0.0, *(_headline(evaluation)[2] for evaluation in by_task[name])]) for name in names]
    table.add_row("stderr", "", "", *(f"{error:.3f}" for error in errors))
    return table


def _headline(evaluation: Evaluation) -> Value:
    """The accuracy of a task, or its first value where it has none."""
    accuracy = evaluation.measurements.get(f"{evaluation.task}/accuracy")
    return accuracy or next(iter(evaluation.measurements.values()))


def _format_value(value: Value | None) -> str:
    return f"{value[0]:.3f}" if value and math.isfinite(value[0]) else ""


def _with_stderr(value: Value | None) -> str:
    has_stderr = value and value[1] and math.isfinite(value[2])
    return _format_value(value) + (f" +- {value[2]:.3f}" if value and has_stderr else "")


def evaluation_to_json(folder: Path, evaluation: Evaluation) -> dict[str, Any]:
    """An evaluation as --json writes it."""
    return {"run": folder.name, **asdict(evaluation), "measurements": to_json(evaluation.measurements)}

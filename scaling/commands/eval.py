"""`scaling eval`: asks tasks of the checkpoints of a run, or of every finished run of a sweep.

Not in the design's list of modules: it keeps the command line thin, as the other verbs' modules do.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from scaling.accounting.counts import count_params
from scaling.config.fields import canonical_json
from scaling.config.run_config import RunConfig, load_config
from scaling.errors import InputError
from scaling.files import write_json
from scaling.measurements import Measurement
from scaling.measurements.registry import CORPUS_TASKS, build_measurements, task_budget
from scaling.record import evaluations
from scaling.record.evaluations import Evaluation
from scaling.record.run_folder import CONFIG, EVALUATIONS, RUNS, Value, read_result, to_json
from scaling.training import simulated_run
from scaling.training.restore import checkpoint_steps, restore_model


@dataclass(frozen=True)
class Checkpoint:
    """A run folder and one of its saved steps. measurements: what it is to be asked."""

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
    rerun: bool = False,
    json: Path | None = None,
) -> None:
    """Measure what the checkpoints of a run, or of every finished run of a sweep, can do.

    Each finding is a line of evaluations.jsonl in the run folder; `scaling sweep collect` takes those of the last step
    into the results table. What is there already, with the same budget and seed, is not asked again, even if the task
    has changed since: --rerun asks it.

    Args:
        path: a run folder or a sweep folder.
        tasks: names, joined by commas: cloze, closers (held-out text of the corpus), brackets, copy, recall, addition
            (made up); names of lm-evaluation-harness's tasks; seqio:TASK@MODULE. The built-in ones unless given.
        step: last, all that are kept, or a number.
        budget: questions of each task; each has its own default.
        seed: of the questions.
        include: a folder of YAML tasks for lm-evaluation-harness.
        rerun: ask anew what is there already, as after a task was edited.
        json: also write the findings to this file.
    """
    for name, value, least in (("budget", budget, 1), ("seed", seed, 0)):
        if value is not None and value < least:
            raise InputError(f"--{name} {value}: must be {least} or more")
    console = Console(soft_wrap=True, highlight=False)
    names = tuple(dict.fromkeys(name.strip() for name in tasks.split(",") if name.strip()))
    kept, without = select_steps(find_runs(path), step)
    chosen = [
        (folder, config, at, *build_measurements(names, config.data, include, budget, seed))
        for folder, config, at in kept
    ]
    asked = [Checkpoint(folder, config, one, these) for folder, config, at, these, _ in chosen for one in at]
    for note in dict.fromkeys((*without, *(note for *_, notes in chosen for note in notes))):
        console.print(f"[yellow]left out:[/] {escape(note)}")
    for note in mixed_data_notes(asked):
        console.print(f"[yellow]note:[/] {escape(note)}")
    fresh = run_measurements(asked, budget, seed, rerun)
    found = [
        (one.folder, evaluations.read_evaluations(one.folder)[measure.name, one.step])
        for one in asked
        for measure in one.measurements
    ]
    console.print(one_run(found) if len(asked) == 1 else many_runs(asked, found))
    hint = " (--rerun asks those anew)" if len(found) > fresh else ""
    console.print(f"{fresh} asked now, {len(found) - fresh} before{hint}; kept in {EVALUATIONS} of each run folder")
    if json:
        write_json(json, [facts(folder, evaluation) for folder, evaluation in found])


def find_runs(path: Path) -> list[tuple[Path, RunConfig]]:
    """The run of a folder, or a sweep's finished runs, those of one shape together. Raises InputError when there are
    none, or they are simulated."""
    if (path / CONFIG).exists():
        found = [(path, load_config(path / CONFIG))]
    elif (path / RUNS).is_dir():
        folders = sorted(folder for folder in (path / RUNS).iterdir() if (folder / CONFIG).exists())
        done = [folder for folder in folders if (result := read_result(folder)) and result["status"] == "done"]
        if not done:
            raise InputError(f"{path}: none of its {len(folders)} runs is done: scaling sweep run {path.name}")
        found = [(folder, load_config(folder / CONFIG)) for folder in done]
    else:
        raise InputError(f"{path}: {'neither a run nor a sweep with runs/' if path.is_dir() else 'no such folder'}")
    for folder, config in found:
        if simulated_run.is_simulated(config):
            raise InputError(f"{folder}: corpus {config.data.corpus!r} is simulated: there is no model to ask")
    return sorted(found, key=lambda one: (canonical_json(asdict(one[1].model)), one[1].data.sequence_length))


def select_steps(
    found: Sequence[tuple[Path, RunConfig]], asked: str
) -> tuple[list[tuple[Path, RunConfig, list[int]]], list[str]]:
    """The runs that have the steps asked for, with those; and why the others are left out. Raises InputError when none
    has."""
    kept, reasons = [], []
    for folder, config in found:
        try:
            kept.append((folder, config, select_steps_of_run(folder, asked)))
        except InputError as error:
            reasons.append(str(error))
    if not kept:
        raise InputError(reasons[0])
    return kept, reasons


def mixed_data_notes(asked: Sequence[Checkpoint]) -> list[str]:
    """What to say where runs are asked of held-out text that is not the same, or is cut otherwise."""
    names = [
        name for name in CORPUS_TASKS if any(measure.name == name for one in asked for measure in one.measurements)
    ]
    data = [one.config.data for one in asked if any(measure.name in names for measure in one.measurements)]
    kinds = {(one.corpus, one.vocabulary, one.fingerprint, one.sequence_length) for one in data}
    if len(kinds) < 2:
        return []
    return [
        f"{' and '.join(names)}: the runs are of {len(kinds)} kinds of corpus, vocabulary and sequence_length, whose "
        "questions may differ: compare runs of one kind only"
    ]


def select_steps_of_run(folder: Path, asked: str) -> list[int]:
    """The kept steps that are asked for. Raises InputError when there are none."""
    kept = checkpoint_steps(folder)
    if asked not in ("last", "all") and not asked.isdecimal():
        raise InputError(f"--step {asked}: must be last, all, or a number of steps")
    if not kept:
        raise InputError(f"{folder}: no checkpoint to evaluate: train the run, or give another")
    if asked.isdecimal() and int(asked) not in kept:
        raise InputError(f"{folder}: --step {asked}: checkpoints are kept of {', '.join(map(str, kept))}")
    return kept if asked == "all" else [kept[-1] if asked == "last" else int(asked)]


def run_measurements(asked: Sequence[Checkpoint], budget: int | None, seed: int, rerun: bool) -> int:
    """Asks what is not known yet, or everything again, and keeps each answer at once. Returns how many there were."""
    fresh = 0
    with _progress(sum(len(one.measurements) for one in asked)) as step:
        for one in asked:
            known, model = evaluations.read_evaluations(one.folder), None
            for measure in one.measurements:
                step(f"{one.config.name or one.folder.name} {measure.name}")
                before, most = known.get((measure.name, one.step)), task_budget(measure.name, budget)
                if not rerun and before is not None and (before.budget, before.seed) == (most, seed):
                    continue
                model = model or restore_model(one.folder, one.step)
                found = measure.run(model.model, model.params, model.tokenizer, jax.random.key(seed), most)
                named = {f"{measure.name}/{metric}": value for metric, value in found.items()}
                evaluations.append_evaluation(
                    one.folder, Evaluation(one.step, model.tokens, measure.name, most, seed, named)
                )
                fresh += 1
    return fresh


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[str], None]]:
    """A progress bar on a terminal, nothing elsewhere. Yields show(what is asked now)."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("", total=total)

        def show(what: str) -> None:
            progress.update(task, description=what, advance=int(progress.tasks[0].description != ""))

        yield show
        progress.update(task, completed=total)


Found = Sequence[tuple[Path, Evaluation]]


def one_run(found: Found) -> Table:
    """A line a task."""
    table = Table("task", "chance", "accuracy", "bits/byte", "choice nats", "n", "others", box=None, pad_edge=False)
    usual = ("accuracy", "bits_per_byte", "choice_nats", "chance", "ceiling", "centred")
    for _, evaluation in found:
        of_task = {name.partition("/")[2]: entry for name, entry in evaluation.measurements.items()}
        others = [f"{metric} {_shown(entry)}" for metric, entry in of_task.items() if metric not in usual]
        chance, *cells = (_shown(of_task.get(metric)) for metric in ("chance", *usual[:3]))
        n = max(n for _, n, _ in of_task.values())
        table.add_row(escape(evaluation.task), chance, *cells, str(n), escape(", ".join(others)))
    return table


def many_runs(asked: Sequence[Checkpoint], found: Found) -> Table:
    """A line a checkpoint, small models first: the accuracy of each task, or its first number where it has none; the
    last line has the largest standard error of each."""
    by_place = {(folder, evaluation.step, evaluation.task): evaluation for folder, evaluation in found}
    names = dict.fromkeys(evaluation.task for _, evaluation in found)
    table = Table("run", "params", "tokens", *map(escape, names), box=None, pad_edge=False, padding=(0, 1))
    of_task = {name: [_headline(one) for _, one in found if one.task == name] for name in names}
    chances = (next(one for _, one in found if one.task == name).measurements.get(f"{name}/chance") for name in names)
    table.add_row("chance", "", "", *map(_value, chances))
    sized = [(count_params(one.config.model).matmul, one.step * one.config.data.batch_tokens, one) for one in asked]
    for size, tokens, one in sorted(sized, key=lambda row: row[:2]):
        of_run = [by_place.get((one.folder, one.step, name)) for name in names]
        cells = [_value(_headline(evaluation)) if evaluation else "" for evaluation in of_run]
        table.add_row(one.folder.name, str(size), str(tokens), *cells)
    errors = [np.nanmax([0.0, *(entry[2] for entry in entries)]) for entries in of_task.values()]
    table.add_row("stderr", "", "", *(f"{error:.3f}" for error in errors))
    return table


def _headline(evaluation: Evaluation) -> Value:
    accuracy = evaluation.measurements.get(f"{evaluation.task}/accuracy")
    return accuracy or next(iter(evaluation.measurements.values()))


def _value(entry: Value | None) -> str:
    return f"{entry[0]:.3f}" if entry and math.isfinite(entry[0]) else ""


def _shown(entry: Value | None) -> str:
    return _value(entry) + (f" +- {entry[2]:.3f}" if entry and entry[1] and math.isfinite(entry[2]) else "")


def facts(folder: Path, evaluation: Evaluation) -> dict[str, Any]:
    """What --json has of an evaluation."""
    return {"run": folder.name, **asdict(evaluation), "measurements": to_json(evaluation.measurements)}

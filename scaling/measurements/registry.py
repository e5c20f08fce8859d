"""The tasks of `scaling eval` by name, and the measurements built from them for runs on a given corpus."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax

from scaling.config.run_config import DataConfig
from scaling.data.shards import open_shards
from scaling.data.tokenizer import load_tokenizer
from scaling.errors import InputError, suggest_name
from scaling.measurements import Measurement
from scaling.measurements.addition import addition
from scaling.measurements.bracket_closing import closers
from scaling.measurements.brackets import brackets
from scaling.measurements.cloze import cloze
from scaling.measurements.copying import copy
from scaling.measurements.recall import recall


class BuiltinTask(NamedTuple):
    """build: makes the measurement. budget: default number of questions."""

    build: Callable[..., Measurement]
    budget: int


CORPUS_TASKS = {
    "cloze": BuiltinTask(cloze, 320),
    "closers": BuiltinTask(closers, 512),
}
"""Tasks on the validation text of the run's corpus: build(tokens, sequence_length)."""
SYNTHETIC_TASKS = {
    "brackets": BuiltinTask(brackets, 512),
    "copy": BuiltinTask(copy, 128),
    "recall": BuiltinTask(recall, 512),
    "addition": BuiltinTask(addition, 128),
}
"""Tasks on generated text: build(sequence_length)."""
OTHER_BUDGET = 1000
"""Default number of documents or examples of a task that is not built in."""


def build_measurements(
    names: tuple[str, ...],
    data: DataConfig,
    include: Path | None,
    budget: int | None,
    seed: int,
    trust_task_code: bool = False,
) -> tuple[tuple[Measurement, ...], tuple[str, ...]]:
    """Builds the tasks with these names, or all built-in ones when there is no name, for runs on one corpus.

    include: folder of YAML tasks for lm-evaluation-harness. budget: questions of each task; None for its default. seed:
    of the questions. trust_task_code: whether files in that folder may run Python code. Returns the measurements, and
    for each built-in task that the runs do not allow, why. Raises InputError on an unknown name (and suggests the
    nearest), or when the runs do not allow a named task.
    """
    location = (data.directory, data.corpus, data.vocabulary, data.fingerprint)
    results = [
        _build_measurement(name, location, data.sequence_length, include, budget, seed, trust_task_code)
        for name in names or (*CORPUS_TASKS, *SYNTHETIC_TASKS)
    ]
    reasons = tuple(result for result in results if isinstance(result, str))
    if names and reasons:
        raise InputError(reasons[0])

    return tuple(result for result in results if isinstance(result, Measurement)), reasons


@functools.cache
def _build_measurement(
    name: str,
    location: tuple[str, str, str, str],
    sequence_length: int,
    include: Path | None,
    budget: int | None,
    seed: int,
    trust_task_code: bool,
) -> Measurement | str:
    """The measurement, or why the runs do not allow it. Cached, so that runs on the same data share their questions."""
    if name in CORPUS_TASKS or name in SYNTHETIC_TASKS:
        tokens = open_shards(*location) if name in CORPUS_TASKS else None
        tokenizer = load_tokenizer(location[2])
        try:
            if tokens is None:
                measurement = SYNTHETIC_TASKS[name].build(sequence_length)
            else:
                measurement = CORPUS_TASKS[name].build(tokens, sequence_length)
            measurement.check(tokenizer, jax.random.key(seed), task_budget(name, budget))
        except InputError as error:
            return str(error)
        return measurement
    if name.startswith("seqio:"):
        from scaling.measurements import seqio_tasks

        return seqio_tasks.seqio_task(name, sequence_length)
    builtin_names = (*CORPUS_TASKS, *SYNTHETIC_TASKS)
    if importlib.util.find_spec("lm_eval") is None:
        hint = "other tasks need the package lm_eval: pip install 'scaling-laws[eval]'"
        raise InputError(f"unknown task {name!r}{suggest_name(name, builtin_names)}; {hint}")
    from scaling.measurements.lm_eval import tasks

    return tasks.lm_eval_tasks([name], include, sequence_length, builtin_names, trust_task_code)[0]


def task_budget(name: str, budget: int | None) -> int:
    """The given budget, or the default of the task."""
    if budget:
        return budget
    builtin = CORPUS_TASKS.get(name) or SYNTHETIC_TASKS.get(name)
    return builtin.budget if builtin else OTHER_BUDGET

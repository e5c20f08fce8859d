"""The tasks that `scaling eval` knows by name, ready to be asked of runs on a corpus.

Not in the design's list of modules: it keeps eval_verb.py what is done with them.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path

import jax

from scaling.config.run_config import DataConfig
from scaling.data.shards import TokenShards, open_shards
from scaling.data.tokenizer import load_tokenizer
from scaling.errors import InputError, suggest_name
from scaling.measurements import Measurement
from scaling.measurements.addition import addition
from scaling.measurements.bracket_closing import closers
from scaling.measurements.brackets import brackets
from scaling.measurements.cloze import cloze
from scaling.measurements.copying import copy
from scaling.measurements.recall import recall

CORPUS_TASKS: dict[str, Callable[[TokenShards, int], Measurement]] = {"cloze": cloze, "closers": closers}
"""Tasks on the held-out text of the run's corpus: (corpus, longest input in tokens) -> measure."""
SYNTHETIC_TASKS: dict[str, Callable[[int], Measurement]] = {
    "brackets": brackets,
    "copy": copy,
    "recall": recall,
    "addition": addition,
}
"""Tasks that are made up: longest input in tokens -> measure."""
DEFAULT_BUDGETS = {"cloze": 320, "closers": 512, "brackets": 512, "copy": 128, "recall": 512, "addition": 128}
"""Questions of each built-in task."""
OTHER_BUDGET = 1000
"""Documents or examples of any other."""


def build_measurements(
    names: tuple[str, ...], data: DataConfig, include: Path | None, budget: int | None, seed: int
) -> tuple[tuple[Measurement, ...], tuple[str, ...]]:
    """The tasks of these names, or the built-in ones, for runs on this corpus; and why it cannot ask some of those.

    Raises InputError on an unknown name, with the nearest, or one that was named and cannot be asked.
    """
    where = (data.directory, data.corpus, data.vocabulary, data.fingerprint)
    built = [
        _build_measurement(name, where, data.sequence_length, include, budget, seed)
        for name in names or (*CORPUS_TASKS, *SYNTHETIC_TASKS)
    ]
    reasons = tuple(one for one in built if isinstance(one, str))
    if names and reasons:
        raise InputError(reasons[0])
    return tuple(one for one in built if isinstance(one, Measurement)), reasons


@functools.cache
def _build_measurement(
    name: str, where: tuple[str, str, str, str], length: int, include: Path | None, budget: int | None, seed: int
) -> Measurement | str:
    """A task, or why it cannot be asked of such runs: once for all that are alike, so that its questions are made
    once."""
    if name in CORPUS_TASKS or name in SYNTHETIC_TASKS:
        tokens = open_shards(*where) if name in CORPUS_TASKS else None
        vocabulary, most = load_tokenizer(where[2]), task_budget(name, budget)
        try:
            found = SYNTHETIC_TASKS[name](length) if tokens is None else CORPUS_TASKS[name](tokens, length)
            found.check(vocabulary, jax.random.key(seed), most)
        except InputError as error:
            return str(error)
        return found
    if name.startswith("seqio:"):
        from scaling.measurements import seqio_tasks

        return seqio_tasks.seqio_task(name, length)
    known = (*CORPUS_TASKS, *SYNTHETIC_TASKS)
    if importlib.util.find_spec("lm_eval") is None:
        others = "other tasks need the package lm_eval: pip install 'scaling-laws[eval]'"
        raise InputError(f"unknown task {name!r}{suggest_name(name, known)}; {others}")
    from scaling.measurements.lm_eval import tasks

    return tasks.lm_eval_tasks([name], include, length, known)[0]


def task_budget(name: str, budget: int | None) -> int:
    """The budget of a task: as asked for, or its own."""
    return budget or DEFAULT_BUDGETS.get(name, OTHER_BUDGET)

"""seqio Tasks with metric functions, as measurements.

Not in the design's list of modules: the second road to public tasks. seqio, hence TensorFlow, is imported when a
measure first runs.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import logging
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from scaling.data.tokenizer import Tokenizer
from scaling.errors import InputError
from scaling.generation.sampling import GREEDY
from scaling.measurements import Measurement
from scaling.measurements.likelihood import ContextPair
from scaling.measurements.prompting import PromptedModel, completions, log_likelihoods
from scaling.model.decoder import Decoder
from scaling.record.run_folder import Value

KIND, INPUTS, TARGETS = "seqio:", "inputs", "targets"
RESAMPLES = 200
Metric = Callable[[Sequence[Any], Sequence[Any]], Mapping[str, Any]]


def seqio_task(name: str, length: int) -> Measurement:
    """The measure `seqio:TASK@MODULE`: the metric functions of a Task that a Python module registers, on the first
    `budget` examples of its validation split, or of its test split where it has no other. length: tokens of the longest
    input.

    The prompt is the feature `inputs`, if there is one, as the beginning of a document; predictions are greedy, as long
    as the longest target at most; scores are of the feature `targets`. Both in the model's own vocabulary. Standard
    errors are of a bootstrap over examples; chance is not known.
    Raises InputError when the name is not so made; the measure, when it first runs, when seqio is absent, the module or
    Task unknown, or the Task a Mixture, without metric functions, examples, or in another vocabulary.
    """
    task, _, module = name.removeprefix(KIND).partition("@")
    if not name.startswith(KIND) or not task or not module:
        raise InputError(f"unknown task {name!r}: must be seqio:TASK@MODULE, where the module registers the Task")
    return Measurement(name, math.nan, None, "examples", functools.partial(_run, name, task, module, length))


def _run(
    name: str,
    task_name: str,
    module: str,
    length: int,
    model: Decoder,
    params: Any,
    vocabulary: Tokenizer,
    key: jax.Array,
    budget: int,
) -> dict[str, Value]:
    asked, loud = PromptedModel(model, params, vocabulary, length, key), logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        task = _task(name, task_name, module, vocabulary)
        return to_values(name, task, _examples(name, task, budget), asked)
    finally:
        logging.disable(loud)


def _seqio_tasks() -> Any:
    """The module scaling.data.seqio_corpora. TensorFlow takes no GPU, and what it says of itself on standard error is
    dropped."""
    if "scaling.data.seqio_corpora" in sys.modules:
        return sys.modules["scaling.data.seqio_corpora"]
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        importlib.import_module("tensorflow").config.set_visible_devices([], "GPU")
        return importlib.import_module("scaling.data.seqio_corpora")
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _task(name: str, task_name: str, module: str, vocabulary: Tokenizer) -> Any:
    try:
        tasks = _seqio_tasks()
    except ImportError:
        raise InputError(f"task {name!r}: needs the package seqio: pip install 'scaling-laws[data]'") from None
    task = tasks.load_registered(f"task {name!r}", module, task_name)
    if not isinstance(task, tasks.seqio.Task):
        raise InputError(f"task {name!r}: is a Mixture; name its Tasks: {', '.join(one.name for one in task.tasks)}")
    if not task.predict_metric_fns and not task.score_metric_fns:
        raise InputError(f"task {name!r}: has no metric functions of (targets, predictions) or of (targets, scores)")
    if TARGETS not in task.output_features:
        raise InputError(f"task {name!r}: has no feature {TARGETS!r}; it has {', '.join(task.output_features)}")
    for feature in {INPUTS, TARGETS} & set(task.output_features):
        if not tasks.has_same_ids(
            theirs := task.output_features[feature].vocabulary, tasks.to_seqio_vocabulary(vocabulary)
        ):
            raise InputError(
                f"task {name!r}: feature {feature!r} is in {theirs!r}, the model's vocabulary is {vocabulary.name!r}"
            )
    return task


def _examples(name: str, task: Any, budget: int) -> list[dict[str, Any]]:
    split = next((split for split in ("validation", "test") if split in task.splits), None)
    if split is None:
        raise InputError(f"task {name!r}: has neither a validation nor a test split; it has {', '.join(task.splits)}")
    dataset = task.get_dataset(sequence_length=None, split=split, shuffle=False, seed=0, num_epochs=1)
    examples = list(itertools.islice(dataset.as_numpy_iterator(), budget))
    if not examples:
        raise InputError(f"task {name!r}: its {split} split has no examples")
    return examples


def to_values(name: str, task: Any, examples: Sequence[dict[str, Any]], asked: PromptedModel) -> dict[str, Value]:
    """The numbers that the metric functions of a seqio Task make of the model's answers to E examples."""
    eos_id = asked.tokenizer.eos_id
    prompts = [np.r_[eos_id, _without_end(example.get(INPUTS, ()), eos_id)] for example in examples]
    vocabulary, found = task.output_features[TARGETS].vocabulary, {}

    def processed(texts: Sequence[Any], is_target: bool) -> list[Any]:
        pairs = zip(texts, examples, strict=True)
        return [task.postprocess_fn(text, example=example, is_target=is_target) for text, example in pairs]

    written = [_written(example, vocabulary) for example in examples]
    targets = processed(written, is_target=True)
    if task.predict_metric_fns:
        most = max(len(example[TARGETS]) for example in examples)
        ids = completions(asked, prompts, most, GREEDY, asked.key)
        predictions = processed([vocabulary.decode(one.tolist()) for one in ids], is_target=False)
        for function in task.predict_metric_fns:
            found |= _bootstrapped(name, function, targets, predictions)
    if task.score_metric_fns:
        pairs = [ContextPair(prompt, example[TARGETS]) for prompt, example in zip(prompts, examples, strict=True)]
        scores, _ = log_likelihoods(asked, pairs)
        for function in task.score_metric_fns:
            found |= _bootstrapped(name, function, targets, scores)
    if not found:
        raise InputError(f"task {name!r}: its metric functions give no number")
    return found


def _without_end(ids: Any, eos_id: int) -> np.ndarray:
    ids = np.asarray(ids, np.int32)
    return ids[:-1] if len(ids) and ids[-1] == eos_id else ids


def _written(example: dict[str, Any], vocabulary: Any) -> str:
    """The target as seqio gives it to a postprocessor: as it was before it became ids, if the Task kept that."""
    text = example.get(f"{TARGETS}_pretokenized")
    if text is None:
        return vocabulary.decode(example[TARGETS].tolist())
    return text.decode("utf-8") if isinstance(text, bytes) else text


def _bootstrapped(name: str, function: Metric, targets: list[Any], found: list[Any] | np.ndarray) -> dict[str, Value]:
    """Numbers of a metric function, each with its standard deviation over resamples of the E examples."""
    E, rng = len(targets), np.random.default_rng(0)
    places_RE = [np.arange(E), *rng.integers(0, E, (RESAMPLES, E))]

    def at(row: np.ndarray) -> Any:
        return found[row] if isinstance(found, np.ndarray) else [found[e] for e in row]

    try:
        drawn = [_numbers(function([targets[e] for e in row], at(row))) for row in places_RE]
    except Exception as error:
        raise InputError(
            f"task {name!r}: metric function {getattr(function, '__name__', function)}: "
            f"{type(error).__name__}, {' '.join(str(error).split())}"
        ) from None
    values, resampled = drawn[0], drawn[1:]
    return {
        metric: Value(value, E, float(np.std([one[metric] for one in resampled if metric in one], ddof=1)))
        for metric, value in values.items()
    }


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Those of seqio's metric values that are numbers."""
    values = {metric: getattr(value, "value", value) for metric, value in metrics.items()}
    return {metric: float(value) for metric, value in values.items() if isinstance(value, int | float | np.number)}

"""Measurements from seqio Tasks that have metric functions, for `scaling eval --tasks seqio:TASK@MODULE`.

seqio, which imports TensorFlow, is imported when such a measurement first runs.
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

PREFIX, INPUTS, TARGETS = "seqio:", "inputs", "targets"
RESAMPLES = 200
"""Bootstrap resamples of the examples for standard errors."""
Metric = Callable[[Sequence[Any], Sequence[Any]], Mapping[str, Any]]


def seqio_task(name: str, sequence_length: int) -> Measurement:
    """The measurement `seqio:TASK@MODULE`: the metric functions of a Task that a Python module registers.

    It uses the first `budget` examples of the validation split, or of the test split where there is no other. The
    prompt is the feature `inputs`, if there is one, as the beginning of a document. Predictions are decoded greedily
    and have at most as many tokens as the longest target; scores are the log likelihoods of the feature `targets`. Both
    features must have the ids of the model's tokenizer. Standard errors are from a bootstrap over examples; chance is
    not known (nan). sequence_length: the model's longest input in tokens.

    Raises InputError on another form of name. The measurement's run raises InputError when seqio is absent, the module
    or Task is unknown, or the Task is a Mixture, has no metric functions, no examples or other ids.
    """
    task, _, module = name.removeprefix(PREFIX).partition("@")
    if not name.startswith(PREFIX) or not task or not module:
        raise InputError(f"unknown task {name!r}: must be seqio:TASK@MODULE, where the module registers the Task")
    return Measurement(name, math.nan, None, "examples", functools.partial(_run, name, task, module, sequence_length))


def _run(
    name: str,
    task_name: str,
    module: str,
    sequence_length: int,
    model: Decoder,
    params: Any,
    tokenizer: Tokenizer,
    key: jax.Array,
    budget: int,
) -> dict[str, Value]:
    """Runs the measurement with logging below errors silenced."""
    prompted = PromptedModel(model, params, tokenizer, sequence_length, key)
    disabled_level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        task = _load_task(name, task_name, module, tokenizer)
        return to_values(name, task, _read_examples(name, task, budget), prompted)
    finally:
        logging.disable(disabled_level)


def _import_seqio_corpora() -> Any:
    """The module scaling.data.seqio_corpora. TensorFlow gets no GPU, and its messages on standard error are dropped."""
    if "scaling.data.seqio_corpora" in sys.modules:
        return sys.modules["scaling.data.seqio_corpora"]
    # TensorFlow's C++ code writes to the descriptor 2 itself, so that replacing sys.stderr would not silence it.
    sys.stderr.flush()
    stderr_copy = os.dup(2)
    with open(os.devnull, "w") as devnull:
        os.dup2(devnull.fileno(), 2)
    try:
        importlib.import_module("tensorflow").config.set_visible_devices([], "GPU")
        return importlib.import_module("scaling.data.seqio_corpora")
    finally:
        os.dup2(stderr_copy, 2)
        os.close(stderr_copy)


def _load_task(name: str, task_name: str, module: str, tokenizer: Tokenizer) -> Any:
    """The seqio Task. Raises InputError when it cannot be measured with a model of this tokenizer."""
    try:
        seqio_corpora = _import_seqio_corpora()
    except ImportError:
        raise InputError(f"task {name!r}: needs the package seqio: pip install 'scaling-laws[data]'") from None
    task = seqio_corpora.load_registered(f"task {name!r}", module, task_name)
    if not isinstance(task, seqio_corpora.seqio.Task):
        names = ", ".join(member.name for member in task.tasks)
        raise InputError(f"task {name!r}: is a Mixture: must be a Task; name one of its Tasks: {names}")
    if not task.predict_metric_fns and not task.score_metric_fns:
        raise InputError(
            f"task {name!r}: has no metric functions: must have some of (targets, predictions) or (targets, scores)"
        )
    if TARGETS not in task.output_features:
        raise InputError(f"task {name!r}: has no feature {TARGETS!r}; it has {', '.join(task.output_features)}")
    for feature in {INPUTS, TARGETS} & set(task.output_features):
        vocabulary = task.output_features[feature].vocabulary
        if not seqio_corpora.has_same_ids(vocabulary, seqio_corpora.to_seqio_vocabulary(tokenizer)):
            raise InputError(
                f"task {name!r}: feature {feature!r} has the vocabulary {vocabulary!r}: must be that of the run, "
                f"{tokenizer.name!r}"
            )
    return task


def _read_examples(name: str, task: Any, budget: int) -> list[dict[str, Any]]:
    split = next((split for split in ("validation", "test") if split in task.splits), None)
    if split is None:
        raise InputError(f"task {name!r}: must have a validation or a test split; it has {', '.join(task.splits)}")
    dataset = task.get_dataset(sequence_length=None, split=split, shuffle=False, seed=0, num_epochs=1)
    examples = list(itertools.islice(dataset.as_numpy_iterator(), budget))
    if not examples:
        raise InputError(f"task {name!r}: its {split} split is empty: must have examples")
    return examples


def to_values(name: str, task: Any, examples: Sequence[dict[str, Any]], prompted: PromptedModel) -> dict[str, Value]:
    """The values of the metric functions of a seqio Task, on the model's predictions or scores for E examples."""
    eos_id = prompted.tokenizer.eos_id
    prompts = [np.r_[eos_id, _without_end(example.get(INPUTS, ()), eos_id)] for example in examples]
    vocabulary, values = task.output_features[TARGETS].vocabulary, {}

    def postprocess(texts: Sequence[Any], is_target: bool) -> list[Any]:
        pairs = zip(texts, examples, strict=True)
        return [task.postprocess_fn(text, example=example, is_target=is_target) for text, example in pairs]

    empty = [index for index, example in enumerate(examples) if len(example[TARGETS]) == 0]
    if empty and task.score_metric_fns:  # its log probability would be 0
        raise InputError(
            f"task {name!r}: example {empty[0]}, counted from 0: feature {TARGETS!r} is empty: must have ids"
        )
    targets = postprocess([_target_text(example, vocabulary) for example in examples], is_target=True)
    if task.predict_metric_fns:
        max_tokens = max(len(example[TARGETS]) for example in examples)
        ids_E = completions(prompted, prompts, max_tokens, GREEDY, prompted.key)
        predictions = postprocess([vocabulary.decode(ids.tolist()) for ids in ids_E], is_target=False)
        for function in task.predict_metric_fns:
            values |= _bootstrap(name, function, targets, predictions)
    if task.score_metric_fns:
        pairs = [ContextPair(prompt, example[TARGETS]) for prompt, example in zip(prompts, examples, strict=True)]
        scores, _ = log_likelihoods(prompted, pairs)
        for function in task.score_metric_fns:
            values |= _bootstrap(name, function, targets, scores)
    if not values:
        raise InputError(f"task {name!r}: its metric functions return no number: must return at least one")
    return values


def _without_end(ids: Any, eos_id: int) -> np.ndarray:
    """int32 ids without an end of document at their end."""
    ids = np.asarray(ids, np.int32)
    return ids[:-1] if len(ids) and ids[-1] == eos_id else ids


def _target_text(example: dict[str, Any], vocabulary: Any) -> str:
    """The target as seqio gives it to a postprocessor: the text before tokenization if the Task keeps it, else decoded
    from the ids."""
    text = example.get(f"{TARGETS}_pretokenized")
    if text is None:
        return vocabulary.decode(example[TARGETS].tolist())
    return text.decode("utf-8") if isinstance(text, bytes) else text


def _bootstrap(
    name: str, function: Metric, targets: list[Any], predictions: list[Any] | np.ndarray
) -> dict[str, Value]:
    """The numbers of a metric function, each with its standard deviation over resamples of the E examples."""
    E, rng = len(targets), np.random.default_rng(0)
    samples_RE = [np.arange(E), *rng.integers(0, E, (RESAMPLES, E))]  # all examples first, then the resamples

    def select(sample_E: np.ndarray) -> Any:
        return predictions[sample_E] if isinstance(predictions, np.ndarray) else [predictions[e] for e in sample_E]

    try:
        metrics = [_numbers(function([targets[e] for e in sample_E], select(sample_E))) for sample_E in samples_RE]
    except Exception as error:
        raise InputError(
            f"task {name!r}: metric function {getattr(function, '__name__', function)}: "
            f"{type(error).__name__}, {' '.join(str(error).split())}"
        ) from None
    values, resampled = metrics[0], metrics[1:]
    return {
        metric: Value(value, E, float(np.std([sample[metric] for sample in resampled if metric in sample], ddof=1)))
        for metric, value in values.items()
    }


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The metric values that are numbers, as floats; seqio wraps some of them in objects with a `value`."""
    values = {metric: getattr(value, "value", value) for metric, value in metrics.items()}
    return {metric: float(value) for metric, value in values.items() if isinstance(value, int | float | np.number)}

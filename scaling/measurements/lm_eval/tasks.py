"""Measurements from lm-evaluation-harness: its public tasks, and local tasks in YAML files.

Importing lm_eval takes seconds, so it is imported when such a task is first used. While it runs, its output is hidden,
the random generators have the seeds that it sets itself, tasks whose files are local do not use the network, and the
limits of task_files.py hold.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import io
import logging
import math
import os
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from scaling.data.tokenizer import Tokenizer
from scaling.errors import InputError, suggest_name
from scaling.measurements import Measurement, multiple_choice
from scaling.measurements.lm_eval import builtin_tasks
from scaling.model.decoder import Decoder
from scaling.record.run_folder import Value

BUILTIN_FOLDER = Path(builtin_tasks.__file__).parent
OFFLINE = ("HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
"""Environment variables that Hugging Face's packages read. Without any of them, the data of public tasks are downloaded
and cached, and local tasks run offline; with one of them, it decides for all tasks."""
RESAMPLES = 1000
"""Resamples of lm-eval's bootstrap, which it uses for the few metrics that are not means."""


@dataclass(frozen=True)
class ScoredQuestion:
    """nats: minus the log probability of each choice. answer: index of the right one. sizes: bytes of each choice."""

    nats: Sequence[float]
    answer: int
    sizes: Sequence[int]


def lm_eval_tasks(
    names: Sequence[str],
    include: Path | None,
    sequence_length: int,
    builtin_names: Sequence[str] = (),
    trust_code: bool = False,
) -> list[Measurement]:
    """Measurements from tasks, tags and groups of lm-evaluation-harness: those of this package, those of the YAML files
    in the folder `include`, and lm-eval's own.

    sequence_length: the model's longest input in tokens. builtin_names: further names to suggest for an unknown one.
    trust_code: whether the files in `include` may run Python code (task_files.py).
    The budget is a number of documents of each task, sampled with the key. Chance differs between questions; the metric
    `chance` gives its mean. Data are read when a measurement first runs, which raises InputError when they are not
    available. Raises InputError when lm_eval is absent, a name is unknown, or `include` is no folder.
    """
    if include is not None and not include.is_dir():
        raise InputError(f"include = {str(include)!r}: no such folder: must be a folder of YAML tasks")
    # lm-eval reads each file again from within the folder of its task, where a relative path would lead elsewhere.
    folders = [BUILTIN_FOLDER, *([include.resolve()] if include else [])]
    with _lm_eval_settings(offline=True, trust_code=trust_code):
        manager = _load_task_manager(names, folders, builtin_names)
    return [
        Measurement(
            name,
            math.nan,
            None,
            "documents",
            functools.partial(
                _run,
                functools.cache(_load_tasks),
                manager,
                name,
                _is_local(manager, name, folders),
                trust_code,
                sequence_length,
            ),
        )
        for name in names
    ]


def _is_local(manager: Any, name: str, folders: Sequence[Path]) -> bool:
    """Whether the task's YAML file lies in one of the folders."""
    path = manager.task_index[name].yaml_path
    return path is not None and any(Path(path).resolve().is_relative_to(folder) for folder in folders)


def _load_task_manager(names: Sequence[str], folders: list[Path], builtin_names: Sequence[str]) -> Any:
    """lm-eval's index of tasks. Reading the index of its own tasks takes seconds, and is done only when a name is not
    local. Raises InputError on an unknown name."""
    TaskManager = importlib.import_module("lm_eval.tasks").TaskManager
    local_manager = TaskManager(include_path=folders, include_defaults=False)
    if not (public_names := [name for name in names if name not in local_manager.task_index]):
        return local_manager
    for name in public_names:
        _check_yaml_files(name, folders)
    manager = _load_full_manager(tuple(folders))
    suggestions = [*builtin_names, *local_manager.all_tasks]
    for name in public_names:
        if name not in manager.task_index:
            close = difflib.get_close_matches(name, suggestions, n=1)
            close = close or difflib.get_close_matches(name, manager.all_tasks)
            raise InputError(f"unknown task {name!r}{suggest_name(name, close or suggestions)}")
    return manager


def _check_yaml_files(name: str, folders: list[Path]) -> None:
    """Raises InputError on a YAML file that mentions the task and cannot be read, or has the name of the task and
    defines none; lm-eval would silently skip it."""
    load_yaml = importlib.import_module("lm_eval.tasks._yaml_loader").load_yaml
    one_line = importlib.import_module("scaling.measurements.lm_eval.task_files").one_line
    for path in (path for folder in folders for path in sorted(folder.rglob("*.yaml"))):
        try:
            if name != path.stem and name not in path.read_text(errors="replace"):
                continue
            config = load_yaml(path, resolve_func=False)
        except Exception as error:
            raise InputError(f"task {name!r}: {path} cannot be read ({one_line(error)}); mend the file") from None
        if name == path.stem and not {"task", "group", "class"} & set(config):
            raise InputError(f"task {name!r}: {path}: has no key task: add task: {name}")


@functools.cache
def _load_full_manager(folders: tuple[Path, ...]) -> Any:
    return importlib.import_module("lm_eval.tasks").TaskManager(include_path=list(folders), include_defaults=True)


def _load_tasks(manager: Any, name: str, is_local: bool, trust_code: bool) -> dict[str, Any]:
    """The tasks with this name and their data. Raises InputError when a file or its data cannot be used, or the task is
    of a kind that is not supported."""
    task_files = importlib.import_module("scaling.measurements.lm_eval.task_files")
    offline = importlib.import_module("datasets.config").HF_HUB_OFFLINE
    hint = f"; unset {OFFLINE[0]} and the like to download it" if offline and not is_local else ""
    manager._factory = task_files.TaskFileFactory(trust_code, f"{hint}; earlier measurements are kept")
    with task_files.name_errors(f"task {name!r}"):
        loaded = manager.load([name])
    for task in loaded["tasks"].values():
        for flag, reason in (("UNSAFE_CODE", "runs code that the model writes"), ("MULTIMODAL", "needs images")):
            if getattr(task, flag, False):
                raise InputError(f"task {name!r}: {reason}, which is not supported; leave it out of --tasks")
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=1234)
    return loaded


@contextlib.contextmanager
def _lm_eval_settings(offline: bool, trust_code: bool) -> Iterator[None]:
    """The state of the process while lm-eval runs: no output, no worker processes, the seeds that it sets itself, and
    templates in a sandbox unless `trust_code`.

    offline: whether Hugging Face's packages stay off the network, unless a variable of OFFLINE is set. Everything is
    restored at the end. Raises InputError when lm_eval is absent."""
    with contextlib.ExitStack() as after:
        after.callback(logging.disable, logging.root.manager.disable)
        logging.disable(logging.ERROR)
        after.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        after.enter_context(contextlib.redirect_stdout(io.StringIO()))
        try:
            importlib.import_module("lm_eval.evaluator")
        except ImportError:
            raise InputError(
                "tasks of lm-evaluation-harness need the package lm_eval: pip install 'scaling-laws[eval]'"
            ) from None
        task_files = importlib.import_module("scaling.measurements.lm_eval.task_files")
        after.enter_context(task_files.safe_rendering(trust_code))
        for module in ("datasets.config", "huggingface_hub.constants"):
            if not offline or set(OFFLINE) & set(os.environ):
                break
            settings: Any = importlib.import_module(module)
            after.callback(setattr, settings, "HF_HUB_OFFLINE", settings.HF_HUB_OFFLINE)
            settings.HF_HUB_OFFLINE = True
        tqdm: Any = importlib.import_module("tqdm").tqdm
        after.callback(setattr, tqdm, "__init__", tqdm.__init__)
        tqdm.__init__ = functools.partialmethod(tqdm.__init__, disable=True)
        after.callback(random.setstate, random.getstate())
        after.callback(np.random.set_state, np.random.get_state())  # noqa: NPY002
        random.seed(0)
        np.random.seed(1234)  # noqa: NPY002
        if "DISABLE_MULTIPROC" not in os.environ:
            after.callback(os.environ.pop, "DISABLE_MULTIPROC")
            os.environ["DISABLE_MULTIPROC"] = "1"
        yield


def _run(
    load_tasks: Callable[[Any, str, bool, bool], dict[str, Any]],
    manager: Any,
    name: str,
    is_local: bool,
    trust_code: bool,
    sequence_length: int,
    model: Decoder,
    params: Any,
    tokenizer: Tokenizer,
    key: jax.Array,
    budget: int,
) -> dict[str, Value]:
    """Evaluates the tasks with this name on at most `budget` documents of each."""
    with _lm_eval_settings(offline=is_local, trust_code=trust_code):
        from lm_eval.evaluator import evaluate

        from scaling.measurements.lm_eval.model import LmEvalModel, is_raised_by_model
        from scaling.measurements.lm_eval.task_files import check_documents, name_errors, task_file
        from scaling.measurements.prompting import PromptedModel

        loaded = load_tasks(manager, name, is_local, trust_code)
        files = sorted({task_file(task) for task in loaded["tasks"].values()})
        where = f"task {name!r}: {files[0] if len(files) == 1 else f'one of {len(files)} task files'}"
        generator = np.random.default_rng(np.asarray(jax.random.key_data(key)))
        with name_errors(where, is_raised_by_model):
            documents = {task_name: task.eval_docs for task_name, task in loaded["tasks"].items()}
            samples = {
                task_name: sorted(generator.choice(len(docs), min(len(docs), budget), replace=False).tolist())
                for task_name, docs in documents.items()
            }
            for task_name, numbers in samples.items():
                check_documents(loaded["tasks"][task_name], documents[task_name], numbers)
            takes_all = budget >= max(map(len, documents.values()))
            results = evaluate(
                LmEvalModel(PromptedModel(model, params, tokenizer, sequence_length, key)),
                loaded,
                samples=None if takes_all else samples,
                bootstrap_iters=RESAMPLES,
            )
            return to_values(name, loaded["tasks"], results)


def to_values(name: str, tasks: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, Value]:
    """Converts lm-eval's results to Values.

    Metrics have lm-eval's names; one computed on answers that a filter changed is called `exact_match:strict-match`,
    after the filter. Multiple choice also gets the metrics of the built-in tasks, in which lm-eval's `acc` becomes
    `accuracy`. For free answers, the first `exact_match` or `acc` is also reported as an accuracy with chance 0.

    tasks: the one task with this name, or, for a group or tag, all of its tasks. The results of those are the group's
    own metrics and the metrics of all questions together; without either, each task's metrics as `TASK:metric`.
    """
    values = {}
    if name in results["results"]:
        values = _task_metrics(results["results"][name], tasks.get(name), results["samples"].get(name, []))
    questions = [
        question
        for task_name, task in tasks.items()
        for question in _scored_questions(task, results["samples"][task_name])
    ]
    if questions:
        values = {metric: value for metric, value in values.items() if metric != "acc"}
        values |= _choice_statistics(questions)
    elif all(task.OUTPUT_TYPE in ("generate_until", "loglikelihood") for task in tasks.values()):
        values |= _accuracy_of_free_answers(values)
    for task_name, task in {} if values else tasks.items():
        task_values = _task_metrics(results["results"][task_name], task, results["samples"][task_name])
        values |= {f"{task_name}:{metric}": value for metric, value in task_values.items()}
    if not values:
        raise InputError(f"task {name!r}: lm-eval computed no number: must have a metric; leave it out of --tasks")
    return values


def _task_metrics(result: Mapping[str, Any], task: Any, samples: Sequence[Mapping[str, Any]]) -> dict[str, Value]:
    """The numbers of one task or group. Where lm-eval gives no standard error, it is computed here by the delta method
    for a ratio of sums over documents, and is nan for anything else."""
    values = {}
    for label, value in result.items():  # labels are "metric,filter" and "metric_stderr,filter"
        metric, comma, filter_name = label.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float | np.number):
            continue
        stderr = result.get(f"{metric}_stderr,{filter_name}")
        if not isinstance(stderr, int | float | np.number):
            items = [sample[metric] for sample in samples if sample.get("filter") == filter_name and metric in sample]
            stderr = _stderr_of_ratio(metric, float(value), items) if task is not None else math.nan
        full_name = metric if filter_name == "none" else f"{metric}:{filter_name}"
        values[full_name] = Value(float(value), int(result.get("sample_len") or len(samples)), float(stderr))
    return values


def _accuracy_of_free_answers(values: Mapping[str, Value]) -> dict[str, Value]:
    """The first `exact_match` or `acc` under the names of multiple choice, with chance 0; {} when there is none."""
    right = next(
        (value for metric, value in values.items() if metric.partition(":")[0] in ("exact_match", "acc")), None
    )
    return (
        {"accuracy": right, "centred": right, "chance": Value(0.0, 0, 0.0), "ceiling": Value(1.0, 0, 0.0)}
        if right
        else {}
    )


def _stderr_of_ratio(metric: str, value: float, items: Sequence[Any]) -> float:
    """Standard error of bits per byte, or of a perplexity per byte or word, from (log likelihood, weight) of each
    document; nan for other metrics."""
    if metric not in ("bits_per_byte", "byte_perplexity", "word_perplexity") or not items:
        return math.nan
    _, stderr = multiple_choice.ratio_and_stderr(*np.array(items, float).T)
    return stderr / math.log(2) if metric == "bits_per_byte" else stderr * value


def _scored_questions(task: Any, samples: Sequence[Mapping[str, Any]]) -> list[ScoredQuestion]:
    """The questions of a multiple-choice task; [] for other tasks, for metrics of the task's own, and where a question
    has several right answers."""
    if task.OUTPUT_TYPE != "multiple_choice" or callable(task.get_config("process_results")):
        return []
    questions = []
    for sample in samples:
        if sample["filter"] != samples[0]["filter"]:
            continue
        texts = task.doc_to_choice(sample["doc"])
        right = task.doc_to_text(sample["doc"]) if task.multiple_input else sample["target"]
        right = texts.index(right) if isinstance(right, str) and right in texts else right
        if not isinstance(right, int) or not 0 <= right < len(texts):
            return []
        # With acc_mutual_info, lm-eval adds requests without a context after those of the choices.
        scores = zip(sample["filtered_resps"][: len(texts)], sample["arguments"], strict=False)
        nats, sizes = zip(*((-score[0], _scored_bytes(*arguments)) for score, arguments in scores), strict=True)
        questions.append(ScoredQuestion(nats, right, sizes))
    return questions


def _scored_bytes(context: str, continuation: str) -> int:
    """Bytes of a continuation, together with the white space that `encode_pair` moves to it from the context."""
    return len((context[len(context.rstrip()) :] + continuation).encode())


def _choice_statistics(questions: Sequence[ScoredQuestion]) -> dict[str, Value]:
    """The metrics of multiple choice. Questions with fewer than K choices get infinite nats for the missing ones."""
    Q, K = len(questions), max(len(question.nats) for question in questions)
    nats_QK, bytes_QK = np.full((Q, K), math.inf), np.ones((Q, K), int)
    for q, question in enumerate(questions):
        nats_QK[q, : len(question.nats)], bytes_QK[q, : len(question.sizes)] = question.nats, question.sizes
    return multiple_choice.choice_statistics(nats_QK, np.array([question.answer for question in questions]), bytes_QK)

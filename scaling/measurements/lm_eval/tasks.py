"""Public and local tasks through lm-evaluation-harness, as measurements.

Not in the design's list of modules: the road to tasks that are not built in. lm_eval costs seconds to import, hence is
imported when first asked for; it is silent, seeded as by itself, and offline for tasks whose files are here.
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
"""What Hugging Face's packages read. Data of public tasks are fetched, and kept by them, unless one of these is set;
for tasks of files that are here nothing is fetched unless one of these says so."""
RESAMPLES = 1000
"""Of lm-eval's bootstrap, for the few metrics that are not means."""


@dataclass(frozen=True)
class ScoredQuestion:
    """nats: minus the logarithm of the probability of each choice; right: place of the right one; sizes: bytes."""

    nats: Sequence[float]
    answer: int
    sizes: Sequence[int]


def lm_eval_tasks(
    names: Sequence[str], include: Path | None, length: int, known: Sequence[str] = ()
) -> list[Measurement]:
    """Tasks, tags and groups of lm-evaluation-harness: those that ship with this package, those of the YAML files in
    the folder `include`, and lm-eval's own. length: tokens of the longest input; known: further names, for the
    suggestion that comes with an unknown one.

    A budget is documents of each task, drawn with the key. Chance differs between questions: the column `chance` says.
    Data are read when a measure first runs, which raises InputError where they cannot be had.
    Raises InputError when lm_eval is absent, a name unknown, or `include` no folder.
    """
    if include is not None and not include.is_dir():
        raise InputError(f"include = {str(include)!r}: no such folder of YAML tasks")
    folders = [BUILTIN_FOLDER, *([include] if include else [])]
    with _lm_eval_settings(offline=True):
        manager = _manager(names, folders, known)
    return [
        Measurement(
            name,
            math.nan,
            None,
            "documents",
            functools.partial(_run, functools.cache(_load), manager, name, _is_here(manager, name, folders), length),
        )
        for name in names
    ]


def _is_here(manager: Any, name: str, folders: Sequence[Path]) -> bool:
    path = manager.task_index[name].yaml_path
    return path is not None and any(Path(path).resolve().is_relative_to(folder.resolve()) for folder in folders)


def _manager(names: Sequence[str], folders: list[Path], known: Sequence[str]) -> Any:
    """lm-eval's index of tasks. That of its own ones takes seconds to read, hence only where names are not local."""
    TaskManager = importlib.import_module("lm_eval.tasks").TaskManager
    local = TaskManager(include_path=folders, include_defaults=False)
    if not (others := [name for name in names if name not in local.task_index]):
        return local
    for name in others:
        _check_files(name, folders)
    everything = _everything(tuple(folders))
    near = [*known, *local.all_tasks]
    for name in others:
        if name not in everything.task_index:
            close = difflib.get_close_matches(name, near, n=1) or difflib.get_close_matches(name, everything.all_tasks)
            raise InputError(f"unknown task {name!r}{suggest_name(name, close or near)}")
    return everything


def _check_files(name: str, folders: list[Path]) -> None:
    """Raises InputError on a YAML file that names a task and cannot be read: lm-eval passes over it in silence."""
    load_yaml = importlib.import_module("lm_eval.tasks._yaml_loader").load_yaml
    for path in (path for folder in folders for path in sorted(folder.rglob("*.yaml"))):
        if name == path.stem or name in path.read_text(errors="replace"):
            try:
                load_yaml(path, resolve_func=False)
            except Exception as error:
                raise InputError(f"task {name!r}: {path} cannot be read ({_line(error)})") from None


@functools.cache
def _everything(folders: tuple[Path, ...]) -> Any:
    return importlib.import_module("lm_eval.tasks").TaskManager(include_path=list(folders), include_defaults=True)


def _load(manager: Any, name: str, here: bool) -> dict[str, Any]:
    """The tasks of a name with their data. Relative data files are those beside the task's YAML file."""
    entry = manager.task_index[name]
    beside = contextlib.chdir(entry.yaml_path.parent) if entry.yaml_path else contextlib.nullcontext()
    try:
        with beside:
            loaded = manager.load([name])
    except Exception as error:
        data = (entry.cfg or {}).get("dataset_path") or "its data"
        offline = importlib.import_module("datasets.config").HF_HUB_OFFLINE
        hint = f"; {OFFLINE[0]} or the like keeps it off the internet" if offline and not here else ""
        raise InputError(
            f"task {name!r}: {data} cannot be had here ({_line(error)}){hint}; what was measured before is kept"
        ) from None
    for task in loaded["tasks"].values():
        for flag, what in (("UNSAFE_CODE", "runs code that the model writes"), ("MULTIMODAL", "asks about images")):
            if getattr(task, flag, False):
                raise InputError(f"task {name!r}: {what}: not measured here")
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=1234)
    return loaded


def _line(error: Exception) -> str:
    """The beginning of what an exception says, on one line."""
    return f"{type(error).__name__}, {' '.join(str(error).split())[:160]}"


@contextlib.contextmanager
def _lm_eval_settings(offline: bool) -> Iterator[None]:
    """lm-eval and what it imports: without a word, offline if so asked and the environment says nothing, in one
    process, seeded as lm-eval seeds itself. Afterwards all is as it was. Raises InputError when lm_eval is absent."""
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
    load: Callable[[Any, str, bool], dict[str, Any]],
    manager: Any,
    name: str,
    here: bool,
    length: int,
    model: Decoder,
    params: Any,
    vocabulary: Tokenizer,
    key: jax.Array,
    budget: int,
) -> dict[str, Value]:
    with _lm_eval_settings(offline=here):
        from lm_eval.evaluator import evaluate

        from scaling.measurements.lm_eval.model import LmEvalModel
        from scaling.measurements.prompting import PromptedModel

        loaded = load(manager, name, here)
        chosen = np.random.default_rng(np.asarray(jax.random.key_data(key)))
        sizes = {one: len(task.eval_docs) for one, task in loaded["tasks"].items()}
        samples = {
            one: sorted(chosen.choice(size, min(size, budget), replace=False).tolist()) for one, size in sizes.items()
        }
        every = budget >= max(sizes.values())
        results = evaluate(
            LmEvalModel(PromptedModel(model, params, vocabulary, length, key)),
            loaded,
            samples=None if every else samples,
            bootstrap_iters=RESAMPLES,
        )
    return to_values(name, loaded["tasks"], results)


def to_values(name: str, tasks: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, Value]:
    """What lm-eval found, as measurements named as it names them, `exact_match:strict-match` where it filtered answers
    by `strict-match`. For multiple choice also the statistics of the built-in tasks, in which its `acc` is `accuracy`;
    where answers are open, its first `exact_match` or `acc` is also an accuracy over a chance of 0.

    tasks: of the name, one or, where that is a group or a tag, many: then the group's own metrics and the statistics of
    all questions together, or, where there are neither, each task's metrics as `TASK:metric`.
    """
    found = {}
    if name in results["results"]:
        found = _metrics(results["results"][name], tasks.get(name), results["samples"].get(name, []))
    questions = [question for one, task in tasks.items() for question in _questions(task, results["samples"][one])]
    if questions:
        found = {metric: value for metric, value in found.items() if metric != "acc"} | _statistics(questions)
    elif all(task.OUTPUT_TYPE in ("generate_until", "loglikelihood") for task in tasks.values()):
        found |= _open_ended(found)
    for one, task in {} if found else tasks.items():
        each = _metrics(results["results"][one], task, results["samples"][one])
        found |= {f"{one}:{metric}": value for metric, value in each.items()}
    if not found:
        raise InputError(f"task {name!r}: lm-eval found no number in it")
    return found


def _metrics(of_task: Mapping[str, Any], task: Any, samples: Sequence[Mapping[str, Any]]) -> dict[str, Value]:
    """Numbers of one task or group. Where lm-eval has no standard error: of a ratio of sums over documents ours, by the
    delta method; else nan."""
    found = {}
    for label, value in of_task.items():
        metric, comma, kept = label.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float | np.number):
            continue
        stderr = of_task.get(f"{metric}_stderr,{kept}")
        if not isinstance(stderr, int | float | np.number):
            items = [sample[metric] for sample in samples if sample.get("filter") == kept and metric in sample]
            stderr = _of_ratio(metric, float(value), items) if task is not None else math.nan
        full = metric if kept == "none" else f"{metric}:{kept}"
        found[full] = Value(float(value), int(of_task.get("sample_len") or len(samples)), float(stderr))
    return found


def _open_ended(found: Mapping[str, Value]) -> dict[str, Value]:
    right = next((value for metric, value in found.items() if metric.partition(":")[0] in ("exact_match", "acc")), None)
    return (
        {"accuracy": right, "centred": right, "chance": Value(0.0, 0, 0.0), "ceiling": Value(1.0, 0, 0.0)}
        if right
        else {}
    )


def _of_ratio(metric: str, value: float, items: Sequence[Any]) -> float:
    """Standard error of bits per byte or a perplexity per byte or word, from (log-likelihood, weight) of documents."""
    if metric not in ("bits_per_byte", "byte_perplexity", "word_perplexity") or not items:
        return math.nan
    _, stderr = multiple_choice.ratio_and_stderr(*np.array(items, float).T)
    return stderr / math.log(2) if metric == "bits_per_byte" else stderr * value


def _questions(task: Any, samples: Sequence[Mapping[str, Any]]) -> list[ScoredQuestion]:
    """Questions of a multiple-choice task with one right answer and lm-eval's own metrics; of others none."""
    if task.OUTPUT_TYPE != "multiple_choice" or callable(task.get_config("process_results")):
        return []
    found = []
    for sample in samples:
        if sample["filter"] != samples[0]["filter"]:
            continue
        texts = task.doc_to_choice(sample["doc"])
        right = task.doc_to_text(sample["doc"]) if task.multiple_input else sample["target"]
        right = texts.index(right) if isinstance(right, str) and right in texts else right
        if not isinstance(right, int) or not 0 <= right < len(texts):
            return []
        asked = zip(sample["filtered_resps"][: len(texts)], sample["arguments"], strict=False)
        nats, sizes = zip(*((-answer[0], _scored_bytes(*arguments)) for answer, arguments in asked), strict=True)
        found.append(ScoredQuestion(nats, right, sizes))
    return found


def _scored_bytes(context: str, continuation: str) -> int:
    """With the white space that `harness_model.pair` takes from the context."""
    return len((context[len(context.rstrip()) :] + continuation).encode())


def _statistics(questions: Sequence[ScoredQuestion]) -> dict[str, Value]:
    Q, K = len(questions), max(len(question.nats) for question in questions)
    nats_QK, bytes_QK = np.full((Q, K), math.inf), np.ones((Q, K), int)
    for q, question in enumerate(questions):
        nats_QK[q, : len(question.nats)], bytes_QK[q, : len(question.sizes)] = question.nats, question.sizes
    return multiple_choice.choice_statistics(nats_QK, np.array([question.answer for question in questions]), bytes_QK)

"""Task files of lm-evaluation-harness: what they may do, and errors that name the file.

A YAML file of somebody else can run code in three ways: `!function` imports Python, a Jinja template reaches any object
of the process, and a metric or data set can be a script. Files that ship with lm-eval or with this package may use the
first and the last; other files need the flag --trust-task-code. Importing this module imports lm_eval.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import datasets.packaged_modules as data_formats
import jinja2
import lm_eval.api.registry
import lm_eval.api.task
import lm_eval.tasks
import lm_eval.utils
import yaml
from jinja2.sandbox import ImmutableSandboxedEnvironment
from lm_eval.tasks import _yaml_loader
from lm_eval.tasks._factory import TaskFactory

from scaling.errors import InputError
from scaling.measurements.lm_eval import builtin_tasks

FLAG = "--trust-task-code"
BUILTIN_FOLDER = Path(builtin_tasks.__file__).resolve().parent
SHIPPED_FOLDERS = (BUILTIN_FOLDER, Path(lm_eval.tasks.__file__).resolve().parent)
"""Folders of the task files that are installed with this package and with lm-eval, and may run their own code."""
DATA_FORMATS = ("json", "csv", "text", "parquet", "arrow")
"""The formats of local data that any task file may read. Others unpack archives, or connect to services."""
PLAIN_MODULES = ("builtins", "datetime", "jinja2")
"""Modules of the types whose attributes a template may use. An image of a data set, say, could write itself to a
file."""


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """Renders the templates of a task file on plain values, with no way to the rest of the process."""

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        is_plain = type(obj).__module__.partition(".")[0] in PLAIN_MODULES
        return is_plain and super().is_safe_attribute(obj, attr, value)


@functools.cache
def _template_sandbox() -> TemplateSandbox:
    """A sandbox with the settings of lm-eval's own environment."""
    sandbox = TemplateSandbox(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    sandbox.filters.update(lm_eval.utils.env.filters)
    return sandbox


@contextlib.contextmanager
def replace_attributes(*replacements: tuple[Any, str, Any]) -> Iterator[None]:
    """Sets attributes (object, name, value), and restores them at the end. Raises AttributeError when one is not there:
    another version of lm_eval may not use it any more."""
    with contextlib.ExitStack() as after:
        for owner, name, value in replacements:
            after.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)
        yield


@contextlib.contextmanager
def safe_rendering(trust_code: bool) -> Iterator[None]:
    """Inside, lm-eval renders every template in the sandbox, unless `trust_code`, and reads YAML as plain data."""
    # Without libyaml, lm-eval takes a loader that builds some Python objects.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    sandbox = [] if trust_code else [(lm_eval.utils, "env", _template_sandbox())]
    with replace_attributes((_yaml_loader, "_Base", loader), *sandbox):
        yield


def is_shipped(path: Path) -> bool:
    """Whether a task file is installed with this package or with lm-eval."""
    return any(path.resolve().is_relative_to(folder) for folder in SHIPPED_FOLDERS)


def one_line(error: BaseException) -> str:
    """The class of an exception and the beginning of its message, on one line."""
    message = " ".join(str(error).split())[:160]
    return f"{type(error).__name__}, {message}" if message else type(error).__name__


class TaskFileFactory(TaskFactory):
    """Builds the tasks of YAML files, each from within the folder of its file, so that paths of its data are relative
    to it. Raises InputError, which names the task and its file, for everything that is wrong with the file or its data,
    and for code in a file that is not shipped, unless `trust_code`.

    data_hint: the end of an error about data that are not available.
    """

    def __init__(self, trust_code: bool, data_hint: str = "") -> None:
        super().__init__()
        self.trust_code, self.data_hint = trust_code, data_hint

    def build(self, entry: Any, *, overrides: Any = None, registry: Any) -> Any:
        with self._reading(entry):
            return super().build(entry, overrides=overrides, registry=registry)

    def _build_task(self, entry: Any, overrides: Any) -> Any:
        with self._reading(entry):
            return super()._build_task(entry, overrides)

    def _load_full_config(self, entry: Any, overrides: Any = None) -> dict[str, Any]:
        config = super()._load_full_config(entry, overrides)
        is_plain_task = not {"class", "group"} & set(config)
        if is_plain_task and entry.yaml_path and not is_shipped(entry.yaml_path):
            check_keys(config)
        return config

    @contextlib.contextmanager
    def _reading(self, entry: Any) -> Iterator[None]:
        """Inside, lm-eval reads and builds the task of this entry. A group's limits hold for its members too."""
        if entry.yaml_path is None:  # a tag, whose tasks each have a file
            yield
            return
        path = entry.yaml_path.resolve()
        where = f"task {entry.name!r}: {path}"
        trusted = self.trust_code or is_shipped(path)
        load_dataset = _checked_load_dataset(datasets.load_dataset, where, trusted, self.data_hint)
        limits: list[tuple[Any, str, Any]] = [(datasets, "load_dataset", load_dataset)]
        if not trusted:
            limits.append((_yaml_loader, "_import_func_in_yml", functools.partial(_refuse_function, where)))
            limits.append((lm_eval.api.task, "get_metric", functools.partial(_registered_metric, where)))
        with contextlib.chdir(path.parent), replace_attributes(*limits), name_errors(where):
            yield


def check_keys(config: Mapping[str, Any]) -> None:
    """Raises InputError when a key that every task needs is missing from the configuration of a task."""
    needed = [] if config.get("use_prompt") else ["doc_to_text", "doc_to_target"]
    if config.get("output_type") == "multiple_choice" and not config.get("use_prompt"):
        needed.append("doc_to_choice")
    choices = [(key,) for key in needed] + [("dataset_path", "custom_dataset"), ("test_split", "validation_split")]
    missing = [" or ".join(keys) for keys in choices if all(config.get(key) is None for key in keys)]
    if missing:
        source = config["metadata"]["config_source"]
        raise InputError(f"task {config.get('task')!r}: {source}: has no {', no '.join(missing)}: add the key")


@contextlib.contextmanager
def name_errors(where: str, is_ours: Callable[[Exception], bool] = lambda _: False) -> Iterator[None]:
    """Turns the exceptions of lm-eval into an InputError that begins with `where`. is_ours: which other exceptions than
    InputError are not lm-eval's, and pass."""
    try:
        yield
    except InputError:
        raise
    except jinja2.exceptions.SecurityError as error:
        raise _refusal(where, f"a template does what the sandbox forbids ({one_line(error)})") from None
    except Exception as error:
        if is_ours(error):
            raise
        raise InputError(f"{where}: cannot be used ({one_line(error)}); mend the file or its data") from None


def _refusal(where: str, what: str) -> InputError:
    return InputError(f"{where}: {what}; if you trust whoever wrote the file, add {FLAG}, which lets it run any code")


def _refuse_function(where: str, name: str, base_dir: Path) -> Any:
    """In place of lm-eval's import of the Python function that `!function` names."""
    raise _refusal(where, f"!function {name} imports Python code")


def _registered_metric(where: str, name: str, hf_evaluate_metric: bool = False) -> Any:
    """In place of lm-eval's get_metric, which takes a name that it does not know for a script."""
    if hf_evaluate_metric or name not in lm_eval.api.registry.metric_registry:
        raise _refusal(where, f"metric {name!r} is not one of lm-eval's, and would be loaded as a script")
    return lm_eval.api.registry.get_metric(name)


def _checked_load_dataset(load: Callable[..., Any], where: str, trusted: bool, hint: str) -> Callable[..., Any]:
    """load_dataset with errors that name the task file and the data, and limited to plain formats unless trusted."""

    def load_dataset(path: str | None = None, *arguments: Any, **options: Any) -> Any:
        files = f" with data_files {options['data_files']}" if "data_files" in options else ""
        what = f"dataset_path {path!r}{files}"
        is_other_format = path in data_formats._PACKAGED_DATASETS_MODULES and path not in DATA_FORMATS
        if not trusted and (is_other_format or str(path).endswith(".py") or "trust_remote_code" in options):
            formats = ", ".join(DATA_FORMATS)
            raise _refusal(where, f"{what} is neither a plain format ({formats}) nor the name of a data set")
        try:
            return load(path, *arguments, **options)
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"{where}: {what} is not available ({one_line(error)}){hint}") from None

    return load_dataset


def task_file(task: Any) -> str:
    """The YAML file of a task, or "inline" when a group's file defines it."""
    return str((task.get_config("metadata") or {}).get("config_source", "inline"))


def check_documents(task: Any, documents: Sequence[Any], numbers: Sequence[int]) -> None:
    """Raises InputError on the documents with these numbers that the task cannot make questions of.

    A choice that is empty has probability 1, and would always win. Choices of a file that is not shipped must also
    differ; of lm-eval's own tasks, equal choices count as lm-eval counts them, for comparison with published numbers.
    """
    if not isinstance(task, lm_eval.api.task.ConfigurableTask):
        return
    is_own = not is_shipped(Path(task_file(task)))
    for number in numbers:
        where = f"task {task.task_name!r}: {task_file(task)}: document {number}"
        with name_errors(where):
            if is_own:
                task.doc_to_text(documents[number])
                task.doc_to_target(documents[number])
            is_question = task.OUTPUT_TYPE == "multiple_choice" and not task.multiple_input
            choices = task.doc_to_choice(documents[number]) if is_question else []
        if "" in choices:
            raise InputError(
                f"{where}, choice {choices.index('')}, counted from 0, is empty: must be a text; mend the document"
            )
        repeated = [index for index, choice in enumerate(choices) if choice in choices[:index]]
        if is_own and repeated:
            first = choices.index(choices[repeated[0]])
            raise InputError(
                f"{where}: choices {first} and {repeated[0]}, counted from 0, are equal ({choices[first]!r}): must "
                "differ; mend the document"
            )

"""What a task file of somebody else may do: nothing but describe a task. Errors name the file."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest

from scaling.data.tokenizer import ByteTokenizer
from scaling.errors import InputError
from scaling.measurements.lm_eval import tasks

pytestmark = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm_eval is not installed")

ROWS = [{"q": f"{i} is", "choices": [" odd", " even"], "a": i % 2} for i in range(4)]
Config = dict[str, Any]


def write_task(folder: Path, rows: list[dict[str, Any]] = ROWS, without: str = "", **changes: Any) -> Path:
    """Writes the task `mine` and its data. Text after `!function` in a value becomes that YAML tag."""
    config: Config = {
        "task": "mine",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "mine.jsonl"}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{q}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "a",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    } | changes
    config.pop(without, None)
    (folder / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    # JSON is YAML, apart from tags, which stand before a value without quotes.
    text = re.sub(r'"(!function [^"]*)"', r"\1", json.dumps(config, indent=1))
    (folder / "mine.yaml").write_text(text)
    return folder / "mine.yaml"


def run(folder: Path, name: str = "mine", **options: Any) -> Any:
    """Runs the task up to the model, which is absent: a task that reaches it raises AttributeError."""
    (measurement,) = tasks.lm_eval_tasks([name], folder, 64, **options)
    return measurement.run(None, None, ByteTokenizer(), jax.random.key(0), 100)  # pyrefly: ignore


def error_of(folder: Path, name: str = "mine", **options: Any) -> str:
    with pytest.raises(InputError) as error:
        run(folder, name, **options)
    return str(error.value)


def payload(kind: str, folder: Path, mark: Path) -> Config:
    """Changes of a task file that create the file `mark` where they are obeyed."""
    touch = f"import pathlib\npathlib.Path({str(mark)!r}).touch()\ndef text(doc): return doc['q']\n"
    (folder / "code.py").write_text(touch + "def data(**_): raise SystemError\n")
    (folder / "script").mkdir()
    (folder / "script" / "script.py").write_text(touch)
    (folder / "part.txt").write_text("doc_to_text: !function code.text\n")
    shell = f"{{{{ cycler.__init__.__globals__.os.popen('touch {mark}').read() }}}}"
    return {
        "template": {"doc_to_text": shell},
        "template of the choices": {"doc_to_choice": shell},
        "template of a format": {"doc_to_text": "{{ ('{0.__class__.__init__.__globals__}').format(q) }}"},
        "function": {"doc_to_text": "!function code.text"},
        "function in an include": {"include": "part.txt", "doc_to_target": "a"},
        "data function": {"custom_dataset": "!function code.data"},
        "metric": {"metric_list": [{"metric": "./script"}]},
        "metric of evaluate": {"metric_list": [{"metric": "./script", "hf_evaluate": True}]},
        "class": {"class": "!function code.text"},
        "data script": {"dataset_path": "./script/script.py"},
        "archive": {"dataset_path": "webdataset"},
    }[kind]


KINDS = (
    "template",
    "template of the choices",
    "template of a format",
    "function",
    "function in an include",
    "data function",
    "metric",
    "metric of evaluate",
    "class",
    "data script",
    "archive",
)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_would_run_code_is_refused(kind: str, tmp_path: Path) -> None:
    changes = payload(kind, tmp_path, tmp_path / "mark")
    file = write_task(tmp_path, without="doc_to_text" if kind == "function in an include" else "", **changes)
    message = error_of(tmp_path)
    assert not (tmp_path / "mark").exists()
    assert f"'mine': {file}" in message
    assert "--trust-task-code" in message


@pytest.mark.parametrize("kind", ["template", "function"])
def test_a_trusted_file_runs_its_code(kind: str, tmp_path: Path) -> None:
    write_task(tmp_path, **payload(kind, tmp_path, tmp_path / "mark"))
    with pytest.raises(AttributeError):  # from the absent model
        run(tmp_path, trust_code=True)
    assert (tmp_path / "mark").exists()


def test_a_file_cannot_use_shipped_code_on_its_own_data(tmp_path: Path) -> None:
    shipped = tasks.BUILTIN_FOLDER / "finish_word.yaml"
    file = write_task(tmp_path, without="dataset_path", include=str(shipped))
    assert f"{file}: !function data.read_examples" in error_of(tmp_path)


def test_a_group_lends_no_trust_to_its_members(tmp_path: Path) -> None:
    member = {"task": "python_cloze", "doc_to_text": "!function code.text"}
    payload("function", tmp_path, tmp_path / "mark")
    file = tmp_path / "all.yaml"
    file.write_text(re.sub(r'"(!function [^"]*)"', r"\1", json.dumps({"group": "all", "task": [member]})))
    assert re.search(rf"{file}.*--trust-task-code", error_of(tmp_path, "all"))
    assert not (tmp_path / "mark").exists()


def test_templates_use_plain_values_only() -> None:
    import lm_eval.utils
    from jinja2.exceptions import SecurityError

    from scaling.measurements.lm_eval.task_files import safe_rendering

    class Picture:
        def save(self) -> str:
            return "written"

    before = lm_eval.utils.env
    with safe_rendering(trust_code=False):
        plain = {"q": "a b", "words": ["x", "y"]}
        assert (
            lm_eval.utils.apply_template("{{q.upper()}} {{words[1]}} {{q|regex_replace('a','c')}}\n", plain)
            == "A B y c b\n"
        )
        with pytest.raises(SecurityError):
            lm_eval.utils.apply_template("{{ picture.save() }}", {"picture": Picture()})
    assert lm_eval.utils.env is before


@pytest.mark.parametrize(
    ("row", "changes", "message"),
    [
        ({"q": "4 is", "choices": ["", "x"], "a": 0}, {}, "document 4, choice 0,"),
        ({"q": "4 is", "choices": ["x", ""], "a": 0}, {"target_delimiter": " "}, "document 4, choice 1,"),
        ({"q": "4 is", "choices": ["x", "y", "x"], "a": 0}, {}, "document 4: choices 0 and 2.*'x'"),
        ({"q": "4 is", "choices": "3 +", "a": 0}, {}, "document 4.*SyntaxError"),
    ],
)
def test_a_bad_document_is_named(tmp_path: Path, row: dict[str, Any], changes: Config, message: str) -> None:
    choices = "{{choices}}" if isinstance(row["choices"], str) else "choices"
    rows = [one | {"choices": str(one["choices"])} for one in ROWS] if choices != "choices" else ROWS
    file = write_task(tmp_path, [*rows, row], doc_to_choice=choices, **changes)
    assert re.search(rf"'mine': {file}: {message}", error_of(tmp_path))


def test_an_empty_text_to_score_is_refused(tmp_path: Path) -> None:
    rows = [{"q": "a", "a": "b"}, {"q": "c", "a": ""}]
    write_task(tmp_path, rows, "doc_to_choice", output_type="loglikelihood")
    assert re.search("'mine': document 1,", error_of(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: write_task(folder, without="doc_to_text"), r"mine\.yaml: has no doc_to_text"),
        (lambda folder: write_task(folder, without="doc_to_choice"), r"mine\.yaml: has no doc_to_choice"),
        (lambda folder: write_task(folder, without="test_split"), r"mine\.yaml: has no test_split or validation_split"),
        (lambda folder: write_task(folder, without="dataset_path"), r"mine\.yaml: has no dataset_path"),
        (lambda folder: write_task(folder, without="task"), r"mine\.yaml: has no key task"),
        (lambda folder: write_task(folder, colour="red"), r"mine\.yaml: .*colour"),
        (lambda folder: write_task(folder, metric_list=[{}]), r"mine\.yaml: .*'metric'"),
        (lambda folder: write_task(folder, doc_to_text="{{nothing}}"), r"mine\.yaml: .*nothing"),
        (lambda folder: write_task(folder, dataset_kwargs={"data_files": "no.jsonl"}), r"mine\.yaml: .*no\.jsonl"),
        (lambda folder: write_task(folder, include="none.yaml"), r"mine\.yaml .*none\.yaml"),
        (lambda folder: write_task(folder).write_text("task: [mine"), r"mine\.yaml .*ParserError"),
        (lambda folder: (folder / "mine.yaml").mkdir(), r"mine\.yaml .*IsADirectoryError"),
    ],
)
def test_a_file_with_a_fault_is_named(tmp_path: Path, change: Callable[[Path], Any], message: str) -> None:
    change(tmp_path)
    assert re.search(f"'mine': {tmp_path}/{message}", error_of(tmp_path))


@pytest.mark.parametrize("include", ["tasks", "./tasks/", "tasks/deep", ".", ".."])
def test_a_relative_folder_of_tasks(include: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / "tasks" / "deep"
    deep.mkdir(parents=True)
    write_task(deep)
    monkeypatch.chdir(deep if include.startswith(".") and include != "./tasks/" else tmp_path)
    with pytest.raises(AttributeError):  # from the absent model: the data were read
        run(Path(include))


def test_a_tag_finds_the_data_of_its_tasks(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    write_task(tmp_path / "deep", tag="all_of_mine")
    with pytest.raises(AttributeError):
        run(tmp_path, "all_of_mine")

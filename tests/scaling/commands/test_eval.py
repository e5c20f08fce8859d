"""scaling eval on a tiny trained run: what is asked, kept, skipped, shown, and refused."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import analysis
from analysis import errors
from analysis.tables import results
from scaling import files
from scaling.commands.eval import evaluate
from scaling.config.run_config import RunConfig, load_config, to_dict
from scaling.errors import InputError
from scaling.measurements import registry
from scaling.measurements.recall import recall
from scaling.record import evaluations, run_folder
from scaling.record.evaluations import Evaluation
from scaling.record.run_folder import EVALUATIONS, Value
from scaling.training.restore import checkpoint_steps
from scaling.training.train import train
from tests.conftest import in_process

pytestmark = pytest.mark.usefixtures("unoptimized_programs")

MADE_UP = "recall,addition"


@pytest.fixture(scope="module")
def trained(tiny: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of two runs, one with four kept checkpoints, and a third run that diverged."""
    sweep = tmp_path_factory.mktemp("eval") / "small"
    longer = replace(tiny, data=replace(tiny.data, sequence_length=64, batch_sequences=4))
    many = replace(longer, measure=replace(longer.measure, keep=4))
    for config in (many, replace(longer, seed=1)):
        assert train(config, sweep / "runs" / config.run_id, quiet=True) == "done"
    broken = replace(longer, seed=2)
    folder = sweep / "runs" / broken.run_id
    files.write_json(folder / run_folder.CONFIG, to_dict(broken))
    run_folder.write_result(folder, status="diverged", row={"run_id": broken.run_id, "tokens": 10}, measurements={})
    return sweep


@pytest.fixture
def sweep(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "small")


def runs(sweep: Path) -> list[Path]:
    """The finished runs, the one with more checkpoints first."""
    done = [run for run in (sweep / "runs").iterdir() if run_folder.read_result(run)["status"] == "done"]
    return sorted(done, key=lambda run: -len(checkpoint_steps(run)))


def with_length(run: Path, length: int) -> Path:
    """Makes a run folder that of a run of another sequence length, and returns its new path."""
    config = load_config(run / run_folder.CONFIG)
    config = replace(config, data=replace(config.data, sequence_length=length))
    result = files.read_json(run / run_folder.RESULT)
    files.write_json(run / run_folder.CONFIG, to_dict(config))
    files.write_json(run / run_folder.RESULT, result | {"row": result["row"] | {"run_id": config.run_id}})
    (run / run_folder.ENVIRONMENT).unlink()
    return run.rename(run.with_name(config.run_id))


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / EVALUATIONS).read_text().splitlines()]


def test_a_sweep_is_asked_once_and_its_table_has_the_answers(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(sweep, budget=32, json=sweep / "all.json")
    said = capsys.readouterr().out
    assert re.search(r"closers.*'walk'\D*0\b", said)
    assert re.search(r"cloze.*'walk'\D*1\b", said)
    assert re.search(r"\b8\b\D*\b0\b.*\bevaluations\.jsonl\b", said.splitlines()[-1])
    assert [len(lines(run)) for run in runs(sweep)] == [4, 4]
    found = json.loads((sweep / "all.json").read_text())
    assert {(one["run"], one["task"]) for one in found} == {
        (run.name, task) for run in runs(sweep) for task in ("brackets", "copy", "recall", "addition")
    }
    table = results.read_table(sweep).set_index("run_id")
    for one in found:
        value, n, stderr = one["measurements"][f"{one['task']}/accuracy"]
        row = table.loc[one["run"]]
        assert row[f"{one['task']}/accuracy"] == value
        assert row[f"{one['task']}/accuracy_stderr"] == stderr
        assert row[f"{one['task']}/chance"] == pytest.approx(1 / 3 if one["task"] == "brackets" else 1 / 4)
        assert row[f"{one['task']}/ceiling"] == 1
        assert n == 32
    assert table["copy/accuracy"].isna().sum() == 1, "the run that diverged was not asked"
    assert "copy/chance_stderr" not in table

    before = {run: (run / EVALUATIONS).read_bytes() for run in runs(sweep)}
    evaluate(sweep, budget=32)
    assert re.search(r"\b0\b\D*\b8\b.*--rerun", capsys.readouterr().out.splitlines()[-1])
    assert before == {run: (run / EVALUATIONS).read_bytes() for run in runs(sweep)}


def test_what_a_kill_left_is_kept_and_the_rest_is_asked(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = runs(sweep)
    calls, plain = [], evaluations.append_evaluation

    def killed(folder: Path, evaluation: Evaluation) -> None:
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append((folder.name, evaluation.task))
        plain(folder, evaluation)

    monkeypatch.setattr("scaling.commands.eval.append_evaluation", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate(sweep, MADE_UP, budget=16)
    assert len(calls) == 3
    whole = (one / EVALUATIONS).read_text() if (one / EVALUATIONS).exists() else ""
    torn = two if len(whole.splitlines()) == 2 else one
    with (torn / EVALUATIONS).open("a") as file:
        file.write('{"schema": 1, "st')
    monkeypatch.setattr("scaling.commands.eval.append_evaluation", lambda *given: calls.append(given) or plain(*given))
    evaluate(sweep, MADE_UP, budget=16)
    assert len(calls) == 4, "one was left"
    for run in (one, two):
        assert [task for task, _ in sorted(evaluations.read_evaluations(run))] == ["addition", "recall"]
    assert results.read_table(sweep)["recall/accuracy"].notna().sum() == 2, "a torn line harms no other"


def test_another_seed_or_budget_is_asked_anew_and_the_last_counts(sweep: Path) -> None:
    run = runs(sweep)[0]
    for budget, seed in ((16, 0), (24, 0), (24, 1), (24, 1)):
        evaluate(run, "recall", budget=budget, seed=seed)
    assert [(line["budget"], line["seed"]) for line in lines(run)] == [(16, 0), (24, 0), (24, 1)]
    evaluate(run, "recall", budget=24, seed=1, rerun=True)
    assert [(line["budget"], line["seed"]) for line in lines(run)][2:] == [(24, 1), (24, 1)], (
        "--rerun asks all the same"
    )
    last = lines(run)[-1]["measurements"]["recall/bits_per_byte"][0]
    assert last != lines(run)[0]["measurements"]["recall/bits_per_byte"][0]
    assert results.read_table(sweep).set_index("run_id")["recall/bits_per_byte"][run.name] == last


def test_checkpoints_on_the_way_are_a_table_of_their_own(sweep: Path) -> None:
    run = runs(sweep)[0]
    kept = checkpoint_steps(run)
    assert len(kept) == 4
    evaluate(run, "recall", step="all", budget=64)
    table = analysis.load_evaluations(run)
    assert table["step"].tolist() == kept
    assert table["tokens"].tolist() == [step * 256 for step in kept]
    row = results.read_table(sweep).set_index("run_id").loc[run.name]
    assert table["flops"].tolist() == pytest.approx([row["flops"] * step / kept[-1] for step in kept])
    assert (table["params_matmul"] == row["params_matmul"]).all()
    assert table["recall/bits_per_byte"].nunique() == 4
    assert row["recall/bits_per_byte"] == table["recall/bits_per_byte"].iloc[-1], "the run's row has its last step"
    pd_of_sweep = analysis.load_evaluations(sweep)
    assert pd_of_sweep["run_id"].tolist() == [run.name] * 4
    evaluate(run, "recall", step=str(kept[1]), budget=64)
    assert len(lines(run)) == 4, "that one was asked already"


def test_runs_that_lack_the_step_are_left_out_of_a_sweep(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    many, other = runs(sweep)
    early, *_, last = checkpoint_steps(many)
    evaluate(sweep, "recall", step=str(early), budget=16)
    assert re.search(rf"{other}\b.*--step\D*{early}\b\D*{last}\b", capsys.readouterr().out)
    assert [line["step"] for line in lines(many)] == [early]
    assert not (other / EVALUATIONS).exists()
    with pytest.raises(InputError, match=rf"--step\D*3\b.*\b{last}\b"):
        evaluate(sweep, "recall", step="3")
    shutil.rmtree(other / run_folder.CHECKPOINTS)
    evaluate(sweep, "recall", budget=16)
    assert str(other) in capsys.readouterr().out
    assert [line["step"] for line in lines(many)] == [early, last]
    assert not (other / EVALUATIONS).exists()


def test_a_damaged_checkpoint_is_an_error_after_the_others_are_evaluated(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other, damaged = runs(sweep)
    last = checkpoint_steps(damaged)[-1]
    (damaged / run_folder.CHECKPOINTS / str(last) / "default" / "manifest.ocdbt").write_text("")
    with pytest.raises(InputError, match=rf"{damaged.name}/\S*/{last}:.*manifest\.ocdbt"):
        evaluate(sweep, "recall", budget=16, json=tmp_path / "all.json")
    assert other.name in capsys.readouterr().out
    assert [line["run"] for line in files.read_json(tmp_path / "all.json")] == [other.name]
    assert len(lines(other)) == 1
    assert not (damaged / EVALUATIONS).exists()
    with pytest.raises(InputError, match=damaged.name):
        evaluate(damaged, "recall", budget=16)


def test_tasks_too_long_for_a_run_are_left_out_before_any_is_asked(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = with_length(runs(sweep)[1], 26)
    evaluate(run, budget=16)
    too_long = r"recall\D*29\b.*sequence_length\D*26\b"
    assert re.search(too_long, capsys.readouterr().out)
    assert sorted(line["task"] for line in lines(run)) == ["brackets", "copy"]
    with pytest.raises(InputError, match=too_long):
        evaluate(run, "brackets,recall", budget=16, rerun=True)
    assert len(lines(run)) == 2, "nothing was asked before"


def test_other_questions_on_the_way_through_a_sweep_are_announced(
    sweep: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recall_as_cloze = registry.BuiltinTask(lambda tokens, length: replace(recall(length), name="cloze"), 320)
    monkeypatch.setitem(registry.CORPUS_TASKS, "cloze", recall_as_cloze)
    evaluate(sweep, "cloze", budget=17)
    assert "sequence_length" not in capsys.readouterr().out
    with_length(runs(sweep)[1], 60)
    evaluate(sweep, "recall", budget=16)
    assert "sequence_length" not in capsys.readouterr().out
    evaluate(sweep, "cloze", budget=17)
    assert re.search(r"cloze\D*2\b.*sequence_length", capsys.readouterr().out)


def test_a_table_of_one_run_shows_each_task(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = runs(sweep)[1]
    evaluate(run, MADE_UP, budget=16)
    shown = {row[0]: row for row in (line.split() for line in capsys.readouterr().out.splitlines()) if row}
    measured = evaluations.read_evaluations(run)["addition", checkpoint_steps(run)[-1]].measurements
    accuracy, n, stderr = measured["addition/accuracy"]
    assert shown["addition"][1:5] == ["0.250", f"{accuracy:.3f}", "+-", f"{stderr:.3f}"]
    assert shown["addition"][-1] == str(n) == "16"


def test_numbers_that_are_none_are_null_and_lines_come_back(tmp_path: Path) -> None:
    one = Evaluation(7, 700, "t", 5, 0, {"t/x": (0.5, 5, math.nan), "t/y": (np.float64(1.5), 5, 0.1)})
    evaluations.append_evaluation(tmp_path, one)
    assert lines(tmp_path)[0]["measurements"]["t/x"] == [0.5, 5, None]
    back = evaluations.read_evaluations(tmp_path)["t", 7]
    assert replace(back, measurements=one.measurements) == one
    assert back.measurements["t/y"] == (1.5, 5, 0.1)
    assert math.isnan(back.measurements["t/x"][2])
    (tmp_path / EVALUATIONS).write_text('{"schema": 9}\n')
    assert evaluations.read_evaluations(tmp_path) == {}
    with pytest.raises(errors.TableError, match="scaling eval"):
        analysis.load_evaluations(tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        *("[1]", '{"schema": 1}', '{"schema": 9, "odd": 2}', "null", "\x80"),
        '{"schema": 1, "step": 7, "tokens": 700, "task": "t", "budget": 5, "seed": 0, "measurements": {"t/x": 0.5}}',
        '{"schema": 1, "step": 7, "tokens": 700, "task": "t", "budget": 5, "seed": 0, "measurements": {}}',
        '{"schema": 1, "step": "7", "tokens": 1, "task": "t", "budget": 5, "seed": 0, "measurements": {"a": [1, 1, 1]}}',  # noqa: E501
    ],
)
def test_a_damaged_line_is_named_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str) -> None:
    one = Evaluation(7, 700, "t", 5, 0, {"t/x": Value(0.5, 5, 0.1)})
    evaluations.append_evaluation(tmp_path, one)
    with (tmp_path / EVALUATIONS).open("ab") as file:
        file.write(line.encode("latin-1") + b"\n")
    assert evaluations.read_evaluations(tmp_path) == {("t", 7): one}
    assert re.search(rf"{EVALUATIONS}\D*\b2\b", capsys.readouterr().err)
    capsys.readouterr()
    table = analysis.load_evaluations(tmp_path)
    assert table["t/x"].tolist() == [0.5]
    assert table["step"].tolist() == [7]
    assert re.search(rf"{EVALUATIONS}\D*\b2\b", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--tasks", "closers"], r"closers.*'walk'\D*0\b"),
        (["--step", "3"], r"--step\D*3\b\D*\d"),
        (["--step", "first"], r"--step\W*first\b.*\blast\b.*\ball\b"),
        (["--budget", "0"], r"--budget\D*0\D*1\b"),
        (["--seed", "-1"], r"--seed\D*-1\D*0\b"),
    ],
)
def test_what_cannot_be_asked_is_one_line(trained: Path, tmp_path: Path, options: list[str], named: str) -> None:
    done = in_process("eval", runs(trained)[0], *options, cwd=tmp_path)
    assert done.returncode == 2
    assert re.search(named, done.stderr)
    assert done.stderr.count("\n") == 1


def test_an_unknown_task_is_met_with_the_nearest(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"'cloz'.*\bcloze\b.*\[eval\]"):
        evaluate(runs(trained)[0], "recall,cloz")
    with pytest.raises(InputError, match=r"'seqio:x'.*seqio:TASK@MODULE"):
        evaluate(runs(trained)[0], "seqio:x")


def test_folders_without_a_model_are_one_line(sweep: Path, tmp_path: Path, tiny: RunConfig) -> None:
    for run in runs(sweep)[1:]:
        shutil.rmtree(run / run_folder.CHECKPOINTS)
        with pytest.raises(InputError, match=run.name):
            evaluate(run)
    for run in runs(sweep):
        (run / run_folder.RESULT).unlink()
    with pytest.raises(InputError, match=r"\b3\b.*scaling sweep run small"):
        evaluate(sweep)
    with pytest.raises(InputError, match=f"{tmp_path}/nowhere"):
        evaluate(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=f"{tmp_path}/empty.*runs/"):
        evaluate(tmp_path / "empty")
    with pytest.raises(errors.TableError, match=f"{tmp_path}/empty.*scaling eval"):
        analysis.load_evaluations(tmp_path / "empty")
    made = replace(tiny, data=replace(tiny.data, corpus="simulated"))
    assert train(made, tmp_path / "made", quiet=True) == "done"
    with pytest.raises(InputError, match=f"{tmp_path}/made.*'simulated'"):
        evaluate(tmp_path / "made")


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm_eval is not installed")
def test_a_folder_of_tasks_is_relative_and_runs_no_code(sweep: Path) -> None:
    tasks, run, mark = sweep / "tasks", runs(sweep)[0], sweep / "mark"
    tasks.mkdir()
    config = {
        "task": "mine",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "mine.jsonl"}},
        "test_split": "test",
        "output_type": "loglikelihood",
        "doc_to_text": "{{q}}",
        "doc_to_target": "{{a}}",
        "metric_list": [{"metric": "acc"}],
    }
    (tasks / "mine.jsonl").write_text('{"q": "1 + 1", "a": " = 2"}\n')
    (tasks / "mine.yaml").write_text(json.dumps(config))
    (tasks / "code.py").write_text(f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n")
    shell = f"{{{{ cycler.__init__.__globals__.os.popen('touch {mark}') }}}}"
    (tasks / "shell.yaml").write_text(json.dumps(config | {"task": "shell", "doc_to_text": shell}))
    function = json.dumps(config | {"task": "function", "doc_to_text": 0}).replace(": 0", ": !function code.text")
    (tasks / "function.yaml").write_text(function)
    arguments = ("eval", run, "--include", "tasks", "--tasks")
    done = in_process(*arguments, "mine", cwd=sweep)
    assert done.returncode == 0, done.stderr
    assert [line["task"] for line in lines(run)] == ["mine"]
    for name in ("shell", "function"):
        refused = in_process(*arguments, name, cwd=sweep)
        assert refused.returncode == 2
        assert f"{tasks / name}.yaml" in refused.stderr
        assert "--trust-task-code" in refused.stderr
        assert not mark.exists()

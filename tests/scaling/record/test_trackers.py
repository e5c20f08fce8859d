"""Runs are mirrored into the real TensorBoard and W&B, each step once, whatever was torn, resumed or done again."""

from __future__ import annotations

import errno
import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from scaling.commands.track import MirrorState, exclusive_mirror, new_lines, track
from scaling.config.run_config import RunConfig, to_dict
from scaling.errors import InputError
from scaling.files import write_json
from scaling.record.run_folder import CONFIG, METRICS, append_metrics, write_result
from tests.conftest import scaling

CONFIGURED = RunConfig(name="w8 d1/64k", sweep="s")


def a_run(folder: Path, steps: range = range(1, 6)) -> Path:
    """A run that is under way: a learning rate each step, a loss that JSON lacks at the third, one validation."""
    write_json(folder / CONFIG, to_dict(CONFIGURED))
    for step in steps:
        append_metrics(folder, {"step": step, "tokens": 64 * step, "loss": float("nan") if step == 3 else 1 / step})
    append_metrics(folder, {"step": steps[-1], "validation_loss": 2.0})
    with (folder / METRICS).open("a") as file:
        file.write('{"step": 6, "tokens": 384, "lo')
    return folder


def go_on(folder: Path) -> None:
    """From the checkpoint after step 3, over what is torn, to the end."""
    for step in range(4, 9):
        append_metrics(folder, {"step": step, "tokens": 64 * step, "loss": 1 / step})
        if step in (5, 8):
            append_metrics(folder, {"step": step, "validation_loss": 2.0 - step / 10})
    row = {"loss": 1.25, "bits_per_byte": None, "status": "done"}
    write_result(folder, status="done", row=row, measurements={"loss/nats": (1.25, 100, 0.1)})


LOSSES = [(1, 1.0), (2, 1 / 2), *((step, 1 / step) for step in range(4, 9))]


def test_new_lines_are_found_once(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    lines, now = new_lines(run, MirrorState())
    assert lines[0] == (1, {"tokens": 64, "loss": 1.0})
    assert lines[2] == (3, {"tokens": 192})
    assert lines[-2:] == [(5, {"tokens": 320, "loss": 0.2}), (5, {"validation_loss": 2.0})]
    assert new_lines(run, now) == ([], now)
    go_on(run)
    lines, last = new_lines(run, now)
    assert lines == [
        (6, {"tokens": 384, "loss": 1 / 6}),
        (7, {"tokens": 448, "loss": 1 / 7}),
        (8, {"tokens": 512, "loss": 1 / 8}),
        (8, {"validation_loss": 1.2}),
    ]
    assert (last.step, last.names, last.offset) == (
        8,
        ("loss", "tokens", "validation_loss"),
        (run / METRICS).stat().st_size,
    )


def test_a_number_that_a_step_lacked_is_sent_when_it_comes(tmp_path: Path) -> None:
    append_metrics(tmp_path, {"step": 1, "loss": 1.0})
    _, now = new_lines(tmp_path, MirrorState())
    append_metrics(tmp_path, {"step": 1, "loss": 1.0})
    append_metrics(tmp_path, {"step": 1, "validation_loss": 2.0, "note": "text", "flag": True})
    assert new_lines(tmp_path, now)[0] == [(1, {"validation_loss": 2.0})]


def test_a_line_that_is_half_written_waits_for_its_end(tmp_path: Path) -> None:
    (tmp_path / METRICS).write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "lo')
    lines, now = new_lines(tmp_path, MirrorState())
    assert lines == [(1, {"loss": 1.0})]
    with (tmp_path / METRICS).open("a") as file:
        file.write('ss": 0.5}\n')
    assert new_lines(tmp_path, now)[0] == [(2, {"loss": 0.5})]


def test_a_log_that_was_begun_anew_is_read_anew(tmp_path: Path) -> None:
    for step in range(1, 5):
        append_metrics(tmp_path, {"step": step, "loss": 1.0, "note": "a longer line" * 20})
    _, now = new_lines(tmp_path, MirrorState())
    (tmp_path / METRICS).unlink()
    assert new_lines(tmp_path, now) == ([], now)
    append_metrics(tmp_path, {"step": 1, "loss": 1.0})
    lines, again = new_lines(tmp_path, now)
    assert (lines, again.step) == ([], 4), "it takes the same steps"
    for step in range(2, 7):
        append_metrics(tmp_path, {"step": step, "loss": 1.0})
    assert [step for step, _ in new_lines(tmp_path, again)[0]] == [5, 6]


def counts(said: str) -> list[int]:
    """New steps, runs, and those of them that have ended, in a line that says so."""
    return [int(number) for number in re.findall(r"\d+", said)[:3]]


@pytest.fixture
def tensorboard(monkeypatch: pytest.MonkeyPatch) -> Any:
    """TensorBoard's reader, told to do without TensorFlow, which it would import for ten seconds."""
    monkeypatch.setitem(sys.modules, "tensorboard.compat.notf", ModuleType("notf"))
    return pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="the extra `tensorboard` is not installed"
    )


def test_tensorboard_shows_each_step_once(tmp_path: Path, tensorboard: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run = a_run(tmp_path / "runs" / "abc")
    a_run(tmp_path / "runs" / "def")
    (tmp_path / "runs" / "not a run").mkdir()
    track(tmp_path)
    said = capsys.readouterr().out
    assert counts(said) == [12, 2, 0]
    assert f"tensorboard --logdir {tmp_path / 'runs'}" in said
    track(tmp_path)
    go_on(run)
    track(tmp_path)
    track(run)
    assert [counts(line) for line in capsys.readouterr().out.splitlines()] == [[0, 2, 0], [4, 2, 1], [0, 1, 1]]
    (folder,) = (run / "tensorboard").iterdir()
    assert folder.name == "w8_d1_64k"
    shown = tensorboard.EventAccumulator(str(folder)).Reload()
    scalars = {tag: [(one.step, one.value) for one in shown.Scalars(tag)] for tag in shown.Tags()["scalars"]}
    assert scalars["loss"] == [(step, pytest.approx(loss)) for step, loss in LOSSES if step != 3]
    assert scalars["tokens"] == [(step, 64 * step) for step in range(1, 9)]
    assert scalars["validation_loss"] == [(5, 2.0), (8, pytest.approx(1.2))]
    assert scalars["result/loss"] == scalars["result/loss/nats"] == [(8, 1.25)]
    config, result = (shown.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in ("config", "result"))
    assert json.loads(config) == to_dict(CONFIGURED)
    assert result == "done"


def test_tensorflow_is_not_imported_where_it_is(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra `tensorboard` is not installed")
    a_run(tmp_path)
    program = (
        "import sys; from scaling.commands.track import *; track(Path(sys.argv[1])); print('tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_following_ends_when_every_cell_of_the_plan_has(
    tmp_path: Path, tensorboard: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = a_run(tmp_path / "runs" / "abc")
    write_json(tmp_path / "plan.json", {"cells": [{}, {}]})
    looks = []

    def tick(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 1:
            go_on(run)
        else:
            go_on(a_run(tmp_path / "runs" / "def"))

    monkeypatch.setattr("scaling.commands.track.time.sleep", tick)
    track(tmp_path, follow=True, every=0.5)
    assert looks == [0.5, 0.5]
    assert counts(capsys.readouterr().out) == [20, 2, 2]
    (files,) = ([*folder.iterdir()] for folder in (run / "tensorboard").iterdir())
    assert len(files) == 1, "the event file stays open while its run goes on"


def wandb_records(path: Path) -> Iterator[Any]:
    """What a .wandb file holds: protocol buffers in the format of LevelDB's log, after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32_768 - at % 32_768 < 7:
            at += 32_768 - at % 32_768
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield Record.FromString(whole)
            whole = b""


def wandb_holds(run: Path) -> tuple[dict[tuple[int, str], list[float]], dict[str, Any], list[Any]]:
    """(step, name) -> values, the summary, and the runs' own records, over all offline sessions of a run."""
    values: dict[tuple[int, str], list[float]] = {}
    summary, runs = {}, []
    for path in sorted(run.glob("wandb/offline-run-*/*.wandb")):
        for record in wandb_records(path):
            if record.HasField("history"):
                items = {(i.key or i.nested_key[0]): json.loads(i.value_json) for i in record.history.item}
                for name in items.keys() - {"_step", "_runtime", "_timestamp"}:
                    values.setdefault((items["_step"], name), []).append(items[name])
            if record.HasField("summary"):
                summary |= {(i.key or i.nested_key[0]): json.loads(i.value_json) for i in record.summary.update}
            if record.HasField("run"):
                runs.append(record.run)
    return values, summary, runs


def test_wandb_holds_each_step_once_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wandb = pytest.importorskip("wandb", reason="the extra `wandb` is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = a_run(tmp_path / "the-run")
    track(run, "wandb")
    track(run, "wandb")
    go_on(run)
    track(run, "wandb")
    track(run, "wandb")
    assert f"wandb sync {run}/wandb/offline-run-*" in capsys.readouterr().out.splitlines()[-1]
    wandb.teardown()  # as at the end of a process: waits for the one that writes the files
    values, summary, runs = wandb_holds(run)
    assert {key: found for key, found in values.items() if key[1] == "loss"} == {
        (step, "loss"): [loss] for step, loss in LOSSES if step != 3
    }
    assert all(len(found) == 1 for found in values.values())
    assert values[5, "validation_loss"] == [2.0]
    assert values[8, "validation_loss"] == [1.2]
    assert (summary["loss/nats"], summary["status"]) == (1.25, "done")
    assert {(one.run_id, one.display_name, one.project, one.run_group) for one in runs} == {
        ("the-run", "w8 d1/64k", "s", "s")
    }
    assert len(list(run.glob("wandb/offline-run-*"))) == 2, "two sessions had news"


def test_wandb_without_a_login_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="the extra `wandb` is not installed")
    run = a_run(tmp_path / "abc")
    done = scaling("track", run, "wandb", HOME=str(tmp_path), WANDB_API_KEY="", WANDB_MODE="online")
    assert done.returncode == 2
    (said,) = done.stderr.strip().splitlines()
    assert said.startswith("error: wandb")
    assert "WANDB_MODE=offline" in said
    assert not list(run.glob("tracked.*")), "nothing counts as sent"


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_an_extra_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: Any) -> None:
    for module in (name, "tensorboard.summary.writer.record_writer"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=rf"scaling-laws\[{name}\]"):
        track(a_run(tmp_path), name)


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        track(tmp_path / "nowhere")
    with pytest.raises(InputError, match=re.escape(str(tmp_path))):
        track(tmp_path)
    assert not [*tmp_path.iterdir()]
    a_run(tmp_path)
    with pytest.raises(InputError, match=r"every.*\b0\b"):
        track(tmp_path, every=0)
    with exclusive_mirror(tmp_path, "tensorboard"), pytest.raises(InputError, match="tensorboard"):
        track(tmp_path)
    assert not [*tmp_path.glob("tracked.*")], "neither sent anything"
    (tmp_path / "tracked.tensorboard.json").mkdir()
    with pytest.raises(InputError, match=os.strerror(errno.EISDIR)):
        track(tmp_path)

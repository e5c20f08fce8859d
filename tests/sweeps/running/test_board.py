"""The status of a sweep is read from its folder, whole or torn."""

import dataclasses
import io
import json
import os
import platform
import re
import subprocess
import sys
from typing import Any

import pytest
from rich.console import Console

from scaling.errors import InputError
from scaling.record.run_folder import ATTEMPTS, LEASE, METRICS, PLAN, RESULT, append_metrics, write_result
from sweeps.commands.run import run_locally
from sweeps.commands.status import read_flags, status, watch_progress, with_flags
from sweeps.running import attempt_log
from sweeps.running.board import describe_attempts, progress_board, progress_line, select_cells
from sweeps.running.claims import claim_run
from sweeps.running.progress import (
    CellProgress,
    CellState,
    FinishedCell,
    estimate_seconds_left,
    read_cell_progress,
    read_sweep_progress,
)
from tests.support.stand_in_sweep import stand_in_command, stand_in_plan


def counted(text: str) -> dict[str, int]:
    """Cells by state, of a line that counts them."""
    return {state: int(n) for n, state in re.findall(r"(\d+) (done|diverged|failed|running|waiting|torn)\b", text)}


def test_every_state(tmp_path, capsys):
    folder = tmp_path / "stand_in"
    plan = stand_in_plan(folder, "", "diverge", "crash", "", "", "", "")
    done, diverged, failed, running, interrupted, torn, waiting = (folder / "runs" / c.run_id for c in plan.cells)
    write_result(done, status="done", row={"loss": 2.5, "tokens": 2_048, "tokens_per_second": 9e3}, measurements={})
    write_result(diverged, status="diverged", row={"loss": None}, measurements={}, reason="loss is nan at step 3")
    write_result(failed, status="failed", row={}, measurements={}, reason="ValueError: [bold] moon")
    held = claim_run(running)
    assert held is not None
    for folder_ in (running, interrupted):
        folder_.mkdir(exist_ok=True, parents=True)
        append_metrics(folder_, {"step": 1, "tokens": 512, "loss": 5.0, "tokens_per_second": float("nan")})
        append_metrics(folder_, {"step": 2, "tokens": 1024, "loss": 4.5, "tokens_per_second": 512.0})
        with (folder_ / METRICS).open("a") as metrics:
            metrics.write('{"step": 3, "tok')
    torn.mkdir()
    (torn / RESULT).write_text('{"schema": 1, "sta')
    found = read_sweep_progress(folder, plan)
    states = ["done", "diverged", "failed", "running", "waiting", "torn", "waiting"]
    assert [one.state for one in found] == states
    assert (found[0].loss, found[0].tokens_per_second) == (2.5, 9e3)
    assert (found[3].loss, found[3].tokens, found[3].eta_seconds) == (4.5, 1024, 2.0)
    assert (found[4].loss, found[4].eta_seconds) == (4.5, None)
    assert str(torn / RESULT) in found[5].reason
    assert not waiting.exists()

    status("stand_in", tmp_path, tmp_path / "status.json")
    printed = capsys.readouterr().out.splitlines()
    assert [text.split()[0] for text in printed[:-1]] == states
    assert "ValueError: [bold] moon" in printed[2]
    assert re.search(rf"\b4\.5000\b.*\b512\b.*\b2 s\b.*\b{re.escape(platform.node())}\b", printed[3])
    assert counted(printed[-1]) == dict.fromkeys(states, 1) | {"waiting": 2}
    assert re.search(r"\b7\b.*\b512\b", printed[-1])
    held.release()
    facts = json.loads((tmp_path / "status.json").read_text())
    assert [cell["state"] for cell in facts["cells"]] == states

    Console(width=160).print(progress_board(plan, found))
    shown = capsys.readouterr().out
    assert "ValueError: [bold] moon" in shown
    assert all(state in shown for state in states)


def test_runs_of_a_dead_runner_do_not_count_as_running(tmp_path):
    plan = stand_in_plan(tmp_path, "")
    run = tmp_path / "runs" / plan.cells[0].run_id
    held = claim_run(run)
    assert held is not None
    assert read_sweep_progress(tmp_path, plan)[0].state == "running"
    os.utime(run / LEASE, (0, 0))
    assert read_sweep_progress(tmp_path, plan)[0].state == "waiting"
    held.release()


def test_status_of_a_finished_sweep(tmp_path, capsys):
    plan = stand_in_plan(tmp_path / "stand_in", "", "")
    assert run_locally(tmp_path / "stand_in", command=stand_in_command()) == 0
    capsys.readouterr()
    status("stand_in", tmp_path)
    printed = capsys.readouterr().out.splitlines()
    assert counted(printed[-1]) == {"done": 2}
    assert re.findall(r"\d+", printed[-1]) == ["2", "2"], "nothing flagged, no time left, no speed"
    assert [one.tokens for one in read_sweep_progress(tmp_path / "stand_in", plan)] == [600, 600]


def test_cells_that_ended_are_flagged(tmp_path, capsys):
    plan = stand_in_plan(tmp_path / "stand_in", "", "", "", "")
    runs = [tmp_path / "stand_in" / "runs" / cell.run_id for cell in plan.cells]
    row = {"tokens": 4_900, "batch_tokens": 100, "learning_rate": 1e-3, "params_matmul": 10_000, "loss": 2.0}
    write_result(runs[0], status="done", row=row, measurements={})
    write_result(runs[1], status="done", row=row | {"tokens": 5_000}, measurements={})
    write_result(runs[2], status="diverged", row=row, measurements={}, reason="loss is nan")
    status("stand_in", tmp_path, tmp_path / "status.json")
    few, fine, diverged, waiting, counts = capsys.readouterr().out.splitlines()
    assert re.search(r"\b2\.0000\b.*\bundertrained\b.*\b49\b.*\b50\b", few)
    assert "undertrained" not in fine + diverged + waiting
    assert diverged.count("diverged") == 1, "its state, not flagged as well"
    assert "loss is nan" in diverged
    assert re.findall(r"\d+", counts) == ["2", "1", "1", "4", "1"], "the last: done but flagged"
    cells = json.loads((tmp_path / "status.json").read_text())["cells"]
    assert [cell["flags"] for cell in cells] == ["undertrained", "", "diverged", ""]
    few_steps, *reasons = [cell["reason"] for cell in cells]
    assert re.search(r"\b49\b.*\b50\b", few_steps)
    assert reasons == ["", "loss is nan", ""]

    known: dict[str, FinishedCell] = {}
    now = read_sweep_progress(tmp_path / "stand_in", plan, known)
    assert [one.flags for one in now] == [""] * 4, "the runner needs none"
    found = read_flags(tmp_path / "stand_in", known)
    assert list(found) == [plan.cells[0].run_id, plan.cells[2].run_id]
    Console(width=160).print(progress_board(plan, with_flags(now, found)))
    shown = capsys.readouterr().out
    assert "undertrained" in shown
    assert few_steps in shown
    assert read_flags(tmp_path / "stand_in", {}) == {}


def test_the_runner_starts_without_analysis():
    program = (
        "import sys, sweeps.commands.run, sweeps.running.board;"
        "print([m for m in sys.modules if m.startswith('analysis')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_plan_and_another_sweeps_folder_are_bad_input(tmp_path):
    with pytest.raises(InputError, match=re.escape(str(tmp_path / "s" / PLAN))):
        status("s", tmp_path)
    stand_in_plan(tmp_path / "s", "")
    with pytest.raises(InputError, match=r"\bstand_in\b.*\bs\b"):
        status("s", tmp_path)


def test_run_folders_of_another_plan_are_counted(tmp_path, capsys):
    plan = stand_in_plan(tmp_path / "stand_in", "")
    (tmp_path / "stand_in" / "runs" / plan.cells[0].run_id).mkdir(parents=True)
    status("stand_in", tmp_path)
    before = capsys.readouterr().out.splitlines()
    for name in ("abc", "def", "ghi"):
        (tmp_path / "stand_in" / "runs" / name).mkdir()
    status("stand_in", tmp_path)
    *same, strays = capsys.readouterr().out.splitlines()
    assert same == before
    assert re.findall(r"\d+", strays) == ["3"]


def test_attempts_are_counted_since_the_run_was_reopened(tmp_path, capsys):
    plan = stand_in_plan(tmp_path, "", "", "")
    run, other, once = (tmp_path / "runs" / cell.run_id for cell in plan.cells)
    for folder in (run, other, once):
        folder.mkdir(parents=True)
    attempt_log.record_begin(run)
    attempt_log.record_end(run, "failed", "RuntimeError: before")
    attempt_log.record_reopening(run)
    for kind in ("preempted", "failed", "preempted"):
        attempt_log.record_begin(run)
        attempt_log.record_end(run, kind)
    attempt_log.record_begin(run)
    attempt_log.record_begin(other)
    attempt_log.record_end(other, "memory")
    attempt_log.record_begin(once)
    with (run / ATTEMPTS).open("a") as file:
        file.write('{"event": "end')
    held = claim_run(run)
    assert held is not None
    one, two, three = read_sweep_progress(tmp_path, plan)
    held.release()
    assert (one.state, one.attempts, one.troubles) == ("running", 4, {"preempted": 2, "failed": 1})
    assert re.search(r"\b4\b.*\b2 preempted\b.*\b1 failed\b", describe_attempts(one))
    assert re.search(r"\b1\b.*\b1 memory\b", describe_attempts(two))
    assert describe_attempts(three) == ""
    assert platform.node() in progress_line(one)
    assert all(describe_attempts(each) in progress_line(each) for each in (one, two))
    Console(width=160).print(progress_board(plan, (one, two, three)))
    assert describe_attempts(one) in capsys.readouterr().out


def test_the_last_step_is_read_from_the_end_of_a_long_log(tmp_path):
    plan = stand_in_plan(tmp_path, "")
    run = tmp_path / "runs" / plan.cells[0].run_id
    run.mkdir(parents=True)
    for step in range(1, 1001):
        append_metrics(run, {"step": step, "tokens": step, "loss": 1000.0 - step})
    append_metrics(run, {"step": 1000, "validation_loss": 3.0})
    with (run / METRICS).open("a") as metrics:
        metrics.write('{"step": 1001, "tokens": 10')
    found = read_cell_progress(run, plan.cells[0])
    assert (found.tokens, found.loss) == (1000, 0.0)
    append_metrics(run, {"step": 900, "tokens": 900, "loss": 100.0})
    assert read_cell_progress(run, plan.cells[0]).tokens == 900, (
        "of a run that went on from a checkpoint, where it is now"
    )


def test_a_result_is_read_once_until_it_changes(tmp_path, monkeypatch):
    plan = stand_in_plan(tmp_path, "", "")
    run, _ = (tmp_path / "runs" / cell.run_id for cell in plan.cells)
    write_result(run, status="failed", row={"loss": 2.5}, measurements={}, reason="once")
    known: dict[str, FinishedCell] = {}
    first = read_sweep_progress(tmp_path, plan, known)
    monkeypatch.setattr("sweeps.running.progress.read_result", lambda folder: pytest.fail("it was read again"))
    assert read_sweep_progress(tmp_path, plan, known) == first
    monkeypatch.undo()
    write_result(run, status="done", row={"loss": 2.25}, measurements={})
    assert [one.loss for one in read_sweep_progress(tmp_path, plan, known)] == [2.25, None]
    (run / RESULT).rename(run / "result.json.old")
    assert [one.state for one in read_sweep_progress(tmp_path, plan, known)] == ["waiting", "waiting"]
    assert known == {}


def test_reading_progress_writes_nothing(tmp_path):
    plan = stand_in_plan(tmp_path, "", "")
    run = tmp_path / "runs" / plan.cells[0].run_id
    held = claim_run(run)
    assert held is not None
    before = {path: path.stat().st_mtime_ns for path in (tmp_path, *tmp_path.rglob("*"))}
    assert read_sweep_progress(tmp_path, plan)[0].state == "running"
    assert {path: path.stat().st_mtime_ns for path in (tmp_path, *tmp_path.rglob("*"))} == before
    held.release()


def a_cell(name: str, state: CellState, **facts: Any) -> CellProgress:
    return CellProgress(name, name, state, **{"budget": 100} | facts)


def test_time_left_scales_the_plan_by_the_speed_of_running_cells(tmp_path):
    """Each cell is planned to take 1 s; the one that runs has done half of it and needs 3 s more: six times as slow."""
    plan = stand_in_plan(tmp_path, "", "", "", "")
    plan = dataclasses.replace(
        plan, cells=tuple(dataclasses.replace(cell, estimated_seconds=1.0) for cell in plan.cells)
    )
    states = [("running", 50, 3.0), ("waiting", 0, None), ("waiting", 50, None), ("done", 100, None)]
    now = [
        CellProgress(cell.run_id, cell.name, state, tokens=tokens, budget=100, eta_seconds=eta)
        for cell, (state, tokens, eta) in zip(plan.cells, states, strict=True)
    ]
    assert estimate_seconds_left(plan, now) == pytest.approx(3 + 6 + 3)
    two = [now[0], dataclasses.replace(now[1], state="running", eta_seconds=8.0), *now[2:]]
    assert estimate_seconds_left(plan, two) == pytest.approx(8.0), "the others fit beside the longest"
    assert estimate_seconds_left(plan, now[1:]) is None, "of some cells"
    assert estimate_seconds_left(plan, [dataclasses.replace(one, eta_seconds=None) for one in now]) is None


@pytest.mark.parametrize(("width", "height"), [(80, 24), (80, 8), (200, 50), (40, 24)])
def test_the_table_fits_the_terminal(tmp_path, width, height):
    plan = stand_in_plan(tmp_path, "")
    tried = {"attempts": 3, "troubles": {"preempted": 2}}
    many = [a_cell(f"w128-d8-{i:03}k", "done", loss=3.0, ended_at=i, tokens_per_second=51_234.0) for i in range(400)]
    many += [a_cell(f"run{i}", "running", eta_seconds=700.0, where=f"node{i % 3}", **tried) for i in range(30)]
    many += [a_cell(f"bad{i}", "failed", reason="Error: [red] moon\nis full", ended_at=i) for i in range(9)]
    many += [a_cell(f"wait{i}", "waiting") for i in range(61)]
    console = Console(force_terminal=True, color_system=None, width=width, height=height, file=(out := io.StringIO()))
    console.print(progress_board(plan, many))
    shown = out.getvalue().splitlines()
    assert len(shown) < height
    assert max(map(len, shown)) <= width
    heading = " ".join(" ".join(shown[:2]).split())
    assert "stand_in" in heading
    assert counted(heading) == {"done": 400, "running": 30, "failed": 9, "waiting": 61}
    assert re.search(r"\b500\b", heading)
    if width >= 80:
        assert sum(" running " in text for text in shown) >= 2
        assert sum(" failed " in text and "Error: [red] moon" in text for text in shown) >= 1
        assert "400 done" in shown[-1] or width == 200
    plain = io.StringIO()
    Console(file=plain, width=200).print(progress_board(plan, many))
    assert len(plain.getvalue().splitlines()) == len(many) + 2, "no terminal, nothing left out"


def test_selected_cells_are_running_newly_failed_and_newly_ended():
    running = [a_cell(f"r{i}", "running") for i in range(4)]
    failed = [a_cell(f"f{i}", "failed", ended_at=i) for i in range(6)]
    done = [a_cell(f"d{i}", "done", ended_at=10 + i) for i in range(5)]
    all_of_them = [*done, *failed, *running, a_cell("w", "waiting")]

    def names(room: int) -> list[str]:
        return [one.name for one in select_cells(all_of_them, room)]

    assert names(6) == ["r0", "r1", "r2", "r3", "f5", "f4"]
    assert names(3) == ["r0", "r1", "f5"]
    assert names(12) == ["r0", "r1", "r2", "r3", "f5", "f4", "f3", "f2", "f1", "f0", "d4", "d3"]
    assert len(names(16)) == 16


def test_a_live_table_ends_with_flags_when_nothing_runs(tmp_path, monkeypatch):
    plan = stand_in_plan(tmp_path, "", "")
    run = tmp_path / "runs" / plan.cells[0].run_id
    row = {"tokens": 4_900, "batch_tokens": 100, "learning_rate": 1e-3, "params_matmul": 10_000, "loss": 2.0}
    held = claim_run(run)
    assert held is not None

    def tick(seconds: float) -> None:
        assert seconds > 0
        write_result(run, status="done", row=row, measurements={})
        held.release()

    monkeypatch.setattr("sweeps.commands.status.time.sleep", tick)
    seen = [[(one.state, one.flags) for one in now] for now in watch_progress(tmp_path, plan)]
    assert seen == [
        [("running", ""), ("waiting", "")],
        [("done", ""), ("waiting", "")],
        [("done", "undertrained"), ("waiting", "")],
    ]

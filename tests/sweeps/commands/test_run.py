"""The runner: skips what is done, records failures and goes on, and survives SIGKILL of a run and of itself."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from scaling.config.run_config import load_config, to_dict
from scaling.errors import InputError
from scaling.exit_codes import OUT_OF_MEMORY, STOPPED
from scaling.files import write_json
from scaling.record.run_folder import CONFIG, LOG_FILE, PLAN, RESULT, RUNS, read_result, write_result
from sweeps.commands.run import run, run_locally
from sweeps.commands.status import status
from sweeps.grids import Sweep, overlay
from sweeps.local import processes
from sweeps.local.processes import slot_environment
from sweeps.planning.plan import Plan, build_plan, find_sweep, freeze_plan, load_plan
from sweeps.running import attempt_log, claims
from sweeps.running import runner as runner_module
from sweeps.running.attempt_log import RetryBudgets
from sweeps.running.claims import claim_run
from sweeps.running.outcomes import (
    classify_exit,
    exhausted_budget,
    prepare_run,
    record_failure,
    with_fitting_microbatch,
)
from tests.conftest import ROOT
from tests.support.stand_in_sweep import (
    WALL_TIME,
    StandInCorpus,
    count_starts,
    find_overlaps,
    read_result_rows,
    stand_in_command,
    stand_in_plan,
    stand_in_sweep,
)

SIMULATED = "simulated?noise=0"
CORPUS = StandInCorpus()
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
RUNNER = (
    "import signal, sys; from pathlib import Path; "
    "from sweeps.commands.run import run_locally; from tests.support.stand_in_sweep import stand_in_command\n"
    f"for number in {[int(number) for number in STOPPING]}: signal.signal(number, signal.SIG_DFL)\n"
    "sys.exit(run_locally(Path(sys.argv[1]), jobs=int(sys.argv[2]), command=stand_in_command(float(sys.argv[3]))))"
)


def start_runner(folder: Path, jobs: int, step_seconds: float) -> subprocess.Popen[str]:
    """A runner in a process of its own, which ignores no signal, even where these tests were started to ignore some
    (nohup, `make test &`)."""
    arguments = [sys.executable, "-c", RUNNER, str(folder), str(jobs), str(step_seconds)]
    env = dict(os.environ) | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(arguments, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.01)


def uninterrupted_rows(tmp_path: Path, *habits: str) -> dict[str, dict]:
    """The rows of the same sweep, run without harm."""
    stand_in_plan(tmp_path / "uninterrupted_rows", *habits)
    run_locally(tmp_path / "uninterrupted_rows", command=stand_in_command())
    return read_result_rows(tmp_path / "uninterrupted_rows")


def test_runs_everything_once_and_then_nothing(tmp_path, capsys):
    plan = stand_in_plan(tmp_path, "", "", "")
    assert run_locally(tmp_path, jobs=2, command=stand_in_command()) == 0
    first = read_result_rows(tmp_path)
    assert {row["status"] for row in first.values()} == {"done"}
    assert set(first) == {cell.run_id for cell in plan.cells}
    assert run_locally(tmp_path, jobs=2, command=stand_in_command()) == 0
    assert read_result_rows(tmp_path) == first
    assert set(count_starts(tmp_path).values()) == {1}
    assert re.search(r"\b3/3\b.*\bdone\b", capsys.readouterr().out)


def test_a_failure_is_recorded_and_the_rest_goes_on(tmp_path, capsys):
    plan = stand_in_plan(tmp_path, "crash", "", "diverge", "silent", "always_killed")
    assert run_locally(tmp_path, jobs=2, command=stand_in_command(), budgets=RetryBudgets(preemptions=3)) == 1
    results = [read_result(tmp_path / RUNS / cell.run_id) or {} for cell in plan.cells]
    assert [result["status"] for result in results] == ["failed", "done", "diverged", "failed", "failed"]
    assert re.match(r"ValueError: the moon is full\b.*\b2\b", results[0]["reason"])
    assert results[0]["traceback"].startswith("Traceback (most recent call last)")
    assert results[0]["traceback"].endswith("ValueError: the moon is full")
    assert "2" in results[3]["reason"]
    assert re.search(r"\bSIGKILL\b.*\b3\b", results[4]["reason"])
    kinds = [dict(attempt_log.count_outcomes(tmp_path / RUNS / cell.run_id)) for cell in plan.cells]
    assert kinds == [{"failed": 2}, {"done": 1}, {"diverged": 1}, {"failed": 2}, {"preempted": 3}]
    assert list(count_starts(tmp_path).values()).count(2) == 2
    row = results[0]["row"]
    known = plan.cells[0].known_columns
    spent = ("tokens", "flops", "flops_6nd", "flops_spent", "unique_tokens")
    assert {key: row[key] for key in known if key not in spent} == {k: v for k, v in known.items() if k not in spent}
    assert (row["tokens"], row["status"]) == (400, "failed")
    assert row["flops_6nd"] == 6 * row["params_matmul"] * 400
    printed = capsys.readouterr().out
    assert "failed" in printed
    assert "the moon is full" in printed


def test_an_aborted_process_is_a_failed_attempt_and_its_run_goes_on(tmp_path):
    """XLA aborts a process whose devices wait for one another too long."""
    (cell,) = stand_in_plan(tmp_path / "s", "aborted").cells
    assert run_locally(tmp_path / "s", command=stand_in_command()) == 0
    folder = tmp_path / "s" / RUNS / cell.run_id
    assert dict(attempt_log.count_outcomes(folder)) == {"failed": 1, "done": 1}
    assert "SIGABRT" in next(line["reason"] for line in attempt_log.read_attempts(folder) if "reason" in line)
    assert read_result_rows(tmp_path / "s") == uninterrupted_rows(tmp_path, "")


def test_failed_runs_stay_unless_asked(tmp_path):
    plan = stand_in_plan(tmp_path, "crash", "", "diverge")
    crashed = tmp_path / RUNS / plan.cells[0].run_id
    assert run_locally(tmp_path, command=stand_in_command()) == 1
    assert run_locally(tmp_path, retry_failed=False, command=stand_in_command()) == 1
    assert count_starts(tmp_path)[crashed.name] == 2
    assert run_locally(tmp_path, command=stand_in_command(), budgets=RetryBudgets(failures=1)) == 1
    assert count_starts(tmp_path) == {c.run_id: 1 for c in plan.cells} | {crashed.name: 3}
    mended = stand_in_plan(tmp_path, "", "", "diverge")
    assert [c.run_id for c in mended.cells] == [c.run_id for c in plan.cells]
    assert run_locally(tmp_path, command=stand_in_command()) == 0
    assert (read_result(crashed) or {})["status"] == "done"
    assert count_starts(tmp_path)[plan.cells[2].run_id] == 1


def test_a_killed_run_resumes(tmp_path, capsys):
    plan = stand_in_plan(tmp_path / "s", "killed", "")
    assert run_locally(tmp_path / "s", command=stand_in_command()) == 0
    assert read_result_rows(tmp_path / "s") == uninterrupted_rows(tmp_path, "", "")
    assert count_starts(tmp_path / "s") == {plan.cells[0].run_id: 2, plan.cells[1].run_id: 1}
    steps = (tmp_path / "s" / RUNS / plan.cells[0].run_id / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(text)["step"] for text in steps] == [1, 2, 3, 4, 5, 6]
    assert dict(attempt_log.count_outcomes(tmp_path / "s" / RUNS / plan.cells[0].run_id)) == {"preempted": 1, "done": 1}
    assert re.search(rf"{plan.cells[0].run_id}.*\bSIGKILL\b", capsys.readouterr().out)


def test_failures_and_preemptions_have_budgets_of_their_own(tmp_path):
    """Counted from the run's own ledger, so that another runner's attempts count too."""
    plan = stand_in_plan(tmp_path, "")
    run_folder = tmp_path / RUNS / plan.cells[0].run_id
    run_folder.mkdir(parents=True)
    for kind in ("preempted", "failed", "preempted", "lost", "stopped"):
        attempt_log.record_begin(run_folder)
        attempt_log.record_end(run_folder, kind, f"it was {kind}")
    budgets = RetryBudgets(failures=2, preemptions=4)
    assert budgets.exhausted_reason(attempt_log.count_outcomes(run_folder)) == ""
    assert RetryBudgets(failures=1, preemptions=4).exhausted_reason(attempt_log.count_outcomes(run_folder))
    assert "3" in RetryBudgets(failures=2, preemptions=3).exhausted_reason(attempt_log.count_outcomes(run_folder))
    attempt_log.record_begin(run_folder)
    assert run_locally(tmp_path, command=stand_in_command(), budgets=budgets) == 1
    assert count_starts(tmp_path) == {}
    result = read_result(run_folder) or {}
    assert [line["kind"] for line in attempt_log.read_attempts(run_folder) if line["event"] == "ended"][-1] == "lost"
    assert re.search(rf"\b4\b.*{re.escape(attempt_log.last_reason(run_folder))}", result["reason"])
    assert run_locally(tmp_path, command=stand_in_command(), budgets=budgets) == 0
    assert [line.get("kind", line["event"]) for line in attempt_log.read_attempts(run_folder)][-3:] == [
        "reopened",
        "began",
        "done",
    ]


def test_a_folder_in_which_an_old_process_trains_is_waited_for_and_costs_no_budget(tmp_path, monkeypatch):
    monkeypatch.setitem(runner_module.RETRY_SECONDS, "stopped", 0.1)
    plan = stand_in_plan(tmp_path, "busy")
    assert run_locally(tmp_path, command=stand_in_command(), budgets=RetryBudgets(failures=1, preemptions=1)) == 0
    assert count_starts(tmp_path) == {plan.cells[0].run_id: 4}


def test_a_run_that_runs_out_of_memory_gets_a_smaller_microbatch(tmp_path, capsys):
    plan = stand_in_plan(tmp_path, "hungry")
    batch = plan.cells[0].config.data.batch_sequences
    assert run_locally(tmp_path, command=stand_in_command(), budgets=RetryBudgets(failures=1, preemptions=1)) == 0
    found = load_config(tmp_path / RUNS / plan.cells[0].run_id / CONFIG)
    assert found.data.microbatch_sequences == 2
    assert found.run_id == plan.cells[0].run_id
    halvings = attempt_log.count_outcomes(tmp_path / RUNS / found.run_id)["memory"]
    assert batch / 2**halvings == 2
    assert capsys.readouterr().out.count("RESOURCE_EXHAUSTED") == halvings


def test_a_run_that_failed_for_memory_begins_again_with_its_whole_batch(tmp_path):
    """Another program may have had the memory; and a smaller microbatch outlives a stop, but not a failure."""
    plan = stand_in_plan(tmp_path, "hungry")
    cell, folder = plan.cells[0], tmp_path / RUNS / plan.cells[0].run_id
    folder.mkdir(parents=True)
    attempt_log.record_begin(folder)
    attempt_log.record_end(folder, "memory", "too much", sequences=2)
    assert prepare_run(folder, cell).data.microbatch_sequences == 1
    assert exhausted_budget(folder, cell, "memory", RetryBudgets(), None) == ""
    attempt_log.record_begin(folder)
    attempt_log.record_end(folder, "memory", "too much", sequences=1)
    assert exhausted_budget(folder, cell, "memory", RetryBudgets(), None)
    record_failure(folder, cell, "memory")
    assert run_locally(tmp_path, command=stand_in_command()) == 0
    assert load_config(folder / CONFIG).data.microbatch_sequences == 2


def test_a_smaller_microbatch_is_what_each_device_has(tmp_path):
    """Ran out with 2 sequences on one device: on 4 devices 4 at once are 1 each."""
    config = stand_in_plan(tmp_path, "").cells[0].config
    assert config.data.batch_sequences == 8
    assert with_fitting_microbatch(config, None, 1) == config
    found = [with_fitting_microbatch(config, 2, devices) for devices in (1, 4)]
    assert [one and one.data.microbatch_sequences for one in found] == [1, 4]
    assert with_fitting_microbatch(config, 1, 1) is None


def test_a_torn_config_beside_a_checkpoint_stops_nothing(tmp_path):
    plan = stand_in_plan(tmp_path, "", "")
    folder = tmp_path / RUNS / plan.cells[0].run_id
    (folder / "checkpoints" / "4").mkdir(parents=True)
    (folder / CONFIG).write_text('{"mod')
    assert run_locally(tmp_path, command=stand_in_command()) == 0
    record_failure(folder, plan.cells[0], "for a reason")
    (folder / CONFIG).write_text("")
    record_failure(folder, plan.cells[0], "for a reason")


def test_a_full_disk_stops_the_runner_and_fails_no_run(tmp_path):
    plan = stand_in_plan(tmp_path, "", "full", "")
    with pytest.raises(InputError, match=rf"{re.escape(str(tmp_path))}.*no space left"):
        run_locally(tmp_path, jobs=1, command=stand_in_command())
    assert all(row["status"] == "done" for row in read_result_rows(tmp_path).values())
    (tmp_path / "room").touch()
    assert run_locally(tmp_path, jobs=1, command=stand_in_command(), retry_failed=False) == 0
    assert count_starts(tmp_path)[plan.cells[1].run_id] == 2


@pytest.mark.parametrize("code", [-99, -125, -127, 253, 255])
def test_an_unknown_exit_code_is_a_failure_with_a_reason(tmp_path, code):
    kind, reason = classify_exit(code, tmp_path)
    assert kind == "failed"
    assert str(abs(code)) in reason or "SIG" in reason


def test_a_run_that_the_runner_killed_did_not_run_out_of_memory(tmp_path, monkeypatch):
    """The kernel's count is of the whole machine, and rises for others too."""
    counts = iter(range(1, 1000))
    monkeypatch.setattr(processes, "count_oom_kills", lambda: next(counts))
    monkeypatch.setattr(processes, "oom_kill_since", lambda before: True)
    process = processes.start_process([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path, processes.Slot())
    process.kill()
    assert process.poll() == -signal.SIGKILL
    other = processes.start_process([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path, processes.Slot())
    other.popen.kill()
    other.popen.wait()
    assert other.poll() == OUT_OF_MEMORY


def members_of_attempts(folder: Path, plan: Plan) -> list[list[int]]:
    """Of each cell, how many runs shared the process of each of its attempts."""
    ledgers = [attempt_log.read_attempts(folder / RUNS / cell.run_id) for cell in plan.cells]
    return [[line["members"] for line in lines if line["event"] == "began"] for lines in ledgers]


def test_a_population_that_runs_out_of_memory_is_halved_before_its_members_go_alone(tmp_path):
    """Members are hungry until their own microbatch is small, which only a run alone is given."""
    plan = stand_in_plan(tmp_path, *["hungry"] * 4, *["", ""] * 4)
    assert run_locally(tmp_path, jobs=1, command=stand_in_command(), members=None) == 0
    assert members_of_attempts(tmp_path, plan) == [[6, 3, 1, 1, 1]] * 4 + [[6, 3, 1]] * 2 + [[3]] * 6
    assert [attempt_log.count_outcomes(tmp_path / RUNS / cell.run_id)["memory"] for cell in plan.cells] == [2] * 4 + [
        0
    ] * 8
    assert {row["status"] for row in read_result_rows(tmp_path).values()} == {"done"}


def test_a_higher_priority_goes_first(tmp_path):
    sweep = stand_in_sweep("", "", "")
    cells = tuple(dataclasses.replace(cell, priority=i) for i, cell in enumerate(sweep.cells))
    plan = freeze_plan(
        tmp_path, build_plan(dataclasses.replace(sweep, cells=cells), WALL_TIME, lambda config: StandInCorpus())
    )
    assert run_locally(tmp_path, jobs=1, command=stand_in_command()) == 0
    began = {cell.run_id: (tmp_path / RUNS / cell.run_id / "starts").stat().st_mtime_ns for cell in plan.cells}
    assert sorted(began, key=began.__getitem__) == [cell.run_id for cell in plan.cells[::-1]]


def test_a_run_takes_the_devices_that_its_mesh_asks_for(tmp_path, monkeypatch):
    """Two cores for one, one for the others; too many for this machine are refused before anything starts."""
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES", raising=False)
    monkeypatch.setattr(processes, "available_cores", lambda: (0, 1))
    monkeypatch.setattr(processes, "visible_gpus", lambda: ())
    sweep = stand_in_sweep("", "", "")
    wide = overlay(sweep.cells[2], {"mesh.data": 2})
    plan = freeze_plan(
        tmp_path, build_plan(dataclasses.replace(sweep, cells=(*sweep.cells[:2], wide)), WALL_TIME, lambda c: CORPUS)
    )
    given: dict[str, tuple[int, int]] = {}

    def launch(command, folder, slot, inherit=()):
        given[folder.name] = (slot.devices, len(slot.cores))
        assert slot_environment(slot, {}).get("JAX_NUM_CPU_DEVICES") == (None, "2")[slot.devices - 1]
        return processes.start_process(command, folder, slot, inherit)

    monkeypatch.setattr("sweeps.commands.run.start_process", launch)
    assert run_locally(tmp_path, command=stand_in_command()) == 0
    assert [given.get(cell.run_id) for cell in plan.cells] == [(1, 1), (1, 1), (2, 2)]
    huge = overlay(sweep.cells[2], {"mesh.fsdp": 4})
    freeze_plan(tmp_path / "huge", build_plan(dataclasses.replace(sweep, cells=(huge,)), WALL_TIME, lambda c: CORPUS))
    with pytest.raises(InputError, match=r"\bc2\b.*\b4\b.*\b2\b"):
        run_locally(tmp_path / "huge", command=stand_in_command())


@pytest.mark.parametrize("after", [1, 3, 5])
def test_sigkill_of_the_runner_then_rerun_gives_the_same_table(tmp_path, after):
    folder = tmp_path / "s"
    stand_in_plan(folder, *[""] * 6)
    first = start_runner(folder, 2, 0.05)
    wait_until(lambda: len(count_starts(folder)) >= after)
    first.kill()
    first.communicate()
    assert len(read_result_rows(folder)) < 6
    assert run_locally(folder, jobs=2, command=stand_in_command(0.05)) == 0
    assert read_result_rows(folder) == uninterrupted_rows(tmp_path, *[""] * 6)
    assert find_overlaps(folder) == []


def test_a_rerun_waits_for_a_process_of_the_dead_runner(tmp_path):
    """SIGKILL of the runner with a child that is deaf for a second: never two writers."""
    folder = tmp_path / "s"
    stand_in_plan(folder, "")
    first = start_runner(folder, 1, 1.0)
    wait_until(lambda: count_starts(folder))
    first.kill()
    first.communicate()
    assert run_locally(folder, jobs=1, command=stand_in_command()) == 0
    assert find_overlaps(folder) == []
    assert read_result_rows(folder) == uninterrupted_rows(tmp_path, "")


def test_two_runners_share_the_work(tmp_path):
    folder = tmp_path / "s"
    stand_in_plan(folder, *[""] * 10)
    both = [start_runner(folder, 2, 0.02) for _ in range(2)]
    printed = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], printed
    assert set(count_starts(folder).values()) == {1}
    assert find_overlaps(folder) == []
    assert read_result_rows(folder) == uninterrupted_rows(tmp_path, *[""] * 10)


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_stops_in_order_and_the_rerun_goes_on(tmp_path, number):
    folder = tmp_path / "s"
    stand_in_plan(folder, *[""] * 4)
    first = start_runner(folder, 2, 0.5)
    wait_until(lambda: len(count_starts(folder)) == 2 and list((folder / RUNS).glob("*/saved.json")))
    first.send_signal(number)
    printed, _ = first.communicate(timeout=20)
    assert first.returncode == STOPPED, printed
    assert read_result_rows(folder) == {}
    assert len(count_starts(folder)) == 2
    assert run_locally(folder, jobs=2, command=stand_in_command()) == 0
    assert read_result_rows(folder) == uninterrupted_rows(tmp_path, *[""] * 4)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_that_the_runner_was_started_to_ignore_stops_nothing(tmp_path, number):
    """As nohup and a shell's & start it; SIGTERM still ends it in order."""
    stand_in_plan(tmp_path, "", "")
    came = []

    def sent() -> None:
        wait_until(lambda: count_starts(tmp_path))
        came.append(list((tmp_path / RUNS).glob(f"*/{RESULT}")))
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=sent)
    before = signal.signal(number, signal.SIG_IGN)
    try:
        sender.start()
        assert run_locally(tmp_path, jobs=1, command=stand_in_command(0.1)) == 0
    finally:
        sender.join()
        kept = signal.signal(number, before)
    assert came == [[]], "it came while runs were to be made"
    assert kept == signal.SIG_IGN
    assert set(count_starts(tmp_path).values()) == {1}


def test_a_stopped_run_is_resumed_not_failed(tmp_path):
    folder = tmp_path / "s"
    plan = stand_in_plan(folder, "")
    process = start_runner(folder, 1, 0.3)
    witness = folder / RUNS / plan.cells[0].run_id / "starts"
    wait_until(lambda: (witness.parent / "saved.json").exists())
    os.kill(int(witness.read_text().split()[0]), signal.SIGTERM)
    printed, _ = process.communicate(timeout=20)
    assert process.returncode == 0, printed
    assert count_starts(folder) == {plan.cells[0].run_id: 2}
    assert read_result_rows(folder) == uninterrupted_rows(tmp_path, "")


@pytest.mark.parametrize("text", ["", '{"schema": 1, "status": "do', "null", "\x80"])
def test_a_torn_run_folder_is_set_aside_and_made_again(tmp_path, text):
    folder = tmp_path / "s"
    plan = stand_in_plan(folder, "", "")
    torn = folder / RUNS / plan.cells[0].run_id
    torn.mkdir(parents=True)
    (torn / RESULT).write_bytes(text.encode("latin-1"))
    (torn / "config.json").write_text('{"mod')
    (torn / "metrics.jsonl").write_text('{"step": 1, "to')
    assert run_locally(folder, command=stand_in_command()) == 0
    assert read_result_rows(folder) == uninterrupted_rows(tmp_path, "", "")
    assert (torn / f"{RESULT}.old").read_bytes() == text.encode("latin-1")


def test_what_another_runner_finished_before_the_claim_is_not_run_again(tmp_path, monkeypatch):
    """The result appears between the look and the claim: it must be seen after the claim."""
    folder = tmp_path / "s"
    plan = stand_in_plan(folder, "")

    def late(run_folder: Path):
        write_result(run_folder, status="done", row={"tokens": 1}, measurements={})
        return claim_run(run_folder)

    monkeypatch.setattr(runner_module, "claim_run", late)
    assert run_locally(folder, command=stand_in_command()) == 0
    assert count_starts(folder) == {}
    assert (read_result(folder / RUNS / plan.cells[0].run_id) or {})["row"]["tokens"] == 1


def test_a_run_that_lost_its_claim_is_killed_and_writes_nothing(tmp_path, monkeypatch):
    folder = tmp_path / "s"
    plan = stand_in_plan(folder, "")
    monkeypatch.setattr(claims, "HEARTBEAT_SECONDS", 0.2)
    beats = iter([False])
    monkeypatch.setattr(runner_module.Claim, "renew", lambda self: next(beats, True) if count_starts(folder) else True)
    assert run_locally(folder, jobs=1, command=stand_in_command(0.2)) == 0
    assert count_starts(folder) == {plan.cells[0].run_id: 2}
    assert find_overlaps(folder) == []
    assert read_result_rows(folder) == uninterrupted_rows(tmp_path, "")


def test_the_longest_run_goes_first(tmp_path):
    cells = tuple(
        dataclasses.replace(c, estimated_seconds=float(i))
        for i, c in enumerate(stand_in_plan(tmp_path / "x", *[""] * 3).cells)
    )
    freeze_plan(tmp_path / "s", dataclasses.replace(load_plan(tmp_path / "x"), cells=cells))
    assert run_locally(tmp_path / "s", jobs=1, command=stand_in_command()) == 0
    began = {cell.run_id: (tmp_path / "s" / RUNS / cell.run_id / "starts").stat().st_mtime_ns for cell in cells}
    assert sorted(began, key=began.__getitem__) == [cell.run_id for cell in cells[::-1]]


def test_a_folder_that_cannot_be_written_is_bad_input(tmp_path):
    stand_in_plan(tmp_path, "", "")
    (tmp_path / RUNS).write_text("in the way")
    with pytest.raises(InputError, match=re.escape(str(tmp_path / RUNS))):
        run_locally(tmp_path, command=stand_in_command())


def test_a_sweep_folder_that_is_deleted_ends_the_sweep_and_is_not_made_again(tmp_path):
    folder = tmp_path / "s"
    stand_in_plan(folder, "", "", "")

    def delete() -> None:
        wait_until(lambda: len(count_starts(folder)) == 2)
        folder.rename(tmp_path / "moved")

    deleter = threading.Thread(target=delete)
    deleter.start()
    with pytest.raises(InputError, match=rf"{re.escape(str(folder))}\b.*\b{PLAN}"):
        run_locally(folder, jobs=2, command=stand_in_command(0.5))
    deleter.join()
    assert not folder.exists()
    assert read_result_rows(tmp_path / "moved") == {}


def test_the_verb(tmp_path, monkeypatch, capsys):
    made = build_plan(stand_in_sweep("crash", ""), WALL_TIME, lambda config: CORPUS)
    freeze_plan(tmp_path / "smoke", made)
    with pytest.raises(InputError, match=r"smoke\b.*\bstand_in\b"):
        run("smoke", tmp_path)
    (tmp_path / "smoke" / PLAN).unlink()
    freeze_plan(tmp_path / "smoke", dataclasses.replace(made, sweep="smoke"))
    monkeypatch.setattr(run_locally, "__kwdefaults__", run_locally.__kwdefaults__ | {"command": stand_in_command()})
    assert run("smoke", tmp_path, json=tmp_path / "facts.json", members=1) == 1
    assert re.search(r"\bsmoke\b.*\b1 failed\b.*\b1 done\b.*\b2\b", capsys.readouterr().out)
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert facts["exit_code"] == 1
    assert [cell["state"] for cell in facts["cells"]] == ["failed", "done"]


@pytest.mark.parametrize(
    ("name", "says"), [("smoke", rf"smoke.{PLAN}.*`scaling sweep plan smoke`"), ("smok", r"\bsmok\b.*\bsmoke\b")]
)
def test_no_plan_is_bad_input(tmp_path, name, says):
    with pytest.raises(InputError, match=says):
        run(name, tmp_path)


@pytest.mark.parametrize("state", ["waiting", "done"])
def test_a_config_that_was_edited_in_a_run_folder_stops_the_sweep(tmp_path, state):
    made = stand_in_plan(tmp_path / "stand_in", "", "")
    if state == "done":
        assert run_locally(tmp_path / "stand_in", command=stand_in_command()) == 0
    folder = tmp_path / "stand_in" / RUNS / made.cells[1].run_id
    edited = overlay(made.cells[1].config, {"optimizer.beta1": 0.5})
    write_json(folder / CONFIG, to_dict(edited))
    for verb in (lambda: run("stand_in", tmp_path), lambda: status("stand_in", tmp_path)):
        with pytest.raises(InputError, match=rf"{folder.name}.*{edited.run_id}.*\boptimizer\.beta1\b.*\b0\.5\b"):
            verb()
    with pytest.raises(InputError, match=edited.run_id):
        prepare_run(folder, made.cells[1])
    assert load_config(folder / CONFIG) == edited
    assert len(count_starts(tmp_path / "stand_in")) == (2 if state == "done" else 0)


def test_a_failure_is_recorded_as_of_the_planned_run(tmp_path):
    made = stand_in_plan(tmp_path, "")
    write_json(tmp_path / RUNS / made.cells[0].run_id / CONFIG, to_dict(overlay(made.cells[0].config, {"seed": 5})))
    record_failure(tmp_path / RUNS / made.cells[0].run_id, made.cells[0], "why")
    assert (read_result(tmp_path / RUNS / made.cells[0].run_id) or {})["row"]["run_id"] == made.cells[0].run_id


def runs_by_process(folder: Path) -> list[set[str]]:
    """Which runs were started by which process."""
    by_process: dict[str, set[str]] = {}
    for path in (folder / RUNS).glob("*/starts"):
        for line in path.read_text().splitlines():
            by_process.setdefault(line.split()[0], set()).add(path.parent.name)
    return list(by_process.values())


def test_runs_of_one_shape_share_a_process(tmp_path):
    plan = stand_in_plan(tmp_path, *[""] * 6)
    assert run_locally(tmp_path, jobs=1, command=stand_in_command(), members=None) == 0
    assert sorted(map(len, runs_by_process(tmp_path))) == [1, 1, 1, 3]
    assert set.union(*runs_by_process(tmp_path)) == {cell.run_id for cell in plan.cells}
    alone = tmp_path / "alone"
    stand_in_plan(alone, *[""] * 6)
    assert run_locally(alone, jobs=1, command=stand_in_command(), members=1) == 0
    assert read_result_rows(alone) == read_result_rows(tmp_path)
    assert sorted(map(len, runs_by_process(alone))) == [1] * 6


def test_members_whose_population_ends_without_them_are_tried_alone(tmp_path):
    plan = stand_in_plan(tmp_path, "crash", "", "diverge", "", "silent", "")
    assert run_locally(tmp_path, jobs=1, command=stand_in_command(), members=None) == 1
    states = {cell.name: read_result_rows(tmp_path)[cell.run_id]["status"] for cell in plan.cells}
    assert list(states.values()) == ["failed", "done", "diverged", "done", "failed", "done"]
    assert members_of_attempts(tmp_path, plan) == [[3, 1, 1], [3, 1], [3, 1], [3], [3, 1, 1], [3]]
    first = tmp_path / RUNS / plan.cells[0].run_id
    assert dict(attempt_log.count_outcomes(first)) == {"stopped": 1, "failed": 2}
    assert "ValueError: the moon is full" in next(
        line["reason"] for line in attempt_log.read_attempts(first) if "reason" in line
    )
    assert re.match(r"ValueError: the moon is full\b.*\b2\b", read_result_rows(tmp_path)[first.name]["reason"])


def test_every_member_of_a_failed_population_gets_the_reason(tmp_path):
    """The process writes its output to the log of the first member alone."""
    plan = stand_in_plan(tmp_path, "crash", "", "", "", "", "")
    assert run_locally(tmp_path, jobs=1, command=stand_in_command(), members=None) == 1
    for cell in plan.cells[:3]:
        lines = attempt_log.read_attempts(tmp_path / RUNS / cell.run_id)
        assert lines[0]["members"] == 3
        assert "ValueError: the moon is full" in lines[1]["reason"]


def test_a_process_killed_for_memory_without_output_has_a_whole_reason(tmp_path):
    assert classify_exit(OUT_OF_MEMORY, tmp_path) == ("memory", "ran out of memory")
    (tmp_path / LOG_FILE).write_text("RESOURCE_EXHAUSTED: too much\n")
    assert classify_exit(OUT_OF_MEMORY, tmp_path) == ("memory", "ran out of memory: RESOURCE_EXHAUSTED: too much")


def test_each_reported_cell_raises_the_count_of_ended_cells_by_one(tmp_path, capsys):
    """Also where a member that failed comes before members of its population that have results."""
    stand_in_plan(tmp_path, "crash", "", "", "", "", "")
    command = stand_in_command()
    last_first = lambda *folders: command(*reversed(folders))  # noqa: E731
    assert run_locally(tmp_path, jobs=1, command=last_first, members=None) == 1
    counts = re.findall(r"^\[(\d+)/6\]", capsys.readouterr().out, re.MULTILINE)
    assert counts == ["1", "2", "3", "4", "5", "6"]


def test_a_killed_population_goes_on_from_its_checkpoints(tmp_path):
    stand_in_plan(tmp_path / "s", "killed", "", "", "", "", "")
    assert run_locally(tmp_path / "s", jobs=1, command=stand_in_command(), members=None) == 0
    assert read_result_rows(tmp_path / "s") == uninterrupted_rows(tmp_path, "killed", "", "", "", "", "")


def trunk_plan(folder: Path, corpus: str = SIMULATED) -> Plan:
    """Three horizons of one run, in the order of the plan: a branch, the trunk, a branch."""
    base = overlay(find_sweep("smoke").cells[3], {"data.corpus": corpus})
    cells = tuple(overlay(base, {"tokens": tokens, "name": str(tokens)}) for tokens in (8_192, 32_768, 16_384))
    return freeze_plan(folder, build_plan(Sweep("trunks", cells, ""), WALL_TIME, lambda config: StandInCorpus()))


def test_branches_start_when_their_trunk_has_come_so_far_and_not_before(tmp_path):
    plan = trunk_plan(tmp_path, "walk")
    assert run_locally(tmp_path, jobs=2, command=stand_in_command(0.3)) == 0
    branch, trunk, other = (tmp_path / RUNS / cell.run_id for cell in plan.cells)
    kept = max(path.stat().st_mtime_ns for path in (trunk / "branches").iterdir())
    for one in (branch, other):
        assert (one / "starts").stat().st_mtime_ns > kept
        assert load_config(one / CONFIG).branch_of == trunk.name
    first = min((one / "starts").stat().st_mtime_ns for one in (branch, other))
    assert first < (trunk / RESULT).stat().st_mtime_ns, "beside the trunk's last steps"


def test_a_trunk_that_another_runner_ended_meanwhile_blocks_no_branch(tmp_path, monkeypatch):
    """It had failed and was to be retried; its branches must not wait for that."""
    plan = trunk_plan(tmp_path, "walk")
    trunk = plan.cells[1]
    folder = tmp_path / RUNS / trunk.run_id
    write_result(folder, status="failed", row=trunk.known_columns, measurements={})

    def late(run_folder: Path):
        if run_folder == folder:
            row = trunk.known_columns | {"status": "diverged", "tokens": 512}
            write_result(folder, status="diverged", row=row, measurements={}, reason="nan")
        return claim_run(run_folder)

    monkeypatch.setattr(runner_module, "claim_run", late)
    impatience = threading.Timer(20, os.kill, (os.getpid(), signal.SIGTERM))
    impatience.start()
    try:
        assert run_locally(tmp_path, command=stand_in_command()) == 0
    finally:
        impatience.cancel()


def test_a_branch_that_began_alone_goes_on_alone(tmp_path):
    plan = trunk_plan(tmp_path, "walk")
    cell, trunk = plan.cells[0], plan.cells[1]
    folder = tmp_path / RUNS / cell.run_id
    write_result(tmp_path / RUNS / trunk.run_id, status="failed", row=trunk.known_columns, measurements={})
    assert prepare_run(folder, cell).branch_of == ""
    (folder / "checkpoints" / "4").mkdir(parents=True)
    (tmp_path / RUNS / trunk.run_id / "branches" / str(cell.config.branch_step)).mkdir(parents=True)
    assert prepare_run(folder, cell).branch_of == ""
    record_failure(folder, cell, "for a reason")
    row = (read_result(folder) or {})["row"]
    assert row["flops_spent"] == row["flops"]


def test_a_simulated_cell_that_fails_is_recorded_and_the_rest_goes_on(tmp_path, monkeypatch):
    plan = trunk_plan(tmp_path)
    real = runner_module.simulated_run.simulate_run

    def train(config, folder):
        if config.run_id == plan.cells[0].run_id:
            raise ValueError("the law is out")
        return real(config, folder)

    monkeypatch.setattr(runner_module.simulated_run, "simulate_run", train)
    assert run_locally(tmp_path) == 1
    assert [read_result_rows(tmp_path)[cell.run_id]["status"] for cell in plan.cells] == ["failed", "done", "done"]
    assert read_result_rows(tmp_path)[plan.cells[0].run_id]["reason"] == "ValueError: the law is out"


def test_simulated_branches_come_after_their_trunk_and_spend_their_cooldown(tmp_path, capsys):
    plan = trunk_plan(tmp_path)
    assert run_locally(tmp_path) == 0
    printed = capsys.readouterr().out
    assert min((cell.run_id for cell in plan.cells), key=printed.index) == plan.cells[1].run_id
    spent = [
        read_result_rows(tmp_path)[cell.run_id]["flops_spent"] / cell.known_columns["flops"] for cell in plan.cells
    ]
    assert spent == pytest.approx([0.25, 1.0, 0.25])


@pytest.mark.parametrize("status", ["done", "failed"])
def test_a_branch_whose_trunk_kept_no_state_trains_alone(tmp_path, status):
    """A trunk of an older plan, or one that failed: the branch is trained whole, and says so."""
    plan = trunk_plan(tmp_path)
    trunk = plan.cells[1]
    write_result(
        tmp_path / RUNS / trunk.run_id, status=status, row=trunk.known_columns | {"status": status}, measurements={}
    )
    assert run_locally(tmp_path, retry_failed=False) == int(status == "failed")
    found = read_result_rows(tmp_path)
    for cell in (plan.cells[0], plan.cells[2]):
        assert found[cell.run_id]["branch_of"] == ""
        assert found[cell.run_id]["flops_spent"] == found[cell.run_id]["flops"]


def test_a_wrong_number_of_members_is_bad_input(tmp_path):
    stand_in_plan(tmp_path / "smoke", "")
    with pytest.raises(InputError, match=r"\bmembers\b.*\b0\b"):
        run("smoke", tmp_path, members=0)

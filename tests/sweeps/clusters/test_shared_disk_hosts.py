"""Hosts that share a folder alone: each a process here, which starts and loses real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from scaling import exit_codes, files
from scaling.config.run_config import MeshConfig, RunConfig
from scaling.files import write_json
from scaling.record import run_folder as record
from scaling.signals import handle_signals
from sweeps.catalog import smoke
from sweeps.clusters import heartbeats, shared_disk_hosts
from sweeps.clusters.heartbeats import Voice
from sweeps.clusters.shared_disk_hosts import Leader
from sweeps.local.launch import ProcessHandle, Slot
from sweeps.planning.plan import RUNS, build_plan, freeze_plan
from tests.support.stand_in_sweep import WALL_TIME

QUICK = "from sweeps.local.launch import hosts, voices; voices.SILENT_SECONDS = 4.0; hosts.SETTLE_SECONDS = 0.5; "
FOLLOW = "import sys; sys.exit(hosts.main(sys.argv[1:]))"


def host(folder: Path, rank: int, count: int = 3) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", QUICK + FOLLOW, str(folder), "slice", str(rank), str(count), str(count)]
    return subprocess.Popen(command, env=os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"})


@pytest.fixture
def crew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Leader, list[subprocess.Popen[bytes]]]]:
    """The first of three hosts, which is this process, and the two others."""
    monkeypatch.setattr(heartbeats, "SILENT_SECONDS", 4.0)
    monkeypatch.setattr(shared_disk_hosts, "SETTLE_SECONDS", 0.5)
    others = [host(tmp_path, rank) for rank in (1, 2)]
    leader, over = Leader(tmp_path / shared_disk_hosts.HOSTS / "slice", 3, 3), threading.Event()
    beating = threading.Thread(target=leader.lives, args=(over,))
    beating.start()
    yield leader, others
    over.set()
    beating.join()
    for other in others:
        other.kill()
        other.wait()


def run(leader: Leader, folder: Path, script: str) -> ProcessHandle:
    folder.mkdir(exist_ok=True)
    return leader(["sh", "-c", script], folder, Slot())


def code(handle: ProcessHandle, seconds: float = 60) -> int:
    late = time.monotonic() + seconds
    while (found := handle.poll()) is None:
        assert time.monotonic() < late
        time.sleep(0.05)
    return found


def until(true: Callable[[], object], seconds: float = 60) -> None:
    late = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < late
        time.sleep(0.02)


Crew = tuple[Leader, list[subprocess.Popen[bytes]]]


def test_each_host_has_its_process_and_all_are_told_of_each_other(crew: Crew, tmp_path: Path) -> None:
    leader, _ = crew
    folder = tmp_path / "run"
    told = "echo $JAX_PROCESS_ID $JAX_NUM_PROCESSES $JAX_COORDINATOR_ADDRESS >"
    for name in ("a", "b"):
        assert code(run(leader, folder, f"{told} {folder}/{name}$JAX_PROCESS_ID")) == 0
        said = [(folder / f"{name}{rank}").read_text().split() for rank in range(3)]
        assert [one[:2] for one in said] == [["0", "3"], ["1", "3"], ["2", "3"]]
        assert len({one[2] for one in said}) == 1


def test_one_that_fails_ends_all_by_its_own_code(crew: Crew, tmp_path: Path) -> None:
    leader, _ = crew
    pids = "echo $$ >pid$JAX_PROCESS_ID; [ $JAX_PROCESS_ID = 2 ] && exit 12; exec sleep 100"
    handle = run(leader, tmp_path / "run", f"cd {tmp_path / 'run'}; {pids}")
    assert code(handle) == exit_codes.OUT_OF_MEMORY
    for rank in (0, 1):
        pid = int((tmp_path / "run" / f"pid{rank}").read_text())
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert code(run(leader, tmp_path / "run", "exit 0")) == 0, "the hosts serve on"


def test_a_run_is_asked_to_save_on_the_first_host_and_killed_on_all(crew: Crew, tmp_path: Path) -> None:
    leader, _ = crew
    folder = tmp_path / "run"
    script = f"trap 'exit 75' TERM; touch {folder}/up$JAX_PROCESS_ID; while true; do sleep 0.1; done"
    handle = run(leader, folder, script)
    until(lambda: handle.poll() is None and all((folder / f"up{rank}").exists() for rank in range(3)))
    handle.kill()
    assert handle.poll() == -signal.SIGKILL
    early = run(leader, folder, script)
    early.terminate()
    assert code(early) == exit_codes.STOPPED, "before it had a process"


def test_a_lost_host_is_the_loss_of_the_run_and_the_worker_ends(crew: Crew, tmp_path: Path) -> None:
    """Who started the hosts starts them again; without them there is nothing to start a run on."""
    leader, others = crew
    folder = tmp_path / "run"
    handle = run(leader, folder, f"touch {folder}/up$JAX_PROCESS_ID; exec sleep 100")
    until(lambda: handle.poll() is None and all((folder / f"up{rank}").exists() for rank in range(3)))
    others[0].kill()
    assert code(handle) in (exit_codes.PROCESS_LOST, -signal.SIGKILL)
    asked: list[int] = []
    with handle_signals([signal.SIGTERM], asked.append):
        assert code(run(leader, folder, "exit 0")) == exit_codes.STOPPED
    assert asked


def test_a_host_whose_first_one_dies_ends_with_its_process(tmp_path: Path) -> None:
    place = tmp_path / shared_disk_hosts.HOSTS / "slice"
    other = host(tmp_path, 1, count=2)
    voice = Voice(place / "1.json")
    until(voice.listen)
    for beat in range(3):
        order = {"id": "first", "number": 1, "crew": [voice.listen()["id"]], "beat": beat}
        order |= {"command": ["sh", "-c", "exec sleep 100"], "folder": str(tmp_path), "peers": {}}
        write_json(place / "leader.json", order)
        time.sleep(0.3)
    assert other.wait(30) == exit_codes.PROCESS_LOST
    assert voice.listen()["number"] == 1


def test_what_an_earlier_life_said_is_not_heard(tmp_path: Path) -> None:
    write_json(tmp_path / "leader.json", {"id": "old", "over": "work", "beat": 7})
    voice = Voice(tmp_path / "leader.json")
    assert voice.listen() == {}
    write_json(tmp_path / "leader.json", {"id": "new", "beat": 1})
    assert voice.listen()["id"] == "new"


def slice_of_two(folder: Path) -> Sequence[subprocess.Popen[bytes]]:
    return [host(folder, rank, count=2) for rank in (0, 1)]


@pytest.mark.slow
def test_a_sweep_over_two_hosts_of_which_one_is_killed(tiny: RunConfig, tmp_path: Path) -> None:
    """Real runs by two processes each. After the kill, who started the hosts starts them again."""
    measure = replace(tiny.measure, checkpoint_every_tokens=64 * tiny.data.batch_tokens)
    config = replace(tiny, mesh=MeshConfig(fsdp=2), tokens=tiny.tokens * 8, measure=measure)
    folder = tmp_path / "pair"
    made = freeze_plan(folder, build_plan(replace(smoke.sweep(), name="pair", cells=(config,)), WALL_TIME))
    run_folder = folder / RUNS / made.cells[0].run_id
    both = slice_of_two(folder)
    until(lambda: any((run_folder / record.CHECKPOINTS).glob("[0-9]*")), 120)
    for one in both[::-1]:
        one.kill()
        one.wait()
    assert record.read_result(run_folder) is None
    again = slice_of_two(folder)
    assert [one.wait(240) for one in again] == [0, 0]
    result = record.read_result(run_folder)
    assert result is not None
    assert result["status"] == "done"
    assert files.read_json(run_folder / record.ENVIRONMENT)["processes"] == 2

"""The hosts of a slice, each a process here, which start and lose real processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from scaling import exit_codes, files
from scaling.config.run_config import MeshConfig, RunConfig
from scaling.files import write_json
from scaling.record import run_folder as record
from scaling.record.run_folder import RUNS
from scaling.signals import handle_signals
from sweeps.catalog import smoke
from sweeps.clusters import process_supervision, slice_worker
from sweeps.clusters.slice_worker import HostLeader
from sweeps.local.launch import ProcessHandle, Slot
from sweeps.planning.plan import build_plan, freeze_plan
from tests.support.stand_in_sweep import WALL_TIME

HOST_PROGRAM = (
    "import sys; from sweeps.clusters import process_supervision, slice_worker; "
    "process_supervision.CRASH_SECONDS = 0.5; sys.exit(slice_worker.main(sys.argv[1:]))"
)


def start_host(folder: Path, rank: int, count: int = 3) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", HOST_PROGRAM, str(folder), "slice", str(rank), str(count), str(count)]
    return subprocess.Popen(command, env=os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"})


Slice = tuple[HostLeader, list[subprocess.Popen[bytes]]]


@pytest.fixture
def three_hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Slice]:
    """Host 0, which is this process, and the two others."""
    monkeypatch.setattr(process_supervision, "CRASH_SECONDS", 0.5)
    others = [start_host(tmp_path, rank) for rank in (1, 2)]
    followers = slice_worker.accept_followers(tmp_path / slice_worker.HOSTS_FOLDER / "slice.json", 3)
    yield HostLeader(followers, devices_per_host=1), others
    for other in others:
        other.kill()
        other.wait()


def run(leader: HostLeader, folder: Path, script: str) -> ProcessHandle:
    folder.mkdir(exist_ok=True)
    return leader(["sh", "-c", script], folder, Slot())


def code(handle: ProcessHandle, seconds: float = 60) -> int:
    deadline = time.monotonic() + seconds
    while (exit_code := handle.poll()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return exit_code


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_each_host_has_a_process_with_the_variables_of_jax_distributed(three_hosts: Slice, tmp_path: Path) -> None:
    leader, _ = three_hosts
    folder = tmp_path / "run"
    write_variables = "echo $JAX_PROCESS_ID $JAX_NUM_PROCESSES $JAX_COORDINATOR_ADDRESS >"
    for name in ("a", "b"):
        assert code(run(leader, folder, f"{write_variables} {folder}/{name}$JAX_PROCESS_ID")) == 0
        variables = [(folder / f"{name}{rank}").read_text().split() for rank in range(3)]
        assert [words[:2] for words in variables] == [["0", "3"], ["1", "3"], ["2", "3"]]
        assert len({words[2] for words in variables}) == 1


def test_one_that_fails_ends_all_by_its_own_code(three_hosts: Slice, tmp_path: Path) -> None:
    leader, _ = three_hosts
    pids = "echo $$ >pid$JAX_PROCESS_ID; [ $JAX_PROCESS_ID = 2 ] && exit 12; exec sleep 100"
    handle = run(leader, tmp_path / "run", f"cd {tmp_path / 'run'}; {pids}")
    assert code(handle) == exit_codes.OUT_OF_MEMORY
    for rank in (0, 1):
        pid = int((tmp_path / "run" / f"pid{rank}").read_text())
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert code(run(leader, tmp_path / "run", "exit 0")) == 0, "the hosts take the next run"


def test_a_run_is_killed_on_all_hosts(three_hosts: Slice, tmp_path: Path) -> None:
    leader, _ = three_hosts
    folder = tmp_path / "run"
    script = f"trap 'exit 75' TERM; touch {folder}/up$JAX_PROCESS_ID; while true; do sleep 0.1; done"
    handle = run(leader, folder, script)
    until(lambda: handle.poll() is None and all((folder / f"up{rank}").exists() for rank in range(3)))
    handle.kill()
    assert handle.poll() == -signal.SIGKILL
    assert code(run(leader, folder, "exit 0")) == 0, "the hosts take the next run"


def test_a_lost_host_is_the_loss_of_the_run_and_the_worker_ends(three_hosts: Slice, tmp_path: Path) -> None:
    """Who started the hosts starts them again; without them there is nothing to start a run on."""
    leader, others = three_hosts
    folder = tmp_path / "run"
    handle = run(leader, folder, f"touch {folder}/up$JAX_PROCESS_ID; exec sleep 100")
    until(lambda: handle.poll() is None and all((folder / f"up{rank}").exists() for rank in range(3)))
    signals: list[int] = []
    with handle_signals([signal.SIGTERM], signals.append):
        others[0].kill()
        assert code(handle) in (exit_codes.PROCESS_LOST, -signal.SIGKILL)
        assert code(run(leader, folder, "exit 0")) == exit_codes.STOPPED
    assert signals == [signal.SIGTERM], "the worker of host 0 is asked to end once"


def test_a_host_ends_with_its_process_when_host_0_dies(tmp_path: Path) -> None:
    other = start_host(tmp_path, 1, count=2)
    leader = HostLeader(slice_worker.accept_followers(tmp_path / "hosts" / "slice.json", 2), devices_per_host=1)
    script = f"echo $$ >{tmp_path}/pid.$JAX_PROCESS_ID; mv {tmp_path}/pid.$JAX_PROCESS_ID {tmp_path}/pid$JAX_PROCESS_ID"
    handle = run(leader, tmp_path / "run", f"{script}; exec sleep 100")
    until((tmp_path / "pid1").exists)
    leader.followers[0].connection.socket.close()
    assert other.wait(30) == exit_codes.PROCESS_LOST
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid1").read_text()), 0)
    assert isinstance(handle, slice_worker.SliceRun)
    assert handle.own_process is not None
    handle.own_process.kill()


def test_a_signal_to_another_host_stops_the_run_and_the_slice(three_hosts: Slice, tmp_path: Path) -> None:
    """The trainer makes all save when one is asked; here the scripts of all hosts end when one has."""
    leader, others = three_hosts
    folder = tmp_path / "run"
    script = f"trap 'touch {folder}/end' TERM; touch {folder}/up$JAX_PROCESS_ID; "
    handle = run(leader, folder, script + f"until [ -e {folder}/end ]; do sleep 0.1; done; exit 75")
    until(lambda: all((folder / f"up{rank}").exists() for rank in range(3)))
    signals: list[int] = []
    with handle_signals([signal.SIGTERM], signals.append):
        others[1].terminate()
        assert code(handle) == exit_codes.STOPPED
        assert others[1].wait(30) == exit_codes.STOPPED
        assert code(run(leader, folder, "exit 0")) == exit_codes.STOPPED
    assert signals == [signal.SIGTERM], "the worker of host 0 is asked to end once"


def test_hosts_ignore_the_address_of_an_earlier_start(tmp_path: Path) -> None:
    """Host 1 starts first and reads a file that an earlier host 0 left, whose port another program has now."""
    address_file = tmp_path / slice_worker.HOSTS_FOLDER / "slice.json"
    with socket.create_server(("", 0)) as stranger:
        write_json(address_file, {"host": "127.0.0.1", "port": stranger.getsockname()[1], "key": "earlier"})
        other = start_host(tmp_path, 1, count=2)
        stranger.accept()[0].close()
    (follower,) = slice_worker.accept_followers(address_file, 2)
    HostLeader([follower], 1).send({"order": "end"})
    assert other.wait(30) == 0


def test_hosts_that_do_not_meet_end_as_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slice_worker, "MEET_SECONDS", 0.5)
    for rank in ("0", "1"):
        assert slice_worker.main([str(tmp_path), "slice", rank, "2", "2"]) == exit_codes.PROCESS_LOST


def slice_of_two(folder: Path) -> Sequence[subprocess.Popen[bytes]]:
    return [start_host(folder, rank, count=2) for rank in (0, 1)]


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

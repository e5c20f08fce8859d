"""Real pairs of processes over loopback, with gloo's collectives, of which one is killed or asked to stop."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from scaling import exit_codes, files
from scaling.config.run_config import MeshConfig, RunConfig, to_dict
from scaling.errors import InputError
from scaling.model.sharding import make_mesh
from scaling.record import run_folder
from scaling.training.checkpoints import Checkpoints
from scaling.training.multihost import bind_address, exit_together, initialize_distributed, lost_peer, make_vote
from scaling.training.train_step import build_program

CADENCE = 40
SOON = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
"""See conftest.unoptimized_programs: all that is compared bit for bit is made by these programs."""
PROGRAM = "import sys; from scaling.cli import main; main(sys.argv[1:])"
TORN = (
    "import os, scaling.training.train as train; whole = train.gather_batch\n"
    "def torn(*args, step, **options):\n"
    "    if step == 3 and os.environ['JAX_PROCESS_ID'] == '1': raise ValueError('torn')\n"
    "    return whole(*args, step=step, **options)\n"
    "train.gather_batch = torn\n"
)
LISTENING = """
import os
from pathlib import Path
from scaling.training.multihost import join_processes, wait_for_all
join_processes()
wait_for_all("joined")
own = set()
for place in Path("/proc/self/fd").iterdir():
    try: own.add(os.readlink(place))
    except OSError: pass  # the descriptor of this listing
for table in ("tcp", "tcp6"):
    for line in Path("/proc/self/net", table).read_text().splitlines()[1:]:
        words = line.split()
        if words[3] == "0A" and f"socket:[{words[9]}]" in own:
            print(*words[1].split(":"))
wait_for_all("listed")
os._exit(0)
"""
"""Two processes join; each prints the address, as hexadecimal words of the machine's byte order, and the port of every
socket on which it listens."""


@pytest.fixture(scope="module")
def shared(tiny: RunConfig) -> RunConfig:
    """240 steps by two, which log next to never and save every 40."""
    measure = dataclasses.replace(
        tiny.measure, checkpoint_every_tokens=CADENCE * tiny.data.batch_tokens, log_every_steps=1000
    )
    return dataclasses.replace(
        tiny, tokens=6 * CADENCE * tiny.data.batch_tokens, mesh=MeshConfig(fsdp=2), measure=measure
    )


def start(config: RunConfig, folder: Path, program: str = PROGRAM) -> list[subprocess.Popen[str]]:
    """Two processes that train the run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    files.write_json(folder / "given.json", to_dict(config))
    command = [sys.executable, "-c", program, "train", "--file", str(folder / "given.json"), "--folder", str(folder)]
    known = os.environ | {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"} | SOON
    return [
        subprocess.Popen(command, env=known | {"JAX_PROCESS_ID": rank}, stderr=subprocess.PIPE, text=True)
        for rank in ("0", "1")
    ]


def wait_for_end(pair: list[subprocess.Popen[str]], seconds: float = 120) -> tuple[list[int], list[str]]:
    """Exit codes, and the text on stderr, of both. No process is left, whatever happens."""
    try:
        stderr_texts = [process.communicate(timeout=seconds)[1] for process in pair]
    finally:
        for process in pair:
            process.kill()
    return [process.returncode for process in pair], stderr_texts


def saved(folder: Path) -> list[int]:
    place = folder / run_folder.CHECKPOINTS
    return sorted(int(path.name) for path in place.iterdir() if path.name.isdigit()) if place.is_dir() else []


def wait_until(true: Callable[[], Any], pair: list[subprocess.Popen[str]]) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert all(process.poll() is None for process in pair), wait_for_end(pair)
        assert time.monotonic() < deadline
        time.sleep(0.002)


def final_state(config: RunConfig, folder: Path) -> Any:
    program = build_program(dataclasses.replace(config, mesh=MeshConfig()), make_mesh(MeshConfig()))
    with Checkpoints(folder / run_folder.CHECKPOINTS, keep=1) as save:
        return save.restore(config.steps, program.abstract_state)


@pytest.mark.slow
def test_a_pair_that_loses_one_process_and_is_preempted_ends_bit_equal(shared: RunConfig, tmp_path: Path) -> None:
    unbroken, folder = tmp_path / "unbroken", tmp_path / "run"
    unbroken.mkdir()
    folder.mkdir()
    codes, stderr_texts = wait_for_end(start(shared, unbroken))
    assert codes == [0, 0], stderr_texts

    pair = start(shared, folder)
    wait_until(lambda: CADENCE in saved(folder), pair)
    pair[1].kill()
    killed = time.monotonic()
    codes, stderr_texts = wait_for_end(pair)
    assert time.monotonic() - killed < 10, "JAX alone takes 86 s"
    assert codes == [exit_codes.PROCESS_LOST, -signal.SIGKILL], stderr_texts
    assert stderr_texts[0].splitlines()[-1].startswith("error: ")
    assert "Traceback" not in stderr_texts[0]
    assert run_folder.read_result(folder) is None

    pair = start(shared, folder)
    before = saved(folder)[-1]
    wait_until(lambda: saved(folder)[-1] > before, pair)
    pair[1].send_signal(signal.SIGUSR1)
    asked = time.monotonic()
    codes, stderr_texts = wait_for_end(pair)
    assert time.monotonic() - asked < 30, "as much notice as a cloud gives"
    assert codes == [exit_codes.STOPPED, exit_codes.STOPPED], stderr_texts
    last = [text.splitlines()[-1] for text in stderr_texts]
    assert last[0] == last[1], "both at one step"
    stopped = saved(folder)[-1]
    assert re.search(rf"\b{stopped}\b.*\b{shared.steps}\b", last[0])
    assert stopped % CADENCE, "at the signal, not at the cadence"

    codes, stderr_texts = wait_for_end(start(shared, folder))
    assert codes == [0, 0], stderr_texts
    a, b = (run_folder.read_result(path) for path in (unbroken, folder))
    assert a is not None
    assert b is not None
    assert a["measurements"] == b["measurements"]
    for x, y in zip(*(jax.tree.leaves(final_state(shared, path)) for path in (unbroken, folder)), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.slow
def test_a_process_that_fails_ends_the_other_as_lost(shared: RunConfig, tmp_path: Path) -> None:
    pair = start(shared, tmp_path, TORN + PROGRAM)
    begun = time.monotonic()
    codes, stderr_texts = wait_for_end(pair)
    assert time.monotonic() - begun < 60, "no farewell that waits for the other"
    assert codes[1] == exit_codes.FAILED, stderr_texts
    assert "ValueError: torn" in stderr_texts[1]
    assert codes[0] in (exit_codes.PROCESS_LOST, -signal.SIGABRT), stderr_texts
    assert exit_codes.combined_exit_code(codes) == exit_codes.FAILED


@pytest.mark.parametrize(
    ("codes", "whole"),
    [
        ([0, 0], 0),
        ([75, 75], 75),
        ([74, -9], 74),
        ([-6, -9], -9),
        ([74, -6], 74),
        ([-9, -15, 12, 74], 12),
        ([74, 1], 1),
        ([-6, 2], 2),
        ([-11, 74, -9], -11),
        ([4, 4], 4),
        ([0, 74], 74),
        ([75, 74], 74),
    ],
)
def test_the_exit_code_of_a_multi_host_run_is_that_of_the_first_failure(codes: list[int], whole: int) -> None:
    assert exit_codes.combined_exit_code(codes) == whole


def test_errors_that_mean_a_lost_process_are_recognised() -> None:
    def of_xla(text: str) -> Exception:
        return jax.errors.JaxRuntimeError(text)

    assert lost_peer(of_xla("UNKNOWN: Gloo AllGather failed: Read error [127.0.0.1]:2726: Connection reset by peer"))
    assert lost_peer(of_xla("INTERNAL: NCCL operation failed: remote process exited or there was a network error"))
    wrapped = ValueError("checkpoint")
    wrapped.__cause__ = of_xla("UNAVAILABLE: Task 1 heartbeat timeout")
    assert lost_peer(wrapped)
    assert not lost_peer(of_xla("INTERNAL: no kernel for this chip"))
    assert not lost_peer(of_xla("RESOURCE_EXHAUSTED: Out of memory allocating 900801348 bytes; all-gather, barrier"))
    assert lost_peer(
        ValueError("UNKNOWN: Gloo AllGather failed: Read error [127.0.0.1]:5043: Connection reset by peer")
    )
    assert not lost_peer(ValueError("UNAVAILABLE"))
    assert not lost_peer(ValueError("INTERNAL: no kernel for this chip"))


def test_a_process_alone_reads_its_flag_at_the_time_of_reading() -> None:
    flag = [False]
    pending_vote = make_vote(lambda: flag[0], make_mesh(MeshConfig()))()
    assert not pending_vote()
    flag[0] = True
    assert pending_vote()


def test_a_process_alone_raises_its_errors() -> None:
    with pytest.raises(InputError, match="wrong"), exit_together():
        raise InputError("wrong")


@pytest.mark.skipif(not Path("/proc/self/net/tcp").exists(), reason="no /proc/net")
def test_processes_of_one_machine_listen_on_loopback_only() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    known = os.environ | {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2"}
    pair = [
        subprocess.Popen(
            [sys.executable, "-u", "-c", LISTENING],
            env=known | {"JAX_PROCESS_ID": rank},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    try:
        texts = [process.communicate(timeout=120)[0] for process in pair]
    finally:
        for process in pair:
            process.kill()
    listening = [line.split() for text in texts for line in text.splitlines() if len(line.split()) == 2]
    coordinator = [address for address, hexadecimal in listening if int(hexadecimal, 16) == port]
    loopback = ("0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000")
    assert len(coordinator) == 1
    assert coordinator[0] in loopback


def test_the_coordinator_listens_where_the_others_look_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAX_COORDINATOR_BIND_ADDRESS", raising=False)
    assert bind_address("127.0.0.1:81") == "127.0.0.1:81"
    assert bind_address("localhost:81") in ("127.0.0.1:81", "[::1]:81")
    assert bind_address("192.0.2.99:81") is None, "an address that belongs to nobody (RFC 5737)"
    assert bind_address("no-such-host.invalid:81") is None
    loopback = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.1.1", 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: loopback)
    assert bind_address("node1:81") is None, "other hosts may know this name by another address"
    monkeypatch.setenv("JAX_COORDINATOR_BIND_ADDRESS", "0.0.0.0:81")
    assert bind_address("127.0.1.1:81") is None


@pytest.mark.parametrize(("nodes", "expected"), [("1", "127.0.0.1"), ("2", None)])
def test_a_step_of_slurm_on_one_node_stays_on_loopback(
    monkeypatch: pytest.MonkeyPatch, nodes: str, expected: str | None
) -> None:
    calls: list[tuple[tuple[str, ...], dict[str, Any]]] = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *given, **options: calls.append((given, options)))
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("JAX_COORDINATOR_PORT", "81")
    for name, value in (("STEP_NUM_TASKS", "2"), ("STEP_NUM_NODES", nodes), ("JOB_ID", "7")):
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("SLURMD_NODENAME", "no-such-host.invalid")
    initialize_distributed()
    ((given, options),) = calls
    assert given == ((f"{expected}:81",) if expected else ())
    assert options["coordinator_bind_address"] == (f"{expected}:81" if expected else None)

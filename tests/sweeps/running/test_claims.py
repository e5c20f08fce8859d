"""One owner per run folder: on one machine by the kernel's word, between machines by a heartbeat."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from scaling.record.run_folder import METRICS
from sweeps.running import claims
from sweeps.running.claims import LEASE, LOCK, STALE_SECONDS, age, claim, holder


def test_a_claimed_folder_is_nobody_elses_until_released(tmp_path):
    held = claim(tmp_path / "run")
    assert held is not None
    assert claim(tmp_path / "run") is None
    held.release()
    again = claim(tmp_path / "run")
    assert again is not None
    again.release()
    assert not (tmp_path / "run" / LEASE).exists()


def test_one_of_many_wins(tmp_path):
    with ThreadPoolExecutor(16) as pool:
        held = [one for one in pool.map(lambda _: claim(tmp_path), range(16)) if one]
    assert len(held) == 1
    held[0].release()


@pytest.mark.parametrize("flock", [True, False])
def test_one_of_many_steals_a_stale_lease(tmp_path, monkeypatch, flock):
    if not flock:
        monkeypatch.setattr(claims, "lock_file", lambda path: (True, None))
    for _ in range(20):
        foreign(tmp_path, seconds_ago=STALE_SECONDS + 5)
        with ThreadPoolExecutor(8) as pool:
            held = [one for one in pool.map(lambda _: claim(tmp_path), range(8)) if one]
        assert len(held) == 1
        assert held[0].beat()
        held[0].release()


def foreign(folder, seconds_ago: float) -> None:
    """A lease of another machine, last renewed so long ago."""
    (folder / LEASE).write_text(json.dumps({"nonce": "theirs", "machine": "elsewhere", "host": "h", "pid": 1}))
    then = time.time() - seconds_ago
    os.utime(folder / LEASE, (then, then))


def test_another_machines_lease_holds_while_it_is_renewed(tmp_path):
    foreign(tmp_path, seconds_ago=STALE_SECONDS - 20)
    assert claim(tmp_path) is None
    assert holder(tmp_path / LEASE)["nonce"] == "theirs"
    foreign(tmp_path, seconds_ago=STALE_SECONDS + 5)
    held = claim(tmp_path)
    assert held is not None
    held.release()


def test_metrics_are_a_sign_of_life(tmp_path):
    """An orphan on another machine has no heart to beat, but it trains."""
    foreign(tmp_path, seconds_ago=STALE_SECONDS + 5)
    (tmp_path / METRICS).touch()
    assert age(tmp_path) < 5
    assert claim(tmp_path) is None


def test_a_dead_owner_on_this_machine_is_replaced_at_once(tmp_path):
    program = (
        f"import os; from pathlib import Path; from sweeps.running.claims import claim; claim(Path({str(tmp_path)!r}))"
    )
    subprocess.run([sys.executable, "-c", program + "; os._exit(0)"], check=True)
    assert holder(tmp_path / LEASE)["machine"] == claims.machine()
    held = claim(tmp_path)
    assert held is not None
    held.release()


def test_an_orphan_keeps_the_folder_until_it_ends(tmp_path):
    """The runner is dead, its lease as old as can be, but its child still trains: nobody may claim."""
    program = (
        "import os, subprocess, sys; from pathlib import Path; from sweeps.running.claims import claim\n"
        f"held = claim(Path({str(tmp_path)!r}))\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], pass_fds=[held.descriptor],"
        " stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)\n"
        "print(child.pid, flush=True); os._exit(0)"
    )
    found = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    os.utime(tmp_path / LEASE, (0, 0))
    try:
        assert claim(tmp_path) is None
    finally:
        os.kill(int(found.stdout), signal.SIGKILL)
    patience = time.monotonic() + 5
    while (held := claim(tmp_path)) is None and time.monotonic() < patience:
        time.sleep(0.02)
    assert held is not None
    held.release()


def test_an_owner_learns_that_it_was_robbed_and_touches_nothing(tmp_path):
    held = claim(tmp_path)
    assert held is not None
    assert held.beat()
    foreign(tmp_path, seconds_ago=0)
    assert not held.beat()
    held.release()
    assert holder(tmp_path / LEASE)["nonce"] == "theirs"


def test_beating_renews(tmp_path):
    held = claim(tmp_path)
    assert held is not None
    os.utime(tmp_path / LEASE, (0, 0))
    assert age(tmp_path) > STALE_SECONDS
    held.beat()
    assert age(tmp_path) < 5
    held.release()


@pytest.mark.parametrize("text", ["", '{"nonce": "x', "7"])
def test_a_torn_lease_is_foreign_until_stale(tmp_path, text):
    (tmp_path / LEASE).write_text(text)
    assert claim(tmp_path) is None
    os.utime(tmp_path / LEASE, (0, 0))
    held = claim(tmp_path)
    assert held is not None
    held.release()
    assert sorted(path.name for path in tmp_path.iterdir()) == [LOCK]


def test_a_thief_that_died_in_its_turn_blocks_nobody_for_long(tmp_path):
    foreign(tmp_path, seconds_ago=STALE_SECONDS + 5)
    turn = tmp_path / f".{LEASE}.steal"
    turn.touch()
    assert claim(tmp_path) is None
    os.utime(turn, (0, 0))
    assert claim(tmp_path) is None
    held = claim(tmp_path)
    assert held is not None
    held.release()


def test_a_pulse_renews_whatever_its_owner_waits_for_and_tells_of_a_robbery(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "HEARTBEAT_SECONDS", 0.02)
    held = claim(tmp_path)
    assert held is not None
    with claims.Pulse() as pulse:
        pulse.keep(held)
        os.utime(tmp_path / LEASE, (0, 0))
        wait_until(lambda: age(tmp_path) < STALE_SECONDS)
        assert pulse.lost == set()
        foreign(tmp_path, seconds_ago=0)
        wait_until(lambda: pulse.lost == {held.nonce})
        pulse.release(held)
        pulse.lost.clear()
        time.sleep(0.1)
        assert pulse.lost == set()
    assert holder(tmp_path / LEASE)["nonce"] == "theirs"


def wait_until(condition):
    patience = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < patience, "waited in vain"
        time.sleep(0.01)

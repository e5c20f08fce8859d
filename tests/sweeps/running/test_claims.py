"""One owner per run folder: on one machine by the kernel's word, between machines by a heartbeat."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from scaling.record.run_folder import LEASE, METRICS, RUN_LOCK
from sweeps.running import claims
from sweeps.running.claims import LEASE_SECONDS, claim_run, heartbeat_age, read_lease


def test_a_claimed_folder_is_nobody_elses_until_released(tmp_path):
    held = claim_run(tmp_path / "run")
    assert held is not None
    assert claim_run(tmp_path / "run") is None
    held.release()
    again = claim_run(tmp_path / "run")
    assert again is not None
    again.release()
    assert not (tmp_path / "run" / LEASE).exists()


def test_one_of_many_wins(tmp_path):
    with ThreadPoolExecutor(16) as pool:
        held = [one for one in pool.map(lambda _: claim_run(tmp_path), range(16)) if one]
    assert len(held) == 1
    held[0].release()


@pytest.mark.parametrize("flock", [True, False])
def test_one_of_many_steals_a_stale_lease(tmp_path, monkeypatch, flock):
    if not flock:
        monkeypatch.setattr(claims, "try_lock", lambda path: (True, None))
    for _ in range(20):
        foreign(tmp_path, seconds_ago=LEASE_SECONDS + 5)
        with ThreadPoolExecutor(8) as pool:
            held = [one for one in pool.map(lambda _: claim_run(tmp_path), range(8)) if one]
        assert len(held) == 1
        assert held[0].renew()
        held[0].release()


def foreign(folder, seconds_ago: float) -> None:
    """A lease of another machine, last renewed so long ago."""
    (folder / LEASE).write_text(json.dumps({"nonce": "theirs", "machine": "elsewhere", "host": "h", "pid": 1}))
    then = time.time() - seconds_ago
    os.utime(folder / LEASE, (then, then))


def test_another_machines_lease_holds_while_it_is_renewed(tmp_path):
    foreign(tmp_path, seconds_ago=LEASE_SECONDS - 20)
    assert claim_run(tmp_path) is None
    assert read_lease(tmp_path / LEASE)["nonce"] == "theirs"
    foreign(tmp_path, seconds_ago=LEASE_SECONDS + 5)
    held = claim_run(tmp_path)
    assert held is not None
    held.release()


def test_metrics_are_a_sign_of_life(tmp_path):
    """An orphan on another machine has no heart to beat, but it trains."""
    foreign(tmp_path, seconds_ago=LEASE_SECONDS + 5)
    (tmp_path / METRICS).touch()
    assert heartbeat_age(tmp_path) < 5
    assert claim_run(tmp_path) is None


def test_a_dead_owner_on_this_machine_is_replaced_at_once(tmp_path):
    program = (
        "import os; from pathlib import Path; from sweeps.running.claims import claim_run; "
        f"claim_run(Path({str(tmp_path)!r}))"
    )
    subprocess.run([sys.executable, "-c", program + "; os._exit(0)"], check=True)
    assert read_lease(tmp_path / LEASE)["machine"] == claims.kernel_id()
    held = claim_run(tmp_path)
    assert held is not None
    held.release()


def test_an_orphan_keeps_the_folder_until_it_ends(tmp_path):
    """The runner is dead, its lease as old as can be, but its child still trains: nobody may claim."""
    program = (
        "import os, subprocess, sys; from pathlib import Path; from sweeps.running.claims import claim_run\n"
        f"held = claim_run(Path({str(tmp_path)!r}))\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], pass_fds=[held.descriptor],"
        " stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)\n"
        "print(child.pid, flush=True); os._exit(0)"
    )
    found = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    os.utime(tmp_path / LEASE, (0, 0))
    try:
        assert claim_run(tmp_path) is None
    finally:
        os.kill(int(found.stdout), signal.SIGKILL)
    patience = time.monotonic() + 5
    while (held := claim_run(tmp_path)) is None and time.monotonic() < patience:
        time.sleep(0.02)
    assert held is not None
    held.release()


def test_an_owner_learns_that_it_was_robbed_and_touches_nothing(tmp_path):
    held = claim_run(tmp_path)
    assert held is not None
    assert held.renew()
    foreign(tmp_path, seconds_ago=0)
    assert not held.renew()
    held.release()
    assert read_lease(tmp_path / LEASE)["nonce"] == "theirs"


def test_beating_renews(tmp_path):
    held = claim_run(tmp_path)
    assert held is not None
    os.utime(tmp_path / LEASE, (0, 0))
    assert heartbeat_age(tmp_path) > LEASE_SECONDS
    held.renew()
    assert heartbeat_age(tmp_path) < 5
    held.release()


@pytest.mark.parametrize("text", ["", '{"nonce": "x', "7"])
def test_a_torn_lease_is_foreign_until_stale(tmp_path, text):
    (tmp_path / LEASE).write_text(text)
    assert claim_run(tmp_path) is None
    os.utime(tmp_path / LEASE, (0, 0))
    held = claim_run(tmp_path)
    assert held is not None
    held.release()
    assert sorted(path.name for path in tmp_path.iterdir()) == [RUN_LOCK]


def test_a_thief_that_died_in_its_turn_blocks_nobody_for_long(tmp_path):
    foreign(tmp_path, seconds_ago=LEASE_SECONDS + 5)
    turn = tmp_path / f".{LEASE}.steal"
    turn.touch()
    assert claim_run(tmp_path) is None
    os.utime(turn, (0, 0))
    assert claim_run(tmp_path) is None
    held = claim_run(tmp_path)
    assert held is not None
    held.release()


def test_a_pulse_renews_whatever_its_owner_waits_for_and_tells_of_a_robbery(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "HEARTBEAT_SECONDS", 0.02)
    held = claim_run(tmp_path)
    assert held is not None
    with claims.LeaseRenewer() as renewer:
        renewer.add(held)
        os.utime(tmp_path / LEASE, (0, 0))
        wait_until(lambda: heartbeat_age(tmp_path) < LEASE_SECONDS)
        assert renewer.lost_nonces == set()
        foreign(tmp_path, seconds_ago=0)
        wait_until(lambda: renewer.lost_nonces == {held.nonce})
        renewer.release(held)
        renewer.lost_nonces.clear()
        time.sleep(0.1)
        assert renewer.lost_nonces == set()
    assert read_lease(tmp_path / LEASE)["nonce"] == "theirs"


def wait_until(condition):
    patience = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < patience, "waited in vain"
        time.sleep(0.01)

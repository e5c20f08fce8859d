"""A run folder has one owner: on one machine by flock, between machines by the heartbeat of a lease."""

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


def test_a_claimed_folder_cannot_be_claimed_again_until_released(tmp_path):
    claim = claim_run(tmp_path / "run")
    assert claim is not None
    assert claim_run(tmp_path / "run") is None
    claim.release()
    second = claim_run(tmp_path / "run")
    assert second is not None
    second.release()
    assert not (tmp_path / "run" / LEASE).exists()


def test_one_of_many_claims_succeeds(tmp_path):
    with ThreadPoolExecutor(16) as pool:
        claims_made = [one for one in pool.map(lambda _: claim_run(tmp_path), range(16)) if one]
    assert len(claims_made) == 1
    claims_made[0].release()


@pytest.mark.parametrize("flock", [True, False])
def test_one_of_many_takes_a_stale_lease_over(tmp_path, monkeypatch, flock):
    if not flock:
        monkeypatch.setattr(claims, "try_lock", lambda path: (True, None))
    for _ in range(20):
        write_foreign_lease(tmp_path, seconds_ago=LEASE_SECONDS + 5)
        with ThreadPoolExecutor(8) as pool:
            claims_made = [one for one in pool.map(lambda _: claim_run(tmp_path), range(8)) if one]
        assert len(claims_made) == 1
        assert claims_made[0].renew()
        claims_made[0].release()


def write_foreign_lease(folder, seconds_ago: float) -> None:
    """A lease of another machine, last renewed so long ago."""
    (folder / LEASE).write_text(json.dumps({"nonce": "theirs", "machine": "elsewhere", "host": "h", "pid": 1}))
    then = time.time() - seconds_ago
    os.utime(folder / LEASE, (then, then))


def test_another_machines_lease_holds_while_it_is_renewed(tmp_path):
    write_foreign_lease(tmp_path, seconds_ago=LEASE_SECONDS - 20)
    assert claim_run(tmp_path) is None
    assert read_lease(tmp_path / LEASE)["nonce"] == "theirs"
    write_foreign_lease(tmp_path, seconds_ago=LEASE_SECONDS + 5)
    claim = claim_run(tmp_path)
    assert claim is not None
    claim.release()


def test_logged_metrics_count_as_heartbeats(tmp_path):
    """A process that outlived its runner on another machine renews no lease, but it trains."""
    write_foreign_lease(tmp_path, seconds_ago=LEASE_SECONDS + 5)
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
    claim = claim_run(tmp_path)
    assert claim is not None
    claim.release()


def test_a_child_that_outlives_its_runner_keeps_the_claim(tmp_path):
    """The runner is dead and its lease is old, but its child still trains: nobody may claim the folder."""
    program = (
        "import os, subprocess, sys; from pathlib import Path; from sweeps.running.claims import claim_run\n"
        f"claim = claim_run(Path({str(tmp_path)!r}))\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], pass_fds=[claim.descriptor],"
        " stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)\n"
        "print(child.pid, flush=True); os._exit(0)"
    )
    found = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    os.utime(tmp_path / LEASE, (0, 0))
    try:
        assert claim_run(tmp_path) is None
    finally:
        os.kill(int(found.stdout), signal.SIGKILL)
    deadline = time.monotonic() + 5
    while (claim := claim_run(tmp_path)) is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert claim is not None
    claim.release()


def test_an_owner_whose_lease_was_taken_over_learns_it_and_leaves_the_new_lease(tmp_path):
    claim = claim_run(tmp_path)
    assert claim is not None
    assert claim.renew()
    write_foreign_lease(tmp_path, seconds_ago=0)
    assert not claim.renew()
    claim.release()
    assert read_lease(tmp_path / LEASE)["nonce"] == "theirs"


def test_renewing_a_lease_resets_its_age(tmp_path):
    claim = claim_run(tmp_path)
    assert claim is not None
    os.utime(tmp_path / LEASE, (0, 0))
    assert heartbeat_age(tmp_path) > LEASE_SECONDS
    claim.renew()
    assert heartbeat_age(tmp_path) < 5
    claim.release()


@pytest.mark.parametrize("text", ["", '{"nonce": "x', "7"])
def test_a_torn_lease_holds_until_it_is_stale(tmp_path, text):
    (tmp_path / LEASE).write_text(text)
    assert claim_run(tmp_path) is None
    os.utime(tmp_path / LEASE, (0, 0))
    claim = claim_run(tmp_path)
    assert claim is not None
    claim.release()
    assert sorted(path.name for path in tmp_path.iterdir()) == [RUN_LOCK]


def test_a_runner_that_died_while_taking_over_blocks_others_only_for_a_while(tmp_path):
    write_foreign_lease(tmp_path, seconds_ago=LEASE_SECONDS + 5)
    takeover_lock = tmp_path / f".{LEASE}.steal"
    takeover_lock.touch()
    assert claim_run(tmp_path) is None
    os.utime(takeover_lock, (0, 0))
    assert claim_run(tmp_path) is None
    claim = claim_run(tmp_path)
    assert claim is not None
    claim.release()


def test_the_renewer_renews_while_its_owner_waits_and_reports_lost_claims(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "HEARTBEAT_SECONDS", 0.02)
    claim = claim_run(tmp_path)
    assert claim is not None
    with claims.LeaseRenewer() as renewer:
        renewer.add(claim)
        os.utime(tmp_path / LEASE, (0, 0))
        wait_until(lambda: heartbeat_age(tmp_path) < LEASE_SECONDS)
        assert renewer.lost_nonces == set()
        write_foreign_lease(tmp_path, seconds_ago=0)
        wait_until(lambda: renewer.lost_nonces == {claim.nonce})
        renewer.release(claim)
        renewer.lost_nonces.clear()
        time.sleep(0.1)
        assert renewer.lost_nonces == set()
    assert read_lease(tmp_path / LEASE)["nonce"] == "theirs"


def wait_until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.01)

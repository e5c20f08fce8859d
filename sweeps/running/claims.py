"""Who may write a run folder: one runner and its one child, never two.

Not in the design's list of modules: it is the second concept that run.py held when it passed 300 lines.

Two locks, because each covers what the other cannot:

    run.lock     flock, held through a descriptor that the child inherits. The kernel frees it when runner AND child
                 are gone: on one machine, a folder whose orphan still trains cannot be claimed, a dead one can at once.
    lease.json   created with O_EXCL, its mtime a heartbeat. Holds between machines, where a shared folder's flock may
                 be local. A stale one is replaced by rename; an owner that finds its lease gone stops its child.

O_EXCL and rename hold on local disks and NFSv4, not on object stores.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import threading
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scaling.files import try_lock
from scaling.record.run_folder import METRICS

LOCK, LEASE = "run.lock", "lease.json"
HEARTBEAT_SECONDS, LEASE_SECONDS = 5.0, 60.0


@dataclass(frozen=True)
class Claim:
    """The right to write a run folder until `release`. descriptor: of the flock, if any, for the child to inherit."""

    folder: Path
    descriptor: int | None
    nonce: str = field(default_factory=lambda: uuid.uuid4().hex)

    def renew(self) -> bool:
        """Renews the lease. False when it is another's by now: stop the child and write nothing."""
        lease = self.folder / LEASE
        if read_lease(lease).get("nonce") != self.nonce:
            return False
        with contextlib.suppress(FileNotFoundError):
            os.utime(lease)
        return True

    def release(self) -> None:
        """Gives the folder back. The child must have ended."""
        lease = self.folder / LEASE
        if read_lease(lease).get("nonce") == self.nonce:
            lease.unlink(missing_ok=True)
        if self.descriptor is not None:
            os.close(self.descriptor)


class LeaseRenewer:
    """Renews claims from a thread of its own, so that their owner may wait for something else. lost: nonces of those
    that are another's by now. A context manager."""

    def __init__(self) -> None:
        self.lost_nonces: set[str] = set()
        self._held: dict[str, Claim] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease-renewer", daemon=True)

    def add(self, held: Claim) -> None:
        self._held[held.nonce] = held

    def release(self, held: Claim) -> None:
        """Gives a folder back, as Claim.release."""
        self._held.pop(held.nonce, None)
        held.release()

    def __enter__(self) -> LeaseRenewer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(HEARTBEAT_SECONDS):
            for held in tuple(self._held.values()):
                with contextlib.suppress(OSError):
                    if not held.renew():
                        self.lost_nonces.add(held.nonce)


def claim_run(folder: Path) -> Claim | None:
    """Claims a run folder; None when another holds it. What is in the folder must be read AFTER this returns."""
    folder.mkdir(parents=True, exist_ok=True)
    held, descriptor = try_lock(folder / LOCK)
    if not held:
        return None
    mine = Claim(folder, descriptor)
    lease = folder / LEASE
    if _create_lease(lease, mine.nonce) or _take_over(lease, mine):
        return mine
    if descriptor is not None:
        os.close(descriptor)
    return None


def is_claimable(folder: Path) -> bool:
    """Whether a claim would be granted now: nobody holds the folder, or who did is certainly dead."""
    if not (folder / LEASE).exists():
        return True
    if (held := claim_run(folder)) is not None:
        held.release()
    return held is not None


def heartbeat_age(folder: Path, now: float | None = None) -> float:
    """Seconds since the folder's owner last gave a sign of life; inf without an owner.

    now: the time, in Unix seconds; that of the folder's file system, which is asked by writing a file, unless given.
    """
    try:
        sign = (folder / LEASE).stat().st_mtime
    except FileNotFoundError:
        return float("inf")
    with contextlib.suppress(FileNotFoundError):
        sign = max(sign, (folder / METRICS).stat().st_mtime)
    return (_file_system_time(folder) if now is None else now) - sign


def clock_skew(folder: Path) -> float:
    """Seconds by which the clock of a folder's file system is ahead of this machine's."""
    return _file_system_time(folder) - time.time()


def _file_system_time(folder: Path) -> float:
    """The time by the clock of the folder's file system, which need not be this machine's."""
    mark = folder / f".now.{os.getpid()}"
    try:
        mark.touch()
        return mark.stat().st_mtime
    except OSError:
        return time.time()
    finally:
        with contextlib.suppress(OSError):
            mark.unlink(missing_ok=True)


def read_lease(lease: Path) -> dict[str, Any]:
    """What a lease says of its owner; empty when there is none, or when it is torn."""
    try:
        found = json.loads(lease.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def kernel_id() -> str:
    """Names the running kernel, within which flock is certain: a boot's id on Linux, the host's name elsewhere. Two
    containers of one kernel may have mounted a shared folder apart, and are two."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return platform.node()


def _create_lease(lease: Path, nonce: str) -> bool:
    try:
        with lease.open("x") as file:
            json.dump({"nonce": nonce, "machine": kernel_id(), "host": platform.node(), "pid": os.getpid()}, file)
    except FileExistsError:
        return False
    return True


def _take_over(lease: Path, mine: Claim) -> bool:
    """Puts our lease in the place of a dead one. Thieves take turns, and judge in their turn."""
    turn = lease.with_name(f".{LEASE}.steal")
    if not _create_lease(turn, mine.nonce):
        with contextlib.suppress(FileNotFoundError):
            if _file_system_time(lease.parent) - turn.stat().st_mtime > LEASE_SECONDS:
                turn.unlink()
        return False
    try:
        dead_here = mine.descriptor is not None and read_lease(lease).get("machine") == kernel_id()
        if not lease.exists() or not (dead_here or heartbeat_age(lease.parent) > LEASE_SECONDS):
            return False
        ours = lease.with_name(f".{LEASE}.{mine.nonce}")
        _create_lease(ours, mine.nonce)
        ours.replace(lease)
        return True
    finally:
        turn.unlink(missing_ok=True)

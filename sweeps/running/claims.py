"""Claims on run folders: one runner and the process that it started may write a folder, never two runners.

A claim is two locks, because neither is enough alone:

    run.lock     an flock, held through a file descriptor that the child process inherits. The kernel releases it when
                 runner AND child are gone. So on one machine a folder is free at once after both have died, and is
                 not free while a child that outlived its runner still trains.
    lease.json   created with O_EXCL; its mtime is the owner's last heartbeat. It holds between machines, where an
                 flock on a shared folder may be seen by one machine only. After LEASE_SECONDS without a heartbeat
                 another runner replaces it by rename; an owner that finds another's lease stops its child.

O_EXCL and rename are atomic on local disks and NFSv4, but not on object stores.
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
from typing import TypedDict

from scaling.errors import InputError
from scaling.files import read_json, try_lock
from scaling.record.run_folder import LEASE, METRICS, RUN_LOCK

HEARTBEAT_SECONDS = 5.0
"""Seconds between two renewals of a lease."""
LEASE_SECONDS = 60.0
"""How long a lease lasts after its last heartbeat: an older one may be taken over."""


class Lease(TypedDict, total=False):
    """The content of lease.json. nonce: of the owner's claim. machine: see `kernel_id`. worker: of a cluster."""

    nonce: str
    machine: str
    host: str
    pid: int
    worker: str


@dataclass(frozen=True)
class Claim:
    """The right to write a run folder until `release`.

    descriptor: the open run.lock, which the child process inherits; None where the file system has no flock.
    nonce: tells this claim's lease from any other.
    """

    folder: Path
    descriptor: int | None
    nonce: str = field(default_factory=lambda: uuid.uuid4().hex)

    def renew(self) -> bool:
        """Sends a heartbeat. False when another runner has taken the lease over: stop the child and write nothing."""
        lease = self.folder / LEASE
        if read_lease(lease).get("nonce") != self.nonce:
            return False
        with contextlib.suppress(FileNotFoundError):
            os.utime(lease)
        return True

    def release(self) -> None:
        """Frees the folder. The child must have ended."""
        lease = self.folder / LEASE
        if read_lease(lease).get("nonce") == self.nonce:
            lease.unlink(missing_ok=True)
        if self.descriptor is not None:
            os.close(self.descriptor)


class LeaseRenewer:
    """Renews claims from a thread of its own, so that a runner that waits for a disk keeps them. A context manager.

    lost_nonces: nonces of the claims that other runners have taken over.
    """

    def __init__(self) -> None:
        self.lost_nonces: set[str] = set()
        self._claims: dict[str, Claim] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease-renewer", daemon=True)

    def add(self, claim: Claim) -> None:
        """Renews a claim from now on."""
        self._claims[claim.nonce] = claim

    def release(self, claim: Claim) -> None:
        """Stops renewing a claim, and releases it."""
        self._claims.pop(claim.nonce, None)
        claim.release()

    def __enter__(self) -> LeaseRenewer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(HEARTBEAT_SECONDS):
            for claim in tuple(self._claims.values()):
                # A disk that fails for a moment loses no claim; the next round renews it.
                with contextlib.suppress(OSError):
                    if not claim.renew():
                        self.lost_nonces.add(claim.nonce)


def claim_run(folder: Path) -> Claim | None:
    """Claims a run folder, which is created if it is absent; None when another runner holds it.

    Read what is in the folder only AFTER this returns: what was read before may have changed since.
    """
    folder.mkdir(parents=True, exist_ok=True)
    locked, descriptor = try_lock(folder / RUN_LOCK)
    if not locked:
        return None
    claim = Claim(folder, descriptor)
    lease = folder / LEASE
    if _create_lease(lease, claim.nonce) or _take_over(lease, claim):
        return claim
    if descriptor is not None:
        os.close(descriptor)
    return None


def is_claimable(folder: Path) -> bool:
    """Whether `claim_run` would succeed now. Where there is a lease, it claims the folder for a moment to find out."""
    if not (folder / LEASE).exists():
        return True
    if (claim := claim_run(folder)) is not None:
        claim.release()
    return claim is not None


def heartbeat_age(folder: Path, now: float | None = None) -> float:
    """Seconds since the folder's owner last renewed its lease or logged a step; inf where there is no lease.

    now: the time in Unix seconds by the clock that stamps the folder's files; where it is not given, a file is written
    to read that clock.
    """
    try:
        last_heartbeat = (folder / LEASE).stat().st_mtime
    except FileNotFoundError:
        return float("inf")
    # A child whose runner died on another machine renews no lease, but it logs steps while it trains.
    with contextlib.suppress(FileNotFoundError):
        last_heartbeat = max(last_heartbeat, (folder / METRICS).stat().st_mtime)
    return (_file_system_time(folder) if now is None else now) - last_heartbeat


def clock_skew(folder: Path) -> float:
    """Seconds by which the clock of a folder's file system is ahead of this machine's clock."""
    return _file_system_time(folder) - time.time()


def _file_system_time(folder: Path) -> float:
    """Unix seconds by the clock that stamps the folder's files: of a shared folder, its server's clock.

    Heartbeats are mtimes, so their age must be taken by that clock. Where nothing can be written, this machine's clock.
    """
    probe = folder / f".now.{os.getpid()}"
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:
        return time.time()
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)


def read_lease(lease: Path) -> Lease:
    """The owner's nonce, machine, host and pid in a lease; empty when it is absent or damaged: then nobody owns the
    folder, and it can be claimed after LEASE_SECONDS."""
    try:
        return read_json(lease, Lease)
    except InputError:
        return {}


def kernel_id() -> str:
    """Identifies the running kernel, within which an flock holds for certain.

    On Linux the id of this boot and of the PID namespace: two containers of one kernel may each have mounted a shared
    folder by themselves, so they count as two. Elsewhere the name of the host.
    """
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return platform.node()


def _create_lease(lease: Path, nonce: str) -> bool:
    """Writes a lease of this process. False when the file exists: mode x is O_EXCL, so one of several callers wins."""
    try:
        with lease.open("x") as file:
            json.dump({"nonce": nonce, "machine": kernel_id(), "host": platform.node(), "pid": os.getpid()}, file)
    except FileExistsError:
        return False
    return True


def _take_over(lease: Path, claim: Claim) -> bool:
    """Replaces a lease whose owner is dead by one of this claim. Returns whether it did.

    The owner is dead if it ran under this kernel, for its flock would still be held; or if its last heartbeat is older
    than LEASE_SECONDS. One runner at a time may judge and replace: the one that created the takeover lock, the file
    `.lease.json.steal`. Without that two runners could both see an old lease, and the second would replace the new
    lease of the first.
    """
    takeover_lock = lease.with_name(f".{LEASE}.steal")
    if not _create_lease(takeover_lock, claim.nonce):
        # Another runner holds the takeover lock. If it died meanwhile, remove the lock, and let the next call try.
        with contextlib.suppress(FileNotFoundError):
            if _file_system_time(lease.parent) - takeover_lock.stat().st_mtime > LEASE_SECONDS:
                takeover_lock.unlink()
        return False
    try:
        died_here = claim.descriptor is not None and read_lease(lease).get("machine") == kernel_id()
        if not lease.exists() or not (died_here or heartbeat_age(lease.parent) > LEASE_SECONDS):
            return False
        # Write the new lease beside the old one and rename it: readers see one of the two, never none.
        new_lease = lease.with_name(f".{LEASE}.{claim.nonce}")
        _create_lease(new_lease, claim.nonce)
        new_lease.replace(lease)
        return True
    finally:
        takeover_lock.unlink(missing_ok=True)

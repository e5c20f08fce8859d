"""Connects to a Ray cluster, and says which hosts and variables its workers get."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec

from scaling.errors import InputError
from sweeps.local import processes

NAMESPACE = "scaling-sweeps"
CONNECT_SECONDS = 5.0
FORWARDED_PREFIXES = ("JAX_", "XLA_", "LIBTPU_", "NCCL_")


@dataclass(frozen=True)
class HostDemand:
    """What a run needs: so many hosts, and on each so many devices. resources: of each host, by Ray's names."""

    hosts: int
    devices_per_host: int
    resources: Mapping[str, float]


def connect(address: str) -> None:
    """Makes this process a driver of the cluster, unless it is one. Raises InputError, within a minute or so."""
    if find_spec("ray") is None:
        raise InputError("ray: is not installed; pip install 'scaling-laws[ray]'")
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")
    # 0: an actor without GPUs keeps CUDA_VISIBLE_DEVICES as it is, as later versions of Ray do by default.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if ray.is_initialized():
        return
    target = os.environ.get("RAY_ADDRESS", "auto") if address == "auto" else address
    if target != "auto":
        _check_reachable(target)
    try:
        ray.init(address=target, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:
        message = " ".join(str(error).split())[:200]
        raise InputError(
            f"address = {address}: no Ray cluster answers ({message}); run this on one of its machines, or start one "
            "with `ray start --head`"
        ) from None


def _check_reachable(address: str) -> None:
    """Raises InputError where nothing listens: Ray itself would try for minutes."""
    import ray

    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in address:
        raise InputError(f"address = {address}: must be auto, or HOST:PORT of the head of a Ray cluster")
    try:
        if host == "localhost" or host.startswith("127."):
            host = ray.util.get_node_ip_address()
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise InputError(
            f"address = {address}: no Ray cluster answers there ({error}); start one with `ray start --head`"
        ) from None


def forwarded_env() -> dict[str, str]:
    """The variables of this process that its runs on other hosts see too."""
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith(FORWARDED_PREFIXES) and not name.startswith(processes.PEER_PREFIXES)
    }

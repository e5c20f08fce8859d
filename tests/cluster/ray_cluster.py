"""A Ray cluster of two raylets on this machine, for tests and benchmarks."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any
from unittest import mock

TRIES = 4
MARK = "RAY_CLUSTER_OF_TESTS"
"""A variable of all processes that a cluster of ours starts; its value is the cluster's folder."""
QUIET = {
    "RAY_enable_metrics_collection": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "5",
}
"""Fewer processes at work, none of them at niceness 15, which on a loaded machine means minutes; a raylet that was
killed is missed within seconds, one that is slow is not."""


class Unavailable(Exception):
    """Why there can be no cluster here. One that could be and fails to start is another error."""


@dataclass
class RayCluster:
    """Two hosts and what is added later, each a raylet. resources: of each host, cpus and gpus. folder: Ray's
    own."""

    cluster: Any
    resources: Mapping[str, float]
    folder: str
    nodes: list[Any] = field(default_factory=list)

    @property
    def address(self) -> str:
        return self.cluster.address

    @property
    def raylets(self) -> list[int]:
        """The processes that the hosts stand and fall with."""
        return [node.all_processes["raylet"][0].process.pid for node in self.nodes]

    def add(self) -> Any:
        """One more host."""
        node = tried(lambda: self.cluster.add_node(**self.resources, **ports()))
        self.nodes.append(node)
        return node

    def lose(self, raylet: int) -> None:
        """SIGKILLs a host's raylet, and reaps it: what it started sees that it is gone."""
        for node in tuple(self.nodes):
            process = node.all_processes["raylet"][0].process
            if process.pid == raylet:
                process.kill()
                process.wait()
                self.nodes.remove(node)
                return


def ports() -> dict[str, int]:
    """Ports for a raylet's agents. With none given a raylet waits 15 s, not longer, for agents to say which they took,
    and aborts: on a loaded machine it often would."""
    names = ("metrics_agent_port", "dashboard_agent_listen_port", "runtime_env_agent_port")
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in names]
        for one in sockets:
            one.bind(("", 0))
        return {name: one.getsockname()[1] for name, one in zip(names, sockets, strict=True)}


def tried(start: Any) -> Any:
    """What `start` returns, at the latest the fourth time; the fourth error is raised."""
    for left in reversed(range(TRIES)):
        try:
            return start()
        except Exception:
            if not left:
                raise
            time.sleep(2.0)
    return None


@contextlib.contextmanager
def ray_cluster(hosts: int = 2, **resources: float) -> Iterator[RayCluster]:
    """A cluster of a head that takes no work and `hosts` hosts of one core each, unless resources say otherwise, as
    num_cpus=2, num_gpus=1. Raises Unavailable where there is no Ray, and Ray's own error where it does not start."""
    if find_spec("ray") is None:
        raise Unavailable("Ray is not installed: pip install 'scaling-laws[ray]'")
    os.environ.update(QUIET)
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "num_gpus": 0, "include_dashboard": False}
    with (
        tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder,
        mock.patch.dict(os.environ, {MARK: folder, "RAY_TMPDIR": folder}),
    ):
        cluster = tried(lambda: Cluster(initialize_head=True, head_node_args=head | ports()))
        try:
            made = RayCluster(cluster, {"num_cpus": 1} | resources, folder)
            for _ in range(hosts):
                made.add()
            yield made
        finally:
            cluster.shutdown()

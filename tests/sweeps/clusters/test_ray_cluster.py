"""The Ray executor without a cluster: what it asks for, what it refuses. With one: tests/cluster/test_ray.py."""

import dataclasses
import re
import socket
import sys
import time
import types
from collections.abc import Mapping, Sequence

import pytest
import tyro

from scaling.errors import InputError
from sweeps.clusters import ray_cluster, ray_connection
from sweeps.clusters.ray_cluster import Ray, RayActors, RayWorker
from sweeps.clusters.ray_connection import connect, forwarded_env
from sweeps.running.attempt_log import RetryBudgets
from sweeps.running.cluster import WorkerSpec
from tests.conftest import in_process
from tests.support.stand_in_sweep import stand_in_plan

GPU_HOSTS = [{"CPU": 2.0}, {"CPU": 16.0, "GPU": 4.0}, {"CPU": 16.0, "GPU": 4.0}, {"CPU": 4.0, "GPU": 4.0}]
CPU_HOSTS = [{}, {"CPU": 2.0}, {"CPU": 4.0}]


@pytest.fixture
def on(monkeypatch, tmp_path):
    """Makes a cluster of these hosts, without asking Ray."""

    def cluster(nodes: Sequence[Mapping[str, float]], **options: int) -> RayActors:
        monkeypatch.setattr(ray_cluster, "connect", lambda address: None)
        monkeypatch.setattr(RayActors, "nodes", lambda self: nodes)
        return Ray(**options).cluster(tmp_path)

    return cluster


@pytest.mark.parametrize(
    ("nodes", "options", "devices", "count", "each", "demand", "room"),
    [
        (GPU_HOSTS, {}, 1, 1, 1, {"CPU": 1, "GPU": 1}, 12),
        (GPU_HOSTS, {"cpus": 4}, 1, 1, 1, {"CPU": 4, "GPU": 1}, 9),
        (GPU_HOSTS, {}, 3, 1, 3, {"CPU": 3, "GPU": 3}, 3),
        (GPU_HOSTS, {}, 8, 2, 4, {"CPU": 4, "GPU": 4}, 1),
        (GPU_HOSTS, {"cpus": 4}, 12, 3, 4, {"CPU": 16, "GPU": 4}, 0),
        (GPU_HOSTS, {"devices_per_host": 2}, 4, 2, 2, {"CPU": 2, "GPU": 2}, 1),
        (CPU_HOSTS, {}, 1, 1, 1, {"CPU": 1}, 6),
        (CPU_HOSTS, {"cpus": 4}, 1, 1, 1, {"CPU": 4}, 1),
        (CPU_HOSTS, {}, 2, 2, 1, {"CPU": 1}, 1),
        (CPU_HOSTS, {"devices_per_host": 4}, 4, 1, 4, {"CPU": 4}, 1),
    ],
)
def test_what_a_run_takes_and_how_many_there_is_room_for(on, nodes, options, devices, count, each, demand, room):
    cluster = on(nodes, **options)
    needed = cluster.host_demand(devices)
    assert (needed.hosts, needed.devices_per_host, needed.resources) == (count, each, demand)
    assert cluster.count_places(devices) == room


@pytest.mark.parametrize(
    ("nodes", "devices", "says"),
    [
        (GPU_HOSTS, 16, r"devices.*\b16\b.*\b4\b.*\b12\b.*\b38\b"),
        (GPU_HOSTS, 6, r"devices.*\b6\b.*\b4\b"),
        (CPU_HOSTS, 3, r"devices.*\b3\b.*\b2\b.*\b0\b.*\b6\b"),
    ],
)
def test_more_than_there_is(on, nodes, devices, says):
    with pytest.raises(InputError, match=says):
        on(nodes).check([1, devices])
    on(nodes).check([1])


@pytest.mark.parametrize("field", ["cpus", "devices_per_host"])
def test_options_are_checked(field):
    with pytest.raises(InputError, match=rf"{field}.*\b0\b"):
        Ray(**{field: 0})


def test_options_are_flags():
    assert tyro.cli(Ray, args=["--address", "head:6379", "--cpus", "4"]) == Ray("head:6379", cpus=4)


def test_without_ray(monkeypatch):
    monkeypatch.setattr(ray_connection, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"scaling-laws\[ray\]"):
        connect("auto")


@pytest.mark.parametrize("address", ["head", "ray://head:10001", "head:x", ":6379"])
def test_an_address_that_is_none(address):
    pytest.importorskip("ray")
    with pytest.raises(InputError, match=f"address.*{re.escape(address)}"):
        connect(address)


def test_nobody_listens(tmp_path):
    pytest.importorskip("ray")
    stand_in_plan(tmp_path / "stand_in", "")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = in_process("sweep", "run", "stand_in", "--out", tmp_path, "ray", "--address", address, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.match(f"error: .*address.*{re.escape(address)}", done.stderr)
    assert done.stderr.count("\n") == 1


def test_names_tell_sweeps_and_devices_apart(on, tmp_path):
    folders = [tmp_path / "a", tmp_path / "b" / "a", tmp_path / "b"]
    clusters = [dataclasses.replace(on(CPU_HOSTS), folder=folder) for folder in folders]
    assert len({cluster.sweep_prefix() for cluster in clusters}) == 3
    cluster, folder = clusters[0], folders[0]
    works = [
        WorkerSpec(folder),
        WorkerSpec(folder, devices=2),
        WorkerSpec(folder, members=4),
        WorkerSpec(folder, budgets=RetryBudgets(failures=5)),
    ]
    assert len({cluster.worker_prefix(work) for work in works}) == 4
    assert cluster.worker_prefix(WorkerSpec(folder)) == cluster.worker_prefix(WorkerSpec(folder, total_slots=7))
    assert (
        ray_cluster.options_digest(works[0])
        == ray_cluster.options_digest(works[1])
        != ray_cluster.options_digest(works[2])
    )


def test_what_runs_elsewhere_see_of_this_shell(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_a=1")
    monkeypatch.setenv("JAX_PROCESS_ID", "3")
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    variables = forwarded_env()
    assert variables["XLA_FLAGS"] == "--xla_a=1"
    assert not {"JAX_PROCESS_ID", "WANDB_API_KEY", "PATH"} & set(variables)


@pytest.fixture
def stand_in_ray(monkeypatch):
    """In the place of the module ray: a call is answered, or fails, at once unless its answer is None, and `kill` notes
    the actor. The exceptions are Ray's own."""
    exceptions = pytest.importorskip("ray").exceptions
    killed = []

    def get(call: Call) -> object:
        if isinstance(call.answer, Exception):
            raise call.answer
        return call.answer

    def wait(calls, num_returns=1, timeout=0.0):
        answered = [call for call in calls if call.answer is not None]
        if len(answered) < num_returns:
            time.sleep(timeout)
        return answered, [call for call in calls if call.answer is None]

    def kill(actor, *, no_restart):
        killed.append((actor, no_restart))

    module = types.SimpleNamespace(get=get, wait=wait, kill=kill, exceptions=exceptions, killed=killed)
    monkeypatch.setitem(sys.modules, "ray", module)
    monkeypatch.setattr(ray_cluster, "ANSWER_SECONDS", 1.0)
    monkeypatch.setattr(ray_cluster, "RETRY_SECONDS", 0.05)
    return module


@dataclasses.dataclass(eq=False)
class Call:
    answer: object


class StandInActor:
    """Answers the first calls of `stop` by these, and all further calls by the last. stops: how often it was asked."""

    def __init__(self, *answers: object) -> None:
        self.answers, self.stops = answers, 0
        self.stop = types.SimpleNamespace(remote=self._stop)
        self.location = types.SimpleNamespace(remote=lambda: Call("host, process 1"))

    def _stop(self) -> Call:
        self.stops += 1
        return Call(self.answers[min(self.stops, len(self.answers)) - 1])


def test_the_stop_of_an_actor_that_ray_is_starting_again_is_repeated(on, stand_in_ray, tmp_path):
    """A call to such an actor fails at once and does not reach it: it would work on, unseen by everybody."""
    unavailable = stand_in_ray.exceptions.ActorUnavailableError("restarting", None)
    died = stand_in_ray.exceptions.ActorDiedError()
    actors = {
        "prompt": StandInActor("stopped"),
        "restarting": StandInActor(unavailable, unavailable, "stopped"),
        "dead": StandInActor(died),
        "never back": StandInActor(unavailable),
        "silent": StandInActor(None),
    }
    on(CPU_HOSTS).cancel([RayWorker(name, actor, tmp_path) for name, actor in actors.items()])
    assert [actors[name].stops for name in ("prompt", "restarting", "dead", "silent")] == [1, 3, 1, 1]
    assert actors["never back"].stops > 3
    assert {(id(actor), no_restart) for actor, no_restart in stand_in_ray.killed} == {
        (id(actors[name]), True) for name in ("never back", "silent")
    }

"""One run in several processes, one per host or per device: how they join, agree to stop, and end together."""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import os
import re
import socket
import sys
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from scaling.errors import InputError, exception_chain
from scaling.exit_codes import INTERRUPTED, PROCESS_LOST
from scaling.terminal import printable
from scaling.training.failures import report_failure
from scaling.training.monitor import Stopped, timeout_with_notice
from scaling.training.out_of_memory import first_line, is_out_of_memory

START_TIMEOUT_SECONDS = 1800
"""How long a process waits for the others to join: large jobs start slowly."""

HEARTBEAT_TIMEOUT_SECONDS = 100
"""A process that sends no heartbeat for so long counts as lost, and XLA aborts the others. This is JAX's own default; a
shorter time is risky, because pinning memory has kept hosts of eight GPUs silent for more than ten seconds (jax issue
23599)."""

LOOPBACK = "127.0.0.1"
PROCESS_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")

LOST_PEER_MESSAGE = re.compile(
    r"Gloo|ncclRemoteError|remote process|UNAVAILABLE|heartbeat|barrier|closed by peer|reset by peer", re.IGNORECASE
)
"""Occurs in the errors of XLA's collectives and of JAX's coordination service when another process does not answer."""

STATUS_PREFIX = re.compile("(UNKNOWN|UNAVAILABLE|INTERNAL|ABORTED|CANCELLED|DEADLINE_EXCEEDED|FAILED_PRECONDITION): ")
"""How the message of an XLA error begins, also where JAX raises it as a ValueError."""


def join_processes() -> None:
    """Joins the other processes of a run, if there are any.

    Raises InputError when the variables in PROCESS_VARIABLES make no sense. When the others do not join in time, ends
    this process with PROCESS_LOST, two seconds before XLA would abort it.
    """
    variables = [f"{name}={os.environ[name]}" for name in PROCESS_VARIABLES if name in os.environ]
    others = f"the other processes of this run ({', '.join(variables) or 'as the launcher says'})"
    try:
        with timeout_with_notice(others, START_TIMEOUT_SECONDS - 2, PROCESS_LOST):
            initialize_distributed()
    except ValueError as error:
        raise InputError(f"{', '.join(variables)}: {error}") from None


def initialize_distributed() -> None:
    """Calls jax.distributed.initialize when the environment says that this process is one of several. Does nothing for
    a process alone, and at a second call.

    Under srun, mpirun and on TPU pods, JAX finds the other processes itself. Elsewhere JAX_COORDINATOR_ADDRESS,
    JAX_NUM_PROCESSES and JAX_PROCESS_ID must be set; raises InputError when only some of them are. JAX's preemption
    service is switched off: it would take SIGTERM, which the training loop handles (monitor.stop_signals). Where this
    can tell, the coordinator listens only on the address by which the others reach it, since it trusts whoever connects
    (bind_address). JAX_COORDINATOR_BIND_ADDRESS, if set, decides instead.
    """
    environment = os.environ
    if jax.distributed.is_initialized():
        return
    initialize = functools.partial(
        jax.distributed.initialize,
        initialization_timeout=START_TIMEOUT_SECONDS,
        heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_SECONDS,
    )
    if variables := [name for name in PROCESS_VARIABLES if name in environment]:
        if len(variables) < len(PROCESS_VARIABLES):
            raise InputError(f"{', '.join(variables)} without the others: set {', '.join(PROCESS_VARIABLES)}, or none")
        address, count, index = (environment[name] for name in PROCESS_VARIABLES)
        jax.config.update("jax_enable_preemption_service", False)
        initialize(address, int(count), int(index), coordinator_bind_address=bind_address(address))
    elif int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        jax.config.update("jax_enable_preemption_service", False)
        # JAX takes the port from this variable, and by default the same number from the job.
        port = environment.setdefault("JAX_COORDINATOR_PORT", str(61_440 + int(environment["SLURM_JOB_ID"]) % 4096))
        if environment.get("SLURM_STEP_NUM_NODES") == "1":
            initialize(f"{LOOPBACK}:{port}", coordinator_bind_address=bind_address(f"{LOOPBACK}:{port}"))
        else:
            # The coordinator is process 0, on the first node, whose name JAX gives to the others.
            initialize(coordinator_bind_address=bind_address(f"{environment.get('SLURMD_NODENAME', '')}:{port}"))
    elif int(environment.get("OMPI_COMM_WORLD_SIZE", "1")) > 1 or "," in environment.get("TPU_WORKER_HOSTNAMES", ""):
        jax.config.update("jax_enable_preemption_service", False)
        initialize()


def bind_address(address: str) -> str | None:
    """The IP:PORT on which the coordinator must listen for processes that connect to `address`, a HOST:PORT.

    None, which means every interface, where this cannot tell: this machine has no such address (a router translates
    it), or a host name stands for loopback here, as in some /etc/hosts, and may stand for another address elsewhere.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        ip = str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
        with socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET) as probe:
            probe.bind((ip, 0))
    except OSError:
        return None
    is_ambiguous = ipaddress.ip_address(ip).is_loopback and host not in (ip, "localhost")
    if is_ambiguous or "JAX_COORDINATOR_BIND_ADDRESS" in os.environ:
        return None
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


def wait_for_all(what: str) -> None:
    """Returns when every process has called this. what: names the place, the same in all processes."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def make_vote(flag: Callable[[], bool], mesh: Mesh) -> Callable[[], Callable[[], bool]]:
    """Returns a function `start_vote` that finds out whether `flag()` is true in any process.

    `start_vote()` starts one small all-reduce and returns a function that waits for its result. All processes must call
    `start_vote` at the same step, and all get the same answer. The all-reduce waits its turn on the devices, so call
    `start_vote` before a training step is dispatched, and read the result after. In a process alone the answer is the
    value of the flag when it is read.
    """
    if jax.process_count() == 1:
        return lambda: flag
    # One element per device of the whole mesh; this process fills only those of its own devices, all with its vote.
    one_per_device = NamedSharding(mesh, P(mesh.axis_names))
    votes = {
        vote: jax.make_array_from_callback(
            (mesh.size,), one_per_device, lambda _, vote=vote: np.full(1, vote, np.int32)
        )
        for vote in (False, True)
    }
    # A replicated sum over sharded elements: XLA makes it an all-reduce.
    count_votes = jax.jit(jnp.sum, out_shardings=NamedSharding(mesh, P()))

    def start_vote() -> Callable[[], bool]:
        count = count_votes(votes[bool(flag())])
        return lambda: bool(count)

    return start_vote


@contextlib.contextmanager
def exit_together() -> Iterator[None]:
    """Inside this block, an error in one of several processes ends all of them, with PROCESS_LOST in the others.

    The process exits at once, without Python's usual clean-up: checkpoints that are being written and the shutdown of
    jax.distributed would wait for processes that no longer answer (86 s were seen). In a process alone, errors are
    raised as usual.
    """
    try:
        yield
    except Stopped:
        raise
    except (Exception, KeyboardInterrupt) as error:
        if jax.process_count() == 1:
            raise
        code = INTERRUPTED if isinstance(error, KeyboardInterrupt) else _report_error(error)
        sys.stdout.flush()
        os._exit(code)


def _report_error(error: Exception) -> int:
    """Prints the error and returns the exit code for it."""
    if not lost_peer(error):
        return report_failure(error)
    print(printable(f"error: another process of this run is gone: {first_line(error)}"), file=sys.stderr, flush=True)
    return PROCESS_LOST


def lost_peer(error: BaseException) -> bool:
    """Whether an XLA error, or one from which it was raised, says that another process is gone."""
    if is_out_of_memory(error):
        return False
    return any(
        (isinstance(link, jax.errors.JaxRuntimeError) or STATUS_PREFIX.match(str(link)))
        and LOST_PEER_MESSAGE.search(str(link))
        for link in exception_chain(error)
    )

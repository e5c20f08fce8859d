"""Several processes that train one run: how they meet, how they agree, and that the loss of one is the loss of all.

Not in the design's list of modules: sharding.py says what lies on which device, this what processes tell each other.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
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
from scaling.training.failures import report_failure
from scaling.training.monitor import Stopped, timeout_with_notice
from scaling.training.out_of_memory import first_line, is_out_of_memory

START_TIMEOUT_SECONDS = 1800
"""Large jobs start slowly."""

HEARTBEAT_TIMEOUT_SECONDS = 100
"""After how long without a sign of life a process counts as lost, and XLA aborts the others: JAX's own default. Less is
risky: pinning memory has kept hosts of eight GPUs silent for longer than ten seconds (jax issue 23599)."""

PROCESS_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")

LOST_PEER_MESSAGE = re.compile(
    r"Gloo|ncclRemoteError|remote process|UNAVAILABLE|heartbeat|barrier|closed by peer|reset by peer", re.IGNORECASE
)
"""How XLA's collectives and JAX's coordination service say that another process does not answer."""


STATUS_PREFIX = re.compile("(UNKNOWN|UNAVAILABLE|INTERNAL|ABORTED|CANCELLED|DEADLINE_EXCEEDED|FAILED_PRECONDITION): ")
"""How a message of XLA's begins, also where JAX raises a ValueError of it."""


def join_processes() -> None:
    """Joins the other processes of a run, if there are any. Raises InputError when the environment names a process
    that cannot be; ends this one, as lost, when the others do not come, just before XLA would abort it."""
    given = [f"{name}={os.environ[name]}" for name in PROCESS_VARIABLES if name in os.environ]
    others = f"the other processes of this run ({', '.join(given) or 'as the launcher says'})"
    try:
        with timeout_with_notice(others, START_TIMEOUT_SECONDS - 2, PROCESS_LOST):
            initialize_distributed()
    except ValueError as error:
        raise InputError(f"{', '.join(given)}: {error}") from None


def initialize_distributed() -> None:
    """Makes this process one of several. A process alone does nothing, and so does a second call.

    srun, mpirun and TPU pods tell JAX who they are. Elsewhere JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
    JAX_PROCESS_ID say it, all three: InputError otherwise. JAX's preemption service is off: it would keep SIGTERM to
    itself, which monitor.signals hears.
    """
    environment = os.environ
    if jax.distributed.is_initialized():
        return
    begin = functools.partial(
        jax.distributed.initialize,
        initialization_timeout=START_TIMEOUT_SECONDS,
        heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_SECONDS,
    )
    if given := [name for name in PROCESS_VARIABLES if name in environment]:
        if len(given) < len(PROCESS_VARIABLES):
            raise InputError(f"{', '.join(given)} without the others: set {', '.join(PROCESS_VARIABLES)}, or none")
        address, count, index = (environment[name] for name in PROCESS_VARIABLES)
        jax.config.update("jax_enable_preemption_service", False)
        begin(address, int(count), int(index))
    elif (
        int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1
        or int(environment.get("OMPI_COMM_WORLD_SIZE", "1")) > 1
        or "," in environment.get("TPU_WORKER_HOSTNAMES", "")
    ):
        jax.config.update("jax_enable_preemption_service", False)
        begin()


def wait_for_all(what: str) -> None:
    """Returns when every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def any_process_asks(flag: Callable[[], bool], mesh: Mesh) -> Callable[[], Callable[[], bool]]:
    """Opens polls on a flag: each call asks every process, and returns what tells, when called, whether any said yes.

    All must open a poll at the same place, and get the same answer. Opening one does not wait; the answer takes the
    turn of the devices, one small all-reduce, so ask before a step is dispatched and read after. Alone, the answer is
    the flag when it is read.
    """
    if jax.process_count() == 1:
        return lambda: flag
    each = NamedSharding(mesh, P(mesh.axis_names))
    cards = {
        up: jax.make_array_from_callback((mesh.size,), each, lambda _, up=up: np.full(1, up, np.int32))
        for up in (False, True)
    }
    count = jax.jit(jnp.sum, out_shardings=NamedSharding(mesh, P()))

    def ask() -> Callable[[], bool]:
        raised = count(cards[bool(flag())])
        return lambda: bool(raised)

    return ask


@contextlib.contextmanager
def exit_together() -> Iterator[None]:
    """Inside, whatever ends one of several processes ends all: with exit code PROCESS_LOST where another is gone.

    At once, because what would follow waits for processes that do not answer: checkpoints that are being written, and
    the farewell when Python ends (86 s were seen). A process alone raises as usual.
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
    if not lost_peer(error):
        return report_failure(error)
    print(f"error: another process of this run is gone: {first_line(error)}", file=sys.stderr, flush=True)
    return PROCESS_LOST


def lost_peer(error: BaseException) -> bool:
    """Whether an error of XLA's, or one that it came from, says that another process is gone."""
    if is_out_of_memory(error):
        return False
    return any(
        (isinstance(link, jax.errors.JaxRuntimeError) or STATUS_PREFIX.match(str(link)))
        and LOST_PEER_MESSAGE.search(str(link))
        for link in exception_chain(error)
    )

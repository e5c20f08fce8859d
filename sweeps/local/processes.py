"""Runs on this machine: one subprocess each, on cores or on a GPU of its own."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from scaling.errors import InputError
from scaling.exit_codes import OUT_OF_MEMORY
from scaling.record.run_folder import LOG_FILE
from scaling.training.out_of_memory import count_oom_kills, oom_kill_since
from sweeps.local import child
from sweeps.local.launch import Slot

CACHE_FOLDER = "xla"
MAX_REASON_CHARACTERS = 300  # characters of a reason; the log has the rest
ONE_THREAD_VARIABLES = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
PEER_PREFIXES = ("SLURM_", "OMPI_", "PMIX_", "JAX_COORDINATOR", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
KILL_COUNT_SECONDS = 2.0
EIGEN_FLAG = "--xla_cpu_multi_thread_eigen"


@dataclass(frozen=True)
class Local:
    """Processes on this machine, each with cores or GPUs of its own."""


def make_slots(jobs: int | None = None) -> tuple[Slot, ...]:
    """Room for `jobs` runs at once: by default one per visible GPU, else one per core that this process may use.

    Fewer jobs than cores share the cores out; more jobs than GPUs share the GPUs, fewer leave GPUs for runs that take
    several. Restrict with CUDA_VISIBLE_DEVICES, JAX_PLATFORMS=cpu or taskset. Raises InputError on jobs below 1.
    """
    if jobs is not None and jobs < 1:
        raise InputError(f"jobs = {jobs}: must be 1 or more")
    gpus = visible_gpus()
    if not gpus and uses_tpu():
        if jobs not in (None, 1):
            raise InputError(f"jobs = {jobs}: a TPU host runs one at a time")
        return (Slot(devices=len(tpu_chips())),)
    if gpus:
        jobs = max(jobs or 0, len(gpus))
        sharing = -(-jobs // len(gpus))
        return tuple(Slot(gpu=gpus[i % len(gpus)], memory_fraction=1 / sharing) for i in range(jobs))
    cores = available_cores()
    jobs = jobs or len(cores)
    return tuple(Slot(cores=cores[i % len(cores) :: jobs]) for i in range(jobs))


def join_slots(free: Sequence[Slot], devices: int) -> tuple[tuple[Slot, ...], Slot] | None:
    """Which of the free slots a run of so many devices takes, and the one slot that they make; None while there is too
    little. A GPU counts once, however many share it; a CPU has as many devices as cores, or as the user says."""
    taken: list[Slot] = []
    for slot in free:
        if slot.gpu and slot.gpu in {one.gpu for one in taken}:
            continue
        taken.append(slot)
        if sum(map(device_capacity, taken)) >= devices:
            cores = tuple(sorted({core for one in taken for core in one.cores}))
            gpu, fraction = ",".join(one.gpu for one in taken if one.gpu), min(one.memory_fraction for one in taken)
            return tuple(taken), Slot(cores, gpu, fraction, devices)
    return None


def device_capacity(slot: Slot) -> int:
    """Devices that a run may have in a slot."""
    if slot.gpu:
        return max(slot.devices, slot.gpu.count(",") + 1)
    named = os.environ.get("JAX_NUM_CPU_DEVICES", "")
    return max(slot.devices, len(slot.cores), int(named) if named.isdigit() else 0)


def whole_machine_slot(devices: int) -> Slot:
    """All that this process was given, as one slot."""
    gpus = visible_gpus()
    return Slot(gpu=",".join(gpus), devices=devices) if gpus else Slot(cores=available_cores(), devices=devices)


def available_cores() -> tuple[int, ...]:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def visible_gpus() -> tuple[str, ...]:
    """NVIDIA GPUs that JAX would use here; none without its CUDA plugin. Names as CUDA_VISIBLE_DEVICES takes them."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    plugin = any(find_spec(f"jax_cuda{version}_plugin") for version in (12, 13))
    if not plugin or (platforms and not {"cuda", "gpu"} & set(platforms.split(","))):
        return ()
    if (listed := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return tuple(name.strip() for name in listed.split(",") if name.strip())
    if not shutil.which("nvidia-smi"):
        return ()
    query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    found = subprocess.run(query, capture_output=True, text=True, check=False)
    return tuple(found.stdout.split()) if found.returncode == 0 else ()


def uses_tpu() -> bool:
    """Whether JAX would take a TPU here: its library and a device are there, and no other platform is asked for."""
    platforms = os.environ.get("JAX_PLATFORMS", "tpu").split(",")
    return find_spec("libtpu") is not None and bool(tpu_chips()) and "tpu" in platforms


def tpu_chips() -> tuple[Path, ...]:
    """The devices by which Linux shows a host's TPU chips."""
    return (*Path("/dev").glob("accel*"), *Path("/dev/vfio").glob("[0-9]*"))


def slot_environment(slot: Slot, base: Mapping[str, str]) -> dict[str, str]:
    """The variables that keep a run inside its slot; what the user set stands.

    A run here is one process: what a cluster told this process about its own peers is not for it.
    """
    out = {name: value for name, value in base.items() if not name.startswith(PEER_PREFIXES)}
    if slot.gpu:
        out["CUDA_VISIBLE_DEVICES"] = slot.gpu
        if slot.memory_fraction < 1:
            out.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{0.9 * slot.memory_fraction:.3f}")
    elif slot.devices > 1:
        out.setdefault("JAX_NUM_CPU_DEVICES", str(slot.devices))
    if len(slot.cores) == 1:
        out = ONE_THREAD_VARIABLES | out
        if EIGEN_FLAG not in out.get("XLA_FLAGS", ""):
            out["XLA_FLAGS"] = f"{out.get('XLA_FLAGS', '')} {EIGEN_FLAG}=false".strip()
    return out


def compilation_cache_variables(folder: Path) -> dict[str, str]:
    """JAX's persistent cache, beside the runs: cells of one shape share their programs, and so does a rerun.

    A torn entry is compiled again. A program for a CPU is a program for this kind of CPU: machines of several kinds
    that share a sweep's folder have a cache for each.
    """
    cache = folder.absolute().parent.parent / CACHE_FOLDER / processor_id()
    return {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5"}


@dataclass
class Process:
    """A run on this machine and all that it started. before, lately: the kernel's count of processes killed for memory
    some seconds ago, and since; killed: whether this process killed it."""

    popen: subprocess.Popen[bytes]
    before: int | None = field(default_factory=count_oom_kills)
    lately: int | None = field(default_factory=count_oom_kills)
    read_at: float = field(default_factory=time.monotonic)
    killed: bool = False

    def poll(self) -> int | None:
        """As the run ended; a SIGKILL that the kernel sent for want of memory is its MEMORY."""
        code = self.popen.poll()
        if code is None and time.monotonic() - self.read_at > KILL_COUNT_SECONDS:
            self.before, self.lately, self.read_at = self.lately, count_oom_kills(), time.monotonic()
        starved = code == -signal.SIGKILL and not self.killed and oom_kill_since(self.before)
        return OUT_OF_MEMORY if starved else code

    def terminate(self) -> None:
        self.popen.terminate()

    def kill(self) -> None:
        if self.popen.poll() is None:
            self.killed = True
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()


@functools.cache
def processor_id() -> str:
    """Names the kind of CPU: its architecture, and a hash of the instructions that it knows where the kernel lists
    them."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        known = next((line for line in lines if line.startswith(("flags", "Features"))), "")
        return f"{platform.machine()}-{hashlib.sha256(' '.join(sorted(known.split())).encode()).hexdigest()[:8]}"
    return platform.machine()


def start_process(command: Sequence[str], folder: Path, slot: Slot, inherit: Sequence[int] = ()) -> Process:
    """Starts a run in a slot, output appended to log.txt, tied to this process's life (leash.py), deaf to the terminal.

    inherit: descriptors that the run keeps open, such as its claim's lock.
    """
    cores = ",".join(map(str, slot.cores)) or "-"
    tied = [sys.executable, "-I", "-S", str(Path(child.__file__)), str(os.getpid()), cores, *command]
    with (folder / LOG_FILE).open("ab") as log:
        popen = subprocess.Popen(
            tied,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=compilation_cache_variables(folder) | slot_environment(slot, os.environ),
            pass_fds=tuple(inherit),
            start_new_session=True,
        )
    return Process(popen)


def last_output_line(folder: Path) -> str:
    """The last line of a run's output that says anything: of a traceback, the error."""
    found = next((line.strip() for line in reversed(_read_tail(folder)) if line.strip()), "")
    return found if len(found) <= MAX_REASON_CHARACTERS else found[: MAX_REASON_CHARACTERS - 3] + "..."


def last_traceback(folder: Path) -> str:
    """The last traceback in a run's output, to its end; empty when it left none."""
    lines = _read_tail(folder)
    last = max(
        (i for i, line in enumerate(lines) if line.startswith("Traceback (most recent call last)")), default=None
    )
    return "" if last is None else "\n".join(lines[last:])


def _read_tail(folder: Path, limit: int = 65_536) -> list[str]:
    """The last lines of a run's output; none when it has none."""
    try:
        with (folder / LOG_FILE).open("rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(0, log.tell() - limit))
            return log.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return []

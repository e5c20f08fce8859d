"""Starts runs on this machine, one subprocess each, and shares out the cores and GPUs that it has."""

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
MAX_REASON_CHARACTERS = 300
"""Of the last line of a log, where it is quoted as the reason of a failure."""
ONE_THREAD_VARIABLES = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
PEER_PREFIXES = ("SLURM_", "OMPI_", "PMIX_", "JAX_COORDINATOR", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
"""Variables by which a process of a multi-host run finds the others. A run that has one process must not see them."""
KILL_COUNT_SECONDS = 2.0
"""Seconds between two readings of the kernel's count of processes killed for lack of memory."""
EIGEN_FLAG = "--xla_cpu_multi_thread_eigen"


@dataclass(frozen=True)
class Local:
    """Runs are processes of this machine, each with cores or GPUs of its own."""


def make_slots(jobs: int | None = None) -> tuple[Slot, ...]:
    """Slots for `jobs` runs at once: by default one per visible GPU, else one per core that this process may use.

    With fewer jobs than cores, each slot gets several cores. More jobs than GPUs share the GPUs; with fewer, there is
    still a slot for each GPU, so that one run can take several. CUDA_VISIBLE_DEVICES, JAX_PLATFORMS=cpu and taskset
    restrict what is used. Raises InputError when jobs is below 1.
    """
    if jobs is not None and jobs < 1:
        raise InputError(f"jobs = {jobs}: must be 1 or more")
    gpus = visible_gpus()
    if not gpus and uses_tpu():
        if jobs not in (None, 1):
            raise InputError(f"jobs = {jobs}: must be 1 on a TPU host, which runs one process at a time")
        return (Slot(devices=len(tpu_chips())),)
    if gpus:
        jobs = max(jobs or 0, len(gpus))
        jobs_per_gpu = -(-jobs // len(gpus))  # rounded up
        return tuple(Slot(gpu=gpus[i % len(gpus)], memory_fraction=1 / jobs_per_gpu) for i in range(jobs))
    cores = available_cores()
    jobs = jobs or len(cores)
    return tuple(Slot(cores=cores[i % len(cores) :: jobs]) for i in range(jobs))


def join_slots(free: Sequence[Slot], devices: int) -> tuple[tuple[Slot, ...], Slot] | None:
    """Joins free slots to one that holds a run of so many devices. Returns the slots used and the joined one; None when
    the free slots are too few. A GPU counts once, however many slots share it."""
    used: list[Slot] = []
    for slot in free:
        if slot.gpu and slot.gpu in {other.gpu for other in used}:
            continue
        used.append(slot)
        if sum(map(device_capacity, used)) >= devices:
            cores = tuple(sorted({core for each in used for core in each.cores}))
            gpu = ",".join(each.gpu for each in used if each.gpu)
            fraction = min(each.memory_fraction for each in used)
            return tuple(used), Slot(cores, gpu, fraction, devices)
    return None


def device_capacity(slot: Slot) -> int:
    """The number of devices that a run may have in a slot: its GPUs, or on a CPU its cores, or JAX_NUM_CPU_DEVICES
    where that is more."""
    if slot.gpu:
        return max(slot.devices, slot.gpu.count(",") + 1)
    cpu_devices = os.environ.get("JAX_NUM_CPU_DEVICES", "")
    return max(slot.devices, len(slot.cores), int(cpu_devices) if cpu_devices.isdigit() else 0)


def whole_machine_slot(devices: int) -> Slot:
    """One slot of all GPUs, or all cores, that this process may use."""
    gpus = visible_gpus()
    return Slot(gpu=",".join(gpus), devices=devices) if gpus else Slot(cores=available_cores(), devices=devices)


def available_cores() -> tuple[int, ...]:
    """The cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def visible_gpus() -> tuple[str, ...]:
    """Names, as in CUDA_VISIBLE_DEVICES, of the NVIDIA GPUs that JAX would use here; none without its CUDA plugin."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    has_plugin = any(find_spec(f"jax_cuda{version}_plugin") for version in (12, 13))
    if not has_plugin or (platforms and not {"cuda", "gpu"} & set(platforms.split(","))):
        return ()
    if (listed := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return tuple(name.strip() for name in listed.split(",") if name.strip())
    if not shutil.which("nvidia-smi"):
        return ()
    query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    completed = subprocess.run(query, capture_output=True, text=True, check=False)
    return tuple(completed.stdout.split()) if completed.returncode == 0 else ()


def uses_tpu() -> bool:
    """Whether JAX would use a TPU here: libtpu is installed, the host has a chip, and JAX_PLATFORMS allows it."""
    platforms = os.environ.get("JAX_PLATFORMS", "tpu").split(",")
    return find_spec("libtpu") is not None and bool(tpu_chips()) and "tpu" in platforms


def tpu_chips() -> tuple[Path, ...]:
    """The device files of the TPU chips of this host."""
    return (*Path("/dev").glob("accel*"), *Path("/dev/vfio").glob("[0-9]*"))


def slot_environment(slot: Slot, base: Mapping[str, str]) -> dict[str, str]:
    """The environment of a run: `base`, with the variables that keep it inside its slot. Variables that the user has
    set are kept, except CUDA_VISIBLE_DEVICES.

    A run here has one process, so the variables by which this process finds peers of its own are left out.
    """
    out = {name: value for name, value in base.items() if not name.startswith(PEER_PREFIXES)}
    if slot.gpu:
        out["CUDA_VISIBLE_DEVICES"] = slot.gpu
        if slot.memory_fraction < 1:  # a tenth of the GPU stays free for what JAX does not allocate itself
            out.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{0.9 * slot.memory_fraction:.3f}")
    elif slot.devices > 1:
        out.setdefault("JAX_NUM_CPU_DEVICES", str(slot.devices))
    if len(slot.cores) == 1:
        out = ONE_THREAD_VARIABLES | out
        if EIGEN_FLAG not in out.get("XLA_FLAGS", ""):
            out["XLA_FLAGS"] = f"{out.get('XLA_FLAGS', '')} {EIGEN_FLAG}=false".strip()
    return out


def compilation_cache_variables(folder: Path) -> dict[str, str]:
    """The variables of JAX's persistent compilation cache, which lies beside the run folders: runs of one shape, and
    reruns, compile once.

    JAX compiles again when an entry is torn. A program compiled for one kind of CPU may not run on another, so each
    kind has a folder of its own.
    """
    cache = folder.absolute().parent.parent / CACHE_FOLDER / processor_id()
    return {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5"}


@dataclass
class Process:
    """A run on this machine, and all processes that it started: its process group.

    older_kill_count, newer_kill_count: how many processes the kernel had killed for lack of memory, at the last reading
    but one and at the last; read_at: monotonic seconds of the last. is_killed: whether `kill` ended the run.
    """

    popen: subprocess.Popen[bytes]
    older_kill_count: int | None = field(default_factory=count_oom_kills)
    newer_kill_count: int | None = field(default_factory=count_oom_kills)
    read_at: float = field(default_factory=time.monotonic)
    is_killed: bool = False

    def poll(self) -> int | None:
        """The exit code of the run; OUT_OF_MEMORY when the kernel killed it for lack of memory, None while it runs."""
        code = self.popen.poll()
        if code is None and time.monotonic() - self.read_at > KILL_COUNT_SECONDS:
            self.older_kill_count, self.newer_kill_count = self.newer_kill_count, count_oom_kills()
            self.read_at = time.monotonic()
        # The kernel does not say whom it killed: a count that has risen counts only when the run died of SIGKILL. The
        # older count is compared, because the newer one may have been read between the kill and this call.
        is_oom_kill = code == -signal.SIGKILL and not self.is_killed and oom_kill_since(self.older_kill_count)
        return OUT_OF_MEMORY if is_oom_kill else code

    def terminate(self) -> None:
        self.popen.terminate()

    def kill(self) -> None:
        if self.popen.poll() is None:
            self.is_killed = True
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()


@functools.cache
def processor_id() -> str:
    """Names the kind of CPU: its architecture, and on Linux a hash of its instruction sets."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        # "flags" on x86, "Features" on ARM; sorted, because kernels list them in different orders.
        instruction_sets = next((line for line in lines if line.startswith(("flags", "Features"))), "").split()
        return f"{platform.machine()}-{hashlib.sha256(' '.join(sorted(instruction_sets)).encode()).hexdigest()[:8]}"
    return platform.machine()


def start_process(command: Sequence[str], folder: Path, slot: Slot, inherit: Sequence[int] = ()) -> Process:
    """Starts a run in a slot. Its output is appended to log.txt of the folder, and it ends when this process does
    (sweeps/local/child.py).

    inherit: file descriptors that the run keeps open, such as the lock of its claim.
    """
    cores = ",".join(map(str, slot.cores)) or "-"
    argv = [sys.executable, "-I", "-S", str(Path(child.__file__)), str(os.getpid()), cores, *command]
    with (folder / LOG_FILE).open("ab") as log:
        popen = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=compilation_cache_variables(folder) | slot_environment(slot, os.environ),
            pass_fds=tuple(inherit),
            # A session of its own: Ctrl-C in the terminal does not reach it, and its process group can be killed whole.
            start_new_session=True,
        )
    return Process(popen)


def last_output_line(folder: Path) -> str:
    """The last line of a run's output that is not blank: of a traceback, the error. Cut to MAX_REASON_CHARACTERS."""
    last = next((line.strip() for line in reversed(_read_tail(folder)) if line.strip()), "")
    return last if len(last) <= MAX_REASON_CHARACTERS else last[: MAX_REASON_CHARACTERS - 3] + "..."


def last_traceback(folder: Path) -> str:
    """The last traceback in a run's output, and what follows it; empty when there is none."""
    lines = _read_tail(folder)
    last = max(
        (i for i, line in enumerate(lines) if line.startswith("Traceback (most recent call last)")), default=None
    )
    return "" if last is None else "\n".join(lines[last:])


def _read_tail(folder: Path, limit: int = 65_536) -> list[str]:
    """The lines in the last `limit` bytes of a run's output; none when it has no log."""
    try:
        with (folder / LOG_FILE).open("rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(0, log.tell() - limit))
            return log.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return []

"""Slots, the variables of runs in them, and processes that end with the process that started them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from scaling.errors import InputError
from scaling.record.run_folder import LOG_FILE
from sweeps.local import processes
from sweeps.local.processes import Slot, last_output_line, make_slots, slot_environment, start_process

LINUX = sys.platform == "linux"


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr(processes, "available_cores", lambda: (0, 2, 5, 7))


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(
    ("jobs", "cores"),
    [
        (None, [(0,), (2,), (5,), (7,)]),
        (1, [(0, 2, 5, 7)]),
        (2, [(0, 5), (2, 7)]),
        (3, [(0, 7), (2,), (5,)]),
        (5, [(0,), (2,), (5,), (7,), (0,)]),
    ],
)
def test_cores_are_shared_out(jobs, cores):
    assert [slot.cores for slot in make_slots(jobs)] == cores


@pytest.mark.parametrize("jobs", [0, -1])
def test_no_room_is_bad_input(jobs):
    with pytest.raises(InputError, match=rf"\bjobs\b.*{jobs}\b"):
        make_slots(jobs)


def test_one_run_per_gpu_and_memory_split_when_shared(monkeypatch):
    monkeypatch.setattr(processes, "visible_gpus", lambda: ("0", "3"))
    assert make_slots() == (Slot(gpu="0"), Slot(gpu="3"))
    shared = make_slots(4)
    assert [slot.gpu for slot in shared] == ["0", "3", "0", "3"]
    assert {slot.memory_fraction for slot in shared} == {0.5}
    assert slot_environment(shared[1], {})["CUDA_VISIBLE_DEVICES"] == "3"
    assert float(slot_environment(shared[1], {})["XLA_PYTHON_CLIENT_MEM_FRACTION"]) == pytest.approx(0.45)
    assert "XLA_PYTHON_CLIENT_MEM_FRACTION" not in slot_environment(make_slots()[0], {})


def test_visible_gpus_follow_the_environment(monkeypatch):
    monkeypatch.setattr(processes, "find_spec", lambda name: object())
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, 5")
    assert processes.visible_gpus() == ("2", "5")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert processes.visible_gpus() == ()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert processes.visible_gpus() == ()
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setattr(processes, "find_spec", lambda name: None)
    assert processes.visible_gpus() == ()


def test_one_core_means_one_thread_unless_the_user_has_set_the_variables():
    one = slot_environment(Slot(cores=(1,)), {"XLA_FLAGS": "--xla_a=1"})
    assert one["XLA_FLAGS"] == "--xla_a=1 --xla_cpu_multi_thread_eigen=false"
    assert one["OMP_NUM_THREADS"] == "1"
    given = {"OMP_NUM_THREADS": "4", "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=true"}
    assert {name: slot_environment(Slot(cores=(1,)), given)[name] for name in given} == given
    assert slot_environment(Slot(cores=(0, 1)), {}) == {}


def test_machines_of_another_kind_have_a_cache_of_their_own(tmp_path, monkeypatch):
    def cache() -> str:
        processes.processor_id.cache_clear()
        return processes.compilation_cache_variables(tmp_path / "runs" / "one")["JAX_COMPILATION_CACHE_DIR"]

    here = cache()
    assert here.startswith(str(tmp_path / "xla"))
    assert cache() == here
    other = "processor : 0\nflags : fpu avx512f\n"
    monkeypatch.setattr(Path, "read_text", lambda path: other)
    assert cache() != here
    other = "processor : 0\nflags : avx512f fpu\n"
    elsewhere = cache()
    other = other.replace("avx512f", "avx2")
    assert cache() not in (here, elsewhere)
    processes.processor_id.cache_clear()


def test_output_goes_to_the_log_and_is_kept(tmp_path):
    for text in ("first", "second"):
        start_process(
            [sys.executable, "-c", f"import sys; print('{text}'); sys.exit('bad: {text}\\n\\n')"], tmp_path, Slot()
        ).popen.wait()
    log = (tmp_path / LOG_FILE).read_text()
    assert "first" in log
    assert last_output_line(tmp_path) == "bad: second"
    assert last_output_line(tmp_path / "absent") == ""
    (tmp_path / LOG_FILE).write_text("x" * 10_000)
    assert last_output_line(tmp_path) == "x" * 297 + "..."


@pytest.mark.skipif(not LINUX, reason="no core affinity elsewhere")
def test_a_run_stays_on_its_core(tmp_path):
    core = processes.available_cores()[-1]
    start_process(
        [sys.executable, "-c", "import os; print(os.sched_getaffinity(0))"], tmp_path, Slot(cores=(core,))
    ).popen.wait()
    assert last_output_line(tmp_path) == f"{{{core}}}"


def test_a_run_keeps_inherited_descriptors_and_its_own_session(tmp_path):
    read, write = os.pipe()
    code = f"import os; os.write({write}, b'%d' % os.getsid(0))"
    process = start_process([sys.executable, "-c", code], tmp_path, Slot(), [write]).popen
    os.close(write)
    assert process.wait() == 0
    assert int(os.read(read, 20)) == process.pid
    os.close(read)


@pytest.mark.skipif(not LINUX, reason="other kernels send no signal when a parent dies")
def test_a_run_ends_when_its_parent_dies(tmp_path):
    program = (
        "import sys; from pathlib import Path; from sweeps.local.processes import *\n"
        "code = 'import time; print(1, flush=True); time.sleep(60)'\n"
        f"p = start_process([sys.executable, '-c', code], Path({str(tmp_path)!r}), Slot()).popen\n"
        "print(p.pid, flush=True); p.wait()"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        until(lambda: last_output_line(tmp_path) == "1")
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    until(lambda: not alive(child))


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "not within 10 s"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False

"""A real SLURM on this machine, of two nodes, in namespaces of its own: the host stays untouched.

    python tests/cluster/slurm_cluster.py COMMAND...      runs COMMAND in a fresh cluster; root on a Debian only

The root inside is an overlay over the host's, its changes in memory. SLURM and munge come from apt, and the packages
stay in .pytest_cache. The first process inside is this script; when it ends, or its parent does, all of it is gone.
Inside are seen, at the same paths: this checkout, Python's environment, and one folder to work in.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
PACKAGES = CHECKOUT / ".pytest_cache" / "apt"
HOST, READY, ABSENT, START_SECONDS = "slurm", "ready", "absent", 300
NEW_UTS, NEW_NET = 0x04000000, 0x40000000
UP, GET_FLAGS, SET_FLAGS, SET_ADDRESS = 1, 0x8913, 0x8914, 0x8916

SLURM_CONF = f"""
ClusterName=one
SlurmctldHost={HOST}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
StateSaveLocation=/var/spool/slurmctld
SlurmdSpoolDir=/var/spool/slurmd.%n
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.%n.pid
SlurmctldLogFile=/var/log/slurm/slurmctld.log
SlurmdLogFile=/var/log/slurm/slurmd.%n.log
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
GresTypes=gpu
SlurmdTimeout=30
SlurmdParameters=config_overrides
SchedulerParameters=bf_interval=1,bf_continue,sched_interval=2,sched_min_interval=100000,batch_sched_delay=0
SlurmctldParameters=preempt_send_user_signal
InactiveLimit=0
KillWait=10
NodeName=n1 NodeHostName={HOST} NodeAddr=127.0.0.1 Port=17001 CPUs=2 RealMemory=4000 Gres=gpu:2
NodeName=n2 NodeHostName={HOST} NodeAddr=127.0.0.1 Port=17002 CPUs=2 RealMemory=4000 Gres=gpu:2
PartitionName=low Nodes=n1,n2 Default=YES MaxTime=60 State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=high Nodes=n1,n2 MaxTime=60 State=UP PriorityTier=10 PreemptMode=OFF
"""
"""cred_expire is also what a requeued job waits: 120 s where it is not given."""

GRES_CONF = "NodeName=n1 Name=gpu File=/fakegpu[0-1]\nNodeName=n2 Name=gpu File=/fakegpu[2-3]\n"
CGROUP_CONF = "CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n"
HOSTS = f"127.0.0.1 localhost {HOST} n1 n2\n"  # without n1 and n2 here, jax.distributed waits for ever


class Unavailable(Exception):
    """Why there can be no cluster here, in one line: no rights, no packages. One that could be and fails to start is
    another error."""


@dataclass(frozen=True)
class SlurmCluster:
    """A running cluster. pid: of its first process, as the host counts. work: the folder that both sides see."""

    pid: int
    work: Path
    seconds: float

    def inside(self, *command: object, cwd: Path | None = None) -> list[str]:
        """The argv that runs a command inside, for subprocess; in `cwd`, or in the folder to work in."""
        spaces = ["--mount", "--pid", "--net", "--uts", "--root", "--wd=/"]
        there = ["env", f"--chdir={cwd or self.work}"]
        return [*map(str, ["nsenter", f"--target={self.pid}", *spaces, *there, *command])]

    def run(
        self, *command: object, timeout: float = 120.0, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command inside to its end."""
        argv = self.inside(*command, cwd=cwd)
        return subprocess.run(
            argv, capture_output=True, text=True, timeout=timeout, check=False, stdin=subprocess.DEVNULL
        )


@contextlib.contextmanager
def slurm_cluster(work: Path) -> Iterator[SlurmCluster]:
    """A cluster until the block ends. Raises Unavailable, with the reason, where there can be none, and
    RuntimeError where there could be one and it does not start."""
    if sys.platform != "linux" or os.geteuid() != 0:
        raise Unavailable("a SLURM cluster of one machine needs root on Linux")
    for tool in ("unshare", "nsenter", "mount", "apt-get"):
        if not shutil.which(tool):
            raise Unavailable(f"no {tool} here, with which a SLURM cluster is made")
    with tempfile.TemporaryDirectory() as probe:
        may = ["unshare", "--mount", "--pid", "--net", "--uts", "--fork", "mount", "-t", "tmpfs", "tmpfs", probe]
        if subprocess.run(may, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode:
            raise Unavailable("root may make no namespaces or mount nothing here, as in a container without privileges")
    began = time.monotonic()
    PACKAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as root:
        spaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
        first = [sys.executable, "-I", "-S", __file__, "--first", root, str(work.resolve())]
        process = subprocess.Popen([*spaces, *first], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdin is not None
        assert process.stdout is not None
        said: list[str] = []
        try:
            overdue = threading.Timer(START_SECONDS, process.kill)
            overdue.start()
            for line in process.stdout:
                said.append(line.strip())
                if line.startswith(READY):
                    break
            overdue.cancel()
            if not said or not said[-1].startswith(READY):
                last = said[-1] if said else f"not a word within {time.monotonic() - began:.0f} s"
                raise Unavailable(last) if last.startswith(ABSENT) else RuntimeError(f"SLURM does not start: {last}")
            yield SlurmCluster(int(said[-1].split()[1]), work.resolve(), time.monotonic() - began)
        finally:
            process.stdin.close()
            process.wait(20)
            process.stdout.close()


def first(root: Path, work: Path) -> None:
    """The first process inside: builds the root, installs, starts the daemons, says so, and stays until stdin ends."""
    pid = int(os.readlink("/proc/self"))
    try:
        new_root(root, work)
        install()
        own_network()
        daemons()
    except Exception as error:
        output = getattr(error, "stderr", None) or getattr(error, "stdout", None) or ""
        kind = ABSENT if isinstance(error, Unavailable) else type(error).__name__
        print(f"{kind}: {' '.join(str(error).split())[:300]}: {' '.join(output.split())[-300:]}", flush=True)
        return
    print(READY, pid, flush=True)
    threading.Thread(target=leave_with_parent, daemon=True).start()
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            time.sleep(0.2)


def leave_with_parent() -> None:
    sys.stdin.read()
    os._exit(0)


def new_root(root: Path, work: Path) -> None:
    """An overlay over the host's root, with what must be the host's own folders bound into it, and chroot."""
    quiet("mount", "--make-rprivate", "/")
    quiet("mount", "-t", "tmpfs", "-o", "size=3g,mode=755", "tmpfs", root)
    upper, scratch, merged = (root / name for name in ("upper", "scratch", "merged"))
    for folder in (upper, scratch, merged):
        folder.mkdir()
    layers = f"lowerdir=/,upperdir={upper},workdir={scratch}"
    quiet("mount", "-t", "overlay", "-o", layers, "overlay", merged)
    quiet("mount", "-t", "proc", "proc", merged / "proc")
    for folder in ("/sys", "/dev", CHECKOUT, sys.prefix, sys.base_prefix, work):
        if Path(folder) not in (Path("/usr"), Path("/usr/local")):
            inner = merged / str(folder).lstrip("/")
            inner.mkdir(parents=True, exist_ok=True)
            quiet("mount", "--rbind", folder, inner)
    archives = merged / "var/cache/apt/archives"
    archives.mkdir(parents=True, exist_ok=True)
    quiet("mount", "--bind", PACKAGES, archives)
    os.chroot(merged)
    os.chdir(work)


def install() -> None:
    """SLURM and munge from Debian's archive, or as they are; nothing that they bring is started. Raises Unavailable
    where the archive does not give them."""
    if shutil.which("slurmctld") and shutil.which("slurmd") and shutil.which("munged"):
        return
    policy = Path("/usr/sbin/policy-rc.d")
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    Path("/var/lib/man-db/auto-update").unlink(missing_ok=True)
    apt = ["apt-get", "-q", "-y", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=2"]
    packages = ["install", "--no-install-recommends", "slurm-wlm", "munge"]
    try:
        quiet(*apt, "--download-only", *packages)
    except subprocess.CalledProcessError:
        try:
            quiet(*apt, "update")
            quiet(*apt, "--download-only", *packages)
        except subprocess.SubprocessError as error:
            said = getattr(error, "stderr", None) or ""
            raise Unavailable(f"apt brings no SLURM: {error} {said}") from None
    quiet(*apt, *packages)


def own_network() -> None:
    """A network of a loopback only, and a host name: the ports of another cluster on this machine are not in the way.

    glibc resolves names where some interface has an address other than 127.0.0.1.
    """
    if ctypes.CDLL(None, use_errno=True).unshare(NEW_UTS | NEW_NET):
        raise OSError(ctypes.get_errno(), "unshare of the network")
    socket.sethostname(HOST)
    Path("/etc/hosts").write_text(HOSTS)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(any_socket, GET_FLAGS, request))[1]
        fcntl.ioctl(any_socket, SET_FLAGS, struct.pack("16sh14x", b"lo", flags | UP))
        second = struct.pack("16sHH4s8x", b"lo:2", socket.AF_INET, 0, socket.inet_aton("127.0.0.2"))
        fcntl.ioctl(any_socket, SET_ADDRESS, second)


def daemons() -> None:
    """munged, slurmctld and two slurmd; returns when both nodes are idle."""
    for index in range(4):
        os.mknod(f"/fakegpu{index}", 0o20666, os.makedev(1, 3))
    conf = Path("/etc/slurm")
    conf.mkdir(exist_ok=True)
    for name, text in (("slurm", SLURM_CONF), ("gres", GRES_CONF), ("cgroup", CGROUP_CONF)):
        (conf / f"{name}.conf").write_text(text)
    for folder in ("/var/spool/slurmctld", "/var/spool/slurmd.n1", "/var/spool/slurmd.n2", "/var/log/slurm"):
        Path(folder).mkdir(parents=True, exist_ok=True)
    run = Path("/run/munge")
    run.mkdir(exist_ok=True)
    run.chmod(0o755)
    shutil.chown(run, "munge", "munge")
    if not Path("/etc/munge/munge.key").exists():
        as_munge("mungekey", "-c")
    as_munge("munged")
    quiet("slurmctld", "-c")
    quiet("slurmd", "-N", "n1")
    quiet("slurmd", "-N", "n2")
    late = time.monotonic() + 60
    while quiet("sinfo", "--noheader", "--partition=low", "--format=%D %T", timeout=30).split() != ["2", "idle"]:
        if time.monotonic() > late:
            raise RuntimeError(f"the nodes are not idle after a minute: {quiet('sinfo')}")
        time.sleep(0.2)


def as_munge(*command: str) -> None:
    quiet("setpriv", "--reuid=munge", "--regid=munge", "--clear-groups", *command)


def quiet(*command: object, timeout: float = 240.0) -> str:
    """Runs a command; its output. Raises CalledProcessError, which holds what it printed."""
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    return subprocess.run(
        [*map(str, command)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
        timeout=timeout,
        env=environment,
    ).stdout


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["--first"]:
        first(Path(arguments[1]), Path(arguments[2]))
        return 1
    if not arguments:
        print(__doc__)
        return 2
    try:
        with slurm_cluster(Path.cwd()) as cluster:
            print(f"a SLURM cluster of two nodes, up in {cluster.seconds:.1f} s", file=sys.stderr)
            return subprocess.run(cluster.inside(*arguments), check=False).returncode
    except Unavailable as why:
        print(why, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The verb `scaling sweep manifest`: YAML by which SkyPilot or Kubernetes starts workers on TPU slices.

It is generated, and has never run on a cluster. One worker is one slice of one host or several
(sweeps/clusters/slice_worker.py); it takes runs from the sweep's folder like any other worker.

Sources. Field names: docs.skypilot.co/en/latest/reference/yaml-spec.html and tpu.html, jobset.sigs.k8s.io (v1alpha2),
kueue.sigs.k8s.io/docs/tasks/run/jobsets. Hosts and chip names: plan-tpus in
cloud.google.com/kubernetes-engine/docs/concepts, and cloud.google.com/tpu/docs/v4, v5e, v5p and v6e.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any, Literal

from scaling.accounting.chips import Topology, parse_topology
from scaling.config.run_config import RunConfig
from scaling.errors import InputError
from scaling.record.run_folder import PLAN
from scaling.terminal import printable
from sweeps.planning.plan import find_sweep, load_plan
from sweeps.running.running_attempts import GRACE_SECONDS

HOST_CHIPS = 4
"""Chips of each host of a slice of several hosts."""
FLAT_HOST_CHIPS = 8
"""The most chips that one host of v5e or v6e has; a slice with no more chips has one host."""
MAX_RESTARTS = 100
"""How often the scheduler starts a slice again."""
RUNNER_SECONDS = 30
"""Seconds that a stopped runner needs to end after its runs have ended."""

Scheduler = Literal["skypilot", "jobset"]


@dataclass(frozen=True)
class ChipNames:
    """Google's names of a chip. node: the label of GKE's nodes. type: Cloud TPU's type, before a count. cores_per_chip:
    what that count adds per chip: 2 for types that count cores."""

    node: str
    type: str
    cores_per_chip: int = 1


CHIP_NAMES = {
    "v4": ChipNames("tpu-v4-podslice", "tpu-v4", 2),
    "v5e": ChipNames("tpu-v5-lite-podslice", "tpu-v5litepod"),
    "v5p": ChipNames("tpu-v5p-slice", "tpu-v5p", 2),
    "v6e": ChipNames("tpu-v6e-slice", "tpu-v6e"),
}


@dataclass(frozen=True)
class ManifestSpec:
    """The arguments of the verb. slice: of one worker. folder: of the sweeps, as the machines see it."""

    name: str
    slice: Topology
    workers: int
    folder: str
    volume: str
    image: str
    queue: str
    infra: str
    spot: bool

    @property
    def sweep_folder(self) -> str:
        return f"{self.folder.rstrip('/')}/{self.name}"

    @property
    def grace_seconds(self) -> int:
        """Time between SIGTERM and SIGKILL in which the runs save."""
        return int(GRACE_SECONDS) + RUNNER_SECONDS


def manifest(
    name: str,
    scheduler: Scheduler,
    topology: str = "",
    workers: int = 1,
    folder: str = "/mnt/sweeps",
    volume: str = "",
    image: str = "",
    queue: str = "default",
    infra: str = "gcp",
    spot: bool = True,
    out: Path = Path("out"),
    file: Path | None = None,
) -> None:
    """Write YAML that starts workers on TPU slices. It has never run on a cluster: read it before you start it.

    A worker trains runs of the sweep until none is left that no other worker holds. A worker that is lost costs the
    steps since the last checkpoint. The plan of the sweep must lie in the folder that the machines share. That must be
    a POSIX folder (Filestore, NFS): claims need files that only one process can create, which a bucket mounted as a
    folder does not offer.

    Args:
        name: required: the sweep, as in `scaling sweep plan NAME`.
        scheduler: required: skypilot (a managed job per worker) or jobset (a Kubernetes JobSet per worker, queued by
            Kueue).
        topology: required: the slice of one worker, as v5e:4x4.
        workers: how many slices work at the same time.
        folder: folder of the sweeps as the machines see it, absolute; NAME lies in it.
        volume: required: what the machines mount at the folder: for jobset a persistent volume claim (ReadWriteMany),
            for skypilot an NFS share as SERVER:/PATH.
        image: container image with this package and jax[tpu]; required for jobset.
        queue: Kueue's local queue (jobset).
        infra: where SkyPilot looks for machines, as gcp or gcp/us-central2/us-central2-b (skypilot).
        spot: use machines that may be preempted, which cost less.
        out: folder of the sweeps on this machine. The plan of the sweep in it is checked against the topology; without
            a plan, the sweep's definition is.
        file: file to write; by default the YAML goes to standard output.
    """
    if not topology:
        raise InputError("topology: must be given, as --topology v5e:4x4")
    if workers < 1:
        raise InputError(f"workers = {workers}: must be 1 or more")
    if "://" in folder + volume:
        flag, bucket = ("folder", folder) if "://" in folder else ("volume", volume)
        raise InputError(
            f"{flag} = {bucket}: must be a POSIX folder that all machines share (Filestore, NFS), not a bucket"
        )
    if not folder.startswith("/"):
        raise InputError(f"folder = {folder}: must be absolute, as /mnt/sweeps")
    target = parse_topology(topology)
    check_meshes(name, out, target)
    spec = ManifestSpec(name, target, workers, folder, volume, image, queue, infra, spot)
    text = skypilot_manifest(spec) if scheduler == "skypilot" else jobset_manifest(spec)
    if file is None:
        sys.stdout.write(text)
    else:
        file.write_text(text)


def check_meshes(name: str, out: Path, target: Topology) -> None:
    """Raises InputError unless the mesh of every run of the sweep fits the chips of a slice."""
    from scaling.model.sharding import axis_sizes

    folder = out / name
    has_plan = (folder / PLAN).exists()
    configs: Iterator[RunConfig] = iter(
        [cell.config for cell in load_plan(folder).cells] if has_plan else find_sweep(name).cells
    )
    for mesh in {config.mesh: None for config in configs}:
        try:
            axis_sizes(mesh, target.chips)
        except InputError as error:
            raise InputError(f"topology {target.name}: {error}") from None


def count_hosts(target: Topology) -> int:
    """Hosts of a slice: one when its chips fit one host, else one per four chips. v5e and v6e have two dimensions."""
    most = FLAT_HOST_CHIPS if len(target.dims) == 2 else HOST_CHIPS
    return 1 if target.chips <= most else target.chips // HOST_CHIPS


def host_command(spec: ManifestSpec, sweep_folder: str, slice_name: str, rank: str) -> str:
    """The shell command of each host of a slice. sweep_folder, slice_name, rank: shell words for these."""
    arguments = [sweep_folder, slice_name, rank, str(count_hosts(spec.slice)), str(spec.slice.chips)]
    return " ".join(["exec python -m sweeps.clusters.slice_worker", *arguments])


def skypilot_manifest(spec: ManifestSpec) -> str:
    """A SkyPilot task. Each `sky jobs launch` of it is a worker; SkyPilot runs it on every host of the slice."""
    from scaling.exit_codes import PROCESS_LOST, STOPPED

    if ":/" not in spec.volume or spec.volume.startswith("-"):
        raise InputError(f"volume = {spec.volume!r}: must be an NFS share, as --volume SERVER:/PATH")
    names = CHIP_NAMES[spec.slice.chip.name]
    resources: dict[str, Any] = {
        "infra": spec.infra,
        "accelerators": f"{names.type}-{spec.slice.chips * names.cores_per_chip}",
        "use_spot": spec.spot,
        "job_recovery": {
            "strategy": "FAILOVER",
            "max_restarts_on_errors": MAX_RESTARTS,
            "recover_on_exit_codes": [PROCESS_LOST, STOPPED],
        },
    }
    if spec.image:
        resources["image_id"] = f"docker:{spec.image}"
    mount = [
        "sudo apt-get update && sudo apt-get install -y nfs-common",
        f"sudo mkdir -p {quote(spec.folder)}",
        f"mountpoint -q {quote(spec.folder)} || sudo mount -t nfs {quote(spec.volume)} {quote(spec.folder)}",
    ]
    task: dict[str, Any] = {
        "name": spec.name.replace("_", "-"),
        "workdir": ".",
        "resources": resources,
        "setup": "\n".join(["set -e", *mount, *([] if spec.image else ["pip install -e '.[tpu]'"])]) + "\n",
        "run": host_command(spec, quote(spec.sweep_folder), '"$SKYPILOT_TASK_ID"', '"$SKYPILOT_NODE_RANK"') + "\n",
    }
    if spec.image:
        del task["workdir"]
    start = f"# Start {spec.workers}: for i in $(seq {spec.workers}); do sky jobs launch --yes --async FILE; done\n"
    return header_comment(spec, "SkyPilot") + start + to_yaml(task)


def jobset_manifest(spec: ManifestSpec) -> str:
    """One JobSet per worker, so that Kueue admits each by itself, and the restart of one does not touch the others."""
    if not spec.image:
        raise InputError("image: must be given, as --image with a container image that has this package and jax[tpu]")
    if not spec.volume:
        raise InputError("volume: must be given, as --volume with the name of a ReadWriteMany persistent volume claim")
    start = "# Start: kubectl apply -f FILE\n---\n"
    return (
        header_comment(spec, "JobSet")
        + start
        + "---\n".join(to_yaml(worker_jobset(spec, i)) for i in range(spec.workers))
    )


def worker_jobset(spec: ManifestSpec, index: int) -> dict[str, Any]:
    """The JobSet of one worker, with one pod per host. When a pod fails, its job fails (backoffLimit 0), and the
    failure policy starts all pods of the JobSet again."""
    hosts, own_name = count_hosts(spec.slice), f"{spec.name.replace('_', '-')}-{index}"
    metadata: dict[str, Any] = {"name": own_name, "labels": {"kueue.x-k8s.io/queue-name": spec.queue}}
    if hosts > 1:
        # All pods on the node pool of one slice, and no other job on it.
        metadata["annotations"] = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    job = {
        "parallelism": hosts,
        "completions": hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "template": {"spec": pod_spec(spec, own_name)},
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "failurePolicy": {"maxRestarts": MAX_RESTARTS},
            "replicatedJobs": [{"name": "slice", "replicas": 1, "template": {"spec": job}}],
        },
    }


def pod_spec(spec: ManifestSpec, slice_name: str) -> dict[str, Any]:
    """The pod of one host."""
    selector = {
        "cloud.google.com/gke-tpu-accelerator": CHIP_NAMES[spec.slice.chip.name].node,
        "cloud.google.com/gke-tpu-topology": "x".join(map(str, spec.slice.dims)),
    }
    tolerations = [{"key": "google.com/tpu", "operator": "Exists", "effect": "NoSchedule"}]
    if spec.spot:
        selector["cloud.google.com/gke-spot"] = "true"
        tolerations.append(
            {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}
        )
    chips = {"google.com/tpu": spec.slice.chips // count_hosts(spec.slice)}
    # Kubernetes itself replaces $(NAME) in a command, and takes $$ for one $.
    sweep_word, slice_word = (quote(value).replace("$", "$$") for value in (spec.sweep_folder, slice_name))
    command = host_command(spec, sweep_word, slice_word, '"$JOB_COMPLETION_INDEX"')
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": spec.grace_seconds,
        "nodeSelector": selector,
        "tolerations": tolerations,
        "containers": [
            {
                "name": "worker",
                "image": spec.image,
                "command": ["sh", "-c", command],
                "resources": {"requests": chips, "limits": chips},
                "volumeMounts": [{"name": "sweeps", "mountPath": spec.folder}],
            }
        ],
        "volumes": [{"name": "sweeps", "persistentVolumeClaim": {"claimName": spec.volume}}],
    }


def header_comment(spec: ManifestSpec, scheduler: str) -> str:
    """The comment above the YAML: what it is, and what it needs."""
    hosts = count_hosts(spec.slice)
    return (
        f"# GENERATED by `scaling sweep manifest` for {scheduler}, and NEVER RUN by its authors: read it first.\n"
        f"# Sweep {comment(spec.name)}: {spec.workers} workers, each a slice {spec.slice.name} of "
        f"{spec.slice.chips} chips on {hosts} hosts.\n"
        f"# {comment(spec.folder)} must be a POSIX folder that all machines share (Filestore, NFS), not a bucket, "
        f"with {comment(spec.name)}/plan.json in it.\n"
    )


def comment(text: str) -> str:
    """The text on one line, as a comment needs it."""
    return printable(text).replace("\n", r"\n").replace("\t", r"\t")


def to_yaml(value: dict[str, Any]) -> str:
    """YAML with keys in the order given, and strings of several lines as blocks."""
    import yaml

    class BlockDumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    def represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)

    BlockDumper.add_representer(str, represent_text)
    return yaml.dump(value, Dumper=BlockDumper, sort_keys=False, width=1000)

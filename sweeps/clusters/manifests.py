"""The verb `scaling sweep manifest`: YAML by which others' schedulers start workers on TPU slices. Generated, and never
run by this project: it has no TPU and no cluster of theirs.

One worker is one slice; it takes cells from the sweep's folder as any other worker does (sweeps/running/fleet.py), on
one host
or several (sweeps/clusters/slice_worker.py). Field names: docs.skypilot.co/en/latest/reference/yaml-spec.html
and tpu.html,
jobset.sigs.k8s.io (v1alpha2), kueue.sigs.k8s.io/docs/tasks/run/jobsets. Hosts and names of chips: plan-tpus in
cloud.google.com/kubernetes-engine/docs/concepts, and cloud.google.com/tpu/docs/v4, v5e, v5p and v6e.

Not in the design's list of modules: executors start workers themselves, these are started by others.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from scaling.accounting.chips import Topology, parse_topology
from scaling.config.run_config import RunConfig
from scaling.errors import InputError
from scaling.record.run_folder import PLAN
from sweeps.planning.plan import find_sweep, load_plan
from sweeps.running.running_attempts import GRACE_SECONDS

HOST_CHIPS = 4
"""Chips of a host of a slice of several hosts."""
FLAT_HOST_CHIPS = 8
"""Chips that one host of v5e or v6e has at most; a slice of no more has one host."""
MAX_RESTARTS = 100
RUNNER_SECONDS = 30
"""Seconds after the runner's patience with its runs, for the runner itself."""

Scheduler = Literal["skypilot", "jobset"]


@dataclass(frozen=True)
class ChipNames:
    """What Google calls a chip. node: on GKE's nodes; type: in Cloud TPU's types, before a count of chips, or of cores
    where a chip is counted as two."""

    node: str
    type: str
    cores: int = 1


CHIP_NAMES = {
    "v4": ChipNames("tpu-v4-podslice", "tpu-v4", 2),
    "v5e": ChipNames("tpu-v5-lite-podslice", "tpu-v5litepod"),
    "v5p": ChipNames("tpu-v5p-slice", "tpu-v5p", 2),
    "v6e": ChipNames("tpu-v6e-slice", "tpu-v6e"),
}


@dataclass(frozen=True)
class ManifestSpec:
    """What is asked for. folder: of the sweeps, as the machines see it; volume: what is mounted there; infra: where
    SkyPilot looks for machines."""

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
    def place(self) -> str:
        return f"{self.folder.rstrip('/')}/{self.name}"

    @property
    def grace(self) -> int:
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
    """Write YAML for workers on TPU slices. GENERATED, NEVER RUN HERE: read it before you start it.

    A worker takes runs of the sweep until none is left that is not another's; losing one loses nothing but what was
    trained since the last checkpoint. The plan must lie in the folder that the machines share. That is a POSIX folder
    (Filestore, NFS): claims need files that are created by one only, and a bucket mounted as a folder has none.

    Args:
        name: the sweep, as in `scaling sweep plan NAME`.
        scheduler: skypilot, a managed job for each worker; or jobset, a Kubernetes JobSet for each, queued by Kueue.
        topology: the slice of one worker, as v5e:4x4. Must be given.
        workers: slices at once.
        folder: of the sweeps, as the machines see it: it has NAME in it.
        volume: what is mounted there: a persistent volume claim, ReadWriteMany (jobset), or SERVER:/PATH (skypilot).
        image: container image with this package and jax[tpu]. Must be given for jobset.
        queue: the local queue of Kueue.
        infra: where SkyPilot looks for machines, as gcp or gcp/us-central2/us-central2-b.
        spot: machines that may be taken away.
        out: folder of the sweeps here, whose plan is checked against the topology; without a plan, the sweep is.
        file: write here, not to the terminal.
    """
    if not topology:
        raise InputError("topology: must be given, as --topology v5e:4x4")
    if workers < 1:
        raise InputError(f"workers = {workers}: must be 1 or more")
    if "://" in folder + volume:
        given = folder if "://" in folder else volume
        raise InputError(f"{given}: a bucket; claims need a POSIX folder that all machines share, as Filestore or NFS")
    if not folder.startswith("/"):
        raise InputError(f"folder = {folder}: must be absolute, as /mnt/sweeps")
    target = parse_topology(topology)
    check_meshes(name, out, target)
    order = ManifestSpec(name, target, workers, folder, volume, image, queue, infra, spot)
    text = skypilot_manifest(order) if scheduler == "skypilot" else jobset_manifest(order)
    if file is None:
        sys.stdout.write(text)
    else:
        file.write_text(text)


def check_meshes(name: str, out: Path, target: Topology) -> None:
    """Raises InputError unless every run of the sweep can be laid out on the chips of a slice."""
    from scaling.model.sharding import axis_sizes

    folder = out / name
    planned = (folder / PLAN).exists()
    configs: Iterator[RunConfig] = iter(
        [cell.config for cell in load_plan(folder).cells] if planned else find_sweep(name).cells
    )
    for mesh in {config.mesh: None for config in configs}:
        try:
            axis_sizes(mesh, target.chips)
        except InputError as error:
            raise InputError(f"topology {target.name}: {error}") from None


def count_hosts(target: Topology) -> int:
    """Machines of a slice: one where its chips fit one, else one for every four chips."""
    one = FLAT_HOST_CHIPS if len(target.dims) == 2 else HOST_CHIPS
    return 1 if target.chips <= one else target.chips // HOST_CHIPS


def host_command(order: ManifestSpec, gang: str, rank: str) -> str:
    """The command of each host of a slice, for a shell."""
    arguments = [order.place, gang, rank, str(count_hosts(order.slice)), str(order.slice.chips)]
    return " ".join(["exec python -m sweeps.clusters.slice_worker", *arguments])


def skypilot_manifest(order: ManifestSpec) -> str:
    """A task; each `sky jobs launch` of it is a worker. SkyPilot runs it on every host of the slice."""
    from scaling.exit_codes import PROCESS_LOST, STOPPED

    if not order.volume or ":/" not in order.volume:
        raise InputError(f"volume = {order.volume!r}: must be what NFS serves, as SERVER:/PATH")
    names = CHIP_NAMES[order.slice.chip.name]
    resources: dict[str, Any] = {
        "infra": order.infra,
        "accelerators": f"{names.type}-{order.slice.chips * names.cores}",
        "use_spot": order.spot,
        "job_recovery": {
            "strategy": "FAILOVER",
            "max_restarts_on_errors": MAX_RESTARTS,
            "recover_on_exit_codes": [PROCESS_LOST, STOPPED],
        },
    }
    if order.image:
        resources["image_id"] = f"docker:{order.image}"
    mount = [
        "sudo apt-get update && sudo apt-get install -y nfs-common",
        f"sudo mkdir -p {order.folder}",
        f"mountpoint -q {order.folder} || sudo mount -t nfs {order.volume} {order.folder}",
    ]
    task: dict[str, Any] = {
        "name": order.name.replace("_", "-"),
        "workdir": ".",
        "resources": resources,
        "setup": "\n".join(["set -e", *mount, *([] if order.image else ["pip install -e '.[tpu]'"])]) + "\n",
        "run": host_command(order, '"$SKYPILOT_TASK_ID"', '"$SKYPILOT_NODE_RANK"') + "\n",
    }
    if order.image:
        del task["workdir"]
    start = f"# Start {order.workers}: for i in $(seq {order.workers}); do sky jobs launch --yes --async FILE; done\n"
    return header_comment(order, "SkyPilot") + start + to_yaml(task)


def jobset_manifest(order: ManifestSpec) -> str:
    """A JobSet for each worker, so that one which is restarted disturbs no other and Kueue admits each by itself."""
    if not order.image:
        raise InputError("image: must be given, a container image with this package and jax[tpu]")
    if not order.volume:
        raise InputError("volume: must be given, the name of a persistent volume claim that many pods may write")
    start = "# Start: kubectl apply -f FILE\n---\n"
    return (
        header_comment(order, "JobSet")
        + start
        + "---\n".join(to_yaml(worker_jobset(order, i)) for i in range(order.workers))
    )


def worker_jobset(order: ManifestSpec, index: int) -> dict[str, Any]:
    """The JobSet of one worker: a pod a host. If one fails, all are made anew."""
    hosts, own = count_hosts(order.slice), f"{order.name.replace('_', '-')}-{index}"
    about: dict[str, Any] = {"name": own, "labels": {"kueue.x-k8s.io/queue-name": order.queue}}
    if hosts > 1:
        about["annotations"] = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    job = {
        "parallelism": hosts,
        "completions": hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "template": {"spec": pod_spec(order, own)},
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": about,
        "spec": {
            "failurePolicy": {"maxRestarts": MAX_RESTARTS},
            "replicatedJobs": [{"name": "slice", "replicas": 1, "template": {"spec": job}}],
        },
    }


def pod_spec(order: ManifestSpec, gang: str) -> dict[str, Any]:
    """One host."""
    selector = {
        "cloud.google.com/gke-tpu-accelerator": CHIP_NAMES[order.slice.chip.name].node,
        "cloud.google.com/gke-tpu-topology": "x".join(map(str, order.slice.dims)),
    }
    tolerations = [{"key": "google.com/tpu", "operator": "Exists", "effect": "NoSchedule"}]
    if order.spot:
        selector["cloud.google.com/gke-spot"] = "true"
        tolerations.append(
            {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}
        )
    chips = {"google.com/tpu": order.slice.chips // count_hosts(order.slice)}
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": order.grace,
        "nodeSelector": selector,
        "tolerations": tolerations,
        "containers": [
            {
                "name": "worker",
                "image": order.image,
                "command": ["sh", "-c", host_command(order, gang, '"$JOB_COMPLETION_INDEX"')],
                "resources": {"requests": chips, "limits": chips},
                "volumeMounts": [{"name": "sweeps", "mountPath": order.folder}],
            }
        ],
        "volumes": [{"name": "sweeps", "persistentVolumeClaim": {"claimName": order.volume}}],
    }


def header_comment(order: ManifestSpec, scheduler: str) -> str:
    """The comment above: what this is, and what it needs."""
    hosts = count_hosts(order.slice)
    return (
        f"# GENERATED by `scaling sweep manifest` for {scheduler}, and NEVER RUN by its authors: read it first.\n"
        f"# Sweep {order.name}: {order.workers} workers, each a slice {order.slice.name} of {order.slice.chips} chips "
        f"on {hosts} hosts.\n"
        f"# {order.folder} must be a POSIX folder that all machines share (Filestore, NFS), not a bucket, "
        f"with {order.name}/plan.json in it.\n"
    )


def to_yaml(value: dict[str, Any]) -> str:
    """As YAML, in the order given, scripts as blocks of lines."""
    import yaml

    class Blocks(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    def text(dumper: yaml.SafeDumper, given: str) -> yaml.ScalarNode:
        return dumper.represent_scalar("tag:yaml.org,2002:str", given, style="|" if "\n" in given else None)

    Blocks.add_representer(str, text)
    return yaml.dump(value, Dumper=Blocks, sort_keys=False, width=1000)

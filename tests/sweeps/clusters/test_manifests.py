"""YAML for machines that are not here: as the golden files say, and parsed back against the tables of the chips.

Rewrite the golden files, after reading the difference, with: python tests/sweeps/clusters/test_manifests.py
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from scaling.accounting.chips import CHIPS, list_slices, parse_topology
from scaling.exit_codes import PROCESS_LOST, STOPPED
from sweeps.clusters import manifests
from sweeps.clusters.manifests import CHIP_NAMES, Scheduler, count_hosts, manifest
from sweeps.running.running_attempts import GRACE_SECONDS
from tests.conftest import ROOT, in_process

GOLDEN = ROOT / "tests" / "golden"
CASES: dict[str, dict[str, Any]] = {
    "skypilot_v5e_4x4": {"scheduler": "skypilot", "topology": "v5e:4x4", "workers": 3, "volume": "10.0.0.2:/share"},
    "skypilot_v4_2x2x1": {
        "scheduler": "skypilot",
        "topology": "v4:2x2x1",
        "volume": "10.0.0.2:/share",
        "image": "registry.example/scaling:1",
        "spot": False,
        "infra": "gcp/us-central2/us-central2-b",
    },
    "jobset_v5p_2x2x4": {
        "scheduler": "jobset",
        "topology": "v5p:2x2x4",
        "workers": 2,
        "volume": "sweeps",
        "image": "registry.example/scaling:1",
        "queue": "research",
    },
    "jobset_v6e_2x4": {
        "scheduler": "jobset",
        "topology": "v6e:2x4",
        "volume": "sweeps",
        "image": "registry.example/scaling:1",
        "folder": "/shared/sweeps",
        "spot": False,
    },
}
OPTIONS = {"skypilot": {"volume": "10.0.0.2:/share"}, "jobset": {"volume": "sweeps", "image": "scaling:1"}}
TOPOLOGIES = [f"{chip.name}:{'x'.join(map(str, dims))}" for chip in CHIPS.values() for dims in list_slices(chip)[:9]]


def written(place: Path, scheduler: Scheduler, **options: Any) -> str:
    file = place / "made.yaml"
    manifest("isoflop_1gpu", scheduler, out=place / "out", file=file, **options)
    return file.read_text()


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str, tmp_path: Path) -> None:
    made, golden = written(tmp_path, **CASES[name]), (GOLDEN / f"{name}.yaml").read_text()
    assert list(yaml.safe_load_all(made)) == list(yaml.safe_load_all(golden))


@pytest.mark.parametrize("name", CASES)
def test_its_head_says_what_it_is_and_needs_and_how_it_is_started(name: str, tmp_path: Path) -> None:
    given, target = CASES[name], parse_topology(CASES[name]["topology"])
    head = "".join(itertools.takewhile(lambda line: line[0] == "#", written(tmp_path, **given).splitlines(True)))
    assert "scaling sweep manifest" in head.splitlines()[0]
    folder = given.get("folder", "/mnt/sweeps")
    for named in ("isoflop_1gpu", given["topology"], folder, "isoflop_1gpu/plan.json"):
        assert named in head
    for count in (given.get("workers", 1), target.chips, count_hosts(target)):
        assert re.search(rf"(?<![\w:]){count} ", head)
    assert {"skypilot": "sky jobs launch", "jobset": "kubectl apply -f"}[given["scheduler"]] in head


def words(command: str) -> Sequence[str]:
    """The arguments of a host: folder, name of the slice, rank, hosts, chips."""
    program, _, rest = command.strip().partition(" sweeps.clusters.slice_worker ")
    assert program == "exec python -m"
    return rest.split()


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_pods_times_chips_are_the_slice(topology: str, tmp_path: Path) -> None:
    target, text = parse_topology(topology), written(tmp_path, "jobset", topology=topology, **OPTIONS["jobset"])
    (one,) = [document for document in yaml.safe_load_all(text) if document]
    assert (one["apiVersion"], one["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert one["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "default"
    (replicated,) = one["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    chips = container["resources"]["limits"]["google.com/tpu"]
    assert chips == container["resources"]["requests"]["google.com/tpu"]
    assert job["parallelism"] == job["completions"] == count_hosts(target)
    assert replicated["replicas"] * job["completions"] * chips == target.chips
    assert chips in (1, 4, 8), "no host has another number of chips"
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == topology.partition(":")[2]
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-accelerator"] == CHIP_NAMES[target.chip.name].node
    assert (job["backoffLimit"], pod["restartPolicy"]) == (0, "Never"), "one host lost, all made anew"
    assert one["spec"]["failurePolicy"]["maxRestarts"] > 0
    assert pod["terminationGracePeriodSeconds"] > GRACE_SECONDS
    folder, slice_name, rank, hosts, devices = words(container["command"][-1])
    assert folder == f"{container['volumeMounts'][0]['mountPath']}/isoflop_1gpu"
    assert slice_name == one["metadata"]["name"]
    assert rank == '"$JOB_COMPLETION_INDEX"'
    assert (int(hosts), int(devices)) == (count_hosts(target), target.chips)
    alone = "alpha.jobset.sigs.k8s.io/exclusive-topology" not in one["metadata"].get("annotations", {})
    assert alone is (count_hosts(target) == 1)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_a_task_asks_for_the_slice(topology: str, tmp_path: Path) -> None:
    target = parse_topology(topology)
    task = yaml.safe_load(written(tmp_path, "skypilot", topology=topology, **OPTIONS["skypilot"]))
    kind, _, count = task["resources"]["accelerators"].rpartition("-")
    names = CHIP_NAMES[target.chip.name]
    assert kind == names.type
    assert int(count) == target.chips * names.cores_per_chip
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [PROCESS_LOST, STOPPED]
    assert "mount -t nfs 10.0.0.2:/share /mnt/sweeps" in task["setup"]
    *_, hosts, devices = words(task["run"])
    assert (int(hosts), int(devices)) == (count_hosts(target), target.chips)


def test_hosts_are_those_of_the_data_sheets() -> None:
    """cloud.google.com/tpu/docs/v5e, a table of slices; gcloud's v4-32 is 16 chips on 4 hosts."""
    known = {"v5e:1x1": 1, "v5e:2x4": 1, "v5e:4x4": 4, "v5e:16x16": 64, "v4:2x2x4": 4, "v5p:2x2x1": 1, "v6e:2x4": 1}
    assert {text: count_hosts(parse_topology(text)) for text in known} == known
    assert CHIP_NAMES.keys() == CHIPS.keys()


def test_workers_are_sets_of_their_own(tmp_path: Path) -> None:
    text = written(tmp_path, "jobset", topology="v5e:4x4", workers=3, **OPTIONS["jobset"])
    made = [document for document in yaml.safe_load_all(text) if document]
    names = [one["metadata"]["name"] for one in made]
    assert len(set(names)) == 3
    for one, other in itertools.pairwise(made):
        command = [each["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"] for each in (one, other)]
        assert command[0]["containers"][0]["command"] != command[1]["containers"][0]["command"]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["jobset"], r"\btopology\b.*--topology\b"),
        (["jobset", "--topology", "v5e:3x3"], r"\btopology\b.*\bv5e:3x3\b.*\bv5e:2x4\b"),
        (["jobset", "--topology", "v5f:4x4"], r"\btopology\b.*\bv5f\b.*\bv5p\b"),
        (["jobset", "--topology", "v5e:4x4", "--volume", "sweeps"], r"\bimage\b"),
        (["jobset", "--topology", "v5e:4x4", "--image", "a"], r"\bvolume\b"),
        (["skypilot", "--topology", "v5e:4x4"], r"\bvolume\b.*''"),
        (["skypilot", "--topology", "v5e:4x4", "--volume", "gs://mine"], "gs://mine"),
        (["skypilot", "--topology", "v5e:4x4", "--folder", "sweeps"], r"\bfolder\b.*\bsweeps\b"),
        (["skypilot", "--topology", "v5e:4x4", "--workers", "0"], r"\bworkers\b.*\b0\b"),
        (["kubernetes", "--topology", "v5e:4x4"], r"\bkubernetes\b.*\bskypilot\b.*\bjobset\b"),
    ],
)
def test_bad_input_is_one_line(given: Sequence[str], says: str, tmp_path: Path) -> None:
    done = in_process("sweep", "manifest", "isoflop_1gpu", *given, cwd=tmp_path)
    assert done.returncode == 2, done.stdout
    assert re.search(says, done.stderr)
    assert len(done.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_mesh_that_does_not_fit_the_slice_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from scaling.config.run_config import MeshConfig
    from sweeps.planning.plan import find_sweep

    sweep = find_sweep("isoflop_1gpu")
    cells = tuple(replace(cell, mesh=MeshConfig(fsdp=32)) for cell in sweep.cells)
    monkeypatch.setattr(manifests, "find_sweep", lambda name: replace(sweep, cells=cells))
    options = ["--topology", "v5e:4x4", "--volume", "10.0.0.2:/share"]
    done = in_process("sweep", "manifest", "isoflop_1gpu", "skypilot", *options, cwd=tmp_path)
    assert done.returncode == 2
    assert re.search(r"\bv5e:4x4\b.*\bfsdp\D*32\b", done.stderr)


if __name__ == "__main__":
    for case, options in CASES.items():
        manifest("isoflop_1gpu", file=GOLDEN / f"{case}.yaml", out=Path("absent"), **options)

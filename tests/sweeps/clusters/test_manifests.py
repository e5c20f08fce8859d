"""YAML for machines that are not here: as the golden files say, and parsed back against the tables of the chips.

Rewrite the golden files, after reading the difference, with: python tests/sweeps/clusters/test_manifests.py
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
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
from tests.support.stand_in_sweep import stand_in_plan

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


ODD = """a b'c"d $(touch X) `touch X` $X ${X} $$ # : - {x}, \\ & ; |
second: line\t\x1b[2J é"""
"""A value with everything that a shell, YAML or Kubernetes could take for its own."""


def run_by_shell(script: str, place: Path, **variables: str) -> list[list[str]]:
    """The words of each command that a script runs, of which every program is replaced by one that writes them down."""
    programs = place / "bin"
    programs.mkdir()
    for name in ("python", "sudo", "mountpoint", "pip"):
        code = f"#!{sys.executable}\nimport json, sys\n"
        code += f"open({str(place / 'words')!r}, 'a').write(json.dumps(sys.argv) + '\\n')\n"
        (programs / name).write_text(code + ("sys.exit(1)\n" if name == "mountpoint" else ""))
        (programs / name).chmod(0o755)
    assert subprocess.run(["sh", "-n"], input=script, text=True, cwd=place).returncode == 0
    environment = {"PATH": f"{programs}:{os.environ['PATH']}"} | variables
    assert subprocess.run(["sh"], input=script, text=True, cwd=place, env=environment).returncode == 0
    assert not (place / "X").exists()
    return [[Path(program).name, *rest] for program, *rest in map(json.loads, (place / "words").open())]


def by_kubernetes(word: str) -> str:
    """A word of a command as Kubernetes passes it on: $$ is one $, and $(NAME) the value of a variable."""
    return re.sub(r"\$\$|\$\(([^)]*)\)", lambda match: "$" if match[0] == "$$" else f"<value of {match[1]}>", word)


def odd_sweep(place: Path) -> str:
    """The name of a planned sweep of one cell."""
    name = ODD.replace("/", "-")
    plan = stand_in_plan(place / "out" / "plain", "")
    (place / "out" / "plain").rename(place / "out" / name)
    assert plan.cells
    return name


def test_every_value_comes_back_whole_from_a_pod(tmp_path: Path) -> None:
    name, file = odd_sweep(tmp_path), tmp_path / "made.yaml"
    options = {"folder": f"/{ODD}", "volume": ODD, "image": ODD, "queue": ODD}
    manifest(name, "jobset", topology="v6e:2x4", workers=2, out=tmp_path / "out", file=file, **options)
    first, second = [document for document in yaml.safe_load_all(file.read_text()) if document]
    assert second["metadata"]["name"] == f"{name.replace('_', '-')}-1"
    assert first["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == ODD
    pod = first["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["image"] == ODD
    assert container["volumeMounts"][0]["mountPath"] == f"/{ODD}"
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == ODD
    shell, option, script = map(by_kubernetes, container["command"])
    assert (shell, option) == ("sh", "-c")
    ((program, *rest),) = run_by_shell(script, tmp_path, JOB_COMPLETION_INDEX="7")
    expected = [f"/{ODD}/{name}", first["metadata"]["name"], "7", "1", "8"]
    assert (program, *rest) == ("python", "-m", "sweeps.clusters.slice_worker", *expected)


def test_every_value_comes_back_whole_from_a_task(tmp_path: Path) -> None:
    name, file = odd_sweep(tmp_path), tmp_path / "made.yaml"
    volume = f"server:/{ODD}"
    options = {"folder": f"/{ODD}", "volume": volume, "image": ODD, "infra": ODD}
    manifest(name, "skypilot", topology="v5e:4x4", out=tmp_path / "out", file=file, **options)
    task = yaml.safe_load(file.read_text())
    assert task["name"] == name.replace("_", "-")
    assert task["resources"]["image_id"] == f"docker:{ODD}"
    assert task["resources"]["infra"] == ODD
    (tmp_path / "setup").mkdir()
    (tmp_path / "run").mkdir()
    setup = run_by_shell(task["setup"], tmp_path / "setup")
    assert ["sudo", "mkdir", "-p", f"/{ODD}"] in setup
    assert setup[-1] == ["sudo", "mount", "-t", "nfs", volume, f"/{ODD}"]
    (words,) = run_by_shell(task["run"], tmp_path / "run", SKYPILOT_TASK_ID="a task", SKYPILOT_NODE_RANK="2")
    assert words[3:] == [f"/{ODD}/{name}", "a task", "2", "4", "16"]


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

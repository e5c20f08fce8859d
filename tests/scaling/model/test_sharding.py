from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from scaling.config.run_config import DataConfig, MeshConfig, RunConfig
from scaling.errors import InputError
from scaling.model import sharding
from scaling.training import multihost


def test_a_mesh_must_use_all_devices() -> None:
    with pytest.raises(InputError, match=r"data=1\b.*fsdp=3\b.*tensor=1\b.*\b3\b.*\b1\b"):
        sharding.make_mesh(MeshConfig(fsdp=3))


@pytest.mark.parametrize(
    ("mesh", "devices", "slices", "nearest"),
    [
        (MeshConfig(fsdp=3), 8, 1, "data=2,fsdp=4,tensor=1"),
        (MeshConfig(fsdp=16), 8, 1, "data=1,fsdp=8,tensor=1"),
        (MeshConfig(data=2, fsdp=2, tensor=4), 8, 1, "data=2,fsdp=2,tensor=2"),
        (MeshConfig(data=4, fsdp=4, tensor=2), 16, 1, "data=4,fsdp=4,tensor=1"),
        (MeshConfig(data=3, fsdp=8), 32, 4, "data=4,fsdp=8,tensor=1"),
        (MeshConfig(data=2, fsdp=16), 32, 4, "data=4,fsdp=8,tensor=1"),
    ],
)
def test_the_nearest_mesh_is_named(mesh: MeshConfig, devices: int, slices: int, nearest: str) -> None:
    """The fewest axes change, and those least."""
    with pytest.raises(InputError, match=nearest):
        sharding.axis_sizes(mesh, devices, slices)
    sizes = [int(part.split("=")[1]) for part in nearest.split(",")]
    assert sharding.axis_sizes(MeshConfig(*sizes), devices, slices) == tuple(sizes), "what is named does fit"


class Shape:
    """A mesh as check_divisibility sees it: axis sizes."""

    def __init__(self, **sizes: int) -> None:
        self.shape = {"data": 1, "fsdp": 1, "tensor": 1} | sizes


@pytest.mark.parametrize(
    ("batch", "mesh", "words"),
    [
        (16, Shape(data=3), r"data\.batch_sequences.*\b16\b.*\b3\b.*\b15\b"),
        (16, Shape(tensor=8), r"model\.heads.*\b4\b.*mesh\.tensor.*\b8\b.*data=2,fsdp=1,tensor=4"),
        (48, Shape(fsdp=48), r"model\.width.*\b128\b.*\b48\b.*data=3,fsdp=16,tensor=1"),
    ],
)
def test_a_size_that_does_not_divide_is_named(batch: int, mesh: Shape, words: str) -> None:
    config = RunConfig(data=DataConfig(batch_sequences=batch))
    with pytest.raises(InputError, match=words):
        sharding.check_divisibility(config, mesh)  # pyrefly: ignore
    sharding.check_divisibility(config, Shape(data=8, tensor=2))  # pyrefly: ignore


@pytest.mark.parametrize(
    ("batch", "named"),
    [(7, ["data=7,fsdp=1,tensor=1"]), (1, [])],
)
def test_the_mesh_that_is_named_fits_the_batch_too(batch: int, named: list[str]) -> None:
    """None is, where none over these devices fits."""
    config = RunConfig(data=DataConfig(batch_sequences=batch))
    with pytest.raises(InputError, match=r"mesh\.tensor.*\b7\b") as error:
        sharding.check_divisibility(config, Shape(tensor=7))  # pyrefly: ignore
    assert re.findall(r"data=\d+,fsdp=\d+,tensor=\d+", str(error.value)) == named


def test_a_microbatch_must_divide_as_well() -> None:
    config = RunConfig(data=DataConfig(batch_sequences=16, microbatch_sequences=4))
    with pytest.raises(InputError, match=r"data\.microbatch_sequences.*\b4\b.*\b8\b"):
        sharding.check_divisibility(config, Shape(data=8))  # pyrefly: ignore


EIGHT = """
import dataclasses, json, sys
from pathlib import Path
import jax, numpy as np
from scaling.model import loss, sharding
from scaling.training.checkpoints import Checkpoints
from scaling.config.run_config import DataConfig, MeshConfig, ModelConfig, OptimizerConfig, RunConfig
from scaling.training.schedule import Rates
from scaling.training.train_step import build_program

loss.CHUNK_BYTES = 4 * 16 * 40 // 4  # four chunks of a row, more of more
folder = Path(sys.argv[1])
config = RunConfig(
    model=ModelConfig(vocab_size=40, width=64, depth=2, heads=8, ff_width=176),
    data=DataConfig(sequence_length=16, batch_sequences=8),
)
completep = dataclasses.replace(config.model, parametrization="completep", base_width=16, base_depth=1)
muon = dataclasses.replace(config, model=completep, optimizer=OptimizerConfig(kind="muon"))
tokens = np.random.default_rng(0).integers(0, 40, (8, 17)).astype(np.int32)
out = {}
for name, mesh in {
    "data": MeshConfig(),
    "fsdp": MeshConfig(fsdp=8),
    "tensor": MeshConfig(tensor=8),
    "mixed": MeshConfig(data=2, fsdp=2, tensor=2),
    "muon": MeshConfig(data=2, fsdp=2, tensor=2),
}.items():
    if jax.device_count() == 1 and name not in ("data", "muon"):
        continue
    mesh = sharding.make_mesh(mesh) if jax.device_count() > 1 else sharding.make_mesh(MeshConfig())
    program = build_program(muon if name == "muon" else config, mesh)
    state, losses = program.init(jax.random.key(0)), []
    for step in range(4):
        batch = sharding.put_batch(lambda rows: tokens[rows], (8, 17), mesh)
        state, metrics = program.step(state, batch, Rates(0.01, 0.1))
        losses.append(float(metrics["loss"]))
    q = state.params["blocks"]["attention"]["q"]["kernel"]
    moments = state.optimizer[1].inner_states["muon"].inner_state if name == "muon" else state.optimizer[1]
    mu = moments.mu["blocks"]["attention"]["q"]["kernel"]
    out[name] = {
        "losses": losses,
        "rows_on_a_device": batch.addressable_shards[0].data.shape[0],
        "share_of_q": q.addressable_shards[0].data.size / q.size,
        "share_of_mu": mu.addressable_shards[0].data.size / mu.size,
    }
    if name == "mixed" and jax.device_count() > 1:
        with Checkpoints(folder, keep=1) as save:
            save.save(4, state)
            save.wait()
            other = build_program(config, sharding.make_mesh(MeshConfig(fsdp=4)))
            restored = save.restore(4, other.abstract_state)
        kernel = restored.params["blocks"]["attention"]["q"]["kernel"]
        out["restored"] = {
            "equal": all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(restored))),
            "share_of_q": kernel.addressable_shards[0].data.size / kernel.size,
        }
print(json.dumps(out))
"""


@pytest.fixture(scope="module")
def meshes(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict]:
    """What the program above prints on 1 and on 8 simulated devices; see conftest.unoptimized_programs."""
    soon = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    out = {}
    for devices in (1, 8):
        done = subprocess.run(
            [sys.executable, "-c", EIGHT, str(tmp_path_factory.mktemp("mesh"))],
            env=os.environ | soon | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        out[devices] = json.loads(done.stdout.splitlines()[-1])
    return out


@pytest.mark.parametrize(
    ("name", "rows", "share"),
    [("data", 1, 1), ("fsdp", 1, 1 / 8), ("tensor", 8, 1 / 8), ("mixed", 2, 1 / 4), ("muon", 2, 1 / 4)],
)
@pytest.mark.slow
def test_eight_devices_learn_what_one_learns(meshes: dict[int, dict], name: str, rows: int, share: float) -> None:
    one, eight = meshes[1]["muon" if name == "muon" else "data"], meshes[8][name]
    np.testing.assert_allclose(eight["losses"], one["losses"], atol=1e-5)
    assert one["losses"][-1] < one["losses"][0]
    assert eight["rows_on_a_device"] == rows, "the batch is sharded, not copied"
    assert eight["share_of_q"] == eight["share_of_mu"] == share


@pytest.mark.slow
def test_a_checkpoint_is_restored_onto_another_mesh(meshes: dict[int, dict]) -> None:
    assert meshes[8]["restored"] == {"equal": True, "share_of_q": 1 / 4}


def test_missing_variables_of_several_processes_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    with pytest.raises(InputError, match=r"JAX_NUM_PROCESSES.*JAX_COORDINATOR_ADDRESS"):
        multihost.initialize_distributed()


def test_an_allocation_is_not_a_job_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """sbatch sets these for a script that srun did not start: one process, nobody to wait for."""
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    multihost.initialize_distributed()
    assert not jax.distributed.is_initialized()


def test_import_of_the_trainer_loads_no_tensorflow(tmp_path: Path) -> None:
    program = "import sys, scaling.training.train; print([m for m in ('tensorflow', 'seqio') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == "[]"

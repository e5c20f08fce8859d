"""Runs costed without the machine: chips, shapes, meshes over slices, memory, rooflines; and, with libtpu, compiles."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import json
import math
import os
import re
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from scaling.accounting import counts
from scaling.accounting.chips import CHIPS, Topology, list_slices, parse_topology
from scaling.accounting.flops import kernel_flops, program_flops
from scaling.accounting.model_shapes import PUBLISHED_MODELS, find_published_model
from scaling.commands import compile
from scaling.config.run_config import DataConfig, MeshConfig, ModelConfig, PrecisionConfig, RunConfig
from scaling.errors import InputError
from scaling.model import sharding
from scaling.performance import compile_ahead
from scaling.performance.hlo_costs import Collective
from scaling.performance.interconnect import collective_seconds, physical_span
from scaling.performance.roofline import Estimate
from scaling.training.memory import check_memory, estimate_bytes, likely_fitting_changes, smaller_configs, state_bytes
from scaling.training.schedule import Rates
from scaling.training.train_step import build_program
from tests.conftest import ROOT

TABLE = ROOT / "benchmarks" / "topologies.json"
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu absent: pip install 'scaling-laws[tpu-aot]'"
)


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("llama-3.2-1b", 1_235_814_400),
        ("llama-3-8b", 8_030_261_248),
        ("llama-2-7b", 6_738_415_616),
        ("llama-2-13b", 13_015_864_320),
        ("llama-2-70b", 68_976_648_192),
    ],
)
def test_shapes_have_the_published_parameters(name: str, params: int) -> None:
    assert counts.count_params(PUBLISHED_MODELS[name].model).total == params


def test_sizes_of_our_shapes_are_as_their_names_say() -> None:
    for name, size in (("gpt-50m", 50e6), ("gpt-130m", 130e6), ("gpt-350m", 350e6), ("gpt-1300m", 1300e6)):
        assert counts.count_params(PUBLISHED_MODELS[name].model).total == pytest.approx(size, rel=0.06)
    assert PUBLISHED_MODELS["gpt-1300m"].model.head_width == 128


def test_an_unknown_shape_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r"llama-3-9b.*llama-3-8b"):
        find_published_model("llama-3-9b")


def test_slices_are_those_of_the_data_sheets() -> None:
    assert (
        parse_topology("v5e:16x16").chips
        == parse_topology("v5p:4x8x8").chips
        == parse_topology("v6e:16x16").chips
        == 256
    )
    assert parse_topology("v5p:2x2x4").chips == 16
    assert parse_topology("v5e:4x4", slices=3).chips == 48
    for chip in CHIPS.values():
        assert list_slices(chip)[-1] == chip.largest_slice
        peak = counts.peak_flops(
            {"v4": "TPU v4", "v5e": "TPU v5 lite", "v5p": "TPU v5p", "v6e": "TPU v6 lite"}[chip.name], "bfloat16"
        )
        assert chip.peak_bfloat16 == peak
    assert parse_topology("v5e:8x16").wraps == (False, True)
    assert parse_topology("v5p:4x4x8").wraps == (True, True, True)
    assert parse_topology("v5p:2x4x4").wraps == (False, False, False)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("v5e:3x5", r"v5e:3x5.*1x1.*2x2.*16x16.*v5e:4x4"),
        ("v5e:32x32", "v5e:32x32.*v5e:16x16"),
        ("v5p:4x4", r"v5p:4x4\b.*v5p:2x2x4"),
        ("v9:2x2", r"\bv9\b.*v4.*v5e.*v5p.*v6e"),
        ("v5:2x2", r"v5:2x2.*\bv5[ep]\b"),
        ("16", r"topology.*\b16\b.*v5e:4x4"),
        ("v5e:0x0", "topology.*v5e:0x0"),
    ],
)
def test_slices_that_do_not_exist_name_what_does(text: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        parse_topology(text)


def test_no_slices_is_an_error() -> None:
    with pytest.raises(InputError, match=r"slices.*\b0\b"):
        parse_topology("v5e:4x4", slices=0)


@pytest.mark.parametrize(
    ("text", "mesh"),
    [
        ("data=4,fsdp=2,tensor=2", MeshConfig(4, 2, 2)),
        ("fsdp=16", MeshConfig(None, 16, 1)),
        ("tensor=2,data=8", MeshConfig(8, 1, 2)),
    ],
)
def test_a_mesh_is_read_from_words(text: str, mesh: MeshConfig) -> None:
    assert compile.parse_mesh(text) == mesh


@pytest.mark.parametrize(
    "text",
    ["", "fsdp", "fsdp=", "fsdp=x", "fsdp=2,fsdp=4", "model=2", "fsdp=2,,data=1", "data=1,fsdp=2,tensor=1,data=3"],
)
def test_other_words_are_not_a_mesh(text: str) -> None:
    with pytest.raises(InputError, match=f"mesh.*{re.escape(text)}"):
        compile.parse_mesh(text)


def run(**changes: Any) -> RunConfig:
    model = ModelConfig(vocab_size=96, width=64, depth=3, heads=4, unroll=1, **changes)
    return RunConfig(model=model, data=DataConfig(sequence_length=32, batch_sequences=4))


def traced(config: RunConfig) -> Any:
    """The jaxpr of the train step on one device."""
    program = build_program(config, sharding.make_mesh(MeshConfig(), jax.devices()[:1]))
    tokens_BS = jax.ShapeDtypeStruct((config.data.batch_sequences, config.data.sequence_length + 1), jnp.int32)
    return jax.make_jaxpr(program.step)(program.abstract_state, tokens_BS, Rates(1e-3, 0.1))


def test_program_flops_equal_the_formula() -> None:
    config = run(attention="xla")
    exact = counts.train_flops(config.model, 32, config.data.batch_tokens, "exact")
    norm = 2 * counts.count_params(config.model).total  # the squares of the gradient are a product too
    assert program_flops(traced(config)) == pytest.approx(exact + norm, rel=1e-4)
    split = dataclasses.replace(config, data=dataclasses.replace(config.data, microbatch_sequences=1))
    assert program_flops(traced(split)) == pytest.approx(exact + norm, rel=1e-4), "loops are multiplied out"


def test_recomputation_is_counted() -> None:
    """All products of a block are computed twice going forward, but the last, whose result no gradient needs."""
    config = run(attention="xla")
    again = program_flops(traced(run(remat="full", attention="xla"))) - program_flops(traced(config))
    forward = 2 * counts.count_params(config.model).blocks + 4 * config.model.depth * config.model.width * 32
    down = 2 * config.model.depth * config.model.width * config.model.num_ff
    assert again == pytest.approx((forward - down) * config.data.batch_tokens, rel=0.01)


def test_kernels_are_counted_by_their_blocks() -> None:
    """Splash attention, forward: two products of [T, D] with [D, T] a head; of 4 x 4 blocks 10 are not masked."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    T, H, D = 512, 2, 128
    blocks = kernels.BlockSizes(block_q=128, block_kv=128, block_kv_compute=128)
    mask = masks.MultiHeadMask([masks.CausalMask((T, T))] * H)
    kernel = kernels.make_splash_mha_single_device(mask, block_sizes=blocks)
    heads_HTD = jax.ShapeDtypeStruct((H, T, D), jnp.bfloat16)
    jaxpr = jax.make_jaxpr(kernel)(heads_HTD, heads_HTD, heads_HTD)
    assert program_flops(jaxpr) == kernel_flops(jaxpr) == 10 / 16 * 4 * H * T * T * D


@pytest.mark.parametrize("axes", [{"data"}, {"data", "tensor"}])
def test_shard_map_flops_count_all_devices(axes: set[str]) -> None:
    """Rows and columns over two and four devices: whichever axes are written out, the product is the same."""
    mesh = jax.sharding.AbstractMesh((2, 4), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    columns = P(None, "tensor" if "tensor" in axes else None)
    split = {"in_specs": (P("data"), columns), "out_specs": P("data", *columns[1:])}
    product = jax.shard_map(jnp.matmul, mesh=mesh, axis_names=axes, check_vma=False, **split)
    jaxpr = jax.make_jaxpr(jax.jit(product))(jnp.zeros((8, 16)), jnp.zeros((16, 32)))
    assert program_flops(jaxpr) == 2 * 8 * 16 * 32


class Device:
    """A TPU chip as a mesh sees it."""

    platform, device_kind = "tpu", "TPU v5 lite"

    def __init__(self, index: int, coords: tuple[int, int, int], slice_index: int) -> None:
        self.id, self.coords, self.slice_index = index, coords, slice_index
        self.process_index, self.core_on_chip = index // 4, 0


def chips(rows: int, columns: int, slices: int = 1) -> list[Any]:
    places = [(s, x, y) for s in range(slices) for y in range(columns) for x in range(rows)]
    return [Device(index, (x, y, 0), s) for index, (s, x, y) in enumerate(places)]


def test_only_the_data_axis_crosses_slices() -> None:
    grid = sharding.make_mesh(MeshConfig(data=4, fsdp=4, tensor=2), chips(4, 4, slices=2)).devices
    assert grid.shape == (4, 4, 2)
    owner = np.vectorize(lambda device: device.slice_index)(grid)
    assert (owner[:2] == owner[0, 0, 0]).all()
    assert (owner[2:] == owner[2, 0, 0]).all()
    assert owner[0, 0, 0] != owner[2, 0, 0]


def test_slices_that_data_does_not_divide_over_are_refused() -> None:
    with pytest.raises(InputError, match=r"data=1\b.*\b2\b.*data=2,fsdp=16,tensor=1"):
        sharding.make_mesh(MeshConfig(fsdp=32), chips(4, 4, slices=2))


def test_neighbours_on_the_mesh_are_neighbours_on_the_slice() -> None:
    grid = sharding.make_mesh(MeshConfig(data=4, fsdp=4), chips(4, 4)).devices[:, :, 0]
    for line in (*grid, *grid.T):
        assert {
            abs(a.coords[0] - b.coords[0]) + abs(a.coords[1] - b.coords[1]) for a, b in itertools.pairwise(line)
        } == {1}


def slice_mesh(data: int, fsdp: int, dims: tuple[int, int]) -> Mesh:
    return sharding.make_mesh(MeshConfig(data=data, fsdp=fsdp), chips(*dims))


def test_collectives_take_as_long_as_their_links_need() -> None:
    """v5e: 50 GB/s a link. A ring of 16 has two links out of each chip, a line of 4 one, 4 x 4 two lines."""
    pod, small = parse_topology("v5e:16x16"), parse_topology("v5e:4x4")
    gather = Collective("all-gather", ("fsdp",), 16, runs_per_step=2, sent_bytes=50e9, memory_bytes=0.0)
    assert physical_span(slice_mesh(16, 16, (16, 16)), ("fsdp",), pod).spans == ((16, True),)
    assert collective_seconds(gather, slice_mesh(16, 16, (16, 16)), pod) == pytest.approx(1.0)
    assert collective_seconds(gather, slice_mesh(4, 4, (4, 4)), small) == pytest.approx(2.0)
    assert collective_seconds(gather, slice_mesh(1, 16, (4, 4)), small) == pytest.approx(1.0)
    swap = dataclasses.replace(gather, kind="all-to-all")
    assert collective_seconds(swap, slice_mesh(16, 16, (16, 16)), pod) == pytest.approx(4.0), (
        "a quarter of the ring away"
    )
    crossing = dataclasses.replace(gather, axes=("slices",))
    assert collective_seconds(crossing, slice_mesh(4, 4, (4, 4)), small) == pytest.approx(2 * 50 / 3.125)


def test_state_bytes_follow_the_sharding() -> None:
    config = run()
    program = build_program(config, sharding.make_mesh(MeshConfig(), jax.devices()[:1]))
    needed = state_bytes(program.abstract_state)
    assert needed == pytest.approx(12 * counts.count_params(config.model).total, abs=64)
    check_memory(program.abstract_state, needed)
    with pytest.raises(InputError, match=r"mesh\.fsdp.*mesh\.tensor.*\b2\b"):
        check_memory(program.abstract_state, needed - 1)


def big(**changes: Any) -> RunConfig:
    """An 8B run on 16 chips, 16 sequences a chip."""
    model = dataclasses.replace(find_published_model("llama-3-8b").model, **changes)
    data = DataConfig(sequence_length=2048, batch_sequences=256)
    return RunConfig(model=model, data=data, precision=PrecisionConfig("bfloat16"), tokens=10**9)


def test_changes_come_smallest_first() -> None:
    sizes = (8, 2, 1)
    made = list(smaller_configs(big(), sizes))
    words = [words for words, _, _ in made]
    assert words[0] == "--remat full"
    assert words[1:5] == [f"--remat full --microbatch {n}" for n in (128, 64, 32, 16)]
    assert words[5:9] == [f"--remat full --batch-sequences {n}" for n in (128, 64, 32, 16)]
    assert words[9] == "--remat full --microbatch 16 --mesh data=4,fsdp=4,tensor=1"
    needs = [estimate_bytes(config, mesh) for _, config, mesh in made]
    for kind in (needs[1:5], needs[5:9], [needs[4], *needs[9:12]]):
        assert sorted(kind, reverse=True) == kind, "each needs less than the one before"
    assert all(accumulated > whole for accumulated, whole in zip(needs[1:5], needs[5:9], strict=True))
    enough = (needs[6] + needs[7]) / 2
    assert likely_fitting_changes(big(), sizes, enough)[0][0] == words[7]
    assert likely_fitting_changes(big(), sizes, enough, scale=enough / needs[8])[0][0] == words[8]
    assert min(needs) < enough
    assert likely_fitting_changes(big(), sizes, enough, scale=1e3)[0][0] == words[needs.index(min(needs))]
    assert likely_fitting_changes(big(), sizes, 2**20) == []
    assert all(
        "--mesh" not in words
        for words, _, _ in smaller_configs(big(remat="full"), (2, 8, 1), slices=2)
        if "tensor=1" in words
    )


@pytest.mark.parametrize(
    ("said", "needed"),
    [
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm. Exceeded", 20.5),
        ("RESOURCE_EXHAUSTED: E1000: required for HLO temporaries (23.91G) exceeds available HBM (15.75G). HLO", 24.91),
    ],
)
def test_parse_memory_error(said: str, needed: float) -> None:
    error = compile_ahead.parse_memory_error(said, state=2**30, memory=16 * 2**30)
    assert error is not None
    assert error.needed == pytest.approx(needed * 2**30)
    assert error.available == 15.75 * 2**30
    assert compile_ahead.parse_memory_error("INTERNAL: else", 0, 1) is None


def scripted(monkeypatch: pytest.MonkeyPatch, answers: list[Any]) -> list[RunConfig]:
    """`apart` that gives these answers in turn; the configs it was asked."""
    asked: list[RunConfig] = []

    def apart(config: RunConfig, topology: Topology) -> Any:
        asked.append(config)
        given = answers.pop(0)
        if isinstance(given, Exception):
            raise given
        return given

    monkeypatch.setattr(compile_ahead, "compile_in_subprocess", apart)
    return asked


def test_a_run_that_does_not_fit_names_a_compiled_change(monkeypatch: pytest.MonkeyPatch) -> None:
    config = dataclasses.replace(big(remat="full"), mesh=MeshConfig(data=1, fsdp=16))
    short = compile_ahead.ChipMemoryExceeded(estimate_bytes(config, (1, 16, 1)), 15.75 * 2**30, "the step")
    still = compile_ahead.ChipMemoryExceeded(16 * 2**30, 15.75 * 2**30, "the step")
    asked = scripted(monkeypatch, [short, still, SimpleNamespace(peak=9 * 2**30)])
    with pytest.raises(InputError, match=r"v5e:4x4.*15\.75.*--microbatch \d+.*\b9\.") as error:
        compile_ahead.estimate_step(config, parse_topology("v5e:4x4"))
    first, second, third = (one.data.microbatch_sequences or one.data.batch_sequences for one in asked)
    assert first == 256
    assert first > second > third, "what does not fit either makes the next guess smaller"
    assert f"--microbatch {third} " in str(error.value), "the one that was compiled and fits"


def test_a_larger_slice_is_suggested_last(monkeypatch: pytest.MonkeyPatch) -> None:
    state = compile_ahead.ChipMemoryExceeded(48 * 2**30, 16 * 2**30, compile_ahead.STATE_LABEL)
    model = dataclasses.replace(find_published_model("llama-2-70b").model, remat="full")
    data = DataConfig(sequence_length=2048, batch_sequences=16)
    config = dataclasses.replace(big(), model=model, mesh=MeshConfig(data=1, fsdp=16), data=data)
    scripted(monkeypatch, [state] * 4)
    with pytest.raises(InputError, match=r"--topology v5e:\d+x\d+ --mesh fsdp=\d+"):
        compile_ahead.estimate_step(config, parse_topology("v5e:4x4"))


def test_the_verb_needs_a_topology_and_libtpu(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="--topology"):
        compile.compile_for_tpu("llama-3.2-1b")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"scaling-laws\[tpu-aot\]"):
        compile.compile_for_tpu("llama-3.2-1b", topology="v5e:4x4")


def rows() -> list[dict[str, Any]]:
    return json.loads(TABLE.read_text())["rows"]


def test_the_table_has_two_sizes_on_three_chips_at_16_and_256() -> None:
    held = {(row["model"], row["topology"].split(":")[0], row["chips"]) for row in rows() if row["slices"] == 1}
    chips = ("v5e", "v5p", "v6e")
    assert held == {(model, chip, n) for model in ("llama-3.2-1b", "llama-3-8b") for chip in chips for n in (16, 256)}
    assert any(row["slices"] == 2 for row in rows())


def test_every_row_of_the_table_is_consistent() -> None:
    """FLOPs as compiled, as traced and by formula agree, memory is within the chip, state is what it must be."""
    for row in rows():
        tensor = row["mesh"]["tensor"]
        model, tokens = find_published_model(row["model"]).model, row["batch_sequences"] * row["sequence_length"]
        assert row["flops_chip"] * row["chips"] == pytest.approx(row["flops"], rel=0.03), row["name"]
        assert (
            row["useful_flops"]
            < row["flops"]
            < 1.45 * counts.train_flops(model, row["sequence_length"], tokens, "exact")
        )
        assert row["peak"] < row["hbm"]
        shards = row["mesh"]["fsdp"] * tensor
        assert row["arguments"] == pytest.approx(12 * row["params"] / shards, rel=0.02), row["name"]
        assert math.isclose(
            row["step_seconds"]["overlapped"], max(row[f"{e}_seconds"] for e in ("compute", "hbm", "ici", "dcn"))
        )
        gathered = sum(one["sent"] for one in row["collectives"] if "fsdp" in one["axes"])
        assert gathered > 2 * 2 * counts.count_params(model).blocks * (1 - 1 / row["mesh"]["fsdp"]) / tensor, (
            "weights, twice"
        )
        crossing = [one for one in row["collectives"] if one["axes"] == "slices"]
        assert bool(crossing) == (row["slices"] > 1)
        assert (row["dcn_seconds"] > 0) == (row["slices"] > 1)


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama-3.2-1b v5e:4x4", "llama-3-8b v5p:4x8x8"])
def test_compiling_again_gives_the_row_of_the_table(name: str) -> None:
    """The same code path as the table's, for a small slice and a pod. Compilers of other versions may lay memory out
    otherwise, not multiply otherwise."""
    held = next(row for row in rows() if row["name"] == name)
    target = parse_topology(held["topology"], held["slices"])
    made: Estimate = compile_ahead.compile_in_subprocess(
        compile.published_run(held["model"], target, MeshConfig(**held["mesh"])), target
    )
    assert made.flops == pytest.approx(held["flops"], rel=0.01)
    assert made.flops_chip == pytest.approx(held["flops_chip"], rel=0.05)
    assert made.arguments == held["arguments"]
    assert made.peak == pytest.approx(held["peak"], rel=0.25)
    assert made.ici_seconds == pytest.approx(held["ici_seconds"], rel=0.25)


def test_a_compiler_that_aborts_is_an_error_of_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler aborts its process: InputError, which says when libtpu is not the version that jax requires."""
    stderr_text = "noise\nF1122 fusion_util.cc:5236] Check failed: loop makes\tno progress\n*** stack ***\n"
    process = SimpleNamespace(returncode=-6, stderr=stderr_text, stdout="")
    monkeypatch.setattr(compile_ahead, "require_libtpu", lambda: None)
    monkeypatch.setattr(compile_ahead.subprocess, "run", lambda *command, **options: process)
    monkeypatch.setattr(compile_ahead, "package_version", lambda package: "0.0.1")
    with pytest.raises(InputError, match=r"v5e:4x4.*Check failed: loop makes no progress") as e:
        compile_ahead.compile_in_subprocess(big(), parse_topology("v5e:4x4"))
    assert "\n" not in str(e.value)
    assert re.search(r"0\.0\.1\b.*'libtpu==\d[\d.]*\*'", str(e.value)), "what is installed, and what to install"


SLICES = """
import math
from scaling.performance import compile_ahead
from scaling.accounting.chips import CHIPS, Topology, list_slices
made = [Topology(chip, dims) for chip in CHIPS.values() for dims in list_slices(chip) if math.prod(dims) <= 256]
for one in (*made, Topology(CHIPS["v5p"], (4, 4, 4), slices=3)):
    assert len(compile_ahead.topology_devices(one)) == one.chips, one.name
"""


@needs_libtpu
def test_the_compiler_knows_every_slice() -> None:
    command = [sys.executable, "-c", SLICES]
    done = subprocess.run(command, env=os.environ | compile_ahead.SUBPROCESS_ENV, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr == "", "libtpu is quiet"


@needs_libtpu
def test_state_beyond_a_chips_memory_raises_before_compiling() -> None:
    target = parse_topology("v5e:4x4")
    with pytest.raises(compile_ahead.ChipMemoryExceeded) as error:
        compile_ahead.compile_in_subprocess(compile.published_run("llama-2-70b", target), target)
    assert error.value.what == compile_ahead.STATE_LABEL
    assert error.value.needed / 2**30 == pytest.approx(48.19, abs=0.01)

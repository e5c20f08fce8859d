"""HLO read as text: loops, bytes, products and collectives, against programs small enough to count by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from scaling.performance.hlo import Buffer, executed_instructions, parse_buffers, parse_module
from scaling.performance.hlo_costs import mesh_axes, product_flops, replica_groups, step_costs

MESH = {"data": 2, "fsdp": 4, "tensor": 2}

COMPILE = """
import json
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P

mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
x = jax.ShapeDtypeStruct((16, 64), jnp.float32, sharding=NamedSharding(mesh, P(("data", "fsdp"))))
w = jax.ShapeDtypeStruct((6, 64, 64), jnp.float32, sharding=NamedSharding(mesh, P(None, "fsdp")))
rows = NamedSharding(mesh, P(("data", "fsdp")))

def layer(x, w):
    return jax.lax.with_sharding_constraint(jnp.tanh(x @ w), rows), None

def scanned(unroll):
    return lambda x, w: jax.lax.scan(layer, x, w, unroll=unroll)[0].sum()

def counted(x, w):
    # A loop whose trip count JAX does not state: the condition compares a counter that starts at 2 and steps by 1.
    return jax.lax.while_loop(lambda s: s[0] < 8, lambda s: (s[0] + 1, layer(s[1], w[0])[0]), (2, x))[1].sum()

out = {}
for name, f, args in [
    ("scan", scanned(1), (x, w)),
    ("unrolled", scanned(True), (x, w)),
    ("half", scanned(2), (x, w)),
    ("while", counted, (x, w)),
]:
    done = jax.jit(f).lower(*args).compile()
    out[name] = {"text": done.as_text(), "xla": done.cost_analysis()["flops"]}
grad = jax.jit(jax.grad(scanned(1), argnums=1), out_shardings=w.sharding).lower(x, w).compile()
out["grad"] = {"text": grad.as_text()}
ring = jax.shard_map(
    lambda x: jax.lax.ppermute(x, "fsdp", [(i, (i + 1) % 4) for i in range(4)]),
    mesh=mesh, in_specs=P(("data", "fsdp")), out_specs=P(("data", "fsdp")),
)
out["ring"] = {"text": jax.jit(ring).lower(x).compile().as_text()}
print(json.dumps(out))
"""


@pytest.fixture(scope="module")
def programs() -> dict[str, dict[str, Any]]:
    """Small programs compiled for 8 simulated devices, in one process."""
    done = subprocess.run(
        [sys.executable, "-c", COMPILE],
        env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def totals(programs: dict[str, dict[str, Any]], name: str) -> Any:
    return step_costs(parse_module(programs[name]["text"]), {"data": 2, "fsdp": 4})


def by_kind(costs: Any) -> dict[tuple[str, tuple[str, ...]], tuple[int, float]]:
    """Count and bytes sent of each kind of collective over each set of axes."""
    out: dict[tuple[str, tuple[str, ...]], tuple[int, float]] = {}
    for one in costs.collectives:
        count, sent = out.get((one.kind, one.axes), (0, 0.0))
        out[one.kind, one.axes] = (count + one.runs_per_step, sent + one.runs_per_step * one.sent_bytes)
    return out


LAYER_FLOPS = 2 * (16 / 8) * 64 * 64
LAYER_GATHER = (64 / 4) * 64 * 4 * 3  # a quarter of [64, 64] float32, sent to the three others


@pytest.mark.parametrize(("name", "layers"), [("scan", 6), ("unrolled", 6), ("half", 6), ("while", 6)])
def test_loops_are_multiplied_out(programs: dict[str, dict[str, Any]], name: str, layers: int) -> None:
    costs = totals(programs, name)
    assert costs.flops == layers * LAYER_FLOPS
    count, sent = by_kind(costs)["all-gather", ("fsdp",)]
    assert sent == (layers if name != "while" else 1) * LAYER_GATHER or sent == layers * LAYER_GATHER
    assert count * LAYER_GATHER == sent


def test_xla_cost_analysis_counts_a_loop_body_once(programs: dict[str, dict[str, Any]]) -> None:
    """XLA's own count of the scanned program is that of one layer, a sixth of the unrolled one's."""
    assert programs["scan"]["xla"] < 0.25 * programs["unrolled"]["xla"]


def test_scanned_and_unrolled_read_the_same_bytes(programs: dict[str, dict[str, Any]]) -> None:
    """Up to what the loop itself carries."""
    scanned, unrolled = (totals(programs, name).memory_bytes for name in ("scan", "unrolled"))
    assert scanned == pytest.approx(unrolled, rel=0.25)
    assert scanned > 6 * LAYER_GATHER / 3 * 4


def test_gradients_are_summed_over_data_and_stay_sharded(programs: dict[str, dict[str, Any]]) -> None:
    costs = totals(programs, "grad")
    crossed = {one.axes for one in costs.collectives if one.kind in ("all-reduce", "reduce-scatter")}
    assert any("data" in axes for axes in crossed)
    assert costs.flops == 3 * 6 * LAYER_FLOPS


def test_permutation_groups_come_from_source_target_pairs(programs: dict[str, dict[str, Any]]) -> None:
    assert by_kind(totals(programs, "ring")) == {("collective-permute", ("fsdp",)): (1, 2 * 64 * 4)}


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        ("replica_groups={{0,1},{2,3},{4,5},{6,7},{8,9},{10,11},{12,13},{14,15}}", ("tensor",)),
        ("replica_groups=[4,4]<=[2,4,2]T(0,2,1)", ("fsdp",)),
        ("replica_groups=[8,2]<=[2,8]T(1,0)", ("data",)),
        ("replica_groups=[2,8]<=[16]", ("fsdp", "tensor")),
        ("replica_groups=[1,16]<=[16]", ("data", "fsdp", "tensor")),
        ("replica_groups={}", ("data", "fsdp", "tensor")),
        ("replica_groups=mesh['axis_0'=16] {'axis_0'}", ("data", "fsdp", "tensor")),
        ("replica_groups=mesh['a'=2,'b'=4,'c'=2] {'b'}", ("fsdp",)),
        ("replica_groups=mesh['a'=2,'b'=4,'c'=2] {'a','c'}", ("data", "tensor")),
        ("replica_groups=mesh['a'=16] {'a':(2)4}", ("fsdp",)),
        ("replica_groups=mesh['a'=4,'b'=2,'c'=2], device_ids=([2,4,2]T(1,0,2)) {'a'}", ("fsdp",)),
        ("replica_groups=mesh['a'=2,'b'=8], device_ids=([8,2]T(1,0)) {'a'}", ("tensor",)),
        ("source_target_pairs={{0,2},{2,4},{4,6},{6,0},{8,10},{10,12},{12,14},{14,8}}", ("fsdp",)),
        ("source_target_pairs={{0,8},{8,0}}", ("data",)),
        ("source_target_pairs={{0,0}}", ()),
    ],
)
def test_groups_name_their_axes(groups: str, axes: tuple[str, ...]) -> None:
    assert mesh_axes(replica_groups(f", channel_id=1, {groups}, dimensions={{0}}", MESH), MESH) == axes


def test_unknown_group_notation_raises() -> None:
    with pytest.raises(ValueError, match="@maximal"):
        replica_groups("replica_groups=@maximal", MESH)


def test_parse_buffers_reads_shapes_and_memory_spaces() -> None:
    text = "(bf16[2,3]{1,0:T(8,128)(2,1)S(1)}, (f32[]), s32[4]{0}, pred[5]{0:T(512)}, token[])"
    made = list(parse_buffers(text))
    assert made[:3] == [Buffer("bf16", (2, 3), 1), Buffer("f32", ()), Buffer("s32", (4,))]
    assert [one.bytes for one in made] == [12, 4, 16, 5, 0]


TPU = """HloModule jit_step, is_scheduled=true, num_partitions=16

FileNames
1 "a {b"

%start (p: bf16[8,4]) -> (bf16[8,4], bf16[8,64]) {
  %p = bf16[8,4]{1,0} parameter(0)
  %all-gather.1 = bf16[8,64]{1,0} all-gather(%p), channel_id=7, replica_groups=mesh['x'=16] {'x'}, dimensions={1}
  ROOT %c = (bf16[8,4]{1,0}, bf16[8,64]{1,0}) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%meanwhile (p: bf16[8,4], q: bf16[8,64], x: bf16[16,16]) -> (bf16[16,16], bf16[8,4], bf16[8,64]) {
  %p = bf16[8,4]{1,0} parameter(0)
  %q = bf16[8,64]{1,0} parameter(1)
  %x = bf16[16,16]{1,0} parameter(2)
  %all-gather.2 = bf16[8,64]{1,0} all-gather(%p), channel_id=7, replica_groups=mesh['x'=16] {'x'}, dimensions={1}
  %dot = bf16[16,16]{1,0} convolution(%x, %x), window={}, dim_labels=bf_io->bf
  ROOT %t = (bf16[16,16]{1,0}, bf16[8,4]{1,0}, bf16[8,64]{1,0}) tuple(%dot, %p, %q)
}

%done (p: bf16[8,4], q: bf16[8,64]) -> bf16[8,64] {
  %p = bf16[8,4]{1,0} parameter(0)
  %q = bf16[8,64]{1,0} parameter(1)
  %all-gather.3 = bf16[8,64]{1,0} all-gather(%p), channel_id=7, replica_groups=mesh['x'=16] {'x'}, dimensions={1}
  ROOT %c = bf16[8,64]{1,0} custom-call(%p, %q, %all-gather.3), custom_call_target="AsyncCollectiveDone"
}

%all-reduce-scatter (p: f32[64]) -> f32[16] {
  %p = f32[64]{0} parameter(0)
  %all-reduce.1 = f32[64]{0} all-reduce(%p), channel_id=9, replica_groups=[4,4]<=[2,4,2]T(0,2,1), to_apply=%add
  %zero = s32[] constant(0)
  ROOT %slice = f32[16]{0} dynamic-slice(%all-reduce.1, %zero), dynamic_slice_sizes={16}
}

%body (s: (s32[], bf16[8,4], bf16[8,64], bf16[16,16], /*index=4*/f32[64])) -> (s32[], bf16[8,4]) {
  %s = (s32[], bf16[8,4]{1,0}, bf16[8,64]{1,0}, bf16[16,16]{1,0}, f32[64]{0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %two = s32[] constant(2)
  %next = s32[] add(%i, %two)
  %p = bf16[8,4]{1,0} get-tuple-element(%s), index=1
  %q = bf16[8,64]{1,0} get-tuple-element(%s), index=2
  %x = bf16[16,16]{1,0} get-tuple-element(%s), index=3
  %g = f32[64]{0} get-tuple-element(%s), index=4
  %f = (bf16[16,16]{1,0}, bf16[8,4]{1,0}, bf16[8,64]{1,0}) fusion(%p, %q, %x), kind=kOutput, calls=%meanwhile
  %y = bf16[16,16]{1,0} get-tuple-element(%f), index=0
  %r = f32[16]{0} fusion(%g), kind=kCustom, calls=%all-reduce-scatter
  %after = token[] after-all(), frontend_attributes={kernel_metadata={
"note":"a = b {"
}}, metadata={op_name="more lines than one"}
  %sent = (f32[16]{0}, token[]) send(%r, %after), frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  %costs = (f32[16]{0}, token[]) send(%r, %after), frontend_attributes={_xla_megascale_transfer_type="ONE_TO_ONE"}
  ROOT %out = (s32[], bf16[8,4]{1,0}, bf16[8,64]{1,0}, bf16[16,16]{1,0}, f32[64]{0}) tuple(%next, %p, %q, %y, %g)
}

%condition (s: (s32[], bf16[8,4], bf16[8,64], bf16[16,16], f32[64])) -> pred[] {
  %s = (s32[], bf16[8,4]{1,0}, bf16[8,64]{1,0}, bf16[16,16]{1,0}, f32[64]{0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %limit = s32[] constant(9)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

ENTRY %main (p: bf16[8,4], x: bf16[16,16], g: f32[64]) -> bf16[8,64] {
  %p = bf16[8,4]{1,0} parameter(0)
  %x = bf16[16,16]{1,0} parameter(1)
  %g = f32[64]{0} parameter(2)
  %zero = s32[] constant(0)
  %started = (bf16[8,4]{1,0}, bf16[8,64]{1,0}) fusion(%p), kind=kCustom, calls=%start
  %q = bf16[8,64]{1,0} get-tuple-element(%started), index=1
  %init = (s32[], bf16[8,4]{1,0}, bf16[8,64]{1,0}, bf16[16,16]{1,0}, f32[64]{0}) tuple(%zero, %p, %q, %x, %g)
  %loop = (s32[], bf16[8,4], bf16[8,64], bf16[16,16], f32[64]) while(%init), condition=%condition, body=%body
  %last = bf16[8,64]{1,0} get-tuple-element(%loop), index=2
  ROOT %end = bf16[8,64]{1,0} fusion(%p, %last), kind=kCustom, calls=%done
}
"""


def test_step_costs_of_a_tpu_program() -> None:
    """Counter from 0 by 2 below 9: five trips. The gather that is spread over the loop's fusions runs once, an
    all-reduce whose slice alone is kept is a reduce-scatter, a send to other slices is what it says."""
    costs = step_costs(parse_module(TPU), MESH, slices=2)
    assert by_kind(costs) == {
        ("all-gather", ("data", "fsdp", "tensor")): (1, 8 * 4 * 2 * 15),
        ("reduce-scatter", ("fsdp",)): (5, 5 * 64 * 4 * 3 / 4),
        ("all-reduce", ("slices",)): (5, 5 * 16 * 4),
        ("collective-permute", ("slices",)): (5, 5 * 16 * 4),
    }
    assert costs.flops == 5 * 2 * 16**3
    own = 5 * (2 * 16 * 16 * 2 + 3 * 4)  # each trip reads x and writes y, and adds two numbers into a third
    collectives = 8 * 4 * 2 * 17 + 5 * (64 * 4 + 16 * 4) + 5 * 2 * 2 * 16 * 4
    assert costs.memory_bytes == own + collectives


def test_a_loop_of_unknown_length_raises() -> None:
    endless = TPU.replace("%limit = s32[] constant(9)", "%limit = s32[] rng()").replace("%loop", "%while.7")
    with pytest.raises(ValueError, match=r"while\.7\b"):
        list(executed_instructions(parse_module(endless)))


def test_a_mesh_of_other_size_raises() -> None:
    with pytest.raises(ValueError, match=r"\b2\b.*\b4\b.*\b16\b"):
        step_costs(parse_module(TPU), {"data": 2, "fsdp": 4})


@pytest.mark.parametrize(
    ("line", "flops"),
    [
        ("f32[8,16] dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}", 2 * 8 * 16 * 32),
        ("f32[8,16] convolution(%a, %b), dim_labels=bf_io->bf", 2 * 8 * 16 * 32),
        # A batched product as TPUs write it: the batch of 4 is a window that meets one element at each place.
        (
            "f32[4,8,16] convolution(%c, %d), window={size=4 stride=3 pad=0_0 lhs_dilate=4}, dim_labels=0bf_0io->0bf",
            2 * 4 * 8 * 16 * 32,
        ),
        # Three taps with padding on both sides over five places: 13 of the 15 meet something.
        ("f32[5,8,16] convolution(%e, %f), window={size=3 pad=1_1}, dim_labels=0bf_0io->0bf", 2 * 8 * 16 * 32 * 13),
    ],
)
def test_products_are_counted(line: str, flops: float) -> None:
    text = f"""HloModule m

ENTRY %main (a: f32[8,32]) -> f32[] {{
  %a = f32[8,32] parameter(0)
  %b = f32[32,16] parameter(1)
  %c = f32[4,8,32] parameter(2)
  %d = f32[4,32,16] parameter(3)
  %e = f32[5,8,32] parameter(4)
  %f = f32[3,32,16] parameter(5)
  ROOT %out = {line}
}}"""
    main = parse_module(text).computations["main"]
    assert product_flops(main, main.root) == flops


def test_text_that_is_not_hlo_raises() -> None:
    with pytest.raises(ValueError, match="ENTRY"):
        parse_module("module @jit_f {\n}\n")

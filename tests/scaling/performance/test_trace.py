"""Traces written by hand, whose times are known, in the layouts of a GPU, a TPU and a CPU."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from jax.profiler import ProfileData

from scaling.errors import InputError
from scaling.performance import trace

Event = tuple[str, float, float, dict[str, str]]

PROGRAM = """HloModule jit_step, num_partitions=1

%fused (p: f32[4,4]) -> f32[4,4] {
  %p = f32[4,4]{1,0} parameter(0)
  ROOT %inner = f32[4,4]{1,0} dot(%p, %p), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%moved (p.1: f32[4,4]) -> f32[4,4] {
  %p.1 = f32[4,4]{1,0} parameter(0)
  ROOT %turn = f32[4,4]{1,0} transpose(%p.1), dimensions={1,0}
}

%body (s: (s32[], f32[4,4])) -> (s32[], f32[4,4]) {
  %s = (s32[], f32[4,4]) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %x = f32[4,4]{1,0} get-tuple-element(%s), index=1
  %scores = f32[4,4]{1,0} dot(%x, %x), metadata={op_name="jit(step)/jvp(Decoder)/blocks/attention/dot_general"}
  %query = f32[4,4]{1,0} dot(%scores, %x), metadata={op_name="jit(step)/jvp(Decoder)/blocks/attention/q/dot_general"}
  ROOT %t = (s32[], f32[4,4]) tuple(%i, %query)
}

%condition (s.1: (s32[], f32[4,4])) -> pred[] {
  %s.1 = (s32[], f32[4,4]) parameter(0)
  ROOT %yes = pred[] constant(true)
}

ENTRY %main (a: f32[4,4]) -> f32[4,4] {
  %a = f32[4,4]{1,0} parameter(0)
  %fusion.1 = f32[4,4]{1,0} fusion(%a), kind=kOutput, calls=%fused
  %fusion.2 = f32[4,4]{1,0} fusion(%fusion.1), kind=kLoop, calls=%moved
  %all-reduce-start.3 = f32[4,4]{1,0} all-reduce-start(%fusion.2), to_apply=%add
  %all-reduce-done.3 = f32[4,4]{1,0} all-reduce-done(%all-reduce-start.3)
  %gemm.4 = f32[4,4]{1,0} custom-call(%all-reduce-done.3, %a), custom_call_target="__cublas$gemm"
  %exponential.5 = f32[4,4]{1,0} exponential(%gemm.4)
  %zero = s32[] constant(0)
  %start = (s32[], f32[4,4]) tuple(%zero, %exponential.5)
  %while.6 = (s32[], f32[4,4]) while(%start), condition=%condition, body=%body
  ROOT %out = f32[4,4]{1,0} get-tuple-element(%while.6), index=1
}
"""


def plane(name: str, lines: dict[str, list[Event]]) -> str:
    """The text of an XPlane. Times in microseconds."""
    events = [event for line in lines.values() for event in line]
    names = sorted({event[0] for event in events})
    stats = sorted({stat for event in events for stat in event[3]})
    out = [f'planes {{ name: "{name}"']
    for number, text in enumerate(names):
        out.append(f'event_metadata {{ key: {number + 1} value {{ id: {number + 1} name: "{text}" }} }}')
    for number, text in enumerate(stats):
        out.append(f'stat_metadata {{ key: {number + 1} value {{ id: {number + 1} name: "{text}" }} }}')
    for line, line_events in lines.items():
        out.append(f'lines {{ name: "{line}" timestamp_ns: 1000')
        for text, start, end, stat_values in line_events:
            shown = " ".join(
                f'stats {{ metadata_id: {stats.index(k) + 1} str_value: "{v}" }}' for k, v in stat_values.items()
            )
            at, length = round(start * 1e6), round((end - start) * 1e6)
            out.append(
                f"events {{ metadata_id: {names.index(text) + 1} offset_ps: {at} duration_ps: {length} {shown} }}"
            )
        out.append("}")
    return "\n".join([*out, "}"])


def profile(*planes: str) -> ProfileData:
    return ProfileData.from_serialized_xspace(ProfileData.text_proto_to_serialized_xspace("\n".join(planes)))


def host(start: float, end: float) -> str:
    return plane("/host:CPU", {"python": [("window", start, end, {}), ("PjitFunction(step)", start, start + 1, {})]})


def op(name: str, start: float, end: float) -> Event:
    return (f"kernel_of_{name}", start, end, {"hlo_op": name})


def test_operation_kinds_of_a_program() -> None:
    kinds, containers = trace.operation_kinds(PROGRAM)
    wanted: dict[str, trace.Kind] = {
        "fusion.1": "product",
        "fusion.2": "copy",
        "all-reduce-start.3": "collective",
        "all-reduce-done.3": "collective",
        "gemm.4": "product",
        "exponential.5": "elementwise",
        "scores": "attention",
        "query": "product",
    }
    assert {name: kinds[name] for name in wanted} == wanted
    assert containers == {"while.6"}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sm90_xmma_gemm_bf16bf16_bf16f32", "product"),
        ("ncclDevKernel_AllReduce_Sum_f32_RING_LL", "collective"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop", "attention"),
        ("MemcpyD2D", "copy"),
        ("loop_add_fusion", "elementwise"),
    ],
)
def test_kind_from_the_name_of_a_kernel(name: str, kind: trace.Kind) -> None:
    assert trace.kind_from_name(name) == kind


def test_a_gpu_is_busy_when_any_stream_is() -> None:
    """Two steps in 100 us: 10-40 and 60-90, a collective beside the second product, and a copy before the window."""
    streams: dict[str, list[Event]] = {
        "Stream #7(Compute)": [op("fusion.1", 10, 40), op("fusion.1", 60, 80), op("exponential.5", 80, 90)],
        "Stream #9(Memcpy)": [("MemcpyH2D", -20, -10, {}), op("all-reduce-start.3", 65, 75)],
        "XLA Modules": [("jit_step", 0, 100, {})],
    }
    kinds, containers = trace.operation_kinds(PROGRAM)
    parsed = trace.parse_profile(profile(plane("/device:GPU:0", streams), host(0, 100)), "window", containers)
    assert {device: len(ops) for device, ops in parsed.devices.items()} == {"/device:GPU:0": 4}
    activity = trace.measure_activity(parsed, kinds, steps=2)
    assert activity.wall == pytest.approx(0.05)
    assert activity.busy == activity.least_busy == pytest.approx(0.6)
    assert activity.gap == pytest.approx(0.02)
    assert activity.op_time == pytest.approx(0.035)
    assert activity.kinds == pytest.approx({"product": 50 / 70, "collective": 10 / 70, "elementwise": 10 / 70})
    assert activity.ops[0] == trace.OpShare("fusion.1", "product", pytest.approx(50 / 70), pytest.approx(0.025), 1)
    assert re.match(rf"{trace.WAITING_FOR_HOST}\b.*\b0\.020\b.*\b0\.020\b", activity.verdict)


def test_tpu_traces_name_instructions_and_loops_are_left_out() -> None:
    """Two devices, one of which idles for half of the time; the loop spans its body and counts for nothing."""
    text = "%scores = f32[4,4]{1,0} dot(...)"
    loop = "%while.6 = (s32[], f32[4,4]) while(...)"
    planes = [
        plane(
            f"/device:TPU:{number}", {"XLA Ops": [(loop, 0, 100, {}), (text, 0, end, {})], "Steps": [("1", 0, 100, {})]}
        )
        for number, end in enumerate((100, 50))
    ]
    kinds, containers = trace.operation_kinds(PROGRAM)
    activity = trace.measure_activity(
        trace.parse_profile(profile(*planes, host(0, 100)), "window", containers), kinds, steps=1
    )
    assert activity.busy == pytest.approx(0.75)
    assert activity.least_busy == pytest.approx(0.5)
    assert activity.kinds == pytest.approx({"attention": 1.0})
    assert [(one.name, one.calls) for one in activity.ops] == [("scores", 1)]
    assert activity.gap is None, "one step has no next"
    assert activity.verdict.startswith(trace.IDLE_WITHIN_STEP)


def test_a_cpu_product_ends_at_its_end_event() -> None:
    begun = {"hlo_op": "fusion.1", "device_ordinal": "0", "_p": "7"}
    threads: dict[str, list[Event]] = {
        "tf_XLAEigen/1": [("fusion.1", 10, 12, begun), ("ThreadpoolListener::Record", 5, 95, {})],
        "tf_XLAEigen/2": [("end: fusion.1", 50, 50.1, {"_c": "7"}), ("ThunkExecutor::Execute", 0, 100, {})],
        "python": [("window", 0, 100, {})],
    }
    parsed = trace.parse_profile(profile(plane("/host:CPU", threads)), "window")
    assert parsed.devices == {"CPU:0": (trace.Op("fusion.1", 11_000, 51_000),)}
    assert trace.measure_activity(parsed, {}, steps=1).busy == pytest.approx(0.4)


def test_operations_are_cut_to_the_window() -> None:
    streams = {"Stream #7(Compute)": [op("fusion.1", -10, 10), op("fusion.1", 90, 130), op("fusion.1", 130, 140)]}
    activity = trace.measure_activity(
        trace.parse_profile(profile(plane("/device:GPU:0", streams), host(0, 100)), "window"), {}, 2
    )
    assert activity.busy == pytest.approx(0.2)
    assert activity.gap == pytest.approx(0.08)


def test_a_busy_device_is_compute_bound() -> None:
    streams = {"Stream #7(Compute)": [op("fusion.1", 0, 48), op("fusion.1", 50, 100)]}
    activity = trace.measure_activity(
        trace.parse_profile(profile(plane("/device:GPU:0", streams), host(0, 100)), "window"), {}, 2
    )
    assert re.match(rf"{trace.COMPUTE_BOUND}\b.*\b98%", activity.verdict)


def test_a_folder_or_profile_without_a_trace_raises(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=re.escape(str(tmp_path))):
        trace.read_trace(tmp_path, "window")
    with pytest.raises(InputError, match="'other'"):
        trace.parse_profile(profile(host(0, 100)), "other")
    with pytest.raises(InputError) as error:
        trace.parse_profile(profile(host(0, 100)), "window")
    assert "'window'" not in str(error.value), "the annotation is there, operations are not"

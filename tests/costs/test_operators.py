"""The kernel cost: its corners, its bounds, and which figures of a device it takes."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.costs.operators import arithmetic, blended_terms, efficiency_of, kernel_rates
from simulator.graph.shape import Chunk, StepShape
from simulator.graph.work import Formats, OperatorClass
from simulator.simulation.pricing import PricedTemplate
from simulator.simulation.ticks import seconds, tick, ticks
from simulator.specs.architecture import Attention, Mlp
from simulator.specs.catalogue import Catalogue
from simulator.specs.device_class import with_defaults
from simulator.specs.engine import OwnCode
from simulator.specs.hardware import OPERATOR_CLASSES, Device, Efficiency, Precision
from tests import tiny

duration_s = st.floats(1e-9, 1e3)
exponent = st.floats(1.0, 60.0)


def kernel_s(compute_s: float, memory_s: float, blend: float) -> float:
    arithmetic_s, traffic_s = blended_terms(np.array([compute_s]), np.array([memory_s]), np.array([blend]))
    return float(arithmetic_s[0] + traffic_s[0])


@given(compute_s=duration_s, memory_s=duration_s)
def test_blend_one_adds_the_terms(compute_s: float, memory_s: float) -> None:
    assert kernel_s(compute_s, memory_s, 1.0) == pytest.approx(compute_s + memory_s)
    terms = blended_terms(np.array([compute_s]), np.array([memory_s]), np.array([1.0]))
    assert [float(term[0]) for term in terms] == pytest.approx([compute_s, memory_s])


@given(compute_s=duration_s, memory_s=duration_s)
def test_a_large_blend_is_the_roofline(compute_s: float, memory_s: float) -> None:
    assert kernel_s(compute_s, memory_s, 1e6) == pytest.approx(max(compute_s, memory_s), rel=1e-5)


@given(compute_s=duration_s, memory_s=duration_s, blend=exponent)
def test_every_blend_lies_between_the_longer_term_and_the_sum(
    compute_s: float, memory_s: float, blend: float
) -> None:
    blended_s = kernel_s(compute_s, memory_s, blend)
    rounding = 1 + 1e-12
    assert max(compute_s, memory_s) <= blended_s * rounding
    assert blended_s <= (compute_s + memory_s) * rounding
    assert kernel_s(compute_s, memory_s, blend * 1.5) <= blended_s * rounding


@given(compute_s=duration_s, memory_s=duration_s, blend=exponent, factor=st.floats(1.0, 1e3))
def test_more_work_never_takes_less_time(
    compute_s: float, memory_s: float, blend: float, factor: float
) -> None:
    base_s = kernel_s(compute_s, memory_s, blend) * (1 - 1e-12)
    assert kernel_s(compute_s * factor, memory_s, blend) >= base_s
    assert kernel_s(compute_s, memory_s * factor, blend) >= base_s
    assert kernel_s(compute_s * factor, memory_s * factor, blend) == pytest.approx(
        kernel_s(compute_s, memory_s, blend) * factor
    )


@pytest.mark.parametrize("blend", [1.0, 2.0, 2.7, 100.0])
def test_one_kind_of_work_alone_takes_its_lone_time(blend: float) -> None:
    assert kernel_s(3.0, 0.0, blend) == 3.0
    assert kernel_s(0.0, 4.0, blend) == 4.0
    assert kernel_s(0.0, 0.0, blend) == 0.0


def test_the_shares_are_in_proportion_to_the_powers() -> None:
    """3-4-5: the norm is 5 for p = 2, shared 9 to 16."""
    compute_s, memory_s = blended_terms(np.array([3.0]), np.array([4.0]), np.array([2.0]))
    assert compute_s[0] == pytest.approx(5 * 9 / 25)
    assert memory_s[0] == pytest.approx(5 * 16 / 25)


def test_extreme_times_neither_overflow_nor_vanish() -> None:
    assert kernel_s(1e-200, 1e-200, 50.0) == pytest.approx(1e-200 * 2 ** (1 / 50))
    assert kernel_s(1e200, 1e200, 50.0) == pytest.approx(1e200 * 2 ** (1 / 50))


# --- a device's figures -------------------------------------------------------------------------------------


def with_efficiency(**figures: Efficiency) -> Device:
    changed = {key.replace("__", "."): value for key, value in figures.items()}
    return tiny.device().model_copy(update={"efficiency": changed})


def test_the_most_specific_figures_count() -> None:
    general = Efficiency(compute=0.5, memory=0.5, overhead_s=1e-6, blend=1.0)
    special = Efficiency(compute=0.8, memory=0.9, overhead_s=2e-6, blend=3.0)
    device = with_efficiency(matmul=general, matmul__bf16=special, elementwise=general, norm__bf16=special)
    assert efficiency_of(device, "matmul", "bf16") == special
    assert efficiency_of(device, "matmul", "fp16") == special  # the same rate
    assert efficiency_of(device, "matmul", "fp8") == general
    assert efficiency_of(device, "grouped_matmul", "bf16") == special  # the broader class
    assert efficiency_of(device, "norm", "bf16") == special
    assert efficiency_of(device, "norm", "fp32") == general
    assert efficiency_of(device, "rotary", "bf16") == general


@pytest.mark.parametrize("kind", ["cpu", "gpu", "accelerator"])
def test_every_kind_of_device_has_a_default_for_every_class(kind: str) -> None:
    bare = tiny.device(kind).model_copy(update={"efficiency": {}})
    whole = with_defaults(bare, Catalogue().classes_of(kind, "of-the-future"))
    for operator_class in OPERATOR_CLASSES:
        rates = kernel_rates(whole, cast(OperatorClass, operator_class), ("bf16",))
        assert 0 < rates.flops_per_s <= 1e9
        assert 0 < rates.bytes_per_s <= 1e9
        assert rates.blend >= 1


def test_rates_are_shares_of_the_peaks() -> None:
    figures = Efficiency(compute=0.5, memory=0.25, overhead_s=3e-6, blend=2.0)
    rates = kernel_rates(with_efficiency(matmul=figures), "matmul", ("bf16",))
    assert (rates.flops_per_s, rates.bytes_per_s) == (0.5e9, 0.25e9)
    assert (rates.overhead_s, rates.blend) == (3e-6, 2.0)


@pytest.mark.parametrize(
    ("compute", "formats", "expected"),
    [
        ({"fp8": 4e9, "bf16": 2e9}, ("fp8", "bf16"), ("fp8", 4e9)),  # the best of what it has
        ({"bf16": 2e9, "fp32": 1e9}, ("fp8", "bf16"), ("bf16", 2e9)),  # else the next acceptable
        ({"fp32": 1e9}, ("fp8", "bf16"), ("fp32", 1e9)),  # else the next wider
        ({"int8": 9e9, "fp32": 1e9}, ("fp4",), ("fp32", 1e9)),  # but never whole numbers for floats
        ({"fp32": 1e9}, ("fp64",), ("fp32", 0.5e9)),  # else its widest, slowed by the widths
    ],
)
def test_arithmetic_runs_in_the_best_format_there_is(
    compute: dict[str, float], formats: tuple[Precision, ...], expected: tuple[str, float]
) -> None:
    assert arithmetic(tiny.device(compute=compute), formats) == expected


# --- the price of a task ------------------------------------------------------------------------------------


def price_of(device: Device, operator: str, chunks: list[Chunk]) -> float:
    """Seconds of the first task of that operator in a step on one device."""
    graph = tiny.machine(tiny.node(gpus=[device]))
    program = tiny.program(tiny.single(), graph)
    priced = PricedTemplate(program.template(1), program, tiny.engine())
    index = next(i for i, task in enumerate(priced.template.tasks) if task.operator == operator)
    durations = priced.durations((StepShape.of(chunks),))
    return seconds(int(durations.total[priced.class_of_task[index]]))


def test_the_price_of_a_projection_by_hand() -> None:
    """qkv_proj of 3 tokens: 24 to (4 + 2 * 2) heads of 6 = 48 outputs; bf16; 1 GFLOP/s, 1 GB/s, p = 2.

    FLOPs 2 * 3 * 24 * 48 = 6912; bytes 2 * (24 * 48 + 3 * 24 + 3 * 48) = 2736; sqrt(6912^2 + 2736^2) ns.
    """
    device = tiny.device(overhead_s=5e-6)
    expected_s = 5e-6 + np.hypot(6912e-9, 2736e-9)
    assert price_of(device, "qkv_proj", [Chunk(0, 10, 3, True)]) == pytest.approx(expected_s, abs=1e-12)


def test_the_price_of_attention_is_that_of_two_kernels() -> None:
    """Prefill of 3 after 10: pairs 3*10 + 3*4/2 = 36, FLOPs 4*24*36 = 3456; keys 13: bytes 2*(13*24 + 3*48)
    = 912. Decode after 7: keys 8, FLOPs 4*24*8 = 768; bytes 2*(8*24 + 48) = 480."""
    chunks = [Chunk(0, 10, 3, True), Chunk(1, 7, 1, True)]
    expected_s = 2 * 5e-6 + np.hypot(3456e-9, 912e-9) + np.hypot(768e-9, 480e-9)
    assert price_of(tiny.device(overhead_s=5e-6), "attention", chunks) == pytest.approx(expected_s, abs=2e-12)


def test_a_kernel_without_work_costs_no_overhead() -> None:
    """Of attention's two kernels only the one that has sequences is launched."""
    device = tiny.device(overhead_s=5e-6)
    decode_s = price_of(device, "attention", [Chunk(1, 7, 1, True)])
    assert decode_s == pytest.approx(5e-6 + np.hypot(768e-9, 480e-9), abs=1e-12)


@given(
    contexts=st.lists(st.integers(0, 500), min_size=1, max_size=4),
    new=st.integers(1, 64), operator=st.sampled_from(["qkv_proj", "attention", "mlp_norm", "lm_head", "embed"]),
)  # fmt: skip
def test_what_is_charged_to_compute_and_memory_adds_up_to_the_price(
    contexts: list[int], new: int, operator: str
) -> None:
    chunks = [Chunk(number, context, 1, True) for number, context in enumerate(contexts)]
    chunks.append(Chunk(99, 0, new, True))
    program = tiny.program(tiny.tensor_parallel(), tiny.server())
    priced = PricedTemplate(program.template(1), program, tiny.engine(step_s=1e-6, per_sequence_s=1e-7))
    durations = priced.durations((StepShape.of(chunks),))
    split_s = priced.split_s(durations.lone_s)
    assert split_s.sum(axis=1) * 1e12 == pytest.approx(durations.total, abs=1.01)
    assert (split_s >= 0).all()


# --- an engine's own code -----------------------------------------------------------------------------------


def price_on_cpu(
    operator: str, chunks: list[Chunk], code: OwnCode, place: str = "cpu", formats: Formats = tiny.BF16
) -> float:
    """Seconds of the first task of that operator on a processor, or a GPU, under an engine with such code."""
    graph = tiny.machine(tiny.node(gpus=[tiny.device()], cpu=tiny.device("cpu", overhead_s=5e-6)))
    program = tiny.program(tiny.single(name=place), graph, formats=formats)
    engine = tiny.engine().model_copy(update={"code": code})
    priced = PricedTemplate(program.template(1), program, engine)
    index = next(i for i, task in enumerate(priced.template.tasks) if task.operator == operator)
    durations = priced.durations((StepShape.of(chunks),))
    return seconds(int(durations.total[priced.class_of_task[index]]))


def test_own_code_is_added_to_what_a_processor_computes_and_not_a_device() -> None:
    """The tiny model rotates: 3 us for any operator, 7 for a rotary, 80 more for turning."""
    code = OwnCode(operator_s=3e-6, operators={"rotary": 7e-6, "rotary.rope": 80e-6, "rotary.qk_norm": 1e-3})
    chunks = [Chunk(0, 10, 3, True)]
    for operator, more_s in (("rotary", 90e-6), ("qkv_proj", 3e-6), ("attention", 3e-6)):
        plain_s = price_on_cpu(operator, chunks, OwnCode())
        assert price_on_cpu(operator, chunks, code) == pytest.approx(plain_s + more_s, abs=2e-12)
        assert price_on_cpu(operator, chunks, code, "gpu-0") == price_on_cpu(operator, chunks, OwnCode(), "gpu-0")


def test_scores_and_passes_go_through_memory() -> None:
    """Decode after 7: FLOPs 768, bytes 480, and 4 heads of 8 scores; then all bytes three times."""
    chunks = [Chunk(1, 7, 1, True)]
    scored_s = price_on_cpu("attention", chunks, OwnCode(score_bytes=10))
    assert scored_s == pytest.approx(5e-6 + np.hypot(768e-9, (480 + 320) * 1e-9), abs=2e-12)
    passed_s = price_on_cpu("attention", chunks, OwnCode(score_bytes=10, passes={"attention": 2.0}))
    assert passed_s == pytest.approx(5e-6 + np.hypot(768e-9, 3 * (480 + 320) * 1e-9), abs=2e-12)


def test_packed_weights_and_caches_are_unpacked_by_kernels_of_their_own() -> None:
    """At 14 bytes a number and 1 GB/s; formats that something multiplies in need none."""
    chunks, unpacks = [Chunk(1, 7, 1, True)], OwnCode(unpack_bytes=14)
    packed = Formats("int4", "bf16", "int4")
    mlp, attention = tiny.LLAMA.layers[0].mlp, tiny.LLAMA.layers[0].attention
    assert isinstance(mlp, Mlp)
    assert isinstance(attention, Attention)
    numbers = {
        "up_proj": 2 * mlp.intermediate_size * tiny.LLAMA.hidden_size,
        "attention": 8 * 2 * attention.num_key_value_heads * attention.head_dim,
        "lm_head": 0,  # stays in 16 bits
    }
    for operator, count in numbers.items():
        fused_s, unpacked_s = (
            price_on_cpu(operator, chunks, code, "gpu-0", packed) for code in (OwnCode(), unpacks)
        )
        assert unpacked_s - fused_s == pytest.approx(14 * count / 1e9, abs=2e-12), operator
        plain_s, same_s = (price_on_cpu(operator, chunks, code, "gpu-0") for code in (OwnCode(), unpacks))
        assert same_s == plain_s, operator


def test_a_layer_that_is_brought_costs_what_the_engine_says_besides_its_copy() -> None:
    program = tiny.program(tiny.streamed(), tiny.server())
    plain = tiny.engine()
    slow = plain.model_copy(update={"overheads": plain.overheads.model_copy(update={"fetch_s": 3e-3})})
    template = program.template(1)
    shape = (StepShape.of([Chunk(0, 0, 4, True)]),)
    totals = []
    for engine in (plain, slow):
        priced = PricedTemplate(template, program, engine)
        totals.append([seconds(int(t)) for t in priced.durations(shape).total[priced.class_of_task]])
    brought = [
        task.kind == "transfer" and task.writes[0].kind == "fetched_weights" for task in template.tasks
    ]
    assert sum(brought) == 4
    for is_brought, fast_s, slow_s in zip(brought, *totals, strict=True):
        assert slow_s - fast_s == pytest.approx(3e-3 * is_brought, abs=2e-12)


# --- ticks --------------------------------------------------------------------------------------------------


@given(st.floats(0, 1e5))
def test_both_roundings_agree(duration: float) -> None:
    """One function rounds single durations, one arrays; only a duration of no tick differs."""
    assert int(ticks(np.array([duration]))[0]) == max(1, tick(duration))


@given(st.integers(0, 10**15))
def test_ticks_survive_being_shown_as_seconds(count: int) -> None:
    assert tick(seconds(count)) == count

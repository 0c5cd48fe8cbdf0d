"""A kernel's price in a step is that of the same kernel by itself, whatever delays it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.costs.operators import KernelLoad, KernelRates, cold_share, is_needed, kernel_rates, kernel_s
from simulator.graph.model_graph import model_operators
from simulator.graph.shape import Chunk, StepShape
from simulator.graph.work import Formats, Work
from simulator.simulation.pricing import PricedTemplate
from simulator.specs.architecture import Architecture, Attention
from simulator.specs.hardware import OPERATOR_CLASSES, Device, Efficiency, Memory
from tests import tiny

amount = st.floats(1.0, 1e12)
RATES = {"flops_per_s": 1e12, "bytes_per_s": 1e11, "overhead_s": 2e-6, "blend": 2.0}


def one(rates: KernelRates, flops: float, moved: float, **rest: float) -> float:
    return float(kernel_s(KernelLoad.of(np.array([flops]), np.array([moved]), **rest), rates)[0])


def test_a_short_kernel_takes_as_long_as_its_chain() -> None:
    """64 numbers in sequence at 1 ns each, where arithmetic and memory take next to nothing."""
    rates = KernelRates(**RATES, chain_s=1e-9)
    assert one(rates, 1.0, 1.0, chain=64) == pytest.approx(2e-6 + 64e-9, rel=1e-6)


def test_long_chains_are_shared_out() -> None:
    rates = KernelRates(**RATES, chain_s=1e-9, chain_most=1000)
    assert one(rates, 1.0, 1.0, chain=50_000) == one(rates, 1.0, 1.0, chain=1000)


def test_a_block_is_read_whole_and_longer_sequences_are_joined() -> None:
    """8 bytes a key, 128 keys a block: 4 keys cost what 128 do, and 4,096 cost a second pass."""
    rates = KernelRates(**RATES, block=128, split_s=5e-6)
    short = one(rates, 0.0, 4 * 8e3, block_bytes=8e3)
    assert short == pytest.approx(2e-6 + ((4 * 8e-8) ** 2 + (128 * 8e-8) ** 2) ** 0.5, rel=1e-6)
    assert one(rates, 0.0, 4096 * 8e3, block_bytes=8e3) == pytest.approx(7e-6 + 4096 * 8e-8, rel=1e-3)


def test_causal_kernels_compute_half_a_block_on_the_diagonal() -> None:
    rates = KernelRates(**RATES, block=100)
    assert one(rates, 1e9, 1.0, block_flops=1e6) == pytest.approx(2e-6 + (1e9 + 5000e6) / 1e12, rel=1e-6)


def test_a_cache_helps_what_it_holds() -> None:
    rates = KernelRates(**RATES, cached=4.0, cache_bytes=1e6)
    cold_s = one(rates, 0.0, 1e5) - 2e-6
    assert one(rates, 0.0, 1e5, used_bytes=1e4) - 2e-6 == pytest.approx(cold_s / 4, rel=1e-6)
    assert one(rates, 0.0, 1e5, used_bytes=1e8) - 2e-6 == pytest.approx(cold_s, rel=1e-6)
    assert cold_share(np.array([0.5, 2.0])) == pytest.approx([1 / 257, 256 / 257])


def test_beside_prompts_a_decoding_sequence_fills_one_row_of_many() -> None:
    """The prompts' kernel does it too: no overhead of its own, and 64 rows of arithmetic for one."""
    rates = KernelRates(**RATES, joint=64)
    assert one(rates, 1e9, 1.0) == pytest.approx(2e-6 + 1e-3, rel=1e-6)
    assert one(rates, 1e9, 1.0, beside_prompts=1.0) == pytest.approx(64e-3, rel=1e-6)
    blocks = KernelRates(**RATES, joint=64, block=128)
    beside_s = one(blocks, 1e9, 1.0, joint_flops=1e6, beside_prompts=1.0)
    assert beside_s == pytest.approx(64 * (1e9 + 128e6) / 1e12, rel=1e-6)


def test_keys_that_no_heads_share_form_a_chain_and_are_not_split() -> None:
    """FlashAttention 2 on an A100 takes 22 ns for each key of a sequence then, whatever else there is room for:
    published times of one head on one sequence are 31, 193 and 1,526 us at 1,024, 8,192 and 65,536 keys."""
    numbers = RATES | {"bytes_per_s": 1e12, "overhead_s": 12e-6, "blend": 8.0}
    rates = KernelRates(**numbers, chain_s=22e-9, block=64, split_s=5e-6)
    for keys, published_s in ((1024, 31e-6), (8192, 193e-6), (65536, 1526e-6)):
        moved = 512.0 * keys
        alone_s = one(rates, 0.0, moved, chain=float(keys), block_bytes=512.0)
        assert alone_s == pytest.approx(published_s, rel=0.15)
        shared_s = one(rates, 0.0, moved, block_bytes=512.0)
        assert shared_s == pytest.approx(12e-6 + 5e-6 + moved / 1e12, rel=0.2)


def test_regrouping_is_paid_where_it_is_said_to_be() -> None:
    rates = KernelRates(**RATES, regroup_s=6e-6)
    assert one(rates, 1e6, 1e6, regroups=1.0) - one(rates, 1e6, 1e6) == pytest.approx(6e-6)


CHUNKS = (Chunk(0, 5, 1, True), Chunk(1, 9, 1, True), Chunk(2, 0, 4, True))


def with_heads(heads: int, kv_heads: int) -> Architecture:
    """The small Llama with so many."""
    attention = tiny.LLAMA.layers[0].attention
    assert isinstance(attention, Attention)
    spec = replace(attention, num_attention_heads=heads, num_key_value_heads=kv_heads)
    return replace(tiny.LLAMA, layers=tuple(replace(layer, attention=spec) for layer in tiny.LLAMA.layers))


@pytest.mark.parametrize(
    ("heads", "kv_heads", "is_shared", "regroups"), [(4, 4, False, False), (4, 2, True, True), (4, 1, True, False)]
)
def test_which_heads_share_keys(heads: int, kv_heads: int, is_shared: bool, regroups: bool) -> None:
    operators = model_operators(with_heads(heads, kv_heads), tiny.BF16)
    decode = next(w for o in operators for w in o.works if w.operator_class == "attention_decode")
    assert (decode.is_shared, decode.regroups) == (is_shared, regroups)


@given(flops=amount, moved=amount, chain=st.floats(0, 1e5), block=st.floats(0, 1e6), factor=st.floats(1.0, 1e3))
def test_more_of_anything_never_takes_less(
    flops: float, moved: float, chain: float, block: float, factor: float
) -> None:
    rates = KernelRates(**RATES, chain_s=2e-9, chain_most=4096, block=64, cached=3.0, cache_bytes=1e7)
    rest = {"chain": chain, "block_bytes": block, "block_flops": block, "used_bytes": moved}
    base_s = one(rates, flops, moved, **rest) * (1 - 1e-12)
    assert one(rates, flops * factor, moved, **rest) >= base_s
    assert one(rates, flops, moved * factor, **rest | {"used_bytes": moved * factor}) >= base_s
    assert one(rates, flops, moved, **rest | {"chain": chain * factor}) >= base_s
    assert one(rates, flops, moved, **rest | {"block_bytes": block * factor}) >= base_s


# -- a step's price is that of its kernels one by one ----------------------------------------------------------

DETAILED = Efficiency(
    compute=0.6, memory=0.7, overhead_s=3e-6, blend=1.7, chain_s=40e-9, chain_most=20, block=6, split_s=4e-6,
    regroup_s=5e-6, joint=5, cached_bytes_per_s=0.3e9,
)  # fmt: skip


@given(
    contexts=st.lists(st.integers(0, 300), max_size=5), prompts=st.lists(st.integers(2, 40), max_size=3),
    formats=st.sampled_from([tiny.BF16, Formats("fp8", "bf16", "fp8")]), joint=st.sampled_from([0, 5]),
    kv_heads=st.sampled_from([1, 2, 4]),
)  # fmt: skip
def test_the_price_of_a_step_is_that_of_its_kernels(
    contexts: list[int], prompts: list[int], formats: Formats, joint: int, kv_heads: int
) -> None:
    chunks = [Chunk(number, context, 1, True) for number, context in enumerate(contexts)]
    chunks += [Chunk(100 + number, 7 * number, new, True) for number, new in enumerate(prompts)]
    if not chunks:
        return
    device = tiny.device(compute={"bf16": 1e9, "fp8": 2e9}).model_copy(
        update={"units": 7, "efficiency": dict.fromkeys(OPERATOR_CLASSES, DETAILED.model_copy(update={"joint": joint})),
                "memory": Memory(capacity_bytes=1e9, bandwidth_bytes_per_s=1e9, cache_bytes=2000)}
    )  # fmt: skip
    graph = tiny.machine(tiny.node(gpus=[device]))
    program = tiny.program(tiny.single(), graph, with_heads(4, kv_heads), formats)
    priced = PricedTemplate(program.template(1), program, tiny.engine())
    shape = StepShape.of(chunks)
    durations = priced.durations((shape,))
    together, _ = priced.durations_of_many(np.array([StepShape.of(CHUNKS), shape], dtype=np.float64))
    assert together[1].tolist() == durations.total.tolist()
    for index, task in enumerate(priced.template.tasks):
        if task.kind == "compute":
            took = int(durations.total[priced.class_of_task[index]])
            assert took * 1e-12 == pytest.approx(sum(alone_s(device, work, shape) for work in task.works), rel=1e-6)


def alone_s(device: Device, work: Work, shape: StepShape) -> float:
    """Seconds of one kernel of a step by `kernel_s`; nothing where it has nothing to do."""
    if not is_needed(device, work) or not work.moved_bytes.at(shape):
        return 0.0
    chains = work.chain_count.at(shape)
    beside = work.operator_class == "attention_decode" and bool(shape.has_prefill)
    moved = float(work.moved_bytes.at(shape))
    load = KernelLoad.of(
        np.array([float(work.flops.at(shape))]), np.array([moved]),
        chain=work.chains.at(shape) / chains if chains else float(work.chain),
        block_flops=float(work.block_flops.at(shape)), block_bytes=float(work.block_bytes.at(shape)),
        joint_flops=float(work.joint_flops.at(shape)),
        beside_prompts=float(beside), is_shared=float(work.is_shared),
        regroups=float(work.regroups and shape.decode_tokens > 1),
        used_bytes=moved if work.is_warm else np.inf,
    )  # fmt: skip
    return float(kernel_s(load, kernel_rates(device, work.operator_class, work.formats))[0])

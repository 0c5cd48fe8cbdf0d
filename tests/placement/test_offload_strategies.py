"""Where the strategies that move weights, KV blocks or experts away from the accelerator put them."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.placement.placement import Elsewhere, ExpertsAside, KvHome, Placement, Stage, Streaming
from simulator.placement.strategies import (
    AttentionOffload,
    ExpertOffload,
    ExpertParallel,
    Hybrid,
    KvOffload,
    Strategy,
    WeightStreaming,
)
from simulator.placement.strategies.base import evenly_spread
from simulator.placement.strategies.expert_offload import Zipf
from simulator.specs.architecture import Experts, Mlp, Router
from tests.placed import machine, model

L40S, HGX, MIXED, XEON = "epyc-9654-4x-l40s", "hgx-h100-8", "cpu-gpu-nr1", "xeon-6454s-1s-4x-rtx-4090"
LLAMA, OPT, MIXTRAL, DEEPSEEK = "llama-3.1-8b", "opt-30b", "mixtral-8x7b", "deepseek-v2-lite"
ALL_OF_LLAMA = (Stage(("gpu-0",), 0, 32),)


def placed(strategy: Strategy, where: str = L40S, name: str = LLAMA) -> Placement:
    found = strategy.place(model(name), machine(where))
    assert isinstance(found, Placement)
    assert found.name == strategy.label
    return found


# --- streamed weights ---------------------------------------------------------------------------------------


def test_all_layers_come_from_the_host_unless_told_otherwise() -> None:
    found = placed(WeightStreaming())
    assert found == Placement("weight_streaming", ALL_OF_LLAMA, streaming=Streaming(("host",) * 32, 2))


def test_every_field_of_weight_streaming_reaches_the_placement() -> None:
    strategy = WeightStreaming(
        gpu_layers=16, buffers=3, prefetch=True, microbatches=4, kv="host", decode_attention="host",
        tensor_parallel=2, devices=("gpu-3", "gpu-1"),
    )  # fmt: skip
    homes = ("host", None) * 16
    assert placed(strategy) == Placement(
        strategy.label, (Stage(("gpu-3", "gpu-1"), 0, 32),), 4, Streaming(homes, 3, across_steps=True),
        kv_home=KvHome("host", "cpu"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("strategy", "kept"),
    [
        (WeightStreaming(gpu_layers=1), {47}),
        (WeightStreaming(gpu_layers=3), {15, 31, 47}),
        (WeightStreaming(gpu_share=0.25), set(range(3, 48, 4))),
        (WeightStreaming(gpu_share=0.2), {48 - 1 - (index * 48) // 10 for index in range(10)}),
        (WeightStreaming(gpu_layers=47), set(range(1, 48))),
    ],
)  # fmt: skip
def test_layers_that_stay_are_spread_evenly(strategy: WeightStreaming, kept: set[int]) -> None:
    """OPT-30B has 48 layers."""
    streaming = placed(strategy, L40S, OPT).streaming
    assert streaming is not None
    assert {layer for layer, home in enumerate(streaming.homes) if home is None} == kept


@pytest.mark.parametrize("strategy", [WeightStreaming(gpu_layers=32), WeightStreaming(gpu_share=1.0)])
def test_where_every_layer_stays_nothing_is_streamed(strategy: WeightStreaming) -> None:
    assert placed(strategy).streaming is None


@given(st.integers(0, 60), st.integers(1, 60))
def test_gaps_between_layers_that_are_spread_differ_by_one(count: int, layers: int) -> None:
    count = min(count, layers)
    chosen = sorted(evenly_spread(count, range(layers)))
    assert len(chosen) == count
    assert count == 0 or chosen[-1] == layers - 1
    gaps = {after - before for before, after in pairwise((-1, *chosen))} if count else set()
    assert all(gap in (layers // count, -(-layers // count)) for gap in gaps)


def test_some_layers_come_from_disk() -> None:
    """Half of Mixtral's 32 layers stay; a quarter of all, 8 of the 16 others, every other one of them, are on
    NVMe."""
    streaming = placed(WeightStreaming(gpu_share=0.5, nvme_share=0.25), XEON, MIXTRAL).streaming
    assert streaming is not None
    assert streaming.homes == ("host", None, "nvme", None) * 8


def test_all_layers_may_come_from_disk() -> None:
    streaming = placed(WeightStreaming(gpu_layers=2, home="nvme"), XEON, MIXTRAL).streaming
    assert streaming is not None
    assert streaming.homes == (("nvme",) * 15 + (None,)) * 2


def test_on_a_machine_of_two_nodes_host_memory_is_that_of_the_accelerators_node() -> None:
    found = placed(WeightStreaming(kv="host"), MIXED)
    assert found.stages == (Stage(("x86.gpu-0",), 0, 32),)
    assert found.streaming == Streaming(("x86.host",) * 32)
    assert found.kv_home == KvHome("x86.host")
    far = placed(WeightStreaming(kv="host", devices=("nr1.accelerator-2",)), MIXED)
    assert far.streaming == Streaming(("nr1.host",) * 32)
    assert far.kv_home == KvHome("nr1.host")


# --- KV blocks and attention --------------------------------------------------------------------------------


def test_kv_blocks_at_the_host() -> None:
    assert placed(KvOffload()) == Placement("kv_offload", ALL_OF_LLAMA, kv_home=KvHome("host"))
    ranks = placed(KvOffload(tensor_parallel=2, buffers=5))
    assert (ranks.stages[0].devices, ranks.kv_home) == (("gpu-0", "gpu-1"), KvHome("host", buffers=5))


def test_attention_beside_the_blocks() -> None:
    decode = placed(AttentionOffload(tensor_parallel=2, devices=("gpu-2", "gpu-3")))
    assert (decode.stages, decode.elsewhere) == ((Stage(("gpu-2", "gpu-3"), 0, 32),), ())
    assert decode.kv_home == KvHome("host", decode_device="cpu")
    every = placed(AttentionOffload(phases="all"))
    assert (every.stages, every.kv_home) == (ALL_OF_LLAMA, None)
    assert every.elsewhere == (Elsewhere("cpu", frozenset({"rotary", "attention"}), frozenset(range(32))),)
    far = placed(AttentionOffload(), MIXED)
    assert far.kv_home == KvHome("x86.host", decode_device="x86.cpu")


# --- experts ------------------------------------------------------------------------------------------------


def test_whole_experts_on_ranks() -> None:
    found = placed(ExpertParallel(degree=4), HGX, MIXTRAL)
    devices = ("gpu-0", "gpu-1", "gpu-2", "gpu-3")
    assert found == Placement("expert_parallel 4", (Stage(devices, 0, 32),), whole_experts=True)


def test_whole_experts_on_ranks_with_sequences_of_their_own() -> None:
    """Heads need not be shared out, so three devices will do for 32 of them."""
    found = placed(ExpertParallel(degree=3, attention="data"), HGX, MIXTRAL)
    assert found == Placement(
        "expert_parallel 3 data-parallel attention", (Stage(("gpu-0", "gpu-1", "gpu-2"), 0, 32),), 3,
        whole_experts=True, by_sequence=True,
    )  # fmt: skip
    alone = placed(ExpertParallel(degree=1, attention="data"), HGX, MIXTRAL)
    assert (alone.microbatches, alone.by_sequence) == (1, False)


@pytest.mark.parametrize(
    ("strategy", "aside"),
    [
        (ExpertOffload(), tuple(range(8))),
        (ExpertOffload(gpu_experts=0.25), (2, 3, 4, 5, 6, 7)),
        (ExpertOffload(gpu_experts=0.25, choose="least_used"), (0, 1, 2, 3, 4, 5)),
        (ExpertOffload(gpu_experts=0.875), (7,)),
    ],
)  # fmt: skip
def test_experts_that_are_not_kept_are_aside(strategy: ExpertOffload, aside: tuple[int, ...]) -> None:
    """The first expert is the most popular one."""
    found = placed(strategy, XEON, MIXTRAL)
    assert found.stages == (Stage(("gpu-0",), 0, 32),)
    assert found.experts_aside == ExpertsAside("cpu", aside)


def test_where_all_experts_stay_nothing_is_aside() -> None:
    assert placed(ExpertOffload(gpu_experts=1.0), XEON, MIXTRAL).experts_aside is None


def test_shared_experts_let_ranks_give_all_routed_ones_away() -> None:
    found = placed(ExpertOffload(tensor_parallel=2), XEON, DEEPSEEK)
    assert found.experts_aside == ExpertsAside("cpu", tuple(range(64)))


def test_popularity_reaches_the_placement() -> None:
    aside = placed(ExpertOffload(gpu_experts=0.5, popularity=Zipf(zipf=1.0)), XEON, MIXTRAL).experts_aside
    assert aside is not None
    assert aside.popularity == Zipf(zipf=1.0).chances(experts(8, 2))


# --- Zipf's law ---------------------------------------------------------------------------------------------


def experts(count: int, chosen: int) -> Experts:
    return Experts(count, chosen, Mlp(4, "silu", gated=True), Router("softmax"))


@given(st.integers(1, 40), st.data(), st.floats(0, 10))
def test_chances_are_probabilities_that_fall_and_add_up(count: int, data: st.DataObject, exponent: float) -> None:
    chosen = data.draw(st.integers(1, count))
    chances = Zipf(zipf=exponent).chances(experts(count, chosen))
    assert len(chances) == count
    assert sum(chances) == pytest.approx(chosen)
    assert all(0 <= chance <= 1 for chance in chances)
    assert all(more >= less for more, less in pairwise(chances))


@given(st.integers(1, 40), st.data(), st.floats(0, 10))
def test_chances_below_one_are_in_zipfs_proportion(count: int, data: st.DataObject, exponent: float) -> None:
    chosen = data.draw(st.integers(1, count))
    chances = Zipf(zipf=exponent).chances(experts(count, chosen))
    open_ones = [(rank, chance) for rank, chance in enumerate(chances, start=1) if 0 < chance < 1]
    for (rank, chance), (other, less) in pairwise(open_ones):
        assert chance / less == pytest.approx((other / rank) ** exponent)


@pytest.mark.parametrize(
    ("exponent", "count", "chosen", "expected"),
    [
        (0.0, 8, 2, [0.25] * 8),
        (1.0, 4, 1, [12 / 25, 6 / 25, 4 / 25, 3 / 25]),  # of 1, 1/2, 1/3, 1/4
        (1.0, 3, 2, [1, 3 / 5, 2 / 5]),  # 12/11 would be more than one: the others share what is left
        (2.0, 3, 3, [1, 1, 1]),
        (10.0, 2, 1, [1024 / 1025, 1 / 1025]),
        (3.0, 1, 1, [1]),
    ],
)  # fmt: skip
def test_chances_by_hand(exponent: float, count: int, chosen: int, expected: list[float]) -> None:
    assert Zipf(zipf=exponent).chances(experts(count, chosen)) == pytest.approx(expected)


# --- hybrids ------------------------------------------------------------------------------------------------


def test_replicas_of_pipelines_of_ranks() -> None:
    found = Hybrid(data_parallel=2, pipeline_parallel=2, tensor_parallel=2, loops=2).place(
        model(LLAMA), machine(HGX)
    )
    assert isinstance(found, tuple)
    first, second = found
    assert first.stages == (Stage(("gpu-0", "gpu-1"), 0, 16), Stage(("gpu-2", "gpu-3"), 16, 16))
    assert second.stages == (Stage(("gpu-4", "gpu-5"), 0, 16), Stage(("gpu-6", "gpu-7"), 16, 16))
    assert {(each.loops, each.name) for each in found} == {(2, "hybrid dp 2 x pp 2 x tp 2 2 loops")}


def test_a_processor_before_and_streamed_layers_after() -> None:
    found = placed(Hybrid(pipeline_parallel=2, tensor_parallel=2, cpu_layers=5, streamed_layers=3, buffers=1,
                          microbatches=2))  # fmt: skip
    assert found.stages == (
        Stage(("cpu",), 0, 5), Stage(("gpu-0", "gpu-1"), 5, 14), Stage(("gpu-2", "gpu-3"), 19, 13),
    )  # fmt: skip
    assert found.streaming == Streaming((None,) * 29 + ("host",) * 3, 1)
    assert found.microbatches == 2


def test_streamed_layers_are_kept_beside_the_stage_that_needs_them() -> None:
    """Two accelerators of two nodes: each stage's layers in the memory of its own host."""
    found = placed(Hybrid(pipeline_parallel=2, streamed_layers=20), MIXED)
    assert [stage.devices for stage in found.stages] == [("x86.gpu-0",), ("nr1.accelerator-0",)]
    assert found.streaming == Streaming((None,) * 12 + ("x86.host",) * 4 + ("nr1.host",) * 16)


def test_ranks_of_a_stage_may_hold_whole_experts() -> None:
    found = placed(Hybrid(pipeline_parallel=2, tensor_parallel=2, experts="whole"), HGX, MIXTRAL)
    assert found.whole_experts
    assert not placed(Hybrid(pipeline_parallel=2, tensor_parallel=2), HGX, MIXTRAL).whole_experts


# --- labels -------------------------------------------------------------------------------------------------

VARIANTS = [
    WeightStreaming(), WeightStreaming(gpu_layers=1), WeightStreaming(gpu_share=0.121),
    WeightStreaming(gpu_share=0.124), WeightStreaming(home="nvme"), WeightStreaming(nvme_share=0.5),
    WeightStreaming(buffers=1), WeightStreaming(prefetch=True), WeightStreaming(microbatches=2),
    WeightStreaming(kv="host"), WeightStreaming(kv="host", decode_attention="host"),
    WeightStreaming(tensor_parallel=2), WeightStreaming(devices=("gpu-1",)),
    KvOffload(), KvOffload(tensor_parallel=2), KvOffload(buffers=1), KvOffload(devices=("gpu-1",)),
    AttentionOffload(), AttentionOffload(phases="all"), AttentionOffload(tensor_parallel=2),
    AttentionOffload(devices=("gpu-1",)),
    ExpertParallel(degree=2), ExpertParallel(degree=4), ExpertParallel(degree=2, devices=("gpu-1", "gpu-2")),
    ExpertParallel(degree=2, attention="data"),
    ExpertOffload(), ExpertOffload(gpu_experts=0.501), ExpertOffload(gpu_experts=0.504),
    ExpertOffload(popularity=Zipf(zipf=1.0)), ExpertOffload(popularity=Zipf(zipf=1.0), choose="least_used"),
    ExpertOffload(popularity=Zipf(zipf=1.1)), ExpertOffload(tensor_parallel=2), ExpertOffload(devices=("gpu-1",)),
    Hybrid(), Hybrid(tensor_parallel=2), Hybrid(pipeline_parallel=2), Hybrid(data_parallel=2),
    Hybrid(experts="whole"), Hybrid(microbatches=2), Hybrid(loops=2), Hybrid(cpu_layers=2),
    Hybrid(streamed_layers=2), Hybrid(streamed_layers=2, buffers=1),
]  # fmt: skip


def test_every_variant_has_a_label_of_its_own() -> None:
    labels = [strategy.label for strategy in VARIANTS]
    assert len(set(labels)) == len(labels)
    assert all(label.split()[0] == strategy.strategy for label, strategy in zip(labels, VARIANTS, strict=True))

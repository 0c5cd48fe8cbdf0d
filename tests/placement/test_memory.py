"""Accounts of memory: against a published count of KV blocks, against sums by hand, and as laws."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.graph.machine import machine_graph
from simulator.graph.shape import Chunk
from simulator.graph.work import Formats
from simulator.placement.memory import budget, refusal, split_chunks, together
from simulator.placement.placement import Placement
from simulator.placement.program import Program
from simulator.placement.strategies import (
    DataParallel,
    LayerSplit,
    PipelineParallel,
    SingleDevice,
    Strategy,
    TensorParallel,
)
from simulator.specs.catalogue import Catalogue
from simulator.specs.machine import load_machine
from tests.placed import engine, machine, model

BF16 = Formats("bf16", "bf16", "bf16")


def placed(strategy: Strategy, where: str, name: str = "llama-3.1-8b") -> Program:
    placement = strategy.place(model(name), machine(where))
    assert isinstance(placement, Placement)
    return Program(model(name), placement, machine(where), BF16)


def test_vllm_on_an_rtx_4090_reported_2588_blocks():
    """vLLM 0.19, Llama-3.1-8B in bf16 on a card of 25,250,627,584 bytes (casys-kaist/LLMServingSim@5daddb2).
    The profile's reserve was deduced from this one count, so this shows the arithmetic, not a prediction."""
    inline = {"host": "epyc-9654-2s", "devices": {"rtx-4090": 1}, "host_link": "pcie-gen4-x16"}
    graph = machine_graph(load_machine(inline, Catalogue()))
    placement = SingleDevice().place(model("llama-3.1-8b"), graph)
    assert isinstance(placement, Placement)
    account = budget(Program(model("llama-3.1-8b"), placement, graph, BF16), engine())
    gpu = next(need for need in account.needs if need.memory == "gpu-0")
    assert gpu.capacity_bytes == pytest.approx(25_250_627_584, rel=1e-4)
    assert gpu.weights_bytes == 2 * 8_030_261_248
    assert gpu.kv_block_bytes == 16 * 2 * 8 * 128 * 2 * 32
    assert account.kv_blocks == pytest.approx(2588, rel=0.03)


def test_ranks_share_weights_and_cache_evenly():
    one, four = (budget(placed(s, "hgx-h100-8"), engine()) for s in (SingleDevice(), TensorParallel(degree=4)))
    (whole,) = (need for need in one.needs if need.memory == "gpu-0")
    parts = [need for need in four.needs if need.memory.startswith("gpu")]
    norms = 65 * 4096 * 2  # every rank keeps all of them
    assert [part.kv_block_bytes * 4 for part in parts] == [whole.kv_block_bytes] * 4
    assert sum(part.weights_bytes for part in parts) == whole.weights_bytes + 3 * norms


def test_layers_take_their_weights_with_them():
    split = budget(placed(LayerSplit(gpu_layers=24), "epyc-9654-4x-l40s"), engine())
    host, gpu = (next(n for n in split.needs if n.memory == name) for name in ("host", "gpu-0"))
    layer = 2 * (4096 * (4096 + 2 * 1024) + 4096 * 4096 + 3 * 4096 * 14336 + 2 * 4096)
    table = 2 * 128256 * 4096
    assert host.weights_bytes == 8 * layer + table
    assert gpu.weights_bytes == 24 * layer + table + 2 * 4096
    assert (host.kv_block_bytes, gpu.kv_block_bytes) == (16 * 4096 * 8, 16 * 4096 * 24)


def test_an_engine_that_takes_a_share_of_what_is_free():
    """TensorRT-LLM's free_gpu_memory_fraction: 0.8 of what weights, activations and runtime leave."""
    account = budget(placed(SingleDevice(), "hgx-h100-8"), engine("tensorrt-llm"))
    (gpu,) = (need for need in account.needs if need.memory == "gpu-0")
    left = gpu.capacity_bytes - gpu.weights_bytes - gpu.activations_bytes - gpu.engine_bytes
    assert gpu.room_bytes == pytest.approx(0.8 * left, abs=1)


def test_every_loop_of_a_placement_has_its_own_activations_and_blocks():
    """Four loops of a pipeline: weights once, activations four times, a quarter of the blocks each."""
    one, four = (
        budget(placed(PipelineParallel(stages=4, loops=loops), "hgx-h100-8"), engine()) for loops in (1, 4)
    )
    for alone, shared in zip(one.needs, four.needs, strict=True):
        assert shared.weights_bytes == alone.weights_bytes
        assert shared.kv_block_bytes == alone.kv_block_bytes
        if alone.memory == "gpu-0":  # on the last stage the sampler's warm-up is more, and is done once
            assert shared.activations_bytes == 4 * alone.activations_bytes
    assert four.kv_blocks <= one.kv_blocks
    assert four.blocks_of_a_loop == four.kv_blocks // 4
    tokens = (four.blocks_of_a_loop + 1) * 16
    assert refusal(one, tokens) is None
    assert refusal(four, tokens) is not None


def test_replicas_share_nothing_but_the_host():
    """Each memory of a replica is as in a placement alone; what all put into the host's adds up."""
    strategy = DataParallel(replicas=2)
    placements = strategy.place(model("llama-3.1-8b"), machine("hgx-h100-8"))
    assert isinstance(placements, tuple)
    both = [budget(Program(model("llama-3.1-8b"), each, machine("hgx-h100-8"), BF16), engine()) for each in placements]
    account = {need.memory: need for need in together(both, engine()).needs}
    assert list(account) == ["host", "gpu-0", "gpu-1"]
    for alone in both:
        for need in alone.needs:
            if need.memory != "host":
                assert account[need.memory] == need
    hosts = [need.activations_bytes for alone in both for need in alone.needs if need.memory == "host"]
    assert account["host"].activations_bytes == sum(hosts) > 0
    assert together(both, engine()).kv_blocks == both[0].kv_blocks


def test_a_refusal_does_its_sums():
    account = budget(placed(SingleDevice(), "t4-server"), engine())
    reason = refusal(account, tokens=1000)
    assert reason is not None
    words = reason.replace(":", "").replace(",", "").split()
    needed, usable = float(words[1]), float(words[4])
    parts = [float(word) for word in words[9:] if word[0].isdigit()]
    assert needed > usable
    assert sum(parts) == pytest.approx(needed, abs=0.2)


@given(st.lists(st.integers(1, 500), min_size=1, max_size=40), st.integers(1, 6))
def test_microbatches_are_the_batch_in_order_and_none_is_empty(sizes: list[int], count: int):
    chunks = tuple(Chunk(n, 0, size, True) for n, size in enumerate(sizes))
    parts = split_chunks(chunks, count)
    assert tuple(chunk for part in parts for chunk in part) == chunks
    assert len(parts) == min(count, len(chunks))
    assert all(parts)

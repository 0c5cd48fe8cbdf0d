"""Accounts of memory: against a published count of KV blocks, against sums by hand, and as laws."""

from collections import Counter
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.graph.machine import machine_graph
from simulator.graph.model_graph import parameters_of
from simulator.graph.shape import Chunk
from simulator.graph.work import Formats
from simulator.placement.largest_step import largest_step
from simulator.placement.liveness import Liveness
from simulator.placement.memory import PASSING, budget, refusal, split_chunks, together
from simulator.placement.placement import Elsewhere, KvHome, Placement, Stage
from simulator.placement.plan import Plan
from simulator.placement.program import Program
from simulator.placement.strategies import (
    DataParallel,
    LayerSplit,
    PipelineParallel,
    SingleDevice,
    Strategy,
    TensorParallel,
)
from simulator.specs.architecture import Architecture
from simulator.specs.catalogue import Catalogue
from simulator.specs.engine import EngineMemory
from simulator.specs.machine import load_machine
from tests import tiny
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
    assert gpu.parts["weights"] == 2 * 8_030_261_248
    assert gpu.kv_block_bytes == 16 * 2 * 8 * 128 * 2 * 32
    assert account.kv_blocks == pytest.approx(2588, rel=0.03)
    parts = {name: size / 2**20 for name, size in gpu.parts.items()}
    assert set(parts) == {"weights", "activations", "engine_context", "engine_sampler"}
    warm_up = parts["activations"] + parts["engine_sampler"]
    assert warm_up == pytest.approx(256 * 128_256 * 32 / 2**20), "256 rows of logits, whatever a step takes of them"
    assert 1180 <= warm_up + parts["engine_context"] <= 1182, "what the reported count leaves beside the weights"


def test_ranks_share_weights_and_cache_evenly():
    one, four = (budget(placed(s, "hgx-h100-8"), engine()) for s in (SingleDevice(), TensorParallel(degree=4)))
    (whole,) = (need for need in one.needs if need.memory == "gpu-0")
    parts = [need for need in four.needs if need.memory.startswith("gpu")]
    norms = 65 * 4096 * 2  # every rank keeps all of them
    assert [part.kv_block_bytes * 4 for part in parts] == [whole.kv_block_bytes] * 4
    assert sum(part.parts["weights"] for part in parts) == whole.parts["weights"] + 3 * norms


def test_layers_take_their_weights_with_them():
    split = budget(placed(LayerSplit(gpu_layers=24), "epyc-9654-4x-l40s"), engine())
    host, gpu = (next(n for n in split.needs if n.memory == name) for name in ("host", "gpu-0"))
    layer = 2 * (4096 * (4096 + 2 * 1024) + 4096 * 4096 + 3 * 4096 * 14336 + 2 * 4096)
    table = 2 * 128256 * 4096
    assert host.parts["weights"] == 8 * layer + table
    assert gpu.parts["weights"] == 24 * layer + table + 2 * 4096
    assert (host.kv_block_bytes, gpu.kv_block_bytes) == (16 * 4096 * 8, 16 * 4096 * 24)


def test_an_engine_that_takes_a_share_of_what_is_free():
    """TensorRT-LLM's free_gpu_memory_fraction: 0.8 of what weights, activations and runtime leave."""
    account = budget(placed(SingleDevice(), "hgx-h100-8"), engine("tensorrt-llm"))
    (gpu,) = (need for need in account.needs if need.memory == "gpu-0")
    left = gpu.capacity_bytes - sum(gpu.parts.values())
    assert gpu.room_bytes == pytest.approx(0.8 * left, abs=1)


def test_every_loop_of_a_placement_has_its_own_activations_and_blocks():
    """Four loops of a pipeline: weights once, activations four times, a quarter of the blocks each."""
    one, four = (
        budget(placed(PipelineParallel(stages=4, loops=loops), "hgx-h100-8"), engine()) for loops in (1, 4)
    )
    for alone, shared in zip(one.needs, four.needs, strict=True):
        assert shared.parts["weights"] == alone.parts["weights"]
        assert shared.kv_block_bytes == alone.kv_block_bytes
        if alone.memory == "gpu-0":  # on the last stage the sampler's warm-up is more, and is done once
            assert shared.parts["activations"] == 4 * alone.parts["activations"]
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
    hosts = [need.parts["activations"] for alone in both for need in alone.needs if need.memory == "host"]
    assert account["host"].parts["activations"] == sum(hosts) > 0
    assert together(both, engine()).kv_blocks == both[0].kv_blocks


def test_the_parts_of_an_account_by_hand():
    """One device, one layer, eight sequences of sixteen tokens: the widest moment is that of the feed-forward part,
    where the residual stream, what is expanded (gate and up) and what is activated lie beside each other. The token
    ids come by a stream of their own, so they count as if they were still there."""
    layers = tiny.LLAMA.layers[:1]
    small = replace(tiny.LLAMA, layers=layers)
    program = tiny.program(tiny.single(1), tiny.server(1), small)
    needs = budget(program, tiny.engine(max_num_seqs=8, max_num_batched_tokens=128)).needs
    gpu = next(need for need in needs if need.memory == "gpu-0")
    per_token = 24 + 2 * 40 + 40
    assert gpu.parts["activations"] == 2 * 128 * per_token + 8 * 128
    assert "engine_sampler" not in gpu.parts
    vast = tiny.engine(max_num_seqs=8, max_num_batched_tokens=128)
    vast = vast.model_copy(update={"memory": EngineMemory(
        utilization=1.0, context_bytes=1e3, graphs_bytes=2e3, collectives_bytes=4e3, sampler_bytes_per_logit=10**4)})
    parts = next(need for need in budget(program, vast).needs if need.memory == "gpu-0").parts
    assert (parts["engine_context"], parts["engine_graphs"]) == (1000, 2000)
    assert "engine_collectives" not in parts, "one device shares no layer"
    assert parts["engine_sampler"] == 8 * 97 * 10**4 - parts["activations"]
    ranks = tiny.program(tiny.tensor_parallel(2), tiny.server(2))
    shared = {need.memory: need.parts for need in budget(ranks, vast).needs}
    assert [shared[f"gpu-{rank}"]["engine_collectives"] for rank in (0, 1)] == [4000, 4000]
    assert not any(name.startswith("engine_context") for name in shared["host"])


def test_the_engine_reserves_where_it_computes() -> None:
    """A head elsewhere takes the sampler's warm-up with it; every accelerator that computes has a context. Ranks
    with sequences of their own sample from all logits, ranks that share a head from their part of them."""
    memory = EngineMemory(utilization=1.0, context_bytes=1e3, sampler_bytes_per_logit=10**4)
    vast = tiny.engine(max_num_seqs=8, max_num_batched_tokens=128).model_copy(update={"memory": memory})

    def parts(placement: Placement, model: Architecture = tiny.LLAMA) -> dict[str, dict[str, int]]:
        needs = budget(tiny.program(placement, tiny.server(2), model), vast).needs
        return {need.memory: {**dict.fromkeys(PASSING, 0), **need.parts} for need in needs}

    def warm_up(of: dict[str, int]) -> int:
        return of["engine_sampler"] + sum(of[kind] for kind in PASSING)

    whole = 8 * 97 * 10**4
    ends = frozenset({"final_norm", "lm_head", "sample"})
    apart = parts(replace(tiny.single(), elsewhere=(Elsewhere("gpu-1", ends, frozenset({None})),)))
    assert [apart[f"gpu-{number}"]["engine_context"] for number in (0, 1)] == [1000, 1000]
    assert warm_up(apart["gpu-1"]) == whole
    assert "engine_sampler" not in apart["gpu-0"]
    ranks = parts(tiny.tensor_parallel(2))
    assert [warm_up(ranks[f"gpu-{rank}"]) for rank in (0, 1)] == [8 * 49 * 10**4] * 2
    own = replace(tiny.tensor_parallel(2), microbatches=2, whole_experts=True, by_sequence=True)
    assert [warm_up(parts(own, tiny.MIXTURE)[f"gpu-{rank}"]) for rank in (0, 1)] == [whole] * 2


def test_logits_have_a_part_of_their_own():
    """With a vocabulary that dwarfs all else, the fullest moment is when logits are sampled from."""
    program = tiny.program(tiny.single(), tiny.server(1), replace(tiny.LLAMA, vocab_size=100_000))
    needs = budget(program, tiny.engine(max_num_seqs=4, max_num_batched_tokens=16)).needs
    gpu = next(need for need in needs if need.memory == "gpu-0")
    assert gpu.parts["logits"] == 4 * 100_000 * 2


def test_weights_that_pass_through_and_caches_at_the_host():
    layer = sum(2 * p.elements for p in parameters_of(tiny.LLAMA, tiny.BF16).values() if ".0." in p.name)
    streamed = budget(tiny.program(tiny.streamed(buffers=2), tiny.server(1)), tiny.engine())
    parts = {need.memory: need.parts for need in streamed.needs}
    assert parts["gpu-0"]["fetched_weights"] == 2 * layer
    assert parts["host"]["weights"] == 4 * layer
    stages = (Stage(("gpu-0",), 0, 4),)
    for buffers in (1, 2, 3):
        away = Placement("away", stages, kv_home=KvHome("host", buffers=buffers))
        needs = {need.memory: need for need in budget(tiny.program(away, tiny.server(1)), tiny.engine()).needs}
        token = 2 * 2 * 6 * 2  # keys and values of two heads of six channels, two bytes each
        assert needs["host"].kv_block_bytes == 4 * token * 4
        assert needs["gpu-0"].kv_block_bytes == 0
        assert needs["gpu-0"].fetched_block_bytes == 4 * token * buffers


def test_what_does_not_fit_names_the_copies_of_the_cache_too():
    """A device too small for the copies: its host could keep many more blocks."""
    small = tiny.machine(tiny.node(gpus=[tiny.device(capacity=100_000)]))
    away = Placement("away", (Stage(("gpu-0",), 0, 4),), kv_home=KvHome("host"))
    account = budget(tiny.program(away, small), tiny.engine())
    host, gpu = (next(n for n in account.needs if n.memory == name) for name in ("host", "gpu-0"))
    assert account.kv_blocks == gpu.room_bytes // gpu.fetched_block_bytes < host.room_bytes // host.kv_block_bytes
    reason = refusal(account, tokens=10**6)
    assert reason is not None
    assert "fetched KV" in reason


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


@st.composite
def steps_within_limits(draw: st.DrawFn, rows: int, tokens: int) -> tuple[Chunk, ...]:
    """Decode, then prompts, as a scheduler orders them."""
    decodes = draw(st.integers(0, rows))
    left, sizes = tokens - decodes, [1] * decodes
    while left > 0 and len(sizes) < rows and (not sizes or draw(st.booleans())):
        sizes.append(draw(st.integers(1, left)))
        left -= sizes[-1]
    return tuple(Chunk(number, 0, size, True) for number, size in enumerate(sizes))


ROWS, TOKENS = 64, 128
MICROBATCHED = (
    tiny.stages(2),
    replace(tiny.streamed(), microbatches=2),
    replace(tiny.single(), microbatches=3),
)


@pytest.mark.parametrize("placement", MICROBATCHED, ids=lambda placement: placement.name)
@given(data=st.data())
def test_no_step_takes_more_than_the_largest(placement: Placement, data: st.DataObject):
    """Also where one microbatch has the rows, and with them the logits, and another one the tokens."""
    program = largest_program(placement)
    account = largest_account(placement)
    beside = (
        *(Chunk(number, 0, 1, True) for number in range(ROWS - 1)),
        Chunk(ROWS - 1, 0, TOKENS - ROWS + 1, True),
    )
    chunks = data.draw(st.just(beside) | steps_within_limits(ROWS, TOKENS))
    parts = split_chunks(chunks, placement.microbatches)
    template = program.template(len(parts))
    for memory, kinds in Liveness(template, template.tensors).most(Plan(template, parts)).items():
        assert kinds.total() <= account[memory].total(), memory


@cache
def largest_program(placement: Placement) -> Program:
    return tiny.program(placement, tiny.server(2), replace(tiny.LLAMA, vocab_size=1000))


@cache
def largest_account(placement: Placement) -> dict[str, Counter[str]]:
    limits = tiny.engine(max_num_seqs=ROWS, max_num_batched_tokens=TOKENS)
    return largest_step(largest_program(placement), limits)


def test_sliding_windows_save_no_room_for_copies_of_the_cache():
    """Sequences shorter than the window are fetched whole in every layer."""
    away = Placement("away", (Stage(("gpu-0",), 0, 4),), kv_home=KvHome("host", buffers=2))
    accounts = [
        budget(tiny.program(away, tiny.server(1), each), tiny.engine())
        for each in (tiny.LLAMA, tiny.WINDOWED)
    ]
    full, windowed = (next(need for need in each.needs if need.memory == "gpu-0") for each in accounts)
    assert windowed.fetched_block_bytes == full.fetched_block_bytes > 0


def test_loops_fetch_no_more_than_all_blocks_together():
    """The blocks are shared out among loops, so two loops fetch as much as one that has them all."""
    away = Placement("away", tiny.stages().stages, kv_home=KvHome("host"))
    one, two = (
        budget(tiny.program(each, tiny.server(2)), tiny.engine()) for each in (away, replace(away, loops=2))
    )
    for alone, shared in zip(one.needs, two.needs, strict=True):
        assert shared.fetched_block_bytes == alone.fetched_block_bytes


RESERVED = EngineMemory(
    utilization=1.0,
    context_bytes=1000.0,
    graphs_bytes=10.0,
    collectives_bytes=100.0,
    sampler_bytes_per_logit=8,
)


def reserves(placement: Placement, model: Architecture = tiny.LLAMA) -> dict[str, dict[str, int]]:
    under = tiny.engine(max_num_seqs=100, max_num_batched_tokens=100).model_copy(update={"memory": RESERVED})
    needs = budget(tiny.program(placement, tiny.server(3), model), under).needs
    return {need.memory: {k: v for k, v in need.parts.items() if k.startswith("engine")} for need in needs}


def test_every_device_that_computes_has_the_engines_context():
    """Also one that has single operators only; and the sampler's room is where tokens are chosen."""
    ends = Elsewhere("gpu-1", frozenset({"lm_head", "sample"}), frozenset({None}))
    found = reserves(replace(tiny.single(), elsewhere=(ends,)))
    assert found["gpu-0"] == {"engine_context": 1000, "engine_graphs": 10}
    assert found["gpu-1"].keys() == {"engine_context", "engine_graphs", "engine_sampler"}


def test_ranks_with_sequences_of_their_own_sample_from_the_whole_vocabulary():
    stage = (Stage(("gpu-0", "gpu-1"), 0, 4),)
    model = replace(tiny.MIXTURE, vocab_size=100_000)
    own = reserves(Placement("own", stage, 2, whole_experts=True, by_sequence=True), model)
    cut = reserves(Placement("cut", stage, whole_experts=True), model)
    assert own["gpu-1"]["engine_sampler"] == pytest.approx(100 * 100_000 * (8 - 2), rel=1e-3)
    assert cut["gpu-1"]["engine_sampler"] == pytest.approx(100 * 50_000 * (8 - 2), rel=1e-3)


def test_processors_of_two_hosts_pass_tokens_on():
    """What goes from one host's DRAM to another's holds no device's copy engine."""
    nodes = [tiny.node(name, cpu=tiny.device("cpu")) for name in ("a", "b")]
    graph = tiny.machine(*nodes, network=tiny.link("ethernet"))
    split = Placement("split", (Stage(("a.cpu",), 0, 2), Stage(("b.cpu",), 2, 2)))
    account = budget(tiny.program(split, graph), tiny.engine())
    arrived = 16 * 24 * 2  # the residual stream of a step's tokens
    assert {need.memory for need in account.needs} == {"a.host", "b.host"}
    assert all(need.parts["activations"] > arrived for need in account.needs)

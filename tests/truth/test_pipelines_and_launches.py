"""Pipelines that overlap and engines that launch kernel by kernel take what a few words of arithmetic say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from simulator.graph.machine import MachineGraph
from simulator.graph.work import Formats
from simulator.placement.placement import Placement, Stage
from simulator.placement.program import programs_of
from simulator.results.records import RunRecord
from simulator.simulation.serve import serve
from simulator.specs.architecture import Architecture, Attention, LayerSpec, Mlp
from simulator.specs.engine import Engine, Launch
from tests import tiny

# Only matmuls cost time: they run in fp8 at a finite rate, everything else in bf16 at no cost to speak of.
FREE = 1e30
FORMATS = Formats("fp8", "bf16", "bf16")
LAYER = LayerSpec(Attention(1, 1, 2, scale=1.0), Mlp(2, "silu", gated=True))
FLOPS_PER_TOKEN = 2 * (3 * 2 * 2 + 2 * 2 + 2 * 2 * 2 + 2 * 2)  # qkv, o, gate and up, down of one layer
RATE = 1e9
PROMPT = 100_000


def model(layers: int) -> Architecture:
    return Architecture(name="linear", family="llama", hidden_size=2, vocab_size=1, norm="rms", norm_eps=1e-5,
                        max_position_embeddings=10**9, layers=(LAYER,) * layers)  # fmt: skip


def graph(gpus: int) -> MachineGraph:
    devices = [tiny.device(compute={"fp8": RATE, "bf16": FREE}, bandwidth=FREE)] * gpus
    link = tiny.link(bandwidth=FREE, latency_s=0.0)
    return tiny.machine(tiny.node(gpus=devices, host_link=link, interconnect=link, dram=FREE))


def one_step(
    placement: Placement, layers: int, prompts: Sequence[int], engine: Engine, outputs: int = 1,
    fidelity: str = "fast",
) -> RunRecord:  # fmt: skip
    """All prompts at once, in one step."""
    programs = programs_of(model(layers), (placement,), graph(len(placement.devices)), FORMATS, engine.is_eager)
    rows = tiny.requests(*((0.0, prompt, outputs) for prompt in prompts))
    return serve(programs, engine, 10_000, tiny.source(rows), fidelity)


def engine(sequences: int = 1, step_s: float = 0.0, launch_s: float = 0.0, graphs: str = "none") -> Engine:
    plain = tiny.engine(step_s=step_s, max_num_seqs=sequences, max_num_batched_tokens=10**8, kv_block_tokens=1000)
    return plain.model_copy(update={"launch": Launch.model_validate({"kernel": launch_s, "graphs": graphs})})


# --- pipelines ----------------------------------------------------------------------------------------------


def pipeline(stages: int, microbatches: int, layers: int) -> Placement:
    each = layers // stages
    parts = tuple(Stage((f"gpu-{stage}",), stage * each, each) for stage in range(stages))
    return Placement("pipeline", parts, microbatches)


@pytest.mark.parametrize("fidelity", ["task", "fast"])
@pytest.mark.parametrize("stages", [1, 2, 4])
@pytest.mark.parametrize("microbatches", [1, 2, 3, 8])
def test_a_pipeline_overlaps_all_but_its_filling_and_draining(stages: int, microbatches: int, fidelity: str) -> None:
    """Of m microbatches through s equal stages the last leaves after m + s - 1 turns, where one device needs
    m s (Huang et al. 2019, arXiv 1811.06965, section 2.3)."""
    layers, m, s = 4, microbatches, stages
    record = one_step(pipeline(s, m, layers), layers, [PROMPT] * m, engine(sequences=m), fidelity=fidelity)
    serial_s = m * layers * PROMPT * FLOPS_PER_TOKEN / RATE
    took_s = max(request.last_token_s - request.scheduled_s for request in record.requests)
    assert took_s == pytest.approx(serial_s * (m + s - 1) / (m * s), rel=1e-4)


@pytest.mark.parametrize("loops", [1, 2, 3, 4])
def test_loops_overlap_as_microbatches_do(loops: int) -> None:
    """As many batches in flight: the same turns."""
    stages, layers = 4, 4
    placement = replace(pipeline(stages, 1, layers), loops=loops)
    record = one_step(placement, layers, [PROMPT] * loops, engine(sequences=1))
    turn_s = layers // stages * PROMPT * FLOPS_PER_TOKEN / RATE
    assert record.end_s - record.start_s == pytest.approx((loops + stages - 1) * turn_s, rel=1e-4)


def test_the_slowest_stage_sets_the_pace() -> None:
    """Three layers and one: each microbatch keeps the first stage busy three times as long."""
    parts = (Stage(("gpu-0",), 0, 3), Stage(("gpu-1",), 3, 1))
    record = one_step(Placement("uneven", parts, 5), 4, [PROMPT] * 5, engine(sequences=5))
    layer_s = PROMPT * FLOPS_PER_TOKEN / RATE
    took_s = max(request.last_token_s - request.scheduled_s for request in record.requests)
    assert took_s == pytest.approx((5 * 3 + 1) * layer_s, rel=1e-4)


# --- launches -----------------------------------------------------------------------------------------------

KERNELS_PER_LAYER = 14  # two norms, qkv, rotary, attention of prompts and of decode, o, up, activation, down;
# and one to bring what each of the four products multiplies to 8 bits
KERNELS_AT_THE_ENDS = 4  # embedding, norm, head, sampling
STEP_S = 3e-6


def launches_s(layers: int, launch_s: float) -> float:
    return (KERNELS_PER_LAYER * layers + KERNELS_AT_THE_ENDS) * launch_s


@pytest.mark.parametrize("fidelity", ["task", "fast"])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("share", [1e-6, 0.1, 0.999, 1.001, 10.0])
def test_an_eager_step_takes_the_longer_of_launching_and_computing(share: float, layers: int, fidelity: str) -> None:
    """The launches of one pass take `share` of what the device computes; the thread prepares the step first."""
    computing_s = layers * PROMPT * FLOPS_PER_TOKEN / RATE
    launch_s = computing_s * share / launches_s(layers, 1.0)
    placement = pipeline(1, 1, layers)
    record = one_step(placement, layers, [PROMPT], engine(1, STEP_S, launch_s), fidelity=fidelity)
    (request,) = record.requests
    expected_s = STEP_S + max(computing_s, launches_s(layers, launch_s))
    assert request.last_token_s - request.scheduled_s == pytest.approx(expected_s, rel=1e-5)


@pytest.mark.parametrize(("graphs", "is_launched"), [("none", True), ("decode", False), ("all", False)])
def test_with_graphs_decode_is_launched_at_once(graphs: str, is_launched: bool) -> None:
    """A decoded token computes next to nothing, so launches decide, if there are any."""
    launch_s, layers = 5e-6, 3
    record = one_step(pipeline(1, 1, layers), layers, [8], engine(1, STEP_S, launch_s, graphs), outputs=4)
    (request,) = record.requests
    gap_s = (request.last_token_s - request.first_token_s) / 3
    one_token_s = layers * FLOPS_PER_TOKEN / RATE
    expected_s = STEP_S + (launches_s(layers, launch_s) if is_launched else one_token_s)
    assert gap_s == pytest.approx(expected_s, rel=0.01)


def test_a_prompt_is_launched_kernel_by_kernel_also_where_decode_has_graphs() -> None:
    launch_s, layers = 5e-6, 3
    firsts = []
    for graphs in ("none", "decode", "all"):
        record = one_step(pipeline(1, 1, layers), layers, [8], engine(1, STEP_S, launch_s, graphs))
        firsts.append(record.requests[0].last_token_s - record.requests[0].scheduled_s)
    assert firsts[0] == firsts[1] == pytest.approx(STEP_S + launches_s(layers, launch_s), rel=0.01)
    assert firsts[2] == pytest.approx(STEP_S + 8 * layers * FLOPS_PER_TOKEN / RATE, rel=0.01)


def test_stages_of_a_pipeline_launch_side_by_side() -> None:
    """Each from a thread of its own, from the moment the step was prepared: with launches alone to wait for, two
    stages take half of what one does."""
    launch_s, layers = 1e-3, 8
    one, two = (
        one_step(pipeline(stages, 1, layers), layers, [8], engine(1, 0.0, launch_s)).requests[0] for stages in (1, 2)
    )
    ends = KERNELS_AT_THE_ENDS - 1  # the second stage scores and samples, the first one embeds
    second_s = (KERNELS_PER_LAYER * layers / 2 + ends) * launch_s
    assert one.last_token_s - one.scheduled_s == pytest.approx(launches_s(layers, launch_s), rel=1e-3)
    assert two.last_token_s - two.scheduled_s == pytest.approx(second_s, rel=1e-3)


@pytest.mark.parametrize("order", [("cpu", "gpu-0"), ("gpu-0", "cpu")])
def test_a_processor_takes_turns_with_the_launches_of_a_device(order: tuple[str, str]) -> None:
    """One thread calls the operators of the processor's layers, and launches those of the device."""
    launch_s, layers, tokens = 1e-4, 8, 100_000
    parts = tuple(Stage((device,), half * layers // 2, layers // 2) for half, device in enumerate(order))
    cpu = tiny.device("cpu", compute={"fp8": RATE, "bf16": FREE}, bandwidth=FREE)
    gpu = tiny.device(compute={"fp8": FREE, "bf16": FREE}, bandwidth=FREE)
    link = tiny.link(bandwidth=FREE, latency_s=0.0)
    machine = tiny.machine(tiny.node(gpus=[gpu], cpu=cpu, host_link=link, dram=FREE))
    eager = engine(1, STEP_S, launch_s)
    programs = programs_of(model(layers), (Placement("split", parts, 1),), machine, FORMATS, eager.is_eager)
    (request,) = serve(programs, eager, 10_000, tiny.source(tiny.requests((0.0, tokens, 1))), "task").requests
    of_processor_s = tokens * layers / 2 * FLOPS_PER_TOKEN / RATE
    at_the_end = KERNELS_AT_THE_ENDS - 1 if order[-1] == "gpu-0" else 2  # or embeds, and adds the open branch
    of_launches_s = (KERNELS_PER_LAYER * layers / 2 + at_the_end) * launch_s
    assert of_processor_s > 0.05 * of_launches_s
    expected_s = STEP_S + of_processor_s + of_launches_s
    assert request.last_token_s - request.scheduled_s == pytest.approx(expected_s, rel=1e-4)

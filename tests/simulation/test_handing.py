"""Prefill here, decode there, on the clock: to the tick by hand, and alike in every fidelity."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.placement.placement import Placement, Stage
from simulator.placement.program import Program, programs_of
from simulator.placement.strategies.disaggregated import Disaggregated
from simulator.results.records import RequestRecord, RunRecord
from simulator.serving.routing import routing
from simulator.simulation.serve import Serving, serve
from simulator.simulation.ticks import seconds, tick
from tests import tiny
from tests.placed import FLOAT64, machine, model

STAGES = {"receive_s": 3e-6, "tokenize_s": 2e-7, "detokenize_s": 5e-7, "send_s": 3e-7}
LAYERS, BYTES_PER_TOKEN_AND_LAYER = 4, 2 * 2 * 6 * 2
"""Keys and values of two heads of six bf16 numbers."""
BANDWIDTH, LATENCY_S = 1e8, 1e-6


def on(device: str, role: Any = "both") -> Placement:
    return Placement("by hand", (Stage((device,), 0, LAYERS),), role=role)


def two_devices() -> Any:
    """So quick that copies take most of the time."""
    quick = tiny.device(flops=1e12, bandwidth=1e12)
    return tiny.machine(tiny.node(gpus=[quick, quick], host_link=tiny.link("pcie", BANDWIDTH, LATENCY_S), dram=None))


def record_of(placements: tuple[Placement, ...], rows: list[tuple[float, int, int]], **scheduler: Any) -> RunRecord:
    programs = programs_of(tiny.LLAMA, placements, two_devices(), tiny.BF16)
    settings_ = {"max_num_batched_tokens": 25} | scheduler
    return serve(programs, tiny.engine(**settings_), 100, tiny.source(tiny.requests(*rows)), "task")


def both_ways(rows: list[tuple[float, int, int]]) -> tuple[RunRecord, RunRecord]:
    apart = record_of((on("gpu-0", "prefill"), on("gpu-1", "decode")), rows)
    return record_of((on("gpu-0"),), rows[:1]), apart


COPY_S = LAYERS * (25 * BYTES_PER_TOKEN_AND_LAYER / BANDWIDTH + 2 * LATENCY_S)
"""Layer after layer, out over one link and in over another, at once: 4 x (12 us + 2 us)."""


def ticks(first: float, second: float) -> int:
    return tick(second) - tick(first)


def test_a_request_by_hand():
    """A prompt of 25 tokens takes 1,200 bytes in each layer. The first token comes as from one device; the
    second when all is copied, a tick has told so, and a step has been made."""
    assert tick(COPY_S) == 56_000_000
    alone, apart = both_ways([(0.0, 25, 2)])
    one, other = alone.requests[0], apart.requests[0]
    assert other.first_token_s == one.first_token_s
    assert other.ttft_s == one.ttft_s
    step = ticks(one.first_token_s, one.last_token_s)
    assert ticks(other.first_token_s, other.last_token_s) == tick(COPY_S) + 1 + step
    gap = ticks(one.first_received_s, one.last_received_s)
    assert [tick(each) for each in apart.gaps_s] == [gap + tick(COPY_S) + 1]
    assert apart.time_s["transfer"] - alone.time_s["transfer"] == pytest.approx(COPY_S)
    sent = {link: apart.link_bytes[link] - 8 * count for link, count in (("gpu-0->host", 1), ("host->gpu-1", 1))}
    assert sent == dict.fromkeys(sent, 25 * LAYERS * BYTES_PER_TOKEN_AND_LAYER)


SHARED = 80_000
"""A token id takes 8 bytes over a link of 100 MB/s; it and a copy beside it end 80 ns later."""


def test_a_second_transfer_waits_for_the_first_and_no_loop_for_either():
    """The second prompt is read while the first is copied; copies follow each other, and the first request is
    answered while the second is copied. Its first id goes beside the first copy, and what is decoded goes to the
    device while the second one's first bytes are still on their way (2 us)."""
    alone, apart = both_ways([(0.0, 25, 2), (0.0, 25, 2)])
    step = ticks(alone.requests[0].first_token_s, alone.requests[0].last_token_s)
    read = ticks(0.0, alone.requests[0].first_token_s)
    assert read + step < tick(COPY_S)
    first, second = apart.requests
    assert ticks(first.first_token_s, second.first_token_s) == read + SHARED
    assert ticks(first.first_token_s, first.last_token_s) == tick(COPY_S) + SHARED + 1 + step
    assert ticks(first.first_token_s, second.last_token_s) == 2 * tick(COPY_S) + SHARED + 1 + step


def test_what_waits_for_room_is_charged_as_waiting():
    """One place to decode: the second request waits until the first is answered."""
    rows = [(0.0, 25, 12), (0.0, 25, 2)]
    plenty = record_of((on("gpu-0", "prefill"), on("gpu-1", "decode")), rows)
    programs = programs_of(tiny.LLAMA, (on("gpu-0", "prefill"), on("gpu-1", "decode")), two_devices(), tiny.BF16)
    tight = serve(programs, tiny.engine(max_num_batched_tokens=25), {"prefill": 100, "decode": 10},
                  tiny.source(tiny.requests(*rows)), "task")  # fmt: skip
    assert tight.requests[1].last_token_s > tight.requests[0].last_token_s
    assert tight.requests[1].first_token_s == plenty.requests[1].first_token_s
    assert tight.time_s["waiting"] > plenty.time_s["waiting"]
    assert tight.time_s["transfer"] == pytest.approx(plenty.time_s["transfer"], rel=0.05)
    assert sum(tight.time_s.values()) == pytest.approx(sum(r.e2e_s for r in tight.requests))


# --- the law ------------------------------------------------------------------------------------------------

PLACED = {
    "one and one": ("epyc-9654-4x-l40s", {}),
    "ranks to one": ("epyc-9654-4x-l40s", {"prefill": {"tensor_parallel": 2}}),
    "two to two": ("epyc-9654-4x-l40s", {"prefill": {"replicas": 2}, "decode": {"replicas": 2}}),
    "one to stages of ranks": ("hgx-h100-8", {"decode": {"tensor_parallel": 2, "pipeline_parallel": 2}}),
    "over a network": ("cpu-gpu-nr1", {"prefill": {"devices": ["x86.gpu-0"]}, "decode": {"replicas": 2}}),
    "behind one uplink": ("nr1-4x-l40s", {"prefill": {"replicas": 2}, "decode": {"tensor_parallel": 2}}),
}  # fmt: skip


def programs(name: str, what: str = "tiny-llama") -> tuple[Program, ...]:
    where, fields = PLACED[name]
    found = Disaggregated.model_validate(fields).place(model(what), machine(where))
    assert isinstance(found, tuple), found
    return programs_of(model(what), found, machine(where), FLOAT64)


def rows_of(rng: np.random.Generator, count: int, slowest: float) -> list[tuple[float, int, int]]:
    gaps_s = rng.exponential(scale=10 ** rng.uniform(-5.5, slowest), size=count)
    return [(float(at), int(rng.integers(1, 30)), int(rng.integers(1, 12))) for at in gaps_s.cumsum()]


def run(
    placed: tuple[Program, ...], seed: int, fidelity: str, users: int | None = None, timeout_s: float | None = None,
    rule: str = "least_loaded", **scheduler: Any,
) -> RunRecord:  # fmt: skip
    rng = np.random.default_rng(seed)
    engine = tiny.engine(step_s=4e-6, per_sequence_s=3e-7, stages=STAGES, **scheduler)
    room = {"prefill": int(rng.integers(8, 16)), "decode": int(rng.integers(11, 22))}
    rows = tiny.requests(*rows_of(rng, 12, -3.0))
    return serve(placed, engine, room, tiny.source(rows, users), fidelity, cores=2, make_router=routing(rule, seed),
                 timeout_s=timeout_s)  # fmt: skip


@pytest.mark.parametrize("name", PLACED)
def test_all_fidelities_end_everything_at_the_same_tick(name: str) -> None:
    placed, preemptions = programs(name), 0
    for seed in range(4):
        users = None if seed % 2 else 3
        by_task, by_step, fast = (run(placed, seed, each, users) for each in ("task", "step", "fast"))
        assert tiny.facts(by_task) == tiny.facts(by_step)
        assert tiny.facts(by_task) == tiny.facts(fast)
        assert by_task.event_steps == by_task.step_count
        assert all(request.status == "finished" for request in fast.requests)
        preemptions += fast.preemptions
    assert preemptions, "workloads must reach preemption too"


@pytest.mark.parametrize("rule", ["round_robin", "two_choices", "prefix_aware"])
@pytest.mark.parametrize("scheduler", [
    {"prefix_caching": True}, {"policy": "prefill_first"}, {"policy": "static_batch"}, {"full_reservation": True},
], ids=str)  # fmt: skip
def test_the_law_under_other_rules_and_policies(rule: str, scheduler: dict[str, Any]) -> None:
    placed = programs("two to two")
    records = [run(placed, 5, each, rule=rule, **scheduler) for each in ("task", "step", "fast")]
    assert tiny.facts(records[0]) == tiny.facts(records[1]) == tiny.facts(records[2])


@pytest.mark.parametrize("name", ["one and one", "over a network"])
@pytest.mark.parametrize("timeout_s", [3e-4, 1e-3, 3e-3])
def test_clients_may_give_up_at_any_stage(name: str, timeout_s: float) -> None:
    placed = programs(name)
    failed = 0
    for seed in range(3):
        records = [run(placed, seed, each, timeout_s=timeout_s) for each in ("task", "step", "fast")]
        assert tiny.facts(records[0]) == tiny.facts(records[1]) == tiny.facts(records[2])
        failed += sum(request.status == "failed" for request in records[0].requests)
    assert failed


# --- no leak, no deadlock -----------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6), st.sampled_from(["one and one", "two to two", "over a network"]), st.integers(1, 16),
    st.integers(1, 20), st.sampled_from([None, 2e-4, 1e-3]), st.booleans(), st.integers(1, 4),
)  # fmt: skip
def test_all_requests_come_to_an_end_and_all_blocks_back(
    seed: int, name: str, prefill: int, decode: int, timeout_s: float | None, caching: bool, most: int
) -> None:
    rng, placed = np.random.default_rng(seed), programs(name)
    engine = tiny.engine(stages=STAGES, prefix_caching=caching, max_num_seqs=most)
    rows = tiny.requests(*rows_of(rng, 10, -3.0))
    serving = Serving(placed, engine, {"prefill": prefill, "decode": decode}, tiny.source(rows)(), "fast", 2,
                      timeout_s=timeout_s)  # fmt: skip
    record = serving.run()
    assert len(record.requests) == len(rows)
    assert all(life.status != "failed" or life.gave_up for life in serving.lives.values()), "nobody is forgotten"
    fits = [-(-r.prompt_tokens // 4) <= prefill and -(-(r.prompt_tokens + r.output_tokens) // 4) <= decode for r in rows]
    rejected = [request.status == "rejected" for request in record.requests]
    if timeout_s is None:
        assert rejected == [not fit for fit in fits]
    for loop in serving.loops:
        assert loop.scheduler.pool.free_count == loop.scheduler.pool.count
        assert not (loop.lives or loop.scheduler.waiting_count or loop.scheduler.running_count)
    times = [*record.requests]
    assert all(_in_order(each) for each in times if each.status == "finished")


def _in_order(request: RequestRecord) -> bool:
    moments = request.sent_s, request.queued_s, request.scheduled_s, request.first_token_s, request.last_token_s
    return list(moments) == sorted(moments) and seconds(tick(request.last_token_s)) == request.last_token_s


TIGHT = """
name: pools whose loops are alone
model: tiny-llama
machine: hgx-h100-8
engine: vllm
scheduler: {{max_num_seqs: 8, max_num_batched_tokens: 64, kv_block_tokens: 4, overlap: {overlap}, order: priority}}
kv_blocks: {blocks}
precision: {{weights: fp32, activations: fp32, kv_cache: fp32}}
placements: [{{strategy: disaggregated, prefill: {{replicas: 2}}}}]
bands: false
fidelity: [fast, step, task]
workload:
  arrivals: {{process: poisson, rate: {rate} req/s}}
  lengths: {{prompt: 3..30, output: 20..32}}
  requests: 20
seed: {seed}
"""


@pytest.mark.parametrize(("overlap", "blocks", "rate", "seed"), [("false", 16, 100, 3), ("true", 500, 400, 1), ("true", 20, 300, 2)])
def test_loops_of_a_board_agree_too(tmp_path, overlap, blocks, rate, seed):
    """Where streams and links are nobody else's, a decode loop could go ahead; others keep blocks in it."""
    from simulator.study.run import run_scenario

    path = tmp_path / "tight.yaml"
    path.write_text(TIGHT.format(overlap=overlap, blocks=blocks, rate=rate, seed=seed))
    rows = [run.as_dict() for run in run_scenario(path, workers=1).runs]
    for row in rows:
        for key in ("fidelity", "axes", "event_steps", "shared_links"):
            del row[key]
    assert rows[0] == rows[1] == rows[2]

"""Policies, preemption by swapping and kept prefixes, carried out on a real transformer: the same tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from simulator.placement.placement import Placement
from simulator.placement.strategies import Disaggregated
from simulator.serving.arrivals import Request
from simulator.specs.workload import Workload
from simulator.study.compare import Verified, compare
from simulator.study.deploy import reset
from simulator.study.verify import made_scarce, simulate_for_replay
from tests.placed import SHARING, deployed, machine, model, stages

GIB = 2**30
WORKLOAD = Workload.model_validate({"arrivals": {"process": "batch"}, "lengths": {"prompt": 8, "output": 8}, "requests": 1})
REQUESTS = SHARING

PLACEMENTS = {
    "one device": Placement("one device", stages(("gpu-0", 4))),
    "two ranks": Placement("two ranks", stages(("gpu-0+gpu-1", 4))),
    "two loops": Placement("two loops", stages(("gpu-0", 2), ("gpu-1", 2)), loops=2),
    "two microbatches": Placement("two microbatches", stages(("gpu-0", 1), ("gpu-1+gpu-2", 3)), 2),
}

GROWING = tuple(Request(number, 0.0, 5, 18) for number in range(7))
"""Short prompts and long answers: blocks run out while they decode."""


def carried_out(
    placement: str, scheduler: Mapping[str, Any], host: bool, model: str = "tiny-llama",
    requests: tuple[Request, ...] = REQUESTS,
) -> Verified:
    found = deployed(PLACEMENTS[placement], model)
    engine = reset(found.engine, {"prefix_caching": False, **scheduler}, {"host_kv_bytes": float(GIB)} if host else {})
    scarce, room = made_scarce(engine, requests, found.programs)
    simulated = simulate_for_replay(replace(found, engine=scarce), requests, room, WORKLOAD)
    return compare(Verified("machine", model, placement, "not placed"), simulated, requests, scarce, room, seed=3)


def check(row: Verified) -> None:
    assert row.mismatches == ()
    assert row.status == "ok"


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("policy", ["continuous_batching", "prefill_first", "static_batch"])
def test_swapped_sequences_go_on_as_if_nothing_had_been(placement, policy):
    row = carried_out(placement, {"policy": policy, "preemption": "swap"}, host=True, requests=GROWING)
    check(row)
    assert row.preemptions > 0
    assert row.moved_tokens > 0


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("order", ["fcfs", "priority", "shortest_first"])
def test_kept_prefixes_are_what_would_have_been_computed(placement, order):
    row = carried_out(placement, {"order": order, "prefix_caching": True}, host=False)
    check(row)
    assert row.reused_tokens > 0
    assert row.moved_tokens == 0


@pytest.mark.parametrize("placement", ["one device", "two ranks"])
@pytest.mark.parametrize("preemption", ["recompute", "swap"])
@pytest.mark.parametrize("model", ["tiny-mistral", "tiny-deepseek-v2"])
def test_prefixes_come_back_from_host_memory(placement, preemption, model):
    """Also those of a sliding window and of latent attention."""
    row = carried_out(placement, {"prefix_caching": True, "preemption": preemption, "max_num_seqs": 2}, True, model)
    check(row)
    assert row.reused_tokens > 0
    assert row.moved_tokens > 0


def test_a_copy_left_out_shows(monkeypatch):
    """If swapped blocks did not come back, tokens would differ."""
    from simulator.execution.interpreter import Interpreter

    def forget(self, move, chunks):
        return () if move.target.name.endswith(".host") else hand_over(self, move, chunks)

    hand_over = Interpreter._hand_over
    monkeypatch.setattr(Interpreter, "_hand_over", forget)
    row = carried_out("one device", {"preemption": "swap"}, host=True)
    assert row.status == "mismatch"
    assert any("logits differ" in each or "tokens of sequences" in each for each in row.mismatches)


# -- prefill and decode apart -----------------------------------------------------------------------------------

APART = {
    "one and one": {},
    "ranks to two": {"prefill": {"tensor_parallel": 2}, "decode": {"replicas": 2}},
    "two to stages": {"prefill": {"replicas": 2}, "decode": {"pipeline_parallel": 2}},
}


def handed_over(pools: str, scheduler: Mapping[str, Any], model_name: str = "tiny-llama") -> Verified:
    placements = Disaggregated.model_validate(APART[pools]).place(model(model_name), machine())
    assert isinstance(placements, tuple)
    found = deployed(placements[0], model_name, *placements[1:])
    scarce, room = made_scarce(reset(found.engine, {"prefix_caching": False, **scheduler}, {}), REQUESTS, found.programs)
    simulated = simulate_for_replay(replace(found, engine=scarce), REQUESTS, room, WORKLOAD)
    return compare(Verified("machine", model_name, pools, "not placed"), simulated, REQUESTS, scarce, room, seed=3)


@pytest.mark.parametrize("pools", APART)
@pytest.mark.parametrize(
    "scheduler",
    [{"order": "priority"}, {"policy": "prefill_first"}, {"policy": "static_batch"}, {"prefix_caching": True}],
    ids=str,
)
def test_sequences_go_on_elsewhere_as_if_nothing_had_been(pools, scheduler):
    """Under every policy; what is kept of a prefix is handed over like what was computed."""
    row = handed_over(pools, scheduler)
    check(row)
    assert row.moved_tokens == sum(request.prompt_tokens for request in REQUESTS)
    assert bool(row.reused_tokens) == ("prefix_caching" in scheduler)


@pytest.mark.parametrize("model_name", ["tiny-mistral", "tiny-deepseek-v2", "tiny-mixtral"])
def test_windows_latent_attention_and_experts_are_handed_over_too(model_name):
    row = handed_over("ranks to two", {}, model_name)
    check(row)
    assert row.preemptions > 0


def test_a_layer_that_is_not_handed_over_shows(monkeypatch):
    from simulator.execution.interpreter import Interpreter

    def forget(self, move, chunks):
        return () if move.target.layer == 2 else hand_over(self, move, chunks)

    hand_over = Interpreter._hand_over
    monkeypatch.setattr(Interpreter, "_hand_over", forget)
    row = handed_over("one and one", {})
    assert row.status == "mismatch"
    assert any("logits differ" in each or "tokens of sequences" in each for each in row.mismatches)
    assert any("bytes over" in each for each in row.mismatches)

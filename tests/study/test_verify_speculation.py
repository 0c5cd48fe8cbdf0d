"""Speculative decoding carried out on real transformers: the plain model's tokens, whatever was proposed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from simulator.placement.placement import Placement
from simulator.placement.strategies import Speculative
from simulator.serving.speculation import KnownAcceptance, SpeculatingScheduler
from simulator.specs.workload import Workload
from simulator.study.compare import ROUNDS, Room, Verified, compare, known_acceptance
from simulator.study.deploy import reset
from simulator.study.verify import made_scarce, simulate_for_replay
from tests.placed import SHARING, deployed, machine, model

WORKLOAD = Workload.model_validate(
    {"arrivals": {"process": "batch"}, "lengths": {"prompt": 8, "output": 8}, "requests": 1}
)
REQUESTS = SHARING


def carried_out(
    name: str, draft: str, proposed: int, scheduler: Mapping[str, Any] | None = None, seed: int = 3,
    blocks: int | None = None, timeout_s: float | None = None, **places: Any,
) -> Verified:  # fmt: skip
    strategy = Speculative(draft=draft, draft_tokens=proposed, acceptance=0.7, **places)
    placement = strategy.place(model(name), machine())
    assert isinstance(placement, Placement), placement
    found = deployed(placement, name)
    engine = reset(found.engine, scheduler or {}, {})
    scarce, room = made_scarce(engine, REQUESTS, found.programs)
    room = room if blocks is None else Room(blocks)
    workload = WORKLOAD.model_copy(update={"timeout_s": timeout_s})
    oracle = known_acceptance(found.program, REQUESTS, seed)
    simulated = simulate_for_replay(replace(found, engine=scarce), REQUESTS, room, workload, acceptance=oracle)
    blank = Verified("machine", name, placement.name, "not placed")
    return compare(blank, simulated, REQUESTS, scarce, room, seed)


def check(row: Verified) -> None:
    assert row.mismatches == ()
    assert row.status == "ok"
    assert row.tokens == sum(request.output_tokens for request in REQUESTS)


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gpt2", "tiny-mistral", "tiny-gemma2", "tiny-mixtral", "tiny-deepseek-v2"])
def test_rounds_in_which_all_some_and_no_proposals_are_accepted(name: str) -> None:
    """The drafter is the model with some noise in its weights, so it is often right and often wrong."""
    row = carried_out(name, name, 3)
    check(row)
    assert row.rounds == ROUNDS


@pytest.mark.parametrize("places", [
    {"tensor_parallel": 2}, {"draft_devices": ("cpu",)}, {"devices": ("cpu",)},
    {"tensor_parallel": 2, "draft_devices": ("gpu-2", "gpu-3")}, {"tensor_parallel": 4, "draft_devices": ("gpu-1",)},
], ids=str)  # fmt: skip
def test_both_models_on_any_devices(places: Mapping[str, Any]) -> None:
    row = carried_out("tiny-llama", "tiny-llama", 2, **places)
    check(row)
    assert row.rounds == ROUNDS


@pytest.mark.parametrize("policy", ["continuous_batching", "prefill_first", "static_batch"])
@pytest.mark.parametrize("order", ["fcfs", "priority", "shortest_first"])
def test_every_policy(policy: str, order: str) -> None:
    check(carried_out("tiny-llama", "tiny-llama", 3, {"policy": policy, "order": order}))


def test_kept_prefixes_hold_the_drafters_part_too() -> None:
    row = carried_out("tiny-llama", "tiny-llama", 4, {"prefix_caching": True})
    check(row)
    assert row.reused_tokens > 0
    assert row.rounds == ROUNDS


@pytest.mark.parametrize("prefix_caching", [False, True])
def test_preempted_sequences_compute_for_both_models_again(prefix_caching: bool) -> None:
    row = carried_out("tiny-llama", "tiny-llama", 3, {"prefix_caching": prefix_caching}, blocks=10)
    check(row)
    assert row.preemptions > 2
    assert row.rounds == ROUNDS


def test_clients_that_give_up() -> None:
    """The answers of the others are what they would have been."""
    row = carried_out("tiny-llama", "tiny-llama", 3, timeout_s=0.02)
    assert row.mismatches == ()
    assert 0 < row.tokens < sum(request.output_tokens for request in REQUESTS)


def test_a_drafter_that_is_always_right(monkeypatch: pytest.MonkeyPatch) -> None:
    from simulator.execution import replay

    monkeypatch.setattr(replay, "DRAFTER_NOISE", 0.0)
    row = carried_out("tiny-llama", "tiny-llama", 3)
    check(row)
    assert row.rounds == ("all accepted",)


def test_a_drafter_that_knows_nothing_of_the_model() -> None:
    check(carried_out("tiny-gpt2", "tiny-llama", 2))


def test_a_token_that_the_drafter_has_not_seen_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a round in which all was accepted, the drafter lacks a token. If it were not made up for, its
    proposals would be others than those that the clock was told of."""
    decoded = SpeculatingScheduler._decoded

    def forget(self, step, accepted):
        found = decoded(self, step, accepted)
        for sequence in self._running.values():
            sequence.lag = 0
        return found

    monkeypatch.setattr(SpeculatingScheduler, "_decoded", forget)
    assert carried_out("tiny-llama", "tiny-llama", 3).status == "mismatch"


def test_a_wrong_account_of_what_is_accepted_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    accepted = KnownAcceptance.accepted
    monkeypatch.setattr(KnownAcceptance, "accepted", lambda self, each: min(1, accepted(self, each)))
    assert carried_out("tiny-llama", "tiny-llama", 3).status == "mismatch"

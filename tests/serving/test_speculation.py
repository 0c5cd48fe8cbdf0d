"""Rounds of proposals: schedules worked by hand, what is drawn, and what holds under any workload."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.graph.shape import PLAIN, StepShape
from simulator.serving.actions import Verification
from simulator.serving.arrivals import Request, content_of
from simulator.serving.speculation import (
    Acceptance,
    DrawnAcceptance,
    KnownAcceptance,
    SpeculatingScheduler,
    draft_passes,
)
from tests import tiny
from tests.serving.shadow import ShadowCache, token_of
from tests.serving.test_laws import asked, rules

K = 3


def scheduler(blocks: int = 100, proposed: int = K, **changes: Any) -> SpeculatingScheduler:
    return SpeculatingScheduler(tiny.scheduler_settings(**changes), blocks, proposed)


def played(found: SpeculatingScheduler, probability: float) -> list[str]:
    """Each step as `sequence:cached+new`, the drafter's passes before it in brackets, and what it committed."""
    lines, oracle = [], DrawnAcceptance(probability, seed=0)
    while (step := found.decide()) is not None:
        passes = ["(" + " ".join(f"{c.sequence}:{c.context}+{c.new}" for c in each) + ")" for each in draft_passes(step)]
        chunks = [f"{c.sequence}:{c.context}+{c.new}" for c in found.chunks()]
        done = found.complete(step, [oracle.accepted(each) for each in step.verifications])
        lines.append(" ".join([*passes, *chunks, "->", str(done.token_count)]))
    return lines


def test_nothing_is_accepted():
    """Every round brings the model's own token; the last one is not worth a proposal."""
    found = scheduler()
    assert found.add(0, prompt_tokens=5, output_tokens=5)
    assert played(found, 0.0) == [
        "(0:0+5) 0:0+5 -> 1",
        "(0:5+1) (0:6+1) (0:7+1) 0:5+4 -> 1",
        "(0:6+1) (0:7+1) 0:6+3 -> 1",  # three are left, so only two can be of use
        "(0:7+1) 0:7+2 -> 1",
        "0:8+1 -> 1",
    ]


def test_all_is_accepted():
    """A round brings four tokens; the drafter has not seen the last one it proposed, and begins with two."""
    found = scheduler()
    assert found.add(0, prompt_tokens=5, output_tokens=10)
    assert played(found, 1.0) == [
        "(0:0+5) 0:0+5 -> 1",
        "(0:5+1) (0:6+1) (0:7+1) 0:5+4 -> 4",
        "(0:8+2) (0:10+1) (0:11+1) 0:9+4 -> 4",
        "0:13+1 -> 1",
    ]


def test_prompts_join_rounds_with_the_tokens_that_are_left():
    """Eight tokens a step: two sequences with three proposals each fill it, so a third waits."""
    found = scheduler(max_num_batched_tokens=8)
    for number, (prompt, answer) in enumerate([(4, 6), (4, 6), (3, 2)]):
        assert found.add(number, prompt, answer)
    assert played(found, 1.0) == [
        "(0:0+4 1:0+4) 0:0+4 1:0+4 -> 2",
        "(0:4+1 1:4+1) (0:5+1 1:5+1) (0:6+1 1:6+1) 0:4+4 1:4+4 -> 8",
        "(2:0+3) 0:8+1 1:8+1 2:0+3 -> 3",
        "2:3+1 -> 1",
    ]


def test_the_last_admitted_propose_less_where_the_budget_is_short():
    found = scheduler(max_num_batched_tokens=6)
    for number in range(3):
        assert found.add(number, 2, 9)
    found.complete(found.decide())
    step = found.decide()
    assert [each.proposed for each in step.verifications] == [3, 0, 0]
    first, *others = draft_passes(step)
    assert [chunk.sequence for chunk in first] == [0, 1, 2], "who gets no proposal stays known to the drafter"
    assert [chunk.commits for chunk in first] == [True, False, False]
    assert [[chunk.sequence for chunk in each] for each in others] == [[0], [0]]


def test_rounds_are_never_skipped():
    found = scheduler()
    assert found.add(0, 4, 20)
    found.complete(found.decide())
    found.decide()
    assert found.rounds_ahead(64) == 0


def test_a_block_is_kept_once_the_drafter_has_filled_its_part():
    """After a round of two accepted proposals eight tokens are cached, two blocks; the drafter has seen seven.
    Who is preempted then finds the first block only when it comes back."""
    found = scheduler(blocks=5, proposed=2, prefix_caching=True)
    assert found.add(0, prompt_tokens=5, output_tokens=7)
    assert found.add(1, prompt_tokens=5, output_tokens=7)
    found.complete(found.decide())
    found.complete(found.decide(), [2, 2])
    step = found.decide()
    assert (step.preempted, [each.sequence for each in step.verifications]) == ((1,), [0])
    assert found.complete(step, [2]).finished == (0,)
    (piece,) = found.decide().prefills
    assert (piece.context, piece.new) == (4, 5)


# -- what is drawn -------------------------------------------------------------------------------------------


def verification(sequence: int, generated: int, proposed: int) -> Verification:
    return Verification(sequence, 10 + generated, proposed, generated, 10**6, 0)


def test_acceptance_is_of_a_place_not_of_a_moment():
    """Whether rounds are asked for in order or not, and how many tokens are proposed at once, changes nothing."""
    first, second = DrawnAcceptance(0.6, seed=3), DrawnAcceptance(0.6, seed=3)
    asked_for = [(sequence, generated) for sequence in range(3) for generated in (1, 50, 700)]
    forward = {each: first.accepted(verification(*each, 4)) for each in asked_for}
    assert forward == {each: second.accepted(verification(*each, 4)) for each in reversed(asked_for)}
    longer = {each: first.accepted(verification(*each, 6)) for each in asked_for}
    assert {each: min(count, 4) for each, count in longer.items()} == forward


@pytest.mark.parametrize("acceptance", [0.3, 0.7, 0.9])
def test_a_proposal_is_accepted_as_often_as_stated(acceptance):
    oracle, count = DrawnAcceptance(acceptance, seed=1), 4000
    hits = sum(oracle.accepted(verification(sequence, 1, 1)) for sequence in range(count))
    assert hits / count == pytest.approx(acceptance, abs=4 * (acceptance * (1 - acceptance) / count) ** 0.5)


def test_known_acceptance_stops_at_the_first_that_differs():
    oracle = KnownAcceptance({7: [True, True, False, True]})
    assert [oracle.accepted(verification(7, generated, 2)) for generated in range(4)] == [2, 1, 0, 1]
    assert oracle.accepted(verification(7, 1, 0)) == 0


# -- what always holds ---------------------------------------------------------------------------------------


@st.composite
def workloads(draw: Any) -> tuple[Any, ...]:
    setting = draw(rules())
    requests = draw(asked())
    before = draw(st.lists(st.integers(0, 20), min_size=len(requests), max_size=len(requests)))
    gives_up = draw(st.dictionaries(st.integers(0, len(requests) - 1), st.integers(1, 30), max_size=2))
    return (setting, requests, before, gives_up, draw(st.integers(1, 30)), draw(st.integers(1, 5)),
            draw(st.sampled_from([0.0, 0.4, 0.8, 1.0])))  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(workloads())
def test_both_models_read_what_was_written_for_them(workload):
    """On two caches that share block numbers: the model's and the drafter's. A proposed token that was not
    accepted is something else than the sequence's; no chunk may read it. All come to an end, no block is
    lost, no step is larger than it may be, nor the drafter's passes."""
    setting, requests, before, gives_up, blocks, proposed, probability = workload
    found, oracle = SpeculatingScheduler(setting, blocks, proposed), DrawnAcceptance(probability, seed=2)
    caches = ShadowCache(found.block_tokens), ShadowCache(found.block_tokens)
    left, finished, rejected, aborted = sorted(zip(before, requests, strict=True), key=lambda pair: pair[0]), [], [], []
    committed: dict[int, int] = {}
    for number in range(20_000):
        while left and left[0][0] <= number:
            request = left.pop(0)[1]
            content = content_of(request) if request.prefix else None
            if not found.add(request.number, request.prompt_tokens, request.output_tokens, request.priority, content):
                rejected.append(request.number)
        for who in [who for who, when in gives_up.items() if when <= number]:
            aborted += [who] * found.abort(who)
            gives_up.pop(who)
        step = found.decide()
        if step is None:
            assert not found.running_count and not found.waiting_count
            if not left:
                break
            continue
        limit = setting.max_num_batched_tokens
        if setting.chunked_prefill:
            assert step.token_count <= limit
        assert step.shape(PLAIN) == StepShape.of(found.chunks())
        for chunks in draft_passes(step):
            assert sum(chunk.new for chunk in chunks) <= max(limit, step.token_count) + setting.max_num_seqs
            for chunk in found.with_blocks(chunks):
                compute(caches[1], chunk, requests, step, oracle)
        for chunk in found.chunks():
            compute(caches[0], chunk, requests, step, oracle)
        accepted = [oracle.accepted(each) for each in step.verifications]
        done = found.complete(step, accepted)
        for each, count in zip(step.verifications, accepted, strict=True):
            committed[each.sequence] = committed.get(each.sequence, 0) + count + 1
        for piece in step.prefills:
            committed[piece.sequence] = committed.get(piece.sequence, 0) + piece.commits
        finished += done.finished
    assert sorted([*finished, *rejected, *aborted]) == [request.number for request in requests]
    assert all(committed[number] == requests[number].output_tokens for number in finished)
    assert found.pool.free_count == found.pool.count == blocks


def compute(cache: ShadowCache, chunk: Any, requests: list[Request], step: Any, oracle: Acceptance) -> None:
    """Read every cached token, then write new ones: those after the first that is not accepted are wrong."""
    request = requests[chunk.sequence]
    rounds = {each.sequence: each for each in step.verifications}
    good = chunk.context + chunk.new
    if chunk.sequence in rounds:
        each = rounds[chunk.sequence]
        good = each.context + 1 + oracle.accepted(each)
    for position in range(chunk.context):
        expected = token_of(request, position) if position < good else (None, position)
        assert cache.device.get(cache._slot(chunk, position)) == expected
    for position in range(chunk.context, chunk.context + chunk.new):
        cache.device[cache._slot(chunk, position)] = token_of(request, position) if position < good else (None, position)

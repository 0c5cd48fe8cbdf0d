"""What holds of every policy, order, way of preempting and cache, under any workload and any capacity."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.serving.arrivals import Request
from simulator.serving.scheduler import Scheduler
from simulator.specs.engine import SchedulerSettings
from tests.serving.shadow import Played, play

BLOCK = 4


@st.composite
def rules(draw: Any) -> SchedulerSettings:
    most = draw(st.integers(1, 6))
    return SchedulerSettings(
        policy=draw(st.sampled_from(["continuous_batching", "prefill_first", "static_batch"])),
        order=draw(st.sampled_from(["fcfs", "priority", "shortest_first"])),
        preemption=draw(st.sampled_from(["recompute", "swap"])),
        prefix_caching=draw(st.booleans()),
        watermark=draw(st.sampled_from([0.0, 0.1, 0.5])),
        max_queue=draw(st.sampled_from([None, None, 3])),
        max_num_seqs=most,
        max_num_batched_tokens=draw(st.integers(most, 40)),
        chunked_prefill=draw(st.booleans()),
        max_prefills_per_step=draw(st.sampled_from([None, 1, 2])),
        kv_block_tokens=BLOCK,
        full_reservation=draw(st.booleans()),
    )


@st.composite
def asked(draw: Any) -> list[Request]:
    """Some requests, of which several may begin in the same way."""
    found = []
    for number in range(draw(st.integers(1, 12))):
        prompt, group = draw(st.integers(1, 30)), draw(st.integers(0, 3))
        size = draw(st.sampled_from([3, 4, 8]))
        shared = draw(st.integers(0, prompt // size)) if group else 0
        prefix = tuple(1_000_000 * size + 1000 * group + at for at in range(shared))
        found.append(Request(number, 0.0, prompt, draw(st.integers(1, 20)), draw(st.integers(0, 2)), prefix, size))
    return found


@st.composite
def workloads(draw: Any) -> tuple[SchedulerSettings, list[Request], list[int], dict[int, int], int, int]:
    requests = draw(asked())
    before = draw(st.lists(st.integers(0, 30), min_size=len(requests), max_size=len(requests)))
    gives_up = draw(st.dictionaries(st.integers(0, len(requests) - 1), st.integers(1, 60), max_size=3))
    return draw(rules()), requests, before, gives_up, draw(st.integers(1, 30)), draw(st.integers(0, 20))


def served(
    setting: SchedulerSettings, requests: list[Request], before: list[int], gives_up: dict[int, int], blocks: int,
    host: int, ahead: bool = False,
) -> tuple[Scheduler, Played]:
    scheduler = Scheduler(setting, blocks, first_block=5, host_blocks=range(3, 3 + host))
    return scheduler, play(scheduler, requests, before, gives_up, ahead=ahead)


@settings(max_examples=250, deadline=None)
@given(workloads())
def test_every_request_comes_to_an_end_with_all_its_tokens(workload):
    """No deadlock: `play` asserts that work is done while anybody waits, that what is read was written by
    whom it is read for, and that limits hold. No leak: in the end every block is free."""
    scheduler, played = served(*workload)
    _, requests, _, _, blocks, host = workload
    numbers = sorted([*played.finished, *played.rejected, *played.aborted])
    assert numbers == [request.number for request in requests]
    for number in played.finished:
        assert played.tokens[number] == requests[number].output_tokens
    assert scheduler.pool.free_count == scheduler.pool.count == blocks
    assert sorted(scheduler.pool.take(blocks)) == list(range(5, 5 + blocks))
    if scheduler.host is not None:
        scheduler.host.take_moves()
        assert scheduler.host.free_count == host


@settings(max_examples=150, deadline=None)
@given(workloads())
def test_going_ahead_changes_nothing(workload):
    """Steps that are skipped through are the steps that would have been decided, as long as nobody arrives or
    leaves meanwhile."""
    setting, requests, _, _, blocks, host = workload
    at_once = [0] * len(requests)
    _, one_by_one = served(setting, requests, at_once, {}, blocks, host)
    _, ahead = served(setting, requests, at_once, {}, blocks, host, ahead=True)
    assert ahead.finished == one_by_one.finished
    assert ahead.steps == one_by_one.steps


@settings(max_examples=100, deadline=None)
@given(workloads())
def test_what_is_kept_is_not_computed_again(workload):
    """With prefix caching no more tokens are computed than without, where nobody is preempted."""
    setting, requests, before, _, _, _ = workload
    plenty = 200
    counts = []
    for caching in (False, True):
        changed = setting.model_copy(update={"prefix_caching": caching, "max_queue": None})
        scheduler, played = served(changed, requests, before, {}, plenty, 0)
        assert not scheduler.preemptions
        counts.append(sum(step.token_count for step in played.steps))
        if caching:
            assert counts[0] - counts[1] == scheduler.reused_tokens
        else:
            assert scheduler.reused_tokens == 0

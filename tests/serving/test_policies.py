"""Schedules of small cases, worked by hand. A piece of a step is `sequence:cached+new`, with `!` where a token is
chosen; blocks hold 4 tokens."""

from __future__ import annotations

from collections.abc import Sequence as Several
from typing import Any

import pytest

from simulator.serving.arrivals import Request, content_of
from simulator.serving.policies import POLICIES
from simulator.serving.scheduler import Scheduler
from simulator.serving.sequences import Sequence
from simulator.serving.waiting import ORDERS
from simulator.specs.engine import SchedulerSettings
from simulator.specs.scenario_file import ScenarioFile


def rules(**changes: Any) -> SchedulerSettings:
    usual = {"max_num_seqs": 4, "max_num_batched_tokens": 8, "chunked_prefill": True, "kv_block_tokens": 4,
             "full_reservation": False}  # fmt: skip
    return SchedulerSettings.model_validate(usual | changes)


def steps(scheduler: Scheduler) -> list[str]:
    """Every step until there is nothing to do, with what is preempted, saved, restored and brought back."""
    found = []
    while (step := scheduler.decide()) is not None:
        parts = [f"{c.sequence}:{c.context}+{c.new}{'!' * c.commits}" for c in scheduler.chunks()]
        parts += [f"out {number}" for number in step.preempted]
        parts += [f"save {source}>{target}" for source, target in step.saved]
        parts += [f"restore {source}>{target}" for source, target in step.restored]
        parts += [f"back {number}" for number in step.returned]
        found.append(" ".join(parts))
        scheduler.complete(step)
    return found


def served(setting: SchedulerSettings, asked: Several[tuple[int, int]], blocks: int, host: int = 0) -> list[str]:
    """Prompts and answers, all there at once."""
    scheduler = Scheduler(setting, blocks, host_blocks=range(host))
    for number, (prompt, output) in enumerate(asked):
        assert scheduler.add(number, prompt, output)
    return steps(scheduler)


def test_continuous_batching_mixes_prompts_and_decodes() -> None:
    """The budget of 8 goes to decodes, then to prefills under way, then to who waits."""
    assert served(rules(), [(6, 3), (5, 2), (3, 1)], 10) == [
        "0:0+6! 1:0+2",
        "0:6+1! 1:2+3! 2:0+3!",
        "0:7+1! 1:5+1!",
    ]


def test_prefill_first_lets_decodes_wait() -> None:
    """Whole prompts as long as they fit in 8 tokens; decodes only when nobody can be admitted."""
    assert served(rules(policy="prefill_first", chunked_prefill=False), [(6, 3), (5, 2), (3, 1)], 10) == [
        "0:0+6!",
        "1:0+5! 2:0+3!",
        "0:6+1! 1:5+1!",
        "0:7+1!",
    ]


def test_prefill_first_goes_back_to_prompts_when_one_arrives() -> None:
    scheduler = Scheduler(rules(policy="prefill_first", chunked_prefill=False), 10)
    scheduler.add(0, 4, 3)
    for _ in range(2):
        scheduler.complete(scheduler.decide())
    scheduler.add(1, 4, 2)
    assert steps(scheduler) == ["1:0+4!", "0:5+1! 1:4+1!"]


def test_a_static_batch_is_filled_once() -> None:
    """Two of three make the first batch; 0's place stays empty while 1 decodes on."""
    setting = rules(policy="static_batch", chunked_prefill=False, max_num_seqs=2, full_reservation=True)
    assert served(setting, [(4, 2), (4, 4), (3, 2)], 10) == [
        "0:0+4! 1:0+4!",
        "0:4+1! 1:4+1!",
        "1:5+1!",
        "1:6+1!",
        "2:0+3!",
        "2:3+1!",
    ]


def test_a_static_batch_is_prefilled_before_it_decodes() -> None:
    """In as many steps as the budget asks for; who comes meanwhile is not of the batch."""
    scheduler = Scheduler(rules(policy="static_batch", chunked_prefill=False), 20)
    for number in range(3):
        scheduler.add(number, 6, 2)
    scheduler.complete(scheduler.decide())
    scheduler.add(3, 6, 2)
    assert steps(scheduler) == ["1:0+6!", "2:0+6!", "0:6+1! 1:6+1! 2:6+1!", "3:0+6!", "3:6+1!"]


def test_tensorrt_llm_reserves_whole_answers_and_takes_one_prompt_a_step() -> None:
    """6 + 6 tokens take 3 of 6 blocks: a third request waits until one is done, though a block is free
    for its prompt all the time."""
    setting = rules(chunked_prefill=False, full_reservation=True, max_prefills_per_step=1, max_num_batched_tokens=12)
    assert served(setting, [(6, 3), (6, 6), (4, 2)], 6) == [
        "0:0+6!",
        "0:6+1! 1:0+6!",
        "0:7+1! 1:6+1!",
        "1:7+1! 2:0+4!",
        "1:8+1! 2:4+1!",
        "1:9+1!",
        "1:10+1!",
    ]


def test_the_lowest_priority_number_goes_first_and_the_highest_gives_way() -> None:
    """2 goes first. When 0, the least urgent, and 2 both need a block, 0 gives way, though 1 came later."""
    scheduler = Scheduler(rules(order="priority", max_num_batched_tokens=12), 5)
    for number, (prompt, output, priority) in enumerate([(4, 4, 9), (3, 3, 5), (4, 5, 0)]):
        scheduler.add(number, prompt, output, priority)
    assert steps(scheduler) == [
        "2:0+4! 1:0+3! 0:0+4!",
        "2:4+1! 1:3+1! 0:4+1!",
        "2:5+1! 1:4+1! out 0",
        "2:6+1! 0:0+6!",
        "2:7+1! 0:6+1!",
    ]


def test_the_shortest_prompt_goes_first() -> None:
    setting = rules(order="shortest_first", chunked_prefill=False, max_num_seqs=1)
    assert served(setting, [(6, 1), (3, 1), (5, 1)], 10) == ["1:0+3!", "2:0+5!", "0:0+6!"]


def test_a_swapped_sequence_comes_back_with_what_it_had() -> None:
    """Both fill a block at once; 1, admitted last, leaves with its one block and returns when 0 is done."""
    assert served(rules(preemption="swap"), [(4, 4), (4, 4)], 3, host=2) == [
        "0:0+4! 1:0+4!",
        "0:4+1! out 1 save 1>0",
        "0:5+1!",
        "0:6+1!",
        "1:4+1! restore 0>0 back 1",
        "1:5+1!",
        "1:6+1!",
    ]


def test_without_room_in_host_memory_it_is_computed_again() -> None:
    assert served(rules(preemption="swap"), [(4, 4), (4, 4)], 3)[1:5] == [
        "0:4+1! out 1", "0:5+1!", "0:6+1!", "1:0+5!",
    ]  # fmt: skip


def sharing(prefixes: Several[tuple[int, ...]], setting: SchedulerSettings, blocks: int, host: int = 0) -> Scheduler:
    """Prompts of 9 tokens that begin with blocks of these ids, and answers of 1, all there at once."""
    scheduler = Scheduler(setting, blocks, host_blocks=range(host))
    for number, prefix in enumerate(prefixes):
        request = Request(number, 0.0, 9, 1, 0, prefix, 4)
        scheduler.add(number, 9, 1, 0, content_of(request))
    return scheduler


ONE_BY_ONE = rules(prefix_caching=True, max_num_seqs=1, max_num_batched_tokens=16)


def test_a_prefix_is_computed_once() -> None:
    """1 finds both blocks of 0, 2 only the first; of a prompt that is all there the last token is computed."""
    scheduler = sharing([(1, 2), (1, 2), (1, 3)], ONE_BY_ONE, 10)
    assert steps(scheduler) == ["0:0+9!", "1:8+1!", "2:4+5!"]
    assert (scheduler.reused_tokens, scheduler.prompt_tokens) == (12, 27)


def test_prompts_of_one_step_share_nothing_yet() -> None:
    """What a step computes can be found after it."""
    together = rules(prefix_caching=True, max_num_batched_tokens=18)
    assert steps(sharing([(1, 2), (1, 2)], together, 10)) == ["0:0+9! 1:0+9!"]


def test_the_block_unused_for_longest_is_evicted_first() -> None:
    """Four blocks: 0 leaves two kept ones; 1 takes the two that hold nothing, then the second of 0's, as
    a sequence's last block counts as free before its first; so 2 finds the first one only."""
    scheduler = sharing([(1, 2), (7, 8), (1, 2)], ONE_BY_ONE, 4)
    assert steps(scheduler) == ["0:0+9!", "1:0+9!", "2:4+5!"]


def test_evicted_blocks_wait_in_host_memory() -> None:
    """As before, with room for two blocks there: 2 gets the second block back from it, into the block that
    held the last of 0's tokens, and what that leaves evicts one more."""
    scheduler = sharing([(1, 2), (7, 8), (1, 2)], ONE_BY_ONE, 4, host=2)
    first, second, third = steps(scheduler)
    assert (first, second.split()[:1], third.split()[:1]) == ("0:0+9!", ["1:0+9!"], ["2:8+1!"])
    assert "save" in second
    assert "restore" in third


def test_a_preempted_sequence_finds_what_survived() -> None:
    """1 gives its blocks up; the one that is not handed out again still holds its first four tokens."""
    assert served(rules(prefix_caching=True), [(4, 4), (4, 4)], 3) == [
        "0:0+4! 1:0+4!",
        "0:4+1! out 1",
        "0:5+1!",
        "0:6+1!",
        "1:4+1!",
        "1:5+1!",
        "1:6+1!",
    ]


def test_admission_leaves_a_watermark() -> None:
    """Of 10 blocks 3 stay free while anybody runs; alone a sequence may have all."""
    setting = rules(watermark=0.3, max_num_batched_tokens=40)
    assert served(setting, [(20, 1), (12, 1)], 10) == ["0:0+20!", "1:0+12!"]
    assert served(setting, [(16, 1), (12, 1)], 10) == ["0:0+16! 1:0+12!"]
    assert served(setting, [(40, 1)], 11) == ["0:0+40!"]


def test_a_full_queue_rejects() -> None:
    scheduler = Scheduler(rules(max_queue=2), 10)
    assert [scheduler.add(number, 4, 1) for number in range(4)] == [True, True, False, False]
    assert steps(scheduler) == ["0:0+4! 1:0+4!"]


def test_who_gives_up_leaves_nothing_behind() -> None:
    """A waiting, a prefilling, a decoding and a swapped sequence."""
    scheduler = Scheduler(rules(preemption="swap", max_num_seqs=3), 4, host_blocks=range(4))
    for number, prompt in enumerate((4, 4, 7, 3)):
        scheduler.add(number, prompt, 6)
    scheduler.complete(scheduler.decide())
    step = scheduler.decide()
    assert step is not None
    scheduler.complete(step)
    for number in (3, 2, 1, 0):
        assert scheduler.abort(number)
        assert not scheduler.abort(number)
    assert scheduler.decide() is None
    assert scheduler.pool.free_count == 4


def in_vain(outputs: int) -> Scheduler:
    """Sequence 0, handed over, fills its block while the two others are kept for 1: it gives way, and nothing can be
    done until 1 is there."""
    scheduler = Scheduler(rules(), 3)
    for number, cached in ((0, 4), (1, 8)):
        assert scheduler.reserve(Sequence(number, cached, outputs, cached=cached, generated=1)) is not None
        if number == 0:
            scheduler.start(number)
    assert scheduler.decide() is None
    assert scheduler.decide() is None
    return scheduler


def test_who_gave_way_in_vain_is_told_of_with_the_next_step() -> None:
    scheduler = in_vain(2)
    scheduler.start(1)
    assert steps(scheduler) == ["1:8+1! out 0 back 1", "0:0+5!"]


def test_who_gave_way_in_vain_and_gave_up_is_not_told_of() -> None:
    scheduler = in_vain(2)
    assert scheduler.abort(0)
    scheduler.start(1)
    step = scheduler.decide()
    assert step is not None
    assert step.preempted == ()


@pytest.mark.parametrize(("registry", "field"), [(POLICIES, "policy"), (ORDERS, "order")])
def test_every_name_a_profile_may_say_is_there(registry, field) -> None:
    assert set(registry) == set(SchedulerSettings.model_fields[field].annotation.__args__)


def test_every_rule_of_routing_is_there() -> None:
    from simulator.serving.routing import ROUTERS

    assert set(ROUTERS) == set(ScenarioFile.model_fields["routing"].annotation.__args__)

"""What goes into a step, by the name of a policy in an engine's profile."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from simulator.serving.actions import Prefill

if TYPE_CHECKING:
    from simulator.serving.scheduler import Scheduler

Composed = tuple[bool, list[Prefill]]
"""Whether the sequences that decode take part, and the pieces of prefill that do."""


def continuous_batching(scheduler: Scheduler) -> Composed:
    """Every decoding sequence and, with the tokens that are left, prefills: those under way first, then those
    of waiting sequences if nobody was preempted (vLLM's V1; TensorRT-LLM's in-flight batching)."""
    scheduler.grow()
    budget = scheduler.settings.max_num_batched_tokens - scheduler.decode_tokens
    pieces = scheduler.go_on(budget)
    if not scheduler.has_preempted:
        budget -= sum(piece.new for piece in pieces)
        budget -= scheduler.bring_back(budget)
        pieces += scheduler.admit(budget, len(pieces))
    return True, pieces


def prefill_first(scheduler: Scheduler) -> Composed:
    """Prefills alone while anybody can be admitted, decodes alone otherwise (vLLM's V0 without chunks). Who
    was swapped out comes back before anybody is admitted."""
    budget = scheduler.settings.max_num_batched_tokens
    pieces = scheduler.go_on(budget)
    pieces += scheduler.admit(budget - sum(piece.new for piece in pieces), len(pieces), whole=True)
    return _prefills_or_decodes(scheduler, pieces)


def static_batch(scheduler: Scheduler) -> Composed:
    """A batch of those that wait when the last one is done, all of it prefilled before it decodes together;
    nobody joins it, and who is done leaves it."""
    if not scheduler.running_count:
        scheduler.batch_open = min(scheduler.waiting_count, scheduler.settings.max_num_seqs)
    budget = scheduler.settings.max_num_batched_tokens
    pieces = scheduler.go_on(budget)
    left = budget - sum(piece.new for piece in pieces)
    joining = scheduler.admit(left, len(pieces), scheduler.batch_open, whole=True)
    scheduler.batch_open = scheduler.batch_open - len(joining) if joining or pieces else 0
    pieces += joining
    return _prefills_or_decodes(scheduler, pieces)


def _prefills_or_decodes(scheduler: Scheduler, pieces: list[Prefill]) -> Composed:
    """A step of prefills, or if there are none of decodes."""
    if pieces:
        return False, pieces
    scheduler.grow()
    if not scheduler.has_preempted:
        scheduler.bring_back(scheduler.settings.max_num_batched_tokens - scheduler.decode_count)
    return True, []


POLICIES: Mapping[str, Callable[[Scheduler], Composed]] = {
    "continuous_batching": continuous_batching,
    "prefill_first": prefill_first,
    "static_batch": static_batch,
}

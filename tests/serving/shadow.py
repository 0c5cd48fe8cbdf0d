"""A KV cache that knows of every slot which token it holds, to carry a scheduler's steps out on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from simulator.graph.shape import PLAIN, Chunk, StepShape, Traits
from simulator.serving.actions import Step
from simulator.serving.arrivals import Request, content_of
from simulator.serving.scheduler import Scheduler

Slot = tuple[int, int]
"""Who or what a token is of, and its position."""


@dataclass
class ShadowCache:
    """Blocks of the device and of host memory, slot by slot."""

    block_tokens: int
    device: dict[tuple[int, int], Slot] = field(default_factory=dict)
    host: dict[tuple[int, int], Slot] = field(default_factory=dict)

    def move(self, step: Step) -> None:
        """First out of the device, then back into it."""
        for moves, source, target in ((step.saved, self.device, self.host), (step.restored, self.host, self.device)):
            for read, written in moves:
                for offset in range(self.block_tokens):
                    target[written, offset] = source.get((read, offset), (-10**9, 0))

    def compute(self, chunk: Chunk, request: Request) -> None:
        """Read every cached token of a sequence, then write the new ones."""
        for position in range(chunk.context):
            found = self.device.get(self._slot(chunk, position))
            assert found == token_of(request, position), f"{chunk.sequence} reads {found} at {position}"
        for position in range(chunk.context, chunk.context + chunk.new):
            self.device[self._slot(chunk, position)] = token_of(request, position)

    def _slot(self, chunk: Chunk, position: int) -> tuple[int, int]:
        return chunk.blocks[position // self.block_tokens], position % self.block_tokens


def token_of(request: Request, position: int) -> Slot:
    """Which token it is: that of a prefix others share, or the request's own."""
    size = request.prefix_block_tokens
    if request.prefix and position < min(request.prompt_tokens, len(request.prefix) * size):
        return request.prefix[position // size], position
    return ~request.number, position


@dataclass
class Played:
    """What came of a workload, without a clock: requests are added before steps, clients give up before
    steps."""

    steps: list[Step] = field(default_factory=list)
    finished: list[int] = field(default_factory=list)
    rejected: list[int] = field(default_factory=list)
    aborted: list[int] = field(default_factory=list)
    tokens: dict[int, int] = field(default_factory=dict)
    """Committed, by sequence."""
    started_at: dict[int, int] = field(default_factory=dict)
    """The step that brought the first token."""


def play(
    scheduler: Scheduler, requests: Sequence[Request], before: Sequence[int],
    gives_up: dict[int, int] | None = None, traits: Traits = PLAIN, ahead: bool = False,
) -> Played:  # fmt: skip
    """Serve requests, each added before the step of its number, on a shadow cache; check every step.

    ahead: whether to skip as many decode steps as may be skipped.
    """
    result, cache = Played(), ShadowCache(scheduler.block_tokens)
    by_number = {request.number: request for request in requests}
    left = sorted(zip(before, requests, strict=True), key=lambda pair: pair[0])
    gives_up, number = dict(gives_up or {}), 0
    while True:
        while left and left[0][0] <= number:
            _add(scheduler, left.pop(0)[1], result)
        for who in [who for who, when in gives_up.items() if when <= number]:
            if scheduler.abort(who):
                result.aborted.append(who)
            gives_up.pop(who)
        number += 1
        assert number < 20_000, "the scheduler never comes to an end"
        step = scheduler.decide()
        if step is None:
            assert not scheduler.running_count, "nothing to do while requests run"
            assert not scheduler.waiting_count, "nothing to do while requests wait"
            if not left:
                return result
            continue
        while True:
            cache.move(step)
            chunks = scheduler.chunks()
            _check(scheduler, step, chunks, traits)
            for chunk in chunks:
                cache.compute(chunk, by_number[chunk.sequence])
                result.tokens[chunk.sequence] = result.tokens.get(chunk.sequence, 0) + chunk.commits
                if chunk.commits:
                    result.started_at.setdefault(chunk.sequence, len(result.steps))
            result.steps.append(step)
            if not (ahead and scheduler.rounds_ahead(7) > 0):
                break
            step = scheduler.skip(1)
        completed = scheduler.complete(step)
        result.finished += completed.finished


def _add(scheduler: Scheduler, request: Request, result: Played) -> None:
    content = content_of(request) if request.prefix else None
    asked = request.number, request.prompt_tokens, request.output_tokens
    if not scheduler.add(*asked, request.priority, content):
        result.rejected.append(request.number)


def _check(scheduler: Scheduler, step: Step, chunks: Sequence[Chunk], traits: Traits) -> None:
    rules = scheduler.settings
    assert len(chunks) <= rules.max_num_seqs
    assert scheduler.running_count <= rules.max_num_seqs
    assert step.shape(traits) == StepShape.of(chunks, traits)
    assert step.decode_count == sum(c.new == 1 and c.commits for c in chunks[: step.decode_count])
    held = [block for chunk in chunks for block in set(chunk.blocks)]
    if not rules.prefix_caching:
        assert len(held) == len(set(held)), "a block is used by two"
    if rules.policy != "continuous_batching":
        assert not (step.decode_count and step.prefills), "prompts and decodes in one step"
    if not rules.chunked_prefill:
        assert all(piece.commits for piece in step.prefills), "a prompt was cut"

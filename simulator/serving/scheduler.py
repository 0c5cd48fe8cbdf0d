"""Continuous batching, first come first served, with KV blocks on demand.

The rules of a step, after vLLM's V1 scheduler:

1. Every decoding sequence gets one token. One that has filled its last block takes another; if none is
   free, the sequence admitted last is preempted: its blocks are freed, and it goes to the head of the
   queue to compute all its tokens again.
2. Prefills under way take what is left of the token budget, in the order of admission.
3. If nobody was preempted, waiting sequences are admitted in order while the budget, the number of
   sequences and the free blocks allow.

A decode step costs O(1) here, but for blocks taken and sequences that finish: each decoding sequence is
known by the round it joined, completions wait in a heap by round, and the rounds at which a sequence
needs a block are those of one residue class modulo the block's length.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field

from simulator.graph.shape import Chunk
from simulator.placement.memory import split_chunks
from simulator.serving.actions import Completed, Prefill, Step
from simulator.serving.blocks import BlockPool
from simulator.specs.engine import SchedulerSettings


@dataclass(slots=True)
class _Sequence:
    """A request inside the engine. While it decodes, `cached` and `generated` are as of `joined_round`."""

    number: int
    prompt_tokens: int
    output_tokens: int
    order: int = -1
    cached: int = 0
    generated: int = 0
    goal: int = 0
    """Tokens to cache before it decodes: the prompt, and what was generated before a preemption."""
    joined_round: int = -1
    """The decode round it joined in, or -1 while it does not decode."""
    blocks: list[int] = field(default_factory=list)
    epoch: int = 0


class _DecodeWindow:
    """Keys inside the sliding window that decoding sequences read in the coming round, kept by increments:
    the round in which a sequence fills the window is known when it joins."""

    def __init__(self, length: int | None) -> None:
        self._length = length or 0
        self.span = 0
        self.growing = 0
        """Sequences that read fewer keys than the window holds."""
        self._filled: Counter[int] = Counter()
        """By round, the sequences that read a whole window for the first time."""

    def join(self, now: int, cached: int) -> None:
        """A sequence with so many cached tokens decodes from round `now` on."""
        self._change(now, cached, 1)

    def leave(self, now: int, cached: int) -> None:
        """A sequence that now has so many cached tokens decodes no more."""
        self._change(now, cached, -1)

    def _change(self, now: int, cached: int, sign: int) -> None:
        if self._length:
            missing = self._length - (cached + 1)
            self.span += sign * min(cached + 1, self._length)
            if missing > 0:
                self.growing += sign
                self._filled[now + missing] += sign

    def advance(self, now: int) -> None:
        """Round `now` begins: every sequence caches one token more than in the one before."""
        self.span += self.growing
        self.growing -= self._filled.pop(now, 0)

    def unchanged_rounds(self, now: int, most: int) -> int:
        """For how many rounds, this one first and at most `most`, as many sequences grow as now."""
        if not self.growing:
            return most
        return next((ahead for ahead in range(1, most) if self._filled.get(now + ahead)), most)


class Scheduler:
    """The state machine: `add` requests, `decide` on a step, `complete` it."""

    def __init__(
        self, settings: SchedulerSettings, block_count: int, sliding_window: int | None = None,
        first_block: int = 0,
    ) -> None:  # fmt: skip
        self.settings = settings
        self._window = _DecodeWindow(sliding_window)
        self.pool = BlockPool(block_count, first_block)
        self.preemptions = 0
        self._block_tokens = settings.kv_block_tokens
        self._waiting: deque[_Sequence] = deque()
        self._running: dict[int, _Sequence] = {}
        self._prefilling: dict[int, _Sequence] = {}
        self._round = 0
        self._decode_count = 0
        self._decode_context = 0
        self._finishes: list[tuple[int, int, int, _Sequence]] = []
        self._takers: defaultdict[int, dict[int, _Sequence]] = defaultdict(dict)
        self._admitted = 0
        self._pending: Step | None = None
        self._preempted: list[int] = []

    @property
    def waiting_count(self) -> int:
        return len(self._waiting)

    @property
    def running_count(self) -> int:
        return len(self._running)

    def add(self, number: int, prompt_tokens: int, output_tokens: int) -> bool:
        """Queue a request; False if it is refused because all blocks together could not hold it, or
        because its prompt exceeds what one step takes and may not be cut."""
        fits = self._blocks_for(prompt_tokens + output_tokens) <= self.pool.count
        if not self.settings.chunked_prefill:
            fits = fits and prompt_tokens <= self.settings.max_num_batched_tokens
        if fits:
            self._waiting.append(_Sequence(number, prompt_tokens, output_tokens, goal=prompt_tokens))
        return fits

    def decide(self) -> Step | None:
        """The next step, or None if there is nothing to do."""
        assert self._pending is None, "the step before has not been completed"
        self._preempted = []
        self._grow_decodes()
        budget = self.settings.max_num_batched_tokens - self._decode_count
        prefills: list[Prefill] = []
        for sequence in list(self._prefilling.values()):
            if sequence.number in self._prefilling and budget > 0:
                new = min(budget, sequence.goal - sequence.cached)
                if self._take_blocks(sequence, sequence.cached + new):
                    prefills.append(_piece(sequence, new))
                    budget -= new
        if not self._preempted:
            self._admit(prefills, budget)
        if not self._decode_count and not prefills:
            return None
        span = self._decode_context + self._decode_count
        self._pending = Step(
            self._decode_count, span, tuple(prefills), tuple(self._preempted), self._window.span,
            self._window.growing,
        )  # fmt: skip
        return self._pending

    @property
    def peak_blocks(self) -> int:
        """The most blocks that were taken at once."""
        return self.pool.peak_taken

    def parts(self, microbatches: int) -> tuple[tuple[Chunk, ...], ...]:
        """The pending step's chunks, cut into microbatches of about equally many tokens."""
        chunks = self.chunks()
        return (chunks,) if microbatches == 1 else split_chunks(chunks, microbatches)

    def chunks(self) -> tuple[Chunk, ...]:
        """The pending step's chunks with their blocks: decodes by admission, then prefills."""
        assert self._pending is not None
        decoding = [s for s in self._running.values() if s.joined_round >= 0]
        chunks = [Chunk(s.number, self._cached(s), 1, True, tuple(s.blocks)) for s in decoding]
        for piece in self._pending.prefills:
            blocks = tuple(self._running[piece.sequence].blocks)
            chunks.append(Chunk(piece.sequence, piece.context, piece.new, piece.commits, blocks))
        return tuple(chunks)

    def complete(self, step: Step) -> Completed:
        """Account for the pending step: tokens committed, sequences that start to decode or are done."""
        assert step is self._pending, "only the step decided last can be completed"
        self._pending = None
        tokens = step.decode_count
        self._round += 1
        self._decode_context += step.decode_count
        self._window.advance(self._round)
        finished = self._finish_decodes()
        started: list[int] = []
        resumed: list[int] = []
        for piece in step.prefills:
            sequence = self._running[piece.sequence]
            sequence.cached += piece.new
            if piece.commits:
                tokens += 1
                (resumed if sequence.generated else started).append(sequence.number)
                sequence.generated += 1
                del self._prefilling[sequence.number]
                if sequence.generated == sequence.output_tokens:
                    self._release(sequence)
                    finished.append(sequence.number)
                else:
                    self._start_decoding(sequence)
        return Completed(tuple(started), tuple(resumed), tuple(finished), tokens)

    def rounds_ahead(self, most: int) -> int:
        """How many steps, the pending one first, are sure to only decode the same sequences: at most
        `most`, none of them brings an end, and all the blocks that those after it need are there.

        Nobody who waits can be admitted meanwhile: what they lack, only an end gives back.
        """
        step = self._pending
        assert step is not None
        if step.prefills or step.preempted or self._prefilling:
            return 0
        self._forget_stale_finishes()
        rounds = min(most, self._finishes[0][0] - self._round - 1)
        rounds = min(rounds, self._window.unchanged_rounds(self._round, rounds))
        free = self.pool.free_count
        if self._decode_count * self._blocks_for(rounds) <= free:
            return rounds
        for ahead in range(1, rounds + 1):
            free -= len(self._takers.get((self._round + ahead) % self._block_tokens, ()))
            if free < 0:
                return ahead - 1
        return rounds

    def skip(self, count: int) -> Step:
        """Complete the pending step and those after it, `count` of those `rounds_ahead` allows; the step
        that is pending then."""
        for _ in range(count):
            self._round += 1
            self._decode_context += self._decode_count
            self._window.advance(self._round)
            self._grow_decodes()
        self._pending = Step(
            self._decode_count, self._decode_context + self._decode_count,
            window_decode_span=self._window.span, window_growing=self._window.growing,
        )  # fmt: skip
        return self._pending

    # -- decoding ---------------------------------------------------------------------------------------

    def _start_decoding(self, sequence: _Sequence) -> None:
        sequence.joined_round = self._round
        self._decode_count += 1
        self._decode_context += sequence.cached
        self._window.join(self._round, sequence.cached)
        left = sequence.output_tokens - sequence.generated
        sequence.epoch += 1
        entry = (self._round + left, sequence.order, sequence.epoch, sequence)
        heapq.heappush(self._finishes, entry)
        if not self.settings.full_reservation:
            self._takers[self._residue(sequence)][sequence.number] = sequence

    def _stop_decoding(self, sequence: _Sequence) -> None:
        """Take a sequence out of the decoding sums and bring its own counts up to date."""
        rounds = self._round - sequence.joined_round
        self._takers[self._residue(sequence)].pop(sequence.number, None)
        sequence.cached += rounds
        sequence.generated += rounds
        sequence.joined_round = -1
        sequence.epoch += 1
        self._decode_count -= 1
        self._decode_context -= sequence.cached
        self._window.leave(self._round, sequence.cached)

    def _residue(self, sequence: _Sequence) -> int:
        """Rounds of this residue are those before which the sequence's blocks are full."""
        return (sequence.joined_round - sequence.cached) % self._block_tokens

    def _cached(self, sequence: _Sequence) -> int:
        decoding = sequence.joined_round >= 0
        return sequence.cached + (self._round - sequence.joined_round if decoding else 0)

    def _finish_decodes(self) -> list[int]:
        finished = []
        self._forget_stale_finishes()
        while self._finishes and self._finishes[0][0] <= self._round:
            sequence = heapq.heappop(self._finishes)[-1]
            self._stop_decoding(sequence)
            self._release(sequence)
            finished.append(sequence.number)
            self._forget_stale_finishes()
        return finished

    def _forget_stale_finishes(self) -> None:
        """Drop ends that were expected of sequences preempted since."""
        while self._finishes and self._finishes[0][2] != self._finishes[0][3].epoch:
            heapq.heappop(self._finishes)

    def _grow_decodes(self) -> None:
        """Give a block to every decoding sequence that has filled its own."""
        takers = self._takers.get(self._round % self._block_tokens)
        if not takers:
            return
        for sequence in sorted(takers.values(), key=lambda taker: taker.order):
            if sequence.number in takers:
                self._take_blocks(sequence, self._cached(sequence) + 1)

    # -- blocks -----------------------------------------------------------------------------------------

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self._block_tokens)

    def _take_blocks(self, sequence: _Sequence, tokens: int) -> bool:
        """Let a running sequence hold `tokens`, preempting the last admitted until the blocks suffice;
        False if it had to be preempted itself."""
        missing = self._blocks_for(tokens) - len(sequence.blocks)
        while missing > self.pool.free_count:
            last = next(reversed(self._running.values()))
            self._preempt(last)
            if last is sequence:
                return False
        if missing > 0:
            sequence.blocks += self.pool.take(missing)
        return True

    def _preempt(self, sequence: _Sequence) -> None:
        self.preemptions += 1
        self._preempted.append(sequence.number)
        if sequence.joined_round >= 0:
            self._stop_decoding(sequence)
        self._prefilling.pop(sequence.number, None)
        self._release(sequence)
        sequence.cached, sequence.goal = 0, sequence.prompt_tokens + sequence.generated
        self._waiting.appendleft(sequence)

    def _release(self, sequence: _Sequence) -> None:
        self.pool.give_back(sequence.blocks)
        sequence.blocks = []
        del self._running[sequence.number]

    # -- admission ----------------------------------------------------------------------------------------

    def _admit(self, prefills: list[Prefill], budget: int) -> None:
        """Admit waiting sequences in order, and give each its first piece of prefill."""
        settings = self.settings
        most = settings.max_prefills_per_step or len(self._waiting) + len(prefills)
        while self._waiting and budget > 0 and len(prefills) < most:
            sequence = self._waiting[0]
            new = min(budget, sequence.goal)
            if new < sequence.goal and not settings.chunked_prefill and (prefills or self._decode_count):
                # a preempted sequence may have outgrown the budget; it then goes when it is alone
                break
            new = new if settings.chunked_prefill else sequence.goal
            reserved = sequence.prompt_tokens + sequence.output_tokens if settings.full_reservation else new
            blocks = self._blocks_for(reserved)
            if len(self._running) >= settings.max_num_seqs or blocks > self.pool.free_count:
                break
            self._waiting.popleft()
            sequence.order = self._admitted
            self._admitted += 1
            sequence.blocks = self.pool.take(blocks)
            self._running[sequence.number] = sequence
            self._prefilling[sequence.number] = sequence
            prefills.append(_piece(sequence, new))
            budget -= new


def _piece(sequence: _Sequence, new: int) -> Prefill:
    return Prefill(sequence.number, sequence.cached, new, sequence.cached + new == sequence.goal)

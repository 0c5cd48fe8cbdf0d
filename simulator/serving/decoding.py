"""The sequences that decode: one token each in every round.

Everything about them is kept by increments: a round costs as much however many they are, and so do the
questions that decide how far a run of rounds goes.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable

from simulator.serving.sequences import Sequence


class DecodeWindow:
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


class Decoding:
    """Who decodes, how many keys they have cached, who ends when, and who needs a block when."""

    def __init__(self, block_tokens: int, sliding_window: int | None, take_blocks: bool) -> None:
        """take_blocks: whether sequences need further blocks while they decode."""
        self.window = DecodeWindow(sliding_window)
        self.round = 0
        self.count = 0
        self.context = 0
        """Tokens that they have cached together."""
        self._block_tokens, self._take_blocks = block_tokens, take_blocks
        self._ends: list[tuple[int, int, int, Sequence]] = []
        """Round, order and epoch of each expected end; stale where the epoch has passed."""
        self._takers: defaultdict[int, dict[int, Sequence]] = defaultdict(dict)

    @property
    def span(self) -> int:
        """Keys that they attend to in the coming round, their new tokens included."""
        return self.context + self.count

    def join(self, sequence: Sequence) -> None:
        """Let a sequence decode from the coming round on."""
        sequence.joined_round = self.round
        sequence.epoch += 1
        self.count += 1
        self.context += sequence.cached
        self.window.join(self.round, sequence.cached)
        left = sequence.output_tokens - sequence.generated
        heapq.heappush(self._ends, (self.round + left, sequence.order, sequence.epoch, sequence))
        if self._take_blocks:
            self._takers[self._residue(sequence)][sequence.number] = sequence

    def leave(self, sequence: Sequence) -> None:
        """Take a sequence out and bring its own counts up to date."""
        rounds = self.round - sequence.joined_round
        self._takers[self._residue(sequence)].pop(sequence.number, None)
        sequence.cached += rounds
        sequence.generated += rounds
        sequence.joined_round = -1
        sequence.epoch += 1
        self.count -= 1
        self.context -= sequence.cached
        self.window.leave(self.round, sequence.cached)

    def cached(self, sequence: Sequence) -> int:
        """Tokens that a sequence has cached by now."""
        return sequence.cached + (self.round - sequence.joined_round if sequence.is_decoding else 0)

    def advance(self) -> None:
        """A round is over."""
        self.round += 1
        self.context += self.count
        if self.window.growing:
            self.window.advance(self.round)

    def ended(self) -> Iterable[Sequence]:
        """Those whose answers are complete, taken out one by one, by round and order of admission."""
        self._forget_stale_ends()
        while self._ends and self._ends[0][0] <= self.round:
            sequence = heapq.heappop(self._ends)[-1]
            self.leave(sequence)
            yield sequence
            self._forget_stale_ends()

    def ends_after(self, rounds: int) -> bool:
        """Whether the round that follows so many more brings an end."""
        self._forget_stale_ends()
        return self._ends[0][0] == self.round + rounds + 1

    def takers(self, ahead: int = 0) -> dict[int, Sequence] | None:
        """Those whose blocks are full when the coming round begins, or the one so many rounds later."""
        return self._takers.get((self.round + ahead) % self._block_tokens)

    def quiet_rounds(self, most: int, free_blocks: int) -> int:
        """How many rounds from the coming one on, at most `most`, bring no end, leave as many sequences
        growing inside the window, and need no more than so many blocks for the rounds that follow them."""
        self._forget_stale_ends()
        rounds = min(most, self._ends[0][0] - self.round - 1)
        rounds = min(rounds, self.window.unchanged_rounds(self.round, rounds))
        if self.count * -(-rounds // self._block_tokens) <= free_blocks:
            return rounds
        for ahead in range(1, rounds + 1):
            free_blocks -= len(self.takers(ahead) or ())
            if free_blocks < 0:
                return ahead - 1
        return rounds

    def _residue(self, sequence: Sequence) -> int:
        """Rounds of this residue are those before which the sequence's blocks are full."""
        return (sequence.joined_round - sequence.cached) % self._block_tokens

    def _forget_stale_ends(self) -> None:
        """Drop ends that were expected of sequences that have left since."""
        while self._ends and self._ends[0][2] != self._ends[0][3].epoch:
            heapq.heappop(self._ends)

"""Rounds of speculative decoding: a drafter proposes some tokens for every sequence that decodes, one after
the other, and the model verifies them all in one step; the first that differ from its own choice, and those
after it, are dropped.

A round commits one token to a sequence, the model's own, and as many proposed ones as were accepted. What is
known here are counts: who carries a round out says how many.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Several
from dataclasses import replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from simulator.graph.shape import Chunk
from simulator.placement.placement import Placement
from simulator.serving.actions import Prefill, Step, Verification
from simulator.serving.decoding import Decoding
from simulator.serving.scheduler import Kept, Scheduler
from simulator.serving.sequences import Sequence
from simulator.specs.engine import SchedulerSettings

# -- who accepts ---------------------------------------------------------------------------------------------


class Acceptance(Protocol):
    """How many of a sequence's proposed tokens are accepted."""

    def accepted(self, round: Verification) -> int: ...


class DrawnAcceptance:
    """Each proposed token is accepted with one probability, if those before it were. It is drawn by sequence
    and place in the answer, so no order of events, nor how many are proposed at once, changes it."""

    def __init__(self, probability: float, seed: int) -> None:
        self._probability, self._seed = probability, seed
        self._drawn: dict[int, NDArray[np.bool_]] = {}

    def accepted(self, round: Verification) -> int:
        end = round.generated + round.proposed
        agrees = self._drawn.get(round.sequence)
        if agrees is None or len(agrees) < end:
            draws = np.random.default_rng((self._seed, 4, round.sequence)).random(max(256, 2 * end))
            agrees = self._drawn[round.sequence] = draws < self._probability
        return _leading(agrees[round.generated : end])


class KnownAcceptance:
    """As two real models agree: of each sequence, for each token of its answer, whether the drafter proposes
    it when it is given all before it."""

    def __init__(self, agrees: Mapping[int, Several[bool]]) -> None:
        self._agrees = {number: np.array(each, dtype=np.bool_) for number, each in agrees.items()}

    def accepted(self, round: Verification) -> int:
        return _leading(self._agrees[round.sequence][round.generated :][: round.proposed])


def drawn_acceptance(placement: Placement, seed: int) -> Acceptance | None:
    """As a placement says; None where nothing is proposed."""
    given = placement.speculation
    return None if given is None else DrawnAcceptance(given.acceptance, seed)


def _leading(agrees: NDArray[np.bool_]) -> int:
    """How many agree before the first that does not."""
    return len(agrees) if agrees.all() else int(agrees.argmin())


# -- what is done --------------------------------------------------------------------------------------------


def draft_passes(step: Step) -> Iterable[tuple[Chunk, ...]]:
    """What the drafter computes before a step: in its first pass the prompts' pieces, and for each sequence
    that goes on the one or two tokens that it has not seen; then a token for each that gets a further
    proposal."""
    rounds = [each for each in step.verifications if each.left > 1]
    first = [_draft_chunk(each, each.lag, each.lag + 1) for each in rounds]
    first += [Chunk(p.sequence, p.context, p.new, False) for p in step.prefills]
    if first:
        yield tuple(first)
    for number in range(1, max((each.proposed for each in rounds), default=0)):
        yield tuple(_draft_chunk(each, -number, 1, number) for each in rounds if each.proposed > number)


def _draft_chunk(round: Verification, behind: int, new: int, number: int = 0) -> Chunk:
    return Chunk(round.sequence, round.context - behind, new, round.proposed > number)


class Verified(Decoding):
    """Who decodes, when a round brings some one token and others several: sequence by sequence."""

    def __init__(self, block_tokens: int) -> None:
        super().__init__(block_tokens, None, take_blocks=False)
        self.sequences: dict[int, Sequence] = {}

    def join(self, sequence: Sequence) -> None:
        sequence.joined_round = 0
        self.count += 1
        self.sequences[sequence.number] = sequence

    def leave(self, sequence: Sequence) -> None:
        sequence.joined_round = -1
        self.count -= 1
        del self.sequences[sequence.number]

    def cached(self, sequence: Sequence) -> int:
        return sequence.cached


class SpeculatingScheduler(Scheduler):
    """The scheduler of a model to which a drafter proposes at most `proposed` tokens a round."""

    def __init__(
        self, settings: SchedulerSettings, block_count: int, proposed: int, first_block: int = 0
    ) -> None:
        super().__init__(settings, block_count, first_block=first_block)
        self._most = proposed
        self._verified = self._decoding = Verified(settings.kv_block_tokens)
        self._rounds: dict[int, int] = {}
        """Of the step that is being decided, how many tokens are proposed for each sequence."""

    @property
    def decode_tokens(self) -> int:
        own = self._verified.sequences
        return sum(proposed + 1 for number, proposed in self._rounds.items() if number in own)

    def grow(self) -> None:
        """Give every decoding sequence its proposals, and blocks for them, in the order of admission: as many
        as the token budget has after a token for each, and as the answer may still use."""
        sequences = sorted(self._verified.sequences.values(), key=lambda each: each.order)
        spare = self.settings.max_num_batched_tokens - len(sequences)
        self._rounds = {}
        for sequence in sequences:
            if sequence.is_decoding:
                proposed = min(self._most, sequence.output_tokens - sequence.generated - 1, spare)
                if self._take_blocks(sequence, sequence.cached + proposed + 1):
                    self._rounds[sequence.number] = proposed
                    spare -= proposed

    def chunks(self) -> tuple[Chunk, ...]:
        step = self._pending
        assert step is not None
        return self.with_blocks(step.pieces())

    def with_blocks(self, chunks: Iterable[Chunk]) -> tuple[Chunk, ...]:
        """The same chunks with the blocks of their sequences."""
        return tuple(replace(each, blocks=tuple(self._running[each.sequence].blocks)) for each in chunks)

    def _step(self, decodes: bool, pieces: tuple[Prefill, ...]) -> Step:
        own = self._verified.sequences
        rounds = tuple(
            _verification(own[number], proposed) for number, proposed in self._rounds.items() if number in own
        )
        return Step(0, 0, pieces, tuple(self._preempted), verifications=rounds if decodes else ())

    def _decoded(self, step: Step, accepted: Several[int]) -> tuple[int, list[int]]:
        finished = []
        for round, count in zip(step.verifications, accepted, strict=True):
            assert 0 <= count <= round.proposed, "no more can be accepted than was proposed"
            sequence = self._running[round.sequence]
            sequence.cached += count + 1
            sequence.generated += count + 1
            sequence.lag = int(0 < count == round.proposed)
            if sequence.generated == sequence.output_tokens:
                self._verified.leave(sequence)
                self._release(sequence)
                finished.append(sequence.number)
        return len(step.verifications) + sum(accepted), finished

    def _begin(self, sequence: Sequence, blocks: int, kept: Kept) -> None:
        sequence.lag = 0
        super()._begin(sequence, blocks, kept)

    def _remember(self, sequence: Sequence, cached: int, own: bool = False) -> None:
        """A block can be found once the drafter has filled its own part too."""
        super()._remember(sequence, cached - sequence.lag, own)


def _verification(sequence: Sequence, proposed: int) -> Verification:
    left = sequence.output_tokens - sequence.generated
    return Verification(sequence.number, sequence.cached, proposed, sequence.generated, left, sequence.lag)

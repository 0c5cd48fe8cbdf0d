"""The scheduler of one serving loop: who waits, who runs, and which blocks they hold.

What goes into a step is a policy's to say (`policies`); in which order sequences are admitted, and who gives
way when KV blocks run out, is the queue's (`waiting`). A sequence that gives way is computed again when it is
its turn, or waits in host memory. Everything about decoding sequences is kept by increments (`decoding`), so
that a step costs as much however many they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Several
from dataclasses import dataclass, replace

from simulator.graph.shape import Chunk
from simulator.placement.memory import split_chunks
from simulator.serving.actions import Completed, Prefill, Step
from simulator.serving.blocks import BlockPool, HostBlocks, RememberingPool
from simulator.serving.decoding import Decoding
from simulator.serving.policies import POLICIES
from simulator.serving.sequences import BlockKey, Content, Sequence
from simulator.serving.waiting import ORDERS
from simulator.specs.engine import SchedulerSettings


class Scheduler:
    """The state machine: `add` requests, `decide` on a step, `complete` it."""

    def __init__(
        self, settings: SchedulerSettings, block_count: int, sliding_window: int | None = None,
        first_block: int = 0, host_blocks: range = range(0), prefill_only: bool = False,
    ) -> None:  # fmt: skip
        """host_blocks: numbers of the KV blocks that host memory holds besides. prefill_only: whether
        sequences depart after their first token."""
        self.settings, self.prefill_only = settings, prefill_only
        self.host = HostBlocks(len(host_blocks), host_blocks.start) if host_blocks else None
        self.pool = BlockPool(block_count, first_block)
        if settings.prefix_caching:
            self.pool = RememberingPool(block_count, first_block, self.host)
        self.preemptions = 0
        self.prompt_tokens = 0
        """Of the sequences admitted, what they had to have cached before they could decode."""
        self.reused_tokens = 0
        """Of these, the tokens that were in the cache already."""
        self.batch_open = 0
        """How many more may join the batch, where batches are static."""
        self.block_tokens = settings.kv_block_tokens
        self._waiting = ORDERS[settings.order]()
        self._swapped: dict[int, Sequence] = {}
        self._running: dict[int, Sequence] = {}
        self._prefilling: dict[int, Sequence] = {}
        self._departed: dict[int, Sequence] = {}
        """Those that go on elsewhere, until their blocks have been copied."""
        self._expected: dict[int, Sequence] = {}
        """Those that come from elsewhere, for which blocks are kept."""
        self._decoding = Decoding(self.block_tokens, sliding_window, not settings.full_reservation)
        self._arrived = self._admitted = 0
        self._pending: Step | None = None
        self._preempted: list[int] = []
        self._preempted_in_vain: list[int] = []
        """Sequences that gave way in decisions that came to nothing; the next step tells of them."""
        self._returned: list[int] = []
        """Decoding sequences that were not in the last step with decodes."""

    @property
    def waiting_count(self) -> int:
        return len(self._waiting) + len(self._swapped)

    @property
    def running_count(self) -> int:
        return len(self._running)

    @property
    def decode_count(self) -> int:
        """Sequences that decode."""
        return self._decoding.count

    @property
    def decode_tokens(self) -> int:
        """Tokens that they bring to the step that is being decided."""
        return self._decoding.count

    @property
    def has_preempted(self) -> bool:
        """Whether the decision that is being taken has preempted anybody."""
        return bool(self._preempted)

    @property
    def moves_blocks(self) -> bool:
        """Whether KV blocks may have to be copied before a step."""
        return self.host is not None

    @property
    def peak_blocks(self) -> int:
        """The most blocks that were taken at once."""
        return self.pool.peak_taken

    def add(
        self, number: int, prompt_tokens: int, output_tokens: int, priority: int = 0,
        content: Content | None = None,
    ) -> bool:  # fmt: skip
        """Queue a request; False if it is refused because all blocks together could not hold it, because its
        prompt exceeds what one step takes and may not be cut, or because the queue is full."""
        settings = self.settings
        fits = self.could_hold(prompt_tokens, output_tokens)
        if not settings.chunked_prefill:
            fits = fits and prompt_tokens <= settings.max_num_batched_tokens
        if settings.max_queue is not None:
            fits = fits and self.waiting_count < settings.max_queue
        if fits:
            if content is None and self.pool.remembers:
                content = Content(number, prompt_tokens)
            self._waiting.add(Sequence(number, prompt_tokens, output_tokens, priority, content, self._arrived,
                                       goal=prompt_tokens))  # fmt: skip
            self._arrived += 1
        return fits

    def could_hold(self, prompt_tokens: int, output_tokens: int) -> bool:
        """Whether all blocks together could hold what a request needs of them here."""
        return self._blocks_for(self._most_tokens(prompt_tokens, output_tokens)) <= self.pool.count

    def decide(self) -> Step | None:
        """The next step, or None if there is nothing to do."""
        assert self._pending is None, "the step before has not been completed"
        earlier, self._preempted = self._preempted_in_vain, []
        decodes, pieces = POLICIES[self.settings.policy](self)
        decodes = decodes and self._decoding.count > 0
        self._preempted = earlier + self._preempted
        if not decodes and not pieces:
            self._preempted_in_vain = self._preempted
            return None
        self._preempted_in_vain = []
        self._pending = self._step(decodes, tuple(pieces))
        return self._pending

    def parts(self, microbatches: int) -> tuple[tuple[Chunk, ...], ...]:
        """The pending step's chunks, cut into microbatches of about equally many tokens."""
        chunks = self.chunks()
        return (chunks,) if microbatches == 1 else split_chunks(chunks, microbatches)

    def chunks(self) -> tuple[Chunk, ...]:
        """The pending step's chunks with their blocks: decodes by admission, then prefills."""
        step = self._pending
        assert step is not None
        decoding = [s for s in self._running.values() if s.is_decoding] if step.decode_count else []
        chunks = [Chunk(s.number, self._decoding.cached(s), 1, True, tuple(s.blocks)) for s in decoding]
        for piece in step.prefills:
            blocks = tuple(self._running[piece.sequence].blocks)
            chunks.append(Chunk(piece.sequence, piece.context, piece.new, piece.commits, blocks))
        return tuple(chunks)

    def complete(self, step: Step, accepted: Several[int] = ()) -> Completed:
        """Account for the pending step: tokens committed, sequences that start to decode or are done.

        accepted: of each verification, how many of the proposed tokens.
        """
        assert step is self._pending, "only the step decided last can be completed"
        self._pending = None
        tokens, finished = self._decoded(step, accepted)
        started, resumed, departed = list[int](), list[int](), list[int]()
        for piece in step.prefills:
            sequence = self._running[piece.sequence]
            sequence.cached += piece.new
            self._remember(sequence, sequence.cached)
            if piece.commits:
                tokens += 1
                (resumed if sequence.generated else started).append(sequence.number)
                sequence.generated += 1
                del self._prefilling[sequence.number]
                if sequence.generated == sequence.output_tokens:
                    self._release(sequence)
                    finished.append(sequence.number)
                elif self.prefill_only:
                    self._departed[sequence.number] = self._running.pop(sequence.number)
                    departed.append(sequence.number)
                else:
                    self._decoding.join(sequence)
        return Completed(tuple(started), tuple(resumed), tuple(finished), tokens, tuple(departed))

    def _decoded(self, step: Step, accepted: Several[int]) -> tuple[int, list[int]]:
        """Tokens that decoding sequences got, and those of them that are done."""
        finished = list[int]()
        if step.decode_count:
            self._decoding.advance()
            for sequence in self._decoding.ended():
                self._release(sequence)
                finished.append(sequence.number)
        return step.decode_count, finished

    def abort(self, number: int) -> bool:
        """Forget a request, between two steps; False if it is not here (any more)."""
        if number in self._preempted_in_vain:
            self._preempted_in_vain.remove(number)
        if number in self._departed:
            self.release(number)
            return True
        if number in self._expected:
            self.pool.give_back(self._expected.pop(number).blocks)
            return True
        assert self._pending is None, "a step that is under way cannot be changed"
        if number in self._running:
            sequence = self._running[number]
            if sequence.is_decoding:
                self._decoding.leave(sequence)
            self._forget_return(number)
            self._prefilling.pop(number, None)
            self._release(sequence)
            return True
        if number in self._swapped:
            assert self.host is not None
            self.host.give_back(self._swapped.pop(number).host_blocks)
            return True
        return self._waiting.remove(number)

    def rounds_ahead(self, most: int) -> int:
        """How many steps, the pending one first, are sure to only decode the same sequences: at most
        `most`, none of them brings an end, and all the blocks that those after it need are there.

        Nobody who waits can be admitted meanwhile: what they lack, only an end gives back.
        """
        if not self._only_decodes:
            return 0
        return self._decoding.quiet_rounds(most, self.pool.quiet_count)

    def ends_after(self, rounds: int) -> bool:
        """Whether the step that follows so many of those `rounds_ahead` allows, the pending one if none, only
        decodes too, but brings an end."""
        return self._only_decodes and self._decoding.ends_after(rounds)

    @property
    def _only_decodes(self) -> bool:
        """Whether the pending step decodes and nothing else goes on."""
        step = self._pending
        assert step is not None
        moved = step.saved or step.restored or step.returned
        others = step.prefills or step.preempted or moved or self._prefilling
        return step.decode_count > 0 and not others

    def skip(self, count: int) -> Step:
        """Complete the pending step and those after it, `count` of those `rounds_ahead` allows; the step
        that is pending then."""
        self._preempted = []
        decoding, grow = self._decoding, self.grow
        for _ in range(count):
            decoding.advance()
            if decoding.takers():
                grow()
        self._pending = self._step(True, ())
        return self._pending

    def _step(self, decodes: bool, pieces: tuple[Prefill, ...]) -> Step:
        decoding = self._decoding
        saved, restored = self.host.take_moves() if self.host else ((), ())
        if not decodes:
            return Step(0, 0, pieces, tuple(self._preempted), saved=saved, restored=restored)
        returned, self._returned = tuple(self._returned), []
        return Step(
            decoding.count, decoding.span, pieces, tuple(self._preempted), decoding.window.span,
            decoding.window.growing, saved=saved, restored=restored, returned=returned,
        )  # fmt: skip

    # -- sequences that are handed over -------------------------------------------------------------------

    def departed(self, number: int) -> Sequence:
        """A sequence that goes on elsewhere, as it left."""
        return self._departed[number]

    def release(self, number: int) -> None:
        """Free the blocks of a sequence that has departed; also while a step is under way."""
        self._give_back(self._departed.pop(number))

    def reserve(self, departed: Sequence) -> tuple[int, ...] | None:
        """Keep blocks for a sequence that has departed elsewhere, also while a step is under way; None as
        long as there is no room, or somebody waits already. It counts as running, but is not preempted."""
        cached = departed.cached
        blocks = self._blocks_for(departed.tokens if self.settings.full_reservation else cached)
        if self.waiting_count or not self._is_room(blocks, NOTHING_KEPT):
            return None
        blocks_of_it = self.pool.take(blocks)
        self._expected[departed.number] = replace(
            departed, blocks=blocks_of_it, known_blocks=0, arrival=self._arrived
        )
        self._arrived += 1
        return tuple(self._expected[departed.number].blocks)

    def start(self, number: int) -> None:
        """Let an expected sequence, whose tokens are there now, decode from the next decision on."""
        assert self._pending is None, "a step that is under way cannot be changed"
        sequence = self._expected.pop(number)
        self._enter(sequence, sequence.blocks)
        self._remember(sequence, sequence.cached)
        self._decoding.join(sequence)
        self._returned.append(number)

    # -- what policies are made of --------------------------------------------------------------------------

    def grow(self) -> None:
        """Give a block to every decoding sequence that has filled its own, in the order of admission."""
        takers = self._decoding.takers()
        if not takers:
            return
        pool, full = self.pool, len(takers)
        if full <= pool.free_count:
            if full == 1:
                (sequence,) = takers.values()
                sequence.blocks += pool.take(1)
                return
            for sequence, block in zip(sorted(takers.values(), key=_order), pool.take(full), strict=True):
                sequence.blocks.append(block)
            return
        for sequence in sorted(takers.values(), key=_order):
            if sequence.number in takers:
                self._take_blocks(sequence, self._decoding.cached(sequence) + 1)

    def go_on(self, budget: int) -> list[Prefill]:
        """Pieces of the prefills under way, in the order of admission, of `budget` tokens at most."""
        pieces = []
        for sequence in list(self._prefilling.values()):
            if sequence.number in self._prefilling and budget > 0:
                new = min(budget, sequence.goal - sequence.cached)
                if self._take_blocks(sequence, sequence.cached + new):
                    pieces.append(_piece(sequence, new))
                    budget -= new
        return pieces

    def bring_back(self, budget: int) -> int:
        """Let sequences that were swapped out decode again, in the order in which they left, as long as the
        blocks and a token for each are there; how many."""
        back = 0
        for sequence in list(self._swapped.values()):
            blocks = self._blocks_for(sequence.cached + 1)
            is_room = back < budget and self._has_place
            if not is_room or blocks > self.pool.free_count:
                break
            assert self.host is not None
            del self._swapped[sequence.number]
            self._enter(sequence, self.pool.take(blocks))
            self.host.swap_in(sequence.host_blocks, sequence.blocks[: len(sequence.host_blocks)])
            sequence.host_blocks, sequence.known_blocks = [], 0
            self._decoding.join(sequence)
            self._returned.append(sequence.number)
            back += 1
        return back

    def admit(
        self, budget: int, begun: int, most: int | None = None, whole: bool = False
    ) -> list[Prefill]:
        """Admit waiting sequences in order, at most `most`, and give each its first piece of prefill: as long
        as tokens, sequences and blocks last, and unless somebody waits to be brought back.

        begun: pieces that the step has already. whole: whether blocks for all of a prompt are taken at once,
        even if only a piece of it is computed. They must be where decodes wait for prefills: a prefill that
        could be preempted would be begun again and again.
        """
        settings, pieces = self.settings, list[Prefill]()
        most = len(self._waiting) if most is None else min(most, len(self._waiting))
        if settings.max_prefills_per_step:
            most = min(most, settings.max_prefills_per_step - begun)
        while len(pieces) < most and budget > 0 and not self._swapped:
            sequence = self._waiting.first()
            kept = self._kept(sequence)
            cached = kept.count * self.block_tokens
            new = min(budget, sequence.goal - cached)
            alone = not (pieces or begun or self._decoding.count)
            if cached + new < sequence.goal and not settings.chunked_prefill and not alone:
                # a preempted sequence may have outgrown the budget; it then goes when it is alone
                break
            new = new if settings.chunked_prefill else sequence.goal - cached
            least = sequence.goal if whole else cached + new
            if settings.full_reservation:
                least = self._most_tokens(sequence.prompt_tokens, sequence.output_tokens)
            blocks = self._blocks_for(least)
            if not self._is_room(blocks, kept):
                break
            self._waiting.pop()
            self._begin(sequence, blocks, kept)
            pieces.append(_piece(sequence, new))
            budget -= new
        return pieces

    # -- admission ----------------------------------------------------------------------------------------

    def _kept(self, sequence: Sequence) -> Kept:
        """What is kept of a sequence's tokens. Its last one is computed in any case, for what follows it."""
        if not self.pool.remembers:
            return NOTHING_KEPT
        assert sequence.content is not None
        most = (sequence.goal - 1) // self.block_tokens
        blocks = self.pool.find(self._keys(sequence, range(most)))
        if self.host is None:
            return Kept(tuple(blocks))
        keys = self.host.find(self._keys(sequence, range(len(blocks), most)))
        return Kept(tuple(blocks), tuple(keys))

    def _is_room(self, blocks: int, kept: Kept) -> bool:
        """Whether a sequence may run and get so many blocks, those that are kept among them."""
        if not self._has_place:
            return False
        missing = blocks - len(kept.blocks) + self.pool.free_among(kept.blocks)
        spare = int(self.settings.watermark * self.pool.count) if self._running else 0
        return missing + spare <= self.pool.free_count

    @property
    def _has_place(self) -> bool:
        """Whether one more sequence may be in the engine."""
        return len(self._running) + len(self._expected) < self.settings.max_num_seqs

    def _most_tokens(self, prompt_tokens: int, output_tokens: int) -> int:
        """Those of a request that are to have blocks here in the end."""
        return prompt_tokens if self.prefill_only else prompt_tokens + output_tokens

    def _begin(self, sequence: Sequence, blocks: int, kept: Kept) -> None:
        """Admit a sequence with so many blocks, those that are kept among them."""
        self.pool.share(kept.blocks)
        places = self.host.hold(kept.keys) if self.host else []
        self._enter(sequence, [*kept.blocks, *self.pool.take(blocks - len(kept.blocks))])
        if self.host is not None:
            self.host.copy_in(places, sequence.blocks[len(kept.blocks) : kept.count])
        sequence.cached = kept.count * self.block_tokens
        sequence.known_blocks = len(kept.blocks)
        self._remember(sequence, sequence.cached)
        self.prompt_tokens += sequence.goal
        self.reused_tokens += sequence.cached
        self._prefilling[sequence.number] = sequence

    def _enter(self, sequence: Sequence, blocks: list[int]) -> None:
        sequence.order = self._admitted
        self._admitted += 1
        sequence.blocks = blocks
        self._running[sequence.number] = sequence

    # -- blocks -----------------------------------------------------------------------------------------

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_tokens)

    def _take_blocks(self, sequence: Sequence, tokens: int) -> bool:
        """Let a running sequence hold `tokens`, preempting others until the blocks suffice; False if it had
        to be preempted itself."""
        missing = self._blocks_for(tokens) - len(sequence.blocks)
        while missing > self.pool.free_count:
            victim = self._waiting.victim(self._running)
            self._preempt(victim)
            if victim is sequence:
                return False
        if missing > 0:
            sequence.blocks += self.pool.take(missing)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.preemptions += 1
        self._preempted.append(sequence.number)
        swaps = sequence.is_decoding and self.settings.preemption == "swap"
        if sequence.is_decoding:
            self._decoding.leave(sequence)
        self._forget_return(sequence.number)
        self._prefilling.pop(sequence.number, None)
        self._remember(sequence, sequence.cached, own=True)
        held = sequence.blocks[: self._blocks_for(sequence.cached)]
        if swaps and self.host is not None and len(held) <= self.host.free_count:
            sequence.host_blocks = self.host.swap_out(held)
            self._swapped[sequence.number] = sequence
            self._release(sequence)
            return
        self._release(sequence)
        sequence.cached, sequence.goal = 0, sequence.prompt_tokens + sequence.generated
        self._waiting.put_back(sequence)

    def _forget_return(self, number: int) -> None:
        """A sequence that was to decode again does not."""
        if number in self._returned:
            self._returned.remove(number)

    def _release(self, sequence: Sequence) -> None:
        del self._running[sequence.number]
        self._give_back(sequence)

    def _give_back(self, sequence: Sequence) -> None:
        self.pool.give_back(sequence.blocks)
        sequence.blocks, sequence.known_blocks = [], 0

    def _remember(self, sequence: Sequence, cached: int, own: bool = False) -> None:
        """Let others find what a sequence's full blocks hold, of which so many tokens are cached.

        own: what nobody else can ask for too, for the sequence itself if it gives way.
        """
        if self.pool.remembers:
            assert sequence.content is not None
            full = (cached if own else min(cached, sequence.content.shared_tokens)) // self.block_tokens
            known = range(sequence.known_blocks, full)
            for index, key in zip(known, self._keys(sequence, known), strict=True):
                self.pool.remember(sequence.blocks[index], key)
            sequence.known_blocks = max(full, sequence.known_blocks)

    def _keys(self, sequence: Sequence, blocks: range) -> Iterator[BlockKey]:
        """What some of a sequence's blocks hold when they are full."""
        content = sequence.content
        assert content is not None
        return (content.key((index + 1) * self.block_tokens) for index in blocks)


@dataclass(frozen=True, slots=True)
class Kept:
    """What is there of a sequence's tokens before they are computed: its first blocks, and what host memory
    keeps of those that follow."""

    blocks: tuple[int, ...] = ()
    keys: tuple[BlockKey, ...] = ()

    @property
    def count(self) -> int:
        return len(self.blocks) + len(self.keys)


NOTHING_KEPT = Kept()


def _piece(sequence: Sequence, new: int) -> Prefill:
    return Prefill(sequence.number, sequence.cached, new, sequence.cached + new == sequence.goal)


def _order(sequence: Sequence) -> int:
    return sequence.order

"""The pools of KV blocks: a plain one, one that remembers what returned blocks hold so that other sequences
can use it again, and the one in host memory where blocks go that leave their device."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile

from simulator.serving.actions import Move
from simulator.serving.sequences import BlockKey


class BlockPool:
    """Hands out block numbers; the one returned last goes out first, so stale contents show soonest."""

    remembers = False
    """Whether contents of blocks can be found again."""

    def __init__(self, count: int, first: int = 0) -> None:
        """first: the number of the first block."""
        self.count = count
        self._returned: list[int] = []
        self._next = first
        """The first block that nobody has had; all above are free too. A pool may have millions."""
        self._taken = 0
        self.peak_taken = 0

    @property
    def free_count(self) -> int:
        return self.count - self._taken

    @property
    def quiet_count(self) -> int:
        """Free blocks that can be taken without anything having to be moved first."""
        return self.count - self._taken

    def take(self, count: int) -> list[int]:
        """Take `count` blocks; the caller has checked that so many are free."""
        self._note_taken(count)
        returned = self._returned
        if count == 1 and returned:
            return [returned.pop()]
        again = min(count, len(returned))
        taken = [returned.pop() for _ in range(again)]
        if again < count:
            fresh = range(self._next, self._next + count - again)
            self._next = fresh.stop
            taken += fresh
        return taken

    def give_back(self, blocks: list[int]) -> None:
        self._returned.extend(reversed(blocks))
        self._taken -= len(blocks)
        assert self._taken >= 0, "a block was returned twice"

    def find(self, keys: Iterable[BlockKey]) -> list[int]:
        """The blocks that hold these contents, up to the first that none holds."""
        return []

    def free_among(self, blocks: Sequence[int]) -> int:
        """How many of some found blocks nobody uses."""
        return 0

    def share(self, blocks: Sequence[int]) -> None:
        """Let another sequence use some found blocks."""
        assert not blocks

    def remember(self, block: int, key: BlockKey) -> None:
        """Note what a block holds from now on."""

    def _note_taken(self, count: int) -> None:
        assert count <= self.count - self._taken, "more blocks taken than are free"
        self._taken += count
        if self._taken > self.peak_taken:
            self.peak_taken = self._taken


class RememberingPool(BlockPool):
    """A pool whose returned blocks keep what they hold until they are needed: blocks nobody has had go out
    first, then the one that has been free for longest. Of a sequence's blocks the last counts as free
    before the others, for prefixes are of use to more."""

    remembers = True

    def __init__(self, count: int, first: int = 0, host: HostBlocks | None = None) -> None:
        """host: where contents go when their block is handed out again."""
        super().__init__(count, first)
        self._end = first + count
        self._host = host
        self._free: deque[int] = deque()
        """Blocks that were returned, the first to go out first; some, in `_left_free`, are in use again."""
        self._left_free: Counter[int] = Counter()
        self._sharers: Counter[int] = Counter()
        """Of blocks that several use, how many do besides the first."""
        self._key_of: dict[int, BlockKey] = {}
        self._block_of: dict[BlockKey, int] = {}
        self._unused: set[int] = set()
        """Blocks that hold something to be found and that nobody uses."""

    @property
    def quiet_count(self) -> int:
        return self.free_count if self._host is None else self._end - self._next

    def take(self, count: int) -> list[int]:
        self._note_taken(count)
        fresh = range(self._next, min(self._next + count, self._end))
        self._next = fresh.stop
        taken = list(fresh)
        if len(taken) < count:
            taken += self._take_returned(count - len(taken))
        return taken

    def _take_returned(self, count: int) -> list[int]:
        free, left = self._free, self._left_free
        taken = list[int]()
        while len(taken) < count:
            several = [free.popleft() for _ in range(count - len(taken))]
            taken += [block for block in several if not _struck(left, block)] if left else several
        if self._key_of:
            for block in taken:
                self._forget(block)
        return taken

    def give_back(self, blocks: list[int]) -> None:
        unused = blocks
        if self._sharers:
            unused = [block for block in blocks if not _struck(self._sharers, block)]
        self._free.extend(reversed(unused))
        if self._key_of:
            self._unused.update(block for block in unused if block in self._key_of)
        self._taken -= len(unused)
        assert self._taken >= 0, "a block was returned twice"

    def find(self, keys: Iterable[BlockKey]) -> list[int]:
        found = []
        for key in keys:
            block = self._block_of.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def free_among(self, blocks: Sequence[int]) -> int:
        return sum(block in self._unused for block in blocks)

    def share(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            if block in self._unused:
                self._unused.remove(block)
                self._left_free[block] += 1
                self._note_taken(1)
            else:
                self._sharers[block] += 1

    def remember(self, block: int, key: BlockKey) -> None:
        """Of several blocks that hold the same the first stays the one that is found."""
        if key not in self._block_of:
            self._block_of[key] = block
            self._key_of[block] = key

    def _forget(self, block: int) -> None:
        key = self._key_of.pop(block, None)
        if key is None:
            return
        self._unused.discard(block)
        del self._block_of[key]
        if self._host is not None:
            self._host.save(block, key)


def _struck(counts: Counter[int], block: int) -> bool:
    """Whether a block is counted, and then once less."""
    found = counts.pop(block, 0)
    if found > 1:
        counts[block] = found - 1
    return found > 0


class HostBlocks:
    """KV blocks in host memory: those of sequences that were swapped out, which stay until they return, and
    what was evicted from the device, which makes room again, the longest unused first.

    What leaves a block is copied before what enters one, so no place is written in a decision that reads it.
    """

    def __init__(self, count: int, first: int = 0) -> None:
        """first: the number of the first place."""
        self.count = count
        self._next, self._end = first, first + count
        self._free: list[int] = []
        self._place_of: OrderedDict[BlockKey, int] = OrderedDict()
        """Evicted contents, the longest unused first."""
        self._held: set[int] = set()
        """Their places that are read before the coming step."""
        self._left: list[int] = []
        """Places that are read before the coming step and free after it."""
        self._saved: list[Move] = []
        self._restored: list[Move] = []

    @property
    def free_count(self) -> int:
        """Places that can be written before the coming step."""
        evictable = len(self._place_of) - len(self._held)
        return self._end - self._next + len(self._free) + evictable

    def swap_out(self, blocks: Sequence[int]) -> list[int]:
        """Give some blocks of the device a place; the caller has checked that there is one."""
        places = [self._take() for _ in blocks]
        self._saved += zip(blocks, places, strict=True)
        return places

    def swap_in(self, places: Sequence[int], blocks: Sequence[int]) -> None:
        """Bring back what was swapped out; its places are free from the next decision on."""
        self._restored += zip(places, blocks, strict=True)
        self._left += places

    def give_back(self, places: Sequence[int]) -> None:
        """Free the places of what is needed no more."""
        self._free += places

    def save(self, block: int, key: BlockKey) -> None:
        """Keep what a block of the device holds that is about to be overwritten, if there is a place."""
        if key in self._place_of:
            self._place_of.move_to_end(key)
        elif self.free_count:
            place = self._take()
            self._place_of[key] = place
            self._saved.append((block, place))

    def find(self, keys: Iterable[BlockKey]) -> Iterator[BlockKey]:
        """Of some contents those that are here, up to the first that is not."""
        return takewhile(self._place_of.__contains__, keys)

    def hold(self, keys: Sequence[BlockKey]) -> list[int]:
        """The places of found contents, which stay as they are until the coming step, and are the last to be
        given up after it."""
        places = [self._place_of[key] for key in keys]
        for key in keys:
            self._place_of.move_to_end(key)
        self._held.update(places)
        return places

    def copy_in(self, places: Sequence[int], blocks: Sequence[int]) -> None:
        """Copy held contents to blocks of the device; they stay here too."""
        self._restored += zip(places, blocks, strict=True)

    def take_moves(self) -> tuple[tuple[Move, ...], tuple[Move, ...]]:
        """What has to be copied before the coming step, as (device, host), and then as (host, device)."""
        moves = tuple(self._saved), tuple(self._restored)
        self._free += self._left
        self._saved, self._restored, self._left = [], [], []
        self._held.clear()
        return moves

    def _take(self) -> int:
        if self._free:
            return self._free.pop()
        if self._next < self._end:
            self._next += 1
            return self._next - 1
        key = next(key for key, place in self._place_of.items() if place not in self._held)
        return self._place_of.pop(key)

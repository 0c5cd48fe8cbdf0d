"""The pool of KV blocks."""

from __future__ import annotations


class BlockPool:
    """Hands out block numbers; the one returned last goes out first, so stale contents show soonest."""

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

    def take(self, count: int) -> list[int]:
        """Take `count` blocks; the caller has checked that so many are free."""
        assert count <= self.count - self._taken, "more blocks taken than are free"
        self._taken += count
        if self._taken > self.peak_taken:
            self.peak_taken = self._taken
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

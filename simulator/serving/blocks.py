"""The pool of KV blocks."""

from __future__ import annotations


class BlockPool:
    """Hands out block numbers; the one returned last goes out first, so stale contents show soonest."""

    def __init__(self, count: int, first: int = 0) -> None:
        """first: the number of the first block."""
        self.count, self._first = count, first
        self._returned: list[int] = []
        self._never_taken = 0
        """How many blocks somebody has had; all others are free too. A pool may have millions."""
        self.peak_taken = 0

    @property
    def free_count(self) -> int:
        return len(self._returned) + self.count - self._never_taken

    def take(self, count: int) -> list[int]:
        """Take `count` blocks; the caller has checked that so many are free."""
        assert count <= self.free_count, "more blocks taken than are free"
        again = min(count, len(self._returned))
        taken = self._returned[len(self._returned) - again :][::-1]
        del self._returned[len(self._returned) - again :]
        fresh = range(self._first + self._never_taken, self._first + self._never_taken + count - again)
        self._never_taken += len(fresh)
        self.peak_taken = max(self.peak_taken, self.count - self.free_count)
        return taken + list(fresh)

    def give_back(self, blocks: list[int]) -> None:
        self._returned.extend(reversed(blocks))
        assert self.free_count <= self.count, "a block was returned twice"

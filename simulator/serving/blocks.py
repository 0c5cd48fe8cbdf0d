"""The pool of KV blocks."""

from __future__ import annotations


class BlockPool:
    """Hands out block numbers; the one returned last goes out first, so stale contents show soonest."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = list(range(count - 1, -1, -1))
        self.peak_taken = 0

    @property
    def free_count(self) -> int:
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """Take `count` blocks; the caller has checked that so many are free."""
        assert count <= len(self._free), "more blocks taken than are free"
        if count == 0:
            return []
        taken = self._free[-count:][::-1]
        del self._free[-count:]
        self.peak_taken = max(self.peak_taken, self.count - len(self._free))
        return taken

    def give_back(self, blocks: list[int]) -> None:
        self._free.extend(reversed(blocks))
        assert len(self._free) <= self.count, "a block was returned twice"

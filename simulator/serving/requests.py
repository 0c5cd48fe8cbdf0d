"""Requests, one by one and by the million."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import overload

import numpy as np
from numpy.typing import NDArray

from simulator.specs.trace import Prefixes

_AT_ONCE = 4096
"""Rows that become Python numbers together when one goes through a table."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asks; `sent_s` means nothing in a closed loop, where answers decide when to ask."""

    number: int
    sent_s: float
    prompt_tokens: int
    output_tokens: int
    priority: int = 0
    """The lowest is served first, where the engine goes by it."""
    prefix: tuple[int, ...] = ()
    """What the prompt's tokens are, as an id for each `prefix_block_tokens` of them, the last of which may be
    fewer: the same id says that these tokens and all before them are the same. None: like no other's."""
    prefix_block_tokens: int = 0


@dataclass(frozen=True, eq=False)
class RequestTable(Sequence[Request]):
    """Requests as columns, 16 bytes each; a `Request` is made of a row when it is looked at."""

    numbers: range
    sent_s: NDArray[np.float64]
    prompt_tokens: NDArray[np.int32]
    output_tokens: NDArray[np.int32]
    priorities: NDArray[np.int32] | None = None
    """None: 0 for all."""
    prefixes: Prefixes | None = None

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> Request: ...
    @overload
    def __getitem__(self, index: slice) -> RequestTable: ...
    def __getitem__(self, index: int | slice) -> Request | RequestTable:
        if isinstance(index, slice):
            return RequestTable(
                self.numbers[index], self.sent_s[index], self.prompt_tokens[index], self.output_tokens[index],
                None if self.priorities is None else self.priorities[index],
                None if self.prefixes is None else self.prefixes.rows(index),
            )  # fmt: skip
        row = range(len(self))[index]
        return next(iter(self[row : row + 1]))

    def __iter__(self) -> Iterator[Request]:
        for start in range(0, len(self), _AT_ONCE):
            yield from map(Request, *self[start : start + _AT_ONCE]._as_lists())

    def _as_lists(self) -> Iterator[Sequence[object] | repeat[object]]:
        yield self.numbers
        yield self.sent_s.tolist()
        yield self.prompt_tokens.tolist()
        yield self.output_tokens.tolist()
        yield repeat(0) if self.priorities is None else self.priorities.tolist()
        yield repeat(()) if self.prefixes is None else list(self.prefixes)
        yield repeat(0 if self.prefixes is None else self.prefixes.block_tokens)

    def __eq__(self, other: object) -> bool:
        """Whether the other holds the same requests in the same order, a list or a tuple as well."""
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(mine == its for mine, its in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    @property
    def total_tokens(self) -> NDArray[np.int64]:
        """Prompt and output of each."""
        return self.prompt_tokens.astype(np.int64) + self.output_tokens

"""A request inside the engine, and what its tokens are as far as others may share them."""

from __future__ import annotations

from dataclasses import dataclass, field

BlockKey = tuple[int, int]
"""What a full KV block holds: an id that says its tokens and all before them, and where the block ends."""


@dataclass(frozen=True, slots=True)
class Content:
    """Which tokens a sequence consists of: `ids` for each `id_tokens` of its prompt, as `Request.prefix`
    says; what they do not cover is like nobody else's."""

    number: int
    prompt_tokens: int
    ids: tuple[int, ...] = ()
    id_tokens: int = 1

    @property
    def shared_tokens(self) -> int:
        """The first so many tokens may be like another's."""
        return min(self.prompt_tokens, len(self.ids) * self.id_tokens)

    def key(self, end: int) -> BlockKey:
        """Of the block whose last token is number `end`, counted from 1. Ids are those of whole prefixes, so
        that of the last token speaks for the block and all before it.

        >>> Content(7, prompt_tokens=9, ids=(5, 6), id_tokens=4).key(8)
        (6, 8)
        >>> Content(7, prompt_tokens=9, ids=(5, 6), id_tokens=4).key(12)
        (-8, 12)
        """
        at = (end - 1) // self.id_tokens
        if at < len(self.ids) and end <= self.prompt_tokens:
            return self.ids[at], end
        return ~self.number, end


@dataclass(slots=True)
class Sequence:
    """While it decodes, `cached` and `generated` are as of `joined_round`."""

    number: int
    prompt_tokens: int
    output_tokens: int
    priority: int = 0
    content: Content | None = None
    """None: nothing that anybody shares."""
    arrival: int = 0
    """How many came before it."""
    order: int = -1
    """How many were admitted before it."""
    cached: int = 0
    generated: int = 0
    goal: int = 0
    """Tokens to cache before it decodes: the prompt, and what was generated before a preemption."""
    joined_round: int = -1
    """The decode round it joined in, or -1 while it does not decode."""
    blocks: list[int] = field(default_factory=list)
    known_blocks: int = 0
    """Of its blocks, the first so many whose content others can find."""
    lag: int = 0
    """Of its cached tokens the last so many that a drafter has not seen."""
    host_blocks: list[int] = field(default_factory=list)
    """Where its cached tokens wait, after it was preempted by swapping."""
    epoch: int = 0

    @property
    def is_decoding(self) -> bool:
        return self.joined_round >= 0

    @property
    def tokens(self) -> int:
        """Of the prompt and the whole answer."""
        return self.prompt_tokens + self.output_tokens

"""From text to a model's ids and back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from simulator.errors import InputError, Problem

UNFINISHED = "\ufffd"
"""What a decoder writes where the bytes so far are no whole character."""


class Tokenizer(Protocol):
    """What a model reads text through."""

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, control tokens by their names."""


class Bytes:
    """The bytes of UTF-8 as ids, for models that come without a tokenizer."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode(errors="replace")


class TokenizerFile:
    """A `tokenizer.json`, as the library tokenizers reads it."""

    def __init__(self, path: Path) -> None:
        """Raises InputError for a file that it cannot read."""
        import tokenizers

        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower
            advice = f"cannot be read as a tokenizer ({error}); save it again with save_pretrained"
            raise InputError([Problem(path, advice=advice)]) from None
        self.largest_id = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)

    def encode(self, text: str) -> list[int]:
        """A token that the model wants before every text comes first, as the file says."""
        return self._tokenizer.encode(text).ids

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)


def pieces(tokenizer: Tokenizer, before: Sequence[int], ids: Sequence[int]) -> list[str]:
    """What each id adds to the text after `before`; together they are all of it.

    A character that several ids make up comes with the last of them. Texts are compared whole because the
    first word after nothing is written otherwise than after others, in some vocabularies without its space.
    """
    found: list[str] = []
    shown = len(tokenizer.decode(before))
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode([*before, *ids[:end]])
        waits = text.endswith(UNFINISHED) and end < len(ids)
        found.append("" if waits else text[shown:])
        shown = shown if waits else len(text)
    return found

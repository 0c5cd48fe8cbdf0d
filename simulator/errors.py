"""What can go wrong, as a person should see it.

    SimulatorError          anything a command reports without a traceback
    └── InputError          a file, option or argument is wrong; carries every problem found

A broken invariant of our own is an `assert`, never one of these.
"""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

_LONGEST_VALUE = 60


class SimulatorError(Exception):
    """Base of every error that is meant for the person at the keyboard."""


@dataclass(frozen=True)
class Problem:
    """One thing wrong in one place of a person's input, with the way out."""

    path: str | Path
    line: int | None = None
    column: int | None = None
    key: str | None = None
    value: object = None
    """As the file has it; None is not shown."""
    advice: str = ""

    def __str__(self) -> str:
        place = ":".join(str(part) for part in (self.path, self.line, self.column) if part is not None)
        shown = "" if self.value is None else f" = {shorten(self.value)}"
        subject = f"{self.key}{shown}: " if self.key else ""
        return f"{place}: {subject}{self.advice}"


class InputError(SimulatorError):
    """Wrong input: all problems at once, one line each."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        assert problems, "an InputError needs a problem"
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))

    def __reduce__(self) -> tuple[type["InputError"], tuple[tuple[Problem, ...]]]:
        return type(self), (self.problems,)


def shorten(value: object) -> str:
    """`value` as an error line shows it: quoted if text, cut if long."""
    text = repr(str(value)) if isinstance(value, str) else str(value)
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + "..."


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest known word, or nothing.

    >>> did_you_mean("bandwith", ["bandwidth", "latency"])
    "; did you mean 'bandwidth'?"
    """
    near = difflib.get_close_matches(str(word), list(known), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""

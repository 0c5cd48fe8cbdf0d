"""Reading single fields of somebody else's configuration, keeping every problem with its place.

A field that is wrong or missing yields a harmless stand-in, so that reading goes on and all
problems are found; the caller looks at `problems` before it uses anything.
"""

import math
from collections.abc import Iterable
from typing import Any

from simulator.errors import Problem, did_you_mean
from simulator.specs.yaml_file import Document, Loc

MOST_SIZE = 10**8
"""More than any width, vocabulary or context of a model."""


class ConfigFields:
    """The fields of the mapping at one place of a document."""

    def __init__(self, document: Document, prefix: Loc, problems: list[Problem] | None = None) -> None:
        self.document = document
        self.prefix = prefix
        self.problems: list[Problem] = [] if problems is None else problems
        data = document.at(prefix)
        self.data: dict[str, Any] = data if isinstance(data, dict) else {}
        if data is not None and not isinstance(data, dict):
            self.problems.append(document.problem(prefix, "write a mapping of keys"))

    def get(self, key: str) -> Any:
        """The value of a key; None where it is absent or null."""
        return self.data.get(key)

    def section(self, key: str) -> "ConfigFields":
        """The fields of a mapping inside; its problems join these."""
        return ConfigFields(self.document, (*self.prefix, key), self.problems)

    def complain(self, key: str, advice: str) -> None:
        """Note a problem with a key, at its value if it is there."""
        loc = (*self.prefix, key)
        self.problems.append(
            self.document.problem(loc, advice, value=self.get(key), at_key=self.get(key) is None)
        )

    def family(self, known: tuple[str, ...]) -> str:
        """`model_type`, if it is one of the known."""
        stated = self.get("model_type")
        if stated in known:
            return str(stated)
        hint = "" if stated is None else did_you_mean(stated, known)
        self.complain("model_type", f"the known families are: {', '.join(known)}{hint}")
        return ""

    def size(self, key: str, default: int | None = None, most: int = MOST_SIZE) -> int:
        """A whole number from 1 to `most`; without a default the key is needed."""
        if self.get(key) is None and default is not None:
            return default
        value = self._value(key, None)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            self.complain(key, "write a whole number above 0")
            return 1
        if value > most:
            self.complain(key, f"must be at most {most:,}")
            return 1
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number above 0; without a default the key is needed."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            self.complain(key, "write a number above 0")
            return 1.0
        return float(value)

    def flag(self, key: str, *, default: bool) -> bool:
        """True or false."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            self.complain(key, "write true or false")
            return default
        return value

    def word(self, key: str, known: Iterable[str], *, default: str) -> str:
        """One of the known words."""
        value = self._value(key, default)
        if value not in (choices := list(known)):
            self.complain(key, f"not one of: {', '.join(choices)}{did_you_mean(value, choices)}")
            return default
        return str(value)

    def refuse_unless(self, key: str, harmless: object, advice: str) -> None:
        """Note a problem if a field is there with a value that would change results."""
        value = self.get(key)
        values = value if isinstance(value, list) else [value]
        if any(each is not None and each != harmless for each in values):
            self.complain(key, advice)

    def must_divide(self, whole_key: str, part: int, part_key: str) -> None:
        """Note a problem if `part` does not divide the number at `whole_key`."""
        whole = self.get(whole_key)
        if isinstance(whole, int | float) and whole % part:
            self.complain(part_key, f"must divide {whole_key} = {whole}")

    def _value(self, key: str, default: object) -> Any:
        """The value, its default if absent, or a stand-in of the right type after a complaint."""
        value = self.get(key)
        if value is not None:
            return value
        if default is None:
            self.complain(key, "missing; this field is needed")
            return 1
        return default

"""Reading single fields of somebody else's configuration, keeping every problem with its place.

A field that is wrong or missing yields a harmless stand-in, so that reading goes on and all
problems are found; the caller looks at `problems` before it uses anything. Reading a field twice
notes its problem once.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from simulator.errors import Problem, did_you_mean
from simulator.specs.yaml_file import Document, Loc

MOST_SIZE = 10**8
"""More than any width, vocabulary or context of a model."""
MOST_NUMBER = 1e12
"""More than any base of rotary angles or factor of a model."""

Key = str | int
"""An int where the fields are the elements of a list."""


class ConfigFields:
    """The fields of the mapping at one place of a document."""

    def __init__(self, document: Document, prefix: Loc, problems: list[Problem] | None = None) -> None:
        self.document = document
        self.prefix = prefix
        self.problems: list[Problem] = [] if problems is None else problems
        self.wrong: set[Key] = set()
        """Keys that have been complained about."""
        data = document.at(prefix)
        self.data: dict[Key, Any] = data if isinstance(data, dict) else {}
        if data is not None and not isinstance(data, dict):
            self._note(document.problem(prefix, "write a mapping of keys"))

    def get(self, key: Key) -> Any:
        """The value of a key; None where it is absent or null."""
        return self.data.get(key)

    def section(self, *keys: Key) -> "ConfigFields":
        """The fields of a mapping inside; its problems join these."""
        return ConfigFields(self.document, (*self.prefix, *keys), self.problems)

    def complain(self, key: Key, advice: str) -> None:
        """Note a problem with a key, at its value if it is there."""
        loc = (*self.prefix, key)
        self.wrong.add(key)
        self._note(self.document.problem(loc, advice, value=self.get(key), at_key=self.get(key) is None))

    def is_right(self, *keys: Key) -> bool:
        """Whether nobody has complained about any of these, so that a rule over them can be checked."""
        return self.wrong.isdisjoint(keys)

    def family(self, known: Sequence[str]) -> str:
        """`model_type`, if it is one of the known."""
        stated = self.get("model_type")
        if stated in known:
            return str(stated)
        hint = "" if stated is None else did_you_mean(stated, known)
        self.complain("model_type", f"the known families are: {', '.join(known)}{hint}")
        return ""

    def size(self, key: Key, default: int | None = None, *, most: int = MOST_SIZE, least: int = 1) -> int:
        """A whole number from `least` to `most`; without a default the key is needed."""
        if self.get(key) is None and default is not None:
            return default
        value = self._value(key, None)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            self.complain(key, "write a whole number above 0" if least else "write a whole number from 0")
            return 1
        if value > most:
            self.complain(key, f"must be at most {most:,}")
            return 1
        return value

    def size_or_null(self, key: str, default: int | None) -> int | None:
        """A size that null leaves out; where the key is absent, the default."""
        if key not in self.data:
            return default
        return None if self.get(key) is None else self.size(key)

    def number(self, key: Key, default: float | None = None) -> float:
        """A finite number above 0; without a default the key is needed."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            self.complain(key, "write a number above 0")
            return 1.0
        if value > MOST_NUMBER:
            self.complain(key, f"must be at most {MOST_NUMBER:g}")
            return 1.0
        return float(value)

    def number_or_null(self, key: str, default: float | None) -> float | None:
        """A number that null leaves out; where the key is absent, the default."""
        if key not in self.data:
            return default
        return None if self.get(key) is None else self.number(key)

    def flag(self, key: Key, *, default: bool) -> bool:
        """True or false."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            self.complain(key, "write true or false")
            return default
        return value

    def word(self, key: Key, known: Iterable[str], *, default: str) -> str:
        """One of the known words."""
        value = self._value(key, default)
        if value not in (choices := list(known)):
            self.complain(key, f"not one of: {', '.join(choices)}{did_you_mean(value, choices)}")
            return default
        return str(value)

    def words(self, key: str, known: Sequence[str], count: int) -> list[str]:
        """A list of `count` of the known words."""
        values = self._elements(key, count)
        return [values.word(index, known, default=known[0]) for index in range(count)]

    def sizes(self, key: str, count: int) -> list[int]:
        """A list of `count` whole numbers above 0."""
        values = self._elements(key, count)
        return [values.size(index, None if values.data else 1) for index in range(count)]

    def sections(self, key: str, count: int) -> list["ConfigFields"]:
        """A list of `count` mappings; an empty one after a complaint."""
        return [self.section(key, index) for index in self._elements(key, count).data]

    def indices(self, key: str) -> frozenset[int]:
        """A list, of any length, of whole numbers from 0; empty if absent."""
        count = len(value) if isinstance(value := self.get(key), list) else 0
        if not count and value in (None, []):
            return frozenset()
        values = self._elements(key, count)
        return frozenset(values.size(index, least=0) for index in range(count))

    def refuse_unless(self, key: Key, harmless: object, advice: str) -> None:
        """Note a problem if a field is there with a value that would change results."""
        value = self.get(key)
        values = value if isinstance(value, list) else [value]
        if any(each is not None and each != harmless for each in values):
            self.complain(key, advice)

    def must_divide(self, whole_key: str, part: int, part_key: str) -> None:
        """Note a problem if `part` does not divide the number at `whole_key`."""
        whole = self.get(whole_key)
        if isinstance(whole, int | float) and self.is_right(whole_key, part_key) and whole % part:
            self.complain(part_key, f"must divide {whole_key} = {whole}")

    def _value(self, key: Key, default: object) -> Any:
        """The value, its default if absent, or a stand-in of the right type after a complaint."""
        value = self.get(key)
        if value is not None:
            return value
        if default is None:
            self.complain(key, "missing; this field is needed")
            return 1
        return default

    def _elements(self, key: str, count: int) -> "ConfigFields":
        """The elements of a list, by index; none, after a complaint, if it is not one of `count`."""
        elements = ConfigFields(Document(self.document.path, None, self.document.marks), (), self.problems)
        elements.document, elements.prefix = self.document, (*self.prefix, key)
        value = self.get(key)
        if not isinstance(value, list):
            self.complain(key, "missing; this field is needed" if value is None else "write a list")
        elif len(value) != count and self.is_right("num_hidden_layers"):
            self.complain(key, f"write one for each of {count} layers; there are {len(value)}")
        else:
            elements.data = dict(enumerate(value[:count]))
        return elements

    def _note(self, problem: Problem) -> None:
        if problem not in self.problems:
            self.problems.append(problem)

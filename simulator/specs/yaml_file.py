"""Reading YAML (and so JSON) with the position of every key and value.

Scalars follow the core schema of YAML 1.2: `1e3` is a number, `on` and `no` are words, `017` is 17,
nothing is a date. A key written twice is a problem, never silently dropped. There are no merge keys.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TextIO

import yaml

from simulator.errors import InputError, Problem

Loc = tuple[str | int, ...]
"""The keys and list indices that lead to one value."""

MOST_DEPTH = 100
"""How deep lists and mappings may be nested; no file that makes sense comes near it."""

_MOST_VALUES = 300_000
"""How many values a file may hold once every alias is written out."""

_MOST_DIGITS = 100

_TAG = "tag:yaml.org,2002:"
_COLLECTION_TAGS = {_TAG + "map", _TAG + "seq"}
_INT = r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"
_FLOAT = (
    r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)


class _Loader(yaml.CSafeLoader):
    """CSafeLoader without the resolvers of YAML 1.1; those of 1.2 are added below."""


_Loader.yaml_implicit_resolvers = {}


def _resolve(kind: str, pattern: str, first: Iterable[str]) -> None:
    _Loader.add_implicit_resolver(_TAG + kind, re.compile(f"^(?:{pattern})$"), list(first))


_resolve("bool", "true|True|TRUE|false|False|FALSE", "tTfF")
_resolve("null", "~|null|Null|NULL|", ["~", "n", "N", ""])
_resolve("int", _INT, "-+0123456789")
_resolve("float", _FLOAT, "-+.0123456789")


class Text(str):
    """A string of a file that knows where it stands."""

    loc: Loc = ()


@dataclass(frozen=True)
class Mark:
    """Where one key and its value stand; lines and columns count from 1."""

    path: str | Path
    key_line: int | None
    key_column: int | None
    line: int | None
    column: int | None


@dataclass(frozen=True)
class Document:
    """One file's content as plain dicts, lists and scalars, and the mark of every place in it."""

    path: str | Path
    data: Any
    marks: Mapping[Loc, Mark] = field(repr=False)

    def at(self, loc: Loc) -> Any:
        """The value at `loc`; None where there is nothing."""
        value = self.data
        for step in loc:
            try:
                value = value[step]
            except (KeyError, IndexError, TypeError):
                return None
        return value

    def problem(self, loc: Loc, advice: str, *, value: object = None, at_key: bool = False) -> Problem:
        """A Problem at `loc`, or at the nearest thing that encloses it and is in the file."""
        near = loc
        while near and near not in self.marks:
            near = near[:-1]
        mark = self.marks.get(near) or Mark(self.path, 1, 1, 1, 1)
        by_key = at_key or near != loc
        line, column = (mark.key_line, mark.key_column) if by_key else (mark.line, mark.column)
        shown = value if value is None or isinstance(value, str | int | float) else None
        return Problem(mark.path, line, column, dotted(loc) or None, shown, advice)


def dotted(loc: Loc) -> str:
    """`loc` as people write it: `placements.1.degree`."""
    return ".".join(str(step) for step in loc)


def plain(value: Any) -> Any:
    """`value` with every Text a bare string, as for a YAML or JSON dump."""
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return str(value) if isinstance(value, str) else value


def leaves(value: Any, loc: Loc = ()) -> Iterator[tuple[Loc, Any]]:
    """Every scalar under `value` with its place, in file order."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from leaves(each, (*loc, key))
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from leaves(each, (*loc, index))
    else:
        yield loc, value


def read_document(path: str | Path) -> Document:
    """The document in a file; raises InputError when it cannot be read or is not YAML."""
    return parse_document(read_text(path), path)


def read_text(path: str | Path) -> str:
    """The text of a file; raises InputError where there is none."""
    with open_text(path, newline=None) as file:
        return file.read()


@contextmanager
def open_text(path: str | Path, newline: str | None = "") -> Iterator[TextIO]:
    """A file to read as text, line ends as they are if not asked otherwise; raises InputError where it cannot
    be read, or is no text."""
    try:
        with Path(path).open(encoding="utf-8-sig", newline=newline) as file:
            yield file
    except FileNotFoundError:
        _refuse(path, "no such file")
    except IsADirectoryError:
        _refuse(path, "this is a folder, not a file")
    except UnicodeDecodeError:
        _refuse(path, "not a text file (UTF-8)")
    except OSError as error:
        _refuse(path, f"cannot be read: {error.strerror}")


def parse_document(text: str, path: str | Path, at: Loc = ()) -> Document:
    """The document that `text` holds; `path` is what its problems name, `at` the place of its top."""
    if Path(path).suffix == ".json":
        text = text.replace("\t", " ")  # JSON may be indented by tabs, YAML may not
    builder = _Builder(path)
    node = _compose(text, path)
    try:
        data = builder.build(node, at, None) if node is not None else None
    except _TooManyError:
        advice = f"holds more than {_MOST_VALUES:,} values, aliases written out"
        raise InputError([Problem(path, 1, 1, advice=advice)]) from None
    if builder.problems:
        raise InputError(builder.problems)
    return Document(path, data, builder.marks)


def _compose(text: str, path: str | Path) -> yaml.Node | None:
    loader = None
    try:
        _refuse_depth(text, path)
        loader = _Loader(text)
        return loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (None, None)
        # newer libraries refuse 1,000 levels themselves, before any event tells of the hundredth
        is_deep = "nesting depth" in (error.problem or "")
        advice = _TOO_DEEP if is_deep else f"not valid YAML: {error.problem}"
        raise InputError([Problem(path, line, column, advice=advice)]) from None
    except yaml.YAMLError as error:
        first_line = str(error).splitlines()[0]
        raise InputError([Problem(path, 1, 1, advice=f"not valid YAML: {first_line}")]) from None
    finally:
        if loader is not None:
            loader.dispose()


def _refuse_depth(text: str, path: str | Path) -> None:
    """Raise InputError before nodes are composed, which overflows the stack of a deep enough file."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MOST_DEPTH:
            at = event.start_mark
            assert at is not None, "the parser marks every event"
            raise InputError([Problem(path, at.line + 1, at.column + 1, advice=_TOO_DEEP)])


def _refuse(path: str | Path, advice: str) -> NoReturn:
    raise InputError([Problem(path, advice=advice)]) from None


_TOO_DEEP = f"nested too deep; write at most {MOST_DEPTH} lists or mappings inside one another"


class _TooLongError(ValueError):
    """A whole number that is no figure of anything."""


class _TooManyError(Exception):
    """Aliases of aliases hold more than any memory does."""


class _Builder:
    """Turns nodes into data, noting marks and problems on the way."""

    def __init__(self, path: str | Path) -> None:
        self.path = path
        self.marks: dict[Loc, Mark] = {}
        self.problems: list[Problem] = []
        self.open: set[int] = set()

    def build(self, node: yaml.Node, loc: Loc, key: yaml.Node | None) -> Any:
        if len(self.marks) >= _MOST_VALUES:
            raise _TooManyError
        at, key_at = node.start_mark, (key or node).start_mark
        self.marks[loc] = Mark(self.path, key_at.line + 1, key_at.column + 1, at.line + 1, at.column + 1)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, loc)
        if id(node) in self.open:
            return self._complain(node, loc, "an alias may not contain itself")
        if node.tag not in _COLLECTION_TAGS:
            return self._complain(node, loc, f"tags such as {node.tag} are not supported")
        if len(loc) >= MOST_DEPTH:
            return self._complain(node, loc[:1], _TOO_DEEP)
        self.open.add(id(node))
        built = self._mapping(node, loc) if isinstance(node, yaml.MappingNode) else self._list(node, loc)
        self.open.remove(id(node))
        return built

    def _list(self, node: yaml.Node, loc: Loc) -> list[Any]:
        return [self.build(each, (*loc, index), None) for index, each in enumerate(node.value)]

    def _mapping(self, node: yaml.MappingNode, loc: Loc) -> dict[str, Any]:
        built: dict[str, Any] = {}
        first_lines: dict[str, int] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self._complain(key, loc, "a key is a single word")
                continue
            name = str(key.value)
            if name in built:
                self._complain(key, (*loc, name), f"duplicate key, first at line {first_lines[name]}")
                continue
            first_lines[name] = key.start_mark.line + 1
            built[name] = self.build(value, (*loc, name), key)
        return built

    def _scalar(self, node: yaml.ScalarNode, loc: Loc) -> Any:
        kind = node.tag.removeprefix(_TAG)
        try:
            return _SCALARS[kind](node.value, loc)
        except KeyError:
            return self._complain(node, loc, f"tags such as {node.tag} are not supported")
        except _TooLongError:
            return self._complain(node, loc, f"a number of more than {_MOST_DIGITS} digits; write a smaller")
        except ValueError:
            return self._complain(node, loc, f"'{node.value[:30]}' is not of type {kind}")

    def _complain(self, node: yaml.Node, loc: Loc, advice: str) -> None:
        at = node.start_mark
        self.problems.append(
            Problem(self.path, at.line + 1, at.column + 1, dotted(loc) or None, None, advice)
        )


def _text(value: str, loc: Loc) -> Text:
    text = Text(value)
    text.loc = loc
    return text


def _int(value: str, loc: Loc) -> int:
    if len(value) > _MOST_DIGITS:
        raise _TooLongError
    prefix = value[:2]
    return int(value, 8 if prefix == "0o" else 16) if prefix in ("0o", "0x") else int(value)


def _float(value: str, loc: Loc) -> float:
    return float(value.lower().replace(".inf", "inf").replace(".nan", "nan"))


_SCALARS: dict[str, Callable[[str, Loc], Any]] = {
    "str": _text,
    "int": _int,
    "float": _float,
    "bool": lambda value, loc: value.lower() == "true",
    "null": lambda value, loc: None,
}

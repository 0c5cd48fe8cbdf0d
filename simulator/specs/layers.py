"""Which value wins: a base file, then the scenario, then the command line; each keeps its origin."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from simulator.errors import InputError, Problem, shorten
from simulator.specs.base import is_file
from simulator.specs.yaml_file import MOST_DEPTH, Document, Loc, Mark, dotted, parse_document, read_document


def read_layers(path: str | Path, overrides: Sequence[str] = ()) -> Document:
    """The scenario in a file with its base below it and `--set` values above; raises InputError."""
    own = read_document(path)
    if not isinstance(own.data, dict):
        raise InputError([own.problem((), "write a mapping of keys, one 'key: value' a line")])
    document = _on_its_base(own, Path(path).parent)
    for override in overrides:
        document = with_override(document, override)
    return document


def base_folder(path: str | Path) -> Path:
    """The folder of the file that a scenario extends; its own where it extends none."""
    data = read_document(path).data
    extends = data.get("extends") if isinstance(data, dict) else None
    return (Path(path).parent / str(extends)).parent if extends else Path(path).parent


def _on_its_base(own: Document, folder: Path) -> Document:
    extends = own.data.get("extends")
    if extends is None:
        return own
    if not isinstance(extends, str):
        raise InputError([own.problem(("extends",), "write the path of one file")])
    base_path = folder / extends
    if not is_file(base_path):
        raise InputError([own.problem(("extends",), f"no such file: {base_path}", value=extends)])
    base = read_document(base_path)
    if not isinstance(base.data, dict):
        raise InputError([base.problem((), "write a mapping of keys, one 'key: value' a line")])
    if base.data.get("extends") is not None:
        raise InputError([base.problem(("extends",), "a base file may not extend another")])
    merged = merge(base, own)
    data = {key: value for key, value in merged.data.items() if key != "extends"}
    return Document(own.path, data, merged.marks)


def merge(base: Document, over: Document) -> Document:
    """`over` on top of `base`: mappings key by key, everything else replaced."""
    replaced: list[Loc] = []
    data = _merge(base.data, over.data, (), replaced)
    kept = {loc: mark for loc, mark in base.marks.items() if not _under_any(loc, replaced)}
    return Document(over.path, data, kept | dict(over.marks))


def _merge(base: Any, over: Any, loc: Loc, replaced: list[Loc]) -> Any:
    if not (isinstance(base, dict) and isinstance(over, dict) and _same_kind(base, over, loc)):
        replaced.append(loc)
        return over
    merged = dict(base)
    for key, value in over.items():
        merged[key] = _merge(base[key], value, (*loc, key), replaced) if key in base else value
    return merged


def _same_kind(base: dict[str, Any], over: dict[str, Any], loc: Loc) -> bool:
    """Whether two mappings describe the same thing; a Poisson process and a batch do not."""
    if loc == ("workload", "arrivals"):
        return bool(over.get("process", base.get("process")) == base.get("process"))
    return loc != ("workload", "lengths") or not over.keys().isdisjoint(base)


def _under_any(loc: Loc, tops: Sequence[Loc]) -> bool:
    return any(loc[: len(top)] == top for top in tops)


def with_override(document: Document, override: str) -> Document:
    """`document` with one key replaced, as `a.b=c` says; a list takes its index as a key."""
    origin = f"--set {override}"
    name, equals, text = override.partition("=")
    steps = name.strip().split(".")
    if not equals or not all(steps):
        raise InputError([Problem(origin, advice="write key=value, such as workload.requests=100")])
    if steps[0] == "extends":
        advice = "only a file can say what it extends; write 'extends' there, or set the keys you mean"
        raise InputError([Problem(origin, key="extends", advice=advice)])
    if len(steps) > MOST_DEPTH:
        raise InputError([Problem(origin, advice=f"more than {MOST_DEPTH} keys deep")])
    loc = _locate(document.data, steps, origin)
    parsed = _parse_value(text, origin, loc)
    marks = {each: mark for each, mark in document.marks.items() if not _under_any(each, [loc])}
    marks |= {loc[:depth]: _unplaced(origin) for depth in range(1, len(loc)) if loc[:depth] not in marks}
    marks |= {each: _unplaced(origin) for each in (loc, *parsed.marks)}
    return Document(document.path, put(document.data, loc, parsed.data), marks)


def _parse_value(text: str, origin: str, loc: Loc) -> Document:
    try:
        return parse_document(text, origin, at=loc)
    except InputError as error:
        raise InputError([replace(each, line=None, column=None) for each in error.problems]) from None


def _unplaced(origin: str) -> Mark:
    return Mark(origin, None, None, None, None)


def _locate(data: Any, steps: Sequence[str], origin: str) -> Loc:
    """`steps` with the indices of lists as numbers; raises InputError where they lead nowhere."""
    loc: Loc = ()
    for step in steps:
        if isinstance(data, list):
            if not (re.fullmatch("[0-9]{1,9}", step) and int(step) < len(data)):
                entries = f"its entries are 0 to {len(data) - 1}" if data else "it has no entries"
                advice = f"{dotted(loc)} is a list; {entries}, not {shorten(step)}"
                raise InputError([Problem(origin, advice=advice)])
            loc, data = (*loc, int(step)), data[int(step)]
        elif data is None or isinstance(data, dict):
            loc, data = (*loc, step), (data or {}).get(step)
        else:
            raise InputError(
                [Problem(origin, advice=f"{dotted(loc)} is a single value and has no key '{step}'")]
            )
    return loc


def put(data: Any, loc: Loc, value: Any) -> Any:
    """A copy of `data` with `value` at `loc`; mappings on the way are made where missing."""
    if not loc:
        return value
    first, rest = loc[0], loc[1:]
    if isinstance(data, list):
        assert isinstance(first, int)
        return [put(each, rest, value) if index == first else each for index, each in enumerate(data)]
    inner = dict(data or {})
    inner[str(first)] = put(inner.get(str(first)), rest, value)
    return inner

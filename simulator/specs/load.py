"""One file to one frozen record, with every problem of the file at once."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from simulator.errors import InputError, Problem, did_you_mean
from simulator.specs.base import Case, LoadContext, Spec
from simulator.specs.provenance import Figure, Source, covers, figures_of, source_problems
from simulator.specs.yaml_file import Document, Loc, read_document

T = TypeVar("T", bound=Spec)


@dataclass(frozen=True)
class Loaded(Generic[T]):
    """A record and the uncertain figures met on the way to it."""

    record: T
    figures: tuple[Figure, ...]


def load(path: str | Path, spec_type: type[T], case: Case = "nominal") -> T:
    """The record in a file, its ranges resolved for `case`; raises InputError with every problem."""
    return load_with_figures(path, spec_type, case).record


def load_with_figures(path: str | Path, spec_type: type[T], case: Case = "nominal") -> Loaded[T]:
    """As `load`, together with the figures that are ranges or unknown."""
    return validate(
        read_document(path), spec_type, LoadContext(case, folders=(Path(path).parent, Path.cwd()))
    )


def validate(document: Document, spec_type: type[T], context: LoadContext) -> Loaded[T]:
    """The record that a document holds; raises InputError with every problem."""
    record, problems = try_validate(document, spec_type, context)
    if isinstance(document.data, dict) and "sources" in spec_type.model_fields:
        found = source_problems(document, spec_type.without_source, needs_cover=spec_type.needs_sources)
        blamed = [each.key for each in problems if each.key]
        problems += [each for each in found if not any(covers(key, each.key or "") for key in blamed)]
    if record is None or problems:
        raise InputError(in_file_order(problems))
    sources: dict[str, Source] = getattr(record, "sources", {})
    return Loaded(record, figures_of(context.uncertain, sources))


def in_file_order(problems: Sequence[Problem]) -> list[Problem]:
    """Problems by file and place, each once."""
    unique = dict.fromkeys(problems)
    return sorted(unique, key=lambda each: (str(each.path), each.line or 0, each.column or 0))


def try_validate(
    document: Document,
    spec_type: type[T],
    context: LoadContext,
    original: Callable[[Loc], Loc] = lambda loc: loc,
    marked: Document | None = None,
) -> tuple[T | None, list[Problem]]:
    """The record or the problems; `original` maps places in `document` to places in `marked`."""
    if not isinstance(document.data, dict):
        return None, [document.problem((), "write a mapping of keys, one 'key: value' a line")]
    try:
        return spec_type.model_validate(document.data, context=context, by_alias=True, by_name=False), []
    except ValidationError as error:
        details = error.errors(include_url=False)
    return None, [_problem(each, document, context, original, marked or document) for each in details]


def _problem(
    error: ErrorDetails,
    document: Document,
    context: LoadContext,
    original: Callable[[Loc], Loc],
    marked: Document,
) -> Problem:
    loc = place(error["loc"], document.data) + _named_key(error)
    advice = _advice(error, loc, document, context)
    value = document.at(loc)
    blames_key = error["type"] in _POINTS_AT_KEY or error["loc"][-1:] == ("[key]",)
    by_key = blames_key or isinstance(value, dict | list)
    return marked.problem(original(loc), advice, value=value, at_key=by_key)


_POINTS_AT_KEY = {"extra_forbidden", "missing"}


def place(loc: Loc, data: Any) -> Loc:
    """pydantic's `loc` without the tags of unions, which stand for no key of the file."""
    found: list[str | int] = []
    for index, step in enumerate(loc):
        inside = _step(data, step)
        if inside is not _NOTHING:
            data = inside
        elif index < len(loc) - 1 or step == "[key]" or str(step).startswith("<"):
            continue
        found.append(step)
    return tuple(found)


_NOTHING = object()


def _step(data: Any, step: str | int) -> Any:
    if isinstance(data, dict) and step in data:
        return data[step]
    if isinstance(data, list) and isinstance(step, int) and step < len(data):
        return data[step]
    return _NOTHING


def _named_key(error: ErrorDetails) -> Loc:
    """The key below the record that a rule over several fields, or a union, blames."""
    context = error.get("ctx", {})
    key = context.get("key") or str(context.get("discriminator", "")).strip("'")
    return (key,) if key and "(" not in key else ()


def _advice(error: ErrorDetails, loc: Loc, document: Document, context: LoadContext) -> str:
    kind, details = error["type"], error.get("ctx", {})
    if kind == "extra_forbidden":
        known = context.known_keys.get(id(document.at(loc[:-1])), ())
        return "unknown key" + (did_you_mean(loc[-1], known) or f"; known are {', '.join(known)}")
    if kind == "missing":
        return "missing; this key is needed here"
    if kind == "union_tag_not_found":
        return "missing; it says which kind this is"
    if kind in ("literal_error", "union_tag_invalid"):
        allowed = re.findall(r"'([^']*)'", str(details.get("expected") or details.get("expected_tags")))
        wrong = loc[-1] if error["loc"][-1:] == ("[key]",) else document.at(loc)
        return f"not one of: {', '.join(allowed)}{did_you_mean(wrong, allowed)}"
    return _PHRASES.get(kind) or _own_words(error["msg"])


_PHRASES = {
    "model_type": "write a mapping of keys",
    "model_attributes_type": "write a mapping of keys",
    "dict_type": "write a mapping of keys",
    "too_short": "write at least one entry",
    "list_type": "write a list",
    "tuple_type": "write a list",
    "string_type": "write a text; put it in quotes if it looks like a number",
    "int_type": "write a whole number",
    "int_parsing": "write a whole number",
    "int_from_float": "write a whole number",
    "int_parsing_size": "write a whole number; this one is too large",
    "finite_number": "write a finite number",
    "float_type": "write a number",
    "float_parsing": "write a number",
    "bool_type": "write true or false",
    "bool_parsing": "write true or false",
}


def _own_words(message: str) -> str:
    """pydantic's message in the voice of ours: `Input should be greater than 0` -> `must be ...`."""
    message = message.removeprefix("Value error, ").removeprefix("Assertion failed, ")
    message = message.replace("greater than or equal to", "at least").replace(
        "less than or equal to", "at most"
    )
    return re.sub(r"^(Input|Value|[A-Z]\w+) should ", "must ", message)

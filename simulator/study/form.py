"""A record as YAML to fill in: above each field the words of the schema, examples where nothing is given."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from simulator.errors import InputError
from simulator.specs.base import KeyPath, Spec
from simulator.specs.yaml_file import parse_document

WIDTH = 100
ANY = "*"
"""Stands in a key path for the keys that a mapping may have."""


@dataclass(frozen=True)
class Blank:
    """What a form shows where nothing is given."""

    examples: Mapping[KeyPath, str]
    """A value by key path; of a mapping with free keys, the key to show."""
    needed: frozenset[KeyPath] = frozenset()
    """What must be filled in; its example stands between < and >. All else is commented out."""

    def line(self, path: KeyPath, key: str) -> str:
        example = self.examples[path]
        return f"{key}: <{example}>" if path in self.needed else f"# {key}: {example}"

    def is_needed_in(self, path: KeyPath) -> bool:
        return any(each.startswith(f"{path}.") for each in self.needed)


class _Shown(Blank):
    """The same with every example as if it were given, for a block that is commented out as a whole."""

    def line(self, path: KeyPath, key: str) -> str:
        return f"{key}: {self.examples[path]}"


def form(
    spec: type[Spec], values: Mapping[str, Any], blank: Blank, path: KeyPath = "", without: Sequence[str] = ()
) -> list[str]:
    """The lines of a record: each field with its docstring above it, in the order of the schema.

    `path` leads to the record; the fields of the outermost stand apart by a blank line.
    """
    lines: list[str] = []
    for name, field in spec.model_fields.items():
        key = field.alias or name
        if key in without:
            continue
        about = " ".join(filter(None, (field.description, _choices(field.annotation))))
        lines += [] if path else [""]
        lines += comment(about) + _entry(key, f"{path}{key}", field.annotation, values.get(key), blank)
    return lines


def comment(text: str) -> list[str]:
    """`text` as comment lines."""
    return [f"# {line}" for line in textwrap.wrap(" ".join(text.split()), WIDTH)]


def scalar(value: object) -> str:
    """`value` as YAML that reads back as the same; in quotes where it must be."""
    text = str(value)
    try:
        if parse_document(f"key: {text}", "form").data == {"key": value}:
            return text
    except InputError:
        pass
    return quoted(text)


def quoted(text: str) -> str:
    """`text` in double quotes, as YAML reads it back."""
    return f'"{"".join(map(_escaped, text))}"'


def _escaped(sign: str) -> str:
    if sign in '"\\':
        return "\\" + sign
    return sign if sign.isprintable() else f"\\U{ord(sign):08X}"


def _entry(key: str, path: KeyPath, annotation: Any, value: Any, blank: Blank) -> list[str]:
    record = _record(annotation)
    if record is None and get_origin(annotation) is not dict:
        return [blank.line(path, key) if value is None else f"{key}: {scalar(value)}"]
    if value is None and not blank.is_needed_in(path):
        shown = _block(key, path, annotation, record, {}, _Shown(blank.examples))
        return [f"# {line}" for line in shown]
    return _block(key, path, annotation, record, value or {}, blank)


def _block(
    key: str,
    path: KeyPath,
    annotation: Any,
    record: type[Spec] | None,
    value: Mapping[str, Any],
    blank: Blank,
) -> list[str]:
    """A field that holds fields: those of a record, or whatever keys a mapping has."""
    if get_origin(annotation) is not dict:
        assert record is not None, "what is no mapping and no record holds no fields"
        return [f"{key}:", *_indented(form(record, value, blank, f"{path}."))]
    lines = [f"{key}:"]
    for each in value or [blank.examples[path]]:
        if record is not None:
            inner = form(record, value.get(each, {}), blank, f"{path}.{ANY}.")
            lines += _indented([*comment(record.__doc__ or ""), f"{each}:", *_indented(inner)])
        elif each in value:
            lines.append(f"  {each}: {scalar(value[each])}")
        else:
            lines.append(f"  {blank.line(f'{path}.{each}', each)}")
    return lines


def _indented(lines: Sequence[str]) -> list[str]:
    return [f"  {line}" for line in lines]


def _record(annotation: Any) -> type[Spec] | None:
    """The record that a field holds, be it in a mapping or optional."""
    inside = (annotation, *get_args(annotation))
    return next((each for each in inside if inspect.isclass(each) and issubclass(each, Spec)), None)


def _choices(annotation: Any) -> str:
    """The words that a field, or a key of it, may be."""
    for each in (annotation, *get_args(annotation)):
        if get_origin(each) is Literal:
            return f"One of: {', '.join(get_args(each))}."
    return ""

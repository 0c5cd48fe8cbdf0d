"""Lists where a scalar is due: finding them by the types of the fields, and multiplying them out."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from simulator.specs.layers import put
from simulator.specs.yaml_file import Loc


@dataclass(frozen=True)
class Choice:
    """Data with one entry of every axis in place of its list."""

    data: Any
    picked: Mapping[Loc, int] = field(default_factory=dict)
    """Which entry of the list at each place was taken."""

    def original(self, loc: Loc) -> Loc:
        """The place in the file of what stands at `loc` in the data."""
        for axis, index in self.picked.items():
            if loc[: len(axis)] == axis:
                return (*axis, index, *loc[len(axis) :])
        return loc


def find_axes(data: Any, annotation: Any, loc: Loc = ()) -> list[Loc]:
    """Places, in file order, that hold a list although the field's type takes none."""
    if isinstance(data, list):
        if not _takes_list(annotation):
            return [loc]
        inner = _item_types(annotation)
        return [axis for index, each in enumerate(data) for axis in find_axes(each, inner, (*loc, index))]
    if isinstance(data, dict):
        types = _types_by_key(data, annotation)
        return [
            axis
            for key, each in data.items()
            if key in types
            for axis in find_axes(each, types[key], (*loc, key))
        ]
    return []


def choices(data: Any, axes: list[Loc]) -> Iterator[Choice]:
    """Every combination of entries; the last axis changes fastest."""
    lists = [_at(data, axis) for axis in axes]
    for indices in itertools.product(*(range(len(each)) for each in lists)):
        chosen = data
        for axis, entries, index in zip(axes, lists, indices, strict=True):
            chosen = put(chosen, axis, entries[index])
        yield Choice(chosen, dict(zip(axes, indices, strict=True)))


def _at(data: Any, loc: Loc) -> Any:
    for step in loc:
        data = data[step]
    return data


def _alternatives(annotation: Any) -> list[Any]:
    """The members of a union, `Annotated` taken off; anything else is its own only alternative."""
    if get_origin(annotation) is Annotated:
        return _alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [each for member in get_args(annotation) for each in _alternatives(member)]
    return [] if annotation is NoneType else [annotation]


def _is_list_type(annotation: Any) -> bool:
    origin = get_origin(annotation) or annotation
    return annotation is Any or origin in (list, tuple, set, frozenset)


def _takes_list(annotation: Any) -> bool:
    return any(_is_list_type(each) for each in _alternatives(annotation))


def _item_types(annotation: Any) -> Any:
    """What the entries of a list may be."""
    args = [
        arg
        for each in _alternatives(annotation)
        if _is_list_type(each)
        for arg in get_args(each)
        if arg is not Ellipsis
    ]
    return Union[tuple(args)] if args else Any  # noqa: UP007 - built from a tuple


def _types_by_key(data: Mapping[str, Any], annotation: Any) -> dict[str, Any]:
    """The type of each key's value, over every record or mapping that `data` may be."""
    found: dict[str, list[Any]] = {}
    for each in _alternatives(annotation):
        if isinstance(each, type) and issubclass(each, BaseModel):
            if _may_be(data, each):
                for name, info in each.model_fields.items():
                    found.setdefault(info.alias or name, []).append(info.annotation)
        elif get_origin(each) is dict:
            for key in data:
                found.setdefault(key, []).append(get_args(each)[1])
    return {key: Union[tuple(types)] for key, types in found.items()}  # noqa: UP007 - built from a tuple


def _may_be(data: Mapping[str, Any], record: type[BaseModel]) -> bool:
    """Whether no tag in `data` speaks against its being a `record`."""
    return all(
        data[name] in get_args(info.annotation)
        for name, info in record.model_fields.items()
        if get_origin(info.annotation) is Literal and isinstance(data.get(name), str)
    )

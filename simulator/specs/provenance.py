"""Where figures come from, and which of them are uncertain."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import date as Date
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from simulator.errors import Problem, did_you_mean
from simulator.specs.base import Affects, KeyPath, Spec, Uncertain, rule_broken
from simulator.specs.quantities import UNKNOWN, ErrorShare, WholeNumber
from simulator.specs.yaml_file import Document, Loc, dotted

SourceKind = Literal["measured", "datasheet", "published", "vendor-claim", "assumed"]


def _iso_date(text: str) -> str:
    """`text` if it is YYYY, YYYY-MM or YYYY-MM-DD."""
    full = text + "-01-01"[len(text) - 4 :] if re.fullmatch(r"\d{4}(-\d\d){0,2}", text) else ""
    try:
        Date.fromisoformat(full)
    except ValueError:
        raise rule_broken("write a date as YYYY, YYYY-MM or YYYY-MM-DD") from None
    return text


def _year_as_text(raw: Any) -> Any:
    return str(raw) if isinstance(raw, int) and not isinstance(raw, bool) else raw


IsoDate = Annotated[str, BeforeValidator(_year_as_text), AfterValidator(_iso_date)]


class Source(Spec):
    """Who says so: the origin of one figure or of a group of them."""

    kind: SourceKind
    """How far to trust it; `assumed` and `vendor-claim` are named in reports."""
    ref: str
    """Document, page, dataset or URL, exact enough to look it up."""
    date: IsoDate | None = None
    """When it was published or measured: YYYY, YYYY-MM or YYYY-MM-DD."""
    samples: Annotated[WholeNumber, Field(ge=1, le=10**15)] | None = None
    """How many measurements a fitted figure rests on."""
    median_error: ErrorShare | None = None
    """Median relative error of a fit against its samples."""
    p90_error: ErrorShare | None = None
    """The error that nine samples in ten stay below."""
    note: str | None = None
    """What a reader should know before relying on it."""


Sources = dict[KeyPath, Source]
"""By the key path of the figure, or of a key that encloses several."""


@dataclass(frozen=True)
class Figure:
    """One uncertain figure: a range, or something nobody has published."""

    key_path: KeyPath
    kind: Literal["range", "unknown"]
    low: float | None
    high: float | None
    source_kind: SourceKind | None
    affects: Affects

    def under(self, prefix: str) -> "Figure":
        """The same figure with its path seen from a level above."""
        return replace(self, key_path=f"{prefix}.{self.key_path}")


def figures_of(uncertain: Iterable[Uncertain], sources: Mapping[KeyPath, Source]) -> tuple[Figure, ...]:
    """What a load noted as uncertain, each with the kind of its source, ordered as in the file."""
    found = {each.loc: each for each in uncertain}
    return tuple(
        Figure(
            dotted(loc),
            "unknown" if each.low is None else "range",
            each.low,
            each.high,
            source_kind(dotted(loc), sources),
            each.affects,
        )
        for loc, each in found.items()
    )


def source_of(key_path: KeyPath, sources: Mapping[KeyPath, Source]) -> Source | None:
    """The source that covers a figure; the nearest enclosing key wins."""
    covering = [path for path in sources if covers(path, key_path)]
    return sources[max(covering, key=len)] if covering else None


def source_kind(key_path: KeyPath, sources: Mapping[KeyPath, Source]) -> SourceKind | None:
    """Kind of the source that covers a figure."""
    source = source_of(key_path, sources)
    return None if source is None else source.kind


def covers(source_path: KeyPath, key_path: KeyPath) -> bool:
    """Whether a source at one key path speaks for a figure at another."""
    return key_path == source_path or key_path.startswith(source_path + ".")


def source_problems(
    document: Document, without_source: frozenset[str], *, needs_cover: bool
) -> list[Problem]:
    """Sources of keys that do not exist and, where `needs_cover`, figures that no source covers.

    `without_source` are keys that hold no figure (names, ids); an `unknown` needs no source.
    """
    sources = document.data.get("sources", {})
    if not isinstance(sources, dict):
        return []
    paths = {dotted(loc): loc for loc in document.marks if loc and loc[0] != "sources"}
    dangling = [
        document.problem(
            ("sources", key), f"there is no such key in this file{did_you_mean(key, paths)}", at_key=True
        )
        for key in sources
        if key not in paths
    ]
    if not needs_cover:
        return dangling
    return dangling + [
        document.problem(
            loc, "has no source; add it, or a key that encloses it, under 'sources'", at_key=True
        )
        for loc in figure_locs(document.data, ())
        if dotted(loc) not in without_source and not any(covers(key, dotted(loc)) for key in sources)
    ]


def figure_locs(value: Any, loc: Loc, *, unknown: bool = False) -> Iterable[Loc]:
    """Every place under `value` that holds one known figure; a range with its nominal is one.

    With `unknown`, the places that say that nobody knows as well.
    """
    if loc == ("sources",) or value is None or (value == UNKNOWN and not unknown):
        return
    if isinstance(value, dict) and "range" not in value:
        for key, each in value.items():
            yield from figure_locs(each, (*loc, key), unknown=unknown)
    else:
        yield loc

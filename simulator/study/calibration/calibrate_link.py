"""`calibrate fit --link`: tables of measured collectives and copies in, numbers for a link's profile out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from simulator.costs.transfers import transition_of
from simulator.errors import InputError, Problem
from simulator.specs.catalogue import FOLDERS, Catalogue, default_roots
from simulator.specs.hardware import Collective, Collectives, Link
from simulator.study.calibration.calibrate import check_date
from simulator.study.calibration.collectives import (
    FEWEST_ROWS,
    TOGETHER,
    CollectiveRows,
    Fit,
    Sample,
    fit_collectives,
    read_collectives,
)
from simulator.study.calibration.columns import read_columns
from simulator.study.calibration.copies import CopyFit, CopyRows, fit_copies, read_copies
from simulator.study.calibration.profile_text import short, source_line, with_entries


@dataclass(frozen=True)
class FittedLink:
    """What was fitted to a link, and the profile with it."""

    link: str
    collectives: Fit | None
    copies: CopyFit | None
    unused: Mapping[str, int]
    """Rows that no number was fitted to, by reason."""
    path: Path
    """Of the link's file, in a folder of profiles."""
    text: str
    """Of that file, the fitted numbers in it."""

    def as_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = {"link": self.link, "unused": dict(self.unused)}
        for name, fit in (("collectives", self.collectives), ("copies", self.copies)):
            if fit is not None:
                found[name] = {"samples": fit.samples, "median_error": fit.median_error,
                               "p90_error": fit.p90_error}  # fmt: skip
        if self.collectives is not None:
            found["collectives"] |= self.collectives.collectives.model_dump(mode="json", by_alias=True)
        if self.copies is not None:
            found["copies"] |= {
                "latency_s": self.copies.latency_s, "synchronize_s": self.copies.synchronize_s,
                "efficiency": self.copies.efficiency, "pageable_efficiency": self.copies.pageable_efficiency,
            }  # fmt: skip
        return found


def fit_link(
    tables: Sequence[str | Path], link: str, device: str | None = None, ref: str | None = None,
    date: str | None = None, out: str | Path = ".",
) -> FittedLink:  # fmt: skip
    """Fit the numbers of a link to the collectives and copies of tables in the program's own format.

    All rows are taken to be of that link. device: at its end, whose `launch` is taken as given; copies need
    one. ref, date, out: as of `fit_device`. Raises InputError for a table that cannot be read, and where
    nothing can be fitted.
    """
    check_date(date)
    catalogue = Catalogue((Path(out), *default_roots()))
    record = catalogue.link(link).record
    collective_rows, copy_rows, kernels = _rows(tables)
    collectives = fit_collectives([Sample(rows, record.bandwidth_bytes_per_s) for rows in collective_rows])
    copies = _fitted_copies(copy_rows, record, device, catalogue)
    if collectives is None and copies is None:
        counts = f"{sum(map(len, collective_rows))} collectives and {sum(map(len, copy_rows))} copies"
        advice = (
            f"needs {FEWEST_ROWS} rows of a library's collectives or of copies of pinned memory; "
            f"the tables have {counts}"
        )
        raise InputError([Problem("command line", key="--link", value=link, advice=advice)])
    unused = {
        "kernels, which tell of a device": kernels,
        f"collectives: fewer than {FEWEST_ROWS} of a library": _left(collective_rows, collectives),
        f"copies: fewer than {FEWEST_ROWS} of pinned memory": _left(copy_rows, copies),
    }
    unused = {reason: count for reason, count in unused.items() if count}
    where = ref or ", ".join(dict.fromkeys(Path(table).name for table in tables))
    top, sources = _entries(record, collectives, copies, where, date)
    text = with_entries(catalogue.path("links", link), {"sources": sources}, top)
    return FittedLink(link, collectives, copies, unused, Path(FOLDERS["links"]) / f"{link}.yaml", text)


def _rows(tables: Sequence[str | Path]) -> tuple[list[CollectiveRows], list[CopyRows], int]:
    """Those of links by table, and how many are of kernels."""
    collectives: list[CollectiveRows] = []
    copies: list[CopyRows] = []
    others = 0
    for path in map(Path, tables):
        columns = read_columns(path)
        operators = columns.texts("operator")
        if (operators == "collective").any():
            collectives.append(read_collectives(columns))
        if (operators == "copy").any():
            copies.append(read_copies(columns))
        others += int((~np.isin(operators, ("collective", "copy"))).sum())
    return collectives, copies, others


def _left(tables: Sequence[CollectiveRows] | Sequence[CopyRows], fitted: Fit | CopyFit | None) -> int:
    """Rows that are there, and that nothing was fitted to."""
    return sum(map(len, tables)) if fitted is None else 0


def _fitted_copies(
    tables: Sequence[CopyRows], link: Link, device: str | None, catalogue: Catalogue
) -> CopyFit | None:
    if not tables:
        return None
    if device is None:
        advice = "name the device that the copies are to and from: its `launch` is taken as given"
        raise InputError([Problem("command line", key="--device", advice=advice)])
    transition = transition_of(catalogue.device(device).record)
    columns = [[getattr(each, field.name) for each in tables] for field in fields(CopyRows)]
    return fit_copies(CopyRows(*map(np.concatenate, columns)), link.bandwidth_bytes_per_s, transition)


def _entries(
    link: Link, collectives: Fit | None, copies: CopyFit | None, ref: str, date: str | None
) -> tuple[dict[str, str], dict[str, str]]:
    """What the fits say at the top of a profile, and in its `sources`."""
    top: dict[str, str] = {}
    sources: dict[str, str] = {}
    if copies is not None:
        top |= copy_figures(copies, link.pageable_efficiency)
        sources |= dict.fromkeys(top, source_line(copies, ref, date))
    if collectives is not None:
        found = collectives.collectives
        top["collective"] = _collective_text(_with_old(found, link.collective))
        source = source_line(collectives, ref, date)
        sources |= {f"collective.{by}": source for by in ("engine", "library") if getattr(found, by)}
    return top, sources


def copy_figures(copies: CopyFit, old_pageable: float | None = None) -> dict[str, str]:
    """As a profile has them; what it said before of memory that is not pinned is lowered where it would be
    quicker than pinned memory now."""
    figures = {"latency": f"{short(copies.latency_s * 1e6)} us", "efficiency": short(copies.efficiency)}
    pageable = copies.pageable_efficiency
    if pageable is None and old_pageable is not None and old_pageable > copies.efficiency:
        pageable = copies.efficiency
    if pageable is not None:
        figures["pageable_efficiency"] = short(pageable)
    return figures


def _with_old(found: Collectives, old: Collectives) -> Collectives:
    """What was fitted, with the old ways of what no row tells."""
    library = list(found.library)
    for algorithms in TOGETHER:
        if not any(set(algorithms) & set(way.algorithms) for way in found.library):
            library += [
                way.model_copy(update={"algorithms": kept})
                for way in old.library
                if (kept := tuple(each for each in way.algorithms if each in algorithms))
            ]
    return Collectives(engine=found.engine or old.engine, library=tuple(library))


def _collective_text(ways: Collectives) -> str:
    """As a profile has it, below `collective:`."""
    lines = [""]
    for by, each in (("engine", ways.engine), ("library", ways.library)):
        if each:
            lines += [f"  {by}:", *(f"    - {way_line(way)}" for way in each)]
    return "\n".join(lines)


def way_line(way: Collective) -> str:
    """A way to carry a collective out as a profile writes it."""
    parts = [] if way.algorithms == ("all_reduce",) else [f"algorithms: [{', '.join(way.algorithms)}]"]
    parts += [
        f"latency: {short(way.latency_s * 1e6)} us", f"hop: {short(way.hop_s * 1e6)} us",
        f"efficiency: {short(way.efficiency)}", f"growth: {way.growth + 0.0:g}",
    ]  # fmt: skip
    if way.below_bytes is not None:
        parts.append(f"below: {short(way.below_bytes / 2**20)} MiB")
    if way.most_ranks is not None:
        parts.append(f"most_ranks: {way.most_ranks}")
    return "{" + ", ".join(parts) + "}"

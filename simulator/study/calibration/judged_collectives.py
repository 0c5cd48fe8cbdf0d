"""Published collectives predicted: by the shipped profiles, and by figures fitted without their table.

Whatever was fitted to a table says little when it predicts that table. So every system of a table is
predicted a second time, with figures fitted to other tables of the same devices and link, where those tell
both of small and of large messages, else to the other systems whose links are of the same kind.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from simulator.costs.transfers import copy_latency_s
from simulator.specs.catalogue import Catalogue
from simulator.specs.hardware import Algorithm, Collective, Collectives, Link
from simulator.study.calibration.collectives import (
    ENGINE_BELOW_BYTES,
    FEWEST_ROWS,
    TOGETHER,
    By,
    CollectiveRows,
    Sample,
    fit_collectives,
    predicted_s,
)
from simulator.study.calibration.columns import Floats
from simulator.study.calibration.published_collectives import SYSTEMS, Published, System, launched_s


@dataclass(frozen=True)
class Judged:
    """Rows of one system beside what is predicted for them."""

    rows: CollectiveRows
    shipped_s: Floats
    told: NDArray[np.bool_]
    """Which rows other measurements tell of."""
    left_out_s: Floats
    """Of those rows, by figures fitted without the table."""


def judge(
    path: Path, tables: Mapping[Path, Published], catalogue: Catalogue
) -> Iterator[tuple[str, Judged | str]]:
    """Each system of the table at `path`, among all `tables` of its folder; a text says why it cannot be
    predicted."""
    table = tables[path]
    for name in dict.fromkeys([*table.system.tolist(), *table.copies_system.tolist()]):
        system = SYSTEMS[name]
        if catalogue.find("links", system.link) is None:
            yield name, f"system {name}: its link {system.link} is not in the catalogue yet"
            continue
        yield name, _judge(table, name, fitted_without(path, tables, system, catalogue), catalogue)


def count_of(table: Published, name: str) -> int:
    """Rows of a system that could be predicted."""
    return int((table.system == name).sum() + (table.copies_system == name).sum())


def _judge(table: Published, name: str, left_out: Link | None, catalogue: Catalogue) -> Judged:
    system, chosen = SYSTEMS[name], table.system == name
    rows, version, is_launched = table.rows.where(chosen), table.version[chosen], table.is_launched[chosen]
    link = catalogue.link(system.link).record
    copied_s = _copied_s(rows, system, catalogue)
    shipped_s = _timed(predicted_s(link, rows), copied_s, is_launched, version, name)
    told = _told(rows, left_out)
    if left_out is None or not told.any():
        return Judged(rows, shipped_s, told, np.zeros(0))
    some, its_version = rows.where(told), version[told]
    left_out_s = _timed(predicted_s(left_out, some), copied_s[told], is_launched[told], its_version, None)
    return Judged(rows, shipped_s, told, left_out_s)


def _told(rows: CollectiveRows, link: Link | None) -> NDArray[np.bool_]:
    ways = () if link is None else link.collective.library
    return np.isin(rows.algorithm, sorted({algorithm for way in ways for algorithm in way.algorithms}))


def _timed(
    seconds: Floats, copied_s: Floats, is_launched: NDArray[np.bool_], version: Sequence[str],
    system: str | None,
) -> Floats:  # fmt: skip
    """What a benchmark's clock shows of collectives that take so many seconds."""
    least = {each: launched_s(each, system) for each in set(version)}
    launch_s = np.where(is_launched, np.array([least[each] for each in version]), 0.0)
    result: Floats = np.maximum(seconds, launch_s) + copied_s
    return result


def _copied_s(rows: CollectiveRows, system: System, catalogue: Catalogue) -> Floats:
    """Seconds that vLLM takes to copy what it hands to the library, when it runs eagerly."""
    known = catalogue.find("devices", system.device) is not None
    memory = catalogue.device(system.device).record.memory if known else None
    if memory is None or memory.bandwidth_bytes_per_s is None:
        return np.zeros(len(rows))
    copies = (rows.by == "engine-eager") & (rows.payload_bytes >= ENGINE_BELOW_BYTES)
    return np.where(copies, 2 * rows.payload_bytes / memory.bandwidth_bytes_per_s, 0.0)


# -- copies -----------------------------------------------------------------------------------------------


def copies(
    table: Published, name: str, across: bool, catalogue: Catalogue
) -> tuple[CollectiveRows, Floats]:
    """Copies of a system from one device to another, within a node or from node to node, and predictions of
    their seconds: no figure of a link was fitted to such a table."""
    rows = table.copies.where((table.copies_system == name) & (table.across == across))
    link_id = SYSTEMS[name].network if across else SYSTEMS[name].link
    if not len(rows) or link_id is None:
        return rows, np.zeros(len(rows))
    link = catalogue.link(link_id).record
    return rows, copy_latency_s([link]) + rows.payload_bytes / link.achieved_bytes_per_s


# -- leaving a table out -------------------------------------------------------------------------------------


def fitted_without(
    path: Path, tables: Mapping[Path, Published], system: System, catalogue: Catalogue
) -> Link | None:
    """The link of a system with figures fitted without the system's rows in the table at `path`."""
    link = catalogue.link(system.link).record
    if link.kind is None:
        return None
    same: list[Sample] = []
    others: list[Sample] = []
    for each_path, table in tables.items():
        for name in np.unique(table.system).tolist():
            is_same = SYSTEMS[name].is_of(system)
            if (is_same and each_path == path) or catalogue.find("links", SYSTEMS[name].link) is None:
                continue
            its_link = catalogue.link(SYSTEMS[name].link).record
            if its_link.kind == link.kind:
                chosen = (table.system == name) & ~table.is_launched
                sample = Sample(table.rows.where(chosen), its_link.bandwidth_bytes_per_s)
                (same if is_same else others).append(sample)
    if not any(len(sample.rows) for sample in (*same, *others)):
        return None
    return link.model_copy(update={"collective": _composed(same, others)})


def _composed(same: Sequence[Sample], others: Sequence[Sample]) -> Collectives:
    """By groups of algorithms: what fits the same system, else the others; of no rows nothing, as the shipped
    defaults know the rows that are left out."""
    of_same, of_others = (fit_collectives(each) if each else None for each in (same, others))
    found = [fit.collectives if fit else Collectives() for fit in (of_same, of_others)]
    library: list[Collective] = []
    for algorithms in TOGETHER:
        candidates = [_ways_of(each.library, algorithms) for each in found]
        if not _covers(same, algorithms, "library"):
            candidates = candidates[1:]
        library += next((ways for ways in candidates if ways), ())
    if _covers(same, ("all_reduce",), "engine"):
        return Collectives(engine=found[0].engine, library=tuple(library))
    return Collectives(engine=found[1].engine if library else (), library=tuple(library))


def _ways_of(ways: Sequence[Collective], algorithms: tuple[Algorithm, ...]) -> tuple[Collective, ...]:
    """Those that can carry a group of algorithms out, for that group alone."""
    fitting = (way for way in ways if set(algorithms) <= set(way.algorithms))
    return tuple(way.model_copy(update={"algorithms": algorithms}) for way in fitting)


def _covers(samples: Sequence[Sample], algorithms: tuple[Algorithm, ...], by: By) -> bool:
    """Whether rows tell both of small and of large messages."""
    small = np.concatenate(
        [np.zeros(0, dtype=bool), *(each.rows.of(algorithms, by).is_small for each in samples)]
    )
    return bool(small.sum() >= FEWEST_ROWS and (~small).sum() >= FEWEST_ROWS)

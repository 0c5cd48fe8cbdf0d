"""Published tables of collectives, known by their columns and not by their names.

Two errors stand side by side for each who (`library`, `engine`, `engine_eager`) and size: of the shipped
profiles, and (`_left_out`) of figures fitted without the table. `collectives_...` is all of them together.
Which table is read how, and which rows cannot be predicted, is in `study/calibration/published_collectives`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from simulator.specs.catalogue import Catalogue
from simulator.study.calibration.collectives import CollectiveRows
from simulator.study.calibration.columns import SUFFIXES, Floats, read_columns
from simulator.study.calibration.judged_collectives import copies, count_of, judge
from simulator.study.calibration.published_collectives import Published, is_published, read_published
from simulator.study.measurements.registry import Outcome, Pair, Reading


@dataclass(frozen=True)
class CollectiveTable:
    """All rows of one table."""

    path: Path
    row_count: int

    def predict(self, catalogue: Catalogue) -> Outcome:
        tables = _tables_beside(self.path)
        table = tables[self.path]
        unsupported, pairs = Counter(table.unsupported), list[Pair]()
        for name, judged in judge(self.path, tables, catalogue):
            if isinstance(judged, str):
                unsupported[judged] += count_of(table, name)
                continue
            pairs += _pairs(judged.rows, judged.shipped_s, "")
            pairs += _pairs(judged.rows.where(judged.told), judged.left_out_s, "_left_out")
            for across, what in ((False, "send_recv"), (True, "send_recv_across_nodes")):
                pairs += _pairs(*copies(table, name, across, catalogue), "", what)
        return Outcome(tuple(pairs), dict(unsupported))


def reading_of(path: Path) -> Reading | None:
    """The reading of a table of collectives; None for any other table."""
    if not is_published(path):
        return None
    return Reading(jobs=[CollectiveTable(path, len(read_columns(path)))])


def _tables_beside(path: Path) -> dict[Path, Published]:
    """Every published table of collectives in the folder of one, itself among them."""
    found = (each for each in sorted(path.parent.iterdir()) if each.suffix in SUFFIXES and each.is_file())
    return {each: _published(each) for each in found if is_published(each)}


@lru_cache(maxsize=16)
def _published(path: Path) -> Published:
    return read_published(read_columns(path))


def _pairs(rows: CollectiveRows, seconds: Floats, how: str, copy: str | None = None) -> Iterator[Pair]:
    cells = zip(rows.by.tolist(), rows.is_small.tolist(), rows.time_s.tolist(), seconds.tolist(), strict=True)
    for by, is_small, measured_s, predicted_s in cells:
        size = "below_256kib" if is_small else "above_256kib"
        for who in (copy,) if copy else (by.replace("-", "_"), "collectives"):
            yield Pair(f"{who}_{size}{how}_us", in_microseconds(measured_s), in_microseconds(predicted_s))


def in_microseconds(seconds: float) -> float:
    """For display."""
    return seconds * 1_000_000

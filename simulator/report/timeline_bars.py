"""Tasks of a timeline put together to bars, so that a lane of some thousand tasks can still be read.

Tasks of one part of one layer that follow one another are one bar. Bars too narrow to be told apart become
one striped bar, which says how its time is shared among parts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from simulator.report.timeline_parts import COLOURS, Part, part_of
from simulator.results.records import Span


@dataclass(frozen=True, slots=True)
class Bar:
    """Tasks of one step on one lane, one after the other: `spans`."""

    start_s: float
    end_s: float
    step: int
    busy_s: tuple[tuple[Part, float], ...]
    """Time in each part, in the order of legends."""
    layers: tuple[int, int] | None
    """First and last, of the tasks that belong to one."""
    microbatch: int | None
    """None where there are several."""
    spans: tuple[Span, ...]

    @property
    def width_s(self) -> float:
        return self.end_s - self.start_s

    @property
    def is_dense(self) -> bool:
        """Whether little of it is time between tasks."""
        return sum(time_s for _, time_s in self.busy_s) > 0.75 * self.width_s

    @property
    def labels(self) -> tuple[str, ...]:
        """What could be written on it, the longer first."""
        if self.layers is None:
            return ()
        first, last = self.layers
        if first == last:
            return f"layer {first}", f"{first}"
        return f"layers {first}–{last}", f"{first}–{last}"


def bars_of(spans: Iterable[Span], start_s: float, end_s: float, gap_s: float, narrow_s: float) -> list[Bar]:
    """The bars of one lane between two times.

    gap_s: what lies between two tasks and cannot be seen; narrow_s: the width below which bars are merged.
    """
    inside = sorted((span for span in spans if span.end_s > start_s and span.start_s < end_s), key=_order)
    bars = [_clipped(span, start_s, end_s) for span in inside]

    def are_narrow(one: Bar, other: Bar) -> bool:
        return max(one.width_s, other.width_s) < narrow_s

    bars = _joined(bars, gap_s, lambda one, other: _kind(one) == _kind(other))
    bars = _joined(bars, gap_s, lambda one, other: are_narrow(one, other) and _pass(one) == _pass(other))
    return _joined(bars, gap_s, lambda one, other: are_narrow(one, other) and one.step == other.step)


def without_crowds(bars: Sequence[Bar], thin_s: float) -> list[Bar]:
    """Thin bars of a step that follow one another closely, put together. Each is drawn wide enough to be
    seen, so that side by side they would look like one lane without a break."""

    def are_a_crowd(one: Bar, other: Bar) -> bool:
        return one.step == other.step and max(one.width_s, other.width_s) < thin_s

    return _joined(bars, 2 * thin_s, are_a_crowd)


def _order(span: Span) -> tuple[float, float]:
    return span.start_s, span.end_s


def _clipped(span: Span, start_s: float, end_s: float) -> Bar:
    start_s, end_s = max(start_s, span.start_s), min(end_s, span.end_s)
    layers = None if span.layer is None else (span.layer, span.layer)
    busy_s = ((part_of(span), end_s - start_s),)
    return Bar(start_s, end_s, span.step, busy_s, layers, span.microbatch, (span,))


def _kind(bar: Bar) -> tuple[object, ...]:
    return bar.step, bar.microbatch, bar.layers, bar.busy_s[0][0]


def _pass(bar: Bar) -> tuple[object, ...]:
    return bar.step, bar.microbatch


def _joined(bars: Sequence[Bar], gap_s: float, may_join: Callable[[Bar, Bar], bool]) -> list[Bar]:
    """Each bar joined to the one before where nothing is to be seen between them and `may_join` says so."""
    groups: list[list[Bar]] = []
    for bar in bars:
        if groups and bar.start_s - groups[-1][-1].end_s <= gap_s and may_join(groups[-1][-1], bar):
            groups[-1].append(bar)
        else:
            groups.append([bar])
    return [group[0] if len(group) == 1 else _together(group) for group in groups]


def _together(bars: Sequence[Bar]) -> Bar:
    busy: Counter[Part] = Counter()
    for bar in bars:
        busy.update(dict(bar.busy_s))
    layers = [layer for bar in bars if bar.layers for layer in bar.layers]
    return replace(
        bars[0],
        end_s=bars[-1].end_s,
        busy_s=tuple((part, busy[part]) for part in COLOURS if part in busy),
        layers=(min(layers), max(layers)) if layers else None,
        microbatch=bars[0].microbatch if len({bar.microbatch for bar in bars}) == 1 else None,
        spans=tuple(span for bar in bars for span in bar.spans),
    )

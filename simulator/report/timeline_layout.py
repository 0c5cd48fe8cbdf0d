"""Where everything of a drawn timeline is: two steps side by side, streams one below the other, in inches.

Rows go down from 0; what stands above and below them is the figure's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from simulator.report.timeline import natural, on_tracks
from simulator.report.timeline_bars import Bar, bars_of, without_crowds
from simulator.report.timeline_loops import Loops, loops_of
from simulator.results.records import Span

ROW, GROUP_GAP = 0.2, 0.08
"""Height of a lane, and what lies between two devices."""
_BARS_WIDTH, _PANEL_GAP = 7.6, 0.3
_LEAST_SHARE = 0.42
"""Of the width, for the shorter of two steps; where it would get less, steps have scales of their own."""
_INVISIBLE, _THIN, _NARROW = 0.012, 0.03, 0.1
"""A gap that cannot be seen, a bar that cannot be told from its neighbour, one that cannot hold a number."""
_FEW_BARS = 32
"""So many on a lane of one step are drawn one by one, unless they are thin."""
_CHARACTER = 0.068
"""Width of a letter of the lanes' names, at most."""
_MOST_GROUPS = 9
_MOST_CROSSINGS = 64
_WAYS = {
    "": "computes", "launch": "kernel launches", "in": "copies in", "out": "copies out",
    "engine": "engine's thread", "sends": "hands over", "receives": "takes over", "handover": "handed over",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Lane:
    """A stream, and where its row is."""

    track: str
    group: str
    """The device, or the host of an engine's thread."""
    text: str
    top: float
    is_first: bool
    """Of its group."""

    @property
    def middle(self) -> float:
        return self.top + ROW / 2


@dataclass(frozen=True, slots=True)
class Crossing:
    """A line from one lane to another: a copy between devices, or a collective that holds both."""

    x: float
    source: float
    target: float
    has_arrow: bool


@dataclass(frozen=True)
class Panel:
    """One step: its window of time and what is drawn in it."""

    number: int
    """1 or 2."""
    step: int
    left: float
    width: float
    start_s: float
    end_s: float
    outcome_s: float
    prefill_tokens: int
    decode_tokens: int
    loops: Loops
    bars: tuple[tuple[Lane, Bar], ...]
    crossings: tuple[Crossing, ...]

    @property
    def right(self) -> float:
        return self.left + self.width

    def is_left_over(self, bar: Bar) -> bool:
        """Whether an earlier step of the same serving loop began it."""
        return bar.step != self.step and self.loops.are_one(bar.step, self.step)

    def batch(self, bar: Bar) -> int:
        """Whose work it is, of the serving loops that take turns on the same devices."""
        return self.loops.batch(bar.step)

    def part(self, bar: Bar) -> int:
        """Which part of its batch."""
        return self.loops.part(bar.step, bar.microbatch)

    def x(self, time_s: float) -> float:
        return self.left + self.width * (time_s - self.start_s) / (self.end_s - self.start_s)


@dataclass(frozen=True)
class Layout:
    lanes: tuple[Lane, ...]
    panels: tuple[Panel, ...]
    left_out: int
    """Devices that are not drawn, because there are too many."""
    left: float
    right: float

    @property
    def height(self) -> float:
        return self.lanes[-1].top + ROW

    @property
    def has_one_scale(self) -> bool:
        """Whether an inch is as long a time in both steps."""
        scales = [panel.width / (panel.end_s - panel.start_s) for panel in self.panels]
        return max(scales) < 1.001 * min(scales)


@dataclass(frozen=True, slots=True)
class _Window:
    """A step in time."""

    step: int
    start_s: float
    end_s: float
    outcome_s: float


def laid_out(spans: Sequence[Span]) -> Layout:
    """Place the first two steps of some spans, of which there is at least one."""
    loops = loops_of(spans)
    windows = _windows(spans, loops)
    start_s, end_s = windows[0].start_s, windows[-1].end_s
    tracks: dict[str, list[Span]] = defaultdict(list)
    for track, span in on_tracks([span for span in spans if span.start_s < end_s and span.end_s > start_s]):
        tracks[track].append(span)
    lanes, left_out = _lanes(tracks)
    left = 0.3 + _CHARACTER * (_longest(lane.group for lane in lanes) + _longest(lane.text for lane in lanes))
    shares = _shares([window.end_s - window.start_s for window in windows])
    panels, edge = [], left
    for number, (window, share) in enumerate(zip(windows, shares, strict=True), start=1):
        width = share * (_BARS_WIDTH - _PANEL_GAP * (len(windows) - 1))
        panels.append(_panel(number, window, edge, width, lanes, tracks, loops))
        edge += width + _PANEL_GAP
    return Layout(lanes, tuple(panels), left_out, left, left + _BARS_WIDTH)


def _longest(texts: Iterable[str]) -> int:
    return max(map(len, texts))


# -- steps --------------------------------------------------------------------------------------------------


def _windows(spans: Sequence[Span], loops: Loops) -> list[_Window]:
    """The first two steps of the serving loop that begins, each from its first task until its outcome is
    there and the next step begins or its last task ends. Where it hands sequences over, the second is the
    first step that decodes them, from the beginning of the copy on."""
    by_step: dict[int, list[Span]] = defaultdict(list)
    for span in spans:
        by_step[span.step].append(span)
    steps = loops.steps_with(min(by_step))
    starts = {step: min(span.start_s for span in every) for step, every in by_step.items()}
    copied = next((step for step in sorted(by_step) if _is_handover(by_step[step])), None)
    decoded = next((step for step in sorted(by_step) if _decodes(by_step[step])), None)
    if copied is not None and decoded is not None:
        steps = [steps[0], decoded]
        starts[decoded] = min(starts[decoded], starts[copied])
    windows = []
    for step, following in zip(steps[:2], [*steps[1:], None][:2], strict=False):
        last = max(span.end_s for span in by_step[step])
        outcome = next((span.end_s for span in by_step[step] if span.is_outcome), last)
        end = last if following is None else min(last, starts[following])
        windows.append(_Window(step, starts[step], max(end, outcome), outcome))
    return windows


def _is_handover(spans: Iterable[Span]) -> bool:
    return any(unit.endswith(".receives") for span in spans for unit in span.units)


def _decodes(spans: Iterable[Span]) -> bool:
    return any(span.operator == "gather" and span.decode_tokens for span in spans)


def _shares(durations_s: Sequence[float]) -> list[float]:
    if len(durations_s) == 1:
        return [1.0]
    first = min(max(durations_s[0] / sum(durations_s), _LEAST_SHARE), 1 - _LEAST_SHARE)
    return [first, 1 - first]


# -- lanes --------------------------------------------------------------------------------------------------


def _lanes(tracks: Mapping[str, Sequence[Span]]) -> tuple[tuple[Lane, ...], int]:
    """Engines' threads, then devices in the order in which they begin to compute, then other streams."""
    groups: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for track in sorted(tracks, key=natural):
        group, text = _named(track, tracks)
        groups[group].append((track, text))

    def key(group: str) -> tuple[object, ...]:
        return _rank(groups[group][0][1]), _begins(tracks, group), natural(group)

    order = sorted(groups, key=key)
    kept = order if len(order) <= _MOST_GROUPS else order[:_MOST_GROUPS]
    lanes, top = [], 0.0
    for group in kept:
        for position, (track, text) in enumerate(sorted(groups[group], key=lambda pair: _place(pair[1]))):
            lanes.append(Lane(track, group, text, top, position == 0))
            top += ROW
        top += GROUP_GAP
    return tuple(lanes), len(order) - len(kept)


def _named(track: str, tracks: Mapping[str, Sequence[Span]]) -> tuple[str, str]:
    """The device a stream belongs to, and what it does there."""
    group, _, way = track.rpartition(".")
    way, _, number = way.partition("-")
    if group and way in _WAYS:
        return group, f"{_WAYS[way]} {int(number) + 1}" if number else _WAYS[way]
    if any(span.category in ("compute", "collective") for span in tracks[track]):
        return track, _WAYS[""]
    return track, "works"


def _place(text: str) -> int:
    known = list(_WAYS.values())
    return known.index(text) if text in known else len(known)


def _rank(text: str) -> int:
    return 0 if text.startswith(_WAYS["engine"]) else 2 if text == "works" else 1


def _begins(tracks: Mapping[str, Sequence[Span]], group: str) -> float:
    return min((span.start_s for span in tracks.get(group, ())), default=float("inf"))


# -- bars ---------------------------------------------------------------------------------------------------


def _panel(
    number: int, window: _Window, left: float, width: float, lanes: Sequence[Lane],
    tracks: Mapping[str, Sequence[Span]], loops: Loops,
) -> Panel:  # fmt: skip
    bars = tuple((lane, bar) for lane in lanes for bar in _bars(tracks[lane.track], window, width))
    own = [span for lane in lanes for span in tracks[lane.track]
           if span.step == window.step and span.operator == "gather"]  # fmt: skip
    panel = Panel(
        number, window.step, left, width, window.start_s, window.end_s, window.outcome_s,
        sum(span.prefill_tokens for span in own), sum(span.decode_tokens for span in own),
        loops, bars, (),
    )  # fmt: skip
    crossings = tuple(_crossings(panel, {lane.track: lane for lane in lanes}))
    return panel if len(crossings) > _MOST_CROSSINGS else replace(panel, crossings=crossings)


def _bars(spans: Sequence[Span], window: _Window, width: float) -> list[Bar]:
    per_inch_s = (window.end_s - window.start_s) / width
    ends, gap_s = (window.start_s, window.end_s), _INVISIBLE * per_inch_s
    bars = bars_of(spans, *ends, gap_s, _THIN * per_inch_s)
    if len(bars) <= _FEW_BARS:
        return bars
    return without_crowds(bars_of(spans, *ends, gap_s, _NARROW * per_inch_s), _THIN * per_inch_s)


def _crossings(panel: Panel, lanes: Mapping[str, Lane]) -> Iterator[Crossing]:
    """What goes from device to device in collectives and copies that have a bar of their own, each once."""
    for lane, bar in panel.bars:
        span = bar.spans[0]
        if lane.track != next((unit for unit in span.units if unit in lanes), None):
            continue
        if span.category == "collective" and len(bar.spans) == 1:
            rows = [lanes[unit].middle for unit in span.units if unit in lanes]
            yield Crossing((panel.x(bar.start_s) + panel.x(bar.end_s)) / 2, min(rows), max(rows), False)
        elif all(each.category == "transfer" for each in bar.spans):
            yield from _copies(panel, bar, lanes)


def _copies(panel: Panel, bar: Bar, lanes: Mapping[str, Lane]) -> Iterator[Crossing]:
    """From a lane that sends to one that receives. Where an end has no stream for copies, its own stream is
    free before or after."""
    start, end = panel.x(bar.start_s), panel.x(bar.end_s)
    units = {unit for span in bar.spans for unit in span.units}
    thread = panel.loops.thread_of[bar.step]
    for source, target in dict.fromkeys(pair for span in bar.spans for pair in span.crossings):
        sends = next((f"{source}.{way}" for way in ("out", "sends") if f"{source}.{way}" in units), "")
        receives = next((f"{target}.{way}" for way in ("in", "receives") if f"{target}.{way}" in units), "")
        origin = _end(sends or source, thread, lanes)
        goal = _end(receives or target, thread, lanes)
        if origin is not None and goal is not None and origin is not goal:
            x = (start + end) / 2 if sends and receives else end if sends else start
            yield Crossing(x, origin.middle, goal.middle, True)


def _end(track: str, thread: str, lanes: Mapping[str, Lane]) -> Lane | None:
    """Of a copy from or to a host, the thread of the engine there."""
    return lanes.get(track, lanes.get(thread) if thread.startswith(f"{track}.") else None)

"""Flows that share links, with max-min fair rates.

A flow alone on its links takes its lone duration. On a shared link the flows get equal bandwidth; one that
is held back elsewhere leaves its part to the others. A flow over several links with unlike amounts is
known by the bandwidth it takes of the link that carries most; on each link it weighs in proportion (its
*load* there: the time that link alone would need, over the lone duration), so no link ever carries more
than it can. As long as the loads on each link add up to no more than it has, nobody slows anybody.

Bandwidth is shared out once a tick, when all flows of that tick have ended and started, and only in the
connected component of what changed; what comes of it does not depend on the order of a tick's events.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from simpy import Environment, Event

from simulator.simulation.events import NORMAL, SHARES, after

Done = Callable[[], None]

CLOSE = 1e-12
"""Shares of a link or a speed nearer to each other than this are taken for equal."""

FULL = 1.0 - 1e-9
"""Two or more flows whose loads on a link add up to at most this do not slow each other: there is room for
every error of rounding."""


def fits(loads: Sequence[float]) -> bool:
    """Whether flows with these loads on one link all have their lone speed there; one that has nothing to
    carry slows nobody."""
    taking = [load for load in loads if load]
    return len(taking) < 2 or math.fsum(taking) <= FULL


@dataclass(eq=False, slots=True)
class Flow:
    """One flow under way; `left` is the part of it still to move, as of `updated`."""

    loads: Mapping[str, float]
    """For each link, the share of it that the flow takes up when it runs at its lone speed."""
    lone_ticks: int
    lone_bytes_per_s: float
    """Over the link that carries most of it, when it has its links to itself."""
    started: int
    done: Done
    order: tuple[int, int] = (0, 0)
    """Of flows that share a link the one with the smaller is looked at first."""
    left: float = 1.0
    speed: float = 1.0
    """Relative to the flow's lone speed."""
    updated: int = 0
    version: int = 0
    ever_slowed: bool = False

    def end(self) -> int:
        """The tick at which it ends if nothing changes: exact for one never slowed, else rounded up."""
        if not self.ever_slowed:
            return self.started + self.lone_ticks
        return self.updated + math.ceil(self.left * self.lone_ticks / self.speed)


class FlowEnd(Event):
    """The end of a flow, unless its speed has changed since."""

    _ok = True
    _value = None

    def __init__(self, callbacks: list[Callable[[Event], None]], flow: Flow) -> None:
        self.callbacks = callbacks
        self.flow, self.version = flow, flow.version


def fair_speeds(flows: Iterable[Flow]) -> list[float]:
    """Max-min fair speeds of some flows, relative to their lone speeds.

    All bandwidths are raised together until a flow has its lone speed or a link of its is full; such flows
    stay as they are, the others go on rising. A link on which a flow puts nothing does not hold it back.
    """
    flows = list(flows)
    crossed = [[link for link, load in flow.loads.items() if load > 0] for flow in flows]
    speeds = [0.0] * len(flows)
    rising = list(range(len(flows)))
    room: dict[str, float] = {link: 1.0 for flow in flows for link in flow.loads}
    while rising:
        weight: dict[str, float] = defaultdict(float)
        for index in rising:
            for link, load in flows[index].loads.items():
                weight[link] += load / flows[index].lone_bytes_per_s
        gain = min(
            min((1.0 - speeds[index]) * flows[index].lone_bytes_per_s for index in rising),
            min((room[link] / each for link, each in weight.items() if each > 0), default=math.inf),
        )
        for index in rising:
            speeds[index] += gain / flows[index].lone_bytes_per_s
        for link in weight:
            room[link] -= gain * weight[link]
        full = {link for link in weight if room[link] <= CLOSE}
        rising = [i for i in rising if speeds[i] < 1.0 - CLOSE and full.isdisjoint(crossed[i])]
    return [1.0 if speed > 1.0 - CLOSE else speed for speed in speeds]


class SharedLinks:
    """All flows under way in a machine."""

    def __init__(self, env: Environment) -> None:
        self.env = env
        self._on_link: dict[str, dict[Flow, None]] = defaultdict(dict)
        self._changed: dict[str, None] = {}
        """Links whose flows must share anew at the end of this tick."""
        self._ending: list[Callable[[Event], None]] = [self._ended]
        self._count = 0

    def start(
        self, loads: Mapping[str, float], lone_ticks: int, lone_bytes_per_s: float, done: Done,
        order: tuple[int, int] | None = None, started: int | None = None,
    ) -> None:  # fmt: skip
        """Start a flow now; `done` is called when its last byte has arrived.

        order: a place among all flows, their order of starting if not given. started: of a flow that has
        been under way since, at its lone speed.
        """
        since = int(self.env.now) if started is None else started
        self._count += 1
        flow = Flow(
            loads, lone_ticks, lone_bytes_per_s, since, done, order or (0, self._count), updated=since
        )
        for link in loads:
            self._on_link[link][flow] = None
        crowded = [link for link in loads if not self._fits(link)]
        if crowded:
            self._share_later(crowded)
        else:
            self._schedule_end(flow)

    def _fits(self, link: str) -> bool:
        return fits([flow.loads[link] for flow in self._on_link[link]])

    def _share_later(self, links: Iterable[str]) -> None:
        if not self._changed:
            after(self.env, 0, SHARES, self._share)
        self._changed.update(dict.fromkeys(links))

    def _share(self) -> None:
        """Compute the speeds of all flows on links that changed, and of those that share others with them."""
        now = int(self.env.now)
        for component in self._components():
            for flow, speed in zip(component, fair_speeds(component), strict=True):
                if speed == flow.speed and flow.version > 0:
                    continue
                flow.left -= flow.speed * (now - flow.updated) / flow.lone_ticks
                flow.updated, flow.speed = now, speed
                flow.ever_slowed |= speed < 1.0
                self._schedule_end(flow)
        self._changed.clear()

    def _components(self) -> Iterable[list[Flow]]:
        seen: set[Flow] = set()
        for link in self._changed:
            component = dict[Flow, None]()
            frontier = [flow for flow in self._on_link[link] if flow not in seen]
            while frontier:
                component.update(dict.fromkeys(frontier))
                links = dict.fromkeys(each for flow in frontier for each in flow.loads)
                near = dict.fromkeys(flow for each in links for flow in self._on_link[each])
                frontier = [flow for flow in near if flow not in component]
            seen.update(component)
            yield sorted(component, key=lambda flow: flow.order)

    def _schedule_end(self, flow: Flow) -> None:
        flow.version += 1
        delay = max(0, flow.end() - int(self.env.now))
        self.env.schedule(FlowEnd(self._ending, flow), NORMAL, delay)  # type: ignore[arg-type]

    def _ended(self, event: Event) -> None:
        assert isinstance(event, FlowEnd)
        flow = event.flow
        if flow.version != event.version:
            return
        flow.version += 1
        crowded = [link for link in flow.loads if not self._fits(link)]
        for link in flow.loads:
            del self._on_link[link][flow]
        if crowded:
            self._share_later(crowded)
        flow.done()

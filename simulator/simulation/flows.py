"""Flows that share links, with max-min fair rates.

A flow alone on its links takes its lone duration. On a shared link the flows get equal bandwidth; one that
is held back elsewhere leaves its part to the others. A flow over several links with unlike amounts is
known by the bandwidth it takes of the link that carries most; on each link it weighs in proportion (its
*load* there: the time that link alone would need, over the lone duration), so no link ever carries more
than it can. Only the connected component of a change is computed again.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from simpy import Environment, Event

Done = Callable[[], None]

CLOSE = 1e-12
"""Shares of a link or a speed nearer to each other than this are taken for equal."""


@dataclass(eq=False, slots=True)
class Flow:
    """One flow under way; `left` is the part of it still to move, as of `updated`."""

    loads: dict[str, float]
    """For each link, the share of it that the flow takes up when it runs at its lone speed."""
    lone_ticks: int
    lone_bytes_per_s: float
    """Over the link that carries most of it, when it has its links to itself."""
    started: int
    done: Done
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


def fair_speeds(flows: Iterable[Flow]) -> list[float]:
    """Max-min fair speeds of some flows, relative to their lone speeds.

    All bandwidths are raised together until a flow has its lone speed or a link of its is full; such flows
    stay as they are, the others go on rising.
    """
    flows = list(flows)
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
            min(room[link] / weight[link] for link in weight),
        )
        for index in rising:
            speeds[index] += gain / flows[index].lone_bytes_per_s
        for link in weight:
            room[link] -= gain * weight[link]
        full = {link for link in weight if room[link] <= CLOSE}
        rising = [i for i in rising if speeds[i] < 1.0 - CLOSE and full.isdisjoint(flows[i].loads)]
    return [1.0 if speed > 1.0 - CLOSE else speed for speed in speeds]


class SharedLinks:
    """All flows under way in a machine."""

    def __init__(self, env: Environment) -> None:
        self.env = env
        self._on_link: dict[str, set[Flow]] = defaultdict(set)
        self._order: dict[Flow, int] = {}
        self._count = 0

    def start(
        self, loads: dict[str, float], lone_ticks: int, lone_bytes_per_s: float, done: Done
    ) -> None:
        """Start a flow now; `done` is called when its last byte has arrived."""
        now = int(self.env.now)
        flow = Flow(loads, lone_ticks, lone_bytes_per_s, now, done, updated=now)
        self._order[flow] = self._count
        self._count += 1
        for link in loads:
            self._on_link[link].add(flow)
        self._share(flow)

    def _share(self, changed: Flow) -> None:
        """Compute the speeds of all flows that share a link, through others too, with `changed`."""
        now = int(self.env.now)
        component = self._component(changed)
        for flow, speed in zip(component, fair_speeds(component), strict=True):
            if speed == flow.speed and flow.version > 0:
                continue
            flow.left -= flow.speed * (now - flow.updated) / flow.lone_ticks
            flow.updated, flow.speed = now, speed
            flow.ever_slowed |= speed < 1.0
            self._schedule_end(flow)

    def _component(self, changed: Flow) -> list[Flow]:
        found, frontier = {changed}, [changed]
        while frontier:
            for link in frontier.pop().loads:
                fresh = self._on_link[link] - found
                found |= fresh
                frontier.extend(fresh)
        running = [flow for flow in found if flow in self._order]
        return sorted(running, key=self._order.__getitem__)

    def _schedule_end(self, flow: Flow) -> None:
        flow.version += 1
        version = flow.version
        event = self.env.timeout(max(0, flow.end() - int(self.env.now)))

        def end(_: Event) -> None:
            if flow.version == version:
                self._end(flow)

        assert event.callbacks is not None
        event.callbacks.append(end)

    def _end(self, flow: Flow) -> None:
        flow.version += 1
        del self._order[flow]
        for link in flow.loads:
            self._on_link[link].discard(flow)
        self._share(flow)
        flow.done()

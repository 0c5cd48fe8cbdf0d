"""The way of requests to the engine's queue and of tokens to the clients: the host's cores and its port.

Jobs are handed to the cores in the order in which they become ready, requests before tokens and loops in
their order. A loop that has gone ahead of the clock leaves its deliveries here until it is their turn.

Cores and both directions of the network port are queues of their own, so a busy host delays requests as a
busy GPU does. All serving loops share them.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from simpy import Environment

from simulator.costs.host import PROMPT_BYTES_PER_TOKEN, STREAMED_BYTES_PER_TOKEN, deliver_s, receive_s
from simulator.placement.program import Program
from simulator.simulation.events import Action, after
from simulator.simulation.lives import RequestLife
from simulator.simulation.pool import Pool
from simulator.simulation.ticks import tick
from simulator.specs.engine import Engine

Received = Callable[[int, int], None]
"""Is told the tick at which clients receive a step's tokens, and how many those are."""


@dataclass(slots=True)
class Deliveries:
    """What some steps of a loop have for the clients."""

    ready: Sequence[int]
    tokens: int
    """Of each step."""
    received: Received
    count: int
    """Steps that there will be; fewer than foreseen where something has come in between."""
    sent: int = 0


class Front:
    """The host of a placed model, as far as it works for requests."""

    def __init__(self, env: Environment, program: Program, engine: Engine, cores: int) -> None:
        self.env, self.engine = env, engine
        placed = program.machine.hosts[program.host]
        self.host = placed.host
        machine = program.machine.machine
        node = next(node for node in machine.nodes if node.name == placed.node)
        link = machine.network or node.network
        self.cores, self._port_in, self._port_out = Pool(cores), Pool(1), Pool(1)
        self._s_per_byte = 1 / link.achieved_bytes_per_s if link else 0.0
        self.latency = tick(link.latency_s) if link else 0
        self._due: list[tuple[int, int, int, Deliveries]] = []
        """Deliveries whose turn has not come: when the next of some is ready, of which loop, and a number
        that no others have."""
        self._promised = 0
        self._works: dict[int, tuple[int, int]] = {}
        """Ticks of a core and of the port, by a step's tokens."""
        self._client_events: list[int] = []
        """When clients, the network and cores do something, as far as that is known."""

    def next_client_event(self) -> float:
        """The first tick after this one at which something may reach a queue, as far as that is known; what
        finished requests bring about comes on top."""
        events, now = self._client_events, int(self.env.now)
        while events and events[0] <= now:
            heapq.heappop(events)
        return events[0] if events else math.inf

    def note_client_event(self, when: int) -> None:
        """A client will do something at a tick."""
        events, now = self._client_events, int(self.env.now)
        while events and events[0] < now:
            heapq.heappop(events)
        heapq.heappush(events, when)

    def receive(self, life: RequestLife, queue: Callable[[RequestLife], None]) -> None:
        """Let a request that is sent now cross the network, and be received and tokenised on a core; `queue`
        is called when that is done."""
        on_wire = tick(life.request.prompt_tokens * PROMPT_BYTES_PER_TOKEN * self._s_per_byte)
        arrived = self._port_in.submit(int(self.env.now), on_wire) + self.latency
        life.network_ticks = on_wire + self.latency

        def tokenize() -> None:
            life.host_ticks = tick(receive_s(self.engine, self.host, life.request.prompt_tokens))
            self.deliver_due(int(self.env.now), -1)
            self.at(self.cores.submit(int(self.env.now), life.host_ticks), lambda: queue(life))

        self.at(arrived, tokenize)

    def deliver(self, loop: int, ready: int, tokens: int) -> tuple[int, int, int]:
        """Send the tokens of a loop's step to the clients: when they are received, and the ticks of a core's
        work and on the wire."""
        self.deliver_due(ready, loop)
        work, on_wire = self._work_of(tokens)
        return self._port_out.submit(self.cores.submit(ready, work), on_wire) + self.latency, work, on_wire

    def deliver_many(self, ready: Sequence[int], tokens: int) -> list[int]:
        """Send the tokens of several steps, so many each; when they are received."""
        work, on_wire = self._work_of(tokens)
        sent = self._port_out.submit_many(self.cores.submit_many(ready, work), on_wire)
        return [each + self.latency for each in sent] if self.latency else sent

    def deliver_later(self, loop: int, ready: Sequence[int], tokens: int, received: Received) -> Deliveries:
        """Send the tokens of several steps of a loop, so many each, when it is their turn; `received` is then
        told when the clients have them."""
        deliveries = Deliveries(ready, tokens, received, len(ready))
        self._promise(loop, deliveries)
        return deliveries

    def _promise(self, loop: int, deliveries: Deliveries) -> None:
        self._promised += 1
        due = (deliveries.ready[deliveries.sent], loop, self._promised, deliveries)
        heapq.heappush(self._due, due)

    def deliver_due(self, ready: float, loop: int) -> None:
        """Send all that comes before what a loop has ready at a tick."""
        while self._due and self._due[0][:2] < (ready, loop):
            each, number, _, deliveries = heapq.heappop(self._due)
            if deliveries.sent < deliveries.count:
                deliveries.sent += 1
                deliveries.received(self.deliver_many((each,), deliveries.tokens)[0], deliveries.tokens)
            if deliveries.sent < deliveries.count:
                self._promise(number, deliveries)

    def _work_of(self, tokens: int) -> tuple[int, int]:
        """Ticks of a core and of the port for a step's tokens."""
        if tokens not in self._works:
            work = tick(deliver_s(self.engine, self.host, tokens))
            self._works[tokens] = work, tick(tokens * STREAMED_BYTES_PER_TOKEN * self._s_per_byte)
        return self._works[tokens]

    def at(self, when: int, action: Action) -> None:
        self.note_client_event(when)
        after(self.env, when - int(self.env.now), action=action)

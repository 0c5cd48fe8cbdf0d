"""The way of requests to the engine's queue and of tokens to the clients: the host's cores and its port.

Cores and both directions of the network port are queues of their own, so a busy host delays requests as a
busy GPU does. All serving loops share them.
"""

from __future__ import annotations

from collections.abc import Callable

from simpy import Environment

from simulator.costs.host import PROMPT_BYTES_PER_TOKEN, STREAMED_BYTES_PER_TOKEN, deliver_s, receive_s
from simulator.placement.program import Program
from simulator.simulation.events import Action, after
from simulator.simulation.lives import RequestLife
from simulator.simulation.pool import Pool
from simulator.simulation.ticks import tick
from simulator.specs.engine import Engine


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

    def receive(self, life: RequestLife, queue: Callable[[RequestLife], None]) -> None:
        """Let a request that is sent now cross the network, and be received and tokenised on a core; `queue`
        is called when that is done."""
        on_wire = tick(life.request.prompt_tokens * PROMPT_BYTES_PER_TOKEN * self._s_per_byte)
        arrived = self._port_in.submit(int(self.env.now), on_wire) + self.latency
        life.network_ticks = on_wire + self.latency

        def tokenize() -> None:
            life.host_ticks = tick(receive_s(self.engine, self.host, life.request.prompt_tokens))
            self.at(self.cores.submit(int(self.env.now), life.host_ticks), lambda: queue(life))

        self.at(arrived, tokenize)

    def deliver(self, ready: int, tokens: int) -> tuple[int, int, int]:
        """Send a step's tokens to the clients: when they are received, and the ticks of a core's work and on
        the wire. Deliveries come in the order in which they are ready."""
        work = tick(deliver_s(self.engine, self.host, tokens))
        on_wire = tick(tokens * STREAMED_BYTES_PER_TOKEN * self._s_per_byte)
        return self._port_out.submit(self.cores.submit(ready, work), on_wire) + self.latency, work, on_wire

    def at(self, when: int, action: Action) -> None:
        after(self.env, when - int(self.env.now), action=action)

"""One run: requests arrive, serving loops take them, clients receive tokens.

A request crosses the network, is received and tokenised on a core of the host, and joins the queue of a
serving loop, which a router chooses; loops decide on steps as long as there is something to do; a step's
tokens are detokenised and sent by a core, and cross the network.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from simpy import Environment, Event

from simulator.placement.kv_moves import WAYS, handover_template, move_template
from simulator.placement.plan import Template
from simulator.placement.program import Blocks, Program, block_ranges
from simulator.results.records import RequestRecord, RunRecord, since
from simulator.results.summary import Summary
from simulator.serving.arrivals import Request, Source
from simulator.serving.lockstep import Lockstep
from simulator.serving.routing import MakeRouter, routing
from simulator.serving.scheduler import Scheduler
from simulator.serving.speculation import Acceptance, SpeculatingScheduler, drawn_acceptance
from simulator.simulation.clock import Clock
from simulator.simulation.front import Front
from simulator.simulation.gaps import Gaps, SummedGaps
from simulator.simulation.handing import Handing, plan_name
from simulator.simulation.lives import RequestLife
from simulator.simulation.loop import Observer, ServingLoop
from simulator.simulation.plan_book import PlanBook
from simulator.simulation.run_record import run_record
from simulator.simulation.ticks import tick
from simulator.specs.engine import Engine

Keep = Literal["all", "summary"]
LEAST_LOADED = routing("least_loaded")


class Serving:
    """A placed model that serves a source of requests on a simulated clock, with a loop for each program."""

    def __init__(
        self, programs: Program | Sequence[Program], engine: Engine, block_count: Blocks, source: Source,
        fidelity: str, cores: int, record_steps: int = 0, observer: Observer | None = None,
        host_blocks: int = 0, make_router: MakeRouter = LEAST_LOADED, timeout_s: float | None = None,
        keep: Keep = "all", acceptance: Acceptance | None = None,
    ) -> None:  # fmt: skip
        """block_count: KV blocks of each placement, which its loops share out, and host_blocks those in host
        memory; cores: for all together. timeout_s: how long clients wait for the whole of an answer. keep: a
        record of every request, or of all together what metrics need. acceptance: of proposed tokens; drawn
        as the placement says if not given."""
        self.programs = (programs,) if isinstance(programs, Program) else tuple(programs)
        assert [program.loop for program in self.programs] == list(range(len(self.programs)))
        self.source, self.fidelity = source, fidelity
        self.env = Environment()
        self.books = tuple(
            PlanBook(program, engine, self._handovers(program) | _moves(program, host_blocks))
            for program in self.programs
        )
        self.clock = Clock(self.env, self.books, fidelity, record_steps)
        self.front = Front(self.env, self.programs[0], engine, cores)
        self.summary = Summary(engine.metrics_clock) if keep == "summary" else None
        self.gaps = Gaps() if self.summary is None else SummedGaps(self.summary)
        blocks = block_ranges(self.programs, block_count)
        host = block_ranges(self.programs, host_blocks)
        passes_on = any(program.placement.role == "prefill" for program in self.programs)
        answers_matter = source.is_closed or passes_on
        self.loops = tuple(
            ServingLoop(self.env, program, _scheduler(engine, program, own, other), self.clock, self.front,
                        self.gaps, self._leave, len(self.programs) == 1, answers_matter, observer,
                        engine.scheduler.overlap, acceptance or drawn_acceptance(program.placement, seed=0))
            for program, own, other in zip(self.programs, blocks, host, strict=True)
        )  # fmt: skip
        self._first_loops = [loop for loop in self.loops if loop.role != "decode"]
        """Those that requests go to."""
        self._router = make_router(len(self._first_loops))
        self._handing: Handing | None = None
        if passes_on:
            self._handing = Handing(self.env, self.clock, self.loops, make_router, observer)
        self._timeout = None if timeout_s is None else tick(timeout_s)
        self.lives: dict[int, RequestLife] = {}
        """Requests that are not over."""
        self.records: list[RequestRecord] = []
        """Those that are, unless a summary is kept."""
        self.in_requests_ticks = self.host_ticks = self.network_ticks = 0
        """From sending to the end, and of that on cores and on the network, of requests that are over."""
        self.in_system_at_arrivals = array("q")
        self.warmed_up: RunRecord | None = None
        """The run until the last request that only warms up was answered."""
        self._live = 0

    def _handovers(self, source: Program) -> dict[str, Template]:
        """The plans by which one program hands sequences over to others."""
        if source.placement.role != "prefill":
            return {}
        targets = (program for program in self.programs if program.placement.role == "decode")
        return {plan_name(target): handover_template(source, target) for target in targets}

    def run(self) -> RunRecord:
        """Serve every request."""
        self.env.process(self._arrivals())
        for loop in self.loops:
            self.env.process(loop.serve())
        self.env.run()
        self.front.deliver_due(math.inf, 0)
        for life in self.lives.values():
            self._keep(life.record())
        return run_record(self)

    def _arrivals(self) -> Generator[Event, Any, None]:
        for request in self.source.open_arrivals():
            sent = tick(request.sent_s)
            if sent > self.env.now:
                self.front.note_client_event(sent)
                yield self.env.timeout(sent - self.env.now)
            self._send(request)

    def _send(self, request: Request) -> None:
        """The client sends a request now."""
        life = self.lives[request.number] = RequestLife(request, int(self.env.now))
        self._live += 1
        self.front.receive(life, self._queue)
        if self._timeout is not None:
            self.front.at(int(self.env.now) + self._timeout, lambda: self._give_up(life))

    def _queue(self, life: RequestLife) -> None:
        """A request joins a loop, unless none can ever serve it or its client waits no more."""
        life.queued = int(self.env.now)
        if self.summary is None:
            self.in_system_at_arrivals.append(self._live)
        else:
            self.summary.flow.arrive(self._live)
        model = self.programs[0].model
        answer = 0 if model.is_encoder else life.request.output_tokens
        is_known = life.request.prompt_tokens + answer <= model.max_position_embeddings
        if life.gave_up:
            self._leave(life)
            return
        if self._handing is not None:
            is_known = is_known and self._handing.could_hold(life.request.prompt_tokens, answer)
        chosen = self._router.choose(life.request, [len(loop.lives) for loop in self._first_loops])
        if not (is_known and self._first_loops[chosen].take(life)):
            life.status = "rejected"
            self._leave(life)

    def _give_up(self, life: RequestLife) -> None:
        """The client stops waiting, unless its answer is complete, or on its way to it."""
        number = life.request.number
        if life.status != "failed":
            return
        life.gave_up = True
        if self._handing is not None:
            self._handing.give_up(number)
        for loop in self.loops:
            if number in loop.lives:
                loop.give_up(number)

    def _keep(self, record: RequestRecord) -> None:
        if self.summary is None:
            self.records.append(record)
        else:
            self.summary.add(record)

    def _leave(self, life: RequestLife) -> None:
        """The request is over; a closed loop's client may send its next once it knows."""
        self._live -= 1
        was_warming_up = self.source.is_warming_up
        if life.status != "rejected":
            over = life.last_received if life.status == "finished" else int(self.env.now)
            self.in_requests_ticks += over - life.sent
            self.host_ticks += life.host_ticks
            self.network_ticks += life.network_ticks
        self._keep(self.lives.pop(life.request.number).record())
        following = self.source.after_completion()
        if was_warming_up and not self.source.is_warming_up:
            self.warmed_up = run_record(self)
            if self.summary is not None:
                self.summary.begin_anew()
        for request in following:
            known = max(life.last_received, int(self.env.now))
            self.front.at(known + tick(self.source.think_s), partial(self._send, request))


def _moves(program: Program, host_blocks: int) -> dict[str, Template]:
    """The plans by which KV blocks leave for host memory, if there is room for them, and come back."""
    return {way: move_template(program, way) for way in WAYS} if host_blocks else {}


def _scheduler(engine: Engine, program: Program, blocks: range, host: range) -> Scheduler | Lockstep:
    if program.placement.speculation is not None:
        proposed = program.placement.speculation.tokens
        return SpeculatingScheduler(engine.scheduler, len(blocks), proposed, blocks.start)
    ranks = [
        Scheduler(engine.scheduler, len(blocks), program.model.sliding_window, blocks.start, host,
                  program.placement.role == "prefill")
        for _ in range(program.rank_groups)
    ]  # fmt: skip
    return Lockstep(ranks) if program.placement.by_sequence else ranks[0]


def serve(
    programs: Program | Sequence[Program], engine: Engine, block_count: Blocks,
    make_source: Callable[[], Source], fidelity: str = "fast", cores: int = 1, record_steps: int = 0,
    host_blocks: int = 0, make_router: MakeRouter = LEAST_LOADED, timeout_s: float | None = None,
    keep: Keep = "all", acceptance: Acceptance | None = None,
) -> RunRecord:  # fmt: skip
    """Run a workload once; what only warms up is not in the record."""
    serving = Serving(
        programs, engine, block_count, make_source(), fidelity, cores, record_steps, None, host_blocks,
        make_router, timeout_s, keep, acceptance,
    )  # fmt: skip
    record = serving.run()
    if serving.warmed_up is not None:
        record = since(serving.warmed_up, record)
    waiting_s = max(0.0, record.time_s["waiting"])  # by a rounding it may be less than nothing
    return replace(record, time_s={**record.time_s, "waiting": waiting_s})

"""One run: requests arrive, the engine serves them, clients receive tokens.

A request crosses the network, is received and tokenised on a core of the host, and joins the engine's
queue; the engine decides on steps as long as there is something to do; a step's tokens are detokenised and
sent by a core, and cross the network. Cores and both directions of the network port are queues of their
own, so a busy host delays requests as a busy GPU does.

At one tick, whatever requests and clients do comes before a finished step is accounted for, and again
before the next step is decided.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from simpy import Environment, Event

from simulator.costs.host import PROMPT_BYTES_PER_TOKEN, STREAMED_BYTES_PER_TOKEN, deliver_s, receive_s
from simulator.graph.shape import StepShape
from simulator.placement.memory import split_chunks
from simulator.placement.program import Program
from simulator.results.records import RequestRecord, RunRecord, Span, Status
from simulator.serving.actions import Completed, Step
from simulator.serving.arrivals import Request, Source
from simulator.serving.scheduler import Scheduler
from simulator.simulation.clock import Clock, Crowded, Recorded, StepClock, TaskClock
from simulator.simulation.events import LAST, Action, after
from simulator.simulation.plan_book import MOST_AHEAD, PlanBook, busy_seconds, flops_total, link_totals
from simulator.simulation.pool import Pool
from simulator.simulation.pricing import PARTS
from simulator.simulation.ticks import seconds, tick
from simulator.specs.engine import Engine

Life = Generator[Event, Any, None]


@dataclass(slots=True)
class _Life:
    """What is known of a request while it is served, in ticks; -1: not yet."""

    request: Request
    sent: int
    queued: int = -1
    scheduled: int = -1
    first_token: int = -1
    last_token: int = -1
    first_received: int = -1
    last_received: int = -1
    status: Status = "failed"
    host_ticks: int = 0
    """Work that cores did for it alone, and for the delivery of its last token."""
    network_ticks: int = 0
    preemptions: int = 0
    stalled: int = -1
    """When the client received the last token before a preemption that is not over yet."""


@dataclass(frozen=True)
class Observer:
    """What who watches a run is told: each decision with the scheduler that took it."""

    decided: Callable[[Scheduler, Step, int], None]


class Serving:
    """A placed model that serves a source of requests on a simulated clock."""

    def __init__(
        self, program: Program, engine: Engine, block_count: int, source: Source, fidelity: str,
        cores: int, record_steps: int = 0, observer: Observer | None = None,
    ) -> None:  # fmt: skip
        self.program, self.engine, self.source, self.fidelity = program, engine, source, fidelity
        self.env = Environment()
        self.scheduler = Scheduler(engine.scheduler, block_count, program.model.sliding_window)
        self.book = PlanBook(program, engine)
        clock_type = TaskClock if fidelity == "task" else StepClock
        self.clock: Clock = clock_type(self.env, self.book, record_steps)
        self.host = program.machine.hosts[program.host].host
        self.observer = observer
        self._set_up_host(cores)
        self.lives: dict[int, _Life] = {}
        self._idle: Event | None = None
        self._previous_received = 0
        self._gaps: list[int] = []
        self._gap_counts: list[int] = []
        self._in_system: list[int] = []
        self._live = 0

    def _set_up_host(self, cores: int) -> None:
        self.cores = Pool(cores)
        machine = self.program.machine.machine
        nodes = {node.name: node for node in machine.nodes}
        node = nodes[self.program.machine.hosts[self.program.host].node]
        link = machine.network or node.network
        self._port_s_per_byte = 1 / link.achieved_bytes_per_s if link else 0.0
        self._port_latency = tick(link.latency_s) if link else 0
        self.port_in, self.port_out = Pool(1), Pool(1)

    def run(self) -> RunRecord:
        """Serve every request; raises `Crowded` if `step` cannot price this run."""
        self.env.process(self._arrivals())
        self.env.process(self._serve())
        self.env.run()
        return self._record()

    # -- the way in -----------------------------------------------------------------------------------

    def _arrivals(self) -> Life:
        for request in self.source.open_arrivals():
            sent = tick(request.sent_s)
            if sent > self.env.now:
                yield self.env.timeout(sent - self.env.now)
            self._send(request)

    def _send(self, request: Request) -> None:
        """The client sends a request now."""
        now = int(self.env.now)
        life = self.lives[request.number] = _Life(request, now)
        self._live += 1
        on_wire = tick(request.prompt_tokens * PROMPT_BYTES_PER_TOKEN * self._port_s_per_byte)
        arrived = self.port_in.submit(now, on_wire) + self._port_latency
        life.network_ticks = on_wire + self._port_latency
        self._at(arrived, lambda: self._receive(life))

    def _receive(self, life: _Life) -> None:
        work = tick(receive_s(self.engine, self.host, life.request.prompt_tokens))
        life.host_ticks = work
        self._at(self.cores.submit(int(self.env.now), work), lambda: self._enqueue(life))

    def _enqueue(self, life: _Life) -> None:
        life.queued = int(self.env.now)
        self._in_system.append(self._live)
        request, model = life.request, self.program.model
        answer = 0 if model.is_encoder else request.output_tokens
        known = request.prompt_tokens + answer <= model.max_position_embeddings
        if not (known and self.scheduler.add(request.number, request.prompt_tokens, request.output_tokens)):
            life.status = "rejected"
            self._leave(life)
        elif self._idle is not None:
            self._idle.succeed()
            self._idle = None

    # -- the engine -----------------------------------------------------------------------------------

    def _serve(self) -> Life:
        while True:
            yield from self._all_else_of_this_tick()
            step = self.scheduler.decide()
            if step is None:
                self._idle = self.env.event()
                yield self._idle
                continue
            launched = int(self.env.now)
            if self.observer is not None:
                self.observer.decided(self.scheduler, step, launched)
            self._note(step, launched)
            step = self._run_ahead(step)
            yield self.clock.run(self._shapes(step))
            yield from self._all_else_of_this_tick()
            self._account(step, self.scheduler.complete(step))

    def _run_ahead(self, step: Step) -> Step:
        """Carry out at once the decode steps that nothing can touch, because the one after them is launched
        before anything else happens; the step that is then to be launched."""
        if self.observer is not None or self.program.placement.microbatches > 1:
            return step
        horizon = self.env.peek()
        while True:
            shape = step.shape(self.program.traits)
            ends = self.clock.ends_ahead(shape, self.scheduler.rounds_ahead(MOST_AHEAD))
            untouched = [end for end in ends if end < horizon]
            if not untouched:
                return step
            self.clock.skip(shape, untouched, step.decode_count)
            for end in untouched:
                self._deliver(end, step.decode_count)
            step = self.scheduler.skip(len(untouched))

    def _all_else_of_this_tick(self) -> Life:
        """Let everything else that happens now happen first."""
        if self.env.peek() == self.env.now:
            yield after(self.env, 0, LAST)

    def _note(self, step: Step, launched: int) -> None:
        """Remember which requests the step takes up for the first time, and which it preempts."""
        for piece in step.prefills:
            life = self.lives[piece.sequence]
            if life.scheduled < 0:
                life.scheduled = launched
        for number in step.preempted:
            life = self.lives[number]
            life.preemptions += 1
            if life.first_token >= 0 and life.stalled < 0:
                life.stalled = self._previous_received

    def _shapes(self, step: Step) -> tuple[StepShape, ...]:
        if self.program.placement.microbatches == 1:
            return (step.shape(self.program.traits),)
        parts = split_chunks(self.scheduler.chunks(), self.program.placement.microbatches)
        return tuple(StepShape.of(part, self.program.traits) for part in parts)

    # -- the way out ----------------------------------------------------------------------------------

    def _account(self, step: Step, completed: Completed) -> None:
        now = int(self.env.now)
        self.clock.charge(step.decode_count + len(step.prefills))
        work, on_wire = self._deliver(now, step.decode_count, completed.token_count - step.decode_count)
        received = self._previous_received
        for number in completed.resumed:
            life = self.lives[number]
            self._gaps.append(received - life.stalled)
            self._gap_counts.append(1)
            life.stalled = -1
        for number in completed.started:
            life = self.lives[number]
            life.first_token, life.first_received = now, received
        for number in completed.finished:
            life = self.lives[number]
            life.last_token, life.last_received, life.status = now, received, "finished"
            life.host_ticks += work
            life.network_ticks += on_wire + self._port_latency
            self._leave(life)

    def _deliver(self, ready: int, decoded: int, others: int = 0) -> tuple[int, int]:
        """Send a step's tokens to the clients, those of `decoded` sequences that had one in the step before
        and `others`; ticks of a core's work and on the network."""
        work = tick(deliver_s(self.engine, self.host, decoded + others))
        on_wire = tick((decoded + others) * STREAMED_BYTES_PER_TOKEN * self._port_s_per_byte)
        received = self.port_out.submit(self.cores.submit(ready, work), on_wire) + self._port_latency
        if decoded:
            self._gaps.append(received - self._previous_received)
            self._gap_counts.append(decoded)
        self._previous_received = received
        return work, on_wire

    def _leave(self, life: _Life) -> None:
        """The request is over; a closed loop's client may send its next once it knows."""
        self._live -= 1
        following = self.source.after_completion()
        if following is not None:
            self._at(max(life.last_received, int(self.env.now)), lambda: self._send(following))

    def _at(self, when: int, action: Action) -> None:
        after(self.env, when - int(self.env.now), action=action)

    # -- the record -----------------------------------------------------------------------------------

    def _record(self) -> RunRecord:
        requests = tuple(_record_of(life) for life in self.lives.values())
        finished = [request for request in requests if request.status == "finished"]
        busy = busy_seconds(self.book)
        thread_s = busy.get(self.program.engine_unit, 0.0)
        return RunRecord(
            requests=requests,
            gaps_s=np.array(self._gaps, dtype=np.float64) / tick(1.0),
            gap_counts=np.array(self._gap_counts, dtype=np.int64),
            step_count=self.clock.step_count,
            output_tokens=sum(request.output_tokens for request in finished),
            start_s=min((request.sent_s for request in requests), default=0.0),
            end_s=max((request.last_received_s for request in finished), default=0.0),
            time_s=self._times(finished),
            overhead_s=self._times_in_steps()["overhead"],
            busy_s=busy,
            host_busy_s=thread_s + seconds(self.cores.busy),
            link_bytes=link_totals(self.book),
            flops=flops_total(self.book),
            peak_blocks=self.scheduler.pool.peak_taken,
            preemptions=self.scheduler.preemptions,
            in_system_at_arrivals=np.array(self._in_system, dtype=np.int64),
            fidelity=self.fidelity,
            spans=tuple(span for recorded in self.clock.recorded for span in _spans(recorded)),
        )

    def _times_in_steps(self) -> dict[str, float]:
        """Request-seconds on the critical paths of steps, by part."""
        in_steps = sum((use.time_s for use in self.book.settled()), np.zeros(len(PARTS)))
        return dict(zip(PARTS, in_steps.tolist(), strict=True))

    def _times(self, finished: Sequence[RequestRecord]) -> dict[str, float]:
        """Request-seconds by category; waiting is what is left of the requests' time."""
        times = self._times_in_steps()
        times["compute"] += times.pop("overhead")
        served = [life for life in self.lives.values() if life.status == "finished"]
        times["host"] += seconds(sum(life.host_ticks for life in served))
        times["network"] = seconds(sum(life.network_ticks for life in served))
        total = sum(request.e2e_s for request in finished)
        times["waiting"] = max(0.0, total - sum(times.values()))
        return times


def _record_of(life: _Life) -> RequestRecord:
    request = life.request
    if life.status != "finished":
        return RequestRecord(request.number, life.status, request.prompt_tokens, seconds(life.sent))
    return RequestRecord(
        request.number, "finished", request.prompt_tokens, seconds(life.sent), request.output_tokens,
        seconds(life.queued), seconds(life.scheduled), seconds(life.first_token), seconds(life.last_token),
        seconds(life.first_received), seconds(life.last_received), life.preemptions,
    )  # fmt: skip


def _spans(recorded: Recorded) -> Iterator[Span]:
    template, timed = recorded.priced.template, recorded.timed
    for index, (task, start, end) in enumerate(zip(template.tasks, timed.starts, timed.ends, strict=True)):
        shape = recorded.shapes[task.microbatch]
        yield Span(
            task.name, task.kind, task.operator, task.units, seconds(start), seconds(end), recorded.step,
            task.layer, task.microbatch, shape.prefill_tokens, shape.decode_tokens, task.crossings,
            index == template.outcome,
        )  # fmt: skip


def serve(
    program: Program, engine: Engine, block_count: int, make_source: Callable[[], Source],
    fidelity: str = "step", cores: int = 1, record_steps: int = 0,
) -> RunRecord:  # fmt: skip
    """Run a workload; a `step` run whose schedule is no certificate is done again as `task`, and the
    record names the link that made it so."""
    if fidelity == "step":
        try:
            return Serving(program, engine, block_count, make_source(), "step", cores, record_steps).run()
        except Crowded as crowded:
            run = Serving(program, engine, block_count, make_source(), "task", cores, record_steps).run()
            return replace(run, crowded_link=crowded.link)
    return Serving(program, engine, block_count, make_source(), fidelity, cores, record_steps).run()


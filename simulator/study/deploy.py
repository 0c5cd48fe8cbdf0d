"""Brings a scenario's parts together: machine, model, engine and strategy become placed models that serve."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

from simulator.errors import InputError, Problem, SimulatorError
from simulator.graph.machine import machine_graph
from simulator.graph.work import Formats
from simulator.placement.kv_moves import why_not_to_host
from simulator.placement.memory import Budget, budget, refusal, together
from simulator.placement.placement import NotPlaceable, Role
from simulator.placement.program import Blocks, Program, by_placement, programs_of
from simulator.placement.strategies import Strategy
from simulator.serving.arrivals import Request, RequestTable, Source, from_trace, generate
from simulator.specs.architecture import Architecture
from simulator.specs.arrivals import ClosedArrivals, TraceArrivals
from simulator.specs.base import Case
from simulator.specs.catalogue import Catalogue
from simulator.specs.engine import Engine, SchedulerSettings
from simulator.specs.hardware import Host, Machine
from simulator.specs.load import Loaded
from simulator.specs.machine import load_machine
from simulator.specs.provenance import Figure
from simulator.specs.scenario import PrecisionChoice
from simulator.specs.trace import load_trace
from simulator.specs.workload import HistogramLengths, Workload

UNCHANGED: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Deployment:
    """A model placed on a machine and served by an engine, with the account of its memories."""

    programs: tuple[Program, ...]
    """One for each serving loop: those of a placement, and those of its replicas."""
    engine: Engine
    figures: tuple[Figure, ...] = ()
    """Uncertain figures of the machine and the engine."""
    kv_blocks: int | None = None
    """Of each placement, where they are stated."""

    @property
    def program(self) -> Program:
        """The first."""
        return self.programs[0]

    @property
    def decoding(self) -> Program:
        """The first that decodes."""
        return next(program for program in self.programs if program.placement.role != "prefill")

    @property
    def devices(self) -> tuple[str, ...]:
        """Every device that computes."""
        return tuple(dict.fromkeys(d for program in self.programs for d in program.placement.devices))

    @cached_property
    def pools(self) -> Mapping[Role, Budget]:
        """The account of the memories of all placements that are for the same, by what that is."""
        found: dict[Role, list[Budget]] = {}
        for loops in by_placement(self.programs):
            found.setdefault(loops[0].placement.role, []).append(budget(loops[0], self.engine))
        return {
            role: replace(together(budgets, self.engine), stated_blocks=self.kv_blocks)
            for role, budgets in found.items()
        }

    @cached_property
    def budget(self) -> Budget:
        """The account of every memory the placements touch."""
        return replace(together(list(self.pools.values()), self.engine), stated_blocks=self.kv_blocks)

    @property
    def blocks(self) -> Blocks:
        """The KV blocks of each placement."""
        return {role: account.kv_blocks for role, account in self.pools.items()}

    @property
    def answers_in(self) -> Budget:
        """The account of the placements where answers are made, and cached."""
        return next(account for role, account in self.pools.items() if role != "prefill")

    def refusal(self, fewest_prompt_tokens: int, fewest_tokens: int) -> str | None:
        """Why no request can be served, given the shortest prompt and the fewest tokens of prompt and answer
        together; None if some may be."""
        needed = {role: fewest_prompt_tokens if role == "prefill" else fewest_tokens for role in self.pools}
        reasons = {role: refusal(account, needed[role]) for role, account in self.pools.items()}
        told = {role: reason for role, reason in reasons.items() if reason is not None}
        return "; ".join(told[role] if role == "both" else f"{role}: {told[role]}" for role in told) or None

    @property
    def host(self) -> Host:
        """The host where requests arrive, and whose thread drives the first placement."""
        return self.program.machine.hosts[self.program.host].host

    @property
    def cores(self) -> int:
        """Cores left for requests: without the share a `cpu` device of a placement computes on, and
        without the thread of each serving loop that the host drives. At least one."""
        assert self.host.cores is not None
        used = {self.program.machine.memory_of(device) for device in self.devices}
        taken = self.host.cpu.share if self.host.cpu is not None and self.program.host in used else 0.0
        loops = [program for program in self.programs if program.host == self.program.host]
        threads = sum(len(program.engine_units) for program in loops)
        return max(1, math.floor(self.host.cores * (1 - taken)) - threads)


def deploy(
    machine_ref: str | Mapping[str, Any], model: Architecture, engine_id: str, precision: PrecisionChoice,
    strategy: Strategy, catalogue: Catalogue, case: Case = "nominal",
    scheduler: Mapping[str, Any] = UNCHANGED, memory: Mapping[str, Any] = UNCHANGED,
) -> Deployment | NotPlaceable:  # fmt: skip
    """Place a model; raises InputError for files that cannot be used.

    scheduler, memory: settings of the engine that replace those of its profile.
    """
    graph = machine_graph(load_machine(machine_ref, catalogue, case))
    if any(placed.device.tables for placed in graph.devices.values()):
        from simulator.study.calibration.measured_times import with_measured_times  # imports scipy, a second

        graph = with_measured_times(graph)
    engine = catalogue.engine(engine_id, case)
    placed = strategy.place(model, graph)
    if isinstance(placed, NotPlaceable):
        return placed
    formats = Formats(precision.weights, precision.activations, precision.kv_cache)
    placements = placed if isinstance(placed, tuple) else (placed,)
    programs = programs_of(model, placements, graph, formats, engine.record.is_eager)
    program = programs[0]
    record = reset(engine.record, scheduler, memory)
    reason = _why_not_storable(program)
    if reason is None and program.drafter is not None:
        reason = _why_not_storable(program.drafter)
    if reason is None and record.memory.host_kv_bytes:
        reason = why_not_to_host(program)
    if reason is not None:
        return NotPlaceable(reason)
    host = graph.hosts[program.host]
    if host.host.cores is None:
        return NotPlaceable(f"host {host.host_id} does not say how many cores it has (unknown)")
    figures = figures_behind(graph.machine, engine_id, engine)
    return Deployment(programs, _for_model(record, model), figures)


def figures_behind(machine: Machine, engine_id: str, engine: Loaded[Engine]) -> tuple[Figure, ...]:
    """Uncertain figures of a machine and an engine."""
    return machine.figures + tuple(figure.under(f"engines.{engine_id}") for figure in engine.figures)


def reset(engine: Engine, scheduler: Mapping[str, Any], memory: Mapping[str, Any] = UNCHANGED) -> Engine:
    """An engine that is set otherwise; raises pydantic's ValidationError where settings do not go together,
    which a scenario is told of when it is read."""
    changed = SchedulerSettings.model_validate(engine.scheduler.model_dump() | dict(scheduler))
    update = {"scheduler": changed, "memory": engine.memory.model_copy(update=dict(memory))}
    return engine.model_copy(update=update)


def _why_not_storable(program: Program) -> str | None:
    """What stops some parameter from being kept in the number format that was chosen, whole or cut."""
    try:
        return program.why_not_cut()
    except SimulatorError as error:
        return str(error)


def _for_model(engine: Engine, model: Architecture) -> Engine:
    """The engine as it serves this model. An encoder's tokens see each other, so its prompts go whole, with a
    budget of its own that holds at least one of the longest. States of linear attention are not kept in
    blocks, so where a prefix was kept they would be missing: nothing is kept of such models."""
    settings = engine.scheduler
    changes: dict[str, Any] = {}
    if model.is_encoder:
        budget = settings.max_num_batched_tokens_of_encoders or settings.max_num_batched_tokens
        longest = model.max_position_embeddings
        changes = {"chunked_prefill": False, "max_num_batched_tokens": max(budget, longest)}
    if model.has_linear_attention:
        changes["prefix_caching"] = False
    return engine.model_copy(update={"scheduler": settings.model_copy(update=changes)})


def requests_of(
    workload: Workload, seed: int, catalogue: Catalogue, model: Architecture
) -> RequestTable:
    """The requests of a workload; the same for every placement. Raises InputError where an encoder is asked
    for more than its one answer."""
    requests = _requests_of(workload, seed, catalogue)
    most = int(requests.output_tokens.max())
    if model.is_encoder and most > 1:
        advice = (f"{model.name} is an encoder: it answers each request once, with a vector; "
                  "ask for an output of 1")  # fmt: skip
        raise InputError([Problem("scenario", key="workload.lengths.output", value=most, advice=advice)])
    return requests


def _requests_of(workload: Workload, seed: int, catalogue: Catalogue) -> RequestTable:
    arrivals = workload.arrivals
    if isinstance(arrivals, TraceArrivals):
        trace = load_trace(
            arrivals.file, workload.requests, hash_block=arrivals.hash_block, rate_scale=arrivals.rate_scale,
            repeat=arrivals.repeat,
        )  # fmt: skip
        return from_trace(trace, seed, workload.priorities)
    lengths = workload.lengths
    assert lengths is not None and workload.requests is not None
    drawn_from = catalogue.histogram(lengths.histogram) if isinstance(lengths, HistogramLengths) else lengths
    return generate(
        arrivals, drawn_from, workload.requests, seed, workload.priorities, workload.shared_prefix
    )


def source_of(workload: Workload, requests: Sequence[Request]) -> Source:
    """A fresh source of these requests for one run."""
    arrivals = workload.arrivals
    if isinstance(arrivals, ClosedArrivals):
        return Source(requests, arrivals.concurrency, arrivals.warmup_requests, arrivals.think_time_s)
    return Source(requests)


def transitions_per_token(program: Program) -> dict[str, int]:
    """How often one decoded token's pass crosses from each device to each other, by `a->b`; of a token of the
    first rank, where ranks have sequences of their own. Where tokens are proposed, all passes of a round."""
    counted: dict[str, int] = {}
    groups = program.rank_groups
    for task in program.template(groups).tasks:
        if task.microbatch not in (0, groups):
            continue
        for source, target in task.crossings:
            key = f"{source}->{target}"
            counted[key] = counted.get(key, 0) + 1
    if program.drafter is not None:
        assert program.placement.speculation is not None
        for key, count in transitions_per_token(program.drafter).items():
            counted[key] = counted.get(key, 0) + count * program.placement.speculation.tokens
    return counted

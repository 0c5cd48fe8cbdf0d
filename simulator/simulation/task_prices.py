"""What each task of a program costs on the machine it was placed on, as linear forms of a step's features.

Which tasks are flows is decided here too: copies and collectives over their links, and kernels that compute
on a host's DRAM over its memory bus, where the machine has one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from simulator.costs.host import of_prompt_s, of_visit_s, own_code_s, own_passes, step_s
from simulator.costs.operators import is_needed, kernel_rates
from simulator.costs.transfers import (
    collective_bytes_per_s,
    collective_ways,
    copy_bytes_per_s,
    copy_latency_s,
    transition_s,
)
from simulator.graph.machine import Correction, Directed, GridCorrection, MeasuredTimes
from simulator.graph.operator_traits import operator_traits
from simulator.graph.shape import NOTHING, Amount, total
from simulator.graph.work import Work
from simulator.placement.plan import KvCopy, Launched, Task
from simulator.placement.program import Program
from simulator.simulation.ticks import tick
from simulator.specs.engine import Engine
from simulator.specs.hardware import Algorithm, Device


@dataclass(frozen=True, slots=True)
class Form:
    """Seconds as a linear form: an amount and the seconds that one unit of it takes."""

    coefficients: tuple[int, ...]
    s_per_unit: float


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel of a price class."""

    compute: Form
    memory: Form
    least: Form
    """What one processor needs for its part; of several chains, for all of them."""
    overhead_s: float
    blend: float
    chains: Form | None = None
    """How many chains those are, where that depends on the step."""
    longest_chain_s: float = math.inf
    """Longer ones are shared out."""
    joint: Form | None = None
    """What comes to the arithmetic, and no overhead, where a batch with prompts is one kernel."""
    joint_chains: tuple[Form, Form] | None = None
    """What one processor needs then, for all chains, and how many these are."""
    split_s: float = 0.0
    regroup_s: float = 0.0
    """With more than one sequence that decodes."""
    cache_s: float = math.inf
    """How long the device's cache takes to stream through once, from memory; infinite where it plays no
    part."""
    cached: float = 1.0
    correction: Correction | None = None
    """By measured times, where there are some."""
    grid: tuple[GridCorrection, Form, Form] | None = None
    """The same of attention, with the keys of all sequences and how many of these there are."""


@dataclass(frozen=True, slots=True)
class Way:
    """One way to carry a collective out, or a copy: beyond the least latency of all ways and the time of its
    bytes."""

    extra_s: float = 0.0
    slowness: float = 1.0
    below_s: float = math.inf
    """Only for collectives that keep the busiest link busy for less."""


STRAIGHT = (Way(),)
"""What a flow with nothing to choose from does."""


@dataclass(frozen=True, slots=True)
class Price:
    """Everything that decides the duration of a task; equal prices make a class. Of the three kinds of
    content one is there."""

    microbatch: int
    kernels: tuple[Kernel, ...] = ()
    loads: tuple[Form, ...] = ()
    """Of each link crossed."""
    ways: tuple[Way, ...] = STRAIGHT
    """Of a flow, the quickest of which it takes."""
    host: tuple[Form, ...] = ()
    latency_s: float = 0.0
    bus: tuple[Form, ...] = ()
    """Of a kernel on a host's DRAM: the time its traffic would keep the memory bus busy."""

    @property
    def rank(self) -> int:
        return 0 if self.kernels else 1 if self.loads else 2


def _corrected(kernel: Kernel, work: Work, times: MeasuredTimes | None) -> Kernel:
    """With what measured times say of it."""
    found = times.correction(work) if times is not None else None
    if isinstance(found, GridCorrection):
        keys, sequences = (Form(each.coefficients, 1.0) for each in (work.chains, work.chain_count))
        return replace(kernel, grid=(found, keys, sequences))
    return replace(kernel, correction=found)


ALGORITHM: Mapping[str, Algorithm] = {
    "all_reduce": "all_reduce",
    "gather_logits": "all_gather",
    "all_gather_tokens": "all_gather",
    "reduce_scatter_tokens": "reduce_scatter",
}
"""What a collective task is to a link's figures; joining at one rank costs what joining at all does."""


class Pricer:
    """Looks up what each task of a program costs on the machine it was placed on."""

    def __init__(self, program: Program, engine: Engine) -> None:
        self.program, self.links = program, program.machine.links
        self.pinned = engine.memory.pinned
        self.launch, self.code, self.fetch_s = engine.launch, engine.code, engine.overheads.fetch_s
        self.block_copy_s, self.block_tokens = engine.overheads.block_copy_s, engine.scheduler.kv_block_tokens
        self.engine_step_s = step_s(engine, program.machine.hosts[program.host].host)

    def links_crossed(self, task: Task) -> tuple[str, ...]:
        """The links a task flows over: those it puts bytes on, or the memory bus a kernel computes over."""
        if task.kind == "compute":
            bus = self._bus(task)
            return (bus.name,) if bus is not None else ()
        return tuple(link for link, _ in task.link_bytes)

    def _bus(self, task: Task) -> Directed | None:
        """The memory bus of the host on whose DRAM a task computes, where the machine has one."""
        memory = self.program.machine.memory_of(task.place)
        return self.links.get(f"{memory}.bus") if memory in self.program.machine.hosts else None

    def price(self, task: Task) -> Price:
        if task.kind == "compute":
            bus = self._bus(task)
            works = (*self._unpacking(task.works), *task.works)
            moved = total(self._moved_bytes(work) for work in works)
            over_bus = (Form(moved.coefficients, 1 / bus.bytes_per_s),) if bus is not None else ()
            return Price(task.microbatch, kernels=tuple(self._kernels(task)), bus=over_bus)
        if task.kind == "host":
            return Price(task.microbatch, host=(self._host(task),))
        directed = [self.links[name] for name, _ in task.link_bytes]
        loads = tuple(
            Form(amount.coefficients, 1 / self._bytes_per_s(task, directed, link))
            for link, (_, amount) in zip(directed, task.link_bytes, strict=True)
        )
        if task.kind == "collective":
            return self._collective(task, directed, loads)
        brings_weights = any(tensor.kind == "fetched_weights" for tensor in task.writes)
        latency_s = self._latency_s(task, directed) + self.fetch_s * brings_weights
        ways = STRAIGHT if task.kv_copy is None else (self._in_pieces(task.kv_copy, loads),)
        return Price(task.microbatch, loads=loads, latency_s=latency_s, ways=ways)

    def _in_pieces(self, move: KvCopy, loads: Sequence[Form]) -> Way:
        """Blocks that go to host memory or back are copied in pieces, each of which costs something besides
        its bytes. All pieces are of one size, so all takes so many times as long."""
        ends = {move.source.memory, move.target.memory}
        if not self.block_copy_s or not ends.intersection(self.program.machine.hosts):
            return Way()
        slab = move.source
        plane_bytes = slab.bytes_per_token * move.head_count / slab.head_count / slab.planes
        piece_s = plane_bytes * self.block_tokens * max(load.s_per_unit for load in loads)
        return Way(slowness=1 + self.block_copy_s / piece_s)

    def _collective(self, task: Task, directed: Sequence[Directed], loads: tuple[Form, ...]) -> Price:
        """What is quickest with nothing to carry is its latency, and no way is quicker."""
        ways = collective_ways([link.link for link in directed], ALGORITHM[task.operator], len(task.units))
        latency_s = min(way.latency_s for way in ways)
        s_per_byte = max(load.s_per_unit for load in loads)
        chosen = tuple(
            Way(way.latency_s - latency_s, way.slowness, way.below_link_bytes * s_per_byte) for way in ways
        )
        return Price(task.microbatch, loads=loads, ways=chosen, latency_s=latency_s)

    def _host(self, task: Task) -> Form:
        """The thread prepares a step, and launches kernels, as the engine's profile says; committing tokens
        takes one tick."""
        if task.host_work == "launch":
            return Form(self._launching(task.launches).coefficients, 1 / tick(1.0))
        if task.host_work != "gather":
            return Form(Amount().coefficients, 0.0)
        fixed_s, per_sequence_s = self.engine_step_s
        picoseconds = Amount.of(one=tick(fixed_s), sequences=tick(per_sequence_s))
        return Form(picoseconds.coefficients, 1 / tick(1.0))

    def _launching(self, launches: Sequence[Launched]) -> Amount:
        """Ticks of the thread that launches kernels one by one, with the engine's own code around them; a
        graph has neither."""
        own = sum(tick(self._own_s(each.operator, each.layer)) for each in launches)
        fixed = sum(each.kernels for each in launches) * tick(self.launch.kernel_s) + own
        prompts = sum(tick(of_prompt_s(self.code, each.operator)) for each in launches)
        if self.launch.graphs == "decode":
            return Amount.of(has_prefill=fixed + prompts)
        visits = sum(tick(of_visit_s(self.code, each.operator)) for each in launches)
        return Amount.of(one=fixed, active_experts=visits, has_prefill=prompts)

    def _own_s(self, operator: str, layer: int | None) -> float:
        return own_code_s(self.code, operator, operator_traits(self.program.model, layer, operator))

    def _kernels(self, task: Task) -> list[Kernel]:
        placed = self.program.machine.devices[task.place]
        device, times = placed.device, placed.times
        is_slow = device.kind == "cpu"
        traits = operator_traits(self.program.model, task.layer, task.operator)
        own_s = self._own_s(task.operator, task.layer) if is_slow else 0.0
        passes = own_passes(self.code, task.operator, traits)
        of_attention = [work for work in task.works if work.operator_class.startswith("attention")]
        called = of_attention or task.works[:1]
        kernels = [self._kernel(work, device, 1.0, 0.0) for work in self._unpacking(task.works)]
        kernels += [
            _corrected(self._kernel(work, device, passes, own_s if work in called else 0.0), work, times)
            for work in task.works
            if is_needed(device, work)
        ]
        return kernels + self._visits(task.operator) * is_slow

    def _unpacking(self, works: Sequence[Work]) -> list[Work]:
        """The kernels that bring what works read to a format to multiply in, where products do not do that
        themselves."""
        return [
            Work("elementwise", work.formats[-1:], NOTHING, work.packed * self.code.unpack_bytes)
            for work in works
            if self.code.unpack_bytes and work.packed
        ]

    def _visits(self, operator: str) -> list[Kernel]:
        each_s = of_visit_s(self.code, operator)
        if not each_s:
            return []
        nothing = Form(Amount().coefficients, 0.0)
        visits = Form(Amount.of(active_experts=1).coefficients, each_s)
        return [Kernel(compute=nothing, memory=visits, least=nothing, overhead_s=0.0, blend=1.0)]

    def _moved_bytes(self, work: Work) -> Amount:
        """Of a kernel, with the scores that attention leaves in memory where the engine does not fuse it."""
        if not self.code.score_bytes:
            return work.moved_bytes
        return work.moved_bytes + work.scores * self.code.score_bytes

    def _kernel(self, work: Work, device: Device, passes: float, code_s: float) -> Kernel:
        """One kernel; `passes` through memory and `code_s` of overhead are what the engine's own code makes
        of it."""
        rates = kernel_rates(device, work.operator_class, work.formats)
        flops = work.flops + work.block_flops * rates.pairs_in_block
        compute = Form(flops.coefficients, 1 / rates.flops_per_s)
        memory = Form(self._moved_bytes(work).coefficients, passes / rates.bytes_per_s)
        chains, joint, joint_chains = None, None, None
        of_chains = Form(work.chains.coefficients, rates.chain_s)
        chain_count = Form(work.chain_count.coefficients, 1.0)
        is_chained = bool(work.chains and rates.chain_s)
        is_split = bool(work.block_bytes) and (work.is_shared or not is_chained)
        if is_split:
            least = Form((work.block_bytes * rates.block).coefficients, 1 / rates.bytes_per_s)
        elif is_chained:
            least, chains = of_chains, chain_count
        else:
            least = Form(Amount.of(one=1).coefficients, rates.chain_time_s(work.chain))
        if rates.joint and work.joint_flops:
            more = work.flops * (rates.joint - 1) + work.joint_flops * (rates.joint * rates.block)
            joint = Form(more.coefficients, 1 / rates.flops_per_s)
            joint_chains = (of_chains, chain_count) if is_chained else None
        cached = rates.cached if work.is_warm and rates.cache_bytes else 1.0
        cache_s = (rates.cache_bytes or math.inf) / rates.bytes_per_s
        return Kernel(
            compute, memory, least, rates.overhead_s + code_s, rates.blend, chains=chains,
            longest_chain_s=rates.longest_chain_s, joint=joint, joint_chains=joint_chains,
            split_s=rates.split_s if is_split else 0.0, regroup_s=rates.regroup_s if work.regroups else 0.0,
            cache_s=cache_s, cached=cached,
        )  # fmt: skip

    def _bytes_per_s(self, task: Task, directed: Sequence[Directed], link: Directed) -> float:
        if task.kind == "collective":
            return collective_bytes_per_s(link.link, ALGORITHM[task.operator], len(task.units))
        source, targets = self._ends(task, directed)
        owners = [self.program.machine.owner_of(memory) for memory in (source, *targets)]
        pageable = not self.pinned and None in owners
        return copy_bytes_per_s(link.link, pageable)

    def _latency_s(self, task: Task, directed: Sequence[Directed]) -> float:
        """Of a copy; to several places, that of the longest route."""
        source, targets = self._ends(task, directed)
        return max(self._copy_latency_s(source, target) for target in targets)

    def _copy_latency_s(self, source: str, target: str) -> float:
        machine = self.program.machine
        route = [directed.link for directed in machine.route(source, target)]
        return copy_latency_s(route) + transition_s(machine.owner_of(source), machine.owner_of(target))

    def _ends(self, task: Task, directed: Sequence[Directed]) -> tuple[str, tuple[str, ...]]:
        """The memory that a copy starts from, and those that it goes to."""
        targets = dict.fromkeys(tensor.memory for tensor in task.writes) or (task.place,)
        first = directed[0]  # a bus is one link in both directions: its name tells the memory
        source = first.name.removesuffix(".bus") if first.name.endswith(".bus") else first.source
        return source, tuple(targets)

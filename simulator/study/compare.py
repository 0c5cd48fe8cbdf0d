"""Whether what was simulated is what a real transformer does: a run on the clock, carried out and compared.

Steps are carried out on a network with random weights, in the order of the simulated clock, and everything
their plans claim is compared with what torch did. It is done in float64, where a different order of additions
changes no token.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from simulator.graph.shape import Chunk
from simulator.graph.work import Parameter
from simulator.placement.largest_step import fetched_bytes_per_token, largest_step
from simulator.placement.occupancy import peak_occupancy, standing_bytes
from simulator.placement.plan import Plan, flaws
from simulator.placement.program import Blocks, Program, blocks_of, by_placement
from simulator.results.records import RunRecord
from simulator.serving.arrivals import Request
from simulator.serving.speculation import Acceptance, KnownAcceptance
from simulator.simulation.clock import Recorded
from simulator.specs.architecture import Architecture
from simulator.specs.engine import Engine

if TYPE_CHECKING:
    from simulator.execution.network import Transformer
    from simulator.execution.replay import Replayed

Parts = tuple[tuple[Chunk, ...], ...]
"""The chunks of a step by microbatch."""

LOGITS_TOLERANCE = 1e-9
"""Largest absolute difference of a float64 logit from plain generation's."""

MOST_FLAWS = 5
"""Of one kind, in a row; one mistake may show in every layer."""

KINDS = ("prefill", "chunk", "decode", "unlike lengths")
"""Whole prompts or their first pieces, later pieces of prompts, single tokens, and steps whose sequences
differ in length."""


ROUNDS = ("none accepted", "some accepted", "all accepted")
"""Of the tokens that a drafter proposed for a sequence."""


@dataclass(frozen=True)
class Verified:
    """One placement's verdict."""

    machine: str
    model: str
    placement: str
    status: str
    """`ok`, `mismatch`, or `not placed`."""
    strategy: str = ""
    """The placement's, by its name."""
    weights_asked: str = "fp64"
    """Number format of the weights in the scenario."""
    weights: str = "fp64"
    """What they really were in: fp64 where the format is plain, or known by its size only."""
    steps: int = 0
    tasks: int = 0
    tokens: int = 0
    preemptions: int = 0
    reused_tokens: int = 0
    """Tokens whose keys and values were in the cache already when their sequence was admitted."""
    moved_tokens: int = 0
    """Cached tokens in the blocks that were copied to another memory."""
    logits_difference: float | None = 0.0
    """Largest absolute difference; None where rows are missing or not numbers."""
    flops: int = 0
    link_bytes: int = 0
    kinds: tuple[str, ...] = ()
    """Of `KINDS`, those that were among the steps."""
    rounds: tuple[str, ...] = ()
    """Of `ROUNDS`, those that were among the verifications of proposed tokens."""
    is_encoder: bool = False
    mismatches: tuple[str, ...] = ()
    """What differs, in words; why not, for a placement that was not placed."""

    def as_dict(self) -> dict[str, Any]:
        """The row as `--json` prints it."""
        return asdict(self)


@dataclass(frozen=True)
class Simulated:
    """A run on the clock, ready to be carried out."""

    programs: tuple[Program, ...]
    record: RunRecord
    steps: tuple[Recorded, ...]
    chunks: tuple[Parts, ...]
    """Of each step, with blocks, as its loop's scheduler decided them."""
    rounds: tuple[str, ...] = ()
    """Of `ROUNDS`, those that were among its verifications of proposed tokens."""


@dataclass(frozen=True)
class Room:
    """KV blocks of each placement."""

    blocks: Blocks
    host_blocks: int = 0
    """In host memory, besides."""


def compare(
    blank: Verified, simulated: Simulated, requests: Sequence[Request], engine: Engine, room: Room, seed: int
) -> Verified:
    """Carry a simulated run out and compare everything the plan says with what happened."""
    from simulator.execution import replay as real

    programs, record = simulated.programs, simulated.record
    program, loops = programs[0], by_placement(programs)
    steps = [
        real.TimedPlan(_plan(recorded, parts), recorded.timed.starts, recorded.timed.ends)
        for recorded, parts in zip(simulated.steps, simulated.chunks, strict=True)
    ]
    finished = {r.number: r.output_tokens for r in record.requests if r.status == "finished"}
    if not finished:
        return replace(blank, mismatches=("no request could be served, so there is nothing to compare",))
    served = {r.number for r in record.requests if r.status != "rejected"}
    prompts = {r.number: prompt_of(program.model, r, seed) for r in requests if r.number in served}
    size = engine.scheduler.kv_block_tokens
    with real.repeatable():
        network, drafter = networks(program, seed)
        happened = real.replay(
            programs, network, prompts, steps, room.blocks, size, room.host_blocks, drafter
        )
        tokens, logits = real.reference(network, {n: prompts[n] for n in finished}, finished)
    difference = real.largest_difference(happened.logits, logits)
    found = _flaws_of(programs, steps)
    for replica in loops:
        for member, own in zip(replica[0].members, (network, drafter), strict=False):
            assert own is not None
            shapes = {name: tuple(tensor.shape) for name, tensor in own.named_parameters()}
            found += residency_flaws(member, shapes)
    found += [happened.fault] if happened.fault else []
    found += happened.wrong_flops[:MOST_FLAWS]
    if difference > LOGITS_TOLERANCE:
        found.append(f"logits differ from plain generation's by {difference:.3g}")
    wrong = [number for number, expected in tokens.items() if happened.tokens[number] != expected]
    if wrong:
        found.append(f"tokens of sequences {wrong} differ from plain generation's")
    if not happened.fault:
        each = (
            standing_bytes(
                replica[0], blocks_of(replica[0], room.blocks), size, len(prompts), room.host_blocks
            )
            for replica in loops
        )
        standing = sum(each, Counter[str]())
        found += _accounts(happened, record, [timed.plan for timed in steps], standing, real.moments(steps))
        found += _beyond_account(happened.peak_bytes, standing, [each[0] for each in loops], engine, room)
    return replace(
        blank,
        status="mismatch" if found else "ok",
        weights=program.formats.weights,
        steps=len(steps),
        tasks=sum(len(timed.plan.template.tasks) for timed in steps),
        tokens=sum(finished.values()),
        preemptions=record.preemptions,
        reused_tokens=record.reused_tokens,
        moved_tokens=sum(c.context for parts in simulated.chunks for c in parts[0] if not c.new),
        logits_difference=difference if math.isfinite(difference) else None,
        flops=sum(happened.flops.values()),
        link_bytes=sum(happened.link_bytes.values()),
        kinds=_kinds(simulated),
        rounds=simulated.rounds,
        mismatches=tuple(found),
    )


def networks(program: Program, seed: int) -> tuple[Transformer, Transformer | None]:
    """What a run is carried out on: the model with random weights, and what proposes tokens to it if
    anything does."""
    from simulator.execution import replay as real

    network, drafter = real.random_model(program.model, seed, program.storage), program.drafter
    if drafter is None:
        return network, None
    return network, real.random_drafter(network, drafter.model, seed, drafter.storage)


def known_acceptance(program: Program, requests: Sequence[Request], seed: int) -> Acceptance | None:
    """Which proposed tokens the real model will accept: where what a drafter makes of each beginning of the
    model's own answer is how the answer goes on."""
    from simulator.execution import replay as real

    if program.drafter is None:
        return None
    prompts = {r.number: prompt_of(program.model, r, seed) for r in requests}
    with real.repeatable():
        network, drafter = networks(program, seed)
        assert drafter is not None
        tokens, _ = real.reference(network, prompts, {r.number: r.output_tokens for r in requests})
        return KnownAcceptance(real.agreement(drafter, tokens, prompts))


def _kinds(simulated: Simulated) -> tuple[str, ...]:
    found: set[str] = set()
    for recorded, parts in zip(simulated.steps, simulated.chunks, strict=True):
        if recorded.priced.template.of_drafter:
            continue
        chunks = [chunk for part in parts for chunk in part if chunk.new]
        for chunk in chunks:
            is_decode = chunk.new == 1 or chunk.rows > 1
            found.add("decode" if is_decode else "chunk" if chunk.context else "prefill")
        if len({chunk.context + chunk.new for chunk in chunks}) > 1:
            found.add("unlike lengths")
    return tuple(kind for kind in KINDS if kind in found)


def _accounts(
    happened: Replayed, record: RunRecord, plans: Sequence[Plan], standing: Counter[str],
    moments: Sequence[tuple[int, int, int, int]],
) -> list[str]:  # fmt: skip
    """Where bytes and FLOPs are not what the plans, or the simulated run, say."""
    peaks = peak_occupancy(standing, plans, moments)
    return [
        *_unequal("bytes over", _planned_link_bytes(plans), happened.link_bytes),
        *_unequal("bytes simulated over", record.link_bytes, happened.link_bytes),
        *_unequal("FLOPs on", _planned_flops(plans), _by_place(plans, happened.flops)),
        *_unequal("peak bytes in", peaks, happened.peak_bytes),
    ]


def _beyond_account(
    peaks: Mapping[str, int], standing: Counter[str], placements: Sequence[Program], engine: Engine,
    room: Room,
) -> list[str]:  # fmt: skip
    """Memories in which a step's own tensors took more than the account of the largest step has for them."""
    allowed = Counter(standing)
    for program in placements:
        largest = [largest_step(member, engine) for member in program.members]
        for memory in {memory for each in largest for memory in each}:
            allowed[memory] += max(each[memory].total() for each in largest) * program.placement.loops
        for memory, nbytes in fetched_bytes_per_token(program).items():
            cached_tokens = blocks_of(program, room.blocks) * engine.scheduler.kv_block_tokens
            allowed[memory] += nbytes * cached_tokens
    return [
        f"peak bytes in {memory}: {peak} are more than the account of the largest step, {allowed[memory]}"
        for memory, peak in sorted(peaks.items())
        if peak > allowed[memory]
    ]


def _plan(recorded: Recorded, parts: Parts) -> Plan:
    """The plan of a simulated step; its shape must be the one that was priced."""
    plan = Plan(recorded.priced.template, parts)
    assert plan.shapes == recorded.shapes, "the step that was priced is not the one that was decided"
    return plan


def prompt_of(model: Architecture, request: Request, seed: int) -> list[int]:
    """Random tokens; where the request says what its prompt begins with, the same for the same ids."""
    size, tokens = request.prefix_block_tokens, list[int]()
    for each in request.prefix:
        tokens += np.random.default_rng((seed, 3, each)).integers(0, model.vocab_size, size).tolist()
    own = np.random.default_rng((seed, 2, request.number))
    tokens += own.integers(0, model.vocab_size, max(0, request.prompt_tokens - len(tokens))).tolist()
    return tokens[: request.prompt_tokens]


def _flaws_of(programs: Sequence[Program], steps: Sequence[Any]) -> list[str]:
    members = [member for program in programs for member in program.members]
    resident = [resident.tensor.name for member in members for resident in member.residents()]
    templates = {id(timed.plan.template): timed.plan.template for timed in steps}
    return [flaw for template in templates.values() for flaw in flaws(template, resident)][:MOST_FLAWS]


def residency_flaws(program: Program, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Parts of the network's parameters that a device's own memory holds twice, or that no memory holds.

    shapes: of every parameter, as the network that is carried out has them.
    """
    found: list[str] = []
    held: dict[str, NDArray[np.bool_]] = {name: np.zeros(shape, dtype=bool) for name, shape in shapes.items()}
    seen: set[tuple[str, Parameter]] = set()
    for resident in program.residents():
        parameter, memory = resident.parameter, resident.tensor.memory
        if (memory, parameter) in seen and memory in program.machine.devices:
            found.append(f"{parameter.name} is held twice in {memory}")
        seen.add((memory, parameter))
        held[parameter.name][_part_of(parameter)] = True
    for name, there in held.items():
        missing = there.size - int(there.sum())
        if missing:
            found.append(f"{name} is nowhere in full: {missing} of {there.size} numbers are missing")
    return found


def _part_of(parameter: Parameter) -> tuple[Any, ...]:
    """Which rows, columns and experts of the whole parameter a part is, as an index."""
    index: list[Any] = [slice(None)] * len(parameter.shape)
    if parameter.axis is not None:
        index[parameter.axis] = slice(parameter.start, parameter.start + parameter.shape[parameter.axis])
    if parameter.experts is not None:
        index[0] = list(parameter.experts)
    return tuple(index)


def _planned_link_bytes(plans: Sequence[Plan]) -> dict[str, int]:
    planned: dict[str, int] = {}
    for plan in plans:
        for task in plan.template.tasks:
            for link, nbytes in plan.link_bytes(task):
                planned[link] = planned.get(link, 0) + nbytes
    return planned


EVERYWHERE = "all devices"


def _planned_flops(plans: Sequence[Plan]) -> dict[str, int]:
    """By device; where work goes to devices as tokens choose experts, only the sum over all is planned."""
    planned: Counter[str] = Counter()
    for plan in plans:
        for task in plan.template.tasks:
            if task.kind == "compute":
                planned[task.place] += plan.amount(task, task.dense_flops)
    return _by_place(plans, planned)


def _by_place(plans: Sequence[Plan], flops: Counter[str]) -> dict[str, int]:
    depends_on_choices = any(task.visits for plan in plans for task in plan.template.tasks)
    return {EVERYWHERE: flops.total()} if depends_on_choices else dict(flops)


def _unequal(what: str, planned: Mapping[str, int], counted: Mapping[str, int]) -> list[str]:
    """Where two accounts differ; a missing entry is zero."""
    return [
        f"{what} {key}: planned {planned.get(key, 0)}, counted {counted.get(key, 0)}"
        for key in sorted({*planned, *counted})
        if planned.get(key, 0) != counted.get(key, 0)
    ]

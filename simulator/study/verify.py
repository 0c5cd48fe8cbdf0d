"""`verify`: what was simulated is what a real transformer computes.

Each placement of a scenario is simulated task by task, in an engine whose memory and token budget are made
scarce; then its steps are carried out and compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from simulator.errors import InputError, Problem
from simulator.graph.shape import Chunk
from simulator.placement.placement import NotPlaceable, Role
from simulator.placement.program import Program, by_placement
from simulator.placement.strategies import STRATEGIES, Strategy
from simulator.serving.actions import Step, Verification
from simulator.serving.arrivals import Request
from simulator.serving.lockstep import Lockstep
from simulator.serving.routing import MakeRouter, routing
from simulator.serving.scheduler import Scheduler
from simulator.serving.speculation import Acceptance
from simulator.simulation.loop import Observer
from simulator.simulation.serve import LEAST_LOADED, Serving
from simulator.specs.catalogue import Catalogue
from simulator.specs.engine import Engine
from simulator.specs.model import load_model
from simulator.specs.scenario import PrecisionChoice, RunSpec, load_scenario
from simulator.specs.weight_formats import WEIGHT_FORMATS
from simulator.specs.workload import Workload
from simulator.study.compare import ROUNDS, Parts, Room, Simulated, Verified, compare, known_acceptance
from simulator.study.deploy import Deployment, deploy, requests_of, source_of
from simulator.study.side_by_side import Progress, carry_out

MOST_PARAMETERS = 50_000_000
"""Larger models are not carried out: plain generation in float64 would take hours."""

FEW_PLACEMENTS = 4
"""So many are done before other processes would have loaded torch."""

SMALL_BLOCK_TOKENS = 4
"""KV blocks are made small, so that small sequences take several."""

def exact(precision: PrecisionChoice) -> PrecisionChoice:
    """What a run is carried out in: weights quantised as it asks, if execution knows how; else float64."""
    form = WEIGHT_FORMATS.get(precision.weights)
    is_packed = form is not None and form.executed and form.scale_bytes
    return PrecisionChoice(
        weights=precision.weights if is_packed else "fp64", activations="fp64", kv_cache="fp64"
    )


def verify_scenario(
    path: str | Path, overrides: Sequence[str] = (), progress: Progress | None = None
) -> tuple[Verified, ...]:
    """Verify every placement of a scenario file; raises InputError for files that cannot be used, and if no
    placement could be carried out."""
    runs = load_scenario(path, STRATEGIES, overrides).runs
    is_small = len(runs) <= FEW_PLACEMENTS
    verified = list(carry_out(verify_run, runs, is_small=is_small, progress=progress))
    _check_that_one_was_carried_out(path, verified)
    return tuple(verified)


def _check_that_one_was_carried_out(path: str | Path, verified: Sequence[Verified]) -> None:
    if any(row.status != "not placed" for row in verified):
        return
    raise InputError([
        Problem(path, key=f"{row.machine}, {row.model}, {row.placement}", advice="; ".join(row.mismatches))
        for row in verified
    ])  # fmt: skip


def verify_run(run: RunSpec, catalogue: Catalogue) -> Verified:
    """Simulate one placement and carry it out."""
    strategy = run.placement
    assert isinstance(strategy, Strategy)
    model = load_model(run.model, catalogue)
    blank = Verified(
        run.machine_name, run.model, strategy.label, "not placed", strategy.strategy, run.precision.weights,
        exact(run.precision).weights, is_encoder=model.is_encoder,
    )  # fmt: skip
    choice = run.machine_ref, model, run.engine, exact(run.precision), strategy
    deployment = deploy(*choice, catalogue, scheduler=run.scheduler, memory=run.memory)
    if isinstance(deployment, NotPlaceable):
        return replace(blank, mismatches=(deployment.reason,))
    requests = requests_of(run.workload, run.seed, catalogue, model)
    too_large = _too_large(deployment)
    if too_large:
        return replace(blank, mismatches=(too_large,))
    engine, room = made_scarce(deployment.engine, requests, deployment.programs)
    deployment = replace(deployment, engine=engine)
    make_router = routing(run.routing, run.seed)
    acceptance = known_acceptance(deployment.program, requests, run.seed)
    simulated = simulate_for_replay(deployment, requests, room, run.workload, make_router, acceptance)
    return compare(blank, simulated, requests, engine, room, run.seed)


def _too_large(deployment: Deployment) -> str | None:
    loops = by_placement(deployment.programs)
    members = [member for programs in loops for member in programs[0].members]
    elements = sum(resident.parameter.elements for member in members for resident in member.residents())
    if elements <= MOST_PARAMETERS:
        return None
    return (f"{elements:,} parameters are too many to carry out; `verify` takes up to {MOST_PARAMETERS:,}: "
            "use a small model of the same family")  # fmt: skip


def made_scarce(
    engine: Engine, requests: Sequence[Request], programs: Sequence[Program]
) -> tuple[Engine, Room]:
    """The engine with a token budget that cuts the longest prompt (where it may), and fewer KV blocks of each
    placement than its share of the requests wants, so that chunks and preemption are verified too; with as
    many again in host memory, if it uses that."""
    scheduler = engine.scheduler
    size = min(scheduler.kv_block_tokens, SMALL_BLOCK_TOKENS)
    changes: dict[str, Any] = {"kv_block_tokens": size}
    if scheduler.chunked_prefill:
        longest = max(request.prompt_tokens for request in requests)
        budget = min(scheduler.max_num_batched_tokens, max(len(requests), longest * 2 // 3))
        changes |= {"max_num_batched_tokens": budget, "max_num_seqs": min(scheduler.max_num_seqs, budget)}
    scarce = engine.model_copy(update={"scheduler": scheduler.model_copy(update=changes)})
    blocks: dict[Role, int] = {}
    for program in programs:
        role = program.placement.role
        wanted = [-(-_most_cached(request, role) // size) for request in requests]
        groups = sum(each.placement.role == role for each in programs) * program.rank_groups
        of_loop = max(max(wanted), sum(wanted) // (2 * groups))
        blocks[role] = max(blocks.get(role, 0), of_loop * program.placement.loops)
    return scarce, Room(blocks, blocks["both"] if engine.memory.host_kv_bytes else 0)


def _most_cached(request: Request, role: Role) -> int:
    """Tokens of a request that are to have blocks in a placement in the end."""
    return request.prompt_tokens + (request.output_tokens if role != "prefill" else 0)


def simulate_for_replay(
    deployment: Deployment, requests: Sequence[Request], room: Room, workload: Workload,
    make_router: MakeRouter = LEAST_LOADED, acceptance: Acceptance | None = None,
) -> Simulated:  # fmt: skip
    """Run the workload at fidelity `task`, keeping every task's times and every plan's chunks."""
    decided: list[Parts] = []
    noted = None if acceptance is None else Noted(acceptance)
    microbatches = deployment.program.placement.microbatches

    def note(scheduler: Scheduler | Lockstep, step: Step, _: int) -> None:
        decided.append(scheduler.parts(microbatches))

    def note_move(blocks: Chunk) -> None:
        decided.append(((blocks,),))

    def note_proposed(chunks: tuple[Chunk, ...]) -> None:
        decided.append((chunks,))

    serving = Serving(
        deployment.programs, deployment.engine, room.blocks, source_of(workload, requests), "task",
        deployment.cores, 2**62, Observer(note, note_move, note_proposed), room.host_blocks, make_router,
        workload.timeout_s, acceptance=noted,
    )  # fmt: skip
    record = serving.run()
    rounds = tuple(each for each in ROUNDS if noted and each in noted.met)
    return Simulated(deployment.programs, record, tuple(serving.clock.recorded), tuple(decided), rounds)


class Noted:
    """Remembers which kinds of `ROUNDS` came up."""

    def __init__(self, acceptance: Acceptance) -> None:
        self._acceptance = acceptance
        self.met: set[str] = set()

    def accepted(self, round: Verification) -> int:
        count = self._acceptance.accepted(round)
        if round.proposed:
            self.met.add(ROUNDS[0] if not count else ROUNDS[2] if count == round.proposed else ROUNDS[1])
        return count

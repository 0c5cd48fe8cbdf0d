"""What a placed model needs of every memory, and what is left for the KV cache."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from simulator.graph.shape import Chunk, split_evenly
from simulator.placement.plan import Plan
from simulator.placement.program import Program
from simulator.specs.engine import Engine
from simulator.units import GIB


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """One memory's account: what is taken before a single token is cached, and a KV block's share."""

    memory: str
    capacity_bytes: int
    usable_bytes: int
    """What the engine allows itself to take of the capacity."""
    weights_bytes: int
    activations_bytes: int
    """Peak of the tensors alive in the largest step, or of the sampler's warm-up if that is more."""
    engine_bytes: int
    """The runtime's own, from the engine's profile."""
    state_bytes: int
    """States of linear attention, one for each sequence that may run."""
    kv_block_bytes: int

    @property
    def room_bytes(self) -> int:
        """Left for KV blocks; negative if the rest does not fit already."""
        taken = self.weights_bytes + self.activations_bytes + self.engine_bytes + self.state_bytes
        return self.usable_bytes - taken

    @property
    def kv_blocks(self) -> int | None:
        """Whole KV blocks that fit; None if none of the cache lives here."""
        return max(0, self.room_bytes // self.kv_block_bytes) if self.kv_block_bytes else None


@dataclass(frozen=True, slots=True)
class Budget:
    """The account of all memories a placement touches."""

    needs: tuple[MemoryNeed, ...]
    block_tokens: int
    most_blocks: int
    """As many as the longest sequences could fill, as many of them as may run; all that a model without a
    KV cache is held to."""
    loops: int = 1
    """Serving loops that share the blocks out."""

    @property
    def blocks_of_a_loop(self) -> int:
        """KV blocks that every loop has for its sequences."""
        return self.kv_blocks // self.loops

    @property
    def kv_blocks(self) -> int:
        """KV blocks of the whole model: as many as the tightest memory holds."""
        counts = [need.kv_blocks for need in self.needs if need.kv_blocks is not None]
        fits = all(need.room_bytes >= 0 for need in self.needs)
        return min(counts, default=self.most_blocks) if fits else 0

    def blocks_for(self, tokens: int) -> int:
        """KV blocks that a sequence of `tokens` takes."""
        return -(-tokens // self.block_tokens)


def budget(program: Program, engine: Engine) -> Budget:
    """Work out the account of every memory that holds weights or KV blocks, or passes activations on.

    The largest step is a prefill of `max_num_batched_tokens`. The sampler's warm-up follows vLLM, which
    profiles `max_num_seqs` rows of logits (`sampler_bytes_per_logit`); it counts on the device that
    samples, by its share of the vocabulary. The steps of all loops of the placement can be under way at once:
    activations and states count for each.
    """
    weights: Counter[str] = Counter()
    loops = program.placement.loops
    for resident in program.residents():
        weights[resident.tensor.memory] += resident.tensor.nbytes.coefficients[0]
    kv: Counter[str] = Counter()
    for slab in program.slabs():
        kv[slab.memory] += slab.bytes_per_token * engine.scheduler.kv_block_tokens
    states: Counter[str] = Counter()
    for state in program.state_slabs():
        states[state.memory] += state.bytes_per_sequence * engine.scheduler.max_num_seqs * loops
    activations = _largest_step(program, engine)
    for memory in activations:
        activations[memory] *= loops
    for device, nbytes in _sampler_bytes(program, engine).items():
        memory = program.machine.memory_of(device)
        activations[memory] = max(activations[memory], nbytes)
    needs = []
    for memory, capacity in program.machine.capacity_bytes.items():
        if not (weights[memory] or kv[memory] or activations[memory]):
            continue
        runtime = 0 if memory in program.machine.hosts else round(engine.memory.context_bytes)
        taken = weights[memory] + activations[memory] + runtime + states[memory]
        usable = _usable(capacity, taken, engine)
        needs.append(MemoryNeed(memory, capacity, usable, weights[memory], activations[memory], runtime,
                                states[memory], kv[memory]))  # fmt: skip
    per_sequence = -(-program.model.max_position_embeddings // engine.scheduler.kv_block_tokens)
    most = per_sequence * engine.scheduler.max_num_seqs * loops
    return Budget(tuple(needs), engine.scheduler.kv_block_tokens, most, loops)


def together(budgets: Sequence[Budget], engine: Engine) -> Budget:
    """The account of replicas that serve side by side, each with as many KV blocks as the others: what they
    take of a memory that several of them use is added up."""
    first = budgets[0]
    needs: dict[str, MemoryNeed] = {}
    for need in (need for budgeted in budgets for need in budgeted.needs):
        needs[need.memory] = _added(needs[need.memory], need, engine) if need.memory in needs else need
    return replace(first, needs=tuple(needs.values()))


def _added(one: MemoryNeed, other: MemoryNeed, engine: Engine) -> MemoryNeed:
    weights = one.weights_bytes + other.weights_bytes
    activations = one.activations_bytes + other.activations_bytes
    runtime, states = one.engine_bytes + other.engine_bytes, one.state_bytes + other.state_bytes
    usable = _usable(one.capacity_bytes, weights + activations + runtime + states, engine)
    return MemoryNeed(one.memory, one.capacity_bytes, usable, weights, activations, runtime, states,
                      one.kv_block_bytes + other.kv_block_bytes)  # fmt: skip


def _usable(capacity: int, taken: int, engine: Engine) -> int:
    """What the engine allows itself of a memory in which so much is taken before any KV block."""
    if engine.memory.of == "free":
        return min(capacity, taken + int(max(0, capacity - taken) * engine.memory.utilization))
    return int(capacity * engine.memory.utilization)


def _sampler_bytes(program: Program, engine: Engine) -> dict[str, int]:
    if program.model.is_encoder:
        return {}
    scheduler, stage = engine.scheduler, program.placement.stages[-1]
    rows = min(scheduler.max_num_seqs, scheduler.max_num_batched_tokens)
    per_rank = -(-program.model.vocab_size // len(stage.devices))
    return dict.fromkeys(stage.devices, rows * per_rank * engine.memory.sampler_bytes_per_logit)


def _largest_step(program: Program, engine: Engine) -> defaultdict[str, int]:
    scheduler = engine.scheduler
    tokens = scheduler.max_num_batched_tokens
    rows = min(scheduler.max_num_seqs, tokens)
    chunks = [Chunk(index, 0, new, True) for index, new in enumerate(split_evenly(tokens, rows))]
    parts = split_chunks(chunks, program.placement.microbatches)
    return peak_bytes(Plan(program.template(len(parts)), parts))


def split_chunks(chunks: Sequence[Chunk], microbatches: int) -> tuple[tuple[Chunk, ...], ...]:
    """Cut a batch into at most `microbatches` runs of chunks of about equally many tokens, none empty."""
    goal = sum(chunk.new for chunk in chunks) / microbatches
    parts: list[list[Chunk]] = [[]]
    filled = 0
    for left, chunk in zip(range(len(chunks), 0, -1), chunks, strict=True):
        missing = microbatches - len(parts)
        if parts[-1] and missing and (filled >= goal * len(parts) or left <= missing):
            parts.append([])
        parts[-1].append(chunk)
        filled += chunk.new
    return tuple(tuple(part) for part in parts)


def peak_bytes(plan: Plan) -> defaultdict[str, int]:
    """The most bytes of a plan's own tensors alive at once in each memory, tasks in program order."""
    alive: Counter[str] = Counter()
    peak: defaultdict[str, int] = defaultdict(int)
    sizes: dict[str, tuple[str, int]] = {}
    for task in plan.template.tasks:
        for tensor in task.writes:
            sizes[tensor.name] = (tensor.memory, plan.amount(task, tensor.nbytes))
            alive[tensor.memory] += sizes[tensor.name][1]
            peak[tensor.memory] = max(peak[tensor.memory], alive[tensor.memory])
        for name in task.frees:
            memory, nbytes = sizes.get(name, ("", 0))
            alive[memory] -= nbytes
    return peak


def refusal(budgeted: Budget, tokens: int) -> str | None:
    """Why not even one sequence of `tokens` fits, as arithmetic for people; None if one does."""
    blocks = budgeted.blocks_for(tokens)
    if blocks <= budgeted.blocks_of_a_loop:
        return None
    blocks *= budgeted.loops
    short = [need for need in budgeted.needs if need.room_bytes < blocks * need.kv_block_bytes]
    if not short:
        return f"a sequence of {tokens:,} tokens is longer than the model's positions"
    return "; ".join(_shortage(need, blocks) for need in short)


def _shortage(need: MemoryNeed, blocks: int) -> str:
    parts: Mapping[str, int] = {
        "weights": need.weights_bytes,
        "KV cache": blocks * need.kv_block_bytes,
        "activations": need.activations_bytes,
        "states": need.state_bytes,
        "engine": need.engine_bytes,
    }
    listed = ", ".join(f"{name} {size / GIB:.1f}" for name, size in parts.items() if size)
    needed, usable = sum(parts.values()) / GIB, need.usable_bytes / GIB
    return f"needs {needed:.1f} GiB of {usable:.1f} GiB usable on {need.memory}: {listed}"

"""What a placed model needs of every memory, and what is left for the KV cache."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from simulator.graph.shape import Chunk
from simulator.placement.kv_moves import host_slabs
from simulator.placement.largest_step import (
    Microbatches,
    fetched_bytes_per_token,
    largest_of,
    largest_step,
)
from simulator.placement.program import Program
from simulator.specs.engine import Engine
from simulator.units import GIB

PASSING = ("activations", "logits", "fetched_weights", "fetched_kv")
"""Parts that a step's own tensors take."""


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """One memory's account: what is taken before a single token is cached, and a KV block's share."""

    memory: str
    capacity_bytes: int
    usable_bytes: int
    """What the engine allows itself to take of the capacity."""
    parts: Mapping[str, int]
    """Bytes by what they are for: `weights`; of the largest step `activations`, `logits`, `fetched_weights`
    and `fetched_kv`; `states` of linear attention; and what the engine reserves, each part by its name
    (`engine_context`, `engine_graphs`, `engine_collectives`, `engine_sampler`); `draft_weights` of a model
    that proposes tokens."""
    kv_block_bytes: int
    """What a KV block takes here for the layers whose cache is here."""
    fetched_block_bytes: int = 0
    """What its copies take that are here only while they are attended to."""
    draft_block_bytes: int = 0
    """What the block of the same number takes here that a drafter has."""

    @property
    def room_bytes(self) -> int:
        """Left for KV blocks; negative if the rest does not fit already."""
        return self.usable_bytes - sum(self.parts.values())

    @property
    def kv_blocks(self) -> int | None:
        """Whole KV blocks that fit; None if none of the cache lives here."""
        each = self.block_bytes
        return max(0, self.room_bytes // each) if each else None

    @property
    def block_bytes(self) -> int:
        """All that a KV block takes here at most."""
        return self.kv_block_bytes + self.fetched_block_bytes + self.draft_block_bytes

    def could_hold(self, blocks: int) -> bool:
        """Whether so many KV blocks and all else are within the memory, whatever the engine allows itself."""
        return sum(self.parts.values()) + blocks * self.block_bytes <= self.capacity_bytes

    def with_blocks(self, blocks: int) -> dict[str, int]:
        """Every part, so many KV blocks among them; those that are nothing are left out."""
        found = Counter({"weights": self.parts.get("weights", 0), "kv_cache": blocks * self.kv_block_bytes})
        found.update({name: size for name, size in self.parts.items() if name != "weights"})
        found["draft_kv_cache"] += blocks * self.draft_block_bytes
        found["fetched_kv"] += blocks * self.fetched_block_bytes
        return dict(+found)


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
    host_blocks: int = 0
    """KV blocks that host memory holds for those that leave their devices."""
    stated_blocks: int | None = None
    """KV blocks that the engine is known to have, whatever the account says."""

    @property
    def blocks_of_a_loop(self) -> int:
        """KV blocks that every loop has for its sequences."""
        return self.kv_blocks // self.loops

    @property
    def kv_blocks(self) -> int:
        """KV blocks of the whole model: as many as the tightest memory holds."""
        if self.stated_blocks is not None:
            is_possible = all(need.could_hold(self.stated_blocks) for need in self.needs)
            return self.stated_blocks if is_possible else 0
        counts = [need.kv_blocks for need in self.needs if need.kv_blocks is not None]
        fits = all(need.room_bytes >= 0 for need in self.needs)
        return min(counts, default=self.most_blocks) if fits else 0

    def blocks_for(self, tokens: int) -> int:
        """KV blocks that a sequence of `tokens` takes."""
        return -(-tokens // self.block_tokens)


def budget(program: Program, engine: Engine, steps: Sequence[Microbatches] | None = None) -> Budget:
    """Work out the account of every memory that holds weights or KV blocks, or passes activations on.

    steps: the largest there will be, all of equally many microbatches, where they are known beforehand.

    Else the largest step is a prefill of `max_num_batched_tokens`, and cached tokens that come from another
    memory count as they would if all blocks were fetched in one step. A step's tensors count as many as can
    be alive at once in any order that the plan allows. The sampler's warm-up follows vLLM, which profiles
    `max_num_seqs` rows of logits (`sampler_bytes_per_logit`); what it takes beyond the largest step is
    `engine_sampler`. It counts on the device that samples, by its share of the vocabulary. The steps of all
    loops of the placement can be under way at once: activations and states count for each.
    """
    machine, loops, scheduler = program.machine, program.placement.loops, engine.scheduler
    parts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for resident in program.residents():
        parts[resident.tensor.memory]["weights"] += resident.tensor.nbytes.per("one")
    largest = largest_step(program, engine) if steps is None else largest_of(program, steps)
    for memory, passing in largest.items():
        parts[memory].update({kind: size * loops for kind, size in passing.items()})
    for state in program.state_slabs():
        parts[state.memory]["states"] += state.bytes_per_sequence * scheduler.max_num_seqs * loops
    kv = _block_bytes(program, engine)
    draft_kv = _add_drafter(program, engine, parts)
    for memory, reserve in _reserves(program, engine, parts).items():
        parts[memory].update(reserve)
    host_blocks, host_bytes = _host_kv(program, engine)
    for memory, nbytes in host_bytes.items():
        parts[memory]["host_kv"] = nbytes
    fetched = fetched_bytes_per_token(program) if steps is None else Counter[str]()
    needs = []
    for memory, capacity in machine.capacity_bytes.items():
        taken = parts[memory]["weights"] or parts[memory]["host_kv"] or _passing(parts[memory])
        if not (kv[memory] or draft_kv[memory] or taken):
            continue
        usable = _usable(capacity, parts[memory].total(), engine)
        staged = fetched[memory] * scheduler.kv_block_tokens
        needs.append(
            MemoryNeed(memory, capacity, usable, +parts[memory], kv[memory], staged, draft_kv[memory])
        )
    per_sequence = -(-program.model.max_position_embeddings // scheduler.kv_block_tokens)
    most = per_sequence * scheduler.max_num_seqs * loops * program.rank_groups
    return Budget(tuple(needs), scheduler.kv_block_tokens, most, loops, host_blocks)


def _block_bytes(program: Program, engine: Engine) -> Counter[str]:
    """Bytes of a KV block in each memory."""
    each: Counter[str] = Counter()
    for slab in program.slabs():
        each[slab.memory] += slab.bytes_per_token * engine.scheduler.kv_block_tokens
    return each


def _add_drafter(
    program: Program, engine: Engine, parts: defaultdict[str, Counter[str]]
) -> Counter[str]:
    """Add what a drafter takes, which works in turn with the model it proposes to; bytes of its part of a KV
    block in each memory."""
    drafter = program.drafter
    if drafter is None:
        return Counter()
    for resident in drafter.residents():
        parts[resident.tensor.memory]["draft_weights"] += resident.tensor.nbytes.per("one")
    for memory, passing in largest_step(drafter, engine).items():
        if passing.total() > _passing(parts[memory]):
            parts[memory].update({kind: passing[kind] - parts[memory][kind] for kind in PASSING})
    return _block_bytes(drafter, engine)


def _host_kv(program: Program, engine: Engine) -> tuple[int, Counter[str]]:
    """KV blocks that host memory holds besides, and what they take of each host's memory."""
    if not engine.memory.host_kv_bytes:
        return 0, Counter()
    each: Counter[str] = Counter()
    for slab in host_slabs(program):
        each[slab.memory] += slab.bytes_per_token * engine.scheduler.kv_block_tokens
    blocks = int(engine.memory.host_kv_bytes) // each.total()
    return blocks, Counter({memory: blocks * nbytes for memory, nbytes in each.items()})


def _passing(parts: Counter[str]) -> int:
    return sum(parts[kind] for kind in PASSING)


def _reserves(
    program: Program, engine: Engine, parts: Mapping[str, Counter[str]]
) -> defaultdict[str, Counter[str]]:
    """What the engine itself takes on each device of the placement, by name; nothing of a host's memory."""
    reserves: defaultdict[str, Counter[str]] = defaultdict(Counter)
    sampler, machine = _sampler_bytes(program, engine), program.machine
    groups = [stage.devices for stage in program.placement.stages if len(stage.devices) > 1]
    shared = {device for group in groups for device in group}
    for device in program.placement.devices:
        memory = machine.memory_of(device)
        if memory not in machine.hosts:
            reserves[memory]["engine_context"] = round(engine.memory.context_bytes)
            reserves[memory]["engine_graphs"] = round(engine.memory.graphs_bytes)
        if device in shared and memory not in machine.hosts:
            reserves[memory]["engine_collectives"] = round(engine.memory.collectives_bytes)
        reserves[memory]["engine_sampler"] = max(0, sampler.get(device, 0) - _passing(parts[memory]))
    return reserves


def together(budgets: Sequence[Budget], engine: Engine) -> Budget:
    """The account of replicas that serve side by side, each with as many KV blocks as the others: what they
    take of a memory that several of them use is added up."""
    first = budgets[0]
    needs: dict[str, MemoryNeed] = {}
    for need in (need for budgeted in budgets for need in budgeted.needs):
        needs[need.memory] = _added(needs[need.memory], need, engine) if need.memory in needs else need
    return replace(first, needs=tuple(needs.values()))


def _added(one: MemoryNeed, other: MemoryNeed, engine: Engine) -> MemoryNeed:
    parts = Counter(one.parts)
    parts.update(other.parts)
    usable = _usable(one.capacity_bytes, parts.total(), engine)
    return MemoryNeed(
        one.memory, one.capacity_bytes, usable, parts, one.kv_block_bytes + other.kv_block_bytes,
        one.fetched_block_bytes + other.fetched_block_bytes,
        one.draft_block_bytes + other.draft_block_bytes,
    )  # fmt: skip


def _usable(capacity: int, taken: int, engine: Engine) -> int:
    """What the engine allows itself of a memory in which so much is taken before any KV block."""
    if engine.memory.of == "free":
        return min(capacity, taken + int(max(0, capacity - taken) * engine.memory.utilization))
    return int(capacity * engine.memory.utilization)


def _sampler_bytes(program: Program, engine: Engine) -> dict[str, int]:
    """By device that samples; ranks with sequences of their own sample from the whole vocabulary."""
    if program.model.is_encoder:
        return {}
    scheduler, stage = engine.scheduler, program.placement.stages[-1]
    rows = min(scheduler.max_num_seqs, scheduler.max_num_batched_tokens)
    found = {}
    for rank in range(len(stage.devices)):
        logits = rows * -(-program.model.vocab_size // program.share(stage, rank).degree)
        found[program.sampler(stage, rank).device] = logits * engine.memory.sampler_bytes_per_logit
    return found


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


def refusal(budgeted: Budget, tokens: int) -> str | None:
    """Why not even one sequence of `tokens` fits, as arithmetic for people; None if one does."""
    blocks = budgeted.blocks_for(tokens)
    if blocks <= budgeted.blocks_of_a_loop:
        return None
    blocks *= budgeted.loops
    stated = budgeted.stated_blocks
    if stated is not None and stated < blocks:
        return f"a sequence of {tokens:,} tokens takes {blocks} KV blocks, `kv_blocks` states {stated}"
    blocks = max(blocks, stated or 0)
    short = [need for need in budgeted.needs if need.room_bytes < blocks * need.block_bytes]
    if not short:
        return f"a sequence of {tokens:,} tokens is longer than the model's positions"
    return "; ".join(_shortage(need, blocks) for need in short)


def _shortage(need: MemoryNeed, blocks: int) -> str:
    parts = need.with_blocks(blocks)
    listed = ", ".join(f"{part_name(name)} {size / GIB:.1f}" for name, size in parts.items())
    needed, usable = sum(parts.values()) / GIB, need.usable_bytes / GIB
    return f"needs {needed:.1f} GiB of {usable:.1f} GiB usable on {need.memory}: {listed}"


def part_name(part: str) -> str:
    """A part of a memory's account, for people.

    >>> part_name("kv_cache"), part_name("engine_context")
    ('KV cache', 'engine context')
    """
    return part.replace("kv", "KV").replace("_", " ")

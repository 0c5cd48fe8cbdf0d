"""Carries plans out on a real transformer, task by task, over memories that do not see each other.

A task happens in two moments, as on the clock: `begin` reserves what it will write, `end` computes, puts
the results there and frees what is no longer needed. Driven in the order of the simulated clock, a missing
dependency or a buffer reused too soon shows as a `Fault`, or as a wrong number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile

import torch
from torch import Tensor

from simulator.execution import kv
from simulator.execution.call import Call
from simulator.execution.collectives import COLLECTIVES
from simulator.execution.flop_count import FlopCount
from simulator.execution.kernels import Rules
from simulator.execution.network import Transformer
from simulator.execution.operators import OPERATORS
from simulator.execution.quantised import PLAIN, pack, unpack
from simulator.execution.stores import Fault, Stores
from simulator.graph.shape import Chunk, Phase
from simulator.graph.work import Parameter
from simulator.placement.kv_moves import host_slabs
from simulator.placement.placed import same_weight
from simulator.placement.plan import KvCopy, KvSlab, Plan, Task
from simulator.placement.program import Blocks, Program, blocks_of, by_placement
from simulator.specs.architecture import Attention
from simulator.specs.weight_formats import WeightFormat


@dataclass
class Sequences:
    """What the host knows: the tokens of every sequence, and the logits each new one was chosen from."""

    tokens: dict[int, list[int]]
    logits: dict[int, list[Tensor]] = field(default_factory=dict)
    proposed: dict[int, list[int]] = field(default_factory=dict)
    """What a drafter expects to follow them."""

    def from_to(self, sequence: int, start: int, end: int) -> list[int]:
        """Some tokens of a sequence, proposed ones after its own."""
        return (self.tokens[sequence] + self.proposed.get(sequence, []))[start:end]

    def kept(self, sequence: int, chosen: Sequence[int]) -> int:
        """How many of the tokens chosen after each row of a verification are kept: as long as they are those
        that were proposed, and the one after them."""
        proposed = self.proposed.get(sequence, [])
        agree = (one == other for one, other in zip(proposed, chosen, strict=False))
        return min(len(list(takewhile(bool, agree))) + 1, len(chosen))


class Interpreter:
    """The weights and KV blocks of placed copies of one model in real memories, and the means to carry
    their plans out."""

    def __init__(
        self, programs: Sequence[Program], model: Transformer, sequences: Sequences, stores: Stores,
        block_count: Blocks, block_tokens: int, host_blocks: int = 0, drafter: Transformer | None = None,
    ) -> None:  # fmt: skip
        """host_blocks: of each placement, besides its KV blocks; in host memory, for those that leave.
        drafter: proposes tokens to the model."""
        self.model, self.machine = programs[0].model, programs[0].machine
        self.drafter = None if drafter is None else drafter.arch
        self.sequences, self.stores = sequences, stores
        self.dtype = next(model.parameters()).dtype
        self._slot_of = {number: slot for slot, number in enumerate(sequences.tokens)}
        self._packed: dict[str, tuple[WeightFormat, tuple[int, ...]]] = {}
        """Weights that are not kept in the format they are computed in, and their shapes."""
        for loops in by_placement(programs):
            for member, network in zip(loops[0].members, (model, drafter), strict=False):
                assert network is not None, "a drafter is placed, and there is none"
                self._load(member, dict(network.named_parameters()))
                self._make_room(member.slabs(), blocks_of(loops[0], block_count), block_tokens)
            if host_blocks:
                self._make_room(host_slabs(loops[0]), host_blocks, block_tokens)

    def _load(self, program: Program, parameters: Mapping[str, Tensor]) -> None:
        for resident in program.residents():
            part = resident.parameter
            tensor, name = _part(parameters[part.name], part), resident.tensor.name
            form = program.storage.format_of(part.name, part.whole_shape[-1])
            if PLAIN.get(form.name) != self.dtype:
                self._packed[same_weight(name)] = (form, part.shape)
                tensor = pack(tensor, form)
            self.stores.keep(resident.tensor.memory, name, tensor)
        for state in program.state_slabs():
            rows = torch.full((len(self._slot_of), state.elements), float("nan"), dtype=self.dtype)
            self.stores.keep(state.memory, state.name, rows)

    def _make_room(self, slabs: Sequence[KvSlab], blocks: int, block_tokens: int) -> None:
        """Empty KV blocks of every layer."""
        for slab in slabs:
            shape = (slab.planes, blocks, block_tokens, slab.head_count, slab.width)
            self.stores.keep(slab.memory, slab.name, kv.empty_slab(*shape, self.dtype))

    def begin(self, plan: Plan, index: int) -> None:
        """Reserve what a task will write."""
        task = plan.template.tasks[index]
        for tensor in task.writes:
            nbytes = plan.amount(task, tensor.nbytes)
            self.stores.reserve(tensor.memory, tensor.name, nbytes, tensor.buffer)

    def end(self, plan: Plan, index: int, counter: FlopCount) -> int:
        """Do a task's work and free what it frees; the FLOPs torch counted on the way."""
        task = plan.template.tasks[index]
        before = counter.total
        chunks = _of_phase(plan.chunks_of(task), task.phase)
        for written, tensor in zip(task.writes, self._results(plan, task, chunks), strict=True):
            self.stores.put(written.memory, written.name, tensor)
        for name in task.frees:
            self.stores.drop(name)
        return counter.total - before

    def _results(self, plan: Plan, task: Task, chunks: Sequence[Chunk]) -> Sequence[Tensor]:
        if task.kind == "compute":
            return self._compute(plan, task, chunks)
        if task.kind == "transfer":
            return self._transfer_of(task, chunks)
        if task.kind == "collective":
            rows = [sum(chunk.new for chunk in part) for part in plan.chunks]
            return COLLECTIVES[task.operator](self.stores, task, rows)
        return self._host(plan, task, chunks)

    # -- the host ---------------------------------------------------------------------------------------

    def _host(self, plan: Plan, task: Task, chunks: Sequence[Chunk]) -> Sequence[Tensor]:
        if task.host_work == "gather":
            pieces = (self.sequences.from_to(c.sequence, c.context, c.context + c.new) for c in chunks)
            ids = [token for piece in pieces for token in piece]
            return (torch.tensor(ids, dtype=torch.int64),)
        if not task.reads:
            return ()
        answer = self.stores.get(task.place, task.reads[0])
        if self.model.is_encoder:
            self._keep_rows(chunks, answer)
            return ()
        for chunk, chosen in zip(chunks, answer.split([chunk.rows for chunk in chunks]), strict=True):
            if chunk.commits:
                self._commit(chunk.sequence, chosen.tolist(), plan.template.of_drafter)
        return ()

    def _commit(self, sequence: int, chosen: list[int], is_proposed: bool) -> None:
        if is_proposed:
            self.sequences.proposed.setdefault(sequence, []).extend(chosen)
            return
        self.sequences.tokens[sequence] += chosen[: self.sequences.kept(sequence, chosen)]
        self.sequences.proposed.pop(sequence, None)

    # -- devices ----------------------------------------------------------------------------------------

    def _compute(self, plan: Plan, task: Task, chunks: Sequence[Chunk]) -> Sequence[Tensor]:
        memory = self.machine.memory_of(task.place)
        tensors = [self.stores.get(memory, name) for name in task.reads]
        weights = {
            _short(name): self._unpacked(name, tensor)
            for name, tensor in zip(task.reads, tensors, strict=True)
            if _is_weight(name)
        }
        values = [t for name, t in zip(task.reads, tensors, strict=True) if not _is_weight(name)]
        slab = self.stores.get(memory, task.kv) if task.kv else None
        assert task.share is not None
        of_drafter = plan.template.of_drafter
        if task.operator == "sample" and not of_drafter:
            self._keep_rows(chunks, values[0])
        held = task.visits.experts if task.visits else None
        model = self.drafter if of_drafter and self.drafter is not None else self.model
        call = Call(model, task.operator, task.layer, task.share, chunks, values, weights, slab,
                    len(task.writes), self._slot_of, held)  # fmt: skip
        return OPERATORS[task.operator](call)

    def planned_flops(self, plan: Plan, index: int) -> int:
        """What a task that is about to end should do. Where that depends on the experts that tokens choose,
        the choices are read from the routing, the second value that it is given."""
        task = plan.template.tasks[index]
        if task.visits is None:
            return plan.amount(task, task.dense_flops)
        routing = task.reads[1]
        chosen_tx = self.stores.get(self.machine.memory_of(task.place), routing) >= 0
        return int(chosen_tx[:, list(task.visits.experts)].sum()) * task.visits.flops

    def _unpacked(self, name: str, weight: Tensor) -> Tensor:
        """A weight as operators compute with it."""
        packed = self._packed.get(same_weight(name))
        if packed is None:
            return weight
        form, shape = packed
        return unpack(weight, shape, form, self.dtype)

    def _transfer_of(self, task: Task, chunks: Sequence[Chunk]) -> Sequence[Tensor]:
        if task.kv_copy is not None:
            return self._hand_over(task.kv_copy, chunks)
        if task.kv is None:
            return self._transfer(task)
        home = self._home(task.kv)
        slab = self.stores.get(home, task.kv)
        if task.operator == "kv_fetch":
            cached = kv.gather(slab, chunks, self._first_key(task))
            return (self.stores.copy(cached, home, task.writes[0].memory),)
        new = self._home(task.reads[0])
        kv.scatter(slab, chunks, self.stores.copy(self.stores.get(new, task.reads[0]), new, home))
        return ()

    def _first_key(self, task: Task) -> Callable[[int], int]:
        """The first cached token that a chunk after so many others sees."""
        assert task.layer is not None
        attention = self.model.layers[task.layer].attention
        return Rules.of(attention).first_key if isinstance(attention, Attention) else lambda _: 0

    def _transfer(self, task: Task) -> Sequence[Tensor]:
        results = []
        sources = task.reads if len(task.reads) == len(task.writes) else task.reads * len(task.writes)
        for name, written in zip(sources, task.writes, strict=True):
            memory = self._home(name)
            results.append(self.stores.copy(self.stores.get(memory, name), memory, written.memory))
        return results

    def _hand_over(self, move: KvCopy, chunks: Sequence[Chunk]) -> Sequence[Tensor]:
        """Copy some heads of cached tokens into another slab's blocks."""
        source = self.stores.get(move.source.memory, move.source.name)
        target = self.stores.get(move.target.memory, move.target.name)
        for chunk in chunks:
            taken = move.head_start - move.source.head_start
            placed = move.head_start - move.target.head_start
            heads = source.narrow(3, taken, move.head_count)
            arrived = [
                self.stores.copy(part, move.source.memory, move.target.memory)
                for part in kv.read(heads, chunk.blocks, chunk.context)
            ]
            whole = replace(chunk, context=0, new=chunk.context, blocks=chunk.target_blocks)
            kv.write(target.narrow(3, placed, move.head_count), whole, *arrived)
        return ()

    def _home(self, name: str) -> str:
        """The memory that holds a tensor."""
        found = [memory for memory in self.machine.capacity_bytes if name in self.stores.names(memory)]
        if not found:
            raise Fault(f"{name} is copied, but it is nowhere")
        return found[0]

    def _keep_rows(self, chunks: Sequence[Chunk], rows: Tensor) -> None:
        """Keep what each answer was chosen from; of an encoder, the answer itself."""
        for chunk, own in zip(chunks, rows.split([chunk.rows for chunk in chunks]), strict=True):
            if chunk.commits:
                kept = self.sequences.kept(chunk.sequence, own.argmax(dim=-1).tolist())
                self.sequences.logits.setdefault(chunk.sequence, []).extend(own[:kept].clone())


def _of_phase(chunks: Sequence[Chunk], phase: Phase) -> Sequence[Chunk]:
    if phase == "all":
        return chunks
    return [chunk for chunk in chunks if (chunk.new == 1) == (phase == "decode")]


def _part(whole: Tensor, parameter: Parameter) -> Tensor:
    """The part of a parameter that a rank holds, as a tensor of its own."""
    if parameter.experts is not None:
        whole = whole[list(parameter.experts)]
    if parameter.axis is None:
        return whole.detach().clone()
    size = parameter.shape[parameter.axis]
    return whole.detach().narrow(parameter.axis, parameter.start, size).contiguous().clone()


def _is_weight(name: str) -> bool:
    return name.split("@")[0].endswith((".weight", ".bias"))


def _short(name: str) -> str:
    """`q_proj.weight` of `layers.3.q_proj.weight@gpu-0`."""
    return ".".join(name.split("@")[0].split(".")[-2:])


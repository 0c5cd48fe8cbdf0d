"""Carries plans out on a real transformer, task by task, over memories that do not see each other.

A task happens in two moments, as on the clock: `begin` reserves what it will write, `end` computes, puts
the results there and frees what is no longer needed. Driven in the order of the simulated clock, a missing
dependency or a buffer reused too soon shows as a `Fault`, or as a wrong number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from simulator.execution import kv, network
from simulator.execution.network import Transformer
from simulator.execution.stores import Fault, Stores
from simulator.graph.operators import Parameter
from simulator.graph.shape import Chunk, split_evenly, starts_of
from simulator.placement.lowering import Program
from simulator.placement.plan import KvCopy, Plan, Task
from simulator.specs.model import Architecture


@dataclass
class Sequences:
    """What the host knows: the tokens of every sequence, and the logits each new one was chosen from."""

    tokens: dict[int, list[int]]
    logits: dict[int, list[Tensor]] = field(default_factory=dict)


class Interpreter:
    """The weights and KV blocks of placed copies of one model in real memories, and the means to carry
    their plans out."""

    def __init__(
        self, programs: Sequence[Program], model: Transformer, sequences: Sequences, stores: Stores,
        block_count: int, block_tokens: int,
    ) -> None:  # fmt: skip
        self.model, self.machine = programs[0].model, programs[0].machine
        self.sequences, self.stores = sequences, stores
        self.dtype = next(model.parameters()).dtype
        for program in programs:
            self._load(program, dict(model.named_parameters()), block_count, block_tokens)

    def _load(
        self, program: Program, parameters: Mapping[str, Tensor], block_count: int, block_tokens: int
    ) -> None:
        for resident in program.residents():
            tensor = _part(parameters[resident.parameter.name], resident.parameter)
            self.stores.keep(resident.tensor.memory, resident.tensor.name, tensor)
        for slab in program.slabs():
            shape = (block_count, block_tokens, slab.head_count, self.model.head_dim)
            self.stores.keep(slab.memory, slab.name, kv.empty_slab(*shape, self.dtype))

    def begin(self, plan: Plan, index: int) -> None:
        """Reserve what a task will write."""
        task = plan.template.tasks[index]
        for tensor in task.writes:
            nbytes = plan.amount(task, tensor.nbytes)
            self.stores.reserve(tensor.memory, tensor.name, nbytes, tensor.buffer)

    def end(self, plan: Plan, index: int, counter: FlopCounterMode) -> int:
        """Do a task's work and free what it frees; the FLOPs torch counted on the way."""
        task = plan.template.tasks[index]
        before = counter.get_total_flops()
        chunks = plan.chunks[task.microbatch]
        for written, tensor in zip(task.writes, self._results(task, chunks), strict=True):
            self.stores.put(written.memory, written.name, tensor)
        for name in task.frees:
            self.stores.drop(name)
        return counter.get_total_flops() - before

    def _results(self, task: Task, chunks: Sequence[Chunk]) -> Sequence[Tensor]:
        if task.kind == "compute":
            return self._compute(task, chunks)
        if task.kind == "transfer":
            return self._transfer(task) if task.kv_copy is None else self._hand_over(task.kv_copy, chunks)
        if task.kind == "collective":
            return _COLLECTIVES[task.operator](self, task)
        return self._host(task, chunks)

    # -- the host ---------------------------------------------------------------------------------------

    def _host(self, task: Task, chunks: Sequence[Chunk]) -> Sequence[Tensor]:
        tokens = self.sequences.tokens
        if task.host_work == "gather":
            ids = [i for c in chunks for i in tokens[c.sequence][c.context : c.context + c.new]]
            return (torch.tensor(ids, dtype=torch.int64),)
        if not task.reads:
            return ()
        chosen = self.stores.get(task.place, task.reads[0]).tolist()
        for chunk, token in zip(chunks, chosen, strict=True):
            if chunk.commits:
                tokens[chunk.sequence].append(token)
        return ()

    # -- devices ----------------------------------------------------------------------------------------

    def _compute(self, task: Task, chunks: Sequence[Chunk]) -> Sequence[Tensor]:
        memory = self.machine.memory_of(task.place)
        tensors = [self.stores.get(memory, name) for name in task.reads]
        weights = {_short(name): t for name, t in zip(task.reads, tensors, strict=True) if _is_weight(name)}
        values = [t for name, t in zip(task.reads, tensors, strict=True) if not _is_weight(name)]
        slab = self.stores.get(memory, task.kv) if task.kv else None
        return _OPERATORS[task.operator](_Call(self, task, chunks, values, weights, slab))

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

    def keep_logits(self, chunks: Sequence[Chunk], logits_rv: Tensor) -> None:
        for chunk, row in zip(chunks, logits_rv, strict=True):
            if chunk.commits:
                self.sequences.logits.setdefault(chunk.sequence, []).append(row.clone())


# -- operators ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Call:
    """What an operator's implementation sees: values and weights of its own memory only."""

    interpreter: Interpreter
    task: Task
    chunks: Sequence[Chunk]
    values: Sequence[Tensor]
    weights: Mapping[str, Tensor]
    slab: Tensor | None

    @property
    def model(self) -> Architecture:
        return self.interpreter.model

    def positions(self) -> Tensor:
        """Position of each new token of the batch."""
        return torch.cat([torch.arange(c.context, c.context + c.new) for c in self.chunks])

    def weight(self, name: str) -> Tensor:
        return self.weights[f"{name}.weight"]

    def bias(self, name: str) -> Tensor | None:
        return self.weights.get(f"{name}.bias")


def _embed(call: _Call) -> Sequence[Tensor]:
    assert call.task.share is not None
    x_te = network.embed(call.values[0], call.weight("embed"), call.task.share.vocab_start)
    if "positions.weight" in call.weights:
        x_te = network.learned_positions(x_te, call.positions(), call.weight("positions"))
    return (x_te,)


def _norm(call: _Call) -> Sequence[Tensor]:
    name = call.task.operator
    if len(call.values) == 1:
        return (network.normalise(call.model, call.values[0], call.weight(name), call.bias(name)),)
    x_te, update_te = call.values
    return network.add_normalise(call.model, x_te, update_te, call.weight(name), call.bias(name))


def _final_norm(call: _Call) -> Sequence[Tensor]:
    """Of the last row of each chunk only."""
    last_r = torch.tensor([chunk.new for chunk in call.chunks]).cumsum(0) - 1
    x_re, update_re = (value[last_r] for value in call.values)
    weight_e, bias_e = call.weight("final_norm"), call.bias("final_norm")
    _, normed = network.add_normalise(call.model, x_re, update_re, weight_e, bias_e)
    return (normed,)


def _qkv_proj(call: _Call) -> Sequence[Tensor]:
    names = ("q_proj", "k_proj", "v_proj")
    x_te = call.values[0]
    return (torch.cat([network.linear(x_te, call.weight(n), call.bias(n)) for n in names], dim=-1),)


def _rotary(call: _Call) -> Sequence[Tensor]:
    """Rotate, and write keys and values to the cache."""
    share, head_dim = call.task.share, call.model.head_dim
    assert share is not None and call.slab is not None
    counts = (share.head_count, share.kv_head_count, share.kv_head_count)
    q_thd, k_tgd, v_tgd = torch.split(_heads(call.values[0], head_dim), counts, dim=1)
    positions_t = call.positions()
    k_tgd = network.rotate(call.model, k_tgd, positions_t)
    sizes = [chunk.new for chunk in call.chunks]
    pieces = zip(call.chunks, torch.split(k_tgd, sizes), torch.split(v_tgd, sizes), strict=True)
    for chunk, k_ngd, v_ngd in pieces:
        kv.write(call.slab, chunk, k_ngd, v_ngd)
    return (network.rotate(call.model, q_thd, positions_t).flatten(1).clone(),)


def _attention(call: _Call) -> Sequence[Tensor]:
    assert call.slab is not None
    q_thd = _heads(call.values[0], call.model.head_dim)
    sizes = [chunk.new for chunk in call.chunks]
    outputs = []
    for chunk, q_nhd in zip(call.chunks, torch.split(q_thd, sizes), strict=True):
        k_sgd, v_sgd = kv.read(call.slab, chunk.blocks, chunk.context + chunk.new)
        k_sgd, v_sgd = k_sgd.to(q_nhd.dtype), v_sgd.to(q_nhd.dtype)
        outputs.append(network.attention_one(q_nhd, k_sgd, v_sgd, chunk.context).flatten(1))
    return (torch.cat(outputs),)


def _project(call: _Call) -> Sequence[Tensor]:
    name = call.task.operator
    return (network.linear(call.values[0], call.weight(name), call.bias(name)),)


def _up_proj(call: _Call) -> Sequence[Tensor]:
    names = [name for name in ("gate_proj", "up_proj") if f"{name}.weight" in call.weights]
    x_te = call.values[0]
    return (torch.cat([network.linear(x_te, call.weight(n), call.bias(n)) for n in names], dim=-1),)


def _activation(call: _Call) -> Sequence[Tensor]:
    return (network.activate(call.model, call.values[0]),)


def _residual_add(call: _Call) -> Sequence[Tensor]:
    return (call.values[0] + call.values[1],)


def _lm_head(call: _Call) -> Sequence[Tensor]:
    (table,) = call.weights.values()
    return (network.linear(call.values[0], table),)


def _sample(call: _Call) -> Sequence[Tensor]:
    call.interpreter.keep_logits(call.chunks, call.values[0])
    return (network.sample(call.values[0]),)


_OPERATORS = {
    "embed": _embed,
    "attn_norm": _norm,
    "qkv_proj": _qkv_proj,
    "rotary": _rotary,
    "attention": _attention,
    "o_proj": _project,
    "mlp_norm": _norm,
    "up_proj": _up_proj,
    "activation": _activation,
    "down_proj": _project,
    "residual_add": _residual_add,
    "final_norm": _final_norm,
    "lm_head": _lm_head,
    "sample": _sample,
}


# -- collectives ----------------------------------------------------------------------------------------------


def _all_reduce(interpreter: Interpreter, task: Task) -> Sequence[Tensor]:
    """A ring: every rank's summand is cut into as many pieces as there are ranks; each piece goes round
    once to be added up and once to be handed out."""
    stores, memories = interpreter.stores, [tensor.memory for tensor in task.writes]
    ranks = len(memories)
    sizes = split_evenly(interpreter.model.hidden_size, ranks)
    starts = starts_of(sizes)
    parts = [stores.get(memory, name).clone() for memory, name in zip(memories, task.reads, strict=True)]

    def piece(rank: int, number: int) -> Tensor:
        return parts[rank].narrow(1, starts[number % ranks], sizes[number % ranks])

    for adding in (True, False):
        for step in range(ranks - 1):
            first = 0 if adding else 1
            sent = [piece(rank, rank + first - step).clone() for rank in range(ranks)]
            for rank, part in enumerate(sent):
                target = (rank + 1) % ranks
                arrived = stores.copy(part, memories[rank], memories[target])
                place = piece(target, rank + first - step)
                place.copy_(place + arrived if adding else arrived)
    return parts


def _gather_logits(interpreter: Interpreter, task: Task) -> Sequence[Tensor]:
    """Every rank's part of the vocabulary, side by side on the first."""
    machine, stores = interpreter.machine, interpreter.stores
    root = machine.memory_of(task.units[0])
    parts = []
    for device, name in zip(task.units, task.reads, strict=True):
        memory = machine.memory_of(device)
        part = stores.get(memory, name)
        parts.append(part if memory == root else stores.copy(part, memory, root))
    return (torch.cat(parts, dim=-1),)


_COLLECTIVES = {"all_reduce": _all_reduce, "gather_logits": _gather_logits}


def _part(whole: Tensor, parameter: Parameter) -> Tensor:
    """The part of a parameter that a rank holds, as a tensor of its own."""
    if parameter.axis is None:
        return whole.detach().clone()
    size = parameter.shape[parameter.axis]
    return whole.detach().narrow(parameter.axis, parameter.start, size).contiguous().clone()


def _heads(x_te: Tensor, head_dim: int) -> Tensor:
    """Channels as heads: `[t, heads, d]`."""
    return x_te.view(x_te.shape[0], -1, head_dim)


def _is_weight(name: str) -> bool:
    return name.split("@")[0].endswith((".weight", ".bias"))


def _short(name: str) -> str:
    """`q_proj.weight` of `layers.3.q_proj.weight@gpu-0`."""
    return ".".join(name.split("@")[0].split(".")[-2:])


"""Carries a simulated run out for real, in the order of the simulated clock.

Every task's start and end becomes a moment; at equal times ends come before starts. What torch did is
counted on the way: tokens, logits, FLOPs of each task, bytes over each link, bytes in each memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from simulator.execution.flop_count import FlopCount
from simulator.execution.interpreter import Interpreter, Sequences
from simulator.execution.network import Transformer
from simulator.execution.quantised import round_trip
from simulator.execution.random_weights import random_transformer
from simulator.execution.stores import Fault, Stores
from simulator.placement.plan import Plan
from simulator.placement.program import Blocks, Program
from simulator.specs.architecture import Architecture
from simulator.specs.weight_formats import WeightStorage

DRAFTER_NOISE = 0.01
"""Of a drafter's weights, relative to the model's: tiny ones then agree two or three times in four."""


@dataclass(frozen=True)
class TimedPlan:
    """A plan with the tick at which each task started and ended."""

    plan: Plan
    starts: tuple[int, ...]
    ends: tuple[int, ...]


@dataclass
class Replayed:
    """What really happened."""

    tokens: dict[int, list[int]]
    """All tokens of each sequence, its prompt first."""
    logits: dict[int, list[Tensor]]
    """Of each committed token, the row it was chosen from."""
    flops: Counter[str]
    """Counted by torch, by device."""
    link_bytes: Counter[str]
    peak_bytes: Counter[str]
    wrong_flops: list[str] = field(default_factory=list)
    """Tasks whose FLOPs are not the plan's."""
    fault: str | None = None
    """Where the plan could not be carried out; everything after it was left undone."""


@contextmanager
def threads(count: int | None = None) -> Iterator[None]:
    """So many threads for torch, as many as it has if not given.

    To ask for what there is changes much: unless asked, MKL takes fewer threads for small products, and the
    pool is torn down and set up anew between such a product and whatever comes next. On 16 cores a step of a
    small model then takes more than twice as long.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def repeatable() -> AbstractContextManager[None]:
    """One thread for torch: sums in one order, so that the same run gives the same bits."""
    return threads(1)


def moments(steps: Sequence[TimedPlan]) -> list[tuple[int, int, int, int]]:
    """(tick, 0 for an end or 1 for a start, step, task), in the order in which they happen."""
    return sorted(
        moment
        for step, timed in enumerate(steps)
        for task, (start, end) in enumerate(zip(timed.starts, timed.ends, strict=True))
        for moment in ((start, 1, step, task), (end, 0, step, task))
    )


def replay(
    programs: Sequence[Program], model: Transformer, prompts: dict[int, list[int]],
    steps: Sequence[TimedPlan], block_count: Blocks, block_tokens: int, host_blocks: int = 0,
    drafter: Transformer | None = None,
) -> Replayed:  # fmt: skip
    """Carry `steps` of placed copies of `model` out, with the KV cache in the model's own format.

    block_count: KV blocks of each placement, and host_blocks what it has in host memory besides. drafter:
    what proposes tokens to it.
    """
    stores = Stores(programs[0].machine)
    sequences = Sequences({number: list(ids) for number, ids in prompts.items()})
    result = Replayed(sequences.tokens, sequences.logits, Counter(), stores.link_bytes, stores.peak_bytes)
    try:
        with torch.no_grad(), FlopCount() as counter:
            room = block_count, block_tokens, host_blocks
            interpreter = Interpreter(programs, model, sequences, stores, *room, drafter)
            for _, is_start, step, task in moments(steps):
                plan = steps[step].plan
                if is_start:
                    interpreter.begin(plan, task)
                else:
                    _finish(interpreter, plan, task, counter, result)
    except (Fault, RuntimeError, IndexError, KeyError, ValueError) as fault:
        # a plan gone wrong may fail anywhere in torch; whatever it says is the finding
        result.fault = f"{type(fault).__name__}: {fault}".splitlines()[0]
    return result


def _finish(
    interpreter: Interpreter, plan: Plan, index: int, counter: FlopCount, result: Replayed
) -> None:
    task = plan.template.tasks[index]
    planned = interpreter.planned_flops(plan, index)
    counted = interpreter.end(plan, index, counter)
    if task.kind == "compute":
        result.flops[task.place] += counted
    if counted != planned:
        result.wrong_flops.append(f"{task.name}: {counted} FLOPs, the plan says {planned}")


def reference(
    model: Transformer, prompts: dict[int, list[int]], counts: dict[int, int]
) -> tuple[dict[int, list[int]], dict[int, Tensor]]:
    """Tokens and logits of plain generation: one sequence at a time, no cache, no placement. Of an encoder
    the prompts themselves, and their vectors."""
    tokens, logits = {}, {}
    with torch.no_grad():
        for number, prompt in prompts.items():
            if model.arch.is_encoder:
                tokens[number] = list(prompt)
                logits[number] = model(torch.tensor(prompt)).mean(dim=0, keepdim=True)
                continue
            generated, logits[number] = model.generate(prompt, counts[number])
            tokens[number] = [*prompt, *generated]
    return tokens, logits


def random_model(model: Architecture, seed: int, storage: WeightStorage) -> Transformer:
    """The network with random weights in float64, each rounded to what its number format can hold."""
    return _rounded(random_transformer(model, seed, torch.float64), storage)


def random_drafter(
    model: Transformer, arch: Architecture, seed: int, storage: WeightStorage
) -> Transformer:
    """A network that often proposes what `model` would choose: its weights are the model's where they have
    the same shape, each with some noise, and random elsewhere."""
    network, theirs = random_transformer(arch, seed, torch.float64), dict(model.named_parameters())
    generator = torch.Generator().manual_seed(seed + 1)
    for name, parameter in network.named_parameters():
        if name in theirs and theirs[name].shape == parameter.shape:
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.data = theirs[name] * (1 + DRAFTER_NOISE * noise)
    return _rounded(network, storage)


def agreement(
    drafter: Transformer, tokens: Mapping[int, Sequence[int]], prompts: Mapping[int, Sequence[int]]
) -> dict[int, list[bool]]:
    """Of each sequence, for each token after its prompt, whether a drafter would have proposed it after all
    those before it."""
    found = {}
    with torch.no_grad():
        for number, ids in tokens.items():
            start = len(prompts[number])
            proposed = drafter(torch.tensor(ids[:-1]))[start - 1 :].argmax(dim=-1)
            found[number] = (proposed == torch.tensor(ids[start:])).tolist()
    return found


def _rounded(network: Transformer, storage: WeightStorage) -> Transformer:
    for name, parameter in network.named_parameters():
        form = storage.format_of(name, parameter.shape[-1])
        parameter.data = round_trip(parameter.data, form)
    return network


def largest_difference(found: Mapping[int, Sequence[Tensor]], expected: Mapping[int, Tensor]) -> float:
    """The largest absolute difference between the logits found for some sequences and those expected.
    Rows that are missing or not numbers count as infinitely far."""
    return max((_difference(found.get(number, []), rows) for number, rows in expected.items()), default=0.0)


def _difference(rows: Sequence[Tensor], expected: Tensor) -> float:
    if len(rows) != len(expected):
        return float("inf")
    difference = (torch.stack(list(rows)).double() - expected.double()).abs().max()
    return float(difference) if torch.isfinite(difference) else float("inf")

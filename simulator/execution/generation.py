"""A network that one can talk to: greedy generation, timed on this machine."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor

from simulator.execution.network import Cache, Transformer
from simulator.execution.random_weights import random_transformer
from simulator.execution.replay import repeatable, threads
from simulator.execution.tokenizer import Bytes, Tokenizer
from simulator.specs.architecture import Architecture
from simulator.specs.hardware import Precision

PRECISIONS: dict[torch.dtype, Precision] = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
}
"""What a network can compute in here."""

PRINTABLE = range(ord(" "), ord("~") + 1)
"""The bytes that a network of random weights answers in, so that its answer can be read."""


@dataclass(frozen=True)
class LanguageModel:
    """A network, and the way from text to its ids and back."""

    network: Transformer
    tokenizer: Tokenizer
    weights: str | None
    """Where they come from; None for random ones."""
    end_ids: frozenset[int] = frozenset()
    """Ids after which nothing follows."""
    choices: range | None = None
    """The ids an answer is made of; None for all."""

    @property
    def arch(self) -> Architecture:
        return self.network.arch

    @property
    def precision(self) -> Precision:
        """The number format that it computes in."""
        return PRECISIONS[next(self.network.parameters()).dtype]


@dataclass(frozen=True)
class Chosen:
    """One id of an answer."""

    token_id: int
    probability: float
    """Of this id, the likeliest, among the choices."""
    measured_s: float
    """On this machine, since the first pass over the prompt began."""


@dataclass(frozen=True)
class ThisMachine:
    """What the measured times were measured on."""

    cpu: str
    threads: int


def random_language_model(arch: Architecture, seed: int) -> LanguageModel:
    """Random weights in float32; text is bytes."""
    return LanguageModel(random_transformer(arch, seed), Bytes(), weights=None, choices=PRINTABLE)


def greedy(
    model: LanguageModel, ids: Sequence[int], count: int, progress: Callable[[int, int], None] | None = None
) -> tuple[list[Chosen], ThisMachine]:
    """The likeliest ids one by one, `count` of them or up to an end, and what they were computed on.

    Real weights use all threads of torch. Random ones use one: near ties are decided by the last bits, and
    their tokens shall be the same everywhere.
    """
    with torch.no_grad(), threads() if model.weights else repeatable():
        next_logits(model.network, ids[:1], Cache())  # brings the weights into memory; not counted
        return _timed(model, ids, count, progress), ThisMachine(cpu_name(), torch.get_num_threads())


def _timed(
    model: LanguageModel, ids: Sequence[int], count: int, progress: Callable[[int, int], None] | None
) -> list[Chosen]:
    chosen: list[Chosen] = []
    cache = Cache()
    start_s = perf_counter()
    while len(chosen) < count and not (chosen and chosen[-1].token_id in model.end_ids):
        new = [chosen[-1].token_id] if chosen else ids
        token, probability = _likeliest(next_logits(model.network, new, cache), model.choices)
        chosen.append(Chosen(token, probability, perf_counter() - start_s))
        if progress is not None:
            progress(len(chosen), count)
    return chosen


def next_logits(network: Transformer, ids: Sequence[int], cache: Cache) -> Tensor:
    """The logits `[v]` after `ids`, which follow those that went through `cache` before."""
    ids_t = torch.tensor(ids, device=network.embed.weight.device)
    logits_tv: Tensor = network(ids_t, cache, logits=1)
    return logits_tv[0]


def _likeliest(logits_v: Tensor, choices: range | None) -> tuple[int, float]:
    """The id with the largest logit, the first of equals, and its probability."""
    first = choices.start if choices else 0
    among_v = logits_v[first : choices.stop] if choices else logits_v
    likeliest = int(among_v.argmax())
    return first + likeliest, float(among_v.float().softmax(-1)[likeliest])


def cpu_name() -> str:
    """As the system calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()

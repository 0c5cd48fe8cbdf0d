"""Small models placed in every way that lowering knows, for tests that carry plans out."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest

from simulator.graph.machine import MachineGraph, machine_graph
from simulator.graph.work import Formats
from simulator.placement.placement import Elsewhere, ExpertsAside, KvHome, Placement, Stage, Streaming
from simulator.placement.program import programs_of
from simulator.serving.arrivals import Request
from simulator.specs.architecture import Architecture
from simulator.specs.arrivals import BatchArrivals
from simulator.specs.catalogue import Catalogue
from simulator.specs.engine import Engine
from simulator.specs.machine import load_machine
from simulator.specs.model import load_model
from simulator.specs.workload import UniformLengths, Workload
from simulator.study.compare import Verified, compare
from simulator.study.deploy import Deployment
from simulator.study.verify import made_scarce, simulate_for_replay

FLOAT64 = Formats("fp64", "fp64", "fp64")
WORKLOAD = Workload(
    arrivals=BatchArrivals(process="batch"),
    lengths=UniformLengths.model_validate({"prompt": 4, "output": 4}),
    requests=3,
)
REQUESTS = (Request(0, 0.0, 5, 4), Request(1, 0.0, 11, 3), Request(2, 0.0, 2, 6))

SHARING = tuple(
    Request(number, 0.0, prompt, output, number % 2, prefix, 4 if prefix else 0)
    for number, (prompt, output, prefix) in enumerate([
        (22, 12, (1, 2, 3)), (18, 9, (1, 2, 4)), (13, 14, (1, 2, 3)), (21, 6, (1, 2, 3, 5, 6)), (9, 16, ()),
        (21, 5, (1, 2, 3, 5, 6)), (7, 11, (7,)),
    ])
)  # fmt: skip
"""Prompts of which several begin alike, of two priorities."""


def stages(*parts: tuple[str, int]) -> tuple[Stage, ...]:
    """`("gpu-0+gpu-1", 2)`: two layers on two tensor-parallel ranks."""
    result, first = [], 0
    for devices, count in parts:
        result.append(Stage(tuple(devices.split("+")), first, count))
        first += count
    return tuple(result)


def streaming(layers: range = range(4), **more: bool) -> Streaming:
    return Streaming(tuple("host" if layer in layers else None for layer in range(4)), buffers=2, **more)


PLACEMENTS = [
    Placement("single", stages(("gpu-0", 4))),
    Placement("cpu and gpu", stages(("cpu", 2), ("gpu-0", 2))),
    Placement("three unequal stages", stages(("gpu-1", 1), ("cpu", 2), ("gpu-0", 1))),
    Placement("there and back", stages(("gpu-0", 1), ("cpu", 1), ("gpu-0", 1), ("cpu", 1)), microbatches=2),
    Placement("tensor parallel 2", stages(("gpu-0+gpu-1", 4))),
    Placement("tensor parallel 4", stages(("gpu-0+gpu-1+gpu-2+gpu-3", 4))),
    Placement("pipeline of two, two microbatches", stages(("gpu-0", 2), ("gpu-1", 2)), microbatches=2),
    Placement("tensor parallel in a pipeline", stages(("gpu-0+gpu-1", 2), ("gpu-2+gpu-3", 2)), microbatches=2),
    Placement("one rank to two", stages(("gpu-0", 1), ("gpu-1+gpu-2", 3))),
    Placement("two ranks to one", stages(("gpu-0+gpu-1", 3), ("gpu-2", 1)), microbatches=3),
    Placement("streamed", stages(("gpu-0", 4)), streaming=streaming()),
    Placement("streamed in part", stages(("gpu-0", 4)), streaming=streaming(range(1, 4))),
    Placement("streamed across steps", stages(("gpu-0", 4)), streaming=streaming(across_steps=True)),
    Placement("streamed, two microbatches", stages(("gpu-0", 4)), 2, streaming()),
    Placement("streamed ranks", stages(("gpu-0+gpu-1", 4)), streaming=streaming(range(3), across_steps=True)),
    Placement("attention beside the KV cache", stages(("gpu-0", 4)), elsewhere=(
        Elsewhere("cpu", frozenset({"rotary", "attention"}), frozenset(range(4))),)),
    Placement("operators here and there", stages(("gpu-0", 2), ("gpu-1", 2)), elsewhere=(
        Elsewhere("cpu", frozenset({"up_proj", "mlp_norm"}), frozenset({0, 3})),
        Elsewhere("gpu-2", frozenset({"lm_head", "down_proj", "embed"}), frozenset({None, 1, 2})))),
    Placement("KV cache at the host", stages(("gpu-0", 4)), kv_home=KvHome("host")),
    Placement("KV cache of ranks at the host", stages(("gpu-0+gpu-1", 4)), kv_home=KvHome("host", buffers=1)),
    Placement("decode beside the KV cache", stages(("gpu-0", 4)), kv_home=KvHome("host", "cpu")),
    Placement("decode of ranks beside the KV cache", stages(("gpu-0+gpu-1", 4)), kv_home=KvHome("host", "cpu")),
    Placement("streamed, KV cache at the host", stages(("gpu-0", 4)), 2, streaming(range(1, 3)),
              kv_home=KvHome("host", "cpu")),
    Placement("a streamed stage", stages(("gpu-0", 1), ("gpu-1", 3)), 2, streaming(range(1, 4))),
    Placement("KV cache at the host of two loops", stages(("gpu-0", 2), ("gpu-1", 2)), 2, loops=2,
              kv_home=KvHome("host", buffers=1)),
    Placement("a pipeline of two loops", stages(("gpu-0", 2), ("gpu-1", 2)), loops=2),
    Placement("loops and microbatches", stages(("gpu-0+gpu-1", 2), ("cpu", 2)), 2, loops=2),
]

EXPERT_PLACEMENTS = [
    Placement("whole experts", stages(("gpu-0+gpu-1", 4)), whole_experts=True),
    Placement("whole experts on four", stages(("gpu-0+gpu-1+gpu-2+gpu-3", 4)), whole_experts=True),
    Placement("all experts aside", stages(("gpu-0", 4)), experts_aside=ExpertsAside("cpu", tuple(range(8)))),
    Placement("some experts aside", stages(("gpu-0", 4)), experts_aside=ExpertsAside("cpu", (1, 2, 5))),
    Placement("some experts aside of ranks", stages(("gpu-0+gpu-1", 4)),
              experts_aside=ExpertsAside("cpu", (0, 7))),
    Placement("some experts aside, the others whole", stages(("gpu-0", 2), ("gpu-1+gpu-2", 2)), 2,
              whole_experts=True, experts_aside=ExpertsAside("cpu", (0, 3))),
]
"""For models with eight experts or more."""


def some_slow(placements: Sequence[Any], every: int = 3) -> list[Any]:
    """Each third of some placements for `make check`, the others marked slow."""
    return [each if number % every == 0 else pytest.param(each, marks=pytest.mark.slow)
            for number, each in enumerate(placements)]  # fmt: skip


@cache
def machine(name: str = "epyc-9654-4x-l40s") -> MachineGraph:
    return machine_graph(load_machine(name, Catalogue()))


@cache
def model(name: str) -> Architecture:
    return load_model(name, Catalogue())


@cache
def engine(name: str = "vllm") -> Engine:
    return Catalogue().engine(name).record


def deployed(
    placement: Placement, model_name: str = "tiny-llama", *replicas: Placement, under: str = "vllm"
) -> Deployment:
    placements, used = (placement, *replicas), engine(under)
    programs = programs_of(model(model_name), placements, machine(), FLOAT64, used.is_eager)
    return Deployment(programs, used)


def verified(
    placement: Placement, model_name: str = "tiny-llama", *replicas: Placement, under: str = "vllm"
) -> Verified:
    """Simulate three unlike sequences under a placement and an engine, and carry the run out."""
    deployment = deployed(placement, model_name, *replicas, under=under)
    scarce, blocks = made_scarce(deployment.engine, REQUESTS, deployment.programs)
    deployment = Deployment(deployment.programs, scarce)
    simulated = simulate_for_replay(deployment, REQUESTS, blocks, WORKLOAD)
    blank = Verified("machine", model_name, placement.name, "not placed")
    return compare(blank, simulated, REQUESTS, scarce, blocks, seed=3)

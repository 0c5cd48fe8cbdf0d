"""Tiny machines, models, engines and programs, built in code; every figure is a plain SI float."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from simulator.graph.machine import MachineGraph, machine_graph
from simulator.graph.shape import Amount
from simulator.graph.work import Formats
from simulator.placement.placement import Placement, Stage, Streaming
from simulator.placement.plan import Task, Template, Tensor
from simulator.placement.program import Program
from simulator.results.records import RunRecord
from simulator.serving.arrivals import Request, Source
from simulator.simulation.pricing import Durations
from simulator.simulation.ticks import Ticks
from simulator.specs.architecture import Architecture, Attention, Experts, LayerSpec, Mlp, Rope, Router
from simulator.specs.engine import Engine, EngineMemory, HostStages, Overheads, SchedulerSettings
from simulator.specs.hardware import (
    Device,
    Efficiency,
    Host,
    HostMemory,
    Link,
    Machine,
    Memory,
    Node,
    Storage,
    Transition,
)

NS, US = 1e-9, 1e-6
BF16 = Formats("bf16", "bf16", "bf16")
ONE_BYTE = Amount.of(one=1)

ATTENTION = Attention(
    num_attention_heads=4, num_key_value_heads=2, head_dim=6, scale=6**-0.5, rope=Rope(10_000.0, 6)
)
MLP = Mlp(40, "silu", gated=True)
LLAMA = Architecture(
    name="tiny", family="llama", hidden_size=24, vocab_size=97, max_position_embeddings=10**8,
    layers=(LayerSpec(ATTENTION, MLP),) * 4, norm="rms", norm_eps=1e-5,
)  # fmt: skip


def altered(
    model: Architecture, attention: Mapping[str, Any] | None = None, mlp: Mapping[str, Any] | None = None,
    **fields: Any,
) -> Architecture:  # fmt: skip
    """A model with some fields changed: of the attention and feed-forward part of every layer, and its own."""
    layers = tuple(
        LayerSpec(
            replace(layer.attention, **attention or {}) if layer.attention else None,
            replace(layer.mlp, **mlp or {}) if layer.mlp else None,
        )
        for layer in model.layers
    )
    return replace(model, **({"layers": layers} | fields))


def biased(model: Architecture, **fields: Any) -> Architecture:
    """With a bias in every projection of its layers."""
    return altered(model, {"qkv_bias": True, "output_bias": True}, {"bias": True}, **fields)


WINDOWED = replace(
    LLAMA, name="windowed",
    layers=(LayerSpec(replace(ATTENTION, sliding_window=7), MLP), LayerSpec(ATTENTION, MLP)) * 2,
)  # fmt: skip
"""Every other layer sees seven tokens only."""
MIXTURE = replace(
    LLAMA, name="mixture",
    layers=(LayerSpec(ATTENTION, Experts(5, 2, replace(MLP, intermediate_size=16), Router("softmax"))),) * 4,
)  # fmt: skip

# --- hardware -----------------------------------------------------------------------------------------------


def device(
    kind: str = "gpu", flops: float = 1e9, bandwidth: float = 1e9, overhead_s: float = 0.0,
    capacity: float = 1e9, compute: Mapping[str, float] | None = None,
) -> Device:  # fmt: skip
    """A device that reaches its peaks in every class of operator, with hardly any overlap of the two, and
    launches copies in no time."""
    classes = ("matmul", "attention_prefill", "attention_decode", "elementwise", "embedding", "sampling")
    reached = Efficiency(compute=1.0, memory=1.0, overhead_s=overhead_s, blend=2.0)
    fields: dict[str, Any] = {
        "name": f"tiny {kind}",
        "kind": kind,
        "memory": Memory(capacity_bytes=capacity, bandwidth_bytes_per_s=bandwidth),
        "compute": dict(compute or {"bf16": flops, "fp32": flops / 2}),
        "efficiency": dict.fromkeys(classes, reached),
        "transition": Transition(launch_s=0.0, synchronize_s=0.0),
    }
    return Device(**fields)


def link(name: str = "link", bandwidth: float = 1e8, latency_s: float = 1 * US, **more: Any) -> Link:
    return Link(name=name, bandwidth_bytes_per_s=bandwidth, latency_s=latency_s, **more)


def host(
    kind: str = "server", cores: int = 4, offload: float = 0.0, dram: float | None = 1e9,
    dram_share: float | None = None, storage: bool = False,
) -> Host:  # fmt: skip
    share = {} if dram_share is None else {"efficiency": dram_share}
    fields: dict[str, Any] = {
        "name": f"tiny {kind}",
        "kind": kind,
        "cores": cores,
        "memory": HostMemory(capacity_bytes=1e9, bandwidth_bytes_per_s=dram, **share),
        "storage": Storage(capacity_bytes=1e12, link="drive") if storage else None,
        "offload_fraction": offload,
    }
    return Host(**fields)


def node(
    name: str = "", kind: str = "server", gpus: Sequence[Device] = (), cpu: Device | None = None,
    host_link: Link | None = None, interconnect: Link | None = None, network: Link | None = None,
    storage: Link | None = None, **of_host: Any,
) -> Node:  # fmt: skip
    return Node(
        name=name, host_id="host", host=host(kind, storage=storage is not None, **of_host), cpu=cpu,
        devices=tuple((f"device-{index}", gpu) for index, gpu in enumerate(gpus)),
        host_link_id="host-link", host_link=host_link or link("pcie"),
        interconnect_id="fabric" if interconnect else None, interconnect=interconnect,
        network=network, price_usd=0.0, storage_link=storage,
    )  # fmt: skip


def machine(*nodes: Node, network: Link | None = None) -> MachineGraph:
    """The graph of some nodes."""
    network_id = "network" if network else None
    return machine_graph(Machine("tiny", "tiny machine", nodes, network, network_id, ()))


def server(gpus: int = 2, **more: Any) -> MachineGraph:
    """One node with so many equal GPUs."""
    return machine(node(gpus=[device()] * gpus, **more))


# --- software -----------------------------------------------------------------------------------------------


def scheduler_settings(**changes: Any) -> SchedulerSettings:
    defaults: dict[str, Any] = {
        "max_num_seqs": 4, "max_num_batched_tokens": 16, "chunked_prefill": True, "kv_block_tokens": 4,
        "full_reservation": False,
    }  # fmt: skip
    return SchedulerSettings(**(defaults | changes))


def engine(
    step_s: float = 0.0, per_sequence_s: float = 0.0, stages: Mapping[str, float] | None = None,
    pinned: bool = True, **scheduler: Any,
) -> Engine:  # fmt: skip
    """An engine without overheads, but for those named."""
    nothing = {"receive_s": 0.0, "tokenize_s": 0.0, "detokenize_s": 0.0, "send_s": 0.0}
    return Engine(
        name="tiny engine",
        scheduler=scheduler_settings(**scheduler),
        memory=EngineMemory(utilization=1.0, context_bytes=0.0, sampler_bytes_per_logit=0, pinned=pinned),
        overheads=Overheads(step_s=step_s, per_sequence_s=per_sequence_s),
        host_stages=HostStages(**(nothing | dict(stages or {}))),
    )


def single(layers: int = 4, name: str = "gpu-0") -> Placement:
    return Placement("single", (Stage((name,), 0, layers),))


def tensor_parallel(degree: int = 2, layers: int = 4) -> Placement:
    return Placement("tp", (Stage(tuple(f"gpu-{rank}" for rank in range(degree)), 0, layers),))


def stages(microbatches: int = 1, layers: int = 4, streaming: Streaming | None = None) -> Placement:
    """Two stages on two GPUs."""
    half = layers // 2
    both = (Stage(("gpu-0",), 0, half), Stage(("gpu-1",), half, layers - half))
    return Placement("stages", both, microbatches, streaming)


def streamed(across_steps: bool = False, layers: int = 4, buffers: int = 2) -> Placement:
    """All layers streamed from the host to one GPU."""
    streaming = Streaming(("host",) * layers, buffers, across_steps)
    return Placement("streamed", (Stage(("gpu-0",), 0, layers),), streaming=streaming)


def program(placement: Placement, graph: MachineGraph, model: Architecture = LLAMA,
            formats: Formats = BF16) -> Program:  # fmt: skip
    return Program(model, placement, graph, formats)


# --- workloads ----------------------------------------------------------------------------------------------


def requests(*rows: tuple[float, int, int]) -> tuple[Request, ...]:
    """Requests as (sent in seconds, prompt tokens, output tokens)."""
    return tuple(Request(number, *row) for number, row in enumerate(rows))


def source(rows: Sequence[Request], users: int | None = None) -> Callable[[], Source]:
    return lambda: Source(rows, users)


def facts(record: RunRecord) -> dict[str, Any]:
    """All of a record that the fidelities must agree on, in a form that `==` compares."""
    fields = {name: getattr(record, name) for name in record.__dataclass_fields__}
    for name in ("fidelity", "crowded", "event_steps", "spans"):
        del fields[name]
    return {
        name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in fields.items()
    }


# --- plans made by hand -------------------------------------------------------------------------------------


def task(
    name: str, kind: Any = "compute", units: Sequence[str] = (), reads: Sequence[str] = (),
    writes: Sequence[str] = (), kept: Sequence[str] = (), links: Sequence[str] = (),
    after: Sequence[int] = (),
) -> Task:  # fmt: skip
    """A task of a made-up plan; `kept` tensors outlive it. Sizes mean nothing, prices come by hand."""
    written = [Tensor(each, "memory", ONE_BYTE) for each in writes]
    written += [Tensor(each, "memory", ONE_BYTE, kept=True) for each in kept]
    return Task(name, kind, name, "device", tuple(units), tuple(reads), tuple(written),
                link_bytes=tuple((each, ONE_BYTE) for each in links), after=tuple(after))  # fmt: skip


class HandPriced:
    """A template whose tasks have durations given by hand: each a price class of its own, unless equal
    prices are given as one class. It stands in for a PricedTemplate."""

    def __init__(
        self, template: Template, ticks: Sequence[int], latency: Sequence[int] | None = None,
        loads: Mapping[int, Mapping[str, float]] | None = None,
    ) -> None:  # fmt: skip
        """ticks: the lone duration of each task, latency included; loads: of flows on several links."""
        self.template = template
        self._loads = dict(loads or {})
        self.links_of_task = tuple(tuple(link for link, _ in each.link_bytes) for each in template.tasks)
        delays = list(latency or [0] * len(ticks))
        kinds = [(bool(each.link_bytes), total, delay)
                 for each, total, delay in zip(template.tasks, ticks, delays, strict=True)]  # fmt: skip
        known = {kind: number for number, kind in enumerate(dict.fromkeys(kinds))}
        self.class_of_task = np.array([known[kind] for kind in kinds], dtype=np.intp)
        self.class_count = len(known)
        self.latency: Ticks = np.array([delay for _, _, delay in known], dtype=np.int64)
        total: Ticks = np.array([duration for _, duration, _ in known], dtype=np.int64)
        self.durations = Durations(total, np.zeros(0))

    def lone_flow(self, index: int, durations: Durations) -> tuple[dict[str, float], float]:
        return dict(self.most_loads[index]), 1.0

    @property
    def most_loads(self) -> tuple[Mapping[str, float], ...]:
        return tuple(
            self._loads.get(index, dict.fromkeys(links, 1.0)) for index, links in enumerate(self.links_of_task)
        )

"""A placement: which devices compute which layers and operators, and in which memories weights, KV blocks and
experts live."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from simulator.specs.architecture import Architecture

Role = Literal["both", "prefill", "decode"]
"""What the serving loops of a placement do for a request."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Consecutive layers on one device, or on several as tensor-parallel ranks."""

    devices: tuple[str, ...]
    first_layer: int
    layer_count: int

    @property
    def layers(self) -> range:
        return range(self.first_layer, self.first_layer + self.layer_count)


@dataclass(frozen=True, slots=True)
class Streaming:
    """Layers whose weights are copied to their device each time they are used."""

    homes: tuple[str | None, ...]
    """Of each layer of the model, the memory that keeps it; None for those that stay on their device."""
    buffers: int = 2
    """Layers that fit beside each other in the device: one computes while the next arrive."""
    across_steps: bool = False
    """Whether the first layers of the next step are fetched at the end of this one."""


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Operators that run on another device than their stage's; what they need is copied there, and what they
    make is copied where it is needed next."""

    device: str
    operators: frozenset[str]
    layers: frozenset[int | None]
    """None stands for operators outside layers."""

    def has(self, operator: str, layer: int | None) -> bool:
        return operator in self.operators and layer in self.layers


@dataclass(frozen=True, slots=True)
class KvHome:
    """KV blocks of every layer in a memory that is not that of the device which attends to them."""

    memory: str
    decode_device: str | None = None
    """What attends for chunks of one new token, in place, beside the cache. None: their cached keys and
    values are copied to the stage's device in each step, as those of other chunks always are."""
    buffers: int = 2
    """Layers whose cached tokens may lie in the stage's device at once."""


@dataclass(frozen=True, slots=True)
class ExpertsAside:
    """Routed experts of every layer that another device computes, beside the stage's."""

    device: str
    experts: tuple[int, ...]
    popularity: tuple[float, ...] | None = None
    """Of each expert of the model, the probability that a token chooses it; None: equal for all."""


@dataclass(frozen=True, slots=True)
class Speculation:
    """A smaller model, the drafter, that proposes tokens, and the placed one verifies several at once. Its
    cached tokens lie in KV blocks of the same numbers, in slabs of its own."""

    model: Architecture
    devices: tuple[str, ...]
    """Of the drafter; its ranks, if more than one."""
    tokens: int
    """How many it proposes for each sequence in a round, at most."""
    acceptance: float
    """Probability that a proposed token is the one that the placed model chooses, given that those before it
    were."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where everything lives; what a strategy yields and lowering reads. The first stage embeds, the last
    one scores and samples."""

    name: str
    stages: tuple[Stage, ...]
    microbatches: int = 1
    """Into how many parts a batch is cut so that stages can work on different ones at once."""
    streaming: Streaming | None = None
    loops: int = 1
    """Serving loops that take turns on the stages, each with a batch of its own in flight."""
    elsewhere: tuple[Elsewhere, ...] = ()
    kv_home: KvHome | None = None
    whole_experts: bool = False
    """Ranks of a stage hold whole experts (expert parallel), and not columns of each."""
    experts_aside: ExpertsAside | None = None
    by_sequence: bool = False
    """Ranks of the one stage hold everything but routed experts whole, and each has sequences of its own: a
    microbatch for each (data-parallel attention). Tokens of all of them meet at the experts."""
    speculation: Speculation | None = None
    role: Role = "both"
    """Those that prefill hand every request over to one that decodes, after its first token."""

    def __post_init__(self) -> None:
        assert self.loops == 1 or self.streaming is None, "loops would overwrite each other's fetched layers"
        groups = [frozenset(stage.devices) for stage in self.stages]
        apart = all(one == other or not one & other for one in groups for other in groups)
        assert apart, "ranks stay together"
        if self.experts_aside is not None:
            assert self.experts_aside.device not in frozenset().union(*groups), "aside is not among the ranks"
        if self.by_sequence:
            assert len(self.stages) == 1 and self.microbatches == len(self.stages[0].devices)
            away = (self.streaming, self.kv_home, *self.elsewhere)
            assert self.loops == 1 and not any(away), "only experts of such ranks may be somewhere else"
        if self.speculation is not None:
            assert self.microbatches == self.loops == 1, "rounds are of one batch, in one piece"

    @property
    def devices(self) -> tuple[str, ...]:
        """Every device that computes, once, those of stages first and in their order."""
        of_stages = [device for stage in self.stages for device in stage.devices]
        others = [each.device for each in self.elsewhere]
        if self.kv_home is not None and self.kv_home.decode_device is not None:
            others.append(self.kv_home.decode_device)
        if self.experts_aside is not None:
            others.append(self.experts_aside.device)
        if self.speculation is not None:
            others += self.speculation.devices
        return tuple(dict.fromkeys(of_stages + others))


@dataclass(frozen=True, slots=True)
class NotPlaceable:
    """Why a strategy cannot be applied to a model and machine, and what would help."""

    reason: str

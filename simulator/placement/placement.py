"""A placement: which devices compute which layers, and where weights that do not stay there live."""

from __future__ import annotations

from dataclasses import dataclass


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

    layers: frozenset[int]
    home: str
    """The memory that keeps them."""
    buffers: int = 2
    """Layers that fit beside each other in the device: one computes while the next arrive."""
    across_steps: bool = False
    """Whether the first layers of the next step are fetched at the end of this one."""


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

    def __post_init__(self) -> None:
        assert self.loops == 1 or self.streaming is None, "loops would overwrite each other's fetched layers"

    @property
    def devices(self) -> tuple[str, ...]:
        """Every device that computes, once, in stage order."""
        return tuple(dict.fromkeys(device for stage in self.stages for device in stage.devices))


@dataclass(frozen=True, slots=True)
class NotPlaceable:
    """Why a strategy cannot be applied to a model and machine, and what would help."""

    reason: str

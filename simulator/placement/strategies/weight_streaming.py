"""Weights in host memory or on disk, brought to the accelerator layer by layer."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from simulator.graph.machine import MachineGraph
from simulator.placement.placement import KvHome, NotPlaceable, Placement, Stage, Streaming
from simulator.placement.strategies.base import (
    OnRanks,
    evenly_spread,
    missing_cache,
    missing_disk,
    percent,
    processor_beside,
)
from simulator.specs.architecture import Architecture

Home = Literal["host", "nvme"]


class WeightStreaming(OnRanks):
    """A model larger than the accelerator: some layers stay there, the others are copied in for each use,
    into buffers that are refilled as soon as their layer is done. With `microbatches`, a layer that has been
    brought serves all of them before the next one (the block schedule of FlexGen, Sheng et al. 2023,
    arXiv 2303.06865)."""

    strategy: Literal["weight_streaming"] = "weight_streaming"
    gpu_layers: Annotated[int, Field(ge=0)] | None = None
    """Layers that stay on the accelerator, spread evenly; none if not given."""
    gpu_share: Annotated[float, Field(ge=0, le=1)] | None = None
    """The same as a share of all layers."""
    home: Home = "host"
    """Where the other layers are kept: host memory, or its NVMe storage."""
    nvme_share: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share of all layers that are kept on NVMe, where others are in host memory."""
    buffers: Annotated[int, Field(ge=1)] = 2
    """Layers that fit beside each other in the accelerator. With one, a layer is brought only after the one
    before has been computed."""
    prefetch: bool = False
    """Whether the first layers of a step are brought at the end of the step before."""
    microbatches: Annotated[int, Field(ge=1)] = 1
    """Into how many parts a batch is cut."""
    kv: Literal["device", "host", "nvme"] = "device"
    """Where KV blocks lie: on the accelerator, in host memory, or on its NVMe storage."""
    decode_attention: Literal["device", "host"] = "device"
    """Where decode attends if the blocks are at the host: on the accelerator, or beside them."""

    @model_validator(mode="after")
    def _said_once(self) -> Self:
        if self.gpu_layers is not None and self.gpu_share is not None:
            raise ValueError("give either `gpu_layers` or `gpu_share`")
        if self.home == "nvme" and self.nvme_share is not None:
            raise ValueError("`nvme_share` is for home `host`; with home `nvme` no layer is in host memory")
        if self.decode_attention == "host" and self.kv != "host":
            raise ValueError("decode_attention `host` needs kv `host`")
        return self

    @property
    def label(self) -> str:
        kept = None
        if self.gpu_layers is not None:
            kept = f"{self.gpu_layers} on gpu"
        if self.gpu_share is not None:
            kept = f"{percent(self.gpu_share)} on gpu"
        nvme = "from nvme" if self.home == "nvme" else None
        if self.nvme_share is not None:
            nvme = f"{percent(self.nvme_share)} from nvme"
        attended = ", decode there" if self.decode_attention == "host" else ""
        return self.labelled(
            kept, nvme, f"{self.buffers} buffers" if self.buffers != 2 else None,
            "prefetch" if self.prefetch else None,
            f"{self.microbatches} microbatches" if self.microbatches > 1 else None,
            f"kv at {self.kv}{attended}" if self.kv != "device" else None,
        )  # fmt: skip

    def place(self, model: Architecture, machine: MachineGraph) -> Placement | NotPlaceable:
        ranks = self.ranks(model, machine)
        if isinstance(ranks, NotPlaceable):
            return ranks
        homes = self._homes(model, machine, ranks[0])
        if isinstance(homes, NotPlaceable):
            return homes
        kv_home = self._kv_home(model, machine, ranks[0])
        if isinstance(kv_home, NotPlaceable):
            return kv_home
        streaming = Streaming(homes, self.buffers, self.prefetch) if any(homes) else None
        stages = (Stage(ranks, 0, model.num_hidden_layers),)
        return Placement(self.label, stages, self.microbatches, streaming, kv_home=kv_home)

    def _homes(
        self, model: Architecture, machine: MachineGraph, device: str
    ) -> tuple[str | None, ...] | NotPlaceable:
        """The memory of each layer, None for those that stay on the accelerator."""
        layers = range(model.num_hidden_layers)
        kept = self.gpu_layers if self.gpu_layers is not None else round((self.gpu_share or 0) * len(layers))
        on_disk = len(layers) if self.home == "nvme" else round((self.nvme_share or 0) * len(layers))
        if kept > len(layers):
            return NotPlaceable(f"gpu_layers is {kept}, the model has {len(layers)} layers")
        moving = [layer for layer in layers if layer not in evenly_spread(kept, layers)]
        far = min(on_disk, len(moving))
        lacking = missing_disk(machine, device) if far else None
        if lacking is not None:
            return lacking
        host, disk = machine.host_of(device).name, machine.storage_of(device)
        from_disk = {moving[index] for index in evenly_spread(far, range(len(moving)))}
        homes = {layer: disk if layer in from_disk else host for layer in moving}
        return tuple(homes.get(layer) for layer in layers)

    def _kv_home(
        self, model: Architecture, machine: MachineGraph, device: str
    ) -> KvHome | NotPlaceable | None:
        if self.kv == "device":
            return None
        lacking = missing_cache(f"kv `{self.kv}`", model)
        if lacking is not None:
            return lacking
        if self.kv == "nvme":
            disk = machine.storage_of(device)
            return missing_disk(machine, device) if disk is None else KvHome(disk)
        memory = machine.host_of(device).name
        if self.decode_attention == "device":
            return KvHome(memory)
        cpu = processor_beside(machine, device)
        return cpu if isinstance(cpu, NotPlaceable) else KvHome(memory, decode_device=cpu)

"""What devices of one kind and generation lend those of them that state no figures of their own."""

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from simulator.specs.base import Spec
from simulator.specs.hardware import BROADER_CLASS, Device, Efficiency, OperatorClass
from simulator.specs.provenance import Source, Sources


class DeviceClass(Spec):
    """A kind of device, or one generation of a kind."""

    needs_sources: ClassVar = True
    without_source: ClassVar = frozenset({"name", "kind", "generation", "follows"})

    name: str
    """What its devices have in common."""
    kind: Literal["cpu", "gpu", "accelerator"]
    """That of its devices."""
    generation: str | None = None
    """That of its devices; absent: any that has no class of its own."""
    follows: str | None = None
    """Id of the class that lends what this one does not state; absent: the class of the kind."""
    efficiency: dict[OperatorClass, Efficiency] = Field(default_factory=dict)
    """By operator class, optionally with a precision, as in a device's file."""
    sources: Sources = Field(default_factory=dict)
    """Where each figure comes from."""


def with_defaults(device: Device, classes: Sequence[tuple[str, DeviceClass]]) -> Device:
    """`device` with what the classes lend it, the nearest first; each figure lent is `assumed`.

    A figure that the device states for a class, or for a broader one, is never replaced by a lent one:
    `elementwise` of its own counts before a class's `norm`, `matmul` before a class's `matmul.bf16`.
    """
    own = device.efficiency
    efficiency, sources = dict(own), dict(device.sources)
    for class_id, lender in classes:
        for key, figures in lender.efficiency.items():
            if key in efficiency or _is_covered(key, own):
                continue
            efficiency[key] = figures
            sources[f"efficiency.{key}"] = _lent(class_id, key, lender)
    return device.model_copy(update={"efficiency": efficiency, "sources": sources})


def _is_covered(key: str, own: dict[str, Efficiency]) -> bool:
    name = key.partition(".")[0]
    broader = BROADER_CLASS.get(name)
    return name in own or (broader is not None and broader in own)


def _lent(class_id: str, key: str, lender: DeviceClass) -> Source:
    covering = [path for path in lender.sources if f"efficiency.{key}".startswith(path)]
    source = lender.sources[max(covering, key=len)] if covering else None
    ref = f"class {class_id}" if source is None else f"class {class_id}: {source.ref}"
    return Source(kind="assumed", ref=ref, date=None if source is None else source.date)

"""What devices of one kind and generation lend those of them that state no figures of their own."""

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from simulator.specs.base import Spec
from simulator.specs.hardware import Device, Efficiency, OperatorClass
from simulator.specs.provenance import Source, Sources, covers


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

    Whatever the device states of a class, of its twin format or of a broader class counts before anything
    lent, and what a nearer class lends before a farther one.
    """
    sources = dict(device.sources)
    for class_id, lender in classes:
        for key in lender.efficiency:
            if key not in device.efficiency:
                sources.setdefault(f"efficiency.{key}", _lent(class_id, key, lender))
    copied = device.model_copy(update={"sources": sources})
    return copied.with_lent(tuple(lender.efficiency for _, lender in classes))


def _lent(class_id: str, key: str, lender: DeviceClass) -> Source:
    covering = [path for path in lender.sources if covers(path, f"efficiency.{key}")]
    source = lender.sources[max(covering, key=len)] if covering else None
    ref = f"class {class_id}" if source is None else f"class {class_id}: {source.ref}"
    return Source(kind="assumed", ref=ref, date=None if source is None else source.date)

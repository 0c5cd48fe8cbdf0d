"""A small model that proposes tokens, and the model that verifies several of them at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from simulator.graph.machine import MachineGraph
from simulator.placement.placement import NotPlaceable, Placement, Speculation
from simulator.placement.strategies.base import (
    Strategy,
    chosen_ranks,
    label_of,
    missing_devices,
    on_several_hosts,
    percent,
)
from simulator.placement.strategies.single_device import SingleDevice
from simulator.placement.strategies.tensor_parallel import TensorParallel
from simulator.specs.architecture import Architecture
from simulator.specs.base import is_path
from simulator.specs.catalogue import Catalogue
from simulator.specs.model import load_model
from simulator.specs.quantities import Share

MOST_PROPOSED = 32
"""More are never accepted in a row often enough to be worth a pass each."""


class Speculative(Strategy):
    """A small model proposes the next `draft_tokens` tokens of every sequence, one after the other; the
    model verifies them in one step and keeps those that it would have chosen itself (Leviathan et al. 2023,
    arXiv 2211.17192; Chen et al. 2023, arXiv 2302.01318). Both keep their weights and KV blocks all the time.
    """

    strategy: Literal["speculative"] = "speculative"
    draft: str
    """Id or path of the small model; it must have the model's vocabulary."""
    draft_tokens: Annotated[int, Field(ge=1, le=MOST_PROPOSED)]
    """How many it proposes in a round."""
    acceptance: Share
    """Probability that a proposed token is the model's own choice, given that those before it were. It
    depends on the two models and on what they write, so there is no default; a range gives a band."""
    tensor_parallel: Annotated[int, Field(ge=1)] = 1
    """How many devices share each layer of the model."""
    devices: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Which ones; the machine's first accelerators if not given."""
    draft_devices: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Where the small model is, its ranks if several; on the first device of the model if not given."""

    @property
    def label(self) -> str:
        apart = "on " + "+".join(self.draft_devices) if self.draft_devices else None
        degree = f"tp {self.tensor_parallel}" if self.tensor_parallel > 1 else None
        own = "+".join(self.devices) if self.devices else None
        accepted = f"x {self.draft_tokens} at {percent(round(self.acceptance, 4))}"
        name = Path(self.draft).stem if is_path(self.draft) else self.draft
        return label_of(self.strategy, name, accepted, degree, own, apart)

    def place(self, model: Architecture, machine: MachineGraph) -> Placement | NotPlaceable:
        draft = load_model(self.draft, Catalogue())
        wrong = why_not_together(model, draft)
        if wrong is not None:
            return NotPlaceable(f"{self.strategy}: {wrong}")
        placed = self._target(model, machine)
        if isinstance(placed, NotPlaceable):
            return placed
        devices = self._of_draft(draft, machine, placed.stages[0].devices[0])
        if isinstance(devices, NotPlaceable):
            return devices
        apart = on_several_hosts(machine, (placed.stages[0].devices[0], *devices))
        proposes = Speculation(draft, devices, self.draft_tokens, self.acceptance)
        return apart or Placement(self.label, placed.stages, speculation=proposes)

    def _target(self, model: Architecture, machine: MachineGraph) -> Placement | NotPlaceable:
        if self.tensor_parallel == 1 and len(self.devices or ()) < 2:
            return SingleDevice(device=self.devices[0] if self.devices else None).place(model, machine)
        return TensorParallel(degree=self.tensor_parallel, devices=self.devices).place(model, machine)

    def _of_draft(
        self, draft: Architecture, machine: MachineGraph, first: str
    ) -> tuple[str, ...] | NotPlaceable:
        devices = self.draft_devices or (first,)
        if len(devices) > 1:
            return chosen_ranks("draft_devices", draft, machine, len(devices), devices)
        return missing_devices(machine, devices) or devices


def why_not_together(model: Architecture, draft: Architecture) -> str | None:
    """What keeps one model from proposing tokens to another."""
    for each in (model, draft):
        if each.is_encoder:
            return f"{each.name} is an encoder, which has no next token"
        if each.has_linear_attention:
            return (f"{each.name} has linear attention, whose states cannot go back to before a token that "
                    "was not accepted")  # fmt: skip
    if model.vocab_size != draft.vocab_size:
        return (f"{draft.name} has {draft.vocab_size:,} tokens in its vocabulary, {model.name} has "
                f"{model.vocab_size:,}; both must have the same")  # fmt: skip
    if draft.max_position_embeddings < model.max_position_embeddings:
        return (f"{draft.name} knows {draft.max_position_embeddings:,} positions, fewer than the "
                f"{model.max_position_embeddings:,} of {model.name}")  # fmt: skip
    return None

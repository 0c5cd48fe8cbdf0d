"""A placed model with the template of each kind of step, lowered when it is first needed."""

from __future__ import annotations

from dataclasses import dataclass, field

from simulator.placement.by_sequence import BySequence
from simulator.placement.lowering import Lowering
from simulator.placement.placed import Placed
from simulator.placement.plan import Template, flaws


@dataclass(frozen=True)
class Program(Placed):
    """What both interpreters are given."""

    _templates: dict[tuple[int, bool], Template] = field(default_factory=dict, repr=False)

    def template(self, microbatches: int, warm: bool = False) -> Template:
        """The template of a step with so many microbatches that have chunks.

        warm: an earlier step has fetched the first streamed layers already.
        """
        key = (microbatches, warm)
        if key not in self._templates:
            lowering = BySequence if self.placement.by_sequence else Lowering
            template = lowering(self, microbatches, warm).template()
            assert not flaws(template, (resident.tensor.name for resident in self.residents()))
            self._templates[key] = template
        return self._templates[key]

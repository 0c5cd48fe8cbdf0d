"""A placed model with the template of each kind of step, lowered when it is first needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from simulator.graph.machine import MachineGraph
from simulator.graph.shape import split_evenly, starts_of
from simulator.graph.work import Formats
from simulator.placement.by_sequence import BySequence
from simulator.placement.lowering import Lowering
from simulator.placement.placed import Placed
from simulator.placement.placement import Placement, Role, Stage
from simulator.placement.plan import Template, flaws
from simulator.specs.architecture import Architecture

Blocks = int | Mapping[Role, int]
"""KV blocks of each placement; by what it is for, where those differ."""


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

    @cached_property
    def drafter(self) -> Program | None:
        """The placed model that proposes tokens to this one."""
        given = self.placement.speculation
        if given is None:
            return None
        stage = Stage(given.devices, 0, given.model.num_hidden_layers)
        placement = Placement(f"draft of {self.placement.name}", (stage,))
        return Program(given.model, placement, self.machine, self.formats, self.loop, self.eager, True)

    @property
    def members(self) -> tuple[Program, ...]:
        """This placed model, and the one that proposes tokens to it if there is one."""
        return (self,) if self.drafter is None else (self, self.drafter)


def programs_of(
    model: Architecture, placements: Sequence[Placement], machine: MachineGraph, formats: Formats,
    eager: bool = False,
) -> tuple[Program, ...]:  # fmt: skip
    """A program for each serving loop of some placements (replicas), which are numbered through."""
    placed = [placement for placement in placements for _ in range(placement.loops)]
    return tuple(Program(model, each, machine, formats, loop, eager) for loop, each in enumerate(placed))


def by_placement(programs: Sequence[Program]) -> tuple[tuple[Program, ...], ...]:
    """Programs that are loops of one placement together; they share its weights and KV blocks."""
    placements = dict.fromkeys(program.placement for program in programs)
    return tuple(
        tuple(program for program in programs if program.placement == placement) for placement in placements
    )


def blocks_of(program: Program, blocks: Blocks) -> int:
    """The KV blocks of a program's placement."""
    return blocks if isinstance(blocks, int) else blocks[program.placement.role]


def block_ranges(programs: Sequence[Program], blocks: Blocks) -> tuple[range, ...]:
    """The KV blocks of each loop, out of those of its placement."""
    found: dict[int, range] = {}
    for loops in by_placement(programs):
        sizes = split_evenly(blocks_of(loops[0], blocks), len(loops))
        for program, start, size in zip(loops, starts_of(sizes), sizes, strict=True):
            found[program.loop] = range(start, start + size)
    return tuple(found[program.loop] for program in programs)

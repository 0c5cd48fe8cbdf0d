"""Lowering where every rank has sequences of its own: data-parallel attention, expert-parallel experts.

A microbatch is what one rank's sequences bring to the step; the rank does everything for it but the routed
experts. There the tokens of all ranks meet: inputs and routing are gathered on every rank, each rank goes
through its own experts with all tokens, and of the sum each rank gets back its own tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from simulator.graph.shape import Amount
from simulator.placement.lowering import Lowering
from simulator.placement.placed import PlacedOperator
from simulator.placement.placement import Stage
from simulator.placement.plan import Task
from simulator.placement.traffic import link_bytes

AT_EXPERTS = ("expert_up_proj", "expert_activation", "expert_down_proj")


class BySequence(Lowering):
    """One stage; microbatch m is on rank m, and `self.microbatches` stands for all of them together."""

    joint = True

    def ranks(self, stage: Stage, microbatch: int) -> range:
        if microbatch == self.microbatches:
            return range(len(stage.devices))
        return range(microbatch, microbatch + 1)

    def _layers(self, stage: Stage, following: Stage | None) -> None:
        ranks = range(len(stage.devices))
        for layer in stage.layers:
            shares = [self.placed.layer(stage, rank, layer) for rank in ranks]
            for placed in zip(*shares, strict=True):
                if placed[0].operator.name in AT_EXPERTS:
                    self._with_all_tokens(placed, stage)
                else:
                    for rank, each in enumerate(placed):
                        self.compute(each, stage, rank)
        for rank in ranks:
            self._leave(stage, following, rank)

    def _with_all_tokens(self, placed: Sequence[PlacedOperator], stage: Stage) -> None:
        operator = placed[0].operator
        if operator.name == AT_EXPERTS[0]:
            self._all_gather(operator.reads, operator.layer, stage)
        for each in placed:
            self.compute(each, stage, self.microbatches)
        if operator.name == AT_EXPERTS[-1]:
            self._reduce_scatter(operator.writes[0].role, operator.layer, stage)

    def _all_gather(self, roles: Sequence[str], layer: int | None, stage: Stage) -> None:
        """Each rank's piece goes round the ring, past every link but the one that leads to its origin."""
        draft, lanes, everyone = self.draft, stage.devices, self.microbatches
        reads, writes, pieces = [], [], [Amount()] * len(lanes)
        for role in roles:
            for rank, lane in enumerate(lanes):
                name = draft.values[rank, lane][role]
                reads.append(name)
                pieces[rank] += draft.tensors[name].nbytes
            for lane in lanes:
                gathered = draft.tensor(f"{layer}.{role}.all@{lane}", lane, draft.tensors[reads[-1]].nbytes)
                draft.values[everyone, lane][role] = gathered.name
                writes.append(gathered)
        self._launch(stage, everyone, "all_gather_tokens", layer)
        draft.add(Task(
            f"{layer}.all_gather_tokens", "collective", "all_gather_tokens", lanes[0], lanes, tuple(reads),
            tuple(writes), everyone, layer, link_bytes=self._ring(stage, pieces, skipped=1),
            crossings=tuple(self._pairs(stage)),
        ))  # fmt: skip

    def _reduce_scatter(self, role: str, layer: int | None, stage: Stage) -> None:
        """The summands of a rank's tokens start with its neighbour and end with it."""
        draft, lanes, everyone = self.draft, stage.devices, self.microbatches
        reads = tuple(draft.values[everyone, lane][role] for lane in lanes)
        nbytes, writes = draft.tensors[reads[0]].nbytes, []
        for rank, lane in enumerate(lanes):
            own = draft.tensor(f"{layer}.{role}.own@{lane}", lane, nbytes.among(rank, everyone + 1))
            draft.values[rank, lane][role] = own.name
            writes.append(own)
        self._launch(stage, everyone, "reduce_scatter_tokens", layer)
        draft.add(Task(
            f"{layer}.reduce_scatter_tokens", "collective", "reduce_scatter_tokens", lanes[0], lanes, reads,
            tuple(writes), everyone, layer, link_bytes=self._ring(stage, [nbytes] * len(lanes), skipped=0),
            crossings=tuple(self._pairs(stage)),
        ))  # fmt: skip

    def _pairs(self, stage: Stage) -> list[tuple[str, str]]:
        return list(zip(stage.devices, (*stage.devices[1:], stage.devices[0]), strict=True))

    def _ring(self, stage: Stage, pieces: Sequence[Amount], skipped: int) -> tuple[tuple[str, Amount], ...]:
        """Bytes over each link of a ring, as forms of all shapes: from rank r to the next every rank's piece
        but that of rank r + `skipped`."""
        shapes = self.microbatches + 1
        traffic = []
        for rank, (a, b) in enumerate(self._pairs(stage)):
            out = (rank + skipped) % len(pieces)
            route = self.draft.route(a, b)
            traffic += [(route, piece.among(m, shapes)) for m, piece in enumerate(pieces) if m != out]
        return link_bytes(traffic)

"""Plans that move cached keys and values: to another placed model, to host memory and back.

Their chunks have no new tokens: `context` of them are cached in `blocks` and go to `target_blocks`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from simulator.graph.shape import Amount
from simulator.graph.work import byte_amount
from simulator.placement.placed import Placed
from simulator.placement.plan import KvCopy, KvSlab, Task, Template

Way = Literal["save", "restore"]
"""From the devices to host memory, or back."""

WAYS: tuple[Way, ...] = ("save", "restore")


def handover_template(source: Placed, target: Placed) -> Template:
    """The plan that copies the cached tokens of some sequences, layer by layer and head by head.

    Where a head has copies (more ranks than KV heads), the first one is the source. Both placed models are of
    one model on one machine. It has streams of its own, in which hand-overs follow each other, so that steps
    of neither side wait for it: who hands over reads and writes the devices' memories beside what they do.
    """
    assert not source.model.has_linear_attention, "states of linear attention cannot be handed over yet"
    thread = f"{target.host}.handover-{target.loop}"
    return _template("handed-over", source.slabs(), target.slabs(), target, ("sends", "receives"), thread)


def move_template(placed: Placed, way: Way) -> Template:
    """The plan that copies blocks of every layer from where they are used to host memory, or back."""
    homes, host = placed.slabs(), host_slabs(placed)
    sources, targets = (homes, host) if way == "save" else (host, homes)
    return _template(f"kv-{way}d", sources, targets, placed)


def host_slabs(placed: Placed) -> tuple[KvSlab, ...]:
    """Room in host memory for KV blocks that leave their devices, layer by layer as they are used."""
    machine = placed.machine
    return tuple(
        replace(slab, name=f"{slab.name}.host", memory=machine.host_of(slab.memory).name)
        for slab in placed.slabs()
    )


def why_not_to_host(placed: Placed) -> str | None:
    """What keeps KV blocks from leaving for host memory; None if they can."""
    if placed.model.has_linear_attention:
        return "states of linear attention cannot be copied to host memory (`host_kv`) yet"
    if placed.placement.speculation is not None:
        return "KV blocks that a model and its drafter share cannot be copied to host memory (`host_kv`) yet"
    if placed.placement.role != "both":
        return "sequences that are handed over cannot leave for host memory (`host_kv`) yet"
    if placed.placement.by_sequence:
        return "ranks that have sequences of their own cannot copy KV blocks to host memory (`host_kv`) yet"
    if any(slab.memory not in placed.machine.devices for slab in placed.slabs()):
        return "some KV blocks are in host memory already, so they cannot leave for it (`host_kv`)"
    return None


def _template(
    done: str, sources: Sequence[KvSlab], targets: Sequence[KvSlab], placed: Placed,
    ways: tuple[str, str] = ("out", "in"), thread: str = "",
) -> Template:  # fmt: skip
    """ways: the streams of devices that are held. thread: of the host, if not the engine's, so that it is
    beside steps."""
    held: dict[int, list[KvSlab]] = {}
    for slab in sources:
        held.setdefault(slab.layer, []).append(slab)
    moves = [move for slab in targets for move in _moves(held[slab.layer], slab)]
    tasks = [
        _copy_task(placed, move, number, ways)
        for number, move in enumerate(moves)
        if move.source.memory != move.target.memory
    ]
    unit = thread or placed.engine_unit
    last = Task(placed.own_name(done), "host", "commit", placed.host, (unit,), (), (),
                after=tuple(range(len(tasks))), host_work="commit")  # fmt: skip
    return Template((*tasks, last), len(tasks), traits=placed.traits, is_beside_steps=bool(thread))


def _moves(sources: Sequence[KvSlab], target: KvSlab) -> list[KvCopy]:
    """What fills one slab: each of its heads from the first slab that has it (of its own rank's, if that has
    it), neighbours together."""
    moves: list[KvCopy] = []
    own = [slab for slab in sources if target.name in (f"{slab.name}.host", slab.name.removesuffix(".host"))]
    for head in range(target.head_start, target.head_start + target.head_count):
        source = next(s for s in (*own, *sources) if s.head_start <= head < s.head_start + s.head_count)
        if moves and moves[-1].source is source:
            moves[-1] = KvCopy(source, target, moves[-1].head_start, moves[-1].head_count + 1)
        else:
            moves.append(KvCopy(source, target, head, 1))
    return moves


def _copy_task(placed: Placed, move: KvCopy, number: int, ways: tuple[str, str]) -> Task:
    machine, slab = placed.machine, move.source
    elements = Amount.of(prefill_context=slab.planes * move.head_count * slab.width)
    nbytes = byte_amount(elements, placed.formats.kv_cache)
    route = machine.route(move.source.memory, move.target.memory)
    units = tuple(
        f"{memory}.{way}"
        for memory, way in zip((move.source.memory, move.target.memory), ways, strict=True)
        if memory not in machine.hosts
    )
    return Task(
        placed.own_name(f"kv.{move.target.layer}.{number}.{move.source.memory}->{move.target.memory}"),
        "transfer", "kv_copy", move.target.memory, units, (), (), layer=move.target.layer,
        link_bytes=tuple((directed.name, nbytes) for directed in route), kv_copy=move,
        crossings=((move.source.memory, move.target.memory),),
    )  # fmt: skip

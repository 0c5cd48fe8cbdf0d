"""Handing cached keys and values over from one placed model to another."""

from __future__ import annotations

from simulator.graph.shape import Amount
from simulator.graph.work import byte_amount
from simulator.placement.plan import KvCopy, KvSlab, Task, Template
from simulator.placement.program import Program


def handover_template(source: Program, target: Program) -> Template:
    """The plan that copies the cached tokens of some sequences, layer by layer and head by head.

    Its chunks have no new tokens: `context` are cached in `blocks` of the source and go to
    `target_blocks`. Where a head has copies (more ranks than KV heads), the first one is the source.
    Both programs are of one model on one machine, and serve on the same host.
    """
    assert not source.model.has_linear_attention, "states of linear attention cannot be handed over yet"
    held: dict[int, list[KvSlab]] = {}
    for slab in source.slabs():
        held.setdefault(slab.layer, []).append(slab)
    tasks = [
        _copy_task(source, move, number)
        for number, move in enumerate(
            move for slab in target.slabs() for move in _moves(held[slab.layer], slab)
        )
        if move.source.memory != move.target.memory
    ]
    done = Task("handed-over", "host", "commit", source.host, (target.engine_unit,), (), (),
                after=tuple(range(len(tasks))), host_work="commit")  # fmt: skip
    return Template((*tasks, done), outcome=len(tasks))


def _moves(sources: list[KvSlab], target: KvSlab) -> list[KvCopy]:
    """What fills one slab: each of its heads from the first slab that has it, neighbours together."""
    moves: list[KvCopy] = []
    for head in range(target.head_start, target.head_start + target.head_count):
        source = next(s for s in sources if s.head_start <= head < s.head_start + s.head_count)
        if moves and moves[-1].source is source:
            moves[-1] = KvCopy(source, target, moves[-1].head_start, moves[-1].head_count + 1)
        else:
            moves.append(KvCopy(source, target, head, 1))
    return moves


def _copy_task(program: Program, move: KvCopy, number: int) -> Task:
    machine, slab = program.machine, move.source
    elements = Amount.of(prefill_context=slab.planes * move.head_count * slab.width)
    nbytes = byte_amount(elements, program.formats.kv_cache)
    route = machine.route(move.source.memory, move.target.memory)
    units = tuple(
        f"{memory}.{way}"
        for memory, way in ((move.source.memory, "out"), (move.target.memory, "in"))
        if memory not in machine.hosts
    )
    return Task(
        f"kv.{move.target.layer}.{number}.{move.source.memory}->{move.target.memory}", "transfer", "kv_copy",
        move.target.memory, units, (), (), layer=move.target.layer,
        link_bytes=tuple((directed.name, nbytes) for directed in route), kv_copy=move,
        crossings=((move.source.memory, move.target.memory),),
    )  # fmt: skip

"""What plans occupy of each memory as time goes by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from simulator.placement.kv_moves import host_slabs
from simulator.placement.plan import Plan
from simulator.placement.program import Program


def standing_bytes(
    program: Program, block_count: int, block_tokens: int, sequence_count: int, host_blocks: int = 0
) -> Counter[str]:
    """Bytes of weights, KV blocks (on their devices, and what host memory has besides) and sequences' states
    in each memory; those of a drafter too."""
    standing: Counter[str] = Counter()
    for member in program.members:
        for resident in member.residents():
            standing[resident.tensor.memory] += resident.tensor.nbytes.coefficients[0]
        for slab in member.slabs():
            standing[slab.memory] += slab.bytes_per_token * block_count * block_tokens
    for slab in host_slabs(program) if host_blocks else ():
        standing[slab.memory] += slab.bytes_per_token * host_blocks * block_tokens
    for state in program.state_slabs():
        standing[state.memory] += state.bytes_per_sequence * sequence_count
    return standing


def peak_occupancy(
    standing: Counter[str], plans: Sequence[Plan], moments: Iterable[tuple[int, int, int, int]]
) -> dict[str, int]:
    """The most bytes in each memory, by the plans' own sizes.

    moments: (tick, 0 for an end or 1 for a start, plan, task) in the order in which they happen. A tensor
    takes its room when the task that writes it starts, and leaves it when the task that frees it ends.
    """
    now, peak = Counter(standing), dict(standing)
    sizes: dict[str, tuple[str, int]] = {}
    for _, is_start, number, index in moments:
        plan = plans[number]
        task = plan.template.tasks[index]
        if is_start:
            for tensor in task.writes:
                sizes[tensor.name] = (tensor.memory, plan.amount(task, tensor.nbytes))
                now[tensor.memory] += sizes[tensor.name][1]
                peak[tensor.memory] = max(peak.get(tensor.memory, 0), now[tensor.memory])
        else:
            for name in task.frees:
                memory, nbytes = sizes.pop(name)
                now[memory] -= nbytes
    return peak

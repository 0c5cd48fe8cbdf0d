"""Attention whose cache lies in another memory, as changes to the operators of a layer.

Where the cache is apart, `rotary` puts new keys and values out as a value of its own, `new_kv`, and
`attention` reads the cached ones as another, `cached_kv`; who lowers copies both. Where decode is done beside
the cache instead, a layer's attention is cut into two phases: rows of chunks with one new token go one way,
all others the other, and what comes of them is joined.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from simulator.graph.attention import Cached
from simulator.graph.bench import Bench
from simulator.graph.shape import Amount, Phase
from simulator.graph.work import Operator, Value

NEW_KV, CACHED_KV = "new_kv", "cached_kv"
IN_CACHE = ("rotary", "attention")
"""The operators that write and read the cache."""


def has_cache(operators: Sequence[Operator]) -> bool:
    """Whether a layer's operators keep keys and values of tokens."""
    return {operator.name for operator in operators if operator.uses_kv} >= set(IN_CACHE)


def apart(operator: Operator, cached: Cached) -> Operator:
    """`rotary` or `attention` with the cache in another memory."""
    if operator.name == "rotary":
        new = Value(NEW_KV, Amount.of(tokens=cached.elements), is_cached=True)
        return replace(operator, writes=(*operator.writes, new), uses_kv=False)
    return replace(operator, reads=(*operator.reads, CACHED_KV, NEW_KV), uses_kv=False)


def cached_tokens(has_window: bool, phase: Phase) -> Amount:
    """How many cached tokens a step reads in a layer: of a layer with a sliding window only those inside."""
    full, in_window = ("prefill_context", "decode_context"), ("window_context", "window_decode_context")
    names = in_window if has_window else full
    return Amount.of(**dict.fromkeys(names, 1)).of_phase(phase)


def role_in(role: str, phase: Phase) -> str:
    """What a value of one phase's rows is called."""
    return role if phase == "all" else f"{role}.{phase}"


def of_phase(operator: Operator, phase: Phase) -> Operator:
    """An operator of the attention for the rows of one phase."""
    own = operator.in_phase(phase)
    reads = tuple(role_in(role, phase) for role in own.reads)
    writes = tuple(replace(value, role=role_in(value.role, phase)) for value in own.writes)
    return replace(own, reads=reads, writes=writes)


def split_rows(bench: Bench, layer: int, values: Sequence[Value]) -> Operator:
    """Take the rows of each phase out of what the projections made."""
    writes = [
        replace(value, role=role_in(value.role, phase), elements=value.elements.of_phase(phase))
        for value in values
        for phase in ("decode", "prefill")
    ]
    moved = Amount()
    for value in values:
        moved += value.elements * 2
    reads = tuple(value.role for value in values)
    return Operator("split_rows", layer, reads, tuple(writes), (bench.elementwise(moved),))


def join_rows(bench: Bench, layer: int, value: Value) -> Operator:
    """Put the rows of both phases back into the order of the chunks."""
    reads = tuple(role_in(value.role, phase) for phase in ("decode", "prefill"))
    return Operator("join_rows", layer, reads, (value,), (bench.elementwise(value.elements * 2),))

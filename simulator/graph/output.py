"""The projection that closes every kind of attention."""

from __future__ import annotations

from simulator.graph.bench import PER_TOKEN, Bench
from simulator.graph.share import Part
from simulator.graph.work import Operator, Value


def output_projection(
    bench: Bench, layer: int, heads: Part, width: int, bias: bool, output: Value
) -> Operator:
    """The projection that closes attention."""
    part = heads.times(width)
    parameters = bench.rows(f"layers.{layer}.attention.o_proj", part, bias)
    return bench.matmul("o_proj", layer, "context", PER_TOKEN, parameters, part.count, output)

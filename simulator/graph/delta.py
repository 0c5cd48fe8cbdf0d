"""The operators of the gated delta rule, and the state it keeps of each sequence."""

from __future__ import annotations

from simulator.graph.bench import PER_TOKEN, Bench
from simulator.graph.output import output_projection
from simulator.graph.shape import Amount
from simulator.graph.share import Part, Share
from simulator.graph.work import Operator, Parameter, Value, Work
from simulator.specs.architecture import LayerSpec, LinearAttention


def state_elements(layer: LayerSpec, share: Share) -> int:
    """Numbers that one rank keeps of each sequence, whatever its length: the state of the delta rule and
    the last inputs of the convolution before it."""
    linear = layer.attention
    if not isinstance(linear, LinearAttention):
        return 0
    channels = (2 * linear.key_width + linear.value_width) // share.degree
    heads = linear.num_value_heads // share.degree
    return channels * (linear.conv_kernel - 1) + heads * linear.key_head_dim * linear.value_head_dim


def linear_attention(
    bench: Bench, layer: int, linear: LinearAttention, source: str, output: Value
) -> tuple[Operator, ...]:
    hidden, prefix, share = bench.model.hidden_size, f"layers.{layer}.attention", bench.share
    keys, values = share.of(linear.num_key_heads), share.of(linear.num_value_heads)
    group = 2 * linear.key_head_dim + 2 * linear.value_width // linear.num_key_heads
    qkvz, ba = keys.times(group), values.times(2)
    parameters = (*bench.columns(f"{prefix}.qkvz_proj", qkvz, hidden, False),
                  *bench.columns(f"{prefix}.ba_proj", ba, hidden, False))  # fmt: skip
    mixed = Value("mixed", Amount.of(tokens=qkvz.count + ba.count))
    return (
        bench.matmul("qkvz_proj", layer, source, PER_TOKEN, parameters, hidden, mixed),
        _delta_rule(bench, layer, linear, mixed, values),
        output_projection(bench, layer, values, linear.value_head_dim, False, output),
    )


def _delta_rule(
    bench: Bench, layer: int, linear: LinearAttention, mixed: Value, heads: Part
) -> Operator:
    """Each token corrects the state by what it holds of its key, then reads it: three products of a vector
    and a matrix a head. The state is read and written once a step."""
    prefix, context = f"layers.{layer}.attention", heads.count * linear.value_head_dim
    keys = bench.share.of(linear.num_key_heads)
    convolved = (
        Parameter.cut(f"{prefix}.{name}_conv.weight", (part.count * width, linear.conv_kernel), 0,
                      part.times(width))
        for name, part, width in (("q", keys, linear.key_head_dim), ("k", keys, linear.key_head_dim),
                                  ("v", heads, linear.value_head_dim))
    )  # fmt: skip
    parameters = (
        *convolved,
        Parameter.cut(f"{prefix}.a_log.weight", (heads.count,), 0, heads),
        Parameter.cut(f"{prefix}.dt_bias.weight", (heads.count,), 0, heads),
        Parameter(f"{prefix}.linear_norm.weight", (linear.value_head_dim,)),
    )
    per_token = 6 * heads.count * linear.key_head_dim * linear.value_head_dim
    state = bench.bytes(Amount.of(one=2 * state_elements(bench.model.layers[layer], bench.share)))
    state_bytes = state.per("one")
    passed = bench.bytes(mixed.elements + Amount.of(tokens=context)).per("tokens")
    as_is = (bench.formats.activations,)
    prefill = Work(
        "attention_prefill", as_is, Amount.of(prefill_tokens=per_token),
        Amount.of(prefill_tokens=passed, sequences=state_bytes, decode_tokens=-state_bytes),
    )  # fmt: skip
    decode = Work("attention_decode", as_is, Amount.of(decode_tokens=per_token),
                  Amount.of(decode_tokens=passed + state_bytes))  # fmt: skip
    return Operator(
        "delta_rule", layer, ("mixed",), (Value("context", Amount.of(tokens=context)),), (prefill, decode),
        Amount.of(tokens=per_token), parameters, uses_kv=True,
    )  # fmt: skip

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
    """A convolution over time, then the rule: each token corrects the state by what it holds of its key and
    reads it, three products of a vector and a matrix a head. States are read and written once a step."""
    convolved = _convolution_parameters(bench, layer, linear)
    small = _small_parameters(layer, linear, heads)
    channels = sum(parameter.shape[0] for parameter in convolved)
    tail = channels * (linear.conv_kernel - 1)
    state = state_elements(bench.model.layers[layer], bench.share) - tail
    convolution = bench.elementwise(
        Amount.of(tokens=2 * channels, sequences=2 * tail), (*convolved, *small)
    )
    context = heads.count * linear.value_head_dim
    passed = bench.bytes(mixed.elements + Amount.of(tokens=context)).per("tokens")
    moved = bench.bytes(Amount.of(sequences=2 * state)).per("sequences")
    per_token, as_is = 6 * heads.count * linear.key_head_dim * linear.value_head_dim, convolution.formats
    prefill = Work(
        "attention_prefill", as_is, Amount.of(prefill_tokens=per_token),
        Amount.of(prefill_tokens=passed, prefill_sequences=moved),
    )  # fmt: skip
    decode = Work("attention_decode", as_is, Amount.of(decode_tokens=per_token),
                  Amount.of(decode_tokens=passed + moved))  # fmt: skip
    return Operator(
        "delta_rule", layer, ("mixed",), (Value("context", Amount.of(tokens=context)),),
        (convolution, prefill, decode), Amount.of(tokens=per_token), (*convolved, *small), uses_kv=True,
    )  # fmt: skip


def _convolution_parameters(bench: Bench, layer: int, linear: LinearAttention) -> tuple[Parameter, ...]:
    """One kernel for each channel of queries, keys and values."""
    keys, values = bench.share.of(linear.num_key_heads), bench.share.of(linear.num_value_heads)
    parts = (("q", keys.times(linear.key_head_dim)), ("k", keys.times(linear.key_head_dim)),
             ("v", values.times(linear.value_head_dim)))  # fmt: skip
    prefix, taps = f"layers.{layer}.attention", linear.conv_kernel
    return tuple(
        Parameter.cut(f"{prefix}.{name}_conv.weight", (part.count, taps), 0, part) for name, part in parts
    )


def _small_parameters(layer: int, linear: LinearAttention, heads: Part) -> tuple[Parameter, ...]:
    """Decays and their offsets, one a head; the norm of what is read, the same for all heads."""
    prefix = f"layers.{layer}.attention"
    return (
        Parameter.cut(f"{prefix}.a_log.weight", (heads.count,), 0, heads),
        Parameter.cut(f"{prefix}.dt_bias.weight", (heads.count,), 0, heads),
        Parameter(f"{prefix}.linear_norm.weight", (linear.value_head_dim,)),
    )

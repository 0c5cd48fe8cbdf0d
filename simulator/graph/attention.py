"""The operators that let tokens see each other, and what they leave behind in memory. Softmax attention is
here; `latent` and `delta` have the other kinds."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.graph.bench import PER_TOKEN, Bench
from simulator.graph.delta import linear_attention
from simulator.graph.latent import latent_attention
from simulator.graph.output import output_projection
from simulator.graph.shape import NOTHING, Amount
from simulator.graph.share import Part, Share
from simulator.graph.work import Operator, Parameter, Value, Work
from simulator.specs.architecture import Attention, LatentAttention, LayerSpec, LinearAttention


@dataclass(frozen=True, slots=True)
class Cached:
    """What one rank keeps of each token in one layer: `planes` (keys and values, or one for both) of
    `heads` of `width` numbers."""

    planes: int
    heads: Part
    width: int

    @property
    def elements(self) -> int:
        return self.planes * self.heads.count * self.width


def cached(layer: LayerSpec, share: Share) -> Cached | None:
    """What a layer caches of each token, or None if nothing. A latent vector is the same for all heads, so
    every rank keeps it whole."""
    attention = layer.attention
    if isinstance(attention, LatentAttention):
        return Cached(1, Part(0, 1, 1), attention.cached_width)
    if isinstance(attention, Attention) and attention.causal:
        return Cached(2, share.of_kv_heads(attention.num_key_value_heads), attention.head_dim)
    return None


def attention_operators(bench: Bench, layer: int, source: str, output: Value) -> tuple[Operator, ...]:
    """The operators of one layer's attention, from the normed input in `source` to `output`, of which each
    rank holds a summand."""
    attention = bench.model.layers[layer].attention
    if isinstance(attention, LatentAttention):
        return latent_attention(bench, layer, attention, source, output)
    if isinstance(attention, LinearAttention):
        return linear_attention(bench, layer, attention, source, output)
    assert attention is not None
    return _softmax(bench, layer, attention, source, output)


def _softmax(
    bench: Bench, layer: int, attention: Attention, source: str, output: Value
) -> tuple[Operator, ...]:
    heads = bench.share.of(attention.num_attention_heads)
    query_count = heads.count * attention.head_dim
    operators = [_qkv_proj(bench, layer, attention, source)]
    if attention.gate:
        gate = Value("gate", Amount.of(tokens=query_count))
        part = heads.times(attention.head_dim)
        parameters = bench.columns(f"layers.{layer}.attention.attn_gate_proj", part, bench.model.hidden_size,
                                   attention.qkv_bias)  # fmt: skip
        operators.append(bench.matmul("attn_gate_proj", layer, source, PER_TOKEN, parameters,
                                      bench.model.hidden_size, gate))  # fmt: skip
    if attention.causal:
        operators.append(_rotary(bench, layer, attention))
    operators.append(_attention(bench, layer, attention))
    if attention.gate:
        context = Value("context", Amount.of(tokens=query_count))
        work = bench.elementwise(context.elements * 3, (), "activation", query_count)
        operators.append(Operator("attn_gate", layer, ("context", "gate"), (context,), (work,)))
    bias = attention.output_bias
    operators.append(output_projection(bench, layer, heads, attention.head_dim, bias, output))
    return tuple(operators)


def _counts(bench: Bench, attention: Attention) -> tuple[int, int]:
    """Channels of the rank's queries, and of its keys."""
    heads = bench.share.of(attention.num_attention_heads).count
    kv_heads = bench.share.of_kv_heads(attention.num_key_value_heads).count
    return heads * attention.head_dim, kv_heads * attention.head_dim


def _qkv_proj(bench: Bench, layer: int, attention: Attention, source: str) -> Operator:
    width, hidden = attention.head_dim, bench.model.hidden_size
    heads = bench.share.of(attention.num_attention_heads)
    kv_heads = bench.share.of_kv_heads(attention.num_key_value_heads)
    parameters: tuple[Parameter, ...] = ()
    for name, part in (("q_proj", heads), ("k_proj", kv_heads), ("v_proj", kv_heads)):
        prefix = f"layers.{layer}.attention.{name}"
        parameters += bench.columns(prefix, part.times(width), hidden, attention.qkv_bias)
    query_count, kv_count = _counts(bench, attention)
    output = Value("qkv", Amount.of(tokens=query_count + 2 * kv_count))
    return bench.matmul("qkv_proj", layer, source, PER_TOKEN, parameters, hidden, output)


def _rotary(bench: Bench, layer: int, attention: Attention) -> Operator:
    """Normalise and rotate queries and keys as the model asks, and write keys and values to the cache."""
    query_count, kv_count = _counts(bench, attention)
    query, kv = Amount.of(tokens=query_count), Amount.of(tokens=2 * kv_count)
    parameters: tuple[Parameter, ...] = ()
    if attention.qk_norm:
        names = ("q_norm", "k_norm")
        width = (attention.head_dim,)
        parameters = tuple(Parameter(f"layers.{layer}.attention.{name}.weight", width) for name in names)
    moved = bench.bytes(query * 2 + kv) + bench.cached_bytes(kv) + bench.weight_bytes(parameters)
    work = Work("rotary", (bench.formats.activations,), Amount(), moved, is_warm=True,
                chain=query_count + kv_count)  # fmt: skip
    output = Value("query", query)
    return Operator("rotary", layer, ("qkv",), (output,), (work,), parameters=parameters, uses_kv=True)


@dataclass(frozen=True, slots=True)
class _Seen:
    """Which queries see which keys, as amounts for each unit of query-key pair, key or new token."""

    pairs: Amount
    square: Amount
    span: Amount
    context: Amount
    """Of what prompts see, what was cached before."""
    decode_span: Amount


FULL = _Seen(Amount.of(prefill_pairs=1), Amount.of(prefill_square=1), Amount.of(prefill_span=1),
             Amount.of(prefill_context=1), Amount.of(decode_span=1))  # fmt: skip
WINDOW = _Seen(Amount.of(window_pairs=1), Amount.of(window_square=1), Amount.of(window_span=1),
               Amount.of(window_context=1), Amount.of(window_decode_span=1))  # fmt: skip
BOTH_WAYS = _Seen(Amount.of(prefill_square=1), Amount.of(prefill_square=1), Amount.of(prefill_span=1),
                  NOTHING, Amount.of(decode_span=1))  # fmt: skip


def _attention(bench: Bench, layer: int, attention: Attention) -> Operator:
    """Keys and values come from the cache; those of an encoder, which keeps none, from its projection."""
    query_count, kv_count = _counts(bench, attention)
    seen = WINDOW if attention.sliding_window else FULL if attention.causal else BOTH_WAYS
    per_pair, as_is = 4 * query_count, bench.attends_in()
    heads = query_count // attention.head_dim
    read = bench.cached_bytes if attention.causal else bench.bytes
    parameters: tuple[Parameter, ...] = ()
    if attention.sinks:
        part = bench.share.of(attention.num_attention_heads)
        parameters = (Parameter.cut(f"layers.{layer}.attention.sinks.weight", (heads,), 0, part),)
    queries = 2 * query_count  # read, and written as context
    once = bench.weight_bytes(parameters).per("one")  # for each chunk
    prefill = Work(
        "attention_prefill", as_is, seen.pairs * per_pair,
        read(seen.span * (2 * kv_count)) + bench.bytes(Amount.of(prefill_tokens=queries))
        + Amount.of(prefill_sequences=once), scores=seen.square * heads, chains=seen.span,
        chain_count=Amount.of(prefill_sequences=1), block_flops=Amount.of(prefill_sequences=per_pair),
        packed=bench.packed_cache(seen.context * (2 * kv_count)),
    )  # fmt: skip
    decode = Work(
        "attention_decode", as_is, seen.decode_span * per_pair,
        read(seen.decode_span * (2 * kv_count)) + bench.bytes(Amount.of(decode_tokens=queries))
        + Amount.of(decode_tokens=once), scores=seen.decode_span * heads,
        block_bytes=read(Amount.of(decode_tokens=2 * kv_count)),
        joint_flops=Amount.of(decode_tokens=per_pair), chains=seen.decode_span,
        chain_count=Amount.of(decode_tokens=1), is_shared=query_count > kv_count,
        regroups=query_count > kv_count > attention.head_dim,
        packed=bench.packed_cache(seen.decode_span * (2 * kv_count)) if attention.causal else NOTHING,
    )  # fmt: skip
    return Operator(
        "attention", layer, ("query",) if attention.causal else ("qkv",),
        (Value("context", Amount.of(tokens=query_count)),), (prefill, decode),
        seen.square * per_pair + seen.decode_span * per_pair, parameters, uses_kv=attention.causal,
    )  # fmt: skip

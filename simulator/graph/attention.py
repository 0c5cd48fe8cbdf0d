"""The operators that let tokens see each other: softmax attention, latent attention, the gated delta rule."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.graph.bench import PER_TOKEN, Bench
from simulator.graph.shape import Amount
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


def state_elements(layer: LayerSpec, share: Share) -> int:
    """Numbers that one rank keeps of each sequence, whatever its length: the state of the delta rule and
    the last inputs of the convolution before it."""
    linear = layer.attention
    if not isinstance(linear, LinearAttention):
        return 0
    channels = (2 * linear.key_width + linear.value_width) // share.degree
    heads = linear.num_value_heads // share.degree
    return channels * (linear.conv_kernel - 1) + heads * linear.key_head_dim * linear.value_head_dim


def attention_operators(bench: Bench, layer: int, source: str, output: Value) -> tuple[Operator, ...]:
    """The operators of one layer's attention, from the normed input in `source` to `output`, of which each
    rank holds a summand."""
    attention = bench.model.layers[layer].attention
    if isinstance(attention, LatentAttention):
        return _latent(bench, layer, attention, source, output)
    if isinstance(attention, LinearAttention):
        return _linear(bench, layer, attention, source, output)
    assert attention is not None
    return _softmax(bench, layer, attention, source, output)


def _output(bench: Bench, layer: int, heads: Part, width: int, bias: bool, output: Value) -> Operator:
    """The projection that closes attention."""
    part = heads.times(width)
    parameters = bench.rows(f"layers.{layer}.attention.o_proj", part, bias)
    return bench.matmul("o_proj", layer, "context", PER_TOKEN, parameters, part.count, output)


# --- softmax attention --------------------------------------------------------------------------------------


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
        work = bench.elementwise(context.elements * 3)
        operators.append(Operator("attn_gate", layer, ("context", "gate"), (context,), (work,)))
    operators.append(_output(bench, layer, heads, attention.head_dim, attention.output_bias, output))
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
    work = Work("elementwise", (bench.formats.activations,), Amount(), moved)
    output = Value("query", query)
    return Operator("rotary", layer, ("qkv",), (output,), (work,), parameters=parameters, uses_kv=True)


@dataclass(frozen=True, slots=True)
class _Seen:
    """Which queries see which keys, as amounts for each unit of query-key pair, key or new token."""

    pairs: Amount
    square: Amount
    span: Amount
    decode_span: Amount


FULL = _Seen(Amount.of(prefill_pairs=1), Amount.of(prefill_square=1), Amount.of(prefill_span=1),
             Amount.of(decode_span=1))  # fmt: skip
WINDOW = _Seen(Amount.of(window_pairs=1), Amount.of(window_square=1), Amount.of(window_span=1),
               Amount.of(window_decode_span=1))  # fmt: skip
BOTH_WAYS = _Seen(Amount.of(prefill_square=1), Amount.of(prefill_square=1), Amount.of(prefill_span=1),
                  Amount.of(decode_span=1))  # fmt: skip


def _attention(bench: Bench, layer: int, attention: Attention) -> Operator:
    """Keys and values come from the cache; those of an encoder, which keeps none, from its projection."""
    query_count, kv_count = _counts(bench, attention)
    seen = WINDOW if attention.sliding_window else FULL if attention.causal else BOTH_WAYS
    per_pair, as_is = 4 * query_count, (bench.formats.activations,)
    read = bench.cached_bytes if attention.causal else bench.bytes
    parameters: tuple[Parameter, ...] = ()
    if attention.sinks:
        heads = bench.share.of(attention.num_attention_heads)
        parameters = (Parameter.cut(f"layers.{layer}.attention.sinks.weight", (heads.count,), 0, heads),)
    queries = 2 * query_count  # read, and written as context
    prefill = Work(
        "attention_prefill", as_is, seen.pairs * per_pair,
        read(seen.span * (2 * kv_count)) + bench.bytes(Amount.of(prefill_tokens=queries)),
    )  # fmt: skip
    decode = Work(
        "attention_decode", as_is, seen.decode_span * per_pair,
        read(seen.decode_span * (2 * kv_count)) + bench.bytes(Amount.of(decode_tokens=queries)),
    )  # fmt: skip
    return Operator(
        "attention", layer, ("query",) if attention.causal else ("qkv",),
        (Value("context", Amount.of(tokens=query_count)),), (prefill, decode),
        seen.square * per_pair + seen.decode_span * per_pair, parameters, uses_kv=attention.causal,
    )  # fmt: skip


# --- latent attention ---------------------------------------------------------------------------------------


def _latent(
    bench: Bench, layer: int, latent: LatentAttention, source: str, output: Value
) -> tuple[Operator, ...]:
    """Queries through their own latent vector if they have one; one vector a token for keys and values."""
    hidden, prefix = bench.model.hidden_size, f"layers.{layer}.attention"
    heads, rank = bench.share.of(latent.num_attention_heads), latent.q_lora_rank
    kv_a = Parameter(f"{prefix}.kv_a_proj.weight", (latent.cached_width, hidden))
    down = (kv_a,) if rank is None else (Parameter(f"{prefix}.q_a_proj.weight", (rank, hidden)), kv_a)
    width = latent.cached_width + (rank or 0)
    latents = Value("latent", Amount.of(tokens=width))
    operators = [bench.matmul("latent_proj", layer, source, PER_TOKEN, down, hidden, latents)]
    name, query_source, inner = ("q_proj", source, hidden) if rank is None else ("q_b_proj", "q_latent", rank)
    if rank is not None:
        operators.append(_q_norm(bench, layer, rank))
    part = heads.times(latent.qk_head_dim)
    raw = Value("raw_query", Amount.of(tokens=part.count))
    parameters = bench.columns(f"{prefix}.{name}", part, inner, bias=False)
    operators += [
        bench.matmul("q_proj", layer, query_source, PER_TOKEN, parameters, inner, raw),
        _latent_rotary(bench, layer, latent, part.count),
        _latent_attention(bench, layer, latent, heads),
        _output(bench, layer, heads, latent.v_head_dim, False, output),
    ]
    return tuple(operators)


def _q_norm(bench: Bench, layer: int, rank: int) -> Operator:
    parameters = (Parameter(f"layers.{layer}.attention.q_a_norm.weight", (rank,)),)
    output = Value("q_latent", Amount.of(tokens=rank))
    work = bench.elementwise(output.elements * 2, parameters)
    return Operator("q_a_norm", layer, ("latent",), (output,), (work,), parameters=parameters)


def _latent_rotary(bench: Bench, layer: int, latent: LatentAttention, query_count: int) -> Operator:
    """Normalise and rotate the shared vector and write it to the cache; rotate the queries."""
    parameters = (Parameter(f"layers.{layer}.attention.kv_a_norm.weight", (latent.kv_lora_rank,)),)
    kept, query = Amount.of(tokens=latent.cached_width), Amount.of(tokens=query_count)
    moved = bench.bytes(query * 2 + kept) + bench.cached_bytes(kept) + bench.weight_bytes(parameters)
    work = Work("elementwise", (bench.formats.activations,), Amount(), moved)
    return Operator("rotary", layer, ("raw_query", "latent"), (Value("query", query),), (work,),
                    parameters=parameters, uses_kv=True)  # fmt: skip


def _latent_attention(bench: Bench, layer: int, latent: LatentAttention, heads: Part) -> Operator:
    """Prefill expands keys and values of all tokens it sees; decode leaves them latent and projects its
    queries and outputs instead, which does less where one query sees many keys."""
    nope, rope, value = latent.qk_nope_head_dim, latent.qk_rope_head_dim, latent.v_head_dim
    rank, expanded = latent.kv_lora_rank, heads.count * (nope + value)
    name = f"layers.{layer}.attention.kv_b_proj.weight"
    kv_b = Parameter.cut(name, (expanded, rank), 0, heads.times(nope + value))
    expand = Amount.of(prefill_span=2 * rank * expanded, decode_tokens=2 * rank * expanded)
    absorbed = heads.count * (nope + rank + rank + value)
    moved = bench.weight_bytes([kv_b]) + bench.cached_bytes(Amount.of(prefill_span=rank))
    moved += bench.bytes(Amount.of(prefill_span=expanded, decode_tokens=absorbed))
    projection = Work("matmul", bench.multiplies_in(kv_b), expand, moved)
    per_pair, as_is = 2 * heads.count * (nope + rope + value), (bench.formats.activations,)
    query_and_context = heads.count * (nope + rope + value)
    prefill = Work(
        "attention_prefill", as_is, Amount.of(prefill_pairs=per_pair),
        bench.cached_bytes(Amount.of(prefill_span=rope))
        + bench.bytes(Amount.of(prefill_span=expanded, prefill_tokens=query_and_context)),
    )  # fmt: skip
    per_key = 2 * heads.count * (2 * rank + rope)
    decode = Work(
        "attention_decode", as_is, Amount.of(decode_span=per_key),
        bench.cached_bytes(Amount.of(decode_span=rank + rope))
        + bench.bytes(Amount.of(decode_tokens=heads.count * (2 * rank + rope))),
    )  # fmt: skip
    dense = expand + Amount.of(prefill_square=per_pair, decode_span=per_key)
    context = Value("context", Amount.of(tokens=heads.count * value))
    return Operator("attention", layer, ("query",), (context,), (projection, prefill, decode), dense,
                    (kv_b,), uses_kv=True)  # fmt: skip


# --- the gated delta rule -----------------------------------------------------------------------------------


def _linear(
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
        _output(bench, layer, values, linear.value_head_dim, False, output),
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
        Amount.of(tokens=per_token), parameters,
    )  # fmt: skip

"""The operators of multi-head latent attention: one cached vector a token stands for all heads."""

from __future__ import annotations

from simulator.graph.bench import PER_TOKEN, Bench
from simulator.graph.output import output_projection
from simulator.graph.shape import Amount
from simulator.graph.share import Part
from simulator.graph.work import Operator, Parameter, Value, Work
from simulator.specs.architecture import LatentAttention


def latent_attention(
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
        output_projection(bench, layer, heads, latent.v_head_dim, False, output),
    ]
    return tuple(operators)


def _q_norm(bench: Bench, layer: int, rank: int) -> Operator:
    parameters = (Parameter(f"layers.{layer}.attention.q_a_norm.weight", (rank,)),)
    output = Value("q_latent", Amount.of(tokens=rank))
    work = bench.elementwise(output.elements * 2, parameters, "norm", rank)
    return Operator("q_a_norm", layer, ("latent",), (output,), (work,), parameters=parameters)


def _latent_rotary(bench: Bench, layer: int, latent: LatentAttention, query_count: int) -> Operator:
    """Normalise and rotate the shared vector and write it to the cache; rotate the queries."""
    parameters = (Parameter(f"layers.{layer}.attention.kv_a_norm.weight", (latent.kv_lora_rank,)),)
    kept, query = Amount.of(tokens=latent.cached_width), Amount.of(tokens=query_count)
    moved = bench.bytes(query * 2 + kept) + bench.cached_bytes(kept) + bench.weight_bytes(parameters)
    work = Work("rotary", (bench.formats.activations,), Amount(), moved, is_warm=True,
                chain=query_count + latent.cached_width)  # fmt: skip
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
    packed = Amount.of(one=bench.packed_weights([kv_b]))
    projection = Work("matmul", bench.multiplies_in(kv_b), expand, moved, packed=packed)
    per_pair, as_is = 2 * heads.count * (nope + rope + value), bench.attends_in()
    query_and_context = heads.count * (nope + rope + value)
    prefill = Work(
        "attention_prefill", as_is, Amount.of(prefill_pairs=per_pair),
        bench.cached_bytes(Amount.of(prefill_span=rope))
        + bench.bytes(Amount.of(prefill_span=expanded, prefill_tokens=query_and_context)),
        chains=Amount.of(prefill_span=1), chain_count=Amount.of(prefill_sequences=1),
        block_flops=Amount.of(prefill_sequences=per_pair),
        scores=Amount.of(prefill_square=heads.count),
        packed=bench.packed_cache(Amount.of(prefill_context=rank + rope)),
    )  # fmt: skip
    per_key = 2 * heads.count * (2 * rank + rope)
    decode = Work(
        "attention_decode", as_is, Amount.of(decode_span=per_key),
        bench.cached_bytes(Amount.of(decode_span=rank + rope))
        + bench.bytes(Amount.of(decode_tokens=heads.count * (2 * rank + rope))),
        block_bytes=bench.cached_bytes(Amount.of(decode_tokens=rank + rope)),
        joint_flops=Amount.of(decode_tokens=per_key), chains=Amount.of(decode_span=1),
        chain_count=Amount.of(decode_tokens=1), is_shared=True,
        packed=bench.packed_cache(Amount.of(decode_span=rank + rope)),
        scores=Amount.of(decode_span=heads.count),
    )  # fmt: skip
    dense = expand + Amount.of(prefill_square=per_pair, decode_span=per_key)
    context = Value("context", Amount.of(tokens=heads.count * value))
    return Operator("attention", layer, ("query",), (context,), (projection, prefill, decode), dense,
                    (kv_b,), uses_kv=True)  # fmt: skip

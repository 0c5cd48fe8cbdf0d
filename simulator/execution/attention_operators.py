"""What the operators of attention do with the tensors of their own memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from simulator.execution import delta, kernels, kv
from simulator.execution.call import Call, Outputs, side_by_side
from simulator.execution.kernels import Rules
from simulator.execution.rotary import rotate
from simulator.graph.shape import Chunk
from simulator.specs.architecture import Attention, LatentAttention, LinearAttention

# --- softmax and latent attention ---------------------------------------------------------------------------


def _qkv_proj(call: Call) -> Outputs:
    return (side_by_side(call, "q_proj", "k_proj", "v_proj"),)


def _heads(call: Call, qkv_tx: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values `[t, heads, d]` of a fused projection."""
    attention = call.softmax
    heads = call.share.of(attention.num_attention_heads).count
    kv_heads = call.share.of_kv_heads(attention.num_key_value_heads).count
    q_thd, k_tgd, v_tgd = qkv_tx.unflatten(1, (-1, attention.head_dim)).split(
        [heads, kv_heads, kv_heads], dim=1
    )
    return q_thd, k_tgd, v_tgd


def _rotary(call: Call) -> Outputs:
    """Normalise and rotate, and write keys and values to the cache."""
    attention, positions_t = call.attention, call.positions()
    if isinstance(attention, LatentAttention):
        return _latent_rotary(call, attention, positions_t)
    q_thd, k_tgd, v_tgd = _heads(call, call.values[0])
    if call.softmax.qk_norm:
        eps, width = call.model.norm_eps, (call.softmax.head_dim,)
        q_thd = functional.rms_norm(q_thd, width, call.weight("q_norm"), eps)
        k_tgd = functional.rms_norm(k_tgd, width, call.weight("k_norm"), eps)
    k_tgd = rotate(k_tgd, positions_t, call.softmax.rope)
    query = rotate(q_thd, positions_t, call.softmax.rope).flatten(1).clone()
    return (query, *_kept(call, k_tgd, v_tgd))


def _kept(call: Call, *planes_tgd: Tensor) -> Outputs:
    """Write what new tokens leave behind to the cache, or put it out where that lies in another memory."""
    new_ptgd = torch.stack(planes_tgd)
    if call.slab is None:
        return (new_ptgd,)
    kv.scatter(call.cache(), call.chunks, new_ptgd)
    return ()


def _seen(call: Call, first_key: Callable[[int], int]) -> Iterator[tuple[Chunk, Tensor]]:
    """What each chunk's queries see `[planes, s, g, d]`, from its first key on."""
    if call.slab is not None:
        for chunk in call.chunks:
            planes = kv.read(call.slab, chunk.blocks, chunk.context + chunk.new, first_key(chunk.context))
            yield chunk, torch.stack(planes)
        return
    cached_ptgd, new_ptgd = call.values[1:]
    contexts = [chunk.context - min(chunk.context, first_key(chunk.context)) for chunk in call.chunks]
    pieces = zip(cached_ptgd.split(contexts, dim=1), new_ptgd.split(call.sizes, dim=1), strict=True)
    for chunk, piece in zip(call.chunks, pieces, strict=True):
        yield chunk, torch.cat(piece, dim=1)


def _attention(call: Call) -> Outputs:
    attention = call.attention
    if isinstance(attention, LatentAttention):
        return _latent_attention(call, attention)
    assert isinstance(attention, Attention)
    rules = Rules.of(attention, call.share.of(attention.num_attention_heads).start)
    if not attention.causal:
        return _attend_both_ways(call, rules)
    q_thd = call.values[0].unflatten(1, (-1, attention.head_dim))
    outputs = [q_thd[:0]]
    for (chunk, kv_psgd), q_nhd in zip(_seen(call, rules.first_key), q_thd.split(call.sizes), strict=True):
        k_sgd, v_sgd = kv_psgd.to(q_nhd.dtype)
        outputs.append(kernels.attend(rules, q_nhd, k_sgd, v_sgd, chunk.context, call.optional("sinks")))
    return (torch.cat(outputs).flatten(1),)


def _attend_both_ways(call: Call, rules: Rules) -> Outputs:
    """An encoder's attention, within each sequence."""
    pieces = (_heads(call, qkv_nx) for qkv_nx in call.values[0].split(call.sizes))
    return (torch.cat([kernels.attend(rules, *piece, context=0) for piece in pieces]).flatten(1),)


def _latent_rotary(call: Call, latent: LatentAttention, positions_t: Tensor) -> Outputs:
    query_tx, latent_tx = call.values
    kv_tc = latent_tx[:, latent.q_lora_rank or 0 :]
    kept_tc = kernels.latent_keys(latent, kv_tc, call.weight("kv_a_norm"), call.model.norm_eps, positions_t)
    query = kernels.latent_queries(latent, query_tx, positions_t).flatten(1)
    return (query, *_kept(call, kept_tc[:, None]))


def _latent_attention(call: Call, latent: LatentAttention) -> Outputs:
    q_thd = call.values[0].unflatten(1, (-1, latent.qk_head_dim))
    outputs = [q_thd.new_empty((0, q_thd.shape[1], latent.v_head_dim))]
    for (chunk, kept_1s1c), q_nhd in zip(_seen(call, lambda _: 0), q_thd.split(call.sizes), strict=True):
        kept_sc = kept_1s1c[0, :, 0].to(q_nhd.dtype)
        outputs.append(kernels.attend_latent(latent, q_nhd, kept_sc, call.weight("kv_b_proj"), chunk.context))
    return (torch.cat(outputs).flatten(1),)


# --- rows of two phases -------------------------------------------------------------------------------------


def _split_rows(call: Call) -> Outputs:
    """Of each value the rows of chunks with one new token, and those of all others."""
    is_decode = _is_decode(call)
    return [rows for value in call.values for rows in (value[is_decode], value[~is_decode])]


def _join_rows(call: Call) -> Outputs:
    decoded, others = call.values
    joined = decoded.new_empty((sum(call.sizes), decoded.shape[1]))
    is_decode = _is_decode(call)
    joined[is_decode], joined[~is_decode] = decoded, others
    return (joined,)


def _is_decode(call: Call) -> Tensor:
    return torch.tensor([chunk.new == 1 for chunk in call.chunks for _ in range(chunk.new)])


def _latent_proj(call: Call) -> Outputs:
    names = [name for name in ("q_a_proj", "kv_a_proj") if f"{name}.weight" in call.weights]
    return (side_by_side(call, *names),)


def _latent_q_norm(call: Call) -> Outputs:
    weight = call.weight("q_a_norm")
    q_tc = call.values[0][:, : len(weight)]
    return (functional.rms_norm(q_tc, weight.shape, weight, call.model.norm_eps),)


def _latent_q_proj(call: Call) -> Outputs:
    (weight,) = call.weights.values()
    return (kernels.linear(call.values[0], weight),)


def _attn_gate(call: Call) -> Outputs:
    context_tx, gate_tx = call.values
    return (context_tx * torch.sigmoid(gate_tx),)


# --- the gated delta rule -----------------------------------------------------------------------------------


def _delta_rule(call: Call) -> Outputs:
    linear, slab, eps = call.attention, call.cache(), call.model.norm_eps
    assert isinstance(linear, LinearAttention)
    names = ("q_conv", "k_conv", "v_conv", "a_log", "dt_bias", "linear_norm")
    weights = delta.Weights(*(call.weight(name) for name in names))
    empty = delta.empty_state(linear, call.values[0], call.share.degree)
    outputs = [call.values[0].new_empty((0, linear.value_width // call.share.degree))]
    sizes, shapes = [part.numel() for part in empty], [part.shape for part in empty]
    for chunk, mixed_nx in zip(call.chunks, call.values[0].split(call.sizes), strict=True):
        row = slab[call.slot_of[chunk.sequence]]
        kept = (part.view(shape) for part, shape in zip(row.clone().split(sizes), shapes, strict=True))
        before = kept if chunk.context else empty
        out_nx, *after = delta.gated_delta_net(linear, mixed_nx, weights, eps, *before)
        row.copy_(torch.cat([part.flatten() for part in after]))
        outputs.append(out_nx)
    return (torch.cat(outputs),)


def _qkvz_proj(call: Call) -> Outputs:
    return (side_by_side(call, "qkvz_proj", "ba_proj"),)


ATTENTION_OPERATORS: Mapping[str, Callable[[Call], Outputs]] = {
    "qkv_proj": _qkv_proj,
    "rotary": _rotary,
    "attention": _attention,
    "split_rows": _split_rows,
    "join_rows": _join_rows,
    "attn_gate": _attn_gate,
    "latent_proj": _latent_proj,
    "q_a_norm": _latent_q_norm,
    "q_proj": _latent_q_proj,
    "qkvz_proj": _qkvz_proj,
    "delta_rule": _delta_rule,
}

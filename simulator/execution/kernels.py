"""The operators of a transformer as functions on tensors.

A batch is ragged: the tokens of all its sequences stand in one flat row, without batch dimension or padding.
A tensor-parallel shard calls the same operators with fewer rows or columns of the weights.

Shapes are written as suffixes:

    t  tokens of the step              e  embedding channels (hidden_size)
    n  new tokens of one sequence      f  feed-forward channels
    s  keys of one sequence            i, o  inputs and outputs of a linear map
    v  rows of the vocabulary          h  query heads
    p  rows of the position table      g  key/value heads, each shared by a group of r query heads
    d  channels of one head            m  queries of one group: r * n
    c  channels of a latent vector
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from simulator.execution.rotary import alibi_bias, rotate
from simulator.specs.architecture import Alibi, Architecture, Attention, LatentAttention, Mlp


def embed(ids_t: Tensor, table_ve: Tensor, first_row: int = 0) -> Tensor:
    """The table's row for each id; zeros for an id that another shard of the vocabulary holds."""
    row_t = ids_t - first_row
    elsewhere_t = (row_t < 0) | (row_t >= table_ve.shape[0])
    x_te = functional.embedding(row_t.masked_fill(elsewhere_t, 0), table_ve)
    return x_te.masked_fill(elsewhere_t[:, None], 0)


def learned_positions(x_te: Tensor, positions_t: Tensor, table_pe: Tensor, offset: int) -> Tensor:
    """Add to each token the row of its position."""
    return x_te + functional.embedding(positions_t + offset, table_pe)


def normalise(arch: Architecture, x_te: Tensor, weight_e: Tensor, bias_e: Tensor | None = None) -> Tensor:
    """Each token scaled to unit root mean square, or to zero mean and unit variance, then by the weight."""
    if arch.norm == "rms":
        return functional.rms_norm(x_te, weight_e.shape, weight_e, arch.norm_eps)
    return functional.layer_norm(x_te, weight_e.shape, weight_e, bias_e, arch.norm_eps)


def linear(x_ti: Tensor, weight_oi: Tensor, bias_o: Tensor | None = None) -> Tensor:
    """One matrix product. Of shards that are summed afterwards only one may add the bias."""
    return functional.linear(x_ti, weight_oi, bias_o)


def activate(mlp: Mlp, expanded_tf: Tensor, limit: float | None = None) -> Tensor:
    """The feed-forward non-linearity; where it is gated, the first half of the channels gates the second."""
    if mlp.activation == "gpt_oss":
        gate_tf, up_tf = expanded_tf.chunk(2, dim=-1)
        gate_tf, up_tf = gate_tf.clamp(max=limit), up_tf.clamp(min=-limit if limit else None, max=limit)
        return (up_tf + 1) * gate_tf * torch.sigmoid(1.702 * gate_tf)
    function = ACTIVATIONS[mlp.activation]
    if not mlp.gated:
        return function(expanded_tf)
    gate_tf, up_tf = expanded_tf.chunk(2, dim=-1)
    return function(gate_tf) * up_tf


def softcap(x: Tensor, cap: float | None) -> Tensor:
    """Squeeze numbers smoothly between -cap and cap."""
    return x if cap is None else cap * torch.tanh(x / cap)


def sample(logits_tv: Tensor) -> Tensor:
    """The likeliest id of each row; the first of equals."""
    return logits_tv.argmax(dim=-1)


def pool(x_te: Tensor, sizes: Sequence[int]) -> Tensor:
    """The mean of each sequence's tokens."""
    return torch.stack([x_ne.mean(dim=0) for x_ne in x_te.split(list(sizes))])


# --- attention ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rules:
    """How scores become weights in one kind of attention, for the heads of one shard."""

    scale: float
    causal: bool = True
    window: int | None = None
    softcap: float | None = None
    alibi: Alibi | None = None
    head_start: int = 0
    all_heads: int = 0

    @classmethod
    def of(cls, attention: Attention, head_start: int = 0) -> Rules:
        return cls(attention.scale, attention.causal, attention.sliding_window, attention.softcap,
                   attention.alibi, head_start, attention.num_attention_heads)  # fmt: skip

    def first_key(self, context: int) -> int:
        """Position of the first key that the query after `context` tokens sees."""
        return max(0, context + 1 - self.window) if self.window else 0


def attend(
    rules: Rules, q_nhd: Tensor, k_sgd: Tensor, v_sgd: Tensor, context: int, sink_h: Tensor | None = None
) -> Tensor:
    """Attention `[n, h, d]` of one sequence whose n new tokens follow `context` older ones. Keys and values
    are those from `rules.first_key(context)` on.

    The rectangle is computed whole and what a query does not see masked, so torch counts 4 * h * d * n * s
    FLOPs everywhere. Scores take h * n * s numbers: meant to verify plans on small networks, not to serve
    long prompts.
    """
    (n, h, _), (s, g, _) = q_nhd.shape, k_sgd.shape
    first = rules.first_key(context)
    assert first + s == context + n, f"{s} keys from {first} for {context} older and {n} new tokens"
    assert rules.alibi is None or sink_h is None, "slopes are told from the first key, which a sink has not"
    r = h // g
    q_gmd = q_nhd.unflatten(1, (g, r)).permute(1, 2, 0, 3).flatten(1, 2)
    scores_hns = (q_gmd @ k_sgd.permute(1, 2, 0) * rules.scale).view(h, n, s)
    scores_hns = softcap(scores_hns, rules.softcap)
    query_n1 = torch.arange(context, context + n, device=q_nhd.device)[:, None]
    key_s = torch.arange(first, first + s, device=q_nhd.device)
    if rules.alibi is not None:
        bias_hs = alibi_bias(rules.alibi, rules.head_start, h, rules.all_heads, key_s)
        scores_hns = scores_hns + bias_hs[:, None].to(scores_hns.dtype)
    if rules.causal:
        unseen_ns = key_s > query_n1
        if rules.window:
            unseen_ns = unseen_ns | (key_s <= query_n1 - rules.window)
        scores_hns = scores_hns.masked_fill(unseen_ns, float("-inf"))
    share_gms = _shares(scores_hns, sink_h).to(v_sgd.dtype).view(g, r * n, s)
    out_gmd = share_gms @ v_sgd.transpose(0, 1)
    out_nhd: Tensor = out_gmd.unflatten(1, (r, n)).permute(2, 0, 1, 3).flatten(1, 2)
    return out_nhd


def _shares(scores_hns: Tensor, sink_h: Tensor | None) -> Tensor:
    """Softmax over keys; a sink takes its share of it and gives nothing."""
    wide = _wide(scores_hns.dtype)
    if sink_h is None:
        return scores_hns.softmax(dim=-1, dtype=wide)
    sink_hn1 = sink_h[:, None, None].expand(-1, scores_hns.shape[1], 1).to(scores_hns.dtype)
    return torch.cat((scores_hns, sink_hn1), dim=-1).softmax(dim=-1, dtype=wide)[..., :-1]


def latent_queries(latent: LatentAttention, q_tx: Tensor, positions_t: Tensor) -> Tensor:
    """Queries `[t, h, d]`: channels that meet the latent vector, and rotated ones."""
    q_thd = q_tx.unflatten(1, (-1, latent.qk_head_dim))
    nope_thd, rope_thd = q_thd.tensor_split([latent.qk_nope_head_dim], dim=-1)
    return torch.cat((nope_thd, rotate(rope_thd, positions_t, latent.rope)), dim=-1)


def latent_keys(
    latent: LatentAttention, kv_tc: Tensor, weight_c: Tensor, eps: float, positions_t: Tensor
) -> Tensor:
    """What is cached of each token: the normalised latent vector, and the rotated key all heads share."""
    latent_tc, rope_td = kv_tc.tensor_split([latent.kv_lora_rank], dim=-1)
    latent_tc = functional.rms_norm(latent_tc, weight_c.shape, weight_c, eps)
    return torch.cat((latent_tc, rotate(rope_td[:, None], positions_t, latent.rope)[:, 0]), dim=-1)


def attend_expanded(
    latent: LatentAttention, q_nhd: Tensor, kept_sc: Tensor, kv_b_oi: Tensor, context: int
) -> Tensor:
    """Latent attention with keys and values of every head made from what is cached: the form for many
    queries."""
    heads, nope = q_nhd.shape[1], latent.qk_nope_head_dim
    latent_sc, rotated_sd = kept_sc.split([latent.kv_lora_rank, latent.qk_rope_head_dim], dim=-1)
    expanded_shd = linear(latent_sc, kv_b_oi).unflatten(1, (heads, -1))
    k_shd, v_shd = expanded_shd.split([nope, latent.v_head_dim], dim=-1)
    shared_shd = rotated_sd[:, None].expand(-1, heads, -1)
    return attend(Rules(latent.scale), q_nhd, torch.cat((k_shd, shared_shd), -1), v_shd, context)


def attend_absorbed(
    latent: LatentAttention, q_nhd: Tensor, kept_sc: Tensor, kv_b_oi: Tensor, context: int
) -> Tensor:
    """The same numbers with queries and outputs projected instead: every head attends to the cached vector
    itself. The form for one query and many keys."""
    heads, nope = q_nhd.shape[1], latent.qk_nope_head_dim
    key_hdc, value_hdc = kv_b_oi.unflatten(0, (heads, -1)).split([nope, latent.v_head_dim], dim=1)
    q_nope_hnd, q_rope_nhd = q_nhd[..., :nope].transpose(0, 1), q_nhd[..., nope:]
    q_nhc = torch.cat(((q_nope_hnd @ key_hdc).transpose(0, 1), q_rope_nhd), dim=-1)
    latent_s1c = kept_sc[:, None, : latent.kv_lora_rank]
    out_nhc = attend(Rules(latent.scale), q_nhc, kept_sc[:, None], latent_s1c, context)
    out_hnd: Tensor = out_nhc.transpose(0, 1) @ value_hdc.transpose(1, 2)
    return out_hnd.transpose(0, 1)


def attend_latent(
    latent: LatentAttention, q_nhd: Tensor, kept_sc: Tensor, kv_b_oi: Tensor, context: int
) -> Tensor:
    """Latent attention in the form that one query, or many, calls for."""
    form = attend_absorbed if q_nhd.shape[0] == 1 else attend_expanded
    return form(latent, q_nhd, kept_sc, kv_b_oi, context)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_new": partial(functional.gelu, approximate="tanh"),
    "relu": functional.relu,
}


def _wide(dtype: torch.dtype) -> torch.dtype:
    """At least float32: exponentials lose too much in half precision."""
    return torch.promote_types(dtype, torch.float32)

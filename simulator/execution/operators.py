"""What each operator of a plan does with the tensors of its own memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from simulator.execution import delta, kernels, kv, mixture
from simulator.execution.kernels import Rules
from simulator.execution.rotary import rotate
from simulator.graph.shape import Chunk
from simulator.graph.share import Share
from simulator.specs.architecture import (
    Architecture,
    Attention,
    Experts,
    LatentAttention,
    LinearAttention,
    Mlp,
)


@dataclass(frozen=True)
class Call:
    """What an operator's implementation sees: values and weights of its own memory only."""

    model: Architecture
    operator: str
    layer: int | None
    share: Share
    chunks: Sequence[Chunk]
    values: Sequence[Tensor]
    weights: Mapping[str, Tensor]
    slab: Tensor | None
    output_count: int
    states: States | None = None

    @cached_property
    def sizes(self) -> list[int]:
        """New tokens of each chunk."""
        return [chunk.new for chunk in self.chunks]

    def positions(self) -> Tensor:
        """Position of each new token of the batch."""
        return torch.cat([torch.arange(c.context, c.context + c.new) for c in self.chunks])

    def weight(self, name: str) -> Tensor:
        return self.weights[f"{name}.weight"]

    def bias(self, name: str) -> Tensor | None:
        return self.weights.get(f"{name}.bias")

    def optional(self, name: str) -> Tensor | None:
        """A weight that some models have."""
        return self.weights.get(f"{name}.weight")

    @property
    def attention(self) -> Attention | LatentAttention | LinearAttention:
        assert self.layer is not None
        attention = self.model.layers[self.layer].attention
        assert attention is not None
        return attention

    @property
    def softmax(self) -> Attention:
        assert isinstance(self.attention, Attention)
        return self.attention

    @property
    def mlp(self) -> Mlp | Experts:
        assert self.layer is not None
        mlp = self.model.layers[self.layer].mlp
        assert mlp is not None
        return mlp

    @property
    def experts(self) -> Experts:
        assert isinstance(self.mlp, Experts)
        return self.mlp

    def cache(self) -> Tensor:
        assert self.slab is not None
        return self.slab


Outputs = Sequence[Tensor]

# --- both ends ----------------------------------------------------------------------------------------------


def _embed(call: Call) -> Outputs:
    model = call.model
    x_te = kernels.embed(call.values[0], call.weight("embed"), call.share.of(model.vocab_size).start)
    if model.embed_scale is not None:
        x_te = x_te * model.embed_scale
    if "token_types.weight" in call.weights:
        x_te = x_te + call.weight("token_types")[0]
    return (_with_positions(call, x_te),)


def _with_positions(call: Call, x_te: Tensor) -> Tensor:
    table = call.model.positions
    if table is None or "positions.weight" not in call.weights:
        return x_te
    return kernels.learned_positions(x_te, call.positions(), call.weight("positions"), table.offset)


def _project_in(call: Call) -> Outputs:
    return (_with_positions(call, kernels.linear(call.values[0], call.weight("project_in"))),)


def _norm(call: Call) -> Outputs:
    """Of the stream, or of its sum with a branch, which is put out as well where it stays the stream."""
    weight, bias = call.weight(call.operator), call.bias(call.operator)
    total = sum(call.values[1:], start=call.values[0])
    normed = kernels.normalise(call.model, total, weight, bias)
    return (total, normed) if call.output_count == 2 else (normed,)


def _final_norm(call: Call) -> Outputs:
    """Of the last row of each chunk only."""
    last_r = torch.tensor(call.sizes).cumsum(0) - 1
    rows_re = sum((value[last_r] for value in call.values[1:]), start=call.values[0][last_r])
    if not call.model.final_norm:
        return (rows_re,)
    return (kernels.normalise(call.model, rows_re, call.weight("final_norm"), call.bias("final_norm")),)


def _lm_head(call: Call) -> Outputs:
    name = "embed" if call.model.tie_word_embeddings else "lm_head"
    logits = kernels.linear(call.values[0], call.weight(name), call.bias("lm_head"))
    return (kernels.softcap(logits, call.model.logit_softcap),)


def _sample(call: Call) -> Outputs:
    return (kernels.sample(call.values[0]),)


def _pool(call: Call) -> Outputs:
    return (kernels.pool(call.values[0], call.sizes),)


# --- attention ----------------------------------------------------------------------------------------------


def _qkv_proj(call: Call) -> Outputs:
    return (_side_by_side(call, "q_proj", "k_proj", "v_proj"),)


def _side_by_side(call: Call, *names: str) -> Tensor:
    """Several projections of one input."""
    x_te = call.values[0]
    return torch.cat([kernels.linear(x_te, call.weight(n), call.bias(n)) for n in names], dim=-1)


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
    pieces = zip(call.chunks, k_tgd.split(call.sizes), v_tgd.split(call.sizes), strict=True)
    for chunk, k_ngd, v_ngd in pieces:
        kv.write(call.cache(), chunk, k_ngd, v_ngd)
    return (rotate(q_thd, positions_t, call.softmax.rope).flatten(1).clone(),)


def _attention(call: Call) -> Outputs:
    attention = call.attention
    if isinstance(attention, LatentAttention):
        return _latent_attention(call, attention)
    assert isinstance(attention, Attention)
    rules = Rules.of(attention, call.share.of(attention.num_attention_heads).start)
    if not attention.causal:
        return _attend_both_ways(call, rules)
    q_thd = call.values[0].unflatten(1, (-1, attention.head_dim))
    outputs = []
    for chunk, q_nhd in zip(call.chunks, q_thd.split(call.sizes), strict=True):
        end, first = chunk.context + chunk.new, rules.first_key(chunk.context)
        k_sgd, v_sgd = (x.to(q_nhd.dtype) for x in kv.read(call.cache(), chunk.blocks, end, first))
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
    for chunk, kept_nc in zip(call.chunks, kept_tc.split(call.sizes), strict=True):
        kv.write(call.cache(), chunk, kept_nc[:, None])
    return (kernels.latent_queries(latent, query_tx, positions_t).flatten(1),)


def _latent_attention(call: Call, latent: LatentAttention) -> Outputs:
    q_thd, outputs = call.values[0].unflatten(1, (-1, latent.qk_head_dim)), []
    for chunk, q_nhd in zip(call.chunks, q_thd.split(call.sizes), strict=True):
        (kept_s1c,) = kv.read(call.cache(), chunk.blocks, chunk.context + chunk.new)
        kept_sc = kept_s1c[:, 0].to(q_nhd.dtype)
        outputs.append(kernels.attend_latent(latent, q_nhd, kept_sc, call.weight("kv_b_proj"), chunk.context))
    return (torch.cat(outputs).flatten(1),)


def _latent_proj(call: Call) -> Outputs:
    names = [name for name in ("q_a_proj", "kv_a_proj") if f"{name}.weight" in call.weights]
    return (_side_by_side(call, *names),)


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


class States:
    """What each sequence's tokens leave behind in one layer of linear attention on one device."""

    def __init__(self) -> None:
        self._of: dict[int, tuple[Tensor, ...]] = {}

    def before(self, chunk: Chunk, empty: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """A sequence's state before a chunk; the empty one if nothing of it was computed."""
        return self._of[chunk.sequence] if chunk.context else empty

    def keep(self, chunk: Chunk, state: tuple[Tensor, ...]) -> None:
        self._of[chunk.sequence] = state


def _delta_rule(call: Call) -> Outputs:
    linear, states = call.attention, call.states
    assert isinstance(linear, LinearAttention)
    assert states is not None
    names = ("q_conv", "k_conv", "v_conv", "a_log", "dt_bias", "linear_norm")
    weights, eps = delta.Weights(*(call.weight(name) for name in names)), call.model.norm_eps
    empty, outputs = delta.empty_state(linear, call.values[0], call.share.degree), []
    for chunk, mixed_nx in zip(call.chunks, call.values[0].split(call.sizes), strict=True):
        out_nx, *state = delta.gated_delta_net(linear, mixed_nx, weights, eps, *states.before(chunk, empty))
        states.keep(chunk, tuple(state))
        outputs.append(out_nx)
    return (torch.cat(outputs),)


def _qkvz_proj(call: Call) -> Outputs:
    return (_side_by_side(call, "qkvz_proj", "ba_proj"),)


# --- feed-forward -------------------------------------------------------------------------------------------


def _project(call: Call) -> Outputs:
    name = call.operator.removeprefix("shared_") if call.operator.endswith("_proj") else call.operator
    return (kernels.linear(call.values[0], call.weight(name), call.bias(name)),)


def _up_proj(call: Call) -> Outputs:
    names = [name for name in ("gate_proj", "up_proj") if f"{name}.weight" in call.weights]
    return (_side_by_side(call, *names),)


def _activation(call: Call) -> Outputs:
    assert isinstance(call.mlp, Mlp)
    return (kernels.activate(call.mlp, call.values[0]),)


def _shared_activation(call: Call) -> Outputs:
    assert call.experts.shared is not None
    return (kernels.activate(call.experts.shared, call.values[0]),)


def _router(call: Call) -> Outputs:
    scores_tx = kernels.linear(call.values[0], call.weight("router"), call.bias("router"))
    return (mixture.route(call.experts, scores_tx, call.optional("correction")),)


def _expert_up_proj(call: Call) -> Outputs:
    x_te, routing_tx = call.values
    names = [name for name in ("gate_proj", "up_proj") if f"{name}.weight" in call.weights]
    chosen = call.experts.num_experts_per_tok
    ups = [mixture.experts_up(x_te, routing_tx, chosen, call.weight(n), call.bias(n)) for n in names]
    return (torch.cat(ups, dim=-1),)


def _expert_activation(call: Call) -> Outputs:
    return (kernels.activate(call.experts.expert, call.values[0], call.experts.swiglu_limit),)


def _expert_down_proj(call: Call) -> Outputs:
    activated_tkf, routing_tx = call.values
    return (
        mixture.experts_down(activated_tkf, routing_tx, call.weight("down_proj"), call.bias("down_proj")),
    )


def _add(call: Call) -> Outputs:
    first, second, *scale = call.values
    return (first + (second * torch.sigmoid(scale[0]) if scale else second),)


OPERATORS: Mapping[str, Callable[[Call], Outputs]] = {
    "embed": _embed,
    "project_in": _project_in,
    "embed_norm": _norm,
    "attn_norm": _norm,
    "qkv_proj": _qkv_proj,
    "rotary": _rotary,
    "attention": _attention,
    "attn_gate_proj": _project,
    "attn_gate": _attn_gate,
    "latent_proj": _latent_proj,
    "q_a_norm": _latent_q_norm,
    "q_proj": _latent_q_proj,
    "qkvz_proj": _qkvz_proj,
    "delta_rule": _delta_rule,
    "o_proj": _project,
    "attn_post_norm": _norm,
    "mlp_norm": _norm,
    "up_proj": _up_proj,
    "activation": _activation,
    "down_proj": _project,
    "router": _router,
    "expert_up_proj": _expert_up_proj,
    "expert_activation": _expert_activation,
    "expert_down_proj": _expert_down_proj,
    "shared_up_proj": _up_proj,
    "shared_activation": _shared_activation,
    "shared_down_proj": _project,
    "shared_gate": _project,
    "expert_add": _add,
    "branch_add": _add,
    "mlp_post_norm": _norm,
    "residual_add": _add,
    "final_norm": _final_norm,
    "project_out": _project,
    "lm_head": _lm_head,
    "sample": _sample,
    "pool": _pool,
}

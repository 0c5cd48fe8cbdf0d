"""The transformer that every plan is checked against: any family, as one module.

One sequence, one device, with or without a cache. What it computes is in `kernels`, `rotary`, `mixture` and
`delta`; here is how the parts are put together. Shapes are named as in `kernels`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from simulator.execution import delta, kernels, mixture
from simulator.execution.kernels import Rules, linear
from simulator.execution.rotary import rotate
from simulator.specs.architecture import (
    Architecture,
    Attention,
    Experts,
    LatentAttention,
    LayerSpec,
    LinearAttention,
    Mlp,
)


class Cache:
    """What a sequence's tokens leave behind in each layer for those that follow."""

    def __init__(self) -> None:
        self.tokens = 0
        self._kept: dict[int, tuple[Tensor, ...]] = {}

    def extend(self, layer: int, *new: Tensor) -> tuple[Tensor, ...]:
        """Keep some rows a token; all rows of the sequence so far."""
        old = self._kept.get(layer)
        kept = new if old is None else tuple(torch.cat(pair) for pair in zip(old, new, strict=True))
        self._kept[layer] = kept
        return kept

    def state(self, layer: int) -> tuple[Tensor, ...] | None:
        """What a layer with a state of fixed size kept last."""
        return self._kept.get(layer)

    def replace(self, layer: int, *state: Tensor) -> None:
        """Keep a new state instead of the old one."""
        self._kept[layer] = state


class Weights(nn.Module):
    """A weight of any shape, and a bias if it has one; neither is a product by itself."""

    def __init__(self, *shape: int, bias: tuple[int, ...] | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape))
        self.bias = None if bias is None else nn.Parameter(torch.zeros(bias))


class Norm(Weights):
    """One normalisation of the residual stream, as the model does it."""

    def __init__(self, arch: Architecture) -> None:
        width = arch.hidden_size
        super().__init__(width, bias=(width,) if arch.norm == "layer" else None)
        self.arch = arch

    def forward(self, x_te: Tensor) -> Tensor:
        return kernels.normalise(self.arch, x_te, self.weight, self.bias)


class RootMeanSquare(Weights):
    """A normalisation inside attention."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__(width)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, self.weight.shape, self.weight, self.eps)


# --- attention ----------------------------------------------------------------------------------------------


class SoftmaxAttention(nn.Module):
    """Queries of a token meet the keys of those before it; in an encoder, of all."""

    def __init__(self, arch: Architecture, spec: Attention, layer: int) -> None:
        super().__init__()
        self.spec, self.layer = spec, layer
        queries, keys = spec.num_attention_heads * spec.head_dim, spec.num_key_value_heads * spec.head_dim
        self.q_proj = nn.Linear(arch.hidden_size, queries, bias=spec.qkv_bias)
        self.k_proj = nn.Linear(arch.hidden_size, keys, bias=spec.qkv_bias)
        self.v_proj = nn.Linear(arch.hidden_size, keys, bias=spec.qkv_bias)
        gate = spec.gate
        self.attn_gate_proj = nn.Linear(arch.hidden_size, queries, bias=spec.qkv_bias) if gate else None
        self.q_norm = RootMeanSquare(spec.head_dim, arch.norm_eps) if spec.qk_norm else None
        self.k_norm = RootMeanSquare(spec.head_dim, arch.norm_eps) if spec.qk_norm else None
        self.sinks = Weights(spec.num_attention_heads) if spec.sinks else None
        self.o_proj = nn.Linear(queries, arch.hidden_size, bias=spec.output_bias)

    def forward(self, x_te: Tensor, positions_t: Tensor, cache: Cache) -> Tensor:
        q_thd, k_tgd, v_tgd = (
            project(x_te).unflatten(1, (-1, self.spec.head_dim))
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.q_norm is not None and self.k_norm is not None:
            q_thd, k_tgd = self.q_norm(q_thd), self.k_norm(k_tgd)
        q_thd, k_tgd = (rotate(each, positions_t, self.spec.rope) for each in (q_thd, k_tgd))
        k_sgd, v_sgd = cache.extend(self.layer, k_tgd, v_tgd)
        rules, context = Rules.of(self.spec), len(k_sgd) - len(x_te)
        first, sinks = rules.first_key(context), None if self.sinks is None else self.sinks.weight
        out_te = kernels.attend(rules, q_thd, k_sgd[first:], v_sgd[first:], context, sinks).flatten(1)
        if self.attn_gate_proj is not None:
            out_te = out_te * torch.sigmoid(self.attn_gate_proj(x_te))
        update_te: Tensor = self.o_proj(out_te)
        return update_te


class MultiHeadLatentAttention(nn.Module):
    """One cached vector a token stands for the keys and values of all heads."""

    def __init__(self, arch: Architecture, spec: LatentAttention, layer: int) -> None:
        super().__init__()
        self.spec, self.layer = spec, layer
        width, heads, rank = arch.hidden_size, spec.num_attention_heads, spec.q_lora_rank
        if rank is None:
            self.q_proj = nn.Linear(width, heads * spec.qk_head_dim, bias=False)
        else:
            self.q_a_proj = nn.Linear(width, rank, bias=False)
            self.q_a_norm = RootMeanSquare(rank, arch.norm_eps)
            self.q_b_proj = nn.Linear(rank, heads * spec.qk_head_dim, bias=False)
        self.kv_a_proj = nn.Linear(width, spec.cached_width, bias=False)
        self.kv_a_norm = RootMeanSquare(spec.kv_lora_rank, arch.norm_eps)
        expanded = heads * (spec.qk_nope_head_dim + spec.v_head_dim)
        self.kv_b_proj = nn.Linear(spec.kv_lora_rank, expanded, bias=False)
        self.o_proj = nn.Linear(heads * spec.v_head_dim, width, bias=False)

    def forward(self, x_te: Tensor, positions_t: Tensor, cache: Cache) -> Tensor:
        spec = self.spec
        has_own = spec.q_lora_rank is not None
        q_tx = self.q_b_proj(self.q_a_norm(self.q_a_proj(x_te))) if has_own else self.q_proj(x_te)
        q_thd = kernels.latent_queries(spec, q_tx, positions_t)
        weight, eps = self.kv_a_norm.weight, self.kv_a_norm.eps
        (kept_sc,) = cache.extend(
            self.layer, kernels.latent_keys(spec, self.kv_a_proj(x_te), weight, eps, positions_t)
        )
        context = len(kept_sc) - len(x_te)
        out_thd = kernels.attend_latent(spec, q_thd, kept_sc, self.kv_b_proj.weight, context)
        update_te: Tensor = self.o_proj(out_thd.flatten(1))
        return update_te


class DeltaNet(nn.Module):
    """Attention whose memory is a matrix a head instead of keys and values."""

    def __init__(self, arch: Architecture, spec: LinearAttention, layer: int) -> None:
        super().__init__()
        self.spec, self.layer, self.eps = spec, layer, arch.norm_eps
        width, taps = arch.hidden_size, spec.conv_kernel
        self.qkvz_proj = nn.Linear(width, 2 * spec.key_width + 2 * spec.value_width, bias=False)
        self.ba_proj = nn.Linear(width, 2 * spec.num_value_heads, bias=False)
        self.q_conv, self.k_conv = Weights(spec.key_width, taps), Weights(spec.key_width, taps)
        self.v_conv = Weights(spec.value_width, taps)
        self.a_log, self.dt_bias = Weights(spec.num_value_heads), Weights(spec.num_value_heads)
        self.linear_norm = Weights(spec.value_head_dim)
        self.o_proj = nn.Linear(spec.value_width, width, bias=False)

    def forward(self, x_te: Tensor, positions_t: Tensor, cache: Cache) -> Tensor:
        mixed_tx = torch.cat((self.qkvz_proj(x_te), self.ba_proj(x_te)), dim=-1)
        weights = delta.Weights(
            self.q_conv.weight, self.k_conv.weight, self.v_conv.weight, self.a_log.weight,
            self.dt_bias.weight, self.linear_norm.weight,
        )  # fmt: skip
        state = cache.state(self.layer) or delta.empty_state(self.spec, x_te)
        out_te, *after = delta.gated_delta_net(self.spec, mixed_tx, weights, self.eps, *state)
        cache.replace(self.layer, *after)
        update_te: Tensor = self.o_proj(out_te)
        return update_te


# --- feed-forward -------------------------------------------------------------------------------------------


class FeedForward(nn.Module):
    """Every token alone through two or three projections."""

    def __init__(self, arch: Architecture, spec: Mlp) -> None:
        super().__init__()
        self.spec = spec
        width, inner = arch.hidden_size, spec.intermediate_size
        self.gate_proj = nn.Linear(width, inner, bias=spec.bias) if spec.gated else None
        self.up_proj = nn.Linear(width, inner, bias=spec.bias)
        self.down_proj = nn.Linear(inner, width, bias=spec.bias)

    def forward(self, x_te: Tensor) -> Tensor:
        expanded_tf = self.up_proj(x_te)
        if self.gate_proj is not None:
            expanded_tf = torch.cat((self.gate_proj(x_te), expanded_tf), dim=-1)
        update_te: Tensor = self.down_proj(kernels.activate(self.spec, expanded_tf))
        return update_te


class ExpertStack(nn.Module):
    """The projections of all experts, one on top of the other."""

    def __init__(self, arch: Architecture, spec: Experts) -> None:
        super().__init__()
        count, width, inner = spec.num_experts, arch.hidden_size, spec.expert.intermediate_size
        inner_bias = (count, inner) if spec.expert.bias else None
        self.gate_proj = Weights(count, inner, width, bias=inner_bias) if spec.expert.gated else None
        self.up_proj = Weights(count, inner, width, bias=inner_bias)
        self.down_proj = Weights(count, width, inner, bias=(count, width) if spec.expert.bias else None)


class Mixture(nn.Module):
    """Every token through the experts it chooses, and through what all tokens share."""

    def __init__(self, arch: Architecture, spec: Experts) -> None:
        super().__init__()
        self.spec = spec
        self.router = nn.Linear(arch.hidden_size, spec.num_experts, bias=spec.router.bias)
        self.correction = Weights(spec.num_experts) if spec.router.correction else None
        self.experts = ExpertStack(arch, spec)
        self.shared = None if spec.shared is None else FeedForward(arch, spec.shared)
        self.shared_gate = nn.Linear(arch.hidden_size, 1, bias=False) if spec.shared_gate else None

    def forward(self, x_te: Tensor) -> Tensor:
        correction = None if self.correction is None else self.correction.weight
        routing_tx = mixture.route(self.spec, self.router(x_te), correction)
        update_te = self.through_experts(x_te, routing_tx)
        if self.shared is None:
            return update_te
        shared_te: Tensor = self.shared(x_te)
        if self.shared_gate is not None:
            shared_te = shared_te * torch.sigmoid(self.shared_gate(x_te))
        return update_te + shared_te

    def through_experts(self, x_te: Tensor, routing_tx: Tensor) -> Tensor:
        """The weighted sum of what each token's experts make of it."""
        chosen, stack = self.spec.num_experts_per_tok, self.experts
        ups = [each for each in (stack.gate_proj, stack.up_proj) if each is not None]
        expanded_tkf = torch.cat(
            [mixture.experts_up(x_te, routing_tx, chosen, up.weight, up.bias) for up in ups], dim=-1
        )
        activated_tkf = kernels.activate(self.spec.expert, expanded_tkf, self.spec.swiglu_limit)
        return mixture.experts_down(activated_tkf, routing_tx, stack.down_proj.weight, stack.down_proj.bias)


# --- layers and network -------------------------------------------------------------------------------------


def _attention(arch: Architecture, layer: int) -> nn.Module | None:
    spec = arch.layers[layer].attention
    if isinstance(spec, Attention):
        return SoftmaxAttention(arch, spec, layer)
    if isinstance(spec, LatentAttention):
        return MultiHeadLatentAttention(arch, spec, layer)
    return None if spec is None else DeltaNet(arch, spec, layer)


def _feed_forward(arch: Architecture, spec: LayerSpec) -> nn.Module | None:
    if spec.mlp is None:
        return None
    return FeedForward(arch, spec.mlp) if isinstance(spec.mlp, Mlp) else Mixture(arch, spec.mlp)


class Layer(nn.Module):
    """Attention and feed-forward, joined to the residual stream as the family does it (`Residual`)."""

    def __init__(self, arch: Architecture, index: int) -> None:
        super().__init__()
        self.residual = arch.residual
        self.attention, self.mlp = _attention(arch, index), _feed_forward(arch, arch.layers[index])
        one_norm, after_too = arch.residual == "parallel", arch.residual == "sandwich"
        self.attn_norm = Norm(arch) if self.attention is not None else None
        self.mlp_norm = Norm(arch) if self.mlp is not None and not one_norm else None
        self.attn_post_norm = Norm(arch) if self.attention is not None and after_too else None
        self.mlp_post_norm = Norm(arch) if self.mlp is not None and after_too else None

    def forward(self, x_te: Tensor, positions_t: Tensor, cache: Cache) -> Tensor:
        if self.residual in ("parallel", "parallel_two_norms"):
            return self.in_parallel(x_te, positions_t, cache)
        if self.attention is not None:
            x_te = self.join(x_te, self.attention, self.attn_norm, self.attn_post_norm, positions_t, cache)
        if self.mlp is not None:
            x_te = self.join(x_te, self.mlp, self.mlp_norm, self.mlp_post_norm)
        return x_te

    def in_parallel(self, x_te: Tensor, positions_t: Tensor, cache: Cache) -> Tensor:
        """Both parts see the same input."""
        assert self.attention is not None
        assert self.mlp is not None
        assert self.attn_norm is not None
        normed_te = self.attn_norm(x_te)
        mlp_te = normed_te if self.mlp_norm is None else self.mlp_norm(x_te)
        update_te: Tensor = self.attention(normed_te, positions_t, cache) + self.mlp(mlp_te)
        return x_te + update_te

    def join(
        self, x_te: Tensor, part: nn.Module, norm: Norm | None, norm_after: Norm | None,
        *others: Tensor | Cache,
    ) -> Tensor:  # fmt: skip
        """One part after the other, its norm before it, after it, or after the sum."""
        assert norm is not None
        if self.residual == "post":
            joined_te: Tensor = norm(x_te + part(x_te, *others))
            return joined_te
        update_te: Tensor = part(norm(x_te), *others)
        return x_te + (update_te if norm_after is None else norm_after(update_te))


class Transformer(nn.Module):
    """The network as one module. Every placed run must agree with it."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.arch = arch
        width, inner = arch.embedding_size or arch.hidden_size, arch.hidden_size
        table = arch.positions
        self.embed = nn.Embedding(arch.vocab_size, width)
        self.positions = None if table is None else nn.Embedding(table.rows, inner)
        self.token_types = nn.Embedding(arch.token_types, width) if arch.token_types else None
        self.embed_norm = Norm(arch) if arch.embed_norm else None
        self.project_in = None if arch.embedding_size is None else nn.Linear(width, inner, bias=False)
        self.layers = nn.ModuleList(Layer(arch, index) for index in range(arch.num_hidden_layers))
        self.final_norm = Norm(arch) if arch.final_norm and not arch.is_encoder else None
        self.project_out = None if arch.embedding_size is None else nn.Linear(inner, width, bias=False)
        has_head = not (arch.tie_word_embeddings or arch.is_encoder)
        self.lm_head = nn.Linear(width, arch.vocab_size, bias=arch.lm_head_bias) if has_head else None
        self.requires_grad_(False)

    def forward(self, ids_t: Tensor, cache: Cache | None = None, logits: int | None = None) -> Tensor:
        """The logits `[t, v]` after each token of one sequence, or after its last `logits` tokens; of an
        encoder, the hidden states `[t, e]`.

        cache: of the tokens before these, none if absent; these are added to it.
        """
        cache = Cache() if cache is None else cache
        positions_t = torch.arange(cache.tokens, cache.tokens + len(ids_t), device=ids_t.device)
        x_te = self.embedded(ids_t, positions_t)
        for layer in self.layers:
            x_te = layer(x_te, positions_t, cache)
        cache.tokens += len(ids_t)
        if self.arch.is_encoder:
            return x_te
        return self.scored(x_te if logits is None else x_te[len(ids_t) - logits :])

    def embedded(self, ids_t: Tensor, positions_t: Tensor) -> Tensor:
        """What enters the first layer."""
        x_te = kernels.embed(ids_t, self.embed.weight)
        if self.arch.embed_scale is not None:
            x_te = x_te * self.arch.embed_scale
        if self.token_types is not None:
            x_te = x_te + self.token_types.weight[0]
        if self.project_in is not None:
            x_te = self.project_in(x_te)
        if self.positions is not None and self.arch.positions is not None:
            offset = self.arch.positions.offset
            x_te = kernels.learned_positions(x_te, positions_t, self.positions.weight, offset)
        return x_te if self.embed_norm is None else self.embed_norm(x_te)

    def scored(self, x_te: Tensor) -> Tensor:
        """Logits of what leaves the last layer."""
        x_te = x_te if self.final_norm is None else self.final_norm(x_te)
        x_te = x_te if self.project_out is None else self.project_out(x_te)
        head = self.embed if self.lm_head is None else self.lm_head
        bias = None if self.lm_head is None else self.lm_head.bias
        return kernels.softcap(linear(x_te, head.weight, bias), self.arch.logit_softcap)

    def generate(self, ids: Sequence[int], count: int) -> tuple[list[int], Tensor]:
        """The `count` likeliest ids to follow, and the logits `[count, v]` each was the largest of.

        Every id recomputes the whole sequence, so no cache can be wrong.
        """
        sequence, rows = list(ids), []
        for _ in range(count):
            rows.append(self(torch.tensor(sequence, device=self.embed.weight.device), logits=1))
            sequence.append(int(kernels.sample(rows[-1])))
        return sequence[len(ids) :], torch.cat(rows)

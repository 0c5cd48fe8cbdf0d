"""The gated delta rule (Yang et al. 2024, arXiv 2412.06464), token by token.

Shapes: n new tokens of one sequence, h value heads, k and v channels of a key and a value, q convolved
channels, w tokens the convolution remembers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from simulator.specs.architecture import LinearAttention


@dataclass(frozen=True)
class Weights:
    """What the operator reads besides its input; of a shard, those of its heads."""

    q_conv_qw: Tensor
    k_conv_qw: Tensor
    v_conv_qw: Tensor
    a_log_h: Tensor
    dt_bias_h: Tensor
    norm_v: Tensor


def empty_state(linear: LinearAttention, like: Tensor, degree: int = 1) -> tuple[Tensor, Tensor]:
    """The convolution's memory and the state of one sequence before its first token, one of `degree`
    shards of them."""
    channels = (2 * linear.key_width + linear.value_width) // degree
    heads = linear.num_value_heads // degree
    tail_wq = like.new_zeros((linear.conv_kernel - 1, channels))
    return tail_wq, like.new_zeros((heads, linear.key_head_dim, linear.value_head_dim))


def gated_delta_net(
    linear: LinearAttention, mixed_nx: Tensor, weights: Weights, eps: float, tail_wq: Tensor,
    state_hkv: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """What the projections of one sequence's new tokens become: output `[n, h * v]`, and the memory and the
    state that its next token needs.

    A projection holds for each key head its query, its key, the values of its value heads and their output
    gates; then for each key head the shares beta and the decays of its value heads.
    """
    group = linear.num_value_heads // linear.num_key_heads
    keys = len(weights.a_log_h) // group
    wide = [linear.key_head_dim] * 2 + [group * linear.value_head_dim] * 2
    qkvz_nx, ba_nx = mixed_nx.split([keys * sum(wide), 2 * keys * group], dim=-1)
    grouped_nkx, pairs_nkx = qkvz_nx.unflatten(1, (keys, -1)), ba_nx.unflatten(1, (keys, -1))
    q_nq, k_nq, v_nq, z_nq = (part.flatten(1) for part in grouped_nkx.split(wide, dim=-1))
    beta_nh, a_nh = (part.flatten(1) for part in pairs_nkx.chunk(2, dim=-1))
    kernel_qw = torch.cat((weights.q_conv_qw, weights.k_conv_qw, weights.v_conv_qw))
    convolved_nq, tail_wq = convolve(torch.cat((q_nq, k_nq, v_nq), dim=-1), tail_wq, kernel_qw)
    sizes = [q_nq.shape[1], k_nq.shape[1], v_nq.shape[1]]
    q_nkx, k_nkx, v_nhv = (part.unflatten(1, (-1, width)) for part, width in zip(
        convolved_nq.split(sizes, dim=-1), (*wide[:2], linear.value_head_dim), strict=True))  # fmt: skip
    q_nhk, k_nhk = (each.repeat_interleave(group, dim=1) for each in (q_nkx, k_nkx))
    decay_nh = -weights.a_log_h.exp() * functional.softplus(a_nh + weights.dt_bias_h)
    read_nhv, state_hkv = delta_rule(q_nhk, k_nhk, v_nhv, decay_nh, beta_nh.sigmoid(), state_hkv)
    normed_nhv = functional.rms_norm(read_nhv, weights.norm_v.shape, weights.norm_v, eps)
    gate_nhv = functional.silu(z_nq.unflatten(1, (-1, linear.value_head_dim)))
    return (normed_nhv * gate_nhv).flatten(1), tail_wq, state_hkv


def convolve(x_nq: Tensor, tail_wq: Tensor, kernel_qw: Tensor) -> tuple[Tensor, Tensor]:
    """A causal convolution of each channel over time, then SiLU; and the inputs that the next token needs.

    Written as a sum of products, so that torch counts no FLOPs: real kernels do this on the way.
    """
    seen = torch.cat((tail_wq, x_nq))
    taps = kernel_qw.shape[1]
    out_nq = sum(seen[tap : tap + len(x_nq)] * kernel_qw[:, tap] for tap in range(taps))
    assert isinstance(out_nq, Tensor)
    return functional.silu(out_nq), seen[len(seen) - (taps - 1) :]


def delta_rule(
    q_nhk: Tensor, k_nhk: Tensor, v_nhv: Tensor, decay_nh: Tensor, beta_nh: Tensor, state_hkv: Tensor
) -> tuple[Tensor, Tensor]:
    """What each token reads `[n, h, v]`, and the state after the last.

    A token lets the state fade by exp(decay), puts right by a share beta what the state holds of its key,
    and reads it with its query. Queries and keys are brought to unit length first.
    """
    q_nhk, k_nhk = _unit(q_nhk) * q_nhk.shape[-1] ** -0.5, _unit(k_nhk)
    outputs = []
    for q_hk, k_hk, v_hv, decay_h, beta_h in zip(q_nhk, k_nhk, v_nhv, decay_nh, beta_nh, strict=True):
        state_hkv = state_hkv * decay_h.exp()[:, None, None]
        known_h1v = k_hk[:, None] @ state_hkv
        missing_h1v = (v_hv[:, None] - known_h1v) * beta_h[:, None, None]
        state_hkv = state_hkv + k_hk[:, :, None] @ missing_h1v
        outputs.append((q_hk[:, None] @ state_hkv)[:, 0])
    return torch.stack(outputs), state_hkv


def _unit(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().sum(dim=-1, keepdim=True) + 1e-6)

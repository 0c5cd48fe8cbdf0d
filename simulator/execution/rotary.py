"""Where a token stands: rotary embeddings of queries and keys, and the slopes of ALiBi.

Shapes: t tokens, h heads, d channels of a head, f channel pairs that turn.
"""

from __future__ import annotations

from math import ceil, floor, log, log2, pi

import torch
from torch import Tensor

from simulator.specs.architecture import Alibi, LinearRope, Llama3Rope, Rope, YarnRope


def rotate(x_thd: Tensor, positions_t: Tensor, rope: Rope | None) -> Tensor:
    """Rotary position embedding of queries or keys; channels beyond `rotary_dim` stay as they are.

    Channel i turns with channel i + rotary_dim / 2, as in most published checkpoints, or 2i with 2i + 1 as
    in the paper (Su et al. 2021, arXiv 2104.09864). A broadcast product, because Hugging Face's matrix
    product would count as FLOPs.
    """
    if rope is None:
        return x_thd
    wide = torch.promote_types(x_thd.dtype, torch.float32)
    angle_tf = positions_t.to(wide)[:, None] * frequencies(rope, wide, x_thd.device)
    factor = rope.scaling.attention_factor if isinstance(rope.scaling, YarnRope) else 1.0
    cos_t1f, sin_t1f = angle_tf.cos()[:, None] * factor, angle_tf.sin()[:, None] * factor
    turning_thd, staying_thd = x_thd.tensor_split([rope.rotary_dim], dim=-1)
    turning_thd = turning_thd.to(wide)
    if rope.interleaved:
        first_thf, second_thf = turning_thd[..., ::2], turning_thd[..., 1::2]
    else:
        first_thf, second_thf = turning_thd.chunk(2, dim=-1)
    turned = (first_thf * cos_t1f - second_thf * sin_t1f, second_thf * cos_t1f + first_thf * sin_t1f)
    turned_thd = torch.stack(turned, -1).flatten(-2) if rope.interleaved else torch.cat(turned, -1)
    return torch.cat((turned_thd.to(x_thd.dtype), staying_thd), dim=-1)


def frequencies(rope: Rope, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Radians per position `[f]` of each channel pair."""
    exponent_f = torch.arange(0, rope.rotary_dim, 2, dtype=dtype, device=device) / rope.rotary_dim
    frequency_f = 1.0 / rope.theta**exponent_f
    if isinstance(rope.scaling, LinearRope):
        return frequency_f / rope.scaling.factor
    if isinstance(rope.scaling, Llama3Rope):
        return _llama3(frequency_f, rope.scaling)
    if isinstance(rope.scaling, YarnRope):
        return _yarn(frequency_f, rope, rope.scaling)
    return frequency_f


def _llama3(frequency_f: Tensor, scaling: Llama3Rope) -> Tensor:
    """Divide by `factor` the rate of pairs that turn fewer than `low_freq_factor` times over the original
    context, leave those that turn more than `high_freq_factor` times, and blend in between."""
    turns_f = scaling.original_max_position_embeddings * frequency_f / (2 * pi)
    band = scaling.high_freq_factor - scaling.low_freq_factor
    kept_f = ((turns_f - scaling.low_freq_factor) / band).clamp(0, 1)
    return kept_f * frequency_f + (1 - kept_f) * frequency_f / scaling.factor


def _yarn(frequency_f: Tensor, rope: Rope, scaling: YarnRope) -> Tensor:
    """Keep pairs up to the one that turns `beta_fast` times over the original context, divide by `factor`
    from the one that turns `beta_slow` times, and go from one to the other linearly by channel."""

    def pair_that_turns(times: float) -> float:
        length = scaling.original_max_position_embeddings / (times * 2 * pi)
        return rope.rotary_dim * log(length) / (2 * log(rope.theta))

    low, high = pair_that_turns(scaling.beta_fast), pair_that_turns(scaling.beta_slow)
    if scaling.truncate:
        low, high = floor(low), ceil(high)
    low, high = max(low, 0), min(high, rope.rotary_dim - 1)
    high += 0.001 if low == high else 0  # as the reference does, so that the slope is finite
    pair_f = torch.arange(len(frequency_f), dtype=frequency_f.dtype, device=frequency_f.device)
    slowed_f = ((pair_f - low) / (high - low)).clamp(0, 1)
    return slowed_f * frequency_f / scaling.factor + (1 - slowed_f) * frequency_f


def alibi_bias(alibi: Alibi, head_start: int, heads: int, all_heads: int, positions_s: Tensor) -> Tensor:
    """What is added to the scores `[heads, s]` of keys at some positions. It rises with a key's position,
    which differs from falling with its distance by the same number for all keys of a query."""
    slopes = torch.tensor(_slopes(all_heads)[head_start : head_start + heads], device=positions_s.device)
    if alibi.in_bfloat16:
        bias_hs = slopes.bfloat16()[:, None] * positions_s.bfloat16()
        return bias_hs.double() * alibi.scale
    return slopes.double()[:, None] * positions_s * alibi.scale


def _slopes(heads: int) -> list[float]:
    """2^(-8i/n) for the largest power of two n up to the number of heads; the odd powers in between for the
    heads beyond."""
    power = 2 ** floor(log2(heads))
    slopes = [2 ** (-8 * i / power) for i in range(1, power + 1)]
    return slopes + [2 ** (-4 * i / power) for i in range(1, 2 * (heads - power) + 1, 2)]

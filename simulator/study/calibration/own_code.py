"""What our network's own code takes on top of kernels: the difference between what layers of made-up models
take and what their kernels do, for a plain layer and for each thing that models may ask of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from simulator.specs.architecture import (
    Alibi,
    Architecture,
    Attention,
    Experts,
    LatentAttention,
    LayerSpec,
    LinearAttention,
    Mlp,
    Rope,
    Router,
)
from simulator.study.calibration.measured_profile import OwnCodeFigures
from simulator.study.calibration.one_step import OneSequence

CONTEXT = 16
"""Tokens cached before the one that is timed."""
ROPE = Rope(10_000.0, 16)
ATTENTION = Attention(num_attention_heads=6, num_key_value_heads=6, head_dim=16, scale=0.25)
MLP = Mlp(192, "gelu", gated=False)
PLAIN = Architecture(
    name="plain", family="gpt2", hidden_size=96, vocab_size=256, max_position_embeddings=512,
    layers=(LayerSpec(ATTENTION, MLP),), norm="layer", norm_eps=1e-5,
)  # fmt: skip
"""Layer norms, no positions, no gate, as many keys as queries; small, so that little but calls takes time."""
NORMS = ("embed_norm", "attn_norm", "mlp_norm", "attn_post_norm", "mlp_post_norm", "final_norm")
NORMS_A_LAYER = 2
FEW_EXPERTS, MANY_EXPERTS = 4, 16


def _with_attention(**changes: Any) -> Architecture:
    return replace(PLAIN, layers=(LayerSpec(replace(ATTENTION, **changes), MLP),))


def _with_experts(count: int) -> Architecture:
    return replace(PLAIN, layers=(LayerSpec(ATTENTION, Experts(count, 2, MLP, Router("softmax"))),))


LATENT = LatentAttention(6, None, 32, 16, 16, 16, 0.25, ROPE)
LINEAR = LinearAttention(num_key_heads=3, num_value_heads=6, key_head_dim=16, value_head_dim=16, conv_kernel=4)

PROBES: Mapping[str, Architecture] = {
    "plain": PLAIN,
    "rms": replace(PLAIN, norm="rms"),
    "rotary.rope": _with_attention(rope=ROPE),
    "rotary.qk_norm": _with_attention(qk_norm=True),
    "attention.window": _with_attention(sliding_window=8),
    "attention.softcap": _with_attention(softcap=30.0),
    "attention.alibi": _with_attention(alibi=Alibi()),
    "attention.sinks": _with_attention(sinks=True),
    "up_proj.gated": replace(PLAIN, layers=(LayerSpec(ATTENTION, replace(MLP, gated=True)),)),
    "rotary.latent": replace(PLAIN, layers=(LayerSpec(LATENT, MLP),)),
    "delta_rule": replace(PLAIN, layers=(LayerSpec(LINEAR, MLP),)),
    "few experts": _with_experts(FEW_EXPERTS),
    "many experts": _with_experts(MANY_EXPERTS),
}
"""By what they tell; each but the last two differs from the plain one in a single thing."""


@dataclass(frozen=True)
class LayerTimes:
    """What was measured of our network's own code, in seconds."""

    layers: Mapping[str, float]
    """A decode step through a layer of each of `PROBES`."""
    step_s: float
    """A whole decode step of the plain model."""
    tokenize_s: float
    detokenize_s: float


def own_code(times: LayerTimes, simulate: Callable[[Architecture, OwnCodeFigures], OneSequence]) -> OwnCodeFigures:
    """What is left of measured times when kernels, as `simulate` prices them with no own code, are taken off.

    What is left of the plain layer is the calls between its operators, and shared out evenly among them.
    """
    code = OwnCodeFigures(tokenize_s=times.tokenize_s, detokenize_s=times.detokenize_s)
    bare = simulate(PLAIN, code)
    left_s = max(0.0, times.layers["plain"] - bare.layer_s(1, CONTEXT))
    code = replace(code, operator_s=left_s / bare.operators_a_layer)

    def left(probe: str) -> float:
        """Of a probe's layer beyond what the code so far accounts for."""
        more_s = times.layers[probe] - times.layers["plain"]
        priced_s = simulate(PROBES[probe], code).layer_s(1, CONTEXT) - simulate(PLAIN, code).layer_s(1, CONTEXT)
        return max(0.0, more_s - priced_s)

    extras = dict.fromkeys((f"{norm}.rms" for norm in NORMS), left("rms") / NORMS_A_LAYER)
    extras |= {probe: left(probe) for probe in PROBES if "." in probe and probe != "rotary.latent"}
    extras["delta_rule"] = left("delta_rule")
    code = replace(code, operators=extras)
    extras["rotary.latent"] = left("rotary.latent")
    few_s, many_s = left("few experts"), left("many experts")
    each_s = max(0.0, many_s - few_s) / (MANY_EXPERTS - FEW_EXPERTS)
    extras |= {
        "expert_up_proj.experts": each_s,
        "expert_up_proj": max(0.0, few_s - FEW_EXPERTS * each_s),
    }
    code = replace(code, operators={key: value for key, value in extras.items() if value > 0})
    return replace(code, step_s=max(0.0, times.step_s - simulate(PLAIN, code).step_s(1, CONTEXT)))

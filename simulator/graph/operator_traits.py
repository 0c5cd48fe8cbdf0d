"""What a model asks of an operator beyond its plain form, by name: a profile of an engine may say what each
takes."""

from __future__ import annotations

from collections.abc import Mapping

from simulator.specs.architecture import (
    Architecture,
    Attention,
    Experts,
    LatentAttention,
    LayerSpec,
    Mlp,
)

NORMS = ("embed_norm", "attn_norm", "mlp_norm", "attn_post_norm", "mlp_post_norm", "final_norm")

TRAITS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(NORMS, ("rms",)),
    "rotary": ("rope", "qk_norm", "latent"),
    "attention": ("window", "softcap", "alibi", "sinks"),
    "up_proj": ("gated",),
    "expert_up_proj": ("experts",),
}
"""The plain form is without any of them: layer norms, no rotation, no gate."""


def operator_traits(model: Architecture, layer: int | None, operator: str) -> dict[str, int]:
    """Those of `TRAITS` that an operator of a layer has, how many times over: of experts, their number."""
    if operator in NORMS:
        return {"rms": 1} if model.norm == "rms" else {}
    if layer is None:
        return {}
    spec = model.layers[layer]
    found = {"rotary": _rotary, "attention": _attention, "up_proj": _up_proj, "expert_up_proj": _experts}
    counts = found[operator](spec) if operator in found else {}
    return {trait: count for trait, count in counts.items() if count}


def _rotary(spec: LayerSpec) -> dict[str, int]:
    if isinstance(spec.attention, LatentAttention):
        return {"rope": 1, "latent": 1}
    assert isinstance(spec.attention, Attention)
    return {"rope": int(spec.attention.rope is not None), "qk_norm": int(spec.attention.qk_norm)}


def _attention(spec: LayerSpec) -> dict[str, int]:
    attention = spec.attention
    if not isinstance(attention, Attention):
        return {}
    return {
        "window": int(attention.sliding_window is not None),
        "softcap": int(attention.softcap is not None),
        "alibi": int(attention.alibi is not None),
        "sinks": int(attention.sinks),
    }


def _up_proj(spec: LayerSpec) -> dict[str, int]:
    return {"gated": int(isinstance(spec.mlp, Mlp) and spec.mlp.gated)}


def _experts(spec: LayerSpec) -> dict[str, int]:
    return {"experts": spec.mlp.num_experts if isinstance(spec.mlp, Experts) else 0}

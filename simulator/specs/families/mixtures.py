"""Mixtures of experts on Llama's attention: Mixtral, Qwen2-MoE, Qwen3-MoE and gpt-oss.

Defaults are Hugging Face's.
"""

from collections.abc import Sequence
from dataclasses import replace

from simulator.specs.architecture import (
    Architecture,
    Attention,
    Experts,
    LayerSpec,
    LinearAttention,
    Mlp,
    Router,
)
from simulator.specs.config_fields import ConfigFields
from simulator.specs.families.common import (
    FULL,
    SLIDING,
    gated_mlp,
    layer_count,
    layer_kinds,
    rms_decoder,
    rotary_attention,
    windowed_layers,
    with_biases,
)
from simulator.specs.families.rope import rope_settings

_DISAGREE = "releases of transformers disagree on which layers of this family have a window"


def read_mixtral(fields: ConfigFields, name: str) -> Architecture:
    """Mistral with experts in every layer."""
    attention = rotary_attention(fields, theta=1e6)
    window = fields.size_or_null("sliding_window", default=None)
    router = Router("softmax", normalise=True)
    layer = LayerSpec(
        replace(attention, sliding_window=window),
        experts_of(fields, "num_local_experts", gated_mlp(fields), router),
    )
    architecture = rms_decoder(fields, name, (layer,) * layer_count(fields))
    return replace(architecture, norm_eps=fields.number("rms_norm_eps", default=1e-5))


def read_qwen2_moe(fields: ConfigFields, name: str) -> Architecture:
    """Qwen2 with routed experts and a shared one behind a gate."""
    fields.refuse_unless("use_sliding_window", False, _DISAGREE)
    fields.refuse_unless("layer_types", FULL, _DISAGREE)
    attention = replace(rotary_attention(fields), qkv_bias=fields.flag("qkv_bias", default=True))
    return rms_decoder(
        fields, name, sparse_layers(fields, [attention] * layer_count(fields), shared_experts(fields))
    )


def read_qwen3_moe(fields: ConfigFields, name: str) -> Architecture:
    """Qwen3 with routed experts."""
    fields.refuse_unless("use_sliding_window", False, _DISAGREE)
    fields.size("head_dim")
    attention = with_biases(rotary_attention(fields), fields.flag("attention_bias", default=False))
    attention = replace(attention, qk_norm=True)
    return rms_decoder(
        fields, name, sparse_layers(fields, [attention] * layer_count(fields), qwen_experts(fields))
    )


def read_gpt_oss(fields: ConfigFields, name: str) -> Architecture:
    """Sinks, biases throughout, and a window on every other layer, from the first."""
    fields.refuse_unless("swiglu_alpha", 1.702, "another gain of the clamped SwiGLU is not modelled")
    if not rope_settings(fields).data and fields.is_right("rope_scaling"):
        fields.complain("rope_scaling", "missing; this field is needed")
    fields.size("head_dim")
    attention = with_biases(
        rotary_attention(fields, theta=150_000.0), fields.flag("attention_bias", default=True)
    )
    full = replace(attention, sinks=True)
    sliding = replace(full, sliding_window=fields.size_or_null("sliding_window", default=128))
    kinds = layer_kinds(fields, lambda index: FULL if index % 2 else SLIDING)
    expert = Mlp(fields.size("intermediate_size"), "gpt_oss", gated=True, bias=True)
    router = Router("softmax_of_chosen", bias=True)
    experts = experts_of(fields, "num_local_experts", expert, router)
    experts = replace(experts, swiglu_limit=fields.number("swiglu_limit", default=7.0))
    architecture = rms_decoder(fields, name, windowed_layers(fields, kinds, full, sliding, experts))
    return replace(architecture, norm_eps=fields.number("rms_norm_eps", default=1e-5))


def experts_of(fields: ConfigFields, count_key: str, expert: Mlp, router: Router) -> Experts:
    """A mixture without a shared part; no token can go through more experts than there are."""
    count, chosen = fields.size(count_key), fields.size("num_experts_per_tok")
    if chosen > count and fields.is_right(count_key, "num_experts_per_tok"):
        fields.complain("num_experts_per_tok", f"must be at most {count_key} = {count}")
    return Experts(count, chosen, expert, router)


def qwen_experts(fields: ConfigFields, *, normalise: bool = False) -> Experts:
    """A mixture by the field names of Qwen; `normalise` is the default of `norm_topk_prob`.

    The newest transformers writes `num_local_experts` for Qwen3-MoE.
    """
    count_key = "num_experts" if fields.get("num_local_experts") is None else "num_local_experts"
    expert = gated_mlp(fields, "moe_intermediate_size")
    router = Router("softmax", normalise=fields.flag("norm_topk_prob", default=normalise))
    return experts_of(fields, count_key, expert, router)


def shared_experts(fields: ConfigFields, *, normalise: bool = False) -> Experts:
    """The same with a shared expert behind a gate."""
    shared = gated_mlp(fields, "shared_expert_intermediate_size")
    return replace(qwen_experts(fields, normalise=normalise), shared=shared, shared_gate=True)


def sparse_layers(
    fields: ConfigFields, mixers: Sequence[Attention | LinearAttention], experts: Experts
) -> tuple[LayerSpec, ...]:
    """A layer for each mixer of tokens; dense are `mlp_only_layers`, and all but every so many."""
    only_dense = fields.indices("mlp_only_layers")
    step = fields.size("decoder_sparse_step", default=1)
    is_dense = [index in only_dense or (index + 1) % step > 0 for index in range(len(mixers))]
    dense = gated_mlp(fields) if any(is_dense) else None
    return tuple(
        LayerSpec(mixer, dense if without else experts)
        for mixer, without in zip(mixers, is_dense, strict=True)
    )

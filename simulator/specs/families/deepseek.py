"""DeepSeek-V2, DeepSeek-V3 and Kimi K2: latent attention, and experts chosen within groups.

The layers of V3 that predict further tokens are no part of the model here. Defaults are Hugging Face's.
"""

from dataclasses import replace

from simulator.specs.architecture import Architecture, Experts, LatentAttention, LayerSpec, Router
from simulator.specs.config_fields import ConfigFields
from simulator.specs.families.common import gated_mlp, layer_count, rms_decoder
from simulator.specs.families.mixtures import experts_of
from simulator.specs.families.rope import read_rope, rope_settings, yarn_scale


def read_deepseek_v2(fields: ConfigFields, name: str) -> Architecture:
    """Experts by softmax; in the larger model only those of the groups with the best experts."""
    fields.refuse_unless("scoring_func", "softmax", "only softmax is modelled for this family")
    fields.refuse_unless("norm_topk_prob", False, "transformers does not normalise weights for this family")
    method = fields.word("topk_method", ("greedy", "group_limited_greedy"), default="greedy")
    scale = fields.number("routed_scaling_factor", default=1.0)
    router = Router("softmax", scale=scale)
    if method == "group_limited_greedy":
        router = _grouped(fields, router)
    return _deepseek(fields, name, router, interleaved=True)


def read_deepseek_v3(fields: ConfigFields, name: str) -> Architecture:
    """Experts by sigmoid, with a correction for choosing; a group is judged by its best two experts."""
    fields.refuse_unless("scoring_func", "sigmoid", "only sigmoid is modelled for this family")
    fields.refuse_unless("topk_method", "noaux_tc", "only noaux_tc is modelled for this family")
    router = Router(
        "sigmoid",
        normalise=fields.flag("norm_topk_prob", default=True),
        correction=True,
        group_score="best_two",
        scale=fields.number("routed_scaling_factor"),
    )
    interleaved = fields.flag("rope_interleave", default=True)
    return _deepseek(fields, name, _grouped(fields, router), interleaved=interleaved)


def _deepseek(fields: ConfigFields, name: str, router: Router, *, interleaved: bool) -> Architecture:
    """The first layers have a dense MLP."""
    fields.refuse_unless("attention_bias", False, "biases in latent attention are not modelled")
    fields.refuse_unless("mlp_bias", False, "biases in experts are not modelled")
    fields.refuse_unless("rms_norm_eps", 1e-6, "norms of latent vectors have 1e-6, others are not modelled")
    attention = _latent_attention(fields, interleaved)
    dense, sparse = LayerSpec(attention, gated_mlp(fields)), LayerSpec(attention, _experts(fields, router))
    first = fields.size("first_k_dense_replace", default=0, least=0)
    every = fields.size("moe_layer_freq", default=1)
    layers = tuple(
        sparse if index >= first and index % every == 0 else dense for index in range(layer_count(fields))
    )
    return rms_decoder(fields, name, layers)


def _latent_attention(fields: ConfigFields, interleaved: bool) -> LatentAttention:
    """With the scale that yarn's `mscale_all_dim` sharpens."""
    plain, turning = fields.size("qk_nope_head_dim"), fields.size("qk_rope_head_dim")
    sharpening = _sharpening(rope_settings(fields))
    return LatentAttention(
        num_attention_heads=fields.size("num_attention_heads"),
        q_lora_rank=_query_rank(fields),
        kv_lora_rank=fields.size("kv_lora_rank"),
        qk_nope_head_dim=plain,
        qk_rope_head_dim=turning,
        v_head_dim=fields.size("v_head_dim"),
        scale=(plain + turning) ** -0.5 * sharpening * sharpening,
        rope=read_rope(fields, turning, interleaved=interleaved, width_key="qk_rope_head_dim"),
    )


def _sharpening(settings: ConfigFields) -> float:
    """Once for queries and once for keys; 1 without `mscale_all_dim`."""
    if not settings.get("mscale_all_dim"):
        return 1.0
    return yarn_scale(settings.number("factor"), settings.number("mscale_all_dim"))


def _query_rank(fields: ConfigFields) -> int | None:
    """Null where queries are projected directly; it must be said."""
    if "q_lora_rank" not in fields.data:
        fields.complain("q_lora_rank", "missing; write null where queries have no latent vector")
    return fields.size_or_null("q_lora_rank", default=None)


def _experts(fields: ConfigFields, router: Router) -> Experts:
    """The shared experts are one MLP as wide as all of them."""
    expert = gated_mlp(fields, "moe_intermediate_size")
    experts = experts_of(fields, "n_routed_experts", expert, router)
    shared = fields.size_or_null("n_shared_experts", default=None)
    if shared is None:
        return experts
    return replace(experts, shared=replace(expert, intermediate_size=shared * expert.intermediate_size))


def _grouped(fields: ConfigFields, router: Router) -> Router:
    """Equal groups, of which those kept must hold enough experts."""
    groups, kept = fields.size("n_group"), fields.size("topk_group")
    count, chosen = fields.size("n_routed_experts"), fields.size("num_experts_per_tok")
    fields.must_divide("n_routed_experts", groups, "n_group")
    if not fields.is_right("n_routed_experts", "num_experts_per_tok", "n_group", "topk_group"):
        return router
    size = count // groups
    if kept > groups or kept * size < chosen:
        advice = f"must keep at least {chosen} experts in at most {groups} groups of {size}"
        fields.complain("topk_group", advice)
    if size < 2 and router.group_score == "best_two":
        fields.complain("n_group", "must leave two experts or more to a group")
    return replace(router, groups=groups, kept_groups=kept)

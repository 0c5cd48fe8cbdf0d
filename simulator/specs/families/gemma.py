"""Gemma 1 to 3. Embeddings are scaled by the root of the hidden size; Gemma 2 and 3 normalise what each part
yields before it joins the residual stream, and most of their layers see a window only.

Their norms multiply by 1 + weight; whoever converts published weights adds the 1.
"""

from dataclasses import replace

from simulator.specs.architecture import Activation, Architecture, Attention, LayerSpec, Mlp, Rope
from simulator.specs.config_fields import ConfigFields, Key
from simulator.specs.families.common import (
    FULL,
    SLIDING,
    activation,
    grouped_attention,
    layer_count,
    layer_kinds,
    rms_decoder,
    windowed_layers,
    with_biases,
)
from simulator.specs.families.rope import read_rope, rope_from, rope_theta

_GEMMA3_DEFAULTS: dict[Key, int] = {
    "vocab_size": 262_208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131_072,
}
"""Of Gemma3TextConfig, which the files with a vision part, such as that of gemma-3-4b-it, rely on."""


def read_gemma(fields: ConfigFields, name: str) -> Architecture:
    """The first Gemma: Llama with wide heads, scaled embeddings and GELU."""
    layer = LayerSpec(_rotary(fields), _mlp(fields, _gelu(fields)))
    return _decoder(fields, name, (layer,) * layer_count(fields))


def read_gemma2(fields: ConfigFields, name: str) -> Architecture:
    """Soft caps on scores and logits; every other layer, from the first, has a window."""
    scale = fields.number("query_pre_attn_scalar", default=256) ** -0.5
    cap = fields.number_or_null("attn_logit_softcapping", default=50.0)
    full = replace(_rotary(fields), scale=scale, softcap=cap)
    kinds = layer_kinds(fields, lambda index: FULL if index % 2 else SLIDING)
    sliding = replace(full, sliding_window=fields.size_or_null("sliding_window", default=4096))
    mlp = _mlp(fields, activation(fields, "hidden_activation", "gelu_pytorch_tanh"))
    architecture = _decoder(fields, name, windowed_layers(fields, kinds, full, sliding, mlp))
    logit_cap = fields.number_or_null("final_logit_softcapping", default=30.0)
    return replace(architecture, residual="sandwich", logit_softcap=logit_cap)


def read_gemma3_text(fields: ConfigFields, name: str) -> Architecture:
    """Normalised queries and keys; one layer in six sees everything, with rotary settings of its own."""
    fields.refuse_unless("attn_logit_softcapping", None, "soft caps on scores are not modelled for Gemma 3")
    full_rope, sliding_rope = _ropes(fields)
    scale = fields.number("query_pre_attn_scalar", default=256) ** -0.5
    full = replace(_attention(fields), scale=scale, qk_norm=True, rope=full_rope)
    window = fields.size_or_null("sliding_window", default=4096)
    sliding = replace(full, sliding_window=window, rope=sliding_rope)
    every = fields.size("sliding_window_pattern", default=6)
    kinds = layer_kinds(fields, lambda index: SLIDING if (index + 1) % every else FULL)
    mlp = _mlp(fields, activation(fields, "hidden_activation", "gelu_pytorch_tanh"))
    architecture = _decoder(fields, name, windowed_layers(fields, kinds, full, sliding, mlp))
    logit_cap = fields.number_or_null("final_logit_softcapping", default=None)
    return replace(architecture, residual="sandwich", logit_softcap=logit_cap)


def read_gemma3(fields: ConfigFields, name: str) -> Architecture:
    """The text part of a Gemma 3 that also sees images; the vision part is left out."""
    text = fields.section("text_config")
    if fields.get("text_config") is None:
        fields.complain("text_config", "missing; this field is needed")
    text.data = {**_GEMMA3_DEFAULTS, **text.data}
    architecture = read_gemma3_text(text, name)
    tied = fields.flag("tie_word_embeddings", default=True)
    return replace(architecture, family="gemma3", tie_word_embeddings=tied)


def _attention(fields: ConfigFields) -> Attention:
    """Without positions and without what a generation adds."""
    fields.size("head_dim")
    fields.size("num_key_value_heads")
    fields.refuse_unless("use_bidirectional_attention", False, "attention to later tokens is not modelled")
    return with_biases(grouped_attention(fields), fields.flag("attention_bias", default=False))


def _rotary(fields: ConfigFields) -> Attention:
    """With the one rotary embedding of the first two generations."""
    attention = _attention(fields)
    return replace(attention, rope=read_rope(fields, attention.head_dim))


def _gelu(fields: ConfigFields) -> Activation:
    """The first files say `gelu` where the tanh form is meant; `hidden_activation` says it right."""
    key = "hidden_act" if fields.get("hidden_activation") is None else "hidden_activation"
    named = activation(fields, key, "gelu_pytorch_tanh")
    return "gelu_new" if named == "gelu" else named


def _mlp(fields: ConfigFields, kind: Activation) -> Mlp:
    return Mlp(fields.size("intermediate_size"), kind, gated=True)


def _ropes(fields: ConfigFields) -> tuple[Rope, Rope]:
    """Of layers that see everything, and of those with a window; older files scale only the former."""
    head_dim = fields.size("head_dim")
    if head_dim % 2 and fields.is_right("head_dim"):
        fields.complain("head_dim", "rotary embeddings need an even width")
    newer = fields.section("rope_parameters")
    has_older = bool(fields.get("rope_scaling"))
    full = fields.section("rope_scaling") if has_older else newer.section(FULL)
    theta = rope_theta(fields, default=1e6)
    local_theta = rope_theta(fields, default=1e4, key="rope_local_base_freq")
    return rope_from(full, head_dim, theta=theta), rope_from(
        newer.section(SLIDING), head_dim, theta=local_theta
    )


def _decoder(fields: ConfigFields, name: str, layers: tuple[LayerSpec, ...]) -> Architecture:
    """With scaled embeddings, which are the head too unless a file says otherwise."""
    return replace(
        rms_decoder(fields, name, layers),
        embed_scale=fields.size("hidden_size") ** 0.5,
        tie_word_embeddings=fields.flag("tie_word_embeddings", default=True),
    )

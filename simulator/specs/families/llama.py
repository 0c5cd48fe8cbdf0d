"""Llama and its nearest kin: Aquila, InternLM, Mistral, Qwen2 and Qwen3.

Defaults are Hugging Face's; those of InternLM are of the code beside its published weights.
"""

from dataclasses import replace

from simulator.specs.architecture import Architecture, Attention, LayerSpec
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


def read_llama(fields: ConfigFields, name: str) -> Architecture:
    """Every layer alike; biases in all projections of attention, or of the MLP, or in none."""
    fields.refuse_unless("sliding_window", None, "sliding windows are not modelled for this family")
    fields.refuse_unless("rope_interleaved", False, "interleaved rotary embeddings are not modelled")
    fields.refuse_unless("layer_types", FULL, "only full attention is modelled for this family")
    bias = fields.flag("attention_bias", default=False)
    mlp = gated_mlp(fields, bias=fields.flag("mlp_bias", default=False))
    layer = LayerSpec(with_biases(rotary_attention(fields), bias), mlp)
    return rms_decoder(fields, name, (layer,) * layer_count(fields))


def read_internlm(fields: ConfigFields, name: str) -> Architecture:
    """The first InternLM: `bias` is that of attention's four projections, `rotary` what turns heads."""
    heads = fields.size("num_attention_heads")
    fields.refuse_unless("num_key_value_heads", heads, "heads of this family share no keys")
    rotary = fields.section("rotary")
    rotary.word("type", ("origin", "dynamic"), default="dynamic")  # alike up to max_position_embeddings
    theta = rotary.number("base", default=10_000.0)
    fields.refuse_unless("rope_theta", theta, "this family goes by rotary.base; they must agree")
    attention = with_biases(rotary_attention(fields, theta=theta), fields.flag("bias", default=True))
    layer = LayerSpec(attention, gated_mlp(fields))
    return rms_decoder(fields, name, (layer,) * layer_count(fields))


def read_mistral(fields: ConfigFields, name: str) -> Architecture:
    """Llama without biases; every layer sees `sliding_window` keys, or all where that is null."""
    fields.refuse_unless("layer_types", None, "kinds of layers are not modelled for this family")
    window = fields.size_or_null("sliding_window", default=4096)
    layer = LayerSpec(replace(rotary_attention(fields), sliding_window=window), gated_mlp(fields))
    return rms_decoder(fields, name, (layer,) * layer_count(fields))


def read_qwen2(fields: ConfigFields, name: str) -> Architecture:
    """Biases on queries, keys and values; windows on the layers from `max_window_layers` up, if at all."""
    return _qwen(fields, name, replace(rotary_attention(fields), qkv_bias=True))


def read_qwen3(fields: ConfigFields, name: str) -> Architecture:
    """Queries and keys are normalised; heads have a stated width."""
    fields.size("head_dim")
    attention = with_biases(rotary_attention(fields), fields.flag("attention_bias", default=False))
    return _qwen(fields, name, replace(attention, qk_norm=True))


def _qwen(fields: ConfigFields, name: str, attention: Attention) -> Architecture:
    """A Qwen with one kind of attention, of which `use_sliding_window` gives some layers a window."""
    has_windows = fields.flag("use_sliding_window", default=False)
    window = fields.size_or_null("sliding_window", default=4096) if has_windows else None
    first = fields.size("max_window_layers", default=28, least=0) if window else 0
    kinds = layer_kinds(fields, lambda index: SLIDING if window and index >= first else FULL)
    sliding = replace(attention, sliding_window=window)
    layers = windowed_layers(fields, kinds, attention, sliding, gated_mlp(fields))
    return rms_decoder(fields, name, layers)

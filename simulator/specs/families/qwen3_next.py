"""Qwen3-Next: three layers with a gated delta net to one with gated attention, and many small experts.

Norms multiply by 1 + weight, as Gemma's do. Defaults are Hugging Face's.
"""

from dataclasses import replace

from simulator.specs.architecture import Architecture, Attention, LinearAttention
from simulator.specs.config_fields import ConfigFields
from simulator.specs.families.common import FULL, LINEAR, layer_kinds, rms_decoder, rotary_attention
from simulator.specs.families.mixtures import shared_experts, sparse_layers


def read_qwen3_next(fields: ConfigFields, name: str) -> Architecture:
    """The last of every `full_attention_interval` layers attends; `layer_types` may say otherwise."""
    fields.refuse_unless("attention_bias", False, "biases in gated attention are not modelled")
    fields.refuse_unless("use_sliding_window", False, "sliding windows are not modelled for this family")
    every = fields.size("full_attention_interval", default=4)
    kinds = layer_kinds(fields, lambda index: LINEAR if (index + 1) % every else FULL, (LINEAR, FULL))
    attention, delta_net = _attention(fields), _delta_net(fields)
    mixers = [attention if kind == FULL else delta_net for kind in kinds]
    return rms_decoder(fields, name, sparse_layers(fields, mixers, shared_experts(fields, normalise=True)))


def _attention(fields: ConfigFields) -> Attention:
    """A quarter of each head's channels turn; the output is gated."""
    fields.size("head_dim")
    return replace(rotary_attention(fields, share=0.25), qk_norm=True, gate=True)


def _delta_net(fields: ConfigFields) -> LinearAttention:
    """Several value heads share a key head."""
    fields.refuse_unless("hidden_act", "silu", "only silu is modelled after the convolution")
    key_heads, value_heads = fields.size("linear_num_key_heads"), fields.size("linear_num_value_heads")
    fields.must_divide("linear_num_value_heads", key_heads, "linear_num_key_heads")
    return LinearAttention(
        num_key_heads=key_heads,
        num_value_heads=value_heads,
        key_head_dim=fields.size("linear_key_head_dim"),
        value_head_dim=fields.size("linear_value_head_dim"),
        conv_kernel=fields.size("linear_conv_kernel_dim"),
    )

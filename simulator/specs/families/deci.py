"""Families found by architecture search: layers differ in their heads, widths, or in what they lack."""

from dataclasses import replace

from simulator.specs.architecture import Architecture, Attention, LayerSpec, Mlp
from simulator.specs.config_fields import ConfigFields
from simulator.specs.families.common import (
    activation,
    gated_mlp,
    layer_count,
    rms_decoder,
    rotary_attention,
    with_biases,
)

_WIDTH_STEP = 256
"""Widths of Nemotron's MLPs are rounded up to multiples of this."""
_NOT_MODELLED = {
    "attention": ("num_sink_tokens", "window_length", "sparsify", "replace_with_linear"),
    "ffn": ("sparsify", "replace_with_linear"),
}


def read_deci(fields: ConfigFields, name: str) -> Architecture:
    """DeciLM: Llama with a number of key and value heads for each layer."""
    attention = with_biases(rotary_attention(fields), fields.flag("attention_bias", default=False))
    mlp = gated_mlp(fields, bias=fields.flag("mlp_bias", default=False))
    key, heads = "num_key_value_heads_per_layer", attention.num_attention_heads
    counts = fields.sizes(key, layer_count(fields))
    if any(heads % count for count in counts) and fields.is_right("num_attention_heads"):
        fields.complain(key, f"each must divide num_attention_heads = {heads}")
    layers = {count: LayerSpec(replace(attention, num_key_value_heads=count), mlp) for count in set(counts)}
    return rms_decoder(fields, name, tuple(layers[count] for count in counts))


def read_nemotron_nas(fields: ConfigFields, name: str) -> Architecture:
    """Nemotron: `block_configs` says of each layer how its heads are grouped and how wide its MLP is."""
    attention = with_biases(rotary_attention(fields), fields.flag("attention_bias", default=False))
    mlp = Mlp(1, activation(fields), gated=True, bias=fields.flag("mlp_bias", default=False))
    blocks = fields.sections("block_configs", layer_count(fields))
    hidden = fields.size("hidden_size")
    layers = tuple(
        LayerSpec(
            _nemotron_attention(block.section("attention"), attention),
            _nemotron_mlp(block.section("ffn"), mlp, hidden),
        )
        for block in blocks
    )
    return rms_decoder(fields, name, layers)


def _nemotron_attention(block: ConfigFields, attention: Attention) -> Attention | None:
    _refuse_unmodelled(block, "attention")
    if block.flag("no_op", default=False):
        return None
    heads, group = attention.num_attention_heads, block.size("n_heads_in_group")
    if heads % group and block.is_right("n_heads_in_group"):
        block.complain("n_heads_in_group", f"must divide num_attention_heads = {heads}")
    return replace(attention, num_key_value_heads=max(heads // group, 1))


def _nemotron_mlp(block: ConfigFields, mlp: Mlp, hidden: int) -> Mlp | None:
    """The width is two thirds of `ffn_mult` times the hidden size, rounded up."""
    _refuse_unmodelled(block, "ffn")
    if block.flag("no_op", default=False):
        return None
    width = int(2 * block.number("ffn_mult") * hidden / 3)
    return replace(mlp, intermediate_size=-(-width // _WIDTH_STEP) * _WIDTH_STEP)


def _refuse_unmodelled(block: ConfigFields, part: str) -> None:
    for key in _NOT_MODELLED[part]:
        block.refuse_unless(key, False, f"{key} is not modelled")

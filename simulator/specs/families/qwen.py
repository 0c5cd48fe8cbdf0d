"""The first Qwen, of 2023: Llama with biases on queries, keys and values, under names of its own.

Its code stands beside the published weights (`modeling_qwen.py`); defaults are those of its
`configuration_qwen.py`.
"""

from dataclasses import replace

from simulator.specs.architecture import Architecture, Attention, LayerSpec, Mlp
from simulator.specs.config_fields import ConfigFields
from simulator.specs.families.common import equal_heads, layer_count, rms_decoder
from simulator.specs.families.rope import read_rope, rope_theta


def read_qwen(fields: ConfigFields, name: str) -> Architecture:
    """Contexts end at `seq_length`: `use_logn_attn` and `use_dynamic_ntk` change nothing up to there."""
    _refuse_unmodelled(fields)
    bias = not fields.flag("no_bias", default=True)
    layer = LayerSpec(_attention(fields, bias), _mlp(fields, bias))
    architecture = rms_decoder(fields, name, (layer,) * layer_count(fields))
    return replace(
        architecture,
        max_position_embeddings=min(architecture.max_position_embeddings, fields.size("seq_length")),
        norm_eps=fields.number("layer_norm_epsilon", default=1e-6),
    )


def _attention(fields: ConfigFields, output_bias: bool) -> Attention:
    """Every head has keys of its own; `no_bias` leaves those of queries, keys and values."""
    heads = fields.size("num_attention_heads")
    head_dim = equal_heads(fields, "hidden_size", "num_attention_heads")
    stated = fields.size("kv_channels", default=128)
    if stated != head_dim and fields.is_right("kv_channels", "hidden_size", "num_attention_heads"):
        fields.complain("kv_channels", f"must be hidden_size / num_attention_heads = {head_dim}")
    theta = rope_theta(fields, default=10_000.0, key="rotary_emb_base")
    fields.refuse_unless("rope_theta", theta, "this family goes by rotary_emb_base; they must agree")
    rope = read_rope(fields, head_dim, theta=theta, share=fields.number("rotary_pct", default=1.0))
    return Attention(heads, heads, head_dim, head_dim**-0.5, True, output_bias, rope)


def _mlp(fields: ConfigFields, bias: bool) -> Mlp:
    """`intermediate_size` is that of gate and up projection together."""
    both = fields.size("intermediate_size")
    if both % 2 and fields.is_right("intermediate_size"):
        fields.complain("intermediate_size", "must be even: gate and up projection are half as wide each")
    return Mlp(max(both // 2, 1), "silu", gated=True, bias=bias)


def _refuse_unmodelled(fields: ConfigFields) -> None:
    fields.refuse_unless("visual", None, "the part that sees is not modelled")
    fields.refuse_unless("audio", None, "the part that hears is not modelled")
    fields.refuse_unless("seq_length_expansion", 1, "stretched positions are not modelled")
    fields.refuse_unless("use_cache_quantization", False, "a scenario's precision says how the cache is kept")

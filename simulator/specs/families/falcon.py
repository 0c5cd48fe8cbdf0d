"""Bloom and Falcon, which may tell positions by alibi. Defaults are Hugging Face's."""

from simulator.specs.architecture import Alibi, Architecture, Attention, LayerSpec, Mlp, Residual
from simulator.specs.config_fields import ConfigFields
from simulator.specs.families.common import activation, equal_heads, family_of, layer_count
from simulator.specs.families.rope import read_rope

_POST_NORM_RESIDUAL = "a residual stream taken after the norm is not modelled"


def read_bloom(fields: ConfigFields, name: str) -> Architecture:
    """Alibi, a norm on embeddings, biases everywhere. Files differ in the names of the sizes."""
    fields.refuse_unless("apply_residual_connection_post_layernorm", False, _POST_NORM_RESIDUAL)
    hidden_key = "n_embed" if fields.get("n_embed") is not None else "hidden_size"
    heads_key = "n_head" if fields.get("num_attention_heads") is None else "num_attention_heads"
    layers_key = "n_layer" if fields.get("num_hidden_layers") is None else "num_hidden_layers"
    hidden, heads = fields.size(hidden_key), fields.size(heads_key)
    head_dim = equal_heads(fields, hidden_key, heads_key)
    fields.refuse_unless("n_inner", 4 * hidden, "transformers makes it four times the hidden size")
    attention = Attention(
        heads, heads, head_dim, head_dim**-0.5, qkv_bias=True, output_bias=True, alibi=Alibi()
    )
    layer = LayerSpec(attention, Mlp(4 * hidden, "gelu_new", gated=False, bias=True))
    return Architecture(
        name=name,
        family=family_of(fields),
        hidden_size=hidden,
        vocab_size=fields.size("vocab_size"),
        max_position_embeddings=fields.size("seq_length", default=2048),
        layers=(layer,) * layer_count(fields, layers_key),
        norm="layer",
        norm_eps=fields.number("layer_norm_epsilon", default=1e-5),
        embed_norm=True,
        tie_word_embeddings=fields.flag("tie_word_embeddings", default=True),
    )


def read_falcon(fields: ConfigFields, name: str) -> Architecture:
    """Three generations: -rw in sequence, 7b side by side with one norm, 40b and 180b with two."""
    fields.refuse_unless("apply_residual_connection_post_layernorm", False, _POST_NORM_RESIDUAL)
    hidden, bias = fields.size("hidden_size"), fields.flag("bias", default=False)
    width = fields.size("ffn_hidden_size", default=4 * hidden)
    mlp = Mlp(width, activation(fields, "activation", "gelu"), gated=False, bias=bias)
    return Architecture(
        name=name,
        family=family_of(fields),
        hidden_size=hidden,
        vocab_size=fields.size("vocab_size"),
        max_position_embeddings=fields.size("max_position_embeddings", default=2048),
        layers=(LayerSpec(_falcon_attention(fields, bias), mlp),) * layer_count(fields),
        norm="layer",
        norm_eps=fields.number("layer_norm_epsilon", default=1e-5),
        residual=_falcon_residual(fields),
        tie_word_embeddings=fields.flag("tie_word_embeddings", default=True),
    )


def _falcon_attention(fields: ConfigFields, bias: bool) -> Attention:
    """Rotary unless alibi is asked for, whose terms Falcon rounds, and scales as it does the products."""
    heads = fields.size("num_attention_heads")
    head_dim = equal_heads(fields, "hidden_size", "num_attention_heads")
    has_alibi = fields.flag("alibi", default=False)
    scale = head_dim**-0.5
    return Attention(
        num_attention_heads=heads,
        num_key_value_heads=_key_value_heads(fields, heads),
        head_dim=head_dim,
        scale=scale,
        qkv_bias=bias,
        output_bias=bias,
        rope=None if has_alibi else read_rope(fields, head_dim),
        alibi=Alibi(scale, in_bfloat16=True) if has_alibi else None,
    )


def _key_value_heads(fields: ConfigFields, heads: int) -> int:
    """Groups in the new architecture; before it one for all, or one for each."""
    if fields.flag("new_decoder_architecture", default=False):
        stated = fields.size("num_kv_heads", default=heads)
        fields.must_divide("num_attention_heads", stated, "num_kv_heads")
        return stated
    if fields.flag("multi_query", default=True):
        return 1
    fields.refuse_unless("num_kv_heads", heads, "groups of heads need new_decoder_architecture")
    return heads


def _falcon_residual(fields: ConfigFields) -> Residual:
    """How attention and MLP join; what Hugging Face's code cannot run is refused."""
    parallel = fields.flag("parallel_attn", default=True)
    if fields.flag("new_decoder_architecture", default=False):
        fields.refuse_unless("parallel_attn", True, "the new decoder architecture is always parallel")
        norms = fields.size("num_ln_in_parallel_attn", default=2, most=2)
        return "parallel_two_norms" if norms == 2 else "parallel"
    fields.refuse_unless("num_ln_in_parallel_attn", 1, "two norms need new_decoder_architecture")
    return "parallel" if parallel else "sequential"

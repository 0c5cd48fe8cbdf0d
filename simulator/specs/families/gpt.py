"""GPT-2 and its kind: OPT, GPT-J, GPT-NeoX and Phi. Layer norms, plain MLPs.

Defaults are Hugging Face's.
"""

from simulator.specs.architecture import Architecture, Attention, LayerSpec, LearnedPositions, Mlp, Rope
from simulator.specs.config_fields import ConfigFields
from simulator.specs.families.common import (
    activation,
    equal_heads,
    family_of,
    layer_count,
    rotary_attention,
    with_biases,
)
from simulator.specs.families.rope import read_rope, rope_theta

_TIED = "a head with a bias and tied weights is not modelled"


def read_gpt2(fields: ConfigFields, name: str) -> Architecture:
    """Learned positions; every projection has a bias."""
    fields.refuse_unless("scale_attn_weights", True, "unscaled attention is not modelled")
    fields.refuse_unless("scale_attn_by_inverse_layer_idx", False, "layer-wise scaling is not modelled")
    fields.refuse_unless("add_cross_attention", False, "cross attention is not modelled")
    hidden = fields.size("n_embd")
    attention = _equal_attention(fields, "n_embd", "n_head", qkv_bias=True, output_bias=True)
    rows = fields.size("n_positions")
    return Architecture(
        name=name,
        family=family_of(fields),
        hidden_size=hidden,
        vocab_size=fields.size("vocab_size"),
        max_position_embeddings=rows,
        layers=(LayerSpec(attention, _gpt_mlp(fields)),) * layer_count(fields, "n_layer"),
        norm="layer",
        norm_eps=fields.number("layer_norm_epsilon", default=1e-5),
        positions=LearnedPositions(rows),
        tie_word_embeddings=fields.flag("tie_word_embeddings", default=True),
    )


def read_opt(fields: ConfigFields, name: str) -> Architecture:
    """Positions start in the third row; the smallest models embed narrowly or normalise afterwards."""
    fields.refuse_unless("layer_norm_elementwise_affine", True, "norms without weights are not modelled")
    hidden, longest = fields.size("hidden_size"), fields.size("max_position_embeddings")
    embedding = fields.size("word_embed_proj_dim", default=hidden)
    norm_before = fields.flag("do_layer_norm_before", default=True)
    return Architecture(
        name=name,
        family=family_of(fields),
        hidden_size=hidden,
        vocab_size=fields.size("vocab_size"),
        max_position_embeddings=longest,
        layers=(_opt_layer(fields),) * layer_count(fields),
        norm="layer",
        norm_eps=1e-5,
        residual="sequential" if norm_before else "post",
        positions=LearnedPositions(rows=longest + 2, offset=2),
        embedding_size=None if embedding == hidden else embedding,
        final_norm=norm_before and not fields.flag("_remove_final_layer_norm", default=False),
        tie_word_embeddings=fields.flag("tie_word_embeddings", default=True),
    )


def read_gptj(fields: ConfigFields, name: str) -> Architecture:
    """Interleaved rotary positions on part of each head; biases in MLP and head, not in attention."""
    fields.refuse_unless("tie_word_embeddings", False, _TIED)
    head_dim = equal_heads(fields, "n_embd", "n_head")
    rotary_dim = fields.size("rotary_dim")
    if (rotary_dim % 2 or rotary_dim > head_dim) and fields.is_right("rotary_dim", "n_embd", "n_head"):
        fields.complain("rotary_dim", f"must be even and at most the {head_dim} channels of a head")
    rope = read_rope(fields, rotary_dim, interleaved=True)
    attention = _equal_attention(fields, "n_embd", "n_head", rope=rope)
    return Architecture(
        name=name,
        family=family_of(fields),
        hidden_size=fields.size("n_embd"),
        vocab_size=fields.size("vocab_size"),
        max_position_embeddings=fields.size("n_positions"),
        layers=(LayerSpec(attention, _gpt_mlp(fields)),) * layer_count(fields, "n_layer"),
        norm="layer",
        norm_eps=fields.number("layer_norm_epsilon", default=1e-5),
        residual="parallel",
        lm_head_bias=True,
    )


def read_gpt_neox(fields: ConfigFields, name: str) -> Architecture:
    """Rotary positions on part of each head; attention and MLP side by side, each with its norm."""
    head_dim = equal_heads(fields, "hidden_size", "num_attention_heads")
    theta, share = (
        rope_theta(fields, default=10_000.0, key="rotary_emb_base"),
        fields.number("rotary_pct", default=0.25),
    )
    rope = read_rope(fields, head_dim, theta=theta, share=share)
    bias = fields.flag("attention_bias", default=True)
    attention = _equal_attention(fields, "hidden_size", "num_attention_heads", bias, bias, rope)
    mlp = Mlp(fields.size("intermediate_size"), activation(fields, default="gelu"), gated=False, bias=True)
    return Architecture(
        name=name,
        family=family_of(fields),
        hidden_size=fields.size("hidden_size"),
        vocab_size=fields.size("vocab_size"),
        max_position_embeddings=fields.size("max_position_embeddings"),
        layers=(LayerSpec(attention, mlp),) * layer_count(fields),
        norm="layer",
        norm_eps=fields.number("layer_norm_eps", default=1e-5),
        residual=(
            "parallel_two_norms" if fields.flag("use_parallel_residual", default=True) else "sequential"
        ),
        tie_word_embeddings=fields.flag("tie_word_embeddings", default=False),
    )


def read_phi(fields: ConfigFields, name: str) -> Architecture:
    """Attention and MLP side by side behind one norm; biases in every projection and in the head."""
    fields.refuse_unless("qk_layernorm", False, "norms of queries and keys are not modelled for this family")
    fields.refuse_unless("tie_word_embeddings", False, _TIED)
    attention = with_biases(rotary_attention(fields, share=0.5), True)
    act = activation(fields, default="gelu_new")
    mlp = Mlp(fields.size("intermediate_size"), act, gated=False, bias=True)
    return Architecture(
        name=name,
        family=family_of(fields),
        hidden_size=fields.size("hidden_size"),
        vocab_size=fields.size("vocab_size"),
        max_position_embeddings=fields.size("max_position_embeddings"),
        layers=(LayerSpec(attention, mlp),) * layer_count(fields),
        norm="layer",
        norm_eps=fields.number("layer_norm_eps", default=1e-5),
        residual="parallel",
        lm_head_bias=True,
    )


def _equal_attention(
    fields: ConfigFields,
    hidden_key: str,
    heads_key: str,
    qkv_bias: bool = False,
    output_bias: bool = False,
    rope: Rope | None = None,
) -> Attention:
    """Attention whose heads all have keys of their own and share the hidden size equally."""
    heads, head_dim = fields.size(heads_key), equal_heads(fields, hidden_key, heads_key)
    return Attention(heads, heads, head_dim, head_dim**-0.5, qkv_bias, output_bias, rope)


def _gpt_mlp(fields: ConfigFields) -> Mlp:
    """The MLP of GPT-2 and GPT-J: four times as wide as the hidden size unless stated."""
    width = fields.size("n_inner", default=4 * fields.size("n_embd"))
    return Mlp(width, activation(fields, "activation_function", "gelu_new"), gated=False, bias=True)


def _opt_layer(fields: ConfigFields) -> LayerSpec:
    bias = fields.flag("enable_bias", default=True)
    attention = _equal_attention(fields, "hidden_size", "num_attention_heads", bias, bias)
    mlp = Mlp(
        fields.size("ffn_dim"), activation(fields, "activation_function", "relu"), gated=False, bias=bias
    )
    return LayerSpec(attention, mlp)

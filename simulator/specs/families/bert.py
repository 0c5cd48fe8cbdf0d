"""Encoders of BERT's kind: embedding models that average their last hidden states.

The pooler and the masked-word head of the published weights are left out. Defaults are Hugging Face's.
"""

from simulator.specs.architecture import Architecture, Attention, LayerSpec, LearnedPositions, Mlp
from simulator.specs.config_fields import ConfigFields
from simulator.specs.families.common import activation, equal_heads, family_of, layer_count


def read_bert(fields: ConfigFields, name: str) -> Architecture:
    """Positions count from the first row of their table."""
    return _encoder(fields, name, offset=0)


def read_roberta(fields: ConfigFields, name: str) -> Architecture:
    """RoBERTa and XLM-RoBERTa: the rows up to that of the padding token stand for no position."""
    return _encoder(fields, name, offset=fields.size("pad_token_id", default=1, least=0) + 1)


def _encoder(fields: ConfigFields, name: str, *, offset: int) -> Architecture:
    """Norms after each sum; word, position and segment embeddings are added and normalised."""
    fields.refuse_unless("is_decoder", False, "only encoders are modelled for this family")
    fields.refuse_unless("add_cross_attention", False, "cross attention is not modelled")
    fields.refuse_unless("position_embedding_type", "absolute", "only absolute positions are modelled")
    rows = fields.size("max_position_embeddings")
    if rows <= offset and fields.is_right("max_position_embeddings", "pad_token_id"):
        fields.complain("max_position_embeddings", f"must be more than the {offset} rows of padding")
    return Architecture(
        name=name,
        family=family_of(fields),
        hidden_size=fields.size("hidden_size"),
        vocab_size=fields.size("vocab_size"),
        max_position_embeddings=rows - offset,
        layers=(_layer(fields),) * layer_count(fields),
        norm="layer",
        norm_eps=fields.number("layer_norm_eps", default=1e-12),
        residual="post",
        positions=LearnedPositions(rows, offset),
        token_types=fields.size("type_vocab_size", default=2),
        embed_norm=True,
        final_norm=False,
        tie_word_embeddings=True,
        is_encoder=True,
    )


def _layer(fields: ConfigFields) -> LayerSpec:
    """Attention both ways; biases everywhere."""
    heads = fields.size("num_attention_heads")
    head_dim = equal_heads(fields, "hidden_size", "num_attention_heads")
    attention = Attention(
        heads, heads, head_dim, head_dim**-0.5, qkv_bias=True, output_bias=True, causal=False
    )
    mlp = Mlp(fields.size("intermediate_size"), activation(fields, default="gelu"), gated=False, bias=True)
    return LayerSpec(attention, mlp)

"""What readers of several families share: widths, activations, kinds of layers, Llama's field names.

`simulator.specs.config_fields` says how problems are kept; a field read twice is complained about once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from simulator.specs.architecture import Activation, Architecture, Attention, Experts, LayerSpec, Mlp
from simulator.specs.config_fields import ConfigFields
from simulator.specs.families.rope import read_rope

MOST_LAYERS = 10_000

FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"
"""Words of `layer_types`."""

ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_new",
    "gelu_fast": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
    "relu": "relu",
}
"""Hugging Face's names; the tanh form of GELU has three."""


def activation(fields: ConfigFields, key: str = "hidden_act", default: str = "silu") -> Activation:
    """The activation by its name in Hugging Face's list."""
    return ACTIVATIONS[fields.word(key, ACTIVATIONS, default=default)]


def family_of(fields: ConfigFields) -> str:
    """What the record keeps as `family`."""
    return str(fields.get("model_type"))


def layer_count(fields: ConfigFields, key: str = "num_hidden_layers") -> int:
    """How many layers there are."""
    return fields.size(key, most=MOST_LAYERS)


def equal_heads(fields: ConfigFields, hidden_key: str, heads_key: str) -> int:
    """The width of a head: an equal part of the hidden size."""
    hidden, heads = fields.size(hidden_key), fields.size(heads_key)
    if hidden % heads and fields.is_right(hidden_key, heads_key):
        fields.complain(heads_key, f"must divide the hidden size {hidden}")
    return max(hidden // heads, 1)


def grouped_attention(fields: ConfigFields) -> Attention:
    """Attention by the field names of Llama, without positions or biases; heads may have a stated width."""
    heads = fields.size("num_attention_heads")
    key_value_heads = fields.size("num_key_value_heads", default=heads)
    fields.must_divide("num_attention_heads", key_value_heads, "num_key_value_heads")
    stated = fields.get("head_dim") is not None
    head_dim = (
        fields.size("head_dim") if stated else equal_heads(fields, "hidden_size", "num_attention_heads")
    )
    return Attention(heads, key_value_heads, head_dim, scale=head_dim**-0.5)


def rotary_attention(
    fields: ConfigFields, *, theta: float = 10_000.0, share: float | None = None
) -> Attention:
    """The same with one rotary embedding; `read_rope` says what the family's defaults mean."""
    attention = grouped_attention(fields)
    return replace(attention, rope=read_rope(fields, attention.head_dim, theta=theta, share=share))


def with_biases(attention: Attention, bias: bool) -> Attention:
    """The same with or without a bias in each of its four projections."""
    return replace(attention, qkv_bias=bias, output_bias=bias)


def gated_mlp(fields: ConfigFields, key: str = "intermediate_size", *, bias: bool = False) -> Mlp:
    """A gated feed-forward network by the field names of Llama."""
    return Mlp(fields.size(key), activation(fields), gated=True, bias=bias)


def layer_kinds(
    fields: ConfigFields, usual: Callable[[int], str], known: Sequence[str] = (FULL, SLIDING)
) -> list[str]:
    """What `layer_types` says of each layer, or else what is usual for the layer of an index."""
    count = layer_count(fields)
    if fields.get("layer_types") is None:
        return [usual(index) for index in range(count)]
    return fields.words("layer_types", known, count)


def windowed_layers(
    fields: ConfigFields, kinds: Sequence[str], full: Attention, sliding: Attention, mlp: Mlp | Experts
) -> tuple[LayerSpec, ...]:
    """A layer for each kind; those called sliding need a window."""
    if SLIDING in kinds and sliding.sliding_window is None:
        fields.complain("sliding_window", "needed: some layers are of the kind sliding_attention")
    by_kind = {FULL: LayerSpec(full, mlp), SLIDING: LayerSpec(sliding, mlp)}
    return tuple(by_kind[kind] for kind in kinds)


def rms_decoder(fields: ConfigFields, name: str, layers: tuple[LayerSpec, ...]) -> Architecture:
    """A decoder by the field names of Llama: root-mean-square norms before each part and in the end."""
    return Architecture(
        name=name,
        family=family_of(fields),
        hidden_size=fields.size("hidden_size"),
        vocab_size=fields.size("vocab_size"),
        max_position_embeddings=fields.size("max_position_embeddings"),
        layers=layers,
        norm="rms",
        norm_eps=fields.number("rms_norm_eps", default=1e-6),
        tie_word_embeddings=fields.flag("tie_word_embeddings", default=False),
    )

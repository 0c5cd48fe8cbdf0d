"""Model files: an architecture by the field names of a Hugging Face `config.json`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from simulator.errors import InputError
from simulator.specs.base import LoadContext, Spec, is_path
from simulator.specs.catalogue import Catalogue
from simulator.specs.config_fields import ConfigFields
from simulator.specs.load import validate
from simulator.specs.provenance import Sources
from simulator.specs.yaml_file import Document, Loc, read_document

Activation = Literal["silu", "gelu_new", "gelu", "relu"]

_ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
    "relu": "relu",
}
"""Hugging Face's names; the tanh form of GELU has two."""

_MOST_LAYERS = 10_000


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched for long contexts, as Llama 3 does it."""

    rope_type: Literal["llama3"]
    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True)
class Architecture:
    """A decoder-only transformer; fields are named as in Hugging Face's Llama config."""

    name: str
    family: Literal["llama", "gpt2"]
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    norm: Literal["rms", "layer"]
    norm_eps: float
    activation: Activation
    gated_mlp: bool
    positions: Literal["rope", "learned"]
    rope_theta: float
    rope_scaling: RopeScaling | None
    qkv_bias: bool
    output_bias: bool
    """Of the projection that closes attention."""
    mlp_bias: bool
    tie_word_embeddings: bool


class ModelFile(Spec):
    """One model: a published configuration, verbatim."""

    without_source: ClassVar = frozenset({"name"})

    name: str
    """As its makers call it."""
    config: dict[str, Any]
    """The fields of its Hugging Face `config.json`; fields that change no result may be left out."""
    sources: Sources
    """Where the configuration comes from."""


def load_model(ref: str | Path, catalogue: Catalogue) -> Architecture:
    """The architecture of an id, a model file or a `config.json`; raises InputError with every problem."""
    path = Path(ref) if is_path(str(ref)) else catalogue.path("models", str(ref))
    document = read_document(path)
    if path.suffix == ".json":
        folder = path.resolve().parent.name
        return _architecture(document, (), folder if path.stem == "config" else path.stem)
    file = validate(document, ModelFile, LoadContext()).record
    return _architecture(document, ("config",), file.name)


def from_config(config: Mapping[str, Any], name: str) -> Architecture:
    """The architecture that a Hugging Face configuration describes.

    Raises InputError naming every field that is missing, wrong, or asks for something that is not
    modelled and would change results.
    """
    return _architecture(Document(f"config of {name}", dict(config), {}), (), name)


def _architecture(document: Document, prefix: Loc, name: str) -> Architecture:
    """The architecture in the mapping at `prefix`; problems carry its positions."""
    fields = ConfigFields(document, prefix)
    reader = {"llama": _llama, "gpt2": _gpt2}.get(fields.family(("llama", "gpt2")))
    architecture = reader(fields, name) if reader else None
    if architecture is None or fields.problems:
        raise InputError(fields.problems)
    return architecture


def _llama(fields: ConfigFields, name: str) -> Architecture:
    """Defaults are those of Hugging Face's LlamaConfig."""
    hidden, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    rope = _rope_fields(fields)
    bias = fields.flag("attention_bias", default=False)
    fields.refuse_unless("sliding_window", None, "sliding windows are not modelled")
    fields.refuse_unless("partial_rotary_factor", 1, "partial rotary embeddings are not modelled")
    fields.refuse_unless("rope_interleaved", False, "interleaved rotary embeddings are not modelled")
    fields.refuse_unless("layer_types", "full_attention", "only full attention is modelled")
    architecture = Architecture(
        name=name,
        family="llama",
        hidden_size=hidden,
        num_hidden_layers=fields.size("num_hidden_layers", most=_MOST_LAYERS),
        num_attention_heads=heads,
        num_key_value_heads=fields.size("num_key_value_heads", default=heads),
        head_dim=_head_dim(fields, hidden, heads, "num_attention_heads", "head_dim"),
        intermediate_size=fields.size("intermediate_size"),
        vocab_size=fields.size("vocab_size"),
        max_position_embeddings=fields.size("max_position_embeddings"),
        norm="rms",
        norm_eps=fields.number("rms_norm_eps", default=1e-6),
        activation=_ACTIVATIONS.get(fields.word("hidden_act", _ACTIVATIONS, default="silu"), "silu"),
        gated_mlp=True,
        positions="rope",
        rope_theta=rope.number("rope_theta", default=fields.number("rope_theta", default=10_000.0)),
        rope_scaling=_rope_scaling(rope),
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=fields.flag("mlp_bias", default=False),
        tie_word_embeddings=fields.flag("tie_word_embeddings", default=False),
    )
    _refuse_odd_heads(fields, architecture.head_dim)
    fields.must_divide("num_attention_heads", architecture.num_key_value_heads, "num_key_value_heads")
    return architecture


def _gpt2(fields: ConfigFields, name: str) -> Architecture:
    """Defaults are those of Hugging Face's GPT2Config; every projection has a bias."""
    hidden, heads = fields.size("n_embd"), fields.size("n_head")
    fields.refuse_unless("scale_attn_weights", True, "unscaled attention is not modelled")
    fields.refuse_unless("scale_attn_by_inverse_layer_idx", False, "layer-wise scaling is not modelled")
    fields.refuse_unless("add_cross_attention", False, "cross attention is not modelled")
    return Architecture(
        name=name,
        family="gpt2",
        hidden_size=hidden,
        num_hidden_layers=fields.size("n_layer", most=_MOST_LAYERS),
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=_head_dim(fields, hidden, heads, "n_head", None),
        intermediate_size=fields.size("n_inner", default=4 * hidden),
        vocab_size=fields.size("vocab_size"),
        max_position_embeddings=fields.size("n_positions"),
        norm="layer",
        norm_eps=fields.number("layer_norm_epsilon", default=1e-5),
        activation=_ACTIVATIONS.get(
            fields.word("activation_function", _ACTIVATIONS, default="gelu_new"), "gelu_new"
        ),
        gated_mlp=False,
        positions="learned",
        rope_theta=10_000.0,
        rope_scaling=None,
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        tie_word_embeddings=fields.flag("tie_word_embeddings", default=True),
    )


def _head_dim(fields: ConfigFields, hidden: int, heads: int, heads_key: str, key: str | None) -> int:
    """The stated width of a head, else an equal part of the hidden size."""
    if key and fields.get(key) is not None:
        return fields.size(key)
    if fields.get(heads_key) and hidden % heads and not fields.problems:
        fields.complain(heads_key, f"must divide the hidden size {hidden}")
    return hidden // heads


def _refuse_odd_heads(fields: ConfigFields, head_dim: int) -> None:
    """Rotary embeddings turn pairs of numbers."""
    if head_dim % 2 and not fields.problems:
        key = "num_attention_heads" if fields.get("head_dim") is None else "head_dim"
        fields.complain(key, f"makes heads {head_dim} wide; rotary embeddings need an even width")


def _rope_fields(fields: ConfigFields) -> ConfigFields:
    """Where rotary settings stand: `rope_parameters` in newer files, else `rope_scaling`."""
    key = "rope_parameters" if fields.get("rope_parameters") is not None else "rope_scaling"
    return fields.section(key)


def _rope_scaling(rope: ConfigFields) -> RopeScaling | None:
    """Only what Llama 3 uses is modelled; `default` stretches nothing."""
    key = "type" if rope.get("rope_type") is None and rope.get("type") is not None else "rope_type"
    kind = rope.word(key, ("default", "llama3"), default="default")
    if kind != "llama3":
        return None
    return RopeScaling(
        rope_type="llama3",
        factor=rope.number("factor"),
        low_freq_factor=rope.number("low_freq_factor"),
        high_freq_factor=rope.number("high_freq_factor"),
        original_max_position_embeddings=rope.size("original_max_position_embeddings"),
    )

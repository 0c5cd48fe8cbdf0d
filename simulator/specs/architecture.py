"""What a transformer consists of, layer by layer: the record every layer above reads.

Sizes keep the names that Hugging Face's `config.json` gives them. Families differ in what a layer holds and
in how it is joined to the residual stream; above this package only who renames published weights knows the
name of a family.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

Activation = Literal["silu", "gelu", "gelu_new", "relu", "gpt_oss"]
"""`gelu_new` is the tanh form of GELU. `gpt_oss` is its clamped, shifted SwiGLU."""


@dataclass(frozen=True)
class LinearRope:
    """Every frequency divided by `factor`."""

    factor: float


@dataclass(frozen=True)
class Llama3Rope:
    """Low frequencies divided by `factor`, high ones kept, those between blended (Llama 3.1)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True)
class YarnRope:
    """Frequencies blended by how often they turn over the original context (Peng et al. 2023,
    arXiv 2309.00071)."""

    factor: float
    beta_fast: float
    beta_slow: float
    original_max_position_embeddings: int
    truncate: bool
    """Whether the ends of the blend are rounded to whole channels."""
    attention_factor: float
    """By which the rotated channels are multiplied."""


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding of a head's first `rotary_dim` channels."""

    theta: float
    rotary_dim: int
    interleaved: bool = False
    """Channel 2i turns with 2i + 1, instead of i with i + rotary_dim / 2."""
    scaling: LinearRope | Llama3Rope | YarnRope | None = None


@dataclass(frozen=True)
class Alibi:
    """Scores fall linearly with distance, each head at its own slope (Press et al. 2022,
    arXiv 2108.12409)."""

    scale: float = 1.0
    """Multiplies the slopes."""
    in_bfloat16: bool = False
    """Whether slopes, and their products with positions, are rounded to bfloat16, as Falcon's are."""


@dataclass(frozen=True)
class Attention:
    """Softmax attention, queries sharing keys and values in groups."""

    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    scale: float
    """Multiplies the products of queries and keys."""
    qkv_bias: bool = False
    output_bias: bool = False
    rope: Rope | None = None
    alibi: Alibi | None = None
    qk_norm: bool = False
    """Each head of queries and keys is normalised to unit root mean square before it is rotated."""
    sliding_window: int | None = None
    """Keys that a query sees, itself included; None: all before it."""
    softcap: float | None = None
    """Scores s become softcap * tanh(s / softcap)."""
    sinks: bool = False
    """Each head has a learned score that takes part in the softmax and stands for no key."""
    gate: bool = False
    """The output is multiplied by the sigmoid of a projection of the input."""
    causal: bool = True


@dataclass(frozen=True)
class LatentAttention:
    """Multi-head latent attention: keys and values are projections of one cached vector a token
    (DeepSeek-AI 2024, arXiv 2405.04434)."""

    num_attention_heads: int
    q_lora_rank: int | None
    """Width of the queries' own latent vector; None: queries are projected directly."""
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    scale: float
    rope: Rope
    """Of the qk_rope_head_dim channels, all of which turn; keys share theirs over all heads."""

    @property
    def qk_head_dim(self) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def cached_width(self) -> int:
        """Numbers cached a token."""
        return self.kv_lora_rank + self.qk_rope_head_dim


@dataclass(frozen=True)
class LinearAttention:
    """Gated delta net: a state of fixed size instead of keys and values (Yang et al. 2024,
    arXiv 2412.06464), as in Qwen3-Next."""

    num_key_heads: int
    num_value_heads: int
    key_head_dim: int
    value_head_dim: int
    conv_kernel: int
    """Tokens that the causal convolution before it sees."""

    @property
    def key_width(self) -> int:
        return self.num_key_heads * self.key_head_dim

    @property
    def value_width(self) -> int:
        return self.num_value_heads * self.value_head_dim


@dataclass(frozen=True)
class Mlp:
    """A feed-forward network."""

    intermediate_size: int
    activation: Activation
    gated: bool
    """A second projection up, through the activation, multiplies the first."""
    bias: bool = False


@dataclass(frozen=True)
class Router:
    """How a token's experts are chosen and weighted."""

    scoring: Literal["softmax", "sigmoid", "softmax_of_chosen"]
    """Of all experts' scores; or softmax of the chosen ones' alone."""
    normalise: bool = False
    """Whether the chosen weights are made to add up to 1."""
    bias: bool = False
    """Of the projection that scores."""
    correction: bool = False
    """A learned term is added to scores for choosing only, not for weighting."""
    groups: int = 1
    kept_groups: int = 1
    """Experts outside the best so many of `groups` equal groups cannot be chosen."""
    group_score: Literal["best", "best_two"] = "best"
    """What a group is judged by: its best expert, or the sum of its best two."""
    scale: float = 1.0
    """Multiplies the weights in the end."""


@dataclass(frozen=True)
class Experts:
    """A mixture of experts: each token goes through some of many feed-forward networks."""

    num_experts: int
    num_experts_per_tok: int
    expert: Mlp
    """Of one expert; `intermediate_size` is that of one."""
    router: Router
    shared: Mlp | None = None
    """What every token goes through besides."""
    shared_gate: bool = False
    """The shared part is multiplied by the sigmoid of a projection of the input to one number."""
    swiglu_limit: float | None = None
    """Where `gpt_oss` clamps."""


@dataclass(frozen=True)
class LayerSpec:
    """One layer: what mixes tokens, and what works on each alone; None where it has no such part."""

    attention: Attention | LatentAttention | LinearAttention | None
    mlp: Mlp | Experts | None


Residual = Literal["sequential", "sandwich", "parallel", "parallel_two_norms", "post"]
"""How a layer's two parts are joined to the residual stream x:

    sequential          x += attention(norm(x)); x += mlp(norm(x))
    sandwich            x += norm(attention(norm(x))); x += norm(mlp(norm(x)))
    parallel            x += attention(norm(x)) + mlp(norm(x)), one norm for both
    parallel_two_norms  the same with a norm for each
    post                x = norm(x + attention(x)); x = norm(x + mlp(x))
"""


@dataclass(frozen=True)
class LearnedPositions:
    """A table of position embeddings."""

    rows: int
    offset: int = 0
    """Row of the first position."""


@dataclass(frozen=True)
class Architecture:
    """A transformer: a decoder that predicts tokens, or an encoder that yields a vector."""

    name: str
    family: str
    """`model_type` of its configuration; decides how published weights are named, nothing else."""
    hidden_size: int
    vocab_size: int
    max_position_embeddings: int
    layers: tuple[LayerSpec, ...]
    norm: Literal["rms", "layer"]
    norm_eps: float
    residual: Residual = "sequential"
    positions: LearnedPositions | None = None
    embedding_size: int | None = None
    """Width of token embeddings and head, where projections lead from it to hidden_size and back."""
    token_types: int = 0
    """Rows of a table of segment embeddings, of which the first is added to every token."""
    embed_scale: float | None = None
    embed_norm: bool = False
    final_norm: bool = True
    tie_word_embeddings: bool = False
    lm_head_bias: bool = False
    logit_softcap: float | None = None
    is_encoder: bool = False
    """Yields the mean of its last hidden states, without head or cache; attention sees both ways."""

    @property
    def num_hidden_layers(self) -> int:
        return len(self.layers)

    @cached_property
    def sliding_window(self) -> int | None:
        """The one window length of all layers that have one."""
        found = {layer.attention.sliding_window for layer in self.layers
                 if isinstance(layer.attention, Attention)} - {None}  # fmt: skip
        assert len(found) <= 1, "one window length a model"
        return found.pop() if found else None

    @cached_property
    def experts(self) -> Experts | None:
        """The mixture that all layers with experts have, or None."""
        found = {layer.mlp for layer in self.layers if isinstance(layer.mlp, Experts)}
        assert len({(each.num_experts, each.num_experts_per_tok) for each in found}) <= 1
        return next(iter(found), None)

    @property
    def has_linear_attention(self) -> bool:
        return any(isinstance(layer.attention, LinearAttention) for layer in self.layers)

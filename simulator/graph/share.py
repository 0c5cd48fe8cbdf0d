"""How a model is cut for tensor parallelism: whole heads, columns of the MLP, rows of the vocabulary."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.graph.shape import split_evenly, starts_of
from simulator.specs.architecture import Architecture, Attention, LatentAttention, LinearAttention, Mlp


@dataclass(frozen=True, slots=True)
class Part:
    """Consecutive things out of more of them."""

    start: int
    count: int
    whole: int
    """How many there are in all."""

    def times(self, width: int) -> Part:
        """The same part of things that are `width` times as many."""
        return Part(self.start * width, self.count * width, self.whole * width)


@dataclass(frozen=True, slots=True)
class Share:
    """What one of `degree` tensor-parallel ranks holds of every layer. Degree 1 is the whole model."""

    rank: int = 0
    degree: int = 1

    def of(self, count: int) -> Part:
        """The rank's part of `count` things shared out, the first ranks taking one more if need be."""
        sizes = split_evenly(count, self.degree)
        return Part(starts_of(sizes)[self.rank], sizes[self.rank], count)

    def of_kv_heads(self, count: int) -> Part:
        """As `of`, but with more ranks than KV heads each rank keeps a copy of the one its queries need."""
        return Part(self.rank * count // self.degree, max(1, count // self.degree), count)


def why_not_divisible(model: Architecture, degree: int) -> str | None:
    """What stops `model` from being cut into `degree` tensor-parallel ranks, or None."""
    for attention in dict.fromkeys(layer.attention for layer in model.layers):
        reason = _why_not(attention, degree)
        if reason is not None:
            return reason
    counts = {"rows of the vocabulary": model.vocab_size, "numbers of the hidden state": model.hidden_size}
    for mlp in dict.fromkeys(layer.mlp for layer in model.layers):
        if mlp is not None:
            inner = mlp if isinstance(mlp, Mlp) else mlp.expert
            counts["channels of the feed-forward part"] = inner.intermediate_size
            for what, count in counts.items():
                if count < degree:
                    return f"{count} {what} are too few for {degree} devices"
    return None


def _why_not(attention: Attention | LatentAttention | LinearAttention | None, degree: int) -> str | None:
    if attention is None:
        return None
    if isinstance(attention, LinearAttention):
        for heads in (attention.num_key_heads, attention.num_value_heads):
            if heads % degree:
                return f"{heads} heads of linear attention cannot be shared evenly by {degree} devices"
        return None
    heads = attention.num_attention_heads
    if heads % degree:
        return f"{heads} attention heads cannot be shared evenly by {degree} devices"
    kv_heads = attention.num_key_value_heads if isinstance(attention, Attention) else degree
    if kv_heads % degree and degree % kv_heads:
        return f"{kv_heads} key-value heads can be neither split nor copied evenly over {degree} devices"
    return None

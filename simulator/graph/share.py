"""How a model is cut for tensor parallelism: whole heads, columns of the MLP, rows of the vocabulary."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

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


@dataclass(frozen=True, slots=True)
class ExpertSplit:
    """How the routed experts of a layer are shared out."""

    whole: bool = False
    """Tensor-parallel ranks hold whole experts, and not columns of each."""
    aside: tuple[int, ...] = ()
    """Experts that another device computes, beside the ranks."""
    share_aside: Fraction = Fraction(0)
    """Expected share of all choices that fall on them."""
    own: Share | None = None
    """A rank's share of the experts, where it is not that of the rest of the model."""

    def held(self, count: int, share: Share) -> tuple[int, ...]:
        """Which of `count` experts a rank computes, at least some columns of them."""
        rest = self._not_aside(count)
        if not self.whole:
            return rest
        part = (self.own or share).of(len(rest))
        return rest[part.start : part.start + part.count]

    def portion(self, amount: int, count: int, share: Share) -> int:
        """A rank's part of an `amount` of work on all of `count` experts; ranks that share columns of every
        expert get what is not done aside. The parts of ranks that hold whole experts add up to that."""
        left = amount - self.portion_aside(amount)
        rest = len(self._not_aside(count))
        if not self.whole or not rest:
            return left
        part = (self.own or share).of(rest)
        return left * (part.start + part.count) // rest - left * part.start // rest

    def portion_aside(self, amount: int) -> int:
        """What of an `amount` of work on all experts is done aside."""
        return round(amount * self.share_aside)

    def _not_aside(self, count: int) -> tuple[int, ...]:
        return tuple(expert for expert in range(count) if expert not in self.aside)


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

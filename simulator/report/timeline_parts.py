"""What a task of a timeline is a part of, for people: seven kinds of work, and a colour for each."""

from __future__ import annotations

from typing import Literal

from simulator.results.records import Span

Part = Literal[
    "attention", "feed-forward", "other compute", "collective", "copy of weights", "copy of KV",
    "copy of activations or tokens", "host work",
]  # fmt: skip

COLOURS: dict[Part, str] = {
    "attention": "#D2590A",
    "feed-forward": "#0B4F8A",
    "other compute": "#C4C4C4",
    "collective": "#B53F7D",
    "copy of weights": "#F5E663",
    "copy of KV": "#2AA57A",
    "copy of activations or tokens": "#6CBAEA",
    "host work": "#2B2B2B",
}
"""Shades of Okabe and Ito's palette, moved apart in lightness too. The order is that of legends."""

ATTENTION = frozenset({
    "attn_norm", "qkv_proj", "q_proj", "q_a_norm", "latent_proj", "rotary", "attention", "attn_gate_proj",
    "attn_gate", "o_proj", "attn_post_norm", "qkvz_proj", "delta_rule", "split_rows", "join_rows",
})  # fmt: skip
"""Operators of a layer that belong to its attention; the others are its feed-forward part."""


def part_of(span: Span) -> Part:
    """What a recorded task is part of."""
    match span.category:
        case "host":
            return "host work"
        case "collective":
            return "collective"
        case "transfer":
            return _copied(span.operator)
    if span.layer is None:
        return "other compute"
    return "attention" if span.operator in ATTENTION else "feed-forward"


def _copied(operator: str) -> Part:
    if operator.startswith("fetch"):
        return "copy of weights"
    return "copy of KV" if operator.startswith("kv_") else "copy of activations or tokens"

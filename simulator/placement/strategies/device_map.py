"""Reads the device map of Hugging Face `accelerate`: names of modules, and where each goes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block|layer)\.(\d+)(?:\.(.+))?$")
ATTENTION = re.compile(r"^(?:self_attn|self_attention|attention|attn|linear_attn)(?:\.|$)|^attention\.")
MLP = re.compile(r"^(?:mlp|feed_forward|block_sparse_moe|fc1|fc2|moe|ffn)(?:\.|$)")
NORM = re.compile(r"(?:norm|ln_\d|ln_attn|ln_mlp|layernorm)", re.IGNORECASE)
EMBED = re.compile(r"(?:^|\.)(?:embed_tokens|wte|wpe|word_embeddings|embed_in|embed_positions|embeddings|"
                   r"embd|project_in|word_embeddings_layernorm|embedding|tok_embeddings)$")  # fmt: skip
FINAL_NORM = re.compile(r"(?:^|\.)(?:norm|ln_f|final_layer_norm|final_layernorm|project_out)$")
HEAD = re.compile(r"(?:^|\.)(?:lm_head|embed_out|output)$")
IGNORED = re.compile(r"(?:^|\.)(?:rotary_emb|drop|dropout|emb_dropout)$")

Target = int | str


@dataclass(frozen=True)
class Located:
    """Where a map puts the parts of a model: by layer, and both ends."""

    layers: tuple[Target, ...]
    attention: Mapping[int, Target]
    """Of layers whose attention is not where the rest of the layer is."""
    mlp: Mapping[int, Target]
    embed: Target
    final_norm: Target
    head: Target


def read_device_map(device_map: Mapping[str, Target], layer_count: int) -> Located | str:
    """What a map says of a model with so many layers; what is wrong with it, in words.

    A module that the map does not name goes where the longest of its prefixes goes, as in accelerate.
    """
    unknown = [key for key in device_map if not _names_a_module(key, layer_count)]
    if unknown:
        return (f"device_map names {unknown[0]!r}, which is no module of a model with {layer_count} layers; "
                "write names such as model.embed_tokens, model.layers.3, model.layers.3.mlp, model.norm, "
                "lm_head")  # fmt: skip
    stem = _stem(device_map)
    found = {name: _of(device_map, stem, name) for name in ("embed", "norm", "head")}
    layers: list[Target] = []
    attention: dict[int, Target] = {}
    mlp: dict[int, Target] = {}
    for number in range(layer_count):
        parts = _parts_of_layer(device_map, number)
        whole = parts.get("", _default(device_map, stem))
        whole = parts.get("attention", parts.get("mlp")) if whole is None else whole
        if whole is None:
            return f"device_map says nothing of layer {number}; name model.layers.{number}, or '' for all"
        layers.append(whole)
        attention |= {number: parts["attention"]} if parts.get("attention", whole) != whole else {}
        mlp |= {number: parts["mlp"]} if parts.get("mlp", whole) != whole else {}
    return Located(
        tuple(layers), attention, mlp,
        _first(found["embed"], layers[0]), _first(found["norm"], layers[-1]),
        _first(found["head"], layers[-1]),
    )  # fmt: skip


def _first(found: Target | None, otherwise: Target) -> Target:
    return otherwise if found is None else found


def _names_a_module(key: str, layer_count: int) -> bool:
    layer = LAYER.search(key)
    if layer is not None:
        inner = layer[2] or ""
        known = not inner or ATTENTION.search(inner) or MLP.search(inner) or NORM.search(inner)
        return int(layer[1]) < layer_count and bool(known)
    ends = (EMBED, FINAL_NORM, HEAD, IGNORED)
    is_stem = key in ("", "model", "transformer", "gpt_neox", "model.decoder", "decoder", "model.layers",
                      "transformer.h", "gpt_neox.layers", "model.decoder.layers")  # fmt: skip
    return is_stem or any(pattern.search(key) for pattern in ends)


def _stem(device_map: Mapping[str, Target]) -> tuple[str, ...]:
    """Keys that stand for everything below them, the longest first."""
    stems = [key for key in device_map if LAYER.search(key) is None
             and not any(p.search(key) for p in (EMBED, FINAL_NORM, HEAD, IGNORED))]  # fmt: skip
    return tuple(sorted(stems, key=len, reverse=True))


def _default(device_map: Mapping[str, Target], stem: tuple[str, ...]) -> Target | None:
    return device_map[stem[0]] if stem else None


def _of(device_map: Mapping[str, Target], stem: tuple[str, ...], name: str) -> Target | None:
    pattern = {"embed": EMBED, "norm": FINAL_NORM, "head": HEAD}[name]
    named = next((where for key, where in device_map.items() if LAYER.search(key) is None
                  and pattern.search(key)), None)  # fmt: skip
    if named is not None:
        return named
    above = [key for key in stem if key == ""] if name == "head" else list(stem)
    return device_map[above[0]] if above else None


def _parts_of_layer(device_map: Mapping[str, Target], number: int) -> dict[str, Target]:
    """Where a layer, its attention and its feed-forward part are said to be."""
    parts: dict[str, Target] = {}
    for key, where in device_map.items():
        layer = LAYER.search(key)
        if layer is None or int(layer[1]) != number:
            continue
        inner = layer[2] or ""
        if not inner:
            parts[""] = where
        elif ATTENTION.search(inner):
            parts.setdefault("attention", where)
        elif MLP.search(inner):
            parts.setdefault("mlp", where)
    return parts

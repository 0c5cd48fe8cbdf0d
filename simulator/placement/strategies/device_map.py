"""Reads the device map of Hugging Face `accelerate`: names of modules, and where each goes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block|layer)\.([0-9]{1,18})(?:\.(.+))?$")
ATTENTION = re.compile(r"^(?:self_attn|self_attention|attention|attn|linear_attn)(?:\.|$)")
MLP = re.compile(r"^(?:mlp|feed_forward|block_sparse_moe|fc1|fc2|moe|ffn)(?:\.|$)")
BETWEEN = re.compile(r"norm|^ln_|dropout$|^activation_fn$", re.IGNORECASE)
"""Parts of a layer that go with the rest of it."""
EMBED = re.compile(r"(?:^|\.)(?:embed_tokens|wte|wpe|word_embeddings|embed_in|embed_positions|embeddings|"
                   r"embd|project_in|word_embeddings_layernorm|embedding|"
                   r"tok_embeddings)(?:\.weight)?$")  # fmt: skip
FINAL_NORM = re.compile(r"(?:^|\.)(?:norm|ln_f|final_layer_?norm|project_out)(?:\.weight)?$")
HEAD = re.compile(r"(?:^|\.)(?:lm_head|embed_out|output)(?:\.weight)?$")
IGNORED = re.compile(r"(?:^|\.)(?:rotary_emb|drop|dropout|emb_dropout|embed_dropout)$")
ABOVE_ALL = ("", "model", "transformer", "gpt_neox", "model.decoder", "decoder")
ABOVE_LAYERS = ("model.layers", "transformer.h", "gpt_neox.layers", "model.decoder.layers")
"""Modules that hold others: everything but the head (which only "" holds too), and only the layers."""

Target = int | Literal["cpu", "disk"]
"""An accelerator by its number, or where weights are kept that no accelerator has room for."""
KEPT: tuple[Literal["cpu"], Literal["disk"]] = ("cpu", "disk")
T = TypeVar("T")


@dataclass(frozen=True)
class Located:
    """Where a map puts the parts of a model: its layers, and both ends."""

    layers: tuple[Target, ...]
    embed: Target
    final_norm: Target
    head: Target
    accelerators: tuple[int, ...]
    """Those that the map names, in its order. The first computes what is kept on `cpu` or `disk`, as in
    accelerate."""


def read_device_map(device_map: Mapping[str, int | str], layer_count: int) -> Located | str:
    """What a map says of a model with so many layers; what is wrong with it, in words.

    A module that the map does not name goes where the longest of its prefixes goes, as in accelerate.
    """
    unknown = [key for key in device_map if not _names_a_module(key, layer_count)]
    if unknown:
        return (f"device_map names {unknown[0]!r}, which is no module of a model with {layer_count} layers; "
                "write names such as model.embed_tokens, model.layers.3, model.layers.3.mlp, model.norm, "
                "lm_head")  # fmt: skip
    targets: dict[str, Target] = {}
    for key, value in device_map.items():
        target = _target(value)
        if target is None:
            return f"device_map has '{value}'; write a number from 0 on, 'cuda:0', 'cpu' or 'disk'"
        targets[key] = target
    return _located(targets, layer_count)


def _target(value: int | str) -> Target | None:
    for kept in KEPT:
        if value == kept:
            return kept
    number = 0 if value == "cuda" else str(value).removeprefix("cuda:")
    return int(number) if re.fullmatch("[0-9]{1,18}", str(number)) else None


def _located(targets: Mapping[str, Target], layer_count: int) -> Located | str:
    layers: list[Target] = []
    for number in range(layer_count):
        places = _places_of_layer(targets, number)
        if not places:
            return f"device_map says nothing of layer {number}; name model.layers.{number}, or '' for all"
        if len(places) > 1:
            return (f"device_map puts parts of layer {number} in different places, which is not simulated; "
                    "name whole layers, or use `rules`")  # fmt: skip
        layers.append(places.pop())
    above = _longest(targets, ABOVE_ALL)
    return Located(
        tuple(layers),
        embed=_first(_named(targets, EMBED), _first(above, layers[0])),
        final_norm=_first(_named(targets, FINAL_NORM), _first(above, layers[-1])),
        head=_first(_named(targets, HEAD), _first(targets.get(""), layers[-1])),
        accelerators=tuple(dict.fromkeys(t for t in targets.values() if isinstance(t, int))),
    )  # fmt: skip


def _names_a_module(key: str, layer_count: int) -> bool:
    layer = LAYER.search(key)
    if layer is not None:
        inner = layer[2] or ""
        known = not inner or any(pattern.search(inner) for pattern in (ATTENTION, MLP, BETWEEN))
        return int(layer[1]) < layer_count and known
    if key in ABOVE_ALL + ABOVE_LAYERS:
        return True
    return any(pattern.search(key) for pattern in (EMBED, FINAL_NORM, HEAD, IGNORED))


def _places_of_layer(targets: Mapping[str, Target], number: int) -> set[Target]:
    """Where a layer, its attention and its feed-forward part are said to be; norms go with the rest."""
    whole, parts = _longest(targets, ABOVE_ALL + ABOVE_LAYERS), set[Target]()
    for key, where in targets.items():
        layer = LAYER.search(key)
        if layer is None or int(layer[1]) != number:
            continue
        inner = layer[2] or ""
        if not inner:
            whole = where
        elif ATTENTION.search(inner) or MLP.search(inner):
            parts.add(where)
    return parts if whole is None else parts | {whole}


def _longest(targets: Mapping[str, Target], modules: Sequence[str]) -> Target | None:
    """Where the innermost of some modules that hold others goes."""
    named = [key for key in modules if key in targets]
    return targets[max(named, key=len)] if named else None


def _named(targets: Mapping[str, Target], pattern: re.Pattern[str]) -> Target | None:
    return next((where for key, where in targets.items()
                 if LAYER.search(key) is None and pattern.search(key)), None)  # fmt: skip


def _first(found: T | None, otherwise: T) -> T:
    return otherwise if found is None else found

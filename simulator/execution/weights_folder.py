"""A model in a folder as Hugging Face writes it: config.json, safetensors, tokenizer.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simulator.errors import InputError, Problem
from simulator.execution.checkpoints import load_hugging_face_state
from simulator.execution.generation import PRECISIONS, LanguageModel
from simulator.execution.network import Transformer
from simulator.execution.tokenizer import TokenizerFile
from simulator.specs.architecture import Architecture
from simulator.specs.catalogue import Catalogue
from simulator.specs.model import load_model
from simulator.units import GIB

CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"
TOKENIZER = "tokenizer.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"

EXTRA = ("safetensors", "tokenizers")
"""Modules of the extra `weights` that reading a folder needs."""

LARGEST_WIDENED_BYTES = 8 * GIB
"""Of a network in float32. One that would be larger computes in the format it is stored in."""

MOST_SHOWN = 4
"""Differences between weights and architecture that one message lists."""


def load_folder(folder: Path, name: str | None = None) -> LanguageModel:
    """The model in a folder, called like the folder unless it has a name. Raises InputError with every piece
    that is missing, or the first that cannot be used."""
    files = weight_files(folder)
    arch = load_model(folder / CONFIG, Catalogue(()))
    arch = replace(arch, name=name or arch.name)
    tokenizer = TokenizerFile(folder / TOKENIZER)
    if tokenizer.largest_id >= arch.vocab_size:
        advice = f"has ids up to {tokenizer.largest_id}, the model in {CONFIG} only {arch.vocab_size} tokens"
        raise InputError([Problem(folder / TOKENIZER, advice=advice)])
    network = _network(arch, read_state(files), folder)
    return LanguageModel(network, tokenizer, weights=str(folder), end_ids=end_ids(folder))


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights; raises InputError with every piece of the model that is missing."""
    if not folder.is_dir():
        raise InputError([Problem(folder, advice=f"no such folder; name one with {CONFIG} and {WEIGHTS}")])
    files = [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        files = [folder / name for name in sorted(set(_weight_map(folder / INDEX).values()))]
    advice = {
        folder / CONFIG: "missing; it says what the network is; copy it from where the weights come from",
        folder / TOKENIZER: "missing; the ids of such a model are not bytes, so without it no text can be "
        "turned into them; save the tokenizer there with save_pretrained",
    }
    advice |= dict.fromkeys(files, "missing; copy it there, or save the model with save_pretrained")
    problems = [Problem(path, advice=text) for path, text in advice.items() if not path.is_file()]
    absent = [name for name in EXTRA if find_spec(name) is None]
    if absent:
        text = f"reading weights needs {' and '.join(absent)}; pip install 'placewright[weights]'"
        problems.append(Problem(folder, advice=text))
    if problems:
        raise InputError(problems)
    return files


def _weight_map(path: Path) -> dict[str, str]:
    """Which file of the folder holds which tensor."""
    names = _json(path).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise InputError([Problem(path, key="weight_map", advice="write a mapping of tensors to files")])
    return names


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError([Problem(path, advice=f"cannot be read as JSON ({error})")]) from None
    return data if isinstance(data, dict) else {}


def end_ids(folder: Path) -> frozenset[int]:
    """The ids after which the model says nothing more; none where no file names any."""
    paths = [folder / name for name in (GENERATION_CONFIG, CONFIG) if (folder / name).is_file()]
    stated: list[Any] = [_json(path).get("eos_token_id") for path in paths]
    first: Any = next((each for each in stated if each is not None), [])
    listed: list[Any] = first if isinstance(first, list) else [first]
    return frozenset(number for number in listed if isinstance(number, int))


def read_state(files: list[Path]) -> dict[str, Tensor]:
    """The tensors of all files, in float32 unless that would be large; those stored so stay on the disk
    until they are used."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    state: dict[str, Tensor] = {}
    for path in files:
        try:
            state |= load_file(path)
        except (OSError, SafetensorError) as error:
            raise InputError([Problem(path, advice=f"cannot be read as safetensors ({error})")]) from None
        odd = next((name for name, tensor in state.items() if tensor.dtype not in PRECISIONS), None)
        if odd is not None:
            known = ", ".join(PRECISIONS.values())
            advice = f"is {state[odd].dtype}; only {known} are computed, no quantised weights"
            raise InputError([Problem(path, key=odd, advice=advice)])
    dtype = computed_dtype(state)
    return {name: tensor.to(dtype) for name, tensor in state.items()}


def computed_dtype(state: Mapping[str, Tensor]) -> torch.dtype:
    """float32, the format that processors compute in; for a large network that of its largest tensor."""
    widened_bytes = sum(tensor.numel() for tensor in state.values()) * torch.float32.itemsize
    if widened_bytes <= LARGEST_WIDENED_BYTES:
        return torch.float32
    return max(state.values(), key=Tensor.numel).dtype


def _network(arch: Architecture, state: Mapping[str, Tensor], folder: Path) -> Transformer:
    try:
        return load_hugging_face_state(arch, state)
    except ValueError as error:
        headline, *differences = str(error).splitlines()
        shown = "; ".join(differences[:MOST_SHOWN])
        more = f"; and {len(differences) - MOST_SHOWN} more" if len(differences) > MOST_SHOWN else ""
        raise InputError([Problem(folder, advice=f"{headline} {shown}{more}")]) from None

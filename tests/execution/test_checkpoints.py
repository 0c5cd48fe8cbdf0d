"""Published weights under our names: what is understood, and what is refused by name."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from simulator.execution.checkpoints import filled, load_hugging_face_state, unfilled_transformer
from simulator.specs.architecture import Architecture
from simulator.specs.model import from_config
from tests import tiny
from tests.tensors import assert_close

DATA = Path(__file__).parent / "data"


def published(name: str) -> tuple[Architecture, dict[str, Tensor], Tensor, Tensor]:
    """Architecture, weights, ids and logits as make_fixtures.py got them from Hugging Face transformers."""
    with np.load(DATA / f"{name}.npz") as file:
        arch = from_config(json.loads(str(file["config"])), name)
        arrays = {key: torch.from_numpy(file[key]) for key in file.files if key != "config"}
    state = {key.removeprefix("state/"): array for key, array in arrays.items() if key.startswith("state/")}
    return arch, state, arrays["ids"], arrays["logits"]


@pytest.mark.slow
def test_published_names_without_their_prefix_are_understood():
    """The first GPT-2 checkpoints have no `transformer.` and carry their causal masks along."""
    arch, state, ids, logits = published("gpt2")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in state.items()}
    bare["h.0.attn.bias"] = torch.ones(1, 1, 64, 64)
    assert_close(load_hugging_face_state(arch, bare)(ids), logits, 1e-5)


def test_a_published_bias_is_never_dropped():
    arch, state, _, _ = published("qwen2")
    without = tiny.altered(arch, {"qkv_bias": False})
    with pytest.raises(ValueError, match=r"layers.0.attention.q_proj.bias: \(24,\), needs none"):
        load_hugging_face_state(without, state)


def test_a_missing_weight_is_named():
    arch, state, _, _ = published("qwen2")
    del state["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(ValueError, match=r"layers.1.mlp.up_proj.weight: absent, needs \(40, 24\)"):
        load_hugging_face_state(arch, state)


def test_weights_of_other_shapes_are_named():
    state = dict(filled_with_zeros(tiny.LLAMA))
    state["lm_head.weight"] = torch.zeros(96, 24)
    with pytest.raises(ValueError, match=r"lm_head.weight: \(96, 24\), needs \(97, 24\)"):
        filled(tiny.LLAMA, state)
    with pytest.raises(ValueError, match="these weights are not those of other"):
        filled(replace(tiny.LLAMA, name="other", vocab_size=96), filled_with_zeros(tiny.LLAMA))


def filled_with_zeros(arch: Architecture) -> dict[str, Tensor]:
    return {name: torch.zeros(each.shape) for name, each in unfilled_transformer(arch).state_dict().items()}

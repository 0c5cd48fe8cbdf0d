"""Architectures from Hugging Face configurations: defaults, newer spellings, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from simulator.specs.catalogue import Catalogue
from simulator.specs.model import from_config, load_model

from .small_catalogue import lines_of, write

SMALL = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "vocab_size": 100,
    "max_position_embeddings": 256,
}
GPT2 = {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128, "vocab_size": 100}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def test_llama_defaults_are_those_of_hugging_face() -> None:
    model = from_config(SMALL, "small")
    assert (model.num_key_value_heads, model.head_dim, model.rope_theta) == (4, 16, 10_000)
    assert (model.norm, model.norm_eps, model.activation, model.gated_mlp) == ("rms", 1e-6, "silu", True)
    assert not any((model.qkv_bias, model.output_bias, model.mlp_bias, model.tie_word_embeddings))
    assert model.rope_scaling is None


def test_gpt2_defaults_are_those_of_hugging_face() -> None:
    model = from_config(GPT2 | {"n_inner": None}, "small")
    assert (model.family, model.intermediate_size, model.head_dim) == ("gpt2", 256, 16)
    assert (model.norm, model.activation, model.positions) == ("layer", "gelu_new", "learned")
    assert all((model.qkv_bias, model.output_bias, model.mlp_bias, model.tie_word_embeddings))


def test_a_model_file_by_id(catalogue: Catalogue) -> None:
    model = load_model("llama-3.1-8b", catalogue)
    assert (model.name, model.num_key_value_heads, model.head_dim) == ("Llama 3.1 8B", 8, 128)
    assert model.rope_theta == 500_000
    assert model.rope_scaling is not None
    assert model.rope_scaling.factor == 8


def test_newer_files_keep_rotary_settings_together() -> None:
    newer = from_config(SMALL | {"rope_parameters": LLAMA3_ROPE | {"rope_theta": 5e5}}, "new")
    older = from_config(SMALL | {"rope_scaling": LLAMA3_ROPE, "rope_theta": 5e5}, "new")
    assert newer == older


def test_a_config_json_is_read_in_place(catalogue: Catalogue, tmp_path: Path) -> None:
    harmless = {"architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16", "rope_interleaved": False}
    path = write(tmp_path, "smollm2/config.json", json.dumps(SMALL | harmless, indent=2))
    assert load_model(path, catalogue).name == "smollm2"


def test_problems_of_a_config_json_have_their_place(catalogue: Catalogue, tmp_path: Path) -> None:
    config: dict[str, Any] = {"model_type": "llama", "hidden_size": "big", "num_attention_heads": 4}
    path = write(tmp_path, "config.json", json.dumps(config | {"sliding_window": 4096}, indent=2))
    found = lines_of(lambda: load_model(path, catalogue))
    assert "config.json:3:18: hidden_size = 'big': write a whole number above 0" in found
    assert "config.json:5:21: sliding_window = 4096: sliding windows are not modelled" in found
    missing = [line.split(":")[3].strip() for line in found if "missing" in line]
    assert missing == ["num_hidden_layers", "intermediate_size", "vocab_size", "max_position_embeddings"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"model_type": "mistral"}, "model_type = 'mistral': the known families are: llama, gpt2"),
        ({"model_type": None}, "model_type: the known families are: llama, gpt2"),
        (
            {"rope_scaling": {"rope_type": "yarn"}},
            "rope_scaling.rope_type = 'yarn': not one of: default, llama3",
        ),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope_scaling.type = 'linear': not one of"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "rope_scaling.factor: missing"),
        ({"rope_scaling": 8}, "rope_scaling: write a mapping"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types: only full attention"),
        ({"partial_rotary_factor": 0.5}, "partial rotary embeddings are not modelled"),
        ({"hidden_act": "gelu2"}, "not one of: silu"),
        ({"num_attention_heads": 5}, "num_attention_heads = 5: must divide the hidden size 64"),
        ({"num_key_value_heads": 3}, "num_key_value_heads = 3: must divide num_attention_heads = 4"),
        ({"tie_word_embeddings": "yes"}, "write true or false"),
        ({"hidden_size": True}, "write a whole number above 0"),
        ({"num_hidden_layers": -2}, "write a whole number above 0"),
        ({"head_dim": 15}, "head_dim = 15: makes heads 15 wide; rotary embeddings need an even width"),
        ({"hidden_size": 60}, "num_attention_heads = 4: makes heads 15 wide"),
        ({"head_dim": 0}, "head_dim = 0: write a whole number above 0"),
        ({"num_attention_heads": 0}, "num_attention_heads = 0: write a whole number above 0"),
        ({"num_key_value_heads": 0}, "num_key_value_heads = 0: write a whole number above 0"),
        (
            {"num_attention_heads": 4.0, "num_key_value_heads": 3},
            "num_key_value_heads = 3: must divide num_attention_heads = 4.0",
        ),
        ({"num_hidden_layers": 10_001}, "num_hidden_layers = 10001: must be at most 10,000"),
        ({"hidden_size": 10**30}, f"hidden_size = {10**30}: must be at most 100,000,000"),
        ({"intermediate_size": 1e30}, "intermediate_size = 1e+30: must be at most 100,000,000"),
        ({"vocab_size": 10**9}, "vocab_size = 1000000000: must be at most 100,000,000"),
        ({"rope_theta": "x"}, "rope_theta = 'x': write a number above 0"),
    ],
)
def test_what_would_change_results_is_refused(change: dict[str, Any], expected: str) -> None:
    found = lines_of(lambda: from_config(SMALL | change, "changed"))
    assert expected in found[0]


def test_missing_fields_are_named_all_at_once() -> None:
    found = lines_of(lambda: from_config({"model_type": "gpt2"}, "empty"))
    assert [line.split(": ")[1] for line in found] == [
        "n_embd",
        "n_head",
        "n_layer",
        "vocab_size",
        "n_positions",
    ]


def test_a_model_file_needs_a_source(catalogue: Catalogue, tmp_path: Path) -> None:
    path = write(tmp_path, "m.yaml", "name: m\nconfig: {model_type: llama}\n")
    assert lines_of(lambda: load_model(path, catalogue)) == [
        "m.yaml:1:1: sources: missing; this key is needed here"
    ]

"""Model files and `config.json`: where they are found, what is refused, and where each problem stands.

What makes each family special is in test_families.py.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from simulator.specs.architecture import Attention, Llama3Rope, Mlp
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
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def test_a_model_file_by_id(catalogue: Catalogue) -> None:
    model = load_model("llama-3.1-8b", catalogue)
    assert (model.name, model.family, model.num_hidden_layers) == ("Llama 3.1 8B", "llama", 32)
    attention, mlp = model.layers[0].attention, model.layers[0].mlp
    assert isinstance(attention, Attention)
    assert isinstance(mlp, Mlp)
    assert (attention.num_key_value_heads, attention.head_dim, mlp.intermediate_size) == (8, 128, 14336)
    assert attention.rope is not None
    assert attention.rope.theta == 500_000
    assert attention.rope.scaling == Llama3Rope(8.0, 1.0, 4.0, 8192)


def test_layers_that_are_alike_are_one_object(catalogue: Catalogue) -> None:
    model = load_model("llama-3.1-8b", catalogue)
    assert len({id(layer) for layer in model.layers}) == 1


def test_a_config_json_is_read_in_place(catalogue: Catalogue, tmp_path: Path) -> None:
    harmless = {"architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16", "rope_interleaved": False}
    path = write(tmp_path, "smollm2/config.json", json.dumps(SMALL | harmless, indent=2))
    assert load_model(path, catalogue).name == "smollm2"


def test_problems_of_a_config_json_have_their_place(catalogue: Catalogue, tmp_path: Path) -> None:
    config: dict[str, Any] = {"model_type": "llama", "hidden_size": "big", "num_attention_heads": 4}
    path = write(tmp_path, "config.json", json.dumps(config | {"sliding_window": 4096}, indent=2))
    found = lines_of(lambda: load_model(path, catalogue))
    assert "config.json:3:18: hidden_size = 'big': write a whole number above 0" in found
    assert any(line.startswith("config.json:5:21: sliding_window = 4096: sliding windows") for line in found)
    missing = {line.split(":")[3].strip() for line in found if "missing" in line}
    assert missing == {"num_hidden_layers", "intermediate_size", "vocab_size", "max_position_embeddings"}


def test_problems_of_an_element_of_a_list_have_its_place(catalogue: Catalogue, tmp_path: Path) -> None:
    config = SMALL | {"model_type": "deci", "num_key_value_heads_per_layer": [4, "many"]}
    path = write(tmp_path, "config.json", json.dumps(config, indent=2))
    assert lines_of(lambda: load_model(path, catalogue)) == [
        "config.json:11:5: num_key_value_heads_per_layer.1 = 'many': write a whole number above 0"
    ]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"model_type": "mistrl"},
            "model_type = 'mistrl': the known families are: gpt2, opt, gptj, gpt_neox",
        ),
        ({"model_type": "mistrl"}, "did you mean 'mistral'?"),
        ({"model_type": None}, "model_type: the known families are: gpt2"),
        ({"sliding_window": 4096}, "sliding windows are not modelled"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types: only full attention"),
        ({"partial_rotary_factor": 0.5}, "partial rotary embeddings are not modelled"),
        ({"rope_interleaved": True}, "interleaved rotary embeddings are not modelled"),
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
        ({"rope_theta": 1e300}, "rope_theta = 1e+300: must be at most 1e+12"),
    ],
)
def test_what_would_change_results_is_refused(change: dict[str, Any], expected: str) -> None:
    assert expected in lines_of(lambda: from_config(SMALL | change, "changed"))[0]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"rope_scaling": {"rope_type": "longrope"}},
            "rope_scaling.rope_type = 'longrope': not one of: default",
        ),
        (
            {"rope_scaling": {"type": "su", "factor": 2}},
            "rope_scaling.type = 'su': not one of: default, linear",
        ),
        ({"rope_scaling": {"rope_type": "llama3"}}, "rope_scaling.factor: missing"),
        ({"rope_scaling": {"rope_type": "linear", "factor": -1}}, "rope_scaling.factor = -1: write a number"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4}}, "original_max_position_embeddings: missing"),
        ({"rope_scaling": 8}, "rope_scaling: write a mapping"),
        (
            {"rope_scaling": LLAMA3_ROPE, "original_max_position_embeddings": 4096},
            "original_max_position_embeddings = 4096: transformers would prefer it",
        ),
        (
            {"rope_parameters": {"sliding_attention": {"rope_theta": 1e4}}},
            "settings by kind of layer are not modelled for this family",
        ),
    ],
)
def test_rotary_settings_that_are_refused(settings: dict[str, Any], expected: str) -> None:
    assert expected in lines_of(lambda: from_config(SMALL | settings, "changed"))[0]


def test_a_problem_is_told_once() -> None:
    """However many parts of a record read the field."""
    found = lines_of(lambda: from_config({key: SMALL[key] for key in SMALL if key != "hidden_size"}, "small"))
    assert len(found) == 1


def test_newer_files_keep_rotary_settings_together() -> None:
    newer = from_config(SMALL | {"rope_parameters": LLAMA3_ROPE | {"rope_theta": 5e5}}, "new")
    older = from_config(SMALL | {"rope_scaling": LLAMA3_ROPE, "rope_theta": 5e5}, "new")
    assert newer == older


def test_a_model_file_needs_a_source(catalogue: Catalogue, tmp_path: Path) -> None:
    path = write(tmp_path, "m.yaml", "name: m\nconfig: {model_type: llama}\n")
    assert lines_of(lambda: load_model(path, catalogue)) == [
        "m.yaml:1:1: sources: missing; this key is needed here"
    ]

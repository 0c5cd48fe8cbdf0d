"""The network against Hugging Face's, by tiny random models of every family.

What make_fixtures.py wrote is compared always; under the extra `hf`, the same models are also built anew.
"""

import copy
import importlib.util
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from simulator.execution.checkpoints import load_hugging_face_state
from simulator.execution.network import Cache, Transformer
from simulator.specs.architecture import Architecture
from simulator.specs.model import from_config

DATA = Path(__file__).parent / "data"
NAMES = sorted(path.stem for path in DATA.glob("*.npz"))
ENCODERS = ["bert", "roberta", "xlm-roberta"]
DECODERS = [name for name in NAMES if name not in ENCODERS]
MIXTURES = ["deepseek-v2", "deepseek-v2-lite", "deepseek-v3", "gpt-oss", "mixtral", "qwen2-moe",
            "qwen2-moe-normalised", "qwen3-moe", "qwen3-next"]  # fmt: skip
TIED = [name for name in NAMES if name.startswith(("bloom", "falcon", "gemma", "gpt2", "llama-tied", "opt"))]
PROMPT = 24


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@dataclass(frozen=True)
class Fixture:
    """What make_fixtures.py got from Hugging Face transformers."""

    arch: Architecture
    state: dict[str, Tensor]
    ids: Tensor
    logits: Tensor
    """Hidden states, if it is an encoder."""
    decoded: Tensor | None
    """Logits of the ids after the prompt, fed one by one."""

    def network(self) -> Transformer:
        return load_hugging_face_state(self.arch, self.state)


@cache
def fixture(name: str) -> Fixture:
    with np.load(DATA / f"{name}.npz") as file:
        arch = from_config(json.loads(str(file["config"])), name)
        arrays = {key: torch.from_numpy(file[key]) for key in file.files if key != "config"}
    prefix = "state/"
    state = {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}
    return Fixture(arch, state, arrays["ids"], arrays["logits"], arrays.get("decoded"))


def in_pieces(network: Transformer, *pieces: Tensor) -> Tensor:
    """Logits of one sequence that a network with a cache is given piece by piece."""
    past = Cache()
    return torch.cat([network(piece, past) for piece in pieces])


# --- what was written -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_hugging_face(name):
    given = fixture(name)
    assert_close(given.network()(given.ids), given.logits)


@pytest.mark.parametrize("name", DECODERS)
def test_token_by_token_the_logits_are_those_of_hugging_face(name):
    given = fixture(name)
    prompt, rest = given.ids[:PROMPT], given.ids[PROMPT:]
    assert_close(in_pieces(given.network(), prompt, *rest.split(1))[PROMPT:], given.decoded)


@pytest.mark.parametrize("name", DECODERS)
def test_a_prompt_in_chunks_is_a_prompt_at_once(name):
    """The chunks are longer than a sliding window and shorter than a convolution, by turns."""
    given = fixture(name)
    chunks = given.ids[:PROMPT].split([10, 2, 12])
    logits = in_pieces(given.network(), *chunks, *given.ids[PROMPT:].split(1))
    assert_close(logits[:PROMPT], given.logits[:PROMPT])
    assert_close(logits[PROMPT:], given.decoded)


@pytest.mark.parametrize("name", DECODERS)
def test_only_the_last_logits_are_the_last_of_all(name):
    given = fixture(name)
    assert_close(given.network()(given.ids, logits=3), given.logits[-3:])


@pytest.mark.parametrize("name", DECODERS)
def test_a_token_of_a_decoder_sees_nothing_of_its_future(name):
    given = fixture(name)
    assert_close(given.network()(given.ids[:PROMPT]), given.logits[:PROMPT])


@pytest.mark.parametrize("name", ENCODERS)
def test_a_token_of_an_encoder_sees_all_others(name):
    given = fixture(name)
    shorter = given.network()(given.ids[:PROMPT])
    assert (shorter - given.logits[:PROMPT]).abs().amax(dim=1).min() > 1e-2


# --- spellings of published weights -----------------------------------------------------------------------


def with_single_experts(arch: Architecture, state: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """As files on the hub have it: one matrix an expert, where transformers 5 has one of all.

    Those of gpt-oss are as in memory, all experts' in one.
    """
    is_mixtral = arch.family == "mixtral"
    gate, up, down = ("w1", "w3", "w2") if is_mixtral else ("gate_proj", "up_proj", "down_proj")
    for name, tensor in state.items():
        name = name.replace(".mlp.", ".block_sparse_moe.") if is_mixtral else name
        path, _, leaf = name.rpartition(".")
        if leaf == "gate_up_proj":
            for index, (gate_weight, up_weight) in enumerate(t.chunk(2) for t in tensor):
                yield f"{path}.{index}.{gate}.weight", gate_weight
                yield f"{path}.{index}.{up}.weight", up_weight
        elif path.endswith("experts") and leaf == "down_proj":
            yield from ((f"{path}.{index}.{down}.weight", weight) for index, weight in enumerate(tensor))
        else:
            yield name, tensor


@pytest.mark.parametrize("name", [name for name in MIXTURES if name != "gpt-oss"])
def test_single_experts_are_understood(name):
    given = fixture(name)
    on_the_hub = dict(with_single_experts(given.arch, given.state))
    assert len(on_the_hub) > len(given.state)
    network = load_hugging_face_state(given.arch, on_the_hub)
    assert_close(network(given.ids), given.logits)


@pytest.mark.parametrize("name", TIED)
def test_a_head_that_is_the_table_of_embeddings_may_be_left_out(name):
    given = fixture(name)
    state = {key: tensor for key, tensor in given.state.items() if key != "lm_head.weight"}
    assert len(state) < len(given.state)
    assert_close(load_hugging_face_state(given.arch, state)(given.ids), given.logits)


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_may_come_with_a_prefix_and_a_pooler(name):
    given = fixture(name)
    prefix = "bert." if name == "bert" else "roberta."
    pooler = {"pooler.dense.weight": torch.ones(24, 24), "pooler.dense.bias": torch.ones(24)}
    state = {prefix + key: tensor for key, tensor in (given.state | pooler).items()}
    assert_close(load_hugging_face_state(given.arch, state)(given.ids), given.logits)


# --- the fixtures themselves ------------------------------------------------------------------------------


def test_the_lists_of_names_are_those_of_the_architectures():
    archs = {name: fixture(name).arch for name in NAMES}
    assert [name for name, arch in archs.items() if arch.is_encoder] == ENCODERS
    assert [name for name, arch in archs.items() if arch.experts is not None] == MIXTURES
    assert [name for name in DECODERS if archs[name].tie_word_embeddings] == TIED


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_weight_matters(name):
    """A fixture would be worth little if a weight could be forgotten without a trace."""
    given = fixture(name)
    network = copy.deepcopy(given.network())
    for parameter_name, parameter in network.named_parameters():
        if parameter_name.endswith("k_proj.bias") and not turns_keys(given.arch):
            continue  # the same for all keys, so that softmax does not notice
        kept = parameter.clone()
        parameter.mul_(1.2).add_(0.02)
        assert (network(given.ids) - given.logits).abs().max() > 1e-4, parameter_name
        parameter.copy_(kept)


WRONG = [
    ("bert", "norm_eps", 1e-2),
    ("bert", "layers.attention.causal", True),
    ("bloom", "layers.attention.alibi", None),
    ("deepseek-v2", "layers.attention.scale", 24**-0.5),
    ("deepseek-v2", "layers.attention.rope.interleaved", False),
    ("deepseek-v2", "layers.mlp.router.kept_groups", 3),
    ("deepseek-v2", "layers.mlp.router.scale", 1.0),
    ("deepseek-v3", "layers.attention.rope.scaling.attention_factor", 1.0),
    ("deepseek-v3", "layers.mlp.router.group_score", "best"),
    ("deepseek-v3", "layers.mlp.router.normalise", False),
    ("falcon-rw-style", "layers.attention.alibi.in_bfloat16", False),
    ("falcon-rw-style", "layers.attention.alibi.scale", 1.0),
    ("gemma", "embed_scale", None),
    ("gemma2", "layers.attention.scale", 8**-0.5),
    ("gemma2", "layers.attention.softcap", None),
    ("gemma2", "logit_softcap", None),
    ("gemma3", "layers.attention.sliding_window", 6),
    ("gemma3", "layers.attention.rope.theta", 10_000.0),
    ("gpt-neox", "layers.attention.rope.rotary_dim", 2),
    ("gpt-neox", "layers.mlp.activation", "gelu_new"),
    ("gpt-neox", "residual", "sequential"),
    ("gpt-oss", "layers.attention.rope.scaling.beta_fast", 16.0),
    ("gpt-oss", "layers.attention.rope.scaling.truncate", True),
    ("gpt-oss", "layers.mlp.swiglu_limit", 7.0),
    ("gpt2", "layers.mlp.activation", "gelu"),
    ("gptj", "layers.attention.rope.interleaved", False),
    ("internlm", "layers.attention.rope.theta", 10_000.0),
    ("llama-grouped-llama3-rope", "layers.attention.rope.scaling", None),
    ("llama-linear-rope", "layers.attention.rope.scaling", None),
    ("llama-yarn", "layers.attention.rope.scaling.attention_factor", 1.0),
    ("llama-yarn", "layers.attention.rope.scaling.beta_slow", 2.0),
    ("mistral", "layers.attention.sliding_window", 7),
    ("mixtral", "layers.mlp.router.normalise", False),
    ("phi", "layers.attention.rope.rotary_dim", 4),
    ("phi", "layers.mlp.activation", "gelu"),
    ("qwen", "layers.attention.rope.theta", 10_000.0),
    ("qwen2-moe", "layers.mlp.router.normalise", True),
    ("qwen2-sliding", "layers.attention.sliding_window", None),
    ("roberta", "positions.offset", 0),
]


@pytest.mark.parametrize(("name", "field", "wrong"), WRONG)
def test_a_wrong_field_is_noticed(name, field, wrong):
    given = fixture(name)
    arch = with_field(given.arch, field, wrong)
    assert arch != given.arch
    network = load_hugging_face_state(arch, given.state)
    assert (network(given.ids) - given.logits).abs().max() > 1e-4


def with_field(record: Any, path: str, value: object) -> Any:
    """A copy with one field changed, in all layers that have it."""
    name, _, rest = path.partition(".")
    if isinstance(record, tuple):
        return tuple(with_field(each, path, value) for each in record)
    if not hasattr(record, name):
        return record
    return replace(record, **{name: with_field(getattr(record, name), rest, value) if rest else value})


def turns_keys(arch: Architecture) -> bool:
    return getattr(arch.layers[0].attention, "rope", None) is not None


# --- live, under the extra `hf` ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def make_fixtures() -> ModuleType:
    """The script that wrote the fixtures, which builds the models."""
    pytest.importorskip("transformers", reason="needs the extra hf: pip install -e .[hf]")
    path = Path(__file__).with_name("make_fixtures.py")
    spec = importlib.util.spec_from_file_location("make_fixtures", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_a_model_built_now_agrees_on_other_ids(make_fixtures, name):
    model, config = make_fixtures.build(name)
    state = make_fixtures.published_state(model, name)
    network = load_hugging_face_state(from_config(config, name), state)
    ids = make_fixtures.some_ids(seed=3)
    assert_close(network(ids), make_fixtures.at_once(model, ids))
    if name in DECODERS:
        decoded = in_pieces(network, ids[:PROMPT], *ids[PROMPT:].split(1))[PROMPT:]
        assert_close(decoded, make_fixtures.step_by_step(model, ids))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("decilm", "internlm", "qwen")])
def test_a_saved_model_agrees(make_fixtures, tmp_path, name):
    """Config and weights exactly as transformers publishes them."""
    from safetensors.torch import load_file

    model, _ = make_fixtures.build(name)
    model.save_pretrained(tmp_path)
    arch = from_config(json.loads((tmp_path / "config.json").read_text()), name)
    network = load_hugging_face_state(arch, load_file(tmp_path / "model.safetensors"))
    given = fixture(name)
    assert_close(network(given.ids), given.logits)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_fixtures_are_those_that_the_script_writes(make_fixtures):
    assert sorted(make_fixtures.NAMES) == NAMES

"""A folder as Hugging Face writes it, whole and with each of its pieces missing or unusable."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from simulator.errors import InputError
from simulator.execution import weights_folder
from simulator.execution.checkpoints import load_hugging_face_state
from simulator.execution.weights_folder import end_ids, load_folder
from simulator.specs.model import from_config
from tests.execution.small_weights import CONFIG, state, write_folder

IDS = torch.arange(30)


def message(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_folder(folder)
    return str(caught.value).replace(str(folder), "FOLDER")


@pytest.mark.parametrize("shards", [1, 3])
def test_the_network_has_the_weights_of_the_folder(tmp_path, shards):
    weights = state(seed=5)
    model = load_folder(write_folder(tmp_path / "my-llama", weights, shards))
    expected = load_hugging_face_state(from_config(CONFIG, "my-llama"), weights)
    assert model.arch == expected.arch
    assert torch.equal(model.network(IDS), expected(IDS))
    assert (model.weights, model.precision, model.end_ids) == (str(tmp_path / "my-llama"), "fp32", {0})
    assert model.tokenizer.decode(model.tokenizer.encode("the man")) == "the man"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_weights_are_computed_in_float32_unless_that_would_be_large(tmp_path, monkeypatch, dtype):
    narrow = {name: tensor.to(dtype) for name, tensor in state().items()}
    narrow["model.norm.weight"] = narrow["model.norm.weight"].float()
    folder = write_folder(tmp_path, narrow)
    widened = load_folder(folder)
    assert widened.precision == "fp32"
    parameters = sum(tensor.numel() for tensor in narrow.values())
    monkeypatch.setattr(weights_folder, "LARGEST_WIDENED_BYTES", 4 * parameters - 1)
    kept = load_folder(folder)
    assert kept.precision == {torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
    torch.testing.assert_close(kept.network(IDS).float(), widened.network(IDS), rtol=0.1, atol=0.3)


def test_every_missing_piece_is_named_at_once(tmp_path):
    tmp_path.joinpath("pytorch_model.bin").write_bytes(b"")
    assert message(tmp_path).splitlines() == [
        "FOLDER/config.json: missing; it says what the network is; copy it from where the weights come from",
        "FOLDER/tokenizer.json: missing; the ids of such a model are not bytes, so without it no text can be turned "
        "into them; save the tokenizer there with save_pretrained",
        "FOLDER/model.safetensors: missing; copy it there, or save the model with save_pretrained",
    ]
    assert message(tmp_path / "nowhere") == (
        "FOLDER: no such folder; name one with config.json and model.safetensors"
    )


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def with_text(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


def with_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        weights = state()
        change(weights)
        save_file(weights, folder / "model.safetensors")

    return spoil


def cut_short(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (without("config.json"), "FOLDER/config.json: missing"),
        (without("model.safetensors"), "FOLDER/model.safetensors: missing"),
        (without("tokenizer.json"), "FOLDER/tokenizer.json: missing"),
        (with_text("config.json", '{"model_type": "gpt3"}'), "the known families are"),
        (with_text("tokenizer.json", "{}"), "FOLDER/tokenizer.json: cannot be read as a tokenizer"),
        (cut_short, "FOLDER/model.safetensors: cannot be read as safetensors"),
        (with_weights(lambda weights: weights.update(x=torch.ones(2, dtype=torch.int8))),
         "x: is torch.int8; only fp64, fp32, bf16, fp16 are computed"),
        (with_weights(lambda weights: weights.pop("model.norm.weight")), "final_norm.weight: absent, needs (32,)"),
        (with_weights(lambda weights: [weights.pop(name) for name in list(weights) if ".0." in name]), "and 5 more"),
        (with_text("config.json", json.dumps(CONFIG | {"vocab_size": 100})),
         "FOLDER/tokenizer.json: has ids up to 264, the model in config.json only 100 tokens"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_an_unusable_piece_is_named_with_its_file(tmp_path, spoil, said):
    spoil(write_folder(tmp_path))
    assert said in message(tmp_path)


def test_a_shard_that_is_missing_is_named(tmp_path):
    (write_folder(tmp_path, shards=3) / "model-00002-of-00003.safetensors").unlink()
    assert message(tmp_path).startswith("FOLDER/model-00002-of-00003.safetensors: missing; ")


@pytest.mark.parametrize("index", ["[]", "{}", '{"weight_map": {"a": 1}}', "{", "\xff"])
def test_an_unusable_index_is_said_to_be_so(tmp_path, index):
    (write_folder(tmp_path) / "model.safetensors.index.json").write_text(index, encoding="latin-1")
    assert message(tmp_path).startswith("FOLDER/model.safetensors.index.json: ")


def test_without_the_extra_its_packages_are_named(tmp_path, monkeypatch):
    write_folder(tmp_path)
    monkeypatch.setattr(weights_folder, "find_spec", lambda name: None)
    assert message(tmp_path) == (
        "FOLDER: reading weights needs safetensors and tokenizers; pip install 'placewright[weights]'"
    )


@pytest.mark.parametrize(
    ("config", "generation_config", "expected"),
    [
        (2, None, {2}),
        ([2, 3], None, {2, 3}),
        (None, None, set()),
        (2, [4, 5], {4, 5}),
        (2, {}, {2}),
        ("x", None, set()),
    ],
)
def test_where_an_answer_ends_is_said_by_the_folder(tmp_path, config, generation_config, expected):
    write_folder(tmp_path, eos_token_id=config)
    if generation_config is not None:
        stated = {"eos_token_id": generation_config} if generation_config else {}
        (tmp_path / "generation_config.json").write_text(json.dumps(stated))
    assert end_ids(tmp_path) == expected

"""A GGUF file becomes the folder that the same model has at Hugging Face."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from simulator.errors import InputError
from simulator.execution.gguf_file import halves_apart, write_as_folder
from simulator.execution.tokenizer import TokenizerFile
from simulator.execution.weights_folder import load_folder
from tests.execution import small_weights
from tests.execution.small_weights import TOKENS, state, write_folder, write_gguf


def converted(tmp_path: Path, **how) -> Path:
    write_as_folder(write_gguf(tmp_path / "model.gguf", **how), tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("tied", [False, True])
def test_the_network_is_that_of_the_published_folder(tmp_path, tied):
    """Tensors, architecture and logits, through two ways of writing the same weights."""
    weights = state(tied=tied)
    ours = load_folder(converted(tmp_path, weights=weights), "same")
    published = load_folder(write_folder(tmp_path / "published", weights, tie_word_embeddings=tied), "same")
    assert ours.arch == published.arch
    ids = torch.arange(40)
    assert torch.equal(ours.network(ids), published.network(ids))


@pytest.mark.parametrize(("quantised", "close"), [("Q8_0", 0.01), ("Q4_1", 0.15), ("F16", 0.001)])
def test_quantised_matrices_come_back_about_as_they_were(tmp_path, quantised, close):
    found = load_file(converted(tmp_path, quantised=quantised) / "model.safetensors")
    assert found.keys() == state().keys()
    for name, tensor in state().items():
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0 if tensor.ndim == 1 else close)


def test_the_config_says_numbers_as_they_were_meant_and_every_end(tmp_path):
    config = json.loads((converted(tmp_path) / "config.json").read_text())
    assert {key: config[key] for key in ("rms_norm_eps", "rope_theta", "head_dim")} == {
        "rms_norm_eps": 1e-5, "rope_theta": 100_000.0, "head_dim": 8,
    }  # fmt: skip
    assert config["eos_token_id"] == [0, 2]


def test_digits_are_tokens_of_their_own_and_control_tokens_are_one(tmp_path):
    """`12` and two spaces have tokens, but digits are cut off first."""
    tokenizer = TokenizerFile(converted(tmp_path) / "tokenizer.json")
    words = [TOKENS[number] for number in tokenizer.encode("an the  12<|im_end|>")]
    assert words == ["an", "Ġthe", "ĠĠ", "1", "2", "<|im_end|>"]
    assert tokenizer.decode(tokenizer.encode("an the 12é<|im_end|>")) == "an the 12é<|im_end|>"


def test_what_is_not_understood_is_refused_all_at_once(tmp_path):
    odd = {"model.rope_freqs.weight": torch.ones(4)}
    path = write_gguf(
        tmp_path / "odd.gguf", state() | odd, pre="llama-bpe", extra={"llama.rope.scaling.factor": 8.0}
    )
    with pytest.raises(InputError) as caught:
        write_as_folder(path, tmp_path / "model")
    shown = str(caught.value).replace(str(path), "FILE").splitlines()
    assert shown == [
        "FILE: tokenizer.ggml.pre = 'llama-bpe': only 'smollm' is read",
        "FILE: llama.rope.scaling.factor = 8.0: this setting is not understood",
        "FILE: model.rope_freqs.weight: this tensor has no counterpart in a Llama model",
    ]
    assert not (tmp_path / "model").exists()


def test_another_architecture_is_refused(tmp_path):
    with pytest.raises(InputError, match="general.architecture = 'gptneox': only 'llama' is read"):
        converted(tmp_path, architecture="gptneox")


@pytest.mark.parametrize("content", [b"", b"GGUF", b"nothing of the kind" * 100])
def test_what_is_no_gguf_file_is_said_to_be_none(tmp_path, content):
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(InputError, match="cannot be read as a GGUF file"):
        write_as_folder(tmp_path / "x.gguf", tmp_path / "model")


def test_the_order_of_rows_is_undone():
    """llama.cpp's order, made by its own formula, and back."""
    rows = torch.arange(24.0).reshape(12, 2).numpy()
    assert (halves_apart(small_weights.neighbours(rows, heads=3), heads=3) == rows).all()

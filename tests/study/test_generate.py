"""The token loop: what is said, measured here and simulated there."""

import json

import pytest

from simulator.errors import InputError
from simulator.study.generate import generate
from tests.execution.small_weights import write_folder

H100, T4 = "hgx-h100-8", "t4-server"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return str(write_folder(tmp_path_factory.mktemp("models") / "my-llama", eos_token_id=None))


def test_a_folder_answers_with_every_clock_beside(folder):
    said = generate("the man", folder, (H100, T4), count=5)
    assert (said.model, said.weights) == ("my-llama", folder)
    assert (said.prompt_tokens, len(said.tokens)) == (4, 5)
    assert said.text == "".join(token.text for token in said.tokens)
    for clock in (
        [token.measured_s for token in said.tokens],
        *([token.clock_s[machine] for token in said.tokens] for machine in (H100, T4)),
    ):
        assert clock[0] > 0
        assert sorted(set(clock)) == clock, "strictly later, token by token"
    assert [token.phase for token in said.tokens] == ["prefill", *["decode"] * 4]
    assert said.measured_on["threads"] >= 1


def test_everything_but_measured_times_is_the_same_again(folder):
    def unmeasured() -> dict:
        document = json.loads(
            json.dumps(generate("the man", folder, (H100,), count=4).as_dict(), allow_nan=False)
        )
        for token in document["tokens"]:
            assert token.pop("measured_s") > 0
        return document

    assert unmeasured() == unmeasured()


def test_an_answer_that_ends_early_is_priced_as_such(folder, tmp_path):
    whole = generate("the man", folder, (H100,), count=6)
    end = whole.tokens[2].token_id
    assert end not in [token.token_id for token in whole.tokens[:2]]
    short = generate("the man", str(write_folder(tmp_path, eos_token_id=end)), (H100,), count=6)
    assert [token.token_id for token in short.tokens] == [token.token_id for token in whole.tokens[:3]]
    assert [token.clock_s for token in short.tokens] == [token.clock_s for token in whole.tokens[:3]]


def test_machines_are_priced_in_what_was_computed_unless_told(folder):
    assert (generate("the", folder, (H100,), count=1).precision) == "fp32"
    told = generate("the", folder, (H100,), count=1, precision="bf16")
    assert (told.precision, told.computed_in) == ("bf16", "fp32")


def test_half_the_bytes_take_less_time():
    """On a device whose kernels have the same figures in all formats."""
    machine = "gaudi-3-8"
    fp32, bf16 = (generate("the", "tiny-llama", (machine,), count=2, precision=each) for each in ("fp32", "bf16"))
    assert bf16.tokens[1].clock_s[machine] < fp32.tokens[1].clock_s[machine]


def test_an_id_comes_before_a_folder_of_the_same_name(tmp_path, monkeypatch):
    write_folder(tmp_path / "tiny-llama")
    write_folder(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    assert generate("the", "tiny-llama", (H100,), count=1).weights is None
    assert generate("the", "./tiny-llama", (H100,), count=1).weights == "tiny-llama"
    assert generate("the", "mine", (H100,), count=1).weights == "mine"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"prompt": ""}, "TEXT = '': write at least one character"),
        ({"prompt": "the " * 300}, "prompt and answer take"),
        ({"prompt": "\udcff"}, "TEXT: is not UTF-8"),
        ({"precision": "int4"}, "--precision = 'int4': not one of: fp32, bf16, fp16"),
        ({"precision": "bf61"}, "did you mean 'bf16'?"),
        ({"model_ref": "./nowhere"}, "nowhere: no such folder; name one with config.json and model.safetensors"),
        ({"model_ref": "smollm-135m"}, "did you mean 'smollm2-135m'?"),
        ({"model_ref": "tiny-bert"}, "is an encoder, which makes no text"),
        ({"model_ref": "llama-3.1-8b"}, "has no weights and no tokenizer here"),
        ({"machines": ("hgx-h100-9",)}, "did you mean 'hgx-h100-8'?"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_mistakes_are_told_apart(folder, given, said):
    with pytest.raises(InputError) as caught:
        generate(**{"prompt": "the", "model_ref": folder, "machines": (H100,)} | given)
    assert said in str(caught.value)

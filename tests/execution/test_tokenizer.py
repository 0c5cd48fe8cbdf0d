"""What each token adds to a text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.execution.tokenizer import Bytes, TokenizerFile, pieces
from tests.execution import small_weights


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> TokenizerFile:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    small_weights.tokenizer().save(str(path))
    return TokenizerFile(path)


def test_a_character_of_several_tokens_comes_with_its_last(tokenizer):
    ids = tokenizer.encode(" 東é")
    assert len(ids) == 6
    assert pieces(tokenizer, tokenizer.encode("in"), ids) == [" ", "", "", "東", "", "é"]
    assert pieces(Bytes(), [65], list("é!".encode())) == ["", "é", "!"]


def test_an_answer_that_stops_within_a_character_shows_it_unfinished(tokenizer):
    assert pieces(tokenizer, [], tokenizer.encode("a東")[:3]) == ["a", "", "\ufffd"]


@pytest.mark.parametrize("kind", ["file", "bytes"])
@given(before=st.text(max_size=10), after=st.text(max_size=30))
def test_pieces_add_up_to_the_text(tokenizer, kind, before, after):
    reader = tokenizer if kind == "file" else Bytes()
    first, ids = reader.encode(before), reader.encode(after)
    assert "".join(pieces(reader, first, ids)) == reader.decode([*first, *ids])[len(before) :]
    assert reader.decode([*first, *ids]) == before + after


def test_a_first_word_keeps_its_space(tmp_path):
    """Vocabularies of SentencePiece write the space into the word, and leave it out at the start of a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    made = Tokenizer(models.BPE({"▁": 0, "a": 1, "▁a": 2}, [("▁", "a")]))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    made.decoder = decoders.Metaspace(prepend_scheme="always")
    made.save(str(tmp_path / "tokenizer.json"))
    reader = TokenizerFile(tmp_path / "tokenizer.json")
    assert reader.encode("a a") == [2, 2]
    assert reader.decode([2]) == "a"
    assert pieces(reader, [2], [2, 2]) == [" a", " a"]

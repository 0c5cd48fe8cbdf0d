"""Records as YAML to fill in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.specs.hardware import Efficiency, Memory, Transition
from simulator.specs.yaml_file import parse_document
from simulator.study.form import Blank, comment, form, scalar

EXAMPLES = {"capacity": "80 GB", "bandwidth": "1 TB/s", "usable": "79 GB", "cache": "50 MB"}


def test_what_is_needed_stands_between_signs_and_the_rest_is_commented_out() -> None:
    lines = form(Memory, {"bandwidth": "2 TB/s"}, Blank(EXAMPLES, frozenset({"capacity"})))
    assert [line for line in lines if "GB" in line or "TB/s" in line or "MB" in line] == [
        "capacity: <80 GB>",
        "bandwidth: 2 TB/s",
        "# usable: 79 GB",
        "# cache: 50 MB",
    ]


@pytest.mark.parametrize("spec", [Memory, Transition, Efficiency])
def test_every_field_has_the_words_of_the_schema_above_it(spec) -> None:
    keys = spec.keys()
    lines = form(spec, {}, Blank(dict.fromkeys(keys, "1")))
    text = " ".join(line.lstrip("# ") for line in lines)
    for field in spec.model_fields.values():
        assert " ".join(str(field.description).split()) in text


def test_comments_are_wrapped() -> None:
    assert comment("word " * 40) == ["# " + "word " * 19 + "word", "# " + "word " * 19 + "word"]


@given(st.one_of(st.text(st.characters(codec="utf-8"), max_size=30), st.sampled_from(["true", "1e3", "a: b", "x #y", "48 GB", "[", "~"])))
def test_a_scalar_reads_back_as_it_was(text: str) -> None:
    assert parse_document(f"key: {scalar(text)}", "f").data == {"key": text}


@given(st.integers(-(10**12), 10**12))
def test_so_does_a_number(number: int) -> None:
    assert parse_document(f"key: {scalar(number)}", "f").data == {"key": number}

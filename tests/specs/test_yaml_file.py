"""Scalars by YAML 1.2, positions of everything, and problems instead of tracebacks."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import InputError
from simulator.specs.yaml_file import parse_document, plain, read_document

from .small_catalogue import lines_of, write


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e3", 1000.0),
        ("1.0e3", 1000.0),
        ("on", "on"),
        ("no", "no"),
        ("017", 17),
        ("0o17", 15),
        ("0x1F", 31),
        ("1:30", "1:30"),
        ("2026-01-01", "2026-01-01"),
        ("30_000", "30_000"),
        ("true", True),
        ("~", None),
        ("", None),
        ("-.inf", float("-inf")),
        ("'8'", "8"),
        ("<<", "<<"),
    ],
)
def test_scalars(text: str, expected: Any) -> None:
    value = parse_document(f"key: {text}", "x.yaml").data["key"]
    assert value == expected
    assert isinstance(value, type(expected))


def test_knows_where_every_key_and_value_stands() -> None:
    document = parse_document("a: 1\nb:\n  - c: 2\n    d: three\n", "x.yaml")
    mark = document.marks["b", 0, "d"]
    assert (mark.key_line, mark.key_column, mark.line, mark.column) == (4, 5, 4, 8)
    assert document.at(("b", 0, "d")).loc == ("b", 0, "d")
    assert plain(document.data) == {"a": 1, "b": [{"c": 2, "d": "three"}]}


def test_every_duplicate_key_is_named_with_its_first_line() -> None:
    found = lines_of(lambda: parse_document("a: 1\nb: {c: 1, c: 2}\na: 2\n", "x.yaml"))
    assert found == [
        "x.yaml:2:11: b.c: duplicate key, first at line 2",
        "x.yaml:3:1: a: duplicate key, first at line 1",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [1, 2\nb: 3", "x.yaml:2:2: not valid YAML"),
        ("a: b: c", "x.yaml:1:5: not valid YAML"),
        ("a: 1\n---\nb: 2", "x.yaml:2:1: not valid YAML"),
        ("a: *nobody", "x.yaml:1:4: not valid YAML"),
        ("a: \x00", "x.yaml:1:1: not valid YAML"),
        ("a: !!python/object:os.system x", "x.yaml:1:4: a: tags such as"),
        ("a: !mine {b: 1}", "x.yaml:1:4: a: tags such as"),
        ("a: &a [*a]", "an alias may not contain itself"),
        ("{[1]: 2}", "a key is a single word"),
        ("a: !!int x", "is not of type int"),
    ],
)
def test_bad_yaml_is_a_problem(text: str, expected: str) -> None:
    assert expected in lines_of(lambda: parse_document(text, "x.yaml"))[0]


@pytest.mark.parametrize("deep", ["[" * 1_000_000, "- " * 1_000_000, "{a: " * 5000, "[" * 101 + "]" * 101])
def test_nesting_without_end_is_a_problem(deep: str) -> None:
    """A million levels would overflow the stack of the YAML library, which no Python code can catch."""
    (line,) = lines_of(lambda: parse_document(deep, "x.yaml"))
    assert line.startswith("x.yaml:1:")
    assert line.endswith("nested too deep; write at most 100 lists or mappings inside one another")


def test_nesting_by_aliases_is_a_problem_too() -> None:
    levels = [f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 300)]
    found = lines_of(lambda: parse_document("\n".join(["a0: &a0 [1]", *levels]), "x.yaml"))
    assert "nested too deep" in found[0]


@pytest.mark.slow
def test_aliases_of_aliases_do_not_fill_the_memory() -> None:
    levels = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    (line,) = lines_of(lambda: parse_document("\n".join(["a0: &a0 [1]", *levels]), "x.yaml"))
    assert line == "x.yaml:1:1: holds more than 300,000 values, aliases written out"


@pytest.mark.parametrize("number", ["9" * 5000, "0x" + "f" * 5000, "-" + "1" * 101])
def test_a_number_of_too_many_digits_is_a_problem(number: str) -> None:
    (line,) = lines_of(lambda: parse_document(f"a: {number}", "x.yaml"))
    assert line == "x.yaml:1:4: a: a number of more than 100 digits; write a smaller"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9")
    assert "no such file" in lines_of(lambda: read_document(tmp_path / "none.yaml"))[0]
    assert "folder" in lines_of(lambda: read_document(tmp_path))[0]
    assert "UTF-8" in lines_of(lambda: read_document(tmp_path / "latin.yaml"))[0]


def test_json_with_tabs_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, "config.json", '{\n\t"eps": 1e-05,\n\t"tie": false\n}')
    assert read_document(path).data == {"eps": 1e-05, "tie": False}


@given(st.text(alphabet="ab:{}[]-&*!'\"\n ,.1#|>%@", max_size=40))
def test_any_text_is_a_document_or_an_input_error(text: str) -> None:
    try:
        parse_document(text, "x.yaml")
    except InputError as error:
        assert "x.yaml" in str(error)

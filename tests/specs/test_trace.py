"""Traces: the columns of published ones, and every way a file can be wrong."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import InputError
from simulator.specs.trace import load_trace

from .small_catalogue import lines_of, write

HEADER = "arrival_s,prompt_tokens,output_tokens\n"


@pytest.mark.parametrize(
    "text",
    [
        HEADER + "0,374,44\n1.5,396,109\n",
        "timestamp_ms,input_length,output_length,hash_ids\n0,374,44,0\n1500,396,109,2\n",
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.68,374,44\n2023-11-16 18:15:48.1800000,396,109\n",
    ],
)
def test_reads_the_columns_of_published_traces(tmp_path: Path, text: str) -> None:
    trace = load_trace(write(tmp_path, "t.csv", text))
    assert trace.arrival_s == pytest.approx((0.0, 1.5))
    assert (trace.prompt_tokens.tolist(), trace.output_tokens.tolist(), len(trace)) == ([374, 396], [44, 109], 2)


def test_takes_the_first_requests(tmp_path: Path) -> None:
    path = write(tmp_path, "t.csv", HEADER + "0,1,1\n1,2,2\n2,3,3\n")
    assert load_trace(path, 2).prompt_tokens.tolist() == [1, 2]
    assert lines_of(lambda: load_trace(path, 4)) == ["t.csv: holds 3 requests, 4 are asked for"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["t.csv:1: no column of arrivals", "t.csv:1: no column of prompt", "t.csv:1: no column of output"]),
        ("arrival_s,prompt_tokens\n0,1\n", ["t.csv:1: no column of output lengths; name one of: output_tokens"]),
        (HEADER, ["t.csv:1: holds no request"]),
        (
            HEADER + "0,x,1\n-1,1,0\n",
            ["t.csv:2: prompt_tokens = 'x': write", "t.csv:3: arrival_s", "t.csv:3: output_tokens"],
        ),
        (HEADER + "nan,1,1\n", ["t.csv:2: arrival_s = 'nan'"]),
        (HEADER + "0,1\n", ["t.csv:2: output_tokens = ''"]),
        (HEADER + "5,1,1\n4,1,1\n", ["t.csv:3: arrives before the row above"]),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,1\n", ["t.csv:2: TIMESTAMP = 'yesterday'"]),
        (HEADER + "1e300,1,1\n", ["t.csv:2: arrival_s = '1e300': write a time that is not negative and at most"]),
        (HEADER + "1_0,1,1\n", ["t.csv:2: arrival_s = '1_0'"]),
        (HEADER + "٣,1,1\n", ["t.csv:2: arrival_s = '٣'"]),
        (HEADER + "0,1_0,٣\n", ["t.csv:2: prompt_tokens = '1_0'", "t.csv:2: output_tokens = '٣'"]),
        (HEADER + f"0,{'9' * 30},1000000001\n",
         [f"t.csv:2: prompt_tokens = '{'9' * 30}': write a whole number from 1 to 1,000,000,000",
          "t.csv:2: output_tokens"]),
        ("timestamp_ms,input_length,output_length\n1e10,1,1\n", ["t.csv:2: timestamp_ms = '1e10'"]),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-01-01,1,1\n2023-04-12,1,1\n",
         ["t.csv:3: arrives more than 100 days after"]),
        (HEADER + '0,"1,1\n', ["t.csv:2: prompt_tokens", "t.csv:2: output_tokens"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(tmp_path: Path, text: str, expected: list[str]) -> None:
    path = write(tmp_path, "t.csv", text)
    found = lines_of(lambda: load_trace(path))
    assert len(found) == len(expected)
    assert all(line.startswith(start) for line, start in zip(found, expected, strict=True)), found


def test_a_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"\xff\xfe\x00")
    assert "UTF-8" in lines_of(lambda: load_trace(tmp_path / "t.csv"))[0]
    assert "no such file" in lines_of(lambda: load_trace(tmp_path / "none.csv"))[0]


@given(st.text(alphabet='0123456789.,-"\nxe \0', max_size=60))
def test_any_rows_are_a_trace_or_an_input_error(tmp_path_factory: pytest.TempPathFactory, rows: str) -> None:
    path = tmp_path_factory.mktemp("trace") / "t.csv"
    path.write_text(HEADER + rows, encoding="utf-8")
    try:
        assert len(load_trace(path)) > 0
    except InputError as error:
        assert "t.csv" in str(error)

"""Traces: the columns of published ones, and every way a file can be wrong."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import InputError
from simulator.serving.arrivals import from_trace
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


JSONL = """{"timestamp": 0, "input_length": 1000, "output_length": 44, "hash_ids": [7, 8]}
{"timestamp": 1500, "input_length": 1300, "output_length": 109, "hash_ids": [7, 8, 9], "other": {"a": 1}}

{"timestamp": 1500, "input_length": 3, "output_length": 1, "hash_ids": []}
"""


def test_ids_of_blocks_are_what_prompts_share(tmp_path: Path) -> None:
    """Mooncake's own form, and the same with ids in a CSV column."""
    table = "timestamp_ms,input_length,output_length,hash_ids\n0,1000,44,7 8\n1500,1300,109,7 8 9\n1500,3,1,\n"
    for path in (write(tmp_path, "t.jsonl", JSONL), write(tmp_path, "t.csv", table)):
        requests = from_trace(load_trace(path))
        assert [r.sent_s for r in requests] == [0.0, 1.5, 1.5]
        assert [r.prefix for r in requests] == [(7, 8), (7, 8, 9), ()]
        assert {r.prefix_block_tokens for r in requests} == {512}
        assert from_trace(load_trace(path, hash_block=2000 // 4))[1].prefix_block_tokens == 500


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["t.jsonl:1: no column of arrivals", "t.jsonl:1: no column of prompt", "t.jsonl:1: no column of output"]),
        ("[1]\n", ["t.jsonl:1: write an object a line"]),
        ("{\n", ["t.jsonl:1: not valid JSON"]),
        ("[" * 100_000, ["t.jsonl:1: not valid JSON"]),
        (JSONL + '{"timestamp": 1600, "input_length": true, "output_length": 2.5}\n',
         ["t.jsonl:5: input_length = 'True': write a whole", "t.jsonl:5: output_length = '2.5'"]),
        (JSONL + '{"timestamp": NaN, "input_length": 0, "output_length": 1, "hash_ids": "x"}\n',
         ["t.jsonl:5: timestamp = 'nan'", "t.jsonl:5: input_length = '0'", "t.jsonl:5: hash_ids = 'x': write the ids"]),
        (JSONL + '{"timestamp": 1600, "input_length": 512, "output_length": 1, "hash_ids": [1, 2]}\n',
         ["t.jsonl:5: has more hash_ids than its prompt has blocks of 512 tokens"]),
    ],
)  # fmt: skip
def test_what_is_wrong_in_json_is_named(tmp_path: Path, text: str, expected: list[str]) -> None:
    found = lines_of(lambda: load_trace(write(tmp_path, "t.jsonl", text)))
    assert len(found) == len(expected), found
    assert all(line.startswith(start) for line, start in zip(found, expected, strict=True)), found


def test_priorities_are_read_or_replaced(tmp_path: Path) -> None:
    path = write(tmp_path, "t.csv", "arrival_s,prompt_tokens,output_tokens,priority\n0,1,1,3\n1,1,1,0\n")
    assert [r.priority for r in from_trace(load_trace(path))] == [3, 0]
    assert [r.priority for r in from_trace(load_trace(path), 1, {5: 1.0})] == [5, 5]
    (line,) = lines_of(lambda: load_trace(write(tmp_path, "u.csv", path.read_text().replace(",3", ",-3"))))
    assert line.startswith("u.csv:2: priority = '-3': write a whole number from 0 to 1,000,000")


def test_a_trace_may_be_played_faster_and_again(tmp_path: Path) -> None:
    """Three requests in 4 s, a mean gap of 2 s: again from 7 s on; at twice the rate all in half the time."""
    path = write(tmp_path, "t.csv", "arrival_s,prompt_tokens,output_tokens,hash_ids\n1,1,1,5\n2,2,2,6\n5,3,3,\n")
    twice = load_trace(path, repeat=2)
    assert twice.arrival_s.tolist() == [1, 2, 5, 7, 8, 11]
    assert load_trace(path, rate_scale=2, repeat=2).arrival_s.tolist() == [0.5, 1, 2.5, 3.5, 4, 5.5]
    assert [r.prefix for r in from_trace(twice)] == [(5,), (6,), ()] * 2
    assert load_trace(path, 4, repeat=9).prompt_tokens.tolist() == [1, 2, 3, 1]
    assert load_trace(path, 2, repeat=9).prompt_tokens.tolist() == [1, 2]
    assert lines_of(lambda: load_trace(path, 7, repeat=2)) == ["t.csv: holds 6 requests, 7 are asked for"]
    (line,) = lines_of(lambda: load_trace(path, rate_scale=1e-3, repeat=10_000))
    assert line.startswith("t.csv: takes longer than 100 days at 0.001 of its rate, 10000 times over")


rows_of_traces = st.lists(
    st.tuples(st.integers(0, 10**6), st.integers(1, 10**9), st.integers(1, 10**9), st.integers(0, 10**6)), min_size=1
)


@given(rows_of_traces)
def test_traces_round_trip(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, int, int, int]]) -> None:
    rows.sort()
    path = tmp_path_factory.mktemp("trace") / "t.csv"
    lines = [",".join(map(str, row)) for row in rows]
    path.write_text("timestamp_ms,prompt_tokens,output_tokens,priority\n" + "\n".join(lines), encoding="utf-8")
    requests = from_trace(load_trace(path))
    found = [(round(r.sent_s * 1000), r.prompt_tokens, r.output_tokens, r.priority) for r in requests]
    assert found == rows


def test_a_problem_in_a_long_file_is_found_at_its_line(tmp_path: Path) -> None:
    rows = [f"{number},1,1" for number in range(20_000)]
    rows[15_000] = "15000,one,1"
    rows[15_002] = "3,1,1"
    found = lines_of(lambda: load_trace(write(tmp_path, "t.csv", HEADER + "\n".join(rows))))
    assert found[0].startswith("t.csv:15002: prompt_tokens = 'one'")
    assert found[1].startswith("t.csv:15004: arrives before the row above")
    assert len(found) == 2


def test_cells_that_are_odd_and_right_are_read(tmp_path: Path) -> None:
    """Spaces around numbers, quotes, other columns."""
    text = 'name,arrival_s,prompt_tokens,output_tokens\n"a,\nb", 0 ," 7",8 \nc,1e0,9,10\n'
    trace = load_trace(write(tmp_path, "t.csv", text))
    assert (trace.arrival_s.tolist(), trace.prompt_tokens.tolist()) == ([0.0, 1.0], [7, 9])


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

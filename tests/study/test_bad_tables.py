"""Measured tables with cells that nothing can have measured: one message that names the cell, never a traceback."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as parquet  # type: ignore[import-untyped]
import pytest

from simulator import cli
from simulator.errors import InputError
from simulator.specs.catalogue import Catalogue
from simulator.study.calibration.collectives import read_collectives
from simulator.study.calibration.columns import Columns, read_columns
from simulator.study.calibration.copies import read_copies
from simulator.study.calibration.published_collectives import read_published
from simulator.study.calibration.readers import layer_profiles, read_samples

Row = dict[str, Any]

MATMUL: Row = {"operator": "matmul", "precision": "bf16", "time_us": 20, "m": 64, "n": 512, "k": 256, "copies": 1}
ATTENTION: Row = {
    "operator": "attention_decode", "precision": "bf16", "time_us": 20, "batch": 4, "new": 1, "context": 100,
    "heads": 8, "kv_heads": 2, "head_dim": 64,
}  # fmt: skip
NORM: Row = {"operator": "norm", "precision": "bf16", "time_us": 3, "bytes": 4096}
GEMM: Row = {"system": "l40s", "gemm_dtype": "bfloat16", "m": 64, "n": 512, "k": 256, "latency_ms": 0.02}
SERVED: Row = {
    "system": "l40s", "batch_size": 2, "isl": 16, "step": 0, "num_heads": 8, "num_key_value_heads": 2, "head_dim": 64,
    "window_size": 0, "latency_ms": 0.02,
}  # fmt: skip
EXPERTS: Row = {
    "moe_dtype": "bfloat16", "num_tokens": 4, "hidden_size": 64, "inter_size": 32, "topk": 2, "num_experts": 8,
    "moe_tp_size": 1, "moe_ep_size": 1, "distribution": "balanced", "latency": 0.5, "device": "NVIDIA L40S",
}  # fmt: skip
VIDUR: Row = {
    "gpu": "a100", "num_tokens": 8, "num_tensor_parallel_workers": 2, "n_embd": 4096, "n_head": 32, "n_kv_head": 8,
    "n_expanded_embd": 14336, "use_gated_mlp": "True", "emb_ms_median": 0.01, "mlp_up_proj_ms_median": 0.2,
}  # fmt: skip
LAYER: Row = {
    "gpu": "l40s", "model": "meta-llama/Llama-3.1-8B", "dtype": "bfloat16", "tp": 2, "layer": "qkv_proj", "tokens": 8,
    "time_us": 20,
}  # fmt: skip
BATCH: Row = {
    "gpu": "l40s", "model": "meta-llama/Llama-3.1-8B", "dtype": "bfloat16", "tp": 2, "prefill_chunk": 16,
    "kv_prefill": 0, "n_decode": 4, "kv_decode": 100, "time_us": 20,
}  # fmt: skip
COMPASS: Row = {
    "device": "A100", "op": "matmul_fp16", "M": 64, "K": 128, "N": 256, "latency_ms": 0.2, "throughput": 2,
    "unit": "TFLOPS",
}  # fmt: skip
BEST: Row = {
    "dtype": "BF16", "accelerator": "NVIDIA B200 SXM", "measured_matmul_tflops": 1000, "best_shape_mnk": "64x128x256",
}  # fmt: skip
COPY: Row = {"operator": "copy", "direction": "to_host", "pinned": "true", "bytes": 1024, "time_us": 9.5}
COLLECTIVE: Row = {
    "operator": "collective", "algorithm": "all_reduce", "by": "library", "ranks": 2, "bytes": 1024, "time_us": 9.5,
}  # fmt: skip
NCCL: Row = {
    "system": "h100_sxm", "op_name": "all_reduce", "nccl_dtype": "half", "num_gpus": 8, "message_size": 1024,
    "latency_ms": 0.02,
}  # fmt: skip

REST = [f"{name}_ms_median" for name in layer_profiles.VIDUR if name not in ("emb", "mlp_up_proj")]
"""The other times of a row of Vidur's."""

NO_COUNT = ("inf", "1e300", "-1", "0", "", "NaN", "many")
NO_AMOUNT = ("inf", "1e300", "-100", "many")
"""Where 0 says that there is none, and a blank cell too."""
NO_TIME = ("0", "-3", "inf", "-inf", "1e300", "1e-320", "", "NaN", "soon")

CASES: list[tuple[str, Row, str, tuple[str, ...]]] = [
    *[("matmul", MATMUL, name, NO_COUNT) for name in ("m", "n", "k")],
    ("matmul", MATMUL, "copies", ("0", "inf")),
    *[("attention", ATTENTION, name, NO_COUNT) for name in ("batch", "new", "heads", "kv_heads", "head_dim")],
    ("attention", ATTENTION, "context", NO_AMOUNT),
    ("norm", NORM, "bytes", NO_TIME),
    *[("operators", row, "time_us", NO_TIME) for row in (MATMUL, ATTENTION, NORM)],
    *[("gemm", GEMM, name, NO_COUNT) for name in ("m", "n", "k")],
    ("gemm", GEMM, "latency_ms", NO_TIME),
    *[("served", SERVED, name, NO_COUNT) for name in ("batch_size", "isl", "num_heads", "head_dim")],
    *[("served", SERVED, name, NO_AMOUNT) for name in ("step", "window_size")],
    *[("experts", EXPERTS, name, NO_COUNT) for name in ("num_tokens", "topk", "num_experts", "moe_tp_size")],
    ("experts", EXPERTS, "latency", NO_TIME),
    *[("vidur", VIDUR, name, NO_COUNT) for name in ("num_tokens", "num_tensor_parallel_workers", "n_kv_head")],
    ("vidur", VIDUR, "emb_ms_median", NO_AMOUNT),
    ("layer", LAYER, "tp", (*NO_COUNT, "64", "3", "1.5")),
    ("layer", LAYER, "tokens", NO_COUNT),
    ("layer", LAYER, "time_us", NO_TIME),
    ("batch", BATCH, "tp", (*NO_COUNT, "64")),
    *[("batch", BATCH, name, (*NO_AMOUNT, "")) for name in ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode")],
    ("idle", BATCH | {"prefill_chunk": 0}, "n_decode", ("0",)),
    *[("compass", COMPASS, name, NO_COUNT) for name in ("M", "K", "N")],
    ("compass", COMPASS, "latency_ms", NO_AMOUNT),
    ("compass untimed", COMPASS | {"latency_ms": ""}, "throughput", NO_TIME),
    ("best", BEST, "measured_matmul_tflops", NO_TIME),
    ("best", BEST, "best_shape_mnk", ("", "64x128", "64x128x256x2", "64xAx256", "0x128x256", "-1x128x256", "infx1x1")),
    *[("copy", COPY, name, NO_TIME) for name in ("bytes", "time_us")],
    *[("collective", COLLECTIVE, name, NO_TIME) for name in ("bytes", "time_us")],
    ("collective", COLLECTIVE, "ranks", (*NO_COUNT, "1", "2.5")),
    ("nccl", NCCL, "num_gpus", (*NO_COUNT, "1")),
    *[("nccl", NCCL, name, NO_TIME) for name in ("message_size", "latency_ms")],
]


def write(path: Path, *rows: Row) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def read(columns: Columns, table: str) -> int:
    """How many rows the reader of a table makes something of."""
    readers = {"copy": read_copies, "collective": read_collectives, "nccl": lambda each: read_published(each).rows}
    if table in readers:
        return len(readers[table](columns))
    return sum(map(len, read_samples(columns, Catalogue()).samples))


@pytest.mark.parametrize(
    ("table", "row", "name", "cell"),
    [
        pytest.param(table, row, name, cell, id=f"{table}-{name}-{cell or 'blank'}")
        for table, row, name, cells in CASES
        for cell in cells
    ],
)
def test_a_bad_cell_is_named_with_its_line(tmp_path: Path, table: str, row: Row, name: str, cell: str) -> None:
    with pytest.raises(InputError) as caught:
        read(read_columns(write(tmp_path / "t.csv", row, row | {name: cell})), table)
    (problem,) = caught.value.problems
    assert (problem.line, problem.key) == (3, name)
    assert "write" in problem.advice
    assert (problem.value is None) == (cell == "NaN" or (cell == "" and name != "best_shape_mnk"))


@pytest.mark.parametrize(("table", "row"), {table: (table, row) for table, row, *_ in CASES if table != "idle"}.values())
def test_a_good_row_beside_it_is_read(tmp_path: Path, table: str, row: Row) -> None:
    assert read(read_columns(write(tmp_path / "t.csv", row, row)), table) >= 2


def test_a_blank_cell_is_said_to_be_blank(tmp_path: Path) -> None:
    for path in (write(tmp_path / "t.csv", GEMM, GEMM | {"m": "nan"}), tmp_path / "t.parquet"):
        if path.suffix == ".parquet":
            parquet.write_table(pa.Table.from_pylist([GEMM | {"m": 1.0}, GEMM | {"m": float("nan")}]), path)
        with pytest.raises(InputError, match=r"m: is blank; write a number from 1 to 1e\+09"):
            read_samples(read_columns(path), Catalogue())


def test_a_word_is_named_and_not_the_blank_cell_above_it(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", ATTENTION | {"context": ""}, ATTENTION | {"context": "long"})
    with pytest.raises(InputError, match=r"t.csv:3: context = 'long': write a number"):
        read_samples(read_columns(path), Catalogue())


def test_what_is_missing_but_not_wrong_is_still_counted(tmp_path: Path) -> None:
    """An operator of a layer without a time, or too short for the table; an operator without sides."""
    vidur = [VIDUR | dict.fromkeys(REST, 1) | {"emb_ms_median": cell} for cell in (0.01, "", 0)]
    others = [COMPASS, COMPASS | {"op": "gelu", "K": "", "N": "", "latency_ms": ""}]
    blank = "emb: blank, or shorter than the microsecond the table counts in"
    assert read_samples(read_columns(write(tmp_path / "v.csv", *vidur)), Catalogue()).unmapped == {blank: 2}
    found = read_samples(read_columns(write(tmp_path / "c.csv", *others)), Catalogue())
    assert (sum(map(len, found.samples)), sum(found.unmapped.values())) == (1, 1)


def test_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("operator,precision,time_us,m, m,n,k,,\nmatmul,bf16,20,1,2,3,4,,\n")
    with pytest.raises(InputError, match=r"t.csv:1: m: the header has this column more than once"):
        read_columns(path)


def test_columns_without_a_name_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("operator,precision,time_us,m,n,k,,\nmatmul,bf16,20,2,3,4,,\n")
    assert read(read_columns(path), "matmul") == 1


@pytest.mark.parametrize("cells", [[[1], [2]], [b"\xff", b"\xfe"], [{"a": 1}, None]])
def test_a_column_of_something_else_is_named(tmp_path: Path, cells: list[Any]) -> None:
    table = pa.Table.from_pylist([GEMM, GEMM])
    for name in ("m", "gemm_dtype"):
        place = table.column_names.index(name)
        parquet.write_table(table.set_column(place, name, pa.array(cells)), tmp_path / "t.parquet")
        with pytest.raises(InputError, match=rf"t.parquet:1: {name}: cells of this column are neither numbers nor text"):
            read_samples(read_columns(tmp_path / "t.parquet"), Catalogue())


def test_a_table_in_another_encoding_or_without_rows(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes("operator,precision,time_us,m,n,k\nmatmul,bf16,20,1,2,3\nprodüct,bf16,20,1,2,3\n".encode("latin-1"))
    with pytest.raises(InputError, match="operator: cells of this column are neither"):
        read_samples(read_columns(path), Catalogue())
    path.write_bytes("operator,prÃcision\n".encode("latin-1"))
    with pytest.raises(InputError, match="cannot be read as a CSV table"):
        read_columns(path)
    path.write_text("operator,precision,time_us,m,n,k\n")
    assert read(read_columns(path), "matmul") == 0


@pytest.mark.parametrize("command", ["fit", "validate"])
def test_the_command_says_so_and_ends_with_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    path = str(write(tmp_path / "t.csv", MATMUL, MATMUL | {"m": "inf"}))
    arguments = ["calibrate", "fit", path, "--device", "l4", "--dry-run"] if command == "fit" else ["validate", path]
    monkeypatch.setattr("sys.argv", ["placewright", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "t.csv:3: m = 'inf': write a number from 1 to 1e+09" in error
    assert "Traceback" not in error

"""Measured kernels: read, fitted, written into a profile, looked up, judged."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as parquet  # type: ignore[import-untyped]
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.costs.operators import kernel_rates, kernel_s, rates_of
from simulator.errors import InputError
from simulator.graph.attention import attention_operators
from simulator.graph.bench import Bench
from simulator.graph.machine import Correction
from simulator.graph.shape import Amount, Chunk, StepShape, Traits
from simulator.graph.share import Share
from simulator.graph.work import Formats, Value
from simulator.simulation.pricing import PricedTemplate
from simulator.specs.catalogue import Catalogue
from simulator.specs.hardware import Device, Efficiency, Memory
from simulator.specs.load import load
from simulator.study.calibration import silicon
from simulator.study.calibration.calibrate import fit_device
from simulator.study.calibration.columns import read_columns
from simulator.study.calibration.fit import FittedClass, fit, predict
from simulator.study.calibration.judge import judge, lending, scores
from simulator.study.calibration.lookup import Lookup
from simulator.study.calibration.measured_times import TableTimes, with_measured_times
from simulator.study.calibration.profile_text import efficiency_line, rounded, with_numbers
from simulator.study.calibration.readers import read_samples
from simulator.study.calibration.samples import (
    Heads,
    Part,
    Samples,
    decode_load,
    groups,
    matmul_load,
    prefill_load,
)
from simulator.study.validate import validate
from tests import tiny
from tests.tables import write

PUBLISHED = Path(__file__).parents[3] / "shared" / "data" / "operators"
needs_tables = pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published tables are not beside the project")

TRUE = Efficiency(
    compute=0.7, memory=0.8, overhead_s=3e-6, blend=2.0, chain_s=1.5e-9, chain_most=2048, block=0, split_s=0.0
)
DEVICE = tiny.device(flops=300e12, bandwidth=2e12).model_copy(
    update={"units": 100, "memory": Memory(capacity_bytes=80e9, bandwidth_bytes_per_s=2e12, cache_bytes=None)}
)


def products(device: str, efficiency: Efficiency = TRUE, noise: float = 0.0, table: str = "made-up") -> Samples:
    """Products of many shapes that take exactly what the formula says, or nearly."""
    sides = np.array([*itertools.product((1.0, 16, 256, 4096), (512.0, 2048, 8192), (256.0, 1024, 4096, 16384))])
    m, n, k = sides.T
    load = matmul_load(m, n, k, "bf16", "bf16")
    time_s = kernel_s(load, rates_of(DEVICE, efficiency, 300e12))
    time_s = time_s * np.exp(noise * np.random.default_rng(1).standard_normal(len(time_s)))
    return Samples(table, device, (Part("matmul", "bf16", load),), time_s, {"m": m, "n": n, "k": k}, groups((n, k)))


def own_rows(samples: Samples) -> list[dict[str, Any]]:
    m, n, k = (samples.shape[side] for side in "mnk")
    return [
        {"operator": "matmul", "precision": "bf16", "time_us": t * 1e6, "m": a, "n": b, "k": c}
        for a, b, c, t in zip(m, n, k, samples.time_s, strict=True)
    ]


# -- the fit -------------------------------------------------------------------------------------------------


def test_a_fit_finds_the_numbers_that_made_the_times() -> None:
    found = fit({"x": DEVICE}, [products("x")])["matmul", "bf16"]
    assert found.compute == pytest.approx(0.7, rel=0.02)
    assert found.memory == pytest.approx(0.8, rel=0.02)
    assert found.overhead_s == pytest.approx(3e-6, rel=0.05)
    assert found.chain_s == pytest.approx(1.5e-9, rel=0.1)


def test_a_few_wild_rows_do_not_move_it() -> None:
    """One row in ten takes ten times as long."""
    samples = products("x")
    time_s = samples.time_s.copy()
    time_s[::10] *= 10
    wild = Samples(samples.table, "x", samples.parts, time_s, samples.shape, samples.group)
    found = fit({"x": DEVICE}, [wild])["matmul", "bf16"]
    errors = np.abs(predict(samples, DEVICE, {("matmul", "bf16"): found}) / samples.time_s - 1)
    assert np.median(errors) < 0.03


@settings(max_examples=8, deadline=None)
@given(
    compute=st.floats(0.3, 0.95), memory=st.floats(0.4, 0.95), overhead_us=st.floats(1, 15), blend=st.floats(1.2, 5)
)
def test_any_numbers_are_found_again_as_times(
    compute: float, memory: float, overhead_us: float, blend: float
) -> None:
    """The numbers may trade off against each other; what they predict may not."""
    true = Efficiency(compute=compute, memory=memory, overhead_s=overhead_us * 1e-6, blend=blend)
    samples = products("x", true)
    found = fit({"x": DEVICE}, [samples])
    errors = np.abs(predict(samples, DEVICE, found) / samples.time_s - 1)
    assert np.quantile(errors, 0.9) < 0.05


def test_the_same_rows_give_the_same_numbers() -> None:
    samples = [products("x", noise=0.1)]
    assert fit({"x": DEVICE}, samples) == fit({"x": DEVICE}, samples)


# -- loads are counted as the work graph counts them ----------------------------------------------------------


def test_loads_of_tables_are_those_of_the_work_graph() -> None:
    """Projection, attention of prompts and of decode of the tiny model, 3 sequences of 40 new or cached tokens."""
    formats = Formats("bf16", "bf16", "bf16")
    bench, model = Bench.of(tiny.LLAMA, Share(), formats), tiny.LLAMA
    operators = {each.name: each for each in attention_operators(bench, 0, "x", Value("y", Amount.of(tokens=24)))}
    attention = tiny.ATTENTION
    heads = Heads(*(np.array([float(n)]) for n in (attention.num_attention_heads, attention.num_key_value_heads,
                                                   attention.head_dim)))  # fmt: skip
    three, forty, none = np.array([3.0]), np.array([40.0]), np.array([0.0])
    prompts = StepShape.of([Chunk(number, 0, 40, True) for number in range(3)])
    decodes = StepShape.of([Chunk(number, 39, 1, True) for number in range(3)])
    prefill, decode = operators["attention"].works
    for work, shape, counted in (
        (prefill, prompts, prefill_load(three, forty, none, heads, "bf16")),
        (decode, decodes, decode_load(three, forty, heads, "bf16")),
    ):
        assert work.flops.at(shape) == counted.flops[0]
        assert work.moved_bytes.at(shape) == counted.moved_bytes[0]
        assert work.block_flops.at(shape) == counted.block_flops[0]
        assert work.block_bytes.at(shape) == counted.block_bytes[0]
        assert work.joint_flops.at(shape) == counted.joint_flops[0]
    (product,) = operators["qkv_proj"].works
    widths = attention.head_dim * (attention.num_attention_heads + 2 * attention.num_key_value_heads)
    sides = (np.array([float(side)]) for side in (120, widths, model.hidden_size))
    counted = matmul_load(*sides, "bf16", "bf16")
    assert (product.flops.at(prompts), product.moved_bytes.at(prompts)) == (counted.flops[0], counted.moved_bytes[0])
    assert product.chain == counted.chain[0]


# -- the profile ---------------------------------------------------------------------------------------------


def test_numbers_go_into_the_profile_and_the_rest_stays(tmp_path: Path) -> None:
    table = write(tmp_path / "mine.csv", own_rows(products("l4")))
    fitted = fit_device([table], "l4", ref="my bench", date="2026-11-20", out=tmp_path)
    (products_of,) = fitted.classes
    assert (products_of.key, products_of.samples) == ("matmul.bf16", 48)
    before = Catalogue().path("devices", "l4").read_text()
    kept = [line for line in before.splitlines() if line in fitted.text.splitlines()]
    assert kept == before.splitlines()
    target = tmp_path / fitted.path
    target.parent.mkdir(parents=True)
    target.write_text(fitted.text)
    device = load(target, Device)
    assert device.efficiency["matmul.bf16"] == products_of.efficiency
    source = device.sources["efficiency.matmul.bf16"]
    assert (source.kind, source.ref, source.date, source.samples) == ("measured", "my bench", "2026-11-20", 48)
    again = fit_device([table], "l4", ref="my bench", date="2026-11-20", out=tmp_path)
    assert again.text == fitted.text  # what was fitted before is replaced, not repeated


PROFILE = """\
name: Mine
kind: gpu
memory: {capacity: 24 GB, bandwidth: 300 GB/s, efficiency: 0.8}
flops: {bf16: 121 TFLOP/s}
power: {idle: 10 W, busy: 70 W}
"""


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ("efficiency:\n      norm: {compute: 1, memory: 0.7, overhead: 2 us}   # kept\n", "      matmul.bf16: {"),
        ("efficiency: {}\n", "  matmul.bf16: {"),
        ("efficiency:\n", "  matmul.bf16: {"),
        ("", "  matmul.bf16: {"),
    ],
)
def test_numbers_fit_in_however_a_section_is_written(tmp_path: Path, section: str, expected: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(PROFILE + section)
    fitted = FittedClass("matmul", "bf16", rounded(TRUE), 48, 0.01, 0.02)
    text = with_numbers(path, [fitted], "my bench", None)
    assert f"\n{expected}" in text
    found = yaml.safe_load(text)
    assert set(found["efficiency"]) == {"matmul.bf16"} | ({"norm"} if "norm" in section else set())
    assert found["sources"]["efficiency.matmul.bf16"]["samples"] == 48
    assert "# kept" in text or "norm" not in section


@pytest.mark.parametrize("text", ["efficiency: {norm: {compute: 1}}\n", "{name: Mine}\n"])
def test_a_profile_that_cannot_be_changed_in_its_place_says_so(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"lines `key: value`"):
        with_numbers(path, [FittedClass("matmul", "bf16", rounded(TRUE), 48, 0.01, 0.02)], "my bench", None)


def test_a_table_that_is_not_there_is_named_once(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    text = Catalogue().path("devices", "l4").read_text()
    path.write_text(text.replace("kind: gpu\n", "kind: gpu\ntables: [none.csv]\n"))
    with pytest.raises(InputError) as caught:
        load(path, Device)
    assert [problem.key for problem in caught.value.problems] == ["tables.0"]
    assert "no such file; looked in" in str(caught.value)


def test_numbers_are_judged_as_they_are_written() -> None:
    exact = TRUE.model_copy(update={"compute": 0.123456, "chain_most": 2047.6, "cached_bytes_per_s": 18.26e9})
    assert rounded(exact).compute == 0.123
    assert efficiency_line(rounded(exact)) == efficiency_line(exact)
    assert "chain_most: 2048" in efficiency_line(exact)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"operator": "matmull", "precision": "bf16", "time_us": 1}], "did you mean 'matmul'"),
        ([{"operator": "matmul", "precision": "bf17", "time_us": 1}], "precision = 'bf17': one of: "),
        ([{"operator": "matmul", "precision": "bf16", "time_us": "x"}], "time_us = 'x': write a number"),
        ([{"operator": "matmul", "precision": "bf16", "time_us": -1}], "write a number above 0"),
        ([{"operator": "matmul", "precision": "bf16", "time_us": 1, "m": 1, "n": 2}], "k: no such column"),
        ([{"operator": "matmul", "precision": "bf16", "time_us": 1, "m": 1, "n": 2, "k": ""}], ":2: k: is blank; write a number from 1"),
        ([{"operator": "matmul", "precision": "bf16", "time_us": 1, "m": 1, "n": 2, "k": 3}], "fewer than 12 rows"),
        ([{"operator": "copy", "precision": "", "time_us": 1}], "a figure of a link"),
        ([{"a": 1}], "no table of kernels is known"),
    ],
)
def test_a_table_that_cannot_be_used_says_why(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    table = write(tmp_path / "bad.csv", rows)
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        fit_device([table], "l4")


def test_other_mistakes_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read as a CSV table"):
        fit_device([tmp_path / "none.csv"], "l4")
    table = write(tmp_path / "mine.csv", own_rows(products("l4")))
    with pytest.raises(InputError, match="did you mean 'l40s'"):
        fit_device([table], "l40ss")
    with pytest.raises(InputError, match="--date = 'today'"):
        fit_device([table], "l4", date="today")


# -- tables as a source of times -------------------------------------------------------------------------------


def test_a_lookup_gives_back_what_was_measured() -> None:
    samples = products("x", noise=0.3)
    formula_s = predict(samples, DEVICE, {("matmul", "bf16"): TRUE})
    lookup = Lookup.of(samples, formula_s)
    corrected_s, octaves = lookup.corrected(samples, formula_s)
    assert octaves.max() == 0.0
    assert corrected_s == pytest.approx(samples.time_s, rel=0.05)
    assert np.abs(formula_s / samples.time_s - 1).max() > 0.3


def test_far_from_every_row_the_formula_stands_alone() -> None:
    samples = products("x", noise=0.3)
    near, far = samples.at(samples.shape["n"] < 1000), samples.at(samples.shape["n"] > 8000)
    lookup = Lookup.of(near, near.time_s * 0.5)
    formula_s = far.time_s.copy()
    corrected_s, octaves = lookup.corrected(far, formula_s)
    assert octaves.min() > 3
    assert corrected_s.tolist() == formula_s.tolist()


def test_a_run_takes_the_times_of_a_table() -> None:
    """A table in which every product takes twice what the formula says: so do the products of a step."""
    device = DEVICE.model_copy(update={"efficiency": {"matmul.bf16": TRUE, "elementwise": TRUE}})
    samples = products("x")
    slow = Samples(samples.table, "x", samples.parts, samples.time_s * 2, samples.shape, samples.group)
    (work,) = Bench.of(tiny.LLAMA, Share(), Formats("bf16", "bf16", "bf16")).matmul(
        "p", None, "x", Amount.of(tokens=1),
        Bench.of(tiny.LLAMA, Share(), Formats("bf16", "bf16", "bf16")).columns("p", Share().of(2048), 1024, False),
        1024, Value("y", Amount.of(tokens=2048)),
    ).works  # fmt: skip
    correction = TableTimes(device, (slow,)).correction(work)
    assert isinstance(correction, Correction)
    assert correction.factors[:13] == pytest.approx([2.0] * 13, rel=0.02)
    assert TableTimes(device, (slow,)).correction(work.__class__("norm", ("bf16",), work.flops, work.moved_bytes)) is None


@pytest.mark.parametrize("phase", ["attention_prefill", "attention_decode"])
def test_a_run_takes_the_times_of_attention_from_a_table(tmp_path: Path, phase: str) -> None:
    """A table in which attention takes three times what the formula says, from eight sequences on; no table is of
    other heads, or of keys far beyond its own. Prompts with a context are left out of it."""
    is_decode = phase == "attention_decode"
    rows = [
        {"operator": phase, "precision": "bf16", "batch": batch, "new": 1 if is_decode else span,
         "context": span - 1 if is_decode else 0, "heads": 4, "kv_heads": 2, "head_dim": 6,
         "time_us": 1e6 * attention_s(phase, batch, span) * (3 if batch >= 8 else 1)}
        for batch in (1, 2, 4, 8, 16, 32) for span in (16, 64, 256)
    ]  # fmt: skip
    rows.append(rows[0] | {"new": 5, "context": 300, "time_us": 1e6}) if not is_decode else None
    table = write(tmp_path / "t.csv", rows)
    device = DEVICE.model_copy(update={"tables": (str(table),)})
    graph = with_measured_times(tiny.machine(tiny.node(gpus=[device])))
    plain = tiny.machine(tiny.node(gpus=[DEVICE]))
    for sequences, span, expected in ((8, 64, 3.0), (32, 256, 3.0), (2, 16, 1.0), (8, 64 * 2**9, 1.0)):
        chunks = [
            Chunk(each, span - 1 if is_decode else 0, 1 if is_decode else span, True) for each in range(sequences)
        ]
        measured_s, formula_s = (attention_in_step_s(machine, chunks) for machine in (graph, plain))
        assert measured_s / formula_s == pytest.approx(expected, rel=0.02), (sequences, span)
    other = replace(tiny.LLAMA, layers=tuple(replace(layer, attention=replace(layer.attention, head_dim=64, scale=0.1))
                                             for layer in tiny.LLAMA.layers))  # fmt: skip
    chunks = [Chunk(each, 63, 1, True) for each in range(8)]
    assert attention_in_step_s(graph, chunks, other) == attention_in_step_s(plain, chunks, other)


def attention_s(phase: str, batch: int, span: int) -> float:
    """By the formula, of four heads of queries on two of keys, each 6 wide."""
    one = np.ones(1)
    heads = Heads(4 * one, 2 * one, 6 * one)
    if phase == "attention_decode":
        load = decode_load(batch * one, span * one, heads, "bf16")
    else:
        load = prefill_load(batch * one, span * one, 0 * one, heads, "bf16")
    return float(kernel_s(load, kernel_rates(DEVICE, phase, ("bf16",)))[0])  # type: ignore[arg-type]


def attention_in_step_s(machine: Any, chunks: list[Chunk], model: Any = tiny.LLAMA) -> float:
    """Seconds of a layer's attention."""
    program = tiny.program(tiny.single(), machine, model)
    priced = PricedTemplate(program.template(1), program, tiny.engine())
    index = next(i for i, task in enumerate(priced.template.tasks) if task.operator == "attention")
    durations = priced.durations((StepShape.of(chunks),))
    return int(durations.total[priced.class_of_task[index]]) * 1e-12


def test_a_device_whose_tables_have_none_of_its_products_is_refused(tmp_path: Path) -> None:
    table = write(tmp_path / "t.csv", [{"operator": "norm", "precision": "bf16", "time_us": 3, "bytes": 1e6}])
    graph = tiny.machine(tiny.node(gpus=[DEVICE.model_copy(update={"tables": (str(table),)})]))
    with pytest.raises(InputError, match="no row of these tables is a product, or attention, on this device"):
        with_measured_times(graph)


# -- judging ---------------------------------------------------------------------------------------------------


def test_what_is_left_out_is_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every fit of the folds, and of other devices, is without the rows that it is judged on."""
    from simulator.study.calibration import judge as module

    seen: list[set[tuple[str, int]]] = []
    real = module.fit

    def watched(devices: Any, samples: Any) -> Any:
        seen.append({(each.device, int(group)) for each in samples for group in each.group})
        return real(devices, samples)

    monkeypatch.setattr(module, "fit", watched)
    samples = [products("a100-80-sxm"), products("h100-sxm", table="other")]
    by_fold = seen_by(judge, "a100-80-sxm", samples, "folds", seen)
    unseen = [set.union(*by_fold) - each for each in by_fold]
    shapes = {("a100-80-sxm", int(group)) for group in samples[0].group}
    assert set.union(*unseen) == shapes and sum(map(len, unseen)) == len(shapes)
    assert min(map(len, unseen)) >= len(shapes) // module.FOLDS
    (others,) = seen_by(judge, "a100-80-sxm", samples, "device left out", seen)
    assert {device for device, _ in others} == {"h100-sxm"}


def seen_by(work: Any, device: str, samples: Any, task: str, seen: list[Any]) -> list[Any]:
    seen.clear()
    assert work(device, samples, task, Catalogue())
    return list(seen)


def test_devices_of_one_maker_lend_to_each_other() -> None:
    devices = {name: Catalogue().device(name).record for name in ("a100-80-sxm", "l40s", "arc-pro-b60", "mi300x")}
    assert lending("a100-80-sxm", devices) == {"l40s"}
    assert lending("arc-pro-b60", devices) == {"mi300x"}


def test_validate_knows_tables_of_kernels_by_their_columns(tmp_path: Path) -> None:
    m, n, k = (products("x").shape[side] for side in "mnk")
    columns = {
        "system": ["h100_sxm"] * 48 + ["who_knows"] * 48, "kernel_source": [""] * 96, "gemm_dtype": ["bfloat16"] * 96,
        "m": [*m, *m], "n": [*n, *n], "k": [*k, *k], "latency_ms": [0.1] * 96,
    }  # fmt: skip
    parquet.write_table(pa.table(columns), tmp_path / "any-name.parquet")
    board = validate(tmp_path, workers=1)
    (table,) = board.tables
    assert (table.rows, table.predicted) == (96, 48)
    assert table.unsupported == {"device who_knows is not in the catalogue": 48}
    assert {score.way for score in board.operators} >= {"profile", "shapes left out", "measured table"}
    assert {score.device for score in board.operators} == {"h100-sxm"}


@needs_tables
@pytest.mark.slow
def test_published_kernels_are_predicted_as_the_docs_say() -> None:
    """Fitted to published tables: a median within 8 % of products and attention of A100 and H100, also on shapes
    left out, and within 5 % by the table."""
    samples = [
        each
        for name in ("gemm_vllm", "gemm_trtllm", "attention_decode_vllm", "attention_prefill_vllm")
        for each in read_samples(read_columns(PUBLISHED / f"{name}.parquet"), Catalogue()).samples
        if each.device in ("a100-80-sxm", "h100-sxm")
    ]
    for device in ("a100-80-sxm", "h100-sxm"):
        thinned = [each.at(np.arange(0, len(each), 4)) for each in samples if each.device == device]
        found = scores([one for task in ("profile", "folds") for one in judge(device, thinned, task, Catalogue())])
        for score in found:
            most = {"profile": 0.09, "shapes left out": 0.095, "measured table": 0.06}[score.way]
            assert score.errors.median_ape < most, score


# -- NVIDIA's databases ------------------------------------------------------------------------------------------


def test_the_databases_are_found_by_their_newest_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = own_rows(products("x"))
    table = {"framework": ["VLLM"] * 48, "device": ["NVIDIA H200"] * 48, "kernel_source": [""] * 48,
             "gemm_dtype": ["bfloat16"] * 48, **{side: [row[side] for row in rows] for side in "mnk"},
             "latency": [row["time_us"] / 1000 for row in rows]}  # fmt: skip
    for version in ("0.9.0", "0.24.0"):
        folder = tmp_path / "h200_sxm" / "gemm" / "vllm" / version
        folder.mkdir(parents=True)
        parquet.write_table(pa.table(table), folder / "gemm_perf.parquet")
    monkeypatch.setattr(silicon, "_data", lambda place="": tmp_path)
    (found,) = silicon.silicon_tables("h200-sxm")
    assert found.parent.name == "0.24.0"
    (samples,) = read_samples(read_columns(found), Catalogue()).samples
    assert (samples.device, len(samples)) == ("h200-sxm", 48)
    with pytest.raises(InputError, match="have no table of this device; they have h200-sxm"):
        silicon.silicon_tables("l4")


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silicon, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"install placewright\[silicon\]"):
        silicon.silicon_tables()


@given(new=st.integers(2, 60), context=st.integers(0, 60), window=st.integers(1, 80))
def test_a_window_is_counted_as_the_work_graph_counts_it(new: int, context: int, window: int) -> None:
    shape = StepShape.of([Chunk(0, context, new, True)], Traits(window))
    heads = Heads(*(np.array([float(n)]) for n in (1, 1, 1)))
    load = prefill_load(np.array([1.0]), np.array([float(new)]), np.array([float(context)]), heads, "bf16", window)
    assert load.flops[0] == 4 * shape.window_pairs
    assert load.moved_bytes[0] == 2 * 2 * shape.window_span + 4 * new


# -- published tables, a row or two of each --------------------------------------------------------------------


def samples_of(path: Path, table: dict[str, list[Any]]) -> tuple[list[Samples], dict[str, int]]:
    parquet.write_table(pa.table(table), path)
    found = read_samples(read_columns(path), Catalogue())
    return found.samples, dict(found.unmapped)


def test_experts_are_two_grouped_products_of_the_active_ones(tmp_path: Path) -> None:
    """4 tokens choose 2 of 8 experts each, evenly: all 8 are read. 64 to 2 x 32 and back, half of it by rank."""
    found, unmapped = samples_of(tmp_path / "moe_perf.parquet", {
        "moe_dtype": ["bfloat16"] * 3, "num_tokens": [4] * 3, "hidden_size": [64] * 3, "inter_size": [32] * 3,
        "topk": [2] * 3, "num_experts": [8] * 3, "moe_tp_size": [2] * 3, "moe_ep_size": [1, 1, 4],
        "distribution": ["balanced", "power_law_1.2", "balanced"], "latency": [0.5] * 3,
        "device": ["NVIDIA L40S"] * 3,
    })  # fmt: skip
    (samples,) = found
    up, down = samples.parts
    assert (samples.device, samples.what, samples.time_s.tolist()) == ("l40s", "experts", [0.5e-3])
    assert up.load.flops.tolist() == [2 * 8 * 64 * 2 * 16]
    assert up.load.moved_bytes.tolist() == [2 * 8 * 64 * 32 + 2 * 8 * (64 + 32)]
    assert down.load.flops.tolist() == [2 * 8 * 16 * 64]
    assert sum(unmapped.values()) == 2


def test_an_fp8_product_is_as_many_kernels_as_its_stack_launches(tmp_path: Path) -> None:
    table = {"system": ["h100_sxm"] * 3, "gemm_dtype": ["fp8", "fp8", "fp8_block"], "m": [8] * 3, "n": [64] * 3,
             "k": [32] * 3, "latency_ms": [0.01] * 3, "kernel_source": ["vllm_x", "torch_flow", "vllm_x"]}  # fmt: skip
    found, unmapped = samples_of(tmp_path / "g.parquet", table)
    by_count = sorted(found, key=lambda each: len(each.parts))
    assert [[part.operator_class for part in each.parts] for each in by_count] == [
        ["matmul", "quantise"], ["matmul", "quantise", "quantise", "quantise"],
    ]  # fmt: skip
    assert by_count[0].parts[1].load.moved_bytes.tolist() == [3 * 8 * 32]
    assert list(unmapped.values()) == [1]


def test_a_prompt_of_one_token_is_a_decode(tmp_path: Path) -> None:
    table = {"system": ["l40s"] * 2, "batch_size": [2, 2], "isl": [1, 16], "step": [0, 0], "num_heads": [8, 8],
             "num_key_value_heads": [2, 2], "head_dim": [64, 64], "kv_cache_dtype": ["bfloat16"] * 2,
             "latency_ms": [0.01] * 2}  # fmt: skip
    found, _ = samples_of(tmp_path / "a.parquet", table)
    assert [each.main.operator_class for each in found] == ["attention_decode", "attention_prefill"]
    assert found[1].main.load.flops.tolist() == [4 * 8 * 64 * 2 * 16 * 17 / 2]


def test_products_without_a_time_are_timed_by_their_rate(tmp_path: Path) -> None:
    compass = write(tmp_path / "c.csv", [
        {"device": "A100", "op": "matmul_fp16", "M": 64, "K": 128, "N": 256, "latency_ms": "", "throughput": 2,
         "unit": "TFLOPS"},
        {"device": "A100", "op": "gelu", "M": 64, "K": "", "N": "", "latency_ms": "", "throughput": 2, "unit": "?"},
    ])  # fmt: skip
    found = read_samples(read_columns(compass), Catalogue())
    assert found.samples[0].time_s.tolist() == [pytest.approx(2 * 64 * 128 * 256 / 2e12)]
    assert sum(found.unmapped.values()) == 1
    best = write(tmp_path / "b.csv", [{"dtype": "BF16", "accelerator": "NVIDIA B200 SXM", "best_shape_mnk":
                                       "1024x2048x512", "measured_matmul_tflops": 1000}])  # fmt: skip
    (samples,) = read_samples(read_columns(best), Catalogue()).samples
    assert (samples.device, samples.time_s.tolist()) == ("b200-sxm", [pytest.approx(2 * 1024 * 2048 * 512 / 1e15)])

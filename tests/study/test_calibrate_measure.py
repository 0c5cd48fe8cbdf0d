"""Measuring this machine: the fit, the files, and the way from times to figures, on made-up times; and once for
real."""

from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from simulator.costs.operators import efficiency_of
from simulator.errors import InputError
from simulator.execution.measure import Bench, Matmul, OtherPrograms
from simulator.execution.measure_gpu import GpuBench, GpuFacts
from simulator.graph.model_graph import model_operators
from simulator.graph.operator_traits import TRAITS, operator_traits
from simulator.graph.shape import Chunk, StepShape
from simulator.graph.work import Formats, Work
from simulator.report.measured import print_measured
from simulator.specs.catalogue import Catalogue
from simulator.specs.hardware import Device, Transition
from simulator.specs.machine import load_machine
from simulator.specs.model import load_model
from simulator.study.calibration.columns import read_columns
from simulator.study.calibration.compare_steps import TINY, Comparison, RealSteps, StepCompared
from simulator.study.calibration.fit import keys_of, predict
from simulator.study.calibration.measure import (
    Measured,
    check_name,
    fitted,
    measure,
    refuse_existing,
    slowed,
)
from simulator.study.calibration.measured_fit import fit_efficiency
from simulator.study.calibration.measured_gpu import GpuBenches, fitted_gpu, gpu_calls, measure_gpu
from simulator.study.calibration.measured_profile import (
    DeviceFigures,
    GpuFigures,
    LinkFigures,
    MachineFigures,
    OwnCodeFigures,
    profile_paths,
    profile_texts,
    written,
)
from simulator.study.calibration.one_step import OneSequence
from simulator.study.calibration.own_code import (
    CONTEXT,
    IN_PROMPTS,
    PLAIN,
    PROBES,
    PROMPT,
    WIDE,
    WIDE_STEPS,
    LayerTimes,
    own_code,
    slowdown_in_steps,
)
from simulator.study.calibration.readers import read_samples
from simulator.study.calibration.rounds import BestRows
from simulator.study.calibration.timed_gpu_kernels import gpu_timings
from simulator.study.calibration.timed_kernels import (
    COLUMNS,
    SCORE_PASSES,
    KernelRow,
    as_csv,
    by_class,
    timings,
)
from simulator.study.run import run_scenario

pytestmark = pytest.mark.slow

PEAK, BANDWIDTH = 2e11, 5e10
FP32 = Formats("fp32", "fp32", "fp32")

# --- the fit ------------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(
    compute=st.floats(0.1, 1.0), memory=st.floats(0.1, 1.0),
    overhead_s=st.floats(1e-6, 5e-5), blend=st.floats(1.0, 4.0),
)  # fmt: skip
def test_times_that_follow_the_formula_are_found_again(compute, memory, overhead_s, blend):
    flops, moved = (np.array(each) for each in zip(*WORK, strict=True))
    time_s = true_s(flops, moved, compute, memory, overhead_s, blend)
    fit = fit_efficiency(flops, moved, time_s, PEAK, BANDWIDTH)
    assert fit.samples == len(WORK)
    assert fit.p90_error < 0.02
    assert fit.overhead_s == pytest.approx(overhead_s, rel=0.05)


def test_a_few_wrong_times_do_not_spoil_a_fit():
    flops, moved = (np.array(each) for each in zip(*WORK, strict=True))
    time_s = true_s(flops, moved, 0.7, 0.5, 5e-6, 1.5)
    spoiled = time_s.copy()
    spoiled[::9] *= 20
    fit = fit_efficiency(flops, moved, spoiled, PEAK, BANDWIDTH)
    off = np.abs(fit.times_s(flops, moved, PEAK, BANDWIDTH) / time_s - 1)
    assert np.median(off) < 0.05


WORK = [
    (2.0 * m * n * k, 4.0 * (m * k + n * k + m * n))
    for m in (1, 8, 64, 512)
    for n, k in ((64, 64), (512, 512), (4096, 512))
]


def true_s(flops, moved, compute, memory, overhead_s, blend):
    compute_s, memory_s = flops / (PEAK * compute), moved / (BANDWIDTH * memory)
    return (compute_s**blend + memory_s**blend) ** (1 / blend) + overhead_s


# --- rows ---------------------------------------------------------------------------------------------------


def work_of(operator: str, operator_class: str, new: int, context: int) -> tuple[int, int]:
    """FLOPs and bytes of an operator of the plain model, with the scores that attention leaves in memory."""
    shape = StepShape.of([Chunk(0, context, new, True)])
    works: list[Work] = next(list(o.works) for o in model_operators(PLAIN, FP32) if o.name == operator)
    work = next(each for each in works if each.operator_class == operator_class)
    return work.flops.at(shape), (work.moved_bytes + work.scores * (4 * SCORE_PASSES)).at(shape)


@pytest.mark.parametrize(
    ("row", "operator"),
    [
        (KernelRow("matmul", "fp32", 1.0, m=9, n=96, k=96), "o_proj"),
        (KernelRow("attention_prefill", "fp32", 1.0, batch=1, new=9, context=5, heads=6, kv_heads=6, head_dim=16),
         "attention"),
        (KernelRow("attention_decode", "fp32", 1.0, batch=1, new=1, context=5, heads=6, kv_heads=6, head_dim=16),
         "attention"),
    ],
)  # fmt: skip
def test_a_row_does_the_work_that_the_graph_counts(row, operator):
    new, context = row.new or row.m, row.context or 0
    assert (row.flops, row.moved_bytes) == work_of(operator, row.operator, new, context)


def test_every_class_is_timed_and_nothing_twice():
    whats = [timing.what for timing in timings()]
    assert len(whats) == len(set(whats))


def test_some_kernels_for_real_and_their_table(tmp_path):
    """A few small ones of every kind; each has the columns of its operator, and a time."""
    bench = Bench(seconds_each=0.0)
    small = [t for t in timings() if "x64x64" in t.what or "4/4/16" in t.what or t.what.endswith(" x 64")]
    rows = [timing.time(bench) for timing in small]
    assert {row.operator for row in rows} == {"matmul", "attention_prefill", "attention_decode", "elementwise",
                                              "embedding"}  # fmt: skip
    assert all(row.time_us > 0 and row.moved_bytes > 0 for row in rows)
    path = tmp_path / "rows.csv"
    path.write_text(as_csv(rows))
    table = read_columns(path)
    assert table.names == COLUMNS
    assert len(table) == len(rows)
    assert table.positive("time_us").tolist() == pytest.approx([row.time_us for row in rows], abs=1e-4)


# --- from figures to files, and from times to figures -------------------------------------------------------


def made_up_rows() -> list[KernelRow]:
    """Times that follow the formula, for every kernel that would be timed."""
    shapes = [
        *(KernelRow("matmul", "fp32", 0.0, m=m, n=n, k=64, copies=1) for m in (1, 32, 512) for n in (64, 1024)),
        *(KernelRow("attention_prefill", "fp32", 0.0, batch=1, new=n, context=0, heads=8, kv_heads=4, head_dim=64)
          for n in (8, 64, 256)),
        *(KernelRow("attention_decode", "fp32", 0.0, batch=1, new=1, context=c, heads=8, kv_heads=4, head_dim=64)
          for c in (16, 256, 1024)),
        *(KernelRow(kind, "fp32", 0.0, bytes=b) for kind in ("elementwise", "embedding", "sampling")
          for b in (10**3, 10**5, 10**7)),
    ]  # fmt: skip
    return [replace(row, time_us=1e6 * float(true_s(row.flops, row.moved_bytes, 0.5, 0.4, 4e-6, 1.0)))
            for row in shapes]  # fmt: skip


def made_up(
    code: OwnCodeFigures | None = None, gpu: bool = False
) -> MachineFigures:
    device = fitted(DeviceFigures("A processor", 2**34, BANDWIDTH, {}, {}, 2**25), made_up_rows())
    found = GpuFigures(replace(device, name="A GPU", units=80), LinkFigures(2e10, 8e-6, 0.4), 4e-6,
                       Transition(launch_s=6e-6, synchronize_s=9e-6))  # fmt: skip
    return MachineFigures(
        "here", 8, device, code or OwnCodeFigures(), "a made-up measurement", "2024-05-06", "a note",
        found if gpu else None,
    )


CODE = OwnCodeFigures(
    step_s=3e-5, operator_s=2e-6,
    operators={
        **{f"{norm}.rms": 6e-6 for norm in ("embed_norm", "attn_norm", "mlp_norm", "attn_post_norm",
                                            "mlp_post_norm", "final_norm")},
        "rotary.rope": 8e-5, "rotary.qk_norm": 2e-5, "rotary.latent": 4e-5, "attention.window": 3e-6,
        "attention.softcap": 9e-6, "attention.alibi": 2e-5, "attention.sinks": 7e-6, "up_proj.gated": 6e-6,
        "delta_rule": 1e-4, "expert_up_proj": 5e-5, "expert_up_proj.experts": 7e-6,
        "expert_up_proj.active": 1.2e-5,
    },
    passes={"rotary.rope": 6.0, "rotary.qk_norm": 2.0, "attention.window": 0.1, "attention.softcap": 1.0,
            "attention.alibi": 0.2, "attention.sinks": 0.3},
    tokenize_s=1e-6, detokenize_s=1e-7,
)  # fmt: skip


def test_what_our_own_code_takes_is_found_again(tmp_path):
    """From the times that a machine with known own code would take, its figures come back."""
    figures = made_up()

    def simulate(arch, code):
        return OneSequence.of("here", arch, written(replace(figures, code=code), tmp_path))

    times = LayerTimes(
        {probe: simulate(arch, CODE).layer_s(1, CONTEXT) for probe, arch in PROBES.items()},
        {probe: simulate(PROBES[probe], CODE).layer_s(PROMPT, 0) for probe in IN_PROMPTS},
        simulate(PLAIN, CODE).step_s(1, CONTEXT), CODE.tokenize_s, CODE.detokenize_s,
    )  # fmt: skip
    found = own_code(times, simulate)
    assert found.operator_s == pytest.approx(CODE.operator_s, rel=1e-3)
    assert found.step_s == pytest.approx(CODE.step_s, rel=0.05)
    assert found.operators.keys() == CODE.operators.keys()
    for key, expected_s in CODE.operators.items():
        assert found.operators[key] == pytest.approx(expected_s, rel=0.05, abs=2e-7), key
    for key, expected in CODE.passes.items():
        assert found.passes[key] == pytest.approx(expected, rel=0.1, abs=0.05), key


def test_what_our_own_code_takes_to_launch_on_a_gpu_is_found_again(tmp_path):
    """There it is the thread that launches kernels whose time is told; passes are not looked for."""
    operators = {**CODE.operators, "attention.prompt": 9e-5}
    figures, truth = made_up(gpu=True), replace(CODE, operator_s=2e-5, operators=operators, passes={})

    def simulate(arch, code):
        assert figures.gpu is not None
        tried = replace(figures, gpu=replace(figures.gpu, code=code))
        return OneSequence.of("here", arch, written(tried, tmp_path), on_gpu=True)

    times = LayerTimes(
        {probe: simulate(arch, truth).layer_s(1, CONTEXT) for probe, arch in PROBES.items()},
        {"plain": simulate(PLAIN, truth).layer_s(PROMPT, 0)}, simulate(PLAIN, truth).step_s(1, CONTEXT), truth.tokenize_s, truth.detokenize_s,
    )  # fmt: skip
    assert times.prompts["plain"] - times.layers["plain"] == pytest.approx(9e-5)
    without = simulate(PLAIN, replace(truth, operators=CODE.operators))
    assert simulate(PLAIN, truth).step_s(2, 0) - without.step_s(2, 0) == pytest.approx(9e-5, rel=1e-6)
    slower = simulate(PLAIN, replace(truth, operator_s=truth.operator_s + 1e-5))
    launched = [each for task in slower.priced.template.tasks for each in task.launches]
    assert slower.step_s(1, CONTEXT) - times.step_s == pytest.approx(1e-5 * len(launched), rel=1e-6)
    found = own_code(times, simulate)
    assert found.operator_s == pytest.approx(truth.operator_s, rel=1e-3)
    assert found.step_s == pytest.approx(truth.step_s, rel=0.05)
    assert found.passes == {}
    for key in truth.operators:
        assert found.operators[key] == pytest.approx(truth.operators[key], rel=0.05, abs=2e-7), key


def test_a_machine_without_own_code_is_found_to_have_none(tmp_path):
    figures, none = made_up(), OwnCodeFigures()

    def simulate(arch, code):
        return OneSequence.of("here", arch, written(replace(figures, code=code), tmp_path))

    times = LayerTimes(
        {probe: simulate(arch, none).layer_s(1, CONTEXT) for probe, arch in PROBES.items()},
        {probe: simulate(PROBES[probe], none).layer_s(PROMPT, 0) for probe in IN_PROMPTS},
        simulate(PLAIN, none).step_s(1, CONTEXT), 0.0, 0.0,
    )  # fmt: skip
    found = own_code(times, simulate)
    assert (found.step_s, found.operator_s) == pytest.approx((0.0, 0.0), abs=1e-9)
    assert max(found.operators.values()) < 1e-8
    assert max(found.passes.values()) < 1e-3


@pytest.mark.parametrize("times", [1.0, 1.3])
def test_how_much_slower_products_are_in_steps_is_found_again(tmp_path, times):
    def simulate(figures):
        return OneSequence.of("here", WIDE, written(figures, tmp_path))

    figures = made_up(CODE)
    steps = simulate(slowed(figures, times))
    measured_s = {step: steps.step_s(*step) for step in WIDE_STEPS}
    found = slowdown_in_steps(measured_s, simulate(figures), simulate(slowed(figures, 2.0)))
    assert found == pytest.approx(times, rel=1e-3)
    note = "then slowed by 1.300" if times > 1 else "median_error"
    assert note in profile_texts(slowed(figures, times))["hardware_profiles/devices/here.yaml"]


def test_every_trait_has_a_probe_and_every_tiny_model_asks_for_known_ones():
    keys = {f"{operator}.{trait}" for operator, traits in TRAITS.items() for trait in traits}
    assert keys <= CODE.operators.keys()
    catalogue = Catalogue()
    for name in TINY:
        model = load_model(name, catalogue)
        for operator in model_operators(model, FP32):
            for trait in operator_traits(model, operator.layer, operator.name):
                assert trait in TRAITS[operator.name], (name, operator.name)


# --- a GPU --------------------------------------------------------------------------------------------------

FACTS = GpuFacts("A GPU", 2**34, 100, 2**10, "bf16", has_fp8=False)


def test_the_kernels_of_a_gpu_run_on_whatever_device_there_is():
    """A few small ones of every kind and every kind of copy, on the processor: each yields a row with a time."""
    bench, kernels = GpuBench(0.0, FACTS, "cpu"), BestRows()
    calls = gpu_calls(bench, gpu_timings("bf16", False, FACTS.capacity_bytes), kernels)
    small = [what for what in calls if any(mark in what for mark in (
        "matmul 1x576x576", "of 1 x 64 after 0, 9/", "of 1 x 1 after 127, 9/", "of 1 x 576", "of 1 x 32000",
        "copy of 4096 ", "launching",
    ))]  # fmt: skip
    for what in small:
        assert calls[what]() > 0, what
    operators = [row.operator for row in kernels.rows]
    assert operators == ["matmul", "matmul", "attention_prefill", "attention_decode", "norm", "activation",
                         "elementwise", "embedding", "sampling", "copy", "copy", "copy", "copy"]  # fmt: skip
    assert {row.precision for row in kernels.rows if row.operator == "matmul"} == {"fp32", "bf16"}


def test_a_gpu_for_real_but_that_it_is_the_processor(tmp_path):
    """All that is measured of a GPU, with few kernels and without graphs: figures, files that load, real steps."""
    marks = ("1x576x576", "8x576x576", "32x576x576", "copy of 8 ", "copy of 4096 ", "copy of 65536 ",
             "copy of 262144 ")
    few = [t for t in gpu_timings("bf16", False, FACTS.capacity_bytes) if any(mark in t.what for mark in marks)]
    benches = GpuBenches(FACTS, GpuBench(0.0, replace(FACTS, capacity_bytes=2**28), "cpu"), Bench(0.0), tuple(few))
    real = RealSteps(Catalogue(), ("tiny-llama", "tiny-mixtral"))
    measured = measure_gpu(made_up(), benches, real, tmp_path, 0.0, lambda _: None)
    assert measured.comparison is not None
    assert {step.model for step in measured.comparison.steps} == {"tiny-llama", "tiny-mixtral"}
    assert measured.figures.code.operator_s > 0
    assert measured.figures.code.operators["attention.prompt"] >= 0
    assert {row.operator for row in measured.rows} == {"matmul", "copy"}
    here = written(replace(made_up(), gpu=measured.figures), tmp_path)
    assert here.device("here-gpu").record.compute.keys() == {"fp32", "bf16"}
    json.dumps(measured.as_dict(), allow_nan=False)


def test_products_in_fp8_are_timed_where_a_device_has_them():
    bench, shape = GpuBench(0.0, FACTS, "cpu"), Matmul(16, 32, 64)
    time_s, copies = bench.matmul(shape, "fp8")
    assert time_s > 0
    assert copies >= 2
    plain, with_fp8 = (gpu_timings("bf16", has_fp8, 2**34) for has_fp8 in (False, True))
    assert {timing.what for timing in with_fp8} > {timing.what for timing in plain}


def test_matrices_are_more_than_the_cache_holds():
    bench = GpuBench(0.0, replace(FACTS, cache_bytes=2**20), "cpu")
    matrices = bench._matrices(Matmul(1, 128, 128), torch.bfloat16)
    assert len(matrices) * matrices[0].nbytes >= 4 * 2**20
    assert len({matrix.data_ptr() for matrix in matrices}) == len(matrices)


def test_what_a_gpu_is_found_to_be_predicts_what_was_measured(tmp_path):
    """Times by the formula of a profile: what is fitted to them predicts them, and so do the files."""
    known, catalogue = "h100-sxm", Catalogue()
    truth = catalogue.device(known).record
    rows = timed_by(truth, gpu_timings("bf16", False, truth.memory.capacity_bytes))
    gpu = fitted_gpu(FACTS, rows, truth.memory.bandwidth_bytes_per_s, 4e-6, tmp_path)
    assert {"matmul.fp32", "matmul.bf16", "attention_prefill", "attention_decode", "norm", "activation",
            "elementwise", "embedding", "sampling"} == set(gpu.device.efficiency)  # fmt: skip
    assert gpu.device.efficiency["matmul.bf16"].median_error < 0.05
    assert gpu.device.efficiency["matmul.bf16"].more["chain"].endswith(" ns")
    assert gpu.link.bandwidth_bytes_per_s == pytest.approx(5e10, rel=0.05)
    assert gpu.link.pageable_efficiency == pytest.approx(0.25, rel=0.1)
    assert gpu.transition.synchronize_s == pytest.approx(9e-6, rel=0.2)
    assert gpu.transition.launch_s + gpu.link.latency_s == pytest.approx(16e-6, rel=0.1)
    here = written(replace(made_up(), gpu=gpu), tmp_path)
    device = here.device("here-gpu").record
    assert device.efficiency["matmul.bf16"].chain_s > 0
    assert device.transition is not None
    assert device.transition.synchronize_s == pytest.approx(gpu.transition.synchronize_s, rel=1e-3)
    assert here.engine("here-gpu").record.is_eager


def timed_by(device: Device, timed) -> list[KernelRow]:
    """Rows of the kernels in a list, with the times that a profile says they take."""
    rows = []
    for timing in timed:
        row = timing.time(Pretended())
        time_us = copied_us(row) if row.operator == "copy" else 1.0
        rows.append(replace(row, time_us=time_us))
    return with_times_of(device, rows)


class Pretended:
    """Knows the shapes of kernels, and times none."""

    def matmul(self, shape, precision):
        return 1.0, 4

    def __getattr__(self, name):
        return lambda *args, **kwargs: 1.0


def copied_us(row: KernelRow) -> float:
    """16 us, 9 more to the host, at 50 GB/s or a quarter of that."""
    rate = 5e10 if row.pinned else 1.25e10
    return 1e6 * (16e-6 + 9e-6 * (row.direction == "to_host") + row.bytes / rate)


def with_times_of(device: Device, rows: list[KernelRow]) -> list[KernelRow]:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "rows.csv"
        path.write_text(as_csv(rows))
        samples = read_samples(read_columns(path), Catalogue()).samples
    numbers = {key: efficiency_of(device, *key) for each in samples for key in keys_of(each)}
    found = {each.main.operator_class + each.main.precision: iter(predict(each, device, numbers)) for each in samples}
    return [row if row.operator == "copy" else
            replace(row, time_us=1e6 * float(next(found[f"{row.operator}{row.precision}"]))) for row in rows]  # fmt: skip


@pytest.mark.parametrize("gpu", [False, True])
def test_files_load_and_are_the_same_again(tmp_path, gpu):
    figures = made_up(CODE, gpu)
    assert profile_texts(figures) == profile_texts(made_up(CODE, gpu))
    assert set(profile_texts(figures)) <= set(profile_paths("here"))
    catalogue = written(figures, tmp_path)
    machine = load_machine("here", catalogue)
    cpu = machine.nodes[0].cpu
    assert cpu is not None
    assert cpu.memory.bandwidth_bytes_per_s == BANDWIDTH
    own = catalogue.load("devices", "here", Device).record
    assert set(own.efficiency) == set(by_class(made_up_rows()))
    assert [device for device, _ in machine.nodes[0].devices] == (["here-gpu"] if gpu else [])
    code = catalogue.engine("here").record.code
    assert code.operators == pytest.approx(CODE.operators)
    assert code.passes == pytest.approx(CODE.passes)
    assert code.score_bytes == 32


def test_run_takes_the_machine_and_the_engine(tmp_path, monkeypatch):
    written(made_up(CODE), tmp_path)
    (tmp_path / "mine.yaml").write_text(SCENARIO)
    monkeypatch.chdir(tmp_path)
    study = run_scenario(Path("mine.yaml"), ())
    (run,) = study.runs
    assert run.fits
    assert run.metrics is not None


SCENARIO = """
name: Which machine is this?
model: tiny-llama
machine: here
engine: here
precision: {weights: fp32, activations: fp32, kv_cache: fp32}
placements: [{strategy: single_device}]
workload: {arrivals: {process: batch}, lengths: {prompt: 20, output: 10}, requests: 3}
seed: 1
"""


# --- what is refused, and what is said ----------------------------------------------------------------------


def test_a_name_that_is_no_id_is_refused():
    with pytest.raises(InputError, match="--name = 'a/b': write letters"):
        check_name("a/b")


def test_files_that_are_there_are_named_all_at_once(tmp_path):
    written(made_up(), tmp_path)
    with pytest.raises(InputError) as caught:
        refuse_existing("here", tmp_path)
    assert str(caught.value).count("is there already; take another --name, or --force") == 4
    refuse_existing("there", tmp_path)


def test_errors_are_grouped_by_model_and_phase():
    steps = (StepCompared("tiny-llama", "decode", 1, 64, 1.0, 1.1), StepCompared("tiny-gpt2", "decode", 1, 64, 1.0, 0.7),
             StepCompared("smollm2-135m", "decode", 1, 64, 1.0, 0.8))  # fmt: skip
    comparison = Comparison(steps)
    assert comparison.median_error == pytest.approx(0.2)
    assert comparison.groups == pytest.approx({"tiny models, decode": 0.2, "smollm2-135m, decode": 0.2})
    assert comparison.as_dict()["steps"][0]["error"] == pytest.approx(0.1)


def test_what_was_found_is_printed_with_its_errors_and_its_doubts():
    step = StepCompared("tiny-llama", "decode", 1, 64, 1e-3, 1.2e-3)
    rows = tuple(made_up_rows())
    measured = Measured(made_up(CODE), rows, 60.0, 0.9, Comparison((step,), "no weights here"))
    console = Console(width=200, file=StringIO())
    print_measured(measured, console)
    said = console.file.getvalue()
    for words in ("A processor: fp32", "decode of 1 after 64", "+20.0%", "No weights here.",
                  "Other programs used 90% of a processor"):
        assert words in said
    assert set(measured.texts) == {*profile_texts(made_up(CODE)), "hardware_profiles/here-operators.csv"}
    json.dumps(measured.as_dict(), allow_nan=False)


def test_patience_comes_to_an_end():
    watch = OtherPrograms(patience_s=0.0)
    watch.begin()
    assert not watch.disturbed()
    assert watch.share >= 0


def test_this_machine_for_real_beside_a_gpu_that_fails(monkeypatch):
    """Complete, and where nobody else computes, right within a factor of two; of a GPU without memory the end
    says so, and no file is of it."""

    def no_memory(cls):
        raise torch.OutOfMemoryError("CUDA out of memory\nof which much could be said")

    monkeypatch.setattr("simulator.execution.measure.has_gpu", lambda: True)
    monkeypatch.setattr(GpuBenches, "of_first", classmethod(no_memory))
    told = []
    measured = measure("here", seconds=20, progress=lambda done, total, what: told.append((done, total, what)))
    assert told
    assert {row.operator for row in measured.rows} >= {"matmul", "attention_prefill", "attention_decode",
                                                       "elementwise", "embedding", "sampling"}  # fmt: skip
    assert len(measured.rows) == len(timings())
    assert measured.comparison is not None
    assert len(measured.comparison.steps) >= 4 * len(TINY)
    assert set(measured.as_dict()) == {"name", "took_s", "others", "figures", "kernels", "comparison", "gpu", "gpu_fault"}
    if measured.others < 0.1:
        assert measured.comparison.median_error < 1.0
    assert (measured.gpu, measured.gpu_fault) == (None, "CUDA out of memory")
    assert not [path for path in measured.texts if "-gpu" in path]
    console = Console(width=200, file=StringIO())
    print_measured(measured, console)
    assert "The GPU could not be measured" in console.file.getvalue()

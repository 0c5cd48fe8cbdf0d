"""Scenarios: axes in their order, overrides and bases by their force, every mistake in its place."""

from pathlib import Path
from typing import Any

import pytest

from simulator.specs.catalogue import Catalogue
from simulator.specs.machine import load_machine
from simulator.specs.scenario import Scenario, load_scenario
from simulator.specs.workload import TokenRange, TraceArrivals, UniformLengths

from .small_catalogue import FILES, STRATEGIES, LayerSplit, SingleDevice, TensorParallel, lines_of, write

CHAT = FILES["scenarios/chat.yaml"]
INLINE = "{host: nr1, devices: {l40s: [1, 2]}, host_link: pcie4-x16}"


def chat(house: Path, *overrides: str) -> Scenario:
    return load_scenario(house / "scenarios/chat.yaml", STRATEGIES, overrides)


def changed(house: Path, old: str, new: str) -> Path:
    assert old in CHAT
    return write(house, "scenarios/changed.yaml", CHAT.replace(old, new))


def problems(path: Path, *overrides: str) -> list[str]:
    return lines_of(lambda: load_scenario(path, STRATEGIES, overrides))


def test_machines_are_outermost_and_an_axis_in_a_placement_is_its_own(house: Path) -> None:
    scenario = chat(house)
    assert [(run.machine_name, run.placement) for run in scenario.runs] == [
        (machine, placement)
        for machine in ("server-4x-l40s", "nr1-4x-l40s")
        for placement in (
            SingleDevice(strategy="single_device"),
            TensorParallel(strategy="tensor_parallel", degree=4),
            LayerSplit(strategy="layer_split", gpu_layers=16),
            LayerSplit(strategy="layer_split", gpu_layers=24),
        )
    ]
    assert scenario.runs[0].axes == {"machine": "server-4x-l40s"}
    assert scenario.runs[7].axes == {"machine": "nr1-4x-l40s", "placement.gpu_layers": 24}


def test_the_example_of_the_design_is_plain_si(house: Path) -> None:
    run = chat(house).runs[0]
    assert (run.model, run.engine, run.seed, run.fidelity) == ("llama-3.1-8b", "vllm", 1, "fast")
    assert run.slo == {"ttft_p99": 1.0, "tpot_p99": 0.06}
    assert run.cost.life_s == 5 * 365 * 86400
    assert (run.cost.electricity_usd_per_kwh, run.cost.pue, run.cost.discount_per_year) == (0.09, 1.25, 0.08)
    assert run.workload.requests == 1000
    assert run.precision.kv_cache == "fp8"


def test_defaults_of_cost_seed_and_fidelity_are_those_of_the_design(house: Path) -> None:
    kept = [line for line in CHAT.splitlines() if not line.startswith(("cost", "seed", "slo"))]
    run = load_scenario(write(house, "scenarios/short.yaml", "\n".join(kept)), STRATEGIES).runs[0]
    assert run.cost == chat(house).runs[0].cost
    assert (run.seed, run.fidelity, run.slo) == (0, "fast", {})


def test_axes_multiply_in_file_order(house: Path) -> None:
    scenario = chat(
        house,
        "machine=nr1-4x-l40s",
        "placements=[{strategy: single_device}]",
        "workload.arrivals.rate=[1 req/s, 2 req/s]",
        "seed=[1, 2]",
        "precision.weights=[bf16, fp8]",
        "fidelity=[task, step]",
    )
    assert len(scenario.runs) == 16
    assert list(scenario.runs[0].axes) == ["precision.weights", "workload.arrivals.rate", "seed", "fidelity"]
    assert [tuple(run.axes.values()) for run in scenario.runs[:5]] == [
        ("bf16", 1.0, 1, "task"),
        ("bf16", 1.0, 1, "step"),
        ("bf16", 1.0, 2, "task"),
        ("bf16", 1.0, 2, "step"),
        ("bf16", 2.0, 1, "task"),
    ]


@pytest.mark.parametrize(
    ("override", "column", "values"),
    [
        ("model=[llama-3.1-8b, llama-3.1-8b]", "model", ["llama-3.1-8b"] * 2),
        ("engine=[vllm]", "engine", ["vllm"]),
        ("workload.requests=[1, 2]", "workload.requests", [1, 2]),
        ("slo.ttft_p99=[1 s, 200 ms]", "slo.ttft_p99", [1.0, 0.2]),
        ("cost.pue=[1.1, 1.5]", "cost.pue", [1.1, 1.5]),
        ("workload.lengths={prompt: [128, 100..200], output: 5}", "workload.lengths.prompt", ["128", "100..200"]),
        ("workload.arrivals={process: [poisson, constant], rate: 1 req/s}", "workload.arrivals.process",
         ["poisson", "constant"]),
        ("workload.arrivals=[{process: batch}, {process: closed, concurrency: 8}]", "workload.arrivals",
         ["process=batch", "process=closed, concurrency=8"]),
        ("placements.2.gpu_layers=[1, 2, 3]", "placement.gpu_layers", [1, 2, 3]),
    ],
)  # fmt: skip
def test_any_scalar_may_be_an_axis(house: Path, override: str, column: str, values: list[Any]) -> None:
    scenario = chat(house, "machine=nr1-4x-l40s", override)
    seen = [run.axes[column] for run in scenario.runs if column in run.axes]
    assert list(dict.fromkeys(seen)) == list(dict.fromkeys(values))


def test_a_list_where_a_list_is_due_is_no_axis(house: Path) -> None:
    scenario = chat(house, "machine=nr1-4x-l40s", "placements.2.gpu_layers=8", "placements.2.order=[1, 0]")
    assert scenario.runs[2].placement == LayerSplit(strategy="layer_split", gpu_layers=8, order=(1, 0))
    assert scenario.runs[2].axes == {}


def test_a_machine_may_be_written_in_place_with_axes_of_its_own(house: Path) -> None:
    scenario = chat(house, f"machine=[server-4x-l40s, {INLINE}]", "placements=[{strategy: single_device}]")
    assert [(run.machine_name, run.axes) for run in scenario.runs] == [
        ("server-4x-l40s", {"machine": "server-4x-l40s"}),
        ("inline", {"machine": "inline", "machine.devices.l40s": 1}),
        ("inline", {"machine": "inline", "machine.devices.l40s": 2}),
    ]
    machine = load_machine(scenario.runs[2].machine_ref, Catalogue())
    assert len(machine.nodes[0].devices) == 2


def test_machines_in_place_without_a_name_are_told_apart(house: Path) -> None:
    named = INLINE.replace("host: nr1", "name: mine, host: nr1")
    scenario = chat(house, f"machine=[{INLINE}, {named}, {INLINE}]", "placements=[{strategy: single_device}]")
    names = ["inline-1", "inline-1", "mine", "mine", "inline-2", "inline-2"]
    assert [run.machine_name for run in scenario.runs] == names
    assert [run.axes["machine"] for run in scenario.runs] == names


def test_one_machine_in_place_needs_no_list(house: Path) -> None:
    scenario = chat(house, f"machine={INLINE}", "placements={strategy: tensor_parallel, degree: [1, 2]}")
    assert [run.axes for run in scenario.runs] == [
        {"machine.devices.l40s": devices, "placement.degree": degree}
        for devices in (1, 2)
        for degree in (1, 2)
    ]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("model: llama-3.1-8b", "model: llama-3.2-8b", "2:8: model = 'llama-3.2-8b': no such model; did you mean"),
        ("engine: vllm", "engine: vlm", "4:9: engine = 'vlm': no such engine; did you mean 'vllm'?"),
        ("nr1-4x-l40s", "nr2-4x-l40s", "3:27: machine.1 = 'nr2-4x-l40s': no such machine; did you mean"),
        ("machine: [server-4x-l40s, nr1-4x-l40s]", "machine: {host: nr2, host_link: pcie4-x16}",
         "3:17: machine.host = 'nr2': no such host; did you mean 'nr1'?"),
        ("machine: [server-4x-l40s, nr1-4x-l40s]", "machine: [{host: nr1, host_lin: pcie4-x16}]",
         "3:11: machine.0.host_link: missing"),
        ("machine: [server-4x-l40s, nr1-4x-l40s]", "machine: []", "3:1: machine: write at least one entry"),
        ("machine: [server-4x-l40s, nr1-4x-l40s]", "machine:", "machine: write at least one entry"),
        ("weights: fp8", "weights: fp7", "5:22: precision.weights = 'fp7': not one of: fp64"),
        ("strategy: tensor_parallel", "strategy: tensor_paralel",
         "8:16: placements.1.strategy = 'tensor_paralel': not one of: single_device, tensor_parallel, layer_split;"),
        ("strategy: tensor_parallel, ", "", "8:5: placements.1.strategy: missing"),
        ("degree: 4", "degre: 4", "8:5: placements.1.degree: missing"),
        ("gpu_layers: [16, 24]", "gpu_layers: [16, many]",
         "9:46: placements.2.gpu_layers.1 = 'many': write a whole number"),
        ("gpu_layers: [16, 24]", "gpu_layers: []", "9:41: placements.2.gpu_layers: an empty list"),
        ("process: poisson", "process: poison",
         "11:23: workload.arrivals.process = 'poison': not one of: batch, constant, poisson"),
        ("rate: 4 req/s", "rate: 4", "11:38: workload.arrivals.rate = 4: write a number and one of: req/s"),
        ("rate: 4 req/s", "rate: 1..4 req/s", "may not be a range here; write one value, or a list"),
        ("rate: 4 req/s", "rate: [4 req/s, 0 req/s]", "11:48: workload.arrivals.rate.1 = '0 req/s': must be more"),
        ("{histogram: azure-conv-2023}", "{histogram: azure-conv-2024}",
         "12:24: workload.lengths.histogram = 'azure-conv-2024': no such length histogram; did you mean"),
        ("{histogram: azure-conv-2023}", "{histogram: azure.yaml}", "no such file; looked in"),
        ("{histogram: azure-conv-2023}", "{prompt: 0, output: 5}", "12:21: workload.lengths.prompt = 0: must be"),
        ("{histogram: azure-conv-2023}", "{prompt: 9..5, output: 5}", "a range goes from low to high"),
        ("{histogram: azure-conv-2023}", "{prompt: 1.5, output: 5}", "write a whole number of tokens"),
        ("{histogram: azure-conv-2023}", "{promt: 5, output: 5}", "12:3: workload.lengths.prompt: missing"),
        ("{histogram: azure-conv-2023}", "{histogram: azure-conv-2023, prompt: 5}",
         "12:41: workload.lengths.prompt = 5: unknown key"),
        ("{histogram: azure-conv-2023}", "{lognormal: {prompt: {median: 5, sigma: -1}, output: 3}}",
         "workload.lengths.lognormal.prompt.sigma = -1: must be at least 0"),
        ("  lengths: {histogram: azure-conv-2023}\n", "", "10:1: workload.lengths: missing; say how long"),
        ("  requests: 1000\n", "", "10:1: workload.requests: missing; say how many"),
        ("requests: 1000", "requests: 0", "13:13: workload.requests = 0: must be at least 1"),
        ("requests: 1000", "requests: 1e30", "13:13: workload.requests = 1e+30: write a whole number; this one is too"),
        ("requests: 1000", f"requests: {10**30}", f"13:13: workload.requests = {10**30}: must be at most 10000000"),
        ("requests: 1000", f"requests: '{'9' * 5000}'", "write a whole number; this one is too large"),
        ("requests: 1000", "requests: true", "13:13: workload.requests = True: write a whole number"),
        ("requests: 1000", "requests: .inf", "13:13: workload.requests = inf: write a finite number"),
        ("rate: 4 req/s", "rate: 1e-300 req/s", "= '1e-300 req/s': must be at least 1e-06 and at most 1e+06"),
        ("rate: 4 req/s", "rate: 1e-5 req/s", "13:13: workload.requests = 1000: may take longer than 30 days"),
        ("process: poisson, rate: 4 req/s", "process: constant, rate: 1 req/h", "may take longer than 30 days"),
        ("process: poisson, rate: 4 req/s", "process: gamma, cv: 100, rate: 0.1 req/s", "longer than 30 days"),
        ("rate: 4 req/s", "rate: 1e7 req/s", "= '1e7 req/s': must be at least 1e-06 and at most 1e+06"),
        ("process: poisson, rate: 4 req/s", "process: gamma, rate: 4 req/s, cv: 1e-200",
         "workload.arrivals.cv = 1e-200: must be at least 0.01"),
        ("process: poisson, rate: 4 req/s", "process: gamma, rate: 4 req/s, cv: 101",
         "workload.arrivals.cv = 101: must be at most 100"),
        ("process: poisson, rate: 4 req/s", f"process: closed, concurrency: {10**30}",
         f"workload.arrivals.concurrency = {10**30}: must be at most"),
        ("process: poisson, rate: 4 req/s", "process: on_off, rate: 4 req/s, on: 5, off: 3 s",
         "workload.arrivals.on = 5: write a number and one of: ns"),
        ("process: poisson, rate: 4 req/s", "process: on_off, rate: 4 req/s, on: 1..5 s, off: 3 s",
         "workload.arrivals.on = '1..5 s': may not be a range here"),
        ("process: poisson, rate: 4 req/s", "process: on_off, rate: 4 req/s, on: 1 us, off: 3 us",
         "13:13: workload.requests = 1000: take more than 1,000,000 bursts"),
        ("process: poisson, rate: 4 req/s", "process: on_off, rate: 4 req/s, on: 1 s, off: 20 days",
         "13:13: workload.requests = 1000: may take longer than 30 days"),
        ("process: poisson, rate: 4 req/s", "process: diurnal, rate: 4 req/s, amplitude: 120 %",
         "workload.arrivals.amplitude = '120 %': must be at least 0 and at most 1"),
        ("process: poisson, rate: 4 req/s", "process: closed, concurrency: 4, warmup_requests: -1",
         "workload.arrivals.warmup_requests = -1: must be at least 0"),
        ("requests: 1000", "requests: 1000\n  priorities: {0: 0.2, 1: 0.9}",
         "14:3: workload.priorities: shares of requests by priority must add up to 1, not 1.1"),
        ("requests: 1000", "requests: 1000\n  priorities: {high: 1}", "workload.priorities.high"),
        ("requests: 1000", "requests: 1000\n  shared_prefix: {tokens: 0}",
         "14:27: workload.shared_prefix.tokens = 0: must be at least 1"),
        ("{histogram: azure-conv-2023}", f"{{prompt: {10**30}, output: 5}}",
         f"12:21: workload.lengths.prompt = {10**30}: must be at most 1,000,000,000 tokens"),
        ("{histogram: azure-conv-2023}", "{prompt: 1..2_000_000_000, output: 5}", "must be at most 1,000,000,000"),
        ("{histogram: azure-conv-2023}", "{prompt: 1__0, output: 5}", "write a whole number of tokens"),
        ("{histogram: azure-conv-2023}", "{prompt: ٣, output: 5}", "write a whole number of tokens"),
        ("{histogram: azure-conv-2023}", "{lognormal: {prompt: {median: 1e9, sigma: 1}, output: 3}}",
         "workload.lengths.lognormal.prompt.median = 1000000000.0: must be at most 100000000"),
        ("{histogram: azure-conv-2023}", "{lognormal: {prompt: {median: 5, sigma: 6}, output: 3}}",
         "workload.lengths.lognormal.prompt.sigma = 6: must be at most 5"),
        ("seed: 1", f"seed: {10**30}", f"16:7: seed = {10**30}: must be at most 1000000000000000"),
        ("model: llama-3.1-8b", f"model: {'x' * 300}.yaml", "no such file; looked in"),
        ("model: llama-3.1-8b", f"model: {'x' * 300}", "no such model"),
        ("machine: [server-4x-l40s, nr1-4x-l40s]", "machine: {host: nr1, devices: {l40s: 5}, host_link: pcie4-x16}",
         "3:22: machine.devices: 5 devices, but host nr1 takes at most 4"),
        ("machine: [server-4x-l40s, nr1-4x-l40s]",
         "machine: [duo, {host: nr1, devices: {l40s: [4, 9]}, host_link: pcie4-x16}]",
         "3:28: machine.1.devices: 9 devices, but host nr1 takes at most 4"),
        ("machine: [server-4x-l40s, nr1-4x-l40s]",
         "machine: {network: pcie4-x16, nodes: [{name: a, host: nr1, devices: {l40s: 5}, host_link: pcie4-x16}]}",
         "3:60: machine.nodes.0.devices: 5 devices, but host nr1 takes at most 4"),
        ("requests: 1000", "requests: 1 kB", "write a whole number"),
        ("ttft_p99: 1 s", "ttft_p98: 1 s", "14:7: slo.ttft_p98 = '1 s': unknown metric; did you mean"),
        ("ttft_p99: 1 s", "ttft_p99: 1", "14:17: slo.ttft_p99 = 1: write a number and one of: ns"),
        ("life: 5 years", "life: 5", "cost.life = 5: write a number and one of"),
        ("seed: 1", "seed: one", "16:7: seed = 'one': write a whole number"),
        ("seed: 1", "fidelity: quick", "16:11: fidelity = 'quick': not one of: task, step, fast"),
        ("seed: 1", "sead: 1", "16:1: sead = 1: unknown key; did you mean 'seed'?"),
        ("name: who", "name: [a, b] #", "1:7: name: write one text, not a list"),
    ],
)  # fmt: skip
def test_every_mistake_is_named_in_its_place(house: Path, old: str, new: str, expected: str) -> None:
    found = problems(changed(house, old, new))
    assert any(expected in line for line in found), found


def test_all_mistakes_come_at_once(house: Path) -> None:
    text = CHAT.replace("fp8,", "fp7,").replace("rate: 4 req/s", "rate: [4, 5]").replace("seed: 1", "sede: 1")
    found = problems(write(house, "scenarios/bad.yaml", text))
    assert [line.split(": ")[0] for line in found] == [
        "bad.yaml:5:22",
        "bad.yaml:11:39",
        "bad.yaml:11:42",
        "bad.yaml:16:1",
    ]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("sede=1", "--set sede=1: sede = 1: unknown key; did you mean 'seed'?"),
        (
            "workload.request=5",
            "--set workload.request=5: workload.request = 5: unknown key; did you mean 'requests'?",
        ),
        ("worklod.requests=5", "--set worklod.requests=5: worklod: unknown key; did you mean 'workload'?"),
        ("seed", "--set seed: write key=value"),
        ("=1", "--set =1: write key=value"),
        ("a..b=1", "--set a..b=1: write key=value"),
        (
            "placements.7.degree=1",
            "--set placements.7.degree=1: placements is a list; its entries are 0 to 2, not '7'",
        ),
        ("placements.x=1", "its entries are 0 to 2, not 'x'"),
        ("seed.x=1", "--set seed.x=1: seed is a single value and has no key 'x'"),
        ("placements.٣.degree=1", "placements is a list; its entries are 0 to 2, not '٣'"),
        (f"placements.{'1' * 5000}.degree=1", "placements is a list; its entries are 0 to 2, not '111"),
        (
            "extends=other.yaml",
            "--set extends=other.yaml: extends: only a file can say what it extends; write",
        ),
        ("extends=", "--set extends=: extends: only a file can say what it extends; write"),
        ("seed=", "--set seed=: seed: write a whole number"),
        ("seed=[" + "[" * 500, "nested too deep"),
        ("a." * 2000 + "a=1", "more than 100 keys deep"),
        ("seed=[1", "--set seed=[1: not valid YAML"),
        ("engine=vlm", "--set engine=vlm: engine = 'vlm': no such engine; did you mean 'vllm'?"),
        ("placements.1.degree=x", "placements.1.degree = 'x': write a whole number"),
    ],
)
def test_a_bad_override_is_named(house: Path, override: str, expected: str) -> None:
    found = problems(house / "scenarios/chat.yaml", override)
    assert any(expected in line for line in found), found


def test_an_override_may_make_what_is_not_there(house: Path) -> None:
    scenario = chat(house, "slo.e2e_mean=10 s", "placements.1.degree=2")
    assert scenario.runs[0].slo["e2e_mean"] == 10
    assert scenario.runs[1].placement == TensorParallel(strategy="tensor_parallel", degree=2)
    assert scenario.document.marks["slo", "e2e_mean"].path == "--set slo.e2e_mean=10 s"


def test_force_is_command_line_over_scenario_over_base(house: Path) -> None:
    path = write(
        house,
        "scenarios/sub/more.yaml",
        "extends: ../chat.yaml\nname: more\nworkload: {requests: 5}\nseed: 7\nmachine: nr1-4x-l40s\n",
    )
    scenario = load_scenario(path, STRATEGIES, ["seed=9"])
    run = scenario.runs[0]
    assert (scenario.name, run.workload.requests, run.seed, run.machine_name) == ("more", 5, 9, "nr1-4x-l40s")
    assert run.engine == "vllm"
    marks = scenario.document.marks
    assert [Path(marks[key,].path).name for key in ("engine", "name", "seed")] == [
        "chat.yaml",
        "more.yaml",
        "--set seed=9",
    ]
    assert (marks["workload", "requests"].line, marks["workload", "arrivals"].line) == (3, 11)


def test_another_kind_of_arrivals_replaces_that_of_the_base(house: Path) -> None:
    path = write(
        house,
        "scenarios/batch.yaml",
        "extends: chat.yaml\nworkload: {arrivals: {process: batch}, lengths: {prompt: 100..200, output: 16}}\n",
    )
    workload = load_scenario(path, STRATEGIES).runs[0].workload
    assert workload.arrivals.process == "batch"
    assert isinstance(workload.lengths, UniformLengths)
    assert (workload.lengths.prompt, workload.lengths.output) == (TokenRange(100, 200), TokenRange(16, 16))


def test_a_mistake_of_the_base_is_named_in_the_base(house: Path) -> None:
    changed(house, "seed: 1", "seed: one")
    path = write(house, "scenarios/more.yaml", "extends: changed.yaml\nseeed: 2\n")
    assert problems(path) == [
        "changed.yaml:16:7: seed = 'one': write a whole number",
        "more.yaml:2:1: seeed = 2: unknown key; did you mean 'seed'?",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("extends: none.yaml", "bad.yaml:1:10: extends = 'none.yaml': no such file"),
        (f"extends: {'x' * 300}.yaml", "bad.yaml:1:10: extends = 'xxx"),
        ("extends: [chat.yaml]", "bad.yaml:1:10: extends: write the path of one file"),
        ("extends: chain.yaml", "chain.yaml:1:10: extends: a base file may not extend another"),
        ("extends: list.yaml", "list.yaml:1:1: write a mapping"),
        ("- 1", "bad.yaml:1:1: write a mapping"),
        ("", "bad.yaml:1:1: write a mapping"),
    ],
)
def test_bad_bases(house: Path, text: str, expected: str) -> None:
    write(house, "scenarios/chain.yaml", "extends: chat.yaml\n")
    write(house, "scenarios/list.yaml", "- 1\n")
    (line,) = problems(write(house, "scenarios/bad.yaml", text))
    assert expected in line


def test_files_are_looked_up_beside_the_scenario_first(house: Path) -> None:
    trace = "arrival_s,prompt_tokens,output_tokens\n0,5,5\n"
    beside = write(house, "scenarios/requests.csv", trace)
    write(house, "requests.csv", trace)
    override = "workload={arrivals: {process: trace, file: requests.csv}}"
    arrivals = chat(house, override).runs[0].workload.arrivals
    assert isinstance(arrivals, TraceArrivals)
    assert Path(arrivals.file) == beside
    beside.unlink()
    arrivals = chat(house, override).runs[0].workload.arrivals
    assert isinstance(arrivals, TraceArrivals)
    assert Path(arrivals.file) == house / "requests.csv"
    (house / "requests.csv").unlink()
    (line,) = problems(house / "scenarios/chat.yaml", override)
    assert "workload.arrivals.file = 'requests.csv': no such file; looked in" in line


def test_a_trace_brings_its_own_lengths(house: Path) -> None:
    write(house, "requests.csv", "arrival_s,prompt_tokens,output_tokens\n0,5,5\n")
    (line,) = problems(
        house / "scenarios/chat.yaml", "workload.arrivals={process: trace, file: requests.csv}"
    )
    assert "workload.lengths: a trace brings its own lengths" in line


def test_a_model_may_be_a_file_beside_the_scenario(house: Path) -> None:
    write(house, "scenarios/tiny/config.json", "{}")
    assert Path(chat(house, "model=tiny/config.json").runs[0].model) == house / "scenarios/tiny/config.json"


def test_cost_may_be_a_range_and_is_reported(house: Path) -> None:
    path, override = house / "scenarios/chat.yaml", "cost.electricity=0.06..0.12 USD/kWh"
    (figure,) = load_scenario(path, STRATEGIES, [override]).figures
    assert (figure.key_path, figure.low, figure.high, figure.affects) == (
        "cost.electricity",
        0.06,
        0.12,
        "money",
    )
    worst = load_scenario(path, STRATEGIES, [override], case="worst")
    assert worst.runs[0].cost.electricity_usd_per_kwh == 0.12


def test_one_strategy_is_enough(house: Path) -> None:
    scenario = load_scenario(
        house / "scenarios/chat.yaml", [SingleDevice], ["placements=[{strategy: single_device}]"]
    )
    assert len(scenario.runs) == 2

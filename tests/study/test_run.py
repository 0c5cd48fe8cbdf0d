"""Studies end to end: every shipped scenario, bands, money by hand, and what decides who pays."""

import json
import re
from pathlib import Path

import pytest

from simulator.errors import InputError
from simulator.report.verdict import verdict
from simulator.results.run_result import StudyResult
from simulator.study.run import run_scenario

ROOT = Path(__file__).parent.parent.parent
CHAT = ROOT / "scenarios/chat-on-one-node.yaml"


@pytest.fixture(scope="module")
def quick() -> StudyResult:
    return run_scenario(CHAT, ["workload.requests=25"], workers=1)


@pytest.mark.slow
def test_chat_on_one_node_is_the_documented_question(quick: StudyResult):
    """Three machines by four placements, in the order of the file."""
    machines = ("epyc-9654-4x-l40s", "nr1-4x-l40s", "hgx-h100-8")
    assert [run.machine for run in quick.runs] == [name for name in machines for _ in range(4)]
    assert len({run.placement for run in quick.runs}) == 4
    assert [run.fits for run in quick.runs] == [True] * 6 + [False] * 2 + [True] * 4


@pytest.mark.slow
def test_bands_enclose_the_nominal_figure(quick: StudyResult):
    seen = 0
    for run in quick.runs:
        for name, band in run.bands.items():
            value = run.as_dict()["metrics"]
            for key in name.split("."):
                value = value[key]
            if value is None:
                assert band.high is None
            else:
                assert band.low is not None
                assert band.high is None or band.low <= value <= band.high
            seen += 1
    assert seen > 50


@pytest.mark.slow
def test_money_by_hand(quick: StudyResult):
    """epyc-9654-4x-l40s, single device: one L40S and a quarter of the host; 8 % a year over 5 years.

    Capital recovery factor 0.08 / (1 - 1.08**-5) = 0.2504565; prices are the nominal ones of the files.
    """
    from simulator.specs.catalogue import Catalogue

    catalogue = Catalogue()
    run = quick.runs[0]
    assert run.economics is not None
    assert run.metrics is not None
    gpu = catalogue.device("l40s").record.price.purchase_usd
    host = catalogue.host("epyc-9654-2s").record.price.purchase_usd
    assert gpu is not None
    assert host is not None
    usd_per_s = (gpu + host / 4) * 0.2504565 / (365 * 24 * 3600)
    joules = run.economics.energy_j_per_output_token
    assert joules is not None
    energy_usd = joules * 1.25 / 3.6e6 * 0.09
    tokens_per_s = run.metrics.output_tokens_per_s
    expected = (usd_per_s / tokens_per_s + energy_usd) * 1e6
    assert run.economics.usd_per_million_output_tokens == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
def test_energy_lies_between_idle_and_full_power(quick: StudyResult):
    from simulator.specs.catalogue import Catalogue

    power = Catalogue().device("h100-sxm").record.power
    host = Catalogue().host("hgx-xeon-8480p-2s").record.power
    run = quick.runs[8]
    assert run.placement == "single_device"
    assert run.economics is not None
    assert run.metrics is not None
    drawn_w = (run.economics.energy_j_per_output_token or 0) * run.metrics.output_tokens_per_s
    assert (power.idle_w or 0) + (host.idle_w or 0) / 8 < drawn_w < (power.max_w or 0) + (host.max_w or 0) / 8


def doubled(path: Path) -> str:
    """A profile with every end of its purchase price doubled."""
    return re.sub(
        r"(?<=purchase: )([\d_]+)\.\.([\d_]+)",
        lambda price: f"{2 * int(price[1])}..{2 * int(price[2])}",
        path.read_text(),
    )


@pytest.mark.slow
def test_everything_twice_as_expensive_costs_twice_as_much(tmp_path, monkeypatch):
    for profile in ("devices/l40s.yaml", "hosts/epyc-9654-2s.yaml"):
        original = ROOT / "hardware_profiles" / profile
        copy = tmp_path / "hardware_profiles" / profile
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(doubled(original))
        assert copy.read_text() != original.read_text()
    few = ["workload.requests=10", "machine=epyc-9654-4x-l40s", "placements=[{strategy: single_device}]"]
    once = run_scenario(CHAT, few, workers=1).runs[0].economics
    monkeypatch.setenv("PLACEWRIGHT_PATH", str(tmp_path))
    twice = run_scenario(CHAT, [*few, "cost.electricity=0.18 USD/kWh"], workers=1).runs[0].economics
    assert once is not None
    assert twice is not None
    assert twice.known_usd == pytest.approx(2 * once.known_usd, rel=1e-9)


@pytest.mark.slow
def test_the_number_of_workers_changes_nothing():
    overrides = ["workload.requests=15", "machine=[epyc-9654-4x-l40s, hgx-h100-8]"]
    results = [run_scenario(CHAT, overrides, workers=count) for count in (1, 2)]
    assert json.dumps(results[0].as_dict()) == json.dumps(results[1].as_dict())


@pytest.mark.slow
def test_fidelities_agree_on_a_whole_study():
    overrides = ["workload.requests=6", "machine=[epyc-9654-4x-l40s, nr1-4x-l40s]",
                 "workload.lengths={prompt: 100..3000, output: 1..9}"]  # fmt: skip
    step, task = (run_scenario(CHAT, [*overrides, f"fidelity={name}"], workers=1) for name in ("step", "task"))
    for cheap, exact in zip(step.runs, task.runs, strict=True):
        if not cheap.fits:
            continue
        assert cheap.metrics is not None
        assert exact.metrics is not None
        for name in ("ttft_s", "tpot_s", "itl_s", "e2e_s", "output_tokens_per_s"):
            assert getattr(cheap.metrics, name) == getattr(exact.metrics, name)
        assert cheap.economics == exact.economics


@pytest.mark.slow
def test_golden_chat(quick: StudyResult, golden):
    """Detects change; the truth behind the figures is in tests/truth and tests/execution."""
    rows = [
        {key: run.as_dict()[key] for key in ("machine", "placement", "fits", "metrics", "requests", "memory")}
        for run in quick.runs
    ]
    golden("chat-on-one-node-25-requests", rows)


@pytest.mark.slow
def test_nothing_that_fits_is_an_error_with_every_reason():
    with pytest.raises(InputError) as caught:
        run_scenario(CHAT, ["machine=nr1-4x-l40s", "placements=[{strategy: layer_split, gpu_layers: [8, 16]}]"])
    assert len(caught.value.problems) == 2
    assert "`cpu` is unknown" in str(caught.value)


def test_requests_beyond_the_context_are_rejected_not_lost():
    study = run_scenario(
        ROOT / "scenarios/tiny-everywhere.yaml",
        ["machine=hgx-h100-8", "model=tiny-llama", "placements=[{strategy: single_device}]",
         "workload.lengths={prompt: 400..800, output: 20}", "workload.requests=40"], workers=1,
    )  # fmt: skip
    counts = study.runs[0].requests
    assert counts["rejected"] > 0
    assert counts["finished"] > 0
    assert counts["finished"] + counts["rejected"] == 40


def a_trace(folder: Path) -> Path:
    path = folder / "trace.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n0,374,44\n")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((ROOT / "scenarios").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_scenario_runs(path: Path, tmp_path: Path):
    """At the nominal of every range, and of the many that are for `verify` some models; the one whose requests
    are a published trace is given a trace of one."""
    changes = {
        "benchmark-trace": ["workload.requests=1", f"workload.arrivals.file={a_trace(tmp_path)}"],
        "tiny-strategies": ["model=[tiny-llama, tiny-mixtral]"],
    }
    study = run_scenario(path, ["bands=false", *changes.get(path.stem, [])])
    assert study.runs
    for run in study.runs:
        assert run.fits or run.reason
        assert sum(run.requests.values()) == 0 or run.requests["finished"] > 0


@pytest.mark.slow
def test_a_day_of_recorded_requests():
    trace = ROOT.parent / "shared/data/traces/azure2023_conv.csv"
    if not trace.exists():
        pytest.skip("the recorded requests do not ship with the project")
    arrivals = f"workload.arrivals={{process: trace, file: {trace}}}"
    study = run_scenario(
        CHAT, [arrivals, "workload.lengths=null", "workload.requests=500", "machine=hgx-h100-8",
               "placements=[{strategy: single_device}]"], workers=1,
    )  # fmt: skip
    assert study.runs[0].requests == {"finished": 500, "rejected": 0, "failed": 0}
    assert study.runs[0].tokens["input"] > 100_000


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_row_over_capacity_is_saturated_whatever_the_seed(seed: int):
    """Four L40S without peer-to-peer copies serve fewer than 6 requests a second; one alone serves all."""
    study = run_scenario(CHAT, ["machine=epyc-9654-4x-l40s", f"seed={seed}", "workload.arrivals.rate=6 req/s",
                                "placements=[{strategy: single_device}, {strategy: tensor_parallel, degree: 4}]"])  # fmt: skip
    assert [run.saturated for run in study.runs] == [False, True]


@pytest.mark.slow
def test_a_short_run_that_only_fills_up_is_not_saturated():
    study = run_scenario(CHAT, ["machine=epyc-9654-4x-l40s", "workload.requests=100",
                                "placements=[{strategy: single_device}]"], workers=1)  # fmt: skip
    assert study.runs[0].saturated is False


@pytest.mark.slow
def test_what_fixed_overhead_costs_is_not_called_arithmetic():
    """An 8B model over four H100: kernels are so short that most of compute is their fixed overhead."""
    study = run_scenario(CHAT, ["machine=hgx-h100-8", "workload.requests=40",
                                "placements=[{strategy: tensor_parallel, degree: 4}]"], workers=1)  # fmt: skip
    metrics = study.runs[0].metrics
    assert metrics is not None
    assert metrics.overhead_share > 0.8 * metrics.attribution["compute"]
    assert "what kernels cost however small they are" in " ".join(verdict(study))


@pytest.mark.slow
def test_a_chassis_of_unknown_price_leaves_the_cost_unknown():
    machine = ("machine={host: epyc-9654-2s, devices: {l40s: 1}, host_link: pcie-gen4-x16, "
               "price: {purchase: unknown}}")  # fmt: skip
    study = run_scenario(CHAT, [machine, "workload.requests=5", "placements=[{strategy: single_device}]"], workers=1)
    economics = study.runs[0].economics
    assert economics is not None
    assert economics.usd_per_million_output_tokens is None
    assert economics.unknown == ("machines.inline.price",)

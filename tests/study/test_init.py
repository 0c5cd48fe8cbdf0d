"""A data sheet in, a profile out that loads, in a machine that runs."""

import re
from pathlib import Path

import pytest

from simulator.errors import InputError
from simulator.specs.base import Spec
from simulator.specs.catalogue import Catalogue
from simulator.specs.hardware import PRECISIONS, Device, Efficiency, Memory, Power, Price, Transition
from simulator.specs.machine import load_machine
from simulator.study.data_sheet import DataSheet, Surroundings
from simulator.study.init import OPTIONS, Draft, init_device
from simulator.study.run import run_scenario

SHEET = {"memory.capacity": "48 GB", "memory.bandwidth": "864 GB/s", "compute.bf16": "362 TFLOP/s"}

SCENARIO = """\
name: Two requests
model: tiny-llama
machine: hgx-h100-8
engine: vllm
precision: {weights: bf16, activations: bf16, kv_cache: bf16}
placements: [{strategy: single_device}]
workload: {arrivals: {process: batch}, lengths: {prompt: 16, output: 4}, requests: 2}
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PLACEWRIGHT_PATH", raising=False)


def written(draft: Draft) -> None:
    for path, text in draft.files:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def refusal(*arguments, **options) -> str:
    with pytest.raises(InputError) as refused:
        init_device(*arguments, **options)
    return str(refused.value)


def test_a_data_sheet_becomes_a_device_that_runs_at_once() -> None:
    draft = init_device(DataSheet("my-card", figures=SHEET, ref="Data sheet of my card", date="2026-03"))
    assert [str(path) for path, _ in draft.files] == [
        "hardware_profiles/devices/my-card.yaml",
        "hardware_profiles/machines/1x-my-card.yaml",
    ]
    assert (draft.missing, draft.command) == ((), "placewright run SCENARIO --set machine=1x-my-card")
    written(draft)
    device = Catalogue().load("devices", "my-card", Device).record
    assert (device.memory.capacity_bytes, device.memory.bandwidth_bytes_per_s) == (48e9, 864e9)
    assert device.compute == {"bf16": 362e12}
    assert {key: (source.kind, source.date) for key, source in device.sources.items()} == {
        "memory": ("datasheet", "2026-03"),
        "compute": ("datasheet", "2026-03"),
    }
    Path("two.yaml").write_text(SCENARIO)
    (run,) = run_scenario("two.yaml", ["machine=1x-my-card"], workers=1).as_dict()["runs"]
    assert run["requests"]["finished"] == 2


def test_every_option_ends_in_the_file() -> None:
    given = {
        **SHEET, "generation": "ada", "units": 142, "memory.usable": "46 GB", "memory.cache": "96 MB",
        **{f"compute.{precision}": "10..20 TFLOP/s" for precision in PRECISIONS},
        "power.idle": "25..50 W", "power.max": "350 W", "price.purchase": "7_500..9_000 USD",
    }  # fmt: skip
    assert {"name", "kind", "ref", "date", *given} == OPTIONS.keys()
    written(init_device(DataSheet("my-card", "accelerator", 'A "card": #1', given)))
    loaded = Catalogue().device("my-card")
    device = loaded.record
    assert (device.name, device.kind, device.generation, device.units) == ('A "card": #1', "accelerator", "ada", 142)
    assert (device.memory.available_bytes, device.memory.cache_bytes) == (46e9, 96e6)
    assert device.compute.keys() == set(PRECISIONS)
    assert (device.power.max_w, device.price.purchase_usd) == (350, 8250)
    assert {each.source_kind for each in loaded.figures} == {"assumed"}, "no data sheet was named"


@pytest.mark.parametrize("kind", ["gpu", "cpu"])
def test_a_form_says_what_is_to_be_filled_in_and_loads_then(kind: str) -> None:
    draft = init_device(DataSheet("blank", kind))
    assert draft.missing == ("memory.capacity", "memory.bandwidth", "compute.bf16")
    written(draft)
    with pytest.raises(InputError, match=r"blank.yaml:\d+:\d+: memory.capacity = '<80 GB>': write a number and one of"):
        load_machine(draft.machine, Catalogue())
    for path, text in draft.files:
        path.write_text(re.sub("<(.*?)>", r"\1", text))
    machine = load_machine(draft.machine, Catalogue())
    assert Catalogue().device("blank").record.compute == {"bf16": 989e12}
    assert (machine.nodes[0].cpu if kind == "cpu" else machine.nodes[0].devices)


def test_a_form_explains_every_field_in_the_words_of_the_schema() -> None:
    text = init_device(DataSheet("blank")).files[0][1]
    flat = re.sub(r"\s*\n[ #]*", " ", text)
    specs: list[type[Spec]] = [Device, Memory, Power, Price, Efficiency, Transition]
    for spec in specs:
        for field in spec.model_fields.values():
            assert " ".join(str(field.description).split()) in flat, field.description


def test_what_is_commented_out_loads_too() -> None:
    """All of a form, uncommented: the examples are good ones."""
    draft = init_device(DataSheet("blank", figures=SHEET))
    written(draft)
    path, text = draft.files[0]
    live = re.sub(r"^( *)# ( *)(\w[\w.]*:(?: [^<\n]*)?)$", r"\1\2\3", text, flags=re.MULTILINE)
    fields, about = live.split("# Where each figure comes from")
    about = about.replace("sources:", "sources:\n  efficiency: {kind: assumed, ref: x}\n  transition: {kind: assumed, ref: x}\n  units: {kind: assumed, ref: x}")
    path.write_text(fields.replace("usable: 79 GB", "usable: 47 GB") + "# Where each figure comes from" + about)
    device = Catalogue().device("blank").record
    assert device.efficiency["matmul.bf16"].blend == 3.9
    assert device.transition is not None
    assert device.memory.cache_bytes == 50e6


def test_a_processor_gets_a_host_of_its_own() -> None:
    draft = init_device(DataSheet("my-cpu", "cpu", figures={**SHEET, "units": 96}))
    written(draft)
    (node,) = load_machine("my-cpu", Catalogue()).nodes
    assert node.host.cores == 96
    assert node.cpu is not None
    assert node.cpu.compute["bf16"] == pytest.approx(0.9 * 362e12)
    assert node.cpu.memory.capacity_bytes == 48e9


def test_the_machine_is_what_was_asked_for() -> None:
    written(init_device(DataSheet("my-card", figures=SHEET), Surroundings("nr1", "pcie-nr1", "eth-400", 4)))
    (node,) = load_machine("4x-my-card", Catalogue()).nodes
    assert (node.host_id, node.host_link_id, len(node.devices)) == ("nr1", "pcie-nr1", 4)


def test_another_folder_is_named_in_the_command() -> None:
    draft = init_device(DataSheet("my-card", figures=SHEET), out=Path("my hardware"))
    assert draft.files[0][0] == Path("my hardware/hardware_profiles/devices/my-card.yaml")
    assert draft.command.startswith("PLACEWRIGHT_PATH='my hardware' placewright run ")


def test_nothing_is_written_over_or_hidden_unless_told() -> None:
    written(init_device(DataSheet("my-card", figures=SHEET)))
    told = refusal(DataSheet("my-card", figures=SHEET))
    assert told.count("is there already; choose another NAME, or --force to write over it") == 2
    assert "l40s.yaml: is the device of that name" in refusal(DataSheet("l40s", figures=SHEET))
    assert init_device(DataSheet("my-card", figures=SHEET), force=True).files
    assert init_device(DataSheet("l40s", figures=SHEET), force=True).files


@pytest.mark.parametrize(
    ("sheet", "around", "message"),
    [
        (DataSheet("a b"), None, "NAME = 'a b': write a word"),
        (DataSheet("1e3"), None, "NAME = '1e3': write a word"),
        (DataSheet("x", "gpus"), None, "--kind = 'gpus': not one of: cpu, gpu, accelerator; did you mean 'gpu'?"),
        (DataSheet("x", figures={"memory.capacity": "48"}), None, "--memory = '48': write a number and one of"),
        (DataSheet("x", figures={"memory.capacity": "1 GB", "memory.usable": "2 GB"}), None, "--usable = '2 GB': must not exceed the capacity"),
        (DataSheet("x", figures={"power.idle": "9 W", "power.max": "8 W"}), None, "--idle = '9 W': must not exceed 'max'"),
        (DataSheet("x", figures={"compute.fp8": "fast"}), None, "--fp8 = 'fast': write a number and one of"),
        (DataSheet("x", figures={"units": 0}), None, "--units = 0"),
        (DataSheet("x", figures={"generation": "Ada"}), None, "--generation = 'Ada'"),
        (DataSheet("x", date="May"), None, "--date = 'May': write a date as"),
        (DataSheet("x"), Surroundings(host="nr2"), "--host = 'nr2': no such host; did you mean 'nr1'?"),
        (DataSheet("x"), Surroundings(host_link="pci"), "--host-link = 'pci': no such link"),
        (DataSheet("x"), Surroundings("nr1", count=5), "--count = 5: host nr1 takes at most 4"),
    ],
)  # fmt: skip
def test_mistakes_name_the_option(sheet: DataSheet, around: Surroundings | None, message: str) -> None:
    assert message in refusal(sheet, around)


def test_all_mistakes_are_told_at_once() -> None:
    told = refusal(DataSheet("x", "gpus", figures={"memory.capacity": "48", "power.max": "1"}), Surroundings("nr2"))
    assert len(told.splitlines()) == 4

"""Every file that ships loads in every case, says where its figures come from, and names no private place."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

from simulator.placement.strategies import STRATEGIES
from simulator.specs.base import Case
from simulator.specs.catalogue import FOLDERS, Catalogue, Kind
from simulator.specs.device_class import DeviceClass
from simulator.specs.load import Loaded
from simulator.specs.machine import load_machine
from simulator.specs.model import load_model
from simulator.specs.provenance import Figure, source_problems
from simulator.specs.scenario import load_scenario
from simulator.specs.yaml_file import read_document

ROOT = Path(__file__).parent.parent
CASES = get_args(Case)
SCENARIOS = sorted(path.name for path in (ROOT / "scenarios").glob("*.yaml"))
FILES = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("hardware_profiles", "models", "scenarios")
    for path in (ROOT / folder).rglob("*.*")
)

ABSOLUTE_PATH = re.compile(r"""(?:^|[\s"'(=])(?:~?/\w|[A-Za-z]:\\)""", re.MULTILINE)
REGISTRY_HOST = re.compile(r"\b[\w.-]*(?:pypi|pythonhosted|npmjs|registry)[\w-]*\.(?:org|com|io|net)\b")

NO_FIGURES = frozenset({"name", "kind", "generation", "follows", "cpu.device"})

shipped = Catalogue((ROOT,))
every_case = pytest.mark.parametrize("case", CASES)


def ids(*kinds: Kind) -> list[tuple[Kind, str]]:
    return [(kind, name) for kind in kinds for name in shipped.ids(kind)]


def figures(kind: Kind, name: str, case: Case) -> tuple[Figure, ...]:
    """Load a file that stands for itself; its uncertain figures."""
    load: dict[Kind, Callable[[str, Case], Loaded[Any]]] = {
        "devices": shipped.device,
        "classes": lambda name, case: shipped.load("classes", name, DeviceClass, case),
        "hosts": shipped.host,
        "links": shipped.link,
        "engines": shipped.engine,
    }
    return load[kind](name, case).figures


def test_every_file_has_a_place_that_a_command_looks_in() -> None:
    places = {*FOLDERS.values(), "scenarios"}
    assert [file for file in FILES if Path(file).parent.as_posix() not in places] == []


@every_case
@pytest.mark.parametrize(("kind", "name"), ids("devices", "classes", "hosts", "links", "engines"))
def test_every_profile_loads_and_every_range_has_a_source(kind: Kind, name: str, case: Case) -> None:
    assert [each.key_path for each in figures(kind, name, case) if each.source_kind is None] == []


@pytest.mark.parametrize(("kind", "name"), ids("devices", "classes", "hosts", "links", "engines", "models"))
def test_every_figure_has_a_source(kind: Kind, name: str) -> None:
    document = read_document(shipped.path(kind, name))
    assert list(map(str, source_problems(document, NO_FIGURES, needs_cover=True))) == []


@every_case
@pytest.mark.parametrize("name", shipped.ids("machines"))
def test_every_machine_loads_with_sourced_figures(name: str, case: Case) -> None:
    machine = load_machine(name, shipped, case)
    assert [each.key_path for each in machine.figures if each.source_kind is None] == []


@pytest.mark.parametrize("name", shipped.ids("models"))
def test_every_model_loads(name: str) -> None:
    assert load_model(name, shipped).num_hidden_layers > 0


@pytest.mark.parametrize("name", shipped.ids("lengths"))
def test_every_length_histogram_loads(name: str) -> None:
    assert shipped.histogram(name).bins


@every_case
@pytest.mark.parametrize("name", SCENARIOS)
def test_every_scenario_loads_with_its_machines_and_models(name: str, case: Case, tmp_path: Path) -> None:
    """The one whose requests are a published trace is given a trace of one."""
    given = []
    if name == "benchmark-trace.yaml":
        trace = tmp_path / "trace.csv"
        trace.write_text("arrival_s,prompt_tokens,output_tokens\n0,374,44\n")
        given = [f"workload.arrivals.file={trace}", "workload.requests=1"]
    scenario = load_scenario(ROOT / "scenarios" / name, STRATEGIES, given, catalogue=shipped, case=case)
    assert scenario.runs
    for run in scenario.runs:
        load_machine(run.machine_ref, shipped, case)
        load_model(run.model, shipped)
        shipped.engine(run.engine, case)


@pytest.mark.parametrize("file", FILES)
def test_no_file_names_a_private_place(file: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    assert ABSOLUTE_PATH.findall(text) == []
    assert REGISTRY_HOST.findall(text) == []

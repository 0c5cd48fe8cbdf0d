"""Whatever stands in place of a value, a person gets problems and never a traceback."""

from collections.abc import Callable
from pathlib import Path

import pytest

from simulator.errors import InputError
from simulator.specs.catalogue import Catalogue
from simulator.specs.machine import load_machine
from simulator.specs.model import load_model
from simulator.specs.scenario import load_scenario
from simulator.specs.yaml_file import leaves, parse_document

from .small_catalogue import FILES, STRATEGIES

ODD = [
    "",
    "-1",
    "1e400",
    "{}",
    "[]",
    "[[1]]",
    "{a: {b: c}}",
    "true",
    "unknown",
    "1..2",
    "'{x}'",
    ".nan",
    "x" * 200,
    "x" * 300 + ".yaml",
    "1e300",
    "9" * 30,
    "9" * 5000,
    "'" + "9" * 5000 + "'",
    "0x" + "f" * 5000,
    "٣",
    "[" * 3000,
]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("odd", [*ODD[:4], *(pytest.param(odd, marks=pytest.mark.slow) for odd in ODD[4:])])
def test_any_value_replaced_by_an_odd_one(house: Path, name: str, odd: str) -> None:
    document = parse_document(FILES[name], name)
    for loc, _ in leaves(document.data):
        mark = document.marks[loc]
        assert mark.line is not None
        assert mark.column is not None
        lines = FILES[name].splitlines()
        line, start = lines[mark.line - 1], mark.column - 1
        end = min([at for stop in ",}]" if (at := line.find(stop, start)) >= 0] or [len(line)])
        lines[mark.line - 1] = f"{line[:start]}{odd}{line[end:]}"
        (house / name).write_text("\n".join(lines), encoding="utf-8")
        _load_what_uses(name, house)


def _load_what_uses(name: str, house: Path) -> None:
    catalogue = Catalogue((house,))
    users: dict[str, list[Callable[[], object]]] = {
        "hardware_profiles": [
            lambda: load_machine("duo", catalogue),
            lambda: load_machine("server-4x-l40s", catalogue),
            lambda: load_machine("nr1-4x-l40s", catalogue),
        ],
        "models": [lambda: load_model("llama-3.1-8b", catalogue)],
        "scenarios/engines": [lambda: catalogue.engine("vllm")],
        "scenarios/lengths": [lambda: catalogue.histogram("azure-conv-2023")],
        "scenarios/chat": [
            lambda: load_scenario(house / "scenarios/chat.yaml", STRATEGIES, catalogue=catalogue)
        ],
    }
    for call in next(calls for prefix, calls in users.items() if name.startswith(prefix)):
        try:
            call()
        except InputError as error:
            assert all(problem.advice for problem in error.problems)

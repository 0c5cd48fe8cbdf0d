"""Golden files, and settings that make every test run alike."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # xdist uses the cores; set before torch is imported

settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")

collect_ignore_glob = ["*/make_*.py"]  # scripts that make fixtures need packages that tests do not

GOLDEN = Path(__file__).parent / "golden"

Golden = Callable[[str, Any], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden/*.json")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    """Compare with tests/golden/NAME.json; numbers may differ by rounding, 1 part in 10^9."""

    def compare(name: str, data: Any) -> None:
        path = GOLDEN / f"{name}.json"
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(data, indent=1, sort_keys=True, allow_nan=False) + "\n")
        assert path.exists(), f"no {path.name} yet; make it with pytest --update-golden"
        expected = {place: roughly(each) for place, each in leaves(json.loads(path.read_text()))}
        assert dict(leaves(json.loads(json.dumps(data)))) == expected

    return compare


def roughly(value: Any) -> Any:
    """What equals `value` up to rounding."""
    return pytest.approx(value, rel=1e-9, abs=0) if isinstance(value, float) else value


def leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every scalar and every empty collection of a JSON value, by its dotted place."""
    if isinstance(value, dict | list) and value:
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(each, f"{place}.{key}" if place else str(key))
    else:
        yield place, str(value) if isinstance(value, dict | list) else value

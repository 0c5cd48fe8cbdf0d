"""JSON Schemas: one a kind of file, with units as patterns and docstrings as descriptions."""

import json
import re
from typing import Any

from simulator.specs.schema import schemas

from .small_catalogue import STRATEGIES


def _forms(schema: dict[str, Any]) -> list[dict[str, Any]]:
    return [schema, *schema.get("anyOf", [])]


def _accepts(schema: dict[str, Any], text: str) -> bool:
    return any("pattern" in form and re.search(form["pattern"], text) for form in _forms(schema))


def test_there_is_one_for_every_kind_of_file() -> None:
    found = schemas(STRATEGIES)
    kinds = {"device", "class", "host", "link", "machine", "model", "engine", "lengths", "scenario"}
    assert set(found) == kinds
    assert json.loads(json.dumps(found)) == found


def test_keys_are_those_of_files_and_descriptions_those_of_fields() -> None:
    memory = schemas()["device"]["$defs"]["Memory"]
    assert set(memory["properties"]) == {"capacity", "bandwidth", "usable", "cache"}
    assert memory["properties"]["capacity"]["description"].startswith("As the driver reports it")
    assert memory["additionalProperties"] is False


def test_quantities_are_text_with_a_unit() -> None:
    found = schemas()["device"]["$defs"]
    capacity, price = found["Memory"]["properties"]["capacity"], found["Price"]["properties"]["purchase"]
    assert _accepts(capacity, "80 GiB")
    assert _accepts(capacity, "80..90 GB")
    assert not _accepts(capacity, "80")
    assert not _accepts(capacity, "80 W")
    assert _accepts(price, "unknown")
    assert not _accepts(capacity, "unknown")


def test_a_scenario_takes_lists_where_scalars_are_due() -> None:
    scenario = schemas(STRATEGIES)["scenario"]
    assert {"type": "array", "items": {"type": "string"}, "minItems": 1} in scenario["properties"]["model"][
        "anyOf"
    ]
    assert "TensorParallel" in scenario["$defs"]
    assert scenario["$defs"]["TensorParallel"]["properties"]["strategy"]["const"] == "tensor_parallel"


def test_no_default_is_an_si_number_where_text_is_due() -> None:
    cost = schemas(STRATEGIES)["scenario"]["$defs"]["Cost"]["properties"]
    assert not any("default" in each for each in cost.values())

"""JSON Schemas of every kind of file, for editors that complete and check while one types."""

from collections.abc import Sequence
from typing import Any

from pydantic import TypeAdapter

from simulator.specs.base import Spec
from simulator.specs.device_class import DeviceClass
from simulator.specs.engine import Engine
from simulator.specs.hardware import Device, Host, Link
from simulator.specs.machine import ClusterFile, NodeFile
from simulator.specs.model import ModelFile
from simulator.specs.scenario import ScenarioFile, scenario_type
from simulator.specs.workload import LengthHistogram

_NEVER_AXES = ("name", "extends", "strategy", "process")

JsonSchema = dict[str, Any]


def schemas(strategies: Sequence[type[Spec]] = ()) -> dict[str, JsonSchema]:
    """A JSON Schema by kind of file; field docstrings are the descriptions.

    `strategies` are what a scenario's placements may be; without them anything may.
    """
    scenario = scenario_type(tuple(strategies)) if strategies else ScenarioFile
    machine: TypeAdapter[Any] = TypeAdapter(NodeFile | ClusterFile)
    found = {
        "device": Device.model_json_schema(),
        "class": DeviceClass.model_json_schema(),
        "host": Host.model_json_schema(),
        "link": Link.model_json_schema(),
        "machine": machine.json_schema(),
        "model": ModelFile.model_json_schema(),
        "engine": Engine.model_json_schema(),
        "lengths": LengthHistogram.model_json_schema(),
        "scenario": _with_axes(scenario.model_json_schema()),
    }
    return {kind: _without_si_defaults(schema) for kind, schema in found.items()}


def _with_axes(schema: JsonSchema) -> JsonSchema:
    """`schema` where a list of what is due is as good as what is due."""
    records = [schema, *schema.get("$defs", {}).values()]
    for record in records:
        properties: JsonSchema = record.get("properties", {})
        for key, each in properties.items():
            if key not in _NEVER_AXES:
                properties[key] = _or_list(each)
    return schema


def _or_list(schema: JsonSchema) -> JsonSchema:
    about = {key: schema[key] for key in ("description", "default", "title") if key in schema}
    bare = {key: value for key, value in schema.items() if key not in about}
    if bare.get("type") == "array":
        return about | {"anyOf": [bare.get("items", {}), bare]}
    return about | {"anyOf": [bare, {"type": "array", "items": bare, "minItems": 1}]}


def _without_si_defaults(schema: Any) -> Any:
    """`schema` without defaults that are SI numbers where a file has text with a unit."""
    if isinstance(schema, list):
        return [_without_si_defaults(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: _without_si_defaults(each) for key, each in schema.items()}
    is_quantity = "examples" in str(schema) and isinstance(schema.get("default"), float)
    if is_quantity or isinstance(schema.get("default"), dict):
        del kept["default"]
    return kept

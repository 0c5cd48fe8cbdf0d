"""Rules of `custom`: what each speaks of, which of two counts, and where every operator ends up."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from simulator.graph.model_graph import operator_names
from simulator.placement.placement import NotPlaceable, Placement, Stage
from simulator.placement.strategies import Custom
from tests.placed import machine, model

L40S = "epyc-9654-4x-l40s"
ATTENTION = {"attn_norm", "qkv_proj", "rotary", "attention", "o_proj"}
MLP = {"mlp_norm", "up_proj", "activation", "down_proj"}
ROUTED = {"expert_up_proj", "expert_activation", "expert_down_proj"}
SHARED = {"shared_up_proj", "shared_activation", "shared_down_proj", "shared_gate"}

Rules = list[dict[str, Any]]


def by_rules(rules: Rules, name: str = "tiny-llama", default: str | None = None) -> Placement:
    found = Custom.model_validate({"rules": rules, "default": default}).place(model(name), machine(L40S))
    assert isinstance(found, Placement), found
    return found


def where_of(placement: Placement, name: str) -> dict[tuple[int | None, str], str]:
    """The device of every operator, as lowering finds it."""
    home = [stage.devices[0] for stage in placement.stages for _ in stage.layers]
    before = {"embed", "project_in", "embed_norm"}
    found = {}
    for layer, operator, _ in operator_names(model(name)):
        other = (each.device for each in placement.elsewhere if each.has(operator, layer))
        usual = home[layer] if layer is not None else home[0] if operator in before else home[-1]
        found[layer, operator] = next(other, usual)
    return found


def on(placement: Placement, name: str, device: str) -> set[str]:
    """Operators on a device in some layer."""
    return {operator for (_, operator), place in where_of(placement, name).items() if place == device}


# --- what a rule speaks of ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "name", "moved"),
    [
        ({"part": "attention"}, "tiny-llama", ATTENTION),
        ({"part": "mlp"}, "tiny-llama", MLP),
        ({}, "tiny-llama", ATTENTION | MLP),
        ({"part": "embed"}, "tiny-llama", {"embed"}),
        ({"part": "head"}, "tiny-llama", {"final_norm", "lm_head", "sample"}),
        ({"operators": ["o_proj"]}, "tiny-llama", {"o_proj"}),
        ({"operators": ["*_norm", "up_*"]}, "tiny-llama", {"attn_norm", "mlp_norm", "final_norm", "up_proj"}),
        ({"operators": ["*_norm"], "layers": "0-3"}, "tiny-llama", {"attn_norm", "mlp_norm"}),
        ({"operators": ["q*"]}, "tiny-llama", {"qkv_proj"}),
        ({"operators": ["?_proj"]}, "tiny-llama", {"o_proj"}),
        ({"operators": ["[ad]*_proj", "EMBED"]}, "tiny-llama", {"down_proj"}),
        ({"part": "experts"}, "tiny-qwen2-moe", ROUTED),
        ({"part": "shared_experts"}, "tiny-qwen2-moe", SHARED),
        ({"part": "mlp"}, "tiny-qwen2-moe", {"mlp_norm", "router", "expert_add", *ROUTED, *SHARED}),
        ({"operators": ["expert_*"]}, "tiny-mixtral", ROUTED | {"expert_add"}),
    ],
)  # fmt: skip
def test_a_rule_moves_what_it_speaks_of_and_nothing_else(rule: dict[str, Any], name: str, moved: set[str]) -> None:
    names = {operator for _, operator, _ in operator_names(model(name))}
    found = by_rules([rule | {"device": "gpu-2"}], name)
    assert on(found, name, "gpu-2") == moved & names
    assert on(found, name, "gpu-0") == names - moved


@pytest.mark.parametrize(
    ("layers", "numbers"),
    [("all", {0, 1, 2, 3}), ("0", {0}), ("1-2", {1, 2}), ("0, 2-3", {0, 2, 3}), ("3,3 , 0-0", {0, 3}), ("0-3", {0, 1, 2, 3})],
)  # fmt: skip
def test_layers_are_numbers_and_spans_with_their_ends(layers: str, numbers: set[int]) -> None:
    found = where_of(by_rules([{"layers": layers, "device": "gpu-3"}]), "tiny-llama")
    assert {layer for (layer, _), device in found.items() if device == "gpu-3"} == numbers


def test_of_two_rules_the_later_one_counts() -> None:
    rules: Rules = [{"part": "mlp", "device": "gpu-1"}, {"operators": ["up_proj"], "device": "gpu-2"}]
    assert on(by_rules(rules), "tiny-llama", "gpu-2") == {"up_proj"}
    assert on(by_rules(rules[::-1]), "tiny-llama", "gpu-2") == set()
    assert on(by_rules(rules[::-1]), "tiny-llama", "gpu-1") == MLP


def test_the_rest_is_on_the_default() -> None:
    found = by_rules([{"part": "mlp", "device": "gpu-1"}], default="gpu-3")
    assert on(found, "tiny-llama", "gpu-3") == ATTENTION | {"embed", "final_norm", "lm_head", "sample"}


def test_layers_go_with_most_of_their_operators() -> None:
    """Two neighbours on one device are one stage."""
    found = by_rules([{"layers": "1-2", "device": "gpu-1"}, {"layers": "1", "part": "mlp", "device": "gpu-0"}])
    assert found.stages == (Stage(("gpu-0",), 0, 1), Stage(("gpu-1",), 1, 2), Stage(("gpu-0",), 3, 1))
    assert {name for each in found.elsewhere for name in each.operators} == MLP
    assert {(each.device, each.layers) for each in found.elsewhere} == {("gpu-0", frozenset({1}))}


rules_of_any_kind = st.lists(
    st.fixed_dictionaries(
        {"device": st.sampled_from(["gpu-0", "gpu-1", "cpu"]), "layers": st.sampled_from(["all", "0", "1-2", "0,3"])},
        optional={"part": st.sampled_from(["attention", "mlp", "embed", "head"])},
    ),
    min_size=1, max_size=5,
)  # fmt: skip


@settings(deadline=None)
@given(rules_of_any_kind)
def test_every_operator_is_where_the_last_rule_that_speaks_of_it_says(rules: Rules) -> None:
    found = where_of(by_rules(rules), "tiny-llama")
    spans = {"all": {0, 1, 2, 3}, "0": {0}, "1-2": {1, 2}, "0,3": {0, 3}}
    for layer, name, part in operator_names(model("tiny-llama")):
        said = "gpu-0"
        for rule in rules:
            speaks = rule["part"] == part if "part" in rule else layer is not None
            if speaks and (layer is None or layer in spans[rule["layers"]]):
                said = rule["device"]
        assert found[layer, name] == said


def test_an_encoders_attention_has_no_blocks_to_stay_with() -> None:
    found = by_rules([{"operators": ["attention"], "device": "cpu"}], "tiny-bert")
    assert on(found, "tiny-bert", "cpu") == {"attention"}


# --- what it refuses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "name", "reason"),
    [
        ([{"device": "gpu-9"}], "tiny-llama", "no device 'gpu-9'"),
        ([{"layers": "4", "device": "gpu-1"}], "tiny-llama", "layers '4': the model has layers 0-3"),
        ([{"layers": "2-1", "device": "gpu-1"}], "tiny-llama", "layers '2-1'"),
        ([{"layers": "", "device": "gpu-1"}], "tiny-llama", "write numbers and spans such as 0-7, 12, or all"),
        ([{"layers": "²", "device": "gpu-1"}], "tiny-llama", "write numbers and spans"),
        ([{"layers": "1--2", "device": "gpu-1"}], "tiny-llama", "write numbers and spans"),
        ([{"layers": "-1", "device": "gpu-1"}], "tiny-llama", "write numbers and spans"),
        ([{"layers": "0-999999999999", "device": "gpu-1"}], "tiny-llama", "the model has layers 0-3"),
        ([{"layers": "9" * 5000, "device": "gpu-1"}], "tiny-llama", "write numbers and spans"),
        ([{"layers": "3", "operators": ["lm_head"], "device": "gpu-1"}], "tiny-llama",
         "a rule for lm_head in layers 3 meets no operator"),
        ([{"part": "experts", "device": "gpu-1"}], "tiny-llama", "a rule for experts in layers all meets no operator"),
        ([{"operators": ["qkv", "router"], "layers": "1", "device": "cpu"}], "tiny-llama",
         "a rule for qkv+router in layers 1 meets no operator"),
        ([{"operators": ["attention"], "device": "cpu"}], "tiny-llama",
         "layer 0: rotary and attention use the same KV blocks; they must be on one device, not on gpu-0 and cpu"),
        ([{"operators": ["rotary"], "layers": "2", "device": "cpu"}], "tiny-llama", "layer 2: rotary and attention"),
    ],
)  # fmt: skip
def test_rules_that_cannot_be_followed(rules: Rules, name: str, reason: str) -> None:
    found = Custom.model_validate({"rules": rules}).place(model(name), machine(L40S))
    assert isinstance(found, NotPlaceable)
    assert reason in found.reason


def test_a_default_that_is_not_there_is_named() -> None:
    strategy = Custom.model_validate({"rules": [{"device": "cpu"}], "default": "gpu-7"})
    found = strategy.place(model("tiny-llama"), machine(L40S))
    assert isinstance(found, NotPlaceable)
    assert "no device 'gpu-7'" in found.reason


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "give either `device_map` or `rules`"),
        ({"rules": [{"device": "cpu"}], "device_map": {"": 0}}, "give either `device_map` or `rules`"),
        ({"device_map": {"": 0}, "default": "cpu"}, "`default` is for `rules`"),
        ({"rules": [{"device": "cpu", "part": "mlp", "operators": ["up_proj"]}]}, "give either `part` or `operators`"),
        ({"rules": []}, "write at least one of `rules`"),
        ({"rules": [{"part": "mlp"}]}, "device"),
        ({"rules": [{"device": "cpu", "part": "norms"}]}, "Input should be 'attention'"),
        ({"device_map": {"": True}}, "write a number, 'cuda:0', 'cpu' or 'disk'"),
        ({"device_map": {"": 0.5}}, "write a number, 'cuda:0', 'cpu' or 'disk'"),
        ({"device_map": {"": None}}, "write a number, 'cuda:0', 'cpu' or 'disk'"),
    ],
)  # fmt: skip
def test_what_is_said_twice_or_not_at_all(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Custom.model_validate(fields)


# --- labels -------------------------------------------------------------------------------------------------

VARIANTS: list[dict[str, Any]] = [
    {"rules": [{"device": "cpu"}]},
    {"rules": [{"device": "cpu", "layers": "0-1"}]},
    {"rules": [{"device": "cpu", "part": "mlp"}]},
    {"rules": [{"device": "cpu", "part": "mlp", "layers": "0-1"}]},
    {"rules": [{"device": "cpu", "operators": ["up_proj"]}]},
    {"rules": [{"device": "cpu", "operators": ["up_proj", "down_proj"]}]},
    {"rules": [{"device": "cpu"}, {"device": "gpu-1", "part": "head"}]},
    {"rules": [{"device": "cpu"}], "default": "gpu-1"},
    {"rules": [{"device": "cpu"}], "name": "mine"},
    {"device_map": {"model.layers.0": 0, "model.layers.1": 0, "model.layers.2": "cpu"}},
    {"device_map": {"model.layers.0": "cpu", "model.layers.1": 0, "model.layers.2": 0}},
    {"device_map": {"": 0}},
    {"device_map": {"": 1}},
]


def test_labels_tell_variants_apart() -> None:
    labels = [Custom.model_validate(fields).label for fields in VARIANTS]
    assert len(set(labels)) == len(labels)
    assert labels[3] == "custom mlp 0-1 on cpu"
    assert labels[6] == "custom all on cpu, head on gpu-1"
    assert labels[7] == "custom all on cpu, rest on gpu-1"
    assert labels[8] == "custom mine"
    assert labels[10] == "custom cpu:1 0:2"

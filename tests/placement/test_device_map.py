"""Device maps as accelerate writes them for each family, and as people write them by hand."""

from collections.abc import Mapping
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.graph.model_graph import operator_names
from simulator.placement.placement import Elsewhere, NotPlaceable, Placement, Stage, Streaming
from simulator.placement.strategies import Custom
from simulator.placement.strategies.device_map import Located, read_device_map
from tests.placed import machine, model

L40S, XEON = "epyc-9654-4x-l40s", "xeon-6454s-1s-4x-rtx-4090"
Map = dict[str, int | str]


@dataclass(frozen=True)
class Names:
    """The modules of a family that `infer_auto_device_map` names, in its order."""

    before: tuple[str, ...]
    layer: str
    after: tuple[str, ...]

    def map(self, embed: int | str, layers: list[int | str], norm: int | str, head: int | str) -> Map:
        *between, last = self.after
        return {
            **dict.fromkeys(self.before, embed),
            **{self.layer.format(number): where for number, where in enumerate(layers)},
            **dict.fromkeys(between, norm),
            last: head,
        }


FAMILIES = {
    "llama": Names(("model.embed_tokens",), "model.layers.{}", ("model.norm", "model.rotary_emb", "lm_head")),
    "opt": Names(("model.decoder.embed_tokens", "model.decoder.embed_positions"), "model.decoder.layers.{}",
                 ("model.decoder.final_layer_norm", "lm_head")),
    "opt-350m": Names(("model.decoder.embed_tokens", "model.decoder.project_in"), "model.decoder.layers.{}",
                      ("model.decoder.project_out", "lm_head")),
    "gpt2": Names(("transformer.wte", "transformer.wpe", "transformer.drop"), "transformer.h.{}",
                  ("transformer.ln_f", "lm_head")),
    "gpt-j": Names(("transformer.wte", "transformer.drop"), "transformer.h.{}", ("transformer.ln_f", "lm_head")),
    "gpt-neox": Names(("gpt_neox.embed_in", "gpt_neox.emb_dropout"), "gpt_neox.layers.{}",
                      ("gpt_neox.final_layer_norm", "gpt_neox.rotary_emb", "embed_out")),
    "bloom": Names(("transformer.word_embeddings", "transformer.word_embeddings_layernorm"), "transformer.h.{}",
                   ("transformer.ln_f", "lm_head")),
    "falcon": Names(("transformer.word_embeddings",), "transformer.h.{}", ("transformer.ln_f", "lm_head")),
    "phi": Names(("model.embed_tokens", "model.embed_dropout"), "model.layers.{}",
                 ("model.final_layernorm", "lm_head")),
}  # fmt: skip


def located(device_map: Mapping[str, int | str], layers: int = 4) -> Located:
    found = read_device_map(device_map, layers)
    assert isinstance(found, Located), found
    return found


def refused(device_map: Mapping[str, int | str], layers: int = 4) -> str:
    found = read_device_map(device_map, layers)
    assert isinstance(found, str), found
    return found


# --- what accelerate writes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_every_module_of_a_family_is_understood(family: str) -> None:
    found = located(FAMILIES[family].map(2, [0, 1, "cpu", "disk"], 3, 4))
    assert found == Located((0, 1, "cpu", "disk"), embed=2, final_norm=3, head=4, accelerators=(2, 0, 1, 3, 4))


@pytest.mark.parametrize(
    ("layer", "parts"),
    [
        ("model.decoder.layers.3", ["self_attn", "activation_fn", "self_attn_layer_norm", "fc1", "fc2",
                                    "final_layer_norm"]),
        ("model.layers.3", ["self_attn", "mlp", "input_layernorm", "post_attention_layernorm"]),
        ("model.layers.3", ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
                            "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "mlp.act_fn"]),
        ("model.layers.3", ["self_attn", "block_sparse_moe.gate", "block_sparse_moe.experts.0",
                            "block_sparse_moe.experts.7.w1", "input_layernorm"]),
        ("transformer.h.3", ["ln_1", "attn", "ln_2", "mlp"]),
        ("transformer.h.3", ["input_layernorm", "self_attention", "post_attention_layernorm", "mlp"]),
        ("transformer.h.3", ["ln_attn", "ln_mlp", "self_attention", "mlp"]),
        ("gpt_neox.layers.3", ["input_layernorm", "post_attention_dropout", "attention", "mlp"]),
    ],
)  # fmt: skip
def test_a_layer_that_was_split_over_one_device_is_whole(layer: str, parts: list[str]) -> None:
    """Without `no_split_module_classes` accelerate names the parts of the layer at which a device was full."""
    whole = {f"{layer[:-1]}{number}": 0 for number in range(3)}
    assert located(whole | {f"{layer}.{part}": 1 for part in parts}).layers == (0, 0, 0, 1)
    torn = {f"{layer}.{part}": 1 for part in parts}
    last = next(name for name in reversed(torn) if any(word in name for word in ("mlp", "fc2", "moe")))
    assert "puts parts of layer 3 in different places" in refused(whole | torn | {last: "cpu"})


def test_what_flexgen_compares_itself_with() -> None:
    """FlexGen's baseline of accelerate (`hf_opt.py`): names of parameters, and all layers by their list."""
    device_map: Map = {
        "model.decoder.embed_tokens.weight": 0, "model.decoder.embed_positions.weight": 0,
        "model.decoder.final_layer_norm": "cpu", "model.decoder.layers": "cpu", "lm_head.weight": 0,
    }  # fmt: skip
    assert located(device_map) == Located(("cpu",) * 4, 0, "cpu", 0, accelerators=(0,))


# --- prefixes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device_map", "expected"),
    [
        ({"": 1}, Located((1,) * 4, 1, 1, 1, (1,))),
        ({"model": 1, "lm_head": 0}, Located((1,) * 4, 1, 1, 0, (1, 0))),
        ({"transformer": 1, "lm_head": 0}, Located((1,) * 4, 1, 1, 0, (1, 0))),
        ({"": 0, "model.layers": 1}, Located((1,) * 4, 0, 0, 0, (0, 1))),
        ({"model": 0, "model.layers": "cpu", "lm_head": 1}, Located(("cpu",) * 4, 0, 0, 1, (0, 1))),
        ({"": 0, "gpt_neox.embed_in": 1, "gpt_neox.final_layer_norm": 2}, Located((0,) * 4, 1, 2, 0, (0, 1, 2))),
        ({"": 0, "model": 1}, Located((1,) * 4, 1, 1, 0, (0, 1))),
        ({"": 0, "model": 1, "model.decoder": 2}, Located((2,) * 4, 2, 2, 0, (0, 1, 2))),
        ({"": 0, "model.layers": 1, "model.layers.2": 3}, Located((1, 1, 3, 1), 0, 0, 0, (0, 1, 3))),
        ({"model.layers.2": 3, "": 0}, Located((0, 0, 3, 0), 0, 0, 0, (3, 0))),
        ({"model.layers": 1}, Located((1,) * 4, 1, 1, 1, (1,))),
    ],
)  # fmt: skip
def test_a_module_goes_where_the_longest_of_its_prefixes_goes(device_map: Map, expected: Located) -> None:
    assert located(device_map) == expected


@given(
    root=st.sampled_from(["", "model", None]), stem=st.booleans(), singles=st.sets(st.integers(0, 5)), seed=st.randoms()
)
def test_prefixes_as_a_naive_search_finds_them(root: str | None, stem: bool, singles: set[int], seed) -> None:
    """Whatever is named, in whatever order: each module by the longest key that it starts with."""
    keys = [f"model.layers.{number}" for number in singles]
    keys += ["model.layers"] * stem + ([] if root is None else [root])
    seed.shuffle(keys)
    device_map: Map = {key: place for place, key in enumerate(keys)}

    def naive(module: str) -> int | str | None:
        above = [key for key in device_map if not key or module == key or module.startswith(f"{key}.")]
        return device_map[max(above, key=len)] if above else None

    found = read_device_map(device_map, 6)
    expected = [naive(f"model.layers.{number}") for number in range(6)]
    if None in expected:
        assert isinstance(found, str)
        assert f"says nothing of layer {expected.index(None)}" in found
        return
    assert isinstance(found, Located)
    assert list(found.layers) == expected
    for module, where in (("model.norm", found.final_norm), ("model.embed_tokens", found.embed),
                          ("lm_head", found.head)):  # fmt: skip
        if naive(module) is not None:
            assert where == naive(module)


@pytest.mark.parametrize(("value", "number"), [("cuda:1", 1), ("cuda", 0), ("3", 3), (2, 2), ("cuda:10", 10)])
def test_an_accelerator_has_many_names(value: int | str, number: int) -> None:
    assert located({"": value}).layers == (number,) * 4


def test_one_place_under_two_names_is_one() -> None:
    assert located({"": "cuda:0", "model.layers.1.mlp": 0, "model.layers.1.self_attn": "0"}).layers == (0,) * 4


# --- nonsense -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device_map", "reason"),
    [
        ({}, "says nothing of layer 0"),
        ({"model.layers.0": 0, "model.layers.2": 0}, "says nothing of layer 1; name model.layers.1, or '' for all"),
        ({"": 0, "model.layers.4": 0}, "names 'model.layers.4', which is no module of a model with 4 layers"),
        ({"": 0, "mode": 1}, "names 'mode', which"),
        ({"": 0, "model.layers.x": 1}, "names 'model.layers.x'"),
        ({"": 0, "model.layers.1.nonsense": 1}, "names 'model.layers.1.nonsense'"),
        ({"": 0, "my_lm_head": 1}, "names 'my_lm_head'"),
        ({"": 0, f"model.layers.{'9' * 5000}": 1}, "names 'model.layers.9"),
        ({"": "9" * 5000}, "write a number from 0 on"),
        ({"": "gpu-0"}, "has 'gpu-0'; write a number from 0 on"),
        ({"": -1}, "has '-1'"),
        ({"": "cuda:-1"}, "has 'cuda:-1'"),
        ({"": "²"}, "has '²'"),
        ({"": "cuda:"}, "has 'cuda:'"),
        ({"": 0, "model.rotary_emb": "mars"}, "has 'mars'"),
        ({"": 0, "model.layers.1.mlp": 1}, "puts parts of layer 1 in different places"),
        ({"": 0, "model.layers.1.self_attn.q_proj": 0, "model.layers.1.self_attn.v_proj": 1}, "parts of layer 1"),
    ],
)  # fmt: skip
def test_what_a_map_cannot_say(device_map: Map, reason: str) -> None:
    assert reason in refused(device_map)


@given(st.dictionaries(st.text(max_size=20), st.one_of(st.integers(), st.text(max_size=8)), max_size=4))
def test_any_map_is_understood_or_refused_in_words(device_map: Map) -> None:
    assert isinstance(read_device_map(device_map, 3), (Located, str))


# --- what becomes of it -------------------------------------------------------------------------------------


def by_map(device_map: Map, where: str = L40S, name: str = "opt-30b") -> Placement | NotPlaceable:
    return Custom(device_map=device_map).place(model(name), machine(where))


def test_two_gpus_and_the_processor_as_accelerate_places_opt_30b() -> None:
    """Layers beyond both GPUs are brought from the host, one after the other, to the first one named."""
    places: list[int | str] = [0] * 18 + [1] * 19 + ["cpu"] * 11
    found = by_map(FAMILIES["opt"].map(0, places, "cpu", 0))
    assert isinstance(found, Placement)
    assert found.stages == (Stage(("gpu-0",), 0, 18), Stage(("gpu-1",), 18, 19), Stage(("gpu-0",), 37, 11))
    assert found.streaming == Streaming((None,) * 37 + ("host",) * 11, buffers=1)
    assert found.elsewhere == ()
    assert found.name == "custom 0:20 1:19 cpu:12 0:1"


def test_layers_on_disk_come_from_disk() -> None:
    found = by_map({"": 1, "model.decoder.layers": "disk", "model.decoder.layers.5": 1}, XEON)
    assert isinstance(found, Placement)
    assert found.stages == (Stage(("gpu-1",), 0, 48),)
    assert found.streaming == Streaming(("nvme",) * 5 + (None,) + ("nvme",) * 42, buffers=1)


def test_what_is_kept_at_the_host_is_computed_on_the_first_device_of_the_map() -> None:
    found = by_map({"lm_head": 2, "model.decoder.layers": "cpu", "": 0})
    assert isinstance(found, Placement)
    assert {stage.devices for stage in found.stages} == {("gpu-2",)}


def test_both_ends_are_where_the_map_says() -> None:
    found = by_map(FAMILIES["llama"].map(1, [0] * 32, 2, 3), name="llama-3.1-8b")
    assert isinstance(found, Placement)
    ends = {each.device: each.operators for each in found.elsewhere}
    assert {"gpu-1": frozenset({"embed"}), "gpu-2": frozenset({"final_norm"})}.items() <= ends.items()
    assert {(each.device, name) for each in found.elsewhere for name in each.operators} == {
        ("gpu-1", "embed"), ("gpu-2", "final_norm"), ("gpu-3", "lm_head"), ("gpu-3", "sample"),
    }  # fmt: skip
    assert all(each.layers == {None} for each in found.elsewhere)


def test_a_map_without_accelerators_is_for_the_processor() -> None:
    found = by_map({"": "cpu"})
    assert isinstance(found, Placement)
    assert (found.stages, found.streaming) == ((Stage(("cpu",), 0, 48),), None)
    beside = by_map({"": "cpu"}, "cpu-gpu-nr1", "llama-3.1-8b")
    assert isinstance(beside, Placement)
    assert beside.stages == (Stage(("x86.cpu",), 0, 32),)


@pytest.mark.parametrize(
    ("device_map", "where", "reason"),
    [
        ({"": 4}, L40S, "device_map uses accelerator 4, the machine has 4"),
        ({"": 0, "model.decoder.layers": "disk"}, L40S, "states no `storage`, so nothing can be kept on a drive"),
        ({"": "cpu", "model.decoder.layers.3": "disk"}, XEON, "names no accelerator to compute them on"),
        ({"": "cpu"}, "nr1-4x-l40s", "`cpu` is unknown"),
        ({"": 0}, "aws-m7i-16xlarge", "device_map uses accelerator 0, the machine has 0"),
        ({"": 0, "nonsense": 1}, L40S, "names 'nonsense'"),
    ],
)  # fmt: skip
def test_maps_that_a_machine_cannot_follow(device_map: Map, where: str, reason: str) -> None:
    found = by_map(device_map, where)
    assert isinstance(found, NotPlaceable)
    assert reason in found.reason


def test_every_operator_has_a_place_whatever_the_map() -> None:
    """Stages and exceptions together are what the map says of each operator."""
    places: list[int | str] = [1, 0, 0, 2]
    found = by_map(FAMILIES["gpt2"].map(3, places, 0, 1), name="tiny-gpt2")
    assert isinstance(found, Placement)
    home = [stage.devices[0] for stage in found.stages for _ in stage.layers]
    assert home == [f"gpu-{number}" for number in places]
    expected = {"embed": "gpu-3", "final_norm": "gpu-0", "lm_head": "gpu-1", "sample": "gpu-1"}
    for layer, name, _ in operator_names(model("tiny-gpt2")):
        other = [each.device for each in found.elsewhere if each.has(name, layer)]
        usual = home[layer] if layer is not None else home[0] if name == "embed" else home[-1]
        assert (other or [usual]) == [expected[name] if layer is None else home[layer]]
        assert Elsewhere(usual, frozenset({name}), frozenset({layer})) not in found.elsewhere

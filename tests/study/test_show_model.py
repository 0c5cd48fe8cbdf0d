"""What `show --model` counts, against publications, Hugging Face's counts, and the page that describes it."""

import itertools
import json
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from simulator.errors import InputError, SimulatorError
from simulator.graph.work import Formats
from simulator.specs.architecture import LayerSpec
from simulator.specs.catalogue import Catalogue
from simulator.specs.families import READERS
from simulator.specs.model import load_model
from simulator.specs.weight_formats import WEIGHT_CHOICES, WEIGHT_FORMATS
from simulator.study.folded_graph import folded_graph
from simulator.study.model_question import ModelQuestion, Step, ask
from simulator.study.show_model import ROLES, Amounts, ModelSheet, OperatorRow, StepSheet, show_model
from simulator.units import format_count
from tests import tiny

ROOT = Path(__file__).parents[2]
COUNTS = json.loads((ROOT / "tests/graph/data/hugging_face_counts.json").read_text())
MODELS = sorted(path.stem for path in (ROOT / "models").glob("*.yaml"))
COUNTED = [name for name in MODELS if name in COUNTS]

every_model = pytest.mark.parametrize("name", MODELS)


@cache
def sheet(name: str, **asked) -> ModelSheet:
    return show_model(ask(name, **asked))


def decode(shown: ModelSheet) -> StepSheet:
    return next(step for step in shown.steps if step.step.name == "decode")


def row(step: StepSheet, operator: str) -> OperatorRow:
    return next(row for row in step.rows if row.operator == operator)


# --- parameters and memory ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters", "kv_bytes"),
    [
        ("llama-3.1-8b", 8_030_261_248, 2 * 32 * 8 * 128 * 2),
        ("mixtral-8x7b", 46_702_792_704, 2 * 32 * 8 * 128 * 2),
        ("deepseek-v3", 671_026_419_200, 61 * (512 + 64) * 2),
        ("bert-base-uncased", 108_891_648, 0),
    ],
)
def test_parameters_and_kv_bytes(name, parameters, kv_bytes):
    """As counted from the published checkpoints (BERT without its pooler); two bytes a number in bf16."""
    shown = sheet(name)
    assert (shown.parameters, shown.kv_bytes_per_token) == (parameters, kv_bytes)


@pytest.mark.parametrize(
    ("name", "billions", "is_without_embedding"),
    [
        ("mixtral-8x7b", 12.9, False),  # Jiang et al. 2024, arXiv 2401.04088: "only uses 13B", 12.9B in the release
        ("qwen3-30b-a3b", 3.3, False),  # its model card
        ("deepseek-v2", 21, False),  # DeepSeek-AI 2024, arXiv 2405.04434
        ("deepseek-v3", 37, False),  # DeepSeek-AI 2024, arXiv 2412.19437
        ("gpt-oss-120b", 5.13, True),  # OpenAI 2025, gpt-oss model card, table 1: without the embedding
        ("gpt-oss-20b", 3.61, True),
    ],
)
def test_active_parameters_are_the_published_ones(name, billions, is_without_embedding):
    shown = sheet(name)
    embedding = next(row.parameters for row in shown.memory if row.role == "embedding")
    counted = (shown.active_parameters - embedding * is_without_embedding) / 1e9
    digits = len(str(billions).partition(".")[2])
    assert counted == pytest.approx(billions, abs=0.6 if digits == 0 else 0.6 * 10**-digits)


def test_a_dense_model_has_no_idle_parameters():
    shown = sheet("llama-3.1-8b")
    assert shown.active_parameters == shown.parameters
    assert shown.experts is None


@pytest.mark.slow
@pytest.mark.parametrize("name", COUNTED)
def test_roles_are_those_of_hugging_face(name):
    """Its modules, grouped by tests/graph/make_counts.py; corrections of routers are buffers there."""
    found = dict.fromkeys(COUNTS[name]["parameters_by_group"], 0)
    for each in sheet(name).memory:
        group = {"embedding": "embeddings", "positions": "embeddings"}.get(each.role, each.role.replace(" ", "_"))
        found[group] = found.get(group, 0) + each.parameters
    expected = dict(COUNTS[name]["parameters_by_group"])
    if COUNTS[name]["published_buffers"]:
        expected["router"] += COUNTS[name]["published_buffers"]
    assert found == expected


@pytest.mark.slow
@every_model
def test_every_model_can_be_shown(name):
    shown = sheet(name)
    document = json.loads(json.dumps(shown.as_dict(), allow_nan=False))
    assert sum(each.parameters for each in shown.memory) == shown.parameters == document["parameters"]
    assert sum(each.weights_bytes for each in shown.memory) == shown.weights_bytes == 2 * shown.parameters
    assert {each.role for each in shown.memory} <= set(ROLES)
    assert [each.step.name for each in shown.steps] == (["prefill"] if shown.is_encoder else ["prefill", "decode"])
    assert (document["kv_bytes_per_token"] == 0) == shown.is_encoder
    layers = [index for kind in shown.layers for index in kind.layers]
    assert sorted(layers) == list(range(load_model(name, Catalogue()).num_hidden_layers))


@pytest.mark.parametrize("weights", WEIGHT_CHOICES)
def test_every_format_can_be_shown(weights):
    shown = sheet("llama-3.1-8b", weights=weights)
    assert sum(each.weights_bytes for each in shown.memory) == shown.weights_bytes
    assert {form for each in shown.memory for form in each.formats} <= WEIGHT_FORMATS.keys()


def test_what_is_not_quantised_is_told():
    roles = {each.role: each.formats for each in sheet("llama-3.1-8b", weights="fp8").memory}
    assert roles == {"embedding": ("bf16",), "attention": ("fp8",), "mlp": ("fp8",), "norms": ("bf16",),
                     "head": ("bf16",)}  # fmt: skip


def test_a_tied_head_is_counted_once():
    shown = sheet("gpt2")
    assert shown.tied_head
    assert "head" not in {each.role for each in shown.memory}


def test_formats_of_the_cache_and_of_states():
    assert sheet("llama-3.1-8b", kv_cache="fp8").kv_bytes_per_token == 131_072 // 2
    wide, narrow = (sheet("tiny-qwen3-next", activations=name).state_bytes_per_sequence for name in ("fp32", "bf16"))
    assert wide == 2 * narrow > 0


def test_layers_are_summed_up():
    assert sheet("gpt-oss-20b").layers_summary == "12 x window 128, 12 x full"
    assert sheet("qwen3-next-80b-a3b").layers_summary == "36 x gated delta rule, 12 x full"
    heads = [kind.heads for kind in sheet("tiny-deci").layers]
    assert heads == ["8 of 8", "8 of 8 on 4 KV heads", "8 of 8 on 2 KV heads"]


# --- the work of a step -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in COUNTED if "deepseek" not in name and "next" not in name])
def test_dense_flops_are_those_of_hugging_face(name):
    """Latent attention and the delta rule are computed otherwise there (tests/graph/make_counts.py)."""
    model, counts = load_model(name, Catalogue()), COUNTS[name]
    steps = (Step("prefill", 1, 0, 64),) if model.is_encoder else (Step("prefill", 1, 0, 64), Step("decode", 1, 64, 1))
    found = [step.total.dense_flops for step in show_model(ModelQuestion(model, tiny.BF16, steps)).steps]
    keys = ("prefill_64_flops",) if model.is_encoder else ("prefill_64_last_flops", "decode_after_64_flops")
    assert found == [counts[key] for key in keys]


def test_flops_of_a_token_are_two_a_weight_and_four_a_channel_and_key():
    """Kaplan et al. 2020, arXiv 2001.08361, table 1: of llama-3.1-8b, looking up and norms left out."""
    step = decode(sheet("llama-3.1-8b", context=999))
    looked_up, norms = 128_256 * 4096, 65 * 4096
    assert step.total.flops == 2 * (8_030_261_248 - looked_up - norms) + 32 * 4 * 4096 * 1000
    assert step.total.dense_flops == step.total.flops


def test_a_prompt_sees_half_of_the_square():
    attention = row(sheet("llama-3.1-8b", prefill=1024).steps[0], "attention")
    assert attention.times == 32
    assert attention.work.flops == 32 * 4 * 4096 * (1024 * 1025 // 2)
    assert attention.work.dense_flops == 32 * 4 * 4096 * 1024**2


def test_a_product_with_one_vector_is_bound_by_memory():
    """Two FLOPs for the two bytes of each bf16 weight; 64 sequences do 64 times as much on the same weights."""
    for name in ("up_proj", "down_proj", "qkv_proj", "lm_head"):
        one = row(decode(sheet("llama-3.1-8b")), name).work.intensity_flops_per_byte
        assert one == pytest.approx(1, rel=2e-3)
        many = row(decode(sheet("llama-3.1-8b", decode=64)), name).work.intensity_flops_per_byte
        assert many == pytest.approx(64, rel=0.1)


def test_a_step_reads_every_weight_once_but_rows_of_the_table():
    shown = sheet("llama-3.1-8b", context=0)
    moved = decode(shown).total.moved_bytes
    assert moved == pytest.approx(shown.weights_bytes - 2 * 128_256 * 4096, rel=2e-3)


@pytest.mark.parametrize("tokens", [1, 2, 3])
def test_active_experts_are_the_mean_over_all_choices(tokens):
    """Tiny Mixtral: every way in which so many tokens can choose 2 of 8, equally likely."""
    pairs = [frozenset(pair) for pair in itertools.combinations(range(8), 2)]
    unions = [len(frozenset().union(*chosen)) for chosen in itertools.product(pairs, repeat=tokens)]
    step = decode(sheet("tiny-mixtral", decode=tokens))
    assert step.active_experts == pytest.approx(sum(unions) / len(unions))
    assert step.as_dict()["active_experts"] == step.active_experts


def test_weights_of_idle_experts_are_not_read():
    shown = sheet("mixtral-8x7b", context=0)
    assert decode(shown).total.moved_bytes == pytest.approx(
        2 * (shown.active_parameters - 32_000 * 4096), rel=2e-3
    )


def test_operators_add_up_to_the_step():
    for step in sheet("deepseek-v2-lite").steps:
        assert step.total == sum((row.work for row in step.rows), Amounts())
        shares = [step.shares(row) for row in step.rows]
        assert [sum(each) for each in zip(*shares, strict=True)] == pytest.approx([1, 1])


def test_json_names_its_units():
    document = sheet("tiny-llama").as_dict()
    assert (document["parameters"], document["kv_bytes_per_token"]) == (180_800, 512)
    step = document["steps"][1]
    assert (step["name"], step["sequences"], step["context_tokens_per_sequence"]) == ("decode", 1, 511)
    expected = {"operator", "times", "flops", "dense_flops", "moved_bytes", "intensity_flops_per_byte",
                "share_of_flops", "share_of_moved_bytes"}  # fmt: skip
    assert all(set(operator) == expected for operator in step["operators"])
    assert document["layers"][0]["layers"] == (0, 1, 2, 3)


# --- the folded graph ---------------------------------------------------------------------------------------


@pytest.mark.slow
@every_model
def test_layers_of_the_folded_graph_add_up_to_the_step(name):
    """Dense FLOPs; moved bytes differ, as the first layer has no branch of one before it to add."""
    question = ask(name)
    graph = folded_graph(question)
    if any(block.differ_in_size for block in graph.blocks):
        assert "deci" in name
        return
    for index, step in enumerate(show_model(question).steps):
        outside = sum(node.work[index].dense_flops for node in (*graph.before, *graph.after))
        inside = sum(len(block.layers) * node.work[index].dense_flops
                     for block in graph.blocks for node in block.nodes)  # fmt: skip
        assert outside + inside == step.total.dense_flops


def test_layers_of_one_structure_are_one_block():
    blocks = folded_graph(ask("gemma-3-1b")).blocks
    assert [(len(block.layers), block.attention) for block in blocks] == [(22, "window 512"), (4, "full")]
    (block,) = folded_graph(ask("tiny-deci")).blocks
    assert block.differ_in_size


def test_a_layer_without_parts_lets_values_pass():
    model = replace(tiny.LLAMA, layers=(*tiny.LLAMA.layers, LayerSpec(None, None), tiny.LLAMA.layers[0]))
    empty = folded_graph(ModelQuestion(model, tiny.BF16, (Step("prefill", 1, 0, 8),))).blocks[1]
    assert empty.nodes == ()
    assert {(edge.source, edge.target, edge.role) for edge in empty.edges} == {
        (None, None, "residual"), (None, None, "branch")}  # fmt: skip


# --- what is asked ------------------------------------------------------------------------------------------


def test_steps_are_shorter_where_a_model_has_fewer_positions():
    assert [(step.context, step.new) for step in ask("tiny-llama").steps] == [(0, 512), (511, 1)]
    assert [(step.context, step.new) for step in ask("gpt2").steps] == [(0, 512), (512, 1)]
    assert [(step.context, step.new) for step in ask("gpt2", prefill=1024, context=1023).steps] == [(0, 1024), (1023, 1)]


def test_all_problems_come_at_once():
    with pytest.raises(InputError) as caught:
        ask("gpt2", weights="q4_k", activations="bf17", kv_cache="8", prefill=1025, context=1024)
    text = str(caught.value)
    assert len(caught.value.problems) == 5
    assert "--weights = 'q4_k': not one of: fp64," in text
    assert "did you mean 'q4_k_" in text
    assert "--activations = 'bf17'" in text and "did you mean 'bf16'?" in text
    assert "ask for at most 1,024" in text and "ask for at most 1,023" in text


def test_an_encoder_does_not_decode():
    with pytest.raises(InputError, match="--decode = 2: .* is an encoder and decodes nothing"):
        ask("tiny-bert", decode=2)


def test_a_format_that_does_not_fit_is_told():
    with pytest.raises(SimulatorError, match="q5_0 keeps weights in blocks of 32 numbers"):
        show_model(ModelQuestion(tiny.LLAMA, Formats("q5_0", "bf16", "bf16"), ()))


def test_a_config_of_ones_own(tmp_path):
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
              "num_hidden_layers": 3, "num_attention_heads": 8, "intermediate_size": 128, "vocab_size": 256,
              "num_key_value_heads": 4, "max_position_embeddings": 128}  # fmt: skip
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    shown = sheet(str(folder / "config.json"))
    assert shown.name == "my-model"
    assert [step.step.new for step in shown.steps] == [128, 1]
    assert shown.layers_summary == "3 x full"


# --- the page -----------------------------------------------------------------------------------------------


PAGE = (ROOT / "docs/models.md").read_text(encoding="utf-8")


def model_table() -> str:
    """The table of published models, made anew."""
    lines = ["| id | family | parameters | active | layers | KV bytes a token |", "|---|---|---|---|---|---|"]
    for name in MODELS:
        if not name.startswith("tiny-"):
            shown = sheet(name)
            active = format_count(shown.active_parameters) if shown.experts else "all"
            cached = "none" if shown.is_encoder else f"{shown.kv_bytes_per_token:,}"
            cells = (f"`{name}`", f"`{shown.family}`", format_count(shown.parameters), active, shown.layers_summary, cached)
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def test_the_page_lists_the_catalogue():
    """Where this fails, put the table in the message into docs/models.md."""
    assert model_table() in PAGE, f"docs/models.md needs\n{model_table()}"
    tiny_ones = re.search(r"^Tiny ones: (.*?)\.$", PAGE, re.MULTILINE | re.DOTALL)
    assert tiny_ones and re.findall(r"`(tiny-[\w-]+)`", tiny_ones[1]) == [n for n in MODELS if n.startswith("tiny-")]


def test_the_page_names_every_family_format_and_operator():
    named = set(re.findall(r"`([\w.-]+)`", PAGE))
    assert {row.operator for name in MODELS for row in sheet(name).steps[0].rows} - named == set()
    assert READERS.keys() - named == set()
    assert set(WEIGHT_CHOICES) - named == set()


@pytest.mark.parametrize("form", [form for form in WEIGHT_FORMATS.values() if form.block_bytes and form.scale_bytes])
def test_the_page_has_the_bytes_of_every_block(form):
    numbers = form.block_rows * form.block_columns
    assert re.search(rf"^\| `{form.name}` \| {numbers:,} .*\| {form.block_bytes:,} \|", PAGE, re.MULTILINE)

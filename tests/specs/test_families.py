"""What makes each family special ends in the record; parameters add up to the published number.

A family's reader was written against its `modeling_*.py` in Hugging Face transformers 5.23, which every
assertion here restates.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from simulator.errors import InputError
from simulator.specs.architecture import (
    Alibi,
    Architecture,
    Attention,
    Experts,
    LatentAttention,
    LearnedPositions,
    LinearAttention,
    LinearRope,
    Mlp,
    Rope,
    YarnRope,
)
from simulator.specs.config_fields import ConfigFields
from simulator.specs.families import READERS
from simulator.specs.model import from_config
from simulator.specs.yaml_file import Document, plain, read_document

from .small_catalogue import lines_of

MODELS = Path(__file__).parents[2] / "models"

COUNTS = {
    "all-minilm-l6-v2": 22_565_376,
    "aquila-7b": 7_295_537_152,
    "bert-base-uncased": 108_891_648,
    "bge-m3": 566_705_152,
    "bloom-7b1": 7_069_016_064,
    "codellama-34b": 33_743_970_304,
    "decilm-7b": 7_043_551_232,
    "deepseek-v2": 235_741_434_880,
    "deepseek-v2-lite": 15_706_484_224,
    "deepseek-v3": 671_026_419_200,
    "falcon-180b": 178_557_088_768,
    "falcon-40b": 41_303_293_952,
    "falcon-7b": 6_921_720_704,
    "gemma-2-9b": 9_241_705_984,
    "gemma-3-1b": 999_885_952,
    "gpt-j-6b": 6_050_882_784,
    "gpt-neox-20b": 20_554_567_680,
    "gpt-oss-120b": 116_829_156_672,
    "gpt-oss-20b": 20_914_757_184,
    "gpt2": 124_439_808,
    "internlm-20b": 20_088_714_240,
    "llama-2-70b": 68_976_648_192,
    "llama-2-7b": 6_738_415_616,
    "llama-3-70b": 70_553_706_496,
    "llama-3-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.2-1b": 1_235_814_400,
    "llama-7b": 6_738_415_616,
    "mistral-7b": 7_241_732_096,
    "mixtral-8x7b": 46_702_792_704,
    "opt-125m": 125_239_296,
    "opt-175b": 174_604_468_224,
    "opt-30b": 29_974_540_288,
    "opt-6.7b": 6_658_473_984,
    "phi-2": 2_779_683_840,
    "qwen-72b": 72_287_920_128,
    "qwen1.5-7b": 7_721_324_544,
    "qwen1.5-moe-a2.7b": 14_315_784_192,
    "qwen2-72b": 72_706_203_648,
    "qwen2-7b": 7_615_616_512,
    "qwen2.5-coder-14b": 14_770_033_664,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-32b": 32_762_123_264,
    "qwen3-8b": 8_190_735_360,
    "qwen3-next-80b-a3b": 79_674_391_296,
    "smollm2-135m": 134_515_008,
    "tiny-bert": 183_296,
    "tiny-bloom": 216_576,
    "tiny-deci": 182_848,
    "tiny-deepseek-v2": 368_832,
    "tiny-deepseek-v3": 350_592 + 3 * 8,
    "tiny-falcon": 119_424,
    "tiny-falcon-grouped": 132_224,
    "tiny-gemma2": 214_080,
    "tiny-gemma3": 214_208,
    "tiny-gpt-neox": 166_784,
    "tiny-gpt-oss": 335_744,
    "tiny-gpt2": 249_216,
    "tiny-gptj": 165_504,
    "tiny-internlm": 198_208,
    "tiny-llama": 180_800,
    "tiny-mistral": 180_800,
    "tiny-mixtral": 870_976,
    "tiny-opt": 183_296,
    "tiny-phi": 166_528,
    "tiny-qwen": 197_952,
    "tiny-qwen2": 181_312,
    "tiny-qwen2-moe": 331_072,
    "tiny-qwen3": 230_080,
    "tiny-qwen3-moe": 330_432,
    "tiny-qwen3-next": 394_176,
    "tiny-roberta": 183_360,
}
"""Of the network that transformers 5.23 builds on the meta device from the same configuration, without
pooler; for DeepSeek-V3 with the corrections of scores, which transformers counts as buffers. For Aquila, DeciLM,
InternLM and the first Qwen, which it does not know, of the same network under another name."""


def config_of(model: str) -> dict[str, Any]:
    """The configuration of a shipped model file."""
    return dict(read_document(MODELS / f"{model}.yaml").data["config"])


def read(model: str, **changes: Any) -> Architecture:
    """The record of a shipped model file, with some fields changed."""
    return from_config(config_of(model) | changes, model)


def without(model: str, *keys: str) -> Architecture:
    """The record of a shipped model file that lacks some fields."""
    return from_config({key: value for key, value in config_of(model).items() if key not in keys}, model)


def refusals(model: str, **changes: Any) -> str:
    """What a change of a shipped model file is answered."""
    return "\n".join(lines_of(lambda: read(model, **changes)))


def attention(model: Architecture, layer: int = 0) -> Attention:
    found = model.layers[layer].attention
    assert isinstance(found, Attention)
    return found


def latent(model: Architecture) -> LatentAttention:
    found = model.layers[0].attention
    assert isinstance(found, LatentAttention)
    return found


def rope(model: Architecture, layer: int = 0) -> Rope:
    found = attention(model, layer).rope
    assert found is not None
    return found


def mlp(model: Architecture, layer: int = 0) -> Mlp:
    found = model.layers[layer].mlp
    assert isinstance(found, Mlp)
    return found


def experts(model: Architecture) -> Experts:
    assert model.experts is not None
    return model.experts


def windows(model: Architecture) -> list[int | None]:
    return [attention(model, index).sliding_window for index in range(model.num_hidden_layers)]


# --- parameters ---------------------------------------------------------------------------------------------


def parameters(model: Architecture) -> int:
    """Numbers in the weights of a record, counted by hand."""
    width = model.embedding_size or model.hidden_size
    embeddings = model.vocab_size * width + model.token_types * model.hidden_size
    embeddings += model.positions.rows * model.hidden_size if model.positions else 0
    projections = 2 * width * model.hidden_size if model.embedding_size else 0
    has_head = not (model.tie_word_embeddings or model.is_encoder)
    head = model.vocab_size * (width * has_head + model.lm_head_bias)
    norms = _norm(model) * (model.embed_norm + model.final_norm)
    return embeddings + projections + head + norms + sum(_layer(model, layer) for layer in model.layers)


def _norm(model: Architecture) -> int:
    return model.hidden_size * (1 if model.norm == "rms" else 2)


def _layer(model: Architecture, layer: Any) -> int:
    parts = [part for part in (layer.attention, layer.mlp) if part is not None]
    norms = 1 if model.residual == "parallel" else len(parts) * (2 if model.residual == "sandwich" else 1)
    return norms * _norm(model) + sum(_part(part, model.hidden_size) for part in parts)


def _part(part: Any, hidden: int) -> int:
    counts: dict[type, Callable[[Any, int], int]] = {
        Attention: _attention,
        LatentAttention: _latent,
        LinearAttention: _linear,
        Mlp: _mlp,
        Experts: _experts,
    }
    return counts[type(part)](part, hidden)


def _attention(part: Attention, hidden: int) -> int:
    queries = part.num_attention_heads * part.head_dim
    qkv = queries + 2 * part.num_key_value_heads * part.head_dim
    biases = part.qkv_bias * qkv + part.output_bias * hidden
    extras = part.qk_norm * 2 * part.head_dim + part.sinks * part.num_attention_heads
    return hidden * (qkv + queries * (1 + part.gate)) + biases + extras


def _latent(part: LatentAttention, hidden: int) -> int:
    queries, values = part.num_attention_heads * part.qk_head_dim, part.num_attention_heads * part.v_head_dim
    rank = part.q_lora_rank
    to_queries = hidden * queries if rank is None else hidden * rank + rank + rank * queries
    expand = part.num_attention_heads * part.qk_nope_head_dim + values
    return to_queries + hidden * (part.cached_width + values) + part.kv_lora_rank * (1 + expand)


def _linear(part: LinearAttention, hidden: int) -> int:
    mixed = 2 * part.key_width + part.value_width
    projections = hidden * (mixed + 2 * part.value_width + 2 * part.num_value_heads)
    return projections + mixed * part.conv_kernel + 2 * part.num_value_heads + part.value_head_dim


def _mlp(part: Mlp, hidden: int) -> int:
    ups = 2 if part.gated else 1
    return (ups + 1) * hidden * part.intermediate_size + part.bias * (ups * part.intermediate_size + hidden)


def _experts(part: Experts, hidden: int) -> int:
    router = part.num_experts * (hidden + part.router.bias + part.router.correction)
    shared = _mlp(part.shared, hidden) + hidden * part.shared_gate if part.shared else 0
    return part.num_experts * _mlp(part.expert, hidden) + router + shared


@pytest.mark.parametrize("model", sorted(path.stem for path in MODELS.glob("*.yaml")))
def test_parameters_add_up_to_those_of_transformers(model: str) -> None:
    assert parameters(read(model)) == COUNTS[model]


# --- every family -------------------------------------------------------------------------------------------


def test_every_family_has_a_tiny_model() -> None:
    """Those with the weights of another need none: Aquila is Llama, Kimi K2 is DeepSeek-V3."""
    tiny = {config_of(path.stem)["model_type"] for path in MODELS.glob("tiny-*.yaml")}
    assert set(READERS) - tiny == {"aquila", "gemma", "gemma3", "kimi_k2", "nemotron-nas", "xlm-roberta"}


@pytest.mark.parametrize("path", sorted(MODELS.glob("tiny-*.yaml")), ids=lambda path: path.stem)
def test_tiny_models_are_cut_by_two_and_four(path: Path) -> None:
    model = read(path.stem)
    assert (model.hidden_size, model.num_hidden_layers, model.vocab_size) == (64, 4, 256)
    assert model.max_position_embeddings == 512
    for layer in model.layers:
        if isinstance(layer.attention, Attention):
            heads, shared = layer.attention.num_attention_heads, layer.attention.num_key_value_heads
            assert heads % 4 == 0
            assert shared % 4 == 0 or 4 % shared == 0


@pytest.mark.parametrize("family", READERS)
def test_whatever_is_missing_is_named_at_once(family: str) -> None:
    """With its place, even where nothing is there."""
    found = lines_of(lambda: from_config({"model_type": family}, "empty"))
    assert all("missing" in line for line in found)
    names = {line.split(": ")[1] for line in found}
    assert len(names) == len(found)
    if family != "gemma3":
        assert {"hidden_size", "vocab_size"} <= names or {"n_embd", "vocab_size"} <= names


@pytest.mark.parametrize("model", [path.stem for path in sorted(MODELS.glob("tiny-*.yaml"))])
def test_each_line_that_is_left_out_is_missed_or_has_a_default(model: str) -> None:
    config = config_of(model)
    for key in config:
        try:
            from_config({name: value for name, value in config.items() if name != key}, "cut")
        except InputError as error:
            assert [problem.key for problem in error.problems] == [key]


ODD = ["", -1, 0, 3, 2.5, 1e300, 10**30, math.nan, True, None, "x", {}, [], [[1]], {"a": {"b": 1}}, [1, 2]]


@pytest.mark.parametrize("model", [path.stem for path in sorted(MODELS.glob("tiny-*.yaml"))])
def test_any_value_replaced_by_an_odd_one(model: str) -> None:
    """A record or problems, never another exception."""
    config = config_of(model)
    for key in config:
        for odd in ODD:
            try:
                from_config(config | {key: odd}, "odd")
            except InputError as error:
                assert all(problem.advice for problem in error.problems)


def test_a_wrong_line_of_a_published_file_is_told_by_its_number() -> None:
    document = read_document(MODELS / "tiny-qwen3-next.yaml")
    wrong = dict(document.data["config"]) | {"linear_num_key_heads": 3, "num_experts_per_tok": 9}
    changed = Document("tiny.yaml", {**document.data, "config": wrong}, document.marks)
    fields = ConfigFields(changed, ("config",))
    READERS["qwen3_next"](fields, "wrong")
    lines = (MODELS / "tiny-qwen3-next.yaml").read_text().splitlines()
    for problem in fields.problems:
        assert problem.line is not None
        assert str(problem.key).removeprefix("config.") in lines[problem.line - 1]
    assert len(fields.problems) == 2


# --- rotary settings ----------------------------------------------------------------------------------------


def yarn(**settings: Any) -> YarnRope:
    """The scaling of a Llama with yarn of factor 4 over 1024 tokens."""
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024, **settings}
    found = rope(read("tiny-llama", rope_scaling=scaling)).scaling
    assert isinstance(found, YarnRope)
    return found


def test_yarn_has_the_defaults_of_transformers() -> None:
    assert yarn() == YarnRope(4.0, 32.0, 1.0, 1024, True, 0.1 * math.log(4) + 1)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"attention_factor": 1.5}, 1.5),
        ({"mscale": 1.0, "mscale_all_dim": 1.0}, 1.0),
        ({"mscale": 1.0, "mscale_all_dim": 0.5}, (0.1 * math.log(4) + 1) / (0.05 * math.log(4) + 1)),
        ({"mscale": 0.5}, 0.1 * math.log(4) + 1),
        ({"factor": 0.5}, 1.0),
    ],
)
def test_what_yarn_multiplies_rotated_channels_by(settings: dict[str, float], expected: float) -> None:
    assert yarn(**settings).attention_factor == pytest.approx(expected)


def test_linear_scaling() -> None:
    assert rope(read("tiny-llama", rope_scaling={"type": "linear", "factor": 3})).scaling == LinearRope(3.0)


def test_dynamic_scaling_changes_nothing_within_the_context() -> None:
    assert read("tiny-llama", rope_scaling={"type": "dynamic", "factor": 2.0}) == read("tiny-llama")


# --- GPT-2 and its time -------------------------------------------------------------------------------------


def test_gpt2_has_learned_positions_and_biases() -> None:
    model = without("tiny-gpt2", "layer_norm_epsilon", "activation_function")
    assert model.positions == LearnedPositions(512)
    assert (model.norm, model.norm_eps, model.residual) == ("layer", 1e-5, "sequential")
    assert model.tie_word_embeddings
    assert mlp(model) == Mlp(256, "gelu_new", gated=False, bias=True)
    assert attention(model) == Attention(8, 8, 8, 8**-0.5, qkv_bias=True, output_bias=True)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"scale_attn_weights": False}, "unscaled attention"),
        ({"scale_attn_by_inverse_layer_idx": True}, "layer-wise scaling"),
        ({"add_cross_attention": True}, "cross attention"),
    ],
)
def test_what_gpt2_refuses(change: dict[str, Any], expected: str) -> None:
    assert expected in refusals("tiny-gpt2", **change)


def test_opt_positions_start_in_the_third_row() -> None:
    model = read("opt-125m")
    assert model.positions == LearnedPositions(rows=2050, offset=2)
    assert (model.max_position_embeddings, model.norm_eps, model.final_norm) == (2048, 1e-5, True)
    assert mlp(model) == Mlp(3072, "relu", gated=False, bias=True)


def test_opt_350m_embeds_narrowly_and_normalises_afterwards() -> None:
    model = read("tiny-opt", do_layer_norm_before=False, word_embed_proj_dim=32)
    assert (model.residual, model.final_norm, model.embedding_size) == ("post", False, 32)
    assert read("tiny-opt").embedding_size is None


def test_opt_without_biases_or_last_norm() -> None:
    model = read("tiny-opt", enable_bias=False, _remove_final_layer_norm=True)
    assert not any(
        (attention(model).qkv_bias, attention(model).output_bias, mlp(model).bias, model.final_norm)
    )
    assert "norms without weights" in refusals("tiny-opt", layer_norm_elementwise_affine=False)


def test_gptj_turns_neighbours_and_has_a_bias_in_its_head() -> None:
    model = read("gpt-j-6b")
    assert rope(model) == Rope(theta=10_000, rotary_dim=64, interleaved=True)
    assert (model.residual, model.lm_head_bias, model.tie_word_embeddings) == ("parallel", True, False)
    assert not attention(model).qkv_bias
    assert mlp(model) == Mlp(16384, "gelu_new", gated=False, bias=True)
    assert "rotary_dim = 10: must be even and at most the 8 channels" in refusals("tiny-gptj", rotary_dim=10)
    assert "tied weights" in refusals("tiny-gptj", tie_word_embeddings=True)


def test_gpt_neox_turns_a_quarter_of_each_head() -> None:
    model = read("gpt-neox-20b")
    assert rope(model) == Rope(theta=10_000, rotary_dim=24)
    assert (model.residual, mlp(model).activation) == ("parallel_two_norms", "gelu_new")
    assert attention(model).qkv_bias
    assert attention(model).output_bias
    assert read("tiny-gpt-neox", use_parallel_residual=False).residual == "sequential"
    assert not attention(read("tiny-gpt-neox", attention_bias=False)).qkv_bias
    assert "makes 1 channels turn" in refusals("tiny-gpt-neox", rotary_pct=0.125)


def test_gpt_neox_newer_spelling() -> None:
    newer = {"rope_theta": 10_000, "partial_rotary_factor": 0.5, "rope_type": "default"}
    old = replace(read("tiny-gpt-neox"), name="same")
    config = {key: value for key, value in config_of("tiny-gpt-neox").items() if not key.startswith("rotary")}
    assert from_config(config | {"rope_parameters": newer}, "same") == old


def test_phi_has_one_norm_and_biases_throughout() -> None:
    model = read("phi-2")
    assert attention(model) == Attention(32, 32, 80, 80**-0.5, True, True, Rope(10_000, 32))
    assert mlp(model) == Mlp(10240, "gelu_new", gated=False, bias=True)
    assert (model.norm, model.norm_eps, model.residual) == ("layer", 1e-5, "parallel")
    assert (model.lm_head_bias, model.tie_word_embeddings) == (True, False)
    assert without("tiny-phi", "partial_rotary_factor", "hidden_act") == read("tiny-phi")
    assert attention(read("tiny-phi", num_key_value_heads=2)).num_key_value_heads == 2


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"qk_layernorm": True}, "norms of queries and keys"),
        ({"tie_word_embeddings": True}, "tied weights"),
        ({"partial_rotary_factor": 0.4}, "makes 3 channels turn"),
    ],
)
def test_what_phi_refuses(change: dict[str, Any], expected: str) -> None:
    assert expected in refusals("tiny-phi", **change)


# --- Bloom and Falcon ---------------------------------------------------------------------------------------


def test_bloom_has_alibi_and_a_norm_on_embeddings() -> None:
    model = read("bloom-7b1")
    assert attention(model).alibi == Alibi()
    assert attention(model).rope is None
    assert (model.embed_norm, model.positions, model.max_position_embeddings) == (True, None, 2048)
    assert mlp(model) == Mlp(16384, "gelu_new", gated=False, bias=True)


def test_bloom_older_names_of_sizes() -> None:
    config = config_of("tiny-bloom")
    older = {"n_embed": config.pop("hidden_size"), "num_attention_heads": config.pop("n_head")}
    older["num_hidden_layers"] = config.pop("n_layer")
    assert from_config(config | older, "tiny-bloom") == read("tiny-bloom")
    assert "residual stream taken after" in refusals(
        "bloom-7b1", apply_residual_connection_post_layernorm=True
    )
    assert "four times the hidden size" in refusals("tiny-bloom", n_inner=100)


def test_falcon_7b_has_one_key_head_and_one_norm() -> None:
    model = read("falcon-7b")
    assert (attention(model).num_key_value_heads, model.residual) == (1, "parallel")
    assert (mlp(model).intermediate_size, mlp(model).bias, model.max_position_embeddings) == (
        18176,
        False,
        2048,
    )
    assert read("tiny-falcon", num_kv_heads=8) == read("tiny-falcon")


def test_falcon_40b_has_groups_and_two_norms() -> None:
    model = read("falcon-40b")
    assert (attention(model).num_key_value_heads, model.residual) == (8, "parallel_two_norms")
    assert read("tiny-falcon-grouped", num_ln_in_parallel_attn=1).residual == "parallel"


def test_falcon_rw_is_sequential_with_scaled_alibi() -> None:
    model = read("tiny-falcon", alibi=True, multi_query=False, parallel_attn=False, bias=True)
    assert attention(model).alibi == Alibi(scale=8**-0.5, in_bfloat16=True)
    assert (attention(model).rope, attention(model).num_key_value_heads) == (None, 8)
    assert (model.residual, mlp(model).bias) == ("sequential", True)


@pytest.mark.parametrize(
    ("model", "change", "expected"),
    [
        ("tiny-falcon", {"multi_query": False, "num_kv_heads": 4}, "groups of heads need"),
        ("tiny-falcon", {"num_ln_in_parallel_attn": 2}, "two norms need"),
        ("tiny-falcon-grouped", {"parallel_attn": False}, "always parallel"),
        ("tiny-falcon-grouped", {"num_kv_heads": 3}, "must divide num_attention_heads = 8"),
    ],
)
def test_what_falcon_refuses(model: str, change: dict[str, Any], expected: str) -> None:
    assert expected in refusals(model, **change)


# --- Llama and its kin --------------------------------------------------------------------------------------


def test_llama_has_the_defaults_of_transformers() -> None:
    model = without("tiny-llama", "num_key_value_heads", "rope_theta", "rms_norm_eps", "hidden_act")
    assert attention(model) == Attention(8, 8, 8, 8**-0.5, rope=Rope(10_000, 8))
    assert (model.norm, model.norm_eps, model.tie_word_embeddings) == ("rms", 1e-6, False)
    assert mlp(model) == Mlp(128, "silu", gated=True)


def test_llama_biases() -> None:
    model = read("tiny-llama", attention_bias=True, mlp_bias=True)
    assert (attention(model).qkv_bias, attention(model).output_bias, mlp(model).bias) == (True, True, True)


def test_aquila_is_a_llama() -> None:
    assert replace(read("aquila-7b"), family="llama") == read("aquila-7b", model_type="llama")


def test_internlm_is_a_llama_with_biases_in_attention() -> None:
    model = read("tiny-internlm")
    assert attention(model) == Attention(8, 8, 8, 8**-0.5, True, True, Rope(10_000, 8))
    assert mlp(model) == Mlp(128, "silu", gated=True)
    assert without("tiny-internlm", "bias", "rotary") == model
    assert not attention(read("internlm-20b")).qkv_bias
    assert rope(read("tiny-internlm", rotary={"base": 500, "type": "origin"})) == Rope(500, 8)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"rotary": {"base": 10_000, "type": "linear"}},
            "rotary.type = 'linear': not one of: origin, dynamic",
        ),
        ({"rotary": {"base": 0}}, "rotary.base = 0: write a number above 0"),
        ({"rope_theta": 1e6}, "this family goes by rotary.base"),
        ({"num_key_value_heads": 4}, "share no keys"),
    ],
)
def test_what_internlm_refuses(change: dict[str, Any], expected: str) -> None:
    assert expected in refusals("tiny-internlm", **change)


def test_mistral_has_a_window_on_every_layer() -> None:
    assert set(windows(read("mistral-7b"))) == {4096}
    assert set(windows(without("mistral-7b", "sliding_window"))) == {4096}
    assert set(windows(read("mistral-7b", sliding_window=None))) == {None}
    assert "kinds of layers" in refusals("tiny-mistral", layer_types=["full_attention"] * 4)


def test_the_first_qwen_states_twice_the_width_of_its_mlp() -> None:
    model = read("qwen-72b")
    assert attention(model) == Attention(64, 64, 128, 128**-0.5, qkv_bias=True, rope=Rope(1e6, 128))
    assert mlp(model) == Mlp(24576, "silu", gated=True)
    assert (model.norm, model.norm_eps, model.max_position_embeddings) == ("rms", 1e-6, 32768)
    assert (model.residual, model.tie_word_embeddings) == ("sequential", False)


def test_the_first_qwen_is_followed_no_further_than_it_was_trained() -> None:
    """Beyond, `use_logn_attn` scales queries and `use_dynamic_ntk` slows rotation."""
    plain = read("tiny-qwen", use_logn_attn=False, use_dynamic_ntk=False)
    assert read("tiny-qwen", max_position_embeddings=2048) == plain == read("tiny-qwen")


def test_the_first_qwen_with_biases_throughout_and_rotation_in_part() -> None:
    model = read("tiny-qwen", no_bias=False, rotary_pct=0.5, rotary_emb_base=500)
    assert attention(model) == Attention(8, 8, 8, 8**-0.5, True, True, Rope(500, 4))
    assert mlp(model) == Mlp(128, "silu", gated=True, bias=True)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"kv_channels": 16}, "kv_channels = 16: must be hidden_size / num_attention_heads = 8"),
        ({"intermediate_size": 255}, "intermediate_size = 255: must be even"),
        ({"rope_theta": 1e6}, "this family goes by rotary_emb_base"),
        ({"visual": {"width": 1664}}, "the part that sees"),
        ({"audio": {"n_mels": 80}}, "the part that hears"),
        ({"use_cache_quantization": True}, "how the cache is kept"),
        ({"seq_length_expansion": 4}, "stretched positions"),
    ],
)
def test_what_the_first_qwen_refuses(change: dict[str, Any], expected: str) -> None:
    assert expected in refusals("tiny-qwen", **change)


def test_qwen2_has_biases_on_queries_keys_and_values_only() -> None:
    found = attention(read("qwen2-7b"))
    assert (found.qkv_bias, found.output_bias, found.sliding_window) == (True, False, None)


def test_qwen2_windows_begin_with_a_layer() -> None:
    assert windows(read("tiny-qwen2", use_sliding_window=True, max_window_layers=3)) == [None, None, None, 8]
    kinds = ["sliding_attention", "full_attention"] * 2
    assert windows(read("tiny-qwen2", use_sliding_window=True, layer_types=kinds)) == [8, None, 8, None]
    assert "sliding_window = 8: needed: some layers" in refusals("tiny-qwen2", layer_types=kinds)
    assert "write one for each of 4 layers; there are 2" in refusals("tiny-qwen2", layer_types=kinds[:2])


def test_qwen3_normalises_queries_and_keys() -> None:
    found = attention(read("qwen3-32b"))
    assert (found.qk_norm, found.head_dim, found.num_attention_heads) == (True, 128, 64)
    assert (found.scale, found.qkv_bias) == (128**-0.5, False)


def test_deci_has_key_heads_by_layer() -> None:
    model = read("decilm-7b")
    heads = [attention(model, index).num_key_value_heads for index in range(32)]
    assert (heads[:6], heads[-2:]) == ([4, 4, 4, 4, 4, 2], [1, 4])
    assert rope(model).scaling is None
    wrong = refusals("tiny-deci", num_key_value_heads_per_layer=[8, 4, 3, 2])
    assert "num_key_value_heads_per_layer: each must divide num_attention_heads = 8" in wrong


def nemotron(*blocks: dict[str, Any], **changes: Any) -> Architecture:
    shape = config_of("tiny-llama") | {"model_type": "nemotron-nas", "num_hidden_layers": len(blocks)}
    for key in ("num_key_value_heads", "intermediate_size"):
        shape[key] = None
    return from_config(shape | {"block_configs": list(blocks)} | changes, "nemotron")


def block(attention: dict[str, Any], ffn: dict[str, Any]) -> dict[str, Any]:
    harmless = {"no_op": False, "replace_with_linear": False}
    return {"attention": harmless | attention, "ffn": harmless | ffn}


NOTHING = {"no_op": True, "n_heads_in_group": None, "ffn_mult": None}


def test_nemotron_layers_may_lack_a_part() -> None:
    model = nemotron(
        block({"n_heads_in_group": 4, "window_length": None}, {"ffn_mult": 2.625}),
        block(NOTHING, {"ffn_mult": 5.25}),
        block({"n_heads_in_group": 8}, NOTHING),
    )
    assert attention(model).num_key_value_heads == 2
    assert mlp(model).intermediate_size == 256  # 2/3 of 2.625 * 64, rounded up
    assert mlp(model, 1).intermediate_size == 256
    assert model.layers[1].attention is None
    assert model.layers[2].mlp is None


@pytest.mark.parametrize(
    ("attention", "ffn", "expected"),
    [
        ({"n_heads_in_group": 4}, {"replace_with_linear": True}, "ffn.replace_with_linear = True"),
        ({"n_heads_in_group": 4, "replace_with_linear": True}, {}, "replace_with_linear is not modelled"),
        ({"n_heads_in_group": 4, "window_length": 8}, {}, "window_length = 8: window_length is not modelled"),
        ({"n_heads_in_group": 3}, {}, "n_heads_in_group = 3: must divide num_attention_heads = 8"),
        ({}, {}, "n_heads_in_group: missing"),
    ],
)
def test_what_nemotron_refuses(attention: dict[str, Any], ffn: dict[str, Any], expected: str) -> None:
    found = lines_of(lambda: nemotron(block(attention, {"ffn_mult": 2.0} | ffn)))
    assert any("block_configs.0." in line and expected in line for line in found)


# --- Gemma --------------------------------------------------------------------------------------------------


def gemma(**changes: Any) -> Architecture:
    shape = config_of("tiny-llama") | {"model_type": "gemma", "head_dim": 16, "hidden_act": "gelu"}
    del shape["tie_word_embeddings"]
    return from_config(shape | changes, "gemma")


def test_gemma_scales_embeddings_and_means_the_tanh_form_of_gelu() -> None:
    model = gemma()
    assert (model.embed_scale, model.tie_word_embeddings, model.residual) == (8.0, True, "sequential")
    assert mlp(model).activation == "gelu_new"
    assert mlp(gemma(hidden_activation="relu")).activation == "relu"
    with pytest.raises(InputError, match="attention to later tokens"):
        gemma(use_bidirectional_attention=True)


def test_gemma2_has_soft_caps_sandwiches_and_alternating_windows() -> None:
    model = read("gemma-2-9b")
    assert (model.residual, model.logit_softcap, model.embed_scale) == ("sandwich", 30.0, 3584**0.5)
    assert windows(model)[:3] == [4096, None, 4096]
    assert (attention(model).softcap, attention(model).scale) == (50.0, 256**-0.5)
    assert attention(read("tiny-gemma2")).scale == 24**-0.5
    assert read("tiny-gemma2", final_logit_softcapping=None).logit_softcap is None
    assert without("tiny-gemma2", "final_logit_softcapping").logit_softcap == 30.0


def test_gemma3_layers_that_see_everything_have_their_own_rotary_settings() -> None:
    model = read("gemma-3-1b")
    assert windows(model)[:7] == [512] * 5 + [None, 512]
    assert (rope(model).theta, rope(model, 5).theta) == (1e4, 1e6)
    tiny = read("tiny-gemma3")
    assert (rope(tiny).scaling, rope(tiny, 1).scaling) == (None, LinearRope(8.0))
    assert (attention(tiny).qk_norm, attention(tiny).softcap, tiny.logit_softcap) == (True, None, None)


def test_gemma3_newer_spelling() -> None:
    config = config_of("tiny-gemma3")
    for key in ("rope_scaling", "rope_theta", "rope_local_base_freq", "sliding_window_pattern"):
        del config[key]
    config["layer_types"] = ["sliding_attention", "full_attention"] * 2
    config["rope_parameters"] = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    assert from_config(config, "tiny-gemma3") == read("tiny-gemma3")


def test_gemma3_with_a_vision_part_relies_on_defaults() -> None:
    """The published file of gemma-3-4b-it says no more of its text part than this."""
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    model = from_config({"model_type": "gemma3", "text_config": text, "vision_config": {}}, "gemma-3-4b")
    assert (model.family, model.vocab_size, model.max_position_embeddings) == ("gemma3", 262_208, 131_072)
    found = attention(model, 5)
    assert (found.num_attention_heads, found.num_key_value_heads, found.head_dim) == (8, 4, 256)
    assert found.rope == Rope(1e6, 256, scaling=LinearRope(8.0))
    assert model.tie_word_embeddings


# --- mixtures -----------------------------------------------------------------------------------------------


def test_mixtral_makes_the_weights_of_two_experts_add_up() -> None:
    found = experts(read("mixtral-8x7b"))
    assert (found.num_experts, found.num_experts_per_tok, found.shared) == (8, 2, None)
    assert (found.router.scoring, found.router.normalise) == ("softmax", True)
    assert "num_experts_per_tok = 9: must be at most num_local_experts = 8" in refusals(
        "tiny-mixtral", num_experts_per_tok=9
    )


def test_qwen2_moe_has_a_shared_expert_behind_a_gate() -> None:
    model = read("qwen1.5-moe-a2.7b")
    found = experts(model)
    assert (found.num_experts, found.num_experts_per_tok, found.expert.intermediate_size) == (60, 4, 1408)
    assert found.shared == Mlp(5632, "silu", gated=True)
    assert (found.shared_gate, found.router.normalise) == (True, False)
    assert attention(model).qkv_bias
    assert "releases of transformers disagree" in refusals("tiny-qwen2-moe", use_sliding_window=True)


def test_some_layers_of_a_qwen_mixture_may_be_dense() -> None:
    model = read("tiny-qwen3-moe", mlp_only_layers=[2], decoder_sparse_step=2)
    assert [isinstance(layer.mlp, Experts) for layer in model.layers] == [False, True, False, True]
    assert mlp(model).intermediate_size == 128
    assert "write a whole number from 0" in refusals("tiny-qwen3-moe", mlp_only_layers=[-1])


def test_qwen3_moe() -> None:
    model = read("qwen3-30b-a3b")
    found = experts(model)
    assert (found.num_experts, found.num_experts_per_tok, found.shared) == (128, 8, None)
    assert (found.router.normalise, attention(model).qk_norm, attention(model).head_dim) == (True, True, 128)
    renamed = config_of("qwen3-30b-a3b")
    renamed["num_local_experts"] = renamed.pop("num_experts")
    assert from_config(renamed, "qwen3-30b-a3b") == model


def test_gpt_oss() -> None:
    model = read("gpt-oss-20b")
    found = attention(model)
    assert (found.sinks, found.qkv_bias, found.output_bias, found.head_dim) == (True, True, True, 64)
    assert windows(model)[:4] == [128, None, 128, None]
    factor = 0.1 * math.log(32) + 1
    assert rope(model) == Rope(150_000, 64, scaling=YarnRope(32.0, 32.0, 1.0, 4096, False, factor))
    mixture = experts(model)
    assert (mixture.router.scoring, mixture.router.bias) == ("softmax_of_chosen", True)
    assert mixture.expert == Mlp(2880, "gpt_oss", gated=True, bias=True)
    assert mixture.swiglu_limit == 7.0
    assert "another gain" in refusals("tiny-gpt-oss", swiglu_alpha=1.0)
    assert "rope_scaling: missing" in refusals("tiny-gpt-oss", rope_scaling=None)


def test_deepseek_v2_lite_projects_queries_directly() -> None:
    model = read("deepseek-v2-lite")
    found = latent(model)
    assert (found.q_lora_rank, found.qk_head_dim, found.cached_width) == (None, 192, 576)
    sharpening = 0.1 * 0.707 * math.log(40) + 1
    assert found.scale == pytest.approx(192**-0.5 * sharpening**2)
    assert found.rope.interleaved
    assert isinstance(found.rope.scaling, YarnRope)
    assert found.rope.scaling.attention_factor == 1.0
    mixture = experts(model)
    assert mixture.shared == Mlp(2 * 1408, "silu", gated=True)
    assert (mixture.router.groups, mixture.router.scoring, mixture.router.scale) == (1, "softmax", 1.0)
    assert [isinstance(layer.mlp, Mlp) for layer in model.layers[:3]] == [True, False, False]


def test_deepseek_v2_chooses_within_groups() -> None:
    router = experts(read("deepseek-v2")).router
    assert (router.groups, router.kept_groups, router.group_score) == (8, 3, "best")
    assert (router.normalise, router.correction, router.scale) == (False, False, 16.0)


def test_deepseek_v3_corrects_and_judges_groups_by_two() -> None:
    model = read("deepseek-v3")
    router = experts(model).router
    assert (router.scoring, router.correction, router.normalise) == ("sigmoid", True, True)
    assert (router.groups, router.kept_groups, router.group_score, router.scale) == (8, 4, "best_two", 2.5)
    assert latent(model).q_lora_rank == 1536
    assert sum(isinstance(layer.mlp, Mlp) for layer in model.layers) == 3
    assert latent(read("tiny-deepseek-v3", rope_interleave=False)).rope.interleaved is False


def test_kimi_k2_is_a_deepseek_v3() -> None:
    kimi = read("deepseek-v3", model_type="kimi_k2", n_group=1, topk_group=1)
    assert kimi.family == "kimi_k2"
    assert experts(kimi).router.groups == 1


def test_dense_layers_between_mixtures() -> None:
    model = read("tiny-deepseek-v2", first_k_dense_replace=0, moe_layer_freq=2)
    assert [isinstance(layer.mlp, Experts) for layer in model.layers] == [True, False, True, False]
    assert experts(read("tiny-deepseek-v2", n_shared_experts=None)).shared is None


@pytest.mark.parametrize(
    ("model", "change", "expected"),
    [
        ("tiny-deepseek-v3", {"n_group": 3}, "n_group = 3: must divide n_routed_experts = 8"),
        ("tiny-deepseek-v3", {"topk_group": 5}, "topk_group = 5: must keep at least 2 experts in at most 4"),
        ("tiny-deepseek-v3", {"n_group": 8}, "must leave two experts or more to a group"),
        ("tiny-deepseek-v3", {"scoring_func": "softmax"}, "only sigmoid is modelled"),
        ("tiny-deepseek-v3", {"topk_method": "greedy"}, "only noaux_tc is modelled"),
        ("tiny-deepseek-v3", {"attention_bias": True}, "biases in latent attention"),
        ("tiny-deepseek-v3", {"rms_norm_eps": 1e-5}, "norms of latent vectors have 1e-6"),
        ("tiny-deepseek-v2", {"norm_topk_prob": True}, "transformers does not normalise"),
        ("tiny-deepseek-v2", {"scoring_func": "sigmoid"}, "only softmax is modelled"),
        ("tiny-deepseek-v2", {"topk_method": "noaux_tc"}, "not one of: greedy, group_limited_greedy"),
        ("tiny-deepseek-v2", {"mlp_bias": True}, "biases in experts"),
    ],
)
def test_what_deepseek_refuses(model: str, change: dict[str, Any], expected: str) -> None:
    assert expected in refusals(model, **change)


def test_qwen3_next_mixes_delta_nets_with_gated_attention() -> None:
    model = read("qwen3-next-80b-a3b")
    kinds = [type(layer.attention) for layer in model.layers[:4]]
    assert kinds == [LinearAttention] * 3 + [Attention]
    assert model.layers[0].attention == LinearAttention(16, 32, 128, 128, 4)
    found = attention(model, 3)
    assert (found.gate, found.qk_norm, found.rope) == (True, True, Rope(1e7, 64))
    mixture = experts(model)
    assert (mixture.num_experts, mixture.num_experts_per_tok, mixture.shared_gate) == (512, 10, True)
    assert mixture.router.normalise


def test_qwen3_next_kinds_may_be_listed() -> None:
    kinds = ["full_attention", "linear_attention"] * 2
    model = read("tiny-qwen3-next", layer_types=kinds)
    assert [isinstance(layer.attention, Attention) for layer in model.layers] == [True, False] * 2
    assert "biases in gated attention" in refusals("tiny-qwen3-next", attention_bias=True)
    assert "must divide linear_num_value_heads = 8" in refusals("tiny-qwen3-next", linear_num_key_heads=3)
    assert "only silu is modelled" in refusals("tiny-qwen3-next", hidden_act="gelu")


# --- encoders -----------------------------------------------------------------------------------------------


def test_bert_sees_both_ways_and_normalises_after_each_sum() -> None:
    model = read("bert-base-uncased")
    assert (model.is_encoder, model.residual, model.embed_norm, model.final_norm) == (
        True,
        "post",
        True,
        False,
    )
    assert (model.token_types, model.norm_eps, model.positions) == (2, 1e-12, LearnedPositions(512))
    found = attention(model)
    assert (found.causal, found.qkv_bias, found.output_bias) == (False, True, True)
    assert mlp(model) == Mlp(3072, "gelu", gated=False, bias=True)


def test_roberta_positions_start_behind_the_padding_token() -> None:
    model = read("bge-m3")
    assert model.positions == LearnedPositions(rows=8194, offset=2)
    assert (model.family, model.max_position_embeddings, model.token_types) == ("xlm-roberta", 8192, 1)
    assert "must be more than the 514 rows of padding" in refusals("tiny-roberta", pad_token_id=513)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"is_decoder": True}, "only encoders are modelled"),
        ({"add_cross_attention": True}, "cross attention"),
        ({"position_embedding_type": "relative_key"}, "only absolute positions"),
    ],
)
def test_what_encoders_refuse(change: dict[str, Any], expected: str) -> None:
    assert expected in refusals("tiny-bert", **change)


@pytest.mark.parametrize(
    ("model", "change", "key"),
    [
        ("tiny-gemma3", {"head_dim": 7}, "head_dim = 7"),
        ("tiny-deepseek-v3", {"rope_theta": 1.0}, "rope_theta = 1.0: must be above 1"),
        ("tiny-gpt-neox", {"rotary_emb_base": 0.5}, "rotary_emb_base = 0.5: must be above 1"),
    ],
)
def test_rotary_settings_that_cannot_turn_are_refused_once(
    model: str, change: dict[str, Any], key: str
) -> None:
    config = plain(read_document(MODELS / f"{model}.yaml").data["config"])
    with pytest.raises(InputError) as refused:
        from_config(config | change, model)
    assert [key in str(problem) for problem in refused.value.problems] == [True]

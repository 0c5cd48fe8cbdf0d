"""Number formats that servers keep weights in, exact to the byte: one matrix, one parameter, any share of it.

A format stores each number as a code of some bits, and for each block of numbers what they share: a scale,
in some formats also an offset. The name in a scenario's `precision.weights` is a *choice*. It decides the
format of every parameter of a model:

    plain (bf16 ...)        every parameter
    fp8, int8, int4 ...     linear maps inside layers; all else stays in the activations' format, as in
                            published checkpoints that vLLM loads
    q8_0, q4_k_m ...        the files llama.cpp's `llama-quantize` writes without an importance matrix:
                            linear maps, embedding and head, some finer than others; all else is fp32
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from simulator.errors import SimulatorError, did_you_mean
from simulator.specs.hardware import Precision

# --- one matrix ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """How the numbers of a matrix [outputs, inputs], or of each matrix in a stack, lie in memory."""

    name: str
    bits: int
    """Of one number's code."""
    block_rows: int | None = 1
    """Outputs whose numbers share a scale; None: all of them."""
    block_columns: int | None = 1
    """Consecutive inputs whose numbers share a scale; None: the whole row."""
    scale_bytes: int = 0
    """Of what one block shares. A block that a row or the matrix ends in has its own."""
    matrix_bytes: int = 0
    """Of what all numbers of a matrix share besides."""
    whole_blocks: bool = False
    """Rows must be whole numbers of blocks."""
    shared_unevenly: bool = False
    """Whether servers let some tensor-parallel ranks take a block more of an MLP than others."""
    computes_in: Precision | None = None
    """What products multiply in where the device can; None: widened to the activations' format first."""
    executed: bool = False
    """Whether `execution.quantised` can really put weights into it."""
    source: str = ""
    """Where the layout is defined."""

    @property
    def block_bytes(self) -> int | None:
        """Of a whole block and what it shares; None where its size depends on the matrix."""
        if self.block_rows is None or self.block_columns is None:
            return None
        return self.block_rows * self.block_columns * self.bits // 8 + self.scale_bytes


def nbytes(form: WeightFormat, shape: Sequence[int]) -> int:
    """Bytes of a vector, a matrix [outputs, inputs], or a stack of them [experts, outputs, inputs].

    >>> nbytes(WEIGHT_FORMATS["int4"], (2, 200))  # a row: 100 bytes of codes, scales for 128 and 72 numbers
    208
    """
    *stack, rows, columns = shape if len(shape) > 1 else (1, *shape)
    if not _fits(form, columns):
        raise SimulatorError(
            f"{form.name} keeps weights in blocks of {form.block_columns} numbers, and rows of {columns} are "
            "not whole blocks; choose another format or fewer devices"
        )
    blocks = _parts(rows, form.block_rows) * _parts(columns, form.block_columns)
    codes = rows * -(-columns * form.bits // 8)
    return prod(stack) * (codes + blocks * form.scale_bytes + form.matrix_bytes)


def _parts(count: int, size: int | None) -> int:
    """Blocks along one axis; None: one block takes all."""
    return -(-count // (size or max(count, 1)))


def _fits(form: WeightFormat, columns: int) -> bool:
    return not form.whole_blocks or form.block_columns is None or columns % form.block_columns == 0


def _plain(name: Precision, bits: int) -> WeightFormat:
    return WeightFormat(name, bits, computes_in=name, executed=True, source="IEEE 754; tf32 lies as fp32")


def _ggml(name: str, bits: int, block: int, scale_bytes: int, executed: bool = False) -> WeightFormat:
    """A block type of GGUF files; `scale_bytes` are all its bytes that are not codes."""
    return WeightFormat(name, bits, 1, block, scale_bytes, whole_blocks=True, executed=executed,
                        source=f"llama.cpp, ggml/src/ggml-common.h, block_{name}")  # fmt: skip


WEIGHT_FORMATS: dict[str, WeightFormat] = {
    form.name: form
    for form in (
        _plain("fp64", 64), _plain("fp32", 32), _plain("tf32", 32), _plain("bf16", 16), _plain("fp16", 16),
        WeightFormat("fp8", 8, None, None, 4, computes_in="fp8", executed=True,
                     source="E4M3, an fp32 scale a matrix: vLLM, quantization/fp8.py, Fp8LinearMethod"),
        WeightFormat("fp8_block", 8, 128, 128, 4, computes_in="fp8", executed=True,
                     source="E4M3, an fp32 weight_scale_inv a tile: DeepSeek-V3, README_WEIGHTS.md"),
        WeightFormat("int8", 8, 1, None, 4, executed=True,
                     source="symmetric, an fp32 scale an output: LLM.int8(), arXiv 2208.07339; bitsandbytes"),
        WeightFormat("int4", 4, 1, 128, 2, executed=True,
                     source="symmetric, an fp16 scale a group: compressed-tensors, pack-quantized W4A16"),
        WeightFormat("fp4", 4, 1, 32, 1, shared_unevenly=True, executed=True,
                     source="MXFP4, E2M1 with an E8M0 scale a block: OCP Microscaling Formats v1.0; gpt-oss"),
        WeightFormat("nvfp4", 4, 1, 16, 1, 4, computes_in="fp4",
                     source="E2M1 with an E4M3 scale a block, an fp32 scale a matrix: vLLM, modelopt.py"),
        _ggml("q8_0", 8, 32, 2, executed=True), _ggml("q5_1", 5, 32, 4), _ggml("q5_0", 5, 32, 2),
        _ggml("q4_1", 4, 32, 4), _ggml("q4_0", 4, 32, 2), _ggml("iq4_nl", 4, 32, 2),
        _ggml("q6_k", 6, 256, 18), _ggml("q5_k", 5, 256, 16), _ggml("q4_k", 4, 256, 16),
        _ggml("q3_k", 3, 256, 14), _ggml("q2_k", 2, 256, 20),
    )
}  # fmt: skip

# --- a model's parameters -----------------------------------------------------------------------------------

FILE_TYPES: dict[str, str] = {
    "q8_0": "q8_0", "q5_1": "q5_1", "q5_0": "q5_0", "q4_1": "q4_1", "q4_0": "q4_0", "q6_k": "q6_k",
    "q5_k_m": "q5_k", "q5_k_s": "q5_k", "q4_k_m": "q4_k", "q4_k_s": "q4_k",
    "q3_k_l": "q3_k", "q3_k_m": "q3_k", "q3_k_s": "q3_k", "q2_k": "q2_k",
}  # fmt: skip
"""Files of llama.cpp and the block type that most of their matrices have (llama_ftype_get_default_type)."""

WEIGHT_CHOICES: tuple[str, ...] = tuple(
    dict.fromkeys((*(name for name, form in WEIGHT_FORMATS.items() if not form.whole_blocks), *FILE_TYPES))
)
"""What `precision.weights` may say."""

_FALLBACK = {"q2_k": "q4_0", "q3_k": "q4_0", "q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0"}
"""Types of 32 numbers a block for rows that are not whole blocks of 256 (tensor_type_fallback)."""

_LINEAR_MAPS = frozenset(
    f"{name}_proj"
    for name in ("q", "k", "v", "o", "gate", "up", "down", "q_a", "q_b", "kv_a", "kv_b", "attn_gate", "qkvz",
                 "ba")
)  # fmt: skip
_TABLES = ("embed", "lm_head")


@dataclass(frozen=True, slots=True)
class WeightStorage:
    """The format of every parameter of one model, and so their bytes."""

    choice: str
    """One of WEIGHT_CHOICES."""
    activations: Precision
    layer_count: int
    tied: bool = False
    """The embedding is the head as well."""
    expert_count: int = 0
    """Of a layer; 0: no experts."""
    queries_per_kv_head: int = 1

    def __post_init__(self) -> None:
        assert self.choice in WEIGHT_CHOICES, f"{self.choice}{did_you_mean(self.choice, WEIGHT_CHOICES)}"

    def is_quantised(self, parameter: str) -> bool:
        """Whether a parameter such as `layers.3.mlp.down_proj.weight` takes the chosen format at all.

        Linear maps inside layers do; norms, biases, routers, gates of single numbers, sinks, convolutions
        and position tables never. llama.cpp quantises embedding and head as well. Servers leave out linear
        attention's projection to its gates (vLLM #25079) and, in MXFP4, everything but experts where a
        model has some (gpt-oss).
        """
        place, module = _place_and_module(parameter)
        if self.choice in FILE_TYPES:
            return module in (*_TABLES, *_LINEAR_MAPS) and parameter.endswith(".weight")
        if module not in _LINEAR_MAPS or module == "ba_proj" or not parameter.endswith(".weight"):
            return False
        return self.choice != "fp4" or not self.expert_count or ".experts." in place

    def format_of(self, parameter: str, columns: int) -> WeightFormat:
        """The format of a parameter whose rows have `columns` numbers in the whole, uncut model."""
        if self.choice in FILE_TYPES:
            name = self._block_type(parameter) if self.is_quantised(parameter) else "fp32"
            if not _fits(WEIGHT_FORMATS[name], columns) and name in _FALLBACK:
                name = _FALLBACK[name]
                name = name if _fits(WEIGHT_FORMATS[name], columns) else "fp16"
            return WEIGHT_FORMATS[name]
        chosen = WEIGHT_FORMATS[self.choice]
        is_plain = chosen.scale_bytes == 0
        return chosen if is_plain or self.is_quantised(parameter) else WEIGHT_FORMATS[self.activations]

    def parameter_bytes(self, parameter: str, shape: Sequence[int], columns: int | None = None) -> int:
        """Bytes of a parameter, or of a share with this shape of one whose whole rows have `columns`."""
        try:
            return nbytes(self.format_of(parameter, columns or shape[-1]), shape)
        except SimulatorError as error:
            is_cut = columns not in (None, shape[-1])
            share = f", a share of {shape[-1]} of {columns} inputs" if is_cut else ""
            raise SimulatorError(f"{parameter}{share}: {error}") from None

    def why_not_cut(
        self, parameter: str, whole: Sequence[int], axis: int, start: int, size: int
    ) -> str | None:
        """What stops a rank from holding `size` from `start` on along `axis` of a parameter, or None: it
        would hold a part of a block. Where a scale is for a whole row or matrix, each rank keeps a copy."""
        form = self.format_of(parameter, whole[-1])
        from_last = len(whole) - 1 - axis
        block = (form.block_columns, form.block_rows, 1)[min(from_last, 2)] or 1
        end = start + size
        if start % block == 0 and (end % block == 0 or end == whole[axis]):
            return None
        blocks = f"{form.name} blocks of {block} {'outputs' if from_last else 'inputs'}"
        cut = f"a share from {start} to {end} cuts through one; take another format or fewer devices"
        return f"{parameter} consists of {blocks}, and {cut}"

    def _block_type(self, parameter: str) -> str:
        """llama.cpp's type before any fallback: `llama_tensor_get_type_impl` of commit 007dbbf3.

        Holds for models whose files keep queries, keys and values apart and whose layers all have them.
        """
        place, module = _place_and_module(parameter)
        main = FILE_TYPES[self.choice]
        if module == "lm_head" or (module == "embed" and self.tied):
            return main if main == "q8_0" else "q6_k"
        if module == "embed":
            return main
        if self.expert_count == 8 and module in ("k_proj", "v_proj", "kv_b_proj"):
            return "q8_0"
        if self.expert_count == 8 and module == "o_proj":
            return "q5_k" if self.choice in ("q2_k", "q3_k_s", "q3_k_m", "q4_k_s", "q4_k_m") else main
        module = "v_proj" if module == "kv_b_proj" else module
        return self._finer_type(module, int(place.split(".")[1])) or main

    def _finer_type(self, module: str, layer: int) -> str | None:
        """Of matrices that some files keep finer than the rest: values and what ends a part of a layer."""
        count = self.layer_count
        more_bits = layer < count // 8 or layer >= 7 * count // 8 or (layer - count // 8) % 3 == 2
        match self.choice, module:
            case "q4_k_m" | "q5_k_m", "v_proj" | "down_proj" if more_bits:
                return "q6_k"
            case choice, "v_proj" if count == 80 and FILE_TYPES[choice] in ("q2_k", "q3_k", "q4_k"):
                return "q5_k"  # LLM_TYPE_70B: few values for many queries
            case "q4_k_s", "v_proj" if layer < 4:
                return "q5_k"
            case "q4_k_s", "down_proj" if layer < count // 8:
                return "q5_k"
            case "q3_k_l", "v_proj" | "o_proj" | "down_proj":
                return "q5_k"
            case "q3_k_m", "v_proj" if layer < 2:
                return "q5_k"
            case "q3_k_m", "down_proj" if layer < count // 16:
                return "q5_k"
            case "q3_k_m", "v_proj" | "o_proj" | "down_proj":
                return "q4_k"
            case "q2_k", "v_proj" if self.queries_per_kv_head >= 4:
                return "q4_k"
            case "q2_k", "v_proj" | "o_proj" | "down_proj":
                return "q3_k"
        return None


def _place_and_module(parameter: str) -> tuple[str, str]:
    """Where a parameter's module stands, and its own name.

    >>> _place_and_module("layers.3.mlp.experts.down_proj.weight")
    ('layers.3.mlp.experts.', 'down_proj')
    """
    path = parameter.rpartition(".")[0]
    place, dot, module = path.rpartition(".")
    return place + dot, module

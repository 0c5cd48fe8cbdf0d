"""Weights really quantised: packed into as many bytes as `specs.weight_formats` says, and unpacked again.

Every scale is a power of two, the least under which no number of its block is too large. A number that has
a code then has one under any finer scale too, as long as it is not too large. So a weight that went through
`round_trip` once never changes again: packed whole, or cut between blocks or inside one and packed part by
part, it keeps every number to the bit. A model with round-tripped weights agrees with all its shards.
Servers choose scales up to twice as fine; sizes are the same.

A packed weight is one row of bytes: the scales of all blocks, then the codes, matrix by matrix, row by row.
Shapes are written as suffixes: m matrices of a stack, o outputs and i inputs of one, r and c rows and
columns of its blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import frexp, prod

import torch
from torch import Tensor
from torch.nn.functional import pad

from simulator.specs.weight_formats import WeightFormat, nbytes

PLAIN = {"fp64": torch.float64, "fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16,
         "fp16": torch.float16}  # fmt: skip


def pack(weight: Tensor, form: WeightFormat) -> Tensor:
    """`weight` as exactly `nbytes(form, weight.shape)` bytes."""
    assert form.executed, f"{form.name} is known by its size only"
    if form.name in PLAIN:
        return _bytes(weight.to(PLAIN[form.name]))
    blocks, coding = _Blocks.of(form, weight.shape), CODINGS[form.name]
    weight_moi = weight.reshape(blocks.matrices, blocks.rows, blocks.columns).double()
    exponents_mrc = _exponents(blocks.largest(weight_moi), coding, form.scale_bytes)
    scaled_moi = weight_moi / blocks.spread(_power_of_two(exponents_mrc))
    codes_moi = coding.encode(scaled_moi.clamp(-coding.largest, coding.largest))
    codes_moi = _two_a_byte(codes_moi) if form.bits == 4 else codes_moi
    packed = torch.cat([_pack_scales(exponents_mrc, form.scale_bytes), codes_moi.flatten()])
    assert packed.numel() == nbytes(form, weight.shape)
    return packed


def unpack(packed: Tensor, shape: Sequence[int], form: WeightFormat, dtype: torch.dtype) -> Tensor:
    """The weight of this shape in `packed`; in float64 exactly code times scale."""
    if form.name in PLAIN:
        return packed.view(PLAIN[form.name]).reshape(*shape).to(dtype)
    blocks = _Blocks.of(form, shape)
    scales, codes = packed.tensor_split([prod(blocks.grid) * form.scale_bytes])
    scales_mrc = _unpack_scales(scales, form.scale_bytes).view(blocks.grid)
    codes_moi = codes.view(blocks.matrices, blocks.rows, -1)
    codes_moi = _one_a_byte(codes_moi)[..., : blocks.columns] if form.bits == 4 else codes_moi
    weight_moi = CODINGS[form.name].decode(codes_moi) * blocks.spread(scales_mrc)
    return weight_moi.reshape(*shape).to(dtype)


def round_trip(weight: Tensor, form: WeightFormat) -> Tensor:
    """`weight` as it is after packing and unpacking, in its own dtype."""
    return unpack(pack(weight, form), weight.shape, form, weight.dtype)


# --- codes --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Coding:
    """Which numbers have a code, and which one: a byte, of which formats of 4 bits use the lower half."""

    largest: float
    encode: Callable[[Tensor], Tensor]
    """Of the nearest number that has a code, the even one of two."""
    decode: Callable[[Tensor], Tensor]


E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Magnitudes by code; the fourth bit is the sign."""


def _to_e2m1(number: Tensor) -> Tensor:
    size = number.abs()
    step = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0))
    magnitude = (size / step).round() * step
    levels = torch.tensor(E2M1, dtype=number.dtype, device=number.device)
    return torch.searchsorted(levels, magnitude).to(torch.uint8) | (number.signbit().to(torch.uint8) << 3)


def _from_e2m1(code: Tensor) -> Tensor:
    levels = torch.tensor([*E2M1, *(-level for level in E2M1)], dtype=torch.float64, device=code.device)
    return levels[code.long()]


INT8 = Coding(
    127,
    lambda number: number.round().to(torch.int8).view(torch.uint8),
    lambda code: code.view(torch.int8).double(),
)
INT4 = Coding(7, lambda number: (number.round() + 8).to(torch.uint8), lambda code: code.double() - 8)
FP8 = Coding(
    448,
    lambda number: number.to(torch.float8_e4m3fn).view(torch.uint8),
    lambda code: code.view(torch.float8_e4m3fn).double(),
)
FP4 = Coding(6, _to_e2m1, _from_e2m1)

CODINGS = {"fp8": FP8, "fp8_block": FP8, "int8": INT8, "q8_0": INT8, "int4": INT4, "fp4": FP4}


def _two_a_byte(code: Tensor) -> Tensor:
    """The lower half of each byte of two neighbours of a row in one, the first one below."""
    even = pad(code, (0, code.shape[-1] % 2))
    return even[..., ::2] | (even[..., 1::2] << 4)


def _one_a_byte(pair: Tensor) -> Tensor:
    return torch.stack([pair & 15, pair >> 4], -1).flatten(-2)


# --- scales -------------------------------------------------------------------------------------------------

FLOAT_OF_BYTES = {2: torch.float16, 4: torch.float32}
"""How scales of several bytes are written; one byte is the exponent itself, plus 127."""
EXPONENTS = {1: (-127, 127), 2: (-24, 15), 4: (-126, 127)}
"""The powers of two that scales of so many bytes can be."""


@dataclass(frozen=True)
class _Blocks:
    """Where the blocks of a stack of matrices lie; the last ones of a row or matrix may be smaller."""

    matrices: int
    rows: int
    columns: int
    block_rows: int
    block_columns: int

    @classmethod
    def of(cls, form: WeightFormat, shape: Sequence[int]) -> _Blocks:
        *stack, rows, columns = shape
        return cls(prod(stack), rows, columns, form.block_rows or rows, form.block_columns or columns)

    @property
    def grid(self) -> tuple[int, int, int]:
        return self.matrices, -(-self.rows // self.block_rows), -(-self.columns // self.block_columns)

    def largest(self, weight_moi: Tensor) -> Tensor:
        """The largest magnitude in each block."""
        _, down, across = self.grid
        right, below = across * self.block_columns - self.columns, down * self.block_rows - self.rows
        whole = pad(weight_moi.abs(), (0, right, 0, below))
        return whole.view(-1, down, self.block_rows, across, self.block_columns).amax((2, 4))

    def spread(self, scales_mrc: Tensor) -> Tensor:
        """The scale of each number."""
        rows = scales_mrc.repeat_interleave(self.block_rows, 1)[:, : self.rows]
        return rows.repeat_interleave(self.block_columns, 2)[..., : self.columns]


def _exponents(largest: Tensor, coding: Coding, scale_bytes: int) -> Tensor:
    """The least exponents under which no number is too large; beyond the last one numbers are cut off."""
    fraction, exponent = torch.frexp(largest)
    top_fraction, top_exponent = frexp(coding.largest)
    return (exponent - top_exponent + (fraction > top_fraction)).long().clamp(*EXPONENTS[scale_bytes])


def _power_of_two(exponent: Tensor) -> Tensor:
    """Exact, unlike exp2: the exponent's place in a float64."""
    return (exponent + 1023 << 52).view(torch.float64)


def _pack_scales(exponents: Tensor, scale_bytes: int) -> Tensor:
    if scale_bytes == 1:
        return (exponents + 127).to(torch.uint8).flatten()
    return _bytes(_power_of_two(exponents).to(FLOAT_OF_BYTES[scale_bytes]))


def _unpack_scales(packed: Tensor, scale_bytes: int) -> Tensor:
    if scale_bytes == 1:
        return _power_of_two(packed.long() - 127)
    return packed.view(FLOAT_OF_BYTES[scale_bytes]).double()


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().flatten().view(torch.uint8).clone()

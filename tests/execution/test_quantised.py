"""Packing against closed forms, formulas of other quantisers written out here, and decoders by hand."""

from fractions import Fraction
from itertools import pairwise
from math import prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from simulator.execution.quantised import CODINGS, PLAIN, pack, round_trip, unpack
from simulator.specs.weight_formats import WEIGHT_FORMATS, WeightFormat, nbytes

LARGEST = {"fp8": 448, "fp8_block": 448, "int8": 127, "q8_0": 127, "int4": 7, "fp4": 6}
"""The largest code: E4M3 and E2M1 as their standards have it, integers symmetric."""

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

quantising = pytest.mark.parametrize("form", [WEIGHT_FORMATS[name] for name in LARGEST], ids=list(LARGEST))


def random_weight(shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Rows and neighbouring blocks differ in size by up to a thousand."""
    generator = torch.Generator().manual_seed(seed)
    sizes = 1000 ** torch.rand((*shape[:-1], 1), generator=generator, dtype=torch.float64)
    bumps = 1000 ** torch.rand((shape[-1] // 16 + 1,), generator=generator, dtype=torch.float64)
    normal = torch.randn(shape, generator=generator, dtype=torch.float64)
    return (normal * sizes * bumps.repeat_interleave(16)[: shape[-1]] / 1000).to(dtype)


def scale_of(largest: float, largest_code: int) -> float:
    """The least power of two with which the code reaches, by trial."""
    scale = Fraction(1)
    while largest_code * scale < Fraction(largest):
        scale *= 2
    while scale > Fraction(1, 2**24) and largest_code * scale / 2 >= Fraction(largest):
        scale /= 2
    return float(scale)


def scales_of(weight: Tensor, form: WeightFormat) -> Tensor:
    """The scale of each number of a matrix, block by block."""
    rows, columns = weight.shape
    down, across = form.block_rows or rows, form.block_columns or columns
    scales = torch.empty_like(weight)
    for top in range(0, rows, down):
        for left in range(0, columns, across):
            block = (slice(top, top + down), slice(left, left + across))
            scales[block] = scale_of(float(weight[block].abs().max()), LARGEST[form.name])
    return scales


def test_every_executed_format_is_covered():
    executed = {name for name, form in WEIGHT_FORMATS.items() if form.executed}
    assert executed == PLAIN.keys() | CODINGS.keys() == PLAIN.keys() | LARGEST.keys()


# --- size and error -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "form", [form for form in WEIGHT_FORMATS.values() if form.executed], ids=lambda f: f.name
)
@pytest.mark.parametrize("shape", [(1, 32), (5, 96), (130, 256), (3, 129, 288), (2, 3, 4, 32)])
def test_a_packed_weight_is_one_row_of_the_bytes_that_placement_counts(
    form: WeightFormat, shape: tuple[int, ...]
):
    packed = pack(random_weight(shape), form)
    assert packed.dtype == torch.uint8
    assert packed.shape == (nbytes(form, shape),)


@pytest.mark.parametrize(
    "form", [WEIGHT_FORMATS["int4"], WEIGHT_FORMATS["fp4"], WEIGHT_FORMATS["int8"]], ids=str
)
@pytest.mark.parametrize("columns", [1, 2, 31, 33, 127, 129, 200])
def test_rows_may_end_in_a_part_of_a_block_or_of_a_byte(form: WeightFormat, columns: int):
    weight = random_weight((3, columns))
    packed = pack(weight, form)
    assert packed.numel() == nbytes(form, (3, columns))
    assert torch.equal(unpack(packed, (3, columns), form, torch.float64), round_trip(weight, form))


@pytest.mark.parametrize("name", ["int8", "q8_0", "int4"])
def test_integers_err_by_half_a_scale_at_most_and_are_whole_scales(name: str):
    form, weight = WEIGHT_FORMATS[name], random_weight((9, 320))
    scales = scales_of(weight, form)
    back = round_trip(weight, form)
    assert ((weight - back).abs() <= scales / 2).all()
    codes = back / scales
    assert torch.equal(codes, codes.round())
    assert codes.abs().max() <= LARGEST[name]


@pytest.mark.parametrize(("name", "digits", "least"), [("fp8", 3, -9), ("fp8_block", 3, -9), ("fp4", 1, -1)])
def test_floats_err_by_half_the_distance_of_neighbours_at_most(name: str, digits: int, least: int):
    """`digits` after the leading one, and 2 ** `least` the smallest number above zero."""
    form, weight = WEIGHT_FORMATS[name], random_weight((140, 320))
    scales = scales_of(weight, form)
    exponent = torch.frexp(weight / scales).exponent - 1
    distance = scales * torch.ldexp(torch.ones_like(weight), (exponent - digits).clamp(min=least))
    error = (weight - round_trip(weight, form)).abs()
    assert (error <= distance / 2 * (1 + 2**-20)).all()  # torch rounds to E4M3 by way of float32


@quantising
def test_errors_are_less_than_twice_what_the_finest_scales_could_cause(form: WeightFormat):
    """A scale of absmax / largest code errs by half of it, times the widest distance of two codes."""
    weight = random_weight((9, 320))
    widest = {448: 32, 127: 1, 7: 1, 6: 2}[LARGEST[form.name]]
    finest = weight.abs().max() / LARGEST[form.name]
    assert (weight - round_trip(weight, form)).abs().max() < 2 * (finest * widest / 2)


@quantising
@pytest.mark.parametrize("dtype", FLOATS)
def test_the_numbers_are_the_same_in_every_dtype(form: WeightFormat, dtype: torch.dtype):
    weight = random_weight((9, 320), dtype=dtype)
    back = round_trip(weight, form)
    assert back.dtype == dtype
    assert torch.equal(back.double(), unpack(pack(weight, form), weight.shape, form, torch.float64))


@quantising
def test_zeros_stay_zeros(form: WeightFormat):
    assert torch.equal(round_trip(torch.zeros(130, 288), form), torch.zeros(130, 288))


@pytest.mark.parametrize(
    ("size", "kept"), [(1e9, 7 * 2.0**15), (-1e9, -7 * 2.0**15), (2.0**-27, 0.0), (2.0**-24, 2.0**-24)]
)
def test_numbers_beyond_an_fp16_scale_saturate(size: float, kept: float):
    weight = torch.full((1, 128), size, dtype=torch.float64)
    assert torch.equal(round_trip(weight, WEIGHT_FORMATS["int4"]), torch.full_like(weight, kept))


@pytest.mark.parametrize("name", PLAIN)
def test_plain_formats_are_the_conversion_of_torch(name: str):
    weight = random_weight((5, 7))
    assert torch.equal(round_trip(weight, WEIGHT_FORMATS[name]), weight.to(PLAIN[name]).double())
    assert torch.equal(round_trip(weight[0], WEIGHT_FORMATS[name]), weight[0].to(PLAIN[name]).double())


# --- other quantisers ---------------------------------------------------------------------------------------


def reaching(weight: Tensor, form: WeightFormat) -> Tensor:
    """`weight` with the largest code times a power of two in every block, so that finest scales are ours."""
    scales = scales_of(weight, form)
    rows, columns = weight.shape
    for row in range(0, rows, form.block_rows or rows):
        for column in range(0, columns, form.block_columns or columns):
            weight[row, column] = LARGEST[form.name] * scales[row, column]
    return weight


def test_int8_is_the_formula_of_bitsandbytes():
    """LLM.int8(): by rows, round(127 w / absmax), back by absmax / 127 (Dettmers et al. 2022)."""
    weight = reaching(random_weight((9, 320)), WEIGHT_FORMATS["int8"])
    absmax = weight.abs().amax(1, keepdim=True)
    expected = (weight * (127 / absmax)).round().to(torch.int8) * (absmax / 127)
    assert torch.equal(round_trip(weight, WEIGHT_FORMATS["int8"]), expected)


@pytest.mark.parametrize(("name", "width"), [("int4", 64), ("q8_0", 32)])
def test_groups_are_the_fake_quantisation_of_torch(name: str, width: int):
    """With each group a row of its own; torch knows float32 only."""
    form, largest = WEIGHT_FORMATS[name], LARGEST[name]
    weight = random_weight((12, width), dtype=torch.float32)
    scales = scales_of(weight, form)[:, 0]
    zeros = torch.zeros(12, dtype=torch.int32)
    expected = torch.fake_quantize_per_channel_affine(weight, scales, zeros, 0, -largest, largest)
    assert torch.equal(round_trip(weight, form), expected)


def test_fp8_is_the_formula_of_vllm():
    """A scale of absmax / 448 for the whole matrix, saturating (scaled_fp8_quant)."""
    weight = reaching(random_weight((9, 320)), WEIGHT_FORMATS["fp8"])
    scale = weight.abs().max() / 448
    expected = (weight / scale).clamp(-448, 448).to(torch.float8_e4m3fn).double() * scale
    assert torch.equal(round_trip(weight, WEIGHT_FORMATS["fp8"]), expected)


def test_fp4_is_the_formula_of_the_microscaling_standard():
    """A scale of 2 ** (floor(log2(absmax)) - 2), OCP MX v1.0 section 6.3, where that does not saturate:
    for an absmax of up to 1.5 times a power of two."""
    weight = reaching(random_weight((9, 320)), WEIGHT_FORMATS["fp4"])
    blocks = weight.view(-1, 32)
    scale = torch.exp2(blocks.abs().amax(1, keepdim=True).log2().floor() - 2)
    levels = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=torch.float64)
    sizes = levels[((blocks / scale).abs()[..., None] - levels).abs().argmin(-1)]
    expected = (sizes * blocks.sign() * scale).view(9, 320)
    assert torch.equal(round_trip(weight, WEIGHT_FORMATS["fp4"]), expected)


# --- decoded by hand ----------------------------------------------------------------------------------------


def float_of(bits: int, exponent_bits: int, digits: int, bias: int) -> float:
    """A small float by its fields, without infinities."""
    exponent, fraction = bits >> digits & (1 << exponent_bits) - 1, bits & (1 << digits) - 1
    size = (fraction / 2**digits + (exponent > 0)) * 2.0 ** (max(exponent, 1) - bias)
    return -size if bits >> exponent_bits + digits else size


def test_packed_bytes_say_what_their_layout_says():
    """Scales of the blocks first, then codes; of two codes in a byte the first is the lower half."""
    weight = random_weight((2, 200))
    packed = {name: pack(weight, WEIGHT_FORMATS[name]) for name in LARGEST if name != "q8_0"}
    rows = {name: [[0.0] * 200, [0.0] * 200] for name in packed}
    for row in range(2):
        for column in range(200):
            group, nibble = column // 128, 4 * (column % 2)
            int8 = packed["int8"][8 + 200 * row + column].view(torch.int8).item()
            rows["int8"][row][column] = int8 * packed["int8"][:8].view(torch.float32)[row].item()
            int4 = (packed["int4"][8 + 100 * row + column // 2].item() >> nibble & 15) - 8
            rows["int4"][row][column] = int4 * packed["int4"][:8].view(torch.float16)[2 * row + group].item()
            fp4 = float_of(packed["fp4"][14 + 100 * row + column // 2].item() >> nibble & 15, 2, 1, 1)
            rows["fp4"][row][column] = fp4 * 2.0 ** (packed["fp4"][7 * row + column // 32].item() - 127)
            fp8 = float_of(packed["fp8"][4 + 200 * row + column].item(), 4, 3, 7)
            rows["fp8"][row][column] = fp8 * packed["fp8"][:4].view(torch.float32)[0].item()
            fp8 = float_of(packed["fp8_block"][8 + 200 * row + column].item(), 4, 3, 7)
            rows["fp8_block"][row][column] = fp8 * packed["fp8_block"][:8].view(torch.float32)[group].item()
    for name, numbers in rows.items():
        back = unpack(packed[name], (2, 200), WEIGHT_FORMATS[name], torch.float64)
        assert back.tolist() == numbers, name


@pytest.mark.parametrize("name", ["fp8", "int8", "int4", "fp4"])
def test_every_code_comes_back(name: str):
    form = WEIGHT_FORMATS[name]
    numbers = {"int8": range(-127, 128), "int4": range(-7, 8), "fp4": [float_of(bits, 2, 1, 1) for bits in range(16)],
               "fp8": [float_of(bits, 4, 3, 7) for bits in range(256) if bits & 127 < 127]}[name]  # fmt: skip
    weight = torch.tensor([list(numbers)], dtype=torch.float64) * 2.0**-9
    assert same_bits(round_trip(weight, form), weight)


# --- cutting ------------------------------------------------------------------------------------------------


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Equal, zeros with their signs."""
    return (
        one.dtype == other.dtype and torch.equal(one, other) and torch.equal(one.signbit(), other.signbit())
    )


names = st.sampled_from(sorted(LARGEST))
seeds = st.integers(0, 1000)


@given(
    name=names,
    seed=seeds,
    dtype=st.sampled_from(FLOATS),
    rows=st.integers(1, 140),
    columns=st.integers(1, 10),
)
def test_a_second_trip_changes_nothing(name: str, seed: int, dtype: torch.dtype, rows: int, columns: int):
    once = round_trip(random_weight((rows, 32 * columns), seed, dtype), WEIGHT_FORMATS[name])
    assert same_bits(round_trip(once, WEIGHT_FORMATS[name]), once)


@given(
    name=names, seed=seeds, dtype=st.sampled_from(FLOATS), axis=st.integers(0, 2),
    cuts=st.lists(st.integers(1, 9), max_size=3),
)  # fmt: skip
@pytest.mark.slow
def test_shards_packed_on_their_own_have_the_numbers_of_the_whole(
    name: str, seed: int, dtype: torch.dtype, axis: int, cuts: list[int]
):
    """What tensor parallelism does: experts, outputs or inputs cut between blocks, each rank packing its
    part of the weight that the unplaced model computes with."""
    form, shape = WEIGHT_FORMATS[name], (3, 260, 320)
    whole = round_trip(random_weight(shape, seed, dtype), form)
    block = (1, form.block_rows or 7, form.block_columns or 7)[axis]
    edges = sorted({0, shape[axis], *(cut * block for cut in cuts if cut * block < shape[axis])})
    parts = []
    for start, end in pairwise(edges):
        part = whole.narrow(axis, start, end - start)
        packed = pack(part, form)
        assert packed.numel() == nbytes(form, part.shape)
        parts.append(unpack(packed, part.shape, form, dtype))
    assert same_bits(torch.cat(parts, axis), whole)


@given(
    name=names.filter(lambda name: not WEIGHT_FORMATS[name].whole_blocks),
    seed=seeds,
    start=st.integers(0, 31),
)
def test_a_part_of_a_block_keeps_its_numbers_as_well(name: str, seed: int, start: int):
    whole = round_trip(random_weight((4, 32), seed), WEIGHT_FORMATS[name])
    part = whole[:, start:]
    assert same_bits(round_trip(part, WEIGHT_FORMATS[name]), part)


@given(name=names, power=st.integers(-10, 10), seed=seeds)
def test_twice_the_weight_is_twice_the_numbers(name: str, power: int, seed: int):
    form, weight = WEIGHT_FORMATS[name], random_weight((5, 64), seed)
    assert same_bits(round_trip(weight * 2.0**power, form), round_trip(weight, form) * 2.0**power)


@given(name=names, seed=seeds)
def test_a_matrix_of_a_stack_is_packed_as_it_is_alone(name: str, seed: int):
    form, stack = WEIGHT_FORMATS[name], random_weight((3, 130, 64), seed)
    alone = torch.stack([round_trip(matrix, form) for matrix in stack])
    assert same_bits(round_trip(stack, form), alone)
    assert pack(stack, form).numel() == prod((3, nbytes(form, (130, 64))))

"""Rotations against complex products, stretched frequencies against the code that first defined them."""

from math import ceil, floor, log, pi

import pytest
import torch
from torch import Tensor

from simulator.execution.rotary import frequencies, rotate
from simulator.specs.architecture import LinearRope, Llama3Rope, Rope, YarnRope
from tests.tensors import assert_close, counted_flops, normal

CPU = torch.device("cpu")
LLAMA3 = Llama3Rope(8.0, low_freq_factor=1.0, high_freq_factor=8.0, original_max_position_embeddings=128)
YARN = YarnRope(8.0, beta_fast=32.0, beta_slow=1.0, original_max_position_embeddings=64, truncate=True,
                attention_factor=1.25)  # fmt: skip
POSITIONS = torch.tensor([0, 1, 2, 700, 8191])


def turned(real: Tensor, imaginary: Tensor) -> Tensor:
    """Three channels turned as complex numbers by the positions, theta 10,000."""
    rate = 10_000.0 ** -(torch.arange(3, dtype=torch.float64) / 3)
    turn = torch.polar(torch.ones(5, 3, dtype=torch.float64), POSITIONS[:, None] * rate)
    return torch.complex(real, imaginary) * turn[:, None]


def test_rotation_is_a_complex_product():
    """Channels i and i + d/2 are the real and imaginary part of one number, turned together."""
    q = normal(5, 4, 6)
    expected = turned(q[..., :3], q[..., 3:])
    assert_close(rotate(q, POSITIONS, Rope(10_000.0, 6)), torch.cat((expected.real, expected.imag), -1), 1e-11)


def test_interleaved_rotation_turns_neighbours():
    q = normal(5, 4, 6)
    expected = turned(q[..., ::2], q[..., 1::2])
    actual = rotate(q, POSITIONS, Rope(10_000.0, 6, interleaved=True))
    assert_close(actual, torch.view_as_real(expected).flatten(-2), 1e-11)


@pytest.mark.parametrize("interleaved", [False, True])
def test_channels_beyond_the_rotary_ones_stay(interleaved):
    q, rope = normal(5, 4, 10), Rope(10_000.0, 6, interleaved)
    assert torch.equal(rotate(q, POSITIONS, rope)[..., 6:], q[..., 6:])
    assert torch.equal(rotate(q, POSITIONS, rope)[..., :6], rotate(q[..., :6], POSITIONS, rope))


@pytest.mark.parametrize("scaling", [None, LinearRope(4.0), LLAMA3, YARN])
@pytest.mark.parametrize("interleaved", [False, True])
def test_rotated_products_depend_on_distance_alone(interleaved, scaling):
    q, k, rope = normal(1, 4, 8, seed=1), normal(1, 4, 8, seed=2), Rope(10_000.0, 8, interleaved, scaling)

    def product(query_position: int, key_position: int) -> Tensor:
        turned = (rotate(x, torch.tensor([at]), rope) for x, at in ((q, query_position), (k, key_position)))
        return torch.linalg.vecdot(*turned)

    assert_close(product(17, 5), product(112, 100), 1e-10)


def test_without_rotary_positions_nothing_turns():
    q = normal(5, 3, 8)
    assert rotate(q, torch.arange(5), None) is q


def test_rotation_counts_no_flops():
    assert counted_flops(rotate, normal(5, 4, 8), torch.arange(5), Rope(10_000.0, 8)) == 0


# --- stretched frequencies ----------------------------------------------------------------------------------

PLAIN = [10_000.0 ** -(2 * i / 64) for i in range(32)]


def scaled(scaling: LinearRope | Llama3Rope | YarnRope) -> list[float]:
    return frequencies(Rope(10_000.0, 64, scaling=scaling), torch.float64, CPU).tolist()


def test_linear_scaling_slows_all_channels():
    assert scaled(LinearRope(4.0)) == pytest.approx([frequency / 4 for frequency in PLAIN], rel=1e-12)


def llama3_frequency(frequency: float) -> float:
    """The three cases as Llama 3.1's reference code writes them, by wavelength."""
    wavelength, original = 2 * pi / frequency, 128
    if wavelength < original / 8.0:
        return frequency
    if wavelength > original / 1.0:
        return frequency / 8.0
    smooth = (original / wavelength - 1.0) / (8.0 - 1.0)
    return (1 - smooth) * frequency / 8.0 + smooth * frequency


def test_llama3_slows_the_slow_channels_only():
    assert scaled(LLAMA3) == pytest.approx([llama3_frequency(frequency) for frequency in PLAIN], rel=1e-12)
    assert [scaled(LLAMA3)[0], scaled(LLAMA3)[-1]] == pytest.approx([PLAIN[0], PLAIN[-1] / 8], rel=1e-12)


@pytest.mark.parametrize("truncate", [False, True])
def test_yarn_is_the_blend_of_its_paper(truncate):
    """Interpolated beyond the channel that turns `beta_slow` times over the original context, kept below the
    one that turns `beta_fast` times; `find_correction_range` and `linear_ramp` of the authors' code."""
    yarn = YarnRope(8.0, 4.0, 1.0, 512, truncate, attention_factor=1.0)
    ends = [64 * log(512 / (times * 2 * pi)) / (2 * log(10_000.0)) for times in (4.0, 1.0)]
    low, high = (floor(ends[0]), ceil(ends[1])) if truncate else ends
    expected = []
    for i, frequency in enumerate(PLAIN):
        ramp = min(max((i - low) / (high - low), 0.0), 1.0)
        expected.append(frequency / 8 * ramp + frequency * (1 - ramp))
    assert scaled(yarn) == pytest.approx(expected, rel=1e-12)
    assert 0 < low < high < 31, "the blend is to be seen"


def test_yarn_stretches_what_it_turns_as_well():
    q = normal(5, 4, 6)
    with_factor, without = (
        rotate(q, POSITIONS, Rope(1e4, 6, scaling=YarnRope(8.0, 32.0, 1.0, 64, True, factor)))
        for factor in (1.25, 1.0)
    )
    assert_close(with_factor, 1.25 * without)

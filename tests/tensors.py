"""Random tensors, and how they are compared and counted, for tests of the execution."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Float64, so that two formulas for the same number agree to rounding."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def counted_flops(function: Callable[..., object], *arguments: Any) -> int:
    """What torch's FlopCounterMode reports of one call."""
    with FlopCounterMode(display=False) as counter:
        function(*arguments)
    return int(counter.get_total_flops())

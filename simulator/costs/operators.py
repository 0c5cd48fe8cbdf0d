"""How long a kernel takes on a device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.graph.work import OperatorClass
from simulator.specs.hardware import ITEM_BYTES, Device, Efficiency, Precision

Floats = NDArray[np.float64]


def blended_terms(compute_s: Floats, memory_s: Floats, blend: Floats) -> tuple[Floats, Floats]:
    """Times in seconds that arithmetic and memory traffic add to a kernel, before its fixed overhead.

    Their sum is the p-norm of the two lone times with exponent p = `blend`: 1 is no overlap at all, a
    large p the roofline (Williams et al. 2009, doi:10.1145/1498765.1498785). The sum is shared out in
    proportion to the two lone times to the power p.

    >>> blended_terms(np.array([3.0]), np.array([4.0]), np.array([2.0]))
    (array([1.8]), array([3.2]))
    """
    longer_s = np.maximum(compute_s, memory_s)
    ratio = np.minimum(compute_s, memory_s) / np.where(longer_s > 0, longer_s, 1.0)
    power = ratio**blend
    norm_s = longer_s * (1 + power) ** (1 / blend)
    share_of_longer = 1 / (1 + power)
    share = np.where(compute_s >= memory_s, share_of_longer, 1 - share_of_longer)
    return norm_s * share, norm_s * (1 - share)


@dataclass(frozen=True, slots=True)
class KernelRates:
    """What one operator class reaches on one device."""

    flops_per_s: float
    bytes_per_s: float
    overhead_s: float
    blend: float


# Where a device has no measured figures of its own: (compute, memory, overhead, blend) by kind and class.
# Assumed. GPUs: rounded from the fits of A100, H100 and L40S that this catalogue carries; CPUs: the usual
# 0.75-0.85 of STREAM over peak and half of the arithmetic peak; accelerators: as GPUs.
_GPU = {
    "matmul": Efficiency(compute=0.70, memory=0.80, overhead_s=4e-6, blend=2.5),
    "attention_prefill": Efficiency(compute=0.50, memory=0.80, overhead_s=10e-6, blend=2.0),
    "attention_decode": Efficiency(compute=0.30, memory=0.80, overhead_s=10e-6, blend=1.5),
    "elementwise": Efficiency(compute=0.50, memory=0.75, overhead_s=2e-6, blend=2.0),
    "embedding": Efficiency(compute=0.50, memory=0.50, overhead_s=3e-6, blend=2.0),
    "sampling": Efficiency(compute=0.50, memory=0.50, overhead_s=20e-6, blend=2.0),
}
_CPU = {
    "matmul": Efficiency(compute=0.50, memory=0.75, overhead_s=10e-6, blend=2.0),
    "attention_prefill": Efficiency(compute=0.30, memory=0.70, overhead_s=20e-6, blend=2.0),
    "attention_decode": Efficiency(compute=0.30, memory=0.70, overhead_s=20e-6, blend=2.0),
    "elementwise": Efficiency(compute=0.30, memory=0.70, overhead_s=5e-6, blend=2.0),
    "embedding": Efficiency(compute=0.30, memory=0.50, overhead_s=5e-6, blend=2.0),
    "sampling": Efficiency(compute=0.30, memory=0.50, overhead_s=20e-6, blend=2.0),
}
CLASS_DEFAULTS: dict[str, dict[str, Efficiency]] = {"gpu": _GPU, "accelerator": _GPU, "cpu": _CPU}


def efficiency_of(
    device: Device, operator_class: OperatorClass, precision: Precision
) -> tuple[Efficiency, bool]:
    """The device's figures for a class, the most specific first, and whether they are class defaults."""
    for key in (f"{operator_class}.{precision}", operator_class):
        if key in device.efficiency:
            return device.efficiency[key], False
    return CLASS_DEFAULTS[device.kind][operator_class], True


def arithmetic(device: Device, formats: Sequence[Precision]) -> tuple[Precision, float]:
    """The number format a device computes in when asked for one of `formats`, and its peak in FLOP/s.

    The first it has a unit for; else the next wider one it has; else its widest, slowed by the ratio of
    the widths (assumed: wide arithmetic pieced together from narrow).
    """
    for precision in formats:
        if precision in device.compute:
            return precision, device.compute[precision]
    wanted = ITEM_BYTES[formats[-1]]
    by_width = sorted(device.compute, key=lambda precision: (ITEM_BYTES[precision], precision))
    for precision in by_width:
        if ITEM_BYTES[precision] >= wanted and not precision.startswith("int"):
            return precision, device.compute[precision]
    widest = by_width[-1]
    return widest, device.compute[widest] * ITEM_BYTES[widest] / wanted


def kernel_rates(
    device: Device, operator_class: OperatorClass, formats: Sequence[Precision]
) -> KernelRates:
    """Rates of one operator class on a device, in the best of the acceptable formats."""
    precision, peak = arithmetic(device, formats)
    efficiency, _ = efficiency_of(device, operator_class, precision)
    bandwidth = device.memory.bandwidth_bytes_per_s
    assert bandwidth is not None, "a device that computes states its memory's bandwidth"
    return KernelRates(
        peak * efficiency.compute, bandwidth * efficiency.memory, efficiency.overhead_s, efficiency.blend
    )

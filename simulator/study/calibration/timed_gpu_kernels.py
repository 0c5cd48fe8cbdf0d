"""Which kernels of a GPU `calibrate measure` times, as rows of a table of operators: those of models with 0.1
to 70 billion parameters, from one sequence that decodes to a large prefill."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Literal

from simulator.graph.operators import TOKEN_ID_BYTES
from simulator.specs.hardware import ITEM_BYTES, Precision
from simulator.study.calibration.timed_kernels import KernelRow, Timing

if TYPE_CHECKING:
    from simulator.execution.measure_gpu import GpuBench

Time = Callable[["GpuBench"], KernelRow]
RowWise = Literal["norm", "activation", "elementwise", "embedding", "sampling"]

HIDDEN_AND_INNER = ((576, 1536), (2048, 8192), (4096, 14336), (8192, 28672))
"""Widths of a model, and of its feed-forward networks."""
TOKENS = (1, 8, 32, 64, 128, 256, 512, 2048, 8192)
MOST_FLOPS: Mapping[str, float] = {"fp32": 3e11}
"""Of a product in a format whose arithmetic is slow; `LARGEST` in others."""
LARGEST = 4e12
HEADS = ((9, 3, 64), (16, 16, 64), (32, 8, 128), (32, 32, 128), (64, 8, 128))
"""Of queries, of keys and values, and their width."""
PROMPTS = ((1, 64), (1, 256), (1, 1024), (1, 4096), (8, 256), (8, 1024))
"""Sequences, and new tokens of each."""
DECODES = tuple((batch, context) for batch in (1, 8, 64) for context in (127, 1023, 4095, 16383))
"""Sequences, and cached tokens of each."""
MOST_KV_SHARE = 1 / 32
"""Of the device's memory, for keys and values; 2 GiB are enough."""
MOST_KV_BYTES = 2**31
WIDTHS = (576, 2048, 4096, 8192)
ROWS = (1, 32, 256, 2048, 8192)
VOCABULARIES = (32000, 128256)
SAMPLED = (1, 8, 32, 64, 128, 256)
PASSES: Mapping[RowWise, int] = {"norm": 2, "activation": 2, "elementwise": 3, "embedding": 2}
"""How often a kernel moves its numbers: reads and writes together."""
COPIED_BYTES = tuple(2**power for power in (3, 12, 16, 18, 20, 22, 24, 26, 28))


def gpu_timings(half: Precision, has_fp8: bool, capacity_bytes: float) -> tuple[Timing[GpuBench], ...]:
    """Everything to time: products in fp32, in the device's 16-bit format and in fp8 where it has it, other
    kernels in 16 bits; copies. What takes too much of the device's memory is left out."""
    most_kv_bytes = min(MOST_KV_BYTES, capacity_bytes * MOST_KV_SHARE)
    formats: tuple[Precision, ...] = ("fp32", half, "fp8") if has_fp8 else ("fp32", half)
    products = (timing for precision in formats for timing in _matmuls(precision))
    return (*products, *_attention(half, most_kv_bytes), *_rowwise(half), *_copies())


def _matmuls(precision: Precision) -> Iterator[Timing[GpuBench]]:
    for hidden, inner in HIDDEN_AND_INNER:
        for n, k in ((hidden, hidden), (inner, hidden), (hidden, inner)):
            for m in TOKENS:
                if 2 * m * n * k <= MOST_FLOPS.get(precision, LARGEST):
                    yield Timing(f"GPU: {precision} matmul {m}x{n}x{k}", _matmul(precision, m, n, k))


def _matmul(precision: Precision, m: int, n: int, k: int) -> Time:
    def time(bench: GpuBench) -> KernelRow:
        from simulator.execution.measure import Matmul

        time_s, copies = bench.matmul(Matmul(m, n, k), precision)
        return KernelRow("matmul", precision, time_s * 1e6, m=m, n=n, k=k, copies=copies)

    return time


def _attention(precision: Precision, most_kv_bytes: float) -> Iterator[Timing[GpuBench]]:
    item = ITEM_BYTES[precision]
    for heads, kv_heads, width in HEADS:
        for batch, new, context in (
            *((batch, new, 0) for batch, new in PROMPTS),
            *((batch, 1, context) for batch, context in DECODES),
        ):
            if 2 * item * batch * (context + new) * kv_heads * width <= most_kv_bytes:
                what = f"GPU: attention of {batch} x {new} after {context}, {heads}/{kv_heads}/{width}"
                yield Timing(what, _attend(precision, batch, new, context, (heads, kv_heads, width)))


def _attend(precision: Precision, batch: int, new: int, context: int, heads: tuple[int, int, int]) -> Time:
    def time(bench: GpuBench) -> KernelRow:
        from simulator.execution.measure import AttentionShape

        time_s = bench.attention(batch, AttentionShape(new, context, *heads), precision)
        return KernelRow(
            "attention_decode" if new == 1 else "attention_prefill", precision, time_s * 1e6, batch=batch,
            new=new, context=context, heads=heads[0], kv_heads=heads[1], head_dim=heads[2],
        )  # fmt: skip

    return time


def _rowwise(precision: Precision) -> Iterator[Timing[GpuBench]]:
    item = round(ITEM_BYTES[precision])
    for kind, passes in PASSES.items():
        for width in WIDTHS:
            for tokens in ROWS:
                ids = tokens * TOKEN_ID_BYTES if kind == "embedding" else 0
                moved = passes * tokens * width * item + ids
                what = f"GPU: {kind} of {tokens} x {width}"
                yield Timing(what, _rows(precision, kind, tokens, width, moved))
    for width in VOCABULARIES:
        for tokens in SAMPLED:
            moved = tokens * (width * item + TOKEN_ID_BYTES)
            yield Timing(
                f"GPU: sampling of {tokens} x {width}", _rows(precision, "sampling", tokens, width, moved)
            )


def _rows(precision: Precision, kind: RowWise, tokens: int, width: int, moved_bytes: int) -> Time:
    def time(bench: GpuBench) -> KernelRow:
        from simulator.execution.measure import Rows

        time_s = getattr(bench, kind)(Rows(tokens, width), precision)
        return KernelRow(kind, precision, time_s * 1e6, bytes=moved_bytes, width=width)

    return time


def _copies() -> Iterator[Timing[GpuBench]]:
    for nbytes in COPIED_BYTES:
        for to_device in (True, False):
            for pinned in (True, False):
                where, how = "to it" if to_device else "to the host", "pinned" if pinned else "pageable"
                yield Timing(f"GPU: copy of {nbytes} bytes {where}, {how}", _copy(nbytes, to_device, pinned))


def _copy(nbytes: int, to_device: bool, pinned: bool) -> Time:
    def time(bench: GpuBench) -> KernelRow:
        time_s = bench.copy_s(nbytes, to_device, pinned)
        return KernelRow("copy", None, time_s * 1e6, bytes=nbytes, pinned=pinned,
                         direction="to_device" if to_device else "to_host")  # fmt: skip

    return time

"""Times the kernels of a GPU for `calibrate measure`.

Kernels are timed in CUDA graphs, as serving engines run them, so that a time is the device's and not that of
the host that launches. What the host takes to launch kernels one by one, and to copy, is timed by itself.
Protocols are those of published tables (ai-dynamo/aiconfigurator, collector/), so that figures compare:
matrices are gone round among more than the cache holds, everything else works on the same arrays again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from time import perf_counter

import torch
from torch import Tensor
from torch.nn import functional

from simulator.execution.measure import DTYPES, AttentionShape, Matmul, Rows, elapsed_s

GRAPH_S = 2e-3
"""How long a graph is, at least, unless it would have too many kernels."""
MOST_IN_GRAPH = 512
FEW = 16
"""Kernels in a graph that shows how long one takes."""
REPLAYS = 3
"""Replays of a graph in one timed run, so that only the first waits for the host."""
FEWEST_RUNS = 2
CACHES_OF_MATRICES = 4
LARGEST_BUFFER_BYTES = 2**30
SHARE_OF_MEMORY = 1 / 16
"""Of the device's memory that one buffer may take."""
SMALLEST_BUFFER_BYTES = 2**26
LAUNCHES = 1000
"""Kernels launched one by one in a timed run."""
SMALL_COPY_BYTES = 8
BACK_ROUNDS = 20
"""Of a small copy back to the host."""
HOST_BYTES = 2**30
"""Of the host's memory that copies come from and go to, more than its caches hold."""
MOST_PIECES = 2**12
SHORTEST_S = 1e-8
"""What a difference of two times, or a time too short to be told, counts as."""
FP8 = torch.float8_e4m3fn

Call = Callable[[], object]


@dataclass(frozen=True)
class GpuFacts:
    """What PyTorch says of a GPU."""

    name: str
    capacity_bytes: int
    units: int
    """Multiprocessors."""
    cache_bytes: int
    """Of the last-level cache; 0 where PyTorch does not say."""
    half: str
    """The 16-bit format that its matrix units have: bf16, else fp16."""
    has_fp8: bool


def gpu_facts() -> GpuFacts:
    """Of the first one."""
    facts = torch.cuda.get_device_properties(0)
    capability = (facts.major, facts.minor)
    has_fp8 = capability >= (8, 9) and torch.version.hip is None  # AMD counts otherwise
    return GpuFacts(
        facts.name, facts.total_memory, facts.multi_processor_count, getattr(facts, "L2_cache_size", 0),
        "bf16" if capability >= (8, 0) else "fp16", has_fp8,
    )  # fmt: skip


class GpuBench:
    """Times kernels on one device, each for about as long. On a processor, which has no graphs, calls are
    simply made."""

    def __init__(self, seconds_each: float, facts: GpuFacts, device: str = "cuda") -> None:
        """facts: how much its memory holds, and its cache, which matrices should not fit into."""
        self.seconds_each, self.cache_bytes = seconds_each, facts.cache_bytes
        self.largest_bytes = min(LARGEST_BUFFER_BYTES, int(facts.capacity_bytes * SHARE_OF_MEMORY))
        self.device = torch.device(device)
        self._has_gpu = self.device.type == "cuda"
        self._buffers: dict[torch.dtype, Tensor] = {}
        self._host: dict[bool, Tensor] = {}
        self._small_back_s: float | None = None

    # -- the clock ----------------------------------------------------------------------------------------

    def best_s(self, calls: Sequence[Call]) -> float:
        """Seconds of one of some calls, gone round, the best of several runs."""
        with torch.no_grad():
            for call in calls[:2]:
                call()
            alone_s = min(elapsed_s(calls[0], self.device) for _ in range(FEWEST_RUNS))  # launching included
            once_s = alone_s if alone_s > GRAPH_S else self._once_in_graph_s(calls[0])
            wanted = min(MOST_IN_GRAPH, math.ceil(GRAPH_S / once_s))
            count = max(wanted, min(len(calls), MOST_IN_GRAPH))
            run = self._captured([calls[number % len(calls)] for number in range(count)])
            run()
            return self._best_s(lambda: [run() for _ in range(REPLAYS)]) / REPLAYS / count

    def _once_in_graph_s(self, call: Call) -> float:
        """Of one call, without launching, roughly."""
        run = self._captured([call] * FEW)
        run()
        return max(SHORTEST_S, min(elapsed_s(run, self.device) for _ in range(FEWEST_RUNS)) / FEW)

    def _best_s(self, run: Call) -> float:
        best_s, runs, end = math.inf, 0, perf_counter() + self.seconds_each
        while runs < FEWEST_RUNS or perf_counter() < end:
            best_s, runs = min(best_s, elapsed_s(run, self.device)), runs + 1
        return best_s

    def _captured(self, calls: Sequence[Call]) -> Call:
        """What makes the calls in one graph; their results are dropped."""
        if not self._has_gpu:
            return lambda: [call() for call in calls]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for call in calls:
                call()
        return graph.replay

    # -- kernels ------------------------------------------------------------------------------------------

    def matmul(self, shape: Matmul, precision: str) -> tuple[float, int]:
        """A product; seconds, and how many matrices were gone round among."""
        if precision == "fp8":
            return self._fp8_matmul(shape)
        x_mk = self._numbers(shape.m, shape.k, precision=precision)
        weights = self._matrices(shape, DTYPES[precision])
        calls = [lambda weight_nk=each: functional.linear(x_mk, weight_nk) for each in weights]
        return self.best_s(calls), len(weights)

    def _fp8_matmul(self, shape: Matmul) -> tuple[float, int]:
        """With one scale a matrix, accumulated as vLLM asks for it, and a result in bf16."""
        x_mk = self._numbers(shape.m, shape.k, precision="bf16").to(FP8)
        one = torch.ones((), device=self.device)
        weights = self._matrices(shape, FP8)
        calls = [
            lambda weight_nk=each: torch._scaled_mm(
                x_mk, weight_nk.t(), one, one, out_dtype=torch.bfloat16, use_fast_accum=True
            )
            for each in weights
        ]
        return self.best_s(calls), len(weights)

    def _matrices(self, shape: Matmul, dtype: torch.dtype) -> list[Tensor]:
        """As many as the cache does not hold, out of one buffer of random numbers."""
        elements = shape.n * shape.k
        nbytes = elements * dtype.itemsize
        copies = min(MOST_IN_GRAPH, max(2, math.ceil(CACHES_OF_MATRICES * self.cache_bytes / nbytes)))
        copies = max(1, min(copies, self.largest_bytes // nbytes))
        buffer = self._buffer(dtype, copies * elements)
        pieces = buffer[: copies * elements].split(elements)
        return [piece.view(shape.n, shape.k) for piece in pieces]

    def _buffer(self, dtype: torch.dtype, at_least: int) -> Tensor:
        elements = max(SMALLEST_BUFFER_BYTES // dtype.itemsize, at_least)
        if dtype not in self._buffers or len(self._buffers[dtype]) < elements:
            self._buffers.pop(dtype, None)
            self._buffers[dtype] = self._numbers(elements, precision="bf16").to(dtype)
        return self._buffers[dtype]

    def _numbers(self, *shape: int, precision: str) -> Tensor:
        """Random ones: a device that multiplies zeros is faster than it is with a model's weights."""
        return torch.randn(shape, dtype=DTYPES[precision], device=self.device)

    def attention(self, batch: int, shape: AttentionShape, precision: str) -> float:
        """Fused attention: prompts without context, or one token of each sequence."""
        assert shape.new == 1 or not shape.context, "PyTorch's causal mask starts at the first key"
        kept = shape.context + shape.new
        q_bhnd = self._numbers(batch, shape.heads, shape.new, shape.head_dim, precision=precision)
        k_bgsd, v_bgsd = self._numbers(2, batch, shape.kv_heads, kept, shape.head_dim, precision=precision)
        return self.best_s([
            lambda: functional.scaled_dot_product_attention(
                q_bhnd, k_bgsd, v_bgsd, is_causal=shape.new > 1, enable_gqa=shape.heads > shape.kv_heads
            )
        ])  # fmt: skip

    def norm(self, shape: Rows, precision: str) -> float:
        """One read and one written."""
        x_te = self._numbers(shape.tokens, shape.width, precision=precision)
        return self.best_s([lambda: functional.layer_norm(x_te, (shape.width,))])

    def activation(self, shape: Rows, precision: str) -> float:
        """One read and one written."""
        x_tf = self._numbers(shape.tokens, shape.width, precision=precision)
        return self.best_s([lambda: functional.silu(x_tf)])

    def elementwise(self, shape: Rows, precision: str) -> float:
        """Two read and one written."""
        x_te, y_te = self._numbers(2, shape.tokens, shape.width, precision=precision)
        return self.best_s([lambda: x_te + y_te])

    def embedding(self, shape: Rows, precision: str) -> float:
        """Rows of a table for some ids."""
        table_ve = self._buffer(DTYPES[precision], 0)
        table_ve = table_ve[: len(table_ve) // shape.width * shape.width].view(-1, shape.width)
        ids_t = torch.randint(len(table_ve), (shape.tokens,), device=self.device)
        return self.best_s([lambda: functional.embedding(ids_t, table_ve)])

    def sampling(self, shape: Rows, precision: str) -> float:
        """The likeliest of `width` ids."""
        logits_tv = self._numbers(shape.tokens, shape.width, precision=precision)
        return self.best_s([lambda: logits_tv.argmax(dim=-1)])

    # -- memory, copies and the host ----------------------------------------------------------------------

    def s_per_byte(self, nbytes: int) -> float:
        """The least of reading, copying and adding arrays of so many bytes together."""
        x = torch.ones(nbytes // 4, device=self.device)
        half, into = x[: len(x) // 2], torch.empty(len(x) // 2, device=self.device)
        calls: tuple[Call, ...] = (
            x.sum, lambda: into.copy_(half), lambda: torch.add(half, 1, out=into),
        )  # fmt: skip
        return min(self.best_s([call]) for call in calls) / nbytes

    def copy_s(self, nbytes: int, to_device: bool, pinned: bool) -> float:
        """A copy between the host's memory and the device's, by the host's clock: out of the device until the
        thread that waits for it goes on; into the device, what it adds to a small one back that follows. The
        host's memory is gone round in, so that its caches do not hold it."""
        pieces = cycle(self._pieces(nbytes, pinned))
        there = torch.empty(nbytes, dtype=torch.uint8, device=self.device)
        if not to_device:
            return self._best_wall_s(lambda: next(pieces).copy_(there))
        small = there[:SMALL_COPY_BYTES]
        back = torch.empty_like(small, device="cpu", pin_memory=self._has_gpu)

        def both() -> None:
            there.copy_(next(pieces), non_blocking=pinned)
            back.copy_(small)

        return max(SHORTEST_S, self._best_wall_s(both) - self._back_s(lambda: back.copy_(small)))

    def _back_s(self, run: Call) -> float:
        """Of a small copy back, timed for longer and once: were it too long, the difference would be too
        short, and the shortest is kept."""
        if self._small_back_s is None:
            self._small_back_s = min(self._best_wall_s(run) for _ in range(BACK_ROUNDS))
        return self._small_back_s

    def _pieces(self, nbytes: int, pinned: bool) -> list[Tensor]:
        """Of the host's memory, spread over all that copies use of it; written to, so that it is there."""
        if pinned not in self._host:
            written = torch.ones(HOST_BYTES, dtype=torch.uint8)
            self._host[pinned] = written.pin_memory() if pinned and self._has_gpu else written
        count = min(MOST_PIECES, HOST_BYTES // nbytes)
        return [row[:nbytes] for row in self._host[pinned].view(count, -1)]

    def _best_wall_s(self, run: Call) -> float:
        """By the host's clock, each on an idle device."""
        run()
        best_s, runs, end = math.inf, 0, perf_counter() + self.seconds_each
        while runs < FEWEST_RUNS or perf_counter() < end:
            self._idle()
            best_s, runs = min(best_s, _wall_s(run)), runs + 1
        return best_s

    def launch_s(self) -> float:
        """What PyTorch needs to launch one small kernel after the other."""
        x = torch.ones(8, device=self.device)

        def launch() -> None:
            for _ in range(LAUNCHES):
                torch.add(x, 1, out=x)

        return self._best_wall_s(launch) / LAUNCHES

    def _idle(self) -> None:
        if self._has_gpu:
            torch.cuda.synchronize(self.device)


def _wall_s(run: Call) -> float:
    start = perf_counter()
    run()
    return perf_counter() - start

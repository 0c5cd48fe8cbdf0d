"""Times what this program's network calls on the machine it runs on, for `calibrate measure`.

A kernel is timed as the network calls it: through the same modules and functions, with what Python and
PyTorch need to get there, so that the time of the smallest is the overhead an operator has here. Matrices
are read from a buffer much larger than the caches, as the weights of a model that does not fit into them
are; those of models that do fit are gone round among a few. Every time is the best of as many runs as a
share of the time allows, since other programs can only add to it.
"""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from time import perf_counter_ns

import torch
from torch import Tensor, nn

from simulator.execution import kernels
from simulator.execution.generation import next_logits
from simulator.execution.kernels import Rules
from simulator.execution.network import Cache, Transformer
from simulator.execution.random_weights import random_transformer
from simulator.execution.tokenizer import Tokenizer
from simulator.specs.architecture import Architecture, Mlp

NANOSECONDS = 1e9
FEWEST_RUNS = 2
WINDOW_S = 1e-3
"""How long a timed run of small kernels is, at least."""
SMALL_MATRIX_BYTES = 2**18
"""Smaller ones are of models that caches hold."""
MATRICES_OF_SMALL_MODELS = 64
CACHES_IN_BUFFER = 16
SMALLEST_BUFFER_BYTES, LARGEST_BUFFER_BYTES = 2**26, 2**29
SOMETHING = 0.01
"""What inputs are filled with."""
BUSY_SHARE = 0.15
"""Of one processor: when other programs use more of it, a timing is done again."""

DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Matmul:
    """`m` tokens through a projection of `k` channels to `n`."""

    m: int
    n: int
    k: int


@dataclass(frozen=True)
class AttentionShape:
    """`new` tokens of one sequence after `context` cached ones."""

    new: int
    context: int
    heads: int
    kv_heads: int
    head_dim: int


@dataclass(frozen=True)
class Rows:
    """`tokens` of `width` channels, or for sampling that many logits."""

    tokens: int
    width: int


@dataclass(frozen=True)
class MachineHere:
    """What PyTorch has to compute with."""

    threads: int
    torch_version: str
    cache_bytes: int
    """Of the last-level cache; 0 where the system does not say."""


class Bench:
    """Times kernels on one device, each for about as long."""

    def __init__(self, seconds_each: float, device: str = "cpu", watch: OtherPrograms | None = None) -> None:
        """watch: what other programs do; timings are done again while it has patience."""
        self.seconds_each, self.device = seconds_each, torch.device(device)
        self.watch = watch or OtherPrograms(patience_s=0.0)
        self._buffers: dict[torch.dtype, Tensor] = {}

    # -- the clock ----------------------------------------------------------------------------------------

    def best_s(self, call: Callable[[], object], *inputs: Tensor) -> float:
        """Seconds of one call in the best run. Short calls are run some at a time, so that the best run is as
        lucky as a step of a small model, and no more.

        inputs: written anew before each call, as the operator before would have. Then they are in the caches
        of the core that wrote them, and the others have to fetch them.
        """
        with torch.no_grad():
            call()  # the first one allocates, and starts threads
            times = math.ceil(WINDOW_S / min(self._run_s(call, 1, inputs) for _ in range(FEWEST_RUNS)))
            return self._best_s(call, times, inputs) / times

    def best_run_s(self, call: Callable[[], object]) -> float:
        """Seconds of one call by itself, the best."""
        with torch.no_grad():
            call()
            return self._best_s(call, 1, ())

    def _best_s(self, call: Callable[[], object], times: int, inputs: Sequence[Tensor]) -> float:
        best_s = self._best_while_quiet_s(call, times, inputs)
        while self.watch.disturbed():
            best_s = min(best_s, self._best_while_quiet_s(call, times, inputs))
        return best_s

    def _best_while_quiet_s(
        self, call: Callable[[], object], times: int, inputs: Sequence[Tensor]
    ) -> float:
        best_s, runs = math.inf, 0
        self.watch.begin()
        gc.disable()
        try:
            end = perf_counter_ns() + self.seconds_each * NANOSECONDS
            while runs < FEWEST_RUNS or perf_counter_ns() < end:
                best_s, runs = min(best_s, self._run_s(call, times, inputs)), runs + 1
        finally:
            gc.enable()
        return best_s

    def _run_s(self, call: Callable[[], object], times: int, inputs: Sequence[Tensor]) -> float:
        """Seconds of so many calls, without what comes between them."""
        total_s = 0.0
        for _ in range(times):
            for each in inputs:
                each.fill_(SOMETHING)
            total_s += elapsed_s(call, self.device)
        return total_s

    # -- kernels ------------------------------------------------------------------------------------------

    def matmul(self, shape: Matmul, precision: str) -> tuple[float, int]:
        """A projection, as a module; seconds, and how many matrices were gone round among."""
        x_tk = torch.ones(shape.m, shape.k, dtype=DTYPES[precision], device=self.device)
        projections = self._projections(shape, DTYPES[precision])
        endless = cycle(projections)
        return self.best_s(lambda: next(endless)(x_tk), x_tk), len(projections)

    def _projections(self, shape: Matmul, dtype: torch.dtype) -> list[nn.Linear]:
        elements = shape.n * shape.k
        buffer = self._buffer(dtype, elements)
        is_small = elements * dtype.itemsize < SMALL_MATRIX_BYTES
        copies = len(buffer) // elements
        copies = min(copies, MATRICES_OF_SMALL_MODELS) if is_small else copies
        projections = []
        for number in range(copies):
            projection = nn.Linear(shape.k, shape.n, bias=False, device="meta")
            weight_nk = buffer[number * elements : (number + 1) * elements].view(shape.n, shape.k)
            projection.weight = nn.Parameter(weight_nk, requires_grad=False)
            projections.append(projection)
        return projections

    def _buffer(self, dtype: torch.dtype, at_least: int) -> Tensor:
        """As large as several last-level caches."""
        wanted = min(LARGEST_BUFFER_BYTES, max(SMALLEST_BUFFER_BYTES, CACHES_IN_BUFFER * cache_bytes()))
        elements = max(wanted // dtype.itemsize, at_least)
        if dtype not in self._buffers or len(self._buffers[dtype]) < elements:
            self._buffers[dtype] = torch.full((elements,), 0.01, dtype=dtype, device=self.device)
        return self._buffers[dtype]

    def attention(self, shape: AttentionShape, precision: str) -> float:
        """Attention of one sequence, as the network does it."""
        options = {"dtype": DTYPES[precision], "device": self.device}
        q_nhd = torch.randn(shape.new, shape.heads, shape.head_dim, **options)  # type: ignore[call-overload]
        kept = shape.context + shape.new
        k_sgd, v_sgd = torch.randn(2, kept, shape.kv_heads, shape.head_dim, **options)  # type: ignore[call-overload]
        rules = Rules(shape.head_dim**-0.5)
        return self.best_s(lambda: kernels.attend(rules, q_nhd, k_sgd, v_sgd, shape.context).flatten(1),
                           q_nhd, k_sgd, v_sgd)  # fmt: skip

    def activation(self, shape: Rows, precision: str) -> float:
        """The non-linearity of a gated network with `width` inner channels."""
        expanded_tf = torch.randn(shape.tokens, 2 * shape.width, dtype=DTYPES[precision], device=self.device)
        mlp = Mlp(shape.width, "silu", gated=True)
        return self.best_s(lambda: kernels.activate(mlp, expanded_tf), expanded_tf)

    def norm(self, shape: Rows, precision: str) -> float:
        """A stream and its branch added up, and normalised."""
        x_te, branch_te = torch.randn(
            2, shape.tokens, shape.width, dtype=DTYPES[precision], device=self.device
        )
        norm = nn.LayerNorm(shape.width, dtype=DTYPES[precision], device=self.device)
        return self.best_s(lambda: norm(x_te + branch_te), x_te, branch_te)

    def embedding(self, shape: Rows, precision: str) -> float:
        """Rows of a table for some ids."""
        table_ve = self._buffer(DTYPES[precision], 0)
        table_ve = table_ve[: len(table_ve) // shape.width * shape.width].view(-1, shape.width)
        ids_t = torch.randint(len(table_ve), (shape.tokens,), device=self.device)
        return self.best_s(lambda: kernels.embed(ids_t, table_ve))

    def sampling(self, shape: Rows, precision: str) -> float:
        """The likeliest of `width` ids, and to have it as a number."""
        logits_tv = torch.randn(shape.tokens, shape.width, dtype=DTYPES[precision], device=self.device)
        return self.best_s(lambda: kernels.sample(logits_tv).tolist(), logits_tv)

    # -- memory -------------------------------------------------------------------------------------------

    def s_per_byte(self, nbytes: int) -> float:
        """The least of reading, copying and adding arrays of so many bytes together."""
        x = torch.ones(nbytes // 4, device=self.device)
        half, into = x[: len(x) // 2], torch.empty(len(x) // 2, device=self.device)
        moved = (x.nbytes, half.nbytes + into.nbytes, half.nbytes + into.nbytes)
        calls: tuple[Callable[[], object], ...] = (
            x.sum, lambda: into.copy_(half), lambda: torch.add(half, 1, out=into),
        )  # fmt: skip
        return min(self.best_s(call) / each for each, call in zip(moved, calls, strict=True))

    # -- parts of a network -------------------------------------------------------------------------------

    def placed(self, network: Transformer) -> Transformer:
        """The same network on this device."""
        return network.to(self.device)

    def layer_s(self, arch: Architecture, new: int, context: int) -> float:
        """`new` tokens after `context` cached ones through the first layer of a model with random weights."""
        layer = self.placed(random_transformer(arch, seed=0)).layers[0]
        cache = Cache()
        with torch.no_grad(), self.device:
            x_te = torch.randn(new, arch.hidden_size)
            positions_t = torch.arange(context, context + new)
            if context:
                layer(torch.randn(context, arch.hidden_size), torch.arange(context), cache)
        return self.best_s(lambda: layer(x_te, positions_t, _branched(cache)), x_te)

    def step_s(self, network: Transformer, new: int, context: int) -> float:
        """A whole step: `new` ids after `context` cached ones, up to the id that follows."""
        cache = Cache()
        ids = [number % network.arch.vocab_size for number in range(7, 7 + context + new)]
        with torch.no_grad():
            if context:
                next_logits(network, ids[:context], cache)
        return self.best_run_s(lambda: _step(network, ids[context:], _branched(cache)))

    def tokenize_s(self, tokenizer: Tokenizer, text: str) -> float:
        """To read a text, for each token."""
        return self.best_s(lambda: tokenizer.encode(text)) / len(tokenizer.encode(text))

    def detokenize_s(self, tokenizer: Tokenizer, text: str) -> float:
        """To write a text, for each token."""
        ids = tokenizer.encode(text)
        return self.best_s(lambda: tokenizer.decode(ids)) / len(ids)


class OtherPrograms:
    """Watches how much of the processors other programs use, where the system says (Linux)."""

    def __init__(self, patience_s: float) -> None:
        """patience_s: how long in all timings may be done again."""
        self.patience_s = patience_s
        self.busy_s = self.watched_s = 0.0
        self._wall_s = self._other_s = 0.0

    def begin(self) -> None:
        """A timing begins."""
        self._wall_s, self._other_s = perf_counter_ns() / NANOSECONDS, _used_by_others_s()

    def disturbed(self) -> bool:
        """Whether others were busy during the timing that has just ended, and there is patience left."""
        wall_s = perf_counter_ns() / NANOSECONDS - self._wall_s
        others_s = max(0.0, _used_by_others_s() - self._other_s)
        self.busy_s, self.watched_s = self.busy_s + others_s, self.watched_s + wall_s
        if others_s < BUSY_SHARE * wall_s or self.patience_s <= 0:
            return False
        self.patience_s -= wall_s
        return True

    @property
    def share(self) -> float:
        """Of one processor, what other programs used meanwhile."""
        return self.busy_s / self.watched_s if self.watched_s else 0.0


def _used_by_others_s() -> float:
    """Processor time that all programs but this one have used since the system started."""
    try:
        with open("/proc/stat", encoding="ascii") as file:
            user, nice, system, _, _, interrupts, soft, stolen = map(int, file.readline().split()[1:9])
    except (OSError, ValueError):
        return 0.0
    own = os.times()
    everyone = (user + nice + system + interrupts + soft + stolen) / os.sysconf("SC_CLK_TCK")
    return everyone - own.user - own.system


def elapsed_s(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of a call; on a GPU between two events around it, on an idle device."""
    if device.type != "cuda":
        begun = perf_counter_ns()
        call()
        return (perf_counter_ns() - begun) / NANOSECONDS
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    start.record()
    call()
    stop.record()
    stop.synchronize()
    return float(start.elapsed_time(stop)) / 1e3  # it says milliseconds


def _branched(cache: Cache) -> Cache:
    """A cache of the same tokens that can be added to without changing the other."""
    branch = Cache()
    branch.tokens, branch._kept = cache.tokens, dict(cache._kept)
    return branch


def _step(network: Transformer, ids: list[int], cache: Cache) -> list[int]:
    found: list[int] = kernels.sample(next_logits(network, ids, cache)[None]).tolist()
    return found


def has_gpu() -> bool:
    """Whether there is a GPU that PyTorch can use."""
    return torch.cuda.is_available()


def machine_here() -> MachineHere:
    return MachineHere(torch.get_num_threads(), torch.__version__, cache_bytes())


def cache_bytes() -> int:
    """Of the largest cache that the system lists for the first processor."""
    folder = Path("/sys/devices/system/cpu/cpu0/cache")
    return max(_cache_sizes(folder), default=0)


def _cache_sizes(folder: Path) -> Iterator[int]:
    for path in sorted(folder.glob("index*/size")):
        try:
            text = path.read_text(encoding="ascii").strip()
        except OSError:
            continue
        number, unit = text[:-1], text[-1:]
        if number.isdigit() and unit in "KM":
            yield int(number) * (2**10 if unit == "K" else 2**20)

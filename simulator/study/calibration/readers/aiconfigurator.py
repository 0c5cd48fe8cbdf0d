"""Tables in the format of NVIDIA's aiconfigurator: products and attention of serving stacks.

Protocols, from the collectors beside the tables (ai-dynamo/aiconfigurator, collector/): products go round
several sets of weights, so that small ones stay in the cache and large ones do not (6 sets under vLLM, under
TensorRT-LLM as many as fill the L2 cache, 5 at most); fp8 brings activations to 8 bits in kernels of its own,
by a stated scale under vLLM (one kernel), by a scale found first under TensorRT-LLM (three: clear, find,
divide); attention runs on the same keys and values again and again, so that they stay in the cache if they
fit.
"""

from __future__ import annotations

import numpy as np

from simulator.costs.operators import Floats, KernelLoad
from simulator.specs.catalogue import Catalogue
from simulator.specs.hardware import Precision
from simulator.study.calibration.columns import Columns, Texts
from simulator.study.calibration.readers.registry import (
    NotMapped,
    by_value,
    counted,
    known_device,
    known_format,
    reader,
)
from simulator.study.calibration.samples import (
    Heads,
    Part,
    Rows,
    Samples,
    TableSamples,
    decode_load,
    groups,
    matmul_load,
    prefill_load,
    quantise_load,
)

VLLM_COPIES = 6
TRTLLM_MOST_COPIES = 5


def milliseconds(values: Floats) -> Floats:
    """Milliseconds as seconds."""
    return values / 1000


@reader("gemm_dtype", "m", "n", "k", "latency", "device")
@reader("gemm_dtype", "m", "n", "k", "latency_ms", "system")
def read_gemm(columns: Columns, catalogue: Catalogue) -> TableSamples:
    found = TableSamples()
    m, n, k = (columns.counts(name) for name in ("m", "n", "k"))
    time_s, systems = _times_and_systems(columns)
    is_trtllm = (columns.texts("kernel_source", "") == "torch_flow") | (
        columns.texts("framework", "") == "TRTLLM"
    )
    stacks = np.where(is_trtllm, "trtllm", "vllm")
    for (system, dtype, stack), rows in by_value(systems, columns.texts("gemm_dtype"), stacks):
        with counted(found, len(rows)):
            device = known_device(system, catalogue)
            if "block" in dtype:
                raise NotMapped("block-scaled: launched eagerly, so that most time the host (60 to 350 us)")
            cache = catalogue.device(device).record.memory.cache_bytes
            parts = _product(m[rows], n[rows], k[rows], known_format(dtype), stack, cache)
            shape = {"m": m[rows], "n": n[rows], "k": k[rows]}
            group = groups((n[rows], k[rows]))
            found.samples.append(Samples(columns.path.stem, device, parts, time_s[rows], shape, group))
    return found


def _product(
    m: Floats, n: Floats, k: Floats, precision: Precision, stack: str, cache: float | None
) -> tuple[Part, ...]:
    is_narrow = precision in ("fp8", "fp4")
    bytes_each = 1.0 if is_narrow else 2.0
    copies: float | Floats = VLLM_COPIES
    if stack == "trtllm":
        copies = np.clip(np.ceil((cache or 0.0) / (bytes_each * n * k)), 1, TRTLLM_MOST_COPIES)
    product = Part("matmul", precision, matmul_load(m, n, k, precision, "bf16", copies))
    if not is_narrow:
        return (product,)
    cast = Part("quantise", precision, quantise_load(m, k, precision, "bf16"))
    if stack != "trtllm":
        return (product, cast)
    reads = 2 * m * k
    find = Part("quantise", precision, KernelLoad.of(0 * m, reads, block_bytes=2 * m, used_bytes=reads))
    clear = Part("quantise", precision, KernelLoad.of(0 * m, np.full_like(m, 4.0), used_bytes=0 * m))
    return (product, cast, find, clear)


def _times_and_systems(columns: Columns) -> tuple[Floats, Texts]:
    """Seconds and names of devices, as the database itself has them or as tables made of it do."""
    is_own = columns.has("latency")
    time_s = milliseconds(columns.positive("latency" if is_own else "latency_ms"))
    return time_s, columns.texts("device" if is_own else "system")


@reader("batch_size", "isl", "step", "num_heads", "num_key_value_heads", "head_dim", "latency", "device")
@reader("batch_size", "isl", "step", "num_heads", "num_key_value_heads", "head_dim", "latency_ms", "system")
def read_attention(columns: Columns, catalogue: Catalogue) -> TableSamples:
    """A row of one new token is a decode, in whichever table it stands."""
    found = TableSamples()
    numbers = {name: columns.counts(name) for name in ("batch_size", "isl", "num_heads",
                                                       "num_key_value_heads", "head_dim")}  # fmt: skip
    numbers["step"] = columns.counts("step", 0.0, least=0)
    time_s, systems = _times_and_systems(columns)
    window = columns.counts("window_size", 0.0, least=-1)
    numbers["window"] = np.where(window > 0, window, np.inf)
    phase = np.where(numbers["isl"] > 1, "prefill", "decode")
    keys = (systems, columns.texts("kv_cache_dtype", "bfloat16"), phase)
    for (system, dtype, each), rows in by_value(*keys):
        with counted(found, len(rows)):
            device, kv_cache = known_device(system, catalogue), known_format(dtype, " of the KV cache")
            found.samples.append(_attention(columns.path.stem, device, kv_cache, each, numbers, time_s, rows))
    return found


def _attention(
    table: str, device: str, kv_cache: Precision, phase: str, numbers: dict[str, Floats], time_s: Floats,
    rows: Rows,
) -> Samples:  # fmt: skip
    mine = {name: values[rows] for name, values in numbers.items()}
    heads = Heads(mine["num_heads"], mine["num_key_value_heads"], mine["head_dim"])
    batch, new, context, window = mine["batch_size"], mine["isl"], mine["step"], mine["window"]
    computes_in: Precision = "fp8" if kv_cache == "fp8" else "bf16"
    shape = {"batch": batch, "heads": heads.queries, "kv_heads": heads.keys, "head_dim": heads.width}
    if phase == "prefill":
        load = prefill_load(batch, new, 0 * batch, heads, kv_cache, window)
        part = Part("attention_prefill", computes_in, load)
        shape["span"], shape["window"] = new, np.minimum(window, new)
    else:
        span = np.minimum(new + context, window)
        part = Part("attention_decode", computes_in, decode_load(batch, span, heads, kv_cache))
        shape["span"] = span
    group = groups((batch, heads.queries, heads.keys, heads.width))
    return Samples(table, device, (part,), time_s[rows], shape, group)

"""Profiles of one decoder layer: Vidur's, by number of tokens and tensor-parallel degree, and
LLMServingSim's.

Vidur (microsoft/vidur) times the operators of a layer in 16 bits, in milliseconds rounded to a microsecond.
LLMServingSim (casys-kaist/LLMServingSim) times those of a named model in vLLM; its norms add the open branch
to the residual stream in the same kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.costs.operators import Floats, KernelLoad
from simulator.graph.work import OperatorClass
from simulator.specs.architecture import Architecture, Attention, Mlp
from simulator.specs.catalogue import Catalogue
from simulator.specs.hardware import Precision
from simulator.specs.model import load_model
from simulator.study.calibration.columns import Columns
from simulator.study.calibration.readers.aiconfigurator import milliseconds
from simulator.study.calibration.readers.registry import (
    NotMapped,
    by_value,
    counted,
    device_id,
    known_device,
    known_format,
    reader,
)
from simulator.study.calibration.samples import (
    Heads,
    Part,
    Samples,
    TableSamples,
    decode_load,
    groups,
    matmul_load,
    prefill_load,
    rows_load,
)


def microseconds(values: Floats) -> Floats:
    """Microseconds as seconds."""
    return values / 1e6


# -- Vidur ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Layer:
    """The widths of measured layers, one rank's share of each."""

    tokens: Floats
    hidden: Floats
    query: Floats
    keys: Floats
    expanded: Floats
    """Columns of the feed-forward network."""
    ups: Floats
    """2 where it is gated."""


_Kernel = tuple[OperatorClass, Callable[[_Layer], KernelLoad]]


def _product(n: Callable[[_Layer], Floats], k: Callable[[_Layer], Floats]) -> _Kernel:
    return "matmul", lambda it: matmul_load(it.tokens, n(it), k(it), "fp16", "fp16")


def _rows(operator_class: OperatorClass, numbers: Callable[[_Layer], Floats],
          chain: Callable[[_Layer], Floats]) -> _Kernel:  # fmt: skip
    return operator_class, lambda it: rows_load(it.tokens, numbers(it), chain(it))


VIDUR: dict[str, _Kernel] = {
    "emb": _rows("embedding", lambda it: 2 * it.hidden, lambda it: 0 * it.hidden),
    "input_layernorm": _rows("norm", lambda it: 2 * it.hidden, lambda it: it.hidden),
    "attn_pre_proj": _product(lambda it: it.query + 2 * it.keys, lambda it: it.hidden),
    "attn_rope": _rows("rotary", lambda it: 2 * (it.query + it.keys), lambda it: it.query + it.keys),
    "attn_post_proj": _product(lambda it: it.hidden, lambda it: it.query),
    "post_attention_layernorm": _rows("norm", lambda it: 2 * it.hidden, lambda it: it.hidden),
    "mlp_up_proj": _product(lambda it: it.ups * it.expanded, lambda it: it.hidden),
    "mlp_act": _rows("activation", lambda it: (it.ups + 1) * it.expanded, lambda it: it.expanded),
    "mlp_down_proj": _product(lambda it: it.hidden, lambda it: it.expanded),
    "add": _rows("elementwise", lambda it: 3 * it.hidden, lambda it: 0 * it.hidden),
}


@reader("gpu", "num_tokens", "num_tensor_parallel_workers", "n_embd", "mlp_up_proj_ms_median")
def read_vidur(columns: Columns, catalogue: Catalogue) -> TableSamples:
    """Every operator of every row is a measurement; rows of one shape, repeated, keep their repetitions."""
    found = TableSamples()
    ranks = columns.counts("num_tensor_parallel_workers")
    heads, kv_heads = columns.counts("n_head"), columns.counts("n_kv_head")
    hidden = columns.counts("n_embd")
    width = hidden / heads
    gated = np.char.lower(columns.texts("use_gated_mlp")) == "true"
    layer = _Layer(
        columns.counts("num_tokens"), hidden, width * heads / ranks,
        width * np.maximum(kv_heads / ranks, 1),
        columns.counts("n_expanded_embd") / ranks, np.where(gated, 2.0, 1.0),
    )  # fmt: skip
    for name, (operator_class, load_of) in VIDUR.items():
        column = f"{name}_ms_median"
        time_s = milliseconds(columns.numbers(column, 0.0, least=0))
        load = load_of(layer)
        for (system,), rows in by_value(columns.texts("gpu")):
            device = device_id(system, catalogue)
            measured = rows[time_s[rows] > 0]
            missing = len(rows) - len(measured)
            found.unmapped[f"{name}: blank, or shorter than the microsecond the table counts in"] += missing
            if device is None:
                found.unmapped[f"device {system} is not in the catalogue"] += len(measured)
                continue
            if len(measured):
                part = Part(operator_class, "fp16", load.at(measured))
                shape, group = _vidur_shape(part, layer.tokens[measured], layer.hidden[measured])
                found.samples.append(
                    Samples(columns.path.stem, device, (part,), time_s[measured], shape, group, name)
                )
    found.unmapped = +found.unmapped
    return found


def _vidur_shape(
    part: Part, tokens: Floats, hidden: Floats
) -> tuple[dict[str, Floats], NDArray[np.int64]]:
    """What rows are looked up by, and which of them are left out together."""
    load = part.load
    if part.operator_class == "matmul":
        sides = {"m": tokens, "n": load.flops / (2 * tokens * load.chain), "k": load.chain}
        return sides, groups((sides["n"], sides["k"]))
    shape = {"tokens": tokens, "chain": load.chain, "per_token": load.moved_bytes / tokens}
    return shape, groups((load.chain, hidden))


# -- LLMServingSim -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Widths:
    """What one rank of a model holds, of its first layer."""

    hidden: int
    query: int
    keys: int
    expanded: int
    vocabulary: int
    heads: tuple[int, int, int]


def _widths(
    name: str, columns: Columns, tp: NDArray[np.int64], rows: NDArray[np.intp], catalogue: Catalogue
) -> _Widths:
    """Of a model as Hugging Face names it, for rows of one degree; raises NotMapped if the catalogue has none
    such, or it is built otherwise."""
    first = int(rows[0])
    ranks = int(tp[first])
    wanted = name.rpartition("/")[2].lower()
    if catalogue.find("models", wanted) is None:
        raise NotMapped(f"model {name} is not in the catalogue")
    model: Architecture = load_model(wanted, catalogue)
    attention, mlp = model.layers[0].attention, model.layers[0].mlp
    if not isinstance(attention, Attention) or not isinstance(mlp, Mlp) or not mlp.gated:
        raise NotMapped(f"model {name} is no plain gated decoder")
    if attention.num_attention_heads % ranks:
        advice = f"write a number that divides the {attention.num_attention_heads} heads of {name}"
        columns.refuse("tp", first, str(ranks), advice)
    heads, keys = attention.num_attention_heads // ranks, max(attention.num_key_value_heads // ranks, 1)
    width = attention.head_dim
    return _Widths(model.hidden_size, heads * width, keys * width, mlp.intermediate_size // ranks,
                   model.vocab_size // ranks, (heads, keys, width))  # fmt: skip


def _dense(layer: str, rows: Floats, it: _Widths, precision: Precision) -> Part:
    """The kernel of a named layer; raises NotMapped for one that is no operator here."""

    def product(n: int, k: int) -> Part:
        load = matmul_load(rows, np.full_like(rows, n), np.full_like(rows, k), precision, precision)
        return Part("matmul", precision, load)

    def by_rows(operator_class: OperatorClass, numbers: int, chain: int) -> Part:
        return Part(operator_class, precision, rows_load(rows, numbers, float(chain)))

    match layer:
        case "qkv_proj":
            return product(it.query + 2 * it.keys, it.hidden)
        case "o_proj":
            return product(it.hidden, it.query)
        case "gate_up_proj":
            return product(2 * it.expanded, it.hidden)
        case "down_proj":
            return product(it.hidden, it.expanded)
        case "lm_head":
            return product(it.vocabulary, it.hidden)
        case "layernorm" | "final_layernorm":
            return by_rows("norm", 4 * it.hidden, it.hidden)
        case "act_fn":
            return by_rows("activation", 3 * it.expanded, it.expanded)
        case "rotary_emb":
            return by_rows("rotary", 2 * (it.query + it.keys), it.query + it.keys)
        case "embedding":
            return by_rows("embedding", 2 * it.hidden, 0)
        case "sampler":
            return by_rows("sampling", it.vocabulary, 0)
    raise NotMapped(f"{layer} is no operator here")


@reader("gpu", "model", "dtype", "tp", "layer", "tokens", "time_us")
def read_dense(columns: Columns, catalogue: Catalogue) -> TableSamples:
    return _by_layer(columns, "tokens", catalogue)


@reader("gpu", "model", "dtype", "tp", "layer", "sequences", "time_us")
def read_per_sequence(columns: Columns, catalogue: Catalogue) -> TableSamples:
    return _by_layer(columns, "sequences", catalogue)


def _by_layer(columns: Columns, counts: str, catalogue: Catalogue) -> TableSamples:
    found = TableSamples()
    rows_of, time_s = columns.counts(counts), microseconds(columns.positive("time_us"))
    ranks = columns.whole("tp")
    keys = [columns.texts(name) for name in ("gpu", "model", "dtype", "tp", "layer")]
    for (system, model, dtype, _, layer), rows in by_value(*keys):
        with counted(found, len(rows)):
            device, precision = known_device(system, catalogue), known_format(dtype)
            widths = _widths(model, columns, ranks, rows, catalogue)
            part = _dense(layer, rows_of[rows], widths, precision)
            shape = {"tokens": rows_of[rows]}
            if part.operator_class == "matmul":
                n = part.load.flops / (2 * rows_of[rows] * part.load.chain)
                shape = {"m": rows_of[rows], "n": n, "k": part.load.chain}
            # One layer of one model: runs of rows of similar size are left out together.
            group = np.asarray(np.floor(np.log2(rows_of[rows])), dtype=np.int64)
            found.samples.append(
                Samples(columns.path.stem, device, (part,), time_s[rows], shape, group, layer)
            )
    return found


ATTENTION_COLUMNS = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode")


@reader("gpu", "model", "dtype", "tp", "prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us")
def read_attention(columns: Columns, catalogue: Catalogue) -> TableSamples:
    """One chunk of a prompt, some decodes, or both in one batch."""
    found = TableSamples()
    numbers = {name: columns.counts(name, least=0) for name in ATTENTION_COLUMNS}
    idle = np.flatnonzero((numbers["prefill_chunk"] == 0) & (numbers["n_decode"] == 0))
    if len(idle):
        columns.refuse("n_decode", int(idle[0]), "0", "as prefill_chunk is; write one of them above 0")
    ranks = columns.whole("tp")
    time_s = microseconds(columns.positive("time_us"))
    kind = np.where(
        numbers["prefill_chunk"] > 0, np.where(numbers["n_decode"] > 0, "mixed", "prefill"), "decode"
    )
    keys = [columns.texts(name) for name in ("gpu", "model", "dtype", "tp")]
    for (system, model, dtype, _, each), rows in by_value(*keys, kind):
        with counted(found, len(rows)):
            device, precision = known_device(system, catalogue), known_format(dtype)
            widths = _widths(model, columns, ranks, rows, catalogue)
            mine = {name: values[rows] for name, values in numbers.items()}
            parts = _attention(each, mine, widths, precision)
            group = groups((mine["kv_prefill"], mine["kv_decode"]))
            found.samples.append(
                Samples(columns.path.stem, device, parts, time_s[rows], mine, group, each)
            )
    return found


def _attention(
    kind: str, numbers: dict[str, Floats], widths: _Widths, precision: Precision
) -> tuple[Part, ...]:
    """The kernels of a chunk of a prompt, of some decodes, or of both."""
    new, context, batch, span = (numbers[name] for name in ATTENTION_COLUMNS)
    heads = Heads(*(np.full_like(new, float(count)) for count in widths.heads))
    load = prefill_load(0 * new + 1, new, context, heads, precision)
    prefill = Part("attention_prefill", precision, load)
    load = decode_load(batch, span, heads, precision, with_prompts=kind == "mixed")
    decode = Part("attention_decode", precision, load)
    return {"prefill": (prefill,), "decode": (decode,), "mixed": (prefill, decode)}[kind]

"""Which kernels `calibrate measure` times, as rows of a table of operators, and the work of each.

FLOPs and bytes are counted as the work graph counts them, so that a fit to these rows prices its operators.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

from simulator.graph.operators import TOKEN_ID_BYTES
from simulator.graph.work import OperatorClass
from simulator.specs.hardware import ITEM_BYTES, Precision

if TYPE_CHECKING:
    from simulator.execution.measure import Bench

SCORE_PASSES = 8
"""How often our attention moves each score through memory: written by the first product, read and written to
be scaled, to be masked and by the softmax, read by the second product."""

HIDDEN_AND_INNER = ((64, 128), (256, 768), (576, 1536), (1024, 2048))
"""Widths of a model, and of its feed-forward networks."""
TOKENS = (1, 8, 32, 64, 128, 256)
FEW_TOKENS = TOKENS[:3]
"""Of the smallest widths: their matrices stay in caches, which the formula does not know, so that only their
overhead is to be learnt."""
LARGE = (512, 2048, 2048)
"""Tokens, outputs and inputs of a product that is all arithmetic."""
HEADS = ((4, 4, 16), (8, 4, 8), (9, 3, 64), (12, 12, 64), (16, 8, 128))
"""Of queries, of keys and values, and their width."""
PROMPTS = (8, 32, 64, 128, 256)
CONTEXTS = (16, 128, 512, 1024)
WIDTHS = (64, 576, 1536)
ROWS = (1, 32, 128, 256)
VOCABULARIES = (256, 4096, 49152)


@dataclass(frozen=True)
class KernelRow:
    """One measured kernel, as docs/calibrate.md has it; None where it has no use for a column."""

    operator: OperatorClass | Literal["copy"]
    precision: Precision | None
    time_us: float
    m: int | None = None
    n: int | None = None
    k: int | None = None
    copies: int | None = None
    batch: int | None = None
    new: int | None = None
    context: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    bytes: int | None = None
    width: int | None = None
    direction: Literal["to_device", "to_host"] | None = None
    pinned: bool | None = None

    @property
    def time_s(self) -> float:
        return self.time_us / 1e6

    @property
    def flops(self) -> int:
        """Arithmetic under the causal mask."""
        if self.operator == "matmul":
            m, n, k = _known(self.m, self.n, self.k)
            return 2 * m * n * k
        if self.operator not in ("attention_prefill", "attention_decode"):
            return 0
        new, context, heads, width = _known(self.new, self.context, self.heads, self.head_dim)
        return 4 * heads * width * (new * context + new * (new + 1) // 2)

    @property
    def moved_bytes(self) -> int:
        """Read and written once, and by attention its scores as often as it passes over them."""
        assert self.precision is not None, "a kernel computes in some format"
        item = round(ITEM_BYTES[self.precision])
        if self.operator == "matmul":
            m, n, k = _known(self.m, self.n, self.k)
            return item * (n * k + m * k + m * n)
        if self.operator not in ("attention_prefill", "attention_decode"):
            return _known(self.bytes)[0]
        new, context, heads, kv_heads, width = _known(
            self.new, self.context, self.heads, self.kv_heads, self.head_dim
        )
        keys, queries = 2 * kv_heads * width * (context + new), 2 * heads * width * new
        return item * (keys + queries + SCORE_PASSES * heads * new * (context + new))


COLUMNS = tuple(field.name for field in fields(KernelRow))


def _known(*numbers: int | None) -> list[int]:
    found = [number for number in numbers if number is not None]
    assert len(found) == len(numbers), "a row has the columns of its operator"
    return found


BenchT = TypeVar("BenchT", contravariant=True)


@dataclass(frozen=True)
class Timing(Generic[BenchT]):
    """One kernel yet to be timed, by some kind of bench."""

    what: str
    time: Callable[[BenchT], KernelRow]


def timings(half: Precision | None = "bf16") -> tuple[Timing[Bench], ...]:
    """Everything to time, in fp32; products of matrices in a half precision too."""
    return (
        *_matmuls("fp32"),
        *(_matmuls(half) if half else ()),
        *_attention("fp32"),
        *_elementwise("fp32"),
    )


def _matmuls(precision: Precision) -> Iterator[Timing[Bench]]:
    m, n, k = LARGE
    yield Timing(f"{precision} matmul {m}x{n}x{k}", _matmul(precision, m, n, k))
    for hidden, inner in HIDDEN_AND_INNER:
        for m in FEW_TOKENS if hidden == HIDDEN_AND_INNER[0][0] else TOKENS:
            for n, k in ((hidden, hidden), (inner, hidden), (hidden, inner)):
                yield Timing(f"{precision} matmul {m}x{n}x{k}", _matmul(precision, m, n, k))


def _matmul(precision: Precision, m: int, n: int, k: int) -> Callable[[Bench], KernelRow]:
    def time(bench: Bench) -> KernelRow:
        from simulator.execution.measure import Matmul

        time_s, copies = bench.matmul(Matmul(m, n, k), precision)
        return KernelRow("matmul", precision, time_s * 1e6, m=m, n=n, k=k, copies=copies)

    return time


def _attention(precision: Precision) -> Iterator[Timing[Bench]]:
    for heads in HEADS:
        for new, context in (*((new, 0) for new in PROMPTS), *((1, context) for context in CONTEXTS)):
            what = f"attention of {new} after {context}, {'/'.join(map(str, heads))}"
            yield Timing(what, _attend(precision, heads, new, context))


def _attend(
    precision: Precision, heads: tuple[int, int, int], new: int, context: int
) -> Callable[[Bench], KernelRow]:
    def time(bench: Bench) -> KernelRow:
        from simulator.execution.measure import AttentionShape

        time_s = bench.attention(AttentionShape(new, context, *heads), precision)
        operator: OperatorClass = "attention_decode" if new == 1 else "attention_prefill"
        return KernelRow(
            operator, precision, time_s * 1e6, batch=1, new=new, context=context,
            heads=heads[0], kv_heads=heads[1], head_dim=heads[2],
        )  # fmt: skip

    return time


def _elementwise(precision: Precision) -> Iterator[Timing[Bench]]:
    item = round(ITEM_BYTES[precision])
    for width in WIDTHS:
        for tokens in ROWS:
            numbers = tokens * width * item
            for operator, kernel, moved in (
                ("elementwise", "activation", 3 * numbers),
                ("elementwise", "norm", 4 * numbers + 2 * width * item),
                ("embedding", "embedding", 2 * numbers + tokens * TOKEN_ID_BYTES),
            ):
                yield Timing(f"{kernel} of {tokens} x {width}",
                             _rowwise(precision, operator, kernel, (tokens, width), moved))  # type: ignore[arg-type]  # fmt: skip
    for width in VOCABULARIES:
        moved = width * item + TOKEN_ID_BYTES
        yield Timing(f"sampling of {width}", _rowwise(precision, "sampling", "sampling", (1, width), moved))


def _rowwise(
    precision: Precision, operator: OperatorClass, kernel: str, shape: tuple[int, int], moved_bytes: int
) -> Callable[[Bench], KernelRow]:
    def time(bench: Bench) -> KernelRow:
        from simulator.execution.measure import Rows

        time_s = getattr(bench, kernel)(Rows(*shape), precision)
        return KernelRow(operator, precision, time_s * 1e6, bytes=moved_bytes)

    return time


def as_csv(rows: Sequence[KernelRow]) -> str:
    """A table of operators in the format of docs/calibrate.md."""
    lines = [",".join(COLUMNS)]
    lines += [",".join(_cell(getattr(row, name)) for name in COLUMNS) for row in rows]
    return "\n".join(lines) + "\n"


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def best_rates(rows: Sequence[KernelRow]) -> dict[str, float]:
    """FLOP/s that the best product of each format reached."""
    best: dict[str, float] = {}
    for row in rows:
        if row.operator == "matmul" and row.precision is not None:
            best[row.precision] = max(best.get(row.precision, 0.0), row.flops / row.time_s)
    return best


def by_class(rows: Sequence[KernelRow]) -> Mapping[str, list[KernelRow]]:
    """The rows of each key of `efficiency`: products by precision, everything else by class."""
    found: dict[str, list[KernelRow]] = {}
    for row in rows:
        key = f"matmul.{row.precision}" if row.operator == "matmul" else row.operator
        found.setdefault(key, []).append(row)
    return found

"""A model's figures as text: what it consists of, what it keeps in memory, the work of a step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from simulator.report.wording import joined, percent
from simulator.study.model_question import Step
from simulator.study.show_model import LayerKind, ModelSheet, StepSheet
from simulator.units import format_bytes, format_count, format_number

_FLOP_UNITS = (("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9), ("MFLOP", 1e6), ("kFLOP", 1e3), ("FLOP", 1))
_HEADERS = ("operator", "times", "FLOPs", "dense", "moved", "FLOP/byte", "of FLOPs", "of bytes")


def print_model(sheet: ModelSheet, console: Console) -> None:
    """Print everything that is known of a model without running it."""
    console.print(Text(f"{sheet.name} ({sheet.family})", style="bold"))
    _print_table(console, ("", ""), list(_facts(sheet)), figures=())
    console.print()
    _print_table(console, ("layers", "which", "attention", "heads", "feed-forward"),
                 [_layer_cells(kind) for kind in sheet.layers], figures=(0,))  # fmt: skip
    console.print()
    _print_table(console, ("memory of", "parameters", "size", "share", "format"),
                 list(_memory_cells(sheet)), figures=(1, 2, 3))  # fmt: skip
    for step in sheet.steps:
        console.print()
        console.print(Text(_heading(step, sheet), style="bold"))
        rows = [*_operator_cells(step), _total_cells(step)]
        _print_table(console, _HEADERS, rows, figures=range(1, len(_HEADERS)))
    console.print()
    for line in legend(sheet):
        console.print(Text(line, style="dim"))


def format_flops(flops: float) -> str:
    """Three significant digits in decimal units.

    >>> format_flops(15_278_276_608), format_flops(0)
    ('15.3 GFLOP', '0 FLOP')
    """
    fitting = (each for each in _FLOP_UNITS if float(f"{flops / each[1]:.3g}") >= 1)
    unit, scale = next(fitting, _FLOP_UNITS[-1])
    return f"{format_number(flops / scale)} {unit}"


def step_text(step: Step) -> str:
    """What a step is, in words."""
    if step.name == "prefill":
        return f"one prompt of {step.new:,} tokens"
    if step.sequences == 1:
        return f"one token of a sequence with {step.context:,} tokens cached"
    return f"one token of each of {step.sequences:,} sequences with {step.context:,} tokens cached each"


def layers_text(layers: Sequence[int], most: int = 4) -> str:
    """Indices as ranges, the middle ones left out where there are many.

    >>> layers_text(range(32)), layers_text([0]), layers_text([0, 2, 4, 6, 8, 10])
    ('0..31', '0', '0, 2, ..., 10')
    >>> layers_text([0, 1, 3, 4, 6, 7])
    '0..1, 3..4, 6..7'
    """
    runs: list[list[int]] = []
    for layer in layers:
        if runs and runs[-1][-1] == layer - 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    texts = [str(run[0]) if len(run) == 1 else f"{run[0]}..{run[-1]}" for run in runs]
    return ", ".join(texts if len(texts) <= most else [*texts[:2], "...", texts[-1]])


def legend(sheet: ModelSheet) -> list[str]:
    """What the columns mean, and what they leave out."""
    counted = "the work done" if sheet.is_encoder else "the work under the causal mask"
    lines = [
        f"FLOPs: {counted}, which runs price; a multiply-add is two. Norms, activations, rotation and"
        " sampling are counted in bytes only.",
        "dense: FLOPs as torch's FlopCounterMode counts, attention as a full square of queries and keys.",
        "moved: bytes that the operator's kernels read and write in the device's memory; nothing stays in a"
        " cache between kernels.",
        "FLOP/byte: arithmetic intensity, FLOPs / moved bytes of this very step. Weights are read once for"
        " all tokens of a step, so it rises with their number.",
        "of FLOPs, of bytes: the operator's share of the step's FLOPs, and of its moved bytes.",
    ]
    if sheet.experts is not None:
        lines.append(
            "active experts: those of a layer's n that at least one token of the step goes through; expected,"
            " each token choosing k at random: n (1 - (1 - k/n)^tokens). Only their weights are read."
        )
    return lines


def _facts(sheet: ModelSheet) -> Iterator[tuple[str, str]]:
    yield "parameters", _counted(sheet.parameters)
    if sheet.experts is not None:
        chosen, count = sheet.experts
        active = _counted(sheet.active_parameters)
        yield "active parameters", f"{active}: {chosen} of {count} experts, and all else"
    tied = "; the head is the table of embeddings, counted once" if sheet.tied_head else ""
    yield "weights", f"{format_bytes(sheet.weights_bytes)} in {sheet.formats.weights}{tied}"
    cached = f"{sheet.kv_bytes_per_token:,} bytes a token in {sheet.formats.kv_cache}"
    yield "KV cache", "none: an encoder" if sheet.is_encoder else cached
    if sheet.state_bytes_per_sequence:
        size = f"{sheet.state_bytes_per_sequence:,} bytes a sequence in {sheet.formats.activations}"
        yield "state", f"{size}, whatever its length"
    yield "layers", sheet.layers_summary


def _counted(parameters: int) -> str:
    """`8,030,261,248 (8.03 billion)`."""
    short = format_count(parameters)
    return f"{parameters:,} ({short})" if short[-1].isalpha() else f"{parameters:,}"


def _layer_cells(kind: LayerKind) -> tuple[str, ...]:
    return str(len(kind.layers)), layers_text(kind.layers), kind.attention, kind.heads, kind.feed_forward


def _memory_cells(sheet: ModelSheet) -> Iterator[tuple[str, ...]]:
    for row in sheet.memory:
        role = f"{row.role}, also the head" if row.role == "embedding" and sheet.tied_head else row.role
        share = percent(row.weights_bytes / sheet.weights_bytes)
        yield role, f"{row.parameters:,}", format_bytes(row.weights_bytes), share, joined(row.formats)
    yield "all", f"{sheet.parameters:,}", format_bytes(sheet.weights_bytes), percent(1), ""


def _heading(step: StepSheet, sheet: ModelSheet) -> str:
    name = f"{step.step.name.capitalize()}: {step_text(step.step)}"
    if sheet.experts is None:
        return name
    return f"{name}; {format_number(step.active_experts)} of {sheet.experts[1]} experts of a layer active"


def _operator_cells(step: StepSheet) -> Iterator[tuple[str, ...]]:
    for row in step.rows:
        work, shares = row.work, (percent(share) for share in step.shares(row))
        has_flops = work.flops > 0
        yield (
            row.operator, f"{row.times}", format_flops(work.flops) if has_flops else "-",
            format_flops(work.dense_flops) if has_flops else "-", format_bytes(work.moved_bytes),
            format_number(work.intensity_flops_per_byte) if has_flops else "-", *shares,
        )  # fmt: skip


def _total_cells(step: StepSheet) -> tuple[str, ...]:
    total = step.total
    return (
        "all", str(sum(row.times for row in step.rows)), format_flops(total.flops),
        format_flops(total.dense_flops), format_bytes(total.moved_bytes),
        format_number(total.intensity_flops_per_byte), percent(1), percent(1),
    )  # fmt: skip


def _print_table(
    console: Console, headers: Sequence[str], rows: Sequence[Sequence[str]], figures: Sequence[int]
) -> None:
    table = Table(box=None, pad_edge=False, show_header=any(headers))
    for number, header in enumerate(headers):
        justify: Literal["left", "right"] = "right" if number in figures else "left"
        table.add_column(Text(header), overflow="fold", no_wrap=number == 0, justify=justify)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)

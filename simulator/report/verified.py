"""What `verify` found, as a table."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from simulator.specs.weight_formats import WEIGHT_FORMATS
from simulator.study.compare import LOGITS_TOLERANCE, Verified
from simulator.study.verify_all import tallies

HEADERS = ("machine", "model", "placement", "status", "weights", "steps", "tasks", "tokens", "preempted",
           "logits differ by", "FLOPs", "bytes over links")  # fmt: skip


def print_verified(rows: Sequence[Verified], console: Console) -> None:
    """A row for each placement, then what differs, then the count of mismatches."""
    table = Table(box=None, pad_edge=False)
    for header in HEADERS:
        is_text = header in HEADERS[:5]
        table.add_column(Text(header), no_wrap=True, justify="left" if is_text else "right")
    for row in rows:
        style = {"ok": "green", "mismatch": "bold red"}.get(row.status, "yellow")
        counts = (row.steps, row.tasks, row.tokens, row.preemptions)
        difference = "-" if row.logits_difference is None else f"{row.logits_difference:.1e}"
        table.add_row(
            Text(row.machine), Text(row.model), Text(row.placement), Text(row.status, style),
            Text(_weights(row)),
            *(Text(f"{count:,}") for count in counts), Text(difference), Text(f"{row.flops:,}"),
            Text(f"{row.link_bytes:,}"),
        )  # fmt: skip
    console.print(table)
    for row in rows:
        for mismatch in row.mismatches:
            console.print(Text(f"{row.machine}, {row.model}, {row.placement}: {mismatch}"))
    console.print(Text(summary(rows)))


TALLY_HEADERS = ("strategy", "models", "carried out", "not placed", "mismatches", "steps", "tasks", "tokens",
                 "logits differ by", "in all of them")  # fmt: skip


def print_all_verified(rows: Sequence[Verified], console: Console) -> None:
    """A row for each strategy, then what differs, and the count; `--json` has every row, with the reasons of
    those that were not placed."""
    table = Table(box=None, pad_edge=False)
    for header in TALLY_HEADERS:
        justify = "left" if header in ("strategy", "in all of them") else "right"
        table.add_column(Text(header), no_wrap=True, justify=justify)  # type: ignore[arg-type]
    for tally in tallies(rows):
        counts = (tally.models, tally.carried_out, tally.not_placed, tally.mismatches, tally.steps,
                  tally.tasks, tally.tokens)  # fmt: skip
        style = "bold red" if tally.mismatches else "green"
        table.add_row(
            Text(tally.strategy, style), *(Text(f"{count:,}") for count in counts),
            Text(f"{tally.logits_difference:.1e}"), Text(", ".join(tally.kinds)),
        )  # fmt: skip
    console.print(table)
    for row in rows:
        for mismatch in row.mismatches if row.status == "mismatch" else ():
            console.print(Text(f"{row.machine}, {row.model}, {row.placement}: {mismatch}"))
    console.print(Text(summary(rows)))


def _weights(row: Verified) -> str:
    """What the weights were in, and what it stands for where quantised ones are known by size only."""
    form = WEIGHT_FORMATS.get(row.weights_asked)
    is_plain = form is not None and not form.scale_bytes
    stands_for_itself = is_plain or row.weights == row.weights_asked
    return row.weights if stands_for_itself else f"{row.weights} for {row.weights_asked}"


def summary(rows: Sequence[Verified]) -> str:
    """How many placements were carried out, and how many differ."""
    statuses = ("ok", "mismatch", "not placed")
    counted = {status: sum(row.status == status for row in rows) for status in statuses}
    carried_out = counted["ok"] + counted["mismatch"]
    left_out = f", {counted['not placed']} not placed" if counted["not placed"] else ""
    placements = "1 placement" if carried_out == 1 else f"{carried_out} placements"
    head = f"{counted['mismatch']} mismatches in {placements} carried out in float64{left_out}"
    if counted["mismatch"]:
        return f"{head}."
    return (
        f"{head}: tokens equal to plain generation's, logits within {LOGITS_TOLERANCE:g}, FLOPs of every "
        "task, bytes over every link and peak bytes in every memory equal to the plan's."
    )

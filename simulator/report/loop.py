"""The token loop as a table."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from simulator.study.generate import Generated
from simulator.units import format_seconds


def print_loop(generated: Generated, console: Console) -> None:
    """What was said, and a row a token: what was chosen, when it was there, when a client of each machine
    would have it."""
    counts = f"{generated.prompt_tokens} prompt tokens, {len(generated.tokens)} generated"
    console.print(Text(f"{generated.model}: {counts}. {_about_weights(generated)}"))
    if generated.weights is not None:
        said = Text.assemble(_readable(generated.prompt), (_readable(generated.text), "bold"))
        console.print("", said, "", sep="\n", soft_wrap=True)
    console.print(_table(generated))
    for sentence in _about_times(generated):
        console.print(Text(sentence))


def _table(generated: Generated) -> Table:
    machines = list(generated.tokens[0].clock_s) if generated.tokens else []
    table = Table(box=None, pad_edge=False)
    for header in ("#", "phase", "token", "text", "p", "measured here", *machines):
        is_text = header in ("phase", "text")
        table.add_column(Text(header), no_wrap=True, justify="left" if is_text else "right")
    for token in generated.tokens:
        chosen = (str(token.token_id), repr(token.text), f"{token.probability:.2f}")
        times = (token.measured_s, *(token.clock_s[machine] for machine in machines))
        cells = (str(token.number), token.phase, *chosen, *map(format_seconds, times))
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _readable(text: str) -> str:
    """`text` without what would tell a terminal to do something else than write."""
    return "".join(each if each.isprintable() or each in "\n\t" else "\ufffd" for each in text)


def _about_weights(generated: Generated) -> str:
    if generated.weights is None:
        return "The weights are random: the loop is real, the words mean nothing."
    return f"Weights: {generated.weights}."


def _about_times(generated: Generated) -> Iterator[str]:
    cpu, threads = generated.measured_on["cpu"], generated.measured_on["threads"]
    where = f"{cpu}, {threads} {'thread' if threads == 1 else 'threads'}"
    yield (
        f"Measured here: PyTorch in {generated.computed_in} on {where}, from the prompt's ids on; without "
        "loading, nor a first pass that brings the weights into memory."
    )
    also = " too" if generated.precision == generated.computed_in else ""
    yield (
        f"Machines are simulated, in {generated.precision}{also}: from sending the prompt until the client "
        "has the token, the machine's first accelerator serving nobody else."
    )
    for machine, (low_s, high_s) in generated.last_token_s.items():
        between = f"{format_seconds(low_s)} and {format_seconds(high_s)}"
        yield f"{machine}: some figures are uncertain; its last token comes between {between}."
    for machine, reason in generated.not_placed.items():
        yield f"{machine} cannot run it: {reason}"

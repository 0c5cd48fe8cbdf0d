"""The token loop as a table."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from simulator.study.generate import Generated
from simulator.units import format_seconds


def print_loop(generated: Generated, console: Console) -> None:
    """A row for each token: what was chosen, and when a client of each machine would have it."""
    counts = f"{generated.prompt_tokens} prompt tokens, {len(generated.tokens)} generated"
    meaning = "The weights are random: the loop is real, the words mean nothing."
    console.print(Text(f"{generated.model}: {counts}. {meaning}"))
    machines = list(generated.tokens[0].clock_s) if generated.tokens else []
    table = Table(box=None, pad_edge=False)
    for header in ("#", "phase", "token", "text", "p", *machines):
        is_text = header in ("phase", "text")
        table.add_column(Text(header), no_wrap=True, justify="left" if is_text else "right")
    for token in generated.tokens:
        times = (Text(format_seconds(token.clock_s[machine])) for machine in machines)
        chosen = (str(token.token_id), repr(token.text), f"{token.probability:.2f}")
        table.add_row(str(token.number), token.phase, *(Text(cell) for cell in chosen), *times)
    console.print(table)
    console.print(Text(
        "Times are simulated: from sending the prompt until the client has the token, the machine's first "
        "accelerator serving nobody else."
    ))  # fmt: skip
    for machine, (low_s, high_s) in generated.last_token_s.items():
        between = f"{format_seconds(low_s)} and {format_seconds(high_s)}"
        console.print(Text(f"{machine}: some figures are uncertain; its last token comes between {between}."))
    for machine, reason in generated.not_placed.items():
        console.print(Text(f"{machine} cannot run it: {reason}"))

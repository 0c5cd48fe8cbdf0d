"""What all commands share: how they print, how they tell of progress and of a person's mistake."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]


@contextmanager
def told_plainly() -> Iterator[None]:
    """A user's mistake becomes a message and exit code 2, never a traceback."""
    from simulator.errors import SimulatorError

    try:
        yield
    except SimulatorError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    except BrokenPipeError:
        sys.stderr.close()
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def print_json(document: Any) -> None:
    print(json.dumps(document, indent=2, allow_nan=False))


def console() -> Console:
    from simulator.report.table import console_for

    return console_for(sys.stdout)


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None] | None]:
    """A bar on a terminal's standard error; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def progress_of_seconds(what: str) -> Iterator[Callable[[int, int, str], None] | None]:
    """A bar that also says what is under way."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total, now: bar.update(
            task, completed=done, total=total, description=f"{what}: {now:34.34}"
        )

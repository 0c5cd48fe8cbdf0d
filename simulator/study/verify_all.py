"""`verify --all`: every scenario that ships for `verify`, with them every strategy on every small model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from simulator.errors import InputError, Problem
from simulator.placement.strategies import STRATEGIES
from simulator.specs.catalogue import Catalogue
from simulator.specs.scenario import load_scenario
from simulator.study.compare import KINDS, ROUNDS, Verified
from simulator.study.side_by_side import Progress, carry_out
from simulator.study.verify import verify_run

PATTERN = "tiny-*.yaml"
"""Names of scenarios whose models are small enough to be carried out."""


@dataclass(frozen=True)
class Tally:
    """What came of all placements of one strategy."""

    strategy: str
    models: int
    """Different ones that it was carried out on."""
    carried_out: int
    not_placed: int
    mismatches: int
    steps: int
    tasks: int
    tokens: int
    logits_difference: float
    """The largest."""
    kinds: tuple[str, ...]
    """Kinds of chunks, and of batches, in all of its placements of decoders."""


def verify_all(progress: Progress | None = None) -> tuple[Verified, ...]:
    """Carry out every placement of every scenario for small models that ships; raises InputError if a
    strategy is in none of them, or some of its placements miss a kind of chunk or batch."""
    folder = Catalogue().roots[-1] / "scenarios"
    paths = sorted(folder.glob(PATTERN))
    runs = [run for path in paths for run in load_scenario(path, STRATEGIES).runs]
    rows = tuple(carry_out(verify_run, runs, is_small=False, progress=progress))
    _check_that_all_strategies_are_there(folder, rows)
    _check_that_all_kinds_are_there(folder, rows)
    _check_that_all_rounds_are_there(folder, rows)
    return rows


def _check_that_all_strategies_are_there(folder: Path, rows: Sequence[Verified]) -> None:
    known = {str(kind.model_fields["strategy"].default) for kind in STRATEGIES}
    missing = sorted(known - {row.strategy for row in rows if row.status != "not placed"})
    if missing:
        advice = f"no scenario {PATTERN} here carries it out; add a placement to one"
        raise InputError([Problem(folder, key="strategy", value=name, advice=advice) for name in missing])


def _check_that_all_kinds_are_there(folder: Path, rows: Sequence[Verified]) -> None:
    """Each strategy must meet whole prompts, pieces of them, decode, and batches of unlike lengths."""
    advice = f"not in every decoder's placement of it in {PATTERN}; ask for more or longer requests"
    lacking = [
        Problem(folder, key=f"strategy {tally.strategy}", value=kind, advice=advice)
        for tally in tallies(rows)
        for kind in KINDS
        if kind not in tally.kinds
    ]
    if lacking:
        raise InputError(lacking)


def _check_that_all_rounds_are_there(folder: Path, rows: Sequence[Verified]) -> None:
    """Where tokens are proposed, all, some and none must be accepted in some round."""
    met = {each for row in rows for each in row.rounds}
    advice = f"in no verification of proposed tokens of {PATTERN}; choose another drafter"
    missing = [each for each in ROUNDS if met and each not in met]
    lacking = [Problem(folder, key="rounds", value=each, advice=advice) for each in missing]
    if lacking:
        raise InputError(lacking)


def tallies(rows: Sequence[Verified]) -> tuple[Tally, ...]:
    """What came of each strategy, in the order in which they first appear."""
    found = []
    for strategy in dict.fromkeys(row.strategy for row in rows):
        own = [row for row in rows if row.strategy == strategy]
        done = [row for row in own if row.status != "not placed"]
        decoders = [set(row.kinds) for row in done if not row.is_encoder]
        found.append(Tally(
            strategy,
            models=len({row.model for row in done}),
            carried_out=len(done),
            not_placed=len(own) - len(done),
            mismatches=sum(row.status == "mismatch" for row in done),
            steps=sum(row.steps for row in done),
            tasks=sum(row.tasks for row in done),
            tokens=sum(row.tokens for row in done),
            logits_difference=max((row.logits_difference or 0.0 for row in done), default=0.0),
            kinds=tuple(sorted(set.intersection(*decoders))) if decoders else (),
        ))  # fmt: skip
    return tuple(found)

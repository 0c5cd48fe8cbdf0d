"""What the tensors of a step can take up of each memory at most, whatever a scheduler puts into it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import permutations

from simulator.graph.shape import Chunk, split_evenly
from simulator.placement.liveness import Liveness
from simulator.placement.plan import Plan
from simulator.placement.program import Program
from simulator.specs.engine import Engine

MANY_TOKENS = 2**20
"""Enough that all else is small beside them."""

Microbatches = Sequence[tuple[Chunk, ...]]
"""The chunks of one step, a tuple of them for each microbatch."""

Spread = Mapping[int, int]
"""Which of some batches each microbatch gets; those that are not there get nothing."""


def largest_step(program: Program, engine: Engine) -> dict[str, Counter[str]]:
    """By memory, what the tensors of the largest step can take up at once, by kind.

    Sizes are linear in what each microbatch gets, so they are most at a corner: one of them gets all, and
    that is prompts alone, as much decode as may be, or decode with a prompt beside it; or one of them gets
    the rows and another the tokens.
    """
    placement, batches = program.placement, _corners(engine, program)
    books = _books(program, placement.microbatches)
    if placement.by_sequence:
        return _fullest(books, [(batch,) * program.rank_groups for batch in batches])
    numbers = range(placement.microbatches)
    steps: list[Spread] = [{number: batch} for number in numbers for batch in range(len(batches))]
    for batch in _rows_and_tokens(engine):
        rows, tokens = len(batches), len(batches) + 1
        batches += [batch[:-1], batch[-1:]]
        steps += [{one: rows, other: tokens} for one, other in permutations(numbers, 2)]
    chosen = {number: steps[number] for book in books for number in _candidates(book, batches, steps)}
    return _fullest(books, [
        tuple(batches[step[number]] if number in step else () for number in numbers)
        for step in chosen.values()
    ])  # fmt: skip


def largest_of(program: Program, steps: Sequence[Microbatches]) -> dict[str, Counter[str]]:
    """The same of some steps that are known beforehand, all of equally many microbatches."""
    return _fullest(_books(program, len(steps[0])), steps)


def _candidates(book: Liveness, batches: Sequence[tuple[Chunk, ...]], steps: Sequence[Spread]) -> set[int]:
    """Which steps are the fullest, memory by memory. What microbatches take adds up, so that many ways to
    spread a few batches cost little more than one."""
    nothing, taken = book.by_microbatch(()), [book.by_microbatch(batch) for batch in batches]
    most: dict[str, tuple[int, int]] = {}
    for number, step in enumerate(steps):
        totals: Counter[str] = Counter()
        for place, idle in nothing.items():
            more = (taken[batch][place][one] - idle[one] for one, batch in step.items())
            totals[place[0]] += int(sum(more, start=idle.sum(axis=0)).max())
        for memory, total in totals.items():
            most[memory] = max(most.get(memory, (-1, 0)), (total, -number))
    return {-number for _, number in most.values()}


def _corners(engine: Engine, program: Program) -> list[tuple[Chunk, ...]]:
    """Batches that fill a step's limits each in its own way."""
    tokens = engine.scheduler.max_num_batched_tokens
    rows = min(engine.scheduler.max_num_seqs, tokens)
    if program.is_drafter:  # of each sequence it may have to make up for a token
        tokens += rows
    if program.placement.speculation is not None:
        return [_verified(tokens, rows, program.placement.speculation.tokens)]
    prompts = tuple(Chunk(index, 0, new, True) for index, new in enumerate(split_evenly(tokens, rows)))
    decodes = tuple(Chunk(index, 0, 1, True) for index in range(rows))
    return [prompts, decodes, _rows_and_tokens(engine)[0]]


def _verified(tokens: int, sequences: int, proposed: int) -> tuple[Chunk, ...]:
    """As many tokens as a step takes, and as many of them scored as may be."""
    rows = min(tokens, sequences * (proposed + 1))
    news = split_evenly(tokens, sequences)
    scored = split_evenly(rows, sequences)
    pairs = zip(news, scored, strict=True)
    return tuple(Chunk(index, 0, new, True, rows=count) for index, (new, count) in enumerate(pairs))


def _rows_and_tokens(engine: Engine) -> list[tuple[Chunk, ...]]:
    """Batches of as many short chunks as may be, of decode or of prompts, and a prompt that takes all tokens
    that are left."""
    tokens = engine.scheduler.max_num_batched_tokens
    found = []
    for new in (1, 2):
        short = min(engine.scheduler.max_num_seqs - 1, (tokens - 1) // new)
        chunks = [Chunk(index, 0, new, True) for index in range(short)]
        found.append((*chunks, Chunk(short, 0, tokens - short * new, True)))
    return found


def _books(program: Program, count: int, window: int | None = None) -> list[Liveness]:
    """What may be alive together in each kind of step of so many microbatches.

    window: instead of the model's own, for layers that have one.
    """
    streaming, cold = program.placement.streaming, program.template(count)
    templates = [cold]
    if streaming is not None and streaming.across_steps:
        templates.append(program.template(count, warm=True))
    if window is not None:
        traits = replace(program.traits, sliding_window=window)
        templates = [replace(template, traits=traits) for template in templates]
    return [Liveness(template, cold.tensors) for template in templates]


def _fullest(
    books: Sequence[Liveness], steps: Sequence[Microbatches]
) -> defaultdict[str, Counter[str]]:
    """Of some steps the one that may take most, memory by memory."""
    found: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for book in books:
        for parts in steps:
            for memory, kinds in book.most(Plan(book.template, tuple(parts))).items():
                if kinds.total() > found[memory].total():
                    found[memory] = kinds
    return found


def fetched_bytes_per_token(program: Program) -> Counter[str]:
    """Of each memory, bytes that a cached token takes there while copies of it are attended to, all layers
    together whose copies can be there at once; nothing where blocks lie beside what attends to them. A
    sequence may be shorter than any sliding window, so windows save nothing."""
    if program.placement.kv_home is None:
        return Counter()
    most: Counter[str] = Counter()
    books = _books(program, 1, window=2 * MANY_TOKENS)
    for new in (1, 2):  # decode and prefill may attend in different places
        few, many = (_fullest(books, [((Chunk(0, context, new, True),),)]) for context in (0, MANY_TOKENS))
        for memory, kinds in many.items():
            growth = kinds["fetched_kv"] - few[memory]["fetched_kv"]
            most[memory] = max(most[memory], -(-growth // MANY_TOKENS))
    return most

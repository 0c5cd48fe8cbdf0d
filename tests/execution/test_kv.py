"""KV blocks as dictionaries would have them: what is scattered is gathered again, and nothing else is touched."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from simulator.execution import kv
from simulator.graph.shape import Chunk

PLANES, HEADS, WIDTH, BLOCK = 2, 3, 2, 4


@st.composite
def batches(draw: st.DrawFn) -> tuple[int, list[Chunk]]:
    """Some sequences with blocks of their own, out of a slab with some to spare, in any order."""
    sizes = draw(st.lists(st.tuples(st.integers(0, 11), st.integers(1, 9)), min_size=1, max_size=4))
    counts = [-(-(context + new) // BLOCK) for context, new in sizes]
    free = draw(st.permutations(range(sum(counts) + 2)))
    chunks = []
    for number, ((context, new), count) in enumerate(zip(sizes, counts, strict=True)):
        mine, free = free[:count], free[count:]
        chunks.append(Chunk(number, context, new, True, tuple(mine)))
    return sum(counts) + 2, chunks


def tokens(count: int, start: float) -> torch.Tensor:
    """`count` tokens `[planes, t, g, d]`, no two numbers alike."""
    size = PLANES * count * HEADS * WIDTH
    return torch.arange(start, start + size, dtype=torch.float64).reshape(PLANES, count, HEADS, WIDTH)


def filled(blocks: int, chunks: list[Chunk]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """A slab with what was there before of each sequence, and that by sequence."""
    slab = kv.empty_slab(PLANES, blocks, BLOCK, HEADS, WIDTH, torch.float64)
    before = [tokens(chunk.context, 1000.0 * (1 + chunk.sequence)) for chunk in chunks]
    for chunk, cached in zip(chunks, before, strict=True):
        for position in range(chunk.context):
            slab[:, chunk.blocks[position // BLOCK], position % BLOCK] = cached[:, position]
    return slab, before


@given(batches())
def test_what_is_gathered_is_what_lies_in_the_blocks(batch: tuple[int, list[Chunk]]):
    slab, before = filled(*batch)
    assert torch.equal(kv.gather(slab, batch[1], lambda context: 0), torch.cat(before, dim=1))


@given(batches(), st.integers(0, 12))
def test_a_window_leaves_the_oldest_tokens_out(batch: tuple[int, list[Chunk]], window: int):
    """Of `context` cached tokens the last `window`, of fewer all."""
    slab, before = filled(*batch)
    found = kv.gather(slab, batch[1], lambda context: max(0, context - window))
    kept = [cached[:, max(0, cached.shape[1] - window) :] for cached in before]
    assert torch.equal(found, torch.cat(kept, dim=1))


@given(batches())
def test_new_tokens_are_gathered_by_the_next_step(batch: tuple[int, list[Chunk]]):
    blocks, chunks = batch
    slab, before = filled(blocks, chunks)
    new = tokens(sum(chunk.new for chunk in chunks), 9000.0)
    kv.scatter(slab, chunks, new)
    later = [Chunk(c.sequence, c.context + c.new, 1, True, c.blocks) for c in chunks]
    expected = [
        part for cached, own in zip(before, new.split([c.new for c in chunks], dim=1), strict=True)
        for part in (cached, own)
    ]  # fmt: skip
    assert torch.equal(kv.gather(slab, later, lambda context: 0), torch.cat(expected, dim=1))


@given(batches())
def test_nothing_but_new_tokens_places_are_written(batch: tuple[int, list[Chunk]]):
    blocks, chunks = batch
    slab, _ = filled(blocks, chunks)
    untouched = slab.clone()
    kv.scatter(slab, chunks, tokens(sum(chunk.new for chunk in chunks), 9000.0))
    for chunk in chunks:
        for position in range(chunk.context, chunk.context + chunk.new):
            place = (slice(None), chunk.blocks[position // BLOCK], position % BLOCK)
            slab[place] = untouched[place] = 0.0
    assert torch.equal(slab.nan_to_num(-1), untouched.nan_to_num(-1))


def test_no_sequences_are_no_tokens():
    slab = kv.empty_slab(PLANES, 2, BLOCK, HEADS, WIDTH, torch.float64)
    assert kv.gather(slab, [], lambda context: 0).shape == (PLANES, 0, HEADS, WIDTH)
    kv.scatter(slab, [], tokens(0, 0.0))
    assert slab.isnan().all()

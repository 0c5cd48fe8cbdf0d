"""KV blocks as real tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from simulator.graph.shape import Chunk


def empty_slab(
    planes: int, blocks: int, block_tokens: int, heads: int, width: int, dtype: torch.dtype
) -> Tensor:
    """All blocks of one layer `[planes, blocks, block_tokens, g, d]` (keys and values, or one plane for
    both), full of NaN: what is read before it is written shows in every logit."""
    return torch.full((planes, blocks, block_tokens, heads, width), float("nan"), dtype=dtype)


def slots(chunk_blocks: Sequence[int], block_tokens: int, start: int, end: int) -> tuple[Tensor, Tensor]:
    """Block and offset of each token of a sequence from `start` to `end`."""
    positions = torch.arange(start, end)
    table = torch.tensor(chunk_blocks, dtype=torch.int64)
    return table[positions // block_tokens], positions % block_tokens


def write(slab: Tensor, chunk: Chunk, *planes_ngd: Tensor) -> None:
    """Cache what a chunk's new tokens leave behind, plane by plane."""
    block_n, offset_n = slots(chunk.blocks, slab.shape[2], chunk.context, chunk.context + chunk.new)
    for plane, x_ngd in enumerate(planes_ngd):
        slab[plane, block_n, offset_n] = x_ngd.to(slab.dtype)


def read(slab: Tensor, blocks: Sequence[int], tokens: int, first: int = 0) -> tuple[Tensor, ...]:
    """Each plane `[s, g, d]` of a sequence's tokens from `first` to `tokens`."""
    block_s, offset_s = slots(blocks, slab.shape[2], first, tokens)
    return tuple(plane[block_s, offset_s] for plane in slab)


def gather(slab: Tensor, chunks: Sequence[Chunk], first_key: Callable[[int], int]) -> Tensor:
    """The cached tokens of some sequences `[planes, s, g, d]`, one sequence after the other, of each those
    from its first key on."""
    rows = [slab[:, *slots(c.blocks, slab.shape[2], first_key(c.context), c.context)] for c in chunks]
    return torch.cat([slab[:, 0, :0], *rows], dim=1)


def scatter(slab: Tensor, chunks: Sequence[Chunk], new_ptgd: Tensor) -> None:
    """Put the new tokens of some chunks into their blocks."""
    for chunk, new_pngd in zip(chunks, new_ptgd.split([c.new for c in chunks], dim=1), strict=True):
        write(slab, chunk, *new_pngd)

"""KV blocks as real tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from simulator.graph.shape import Chunk


def empty_slab(blocks: int, block_tokens: int, heads: int, head_dim: int, dtype: torch.dtype) -> Tensor:
    """Keys and values of all blocks, `[2, blocks, block_tokens, g, d]`, full of NaN: what is read before it
    is written shows in every logit."""
    return torch.full((2, blocks, block_tokens, heads, head_dim), float("nan"), dtype=dtype)


def slots(chunk_blocks: Sequence[int], block_tokens: int, start: int, end: int) -> tuple[Tensor, Tensor]:
    """Block and offset of each token of a sequence from `start` to `end`."""
    positions = torch.arange(start, end)
    table = torch.tensor(chunk_blocks, dtype=torch.int64)
    return table[positions // block_tokens], positions % block_tokens


def write(slab: Tensor, chunk: Chunk, k_ngd: Tensor, v_ngd: Tensor) -> None:
    """Cache the keys and values of a chunk's new tokens."""
    block_n, offset_n = slots(chunk.blocks, slab.shape[2], chunk.context, chunk.context + chunk.new)
    slab[0, block_n, offset_n] = k_ngd.to(slab.dtype)
    slab[1, block_n, offset_n] = v_ngd.to(slab.dtype)


def read(slab: Tensor, blocks: Sequence[int], tokens: int) -> tuple[Tensor, Tensor]:
    """Keys and values `[s, g, d]` of a sequence's first `tokens` tokens."""
    block_s, offset_s = slots(blocks, slab.shape[2], 0, tokens)
    return slab[0, block_s, offset_s], slab[1, block_s, offset_s]

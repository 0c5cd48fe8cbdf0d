"""Rings and gathers as they are really done, against sums, concatenation and the counts of the plan."""

from collections import Counter
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from simulator.execution.collectives import COLLECTIVES
from simulator.execution.stores import Stores
from simulator.graph.shape import Amount
from simulator.placement.plan import Task, Tensor
from simulator.placement.traffic import ring_link_elements
from tests.placed import machine


def put(stores: Stores, device: str, name: str, tensor: torch.Tensor) -> None:
    stores.reserve(device, name, tensor.numel() * tensor.element_size())
    stores.put(device, name, tensor)


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("width", [12, 13, 14, 15])
def test_a_ring_adds_up_and_sends_what_the_plan_counts(ranks: int, width: int):
    generator = torch.Generator().manual_seed(width)
    stores = Stores(machine("hgx-h100-8"))
    devices = [f"gpu-{rank}" for rank in range(ranks)]
    parts = [torch.randint(-9, 9, (5, width), generator=generator).double() for _ in devices]
    for device, part in zip(devices, parts, strict=True):
        put(stores, device, f"part@{device}", part.clone())
    writes = tuple(Tensor(f"sum@{device}", device, Amount()) for device in devices)
    task = Task("ring", "collective", "all_reduce", devices[0], tuple(devices),
                tuple(f"part@{device}" for device in devices), writes)  # fmt: skip
    results = COLLECTIVES["all_reduce"](stores, task, [5])
    assert all(torch.equal(result, sum(parts)) for result in results)
    for rank, elements in enumerate(ring_link_elements(width, ranks)):
        assert stores.link_bytes[f"gpu-{rank}->fabric"] == 5 * 8 * elements


def test_a_gather_joins_parts_in_rank_order():
    stores = Stores(machine("hgx-h100-8"))
    devices = ("gpu-2", "gpu-0", "gpu-1")
    parts = [torch.full((2, width), float(width)) for width in (3, 2, 2)]
    for device, part in zip(devices, parts, strict=True):
        put(stores, device, f"logits@{device}", part)
    task = Task("gather", "collective", "gather_logits", "gpu-2", devices,
                tuple(f"logits@{device}" for device in devices), ())  # fmt: skip
    (joined,) = COLLECTIVES["gather_logits"](stores, task, [2])
    assert torch.equal(joined, torch.cat(parts, dim=-1))
    assert stores.link_bytes["fabric->gpu-2"] == 2 * (2 + 2) * 4
    assert all(a != b for a, b in pairwise(devices))


# --- tokens of every rank -----------------------------------------------------------------------------------

rows_of_ranks = st.lists(st.integers(0, 5), min_size=2, max_size=5)


def normals(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(rows=rows_of_ranks, seed=st.integers(0, 9))
def test_every_rank_gets_all_tokens(rows: list[int], seed: int):
    """Two values at once, of different widths. By brute force: a piece goes from its rank past ranks - 1 links."""
    stores, ranks = Stores(machine("hgx-h100-8")), len(rows)
    devices = tuple(f"gpu-{rank}" for rank in range(ranks))
    values = {role: [normals(seed + rank, count, width) for rank, count in enumerate(rows)]
              for role, width in (("normed", 3), ("routing", 2))}  # fmt: skip
    for role, pieces in values.items():
        for device, piece in zip(devices, pieces, strict=True):
            put(stores, device, f"{role}@{device}", piece)
    reads = tuple(f"{role}@{device}" for role in values for device in devices)
    task = Task("gather", "collective", "all_gather_tokens", devices[0], devices, reads, ())
    results = COLLECTIVES["all_gather_tokens"](stores, task, rows)
    for pieces, gathered in zip(values.values(), (results[:ranks], results[ranks:]), strict=True):
        assert all(torch.equal(each, torch.cat(pieces)) for each in gathered)
    carried: Counter[int] = Counter()
    for start, count in enumerate(rows):
        for hop in range(ranks - 1):
            carried[(start + hop) % ranks] += count * (3 + 2) * 8
    assert {rank: stores.link_bytes[f"gpu-{rank}->fabric"] for rank in range(ranks)} == dict.fromkeys(range(ranks), 0) | carried


@given(rows=rows_of_ranks, seed=st.integers(0, 9))
def test_every_rank_gets_the_sum_of_its_own_tokens(rows: list[int], seed: int):
    """A sum starts with the neighbour of the rank it is for, and ends there, past ranks - 1 links."""
    stores, ranks = Stores(machine("hgx-h100-8")), len(rows)
    devices = tuple(f"gpu-{rank}" for rank in range(ranks))
    summands = [normals(seed + rank, sum(rows), 3) for rank in range(ranks)]
    for device, summand in zip(devices, summands, strict=True):
        put(stores, device, f"branch@{device}", summand)
    task = Task("scatter", "collective", "reduce_scatter_tokens", devices[0], devices,
                tuple(f"branch@{device}" for device in devices), ())  # fmt: skip
    results = COLLECTIVES["reduce_scatter_tokens"](stores, task, rows)
    for own, expected in zip(results, torch.stack(summands).sum(dim=0).split(rows), strict=True):
        assert torch.allclose(own, expected, rtol=0, atol=1e-12)
        assert own.shape == expected.shape
    carried: Counter[int] = Counter()
    for owner, count in enumerate(rows):
        for hop in range(1, ranks):
            carried[(owner + hop) % ranks] += count * 3 * 8
    assert {rank: stores.link_bytes[f"gpu-{rank}->fabric"] for rank in range(ranks)} == dict.fromkeys(range(ranks), 0) | carried

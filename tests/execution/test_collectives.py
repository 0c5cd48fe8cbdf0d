"""Rings and gathers as they are really done, against sums, concatenation and the counts of the plan."""

from itertools import pairwise

import pytest
import torch

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

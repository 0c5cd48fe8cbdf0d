"""FLOPs are counted as torch's own counter does, on forward passes of every small model and on single calls."""

import pytest
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from simulator.execution.flop_count import FlopCount
from simulator.execution.random_weights import random_transformer
from simulator.specs.catalogue import Catalogue
from tests.placed import model

TINY = [name for name in Catalogue().ids("models") if name.startswith("tiny-")]


@pytest.mark.parametrize("name", TINY)
def test_a_forward_pass_counts_as_torch_counts_it(name: str) -> None:
    network = random_transformer(model(name), 1, torch.float64)
    tokens = torch.arange(7) % model(name).vocab_size
    with torch.no_grad():
        with FlopCounterMode(display=False) as theirs:
            network(tokens)
        with FlopCount() as ours:
            network(tokens)
    assert ours.total == theirs.get_total_flops() > 0


@pytest.mark.parametrize(
    "work",
    [
        lambda: torch.ones(3, 4) @ torch.ones(4, 5),
        lambda: torch.ones(2, 3, 4) @ torch.ones(2, 4, 5),
        lambda: functional.linear(torch.ones(3, 4), torch.ones(5, 4), torch.ones(5)),
        lambda: torch.einsum("ab,bc->ac", torch.ones(3, 4), torch.ones(4, 5)),
        lambda: torch.ones(4).dot(torch.ones(4)),
        lambda: torch.ones(4, 4).exp() + 1,
        lambda: functional.conv1d(torch.ones(1, 2, 9), torch.ones(3, 2, 4)),
    ],
)
def test_single_calls_count_as_torch_counts_them(work) -> None:
    with FlopCounterMode(display=False) as theirs:
        work()
    with FlopCount() as ours:
        work()
    assert ours.total == theirs.get_total_flops()

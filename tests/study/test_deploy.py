"""Transitions of one token, in closed form."""

import pytest

from simulator.placement.placement import Placement
from simulator.study.deploy import transitions_per_token
from tests.placed import deployed, stages

LAYERS = 4
RANKS = {2: "gpu-0+gpu-1", 4: "gpu-0+gpu-1+gpu-2+gpu-3"}


def transitions(placement: Placement) -> tuple[int, int]:
    """Between accelerators, and from or to the host."""
    counted = transitions_per_token(deployed(placement, "tiny-mixtral").program)
    at_host = sum(count for pair, count in counted.items() if "host" in pair)
    return sum(counted.values()) - at_host, at_host


@pytest.mark.parametrize("degree", RANKS)
def test_ranks_that_share_all_tokens(degree):
    """All-reduces after the embedding and twice a layer, then logits to the first rank; ids to every rank."""
    placement = Placement("ranks", stages((RANKS[degree], LAYERS)), whole_experts=True)
    assert transitions(placement) == (degree * (2 * LAYERS + 1) + degree - 1, degree + 1)


@pytest.mark.parametrize("degree", RANKS)
def test_ranks_with_sequences_of_their_own(degree):
    """Once round before the experts of each layer and once after; ids to one rank alone."""
    placement = Placement("ranks", stages((RANKS[degree], LAYERS)), degree, whole_experts=True, by_sequence=True)
    assert transitions(placement) == (degree * 2 * LAYERS, 2)


def test_microbatches_do_not_add_to_a_token():
    whole, cut = (Placement("stages", stages(("gpu-0", 2), ("gpu-1", 2)), count) for count in (1, 4))
    assert transitions(whole) == transitions(cut) == (1, 2)

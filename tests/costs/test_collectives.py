"""Collectives: a ring where nothing is known, else the quickest of the ways a link states."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from simulator.costs.transfers import (
    COLLECTIVE_DEFAULTS,
    collective_bytes_per_s,
    collective_s,
    collective_ways,
    collectives_of,
    ring_share,
    rounds,
)
from simulator.specs.catalogue import Catalogue
from simulator.specs.hardware import ALGORITHMS, Algorithm, Collective, Collectives, Link
from tests import tiny

KIB = 1024
MIB = 1024 * KIB


def way(latency_s: float = 5e-6, efficiency: float = 0.5, **more: Any) -> Collective:
    return Collective(latency_s=latency_s, efficiency=efficiency, **more)


def link(*library: Collective, engine: tuple[Collective, ...] = (), bandwidth: float = 100.0) -> Link:
    return tiny.link(bandwidth=bandwidth, collective=Collectives(engine=engine, library=library))


# -- closed forms ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_a_link_without_figures_carries_out_rings_of_plain_transfers(ranks: int) -> None:
    """Ring all-reduce: 2 (n - 1) steps, each with latency a and S / n bytes at rate b (Patarasuk and Yuan
    2009, doi:10.1016/j.jpdc.2008.09.002); to gather or scatter takes half of them."""
    plain = tiny.link(bandwidth=1e8, latency_s=3e-6, efficiency=0.5)
    step_s = 3e-6 + 6000 / ranks / 5e7
    assert collective_s(plain, "all_reduce", ranks, 6000) == pytest.approx(2 * (ranks - 1) * step_s)
    for algorithm in ALGORITHMS[1:]:
        assert collective_s(plain, algorithm, ranks, 6000) == pytest.approx((ranks - 1) * step_s)


def test_the_slowest_link_sets_the_latency_of_a_plain_ring() -> None:
    links = [tiny.link(latency_s=2e-6), tiny.link(latency_s=5e-6)]
    (only,) = collective_ways(links, "all_reduce", 4)
    assert only.latency_s == pytest.approx(6 * 5e-6)
    assert collective_ways([], "all_reduce", 4)[0].latency_s == 0


def test_a_way_by_hand() -> None:
    """1 us and 6 rounds of 2 us; 1.5 bytes over each link for each of 400, at 100 * 0.2 * 2^0.5 bytes/s."""
    stated = link(way(1e-6, 0.2, hop_s=2e-6, growth=0.5))
    assert collective_s(stated, "all_reduce", 4, 400) == pytest.approx(13e-6 + 600 / (20 * 2**0.5))


def test_no_way_is_faster_than_the_link() -> None:
    assert collective_bytes_per_s(link(way(efficiency=0.9, growth=1.0)), "all_reduce", 8) == 100.0


def test_the_quickest_way_is_taken() -> None:
    small, large = way(1.0, 0.1), way(3.0, 1.0)
    both = link(small, large)
    for payload in (10.0, 20.0, 40.0):
        alone = [collective_s(link(each), "all_reduce", 2, payload) for each in (small, large)]
        assert collective_s(both, "all_reduce", 2, payload) == pytest.approx(min(alone))
    assert collective_s(both, "all_reduce", 2, 10.0) == pytest.approx(2.0)
    assert collective_s(both, "all_reduce", 2, 40.0) == pytest.approx(3.4)


def test_an_engines_own_way_ends_at_its_size_and_its_ranks() -> None:
    own = way(1.0, 1.0, below_bytes=100.0, most_ranks=2)
    both = link(way(5.0, 1.0), engine=(own,))
    assert collective_s(both, "all_reduce", 2, 99.0) == pytest.approx(1.99)
    assert collective_s(both, "all_reduce", 2, 100.0) == pytest.approx(6.0)
    assert collective_s(both, "all_reduce", 4, 40.0) == pytest.approx(5.6)


def test_algorithms_have_figures_of_their_own() -> None:
    """One without takes a ring of plain transfers, here of 1 us."""
    stated = link(way(1.0), way(2.0, algorithms=("all_gather",)))
    assert collective_s(stated, "all_gather", 2, 1e-9) == pytest.approx(2.0)
    assert collective_s(stated, "reduce_scatter", 2, 1e-9) == pytest.approx(1e-6, rel=1e-3)


def test_of_unlike_links_the_slowest_decides() -> None:
    quick, slow = link(way(9.0, 0.9)), link(way(1.0, 0.1))
    assert collective_ways([quick, slow], "all_reduce", 4) == collective_ways([slow], "all_reduce", 4)
    with_a_plain_one = collective_ways([quick, tiny.link(latency_s=1.0)], "all_reduce", 4)
    assert [each.latency_s for each in with_a_plain_one] == [6.0]


@pytest.mark.parametrize("kind", ["fabric", "bus"])
def test_a_link_that_states_nothing_takes_the_figures_of_its_kind(kind: Any) -> None:
    assert collectives_of(tiny.link(kind=kind)) == COLLECTIVE_DEFAULTS[kind]
    assert collectives_of(tiny.link(kind=kind, collective=Collectives(library=(way(),)))).library == (way(),)
    for algorithm in ALGORITHMS:
        assert COLLECTIVE_DEFAULTS[kind].ways(algorithm, 8)


@pytest.mark.parametrize("limit", [{"below_bytes": 8.0}, {"most_ranks": 2}])
def test_some_way_must_take_everything(limit: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match="some way of all_reduce must be without 'below'"):
        Collectives(engine=(way(**limit),))


# -- laws -----------------------------------------------------------------------------------------------------

ways = st.builds(
    way, latency_s=st.floats(0, 1e-3), efficiency=st.floats(0.01, 1.0), hop_s=st.floats(0, 1e-4),
    growth=st.floats(-2, 2),
)  # fmt: skip
limited = st.builds(way, latency_s=st.floats(0, 1e-4), below_bytes=st.floats(1, 1e6))
links = st.builds(
    lambda library, engine: link(*library, engine=tuple(engine), bandwidth=1e9),
    st.lists(ways, min_size=1, max_size=3), st.lists(limited, max_size=1),
)  # fmt: skip
payload = st.floats(0, 1e9)
ranks_of = st.integers(2, 64)


@given(on=links, ranks=ranks_of, nbytes=payload, more=st.floats(1, 100))
def test_more_bytes_never_take_less(on: Link, ranks: int, nbytes: float, more: float) -> None:
    """Nor where an engine's way ends: a link whose engine is quicker up to there has a step up."""
    base_s = collective_s(on, "all_reduce", ranks, nbytes) * (1 - 1e-9)
    assert collective_s(on, "all_reduce", ranks, nbytes * more) >= base_s


@given(on=links, another=ways, ranks=ranks_of, nbytes=payload)
def test_another_way_to_choose_from_never_takes_longer(
    on: Link, another: Collective, ranks: int, nbytes: float
) -> None:
    wider = link(*on.collective.library, another, engine=on.collective.engine, bandwidth=1e9)
    longest_s = collective_s(on, "all_reduce", ranks, nbytes) * (1 + 1e-9)
    assert collective_s(wider, "all_reduce", ranks, nbytes) <= longest_s


@given(
    one=ways, growth=st.floats(-2, 0), ranks=ranks_of, nbytes=payload, algorithm=st.sampled_from(ALGORITHMS)
)
def test_more_ranks_never_take_less_unless_bandwidth_grows_with_them(
    one: Collective, growth: float, ranks: int, nbytes: float, algorithm: Algorithm
) -> None:
    """Both of the same payload and of the same bytes for each rank."""
    on = link(one.model_copy(update={"growth": growth, "algorithms": ALGORITHMS}), bandwidth=1e9)
    base_s = collective_s(on, algorithm, ranks, nbytes) * (1 - 1e-9)
    assert collective_s(on, algorithm, ranks + 1, nbytes) >= base_s
    assert collective_s(on, algorithm, ranks + 1, nbytes * (ranks + 1) / ranks) >= base_s


@given(on=links, ranks=ranks_of, nbytes=payload, algorithm=st.sampled_from(ALGORITHMS))
def test_bytes_never_outrun_the_link(on: Link, ranks: int, nbytes: float, algorithm: Algorithm) -> None:
    least_s = nbytes * ring_share(algorithm, ranks) / on.bandwidth_bytes_per_s
    if on.collective.ways(algorithm, ranks):
        assert collective_s(on, algorithm, ranks, nbytes) >= least_s * (1 - 1e-9)
    assert rounds(algorithm, ranks) == ring_share(algorithm, ranks) * ranks


# -- published figures ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "algorithm", "ranks", "nbytes", "by_library", "measured_s"),
    [
        ("nvlink-4", "all_reduce", 8, 512 * MIB, True, 2111e-6),
        ("nvlink-4", "all_reduce", 8, 2 * KIB, True, 15.7e-6),
        ("nvlink-4", "all_reduce", 4, 64 * KIB, False, 5.2e-6),
        ("nvlink-3", "all_reduce", 8, 64 * KIB, False, 8.4e-6),
        ("nvlink-3", "all_gather", 4, 16 * MIB, True, 118.5e-6),
        ("pcie-gen4-x16", "all_reduce", 4, 16 * MIB, True, 4922e-6),
    ],
)
def test_published_collectives(
    name: str, algorithm: Algorithm, ranks: int, nbytes: float, by_library: bool, measured_s: float
) -> None:
    """ai-dynamo/aiconfigurator@095f58a: NCCL (half), and vLLM's own all-reduce in a CUDA graph."""
    found = Catalogue().link(name).record
    if by_library:
        found = found.model_copy(update={"collective": Collectives(library=found.collective.library)})
    assert collective_s(found, algorithm, ranks, nbytes) == pytest.approx(measured_s, rel=0.2)


@pytest.mark.parametrize(("mebibytes", "bus_bytes_per_s"), [(8, 156e9), (64, 347e9), (512, 450e9)])
def test_an_unseen_node_of_eight_h200(mebibytes: int, bus_bytes_per_s: float) -> None:
    """stas00/ml-engineering@744d01e: NCCL's all-reduce among 8 H200; its bus bandwidth is 2 (n - 1) / n of the
    payload by the time. NVLink 4 is fitted to H100."""
    measured_s = ring_share("all_reduce", 8) * mebibytes * MIB / bus_bytes_per_s
    nvlink = Catalogue().link("nvlink-4").record
    assert collective_s(nvlink, "all_reduce", 8, mebibytes * MIB) == pytest.approx(measured_s, rel=0.25)


def test_an_unseen_node_of_eight_b200() -> None:
    """stas00/ml-engineering@744d01e: 8 GiB move at 682 GB/s round the ring and at 838 GB/s with the switches'
    help, over 900 GB/s. No B200 went into the figures of fabrics."""
    fabric = tiny.link(bandwidth=900e9, kind="fabric")
    bus_bytes_per_s = ring_share("all_reduce", 8) * 2**33 / collective_s(fabric, "all_reduce", 8, 2**33)
    assert 682e9 < bus_bytes_per_s < 838e9


def test_eight_mi300x_share_seven_links() -> None:
    """stas00/ml-engineering@744d01e: 4 GiB move at 312.9 GB/s among eight and 47.7 GB/s between two."""
    xgmi = Catalogue().link("xgmi-mi300x").record
    for ranks, bytes_per_s in ((8, 312.9e9), (2, 47.7e9)):
        assert collective_bytes_per_s(xgmi, "all_reduce", ranks) == pytest.approx(bytes_per_s, rel=0.02)

"""Copies, collectives, energy, money and host work."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.costs.energy import energy_j
from simulator.costs.host import deliver_s, receive_s, remaining_share, step_s
from simulator.costs.money import capital_recovery_factor, capital_usd, electricity_usd
from simulator.costs.transfers import (
    TRANSITION_DEFAULTS,
    copy_bytes_per_s,
    copy_latency_s,
    transition_of,
    transition_s,
)
from simulator.graph.machine import MachineGraph
from simulator.graph.shape import Chunk, StepShape
from simulator.placement.placement import Placement
from simulator.simulation.pricing import PricedTemplate
from simulator.simulation.ticks import seconds
from simulator.specs.engine import Engine
from simulator.specs.hardware import Device, Transition
from simulator.units import SECONDS_PER_YEAR
from tests import tiny

share = st.floats(0.0, 1.0)
rate = st.floats(0.001, 0.5)
years = st.floats(0.5, 40.0)


# --- transfers ----------------------------------------------------------------------------------------------


def test_latencies_of_a_route_add_up() -> None:
    route = [tiny.link(latency_s=2e-6), tiny.link(latency_s=5e-6)]
    assert copy_latency_s(route) == pytest.approx(7e-6)
    assert copy_latency_s([]) == 0


def launching(launch_s: float, synchronize_s: float, kind: str = "gpu") -> Device:
    figures = Transition(launch_s=launch_s, synchronize_s=synchronize_s)
    return tiny.device(kind).model_copy(update={"transition": figures})


def test_only_a_copy_that_ends_on_the_host_is_waited_for() -> None:
    gpu, card = launching(3e-6, 20e-6), launching(5e-6, 70e-6)
    assert transition_s(None, gpu) == pytest.approx(3e-6)
    assert transition_s(gpu, None) == pytest.approx(23e-6)
    assert transition_s(gpu, card) == transition_s(card, gpu) == pytest.approx(5e-6)
    assert transition_s(None, None) == 0


@pytest.mark.parametrize("kind", ["cpu", "gpu", "accelerator"])
def test_every_kind_of_device_has_a_default_transition(kind: str) -> None:
    bare = tiny.device(kind).model_copy(update={"transition": None})
    assert transition_of(bare) == TRANSITION_DEFAULTS[kind]
    assert transition_s(bare, None) >= transition_s(None, bare) >= 0


@given(launch=st.floats(0, 1e-3), wait=st.floats(0, 1e-3), longer=st.floats(1, 10))
def test_a_slower_launch_never_makes_a_copy_cheaper(launch: float, wait: float, longer: float) -> None:
    device, slower = launching(launch, wait), launching(launch * longer, wait * longer)
    for other in (None, launching(1e-5, 1e-5)):
        assert transition_s(slower, other) >= transition_s(device, other)
        assert transition_s(other, slower) >= transition_s(other, device)


def test_pageable_copies_reach_what_the_link_says_of_them() -> None:
    pcie = tiny.link(bandwidth=100.0, efficiency=0.8, pageable_efficiency=0.3)
    assert [copy_bytes_per_s(pcie, pageable) for pageable in (False, True)] == [80.0, 30.0]
    network = tiny.link(bandwidth=100.0, efficiency=0.8)
    assert [copy_bytes_per_s(network, pageable) for pageable in (False, True)] == [80.0, 80.0]


def price_of_copy(graph: MachineGraph, placement: Placement, operator: str, engine: Engine) -> float:
    """Seconds of the first task of that operator in a step of three tokens."""
    program = tiny.program(placement, graph)
    priced = PricedTemplate(program.template(1), program, engine)
    index = next(i for i, task in enumerate(priced.template.tasks) if task.operator == operator)
    durations = priced.durations((StepShape.of([Chunk(0, 10, 3, True)]),))
    return seconds(int(durations.total[priced.class_of_task[index]]))


def test_copies_of_a_step_by_hand() -> None:
    """To a GPU over 1 MB/s: 1 us of link, 3 us of launch, 3 ids of 8 bytes; back one id, and 20 us to wake."""
    graph = tiny.machine(tiny.node(gpus=[launching(3e-6, 20e-6)], host_link=tiny.link(bandwidth=1e6)))
    there, back = (price_of_copy(graph, tiny.single(), name, tiny.engine())
                   for name in ("copy_ids", "copy_next_ids"))  # fmt: skip
    assert there == pytest.approx(4e-6 + 24e-6, rel=1e-6)
    assert back == pytest.approx(24e-6 + 8e-6, rel=1e-6)


def test_a_copy_between_two_devices_by_hand() -> None:
    """Two links of 1 us, the slower of two launches, 3 * 24 numbers of 2 bytes; pinned or not is no matter."""
    gpus = [launching(3e-6, 20e-6), launching(5e-6, 20e-6)]
    graph = tiny.machine(tiny.node(gpus=gpus, host_link=tiny.link(bandwidth=1e6, pageable_efficiency=0.1)))
    for pinned in (True, False):
        found = price_of_copy(graph, tiny.stages(), "copy_residual", tiny.engine(pinned=pinned))
        assert found == pytest.approx(7e-6 + 144e-6, rel=1e-6)


@pytest.mark.parametrize(("share", "longer"), [(0.25, 4.0), (None, 1.0)])
def test_what_is_streamed_from_pageable_memory_takes_longer(share: float | None, longer: float) -> None:
    """A fetch takes the reciprocal of the share as long, over links that state one."""
    graph = tiny.machine(tiny.node(gpus=[launching(0.0, 0.0)], host_link=tiny.link(
        bandwidth=1e6, latency_s=0.0, pageable_efficiency=share)))  # fmt: skip
    pinned_s, pageable_s = (price_of_copy(graph, tiny.streamed(), "fetch", tiny.engine(pinned=pinned))
                            for pinned in (True, False))  # fmt: skip
    assert pageable_s == pytest.approx(pinned_s * longer, rel=1e-9)


def test_pageable_is_slower_to_the_host_too() -> None:
    graph = tiny.machine(tiny.node(gpus=[launching(0.0, 0.0)], host_link=tiny.link(
        bandwidth=1e6, latency_s=0.0, pageable_efficiency=0.1)))  # fmt: skip
    pinned_s, pageable_s = (price_of_copy(graph, tiny.single(), "copy_next_ids", tiny.engine(pinned=pinned))
                            for pinned in (True, False))  # fmt: skip
    assert pageable_s == pytest.approx(10 * pinned_s, rel=1e-6)


@pytest.mark.parametrize(("dram", "slowest"), [(1e9, 1e6), (1e5, 0.8e5)])
def test_the_slower_of_link_and_memory_decides(dram: float, slowest: float) -> None:
    graph = tiny.machine(tiny.node(gpus=[launching(0.0, 0.0)], dram=dram,
                                   host_link=tiny.link(bandwidth=1e6, latency_s=0.0)))  # fmt: skip
    found = price_of_copy(graph, tiny.single(), "copy_ids", tiny.engine())
    assert found == pytest.approx(24 / slowest, rel=1e-6)


# --- money --------------------------------------------------------------------------------------------------


@given(discount=rate, life=years)
def test_annuities_pay_the_purchase_back(discount: float, life: float) -> None:
    """The present value of the annuity over its life is what was paid: factor * (1 - v^n) / i = 1."""
    factor = capital_recovery_factor(discount, life)
    assert factor * (1 - (1 + discount) ** -life) / discount == pytest.approx(1.0)


@given(discount=rate, life=st.integers(1, 30))
def test_annual_payments_end_the_debt(discount: float, life: int) -> None:
    debt = 1.0
    for _ in range(life):
        debt = debt * (1 + discount) - capital_recovery_factor(discount, life)
    assert debt == pytest.approx(0.0, abs=1e-6)


@given(life=years)
def test_without_interest_a_purchase_is_spread_evenly(life: float) -> None:
    assert capital_recovery_factor(0.0, life) == 1 / life
    assert capital_recovery_factor(1e-6, life) == pytest.approx(1 / life, rel=1e-4)


def test_hardly_any_interest_is_hardly_different_from_none() -> None:
    assert capital_recovery_factor(1e-17, 5) == pytest.approx(0.2)


@given(discount=rate, life=years, more=st.floats(0.001, 0.1))
def test_interest_makes_dearer_and_life_cheaper(discount: float, life: float, more: float) -> None:
    factor = capital_recovery_factor(discount, life)
    assert capital_recovery_factor(discount + more, life) > factor
    assert capital_recovery_factor(discount, life + 1) < factor
    assert factor > discount


@given(price=st.floats(1, 1e6), time_s=st.floats(1, 1e8), discount=st.just(0.0) | rate, life=years)
def test_owning_is_linear_in_price_and_time(price: float, time_s: float, discount: float, life: float) -> None:
    life_s = life * SECONDS_PER_YEAR
    cost = capital_usd(price, time_s, discount, life_s)
    assert capital_usd(2 * price, time_s, discount, life_s) == pytest.approx(2 * cost)
    assert capital_usd(price, 2 * time_s, discount, life_s) == pytest.approx(2 * cost)
    assert capital_usd(price, life_s, 0.0, life_s) == pytest.approx(price)


def test_electricity_by_hand() -> None:
    """1 kW for 2 hours at 1.5 times the energy in the building and 0.10 USD/kWh."""
    assert electricity_usd(1000 * 7200, usd_per_kwh=0.10, pue=1.5) == pytest.approx(0.30)


# --- energy -------------------------------------------------------------------------------------------------


def test_energy_by_hand() -> None:
    """70 W for 10 s, and 630 W more for 4 s of it."""
    assert energy_j(idle_w=70, max_w=700, time_s=10, busy_s=4) == 70 * 10 + 630 * 4


@given(idle=st.floats(0, 100), more=st.floats(0, 900), time_s=st.floats(0, 1e6), part=st.floats(0, 2))
def test_energy_lies_between_idle_and_full(idle: float, more: float, time_s: float, part: float) -> None:
    drawn = energy_j(idle, idle + more, time_s, part * time_s)
    rounding = 1 + 1e-9
    assert idle * time_s <= drawn * rounding
    assert drawn <= (idle + more) * time_s * rounding


# --- host ---------------------------------------------------------------------------------------------------


@given(offload=share)
def test_fixed_function_units_take_their_share_of_everything(offload: float) -> None:
    stages = {"receive_s": 1e-4, "tokenize_s": 2e-6, "detokenize_s": 3e-6, "send_s": 5e-6}
    engine = tiny.engine(step_s=1e-3, per_sequence_s=1e-5, stages=stages)
    host, left = tiny.host(offload=offload), 1 - offload
    assert remaining_share(host) == left
    assert step_s(engine, host) == pytest.approx((1e-3 * left, 1e-5 * left))
    assert receive_s(engine, host, 50) == pytest.approx((1e-4 + 50 * 2e-6) * left)
    assert deliver_s(engine, host, 7) == pytest.approx(7 * 8e-6 * left)

"""Money over time."""

from __future__ import annotations

import math

from simulator.units import JOULES_PER_KWH, SECONDS_PER_YEAR


def capital_recovery_factor(discount_per_year: float, life_years: float) -> float:
    """Share of a purchase to set aside each year so that it is paid off with interest over its life.

    >>> round(capital_recovery_factor(0.08, 5), 4)
    0.2505
    >>> capital_recovery_factor(0.0, 5)
    0.2
    """
    if discount_per_year == 0:
        return 1 / life_years
    return discount_per_year / -math.expm1(-life_years * math.log1p(discount_per_year))


def capital_usd(purchase_usd: float, time_s: float, discount_per_year: float, life_s: float) -> float:
    """What owning something for `time_s` costs, bought at `purchase_usd` and fully used."""
    factor = capital_recovery_factor(discount_per_year, life_s / SECONDS_PER_YEAR)
    return purchase_usd * factor * time_s / SECONDS_PER_YEAR


def electricity_usd(energy_j: float, usd_per_kwh: float, pue: float) -> float:
    """What the energy drawn by the machine costs, the building's overhead included."""
    return energy_j * pue / JOULES_PER_KWH * usd_per_kwh

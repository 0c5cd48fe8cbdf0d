"""Tests that plant mistakes in operators must not meet, or leave behind, operators that others have made."""

from collections.abc import Iterator

import pytest

from simulator.placement.placed import shared_factory


@pytest.fixture(autouse=True)
def _own_operators() -> Iterator[None]:
    shared_factory.cache_clear()
    yield
    shared_factory.cache_clear()

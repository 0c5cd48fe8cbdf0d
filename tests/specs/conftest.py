"""A small catalogue in a temporary folder."""

from pathlib import Path

import pytest

from simulator.specs.catalogue import Catalogue

from .small_catalogue import FILES, write


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the small catalogue, which is also the working folder."""
    for name, text in FILES.items():
        write(tmp_path, name, text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PLACEWRIGHT_PATH", raising=False)
    return tmp_path


@pytest.fixture
def catalogue(house: Path) -> Catalogue:
    """A catalogue of the small files alone."""
    return Catalogue((house,))

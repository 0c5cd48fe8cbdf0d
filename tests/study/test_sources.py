"""Each figure of the catalogue with who says so, and how many of each kind a file has."""

from collections import Counter
from pathlib import Path

import pytest

from simulator.errors import InputError
from simulator.specs.catalogue import Catalogue, Kind
from simulator.study.show import catalogued, kind_of
from simulator.study.sources import SOURCED, sourced, tally

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def _house(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("kind", SOURCED)
def test_every_figure_has_a_source_unless_nobody_knows_it(kind: Kind) -> None:
    figures = sourced(kind)
    assert {each.id for each in figures} <= set(Catalogue().ids(kind))
    assert [each for each in figures if each.kind is None and each.value != "unknown"] == []


def test_the_nearest_source_speaks_for_a_figure() -> None:
    figures = {each.key: each for each in sourced("devices", ["b300-sxm"])}
    assert (figures["compute.bf16"].kind, figures["compute.bf16"].value) == ("published", "2250 TFLOP/s")
    assert figures["compute.fp4"].value == "12.6..14 PFLOP/s, nominal 14 PFLOP/s"
    assert figures["memory.cache"].kind == "assumed"
    assert "kind" not in figures
    assert "generation" not in figures


def test_a_row_of_a_list_is_figures_too() -> None:
    figures = {each.key: each for each in sourced("links", ["nvlink-4"])}
    assert figures["collective.engine.0.latency"].value == "4.23 us"
    assert figures["collective.engine.0.latency"].kind == "measured"


def test_what_is_unknown_is_of_no_kind_whatever_is_said_of_it() -> None:
    price = next(each for each in sourced("hosts", ["nr1"]) if each.key == "price.purchase")
    assert price.as_dict() == {"id": "nr1", "key": "price.purchase", "value": "unknown", "kind": None,
                               "ref": "no publication found", "date": None, "note": "not published"}  # fmt: skip


def test_a_file_is_summed_up_by_kind_of_source() -> None:
    counts = Counter(each.kind or "unknown" for each in sourced("devices", ["l40s"]))
    assert tally("devices", "l40s", Catalogue()) == counts
    (entry,) = catalogued("devices", ["l40s"])
    assert entry.figures == counts
    assert catalogued("machines", ["hgx-h100-8"])[0].figures == {}


def test_kinds_without_sources_are_refused() -> None:
    with pytest.raises(InputError, match="figures of machines are not listed with their sources; take devices, classes, hosts, links"):
        sourced("machines")
    with pytest.raises(InputError, match="did you mean 'devices'"):
        kind_of("device")

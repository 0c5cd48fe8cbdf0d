"""What devices of one kind and generation lend each other."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from simulator.costs.operators import efficiency_of
from simulator.errors import InputError
from simulator.graph.work import OperatorClass
from simulator.specs.catalogue import Catalogue
from simulator.specs.device_class import DeviceClass, with_defaults
from simulator.specs.hardware import Efficiency, Precision
from simulator.specs.provenance import Source
from tests import tiny

FIRST = Efficiency(compute=0.1, memory=0.1, overhead_s=1e-6, blend=1.0)
SECOND = Efficiency(compute=0.2, memory=0.2, overhead_s=2e-6, blend=2.0)
OWN = Efficiency(compute=0.9, memory=0.9, overhead_s=9e-6, blend=3.0)


def lender(**efficiency: Efficiency) -> DeviceClass:
    figures = {key.replace("__", "."): value for key, value in efficiency.items()}
    sources = {"efficiency": Source(kind="measured", ref="a bench", date="2026")}
    return DeviceClass(name="some", kind="gpu", efficiency=figures, sources=sources)


def found(own: dict[str, Efficiency], asked: str, *classes: DeviceClass) -> Efficiency:
    device = tiny.device().model_copy(update={"efficiency": own})
    whole = with_defaults(device, [(f"class-{number}", each) for number, each in enumerate(classes)])
    operator_class, _, precision = asked.partition(".")
    return efficiency_of(whole, cast(OperatorClass, operator_class), cast(Precision, precision))


def test_the_nearest_class_lends_first() -> None:
    near, far = lender(matmul=FIRST), lender(matmul__bf16=SECOND, norm=SECOND)
    assert found({}, "matmul.bf16", near, far) == FIRST
    assert found({}, "norm.bf16", near, far) == SECOND


@pytest.mark.parametrize(
    ("own", "asked"),
    [
        ("matmul", "matmul.fp8"),
        ("matmul", "grouped_matmul.bf16"),
        ("matmul.fp16", "matmul.bf16"),
        ("matmul.bf16", "matmul.fp16"),
        ("elementwise.bf16", "norm.bf16"),
        ("elementwise.fp16", "norm.bf16"),
        ("attention_decode.fp16", "attention_decode.bf16"),
    ],
)
def test_a_device_keeps_what_it_states_also_of_a_broader_class_or_the_twin_format(own: str, asked: str) -> None:
    lent = lender(matmul=FIRST, matmul__bf16=FIRST, matmul__fp16=FIRST, matmul__fp8=FIRST, grouped_matmul=FIRST,
                  norm=FIRST, norm__bf16=FIRST, attention_decode__bf16=FIRST)  # fmt: skip
    assert found({own: OWN}, asked, lent) == OWN


def test_what_a_device_says_of_one_format_says_nothing_of_another() -> None:
    assert found({"matmul.bf16": OWN}, "matmul.fp8", lender(matmul__fp8=FIRST)) == FIRST


def test_products_of_an_a40_are_those_measured_on_it_in_both_16_bit_formats() -> None:
    a40 = Catalogue().device("a40").record
    assert efficiency_of(a40, "matmul", "bf16") == efficiency_of(a40, "matmul", "fp16") == a40.efficiency["matmul.fp16"]


def test_what_is_lent_is_assumed_and_says_from_whom() -> None:
    device = with_defaults(tiny.device().model_copy(update={"efficiency": {}}), [("gpu-new", lender(matmul=FIRST))])
    source = device.sources["efficiency.matmul"]
    assert (source.kind, source.ref, source.date) == ("assumed", "class gpu-new: a bench", "2026")


@pytest.mark.parametrize(
    ("kind", "generation", "expected"),
    [
        ("gpu", "hopper", ["gpu-hopper", "gpu"]),
        ("gpu", "blackwell", ["gpu-blackwell", "gpu-hopper", "gpu"]),
        ("gpu", "of-the-future", ["gpu"]),
        ("gpu", None, ["gpu"]),
        ("accelerator", "gaudi3", ["accelerator", "gpu"]),
        ("cpu", "genoa", ["cpu"]),
    ],
)
def test_classes_follow_one_another_to_that_of_the_kind(kind: str, generation: str, expected: list[str]) -> None:
    assert [name for name, _ in Catalogue().classes_of(kind, generation)] == expected


def test_a_class_that_follows_nobody_known_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "hardware_profiles" / "classes"
    folder.mkdir(parents=True)
    (folder / "gpu-new.yaml").write_text("name: x\nkind: gpu\ngeneration: new\nfollows: gpu-hoper\n")
    with pytest.raises(InputError, match=r"gpu-new.yaml: follows = 'gpu-hoper': no such device class"):
        Catalogue((tmp_path,)).classes_of("gpu", "new")


def test_every_shipped_generation_lends_from_a_class_of_its_own_kind() -> None:
    catalogue = Catalogue()
    for name in catalogue.ids("classes"):
        record = catalogue.load("classes", name, DeviceClass).record
        assert name == record.kind if record.generation is None else name == f"{record.kind}-{record.generation}"

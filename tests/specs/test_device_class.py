"""What devices of one kind and generation lend each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulator.errors import InputError
from simulator.specs.catalogue import Catalogue
from simulator.specs.device_class import DeviceClass, with_defaults
from simulator.specs.hardware import Efficiency
from simulator.specs.provenance import Source
from tests import tiny

FIRST = Efficiency(compute=0.1, memory=0.1, overhead_s=1e-6, blend=1.0)
SECOND = Efficiency(compute=0.2, memory=0.2, overhead_s=2e-6, blend=2.0)
OWN = Efficiency(compute=0.9, memory=0.9, overhead_s=9e-6, blend=3.0)


def lender(**efficiency: Efficiency) -> DeviceClass:
    figures = {key.replace("__", "."): value for key, value in efficiency.items()}
    sources = {"efficiency": Source(kind="measured", ref="a bench", date="2026")}
    return DeviceClass(name="some", kind="gpu", efficiency=figures, sources=sources)


def lent(own: dict[str, Efficiency], *classes: DeviceClass) -> dict[str, Efficiency]:
    device = tiny.device().model_copy(update={"efficiency": own})
    return with_defaults(device, [(f"class-{number}", each) for number, each in enumerate(classes)]).efficiency


def test_the_nearest_class_lends_first() -> None:
    assert lent({}, lender(matmul=FIRST), lender(matmul=SECOND, norm=SECOND)) == {"matmul": FIRST, "norm": SECOND}


def test_a_device_keeps_what_it_states_also_of_a_broader_class() -> None:
    classes = lender(matmul__fp8=FIRST, grouped_matmul=FIRST, norm=FIRST, embedding=FIRST)
    assert lent({"matmul": OWN, "elementwise": OWN}, classes) == {
        "matmul": OWN, "elementwise": OWN, "embedding": FIRST,
    }  # fmt: skip
    assert lent({"matmul.bf16": OWN}, classes)["matmul.fp8"] == FIRST  # of one format only


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

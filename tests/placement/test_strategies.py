"""Where strategies put layers, what they refuse and why."""

import pytest

from simulator.placement.placement import NotPlaceable, Placement, Stage
from simulator.placement.strategies import LayerSplit, SingleDevice, Strategy, TensorParallel
from tests.placed import machine, model

L40S, HGX, MIXED, NR1 = "epyc-9654-4x-l40s", "hgx-h100-8", "cpu-gpu-nr1", "nr1-4x-l40s"


@pytest.mark.parametrize(
    ("strategy", "where", "expected"),
    [
        (SingleDevice(), L40S, [(("gpu-0",), 0, 32)]),
        (SingleDevice(device="cpu"), L40S, [(("cpu",), 0, 32)]),
        (SingleDevice(), MIXED, [(("x86.gpu-0",), 0, 32)]),
        (TensorParallel(degree=2), HGX, [(("gpu-0", "gpu-1"), 0, 32)]),
        (TensorParallel(degree=2, devices=("gpu-3", "gpu-1")), HGX, [(("gpu-3", "gpu-1"), 0, 32)]),
        (LayerSplit(gpu_layers=24), L40S, [(("cpu",), 0, 8), (("gpu-0",), 8, 24)]),
        (LayerSplit(gpu_layers=32), L40S, [(("gpu-0",), 0, 32)]),
        (LayerSplit(gpu_layers=0), L40S, [(("cpu",), 0, 32)]),
        (LayerSplit(devices=("gpu-1", "cpu", "gpu-0")), L40S,
         [(("gpu-1",), 0, 11), (("cpu",), 11, 11), (("gpu-0",), 22, 10)]),
        (LayerSplit(devices=("x86.cpu", "x86.gpu-0", "nr1.accelerator-0"), layers=(4, 20, 8)), MIXED,
         [(("x86.cpu",), 0, 4), (("x86.gpu-0",), 4, 20), (("nr1.accelerator-0",), 24, 8)]),
    ],
)  # fmt: skip
def test_layers_go_where_they_are_put(strategy: Strategy, where: str, expected: list[tuple[tuple[str, ...], int, int]]):
    placement = strategy.place(model("llama-3.1-8b"), machine(where))
    assert isinstance(placement, Placement)
    assert placement.stages == tuple(Stage(*stage) for stage in expected)
    assert placement.name == strategy.label


@pytest.mark.parametrize(
    ("strategy", "where", "reason"),
    [
        (SingleDevice(device="gpu-4"), L40S, "no device 'gpu-4'"),
        (SingleDevice(device="gpu0"), L40S, "did you mean 'gpu-0'"),
        (TensorParallel(degree=8), L40S, "needs 8 accelerators, there are 4"),
        (TensorParallel(degree=3), L40S, "32 attention heads cannot be shared evenly by 3"),
        (TensorParallel(degree=2, devices=("gpu-0", "gpu-0")), L40S, "named twice"),
        (TensorParallel(degree=2, devices=("gpu-0", "cpu")), L40S, "cpu is a CPU"),
        (LayerSplit(gpu_layers=33), L40S, "the model has 32 layers"),
        (LayerSplit(gpu_layers=16), NR1, "`cpu` is unknown"),
        (LayerSplit(devices=("cpu", "gpu-0"), layers=(8, 8)), L40S, "add up to 16, the model has 32"),
    ],
)  # fmt: skip
def test_what_cannot_be_placed_says_why(strategy: Strategy, where: str, reason: str):
    refused = strategy.place(model("llama-3.1-8b"), machine(where))
    assert isinstance(refused, NotPlaceable)
    assert reason in refused.reason


def test_two_placements_of_a_strategy_have_labels_of_their_own():
    labels = {TensorParallel(degree=2).label, TensorParallel(degree=2, devices=("gpu-0", "gpu-1")).label,
              TensorParallel(degree=2, devices=("gpu-2", "gpu-3")).label, SingleDevice().label,
              SingleDevice(device="gpu-1").label, LayerSplit(gpu_layers=3).label}  # fmt: skip
    assert len(labels) == 6

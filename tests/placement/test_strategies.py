"""Where strategies put layers, what they refuse and why."""

from typing import Any

import pytest
from pydantic import ValidationError

from simulator.placement.placement import KvHome, NotPlaceable, Placement, Stage
from simulator.placement.strategies import (
    DataParallel,
    LayerSplit,
    PipelineParallel,
    SingleDevice,
    Strategy,
    TensorParallel,
    WeightStreaming,
)
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
        (PipelineParallel(stages=3), HGX, [(("gpu-0",), 0, 11), (("gpu-1",), 11, 11), (("gpu-2",), 22, 10)]),
        (PipelineParallel(devices=("gpu-3", "cpu"), layers=(30, 2)), L40S,
         [(("gpu-3",), 0, 30), (("cpu",), 30, 2)]),
    ],
)  # fmt: skip
def test_layers_go_where_they_are_put(strategy: Strategy, where: str, expected: list[tuple[tuple[str, ...], int, int]]):
    placement = strategy.place(model("llama-3.1-8b"), machine(where))
    assert isinstance(placement, Placement)
    assert placement.stages == tuple(Stage(*stage) for stage in expected)
    assert placement.name == strategy.label


@pytest.mark.parametrize(
    ("strategy", "loops", "microbatches"),
    [
        (PipelineParallel(stages=4), 4, 1),
        (PipelineParallel(devices=("gpu-0", "gpu-2")), 2, 1),
        (PipelineParallel(stages=4, loops=1, microbatches=4), 1, 4),
        (LayerSplit(devices=("gpu-0", "gpu-2")), 1, 1),
    ],
)  # fmt: skip
def test_a_pipeline_has_as_many_batches_in_flight_as_stages(strategy: Strategy, loops: int, microbatches: int):
    placement = strategy.place(model("llama-3.1-8b"), machine(HGX))
    assert isinstance(placement, Placement)
    assert (placement.loops, placement.microbatches) == (loops, microbatches)


def test_replicas_are_on_consecutive_accelerators():
    placements = DataParallel(replicas=3, tensor_parallel=2).place(model("llama-3.1-8b"), machine(HGX))
    assert isinstance(placements, tuple)
    assert [placement.devices for placement in placements] == [
        ("gpu-0", "gpu-1"), ("gpu-2", "gpu-3"), ("gpu-4", "gpu-5"),
    ]  # fmt: skip
    assert {placement.stages[0].layer_count for placement in placements} == {32}


@pytest.mark.parametrize(
    "wrong", [{}, {"stages": 2, "devices": ("gpu-0", "gpu-1")}, {"stages": 3, "layers": (16, 16)}]
)
def test_a_pipeline_is_said_in_one_way(wrong: dict[str, Any]):
    with pytest.raises(ValidationError):
        PipelineParallel(**wrong)


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
        (PipelineParallel(stages=5), L40S, "needs 5 accelerators, there are 4"),
        (PipelineParallel(devices=("gpu-0", "gpu-0")), L40S, "named twice"),
        (PipelineParallel(stages=2, layers=(8, 8)), L40S, "add up to 16, the model has 32"),
        (DataParallel(replicas=3, tensor_parallel=2), L40S, "needs 6 accelerators, there are 4"),
        (DataParallel(replicas=1, tensor_parallel=3), L40S, "32 attention heads cannot be shared evenly by 3"),
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
              SingleDevice(device="gpu-1").label, LayerSplit(gpu_layers=3).label,
              PipelineParallel(stages=2).label, PipelineParallel(stages=2, loops=1).label,
              PipelineParallel(stages=2, microbatches=2).label, PipelineParallel(devices=("gpu-2",)).label,
              DataParallel(replicas=2).label, DataParallel(replicas=2, tensor_parallel=2).label}  # fmt: skip
    assert len(labels) == 12


def test_a_cache_on_drives_needs_drives_and_is_attended_to_on_the_device():
    on_drives = WeightStreaming(kv="nvme")
    placed = on_drives.place(model("llama-3.1-8b"), machine("gcp-n1-t4"))
    assert isinstance(placed, Placement)
    assert placed.kv_home == KvHome("nvme")
    assert on_drives.label == "weight_streaming kv at nvme"
    with pytest.raises(ValidationError, match="decode_attention `host` needs kv `host`"):
        WeightStreaming(kv="nvme", decode_attention="host")
    refused = on_drives.place(model("llama-3.1-8b"), machine("hgx-h100-8"))
    assert isinstance(refused, NotPlaceable)
    assert refused.reason.endswith("states no `storage`, so nothing can be kept on a drive")

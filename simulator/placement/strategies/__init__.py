"""The named placement strategies. Each is a small immutable object that a scenario names by `strategy`
and that yields a `Placement`, or one for each replica; none knows anything of tasks."""

from simulator.placement.strategies.base import Strategy
from simulator.placement.strategies.data_parallel import DataParallel
from simulator.placement.strategies.layer_split import LayerSplit
from simulator.placement.strategies.pipeline_parallel import PipelineParallel
from simulator.placement.strategies.single_device import SingleDevice
from simulator.placement.strategies.tensor_parallel import TensorParallel

STRATEGIES: tuple[type[Strategy], ...] = (
    SingleDevice, LayerSplit, TensorParallel, PipelineParallel, DataParallel,
)  # fmt: skip

__all__ = [
    "STRATEGIES", "DataParallel", "LayerSplit", "PipelineParallel", "SingleDevice", "Strategy",
    "TensorParallel",
]  # fmt: skip

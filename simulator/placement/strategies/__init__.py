"""The named placement strategies. Each is a small immutable object that a scenario names by `strategy`
and that yields a `Placement`; none knows anything of tasks."""

from simulator.placement.strategies.base import Strategy
from simulator.placement.strategies.layer_split import LayerSplit
from simulator.placement.strategies.single_device import SingleDevice
from simulator.placement.strategies.tensor_parallel import TensorParallel

STRATEGIES: tuple[type[Strategy], ...] = (SingleDevice, LayerSplit, TensorParallel)

__all__ = ["STRATEGIES", "LayerSplit", "SingleDevice", "Strategy", "TensorParallel"]

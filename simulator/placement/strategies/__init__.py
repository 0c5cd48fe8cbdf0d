"""The named placement strategies. Each is a small immutable object that a scenario names by `strategy`
and that yields a `Placement`, or one for each replica; none knows anything of tasks."""

from simulator.placement.strategies.attention_offload import AttentionOffload
from simulator.placement.strategies.base import Strategy
from simulator.placement.strategies.custom import Custom
from simulator.placement.strategies.data_parallel import DataParallel
from simulator.placement.strategies.disaggregated import Disaggregated
from simulator.placement.strategies.expert_offload import ExpertOffload
from simulator.placement.strategies.expert_parallel import ExpertParallel
from simulator.placement.strategies.hybrid import Hybrid
from simulator.placement.strategies.kv_offload import KvOffload
from simulator.placement.strategies.layer_split import LayerSplit
from simulator.placement.strategies.pipeline_parallel import PipelineParallel
from simulator.placement.strategies.single_device import SingleDevice
from simulator.placement.strategies.speculative import Speculative
from simulator.placement.strategies.tensor_parallel import TensorParallel
from simulator.placement.strategies.weight_streaming import WeightStreaming

STRATEGIES: tuple[type[Strategy], ...] = (
    SingleDevice,
    LayerSplit,
    TensorParallel,
    PipelineParallel,
    DataParallel,
    Disaggregated,
    ExpertParallel,
    WeightStreaming,
    KvOffload,
    AttentionOffload,
    ExpertOffload,
    Hybrid,
    Speculative,
    Custom,
)

__all__ = [
    "STRATEGIES",
    "AttentionOffload",
    "Custom",
    "DataParallel",
    "Disaggregated",
    "ExpertOffload",
    "ExpertParallel",
    "Hybrid",
    "KvOffload",
    "LayerSplit",
    "PipelineParallel",
    "SingleDevice",
    "Speculative",
    "Strategy",
    "TensorParallel",
    "WeightStreaming",
]

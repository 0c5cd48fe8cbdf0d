"""What strategies refuse, each with a reason; and fields that a scenario file has wrong, each in its place."""

from pathlib import Path

import pytest

from simulator.errors import InputError
from simulator.graph.machine import machine_graph
from simulator.placement.placement import NotPlaceable, Placement
from simulator.placement.strategies import (
    STRATEGIES,
    AttentionOffload,
    Disaggregated,
    ExpertOffload,
    ExpertParallel,
    Hybrid,
    KvOffload,
    SingleDevice,
    Speculative,
    Strategy,
    TensorParallel,
    WeightStreaming,
)
from simulator.specs.catalogue import Catalogue
from simulator.specs.machine import load_machine
from simulator.specs.scenario import load_scenario
from tests.placed import machine, model

L40S, HGX, NR1, CPU, XEON = (
    "epyc-9654-4x-l40s", "hgx-h100-8", "nr1-4x-l40s", "aws-m7i-16xlarge", "xeon-6454s-1s-4x-rtx-4090"
)  # fmt: skip
LLAMA, MIXTRAL, BERT = "llama-3.1-8b", "mixtral-8x7b", "bert-base-uncased"
EXPERT_STRATEGIES = (ExpertOffload(), ExpertParallel(degree=1))
OF_RANKS = (WeightStreaming, KvOffload, AttentionOffload, ExpertOffload)


def proposing(draft: str, **fields: object) -> Strategy:
    return Speculative.model_validate({"draft": draft, "draft_tokens": 2, "acceptance": 0.5, **fields})


def reason(strategy: Strategy, where: str, name: str = LLAMA) -> str:
    found = strategy.place(model(name), machine(where))
    assert isinstance(found, NotPlaceable), found
    return found.reason


@pytest.mark.parametrize(
    ("strategy", "where", "name", "expected"),
    [
        (WeightStreaming(gpu_layers=33), L40S, LLAMA, "gpu_layers is 33, the model has 32 layers"),
        (WeightStreaming(home="nvme"), L40S, LLAMA, "host epyc-9654-2s states no `storage`, so nothing can be kept on a drive"),
        (WeightStreaming(nvme_share=0.1), L40S, LLAMA, "states no `storage`"),
        (WeightStreaming(kv="host", decode_attention="host"), NR1, LLAMA, "`cpu` is unknown"),
        (WeightStreaming(kv="host"), L40S, BERT, "kv `host` is about KV blocks; "),
        (KvOffload(), L40S, BERT, "kv_offload is about KV blocks; "),
        (AttentionOffload(phases="all"), L40S, BERT, "attention_offload is about KV blocks"),
        (AttentionOffload(), NR1, LLAMA, "host nr1 states no compute for its cores (`cpu` is unknown)"),
        (AttentionOffload(phases="all"), NR1, LLAMA, "`cpu` is unknown"),
        (ExpertOffload(), NR1, MIXTRAL, "`cpu` is unknown"),
        (ExpertOffload(), L40S, LLAMA, "expert_offload is for mixtures of experts; Llama 3.1 8B has none"),
        (ExpertParallel(degree=2), L40S, LLAMA, "expert_parallel is for mixtures of experts; Llama 3.1 8B has none"),
        (ExpertParallel(degree=16), L40S, MIXTRAL, "8 experts are too few for 16 devices"),
        (ExpertParallel(degree=3), L40S, MIXTRAL, "32 attention heads cannot be shared evenly by 3"),
        (ExpertOffload(tensor_parallel=2), XEON, MIXTRAL,
         "leaves the ranks of tensor_parallel 2 nothing to add up; keep some with gpu_experts"),
        (Hybrid(data_parallel=3, tensor_parallel=2), L40S, LLAMA,
         "hybrid dp 3 x tp 2 needs 6 accelerators, there are 4"),
        (Hybrid(), CPU, LLAMA, "hybrid needs 1 accelerators, there are 0"),
        (Hybrid(pipeline_parallel=3, cpu_layers=30), L40S, LLAMA,
         "2 layers are too few for 3 stages of accelerators"),
        (Hybrid(cpu_layers=30, streamed_layers=3), L40S, LLAMA,
         "streamed_layers is 3, the accelerators have 2 layers"),
        (Hybrid(cpu_layers=1), NR1, LLAMA, "`cpu` is unknown"),
        (Hybrid(tensor_parallel=3), L40S, LLAMA, "32 attention heads cannot be shared evenly by 3"),
        (Hybrid(experts="whole"), L40S, LLAMA, "experts `whole` is for mixtures of experts; Llama 3.1 8B has none"),
        (proposing("gpt2"), L40S, LLAMA,
         "has 50,257 tokens in its vocabulary, Llama 3.1 8B has 128,256; both must have the same"),
        (proposing("tiny-qwen3-next"), L40S, "tiny-llama", "has linear attention, whose states cannot go back"),
        (proposing("tiny-llama"), L40S, "tiny-qwen3-next", "has linear attention, whose states cannot go back"),
        (proposing("tiny-bert"), L40S, "tiny-llama", "is an encoder, which has no next token"),
        (proposing("llama-3-8b"), L40S, LLAMA, "knows 8,192 positions, fewer than the 131,072 of Llama 3.1 8B"),
        (proposing("llama-3.2-1b", draft_devices=("gpu-7",)), L40S, LLAMA, "the machine has no device 'gpu-7'"),
        (proposing("llama-3.2-1b", draft_devices=("gpu-1", "gpu-1")), L40S, LLAMA, "one is named twice"),
        (proposing("llama-3.2-1b", tensor_parallel=8), L40S, LLAMA, "needs 8 accelerators, there are 4"),
        (proposing("llama-3.2-1b", draft_devices=("nr1.accelerator-0",)), "cpu-gpu-nr1", LLAMA,
         "x86.gpu-0 and nr1.accelerator-0 are attached to different hosts"),
        (Disaggregated.model_validate({"decode": {"replicas": 4}}), L40S, LLAMA,
         "disaggregated prefill 1, decode 4 needs 5 accelerators, there are 4"),
        (Disaggregated.model_validate({"prefill": {"devices": ["gpu-1"]}, "decode": {"devices": ["gpu-1"]}}), L40S, LLAMA,
         "a device is of one pool: gpu-1 is named in `prefill` and in `decode`"),
        (Disaggregated.model_validate({"decode": {"devices": ["gpu-1", "gpu-2"]}}), L40S, LLAMA,
         "decode of disaggregated needs 1 accelerators, `devices` names 2"),
        (Disaggregated.model_validate({"prefill": {"devices": ["cpu"]}}), L40S, LLAMA, "cpu is a CPU"),
        (Disaggregated.model_validate({"prefill": {"devices": ["gpu-9"]}}), L40S, LLAMA, "no device 'gpu-9'"),
        (Disaggregated.model_validate({"prefill": {"tensor_parallel": 3}}), L40S, LLAMA,
         "32 attention heads cannot be shared evenly by 3"),
        (Disaggregated(), CPU, LLAMA, "needs 2 accelerators, there are 0"),
        (Disaggregated(), L40S, BERT, "is an encoder, which answers at once"),
        (Disaggregated(), L40S, "tiny-qwen3-next", "states of linear attention cannot be handed over yet"),
        (TensorParallel(degree=1, devices=("cpu",)), L40S, LLAMA, "cpu is a CPU, use single_device or layer_split"),
    ],
)  # fmt: skip
def test_what_cannot_be_placed_says_why(strategy: Strategy, where: str, name: str, expected: str) -> None:
    assert expected in reason(strategy, where, name)


@pytest.mark.parametrize("kind", OF_RANKS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(
    ("fields", "where", "expected"),
    [
        ({"tensor_parallel": 8}, L40S, "needs 8 accelerators, there are 4"),
        ({}, CPU, "needs 1 accelerators, there are 0"),
        ({"tensor_parallel": 2, "devices": ("gpu-0",)}, L40S, "needs 2 accelerators, `devices` names 1"),
        ({"tensor_parallel": 2, "devices": ("gpu-1", "gpu-1")}, L40S, "one is named twice"),
        ({"devices": ("gpu-7",)}, L40S, "no device 'gpu-7'"),
        ({"devices": ("cpu",)}, L40S, "is for accelerators; cpu is a CPU"),
        ({"tensor_parallel": 3}, L40S, "32 attention heads cannot be shared evenly by 3"),
    ],
)  # fmt: skip
def test_accelerators_that_are_not_there(kind: type[Strategy], fields: dict[str, object], where: str, expected: str):
    strategy = kind.model_validate(fields)
    found = reason(strategy, where, MIXTRAL)
    assert expected in found


@pytest.mark.parametrize("strategy", [
    *(kind(tensor_parallel=2) for kind in OF_RANKS), Hybrid(tensor_parallel=2, streamed_layers=1),
], ids=lambda each: each.label)  # fmt: skip
def test_ranks_of_two_hosts_have_no_host_memory_in_common(strategy: Strategy) -> None:
    expected = "x86.gpu-0 and nr1.accelerator-0 are attached to different hosts (x86.host, nr1.host)"
    assert expected in reason(strategy, "cpu-gpu-nr1", MIXTRAL)


def test_whole_experts_are_too_few_for_a_stage_of_many_ranks() -> None:
    """Sixteen accelerators in two servers, and a mixture of eight."""
    server = {"host": "hgx-xeon-8480p-2s", "devices": {"h100-sxm": 8}, "host_link": "pcie-gen5-x16"}
    wide = {"network": "eth-100", "nodes": [server | {"name": "a"}, server | {"name": "b"}]}
    graph = machine_graph(load_machine(wide, Catalogue()))
    found = Hybrid(tensor_parallel=16, experts="whole").place(model(MIXTRAL), graph)
    assert isinstance(found, NotPlaceable)
    assert found.reason == "8 experts are too few for 16 devices"


@pytest.mark.parametrize(
    ("device", "expected"),
    [("nr1.cpu", "host nr1 states no compute for its cores"), ("cpu", "did you mean 'x86.cpu'?")],
)  # fmt: skip
def test_of_several_hosts_the_one_without_a_processor_is_named(device: str, expected: str) -> None:
    assert expected in reason(SingleDevice(device=device), "cpu-gpu-nr1")


@pytest.mark.parametrize("kind", STRATEGIES, ids=lambda kind: kind.__name__)
def test_what_a_strategy_yields_names_only_what_the_machine_has(kind: type[Strategy]) -> None:
    """With its defaults where it has some, and two devices where it must be told."""
    needed = {"layer_split": {"gpu_layers": 3}, "tensor_parallel": {"degree": 2}, "expert_parallel": {"degree": 2},
              "pipeline_parallel": {"stages": 2}, "data_parallel": {"replicas": 2},
              "speculative": {"draft": "tiny-llama", "draft_tokens": 2, "acceptance": 0.5},
              "custom": {"device_map": {"": 0}}}  # fmt: skip
    strategy = kind.model_validate(needed.get(kind.model_fields["strategy"].default, {}))
    found = strategy.place(model("tiny-mixtral"), machine(L40S))
    placements = (found,) if isinstance(found, Placement) else found
    assert isinstance(placements, tuple)
    for placement in placements:
        assert placement.name == strategy.label
        assert set(placement.devices) <= set(machine(L40S).devices)
        assert [layer for stage in placement.stages for layer in stage.layers] == [0, 1, 2, 3]


def test_a_pool_takes_what_the_other_does_not_name() -> None:
    found = Disaggregated.model_validate({"prefill": {"replicas": 2}, "decode": {"devices": ["gpu-1"]}}).place(
        model(LLAMA), machine(L40S))  # fmt: skip
    assert isinstance(found, tuple)
    assert [(each.role, each.devices) for each in found] == [
        ("prefill", ("gpu-0",)), ("prefill", ("gpu-2",)), ("decode", ("gpu-1",)),
    ]  # fmt: skip


# --- through a scenario file --------------------------------------------------------------------------------

SCENARIO = """\
name: mine
model: mixtral-8x7b
machine: epyc-9654-4x-l40s
engine: vllm
precision: {{weights: bf16, activations: bf16, kv_cache: bf16}}
placements:
  - {placement}
workload: {{arrivals: {{process: batch}}, lengths: {{prompt: 8, output: 4}}, requests: 2}}
"""


def problems(tmp_path: Path, placement: str) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(SCENARIO.format(placement=placement))
    with pytest.raises(InputError) as refused:
        load_scenario(path, STRATEGIES)
    return str(refused.value)


@pytest.mark.parametrize(
    ("placement", "expected"),
    [
        ("{strategy: weight_streaming, gpu_share: ^1.5}", "gpu_share = 1.5: must be at most 1"),
        ("{strategy: weight_streaming, gpu_layers: ^-1}", "gpu_layers = -1: must be at least 0"),
        ("{strategy: weight_streaming, buffers: ^0}", "buffers = 0: must be at least 1"),
        ("{strategy: weight_streaming, home: ^tape}", "home = 'tape': not one of: host, nvme"),
        ("{strategy: weight_streaming, prefetch: ^maybe}", "prefetch = 'maybe': write true or false"),
        ("{strategy: weight_streaming, ^gpu_layer: 3}", "gpu_layer = 3: unknown key; did you mean 'gpu_layers'?"),
        ("^{strategy: weight_streaming, gpu_layers: 3, gpu_share: 0.5}",
         "weight_streaming: give either `gpu_layers` or `gpu_share`"),
        ("^{strategy: weight_streaming, home: nvme, nvme_share: 0.5}",
         "weight_streaming: `nvme_share` is for home `host`"),
        ("^{strategy: weight_streaming, decode_attention: host}",
         "weight_streaming: decode_attention `host` needs kv `host`"),
        ("{strategy: weight_streaming, ^devices: []}", "devices: write at least one entry"),
        ("{strategy: tensor_parallel, degree: 2, ^devices: []}", "devices: write at least one entry"),
        ("{strategy: expert_parallel, degree: 2, ^devices: []}", "devices: write at least one entry"),
        ("{strategy: kv_offload, buffers: ^none}", "buffers = 'none': write a whole number"),
        ("{strategy: kv_offload, ^phases: all}", "phases = 'all': unknown key"),
        ("{strategy: attention_offload, phases: ^prefill}", "phases = 'prefill': not one of: decode, all"),
        ("{strategy: expert_offload, gpu_experts: ^2}", "gpu_experts = 2: must be at most 1"),
        ("{strategy: expert_offload, popularity: {zipf: ^-1}}", "popularity.zipf = -1: must be at least 0"),
        ("{strategy: expert_offload, popularity: ^1.0}", "popularity = 1.0: write a mapping of keys"),
        ("^{strategy: expert_parallel}", "degree: missing"),
        ("{strategy: hybrid, experts: ^some}", "experts = 'some': not one of: columns, whole"),
        ("^{strategy: hybrid, loops: 2, streamed_layers: 1}", "hybrid: `streamed_layers` needs `loops` 1"),
        ("^{strategy: hybrid, data_parallel: 2, cpu_layers: 1}", "hybrid: `cpu_layers` needs `data_parallel` 1"),
        ("^{strategy: custom}", "custom: give either `device_map` or `rules`"),
        ("^{strategy: custom, rules: []}", "custom: write at least one of `rules`"),
        ("{strategy: custom, rules: [^{part: mlp}]}", "rules.0.device: missing"),
        ("{strategy: custom, rules: [{part: ^norm, device: cpu}]}",
         "rules.0.part = 'norm': not one of: attention, mlp"),
        ("{strategy: custom, rules: [{part: mlp, device: cpu, ^layer: 3}]}",
         "rules.0.layer = 3: unknown key; did you mean 'layers'?"),
        ("{strategy: custom, rules: [{device: cpu, layers: ^3}]}", "rules.0.layers = 3: write a text"),
        ('{strategy: custom, device_map: {"": ^true}}',
         "device_map. = True: write a number, 'cuda:0', 'cpu' or 'disk'"),
        ("{strategy: custom, device_map: ^auto}", "device_map = 'auto': write a mapping"),
        ("{strategy: ^weight_stream}", "strategy = 'weight_stream': not one of: single_device"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named_in_its_place(tmp_path: Path, placement: str, expected: str) -> None:
    """`^` marks where the message must point to. There is one problem, so there is one line."""
    column = len("  - ") + placement.index("^") + 1
    found = problems(tmp_path, placement.replace("^", ""))
    assert f"mine.yaml:7:{column}: placements.0.{expected}" in found
    assert len(found.splitlines()) == 1

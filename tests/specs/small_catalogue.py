"""The files of a small catalogue, so that tests need none of the shipped ones, and two helpers."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from simulator.errors import InputError
from simulator.specs.base import Spec


class SingleDevice(Spec):
    strategy: Literal["single_device"]


class TensorParallel(Spec):
    strategy: Literal["tensor_parallel"]
    degree: int


class LayerSplit(Spec):
    strategy: Literal["layer_split"]
    gpu_layers: int
    order: tuple[int, ...] = ()


STRATEGIES = (SingleDevice, TensorParallel, LayerSplit)

FILES = {
    "hardware_profiles/devices/l40s.yaml": """\
name: NVIDIA L40S
kind: gpu
memory: {capacity: 46068 MiB, bandwidth: 864 GB/s, usable: 45_589 MiB}
compute: {bf16: 362 TFLOP/s, fp8: 733 TFLOP/s}
power: {idle: 35 W, max: 350 W}
price: {purchase: 7_000..10_000 USD}
efficiency:
  matmul.bf16: {compute: 0.81, memory: 0.87, overhead: 3.4 us, blend: 2.7}
sources:
  memory: {kind: datasheet, ref: sheet, date: 2022-10}
  compute: {kind: datasheet, ref: sheet}
  power: {kind: datasheet, ref: sheet}
  price: {kind: published, ref: shops, date: 2026}
  efficiency.matmul.bf16: {kind: measured, ref: runs, samples: 21312, median_error: 6.4%}
""",
    "hardware_profiles/devices/epyc.yaml": """\
name: AMD EPYC 9654
kind: cpu
memory: {capacity: 384 GiB, bandwidth: 460.8 GB/s}
compute: {fp32: 4..6 TFLOP/s, bf16: 10 TFLOP/s}
price: {purchase: 5_000..9_000 USD}
sources: {memory: &sheet {kind: datasheet, ref: sheet}, compute: *sheet, price: *sheet}
""",
    "hardware_profiles/hosts/nr1.yaml": """\
name: NR1
kind: network-attached
cores: 1..64
memory: {capacity: 192 GB, bandwidth: unknown}
cpu: unknown
offload_fraction: 0..0.9
max_devices: 4
power: {idle: unknown, max: 30..150 W}
price: {purchase: unknown}
sources:
  cores: {kind: assumed, ref: guess}
  memory: {kind: published, ref: press}
  offload_fraction: {kind: vendor-claim, ref: press}
  max_devices: {kind: published, ref: press}
  power: {kind: assumed, ref: guess}
""",
    "hardware_profiles/hosts/server.yaml": """\
name: Two-socket server
kind: server
cores: 192
memory: {capacity: 768 GiB, bandwidth: 921.6 GB/s}
cpu: {device: epyc, sockets: 2, share: 50 %}
power: {idle: 200 W, max: 900 W}
price: {purchase: {range: 10_000..20_000 USD, nominal: 12_000 USD}}
sources: {cores: &guess {kind: assumed, ref: guess}, memory: *guess, cpu: *guess, power: *guess, price: *guess}
""",
    "hardware_profiles/links/pcie4-x16.yaml": """\
name: PCIe 4.0 x16
bandwidth: 252 Gb/s
latency: 1 us
efficiency: 0.8
sources: {bandwidth: &sheet {kind: datasheet, ref: sheet}, latency: *sheet, efficiency: *sheet}
""",
    "hardware_profiles/machines/server-4x-l40s.yaml": """\
name: A server with four L40S
host: server
devices: {l40s: 4}
host_link: pcie4-x16
network: pcie4-x16
""",
    "hardware_profiles/machines/nr1-4x-l40s.yaml": """\
{name: NR1 with four L40S, host: nr1, devices: {l40s: 4}, host_link: pcie4-x16}
""",
    "hardware_profiles/machines/duo.yaml": """\
name: Two unlike nodes
network: pcie4-x16
nodes:
  - {name: a, host: nr1, devices: {l40s: 2}, host_link: pcie4-x16, price: {purchase: 100..150 USD}}
  - {name: b, host: server, devices: {l40s: 1, epyc: 1}, host_link: pcie4-x16, interconnect: pcie4-x16}
""",
    "models/llama-3.1-8b.yaml": """\
name: Llama 3.1 8B
config:
  model_type: llama
  hidden_size: 4096
  num_hidden_layers: 32
  num_attention_heads: 32
  num_key_value_heads: 8
  intermediate_size: 14336
  vocab_size: 128256
  max_position_embeddings: 131072
  rms_norm_eps: 1e-05
  rope_theta: 500000.0
  rope_scaling:
    {factor: 8.0, high_freq_factor: 4.0, low_freq_factor: 1.0,
     original_max_position_embeddings: 8192, rope_type: llama3}
sources: {config: {kind: published, ref: the model card}}
""",
    "scenarios/engines/vllm.yaml": """\
name: vLLM 0.19
scheduler: {max_num_seqs: 256, max_num_batched_tokens: 2048, chunked_prefill: true,
            kv_block_tokens: 16, full_reservation: false}
memory: {utilization: 90 %, context: 500 MiB, sampler_bytes_per_logit: 8}
overheads: {step: 1..2 ms, per_sequence: 5 us}
host_stages: {receive: 50 us/request, tokenize: 2 us/token, detokenize: 2 us, send: 1 us/token}
sources: {overheads: {kind: assumed, ref: guess}}
""",
    "scenarios/lengths/azure-conv-2023.yaml": """\
name: Azure conversations
bins:
  - [1, 10, 1, 10, 4]
  - [11, 20, 1, 10, 2]
source: {kind: measured, ref: the trace}
""",
    "scenarios/chat.yaml": """\
name: who should host the accelerators?
model: llama-3.1-8b
machine: [server-4x-l40s, nr1-4x-l40s]
engine: vllm
precision: {weights: fp8, activations: bf16, kv_cache: fp8}
placements:
  - {strategy: single_device}
  - {strategy: tensor_parallel, degree: 4}
  - {strategy: layer_split, gpu_layers: [16, 24]}
workload:
  arrivals: {process: poisson, rate: 4 req/s}
  lengths: {histogram: azure-conv-2023}
  requests: 1000
slo: {ttft_p99: 1 s, tpot_p99: 60 ms}
cost: {electricity: 0.09 USD/kWh, pue: 1.25, life: 5 years, discount: 8 %/year}
seed: 1
""",
}


def write(folder: Path, name: str, text: str) -> Path:
    """Write one file, making its folders."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def lines_of(call: Callable[[], object]) -> list[str]:
    """The problems that `call` raises, each as `line:column: key...` without the file's folder."""
    with pytest.raises(InputError) as caught:
        call()
    return [str(replace(each, path=_short(each.path))) for each in caught.value.problems]


def _short(path: str | Path) -> str:
    """A file's bare name; anything else, such as a command-line option, as it is."""
    return Path(path).name if Path(path).is_absolute() else str(path)

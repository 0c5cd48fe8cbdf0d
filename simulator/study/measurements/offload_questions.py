"""What the rows of `hybrid_offload` ask: machine, model, engine, number formats, placement and batch.

Each source has a function of its own, because each says these things in its own words. What a source leaves
out is said where it is filled in.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Annotated, Any, Union

from pydantic import Field, TypeAdapter, ValidationError

from simulator.placement.strategies import STRATEGIES, Strategy
from simulator.specs.catalogue import Catalogue
from simulator.specs.model import load_model
from simulator.specs.scenario import PrecisionChoice
from simulator.study.measurements.deployments import PRECISIONS
from simulator.study.measurements.table import Row

MODELS = {
    "Qwen2.5-Coder-14B": "qwen2.5-coder-14b",
    "Llama-2-7B": "llama-2-7b",
    "OPT-6.7B": "opt-6.7b",
    "OPT-30B": "opt-30b",
    "OPT-175B": "opt-175b",
    "GPT-J-6B": "gpt-j-6b",
    "GPT-NeoX-20B": "gpt-neox-20b",
    "Qwen3-Next-80B-A3B-Instruct": "qwen3-next-80b-a3b",
    "DeepSeek-R1/V3-671B": "deepseek-v3",
}


def _formats(weights: str, activations: str, kv_cache: str) -> PrecisionChoice:
    return PrecisionChoice.model_validate(
        {"weights": weights, "activations": activations, "kv_cache": kv_cache}
    )


FORMATS: Mapping[str, PrecisionChoice] = dict(PRECISIONS) | {
    "FP8": _formats("fp8", "bf16", "bf16"),
    "Q4_0": _formats("q4_0", "fp16", "fp16"),
    "Q4_K_M": _formats("q4_k_m", "fp16", "fp16"),
    "int4 weights+kv": _formats("int4", "fp16", "int4"),
    "fp16 weights, int4 kv": _formats("fp16", "fp16", "int4"),
    "INT8 weight-only": _formats("int8", "bf16", "bf16"),
}
"""By the table's names. FlexGen's 4 bits have a scale and an offset every 64 numbers: its KV is an eighth
more."""

LLAMAFILE = _formats("q4_k_m", "fp32", "bf16")
"""A CPU multiplies experts with AVX-512 in fp32, as llamafile's kernels and llama.cpp do, without AMX."""

TENSORS_OF_A_LAYER = ((1, 1, 1, 1), (4, 4))
"""Sizes of the matrices of OPT's attention and feed-forward part, in the order FlexGen places them in."""

GPU_BATCHES = {144: 3, 256: 8, 512: 8}
"""GPU batches in FlexGen's block, by the effective batch: FMInference/FlexGen@19753bc0 bench_suite.py."""

SHORT_PROMPT, REST_OF_TWENTY = 8, 12
"""Tokens of accelerate's runs: 20 in all, the prompt a short sentence (its length is not stated)."""

FROM_EMPTY = 1
"""llama-bench generates from an empty cache: its first pass has one token."""

CHAT_PROMPT, CHAT_OUTPUT = 512, 128
"""Where a source states no lengths and only the shape over a parameter is compared."""

KTRANSFORMERS_OUTPUT = 300
"""What most of its rows generate; the others do not say."""

IPEX_PROMPT, IPEX_OUTPUT = 256, 32
"""The shorter of the two prompts its page names; the table does not say which, nor how many tokens came."""


@dataclass(frozen=True)
class Question:
    """A batch of equal requests, all there at once, on a placed model."""

    machine: str | Mapping[str, Any]
    model: str
    engine: str
    precision: PrecisionChoice
    placement: Mapping[str, Any]
    """As a scenario would say it."""
    batch: int
    prompt: int
    output: int
    active_experts: int | None = None
    """Of each token, where the run changed the model."""
    pinned: bool | None = None
    """Host memory, where the run differed from the engine's profile."""
    is_for_shape: bool = False
    """Lengths and users are ours, so only ratios between rows may be compared."""


def strategy_of(placement: Mapping[str, Any]) -> Strategy | str:
    """The strategy that a mapping describes, or why there is none."""
    name = placement["strategy"]
    known = [kind.model_fields["strategy"].default for kind in STRATEGIES]
    if name not in known:
        return f"strategy {name}: not supported yet"
    kinds: Any = Annotated[Union[STRATEGIES], Field(discriminator="strategy")]  # noqa: UP007 - built from a tuple
    adapter: TypeAdapter[Strategy] = TypeAdapter(kinds)
    try:
        return adapter.validate_python(dict(placement))
    except ValidationError as error:
        first = error.errors()[0]
        return f"strategy {name}: {'.'.join(map(str, first['loc'][1:]))}: {first['msg']}"


def question_of(row: Row, catalogue: Catalogue) -> Question | str:
    """What a row asks, or why it asks nothing that can be simulated. Raises InputError for what makes no
    sense."""
    for start, ask in _SOURCES.items():
        if row.text("source").startswith(start):
            if row.text("model") not in MODELS:
                return f"model {row.text('model')}: not in the catalogue yet"
            if row.text("quant") not in FORMATS:
                return f"quant {row.text('quant')}: not supported yet"
            return ask(row, catalogue)
    return f"source {row.text('source')}: not supported yet"


def _ask(row: Row, machine: str | Mapping[str, Any], engine: str, placement: Mapping[str, Any],
         lengths: tuple[int, int, int], **more: Any) -> Question:  # fmt: skip
    """lengths: sequences, tokens of each prompt and of each answer."""
    defaults: dict[str, Any] = {"model": MODELS[row.text("model")], "precision": FORMATS[row.text("quant")]}
    batch, prompt, output = lengths
    return Question(machine=machine, engine=engine, placement=placement, batch=batch, prompt=prompt,
                    output=output, **(defaults | more))  # fmt: skip


# -- llama.cpp ---------------------------------------------------------------------------------------------


def _inventive(row: Row, catalogue: Catalogue) -> Question | str:
    """The host is not stated. With all layers on the GPU it does not decide; where it computes some it sets
    the level, but hardly by which factor a step gets shorter when the GPU takes more of them."""
    layers = load_model(MODELS[row.text("model")], catalogue).num_hidden_layers
    machine = {"host": "desktop-13900k", "devices": {"rtx-5060-ti-16": 1}, "host_link": "pcie-gen4-x8"}
    lengths = (1, FROM_EMPTY, CHAT_OUTPUT)
    on_gpu = round(row.number_or_zero("placement_value"))
    if on_gpu >= layers:
        return _ask(row, machine, "llama.cpp", {"strategy": "single_device"}, lengths)
    placement = {"strategy": "layer_split", "gpu_layers": on_gpu}
    return _ask(row, machine, "llama.cpp", placement, lengths, is_for_shape=True)


def _slaren(row: Row, _: Catalogue) -> Question | str:
    """Without KV offload that build also computes attention where KV lives. The processor is not stated."""
    on_host = row.text("placement_value") == "1"
    placement: dict[str, Any] = {"strategy": "single_device"}
    if on_host:
        placement = {"strategy": "attention_offload", "phases": "all"}
    if row.text("metric") == "prefill_throughput":
        lengths = (1, row.count("prompt_len"), 1)
    else:
        lengths = (1, FROM_EMPTY, row.count("gen_len"))
    return _ask(row, "rtx-3090-ti-desktop", "llama.cpp", placement, lengths)


# -- FlexGen and what it was compared with -----------------------------------------------------------------


def _flexgen(row: Row, _: Catalogue) -> Question | str:
    software = row.text("software")
    lengths = (row.count("batch_size"), row.count("prompt_len"), row.count("gen_len"))
    if software in ("FlexGen", "FlexGen(c)"):
        placement = _percentages(row)
        if isinstance(placement, str):
            return placement
        pinned = False if _is_pageable(row, placement) else None
        return _ask(row, "gcp-n1-t4", "flexgen", placement, lengths, pinned=pinned)
    level = row.text("placement_value").removeprefix("lowest level: ")
    if software == "HF Accelerate":
        return _ask(row, "gcp-n1-t4", "transformers", _streamed_from(level, buffers=1), lengths)
    if software == "DeepSpeed ZeRO-Inference":
        return _ask(row, "gcp-n1-t4", "transformers", _streamed_from(level, buffers=2), lengths, pinned=True)
    return f"software {software}: not supported yet"


def _is_pageable(row: Row, placement: Mapping[str, Any]) -> bool:
    """Whether most of what is copied is not pinned: OPT-175B ran with `--pin-weight 0` (bench_suite.py), and
    keys and values on the CPU never are ("due to high memory overhead", pytorch_backend.py)."""
    brings_kv = placement.get("kv") == "host" and placement["decode_attention"] == "device"
    return row.text("model") == "OPT-175B" or brings_kv


def _streamed_from(level: str, buffers: int) -> dict[str, Any]:
    """All layers where the run says, embedding and head on the GPU: benchmark/hf_ds/hf_opt.py of FlexGen.
    accelerate copies a layer when its turn comes; DeepSpeed fetches ahead."""
    if level == "gpu":
        return {"strategy": "single_device"}
    home = {"cpu": "host", "disk": "nvme"}[level]
    return {"strategy": "weight_streaming", "gpu_layers": 0, "home": home, "buffers": buffers,
            "microbatches": 1, "kv": "device", "decode_attention": "device"}  # fmt: skip


def _percentages(row: Row) -> dict[str, Any] | str:
    """`--percent` of weights, KV and activations on GPU and CPU; what is left is on disk."""
    shares = [int(number) for number in re.findall(r"\d+", row.text("placement_value"))]
    if len(shares) != 6:
        return f"--percent {row.text('placement_value')}: six numbers are due"
    weights_gpu, weights_cpu, kv_gpu, kv_cpu = shares[:4]
    if weights_gpu == 100 and kv_gpu == 100:
        return {"strategy": "single_device"}
    kv = _home_of_kv(kv_gpu, kv_cpu)
    if kv is None:
        return "KV in two places: no strategy says so"
    on_host = "CPU attention" in row.text("notes") and kv == "host"
    return {"strategy": "weight_streaming", **_realised(weights_gpu, weights_cpu), "buffers": 2,
            "microbatches": GPU_BATCHES.get(row.count("batch_size"), 1),
            "kv": kv, "decode_attention": "host" if on_host else "device"}  # fmt: skip


def _home_of_kv(gpu: int, cpu: int) -> str | None:
    """From drives, keys and values go through the CPU or the GPU alike: the drive sets the pace."""
    return {(100, 0): "device", (0, 100): "host", (0, 0): "nvme"}.get((gpu, cpu))


def _realised(gpu: int, cpu: int) -> dict[str, Any]:
    """Shares of the layers' weights, which are not those asked for: matrices of a layer's part go whole to
    disk, CPU or GPU, each by where the middle of its bytes lies (init_weight_list of flex_opt.py)."""
    disk_ends, cpu_ends = 100 - gpu - cpu, 100 - gpu
    found = Counter[str]()
    for sizes in TENSORS_OF_A_LAYER:
        for size, end in zip(sizes, accumulate(sizes), strict=True):
            middle = 100 * (end - size / 2) / sum(sizes)
            found["disk" if middle < disk_ends else "cpu" if middle < cpu_ends else "gpu"] += size
    shares = {place: size / found.total() for place, size in found.items()}
    if "cpu" not in shares:
        return {"gpu_share": shares.get("gpu", 0.0), "home": "nvme"}
    far = {"nvme_share": shares["disk"]} if "disk" in shares else {}
    return {"gpu_share": shares.get("gpu", 0.0), "home": "host", **far}


# -- transformers with accelerate --------------------------------------------------------------------------


def _accelerate(row: Row, catalogue: Catalogue) -> Question | str:
    if row.text("metric") == "model_load_time":
        return "model_load_time: loading a model is not simulated"
    sizes = [float(size) for size in re.findall(r"(?:GPU\d|CPU) ([\d.]+)GB", row.text("placement_value"))]
    if len(sizes) != 3 or "disk offload no" not in row.text("placement_value"):
        return f"device_map {row.text('placement_value')}: not supported yet"
    layers = load_model(MODELS[row.text("model")], catalogue).num_hidden_layers
    return _ask(row, "titan-rtx-2-desktop", "transformers", _device_map(sizes, layers),
                (row.count("batch_size"), SHORT_PROMPT, REST_OF_TWENTY))  # fmt: skip


def _device_map(sizes: list[float], layers: int) -> dict[str, Any]:
    """Layers in order over two GPUs and the CPU, in proportion to the bytes that each was given."""
    ends = [round(layers * end / sum(sizes)) for end in accumulate(sizes)]
    first, second, off_loaded = (end - start for start, end in pairwise((0, *ends)))
    if not off_loaded:
        if not second:
            return {"strategy": "single_device"}
        return {"strategy": "layer_split", "devices": ["gpu-0", "gpu-1"], "layers": [first, second]}
    places = [0] * first + [1] * second + ["cpu"] * off_loaded
    device_map = {f"model.decoder.layers.{layer}": place for layer, place in enumerate(places)}
    ends_on = {"model.decoder.embed_tokens": 0, "model.decoder.embed_positions": 0,
               "model.decoder.final_layer_norm": 0, "lm_head": 0}  # fmt: skip
    return {"strategy": "custom", "device_map": ends_on | device_map}


# -- KTransformers -----------------------------------------------------------------------------------------


def _scheduled_experts(row: Row, _: Catalogue) -> Question | str:
    """Four ranks; neither users nor lengths are stated, so one user with a chat's lengths stands for them."""
    placement = {"strategy": "expert_offload", "gpu_experts": row.number_or_zero("placement_value") / 100,
                 "tensor_parallel": row.count("num_gpus")}  # fmt: skip
    return _ask(row, "xeon-6454s-1s-4x-rtx-4090", "ktransformers", placement,
                (1, CHAT_PROMPT, CHAT_OUTPUT), is_for_shape=True)  # fmt: skip


def _ktransformers(row: Row, _: Catalogue) -> Question | str:
    """An RTX 4090 stands for a 4090D. With two processors each keeps a copy of the experts, so that both read
    their own DRAM: one device here, with the bandwidth of both."""
    sockets = 1 if row.text("cpu").startswith("1x") else 2
    experts = int(row.text("placement_value").split()[0])
    lengths = (row.count("batch_size"), row.count("prompt_len"),
               row.count("gen_len") if row.text("gen_len") else KTRANSFORMERS_OUTPUT)  # fmt: skip
    engine, placement = "ktransformers", {"strategy": "expert_offload", "gpu_experts": 0.0}
    if row.text("software") == "llama.cpp":
        engine, placement = "llama.cpp", {"strategy": "single_device", "device": "cpu"}
    return _ask(row, f"xeon-6454s-{sockets}s-rtx-4090", engine, placement, lengths, precision=LLAMAFILE,
                active_experts=experts)  # fmt: skip


# -- a processor alone -------------------------------------------------------------------------------------


def _ipex(row: Row, _: Catalogue) -> Question | str:
    placement = {"strategy": "single_device", "device": "cpu"}
    lengths = (row.count("batch_size"), IPEX_PROMPT, IPEX_OUTPUT)
    return _ask(row, "aws-m7i-16xlarge", "ipex", placement, lengths)


_SOURCES: Mapping[str, Callable[[Row, Catalogue], Question | str]] = {
    "InventiveHQ": _inventive,
    "llama.cpp PR #4812": _slaren,
    "FlexGen repo": _flexgen,
    "HF accelerate": _accelerate,
    "ktransformers experts-sched": _scheduled_experts,
    "ktransformers DeepSeek": _ktransformers,
    "IPEX": _ipex,
}
"""By how the name of a source begins."""

"""Models as published runs placed and served them: names to catalogue ids, engines with a run's settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from simulator.errors import InputError
from simulator.placement.strategies import SingleDevice, TensorParallel
from simulator.results.records import RunRecord
from simulator.serving.arrivals import Request, Source
from simulator.simulation.serve import serve
from simulator.specs.catalogue import Catalogue
from simulator.specs.engine import HostStages
from simulator.specs.model import load_model
from simulator.specs.scenario import PrecisionChoice
from simulator.study.deploy import Deployment, reset

PRECISIONS: Mapping[str, PrecisionChoice] = {
    "bf16": PrecisionChoice(weights="bf16", activations="bf16", kv_cache="bf16"),
    "bfloat16": PrecisionChoice(weights="bf16", activations="bf16", kv_cache="bf16"),
    "fp16": PrecisionChoice(weights="fp16", activations="fp16", kv_cache="fp16"),
    "float16": PrecisionChoice(weights="fp16", activations="fp16", kv_cache="fp16"),
    "fp8": PrecisionChoice(weights="fp8", activations="bf16", kv_cache="fp8"),
}
"""Number formats by the names that published tables use; runs in fp8 keep their KV cache in fp8 too."""

SUFFIXES = ("-instruct", "-chat", "-hf", "-fp8")
"""What a published checkpoint's name adds to that of its architecture."""


def model_id(checkpoint: str) -> str:
    """The catalogue's id of a Hugging Face checkpoint.

    >>> model_id("meta-llama/Llama-3.1-8B-Instruct")
    'llama-3.1-8b'
    """
    name = checkpoint.rsplit("/", 1)[-1].lower().removeprefix("meta-")
    while name.endswith(SUFFIXES):
        name = name.rsplit("-", 1)[0]
    return name


def why_no_model(checkpoint: str, catalogue: Catalogue) -> str | None:
    """Why a checkpoint cannot be simulated; None if it can."""
    name = model_id(checkpoint)
    if catalogue.find("models", name) is None:
        return f"model {checkpoint}: not in the catalogue yet"
    try:
        load_model(name, catalogue)
    except InputError as error:
        return f"model {checkpoint}: {error.problems[0].advice}"
    return None


def strategy_of(degree: int) -> SingleDevice | TensorParallel:
    """How a run with this degree of tensor parallelism is placed."""
    return SingleDevice() if degree == 1 else TensorParallel(degree=degree)


def with_scheduler(deployment: Deployment, settings: Mapping[str, Any]) -> Deployment:
    """The same placement under scheduler settings of the run's own."""
    return replace(deployment, engine=reset(deployment.engine, settings))


def in_process(deployment: Deployment) -> Deployment:
    """The same engine driven with token ids by the benchmark's own process: no HTTP, no tokenizing."""
    nothing = HostStages(receive_s=0.0, tokenize_s=0.0, detokenize_s=0.0, send_s=0.0)
    return replace(deployment, engine=deployment.engine.model_copy(update={"host_stages": nothing}))


def over_http(deployment: Deployment, client_s: float) -> Deployment:
    """The same engine asked by a client that takes so long for each request, with all that is between."""
    stages = deployment.engine.host_stages
    stages = stages.model_copy(update={"receive_s": stages.receive_s + client_s})
    return replace(deployment, engine=deployment.engine.model_copy(update={"host_stages": stages}))


def served(
    deployment: Deployment, requests: Sequence[Request], users: int | None = None,
    kv_blocks: int | None = None,
) -> RunRecord:  # fmt: skip
    """Serve requests once, with the KV blocks that fit unless their count is stated."""
    blocks = deployment.blocks if kv_blocks is None else kv_blocks
    return serve(deployment.programs, deployment.engine, blocks, lambda: Source(requests, users),
                 cores=deployment.cores)  # fmt: skip

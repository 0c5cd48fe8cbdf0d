"""`generate`: the token loop on a real network, with the simulated clock of each machine beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from simulator.errors import InputError, Problem
from simulator.placement.memory import refusal
from simulator.placement.placement import NotPlaceable
from simulator.placement.strategies import SingleDevice
from simulator.serving.arrivals import Request, Source
from simulator.simulation.serve import serve
from simulator.specs.architecture import Architecture
from simulator.specs.base import Case
from simulator.specs.catalogue import Catalogue
from simulator.specs.model import load_model
from simulator.specs.scenario import PrecisionChoice
from simulator.study.deploy import deploy

DEFAULT_MACHINES = ("t4-server", "epyc-9654-4x-l40s", "nr1-4x-l40s", "hgx-h100-8")
PRECISION = PrecisionChoice(weights="fp32", activations="fp32", kv_cache="fp32")
"""What the network really computes in, so what the clock prices."""

LARGEST_VOCABULARY = 4096
BYTES = 256
"""The tokens of a model without a tokenizer: the bytes of UTF-8."""
PRINTABLE = range(ord(" "), ord("~") + 1)
"""Those that the answer is chosen from, so that it can be read."""


@dataclass(frozen=True)
class GeneratedToken:
    """One round of the loop."""

    number: int
    phase: str
    """`prefill` for the first token, which takes the whole prompt; then `decode`."""
    token_id: int
    text: str
    probability: float
    """Of the chosen token, the likeliest."""
    clock_s: Mapping[str, float]
    """When a client of each machine would have it, after sending the prompt."""


@dataclass(frozen=True)
class Generated:
    """What a model said, and when machines would have said it."""

    model: str
    prompt: str
    prompt_tokens: int
    tokens: tuple[GeneratedToken, ...]
    last_token_s: Mapping[str, tuple[float, float]]
    """The ends between which the last token comes, on machines some figure of which is uncertain."""
    not_placed: Mapping[str, str]
    """Machines that cannot run the model, and why."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def generate(
    prompt: str, model_ref: str, machines: Sequence[str] = DEFAULT_MACHINES, engine: str = "vllm",
    count: int = 16, seed: int = 0,
) -> Generated:  # fmt: skip
    """Generate `count` tokens after `prompt`, greedily, on a network with random weights.

    The first accelerator of each machine serves the request alone. Raises InputError for a prompt that is
    empty or too long, and for a model whose tokens are not bytes.
    """
    catalogue = Catalogue()
    unknown = [machine for machine in machines if catalogue.find("machines", machine) is None]
    if unknown:
        raise InputError([
            Problem("command line", key="--machine", value=name, advice=catalogue.advice("machines", name))
            for name in unknown
        ])  # fmt: skip
    model = load_model(model_ref, catalogue)
    ids = list(prompt.encode())
    _check(model, model_ref, ids, count)
    clocks: dict[str, list[float]] = {}
    ends: dict[str, tuple[float, float]] = {}
    refused: dict[str, str] = {}
    for machine in dict.fromkeys(machines):
        cases: list[list[float] | str] = [
            _clock(machine, model, engine, len(ids), count, catalogue, case)
            for case in ("nominal", "best", "worst")
        ]
        refusals = [case for case in cases if isinstance(case, str)]
        if refusals:
            refused[machine] = refusals[0]
            continue
        nominal, *others = (case for case in cases if not isinstance(case, str))
        clocks[machine] = nominal
        last = [times[-1] for times in (nominal, *others)]
        if min(last) < max(last):
            ends[machine] = (min(last), max(last))
    tokens, probabilities = _run(model, ids, count, seed)
    rows = tuple(
        GeneratedToken(
            number + 1, "decode" if number else "prefill", token, chr(token), probability,
            {machine: times[number] for machine, times in clocks.items()},
        )
        for number, (token, probability) in enumerate(zip(tokens, probabilities, strict=True))
    )  # fmt: skip
    return Generated(model.name, prompt, len(ids), rows, ends, refused)


def _check(model: Architecture, ref: str, ids: Sequence[int], count: int) -> None:
    if not BYTES <= model.vocab_size <= LARGEST_VOCABULARY:
        advice = ("has no tokenizer here, and its vocabulary is not bytes; "
                  "take a tiny model, such as tiny-llama or tiny-gpt2")  # fmt: skip
        raise InputError([Problem("command line", key="--model", value=ref, advice=advice)])
    if not ids:
        advice = "write at least one character"
        raise InputError([Problem("command line", key="TEXT", value="", advice=advice)])
    longest = model.max_position_embeddings
    if len(ids) + count > longest:
        advice = f"prompt and answer take {len(ids) + count} tokens, the model has {longest} positions"
        raise InputError([Problem("command line", key="TEXT", advice=advice)])


def _clock(
    machine: str, model: Architecture, engine: str, prompt_tokens: int, count: int, catalogue: Catalogue,
    case: Case,
) -> list[float] | str:  # fmt: skip
    """When each token reaches the client, or why the machine cannot run the model."""
    deployment = deploy(machine, model, engine, PRECISION, SingleDevice(), catalogue, case)
    if isinstance(deployment, NotPlaceable):
        return deployment.reason
    reason = refusal(deployment.budget, prompt_tokens + count)
    if reason is not None:
        return reason
    request = Request(0, 0.0, prompt_tokens, count)
    record = serve(
        deployment.program, deployment.engine, deployment.budget.kv_blocks, lambda: Source([request]),
        cores=deployment.cores,
    )  # fmt: skip
    times = [record.requests[0].first_received_s]
    for gap_s in record.gaps_s.tolist():
        times.append(times[-1] + gap_s)
    return times


def _run(model: Architecture, ids: Sequence[int], count: int, seed: int) -> tuple[list[int], list[float]]:
    """Tokens and their probabilities, from actual forward passes."""
    from simulator.execution.replay import plain_generation

    return plain_generation(model, ids, count, seed, PRINTABLE)

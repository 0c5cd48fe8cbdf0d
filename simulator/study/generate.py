"""`generate`: the token loop on a real network, with the clock of this machine and the simulated clock of
others beside it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simulator.errors import InputError, Problem, did_you_mean
from simulator.execution.packaged_weights import PACKAGES, load_packaged
from simulator.execution.tokenizer import pieces
from simulator.placement.memory import refusal
from simulator.placement.placement import NotPlaceable
from simulator.placement.strategies import SingleDevice
from simulator.serving.arrivals import Request, Source
from simulator.simulation.serve import serve
from simulator.specs.architecture import Architecture
from simulator.specs.base import Case, is_path
from simulator.specs.catalogue import Catalogue
from simulator.specs.hardware import Precision
from simulator.specs.model import model_asked_for
from simulator.specs.scenario import PrecisionChoice
from simulator.study.deploy import deploy

if TYPE_CHECKING:
    from simulator.execution.generation import Chosen, LanguageModel

DEFAULT_MACHINES = ("t4-server", "epyc-9654-4x-l40s", "nr1-4x-l40s", "hgx-h100-8")

PRICED_IN: Mapping[str, Precision] = {"fp32": "fp32", "bf16": "bf16", "fp16": "fp16"}
"""Number formats that machines can be asked to keep and compute everything in."""

LARGEST_VOCABULARY = 4096
BYTES = 256
"""The tokens of a model without a tokenizer: the bytes of UTF-8."""


@dataclass(frozen=True)
class GeneratedToken:
    """One round of the loop."""

    number: int
    phase: str
    """`prefill` for the first token, which takes the whole prompt; then `decode`."""
    token_id: int
    text: str
    """What it adds; a character of several tokens comes with its last."""
    probability: float
    """Of the chosen token, the likeliest."""
    measured_s: float
    """When the network on this machine had it, after it was given the prompt."""
    clock_s: Mapping[str, float]
    """When a client of each machine would have it, after sending the prompt."""


@dataclass(frozen=True)
class Generated:
    """What a model said, and when machines would have said it."""

    model: str
    weights: str | None
    """Where they come from; None for random ones."""
    prompt: str
    prompt_tokens: int
    text: str
    """What follows the prompt, with the name of the token that ended it, if one did."""
    tokens: tuple[GeneratedToken, ...]
    precision: Precision
    """The number format that machines are priced in."""
    computed_in: Precision
    """The number format that the network computed in here."""
    measured_on: Mapping[str, str | int]
    """`cpu` and `threads` behind `measured_s`."""
    last_token_s: Mapping[str, tuple[float, float]]
    """The ends between which the last token comes, on machines some figure of which is uncertain."""
    not_placed: Mapping[str, str]
    """Machines that cannot run the model, and why."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def generate(
    prompt: str, model_ref: str, machines: Sequence[str] = DEFAULT_MACHINES, engine: str = "vllm",
    count: int = 16, seed: int = 0, precision: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Generated:  # fmt: skip
    """Generate up to `count` tokens after `prompt`, greedily, and price the same tokens on machines.

    The first accelerator of each machine serves the request alone, in `precision`, or else in the format that
    the network computes in here. Raises InputError for a prompt that is empty or too long, and where a model
    has no weights.
    """
    catalogue = Catalogue()
    _check_options(machines, precision, catalogue)
    model = _language_model(model_ref, catalogue, seed)
    ids = _ids(prompt, model, model_ref, count)

    from simulator.execution.generation import greedy

    chosen, here = greedy(model, ids, count, progress)
    texts = pieces(model.tokenizer, ids, [token.token_id for token in chosen])
    priced_in = PRICED_IN[precision] if precision else model.precision
    answers = {
        machine: _clocks(machine, model.arch, engine, priced_in, (len(ids), len(chosen)), catalogue)
        for machine in machines
    }
    clocks = {machine: cases for machine, cases in answers.items() if not isinstance(cases, str)}
    refused = {machine: reason for machine, reason in answers.items() if isinstance(reason, str)}
    return Generated(
        model.arch.name, model.weights, prompt, len(ids), "".join(texts), _rows(chosen, texts, clocks),
        priced_in, model.precision, asdict(here), _ends(clocks), refused,
    )  # fmt: skip


def _check_options(machines: Sequence[str], precision: str | None, catalogue: Catalogue) -> None:
    problems = [
        Problem("command line", key="--machine", value=name, advice=catalogue.advice("machines", name))
        for name in machines
        if catalogue.find("machines", name) is None
    ]
    if precision is not None and precision not in PRICED_IN:
        advice = f"not one of: {', '.join(PRICED_IN)}{did_you_mean(precision, PRICED_IN)}"
        problems.append(Problem("command line", key="--precision", value=precision, advice=advice))
    if problems:
        raise InputError(problems)


def _language_model(ref: str, catalogue: Catalogue, seed: int) -> LanguageModel:
    """A model in a folder, one whose weights are in a package, or a tiny one with random weights."""
    folder, is_id = Path(ref).expanduser(), catalogue.find("models", ref) is not None
    if not is_id and not is_path(ref) and (os.sep in ref or folder.is_dir()):
        from simulator.execution.weights_folder import load_folder

        return load_folder(folder)
    model = model_asked_for(ref, catalogue)
    if ref in PACKAGES:
        return load_packaged(ref, catalogue)
    if not BYTES <= model.vocab_size <= LARGEST_VOCABULARY:
        advice = ("has no weights and no tokenizer here, and its vocabulary is not bytes; take smollm2-135m, "
                  "a folder of safetensors, or a tiny model, such as tiny-llama or tiny-gpt2")  # fmt: skip
        raise InputError([Problem("command line", key="--model", value=ref, advice=advice)])
    from simulator.execution.generation import random_language_model

    return random_language_model(model, seed)


def _ids(prompt: str, model: LanguageModel, ref: str, count: int) -> list[int]:
    """The prompt as the model reads it; raises InputError where it has no room or nothing to go on."""
    if model.arch.is_encoder:
        advice = "is an encoder, which makes no text; take a decoder, such as tiny-llama"
        raise InputError([Problem("command line", key="--model", value=ref, advice=advice)])
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise InputError([Problem("command line", key="TEXT", advice="is not UTF-8; write it so")]) from None
    ids = model.tokenizer.encode(prompt)
    if not ids or not prompt:
        advice = "write at least one character"
        raise InputError([Problem("command line", key="TEXT", value="", advice=advice)])
    longest = model.arch.max_position_embeddings
    if len(ids) + count > longest:
        advice = f"prompt and answer take {len(ids) + count} tokens, the model has {longest} positions"
        raise InputError([Problem("command line", key="TEXT", advice=advice)])
    return ids


def _clocks(
    machine: str, model: Architecture, engine: str, priced_in: Precision, tokens: tuple[int, int],
    catalogue: Catalogue,
) -> list[list[float]] | str:  # fmt: skip
    """When each token reaches the client, in the nominal, the best and the worst case; or why the machine
    cannot run the model. tokens: of the prompt and of the answer."""
    formats = PrecisionChoice(weights=priced_in, activations=priced_in, kv_cache=priced_in)
    cases: tuple[Case, ...] = ("nominal", "best", "worst")
    found = [_clock(machine, model, engine, formats, tokens, catalogue, case) for case in cases]
    reasons = [each for each in found if isinstance(each, str)]
    return reasons[0] if reasons else [each for each in found if not isinstance(each, str)]


def _clock(
    machine: str, model: Architecture, engine: str, formats: PrecisionChoice, tokens: tuple[int, int],
    catalogue: Catalogue, case: Case,
) -> list[float] | str:  # fmt: skip
    deployment = deploy(machine, model, engine, formats, SingleDevice(), catalogue, case)
    if isinstance(deployment, NotPlaceable):
        return deployment.reason
    reason = refusal(deployment.budget, sum(tokens))
    if reason is not None:
        return reason
    record = serve(
        deployment.programs, deployment.engine, deployment.budget.kv_blocks,
        lambda: Source([Request(0, 0.0, *tokens)]), cores=deployment.cores,
    )  # fmt: skip
    return list(accumulate((record.requests[0].first_received_s, *record.gaps_s.tolist())))


def _rows(
    chosen: Sequence[Chosen], texts: Sequence[str], clocks: Mapping[str, list[list[float]]]
) -> tuple[GeneratedToken, ...]:
    return tuple(
        GeneratedToken(
            number + 1, "decode" if number else "prefill", token.token_id, text, token.probability,
            token.measured_s, {machine: nominal[number] for machine, (nominal, *_) in clocks.items()},
        )
        for number, (token, text) in enumerate(zip(chosen, texts, strict=True))
    )  # fmt: skip


def _ends(clocks: Mapping[str, list[list[float]]]) -> dict[str, tuple[float, float]]:
    """Of the last token, on machines where its cases differ."""
    last = {machine: [times[-1] for times in cases] for machine, cases in clocks.items()}
    return {machine: (min(each), max(each)) for machine, each in last.items() if min(each) < max(each)}

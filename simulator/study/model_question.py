"""What `show --model` is asked: a model, the formats of its numbers, and the steps to show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from simulator.errors import InputError, Problem, did_you_mean
from simulator.graph.shape import Chunk, StepShape, Traits
from simulator.graph.work import Formats
from simulator.specs.architecture import Architecture
from simulator.specs.catalogue import Catalogue
from simulator.specs.hardware import PRECISIONS, Precision
from simulator.specs.model import model_asked_for
from simulator.specs.weight_formats import WEIGHT_CHOICES

USUAL_TOKENS = 512
"""Of the prompt, and before the decoded token, unless the model has fewer positions."""


@dataclass(frozen=True, slots=True)
class Step:
    """One forward pass: so many sequences alike."""

    name: str
    """`prefill` or `decode`."""
    sequences: int
    context: int
    """Tokens of each sequence that are cached already."""
    new: int
    """Tokens of each sequence that go through the layers."""

    def shape(self, model: Architecture) -> StepShape:
        """The sums that its amounts depend on."""
        chunks = (Chunk(number, self.context, self.new, commits=True) for number in range(self.sequences))
        return StepShape.of(chunks, Traits.of(model))


@dataclass(frozen=True, slots=True)
class ModelQuestion:
    """A model, the formats of its numbers, and the steps to show."""

    model: Architecture
    formats: Formats
    steps: tuple[Step, ...]
    """A prefill and a decode step; an encoder has no decode step."""


def ask(
    ref: str | Path, weights: str = "bf16", activations: str = "bf16", kv_cache: str = "bf16",
    prefill: int | None = None, decode: int | None = None, context: int | None = None,
) -> ModelQuestion:  # fmt: skip
    """The question about an id, a model file or a `config.json`; raises InputError with every problem."""
    model = model_asked_for(ref, Catalogue())
    room = model.max_position_embeddings
    prompt = min(USUAL_TOKENS, room) if prefill is None else prefill
    cached = min(USUAL_TOKENS, room - 1) if context is None else context
    problems = [
        *_unknown_formats(weights, {"--activations": activations, "--kv-cache": kv_cache}),
        *_too_long(model, {"--prefill": (prompt, room), "--context": (cached, room - 1)}),
        *(_decoding(model, {"--decode": decode, "--context": context}) if model.is_encoder else ()),
    ]
    if problems:
        raise InputError(problems)
    steps = [Step("prefill", 1, 0, prompt)]
    if not model.is_encoder:
        steps.append(Step("decode", 1 if decode is None else decode, cached, 1))
    return ModelQuestion(model, Formats(weights, _precision(activations), _precision(kv_cache)), tuple(steps))


def _precision(name: str) -> Precision:
    return next(each for each in PRECISIONS if each == name)


def _unknown_formats(weights: str, plain: Mapping[str, str]) -> Iterator[Problem]:
    asked = [
        ("--weights", weights, WEIGHT_CHOICES),
        *((key, name, PRECISIONS) for key, name in plain.items()),
    ]
    for key, name, known in asked:
        if name not in known:
            yield _problem(key, name, f"not one of: {', '.join(known)}{did_you_mean(name, known)}")


def _too_long(model: Architecture, lengths: Mapping[str, tuple[int, int]]) -> Iterator[Problem]:
    positions = f"{model.name} has {model.max_position_embeddings:,} positions"
    for key, (tokens, most) in lengths.items():
        if tokens > most:
            yield _problem(key, tokens, f"{positions}; ask for at most {most:,}")


def _decoding(encoder: Architecture, options: Mapping[str, int | None]) -> Iterator[Problem]:
    for key, value in options.items():
        if value is not None:
            yield _problem(
                key, value, f"{encoder.name} is an encoder and decodes nothing; leave the option out"
            )


def _problem(option: str, value: object, advice: str) -> Problem:
    return Problem("command line", key=option, value=value, advice=advice)

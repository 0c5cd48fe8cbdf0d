"""How long a host's cores work for requests and steps."""

from __future__ import annotations

from collections.abc import Mapping

from simulator.specs.engine import Engine, OwnCode
from simulator.specs.hardware import Host

PROMPT_BYTES_PER_TOKEN = 4
"""Text of a prompt on the wire; assumed, about the mean of English under current vocabularies."""
STREAMED_BYTES_PER_TOKEN = 200
"""One token sent as a server-sent event with its JSON; assumed."""


def remaining_share(host: Host) -> float:
    """Share of the host work that cores still do where fixed-function units take the rest."""
    return 1.0 - host.offload_fraction


def step_s(engine: Engine, host: Host) -> tuple[float, float]:
    """Seconds the engine's thread needs to prepare a step, and more for each sequence in it."""
    share = remaining_share(host)
    return engine.overheads.step_s * share, engine.overheads.per_sequence_s * share


def receive_s(engine: Engine, host: Host, prompt_tokens: int) -> float:
    """Core time from a request's arrival until the scheduler knows its tokens."""
    stages = engine.host_stages
    return (stages.receive_s + stages.tokenize_s * prompt_tokens) * remaining_share(host)


def deliver_s(engine: Engine, host: Host, tokens: int) -> float:
    """Core time to turn a step's new tokens into text and send it."""
    stages = engine.host_stages
    return tokens * (stages.detokenize_s + stages.send_s) * remaining_share(host)


def own_code_s(code: OwnCode, operator: str, traits: Mapping[str, int]) -> float:
    """What an engine's own code for an operator takes beyond its kernel, for what a model asks of it.

    >>> code = OwnCode(operator="3 us", operators={"rotary": "5 us", "rotary.rope": "60 us"})
    >>> round(own_code_s(code, "rotary", {"rope": 1}) * 1e6), round(own_code_s(code, "sample", {}) * 1e6)
    (68, 3)
    """
    return code.operator_s + _by_traits(code.operators, operator, traits)


def of_prompt_s(code: OwnCode, operator: str) -> float:
    """What launching an operator takes longer in a step with prompts."""
    return code.operators.get(f"{operator}.prompt", 0.0)


def of_visit_s(code: OwnCode, operator: str) -> float:
    """What an engine's own code takes for each expert of a layer that some token chose."""
    return code.operators.get(f"{operator}.active", 0.0)


def launching_s(engine: Engine, kernels: int, operator: str, traits: Mapping[str, int]) -> float:
    """What the thread that launches kernels one by one takes for an operator's."""
    return kernels * engine.launch.kernel_s + own_code_s(engine.code, operator, traits)


def own_passes(code: OwnCode, operator: str, traits: Mapping[str, int]) -> float:
    """How many times what an operator reads and writes goes through memory, for what a model asks of it."""
    return 1.0 + _by_traits(code.passes, operator, traits)


def _by_traits(figures: Mapping[str, float], operator: str, traits: Mapping[str, int]) -> float:
    """Of the operator itself and of each trait as often as it has it."""
    of_traits = sum(count * figures.get(f"{operator}.{trait}", 0.0) for trait, count in traits.items())
    return figures.get(operator, 0.0) + of_traits

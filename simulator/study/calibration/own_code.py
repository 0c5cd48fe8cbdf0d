"""What our network's own code takes on top of kernels: the difference between what layers of made-up models
take and what their kernels do, for a plain layer and for each thing that models may ask of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

from simulator.graph.operator_traits import NORMS
from simulator.specs.architecture import (
    Alibi,
    Architecture,
    Attention,
    Experts,
    LatentAttention,
    LayerSpec,
    LinearAttention,
    Mlp,
    Rope,
    Router,
)
from simulator.study.calibration.measured_profile import OwnCodeFigures
from simulator.study.calibration.one_step import OneSequence

if TYPE_CHECKING:
    from simulator.execution.measure import Bench

CONTEXT = 16
"""Tokens cached before the one that is timed."""
ROPE = Rope(10_000.0, 16)
ATTENTION = Attention(num_attention_heads=6, num_key_value_heads=6, head_dim=16, scale=0.25)
MLP = Mlp(192, "gelu", gated=False)
PLAIN = Architecture(
    name="plain", family="gpt2", hidden_size=96, vocab_size=256, max_position_embeddings=512,
    layers=(LayerSpec(ATTENTION, MLP),), norm="layer", norm_eps=1e-5,
)  # fmt: skip
"""Layer norms, no positions, no gate, as many keys as queries; small, so that little but calls takes time."""
NORMS_A_LAYER = 2


def _with_attention(**changes: Any) -> Architecture:
    return replace(PLAIN, layers=(LayerSpec(replace(ATTENTION, **changes), MLP),))


def _with_experts(count: int, chosen: int) -> Architecture:
    expert = replace(MLP, activation="silu", gated=True)
    return replace(PLAIN, layers=(LayerSpec(ATTENTION, Experts(count, chosen, expert, Router("softmax"))),))


LATENT = LatentAttention(6, None, 32, 16, 16, 16, 0.25, ROPE)
LINEAR = LinearAttention(
    num_key_heads=3, num_value_heads=6, key_head_dim=16, value_head_dim=16, conv_kernel=4
)  # fmt: skip

PROBES: Mapping[str, Architecture] = {
    "plain": PLAIN,
    "rms": replace(PLAIN, norm="rms"),
    "rotary.rope": _with_attention(rope=ROPE),
    "rotary.qk_norm": _with_attention(qk_norm=True),
    "attention.window": _with_attention(sliding_window=8),
    "attention.softcap": _with_attention(softcap=30.0),
    "attention.alibi": _with_attention(alibi=Alibi()),
    "attention.sinks": _with_attention(sinks=True),
    "up_proj.gated": replace(PLAIN, layers=(LayerSpec(ATTENTION, replace(MLP, gated=True)),)),
    "rotary.latent": replace(PLAIN, layers=(LayerSpec(LATENT, MLP),)),
    "delta_rule": replace(PLAIN, layers=(LayerSpec(LINEAR, MLP),)),
    "2 of 4 experts": _with_experts(4, 2),
    "2 of 16 experts": _with_experts(16, 2),
    "8 of 16 experts": _with_experts(16, 8),
}
"""By what they tell; each but those with experts differs from the plain one in a single thing."""
IN_PROMPTS = ("plain", "rotary.rope", "rotary.qk_norm", "attention.window", "attention.softcap",
              "attention.alibi", "attention.sinks")  # fmt: skip
"""Probes that are timed with many tokens too: what of them grows with tokens are passes through memory."""
WIDE = replace(
    PLAIN, name="wide", hidden_size=640,
    layers=(LayerSpec(Attention(10, 10, 64, 0.125), Mlp(1728, "silu", gated=True)),) * 12,
)  # fmt: skip
"""A model that caches do not hold."""
WIDE_STEPS = ((1, 64), (32, 0), (128, 0))
"""Its steps that are timed: new tokens, tokens cached before."""
PROMPT = 128
ROUNDS = 3
"""In which constants and passes are told apart."""

Simulate = Callable[[Architecture, OwnCodeFigures], OneSequence]


@dataclass(frozen=True)
class LayerTimes:
    """What was measured of our network's own code, in seconds."""

    layers: Mapping[str, float]
    """A decode step through a layer of each of `PROBES`."""
    prompts: Mapping[str, float]
    """A prefill of `PROMPT` tokens through a layer of each of `IN_PROMPTS`, or of the plain one only where a
    host launches kernels, since nothing more can be told of it."""
    step_s: float
    """A whole decode step of the plain model."""
    tokenize_s: float
    detokenize_s: float

    @classmethod
    def of(cls, best: Mapping[str, float], tokenize_s: float, detokenize_s: float) -> LayerTimes:
        """From the times of `layer_calls`."""
        prompts = {probe: best[what] for probe in IN_PROMPTS if (what := _prompt(probe)) in best}
        layers = {probe: best[_layer(probe)] for probe in PROBES}
        return cls(layers, prompts, best[PLAIN_STEP], tokenize_s, detokenize_s)


PLAIN_STEP = "a step"


def _layer(probe: str) -> str:
    return f"a layer: {probe}"


def _prompt(probe: str) -> str:
    return f"a prefill: {probe}"


def wide_step(new: int, context: int) -> str:
    """Name of the call that times a step of the wide model."""
    return f"a wide model: {new} after {context}"


def layer_calls(bench: Bench, in_prompts: Sequence[str] = IN_PROMPTS) -> dict[str, Callable[[], float]]:
    """What times layers of the made-up models, some with a prompt too, and a step of the plain one."""
    from simulator.execution.random_weights import random_transformer

    layers = {_layer(probe): partial(bench.layer_s, arch, 1, CONTEXT) for probe, arch in PROBES.items()}
    prompts = {_prompt(probe): partial(bench.layer_s, PROBES[probe], PROMPT, 0) for probe in in_prompts}
    plain = bench.placed(random_transformer(PLAIN, seed=0))
    return {**layers, **prompts, PLAIN_STEP: partial(bench.step_s, plain, 1, CONTEXT)}


def step_calls(bench: Bench) -> dict[str, Callable[[], float]]:
    """What times steps of the wide model."""
    from simulator.execution.random_weights import random_transformer

    wide = bench.placed(random_transformer(WIDE, seed=0))
    return {wide_step(*step): partial(bench.step_s, wide, *step) for step in WIDE_STEPS}


def own_code(times: LayerTimes, simulate: Simulate) -> OwnCodeFigures:
    """What is left of measured times when kernels, as `simulate` prices them, are taken off.

    What is left of the plain layer is the calls between its operators, and shared out evenly among them.
    """
    code = OwnCodeFigures(tokenize_s=times.tokenize_s, detokenize_s=times.detokenize_s)
    bare = simulate(PLAIN, code)
    left_s = max(0.0, times.layers["plain"] - bare.layer_s(1, CONTEXT))
    code = replace(code, operator_s=left_s / bare.operators_a_layer)
    of_prompts = _of_prompts(times) if bare.is_launched else {}
    for _ in range(ROUNDS):  # a pass takes something of one token too
        code = replace(code, operators=_of_traits(times, replace(code, operators={}), simulate))
        code = replace(code, operators={**code.operators, **_of_parts(times, code, simulate), **of_prompts})
        code = replace(code, passes=_passes(times, code, simulate))
    return replace(code, step_s=max(0.0, times.step_s - simulate(PLAIN, code).step_s(1, CONTEXT)))


def _of_prompts(times: LayerTimes) -> dict[str, float]:
    """What attention launches more of where several queries of a sequence follow one another."""
    return {"attention.prompt": max(0.0, times.prompts["plain"] - times.layers["plain"])}


def _of_traits(times: LayerTimes, code: OwnCodeFigures, simulate: Simulate) -> dict[str, float]:
    """Of what a plain layer may have besides."""
    rms_s = _left_s("rms", times, code, simulate) / NORMS_A_LAYER
    traits = [probe for probe in PROBES if "." in probe and probe != "rotary.latent"]
    found = dict.fromkeys((f"{norm}.rms" for norm in NORMS), rms_s)
    return found | {probe: _left_s(probe, times, code, simulate) for probe in traits}


def _of_parts(times: LayerTimes, code: OwnCodeFigures, simulate: Simulate) -> dict[str, float]:
    """Of other kinds of attention, and of experts: a constant, and for each one held and each one chosen."""
    few_s, held_s, chosen_s = (
        _left_s(f"{which} experts", times, code, simulate) for which in ("2 of 4", "2 of 16", "8 of 16")
    )
    of_held_s, of_chosen_s = max(0.0, held_s - few_s) / 12, max(0.0, chosen_s - held_s) / 6
    return {
        "rotary.latent": _left_s("rotary.latent", times, code, simulate),
        "delta_rule": _left_s("delta_rule", times, code, simulate),
        "expert_up_proj": max(0.0, few_s - 4 * of_held_s - 2 * of_chosen_s),
        "expert_up_proj.experts": of_held_s,
        "expert_up_proj.active": of_chosen_s,
    }


def _passes(times: LayerTimes, code: OwnCodeFigures, simulate: Simulate) -> dict[str, float]:
    """Of what takes longer with many tokens: as many passes as would take that long."""
    found = {}
    for probe in (each for each in IN_PROMPTS[1:] if each in times.prompts):
        more_s = times.prompts[probe] - times.prompts["plain"]
        bare = replace(code, passes={})
        priced_s, plain_s = (simulate(PROBES[each], bare).layer_s(PROMPT, 0) for each in (probe, "plain"))
        once = simulate(PROBES[probe], replace(code, passes={probe: 1.0})).layer_s(PROMPT, 0) - priced_s
        found[probe] = max(0.0, more_s - (priced_s - plain_s)) / once
    return found


def _left_s(probe: str, times: LayerTimes, code: OwnCodeFigures, simulate: Simulate) -> float:
    """Of a probe's layer, beyond the plain one and what the kernels and the code so far account for."""
    more_s = times.layers[probe] - times.layers["plain"]
    priced_s, plain_s = (simulate(PROBES[each], code).layer_s(1, CONTEXT) for each in (probe, "plain"))
    return max(0.0, more_s - (priced_s - plain_s))


def slowdown_in_steps(
    measured_s: Mapping[tuple[int, int], float], priced: OneSequence, at_half_speed: OneSequence
) -> float:
    """How many times as long products of matrices take in steps of the wide model as by themselves, beyond
    their overhead: other operators have emptied the caches meanwhile. At least 1.

    measured_s: of `WIDE_STEPS`. at_half_speed: the same with products that reach half of both peaks.
    """
    found = []
    for (new, context), step_s in measured_s.items():
        priced_s = priced.step_s(new, context)
        of_products_s = at_half_speed.step_s(new, context) - priced_s
        found.append(1 + (step_s - priced_s) / of_products_s)
    return max(1.0, median(found))

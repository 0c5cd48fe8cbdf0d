"""What a scenario file may say."""

from itertools import product
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, WithJsonSchema

from simulator import units
from simulator.errors import did_you_mean
from simulator.specs.base import Spec, rule_broken
from simulator.specs.hardware import Precision
from simulator.specs.machine import ClusterFile, NodeFile, is_cluster
from simulator.specs.quantities import Quantity, Seconds, SharePerYear, UsdPerKwh, WholeNumber
from simulator.specs.weight_formats import WEIGHT_CHOICES
from simulator.specs.workload import Workload, id_or_file

Fidelity = Literal["task", "step", "fast"]

SLO_METRICS = tuple(
    f"{what}_{how}"
    for what, how in product(("ttft", "tpot", "itl", "e2e"), ("mean", "p50", "p90", "p95", "p99"))
)
"""Time to first token, per output token, between tokens, end to end; mean and percentiles."""


def _slo_metric(key: str) -> str:
    if key not in SLO_METRICS:
        hint = did_you_mean(key, SLO_METRICS) or "; write one such as ttft_p99, tpot_mean, itl_p95 or e2e_p50"
        raise rule_broken(f"unknown metric{hint}")
    return key


SloMetric = Annotated[str, AfterValidator(_slo_metric)]
Slo = dict[SloMetric, Annotated[Seconds, Field(gt=0)]]
"""Longest acceptable time of each metric."""


ModelRef = Annotated[str, AfterValidator(id_or_file)]


def _machine_form(raw: Any) -> str:
    if isinstance(raw, str):
        return "<id>"
    return "<cluster>" if is_cluster(raw) or isinstance(raw, ClusterFile) else "<node>"


MachineRef = Annotated[
    Annotated[str, Tag("<id>")]
    | Annotated[NodeFile, Tag("<node>")]
    | Annotated[ClusterFile, Tag("<cluster>")],
    Discriminator(_machine_form),
]


def _weight_choice(choice: str) -> str:
    if choice not in WEIGHT_CHOICES:
        hint = did_you_mean(choice.lower(), WEIGHT_CHOICES)
        raise rule_broken(f"not one of: {', '.join(WEIGHT_CHOICES)}{hint}")
    return choice


WeightChoice = Annotated[
    str, AfterValidator(_weight_choice), WithJsonSchema({"type": "string", "enum": list(WEIGHT_CHOICES)})
]


class PrecisionChoice(Spec):
    """The number format of what a run keeps and computes."""

    weights: WeightChoice
    """In memory: a plain format, one of quantised checkpoints (fp8, int4 ...), or a file type of llama.cpp
    (q4_k_m ...)."""
    activations: Precision
    """Between operators, and what they compute in unless weights allow less."""
    kv_cache: Precision
    """Keys and values in memory."""


class Cost(Spec):
    """What turns watts and prices into money over time."""

    electricity_usd_per_kwh: Annotated[UsdPerKwh, Field(alias="electricity")] = 0.09
    """Price of energy at the meter."""
    pue: Annotated[float, Quantity(units.NUMBER, better="low", least=1)] = 1.25
    """Power usage effectiveness: energy of the whole site for each unit that computes."""
    life_s: Annotated[float, Quantity(units.SECONDS, better="high", above=0), Field(alias="life")] = (
        5 * units.SECONDS_PER_YEAR
    )
    """How long the machine is used before it is worth nothing."""
    discount_per_year: Annotated[SharePerYear, Field(alias="discount")] = 0.08
    """What money costs per year."""


Routing = Literal["round_robin", "least_loaded", "two_choices", "prefix_aware"]


class ScenarioFile(Spec):
    """A runnable question: which machines, which placements, under which load, at what cost."""

    name: str
    """The question, as a person would ask it."""
    extends: str | None = None
    """One base file, relative to this one; this file then says only what differs."""
    model: ModelRef
    """Id of a model file, or a path to a Hugging Face `config.json`."""
    machine: Annotated[list[MachineRef], Field(min_length=1)]
    """Ids of machine files, or machines written in place."""
    engine: str
    """Id of a serving engine."""
    scheduler: Any = None
    """Settings of the engine's scheduler that differ from how it comes."""
    memory: Any = None
    """And of its memory."""
    kv_blocks: Annotated[WholeNumber, Field(ge=1)] | None = None
    """KV blocks of each placement, where the engine has reported them; None: as many as fit."""
    routing: Routing = "least_loaded"
    """To which of several serving loops a request goes: to one after the other, to the one with the fewest
    requests, to the better of two drawn at random, or where most of its prefix has gone before."""
    precision: PrecisionChoice
    """Number formats."""
    placements: Annotated[list[Any], Field(min_length=1)]
    """Named strategies with their settings, each tried on each machine."""
    workload: Workload
    """When requests arrive and how long they are."""
    slo: Slo = Field(default_factory=dict)
    """What counts as good enough."""
    cost: Cost = Cost()
    """Energy price, site overhead, life and discount."""
    seed: Annotated[WholeNumber, Field(ge=0, le=10**15)] = 0
    """Of every random draw."""
    fidelity: Fidelity = "fast"
    """Whether each task is an event on the clock, each step, or whole runs of decode steps. Results are the
    same."""
    bands: bool = True
    """Whether runs that rest on ranges are simulated with all of them at best and all at worst, too."""

"""Layers and operators where somebody says: by patterns, or by a Hugging Face device map."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import groupby
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, model_validator

from simulator.graph.machine import MachineGraph
from simulator.graph.model_graph import Part, operator_names
from simulator.placement.placement import Elsewhere, NotPlaceable, Placement, Stage, Streaming
from simulator.placement.strategies.base import (
    Strategy,
    label_of,
    missing_devices,
    missing_disk,
    processor_beside,
)
from simulator.placement.strategies.device_map import Located, Target, read_device_map
from simulator.specs.architecture import Architecture
from simulator.specs.base import Spec

IN_PART: Mapping[Part | None, tuple[Part, ...]] = {
    None: ("attention", "mlp", "experts", "shared_experts"),
    "mlp": ("mlp", "experts", "shared_experts"),
}
"""What a rule for a part, or for whole layers, speaks of; every other part is itself alone."""

SPAN = re.compile(r"([0-9]{1,18})(?:-([0-9]{1,18}))?")


class Rule(Spec):
    """Where some operators of some layers run, and with them their weights."""

    layers: str = "all"
    """Numbers and spans, the last one included: `0-7, 12`; or `all`, which for `operators` also means those
    before and after the layers."""
    part: Part | None = None
    """One part of the layers, or of what comes before or after them; the whole layers if neither this nor
    `operators` is given."""
    operators: tuple[str, ...] | None = None
    """Names of operators, with wildcards: `expert_*`; `placewright show --model` lists them."""
    device: str
    """A device of the machine."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.part is not None and self.operators is not None:
            raise ValueError("give either `part` or `operators`")
        return self

    @property
    def spoken_of(self) -> str:
        """What it is about, in words."""
        what = self.part or "+".join(self.operators or ())
        return f"{what or 'all operators'} in layers {self.layers}"

    @property
    def label(self) -> str:
        what = self.part or "+".join(self.operators or ())
        layers = None if what and self.layers == "all" else self.layers
        return label_of(what, layers, "on", self.device)

    def numbers(self, layer_count: int) -> frozenset[int] | str:
        """The layers it is about; what is wrong with them, in words."""
        if self.layers == "all":
            return frozenset(range(layer_count))
        found: set[int] = set()
        for span in self.layers.split(","):
            match = SPAN.fullmatch(span.strip())
            if match is None:
                return f"layers '{self.layers}': write numbers and spans such as 0-7, 12, or all"
            numbers = range(int(match[1]), int(match[2] or match[1]) + 1)
            if not numbers or numbers[-1] >= layer_count:
                return f"layers '{self.layers}': the model has layers 0-{layer_count - 1}"
            found.update(numbers)
        return frozenset(found)

    @property
    def has_ends(self) -> bool:
        """Whether it may speak of what stands before or after the layers: names of operators do not where
        layers are named too."""
        return self.operators is None or self.layers == "all"

    def has(self, operator: str, part: Part) -> bool:
        """Whether it speaks of an operator, which belongs to `part`."""
        if self.operators is not None:
            return any(fnmatchcase(operator, pattern) for pattern in self.operators)
        return part in IN_PART.get(self.part, (self.part,))


def _a_place(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError("write a number, 'cuda:0', 'cpu' or 'disk'")
    return value


class Custom(Strategy):
    """Everything where the scenario says.

    `device_map` is a Hugging Face device map: numbers are accelerators, `cpu` and `disk` are layers whose
    weights are kept there and copied to the first accelerator that the map names at each use, one after the
    other, as accelerate does; an embedding and a head that it puts there stay on that accelerator. Or `rules`
    assign layers, parts and single operators to devices; of two that speak of the same operator the later one
    counts, and what none speaks of is on `default`.
    """

    strategy: Literal["custom"] = "custom"
    device_map: dict[str, Annotated[int | str, BeforeValidator(_a_place)]] | None = None
    """As `accelerate` writes it: names of modules, and where each goes."""
    rules: tuple[Rule, ...] | None = None
    """Where operators run."""
    default: str | None = None
    """Where everything else runs; the machine's first accelerator, or its `cpu`, if not given."""
    name: str | None = None
    """What tables call this placement."""

    @model_validator(mode="after")
    def _one_of_two_ways(self) -> Self:
        if (self.device_map is None) == (self.rules is None):
            raise ValueError("give either `device_map` or `rules`")
        if self.rules == ():
            raise ValueError("write at least one of `rules`")
        if self.device_map is not None and self.default is not None:
            raise ValueError("`default` is for `rules`; a device map says where everything goes")
        return self

    @property
    def label(self) -> str:
        if self.name is not None:
            return f"custom {self.name}"
        if self.device_map is not None:
            runs = groupby(str(where) for where in self.device_map.values())
            return "custom " + " ".join(f"{where}:{len(list(run))}" for where, run in runs)
        rest = f", rest on {self.default}" if self.default is not None else ""
        return "custom " + ", ".join(rule.label for rule in self.rules or ()) + rest

    def place(self, model: Architecture, machine: MachineGraph) -> Placement | NotPlaceable:
        if self.device_map is not None:
            return self._by_map(self.device_map, model, machine)
        candidates = machine.accelerators() or tuple(machine.devices)
        if self.default is None and not candidates:
            return NotPlaceable("the machine has no device that computes")
        return self._by_rules(self.rules or (), self.default or candidates[0], model, machine)

    # -- rules ------------------------------------------------------------------------------------------

    def _by_rules(
        self, rules: Sequence[Rule], default: str, model: Architecture, machine: MachineGraph
    ) -> Placement | NotPlaceable:
        lacking = missing_devices(machine, (default, *(rule.device for rule in rules)))
        if lacking:
            return lacking
        spans = [rule.numbers(model.num_hidden_layers) for rule in rules]
        wrong = next((span for span in spans if isinstance(span, str)), None)
        if wrong is not None:
            return NotPlaceable(wrong)
        where: dict[tuple[int | None, str], str] = {}
        useful: set[int] = set()
        for layer, name, part in operator_names(model):
            where[layer, name] = default
            for number, (rule, span) in enumerate(zip(rules, spans, strict=True)):
                assert not isinstance(span, str)
                if rule.has(name, part) and (rule.has_ends if layer is None else layer in span):
                    where[layer, name] = rule.device
                    useful.add(number)
        idle = next((rule for number, rule in enumerate(rules) if number not in useful), None)
        if idle is not None:
            return NotPlaceable(f"a rule for {idle.spoken_of} meets no operator of {model.name}")
        return self._placed(where, model)

    def _placed(
        self, where: Mapping[tuple[int | None, str], str], model: Architecture
    ) -> Placement | NotPlaceable:
        """Layers go with most of their operators; the others are elsewhere."""
        home: list[str] = []
        for layer in range(model.num_hidden_layers):
            own = {name: device for (number, name), device in where.items() if number == layer}
            if "rotary" in own and own["rotary"] != own["attention"]:
                both = f"{own['rotary']} and {own['attention']}"
                return NotPlaceable(f"layer {layer}: rotary and attention use the same KV blocks; they must "
                                    f"be on one device, not on {both}")  # fmt: skip
            before = home[-1] if home else next(iter(where.values()))
            home.append(Counter(own.values()).most_common(1)[0][0] if own else before)
        return Placement(self.label, _stages(home), elsewhere=_exceptions(where, home))

    # -- device maps ------------------------------------------------------------------------------------

    def _by_map(
        self, device_map: Mapping[str, int | str], model: Architecture, machine: MachineGraph
    ) -> Placement | NotPlaceable:
        located = read_device_map(device_map, model.num_hidden_layers)
        if isinstance(located, str):
            return NotPlaceable(located)
        return _from_map(self.label, located, model, machine)


def _from_map(
    label: str, located: Located, model: Architecture, machine: MachineGraph
) -> Placement | NotPlaceable:
    accelerators, numbers = machine.accelerators(), located.accelerators
    if not numbers:
        return _on_processor(label, located, model, machine)
    if max(numbers) >= len(accelerators):
        there = f"the machine has {len(accelerators)}"
        return NotPlaceable(f"device_map uses accelerator {max(numbers)}, {there}")
    main = accelerators[numbers[0]]
    host = machine.host_of(main)
    memories = {"cpu": host.name, "disk": machine.storage_of(main)}
    homes = tuple(memories.get(str(target)) for target in located.layers)
    lacking = missing_disk(machine, main) if "disk" in located.layers else None
    if lacking is not None:
        return lacking

    def device_of(target: Target) -> str:
        return accelerators[target] if isinstance(target, int) else main

    where: dict[tuple[int | None, str], str] = {}
    for layer, name, part in operator_names(model):
        if layer is not None:
            where[layer, name] = device_of(located.layers[layer])
        else:
            target = located.embed if part == "embed" else located.head
            where[layer, name] = device_of(located.final_norm if name == "final_norm" else target)
    home = [device_of(target) for target in located.layers]
    streaming = Streaming(homes, buffers=1) if any(homes) else None
    return Placement(label, _stages(home), streaming=streaming, elsewhere=_exceptions(where, home))


def _on_processor(
    label: str, located: Located, model: Architecture, machine: MachineGraph
) -> Placement | NotPlaceable:
    """A map without accelerators: the processor computes everything."""
    if "disk" in located.layers:
        return NotPlaceable("device_map keeps layers on disk and names no accelerator to compute them on")
    accelerators = machine.accelerators()
    cpu = processor_beside(machine, accelerators[0]) if accelerators else "cpu"
    if isinstance(cpu, NotPlaceable):
        return cpu
    return Placement(label, (Stage((cpu,), 0, model.num_hidden_layers),))


def _stages(home: Sequence[str]) -> tuple[Stage, ...]:
    """Runs of layers on one device."""
    stages, first = [], 0
    for device, run in groupby(home):
        count = len(list(run))
        stages.append(Stage((device,), first, count))
        first += count
    return tuple(stages)


def _exceptions(
    where: Mapping[tuple[int | None, str], str], home: Sequence[str]
) -> tuple[Elsewhere, ...]:
    """Operators that are not on their layer's device; what stands before the layers belongs to the first one,
    what follows them to the last."""
    before = ("embed", "project_in", "embed_norm")
    found: dict[tuple[str, str], set[int | None]] = {}
    for (layer, name), device in where.items():
        usual = home[layer] if layer is not None else home[0] if name in before else home[-1]
        if device != usual:
            found.setdefault((device, name), set()).add(layer)
    return tuple(Elsewhere(device, frozenset({name}), frozenset(layers))
                 for (device, name), layers in found.items())  # fmt: skip

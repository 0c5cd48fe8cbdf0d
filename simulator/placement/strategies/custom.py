"""Layers and operators where somebody says: by patterns, or by a Hugging Face device map."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import groupby
from typing import Literal, Self

from pydantic import model_validator

from simulator.graph.machine import MachineGraph
from simulator.graph.model_graph import Part, operator_names
from simulator.placement.placement import Elsewhere, NotPlaceable, Placement, Stage, Streaming
from simulator.placement.strategies.base import Strategy, disk_of, missing_devices, missing_disk
from simulator.placement.strategies.device_map import Located, read_device_map
from simulator.specs.architecture import Architecture
from simulator.specs.base import Spec

IN_PART: Mapping[Part | None, tuple[Part, ...]] = {
    None: ("attention", "mlp", "experts", "shared_experts"),
    "mlp": ("mlp", "experts", "shared_experts"),
}
"""What a rule for a part, or for whole layers, speaks of; every other part is itself alone."""


class Rule(Spec):
    """Where some operators of some layers run, and with them their weights."""

    layers: str = "all"
    """Numbers and spans, the last one included: `0-7, 12`; or `all`."""
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

    def numbers(self, layer_count: int) -> frozenset[int] | str:
        """The layers it is about; what is wrong with them, in words."""
        if self.layers == "all":
            return frozenset(range(layer_count))
        found: set[int] = set()
        for span in self.layers.split(","):
            low, _, high = span.strip().partition("-")
            if not (low.isdigit() and (high.isdigit() or not high)):
                return f"layers '{self.layers}': write numbers and spans such as 0-7, 12, or all"
            numbers = range(int(low), int(high or low) + 1)
            if not numbers or numbers[-1] >= layer_count:
                return f"layers '{self.layers}': the model has layers 0-{layer_count - 1}"
            found.update(numbers)
        return frozenset(found)

    def has(self, operator: str, part: Part) -> bool:
        """Whether it speaks of an operator, which belongs to `part`."""
        if self.operators is not None:
            return any(fnmatchcase(operator, pattern) for pattern in self.operators)
        return part in IN_PART.get(self.part, (self.part,))


class Custom(Strategy):
    """Everything where the scenario says.

    `device_map` is a Hugging Face device map: numbers are accelerators, `cpu` and `disk` are layers whose
    weights are kept there and copied to the first accelerator at each use, one after the other, as accelerate
    does. Or `rules` assign layers, parts and single operators to devices; of two that speak of the same
    operator the later one counts, and what none speaks of is on `default`.
    """

    strategy: Literal["custom"] = "custom"
    device_map: dict[str, int | str] | None = None
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
        if self.device_map is not None and self.default is not None:
            raise ValueError("`default` is for `rules`; a device map says where everything goes")
        return self

    @property
    def label(self) -> str:
        if self.name is not None:
            return f"custom {self.name}"
        if self.device_map is not None:
            counted = Counter(str(where) for where in self.device_map.values())
            return "custom " + " ".join(f"{where}:{count}" for where, count in sorted(counted.items()))
        return "custom " + " ".join(dict.fromkeys(rule.device for rule in self.rules or ()))

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
                if rule.has(name, part) and (layer is None or layer in span):
                    where[layer, name] = rule.device
                    useful.add(number)
        idle = next((rule for number, rule in enumerate(rules) if number not in useful), None)
        if idle is not None:
            what = idle.part or ", ".join(idle.operators or ())
            spoken_of = f"{what or 'all operators'} in layers {idle.layers}"
            return NotPlaceable(f"a rule for {spoken_of} meets no operator of {model.name}")
        return self._placed(where, model)

    def _placed(
        self, where: Mapping[tuple[int | None, str], str], model: Architecture
    ) -> Placement | NotPlaceable:
        """Layers go with most of their operators; the others are elsewhere."""
        home: list[str] = []
        for layer in range(model.num_hidden_layers):
            own = {name: device for (number, name), device in where.items() if number == layer}
            if own.get("rotary") != own.get("attention"):
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
    targets = (*located.layers, *located.attention.values(), *located.mlp.values(), located.embed,
               located.final_norm, located.head)  # fmt: skip
    accelerators = machine.accelerators()
    numbers = sorted({number for number in map(_number, targets) if number is not None})
    wrong = [str(t) for t in targets if _number(t) is None and t not in ("cpu", "disk")]
    if wrong:
        return NotPlaceable(f"device_map has '{wrong[0]}'; write a number, 'cuda:0', 'cpu' or 'disk'")
    if numbers and numbers[-1] >= len(accelerators):
        there = f"the machine has {len(accelerators)}"
        return NotPlaceable(f"device_map uses accelerator {numbers[-1]}, {there}")
    if located.attention or located.mlp:
        return NotPlaceable("device_map puts parts of one layer in different places, which is not "
                            "simulated; name whole layers, or use `rules`")  # fmt: skip
    if not numbers:
        return _on_processor(label, located, model, machine)
    main, host = accelerators[numbers[0]], machine.host_of(accelerators[numbers[0]])
    memories = {"cpu": host.name, "disk": disk_of(machine, main)}
    homes = tuple(memories.get(str(target)) for target in located.layers)
    lacking = missing_disk(machine, main) if "disk" in located.layers else None
    if lacking is not None:
        return lacking

    def device_of(target: int | str) -> str:
        number = _number(target)
        return main if number is None else accelerators[number]

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
    stages = (Stage(("cpu",), 0, model.num_hidden_layers),)
    return missing_devices(machine, ("cpu",)) or Placement(label, stages)


def _number(target: int | str) -> int | None:
    if isinstance(target, int):
        return target
    digits = target.removeprefix("cuda:")
    return int(digits) if digits.isdigit() else 0 if target == "cuda" else None


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

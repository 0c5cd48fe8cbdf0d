"""The operators that work on each token alone: feed-forward networks and mixtures of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from simulator.graph.bench import PER_TOKEN, Bench
from simulator.graph.shape import Amount
from simulator.graph.share import Part
from simulator.graph.work import Operator, Parameter, Value, Visits, Work
from simulator.specs.architecture import Experts, Mlp


def mlp_operators(bench: Bench, layer: int, source: str, output: Value) -> tuple[Operator, ...]:
    """The operators of one layer's feed-forward part, from the normed input in `source` to `output`, of
    which each rank holds a summand."""
    mlp = bench.model.layers[layer].mlp
    assert mlp is not None
    if isinstance(mlp, Mlp):
        return _dense(bench, layer, mlp, source, output)
    return _mixture(bench, layer, mlp, source, output)


def _dense(
    bench: Bench, layer: int, mlp: Mlp, source: str, output: Value, name: str = ""
) -> tuple[Operator, ...]:
    """`name` stands before its operators' names and parameters, where a layer has another one as well."""
    hidden, prefix = bench.model.hidden_size, f"layers.{layer}.mlp.{name}".rstrip(".")
    part = bench.mlp_part(prefix, mlp.intermediate_size)
    label = f"{name}_" if name else ""
    parameters: tuple[Parameter, ...] = ()
    for projection in _up_names(mlp):
        parameters += bench.columns(f"{prefix}.{projection}", part, hidden, mlp.bias)
    expanded = Value(f"{label}expanded", Amount.of(tokens=len(_up_names(mlp)) * part.count))
    activated = f"{label}activated"
    return (
        bench.matmul(f"{label}up_proj", layer, source, PER_TOKEN, parameters, hidden, expanded),
        _activation(bench, layer, f"{label}activation", expanded, Value(activated, PER_TOKEN * part.count)),
        bench.matmul(f"{label}down_proj", layer, activated, PER_TOKEN,
                     bench.rows(f"{prefix}.down_proj", part, mlp.bias), part.count, output),
    )  # fmt: skip


def _up_names(mlp: Mlp) -> tuple[str, ...]:
    return ("gate_proj", "up_proj") if mlp.gated else ("up_proj",)


def _activation(bench: Bench, layer: int, name: str, expanded: Value, activated: Value) -> Operator:
    moved, row = expanded.elements + activated.elements, activated.elements.per("tokens")
    work = bench.elementwise(moved, (), "activation", row)
    return Operator(name, layer, (expanded.role,), (activated,), (work,))


def _mixture(
    bench: Bench, layer: int, experts: Experts, source: str, output: Value
) -> tuple[Operator, ...]:
    """Choose experts, go through them, and add the shared part. Ranks hold columns of every expert, or whole
    experts (`bench.split`). Experts computed aside come first, so that their device works meanwhile; what
    they make of the tokens is added on the first rank."""
    rest = _rest(bench, layer, experts)
    is_sum = bool(bench.split.aside) or experts.shared is not None
    operators, summands = [_router(bench, layer, experts, source)], list[str]()
    if bench.split.aside:
        aside = _experts(bench, source, _aside(bench, layer, experts), Value("side_branch", bench.hidden))
        operators += [replace(operator, once=True) for operator in aside]
        summands += ["side_branch"] if bench.share.rank == 0 else []
    if rest.held:
        operators += _experts(bench, source, rest, Value("expert_branch", bench.hidden) if is_sum else output)
        summands.append("expert_branch")
    if not is_sum:
        return tuple(operators)
    if experts.shared is not None:
        shared = Value("shared_branch", bench.hidden)
        operators += _dense(bench, layer, experts.shared, source, shared, "shared")
        summands.append("shared_branch")
    moved = bench.hidden * (len(summands) + 1)
    if experts.shared_gate:
        gate = Value("shared_scale", PER_TOKEN)
        hidden = bench.model.hidden_size
        parameters = (Parameter(f"layers.{layer}.mlp.shared_gate.weight", (1, hidden)),)
        operators.append(bench.matmul("shared_gate", layer, source, PER_TOKEN, parameters, hidden, gate))
        summands.append(gate.role)
        moved += gate.elements
    return (*operators, Operator("expert_add", layer, tuple(summands), (output,),
                                 (bench.elementwise(moved),)))  # fmt: skip


def _router(bench: Bench, layer: int, experts: Experts, source: str) -> Operator:
    """Score all experts and choose; every rank does all of it. What it writes holds for each expert its
    weight, or that it was not chosen."""
    hidden, prefix, count = bench.model.hidden_size, f"layers.{layer}.mlp", experts.num_experts
    parameters = bench.columns(f"{prefix}.router", Part(0, count, count), hidden, experts.router.bias)
    routing = Value("routing", Amount.of(tokens=count))
    operator = bench.matmul("router", layer, source, PER_TOKEN, parameters, hidden, routing)
    correction: tuple[Parameter, ...] = ()
    if experts.router.correction:
        correction = (Parameter(f"{prefix}.correction.weight", (count,)),)
    choice = bench.elementwise(routing.elements * 2, correction)
    return Operator("router", layer, (source,), (routing,), (*operator.works, choice),
                    operator.dense_flops, parameters + correction)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Group:
    """Some experts of a layer that are computed in one place, and how their work is counted."""

    layer: int
    experts: Experts
    prefix: str
    """Of operators and of what flows between them."""
    held: tuple[int, ...]
    part: Part
    """Of each expert's channels."""
    has_bias: bool
    """Whether the bias of the projection down is added here."""
    active: str
    """The feature that counts active experts, of `active_of` experts, these among them."""
    active_of: int
    portion: Callable[[int], int]
    """The part that is expected here of an amount of work on all choices."""


def _rest(bench: Bench, layer: int, experts: Experts) -> _Group:
    """The experts a rank computes, or its columns of them."""
    split, share, count = bench.split, bench.share, experts.num_experts
    if split.whole:
        part = _all_channels(experts)
    else:
        part = bench.mlp_part(f"layers.{layer}.mlp.experts", experts.expert.intermediate_size)
    return _Group(
        layer, experts, "", split.held(count, share), part, split.whole or share.rank == 0, "active_experts",
        count - len(split.aside), lambda amount: split.portion(amount, count, share),
    )  # fmt: skip


def _aside(bench: Bench, layer: int, experts: Experts) -> _Group:
    """The experts that another device computes for all ranks."""
    split = bench.split
    return _Group(layer, experts, "side_", split.aside, _all_channels(experts), True, "side_experts",
                  len(split.aside), split.portion_aside)  # fmt: skip


def _all_channels(experts: Experts) -> Part:
    return Part(0, experts.expert.intermediate_size, experts.expert.intermediate_size)


def _experts(bench: Bench, source: str, group: _Group, output: Value) -> tuple[Operator, ...]:
    """Every chosen expert of every token as one grouped product up and one down. Only the weights of
    experts that some token chose are read."""
    hidden, experts, layer = bench.model.hidden_size, group.experts, group.layer
    expert, chosen, count = experts.expert, experts.num_experts_per_tok, experts.num_experts
    stem, names, part = f"layers.{layer}.mlp.experts", _up_names(expert), group.part
    up: tuple[Parameter, ...] = ()
    for name in names:
        up += (Parameter.cut(f"{stem}.{name}.weight", (count, part.count, hidden), 1, part),)
        if expert.bias:
            up += (Parameter.cut(f"{stem}.{name}.bias", (count, part.count), 1, part),)
    down: tuple[Parameter, ...] = (
        Parameter.cut(f"{stem}.down_proj.weight", (count, hidden, part.count), 2, part),
    )
    if expert.bias and group.has_bias:
        down += (Parameter(f"{stem}.down_proj.bias", (count, hidden)),)
    routing, prefix = "routing", f"{group.prefix}expert"
    expanded = Value(f"{group.prefix}expanded", Amount.of(tokens=chosen * len(names) * part.count))
    activated = Value(f"{group.prefix}activated", Amount.of(tokens=chosen * part.count))
    return (
        _grouped(bench, group, f"{prefix}_up_proj", (source, routing), up,
                 chosen * hidden + expanded.elements.per("tokens"), expanded),
        _activation(bench, layer, f"{prefix}_activation", expanded, activated),
        _grouped(bench, group, f"{prefix}_down_proj", (activated.role, routing), down, chosen * part.count,
                 output, hidden),
    )  # fmt: skip


def _grouped(
    bench: Bench, group: _Group, name: str, reads: tuple[str, ...], parameters: tuple[Parameter, ...],
    per_choice_numbers: int, output: Value, sums: int = 0,
) -> Operator:  # fmt: skip
    """One product an expert, over the tokens that chose it. A token's numbers that are read and written for
    its choices add up to `per_choice_numbers`; `sums` more are written once."""
    experts = group.experts
    matrices = [parameter for parameter in parameters if len(parameter.shape) == 3]
    per_choice = 2 * sum(matrix.elements for matrix in matrices) // experts.num_experts
    flops = Amount.of(tokens=group.portion(experts.num_experts_per_tok * per_choice))
    held = tuple(parameter.of_experts(group.held) for parameter in parameters)
    weights = bench.weight_bytes(held).per("one") // group.active_of
    numbers = Amount.of(tokens=group.portion(per_choice_numbers) + sums + experts.num_experts)
    moved = Amount.of(**{group.active: weights}) + bench.bytes(numbers)
    formats, inner = bench.multiplies_in(parameters[0]), matrices[0].shape[-1]
    packed = Amount.of(**{group.active: bench.packed_weights(held) // group.active_of})
    work = Work("grouped_matmul", formats, flops, moved, chain=inner, packed=packed)
    rows = Amount.of(tokens=group.portion(experts.num_experts_per_tok) if sums else 1)
    works = (work, *bench.quantise(formats, rows, inner))
    visits = None if len(group.held) == experts.num_experts else Visits(group.held, per_choice)
    return Operator(name, group.layer, reads, (output,), works, flops, held, visits=visits)

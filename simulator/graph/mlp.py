"""The operators that work on each token alone: feed-forward networks and mixtures of them."""

from __future__ import annotations

from simulator.graph.bench import PER_TOKEN, Bench
from simulator.graph.shape import Amount
from simulator.graph.share import Part
from simulator.graph.work import Operator, Parameter, Value, Work
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
    work = bench.elementwise(expanded.elements + activated.elements)
    return Operator(name, layer, (expanded.role,), (activated,), (work,))


def _mixture(
    bench: Bench, layer: int, experts: Experts, source: str, output: Value
) -> tuple[Operator, ...]:
    """Choose experts, go through them, and add the shared part. Ranks hold columns of every expert."""
    has_shared = experts.shared is not None
    routed = Value("expert_branch", bench.hidden) if has_shared else output
    operators = [_router(bench, layer, experts, source), *_experts(bench, layer, experts, source, routed)]
    if experts.shared is None:
        return tuple(operators)
    shared = Value("shared_branch", bench.hidden)
    operators += _dense(bench, layer, experts.shared, source, shared, "shared")
    summands = ["expert_branch", "shared_branch"]
    moved = bench.hidden * 3
    if experts.shared_gate:
        gate = Value("shared_scale", PER_TOKEN)
        hidden = bench.model.hidden_size
        parameters = (Parameter(f"layers.{layer}.mlp.shared_gate.weight", (1, hidden)),)
        operators.append(bench.matmul("shared_gate", layer, source, PER_TOKEN, parameters, hidden, gate))
        summands.append(gate.role)
        moved += gate.elements
    work = bench.elementwise(moved)
    return (*operators, Operator("expert_add", layer, tuple(summands), (output,), (work,)))


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


def _experts(
    bench: Bench, layer: int, experts: Experts, source: str, output: Value
) -> tuple[Operator, ...]:
    """Every chosen expert of every token as one grouped product up and one down. Only the weights of
    experts that some token chose are read."""
    hidden, expert, chosen = bench.model.hidden_size, experts.expert, experts.num_experts_per_tok
    prefix, names = f"layers.{layer}.mlp.experts", _up_names(expert)
    part, count = bench.mlp_part(prefix, expert.intermediate_size), experts.num_experts
    up: tuple[Parameter, ...] = ()
    for name in names:
        up += (Parameter.cut(f"{prefix}.{name}.weight", (count, part.count, hidden), 1, part),)
        if expert.bias:
            up += (Parameter.cut(f"{prefix}.{name}.bias", (count, part.count), 1, part),)
    down: tuple[Parameter, ...] = (
        Parameter.cut(f"{prefix}.down_proj.weight", (count, hidden, part.count), 2, part),
    )
    if expert.bias and bench.share.rank == 0:
        down += (Parameter(f"{prefix}.down_proj.bias", (count, hidden)),)
    expanded = Value("expanded", Amount.of(tokens=chosen * len(names) * part.count))
    activated = Value("activated", Amount.of(tokens=chosen * part.count))
    return (
        _grouped(bench, layer, "expert_up_proj", (source, "routing"), up, PER_TOKEN * (chosen * hidden),
                 expanded),
        _activation(bench, layer, "expert_activation", expanded, activated),
        _grouped(bench, layer, "expert_down_proj", ("activated", "routing"), down, activated.elements,
                 output),
    )  # fmt: skip


def _grouped(
    bench: Bench, layer: int, name: str, reads: tuple[str, ...], parameters: tuple[Parameter, ...],
    inputs: Amount, output: Value,
) -> Operator:  # fmt: skip
    """One product an expert, over the tokens that chose it: `inputs` are those tokens' numbers, each token
    as often as it has experts."""
    experts = bench.model.experts
    assert experts is not None
    stack = parameters[0]
    matrices = [parameter for parameter in parameters if len(parameter.shape) == 3]
    per_choice = 2 * sum(matrix.elements for matrix in matrices) // stack.shape[0]
    flops = Amount.of(tokens=experts.num_experts_per_tok * per_choice)
    per_expert = bench.weight_bytes(parameters).coefficients[0] // stack.shape[0]
    moved = (
        Amount.of(active_experts=per_expert)
        + bench.bytes(inputs + output.elements)
        + bench.bytes(Amount.of(tokens=experts.num_experts))
    )
    work = Work("matmul", bench.multiplies_in(stack), flops, moved)
    return Operator(name, layer, reads, (output,), (work,), flops, parameters)

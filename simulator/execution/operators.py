"""What each operator of a plan does with the tensors of its own memory; those of attention are next door."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import accumulate

import torch
from torch import Tensor

from simulator.execution import kernels, mixture
from simulator.execution.attention_operators import ATTENTION_OPERATORS
from simulator.execution.call import Call, Outputs, side_by_side
from simulator.specs.architecture import Mlp

# --- both ends ----------------------------------------------------------------------------------------------


def _embed(call: Call) -> Outputs:
    model = call.model
    x_te = kernels.embed(call.values[0], call.weight("embed"), call.share.of(model.vocab_size).start)
    if model.embed_scale is not None:
        x_te = x_te * model.embed_scale
    if "token_types.weight" in call.weights:
        x_te = x_te + call.weight("token_types")[0]
    return (_with_positions(call, x_te),)


def _with_positions(call: Call, x_te: Tensor) -> Tensor:
    table = call.model.positions
    if table is None or "positions.weight" not in call.weights:
        return x_te
    return kernels.learned_positions(x_te, call.positions(), call.weight("positions"), table.offset)


def _project_in(call: Call) -> Outputs:
    return (_with_positions(call, kernels.linear(call.values[0], call.weight("project_in"))),)


def _norm(call: Call) -> Outputs:
    """Of the stream, or of its sum with a branch, which is put out as well where it stays the stream."""
    weight, bias = call.weight(call.operator), call.bias(call.operator)
    total = sum(call.values[1:], start=call.values[0])
    normed = kernels.normalise(call.model, total, weight, bias)
    return (total, normed) if call.output_count == 2 else (normed,)


def _final_norm(call: Call) -> Outputs:
    """Of the last rows of each chunk only."""
    ends = accumulate(call.sizes)
    rows = [row for chunk, end in zip(call.chunks, ends, strict=True) for row in range(end - chunk.rows, end)]
    last_r = torch.tensor(rows, dtype=torch.int64)
    rows_re = sum((value[last_r] for value in call.values[1:]), start=call.values[0][last_r])
    if not call.model.final_norm:
        return (rows_re,)
    return (kernels.normalise(call.model, rows_re, call.weight("final_norm"), call.bias("final_norm")),)


def _lm_head(call: Call) -> Outputs:
    name = "embed" if call.model.tie_word_embeddings else "lm_head"
    logits = kernels.linear(call.values[0], call.weight(name), call.bias("lm_head"))
    return (kernels.softcap(logits, call.model.logit_softcap),)


def _sample(call: Call) -> Outputs:
    return (kernels.sample(call.values[0]),)


def _pool(call: Call) -> Outputs:
    return (kernels.pool(call.values[0], call.sizes),)


# --- feed-forward -------------------------------------------------------------------------------------------


def _project(call: Call) -> Outputs:
    name = call.operator.removeprefix("shared_") if call.operator.endswith("_proj") else call.operator
    return (kernels.linear(call.values[0], call.weight(name), call.bias(name)),)


def _up_proj(call: Call) -> Outputs:
    names = [name for name in ("gate_proj", "up_proj") if f"{name}.weight" in call.weights]
    return (side_by_side(call, *names),)


def _activation(call: Call) -> Outputs:
    assert isinstance(call.mlp, Mlp)
    return (kernels.activate(call.mlp, call.values[0]),)


def _shared_activation(call: Call) -> Outputs:
    assert call.experts.shared is not None
    return (kernels.activate(call.experts.shared, call.values[0]),)


def _router(call: Call) -> Outputs:
    scores_tx = kernels.linear(call.values[0], call.weight("router"), call.bias("router"))
    return (mixture.route(call.experts, scores_tx, call.optional("correction")),)


def _expert_up_proj(call: Call) -> Outputs:
    x_te, routing_tx = call.values
    names = [name for name in ("gate_proj", "up_proj") if f"{name}.weight" in call.weights]
    chosen = call.experts.num_experts_per_tok
    ups = [
        mixture.experts_up(x_te, routing_tx, chosen, call.weight(n), call.bias(n), call.experts_held)
        for n in names
    ]
    return (torch.cat(ups, dim=-1),)


def _expert_activation(call: Call) -> Outputs:
    return (kernels.activate(call.experts.expert, call.values[0], call.experts.swiglu_limit),)


def _expert_down_proj(call: Call) -> Outputs:
    activated_tkf, routing_tx = call.values
    weight, bias = call.weight("down_proj"), call.bias("down_proj")
    return (mixture.experts_down(activated_tkf, routing_tx, weight, bias, call.experts_held),)


def _add(call: Call) -> Outputs:
    first, *others = call.values
    return (sum(others, start=first),)


def _expert_add(call: Call) -> Outputs:
    """What the experts made of the tokens and, where there is one, the shared part, perhaps scaled."""
    if not call.experts.shared_gate:
        return _add(call)
    *routed, shared, scale = call.values
    return (sum(routed, start=shared * torch.sigmoid(scale)),)


OPERATORS: Mapping[str, Callable[[Call], Outputs]] = {
    **ATTENTION_OPERATORS,
    "embed": _embed,
    "project_in": _project_in,
    "embed_norm": _norm,
    "attn_norm": _norm,
    "attn_gate_proj": _project,
    "o_proj": _project,
    "attn_post_norm": _norm,
    "mlp_norm": _norm,
    "up_proj": _up_proj,
    "activation": _activation,
    "down_proj": _project,
    "router": _router,
    "expert_up_proj": _expert_up_proj,
    "expert_activation": _expert_activation,
    "expert_down_proj": _expert_down_proj,
    "shared_up_proj": _up_proj,
    "shared_activation": _shared_activation,
    "shared_down_proj": _project,
    "shared_gate": _project,
    "side_expert_up_proj": _expert_up_proj,
    "side_expert_activation": _expert_activation,
    "side_expert_down_proj": _expert_down_proj,
    "expert_add": _expert_add,
    "branch_add": _add,
    "mlp_post_norm": _norm,
    "residual_add": _add,
    "final_norm": _final_norm,
    "project_out": _project,
    "lm_head": _lm_head,
    "sample": _sample,
    "pool": _pool,
}

"""Mixtures of experts: choosing them, and sending each token through those it chose.

Shapes: t tokens, x experts, k experts a token, e embedding channels, f an expert's channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from simulator.execution.kernels import linear
from simulator.graph.shape import split_evenly
from simulator.specs.architecture import Experts, Router

NOT_CHOSEN = -1.0


def route(experts: Experts, scores_tx: Tensor, correction_x: Tensor | None = None) -> Tensor:
    """For each token the weight of every expert it chose, and `NOT_CHOSEN` for the others: `[t, x]`."""
    router, wide = experts.router, torch.promote_types(scores_tx.dtype, torch.float32)
    logits_tx = scores_tx.to(wide)
    odds_tx = _odds(router, logits_tx)
    judged_tx = odds_tx if correction_x is None else odds_tx + correction_x.to(wide)
    if router.groups > 1:
        judged_tx = judged_tx.masked_fill(~_in_kept_groups(router, judged_tx), float("-inf"))
    chosen_tk = judged_tx.topk(experts.num_experts_per_tok, dim=-1).indices
    weights_tk = odds_tx.gather(1, chosen_tk)
    if router.scoring == "softmax_of_chosen":
        weights_tk = weights_tk.softmax(dim=-1)
    if router.normalise:
        weights_tk = weights_tk / weights_tk.sum(dim=-1, keepdim=True)
    routing_tx = torch.full_like(odds_tx, NOT_CHOSEN)
    return routing_tx.scatter(1, chosen_tk, weights_tk * router.scale).to(scores_tx.dtype)


def _odds(router: Router, logits_tx: Tensor) -> Tensor:
    if router.scoring == "softmax":
        return logits_tx.softmax(dim=-1)
    return logits_tx.sigmoid() if router.scoring == "sigmoid" else logits_tx


def _in_kept_groups(router: Router, judged_tx: Tensor) -> Tensor:
    """Whether each expert is in one of its token's best groups."""
    in_groups = judged_tx.unflatten(1, (router.groups, -1))
    best = 1 if router.group_score == "best" else 2
    kept = in_groups.topk(best, dim=-1).values.sum(dim=-1).topk(router.kept_groups, dim=-1).indices
    is_kept = torch.zeros_like(in_groups[..., 0], dtype=torch.bool).scatter(1, kept, True)
    return is_kept[..., None].expand_as(in_groups).flatten(1)


def _visits(
    routing_tx: Tensor, chosen: int, held: Sequence[int] | None = None
) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """Of each expert that somebody chose, and that is `held`: its number, its place among the held ones, the
    tokens that chose it, and which of their choices it is, counted by expert.

    On the meta device nobody knows; tokens are dealt out evenly, which is as much work as any other way.
    """
    tokens, count = routing_tx.shape
    if routing_tx.is_meta:
        for expert, visits in enumerate(split_evenly(tokens * chosen, count)):
            nobody = torch.zeros(visits, dtype=torch.int64, device="meta")
            yield expert, expert, nobody, nobody
        return
    is_chosen_tx = routing_tx >= 0
    choice_tx = is_chosen_tx.cumsum(dim=1) - 1
    for place, expert in enumerate(range(count) if held is None else held):
        token_m = is_chosen_tx[:, expert].nonzero()[:, 0]
        if len(token_m):
            yield expert, place, token_m, choice_tx[token_m, expert]


def experts_up(
    x_te: Tensor, routing_tx: Tensor, chosen: int, weight_xfe: Tensor, bias_xf: Tensor | None = None,
    held: Sequence[int] | None = None,
) -> Tensor:  # fmt: skip
    """Each token through the first projection of every expert it chose: `[t, k, f]`. The weights are those of
    the `held` experts, in that order; what others would make of a token is left 0."""
    up_tkf = x_te.new_zeros((x_te.shape[0], chosen, weight_xfe.shape[1]))
    for _, place, token_m, choice_m in _visits(routing_tx, chosen, held):
        bias_f = None if bias_xf is None else bias_xf[place]
        up_tkf[token_m, choice_m] = linear(x_te[token_m], weight_xfe[place], bias_f)
    return up_tkf


def experts_down(
    activated_tkf: Tensor, routing_tx: Tensor, weight_xef: Tensor, bias_xe: Tensor | None = None,
    held: Sequence[int] | None = None,
) -> Tensor:  # fmt: skip
    """The weighted sum `[t, e]` of what a token's experts make of it, of those `held`."""
    tokens, chosen, _ = activated_tkf.shape
    sum_te = activated_tkf.new_zeros((tokens, weight_xef.shape[1]))
    for expert, place, token_m, choice_m in _visits(routing_tx, chosen, held):
        bias_e = None if bias_xe is None else bias_xe[place]
        out_me = linear(activated_tkf[token_m, choice_m], weight_xef[place], bias_e)
        sum_te.index_add_(0, token_m, out_me * routing_tx[token_m, expert, None])
    return sum_te


def active_experts(routing_tx: Tensor) -> int:
    """Experts that at least one token chose."""
    return int((routing_tx >= 0).any(dim=0).sum())

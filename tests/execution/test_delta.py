"""The gated delta net against the recurrence of its paper, one token, head and channel at a time."""

from math import exp, log1p, sqrt

import pytest
import torch
from torch import Tensor

from simulator.execution.delta import Weights, convolve, delta_rule, empty_state, gated_delta_net
from simulator.specs.architecture import LinearAttention
from tests.tensors import assert_close, normal

LINEAR = LinearAttention(num_key_heads=2, num_value_heads=4, key_head_dim=3, value_head_dim=5, conv_kernel=4)
GROUP = LINEAR.num_value_heads // LINEAR.num_key_heads
EPS = 1e-5
MIXED = normal(9, 2 * (2 * 3 + 2 * GROUP * 5) + 2 * 4, seed=1)
"""Nine tokens: queries, keys, values and gates of each key head, then shares and decays of each."""
WEIGHTS = Weights(normal(6, 4, seed=2), normal(6, 4, seed=3), normal(20, 4, seed=4), normal(4, seed=5),
                  normal(4, seed=6), normal(5, seed=7))  # fmt: skip


def silu(x: float) -> float:
    return x / (1 + exp(-x))


def unit(x: Tensor) -> Tensor:
    return x / (x @ x + 1e-6).sqrt()


def recurrence(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Equation 10 of the paper for one head: S <- a S (I - b k k') + b v k', read as S q; S is [v, k]."""
    outputs, eye = [], torch.eye(k.shape[1], dtype=k.dtype)
    for t in range(len(q)):
        key = unit(k[t])
        fading = torch.exp(decay[t]) * (eye - beta[t] * torch.outer(key, key))
        state = state @ fading + beta[t] * torch.outer(v[t], key)
        outputs.append(state @ unit(q[t]) / sqrt(k.shape[1]))
    return torch.stack(outputs), state


def test_the_delta_rule_is_the_recurrence_of_the_paper():
    q, k, v = normal(9, 4, 3, seed=1), normal(9, 4, 3, seed=2), normal(9, 4, 5, seed=3)
    decay, beta, state = -normal(9, 4, seed=4).abs(), normal(9, 4, seed=5).sigmoid(), normal(4, 3, 5, seed=6)
    read, after = delta_rule(q, k, v, decay, beta, state)
    for head in range(4):
        at = (slice(None), head)
        expected, left = recurrence(q[at], k[at], v[at], decay[at], beta[at], state[head].T)
        assert_close(read[at], expected, 1e-10)
        assert_close(after[head], left.T, 1e-10)


def test_a_convolution_sees_the_last_tokens_only():
    x, tail, kernel = normal(6, 7, seed=1), normal(3, 7, seed=2), normal(7, 4, seed=3)
    seen, (out, left) = torch.cat((tail, x)), convolve(x, tail, kernel)
    for t in range(6):
        for channel in range(7):
            total = sum(float(seen[t + tap, channel] * kernel[channel, tap]) for tap in range(4))
            assert float(out[t, channel]) == pytest.approx(silu(total), rel=1e-12)
    assert torch.equal(left, seen[-3:])


def test_a_convolution_of_one_token_looks_at_itself():
    x = normal(5, 7)
    out, left = convolve(x, x[:0], torch.ones(7, 1, dtype=torch.float64))
    assert_close(out, x.clone().apply_(silu))
    assert left.shape == (0, 7)


def net_by_hand(mixed: Tensor) -> Tensor:
    """Each value head on its own, from the first token on."""
    wide = 2 * 3 + 2 * GROUP * 5
    qkvz, ba = mixed[:, : 2 * wide].unflatten(1, (2, wide)), mixed[:, 2 * wide :].unflatten(1, (2, 2 * GROUP))
    heads = []
    for head in range(4):
        key_head, place = divmod(head, GROUP)
        mine, first = qkvz[:, key_head], 6 + 5 * place
        kernels = (WEIGHTS.q_conv_qw[3 * key_head : 3 * key_head + 3],
                   WEIGHTS.k_conv_qw[3 * key_head : 3 * key_head + 3],
                   WEIGHTS.v_conv_qw[5 * head : 5 * head + 5])  # fmt: skip
        parts = (mine[:, :3], mine[:, 3:6], mine[:, first : first + 5])
        q, k, v = (
            convolve(part, part.new_zeros(3, part.shape[1]), kernel)[0]
            for part, kernel in zip(parts, kernels, strict=True)
        )
        b, a = ba[:, key_head, place], ba[:, key_head, GROUP + place]
        rate = exp(float(WEIGHTS.a_log_h[head]))
        shift = float(WEIGHTS.dt_bias_h[head])
        decay = torch.tensor([-rate * log1p(exp(float(each) + shift)) for each in a], dtype=torch.float64)
        read, _ = recurrence(q, k, v, decay, 1 / (1 + torch.exp(-b)), torch.zeros(5, 3, dtype=torch.float64))
        normed = read / (read.square().mean(-1, keepdim=True) + EPS).sqrt() * WEIGHTS.norm_v
        start = 6 + GROUP * 5 + 5 * place
        heads.append(normed * mine[:, start : start + 5].clone().apply_(silu))
    return torch.cat(heads, dim=-1)


def test_the_whole_operator_is_its_parts_head_by_head():
    out, _, _ = gated_delta_net(LINEAR, MIXED, WEIGHTS, EPS, *empty_state(LINEAR, MIXED))
    assert_close(out, net_by_hand(MIXED), 1e-10)


@pytest.mark.parametrize("cuts", [[9], [1] * 9, [4, 5], [2, 1, 6]])
def test_pieces_of_a_sequence_are_the_sequence(cuts: list[int]):
    whole, *after = gated_delta_net(LINEAR, MIXED, WEIGHTS, EPS, *empty_state(LINEAR, MIXED))
    state, outputs = empty_state(LINEAR, MIXED), []
    for piece in MIXED.split(cuts):
        out, *state = gated_delta_net(LINEAR, piece, WEIGHTS, EPS, *state)
        outputs.append(out)
    assert_close(torch.cat(outputs), whole)
    for mine, expected in zip(state, after, strict=True):
        assert_close(mine, expected)


def test_shards_of_heads_stand_side_by_side():
    wide = 2 * 3 + 2 * GROUP * 5
    whole, _, state = gated_delta_net(LINEAR, MIXED, WEIGHTS, EPS, *empty_state(LINEAR, MIXED))
    outputs, states = [], []
    for rank in (0, 1):
        qkvz = MIXED[:, rank * wide : (rank + 1) * wide]
        ba = MIXED[:, 2 * wide + rank * 2 * GROUP :][:, : 2 * GROUP]
        half = Weights(*(each.chunk(2)[rank] for each in (
            WEIGHTS.q_conv_qw, WEIGHTS.k_conv_qw, WEIGHTS.v_conv_qw, WEIGHTS.a_log_h, WEIGHTS.dt_bias_h)),
            WEIGHTS.norm_v)  # fmt: skip
        mixed = torch.cat((qkvz, ba), dim=-1)
        out, _, left = gated_delta_net(LINEAR, mixed, half, EPS, *empty_state(LINEAR, mixed, degree=2))
        outputs.append(out)
        states.append(left)
    assert_close(torch.cat(outputs, dim=-1), whole)
    assert_close(torch.cat(states), state)

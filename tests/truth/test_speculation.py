"""Speculative decoding against the closed forms of Leviathan et al. 2023 (arXiv 2211.17192)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from simulator.graph.machine import MachineGraph
from simulator.placement.placement import Placement, Speculation, Stage
from simulator.placement.program import programs_of
from simulator.results.records import RunRecord, SpeculationRecord
from simulator.serving.speculation import DrawnAcceptance
from simulator.simulation.serve import serve
from simulator.specs.architecture import Architecture, LayerSpec, Mlp
from tests import tiny

WIDE = replace(tiny.LLAMA, hidden_size=512, layers=(LayerSpec(tiny.ATTENTION, Mlp(2048, "silu", gated=True)),) * 8)
"""Weights are all that counts: of keys and values there are next to none."""
ONE_LAYER, TWO_LAYERS = replace(WIDE, layers=WIDE.layers[:1]), replace(WIDE, layers=WIDE.layers[:2])


def server(flops: float) -> MachineGraph:
    links = tiny.link(bandwidth=1e15, latency_s=0.0)
    return tiny.machine(tiny.node(gpus=[tiny.device(flops=flops, bandwidth=1e9)], host_link=links, dram=1e15))


MEMORY_BOUND = server(flops=1e18)


def run(
    model: Architecture, draft: Architecture | None = None, proposed: int = 0, acceptance: float = 0.0,
    sequences: int = 1, output: int = 600, graph: MachineGraph = MEMORY_BOUND, fidelity: str = "fast",
) -> RunRecord:  # fmt: skip
    speculation = None if draft is None else Speculation(draft, ("gpu-0",), proposed, acceptance)
    placement = Placement("p", (Stage(("gpu-0",), 0, len(model.layers)),), speculation=speculation)
    engine = tiny.engine(max_num_seqs=sequences, max_num_batched_tokens=sequences * 20, kv_block_tokens=16)
    oracle = None if draft is None else DrawnAcceptance(acceptance, seed=5)
    return serve(programs_of(model, (placement,), graph, tiny.BF16), engine, 10**6,
                 tiny.source(tiny.requests(*[(0.0, 4, output)] * sequences)), fidelity, acceptance=oracle)  # fmt: skip


def rounds(record: RunRecord) -> SpeculationRecord:
    assert record.speculation is not None
    return record.speculation


def expected_tokens(acceptance: float, proposed: int) -> float:
    """Of a round: equation 1 of the paper."""
    return proposed + 1 if acceptance == 1 else (1 - acceptance ** (proposed + 1)) / (1 - acceptance)


def deviation(acceptance: float, proposed: int) -> float:
    """Standard deviation of a round's tokens."""
    chances = [acceptance**count * (1 - acceptance if count < proposed else 1) for count in range(proposed + 1)]
    mean = sum(count * chance for count, chance in enumerate(chances))
    return float(sum((count - mean) ** 2 * chance for count, chance in enumerate(chances)) ** 0.5)


@pytest.mark.parametrize("proposed", [1, 3, 7])
@pytest.mark.parametrize("acceptance", [0.0, 0.5, 0.7, 0.9, 1.0])
def test_tokens_of_a_round(acceptance: float, proposed: int) -> None:
    """Those of a whole run, but for the last rounds of answers, in which fewer are proposed."""
    found = rounds(run(WIDE, ONE_LAYER, proposed, acceptance, sequences=10))
    allowed = 4 * deviation(acceptance, proposed) / found.rounds**0.5 + 10 * (proposed + 1) / found.rounds
    assert found.tokens_per_round == pytest.approx(expected_tokens(acceptance, proposed), abs=allowed)


@pytest.mark.parametrize("draft", [ONE_LAYER, TWO_LAYERS], ids=["one layer", "two layers"])
@pytest.mark.parametrize("proposed", [1, 2, 5])
@pytest.mark.parametrize("acceptance", [0.0, 0.6, 1.0])
def test_a_model_bound_by_memory_is_as_much_faster_as_the_paper_says(draft, proposed, acceptance) -> None:
    """Theorem 3.8: E tokens in the time of one pass and of `proposed` passes that take c of it each. The
    tokens of a round are those that came, so that no luck is in it."""
    own_s, draft_s = (each.requests[0].engine_tpot_s for each in (run(WIDE), run(draft)))
    found = run(WIDE, draft, proposed, acceptance)
    assert own_s and draft_s and found.requests[0].engine_tpot_s
    tokens = rounds(found).tokens_per_round
    assert tokens is not None
    improvement = tokens / (proposed * draft_s / own_s + 1)
    assert own_s / found.requests[0].engine_tpot_s == pytest.approx(improvement, rel=0.02)


def test_a_batch_bound_by_arithmetic_gets_slower() -> None:
    """A verification does `proposed` + 1 times the arithmetic of a token. Where that sets the pace, what is not
    accepted is lost, and so are the drafter's passes."""
    graph = server(flops=2e10)
    few, many = (
        run(WIDE, sequences=count, output=60, graph=graph).end_s
        / run(WIDE, ONE_LAYER, 3, 0.6, sequences=count, output=60, graph=graph).end_s
        for count in (1, 64)
    )
    assert few > 1.2
    assert many < 0.8


@pytest.mark.parametrize("acceptance", [0.0, 1.0])
def test_passes_of_both_models(acceptance: float) -> None:
    """Worked by hand: a prompt's two passes, then rounds of three proposals and a verification each; near the
    end no more is proposed than the answer still lacks."""
    proposed, output = 3, 1 + 4 * 2
    found = run(WIDE, ONE_LAYER, proposed, acceptance, output=output)
    model_passes = found.step_count
    assert rounds(found).rounds == model_passes - 1 == (2 if acceptance else output - 1)
    assert rounds(found).draft_passes == 1 + (3 * 2 if acceptance else 3 * 5 + 2 + 1)

"""Ranks with sequences of their own that share whole experts: steps carried out rank by rank on torch."""

from collections import Counter
from collections.abc import Iterator

import pytest

from simulator.execution import replay as real
from simulator.graph.shape import Chunk
from simulator.placement.occupancy import peak_occupancy, standing_bytes
from simulator.placement.placement import ExpertsAside, Placement
from simulator.placement.plan import Plan, flaws
from simulator.placement.program import Program
from simulator.study.compare import residency_flaws
from tests.placed import FLOAT64, machine, model, stages

BLOCK, BLOCKS = 4, 8
Steps = list[tuple[tuple[Chunk, ...], ...]]


def program(ranks: int, name: str, aside: ExpertsAside | None = None) -> Program:
    devices = "+".join(f"gpu-{rank}" for rank in range(ranks))
    placement = Placement("by sequence", stages((devices, 4)), ranks, whole_experts=True, by_sequence=True,
                          experts_aside=aside)  # fmt: skip
    return Program(model(name), placement, machine(), FLOAT64)


PROMPTS = {0: 5, 1: 11, 2: 3, 3: 6}
"""Prompt tokens of each sequence."""


def steps_of(ranks: int, outputs: int = 4) -> Steps:
    """Sequence s is on rank s modulo their number and starts at step s; of the longest prompt seven tokens come
    first. So ranks have prompts, decode, both or nothing at once."""

    def chunks_of(number: int) -> Iterator[Chunk]:
        own = tuple(range(BLOCKS // 2)) if number < ranks else tuple(range(BLOCKS // 2, BLOCKS))
        prompt = PROMPTS[number]
        if prompt > 7:
            yield Chunk(number, 0, 7, False, own)
        yield Chunk(number, 7 if prompt > 7 else 0, prompt - 7 if prompt > 7 else prompt, True, own)
        for token in range(outputs - 1):
            yield Chunk(number, prompt + token, 1, True, own)

    by_step: list[list[list[Chunk]]] = []
    for number in PROMPTS:
        for step, chunk in enumerate(chunks_of(number), start=number):
            while len(by_step) <= step:
                by_step.append([[] for _ in range(ranks)])
            by_step[step][number % ranks].append(chunk)
    return [tuple(tuple(part) for part in step) for step in by_step]


@pytest.mark.parametrize("name", ["tiny-mixtral", pytest.param("tiny-deepseek-v2", marks=pytest.mark.slow),
                                  pytest.param("tiny-qwen2-moe", marks=pytest.mark.slow),
                                  pytest.param("tiny-gpt-oss", marks=pytest.mark.slow)])  # fmt: skip
@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("aside", [None, ExpertsAside("cpu", (0, 3))], ids=["all on ranks", "some aside"])
def test_tokens_and_bytes_are_those_of_plain_generation(ranks: int, name: str, aside: ExpertsAside | None) -> None:
    placed = program(ranks, name, aside)
    template = placed.template(ranks)
    assert flaws(template, [resident.tensor.name for resident in placed.residents()]) == []
    plans = [Plan(template, parts) for parts in steps_of(ranks)]
    timed = [
        real.TimedPlan(plan, tuple(range(start, start + count)), tuple(range(start + 1, start + count + 1)))
        for number, plan in enumerate(plans)
        for count in [len(template.tasks)]
        for start in [number * count]
    ]
    prompts = {number: [(7 * number + 3 * place) % 50 for place in range(count)] for number, count in PROMPTS.items()}
    with real.repeatable():
        network = real.random_model(placed.model, 3, placed.storage)
        happened = real.replay((placed,), network, prompts, timed, BLOCKS, BLOCK)
        tokens, logits = real.reference(network, prompts, dict.fromkeys(prompts, 4))
    assert happened.fault is None
    assert happened.wrong_flops == []
    assert happened.tokens == tokens
    assert real.largest_difference(happened.logits, logits) < 1e-9
    planned: Counter[str] = Counter()
    for plan in plans:
        for task in template.tasks:
            planned.update(dict(plan.link_bytes(task)))
    assert +planned == +happened.link_bytes
    standing = standing_bytes(placed, BLOCKS, BLOCK, len(prompts))
    peaks = peak_occupancy(standing, plans, real.moments(timed))
    assert {memory: peak for memory, peak in peaks.items() if peak} == dict(+happened.peak_bytes)
    shapes = {each: tuple(tensor.shape) for each, tensor in network.named_parameters()}
    assert residency_flaws(placed, shapes) == []

"""Keys and values handed from one placed model to another: prefill here, decode there, same tokens."""

import pytest
from simpy import Environment

from simulator.execution.network import Transformer
from simulator.execution.replay import Replayed, TimedPlan, random_model, reference, replay
from simulator.graph.shape import Chunk, StepShape
from simulator.placement.kv_moves import handover_template
from simulator.placement.placement import Placement, Stage
from simulator.placement.plan import Plan
from simulator.placement.program import Program
from simulator.simulation.engine import TaskEngine
from simulator.simulation.pricing import PricedTemplate
from tests.placed import FLOAT64, engine, machine, model, stages

PROMPTS = {0: [3, 14, 15, 92, 65], 1: [35, 89, 79]}
DECODED = 3
BLOCK_TOKENS = 4
SOURCE_BLOCKS, TARGET_BLOCKS = ((0, 1), (2,)), ((5, 3), (1, 4))

PAIRS = [
    (stages(("gpu-0", 4)), stages(("gpu-1", 4))),
    (stages(("gpu-0+gpu-1", 4)), stages(("gpu-2+gpu-3", 4))),
    (stages(("gpu-0", 4)), stages(("gpu-2+gpu-3", 4))),
    (stages(("gpu-0+gpu-1", 4)), stages(("gpu-2", 1), ("gpu-3", 3))),
    (stages(("cpu", 1), ("gpu-0", 3)), stages(("gpu-1", 4))),
]


def placed(parts: tuple[Stage, ...], name: str) -> Program:
    return Program(model("tiny-llama"), Placement(name, parts), machine(), FLOAT64)


def network_of(program: Program) -> Transformer:
    return random_model(program.model, seed=5, storage=program.storage)


def plans(source: Program, target: Program) -> list[tuple[Program, Plan]]:
    """One prefill, the hand-over, and a few decode steps."""
    lengths = [len(prompt) for prompt in PROMPTS.values()]
    prefill = tuple(Chunk(n, 0, length, True, SOURCE_BLOCKS[n]) for n, length in enumerate(lengths))
    moved = tuple(
        Chunk(n, length, 0, False, SOURCE_BLOCKS[n], TARGET_BLOCKS[n]) for n, length in enumerate(lengths)
    )
    result = [
        (source, Plan(source.template(1), (prefill,))),
        (source, Plan(handover_template(source, target), (moved,))),
    ]
    for done in range(DECODED):
        chunks = tuple(Chunk(n, length + done, 1, True, TARGET_BLOCKS[n]) for n, length in enumerate(lengths))
        result.append((target, Plan(target.template(1), (chunks,))))
    return result


def carried_out(source: Program, target: Program, actions: list[tuple[Program, Plan]]) -> Replayed:
    """Simulate the actions one after the other, and replay them on torch."""
    env, timed = Environment(), []
    engine_ = TaskEngine(env)

    def run():
        for program, plan in actions:
            priced = PricedTemplate(plan.template, program, engine())
            launched = engine_.launch(priced, priced.durations(plan.shapes))
            yield launched.outcome
            timed.append(launched)

    env.process(run())
    env.run()
    steps = [
        TimedPlan(plan, tuple(launched.starts), tuple(launched.ends))
        for (_, plan), launched in zip(actions, timed, strict=True)
    ]
    network = network_of(source)
    return replay([source, target], network, PROMPTS, steps, block_count=6, block_tokens=BLOCK_TOKENS)


@pytest.mark.parametrize(("before", "after"), PAIRS)
def test_decoding_goes_on_elsewhere_with_the_same_tokens(before, after):
    source, target = placed(before, "source"), placed(after, "target")
    actions = plans(source, target)
    happened = carried_out(source, target, actions)
    tokens, _ = reference(network_of(source), PROMPTS, dict.fromkeys(PROMPTS, DECODED + 1))
    assert happened.fault is None
    assert happened.wrong_flops == []
    assert happened.tokens == tokens


@pytest.mark.parametrize(("before", "after"), PAIRS)
def test_bytes_are_those_of_the_cached_tokens(before, after):
    """2 (keys, values) x 4 layers x 4 KV heads x 8 channels x 8 bytes for each of 8 tokens, over two links
    each: between GPUs twice PCIe, from or to the host's memory PCIe and the bus."""
    source, target = placed(before, "source"), placed(after, "target")
    _, handed = plans(source, target)[1]
    per_layer = 2 * 4 * 8 * 8 * 8
    crossed = sum(nbytes for task in handed.template.tasks for _, nbytes in handed.link_bytes(task))
    assert crossed == per_layer * 2 * 4
    assert handed.shapes == (StepShape(sequences=2, logit_rows=2, prefill_sequences=2, prefill_span=8, prefill_context=8, has_prefill=1),)


def test_a_forgotten_layer_shows():
    source, target = placed(PAIRS[0][0], "source"), placed(PAIRS[0][1], "target")
    actions = plans(source, target)
    program, handed = actions[1]
    kept = tuple(task for task in handed.template.tasks if task.layer != 2)
    shorter = type(handed.template)(
        (*kept[:-1], type(kept[-1])("handed-over", "host", "commit", source.host, ("x",), (), (), host_work="commit")),
        len(kept) - 1,
    )
    actions[1] = (program, Plan(shorter, handed.chunks))
    tokens, _ = reference(network_of(source), PROMPTS, dict.fromkeys(PROMPTS, DECODED + 1))
    assert carried_out(source, target, actions).tokens != tokens

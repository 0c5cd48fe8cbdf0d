"""A model and its drafter side by side: names, the account of memory, what a verification scores."""

from __future__ import annotations

from typing import Any

import pytest

from simulator.errors import InputError
from simulator.graph.shape import Chunk, StepShape
from simulator.placement.largest_step import largest_step
from simulator.placement.memory import Budget, budget, refusal
from simulator.placement.placement import NotPlaceable, Placement
from simulator.placement.plan import Plan, flaws
from simulator.placement.program import Program
from simulator.placement.strategies import STRATEGIES, Speculative
from simulator.specs.catalogue import Catalogue
from simulator.specs.scenario import PrecisionChoice, load_scenario
from simulator.study.deploy import deploy
from tests.placed import engine, machine, model
from tests.placement.test_memory import BF16, placed

WHERE = "epyc-9654-4x-l40s"


def strategy(draft: str = "llama-3.2-1b", proposed: int = 4, **fields: Any) -> Speculative:
    return Speculative.model_validate({"draft": draft, "draft_tokens": proposed, "acceptance": 0.7, **fields})


def account(found: Program) -> Budget:
    return budget(found, engine())


def need(found: Program, memory: str) -> Any:
    return next(each for each in account(found).needs if each.memory == memory)


def test_both_models_stand_in_the_account_with_names() -> None:
    """A KV block of 16 tokens: 32 layers of 8 heads of 128, and 16 layers of 8 heads of 64."""
    gpu = need(placed(strategy(), WHERE), "gpu-0")
    assert gpu.parts["weights"] == 2 * 8_030_261_248
    assert gpu.parts["draft_weights"] == 2 * 1_235_814_400
    assert gpu.kv_block_bytes == 16 * 2 * 8 * 128 * 2 * 32
    assert gpu.draft_block_bytes == 16 * 2 * 8 * 64 * 2 * 16
    assert gpu.with_blocks(10)["draft_kv_cache"] == 10 * gpu.draft_block_bytes
    assert sum(gpu.with_blocks(10).values()) == sum(gpu.parts.values()) + 10 * gpu.block_bytes


def test_a_block_is_one_of_both_models_wherever_they_are() -> None:
    apart = placed(strategy(draft_devices=["gpu-1"]), WHERE)
    own, other = need(apart, "gpu-0"), need(apart, "gpu-1")
    assert (own.draft_block_bytes, other.kv_block_bytes) == (0, 0)
    assert other.parts.keys() >= {"draft_weights", "engine_context"}
    assert "weights" not in other.parts
    assert account(apart).kv_blocks == min(own.kv_blocks, other.kv_blocks) == own.kv_blocks
    assert account(placed(strategy(), WHERE)).kv_blocks < own.kv_blocks


def test_a_drafter_that_does_not_fit_says_so() -> None:
    """Two models of 8 billion parameters with 131,072 tokens on a card of 24 GB."""
    found = placed(strategy("llama-3.1-8b"), "xeon-6454s-1s-4x-rtx-4090")
    said = refusal(account(found), 1000)
    assert said is not None
    assert "draft weights 15.0" in said


def test_rows_of_a_verification_are_counted_where_they_are_scored() -> None:
    chunks = [Chunk(0, 7, 4, True, rows=4), Chunk(1, 9, 1, True), Chunk(2, 0, 6, False)]
    shape = StepShape.of(chunks)
    assert (shape.sequences, shape.tokens, shape.logit_rows) == (3, 11, 6)
    program = placed(strategy("tiny-llama"), WHERE, "tiny-llama")
    plan = Plan(program.template(1), (tuple(chunks),))
    (sample,) = (task for task in plan.template.tasks if task.operator == "sample")
    assert plan.amount(sample, sample.writes[0].nbytes) == 6 * 8


def test_names_of_both_are_apart() -> None:
    program = placed(strategy("tiny-llama"), WHERE, "tiny-llama")
    drafter = program.drafter
    assert drafter is not None and drafter.drafter is None
    names = [{*member.template(1).tensors, *(r.tensor.name for r in member.residents()),
              *(slab.name for slab in member.slabs())} for member in program.members]  # fmt: skip
    assert not names[0] & names[1]
    assert all(name.startswith("draft.") for name in names[1])
    assert not flaws(drafter.template(1), [resident.tensor.name for resident in drafter.residents()])
    assert drafter.engine_unit == program.engine_unit


@pytest.mark.parametrize("proposed", [1, 4, 16])
def test_the_largest_step_scores_all_that_may_be_scored(proposed: int) -> None:
    scheduler = engine().scheduler
    found = placed(strategy(proposed=proposed), WHERE)
    rows = min(scheduler.max_num_batched_tokens, scheduler.max_num_seqs * (proposed + 1))
    assert largest_step(found, engine())["gpu-0"].total() >= rows * 128_256 * 2


def test_cached_tokens_do_not_leave_for_host_memory_yet() -> None:
    precision = PrecisionChoice(weights="bf16", activations="bf16", kv_cache="bf16")
    found = deploy(WHERE, model("llama-3.1-8b"), "vllm", precision, strategy(), Catalogue(), memory={"host_kv_bytes": 1e9})
    assert isinstance(found, NotPlaceable)
    assert "a model and its drafter share cannot be copied to host memory" in found.reason


def test_the_label_says_what_is_proposed() -> None:
    assert strategy().label == "speculative llama-3.2-1b x 4 at 70%"
    given = strategy(tensor_parallel=2, devices=["gpu-2", "gpu-3"], draft_devices=["cpu"])
    assert given.label == "speculative llama-3.2-1b x 4 at 70% tp 2 gpu-2+gpu-3 on cpu"
    placement = given.place(model("llama-3.1-8b"), machine(WHERE))
    assert isinstance(placement, Placement)
    assert placement.devices == ("gpu-2", "gpu-3", "cpu")


# -- through a scenario file ---------------------------------------------------------------------------------

SCENARIO = """\
name: mine
model: llama-3.1-8b
machine: epyc-9654-4x-l40s
engine: vllm
precision: {{weights: bf16, activations: bf16, kv_cache: bf16}}
placements:
  - {{strategy: speculative, {keys}}}
workload: {{arrivals: {{process: batch}}, lengths: {{prompt: 8, output: 4}}, requests: 2}}
"""


def loaded(tmp_path: Any, keys: str, **more: Any) -> Any:
    path = tmp_path / "mine.yaml"
    path.write_text(SCENARIO.format(keys=keys), encoding="utf-8")
    return load_scenario(path, STRATEGIES, **more)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("draft: llama-3.2-1b, draft_tokens: 4", "placements.0.acceptance"),
        ("draft: llama-3.2-1b, draft_tokens: 4, acceptance: 1.2", "at most 1"),
        ("draft: llama-3.2-1b, draft_tokens: 0, acceptance: 0.7", "placements.0.draft_tokens = 0"),
        ("draft: llama-3.2-1B, draft_tokens: 4, acceptance: 0.7", "mine.yaml:7:36: placements.0.draft = 'llama-3.2-1B'"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_file_is_told_in_its_place(tmp_path: Any, keys: str, expected: str) -> None:
    with pytest.raises(InputError) as found:
        loaded(tmp_path, keys)
    assert expected in str(found.value)


def test_a_range_of_acceptance_is_a_band(tmp_path: Any) -> None:
    keys = "draft: llama-3.2-1b, draft_tokens: [2, 4], acceptance: 60..80 %"
    for case, expected in (("nominal", 0.7), ("best", 0.8), ("worst", 0.6)):
        scenario = loaded(tmp_path, keys, case=case)
        assert [run.placement.acceptance for run in scenario.runs] == [pytest.approx(expected)] * 2
        assert [run.axes for run in scenario.runs] == [{"placement.draft_tokens": each} for each in (2, 4)]
        assert scenario.figures


def test_the_program_of_a_drafter_takes_the_formats_of_the_model() -> None:
    found = placed(strategy(), WHERE)
    assert found.drafter is not None
    assert (found.drafter.formats, found.drafter.host) == (BF16, found.host)

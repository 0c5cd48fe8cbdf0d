"""KV blocks, operators and experts on other devices than their stage's: carried out, and planted mistakes found."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from simulator.execution import attention_operators, kv, operators
from simulator.execution.call import Call, Outputs
from simulator.graph.shape import Chunk
from simulator.graph.share import ExpertSplit, Share
from simulator.placement.placement import Elsewhere, ExpertsAside, KvHome, Placement
from simulator.placement.plan import Resident, Template, with_frees
from simulator.placement.program import Program
from tests.execution.planting import changed, edited, first, without
from tests.placed import EXPERT_PLACEMENTS, deployed, some_slow, stages, verified

ONE = stages(("gpu-0", 4))
AWAY = Placement("KV cache at the host", ONE, kv_home=KvHome("host", buffers=1))
BESIDE = Placement("decode beside the KV cache", ONE, kv_home=KvHome("host", "cpu"))
RANKS_AWAY = Placement("ranks", stages(("gpu-0+gpu-1", 4)), kv_home=KvHome("host"))
HEAD_ELSEWHERE = Placement("head elsewhere", ONE, elsewhere=(
    Elsewhere("gpu-2", frozenset({"up_proj"}), frozenset({1, 2})),))  # fmt: skip
ASIDE = Placement("experts aside", ONE, experts_aside=ExpertsAside("cpu", (1, 2, 5)))
WHOLE = Placement("whole experts", stages(("gpu-0+gpu-1", 4)), whole_experts=True)

Plant = Callable[[pytest.MonkeyPatch], Placement]


@pytest.mark.parametrize("model", ["tiny-mixtral", pytest.param("tiny-gpt-oss", marks=pytest.mark.slow),
                                   pytest.param("tiny-deepseek-v2", marks=pytest.mark.slow)])  # fmt: skip
@pytest.mark.parametrize("placement", [
    placement if number in (0, 3, 5) else pytest.param(placement, marks=pytest.mark.slow)
    for number, placement in enumerate(EXPERT_PLACEMENTS)
], ids=lambda placement: placement.name)
def test_experts_in_other_places_are_what_torch_computes(placement: Placement, model: str) -> None:
    row = verified(placement, model)
    assert (row.status, row.mismatches, row.tokens) == ("ok", (), 13)


@pytest.mark.parametrize("placement", [
    AWAY, Placement("microbatches", stages(("gpu-0", 2), ("gpu-1+gpu-2", 2)), microbatches=2),
], ids=lambda placement: placement.name)  # fmt: skip
def test_launches_of_an_eager_engine_change_nothing_but_the_clock(placement: Placement) -> None:
    row = verified(placement, "tiny-llama", under="llama.cpp")
    assert (row.status, row.mismatches, row.tokens) == ("ok", (), 13)
    count = placement.microbatches
    eager, plain = (deployed(placement, under=name).program.template(count) for name in ("llama.cpp", "vllm"))
    assert len(eager.tasks) == len(plain.tasks) + len(placement.stages) * count


# --- the KV cache -------------------------------------------------------------------------------------------


def store_left_out(patch: pytest.MonkeyPatch) -> Placement:
    changed(patch, lambda template: without(template, first(template, "kv_store"), {}))
    return AWAY


def fetch_left_out(patch: pytest.MonkeyPatch) -> Placement:
    changed(patch, lambda template: without(template, first(template, "kv_fetch"), {}))
    return AWAY


def one_token_too_few(patch: pytest.MonkeyPatch) -> Placement:
    gather = kv.gather
    patch.setattr(kv, "gather", lambda *given: gather(*given)[:, :-1])
    return AWAY


def one_token_missed(patch: pytest.MonkeyPatch) -> Placement:
    """As many tokens as there should be, but the latest one of each batch is not among them."""
    gather = kv.gather

    def missed(slab: torch.Tensor, chunks: list[Chunk], first_key: Callable[[int], int]) -> torch.Tensor:
        found = gather(slab, chunks, first_key)
        return torch.cat((found[:, :1], found[:, :-1]), dim=1)

    patch.setattr(kv, "gather", missed)
    return AWAY


def stale_blocks_fetched(patch: pytest.MonkeyPatch) -> Placement:
    """Every sequence is given the first block of the first one."""
    gather = kv.gather

    def stale(slab: torch.Tensor, chunks: list[Chunk], first_key: Callable[[int], int]) -> torch.Tensor:
        block = chunks[0].blocks[0] if chunks else 0
        return gather(slab, [replace(c, blocks=(block, *c.blocks[1:])) for c in chunks], first_key)

    patch.setattr(kv, "gather", stale)
    return AWAY


def stored_into_wrong_blocks(patch: pytest.MonkeyPatch) -> Placement:
    scatter = kv.scatter

    def misplaced(slab: torch.Tensor, chunks: list[Chunk], new: torch.Tensor) -> None:
        scatter(slab, [replace(c, blocks=c.blocks[1:] + c.blocks[:1]) for c in chunks], new)

    patch.setattr(kv, "scatter", misplaced)
    return AWAY


def another_layers_blocks(patch: pytest.MonkeyPatch) -> Placement:
    def change(template: Template) -> Template:
        return edited(template, first(template, "kv_fetch"), kv="kv.1@gpu-0")

    changed(patch, change)
    return AWAY


def fetched_too_soon(patch: pytest.MonkeyPatch) -> Placement:
    """Nothing holds a fetch back until the attention before has left the buffer."""

    def change(template: Template) -> Template:
        return replace(template, tasks=tuple(
            replace(task, after=()) if task.operator == "kv_fetch" else task for task in template.tasks
        ))  # fmt: skip

    changed(patch, change)
    return AWAY


def stores_that_trail_into_the_next_step(patch: pytest.MonkeyPatch) -> Placement:
    """The commit waits for the answer only. On this clock every store is done in time all the same, so it is the
    order of the plan that gives the mistake away."""

    def change(template: Template) -> Template:
        return edited(template, template.outcome, after=())

    changed(patch, change)
    return RANKS_AWAY


def rows_joined_in_the_wrong_order(patch: pytest.MonkeyPatch) -> Placement:
    """Rows of decode first, then all others, wherever they stood in the batch."""

    def joined(call: Call) -> Outputs:
        return (torch.cat(tuple(call.values)),)

    patch.setitem(operators.OPERATORS, "join_rows", joined)
    return BESIDE


def phases_mixed_up(patch: pytest.MonkeyPatch) -> Placement:
    """The last token of a prompt that was cut is a decode row: it has one new token and cached ones before."""
    patch.setattr(attention_operators, "_is_decode", lambda call: torch.tensor(
        [c.new == 1 and c.context > 4 for c in call.chunks for _ in range(c.new)]))  # fmt: skip
    return BESIDE


# --- operators and experts ----------------------------------------------------------------------------------


def copy_left_out(patch: pytest.MonkeyPatch) -> Placement:
    """The processor reads tokens and routing where the accelerator left them."""

    def change(template: Template) -> Template:
        index = first(template, "copy_normed")
        task = template.tasks[index]
        renamed = {tensor.name: name for tensor, name in zip(task.writes, task.reads, strict=True)}
        return without(template, index, renamed)

    changed(patch, change)
    return ASIDE


def weight_on_the_wrong_device(patch: pytest.MonkeyPatch) -> Placement:
    """It stays with the layer, though its operator does not."""
    sound = Program.residents

    def residents(self: Program) -> tuple[Resident, ...]:
        return tuple(replace(each, tensor=replace(each.tensor, memory="gpu-0"))
                     if each.tensor.memory == "gpu-2" else each for each in sound(self))  # fmt: skip

    patch.setattr(Program, "residents", residents)
    return HEAD_ELSEWHERE


def expert_on_both_sides(patch: pytest.MonkeyPatch) -> Placement:
    """The stage's device goes through one of the experts aside as well."""
    held = ExpertSplit.held
    patch.setattr(ExpertSplit, "held", lambda self, count, share: tuple(sorted((*held(self, count, share), 5))))
    return ASIDE


def expert_on_no_side(patch: pytest.MonkeyPatch) -> Placement:
    held = ExpertSplit.held
    patch.setattr(ExpertSplit, "held", lambda self, count, share: held(self, count, share)[1:])
    return ASIDE


def expert_of_the_other_rank(patch: pytest.MonkeyPatch) -> Placement:
    """Both ranks hold the experts of the first one."""
    held = ExpertSplit.held
    patch.setattr(ExpertSplit, "held", lambda self, count, share: held(self, count, Share(0, share.degree)))
    return WHOLE


def side_branch_not_added(patch: pytest.MonkeyPatch) -> Placement:
    def change(template: Template) -> Template:
        index = first(template, "expert_add")
        own = tuple(name for name in template.tasks[index].reads if "side_branch" not in name)
        lost = [name for name in template.tasks[index].reads if name not in own]
        changed = edited(template, index, reads=own)
        plain = [replace(task, frees=()) for task in changed.tasks]
        return replace(changed, tasks=with_frees(plain, template.imports, lost))

    changed(patch, change)
    return ASIDE


def visits_of_other_experts(patch: pytest.MonkeyPatch) -> Placement:
    """The matrices are those of experts 1, 2 and 5; the tokens those of 1, 2 and 6."""

    def change(template: Template) -> Template:
        index = first(template, "side_expert_up_proj")
        visits = template.tasks[index].visits
        assert visits is not None
        return edited(template, index, visits=replace(visits, experts=(1, 2, 6)))

    changed(patch, change)
    return ASIDE


def visits_that_cost_too_little(patch: pytest.MonkeyPatch) -> Placement:
    def change(template: Template) -> Template:
        index = first(template, "expert_down_proj")
        visits = template.tasks[index].visits
        assert visits is not None
        return edited(template, index, visits=replace(visits, flops=visits.flops // 2))

    changed(patch, change)
    return WHOLE


MUTANTS: dict[Plant, tuple[str, ...]] = {
    store_left_out: ("logits differ", "tokens of sequences"),
    fetch_left_out: ("nobody wrote", "Fault"),
    one_token_too_few: ("Fault: 0.cached_kv", "the plan says"),
    one_token_missed: ("logits differ",),
    stale_blocks_fetched: ("logits differ",),
    stored_into_wrong_blocks: ("logits differ",),
    another_layers_blocks: ("logits differ",),
    fetched_too_soon: ("Fault: 1.cached_kv", "still in use"),
    stores_that_trail_into_the_next_step: ("may still be busy with KV blocks when the step is over",),
    rows_joined_in_the_wrong_order: ("logits differ",),
    phases_mixed_up: ("Fault: 0.split_rows.qkv.decode",),
    copy_left_out: ("is read in host, but it is in gpu-0",),
    weight_on_the_wrong_device: ("is read in gpu-2, but it is in gpu-0",),
    expert_on_both_sides: ("logits differ", "FLOPs on all devices"),
    expert_on_no_side: ("is nowhere in full", "logits differ"),
    expert_of_the_other_rank: ("is nowhere in full", "logits differ"),
    side_branch_not_added: ("logits differ",),
    visits_of_other_experts: ("logits differ",),
    visits_that_cost_too_little: ("FLOPs, the plan says",),
}
"""What each mistake must be found by."""


def model_for(placement: Placement) -> str:
    return "tiny-mixtral" if placement in (ASIDE, WHOLE) else "tiny-gpt2"


@pytest.mark.parametrize("plant", some_slow(list(MUTANTS)), ids=lambda plant: plant.__name__)
def test_planted_mistakes_are_found(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    placement = plant(monkeypatch)
    row = verified(placement, model_for(placement))
    assert row.status == "mismatch"
    for evidence in MUTANTS[plant]:
        assert evidence in " | ".join(row.mismatches)


@pytest.mark.slow
@pytest.mark.parametrize(
    "placement", [AWAY, BESIDE, RANKS_AWAY, HEAD_ELSEWHERE, ASIDE, WHOLE], ids=lambda placement: placement.name
)
def test_the_same_placements_without_mistakes(placement: Placement) -> None:
    assert verified(placement, model_for(placement)).status == "ok"


def test_what_two_ranks_send_from_one_device_to_another_is_told_apart() -> None:
    """Both ranks attend on gpu-2, and the projection of what comes of it is on gpu-3."""
    layers: frozenset[int | None] = frozenset({1, 2})
    apart = (Elsewhere("gpu-2", frozenset({"rotary", "attention"}), layers),
             Elsewhere("gpu-3", frozenset({"o_proj"}), layers))  # fmt: skip
    row = verified(Placement("apart", stages(("gpu-0+gpu-1", 4)), elsewhere=apart))
    assert (row.status, row.mismatches, row.tokens) == ("ok", (), 13)

"""Every placement that lowering knows is carried out on torch, and every planted mistake is found."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from simulator.execution import interpreter, kv, operators
from simulator.execution.call import Call, Outputs
from simulator.graph.bench import Bench
from simulator.graph.shape import Chunk
from simulator.graph.share import Part, Share
from simulator.graph.work import Parameter
from simulator.placement.placement import Placement
from simulator.placement.plan import Resident, Task, Template, with_frees
from simulator.placement.program import Program
from simulator.serving.scheduler import Scheduler
from simulator.simulation import serve
from tests.execution.planting import changed, edited, first, without
from tests.placed import PLACEMENTS, stages, streaming, verified

SPLIT = Placement("split", stages(("gpu-0", 2), ("gpu-1", 2)))
RANKS = Placement("ranks", stages(("gpu-0+gpu-1", 4)))
PIPELINE = Placement("pipeline", stages(("gpu-0", 2), ("gpu-1", 2)), microbatches=2)
STREAMED = Placement("streamed", stages(("gpu-0", 4)), streaming=streaming())
SINGLE = Placement("single", stages(("gpu-0", 4)))

@pytest.mark.parametrize("model", ["tiny-llama", pytest.param("tiny-gpt2", marks=pytest.mark.slow)])
@pytest.mark.parametrize("placement", [
    placement if number % 2 else pytest.param(placement, marks=pytest.mark.slow)
    for number, placement in enumerate(PLACEMENTS)
], ids=lambda placement: placement.name)  # fmt: skip
def test_what_is_simulated_is_what_torch_computes(placement: Placement, model: str):
    row = verified(placement, model)
    assert (row.status, row.mismatches) == ("ok", ())
    assert row.tokens == 13
    assert row.preemptions > 0, "the blocks are meant to be scarce"
    assert 0 < row.logits_difference < 1e-9


@pytest.mark.parametrize("loops", [1, 2])
def test_replicas_are_carried_out_side_by_side(loops: int) -> None:
    """Each with its own weights and KV blocks, their steps interleaved by the clock."""
    replicas = (
        Placement("replicas", stages(("gpu-0", 2), ("gpu-1", 2)), loops=loops),
        Placement("replicas", stages(("gpu-2+gpu-3", 4))),
    )
    row = verified(replicas[0], "tiny-llama", *replicas[1:])
    assert (row.status, row.mismatches) == ("ok", ())
    assert row.tokens == 13


def test_loops_that_take_each_others_blocks_are_caught(monkeypatch) -> None:
    """Two loops of a placement that both number their blocks from 0 overwrite each other's cache."""
    sound = serve.block_ranges
    monkeypatch.setattr(
        serve, "block_ranges", lambda programs, count: tuple(range(len(own)) for own in sound(programs, count))
    )
    row = verified(Placement("loops", stages(("gpu-0", 2), ("gpu-1", 2)), loops=2))
    assert row.status == "mismatch"


def dropped_transfer(patch: pytest.MonkeyPatch) -> Placement:
    changed(patch, lambda template: without(template, first(template, "copy_residual"), {}))
    return SPLIT


def duplicated_transfer(patch: pytest.MonkeyPatch) -> Placement:
    def change(template: Template) -> Template:
        index = first(template, "copy_residual")
        task = template.tasks[index]
        again = replace(task, frees=(), writes=tuple(replace(t, name=t.name + "#again") for t in task.writes))
        tasks = (*template.tasks[:index], again, *template.tasks[index:])
        return replace(template, tasks=tasks, outcome=template.outcome + 1)

    changed(patch, change)
    return SPLIT


def wrong_route(patch: pytest.MonkeyPatch) -> Placement:
    def change(template: Template) -> Template:
        index = first(template, "copy_residual")
        (_, nbytes), *rest = template.tasks[index].link_bytes
        return edited(template, index, link_bytes=(("gpu-2->host", nbytes), *rest))

    changed(patch, change)
    return SPLIT


def missing_reduction(patch: pytest.MonkeyPatch) -> Placement:
    def change(template: Template) -> Template:
        index = next(i for i, task in enumerate(template.tasks) if task.name == "2.o_proj.all_reduce.m0")
        task = template.tasks[index]
        renamed = {tensor.name: name for tensor, name in zip(task.writes, task.reads, strict=True)}
        return without(template, index, renamed)

    changed(patch, change)
    return RANKS


def stale_kv_block(patch: pytest.MonkeyPatch) -> Placement:
    sound = Scheduler.chunks

    def chunks(self: Scheduler) -> tuple[Chunk, ...]:
        mine = sound(self)
        stale = [replace(c, blocks=(mine[0].blocks[0], *c.blocks[1:])) if c.context else c for c in mine]
        return tuple(stale)

    patch.setattr(Scheduler, "chunks", chunks)
    return SINGLE


def wrong_precision(patch: pytest.MonkeyPatch) -> Placement:
    """A cache in float32, with room accounted for as if it were float64."""
    write = kv.write

    def rounded(slab: torch.Tensor, chunk: Chunk, k: torch.Tensor, v: torch.Tensor) -> None:
        write(slab, chunk, k.float(), v.float())

    patch.setattr(kv, "write", rounded)
    return SINGLE


def position_off_by_one(patch: pytest.MonkeyPatch) -> Placement:
    """Decoded tokens take the position after their own; a shift of all of them RoPE would not notice."""

    def positions(self: operators.Call) -> torch.Tensor:
        spans = ((c.context + (c.context > 0), c.new) for c in self.chunks)
        return torch.cat([torch.arange(start, start + new) for start, new in spans])

    patch.setattr(operators.Call, "positions", positions)
    return SINGLE


def unsliced_bias(patch: pytest.MonkeyPatch) -> Placement:
    """Every rank adds the whole bias of a projection whose summands are added up afterwards."""
    sound = Bench.rows

    def rows(self: Bench, prefix: str, part: Part, bias: bool) -> tuple[Parameter, ...]:
        return sound(replace(self, share=Share(0, self.share.degree)), prefix, part, bias)

    patch.setattr(Bench, "rows", rows)
    return RANKS


def weight_counted_twice(patch: pytest.MonkeyPatch) -> Placement:
    sound = Program.residents

    def residents(self: Program) -> tuple[Resident, ...]:
        found = sound(self)
        twin = replace(found[0].tensor, name=found[0].tensor.name + "#twin")
        return (*found, replace(found[0], tensor=twin))

    patch.setattr(Program, "residents", residents)
    return SINGLE


def freed_too_early(patch: pytest.MonkeyPatch) -> Placement:
    """The residual stream is freed by the first of its two readers."""

    def change(template: Template) -> Template:
        early, late = first(template, "attn_norm"), first(template, "mlp_norm")
        name = template.tasks[early].reads[0]
        assert name in template.tasks[late].frees
        left = tuple(other for other in template.tasks[late].frees if other != name)
        return edited(edited(template, late, frees=left), early, frees=(name,))

    changed(patch, change)
    return SINGLE


def microbatches_swapped(patch: pytest.MonkeyPatch) -> Placement:
    """The second stage mistakes one microbatch's activations for the other's."""

    def change(template: Template) -> Template:
        if template.microbatch_count == 1:
            return template

        def swap(task: Task) -> Task:
            names = {f"residual.2.m{m}@gpu-1<-gpu-0": f"residual.2.m{1 - m}@gpu-1<-gpu-0" for m in (0, 1)}
            return replace(task, reads=tuple(names.get(name, name) for name in task.reads), frees=())

        return replace(template, tasks=with_frees([swap(task) for task in template.tasks], ()))

    changed(patch, change)
    return PIPELINE


def buffer_reused_too_soon(patch: pytest.MonkeyPatch) -> Placement:
    def change(template: Template) -> Template:
        return replace(template, tasks=tuple(replace(task, after=()) for task in template.tasks))

    changed(patch, change)
    return STREAMED


def misrouted_token(patch: pytest.MonkeyPatch) -> Placement:
    """The first token of each batch goes through the neighbours of its experts."""
    route = operators.OPERATORS["router"]

    def misrouted(call: Call) -> Outputs:
        (routing,) = route(call)
        return (torch.cat((routing[:1].roll(1, dims=1), routing[1:])),)

    patch.setitem(operators.OPERATORS, "router", misrouted)
    return SINGLE


def forgotten_state(patch: pytest.MonkeyPatch) -> Placement:
    """What decoded tokens add to the state of linear attention is lost."""
    rule = operators.OPERATORS["delta_rule"]

    def forgetful(call: Call) -> Outputs:
        before, is_decode = call.cache().clone(), max(call.sizes) == 1
        result = rule(call)
        if is_decode:
            call.cache().copy_(before)
        return result

    patch.setitem(operators.OPERATORS, "delta_rule", forgetful)
    return RANKS


MODEL_OF = {misrouted_token: "tiny-mixtral", forgotten_state: "tiny-qwen3-next"}
"""Where a mistake needs what only some models have; else tiny-gpt2."""

MUTANTS = {
    dropped_transfer: ("nobody wrote", "Fault"),
    duplicated_transfer: ("never read", "Fault"),
    wrong_route: ("bytes over gpu-2->host", "bytes simulated over"),
    missing_reduction: ("logits differ", "tokens of sequences"),
    stale_kv_block: ("logits differ", "logits differ"),
    wrong_precision: ("logits differ", "logits differ"),
    position_off_by_one: ("logits differ", "logits differ"),
    unsliced_bias: ("logits differ", "logits differ"),
    weight_counted_twice: ("held twice", "held twice"),
    freed_too_early: ("nobody wrote", "Fault"),
    microbatches_swapped: ("differ", "differ"),
    buffer_reused_too_soon: ("still in use", "Fault"),
    misrouted_token: ("logits differ", "logits differ"),
    forgotten_state: ("logits differ", "logits differ"),
}
"""What each mistake must be found by; where the plan alone gives it away, also by carrying the plan out."""


@pytest.mark.parametrize("plant", MUTANTS, ids=lambda plant: plant.__name__)
def test_planted_mistakes_are_found(plant: Callable[[pytest.MonkeyPatch], Placement], monkeypatch):
    placement = plant(monkeypatch)
    row = verified(placement, MODEL_OF.get(plant, "tiny-gpt2"))
    assert row.status == "mismatch"
    for evidence in MUTANTS[plant]:
        assert evidence in " | ".join(row.mismatches)


@pytest.mark.slow
@pytest.mark.parametrize("placement", [SPLIT, RANKS, PIPELINE, STREAMED, SINGLE], ids=lambda p: p.name)
def test_the_same_placements_without_mistakes(placement: Placement):
    assert verified(placement, "tiny-gpt2").status == "ok"


@pytest.mark.slow
@pytest.mark.parametrize("model", MODEL_OF.values())
def test_the_same_models_without_mistakes(model: str):
    assert verified(RANKS, model).status == "ok"


def test_nothing_stays_patched():
    assert interpreter.kv.write is kv.write

"""What `verify` says of scenarios: encoders, and weights that are really quantised."""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from simulator.errors import InputError
from simulator.execution import interpreter, kernels
from simulator.execution.interpreter import Interpreter, Sequences
from simulator.execution.random_weights import random_transformer
from simulator.execution.replay import random_model
from simulator.execution.stores import Stores, size_of
from simulator.placement.program import Program
from simulator.placement.strategies import STRATEGIES, SingleDevice, TensorParallel, WeightStreaming
from simulator.specs.catalogue import Catalogue
from simulator.specs.model import load_model
from simulator.specs.scenario import PrecisionChoice, load_scenario
from simulator.specs.weight_formats import WeightFormat
from simulator.study.compare import Room, Verified, residency_flaws
from simulator.study.deploy import Deployment, deploy, requests_of
from simulator.study.verify import simulate_for_replay, verify_run

SCENARIOS = Path(__file__).parent.parent.parent / "scenarios"
CATALOGUE = Catalogue()
FEW = ("workload.requests=2", "workload.lengths.prompt=5..12", "workload.lengths.output=3..4")
FP64 = PrecisionChoice(weights="fp64", activations="fp64", kv_cache="fp64")


def verified(name: str, *overrides: str) -> list[Verified]:
    runs = load_scenario(SCENARIOS / name, STRATEGIES, overrides, catalogue=CATALOGUE).runs
    return [verify_run(run, CATALOGUE) for run in runs]


def deployed(model: str, strategy: SingleDevice | TensorParallel, precision: PrecisionChoice = FP64) -> Deployment:
    found = deploy("hgx-h100-8", load_model(model, CATALOGUE), "vllm", precision, strategy, CATALOGUE)
    assert isinstance(found, Deployment)
    return found


# --- placements that published runs have ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "machine", "placement"),
    [
        ("tiny-qwen2-moe", "epyc-9654-4x-l40s", "{strategy: expert_offload, tensor_parallel: 2}"),
        ("tiny-llama", "xeon-6454s-2s-rtx-4090", "{strategy: weight_streaming, nvme_share: 0.5, kv: nvme}"),
    ],
)
def test_experts_aside_of_ranks_and_a_cache_on_drives(model: str, machine: str, placement: str):
    """Ranks that hold no routed expert choose some all the same, and drop the choice."""
    settings = (f"model={model}", f"machine={machine}", f"placements=[{placement}]")
    (row,) = verified("tiny-everywhere.yaml", *settings, *FEW)
    assert (row.status, row.mismatches) == ("ok", ())


def test_ranks_may_keep_what_each_has_whole_on_one_drive() -> None:
    """Norms are on every rank; what is held twice is no mistake but in an accelerator's memory."""
    (row,) = verified("tiny-strategies.yaml", "model=tiny-llama", *FEW,
                      "placements=[{strategy: weight_streaming, home: nvme, tensor_parallel: 2}]")  # fmt: skip
    assert (row.status, row.mismatches) == ("ok", ())


# --- encoders -----------------------------------------------------------------------------------------------

ENCODERS = ["tiny-bert", "tiny-roberta"]


@pytest.mark.slow
@pytest.mark.parametrize("model", ENCODERS)
def test_encoders_are_carried_out_in_every_way_that_needs_no_cache(model: str):
    rows = verified("tiny-encoders.yaml", f"model={model}")
    assert [row.placement for row in rows[:3]] == ["single_device", "tensor_parallel 2", "layer_split 2 on gpu"]
    assert len(rows) == 9
    for row in rows:
        assert (row.status, row.mismatches, row.tokens, row.preemptions) == ("ok", (), 4, 0)
        assert row.logits_difference is not None
        assert (0 < row.logits_difference < 1e-9) or row.placement != "tensor_parallel 2"


@pytest.mark.slow
def test_a_wrong_mean_is_found(monkeypatch: pytest.MonkeyPatch):
    pool = kernels.pool
    monkeypatch.setattr(kernels, "pool", lambda x, sizes: pool(x, sizes) - x[:1] * 1e-6)
    rows = verified("tiny-encoders.yaml", "model=tiny-bert")
    assert all("logits differ" in " ".join(row.mismatches) for row in rows)


@pytest.mark.parametrize("output", ["2", "1..3"])
def test_an_encoder_answers_once(output: str):
    with pytest.raises(InputError, match=r"BERT family is an encoder: it answers each request once, .* output of 1"):
        verified("tiny-encoders.yaml", f"workload.lengths.output={output}")


@pytest.mark.parametrize("model", ENCODERS)
@pytest.mark.parametrize("strategy", [SingleDevice(), TensorParallel(degree=2)], ids=lambda each: each.label)
def test_a_prompt_of_an_encoder_is_never_cut(model: str, strategy: SingleDevice | TensorParallel):
    """However small the budget of a step: each request is served in one step, whole."""
    deployment = deployed(model, strategy)
    run = load_scenario(SCENARIOS / "tiny-encoders.yaml", STRATEGIES, ["workload.requests=9"]).runs[0]
    requests = requests_of(run.workload, run.seed, CATALOGUE, deployment.program.model)
    scheduler = deployment.engine.scheduler.model_copy(update={"max_num_batched_tokens": 24})
    engine = deployment.engine.model_copy(update={"scheduler": scheduler})
    simulated = simulate_for_replay(Deployment(deployment.programs, engine), requests, Room(1000), run.workload)
    served = [(chunk.sequence, chunk.context, chunk.new) for step in simulated.chunks for part in step for chunk in part]
    assert sorted(served) == [(each.number, 0, each.prompt_tokens) for each in requests]
    assert len(simulated.chunks) > 2, "the budget is meant to be small"


@pytest.mark.parametrize("model", ENCODERS)
def test_an_encoder_needs_no_cache(model: str):
    deployment = deployed(model, TensorParallel(degree=2))
    assert deployment.program.slabs() == ()
    assert {need.kv_block_bytes for need in deployment.budget.needs} == {0}
    assert deployment.budget.kv_blocks > 0


# --- quantised weights --------------------------------------------------------------------------------------

QUANTISED = ["int8", "int4", "fp8"]
MODELS = ["tiny-llama", "tiny-mixtral", "tiny-deepseek-v3"]
CUT = ["int4", "fp8_block"]
"""Formats whose blocks two ranks of these models would cut through."""
CARRIED_OUT = [
    *(("tiny-llama", weights) for weights in ("int8", "int4")),
    *(pytest.param("tiny-llama", weights, marks=pytest.mark.slow) for weights in ("fp8", "fp8_block", "fp4", "q8_0")),
    *(pytest.param(model, weights, marks=pytest.mark.slow) for model in MODELS[1:] for weights in QUANTISED),
]


@pytest.mark.parametrize(("model", "weights"), CARRIED_OUT)
def test_quantised_weights_are_carried_out_and_named(model: str, weights: str):
    """Tokens and logits are those of the unplaced model with the same weights; a block is never cut."""
    whole, ranks, split = verified("tiny-quantised.yaml", f"model={model}", f"precision.weights={weights}", *FEW)
    assert {(row.weights_asked, row.weights) for row in (whole, ranks, split)} == {(weights, weights)}
    assert (whole.status, whole.mismatches, split.status, split.mismatches) == ("ok", (), "ok", ())
    if weights in CUT:
        refusal = rf"_proj.weight consists of {weights} blocks of 128 (in|out)puts, and a share from 0 to \d+ cuts"
        assert ranks.status == "not placed"
        assert re.search(refusal, " ".join(ranks.mismatches))
    else:
        assert (ranks.status, ranks.mismatches) == ("ok", ())


def test_formats_known_by_size_only_are_carried_out_plain():
    (row,) = verified("tiny-quantised.yaml", "model=tiny-llama", "precision.weights=nvfp4", *FEW,
                      "placements=[{strategy: single_device}]")  # fmt: skip
    assert (row.status, row.weights_asked, row.weights) == ("ok", "nvfp4", "fp64")


@pytest.mark.parametrize("weights", QUANTISED)
def test_quantising_changes_the_model(weights: str):
    """Else a test that compares two quantised models would prove nothing about quantisation."""
    precision = PrecisionChoice(weights=weights, activations="fp64", kv_cache="fp64")
    program = deployed("tiny-mixtral", SingleDevice(), precision).program
    plain = dict(random_transformer(program.model, 1, torch.float64).named_parameters())
    for name, parameter in random_model(program.model, 1, program.storage).named_parameters():
        is_quantised = name.endswith("_proj.weight")
        assert torch.equal(parameter, plain[name]) != is_quantised, name


def matrix_bytes(weights: str, rows: int, columns: int) -> int:
    """Codes and scales of one matrix."""
    if weights == "int8":
        return rows * columns + 4 * rows
    if weights == "fp8":
        return rows * columns + 4
    return rows * -(-columns // 2) + 2 * rows * -(-columns // 128)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("weights", "degree"), [("int8", 1), ("int8", 2), ("fp8", 1), ("fp8", 2), ("int4", 1)])
def test_memories_hold_the_bytes_of_the_formats(model: str, weights: str, degree: int):
    """Of every part that a rank holds: the plan, and the tensors that are really kept."""
    precision = PrecisionChoice(weights=weights, activations="fp64", kv_cache="fp64")
    program = deployed(model, TensorParallel(degree=degree) if degree > 1 else SingleDevice(), precision).program
    planned, by_hand = Counter[str](), Counter[str]()
    for resident in program.residents():
        *stack, rows, columns = (1, 1, *resident.parameter.shape)
        in_layer = resident.parameter.name.endswith("_proj.weight")
        nbytes = matrix_bytes(weights, rows, columns) if in_layer else 8 * rows * columns
        by_hand[resident.tensor.memory] += torch.Size(stack).numel() * nbytes
        planned[resident.tensor.memory] += resident.tensor.nbytes.per("one")
    assert planned == by_hand
    assert kept_bytes(program) == by_hand


def kept_bytes(program: Program) -> Counter[str]:
    """Of the weights that an interpreter really puts into each memory."""
    stores = Stores(program.machine)
    network = random_model(program.model, 1, program.storage)
    Interpreter([program], network, Sequences({}), stores, block_count=1, block_tokens=1)
    return Counter({
        memory: sum(size_of(stores.get(memory, name)) for name in stores.names(memory) if "kv." not in name)
        for memory in program.machine.capacity_bytes
        if stores.names(memory)
    })  # fmt: skip


Spoil = Callable[[Tensor, WeightFormat], None]


def changed_code(packed: Tensor, _: WeightFormat) -> None:
    packed[-1] ^= 0b0100_0000


def dropped_scale(packed: Tensor, form: WeightFormat) -> None:
    """The first scale becomes zero."""
    packed[: form.scale_bytes] = 0


@pytest.mark.parametrize("spoil", [changed_code, dropped_scale])
@pytest.mark.parametrize("weights", ["int8", pytest.param("fp8", marks=pytest.mark.slow)])
def test_one_shard_spoilt_is_found(spoil: Spoil, weights: str, monkeypatch: pytest.MonkeyPatch):
    """A matrix of the second rank: it is packed after the first rank's 28."""
    pack, packed_count = interpreter.pack, 0

    def spoilt(weight: Tensor, form: WeightFormat) -> Tensor:
        nonlocal packed_count
        packed_count += form.scale_bytes > 0
        packed = pack(weight, form)
        if form.scale_bytes and packed_count == 40:
            spoil(packed, form)
        return packed

    monkeypatch.setattr(interpreter, "pack", spoilt)
    (row,) = verified("tiny-quantised.yaml", "model=tiny-llama", f"precision.weights={weights}", *FEW,
                      "placements=[{strategy: tensor_parallel, degree: 2}]")  # fmt: skip
    assert packed_count == 56
    assert row.status == "mismatch"
    assert "logits differ" in " ".join(row.mismatches)



# --- homes of weights ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("home", ["host", "nvme"])
def test_ranks_may_each_keep_what_all_need_where_streamed_weights_are_kept(home: str) -> None:
    """Norms are whole on every rank; at home there is a copy for each, on a drive as in DRAM."""
    strategy = WeightStreaming(tensor_parallel=2, home=home, gpu_layers=2)  # type: ignore[arg-type]
    where, small = "xeon-6454s-1s-4x-rtx-4090", load_model("tiny-llama", CATALOGUE)
    placed = deploy(where, small, "vllm", FP64, strategy, CATALOGUE)
    assert isinstance(placed, Deployment)
    shapes = {name: tuple(each.shape) for name, each in random_transformer(small, 1, torch.float64).named_parameters()}
    assert residency_flaws(placed.program, shapes) == []

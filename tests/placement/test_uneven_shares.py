"""Of MXFP4 ranks take whole blocks, some one more than others, and still agree with the whole; shares of other
formats that would cut through a block are refused, as servers refuse them."""

from dataclasses import replace

import pytest

from simulator.graph.work import Formats
from simulator.placement.placement import Placement
from simulator.placement.program import Program
from simulator.specs.architecture import Architecture, Attention, LayerSpec, Mlp
from simulator.study.compare import Verified, compare
from simulator.study.deploy import Deployment
from simulator.study.verify import made_scarce, simulate_for_replay
from tests.placed import REQUESTS, WORKLOAD, engine, machine, model, stages

TWO = Placement("two ranks", stages(("gpu-0+gpu-1", 2)))
BLOCK = {"int4": 128, "fp4": 32, "fp8_block": 128}


def three_blocks_wide(block: int) -> Architecture:
    """Llama-shaped: heads share the blocks of `o_proj` evenly, three blocks of the MLP do not."""
    tiny = model("tiny-llama")
    layer = tiny.layers[0]
    assert isinstance(layer.attention, Attention)
    assert isinstance(layer.mlp, Mlp)
    attention = replace(layer.attention, num_attention_heads=4, num_key_value_heads=4, head_dim=block // 2)
    assert attention.rope is not None
    attention = replace(attention, rope=replace(attention.rope, rotary_dim=block // 2))
    mlp = replace(layer.mlp, intermediate_size=3 * block)
    return replace(tiny, hidden_size=block, layers=(LayerSpec(attention, mlp),) * 2)


def program(weights: str) -> Program:
    return Program(three_blocks_wide(BLOCK[weights]), TWO, machine(), Formats(weights, "fp64", "fp64"))


def test_two_ranks_share_three_blocks() -> None:
    placed = program("fp4")
    assert placed.why_not_cut() is None
    held = {r.tensor.memory: r.parameter.shape for r in placed.residents()
            if r.parameter.name == "layers.0.mlp.down_proj.weight"}  # fmt: skip
    assert sorted(shape[1] for shape in held.values()) == [32, 64]
    scarce, blocks = made_scarce(engine(), REQUESTS, (placed,))
    simulated = simulate_for_replay(Deployment((placed,), scarce), REQUESTS, blocks, WORKLOAD)
    row = compare(Verified("machine", "wide", "two ranks", "not placed"), simulated, REQUESTS, scarce, blocks, 3)
    assert (row.status, row.mismatches, row.weights) == ("ok", (), "fp4")


@pytest.mark.parametrize("weights", ["int4", "fp8_block"])
def test_other_formats_are_not_shared_unevenly(weights: str) -> None:
    """vLLM: "not divisible by weight quantization block_n", "not aligned with the quantized weight shape"."""
    reason = program(weights).why_not_cut()
    assert reason is not None
    assert "mlp." in reason


def test_heads_that_would_be_cut_inside_a_block_are_refused() -> None:
    placed = Program(model("tiny-llama"), replace(TWO, stages=stages(("gpu-0+gpu-1", 4))), machine(),
                      Formats("int4", "fp64", "fp64"))  # fmt: skip
    reason = placed.why_not_cut()
    assert reason is not None
    assert "o_proj.weight" in reason

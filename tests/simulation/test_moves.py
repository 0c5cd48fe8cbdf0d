"""What it costs to copy KV blocks to host memory: by measurement, and as a plan is priced."""

from __future__ import annotations

import csv
from pathlib import Path
from statistics import median

import pytest

from simulator.graph.shape import Chunk, StepShape
from simulator.placement.kv_moves import WAYS, move_template
from simulator.placement.placement import Placement
from simulator.placement.program import Program
from simulator.simulation.pricing import PricedTemplate
from simulator.simulation.ticks import seconds
from simulator.specs.catalogue import Catalogue
from tests.placed import FLOAT64, engine, machine, model, stages

PIECES = Path(__file__).parents[1] / "study" / "data" / "pieces-h200.csv"
BLOCKS = 40


def test_pieces_take_what_was_measured() -> None:
    """On PCIe 5: a constant for each piece and its bytes at the link's speed, from 4 KiB to 4 MiB."""
    link = Catalogue().link("pcie-gen5-x16").record
    bytes_per_s = link.bandwidth_bytes_per_s * link.efficiency
    piece_s = engine("vllm").overheads.block_copy_s
    errors = []
    for row in csv.DictReader(PIECES.read_text(encoding="utf-8").splitlines()):
        expected_s = int(row["pieces"]) * (piece_s + int(row["piece_bytes"]) / bytes_per_s)
        errors.append(abs(expected_s / float(row["seconds"]) - 1))
    assert len(errors) == 16
    assert median(errors) < 0.05
    assert max(errors) < 0.2


@pytest.mark.parametrize("way", WAYS)
def test_a_move_is_priced_by_its_pieces(way) -> None:
    """Four layers, one after the other on the device's stream: keys and values of each block."""
    placed = Program(model("tiny-llama"), Placement("one", stages(("gpu-0", 4))), machine(), FLOAT64)
    used = engine("vllm")
    priced = PricedTemplate(move_template(placed, way), placed, used)
    tokens = BLOCKS * used.scheduler.kv_block_tokens
    shape = StepShape.of([Chunk(0, tokens, 0, False)], placed.traits)
    total = priced.durations((shape,)).total[priced.class_of_task]
    per_layer_s = [seconds(int(ticks)) for ticks in total[:-1]]
    slab = placed.slabs()[0]
    route = placed.machine.route(slab.memory, "host")
    slowest = max(1 / (link.link.bandwidth_bytes_per_s * link.link.efficiency) for link in route)
    in_pieces_s = 2 * BLOCKS * used.overheads.block_copy_s + tokens * slab.bytes_per_token * slowest
    latency_s = [seconds(int(priced.latency[c])) for c in priced.class_of_task[:-1]]
    assert len(per_layer_s) == 4
    assert per_layer_s == pytest.approx([latency + in_pieces_s for latency in latency_s], rel=1e-6)


def test_gathered_blocks_take_no_longer_than_their_bytes() -> None:
    placed = Program(model("tiny-llama"), Placement("one", stages(("gpu-0", 4))), machine(), FLOAT64)
    used = engine("vllm")
    gathered = used.model_copy(update={"overheads": used.overheads.model_copy(update={"block_copy_s": 0.0})})
    shape = StepShape.of([Chunk(0, 16 * BLOCKS, 0, False)], placed.traits)
    slow, quick = (
        PricedTemplate(move_template(placed, "save"), placed, each).durations((shape,)).total.max()
        for each in (used, gathered)
    )
    assert slow > 5 * quick

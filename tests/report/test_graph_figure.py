"""The drawn work graph: everything in it, nothing over anything else, the same bytes again."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from simulator.errors import InputError
from simulator.report.graph_figure import file_bytes, model_graph
from simulator.report.graph_grid import Cell, cells
from simulator.specs.architecture import LayerSpec
from simulator.study.folded_graph import FoldedGraph, folded_graph
from simulator.study.model_question import ModelQuestion, Step, ask
from tests import tiny

MODELS = sorted(path.stem for path in (Path(__file__).parents[2] / "models").glob("*.yaml"))
TINY = [name for name in MODELS if name.startswith("tiny-")]
FEW = ["tiny-bert", "tiny-deepseek-v2", "tiny-deepseek-v3", "tiny-falcon-grouped", "tiny-llama", "tiny-qwen3-next"]
LAYER = tiny.LLAMA.layers[0]
LACKING = replace(tiny.LLAMA, layers=(
    LAYER, LayerSpec(LAYER.attention, None), LayerSpec(None, None), LayerSpec(None, LAYER.mlp), LAYER))  # fmt: skip
"""Layers that lack a part, or both."""


def graph_of(model: str) -> FoldedGraph:
    return folded_graph(ask(model))


def one_step(model) -> FoldedGraph:
    return folded_graph(ModelQuestion(model, tiny.BF16, (Step("prefill", 1, 0, 8),)))


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts if text.get_text()]


def boxes(figure: Figure) -> tuple[list[tuple[str, Bbox]], list[Bbox]]:
    """Where each text is, those of the legend too, and each straight piece of a line, in pixels."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    axes = figure.axes[0]
    drawn = [text for text in (*axes.texts, *figure.legends[0].get_texts()) if text.get_text()]
    pieces = []
    for line in axes.lines:
        points = axes.transData.transform(line.get_xydata())
        for (x0, y0), (x1, y1) in itertools.pairwise(points):
            pieces.append(Bbox.from_extents(min(x0, x1) - 1, min(y0, y1) - 1, max(x0, x1) + 1, max(y0, y1) + 1))
    return [(text.get_text(), text.get_window_extent(renderer)) for text in drawn], pieces


def assert_readable(figure: Figure) -> None:
    found, pieces = boxes(figure)
    width, height = figure.get_size_inches() * figure.dpi
    for (text, box), (other_text, other) in itertools.combinations(found, 2):
        assert not box.overlaps(other), f"{text} over {other_text}"
    for text, box in found:
        assert not any(box.overlaps(piece) for piece in pieces), f"a line through {text}"
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, f"{text} is cut off"


@pytest.mark.slow
@pytest.mark.parametrize("model", FEW)
def test_texts_are_readable(model):
    assert_readable(model_graph(graph_of(model)))


@pytest.mark.slow
@pytest.mark.parametrize("model", [name for name in MODELS if name not in FEW])
def test_texts_of_every_model_are_readable(model):
    assert_readable(model_graph(graph_of(model)))


@pytest.mark.parametrize(
    "model",
    [LACKING, replace(LACKING, layers=LACKING.layers[3:]), replace(tiny.LLAMA, layers=(LAYER,)),
     *(replace(tiny.LLAMA, layers=(LAYER,) * count, residual="parallel_two_norms") for count in (1, 3))],
    ids=["lacking parts", "without attention at first", "one layer", "one of two norms", "three of two norms"],
)  # fmt: skip
def test_unusual_layers_are_readable(model):
    assert_readable(model_graph(one_step(model)))


def test_a_long_name_is_cut_and_signs_are_no_formula():
    graph = replace(graph_of("tiny-llama"), name="my $model$ " * 30)
    figure = model_graph(graph)
    assert_readable(figure)
    assert any(text.startswith("my $model$ my") and text.endswith("...") for text in texts(figure))


@pytest.mark.parametrize("model", ["tiny-llama", "tiny-qwen3-next", "tiny-bert"])
def test_every_operator_and_every_value_is_drawn(model):
    graph = graph_of(model)
    drawn = texts(model_graph(graph))
    nodes = [*graph.before, *graph.after, *(node for block in graph.blocks for node in block.nodes)]
    for name in {node.name for node in nodes}:
        assert drawn.count(name) == sum(node.name == name for node in nodes), name
    for block in graph.blocks:
        for role in {edge.role for edge in block.edges}:
            assert any(role in text.split(", ") for text in drawn), role
    assert {"ids", graph.output} <= {text.partition(":")[0] for text in drawn}


def test_a_box_says_the_work_of_one_layer():
    """The MLP of tiny-llama: 2 x 64 x 256 FLOPs a token up, its weights, inputs and outputs in bf16."""
    drawn = texts(model_graph(graph_of("tiny-llama")))
    assert 2 * 64 * 256 * 512 == 16_777_216
    assert 2 * (64 * 256 + 512 * (64 + 256)) == 352 * 1024
    assert "prefill: 16.8 MFLOP, 352 KiB" in drawn
    assert "decode: one token of a sequence with 511 tokens cached" in drawn


def test_equal_layers_are_drawn_once():
    drawn = texts(model_graph(graph_of("gpt-oss-120b")))
    assert drawn.count("attention") == 2
    assert {"18 x: layers 0, 2, ..., 34", "18 x: layers 1, 3, ..., 35"} <= set(drawn)
    assert "32 x: layers 0..31" in texts(model_graph(graph_of("llama-3.1-8b")))
    assert any("sizes differ, shown is layer 3" in text for text in texts(model_graph(graph_of("tiny-deci"))))


def test_an_encoder_has_no_token_loop():
    legends = [{text.get_text() for text in model_graph(graph_of(name)).legends[0].get_texts()}
               for name in ("tiny-llama", "tiny-bert", "tiny-qwen3-next")]  # fmt: skip
    assert ["the token loop" in each for each in legends] == [True, False, True]
    assert ["KV: uses the KV cache" in each for each in legends] == [True, False, True]
    assert ["state: uses a kept state" in each for each in legends] == [False, False, True]


def test_parts_side_by_side_have_lanes_of_their_own():
    (block,) = graph_of("tiny-gptj").blocks
    found = cells(block)
    assert [found[name] for name in ("attn_norm", "qkv_proj", "attention", "branch_add")] == [
        Cell(0, 0), Cell(0, 1), Cell(0, 3), Cell(0, 5)]  # fmt: skip
    assert [found[name] for name in ("up_proj", "down_proj")] == [Cell(1, 1), Cell(1, 3)]


@pytest.mark.parametrize("model", TINY)
def test_no_two_operators_share_a_place(model):
    for block in graph_of(model).blocks:
        found = cells(block)
        assert len(set(found.values())) == len(found) == len(block.nodes)
        assert all(found[edge.source].row < found[edge.target].row
                   for edge in block.edges if edge.source and edge.target)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("name", "start"), [("a.png", b"\x89PNG"), ("a.SVG", b"<?xml"), ("a.pdf", b"%PDF")])
def test_the_same_graph_gives_the_same_file(name, start):
    first, second = (file_bytes(model_graph(graph_of("tiny-llama")), Path(name)) for _ in range(2))
    assert first == second
    assert first.startswith(start)
    assert b"matplotlib.org" not in first or name != "a.png"


@pytest.mark.parametrize("name", ["graph", "graph.jpg", "graph.pngg"])
def test_another_suffix_is_refused(name):
    with pytest.raises(InputError, match=r"--figure = .*: end it in one of: \.png, \.svg, \.pdf"):
        file_bytes(model_graph(graph_of("tiny-llama")), Path(name))

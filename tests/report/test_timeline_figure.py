"""Drawn timelines: everything in them, nothing over anything else, nothing cut off, the same bytes again."""

import itertools
import math
from dataclasses import replace
from functools import cache

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from simulator.graph.machine import machine_graph
from simulator.placement.placement import Placement
from simulator.placement.program import Program
from simulator.report.timeline_figure import png_bytes, timeline_figure
from simulator.report.timeline_layout import laid_out
from simulator.report.timeline_legend import legend_of
from simulator.report.timeline_pictures import timeline_pictures
from simulator.results.records import Span
from simulator.serving.arrivals import Request, Source
from simulator.simulation.serve import serve
from simulator.specs.catalogue import Catalogue
from simulator.specs.machine import load_machine
from tests.placed import PLACEMENTS, model, stages, streaming
from tests.tiny import BF16, engine

from .studies import a_run, a_study, unfit

REQUESTS = tuple(Request(number, 0.0, 32, 4) for number in range(6))
LLAMA = replace(model("llama-3.1-8b"), layers=model("llama-3.1-8b").layers[:4], vocab_size=32_000)
"""Four layers of a published size, so that times are of all magnitudes."""
RANKS = "+".join(f"gpu-{rank}" for rank in range(8))
LARGE = {
    "32 layers on eight ranks": Placement("eight ranks", stages((RANKS, 32))),
    "a pipeline of eight": Placement("pipeline", stages(*((f"gpu-{n}", 4) for n in range(8))), microbatches=4),
    "32 streamed layers": Placement("streamed", stages(("gpu-0", 32)), streaming=streaming(range(32))),
    "32 layers on both kinds": Placement("both", stages(("cpu", 8), ("gpu-0", 24))),
}


ENGINE = engine(step_s=1e-4, max_num_seqs=64, max_num_batched_tokens=4096)


@cache
def spans_on(placement: Placement, layer_count: int = 4, machine: str = "epyc-9654-4x-l40s") -> tuple[Span, ...]:
    """Of steps that take up all requests at once: they come over no network."""
    there = load_machine(machine, Catalogue())
    near = replace(there, network=None, nodes=tuple(replace(node, network=None) for node in there.nodes))
    llama = replace(LLAMA, layers=LLAMA.layers[:1] * layer_count)
    program = Program(llama, placement, machine_graph(near), BF16)
    return serve(program, ENGINE, 10_000, lambda: Source(REQUESTS, None), record_steps=3).spans


def drawn_texts(figure: Figure):
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    (axes,) = figure.axes
    return [(text, text.get_window_extent(renderer)) for text in axes.texts]


def drawn_bars(figure: Figure):
    return [path.get_extents(collection.get_transform())
            for collection in figure.axes[0].collections
            if isinstance(collection, PolyCollection) and collection.zorder == 2
            for path in collection.get_paths()]  # fmt: skip


def assert_readable(figure: Figure) -> None:
    found = drawn_texts(figure)
    width, height = figure.get_size_inches() * figure.dpi
    for (text, box), (other_text, other) in itertools.combinations(found, 2):
        assert not box.overlaps(other), f"{text} over {other_text}"
    for text, box in found:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, f"{text} is cut off"


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


@pytest.mark.parametrize("placement", PLACEMENTS, ids=lambda placement: placement.name)
def test_texts_are_readable(placement):
    assert_readable(timeline_figure(spans_on(placement), placement.name, "What to look for, in two lines. " * 6))


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_texts_of_large_models_are_readable(name):
    assert_readable(timeline_figure(spans_on(LARGE[name], 32, "hgx-h100-8"), name))


@pytest.mark.slow
@pytest.mark.parametrize("placement", PLACEMENTS, ids=lambda placement: placement.name)
def test_numbers_of_layers_stay_in_their_bars(placement):
    figure = timeline_figure(spans_on(placement), placement.name)
    bars = drawn_bars(figure)
    written = [(text, box) for text, box in drawn_texts(figure) if text.zorder == 4]
    assert written
    for text, box in written:
        assert any(bar.x0 <= box.x0 and box.x1 <= bar.x1 and bar.y0 - 2 <= box.y0 and box.y1 <= bar.y1 + 2
                   for bar in bars), text  # fmt: skip


def test_names_of_any_length_are_readable():
    long = tuple(
        replace(span, units=tuple(f"a-node-with-a-long-name.{unit}" for unit in span.units),
                crossings=())
        for span in spans_on(PLACEMENTS[4])
    )  # fmt: skip
    figure = timeline_figure(long, "my $model$ on $machine$ " * 20, "and $what$ to look for")
    assert_readable(figure)
    assert texts(figure)[0].startswith("my $model$ on $machine$ my $model$")


def test_large_steps_are_readable():
    """The longest headers: many tokens and sequences in both steps."""
    crowded = tuple(replace(span, prefill_tokens=1_048_576, decode_tokens=10_240) for span in spans_on(PLACEMENTS[0]))
    assert_readable(timeline_figure(crowded, "a large batch"))
    decode = tuple(replace(span, prefill_tokens=0, decode_tokens=10_240) for span in spans_on(PLACEMENTS[0]))
    assert_readable(timeline_figure(decode, "a large batch"))


def test_a_reader_finds_thread_devices_and_steps():
    shown = texts(timeline_figure(spans_on(PLACEMENTS[1]), "split", "Look here."))
    lanes = [text for text in shown if text in ("engine's thread", "computes", "copies in", "copies out")]
    assert shown[:2] == ["split", "Look here."]
    assert lanes == ["engine's thread", "computes", "computes", "copies in", "copies out"]
    assert [text for text in shown if text in ("host", "cpu", "gpu-0")] == ["host", "cpu", "gpu-0"]
    assert "time since the step began (ms)" in " ".join(shown)
    assert [text.partition(":")[0] for text in shown if text.startswith("step")] == ["step 1 (prefill)", "step 2 (decode)"]


def test_devices_follow_one_another_as_layers_pass_through_them():
    layout = laid_out(spans_on(PLACEMENTS[2]))
    assert list(dict.fromkeys(lane.group for lane in layout.lanes)) == ["host", "gpu-1", "cpu", "gpu-0"]


@pytest.mark.parametrize("placement", PLACEMENTS, ids=lambda placement: placement.name)
def test_both_steps_begin_and_have_their_outcome(placement):
    spans = spans_on(placement)
    layout = laid_out(spans)
    for step, panel in enumerate(layout.panels):
        own = [span for span in spans if span.step == step]
        assert panel.start_s == min(span.start_s for span in own)
        assert [panel.outcome_s] == [span.end_s for span in own if span.is_outcome]
        assert panel.start_s < panel.outcome_s <= panel.end_s
        assert panel.x(panel.end_s) == pytest.approx(panel.right)


def signs(spans) -> set[str]:
    layout = laid_out(spans)
    return {entry.sign for entry in legend_of(layout, 9.0)}


def test_the_legend_names_what_is_drawn_and_only_that():
    always = {"attention", "feed-forward", "other compute", "copy of activations or tokens", "host work", "number",
              "arrow"}  # fmt: skip
    assert signs(spans_on(PLACEMENTS[0])) - {"stripes"} == always
    assert signs(spans_on(PLACEMENTS[4])) - {"stripes"} == always | {"collective"}
    assert signs(spans_on(PLACEMENTS[6])) - {"stripes"} == always | {"part 1"}
    assert signs(spans_on(PLACEMENTS[12])) - {"stripes"} == always | {"copy of weights", "pale"}


def test_a_copy_is_an_arrow_from_device_to_device():
    """CPU to GPU: token ids stay on the host; the residual stream goes down, the answer back to the thread."""
    layout = laid_out(spans_on(PLACEMENTS[1]))
    rows = {lane.track: lane.middle for lane in layout.lanes}
    for panel in layout.panels:
        assert [(each.source, each.target) for each in panel.crossings] == [
            (rows["cpu"], rows["gpu-0.in"]), (rows["gpu-0.out"], rows["host.engine"])]  # fmt: skip


def test_a_collective_joins_all_its_devices():
    layout = laid_out(spans_on(PLACEMENTS[5]))
    rows = {lane.track: lane.middle for lane in layout.lanes}
    joined = [each for each in layout.panels[0].crossings if not each.has_arrow]
    assert {(each.source, each.target) for each in joined} == {(rows["gpu-0"], rows["gpu-3"])}


def test_many_devices_are_left_out_and_it_is_said():
    spans = tuple(replace(span, units=(f"gpu-{number}",), crossings=())
                  for span in spans_on(PLACEMENTS[0]) if span.category == "compute" for number in range(20))  # fmt: skip
    figure = timeline_figure(spans, "twenty")
    assert "11 more devices are not drawn" in texts(figure)
    assert_readable(figure)


def test_one_step_alone_is_a_picture():
    first = tuple(span for span in spans_on(PLACEMENTS[0]) if span.step == 0)
    figure = timeline_figure(first, "one")
    assert_readable(figure)
    assert not any(text.startswith("step 2") for text in texts(figure))


def test_steps_of_unlike_length_say_that_scales_differ():
    slow = tuple(replace(span, start_s=span.start_s * 10, end_s=span.end_s * 10) if span.step == 0 else
                 replace(span, start_s=span.start_s + 1, end_s=span.end_s + 1)
                 for span in spans_on(PLACEMENTS[0]))  # fmt: skip
    assert any("different scales" in text for text in texts(timeline_figure(slow, "slow")))
    assert laid_out(slow).has_one_scale is False


def test_thin_bars_are_seen():
    figure = timeline_figure(spans_on(LARGE["32 layers on both kinds"], 32), "thin")
    bars = drawn_bars(figure)
    assert all(bar.width >= 1 and bar.height >= 1.5 for bar in bars)
    assert len(bars) < 64


def test_the_same_spans_are_the_same_bytes():
    first, second = (png_bytes(timeline_figure(spans_on(PLACEMENTS[7]), "same")) for _ in range(2))
    assert first == second


def test_a_study_has_a_picture_for_each_row_that_ran():
    spans = spans_on(PLACEMENTS[0])
    study = a_study(a_run(spans=spans), unfit(), a_run(placement="layer_split 16 on gpu", spans=spans))
    names = [name for name, _ in timeline_pictures(study)]
    assert names == ["1-single-device-on-box.png", "3-layer-split-16-on-gpu-on-box.png"]
    assert all(content.startswith(b"\x89PNG") for _, content in timeline_pictures(study))


def test_ticks_are_round_and_not_too_many():
    figure = timeline_figure(spans_on(PLACEMENTS[0]), "ticks")
    numbers = [float(text.get_text()) for text in figure.axes[0].texts
               if text.get_fontsize() == 6.5 and text.zorder < 4 and text.get_text().replace(".", "").isdigit()]  # fmt: skip
    assert numbers[0] == 0
    assert 4 <= len(numbers) <= 16
    assert all(math.isclose(number, round(number, 2)) for number in numbers)

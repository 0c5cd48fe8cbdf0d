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
from simulator.placement.placement import ExpertsAside, KvHome, Placement, Streaming
from simulator.placement.program import programs_of
from simulator.report.timeline_figure import png_bytes, timeline_figure
from simulator.report.timeline_layout import laid_out
from simulator.report.timeline_legend import legend_of
from simulator.report.timeline_loops import loops_of
from simulator.report.timeline_pictures import timeline_pictures
from simulator.results.records import Span
from simulator.serving.arrivals import Request, Source
from simulator.simulation.serve import serve
from simulator.specs.catalogue import Catalogue
from simulator.specs.machine import load_machine
from tests.placed import PLACEMENTS, model, some_slow, stages
from tests.tiny import BF16, engine

from .studies import a_run, a_study, unfit

REQUESTS = tuple(Request(number, 0.0, 32, 4) for number in range(6))
LLAMA = replace(model("llama-3.1-8b"), layers=model("llama-3.1-8b").layers[:4], vocab_size=32_000)
"""Four layers of a published size, so that times are of all magnitudes."""
RANKS = "+".join(f"gpu-{rank}" for rank in range(8))
LARGE = {
    "32 layers on eight ranks": Placement("eight ranks", stages((RANKS, 32))),
    "a pipeline of eight": Placement("pipeline", stages(*((f"gpu-{n}", 4) for n in range(8))), microbatches=4),
    "32 streamed layers": Placement("streamed", stages(("gpu-0", 32)), streaming=Streaming(("host",) * 32)),
    "32 layers on both kinds": Placement("both", stages(("cpu", 8), ("gpu-0", 24))),
}


ENGINE = engine(step_s=1e-4, max_num_seqs=64, max_num_batched_tokens=4096)


@cache
def spans_on(placement: Placement, layer_count: int = 4, machine: str = "epyc-9654-4x-l40s") -> tuple[Span, ...]:
    """Of steps that take up all requests at once: they come over no network."""
    llama = replace(LLAMA, layers=LLAMA.layers[:1] * layer_count)
    return served((placement,), llama, graph_of(machine))


def served(placements, architecture, graph, eager=False) -> tuple[Span, ...]:
    """Of so many steps that each loop has two."""
    programs = programs_of(architecture, placements, graph, BF16, eager)
    return serve(programs, ENGINE, 10_000, lambda: Source(REQUESTS, None), record_steps=3 * len(programs)).spans


def graph_of(machine: str = "epyc-9654-4x-l40s"):
    there = load_machine(machine, Catalogue())
    return machine_graph(replace(there, network=None, nodes=tuple(replace(node, network=None) for node in there.nodes)))


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


@pytest.mark.parametrize("placement", some_slow(PLACEMENTS, 4), ids=lambda placement: placement.name)
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


@pytest.mark.parametrize("placement", some_slow(PLACEMENTS, 4), ids=lambda placement: placement.name)
def test_both_steps_begin_and_have_their_outcome(placement):
    spans = spans_on(placement)
    layout = laid_out(spans)
    for panel in layout.panels:
        own = [span for span in spans if span.step == panel.step]
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


PIPELINE = stages(("gpu-0", 2), ("gpu-1", 2))
ONE, OTHER = (Placement("replicas", stages((device, 4))) for device in ("gpu-0", "gpu-1"))


def lane_texts(spans) -> list[str]:
    return [f"{lane.group} {lane.text}" for lane in laid_out(spans).lanes]


def test_two_batches_in_flight():
    """Of batch 1 the first two steps; batch 2 is striped, with a thread of its own, and never pale."""
    spans = served((Placement("two loops", PIPELINE, loops=2),), LLAMA, graph_of())
    layout = laid_out(spans)
    threads = [panel.loops.thread_of[panel.step] for panel in layout.panels]
    assert threads == ["host.engine"] * 2
    assert lane_texts(spans)[:2] == ["host engine's thread", "host engine's thread 2"]
    for panel in layout.panels:
        drawn = {(lane.track, panel.batch(bar)) for lane, bar in panel.bars if lane.text == "computes"}
        assert drawn == {("gpu-0", 0), ("gpu-0", 1), ("gpu-1", 0), ("gpu-1", 1)}
    assert "batch 1" in signs(spans) and "pale" not in signs(spans)
    figure = timeline_figure(spans, "two batches")
    assert [text for text in texts(figure) if text.startswith("outcome of batch 1 after")]
    assert_readable(figure)


def test_replicas_side_by_side():
    """Of replica 1 the first two steps; nothing is striped, for each device has one replica alone."""
    spans = served((ONE, OTHER), LLAMA, graph_of())
    assert {panel.decode_tokens for panel in laid_out(spans).panels} == {0, 3}
    assert not [sign for sign in signs(spans) if sign.startswith(("batch", "part"))]
    figure = timeline_figure(spans, "replicas")
    assert [text for text in texts(figure) if text.startswith("outcome of replica 1 after")]
    assert_readable(figure)


def test_loops_of_replicas_are_batches_of_their_replica():
    other = Placement("the other", stages(("gpu-2", 2), ("gpu-3", 2)), loops=2)
    loops = loops_of(served((Placement("one", PIPELINE, loops=2), other), LLAMA, graph_of()))
    names = {loops.name(step) for step in loops.thread_of}
    assert names == {"replica 1, batch 1", "replica 1, batch 2", "replica 2, batch 1", "replica 2, batch 2"}


def test_each_loop_answers_on_its_own_thread():
    """Arrows of token ids begin and end at the thread of the loop that they belong to."""
    layout = laid_out(served((ONE, OTHER), LLAMA, graph_of()))
    rows = {lane.track: lane.middle for lane in layout.lanes}
    ends = {(crossing.source, crossing.target) for crossing in layout.panels[0].crossings}
    for thread, device in (("host.engine", "gpu-0"), ("host.engine-1", "gpu-1")):
        assert {(rows[thread], rows[f"{device}.in"]), (rows[f"{device}.out"], rows[thread])} <= ends


def test_what_is_done_for_all_parts_together_is_no_part_and_counts_no_token_twice():
    """The microbatch after the last one stands for all of them, as where the tokens of all ranks meet."""
    parts = spans_on(PLACEMENTS[6])
    joint = tuple(replace(span, microbatch=2, prefill_tokens=6 * 32, decode_tokens=6) if span.operator == "up_proj"
                  else span for span in parts)  # fmt: skip
    for spans in (parts, joint):
        assert [panel.prefill_tokens for panel in laid_out(spans).panels] == [6 * 32, 0]
        assert [panel.decode_tokens for panel in laid_out(spans).panels] == [0, 6]
        assert "part 1" in signs(spans) and "part 2" not in signs(spans)


def test_an_eager_engine_has_a_lane_of_launches():
    spans = served((Placement("eager", stages(("gpu-0", 4))),), LLAMA, graph_of(), eager=True)
    assert "gpu-0 kernel launches" in lane_texts(spans)


def test_copies_of_the_cache_have_a_colour_of_their_own():
    spans = served((Placement("KV at the host", stages(("gpu-0", 4)), kv_home=KvHome("host")),), LLAMA, graph_of())
    assert "copy of KV" in signs(spans)


def test_experts_aside_are_feed_forward_on_their_device():
    mixture = model("tiny-mixtral")
    aside = Placement("aside", stages(("gpu-0", mixture.num_hidden_layers)), experts_aside=ExpertsAside("cpu", (0, 1)))
    layout = laid_out(served((aside,), mixture, graph_of()))
    parts = {part for lane, bar in layout.panels[0].bars if lane.track == "cpu" for part, _ in bar.busy_s}
    assert parts == {"feed-forward"}


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


@pytest.mark.slow
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

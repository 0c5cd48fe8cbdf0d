"""Bars of a timeline: merging loses no time, and every kind of work has a colour that can be told apart."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.placement.placement import ExpertsAside, KvHome, Placement, Stage
from simulator.placement.program import Program
from simulator.report.timeline_bars import bars_of, without_crowds
from simulator.report.timeline_parts import ATTENTION, COLOURS, part_of
from simulator.results.records import Span
from tests.placed import FLOAT64, machine, model

TINY = sorted(path.stem for path in (Path(__file__).parents[2] / "models").glob("tiny-*.yaml"))
FEED_FORWARD = {
    "up_proj", "activation", "down_proj", "mlp_norm", "mlp_post_norm", "branch_add", "router", "expert_up_proj",
    "expert_activation", "expert_down_proj", "expert_add", "shared_up_proj", "shared_activation",
    "shared_down_proj", "shared_gate", "side_expert_up_proj", "side_expert_activation", "side_expert_down_proj",
}  # fmt: skip
CONFUSIONS = {
    "normal": np.eye(3),
    "protanopia": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                            [-0.003882, -0.048116, 1.051998]]),
    "deuteranopia": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                              [-0.011820, 0.042940, 0.968881]]),
    "tritanopia": np.array([[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
                            [0.004733, 0.691367, 0.303900]]),
}  # fmt: skip
"""Machado, Oliveira and Fernandes 2009, doi:10.1109/TVCG.2009.113, at full severity, for linear RGB."""


def lab(colour: str, seen_by: np.ndarray) -> np.ndarray:
    """CIE L*a*b* under D65 of a colour, as somebody sees it (IEC 61966-2-1, CIE 15)."""
    values = np.array([int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)])
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    seen = np.clip(seen_by @ linear, 0, 1)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    relative = to_xyz @ seen / (to_xyz @ np.ones(3))
    roots = np.where(relative > (6 / 29) ** 3, np.cbrt(relative), relative / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * roots[1] - 16, 500 * (roots[0] - roots[1]), 200 * (roots[1] - roots[2])])


@pytest.mark.parametrize("sight", CONFUSIONS)
def test_colours_can_be_told_apart(sight):
    """A difference of 10 is told apart at a glance; 2.3 is just noticeable."""
    seen = {part: lab(colour, CONFUSIONS[sight]) for part, colour in COLOURS.items()}
    for one, other in itertools.combinations(seen, 2):
        assert np.linalg.norm(seen[one] - seen[other]) > 14, (one, other)


def test_colours_differ_in_lightness():
    """As on a black and white print."""
    lightness = sorted(lab(colour, np.eye(3))[0] for colour in COLOURS.values())
    assert min(np.diff(lightness)) > 5


@pytest.mark.parametrize("name", TINY)
def test_every_operator_of_a_layer_is_attention_or_feed_forward(name):
    architecture = model(name)
    whole = (Stage(("gpu-0",), 0, architecture.num_hidden_layers),)
    aside = ExpertsAside("cpu", (0,)) if architecture.experts is not None else None
    apart = KvHome("host", "cpu") if not architecture.is_encoder else None
    placement = Placement("one", whole, kv_home=apart, experts_aside=aside)
    template = Program(architecture, placement, machine(), FLOAT64).template(1)
    named = {task.operator for task in template.tasks if task.kind == "compute" and task.layer is not None}
    assert named <= ATTENTION | FEED_FORWARD
    assert named & ATTENTION and named & FEED_FORWARD


def test_no_operator_is_both():
    assert not ATTENTION & FEED_FORWARD


# -- laws ---------------------------------------------------------------------------------------------------

WORK = (("compute", "qkv_proj", 3), ("compute", "up_proj", 3), ("compute", "sample", None), ("transfer", "fetch", 4),
        ("transfer", "kv_fetch", 2), ("transfer", "copy_ids", None), ("collective", "all_reduce", 1),
        ("host", "gather", None))  # fmt: skip


@st.composite
def lanes(draw):
    """Spans of one lane, one after the other, in ticks of a binary fraction so that sums are exact."""
    spans, now = [], 0
    for _ in range(draw(st.integers(1, 40))):
        now += draw(st.sampled_from((0, 0, 0, 1, 50)))
        end = now + draw(st.integers(1, 60))
        category, operator, layer = draw(st.sampled_from(WORK))
        step, microbatch = draw(st.integers(0, 1)), draw(st.integers(0, 1))
        spans.append(Span(operator, category, operator, ("gpu-0",), now / 1024, end / 1024, step, layer, microbatch))
        now = end
    return spans


def seconds_by_part(pieces):
    total = dict.fromkeys(COLOURS, 0.0)
    for part, time_s in pieces:
        total[part] += time_s
    return total


@given(spans=lanes(), start=st.integers(0, 300), width=st.integers(1, 2000), gap=st.integers(0, 4), narrow=st.integers(0, 100))
def test_bars_keep_all_time_of_every_part(spans, start, width, gap, narrow):
    start_s, end_s = start / 1024, (start + width) / 1024
    bars = bars_of(spans, start_s, end_s, gap / 1024, narrow / 1024)
    expected = seconds_by_part(
        (part_of(span), max(0.0, min(end_s, span.end_s) - max(start_s, span.start_s))) for span in spans)  # fmt: skip
    assert seconds_by_part(piece for bar in bars for piece in bar.busy_s) == expected
    assert all(start_s <= bar.start_s < bar.end_s <= end_s for bar in bars)
    assert all(before.end_s <= after.start_s for before, after in itertools.pairwise(bars))
    assert sum(len(bar.spans) for bar in bars) == sum(span.end_s > start_s and span.start_s < end_s for span in spans)


@given(spans=lanes(), narrow=st.integers(0, 100))
def test_only_narrow_neighbours_of_one_step_are_mixed(spans, narrow):
    for bar in bars_of(spans, 0.0, 100.0, 0.0, narrow / 1024):
        assert {span.step for span in bar.spans} == {bar.step}
        kinds = [(part_of(span), span.layer, span.microbatch) for span in bar.spans]
        if len(set(kinds)) == 1:
            continue
        for _, same in itertools.groupby(zip(kinds, bar.spans, strict=True), key=lambda pair: pair[0]):
            run = [span for _, span in same]
            assert run[-1].end_s - run[0].start_s < narrow / 1024


def test_a_bar_says_its_layers():
    spans = [Span("a", "compute", "up_proj", ("gpu-0",), n / 8, (n + 1) / 8, 0, layer=n) for n in range(4)]
    (merged,) = bars_of(spans, 0.0, 1.0, 0.0, 1.0)
    assert merged.labels == ("layers 0–3", "0–3")
    assert [bar.labels[0] for bar in bars_of(spans, 0.0, 1.0, 0.0, 0.0)] == [f"layer {n}" for n in range(4)]


def test_slivers_side_by_side_become_one_bar_that_is_mostly_empty():
    slivers = [Span("a", "compute", "up_proj", ("cpu",), n / 8, n / 8 + 2**-20, 0, layer=n) for n in range(8)]
    bars = bars_of(slivers, 0.0, 1.0, 0.0, 0.125)
    assert len(bars) == 8
    (crowd,) = without_crowds(bars, 0.0625)
    assert (crowd.start_s, crowd.end_s, crowd.is_dense) == (0.0, 7 / 8 + 2**-20, False)
    assert sum(time_s for _, time_s in crowd.busy_s) == 8 * 2**-20
    assert without_crowds(bars, 0.03) == bars  # so far apart that the gaps between them show

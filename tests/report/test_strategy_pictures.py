"""The page of strategies is current: its pictures, its figures, and it leaves no strategy out."""

import re

import numpy as np
import pytest
from matplotlib import image
from PIL import Image

from simulator.placement.strategies import STRATEGIES
from simulator.report.timeline_layout import laid_out

from .strategy_pictures import EXAMPLES, PAGE, digest, draw, figure, simulated, with_facts
from .test_timeline_figure import assert_readable

every_example = pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
STALE = "is not what is drawn now; run `make pictures`"


def test_every_strategy_has_a_section():
    named = [kind.model_fields["strategy"].default for kind in STRATEGIES]
    assert [example.name for example in EXAMPLES if example.name in named] == named
    page = re.sub(r"<!--.*?-->", "", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^## `(\w+)`$", page, re.MULTILINE)
    assert headings == named
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == named, "the table of when to use which"


@pytest.mark.slow
@every_example
def test_pictures_are_current(example, tmp_path):
    with Image.open(example.picture) as picture:
        assert picture.text["Description"] == digest(example), f"{example.picture.name} {STALE}"
    drawn = image.imread(example.picture)
    again = image.imread(draw(example, tmp_path))
    assert drawn.shape == again.shape, f"{example.picture.name} {STALE}"
    differing = np.mean(np.abs(drawn - again).max(axis=2) > 0.25)
    assert differing < 0.002, f"{example.picture.name} {STALE}; libraries that draw text may differ a little"


@pytest.mark.slow
@every_example
def test_pictures_are_readable(example):
    assert_readable(figure(example))


@pytest.mark.slow
@every_example
def test_an_example_shows_a_prefill_and_a_decode_step(example):
    first, second = laid_out(simulated(example).spans).panels
    takes_turns = example.name != "disaggregated"
    loops = len(set(first.loops.thread_of.values())) if takes_turns else 1
    assert (first.prefill_tokens, first.decode_tokens) == (example.prompt * example.sequences / loops, 0)
    assert (second.prefill_tokens, second.decode_tokens) == (0, example.sequences / loops)


@pytest.mark.slow
def test_figures_of_the_page_are_current():
    page = PAGE.read_text(encoding="utf-8")
    assert page == with_facts(page), f"docs/strategies.md {STALE}"

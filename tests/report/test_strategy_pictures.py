"""The page of strategies is current: its pictures, its figures, and it leaves no strategy out."""

import re

import numpy as np
import pytest
from matplotlib import image
from PIL import Image

from simulator.placement.strategies import STRATEGIES

from .strategy_pictures import EXAMPLES, PAGE, digest, draw, figure, simulated, with_facts
from .test_timeline_figure import assert_readable

every_example = pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
STALE = "is not what is drawn now; run `make pictures`"


def test_every_strategy_has_a_section():
    named = {kind.model_fields["strategy"].default for kind in STRATEGIES}
    assert {example.name for example in EXAMPLES} >= named
    page = re.sub(r"<!--.*?-->", "", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^## `(\w+)`$", page, re.MULTILINE)
    assert headings == [example.name for example in EXAMPLES]
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == headings, "the table of when to use which"


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
    tokens = [{(span.prefill_tokens, span.decode_tokens) for span in simulated(example).spans if span.step == step
               and span.microbatch == 0} for step in (0, 1)]  # fmt: skip
    ((prefill, none), *_), ((nothing, decode), *_) = tokens
    assert (none, nothing) == (0, 0)
    assert prefill == 32 * decode > 0


@pytest.mark.slow
def test_figures_of_the_page_are_current():
    page = PAGE.read_text(encoding="utf-8")
    assert page == with_facts(page), f"docs/strategies.md {STALE}"

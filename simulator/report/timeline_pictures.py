"""A timeline picture for each row of a study."""

from __future__ import annotations

import re
from collections.abc import Iterator

from simulator.report.timeline_figure import png_bytes, timeline_figure
from simulator.report.wording import row_name, shown_axes
from simulator.results.run_result import StudyResult

_LONGEST_SLUG = 60


def timeline_pictures(study: StudyResult) -> Iterator[tuple[str, bytes]]:
    """File names and PNG files of the rows with recorded steps, numbered as rows of the table are."""
    axes = shown_axes(study)
    digits = len(str(len(study.runs)))
    for number, run in enumerate(study.runs, start=1):
        if run.spans:
            name = row_name(run, axes)
            figure = timeline_figure(run.spans, name, study.scenario)
            yield f"{number:0{digits}}-{slug(name)}.png", png_bytes(figure)


def slug(name: str) -> str:
    """A name as part of a file name.

    >>> slug("layer_split cpu:16 gpu-0:16 on my box (rate 4)")
    'layer-split-cpu-16-gpu-0-16-on-my-box-rate-4'
    """
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:_LONGEST_SLUG].strip("-")

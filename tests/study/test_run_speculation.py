"""What a row says of speculative decoding: in `--json`, in notes, in bands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from simulator.report.frame import frame
from simulator.report.table import notes
from simulator.results.run_result import StudyResult
from simulator.study.run import run_scenario

SCENARIO = """\
name: proposals
model: llama-3.1-8b
machine: hgx-h100-8
engine: vllm
precision: {weights: bf16, activations: bf16, kv_cache: bf16}
placements:
  - {strategy: single_device}
  - {strategy: speculative, draft: llama-3.2-1b, draft_tokens: 3, acceptance: 60..80 %}
workload: {arrivals: {process: closed, concurrency: 2}, lengths: {prompt: 50, output: 60}, requests: 6}
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    path: Path = tmp_path_factory.mktemp("study") / "proposals.yaml"
    path.write_text(SCENARIO, encoding="utf-8")
    return run_scenario(path, workers=1)


def test_a_row_says_what_became_of_proposed_tokens(study: StudyResult) -> None:
    plain, proposed = json.loads(json.dumps(study.as_dict(), allow_nan=False))["runs"]
    assert plain["speculation"] is None
    said = proposed["speculation"]
    assert said["rounds"] + said["accepted_tokens"] + 6 == proposed["tokens"]["output"] == 360
    assert said["tokens_per_round"] == pytest.approx(1 + said["accepted_tokens"] / said["rounds"])
    assert said["accepted_share"] == said["accepted_tokens"] / said["proposed_tokens"]
    assert 0 < said["draft_share"] < 1
    assert sum(said["draft_attribution"].values()) == pytest.approx(1)
    assert proposed["transitions_per_token"] == {"host->gpu-0": 4, "gpu-0->host": 4}
    (gpu,) = (each for each in proposed["memory"] if each["memory"] == "gpu-0")
    assert gpu["parts"].keys() >= {"draft_weights", "draft_kv_cache"}


def test_few_users_are_served_faster(study: StudyResult) -> None:
    plain, proposed = (run.metrics for run in study.runs)
    assert plain and proposed
    assert proposed.output_tokens_per_s > 1.2 * plain.output_tokens_per_s


def test_a_range_of_acceptance_shows_as_a_band(study: StudyResult) -> None:
    band = study.runs[1].bands["output_tokens_per_s"]
    assert band.low and band.high and band.high > 1.1 * band.low
    assert "speculation.tokens_per_round" in frame(study)
    assert any("tokens a round" in note and "of those proposed accepted" in note for note in notes(study))

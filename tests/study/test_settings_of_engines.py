"""What a scenario sets otherwise than its engine comes: schedulers, memory, stated KV blocks."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulator.errors import InputError
from simulator.results.run_result import StudyResult
from simulator.study.run import run_scenario

CHAT = Path(__file__).parents[2] / "scenarios" / "chat-on-one-node.yaml"


def study(*changes: str) -> StudyResult:
    small = ["machine=epyc-9654-4x-l40s", "placements=[{strategy: single_device}]", "workload.requests=8", "bands=false"]
    return run_scenario(CHAT, [*small, *changes], workers=1)


def told(*changes: str) -> str:
    with pytest.raises(InputError) as caught:
        study(*changes)
    return "\n".join(f"{problem.key}: {problem.advice}" for problem in caught.value.problems)


def test_stated_blocks_are_those_that_serve() -> None:
    assert study("kv_blocks=700").runs[0].kv_blocks == 700


def test_stated_blocks_that_no_sequence_fits_in_are_too_few() -> None:
    assert "takes 10 KV blocks, `kv_blocks` states 9" in told("kv_blocks=9", "workload.lengths={prompt: 100, output: 51}")


def test_stated_blocks_do_not_make_weights_fit() -> None:
    assert "weights 67.7" in told("model=llama-3.1-70b", "kv_blocks=1000")
    assert "GiB usable on gpu-0" in told("kv_blocks=100000000")


@pytest.mark.parametrize(("change", "says"), [
    ("scheduler.max_num_batched_tokens=100", "scheduler.max_num_batched_tokens: with the other settings of vllm"),
    ("scheduler.max_num_seqs=4096", "scheduler.max_num_seqs: with the other settings of vllm"),
    ("scheduler.preemption=swap", "scheduler.preemption: needs room in host memory"),
    ("scheduler.policy=fastest", "scheduler.policy: "),
    ("scheduler.watermark=1", "scheduler.watermark: must be less than 1"),
])  # fmt: skip
def test_settings_that_do_not_go_together_are_told_where_they_stand(change: str, says: str) -> None:
    assert says in told(change)


def test_settings_reach_the_run() -> None:
    plain, few = study(), study("scheduler.max_num_seqs=1", "workload.arrivals={process: batch}")
    assert few.runs[0].metrics.ttft_s.p99 > plain.runs[0].metrics.ttft_s.p99
    swapped = study("scheduler={preemption: swap, prefix_caching: false}", "memory.host_kv=8GiB", "kv_blocks=400",
                    "workload.lengths={prompt: 500, output: 400}", "workload.arrivals={process: batch}").runs[0]  # fmt: skip
    assert swapped.preemptions > 0
    assert swapped.link_bytes["gpu-0->host"] > 10**6
    assert any(part == "host_kv" for use in swapped.memory for part in use.parts)

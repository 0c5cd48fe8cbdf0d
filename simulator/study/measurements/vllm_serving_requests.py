"""`vllm_serving_requests`: every request of a run of vLLM, by the engine's own clock.

Token ids are replayed inside vLLM's process, without HTTP or tokenizing; a request is sent at its recorded
time and its answer has the recorded length. TTFT runs from the engine's queue to the end of the step that
chose the first token, TPOT and end to end likewise. All rows of one configuration are one run.

The run is predicted twice: with the KV blocks that the engine's profile leaves room for, and, where the
source says how many the engine reported, with those (`..._stated_blocks_...`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from statistics import mean
from typing import Any, NamedTuple

from simulator.placement.memory import refusal
from simulator.placement.placement import NotPlaceable
from simulator.results.records import RequestRecord
from simulator.serving.arrivals import Request
from simulator.specs.catalogue import Catalogue
from simulator.specs.model import load_model
from simulator.study.deploy import deploy
from simulator.study.measurements.deployments import (
    PRECISIONS,
    in_process,
    model_id,
    served,
    strategy_of,
    why_no_model,
    with_scheduler,
)
from simulator.study.measurements.registry import Outcome, Pair, Reading, reader
from simulator.study.measurements.table import Row, Table, milliseconds

CARDS = {"rtx4090": "rtx-4090", "l40s": "l40s"}
"""Devices that sit in a PCIe server, by the table's names."""

BOARDS = {"h100": "hgx-h100-8"}
"""Machines of devices that come eight on a board."""


class Run(NamedTuple):
    """What all requests of one run share."""

    gpu: str
    model: str
    tp: int
    dtype: str
    max_num_seqs: int
    max_num_batched_tokens: int


STATED_KV_BLOCKS: Mapping[Run, int] = {
    Run("RTX4090", "meta-llama/Llama-3.1-8B", 1, "bfloat16", 256, 2048): 2588,
}
"""KV blocks as the engine reported them: casys-kaist/LLMServingSim@5daddb2,
bench/examples/RTX4090/Llama-3.1-8B/vllm."""


@dataclass(frozen=True, slots=True)
class Served:
    """One row."""

    arrival_s: float
    input_tokens: int
    output_tokens: int
    ttft_s: float
    tpot_s: float | None
    e2e_s: float


@dataclass(frozen=True)
class ServedRun:
    """The requests of one run, in order of arrival."""

    run: Run
    requests: tuple[Served, ...]

    @property
    def row_count(self) -> int:
        return len(self.requests)

    def predict(self, catalogue: Catalogue) -> Outcome:
        run, count = self.run, self.row_count
        placed = deploy(machine_of(run.gpu, run.tp) or "", load_model(model_id(run.model), catalogue), "vllm",
                        PRECISIONS[run.dtype], strategy_of(run.tp), catalogue)  # fmt: skip
        if isinstance(placed, NotPlaceable):
            return Outcome(unsupported={placed.reason: count})
        deployment = with_scheduler(in_process(placed), {
            "max_num_seqs": run.max_num_seqs, "max_num_batched_tokens": run.max_num_batched_tokens,
        })  # fmt: skip
        asked = tuple(Request(number, each.arrival_s, each.input_tokens, each.output_tokens)
                      for number, each in enumerate(self.requests))  # fmt: skip
        too_big = refusal(deployment.budget, min(each.prompt_tokens + each.output_tokens for each in asked))
        if too_big is not None:
            return Outcome(unsupported={f"does not fit: {too_big}": count})
        finished = served(deployment, asked).finished()
        pairs = list(self._pairs(finished, ""))
        if run in STATED_KV_BLOCKS:
            stated = served(deployment, asked, kv_blocks=STATED_KV_BLOCKS[run])
            pairs += self._pairs(stated.finished(), "_stated_blocks")
        refused = count - len(finished)
        reason = "longer than the model's context or the KV cache"
        return Outcome(tuple(pairs), {reason: refused} if refused else {})

    def _pairs(self, finished: tuple[RequestRecord, ...], how: str) -> Iterator[Pair]:
        """Every request's metrics and their means over the run, then the run's throughput."""
        both = [(self.requests[record.number], record) for record in finished]
        for name, measured, predicted in _METRICS:
            pairs = [
                Pair(f"{name}{how}_s", truth, guess)
                for row, record in both
                if (truth := measured(row)) is not None and (guess := predicted(record)) is not None
            ]
            yield from pairs
            if pairs:
                yield Pair(f"mean_{name}{how}_s", mean(pair.measured for pair in pairs),
                           mean(pair.predicted for pair in pairs))  # fmt: skip
        if both:
            tokens = sum(row.output_tokens for row, _ in both)
            start_s = both[0][0].arrival_s
            yield Pair(
                f"throughput{how}_tokens_per_s",
                tokens / (max(row.arrival_s + row.e2e_s for row, _ in both) - start_s),
                tokens / (max(record.last_token_s for _, record in both) - start_s),
            )


_METRICS: tuple[
    tuple[str, Callable[[Served], float | None], Callable[[RequestRecord], float | None]], ...
] = (
    ("ttft", lambda row: row.ttft_s, lambda record: record.engine_ttft_s),
    ("tpot", lambda row: row.tpot_s, lambda record: record.engine_tpot_s),
    ("e2e_time", lambda row: row.e2e_s, lambda record: record.last_token_s - record.queued_s),
)


def machine_of(gpu: str, count: int) -> str | Mapping[str, Any] | None:
    """A machine with that many of a device; None for one we do not know."""
    name = gpu.lower()
    if name in CARDS:
        return {"host": "epyc-9654-2s", "devices": {CARDS[name]: count}, "host_link": "pcie-gen4-x16"}
    return BOARDS.get(name)


@reader("vllm_serving_requests")
def read(table: Table, catalogue: Catalogue) -> Reading:
    table.need("gpu", "model", "tp", "dtype", "max_num_seqs", "max_num_batched_tokens", "arrival_s",
               "input_tokens", "output_tokens", "ttft_s", "tpot_ms", "e2e_s")  # fmt: skip
    reading = Reading()
    parsed = sorted(table.parsed(lambda row: (_run(row), _served(row))), key=lambda pair: pair[0])
    for run, members in groupby(parsed, key=lambda pair: pair[0]):
        requests = tuple(sorted((row for _, row in members), key=lambda row: row.arrival_s))
        reason = why_not(run, catalogue)
        if reason is not None:
            reading.unsupported[reason] += len(requests)
        else:
            reading.jobs.append(ServedRun(run, requests))
    return reading


def why_not(run: Run, catalogue: Catalogue) -> str | None:
    """Why a run cannot be predicted; None if it can."""
    if machine_of(run.gpu, run.tp) is None:
        return f"gpu {run.gpu}: no machine of the catalogue has it"
    if run.dtype not in PRECISIONS:
        return f"dtype {run.dtype}: not supported yet"
    if run.max_num_batched_tokens < run.max_num_seqs:
        return "max_num_batched_tokens below max_num_seqs: no token for each sequence"
    return why_no_model(run.model, catalogue)


def _run(row: Row) -> Run:
    return Run(row.text("gpu"), row.text("model"), row.count("tp"), row.text("dtype"),
               row.count("max_num_seqs"), row.count("max_num_batched_tokens"))  # fmt: skip


def _served(row: Row) -> Served:
    outputs = row.count("output_tokens")
    return Served(
        arrival_s=row.number_or_zero("arrival_s"),
        input_tokens=row.count("input_tokens"),
        output_tokens=outputs,
        ttft_s=row.number("ttft_s"),
        tpot_s=milliseconds(row.number("tpot_ms")) if outputs > 1 else None,
        e2e_s=row.number("e2e_s"),
    )

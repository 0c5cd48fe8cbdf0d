"""`hybrid_offload`: runs whose weights, KV or experts live or are computed outside the GPU.

All are offline: a fixed batch of equal prompts is there at once, and the clock is the engine's own, from the
launch of the first step. What is divided by what differs by metric, see `METRICS`. Where a source states
neither users nor lengths, rows are compared with each other: measured and predicted ratios to the first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from simulator.graph.shape import Chunk
from simulator.placement.memory import Budget, budget, refusal, split_chunks
from simulator.placement.placement import NotPlaceable
from simulator.results.records import RunRecord
from simulator.serving.arrivals import Request
from simulator.specs.architecture import Architecture, Experts, LayerSpec
from simulator.specs.catalogue import Catalogue
from simulator.specs.model import load_model
from simulator.study.deploy import Deployment, deploy
from simulator.study.measurements.deployments import in_process, served, with_scheduler
from simulator.study.measurements.offload_questions import Question, question_of, strategy_of
from simulator.study.measurements.registry import Outcome, Pair, Reading, reader
from simulator.study.measurements.table import Row, Table, milliseconds

SHORT_PREFILL_TOKENS = 2
"""Prompts so short that launching kernels is what is measured; scored apart."""

BASE_OF_RATIOS = "no users or lengths are stated: the row that others are compared with"


@dataclass(frozen=True)
class Phases:
    """When the batch was begun, had its first tokens and its last."""

    begun_s: float
    first_s: float
    last_s: float


def _phases(record: RunRecord) -> Phases:
    finished = record.finished()
    return Phases(
        min(request.scheduled_s for request in finished),
        max(request.first_token_s for request in finished),
        max(request.last_token_s for request in finished),
    )


def _prefill_tokens_per_s(question: Question, record: RunRecord) -> float:
    phases = _phases(record)
    return question.batch * question.prompt / (phases.first_s - phases.begun_s)


def _decode_tokens_per_s(question: Question, record: RunRecord) -> float:
    phases = _phases(record)
    return question.batch * (question.output - 1) / (phases.last_s - phases.first_s)


def _generation_tokens_per_s(question: Question, record: RunRecord) -> float:
    """Generated tokens over prefill and decode together."""
    phases = _phases(record)
    return question.batch * question.output / (phases.last_s - phases.begun_s)


def _s_per_new_token(question: Question, record: RunRecord) -> float:
    """The whole call of generate, prompt included, by new tokens."""
    return question.batch / _generation_tokens_per_s(question, record)


def _p90_decode_s(question: Question, record: RunRecord) -> float:
    return float(np.quantile(np.repeat(record.gaps_s, record.gap_counts), 0.9))


Metric = Callable[[Question, RunRecord], float]

METRICS: Mapping[str, tuple[str, Metric]] = {
    "prefill_throughput": ("prefill_throughput_tokens_per_s", _prefill_tokens_per_s),
    "decode_throughput": ("decode_throughput_tokens_per_s", _decode_tokens_per_s),
    "generation_throughput": ("generation_throughput_tokens_per_s", _generation_tokens_per_s),
    "total_throughput": ("decode_throughput_tokens_per_s", _decode_tokens_per_s),
    "throughput": ("throughput_ratio", _generation_tokens_per_s),
    "decode_s_per_token": ("time_per_new_token_s", _s_per_new_token),
    "p90_decode_latency": ("p90_decode_time_s", _p90_decode_s),
}
"""By the table's name of a metric: ours, and how it is computed. IPEX's total is its batch over its decode
step to within 4 %, which leaves no room for a prompt."""


UNITS = ("tok/s", "s/token", "ms/token")


@dataclass(frozen=True)
class Measured:
    """One row's question and what was measured."""

    question: Question
    metric: str
    """A key of METRICS."""
    value: float
    """In SI units."""

    @property
    def name(self) -> str:
        """What it is scored as."""
        name, _ = METRICS[self.metric]
        is_short = self.metric == "prefill_throughput" and self.question.prompt <= SHORT_PREFILL_TOKENS
        return f"short_{name}" if is_short else name

    def pair(self, record: RunRecord) -> Pair:
        _, compute = METRICS[self.metric]
        return Pair(self.name, self.value, compute(self.question, record))


@dataclass(frozen=True)
class OffloadedBatch:
    """Rows that one run answers."""

    rows: tuple[Measured, ...]

    @property
    def row_count(self) -> int:
        return len(self.rows)

    def predict(self, catalogue: Catalogue) -> Outcome:
        record = _run(self.rows[0].question, catalogue)
        if isinstance(record, str):
            return Outcome(unsupported={record: self.row_count})
        return Outcome(tuple(row.pair(record) for row in self.rows))


@dataclass(frozen=True)
class OffloadedShape:
    """Rows over one parameter, of which only ratios to the first are compared."""

    rows: tuple[Measured, ...]

    @property
    def row_count(self) -> int:
        return len(self.rows)

    def predict(self, catalogue: Catalogue) -> Outcome:
        pairs = []
        for row in self.rows:
            record = _run(row.question, catalogue)
            if isinstance(record, str):
                return Outcome(unsupported={record: self.row_count})
            pairs.append(row.pair(record))
        base = pairs[0]
        ratios = tuple(Pair(pair.metric, pair.measured / base.measured, pair.predicted / base.predicted)
                       for pair in pairs[1:])  # fmt: skip
        return Outcome(ratios, {BASE_OF_RATIOS: 1})


def _run(question: Question, catalogue: Catalogue) -> RunRecord | str:
    """The run a question asks for, or why there is none."""
    deployment = placed_as_asked(question, catalogue)
    if isinstance(deployment, str):
        return deployment
    tokens = question.prompt + question.output
    account = account_of(question, deployment)
    too_big = refusal(account, tokens)
    if too_big is not None:
        return f"does not fit: {too_big}"
    held = account.kv_blocks // account.blocks_for(tokens)
    if held < question.batch:
        return f"does not fit: {held} of {question.batch} sequences have room for their KV"
    requests = [Request(number, 0.0, question.prompt, question.output) for number in range(question.batch)]
    record = served(deployment, requests, kv_blocks=account.kv_blocks)
    return record if record.finished() else f"{question.model} does not take {tokens} tokens"


def account_of(question: Question, deployment: Deployment) -> Budget:
    """The account of memories. Where prompts go whole, the batch and so its two largest steps are known."""
    if deployment.engine.scheduler.chunked_prefill:
        return deployment.budget
    program, batch = deployment.program, range(question.batch)
    steps = ([Chunk(number, 0, question.prompt, True) for number in batch],
             [Chunk(number, question.prompt + question.output - 2, 1, True) for number in batch])  # fmt: skip
    microbatches = program.placement.microbatches
    return budget(program, deployment.engine, [split_chunks(step, microbatches) for step in steps])


def placed_as_asked(question: Question, catalogue: Catalogue) -> Deployment | str:
    """The model as a question places it, under an engine that takes its batch in one step."""
    strategy = strategy_of(question.placement)
    if isinstance(strategy, str):
        return strategy
    model = with_active_experts(load_model(question.model, catalogue), question.active_experts)
    placed = deploy(question.machine, model, question.engine, question.precision, strategy, catalogue)
    if isinstance(placed, NotPlaceable):
        return placed.reason
    settings = {"max_num_seqs": question.batch}
    if not placed.engine.scheduler.chunked_prefill:
        settings["max_num_batched_tokens"] = question.batch * question.prompt
    deployment = with_scheduler(in_process(placed), settings)
    if question.pinned is None:
        return deployment
    memory = deployment.engine.memory.model_copy(update={"pinned": question.pinned})
    return replace(deployment, engine=deployment.engine.model_copy(update={"memory": memory}))


def with_active_experts(model: Architecture, count: int | None) -> Architecture:
    """The model changed to send each token to so many experts."""
    if count is None:
        return model

    def changed(layer: LayerSpec) -> LayerSpec:
        if not isinstance(layer.mlp, Experts):
            return layer
        return replace(layer, mlp=replace(layer.mlp, num_experts_per_tok=count))

    return replace(model, layers=tuple(changed(layer) for layer in model.layers))


@reader("hybrid_offload")
def read(table: Table, catalogue: Catalogue) -> Reading:
    table.need("source", "model", "quant", "software", "placement_value", "num_gpus", "cpu", "prompt_len",
               "gen_len", "batch_size", "metric", "value", "unit", "notes")  # fmt: skip
    reading = Reading()
    rows: list[Measured] = []
    for found in table.parsed(lambda row: measured(row, catalogue)):
        if isinstance(found, str):
            reading.unsupported[found] += 1
        else:
            rows.append(found)
    reading.jobs += [OffloadedBatch(tuple(group)) for group in _alike(rows)]
    reading.jobs += [OffloadedShape(tuple(group)) for group in _shapes(rows)]
    return reading


def _shapes(rows: Sequence[Measured]) -> list[list[Measured]]:
    """Rows that are compared with each other only, by machine."""
    groups: dict[str, list[Measured]] = {}
    for row in rows:
        if row.question.is_for_shape:
            groups.setdefault(str(row.question.machine), []).append(row)
    return list(groups.values())


def _alike(rows: Sequence[Measured]) -> list[list[Measured]]:
    """Rows that ask the same and are compared by level, in order of their first."""
    groups: list[list[Measured]] = []
    for row in rows:
        if row.question.is_for_shape:
            continue
        same = next((group for group in groups if group[0].question == row.question), None)
        if same is None:
            groups.append([row])
        else:
            same.append(row)
    return groups


def measured(row: Row, catalogue: Catalogue) -> Measured | str:
    """What a row asks and has measured, or why it cannot be predicted. Raises InputError where it makes no
    sense."""
    question = question_of(row, catalogue)
    if isinstance(question, str):
        return question
    strategy = strategy_of(question.placement)
    if isinstance(strategy, str):
        return strategy
    metric, unit = row.text("metric"), row.text("unit")
    if metric not in METRICS:
        return f"metric {metric}: not supported yet"
    if unit not in UNITS:
        return f"unit {unit}: not supported yet"
    value = row.number("value")
    return Measured(question, metric, milliseconds(value) if unit == "ms/token" else value)

"""`closed_loop_serving`: mean TTFT and TPOT at the client, under a fixed number of concurrent users.

The client warms the server up with 2C requests and waits for them, sends C requests at once, another at
each completion until 10C are sent, and takes means over all 10C, the drain included. The warm-up leaves an
empty system behind, so it is not simulated. Prompts never repeat. The client asks a chat endpoint over HTTP,
whose template adds some tokens to each prompt.

Rows of InferenceX (`silicon_data_source` tells) draw both lengths evenly from 0.8 to 1 of the nominal, and
ask for completions, without a template.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from simulator.placement.memory import refusal
from simulator.placement.placement import NotPlaceable
from simulator.serving.arrivals import Request
from simulator.specs.catalogue import Catalogue
from simulator.specs.model import load_model
from simulator.study.deploy import Deployment, deploy
from simulator.study.measurements.deployments import (
    PRECISIONS,
    model_id,
    over_http,
    served,
    strategy_of,
    why_no_model,
    with_scheduler,
)
from simulator.study.measurements.registry import Outcome, Pair, Reading, reader
from simulator.study.measurements.table import Row, Table, milliseconds

SYSTEMS: Mapping[str, str | Mapping[str, Any]] = {
    "h100_sxm": "hgx-h100-8",
    "h200_sxm": {"host": "hgx-xeon-8480p-2s", "devices": {"h200-sxm": 8}, "host_link": "pcie-gen5-x16",
                 "interconnect": "nvlink-4", "network": "ib-ndr"},
    "a100_sxm": "a100-80-8",
    "l40s": "epyc-9654-4x-l40s",
}  # fmt: skip
"""Machines by the names of the table's systems."""

ENGINES = {"trtllm": "tensorrt-llm"}
"""Engine profiles by the names of the table's backends, of those whose settings in these runs are known."""

SPARE_TOKENS = 1500
"""What the runs' engines were given beyond batch and prompt as `max_num_tokens`."""

CLIENT_S = 0.005
"""What client, HTTP and front-end processes take of each request, beyond receiving and tokenising as the
engine's profile has them: 9 ms in all at 2,048 tokens. Deduced from these very rows (a fit to 59 of them
says 8.6 ms for all lengths), so it is no prediction: it brings the bias of TTFT from -18 to -11 %."""

TEMPLATE_TOKENS = {"llama-3": 36, "qwen": 9}
"""What a chat template adds to a prompt, by the beginning of the model's name: Llama 3.1 writes a system
header with dates, Qwen only who speaks. Our count of the published templates, to a token or two."""
TEMPLATE_TOKENS_OF_OTHERS = 9

ROUNDS = 10
"""Requests of a run, in multiples of its users."""

SMALLEST_SHARE = 0.8
"""Of a nominal length, where InferenceX draws lengths."""

NOT_PLACED = ("pp_size", "attention_dp_size", "moe_ep_size")
"""Ways of parallelism that a row must not use (blank, 0 or 1) for tensor parallelism to describe it."""

CLEAN_USERS = 32
CLEAN_OUTPUT_PER_S = 8000
"""Runs of Llama 3 under fewer users or at more tokens per second measure their client more than the server
(their TTFT falls with users, rises with output length, and no row exceeds 13,100 tokens/s on any number of
devices); other models' rows show no such thing."""


@dataclass(frozen=True)
class ClosedLoop:
    """One row."""

    system: str
    engine: str
    model: str
    precision: str
    degree: int
    batch: int
    users: int
    """Of one replica."""
    prompt: int
    output: int
    drawn: bool
    """Whether lengths are drawn, not the same for all."""
    ttft_s: float | None
    tpot_s: float | None
    clean: bool
    """Whether the row's TTFT tells of the server and not of the client."""

    @property
    def row_count(self) -> int:
        return 1

    def predict(self, catalogue: Catalogue) -> Outcome:
        placed = _placed(catalogue, self.system, self.engine, self.model, self.precision, self.degree)
        if isinstance(placed, NotPlaceable):
            return Outcome(unsupported={placed.reason: 1})
        tokens = self.batch + self.prompt + SPARE_TOKENS
        deployment = with_scheduler(placed, {"max_num_seqs": self.batch, "max_num_batched_tokens": tokens})
        too_big = refusal(deployment.budget, self.prompt + self.template + self.output)
        if too_big is not None:
            return Outcome(unsupported={f"does not fit: {too_big}": 1})
        finished = served(over_http(deployment, CLIENT_S), self._requests(), self.users).finished()
        if not finished:
            return Outcome(unsupported={f"{self.model} does not take that many tokens": 1})
        ttft_s = float(np.mean([request.ttft_s for request in finished]))
        tpots = [request.tpot_s for request in finished if request.tpot_s is not None]
        pairs = []
        if self.ttft_s is not None:
            pairs.append(Pair("ttft_s", self.ttft_s, ttft_s))
            pairs += [Pair("ttft_clean_s", self.ttft_s, ttft_s)] if self.clean else []
        if self.tpot_s is not None and tpots:
            pairs.append(Pair("tpot_s", self.tpot_s, float(np.mean(tpots))))
        return Outcome(tuple(pairs))

    @property
    def template(self) -> int:
        """Tokens that the endpoint adds to each prompt."""
        known = (count for name, count in TEMPLATE_TOKENS.items() if self.model.startswith(name))
        return 0 if self.drawn else next(known, TEMPLATE_TOKENS_OF_OTHERS)

    def _requests(self) -> list[Request]:
        count = ROUNDS * self.users
        prompts, outputs = np.full(count, self.prompt + self.template), np.full(count, self.output)
        if self.drawn:
            rng = np.random.default_rng(0)
            prompts, outputs = (
                rng.integers(int(SMALLEST_SHARE * nominal), nominal, count, endpoint=True)
                for nominal in (self.prompt, self.output)
            )
        lengths = zip(prompts.tolist(), outputs.tolist(), strict=True)
        return [Request(number, 0.0, max(1, prompt), max(1, output))
                for number, (prompt, output) in enumerate(lengths)]  # fmt: skip


@lru_cache(maxsize=16)
def _placed(
    catalogue: Catalogue, system: str, engine: str, model: str, precision: str, degree: int
) -> Deployment | NotPlaceable:
    architecture = load_model(model, catalogue)
    formats = PRECISIONS[precision]
    return deploy(SYSTEMS[system], architecture, engine, formats, strategy_of(degree), catalogue)


@reader("closed_loop_serving")
def read(table: Table, catalogue: Catalogue) -> Reading:
    table.need("model_path", "system", "backend", "mode", "isl", "osl", "tp_size", "batch_size",
               "silicon_concurrency", "silicon_ttft_ms", "silicon_tpot_ms")  # fmt: skip
    reading = Reading()
    for found in table.parsed(lambda row: why_not(row, catalogue) or _closed_loop(row)):
        if isinstance(found, str):
            reading.unsupported[found] += 1
        else:
            reading.jobs.append(found)
    return reading


def why_not(row: Row, catalogue: Catalogue) -> str | None:
    """Why a row cannot be predicted; None if it can. Raises InputError where it makes no sense."""
    for column, known in (("mode", ("agg",)), ("backend", ENGINES), ("system", SYSTEMS)):
        if row.text(column) not in known:
            return f"{column} {row.text(column) or 'blank'}: not supported yet"
    no_model = why_no_model(row.text("model_path"), catalogue)
    if no_model is not None:
        return no_model
    if _precision(row) not in PRECISIONS:
        return f"precision {_precision(row)}: not supported yet"
    for column in NOT_PLACED:
        if row.text(column) and row.number_or_zero(column) > 1:
            return f"{column} {row.text(column)}: not supported yet"
    for column in ("silicon_concurrency", "batch_size", "tp_size"):
        if not row.text(column):
            return f"{column} is not stated"
    users, batch = row.count("silicon_concurrency"), row.count("batch_size")
    if users > batch and users % batch:
        return f"{users} users over replicas of {batch} are not shared evenly"
    if not (row.text("silicon_ttft_ms") or row.text("silicon_tpot_ms")):
        return "nothing measured"
    return None


def _precision(row: Row) -> str:
    """What the row says; blank, what the checkpoint's name says, and bf16 otherwise."""
    stated = row.text("precision") or row.text("gemm_quant_mode")
    return stated or ("fp8" if row.text("model_path").lower().endswith("-fp8") else "bf16")


def _closed_loop(row: Row) -> ClosedLoop:
    users, batch = row.count("silicon_concurrency"), row.count("batch_size")
    tpot_s = milliseconds(row.number("silicon_tpot_ms")) if row.text("silicon_tpot_ms") else None
    model = model_id(row.text("model_path"))
    return ClosedLoop(
        system=row.text("system"),
        engine=ENGINES[row.text("backend")],
        model=model,
        precision=_precision(row),
        degree=row.count("tp_size"),
        batch=batch,
        users=min(users, batch),
        prompt=row.count("isl"),
        output=row.count("osl"),
        drawn=row.text("silicon_data_source").startswith(("db-dump/", "source_file=2026-")),
        ttft_s=milliseconds(row.number("silicon_ttft_ms")) if row.text("silicon_ttft_ms") else None,
        tpot_s=tpot_s,
        clean=not model.startswith("llama-3") or _server_sets_the_pace(users, tpot_s),
    )


def _server_sets_the_pace(users: int, tpot_s: float | None) -> bool:
    return tpot_s is not None and users >= CLEAN_USERS and users / tpot_s < CLEAN_OUTPUT_PER_S

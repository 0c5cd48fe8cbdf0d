"""`kv_transfer_disaggregated_h800`: keys and values of a prompt, handed over from eight GPUs to eight more.

vLLM with Mooncake's connector, one request at a time. The transfer is timed by the connector; the time to
first token goes through both engines, for the decoding one makes the token that clients see: here it is the
second one. The proxy before them is left out, and a block that the connector sends beyond the prompt's.
"""

from __future__ import annotations

from dataclasses import dataclass

from simulator.placement.placement import NotPlaceable
from simulator.placement.strategies.disaggregated import Disaggregated, Pool
from simulator.serving.arrivals import Request, Source
from simulator.simulation.serve import serve
from simulator.specs.catalogue import Catalogue
from simulator.specs.model import load_model
from simulator.specs.scenario import PrecisionChoice
from simulator.study.deploy import deploy
from simulator.study.measurements.registry import Outcome, Pair, Reading, reader
from simulator.study.measurements.table import Row, Table, milliseconds

MACHINE, ENGINE = "hgx-h800-8-pair", "vllm"
MODELS = {"Qwen3-8B": "qwen3-8b"}
BF16 = PrecisionChoice(weights="bf16", activations="bf16", kv_cache="bf16")
MORE_STEPS = 3
"""Plans of a request besides those that read its prompt, at most."""


@dataclass(frozen=True)
class OneTransfer:
    """A row."""

    model: str
    ranks: int
    prompt_tokens: int
    transfer_s: float
    ttft_s: float
    row_count: int = 1

    def predict(self, catalogue: Catalogue) -> Outcome:
        pool = Pool(tensor_parallel=self.ranks)
        strategy = Disaggregated(prefill=pool, decode=pool)
        model = load_model(self.model, catalogue)
        deployed = deploy(MACHINE, model, ENGINE, BF16, strategy, catalogue)
        if isinstance(deployed, NotPlaceable):
            return Outcome(unsupported={deployed.reason: 1})
        pieces = -(-self.prompt_tokens // deployed.engine.scheduler.max_num_batched_tokens)
        record = serve(
            deployed.programs, deployed.engine, deployed.blocks,
            lambda: Source([Request(0, 0.0, self.prompt_tokens, 2)]), "step", deployed.cores,
            record_steps=pieces + MORE_STEPS,
        )  # fmt: skip
        copies = [span for span in record.spans if span.operator == "kv_copy"]
        if not copies:
            return Outcome(unsupported={f"{self.model} does not take {self.prompt_tokens} tokens": 1})
        transfer_s = max(span.end_s for span in copies) - min(span.start_s for span in copies)
        return Outcome((
            Pair("kv_transfer_time_s", self.transfer_s, transfer_s),
            Pair("ttft_s", self.ttft_s, record.requests[0].e2e_s),
        ))  # fmt: skip


@reader("kv_transfer_disaggregated_h800")
def read(table: Table, catalogue: Catalogue) -> Reading:
    table.need("model", "gpu", "num_gpus_per_role", "tp", "nic", "prompt_tokens", "mean_ttft_ms",
               "kv_transfer_ms")  # fmt: skip
    reading = Reading()
    for found in table.parsed(transfer_of):
        if isinstance(found, str):
            reading.unsupported[found] += 1
        else:
            reading.jobs.append(found)
    return reading


def transfer_of(row: Row) -> OneTransfer | str:
    """What a row has measured, or why it cannot be predicted."""
    if row.text("model") not in MODELS:
        return f"model {row.text('model')}: not in the catalogue"
    if not row.text("gpu").startswith("H800"):
        return f"gpu {row.text('gpu')}: no machine of it in the catalogue"
    return OneTransfer(
        MODELS[row.text("model")], row.count("tp"), row.count("prompt_tokens"),
        milliseconds(row.number("kv_transfer_ms")), milliseconds(row.number("mean_ttft_ms")),
    )  # fmt: skip

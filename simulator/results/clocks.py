"""Which clock a latency is read from: the client's, the engine's, or that of one call for all requests.

Published figures differ in this by more than by most models' errors, so each engine's profile says which one
its figures are read from, and every report says which it shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from simulator.results.records import RequestRecord
from simulator.specs.engine import MetricsClock


class Latencies(NamedTuple):
    """Of one request."""

    ttft_s: float
    tpot_s: float | None
    """None for a single token."""
    e2e_s: float


TO_STEP = "to the end of the step that chose the first token"
MEANINGS: dict[MetricsClock, tuple[str, str]] = {
    "client": ("from the client's sending a request to its receiving the first token", "at the client"),
    "engine": (f"from the engine's queue {TO_STEP}", "between ends of steps"),
    "call": (f"from the start of the one call for all requests {TO_STEP}", "between ends of steps"),
}
"""By clock, what TTFT is and where TPOT is taken, for people."""


def latencies(finished: Sequence[RequestRecord], clock: MetricsClock) -> list[Latencies]:
    """Every request's by one clock. A call answers all requests together: it begins when the first is queued,
    and each answer is there when it returns, with the last token of the last one."""
    if clock == "client":
        return [Latencies(each.ttft_s, each.tpot_s, each.e2e_s) for each in finished]
    if clock == "engine":
        return [Latencies(each.engine_ttft_s, each.engine_tpot_s, each.engine_e2e_s) for each in finished]
    begins_s = min(each.queued_s for each in finished)
    whole_s = max(each.last_token_s for each in finished) - begins_s
    return [Latencies(each.first_token_s - begins_s, each.engine_tpot_s, whole_s) for each in finished]

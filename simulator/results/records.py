"""The facts of one simulated run, as clock readings and counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from simulator.results.summary import Summary

Amount = TypeVar("Amount", int, float)

Status = Literal["finished", "rejected", "failed"]


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request; every time is a reading of the simulated clock in seconds. A rejected request has
    only the first four."""

    number: int
    status: Status
    prompt_tokens: int
    sent_s: float
    """When the client sent it."""
    output_tokens: int = 0
    queued_s: float = 0.0
    """When the engine's queue received it, tokenised."""
    scheduled_s: float = 0.0
    """When the first step that it was part of was launched."""
    first_token_s: float = 0.0
    """When the step that chose its first token ended."""
    last_token_s: float = 0.0
    first_received_s: float = 0.0
    """When the client received the first token."""
    last_received_s: float = 0.0
    preemptions: int = 0

    @property
    def ttft_s(self) -> float:
        """Time to first token, at the client."""
        return self.first_received_s - self.sent_s

    @property
    def engine_ttft_s(self) -> float:
        """Time to first token from the engine's queue to the end of the step."""
        return self.first_token_s - self.queued_s

    @property
    def tpot_s(self) -> float | None:
        """Mean time per output token after the first, at the client; None for a single token."""
        if self.output_tokens < 2:
            return None
        return (self.last_received_s - self.first_received_s) / (self.output_tokens - 1)

    @property
    def engine_tpot_s(self) -> float | None:
        """The same between the ends of steps."""
        if self.output_tokens < 2:
            return None
        return (self.last_token_s - self.first_token_s) / (self.output_tokens - 1)

    @property
    def engine_e2e_s(self) -> float:
        """From the engine's queue to the end of the step that chose the last token."""
        return self.last_token_s - self.queued_s

    @property
    def e2e_s(self) -> float:
        """From sending the request to receiving its last token."""
        return self.last_received_s - self.sent_s


@dataclass(frozen=True, slots=True)
class Span:
    """One task of a recorded step, for timelines."""

    name: str
    category: str
    """What kind of task: compute, transfer, collective or host."""
    operator: str
    units: tuple[str, ...]
    start_s: float
    end_s: float
    step: int
    layer: int | None = None
    microbatch: int = 0
    prefill_tokens: int = 0
    """Tokens of prompts in its microbatch."""
    decode_tokens: int = 0
    """Sequences with a single token in its microbatch."""
    crossings: tuple[tuple[str, str], ...] = ()
    """Transitions of a token between devices that it makes, as (from, to)."""
    is_outcome: bool = False
    """Whether its end lets the serving loop go on."""


@dataclass(frozen=True, slots=True)
class SpeculationRecord:
    """What came of tokens that a drafter proposed."""

    rounds: int
    """Times that a sequence's proposals were verified; each committed the model's own token and the accepted
    ones."""
    proposed_tokens: int
    accepted_tokens: int
    draft_passes: int
    draft_time_s: Mapping[str, float]
    """Request-seconds on the critical paths of the drafter's passes, by part."""

    @property
    def tokens_per_round(self) -> float | None:
        return 1 + self.accepted_tokens / self.rounds if self.rounds else None

    @property
    def accepted_share(self) -> float | None:
        """Of what was proposed; less than the probability, as what follows a wrong token is lost too."""
        return self.accepted_tokens / self.proposed_tokens if self.proposed_tokens else None

    def as_dict(self) -> dict[str, Any]:
        """As `--json` prints it; times as shares."""
        whole = sum(self.draft_time_s.values())
        return {
            "rounds": self.rounds,
            "proposed_tokens": self.proposed_tokens,
            "accepted_tokens": self.accepted_tokens,
            "tokens_per_round": self.tokens_per_round,
            "accepted_share": self.accepted_share,
            "draft_passes": self.draft_passes,
            "draft_attribution": {
                part: spent / whole if whole else 0.0 for part, spent in self.draft_time_s.items()
            },
        }


@dataclass(frozen=True)
class RunRecord:
    """Everything measured in one run."""

    requests: tuple[RequestRecord, ...]
    gaps_s: NDArray[np.float64]
    """Times between successive tokens at the client, each shared by `gap_counts` sequences."""
    gap_counts: NDArray[np.int64]
    step_count: int
    output_tokens: int
    """Tokens committed; those computed again after a preemption count once."""
    start_s: float
    end_s: float
    """From the first request sent to the last token received."""
    time_s: Mapping[str, float]
    """Request-seconds by category: compute, memory, transfer, host, network, waiting."""
    overhead_s: float
    """Of the time charged to compute, what kernels cost however small they are."""
    busy_s: Mapping[str, float]
    """How long each stream was held; devices' own streams are named as they are."""
    host_busy_s: float
    """Core-seconds of the serving host, its engine's thread included."""
    link_bytes: Mapping[str, int]
    flops: float
    peak_blocks_of: Mapping[str, int]
    """The most KV blocks that any placement held at once, by what it is for (`both`, `prefill`, `decode`)."""
    preemptions: int
    prefilled_tokens: int
    """Of the sequences admitted, again after a preemption by recomputation, what had to be cached before they
    could decode."""
    reused_tokens: int
    """Of these, the tokens whose keys and values were in the cache already."""
    in_system_at_arrivals: NDArray[np.int64]
    """Requests in the system as each request arrived at the engine."""
    fidelity: str
    crowded: Mapping[str, int] = field(default_factory=dict)
    """Links that could not give every flow its full speed, each with the number of windows of the run that
    were carried out task by task for it, although another fidelity was asked for."""
    event_steps: int = 0
    """Steps carried out task by task, in whole or in part."""
    speculation: SpeculationRecord | None = None
    spans: tuple[Span, ...] = field(default=(), repr=False)
    summary: Summary | None = field(default=None, repr=False)
    """Of all requests, where there is no record of each: `requests`, gaps and `in_system_at_arrivals` are
    empty then."""

    @property
    def peak_blocks(self) -> int:
        """The same of all placements."""
        return max(self.peak_blocks_of.values())

    @property
    def duration_s(self) -> float:
        return self.end_s - self.start_s

    def finished(self) -> tuple[RequestRecord, ...]:
        return tuple(request for request in self.requests if request.status == "finished")


def since(earlier: RunRecord, whole: RunRecord) -> RunRecord:
    """What a run did after a moment at which it was idle; `earlier` is its record until then. Peaks, shared
    links and spans stay those of the whole."""
    before = {request.number for request in earlier.requests}
    requests = tuple(request for request in whole.requests if request.number not in before)
    summary = whole.summary
    return replace(
        whole,
        requests=requests,
        gaps_s=whole.gaps_s[len(earlier.gaps_s) :],
        gap_counts=whole.gap_counts[len(earlier.gap_counts) :],
        step_count=whole.step_count - earlier.step_count,
        output_tokens=summary.output_tokens if summary else whole.output_tokens - earlier.output_tokens,
        start_s=summary.start_s if summary else min((r.sent_s for r in requests), default=whole.end_s),
        time_s=_less(whole.time_s, earlier.time_s),
        overhead_s=whole.overhead_s - earlier.overhead_s,
        busy_s=_less(whole.busy_s, earlier.busy_s),
        host_busy_s=whole.host_busy_s - earlier.host_busy_s,
        link_bytes=_less(whole.link_bytes, earlier.link_bytes),
        flops=whole.flops - earlier.flops,
        preemptions=whole.preemptions - earlier.preemptions,
        prefilled_tokens=whole.prefilled_tokens - earlier.prefilled_tokens,
        reused_tokens=whole.reused_tokens - earlier.reused_tokens,
        in_system_at_arrivals=whole.in_system_at_arrivals[len(earlier.in_system_at_arrivals) :],
        event_steps=whole.event_steps - earlier.event_steps,
        speculation=_speculation_since(earlier.speculation, whole.speculation),
    )


def _speculation_since(
    earlier: SpeculationRecord | None, whole: SpeculationRecord | None
) -> SpeculationRecord | None:
    if earlier is None or whole is None:
        return whole
    return SpeculationRecord(
        whole.rounds - earlier.rounds, whole.proposed_tokens - earlier.proposed_tokens,
        whole.accepted_tokens - earlier.accepted_tokens, whole.draft_passes - earlier.draft_passes,
        _less(whole.draft_time_s, earlier.draft_time_s),
    )  # fmt: skip


def _less(whole: Mapping[str, Amount], earlier: Mapping[str, Amount]) -> dict[str, Amount]:
    return {name: value - earlier.get(name, 0) for name, value in whole.items()}

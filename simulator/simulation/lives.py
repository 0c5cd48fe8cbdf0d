"""What is known of a request while it is served."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.results.records import RequestRecord, Status
from simulator.serving.arrivals import Request
from simulator.simulation.ticks import seconds


@dataclass(slots=True)
class RequestLife:
    """Clock readings in ticks; -1: not yet."""

    request: Request
    sent: int
    queued: int = -1
    scheduled: int = -1
    first_token: int = -1
    last_token: int = -1
    first_received: int = -1
    last_received: int = -1
    status: Status = "failed"
    host_ticks: int = 0
    """Work that cores did for it alone, and for the delivery of its last token."""
    network_ticks: int = 0
    preemptions: int = 0
    gave_up: bool = False
    """Whether the client waits no more."""
    stalled: int = -1
    """When the client received the last token before a preemption that is not over yet."""

    def record(self) -> RequestRecord:
        request = self.request
        if self.status != "finished":
            return RequestRecord(request.number, self.status, request.prompt_tokens, seconds(self.sent))
        return RequestRecord(
            request.number, "finished", request.prompt_tokens, seconds(self.sent), request.output_tokens,
            seconds(self.queued), seconds(self.scheduled), seconds(self.first_token),
            seconds(self.last_token), seconds(self.first_received), seconds(self.last_received),
            self.preemptions,
        )  # fmt: skip

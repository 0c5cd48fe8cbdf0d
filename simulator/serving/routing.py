"""To which of several serving loops a request goes, by the name of a rule in a scenario. Rules see how many
requests each loop has, and what they themselves sent where; not what engines keep."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

from simulator.serving.arrivals import Request


class Router(ABC):
    """One rule and what it remembers. A request stays where it is sent."""

    def __init__(self, loop_count: int, seed: int) -> None:
        self.loop_count, self.seed = loop_count, seed

    @abstractmethod
    def choose(self, request: Request, loads: Sequence[int]) -> int:
        """The loop for a request, given the requests that each loop has, queued or running."""


class RoundRobin(Router):
    """One loop after the other."""

    def __init__(self, loop_count: int, seed: int) -> None:
        super().__init__(loop_count, seed)
        self._next = 0

    def choose(self, request: Request, loads: Sequence[int]) -> int:
        chosen = self._next
        self._next = (chosen + 1) % self.loop_count
        return chosen


class LeastLoaded(Router):
    """The loop with the fewest requests; of equals the first."""

    def choose(self, request: Request, loads: Sequence[int]) -> int:
        return loads.index(min(loads))


class TwoChoices(Router):
    """Of two loops drawn at random the one with fewer requests; of equals the one drawn first
    (Mitzenmacher 2001, doi:10.1109/71.963420)."""

    def __init__(self, loop_count: int, seed: int) -> None:
        super().__init__(loop_count, seed)
        self._random = random.Random(seed)

    def choose(self, request: Request, loads: Sequence[int]) -> int:
        if self.loop_count == 1:
            return 0
        first, second = self._random.sample(range(self.loop_count), 2)
        return second if loads[second] < loads[first] else first


class PrefixAware(Router):
    """The loop to which most of the request's prefix has gone before; of equals the one with the fewest
    requests. Loops with more than `SLACK` requests beyond the fewest are left out, so that a popular prefix
    is spread when its loop is busy. As routers in front of engines do, it remembers what it sent where, the
    latest `REMEMBERED` blocks of each loop, and is not told what engines have evicted."""

    SLACK = 8
    REMEMBERED = 100_000

    def __init__(self, loop_count: int, seed: int) -> None:
        super().__init__(loop_count, seed)
        self._sent: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(loop_count)]

    def choose(self, request: Request, loads: Sequence[int]) -> int:
        most = min(loads) + self.SLACK
        loops = [loop for loop in range(self.loop_count) if loads[loop] <= most]
        matched = {loop: self._matched(loop, request.prefix) for loop in loops}
        chosen = min(loops, key=lambda loop: (-matched[loop], loads[loop], loop))
        self._note(chosen, request.prefix)
        return chosen

    def _matched(self, loop: int, prefix: Sequence[int]) -> int:
        sent = self._sent[loop]
        return next((at for at, each in enumerate(prefix) if each not in sent), len(prefix))

    def _note(self, loop: int, prefix: Sequence[int]) -> None:
        sent = self._sent[loop]
        for each in prefix:
            sent[each] = None
            sent.move_to_end(each)
        while len(sent) > self.REMEMBERED:
            sent.popitem(last=False)


ROUTERS: Mapping[str, Callable[[int, int], Router]] = {
    "round_robin": RoundRobin,
    "least_loaded": LeastLoaded,
    "two_choices": TwoChoices,
    "prefix_aware": PrefixAware,
}

MakeRouter = Callable[[int], Router]
"""A router over so many loops."""


def routing(name: str, seed: int = 0) -> MakeRouter:
    """Routers that follow a rule, each with a memory of its own."""
    return lambda loop_count: ROUTERS[name](loop_count, seed)

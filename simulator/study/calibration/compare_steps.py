"""Real steps of our network beside simulated ones, on the machine that was just measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

from simulator.errors import InputError
from simulator.specs.catalogue import Catalogue
from simulator.specs.model import load_model
from simulator.study.calibration.one_step import OneSequence

if TYPE_CHECKING:
    from simulator.execution.measure import Bench
    from simulator.execution.network import Transformer

TINY = ("tiny-llama", "tiny-gpt2", "tiny-qwen3", "tiny-opt", "tiny-gemma2", "tiny-falcon", "tiny-phi",
        "tiny-bloom", "tiny-mixtral", "tiny-deepseek-v2")  # fmt: skip
REAL = "smollm2-135m"
STEPS = (("prefill", 32, 0), ("prefill", 128, 0), ("decode", 1, 64), ("decode", 1, 256))
"""Phase, new tokens, tokens cached before."""


@dataclass(frozen=True)
class StepCompared:
    """One kind of step of one model."""

    model: str
    phase: str
    new: int
    context: int
    measured_s: float
    """The best of several."""
    simulated_s: float

    @property
    def error(self) -> float:
        """Of the simulated time, relative to the measured one; above 0 it is too slow."""
        return self.simulated_s / self.measured_s - 1

    @property
    def is_tiny(self) -> bool:
        return self.model != REAL


@dataclass(frozen=True)
class Comparison:
    """Every step that was compared."""

    steps: tuple[StepCompared, ...]
    note: str | None = None
    """What is unlike what was meant."""

    @property
    def median_error(self) -> float:
        """Of all relative errors, without their signs."""
        return median(abs(step.error) for step in self.steps)

    @property
    def groups(self) -> dict[str, float]:
        """The median error of the tiny models and of the real one, by phase."""
        found: dict[str, list[float]] = {}
        for step in self.steps:
            name = "tiny models" if step.is_tiny else step.model
            found.setdefault(f"{name}, {step.phase}", []).append(abs(step.error))
        return {name: median(errors) for name, errors in found.items()}

    def as_dict(self) -> dict[str, Any]:
        steps = [asdict(step) | {"error": step.error} for step in self.steps]
        return {"steps": steps, "median_error": self.median_error, "median_error_by": self.groups,
                "note": self.note}  # fmt: skip


class RealSteps:
    """Networks, and the steps of each that are to be run and simulated."""

    def __init__(self, catalogue: Catalogue, models: Sequence[str] = (*TINY, REAL)) -> None:
        self.note: str | None = None
        self.networks = {model: self._network(model, catalogue) for model in models}
        self._cases = {
            f"{model}: {phase} of {new} after {context}": (model, phase, new, context)
            for model in self.networks
            for phase, new, context in STEPS
        }

    def _network(self, model: str, catalogue: Catalogue) -> Transformer:
        """With its own weights if it is the real model and they are installed."""
        from simulator.execution.random_weights import random_transformer

        if model == REAL:
            try:
                return _real(catalogue)
            except InputError:
                brings = "`make smollm2` brings its own"
                self.note = f"the weights of {REAL} are random, which take as long; {brings}"
        return random_transformer(load_model(model, catalogue), seed=0)

    def calls(self, bench: Bench) -> dict[str, Callable[[], float]]:
        """What takes each of them and says how long that took."""
        return {
            what: partial(bench.step_s, bench.placed(self.networks[model]), new, context)
            for what, (model, _, new, context) in self._cases.items()
        }

    def compared(
        self, measured_s: Mapping[str, float], name: str, catalogue: Catalogue, on_gpu: bool = False
    ) -> Comparison:
        """Beside what the clock says on the machine of that name, on its processor or on its GPU."""
        clocks = {
            model: OneSequence.of(name, network.arch, catalogue, on_gpu)
            for model, network in self.networks.items()
        }
        steps = (
            StepCompared(model, phase, new, context, measured_s[what], clocks[model].step_s(new, context))
            for what, (model, phase, new, context) in self._cases.items()
        )
        return Comparison(tuple(steps), self.note)


def _real(catalogue: Catalogue) -> Transformer:
    from simulator.execution.packaged_weights import load_packaged

    return load_packaged(REAL, catalogue).network

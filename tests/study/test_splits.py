"""Splits of transformers models between a GPU and its host, measured on an H100, beside what runs predict.

The table was measured with transformers 5.17 and accelerate 1.15, random weights in bf16. `accelerate` keeps the
first layers in host memory and brings each before it is used; `cpu_compute` computes them on the processor.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from simulator.study.run import run_scenario

pytestmark = pytest.mark.slow

DATA = Path(__file__).parent / "data"
LAYERS = {"llama-3.1-8b": 32, "llama-3.2-1b": 16}


@dataclass(frozen=True)
class Case:
    """One run that was measured."""

    model: str
    placement: str
    cpu_layers: int
    batch: int
    prompt: int

    @property
    def strategy(self) -> dict[str, Any]:
        layers = LAYERS[self.model]
        on_gpu = layers - self.cpu_layers
        if self.placement == "accelerate":
            return {"strategy": "weight_streaming", "gpu_layers": on_gpu, "buffers": 1}
        if self.placement == "gpu":
            return {"strategy": "single_device"}
        if not on_gpu:
            return {"strategy": "single_device", "device": "cpu"}
        return {"strategy": "layer_split", "devices": ["cpu", "gpu-0"], "layers": [self.cpu_layers, on_gpu]}

    def scenario(self) -> dict[str, Any]:
        return {
            "name": "a split", "model": self.model, "engine": "transformers-5",
            "machine": {"name": "16 cores and an H100", "host": "sixteen-cores", "devices": {"h100-sxm": 1},
                        "host_link": "pcie-gen5-x16"},
            "precision": {"weights": "bf16", "activations": "bf16", "kv_cache": "bf16"},
            "placements": [self.strategy],
            "workload": {"arrivals": {"process": "batch"}, "lengths": {"prompt": self.prompt, "output": 8},
                         "requests": self.batch},
            "seed": 1,
        }  # fmt: skip


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    """Predicted over measured, less 1, by placement and metric; `all` of them together."""
    folder = tmp_path_factory.mktemp("splits")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLACEWRIGHT_PATH", str(DATA / "sixteen-cores"))
        found: dict[str, list[float]] = {"all": []}
        predicted: dict[Case, dict[str, float]] = {}
        for row in csv.DictReader((DATA / "splits-h100.csv").read_text().splitlines()):
            case = Case(row["model"], row["placement"], int(row["cpu_layers"]), int(row["batch"]), int(row["prompt"]))
            if case not in predicted:
                predicted[case] = step_ms(case, folder)
            error = predicted[case][row["metric"]] / float(row["median"]) - 1
            found["all"].append(error)
            found.setdefault(f"{case.placement} {row['metric']}", []).append(error)
    return found


def step_ms(case: Case, folder: Path) -> dict[str, float]:
    path = folder / "split.yaml"
    path.write_text(yaml.safe_dump(case.scenario(), sort_keys=False))
    (run,) = run_scenario(path, ()).runs
    assert run.metrics is not None, case
    return {"prefill_ms": run.metrics.ttft_s.p50 * 1e3, "decode_step_ms": run.metrics.tpot_s.p50 * 1e3}


@pytest.mark.parametrize(
    ("which", "rows", "median_error"),
    [("gpu prefill_ms", 4, 0.05), ("gpu decode_step_ms", 4, 0.03), ("accelerate prefill_ms", 12, 0.13),
     ("accelerate decode_step_ms", 12, 0.08), ("cpu_compute prefill_ms", 3, 0.05),
     ("cpu_compute decode_step_ms", 3, 0.12), ("all", 38, 0.08)],
)  # fmt: skip
def test_a_split_takes_about_as_long_as_it_did(
    errors: dict[str, list[float]], which: str, rows: int, median_error: float
) -> None:
    assert len(errors[which]) == rows
    assert float(np.median(np.abs(errors[which]))) < median_error


def test_no_split_is_far_off(errors: dict[str, list[float]]) -> None:
    """Times span 10 to 1,830 ms."""
    assert float(np.max(np.abs(errors["all"]))) < 0.36

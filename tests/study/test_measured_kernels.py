"""Kernels that `calibrate measure` timed on an H100 and an H200: predicted by profiles that never saw them, and
fitted."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from simulator.costs.operators import efficiency_of
from simulator.specs.catalogue import Catalogue
from simulator.study.calibration.calibrate import fit_device
from simulator.study.calibration.calibrate_link import fit_link
from simulator.study.calibration.columns import read_columns
from simulator.study.calibration.fit import keys_of, predict
from simulator.study.calibration.readers import read_samples

DATA = Path(__file__).parent / "data"


@cache
def errors(device: str) -> dict[str, float]:
    """Median errors of a shipped profile, by class and format."""
    catalogue = Catalogue()
    record = catalogue.device(f"{device}-sxm").record
    found = {}
    for samples in read_samples(read_columns(DATA / f"{device}-kernels.csv"), catalogue).samples:
        numbers = {key: efficiency_of(record, *key) for key in keys_of(samples)}
        off = np.abs(predict(samples, record, numbers) / samples.time_s - 1)
        found[f"{samples.main.operator_class}.{samples.main.precision}"] = float(np.median(off))
    return found


@pytest.mark.parametrize("device", ["h100", "h200"])
@pytest.mark.parametrize(("key", "most"), [("matmul.bf16", 0.08), ("matmul.fp8", 0.10)])
def test_products_of_a_stack_that_nothing_was_fitted_to(device: str, key: str, most: float) -> None:
    """The H100's profile is fitted to vLLM 0.24 and TensorRT-LLM 1.3, the H200's to nothing at all; these are
    of PyTorch 2.11 with cuBLAS 13."""
    assert errors(device)[key] < most


def test_attention_of_pytorch_is_not_that_of_vllm() -> None:
    """A kernel in a graph by itself, without pages and what prepares them, is twice as quick: the profile's
    figures are of a stack."""
    assert 0.5 < errors("h100")["attention_decode.bf16"] < 1.0


@pytest.mark.slow
@pytest.mark.parametrize("device", ["h100", "h200"])
def test_a_profile_fitted_to_them_predicts_them(device: str, tmp_path: Path) -> None:
    fitted = fit_device([DATA / f"{device}-kernels.csv"], f"{device}-sxm", out=tmp_path)
    found = {each.key: each for each in fitted.classes}
    bounds = {"matmul.bf16": 0.05, "matmul.fp8": 0.05, "attention_prefill.bf16": 0.09, "attention_decode.bf16": 0.09,
              "norm.bf16": 0.06, "activation.bf16": 0.04, "elementwise.bf16": 0.04, "sampling.bf16": 0.03}  # fmt: skip
    for key, most in bounds.items():
        assert found[key].median_error < most, key


@pytest.mark.parametrize("device", ["h100", "h200"])
def test_the_link_says_what_was_measured(device: str, tmp_path: Path) -> None:
    link = "pcie-gen5-x16"
    table, shipped = DATA / f"{device}-kernels.csv", Catalogue().link(link).record
    copies = fit_link([table], link, f"{device}-sxm", out=tmp_path).copies
    assert copies is not None
    assert copies.samples == 36
    assert copies.efficiency == pytest.approx(shipped.efficiency, rel=0.02)
    assert copies.latency_s == pytest.approx(1e-6, abs=5e-7)
    assert copies.pageable_efficiency == pytest.approx(0.17, abs=0.02)

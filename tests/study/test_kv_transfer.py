"""Published transfers between two servers: what rows ask, and how far off the answers are."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulator.specs.catalogue import Catalogue
from simulator.study.measurements import READERS
from simulator.study.measurements.kv_transfer import OneTransfer
from simulator.study.measurements.table import read_table

PUBLISHED = Path(__file__).parents[3] / "shared" / "data" / "placement" / "kv_transfer_disaggregated_h800.csv"
HEADER = "model,gpu,num_gpus_per_role,tp,nic,software,prompt_tokens,mean_ttft_ms,kv_size_MB,kv_transfer_ms,transfer_GB_per_s"
ROW = "Qwen3-8B,H800 81GB,8,8,8x ConnectX-7,vLLM,1024,67.29,146.0,1.5,95.23"


def reading(tmp_path: Path, *rows: str):
    path = tmp_path / "kv_transfer_disaggregated_h800.csv"
    path.write_text("\n".join((HEADER, *rows)) + "\n")
    return READERS["kv_transfer_disaggregated_h800"](read_table(path), Catalogue())


def test_a_row_is_a_question_or_a_reason(tmp_path):
    found = reading(tmp_path, ROW, ROW.replace("Qwen3-8B", "Other-9B"), ROW.replace("H800", "H20"))
    assert found.jobs == [OneTransfer("qwen3-8b", 8, 1024, 0.0015, pytest.approx(0.06729))]
    assert list(found.unsupported) == ["model Other-9B: not in the catalogue",
                                       "gpu H20 81GB: no machine of it in the catalogue"]  # fmt: skip


def test_a_transfer_takes_its_copies_and_no_more(tmp_path):
    """36 layers one after the other, of each rank an eighth of 4,096 bytes a token: launching (4 us, assumed as of
    an H100), latencies (1 us of PCIe at either end, 1 to 3 us of the network, at either end too), and the bytes over
    a way of 1.6 Tb/s that eight ranks share, or a PCIe link of 63 GB/s."""
    (job,) = reading(tmp_path, ROW).jobs
    transfer, ttft = job.predict(Catalogue()).pairs
    bytes_of_a_rank = 1024 * 4096 / 8
    over_network_s = 8 * bytes_of_a_rank / (1.6e12 / 8 * 0.96)
    over_pcie_s = bytes_of_a_rank / (63e9 * 0.88)
    least_s, most_s = 36 * max(over_network_s, over_pcie_s), 36 * (over_network_s + over_pcie_s + 20e-6)
    assert least_s < transfer.predicted < most_s
    assert transfer.predicted < ttft.predicted


@pytest.mark.slow
@pytest.mark.skipif(not PUBLISHED.exists(), reason="the published tables do not ship with the project")
def test_published_transfers_are_predicted_a_quarter_too_quick():
    """Nothing was fitted to them: the efficiency of the network is assumed, and the connector's is not modelled."""
    jobs = READERS["kv_transfer_disaggregated_h800"](read_table(PUBLISHED), Catalogue()).jobs
    errors = [pair.predicted / pair.measured - 1 for job in jobs for pair in job.predict(Catalogue()).pairs
              if pair.metric == "kv_transfer_time_s"]  # fmt: skip
    assert len(errors) == 9
    assert all(-0.30 < error < 0.0 for error in errors)

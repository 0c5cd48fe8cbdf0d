"""Every machine of the catalogue runs a scenario."""

from pathlib import Path

import pytest

from simulator.specs.catalogue import Catalogue
from simulator.study.run import run_scenario

ROOT = Path(__file__).parent.parent.parent
shipped = Catalogue((ROOT,))

SCENARIO = """\
name: Two requests
model: tiny-llama
machine: hgx-h100-8
engine: vllm
precision: {weights: bf16, activations: bf16, kv_cache: bf16}
placements: [{strategy: single_device}]
workload:
  arrivals: {process: batch}
  lengths: {prompt: 16, output: 4}
  requests: 2
"""


@pytest.mark.slow
def test_every_machine_runs_a_scenario(tmp_path: Path) -> None:
    file = tmp_path / "two-requests.yaml"
    file.write_text(SCENARIO)
    machines = shipped.ids("machines")
    study = run_scenario(file, [f"machine=[{', '.join(machines)}]"], workers=1)
    finished = {run["machine"]: run["requests"]["finished"] for run in study.as_dict()["runs"] if run["fits"]}
    assert finished == dict.fromkeys(machines, 2)

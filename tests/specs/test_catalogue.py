"""Where ids are looked up, in which order, and that files are read once."""

import os
from pathlib import Path

import pytest

from simulator.specs.catalogue import Catalogue

from .small_catalogue import FILES, lines_of, write


def test_lists_ids_of_every_root_sorted(house: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    write(other, "hardware_profiles/devices/a10.yaml", "name: A10\n")
    assert Catalogue((house, other)).ids("devices") == ("a10", "epyc", "l40s")


def test_the_search_path_wins_over_the_working_folder(
    house: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path_factory.mktemp("first"), tmp_path_factory.mktemp("second")
    for folder, name in ((first, "first"), (second, "second")):
        text = FILES["scenarios/engines/vllm.yaml"].replace("vLLM 0.19", name)
        write(folder, "scenarios/engines/vllm.yaml", text)
    assert Catalogue().engine("vllm").record.name == "vLLM 0.19"
    monkeypatch.setenv("PLACEWRIGHT_PATH", os.pathsep.join([str(first), str(second)]))
    assert Catalogue().engine("vllm").record.name == "first"


def test_a_file_is_read_once_for_each_case(catalogue: Catalogue) -> None:
    assert catalogue.device("l40s").record is catalogue.device("l40s").record
    assert catalogue.device("l40s", "best") is not catalogue.device("l40s")


def test_engines_take_ranges_and_cases(catalogue: Catalogue) -> None:
    assert catalogue.engine("vllm", "best").record.overheads.step_s == 1e-3
    nominal = catalogue.engine("vllm")
    assert nominal.record.overheads.step_s == 1.5e-3
    assert nominal.record.host_stages.tokenize_s == nominal.record.host_stages.detokenize_s == 2e-6
    assert [(each.key_path, each.source_kind) for each in nominal.figures] == [("overheads.step", "assumed")]


def test_engines_launch_for_nothing_from_pinned_memory_unless_they_say(
    catalogue: Catalogue, house: Path
) -> None:
    plain = catalogue.engine("vllm").record
    assert (plain.launch.kernel_s, plain.launch.graphs, plain.memory.pinned) == (0.0, "all", True)
    text = FILES["scenarios/engines/vllm.yaml"].replace("memory: {", "memory: {pinned: false, ")
    write(house, "scenarios/engines/eager.yaml", text.replace(
        "sources: {", "launch: {kernel: 4..6 us, graphs: none}\n"
        "sources: {launch: {kind: published, ref: paper}, "))  # fmt: skip
    eager = Catalogue((house,)).engine("eager")
    assert (eager.record.launch.kernel_s, eager.record.launch.graphs) == (pytest.approx(5e-6), "none")
    assert eager.record.memory.pinned is False
    assert "launch.kernel" in [figure.key_path for figure in eager.figures]


def test_no_overhead_takes_hours(catalogue: Catalogue, house: Path) -> None:
    path = house / "scenarios/engines/vllm.yaml"
    path.write_text(path.read_text().replace("step: 1..2 ms", "step: 2 h"))
    (line,) = lines_of(lambda: catalogue.engine("vllm"))
    assert line.startswith("vllm.yaml:") and "overheads.step = '2 h': must be at least 0 and at most 3600" in line


def test_an_engine_needs_a_token_for_each_sequence(catalogue: Catalogue, house: Path) -> None:
    path = house / "scenarios/engines/vllm.yaml"
    path.write_text(path.read_text().replace("max_num_batched_tokens: 2048", "max_num_batched_tokens: 128"))
    (line,) = lines_of(lambda: catalogue.engine("vllm"))
    assert line.startswith(
        "vllm.yaml:2:56: scheduler.max_num_batched_tokens = 128: must be at least max_num_seqs"
    )


def test_a_histogram_by_id_or_by_path(catalogue: Catalogue, house: Path) -> None:
    histogram = catalogue.histogram("azure-conv-2023")
    assert histogram.bins == ((1, 10, 1, 10, 4), (11, 20, 1, 10, 2))
    assert catalogue.histogram(str(house / "scenarios/lengths/azure-conv-2023.yaml")) is histogram


@pytest.mark.parametrize(
    "row", ["[5, 4, 1, 2, 1]", "[0, 4, 1, 2, 1]", "[1, 4, 1, 2, 0]", "[1, 4, 1, 2]", "7", "[]"]
)
def test_a_bad_bin_is_named(catalogue: Catalogue, house: Path, row: str) -> None:
    path = house / "scenarios/lengths/azure-conv-2023.yaml"
    path.write_text(path.read_text().replace("[11, 20, 1, 10, 2]", row))
    (line,) = lines_of(lambda: catalogue.histogram("azure-conv-2023"))
    assert line.startswith("azure-conv-2023.yaml:4:5: bins.1")


def test_an_unknown_id_without_a_near_one_lists_what_there_is(catalogue: Catalogue) -> None:
    (line,) = lines_of(lambda: catalogue.path("engines", "zzz"))
    assert line == "scenarios/engines: engine = 'zzz': no such engine; known are vllm"
    (line,) = lines_of(lambda: Catalogue(()).path("engines", "zzz"))
    assert line.endswith("there is no file in any scenarios/engines/")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("max_num_seqs: 256", f"max_num_seqs: {10**30}", "scheduler.max_num_seqs"),
        (
            "max_num_batched_tokens: 2048",
            f"max_num_batched_tokens: {10**30}",
            "scheduler.max_num_batched_tokens",
        ),
        ("kv_block_tokens: 16", f"kv_block_tokens: {10**30}", "scheduler.kv_block_tokens"),
        (
            "sampler_bytes_per_logit: 8",
            f"sampler_bytes_per_logit: {10**30}",
            "memory.sampler_bytes_per_logit",
        ),
    ],
)
def test_no_count_of_an_engine_is_without_bound(
    catalogue: Catalogue, house: Path, old: str, new: str, expected: str
) -> None:
    path = house / "scenarios/engines/vllm.yaml"
    path.write_text(path.read_text().replace(old, new))
    (line,) = lines_of(lambda: catalogue.engine("vllm"))
    assert f"{expected} = {10**30}: must be at most 1000000" in line


def test_no_count_of_a_histogram_is_without_bound(catalogue: Catalogue, house: Path) -> None:
    path = house / "scenarios/lengths/azure-conv-2023.yaml"
    path.write_text(path.read_text().replace("[1, 10, 1, 10, 4]", f"[1, {10**30}, 1, 10, 4]"))
    (line,) = lines_of(lambda: catalogue.histogram("azure-conv-2023"))
    assert "whole numbers from 1 to 1,000,000,000" in line

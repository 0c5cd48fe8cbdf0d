"""Published offload runs: every row becomes a question or a reason, and answers follow each source's protocol."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import InputError
from simulator.placement.strategies import LayerSplit, SingleDevice, Strategy
from simulator.results.records import RequestRecord, RunRecord
from simulator.specs.architecture import Experts
from simulator.specs.catalogue import Catalogue
from simulator.specs.model import load_model
from simulator.study.measurements import READERS
from simulator.study.measurements.hybrid_offload import (
    BASE_OF_RATIOS,
    METRICS,
    Measured,
    OffloadedBatch,
    OffloadedShape,
    measured,
    placed_as_asked,
    with_active_experts,
)
from simulator.study.measurements.offload_questions import (
    FORMATS,
    MODELS,
    Question,
    _device_map,
    _percentages,
    _realised,
    question_of,
    strategy_of,
)
from simulator.study.measurements.table import Row, read_table
from simulator.study.validate import validate

PUBLISHED = Path(__file__).parents[3] / "shared" / "data" / "placement" / "hybrid_offload.csv"

COLUMNS = ("source", "model", "quant", "num_gpus", "cpu", "software", "placement_value", "prompt_len", "gen_len",
           "batch_size", "metric", "value", "unit", "notes")  # fmt: skip

CATALOGUE = Catalogue()


def cells(*values: str) -> dict[str, str]:
    return dict(zip(COLUMNS, values, strict=True))


NGL = cells("InventiveHQ Lab blog", "Qwen2.5-Coder-14B", "Q4_K_M", "1", "", "llama.cpp (stock release)", "99", "",
            "", "", "decode_throughput", "43.18", "tok/s", "")  # fmt: skip
LLAMA_BENCH = cells("llama.cpp PR #4812 (slaren)", "Llama-2-7B", "Q4_0", "1", "", "llama.cpp build", "0", "0.0",
                    "128.0", "", "decode_throughput", "127.43", "tok/s", "")  # fmt: skip
FLEXGEN = cells("FlexGen repo", "OPT-30B", "fp16", "1", "GCP n1", "FlexGen", "20 80 0 100 0 100", "512.0", "32.0",
                "144.0", "generation_throughput", "7.32", "tok/s", "gpu-batch 48 x 3; CPU attention")  # fmt: skip
ACCELERATE = cells("HF accelerate big-model benchmark", "OPT-30B", "float16", "2", "", "transformers",
                   "GPU0 20.7GB / GPU1 22.3GB / CPU 14.1GB / disk offload no", "", "", "1.0",
                   "decode_s_per_token", "2.37", "s/token", "")  # fmt: skip
EXPERTS = cells("ktransformers experts-sched tutorial", "Qwen3-Next-80B-A3B-Instruct", "FP8", "4", "Xeon",
                "kt-kernel", "40", "", "", "", "throughput", "66.81", "tok/s", "")  # fmt: skip
DEEPSEEK = cells("ktransformers DeepSeek-R1/V3 tutorial", "DeepSeek-R1/V3-671B", "Q4_K_M", "1",
                 "2x Xeon Gold 6454S (64 cores)", "ktransformers v0.2.1", "6 experts activated", "969.0", "300.0",
                 "1.0", "decode_throughput", "15.9", "tok/s", "")  # fmt: skip
IPEX = cells("IPEX docs performance.md", "Llama-2-7B", "INT8 weight-only", "0", "AWS m7i.16xlarge", "IPEX",
             "100% CPU", "", "", "8.0", "p90_decode_latency", "49.0", "ms/token", "")  # fmt: skip


def row(of: dict[str, str], **changes: str) -> Row:
    return Row(Path("hybrid_offload.csv"), 2, of | changes)


def asked(of: dict[str, str], **changes: str) -> Question:
    question = question_of(row(of, **changes), CATALOGUE)
    assert isinstance(question, Question), question
    return question


def refused(of: dict[str, str], **changes: str) -> str:
    reason = question_of(row(of, **changes), CATALOGUE)
    assert isinstance(reason, str), reason
    return reason


# -- what rows ask --------------------------------------------------------------------------------------------


def test_flexgens_block_is_streamed_weights_and_attention_where_the_cache_is() -> None:
    question = asked(FLEXGEN)
    assert question.placement == {
        "strategy": "weight_streaming", "gpu_share": 1 / 12, "home": "host", "buffers": 2, "microbatches": 3,
        "kv": "host", "decode_attention": "host",
    }  # fmt: skip
    assert (question.machine, question.engine) == ("gcp-n1-t4", "flexgen")
    assert question.pinned is None
    assert (question.batch, question.prompt, question.output) == (144, 512, 32)


@pytest.mark.parametrize(
    ("percentages", "expected"),
    [
        ("100 0 100 0 100 0", {"strategy": "single_device"}),
        ("0 100 100 0 100 0", {"gpu_share": 0.0, "home": "host", "kv": "device"}),
        ("0 0 0 100 0 100", {"gpu_share": 0.0, "home": "nvme", "kv": "host"}),
        ("0 50 0 0 0 100", {"gpu_share": 0.0, "home": "host", "nvme_share": 0.5, "kv": "nvme",
                            "decode_attention": "device"}),
        ("0 100 50 50 0 100", "KV in two places"),
        ("0 100 0 0 0 100", {"home": "host", "kv": "nvme"}),
        ("20 80", "--percent 20 80: six numbers are due"),
    ],
)
def test_flexgens_percentages(percentages: str, expected: dict[str, Any] | str) -> None:
    found = _percentages(row(FLEXGEN, placement_value=percentages))
    if isinstance(expected, str):
        assert isinstance(found, str) and found.startswith(expected)
    else:
        assert isinstance(found, dict) and expected.items() <= found.items()


@pytest.mark.parametrize(
    ("gpu", "cpu", "shares"),
    [
        (20, 80, {"gpu_share": 1 / 12, "home": "host"}),  # the output projection, a quarter of a third of a layer
        (13, 87, {"gpu_share": 1 / 12, "home": "host"}),
        (12, 88, {"gpu_share": 0.0, "home": "host"}),
        (40, 60, {"gpu_share": 2 / 12 + 4 / 12, "home": "host"}),  # two projections and the product down
        (0, 50, {"gpu_share": 0.0, "home": "host", "nvme_share": 0.5}),
        (30, 0, {"gpu_share": 1 / 12 + 4 / 12, "home": "nvme"}),
    ],
)
def test_matrices_go_whole_where_the_middle_of_their_bytes_lies(gpu: int, cpu: int, shares: dict[str, Any]) -> None:
    """By hand: in attention middles are at 12.5, 37.5, 62.5 and 87.5 %, in the feed-forward part at 25 and 75 %."""
    found = _realised(gpu, cpu)
    assert found.keys() == shares.keys()
    assert found["home"] == shares["home"]
    for name in found.keys() - {"home"}:
        assert found[name] == pytest.approx(shares[name])


@given(gpu=st.integers(0, 100), cpu=st.integers(0, 100))
def test_every_byte_of_a_layer_is_somewhere(gpu: int, cpu: int) -> None:
    if gpu + cpu > 100 or gpu == 100:
        return
    found = _realised(gpu, cpu)
    far = found.get("nvme_share", 0.0 if found["home"] == "host" else 1 - found["gpu_share"])
    assert 0 <= found["gpu_share"] + far <= 1
    assert (far > 0) <= (gpu + cpu < 100)


def test_what_of_flexgens_copies_is_pinned() -> None:
    """Weights are by default, but not those of OPT-175B; keys and values at the host never are."""
    brought = asked(FLEXGEN, notes="gpu-batch 48 x 3")
    assert brought.placement["decode_attention"] == "device"
    assert brought.pinned is False
    assert asked(FLEXGEN, model="OPT-175B").pinned is False
    assert asked(FLEXGEN, placement_value="0 100 100 0 100 0").pinned is None


@pytest.mark.parametrize(
    ("software", "level", "home", "buffers", "pinned"),
    [
        ("HF Accelerate", "cpu", "host", 1, None),
        ("HF Accelerate", "disk", "nvme", 1, None),
        ("DeepSpeed ZeRO-Inference", "cpu", "host", 2, True),
        ("DeepSpeed ZeRO-Inference", "disk", "nvme", 2, True),
    ],
)
def test_what_flexgen_was_compared_with_streams_every_layer(
    software: str, level: str, home: str, buffers: int, pinned: bool | None
) -> None:
    question = asked(FLEXGEN, software=software, placement_value=f"lowest level: {level}")
    assert {"gpu_layers": 0, "home": home, "buffers": buffers}.items() <= question.placement.items()
    assert (question.engine, question.pinned) == ("transformers", pinned)


def test_a_device_map_follows_the_bytes_of_each_place() -> None:
    """OPT-30B has 48 layers of 1.15 GiB: 17 in 20.7, 19 in 22.3, 12 in 14.1."""
    device_map = asked(ACCELERATE).placement["device_map"]
    layers = [device_map[f"model.decoder.layers.{layer}"] for layer in range(48)]
    assert layers == [0] * 17 + [1] * 19 + ["cpu"] * 12
    assert device_map["model.decoder.embed_tokens"] == device_map["lm_head"] == 0


@pytest.mark.slow
@given(sizes=st.lists(st.floats(0.5, 50.0), min_size=3, max_size=3), layers=st.integers(3, 120))
def test_a_device_map_places_every_layer_in_order(sizes: list[float], layers: int) -> None:
    placed = _device_map([*sizes[:2], 0.0], layers)
    if placed["strategy"] == "layer_split":
        assert sum(placed["layers"]) == layers
        assert placed["layers"][0] == pytest.approx(layers * sizes[0] / sum(sizes[:2]), abs=0.5)
    placed = _device_map(sizes, layers)
    if placed["strategy"] == "custom":
        order = [placed["device_map"][f"model.decoder.layers.{layer}"] for layer in range(layers)]
        assert order == sorted(order, key=[0, 1, "cpu"].index)
        assert order.count("cpu") == pytest.approx(layers * sizes[2] / sum(sizes), abs=0.5)


def test_what_fits_one_or_two_gpus_is_not_off_loaded() -> None:
    one = asked(ACCELERATE, placement_value="GPU0 11.7GB / GPU1 0GB / CPU 0GB / disk offload no")
    two = asked(ACCELERATE, placement_value="GPU0 21.5GB / GPU1 18GB / CPU 0GB / disk offload no")
    assert one.placement == {"strategy": "single_device"}
    assert two.placement == {"strategy": "layer_split", "devices": ["gpu-0", "gpu-1"], "layers": [26, 22]}


def test_llama_bench_reads_its_prompt_or_generates_from_an_empty_cache() -> None:
    decode, prefill = asked(LLAMA_BENCH), asked(LLAMA_BENCH, metric="prefill_throughput", prompt_len="512.0")
    assert (decode.prompt, decode.output) == (1, 128)
    assert (prefill.prompt, prefill.output) == (512, 1)
    assert decode.placement == {"strategy": "single_device"}
    assert asked(LLAMA_BENCH, placement_value="1").placement == {
        "strategy": "attention_offload", "phases": "all"
    }  # fmt: skip


def test_a_host_that_computes_and_is_not_stated_decides_no_ratio_between_its_rows() -> None:
    assert asked(NGL).placement == {"strategy": "single_device"}
    assert not asked(NGL).is_for_shape
    some = asked(NGL, placement_value="32")
    assert some.placement == {"strategy": "layer_split", "gpu_layers": 32}
    assert some.is_for_shape


def test_experts_on_the_processor() -> None:
    assert asked(EXPERTS).placement == {"strategy": "expert_offload", "gpu_experts": 0.4, "tensor_parallel": 4}
    assert asked(EXPERTS).is_for_shape
    two, one = asked(DEEPSEEK), asked(DEEPSEEK, cpu="1x Xeon Gold 6454S", gen_len="")
    assert (two.machine, two.engine, two.active_experts) == ("xeon-6454s-2s-rtx-4090", "ktransformers", 6)
    assert (one.machine, one.engine, one.output) == ("xeon-6454s-1s-rtx-4090", "ktransformers", 300)
    assert not two.is_for_shape


def test_llama_cpp_beside_ktransformers_is_on_the_processor() -> None:
    """It could not yet keep experts apart from their layers, and a layer has 6 GB."""
    question = asked(DEEPSEEK, software="llama.cpp")
    assert question.placement == {"strategy": "single_device", "device": "cpu"}
    assert question.engine == "llama.cpp"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"source": "somebody"}, "source somebody: not supported yet"),
        ({"model": "GPT-9"}, "model GPT-9: not in the catalogue yet"),
        ({"quant": "int3"}, "quant int3: not supported yet"),
        ({"software": "MLC"}, "software MLC: not supported yet"),
    ],
)
def test_rows_that_ask_nothing_we_know_say_why(changes: dict[str, str], says: str) -> None:
    assert refused(FLEXGEN, **changes) == says


def test_loading_is_not_simulated() -> None:
    assert refused(ACCELERATE, metric="model_load_time").startswith("model_load_time")


def test_every_model_format_and_machine_is_there() -> None:
    assert [name for name in MODELS.values() if CATALOGUE.find("models", name) is None] == []
    for question in (asked(each) for each in (NGL, LLAMA_BENCH, FLEXGEN, ACCELERATE, EXPERTS, DEEPSEEK, IPEX)):
        assert CATALOGUE.find("engines", question.engine) is not None
        if isinstance(question.machine, str):
            assert CATALOGUE.find("machines", question.machine) is not None


# -- strategies -----------------------------------------------------------------------------------------------


def test_a_placement_is_one_of_the_strategies_or_a_reason() -> None:
    assert strategy_of({"strategy": "single_device", "device": "cpu"}) == SingleDevice(device="cpu")
    assert strategy_of({"strategy": "layer_split", "devices": ["gpu-0", "cpu"], "layers": [3, 1]}) == LayerSplit(
        devices=("gpu-0", "cpu"), layers=(3, 1)
    )
    assert strategy_of({"strategy": "teleport"}) == "strategy teleport: not supported yet"
    wrong = strategy_of({"strategy": "layer_split", "gpu_layers": -1})
    assert isinstance(wrong, str) and wrong.startswith("strategy layer_split: gpu_layers: ")


@pytest.mark.parametrize("published", [NGL, LLAMA_BENCH, FLEXGEN, ACCELERATE, EXPERTS, DEEPSEEK, IPEX],
                         ids=lambda published: published["source"])  # fmt: skip
def test_the_placement_of_a_question_is_one_that_strategies_know(published: dict[str, str]) -> None:
    """A field of another name would be a row left out, and nobody would see why."""
    assert isinstance(strategy_of(asked(published).placement), Strategy)


# -- answers ---------------------------------------------------------------------------------------------------


def finished(scheduled_s: float, first_s: float, last_s: float, output: int) -> RequestRecord:
    return RequestRecord(0, "finished", 10, 0.0, output_tokens=output, queued_s=0.0, scheduled_s=scheduled_s,
                         first_token_s=first_s, last_token_s=last_s)  # fmt: skip


def record(*requests: RequestRecord, gaps_s: tuple[float, ...] = (), counts: tuple[int, ...] = ()) -> RunRecord:
    return RunRecord(
        requests, np.array(gaps_s), np.array(counts, dtype=np.int64), 1, 1, 0.0, 9.0, {}, 0.0, {}, 0.0, {}, 0.0, {"both": 1},
        0, 0, 0, np.array([], dtype=np.int64), "step",
    )  # fmt: skip


def test_metrics_by_hand() -> None:
    """Two sequences of 100 tokens in, 11 out: begun at 1 s, first tokens by 3 s, last by 8 s."""
    question = replace(asked(FLEXGEN), batch=2, prompt=100, output=11)
    run = record(finished(1.0, 2.0, 7.0, 11), finished(1.5, 3.0, 8.0, 11), gaps_s=(0.1, 0.5), counts=(8, 2))
    found = {name: compute(question, run) for name, (_, compute) in METRICS.items()}
    assert found["prefill_throughput"] == 200 / 2
    assert found["decode_throughput"] == found["total_throughput"] == 20 / 5
    assert found["generation_throughput"] == found["throughput"] == 22 / 7
    assert found["decode_s_per_token"] == pytest.approx(7 / 11)
    assert found["p90_decode_latency"] == 0.5


def test_units_of_the_table_become_si() -> None:
    found = measured(row(IPEX), CATALOGUE)
    assert isinstance(found, Measured)
    assert (found.value, found.name) == (0.049, "p90_decode_time_s")
    for changes, says in (({"unit": "h/token"}, "unit h/token"), ({"metric": "joy"}, "metric joy")):
        reason = measured(row(IPEX, **changes), CATALOGUE)
        assert isinstance(reason, str) and reason.startswith(says)


def test_prefill_of_two_tokens_is_scored_apart() -> None:
    question = replace(asked(LLAMA_BENCH), prompt=2)
    assert Measured(question, "prefill_throughput", 1.0).name == "short_prefill_throughput_tokens_per_s"
    assert Measured(question, "decode_throughput", 1.0).name == "decode_throughput_tokens_per_s"


def test_a_processor_reads_its_weights_no_faster_than_its_memory() -> None:
    """Llama 2 7B in int8: 6.6 of 6.7 thousand million parameters in a byte each, over at most 307.2 GB/s."""
    both = (Measured(asked(IPEX), "p90_decode_latency", 0.049), Measured(asked(IPEX), "total_throughput", 170.2))
    step, throughput = OffloadedBatch(both).predict(CATALOGUE).pairs
    assert step.predicted > 6.6e9 / 307.2e9
    assert throughput.predicted == pytest.approx(8 / step.predicted, rel=0.02)


def test_a_batch_that_does_not_fit_is_refused_and_not_served_in_turns() -> None:
    question = replace(asked(FLEXGEN, model="OPT-6.7B", placement_value="100 0 100 0 100 0"), batch=40)
    answer = OffloadedBatch((Measured(question, "generation_throughput", 1.0),)).predict(CATALOGUE)
    (reason,) = answer.unsupported
    assert reason.endswith("of 40 sequences have room for their KV")


def test_ratios_are_to_the_first_row() -> None:
    """Half the sequences, less than half the time less: measured and predicted are each divided by their base."""
    question = replace(asked(IPEX), is_for_shape=True)
    rows = tuple(Measured(replace(question, batch=batch), "throughput", value)
                 for batch, value in ((1, 50.0), (2, 75.0)))  # fmt: skip
    levels = [OffloadedBatch((each,)).predict(CATALOGUE).pairs[0].predicted for each in rows]
    answer = OffloadedShape(rows).predict(CATALOGUE)
    (pair,) = answer.pairs
    assert (pair.metric, pair.measured) == ("throughput_ratio", 1.5)
    assert pair.predicted == pytest.approx(levels[1] / levels[0])
    assert answer.unsupported == {BASE_OF_RATIOS: 1}


def test_a_run_may_differ_from_its_engines_profile() -> None:
    question = replace(asked(ACCELERATE), placement={"strategy": "single_device"}, model="gpt-j-6b")
    for pinned, expected in ((None, False), (True, True), (False, False)):
        placed = placed_as_asked(replace(question, pinned=pinned), CATALOGUE)
        assert not isinstance(placed, str)
        assert placed.engine.memory.pinned is expected
        assert placed.engine.scheduler.max_num_batched_tokens == question.prompt


def test_a_model_changed_to_activate_fewer_experts() -> None:
    model = load_model("deepseek-v3", CATALOGUE)
    assert with_active_experts(model, None) is model
    changed = with_active_experts(model, 6)
    active = {layer.mlp.num_experts_per_tok for layer in changed.layers if isinstance(layer.mlp, Experts)}
    assert active == {6}
    assert [layer.attention for layer in changed.layers] == [layer.attention for layer in model.layers]


# -- the table -------------------------------------------------------------------------------------------------


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_rows_that_ask_the_same_are_one_run(tmp_path: Path) -> None:
    rows = [IPEX, LLAMA_BENCH, IPEX | {"metric": "total_throughput", "unit": "tok/s"}, NGL | {"placement_value": "1"}]
    path = write(tmp_path / "hybrid_offload.csv", rows)
    reading = READERS["hybrid_offload"](read_table(path), CATALOGUE)
    assert [job.row_count for job in reading.jobs] == [2, 1, 1]
    (table,) = validate(path).tables
    assert (table.rows, table.predicted) == (4, 3)
    assert table.unsupported == {BASE_OF_RATIOS: 1}
    assert set(table.metrics) == {"p90_decode_time_s", "decode_throughput_tokens_per_s"}


def test_shapes_are_of_one_machine(tmp_path: Path) -> None:
    rows = [NGL | {"placement_value": layers} for layers in ("0", "16")] + [EXPERTS, EXPERTS]
    reading = READERS["hybrid_offload"](read_table(write(tmp_path / "hybrid_offload.csv", rows)), CATALOGUE)
    assert [[each.question.model for each in job.rows] for job in reading.jobs if isinstance(job, OffloadedShape)] == [
        ["qwen2.5-coder-14b"] * 2, ["qwen3-next-80b-a3b"] * 2
    ]  # fmt: skip


def test_a_row_without_a_batch_is_a_mistake(tmp_path: Path) -> None:
    path = write(tmp_path / "hybrid_offload.csv", [FLEXGEN, FLEXGEN | {"batch_size": "many"}])
    with pytest.raises(InputError, match=r"hybrid_offload\.csv:3: batch_size = 'many'"):
        validate(path)


def test_every_published_row_is_a_question_or_has_a_reason() -> None:
    if not PUBLISHED.is_file():
        pytest.skip(f"no measurements at {PUBLISHED}")
    found = [question_of(each, CATALOGUE) for each in read_table(PUBLISHED).rows]
    reasons = Counter(each for each in found if isinstance(each, str))
    assert len(found) == 80
    assert reasons == {"model_load_time: loading a model is not simulated": 3}
    assert all(each.precision in FORMATS.values() or each.active_experts for each in found
               if isinstance(each, Question))  # fmt: skip


# -- what predictions obey, and how far off they are -------------------------------------------------------------


def predicted(of: dict[str, str], **changes: str) -> float:
    found = measured(row(of, **changes), CATALOGUE)
    assert isinstance(found, Measured)
    (pair,) = OffloadedBatch((found,)).predict(CATALOGUE).pairs
    return pair.predicted


@pytest.mark.slow
def test_a_token_pays_for_each_expert_what_the_processors_dram_takes() -> None:
    """By hand: in 58 layers three matrices of 7168 x 2048; q4_k_m keeps gate and up in 4.5 bits a number, down in 4.5
    in half of the layers and in 6.5625 in the others. Two sockets read at 0.60 of the 0.95 x 614.4 GB/s left to them."""
    matrix = 7168 * 2048 / 8
    expert_bytes = 58 * matrix * (2 * 4.5 + (4.5 + 6.5625) / 2)
    more_s = [1 / predicted(DEEPSEEK, placement_value=f"{count} experts activated") for count in (8, 6)]
    assert more_s[0] - more_s[1] == pytest.approx(2 * expert_bytes / (614.4e9 * 0.95 * 0.60), rel=0.03)


@pytest.mark.slow
def test_one_processor_takes_twice_as_long_over_experts_and_no_longer_over_the_rest() -> None:
    rests_s = []
    for cpu in ("1x Xeon Gold 6454S", "2x Xeon Gold 6454S"):
        six_s, eight_s = (1 / predicted(DEEPSEEK, cpu=cpu, placement_value=f"{n} experts activated") for n in (6, 8))
        rests_s.append(six_s - 3 * (eight_s - six_s))
    assert rests_s[0] == pytest.approx(rests_s[1], rel=0.1)


@pytest.mark.slow
def test_flexgens_block_of_opt_30b_fits_and_is_no_faster_than_dram_and_bus_allow() -> None:
    """Of each step, 44 of 48 layers of 1.23 GB cross the bus at 12.3 GB/s, and 144 x 512 cached tokens of 1.38 MB are
    read from DRAM at 13.2 GB/s; not both can hide behind the other for a whole step of 32."""
    tokens_per_s = predicted(FLEXGEN)
    step_s = max(44 * 1.23 / 12.3, 144 * 512 * 1.376e-3 / 13.2)
    assert 144 / (3 * step_s) < tokens_per_s < 144 / step_s


@pytest.fixture(scope="module")
def published() -> dict[tuple[str, str], list[float]]:
    """Errors of the published rows by engine and metric."""
    if not PUBLISHED.is_file():
        pytest.skip(f"no measurements at {PUBLISHED}")
    errors: dict[tuple[str, str], list[float]] = {}
    for job in READERS["hybrid_offload"](read_table(PUBLISHED), CATALOGUE).jobs:
        assert isinstance(job, OffloadedBatch | OffloadedShape)
        for pair in job.predict(CATALOGUE).pairs:
            engine = job.rows[0].question.engine
            errors.setdefault((engine, pair.metric), []).append(pair.predicted / pair.measured - 1)
    return errors


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "metric", "rows", "median_error"),
    [
        ("ktransformers", "decode_throughput_tokens_per_s", 18, 0.40),
        ("ktransformers", "prefill_throughput_tokens_per_s", 15, 0.17),
        ("ktransformers", "short_prefill_throughput_tokens_per_s", 3, 0.13),
        ("ktransformers", "throughput_ratio", 11, 0.04),
        ("flexgen", "generation_throughput_tokens_per_s", 5, 0.22),
        ("transformers", "generation_throughput_tokens_per_s", 6, 0.29),
        ("transformers", "time_per_new_token_s", 3, 0.07),
        ("llama.cpp", "decode_throughput_tokens_per_s", 6, 0.08),
        ("ipex", "p90_decode_time_s", 2, 0.04),
        ("ipex", "decode_throughput_tokens_per_s", 2, 0.04),
    ],
)
def test_median_errors_are_those_that_the_docs_state(
    published: dict[tuple[str, str], list[float]], engine: str, metric: str, rows: int, median_error: float
) -> None:
    """Golden: says that predictions have moved, not that they are good."""
    errors = published[engine, metric]
    assert len(errors) == rows
    assert float(np.median(np.abs(errors))) == pytest.approx(median_error, abs=0.02)

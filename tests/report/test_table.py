import io
import subprocess
import sys
from dataclasses import replace

from rich.console import Console

from simulator.report.table import (
    assumed_line,
    console_for,
    legend,
    memory_table,
    notes,
    print_study,
    results_table,
)
from simulator.results.run_result import Band, MemoryUse

from .studies import GIB, a_run, a_study, saturated, unfit, unpriced


def printed(study, width=None):
    stream = io.StringIO()
    console = console_for(stream) if width is None else Console(file=stream, width=width, highlight=False)
    print_study(study, console)
    return stream.getvalue()


def cells(table, header):
    return [str(cell) for column in table.columns if str(column.header) == header for cell in column.cells]


def test_every_row_stands_with_its_figures():
    bands = {"usd_per_million_output_tokens": Band(0.38, 0.45)}
    study = a_study(a_run(bands=bands), unpriced(), saturated(), unfit())
    table = results_table(study)
    assert cells(table, "SLO") == ["meets", "meets", "saturated", "does not fit"]
    assert cells(table, "TTFT p99 ms") == ["400", "400", "30,000", "-"]
    assert cells(table, "USD/M tokens") == ["0.4 (0.38..0.45)", "unknown (at least 0.1)", "0.1", "-"]
    assert cells(table, "J/token") == ["1.5", "unknown", "1.5", "-"]
    assert cells(table, "mostly") == ["memory 75 %", "memory 75 %", "waiting 75 %", "-"]


def test_a_file_gets_whole_lines_without_colour():
    text = printed(a_study(a_run(machine="m" * 300), unfit()))
    assert "m" * 300 in text
    assert "\x1b" not in text
    assert all(line == line.rstrip() for line in text.splitlines())


def test_a_narrow_terminal_gets_paragraphs_and_no_word_is_cut():
    text = printed(a_study(a_run(), unpriced()), width=80)
    assert max(map(len, text.splitlines())) <= 80
    assert "box, single_device\n" in text
    assert "unknown (at least 0.1)" in " ".join(text.split())


def test_notes_say_what_the_table_has_no_room_for():
    run = a_run(requests={"finished": 90, "rejected": 10, "failed": 0}, preemptions=3,
                crowded={"pcie-0": 2, "uplink": 1}, event_steps=7, steps=900)  # fmt: skip
    assert notes(a_study(run, unfit())) == [
        "single_device on box: of 100 requests 10 rejected",
        "single_device on box: 3 preemptions for want of KV blocks",
        "single_device on box: 7 of 900 steps simulated task by task, because transfers share pcie-0, uplink",
        "tensor_parallel 4 on box: does not fit: needs 91.2 GiB of 79.6 GiB on gpu-3: weights 70.1",
    ]


def test_memory_names_the_fullest_and_how_many_are_alike():
    use = MemoryUse("gpu-0", 30 * GIB, 40 * GIB, {"weights": 28 * GIB, "kv_cache": 2 * GIB, "engine": 0})
    run = a_run(memory=(MemoryUse("host", GIB, 100 * GIB, {}), use, replace(use, memory="gpu-1")))
    table = memory_table(a_study(run))
    assert cells(table, "fullest memory") == ["gpu-0 and 1 alike"]
    assert cells(table, "GiB used") == ["30 of 40"]
    assert cells(table, "full") == ["75 %"]
    assert cells(table, "with GiB") == ["weights 28, KV cache 2"]
    assert memory_table(a_study(unfit())) is None


def test_rows_alike_in_memory_are_one_line():
    runs = [a_run(axes={"workload.arrivals.rate": rate}) for rate in (1.0, 2.0)]
    assert memory_table(a_study(*runs)).row_count == 1
    fuller = replace(runs[1], memory=(MemoryUse("gpu-0", 20 * GIB, 40 * GIB, {"weights": 20 * GIB}),))
    table = memory_table(a_study(runs[0], fuller))
    assert cells(table, "rate") == ["1", "2"]


def test_the_legend_names_limits_and_axes():
    lines = legend(a_study(a_run(axes={"workload.arrivals.rate": 2.0})))
    assert any("ttft_p99 1 s, tpot_p99 0.06 s" in line for line in lines)
    assert lines[-1] == "rate: workload.arrivals.rate of the scenario, in SI units."


def test_assumed_figures_are_shortened_with_those_of_unknown_costs_first():
    names = (*(f"links.l{n} (range, assumed)" for n in range(20)), "hosts.nr1.price.purchase (unknown, assumed)")
    line = assumed_line(a_study(unpriced(), assumed=names))
    assert line.startswith("rests on assumed or vendor-claimed figures: hosts.nr1.price.purchase (unknown")
    assert line.endswith("; and 9 more")
    assert assumed_line(a_study(a_run())) is None


def test_the_table_loads_neither_matplotlib_nor_pandas():
    code = "import sys, simulator.report.table, simulator.report.verdict, simulator.report.timeline; " \
           "print({'matplotlib', 'pandas', 'torch', 'simpy'} & set(sys.modules))"  # fmt: skip
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "set()"

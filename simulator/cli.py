"""The command line: parse, call one function, print. Whatever is heavy is imported where it is used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from simulator import terminal
from simulator.cli_calibrate import calibrate_app
from simulator.terminal import AsJson

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Where should a model run, and what should be bought? Simulates placements of LLM inference.",
)

app.add_typer(calibrate_app, name="calibrate")

ScenarioFile = Annotated[Path, typer.Argument(metavar="SCENARIO", help="A YAML file; see scenarios/.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replace a key, as workload.requests=100; repeatable."),
]
TIMELINES = "timelines"
"""Folder of the pictures of a study, in that of its other files."""


def main() -> None:
    """Entry point of the `placewright` command."""
    with terminal.told_plainly():
        app()


@app.command()
def run(
    scenario: ScenarioFile,
    set_: Overrides = None,
    as_json: AsJson = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for results.json, runs.csv, tradeoff.png, timeline.json (Perfetto) and, in "
            "timelines/, a picture of the first two steps of each row."
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes to use; all cores if not given.")
    ] = None,
    keep: Annotated[
        Literal["all", "summary"],
        typer.Option(
            help="What to keep of requests: all of each, or a summary, in little memory however many there "
            "are; percentiles are then within 0.1 %."
        ),
    ] = "all",
) -> None:
    """Simulate every placement of a scenario and compare latency, throughput, energy and cost."""
    from simulator.report.files import make_folder
    from simulator.study.run import run_scenario

    if out is not None:
        make_folder(out)
        make_folder(out / TIMELINES)
    with terminal.progress("Simulating") as progress:
        study = run_scenario(scenario, set_ or (), progress, workers, keep)
    written = []
    if out is not None:
        with terminal.progress("Drawing") as progress:
            written = _write_study(study, out, progress)
    if as_json:
        terminal.print_json(study.as_dict())
        return
    from simulator.report.table import print_study
    from simulator.report.verdict import verdict

    console = terminal.console()
    print_study(study, console)
    console.print()
    for sentence in verdict(study):
        console.print(sentence, markup=False, highlight=False)
    for path in written:
        console.print(f"wrote {path}", markup=False, highlight=False)


def _write_study(study: Any, out: Path, progress: Callable[[int, int], None] | None) -> list[Path]:
    """Put the study's files into a folder that is there, with one in it for pictures."""
    from io import BytesIO

    from simulator.report.figures import latency_against_throughput
    from simulator.report.files import write_atomically, write_json
    from simulator.report.frame import frame
    from simulator.report.timeline import chrome_trace
    from simulator.report.timeline_pictures import timeline_pictures

    picture = BytesIO()
    latency_against_throughput(study).savefig(picture, format="png", dpi=150, metadata={"Software": None})
    write_json(out / "results.json", study.as_dict())
    write_atomically(out / "runs.csv", frame(study).to_csv(index=False))
    write_atomically(out / "tradeoff.png", picture.getvalue())
    write_json(out / "timeline.json", chrome_trace(study))
    for number, (name, content) in enumerate(timeline_pictures(study), start=1):
        write_atomically(out / TIMELINES / name, content)
        if progress is not None:
            progress(number, len(study.runs))
    return [out / name for name in ("results.json", "runs.csv", "tradeoff.png", "timeline.json", TIMELINES)]


@app.command()
def verify(
    scenario: Annotated[Path | None, typer.Argument(help="A YAML file; see scenarios/tiny-*.yaml.")] = None,
    set_: Overrides = None,
    every: Annotated[
        bool, typer.Option("--all", help="Every strategy on every small model, instead of one scenario.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Carry every placement out on a real network in float64; exit 1 if anything differs from the plan."""
    from simulator.report.verified import print_all_verified, print_verified
    from simulator.study.verify import verify_scenario
    from simulator.study.verify_all import verify_all

    if every == (scenario is not None) or (every and set_):
        raise typer.BadParameter("name one SCENARIO, or say --all without --set")
    with terminal.progress("Verifying") as progress:
        rows = verify_scenario(scenario, set_ or (), progress) if scenario else verify_all(progress)
    if as_json:
        terminal.print_json({"rows": [row.as_dict() for row in rows]})
    else:
        (print_all_verified if every else print_verified)(rows, terminal.console())
    if any(row.status == "mismatch" for row in rows):
        raise SystemExit(1)


@app.command()
def generate(
    text: Annotated[str, typer.Argument(help="The prompt.")],
    model: Annotated[
        str,
        typer.Option(
            help="smollm2-135m (see `make smollm2`), a folder with weights as Hugging Face writes it, or a "
            "tiny model, whose weights are random."
        ),
    ] = "tiny-llama",
    machine: Annotated[
        list[str] | None, typer.Option(help="Machine whose simulated clock to show; repeatable.")
    ] = None,
    engine: Annotated[str, typer.Option(help="Serving engine of the simulated machines.")] = "vllm",
    tokens: Annotated[int, typer.Option(min=1, max=4096, help="How many to generate at most.")] = 16,
    seed: Annotated[int, typer.Option(min=0, max=10**15, help="Of the random weights.")] = 0,
    precision: Annotated[
        str | None,
        typer.Option(help="Number format of the simulated machines, as bf16; as computed here if not given."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Generate text token by token, with the clock of this machine and the simulated one of others beside."""
    from simulator.study import generate as loop

    with terminal.progress("Generating") as progress:
        result = loop.generate(
            text, model, machine or loop.DEFAULT_MACHINES, engine, tokens, seed, precision, progress,
        )  # fmt: skip
    if as_json:
        terminal.print_json(result.as_dict())
        return
    from simulator.report.loop import print_loop

    print_loop(result, terminal.console())


@app.command()
def validate(
    folder: Annotated[
        Path | None, typer.Argument(help="A folder of published measurements, or one table of it.")
    ] = None,
    silicon: Annotated[
        bool, typer.Option("--silicon", help="Instead: the kernels of NVIDIA's databases (extra `silicon`).")
    ] = False,
    rows: Annotated[
        int | None, typer.Option(min=1, help="At most about so many rows of each table, for a quick look.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Predict published measurements and show the errors, whatever they are."""
    from simulator.study.validate import validate as score
    from simulator.study.validate import validate_silicon

    if silicon == (folder is not None):
        raise typer.BadParameter("name a FOLDER or a table, or say --silicon")
    with terminal.progress("Predicting") as progress:
        board = score(folder, progress, rows) if folder else validate_silicon(progress, rows)
    if as_json:
        terminal.print_json(board.as_dict())
        return
    from simulator.report.scoreboard import print_scoreboard

    print_scoreboard(board, terminal.console())


@app.command()
def show(
    scenario: Annotated[
        Path | None, typer.Argument(metavar="SCENARIO", help="A YAML file; see scenarios/.")
    ] = None,
    set_: Overrides = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Instead: an id of models/, a model file, a config.json."),
    ] = None,
    weights: Annotated[str | None, typer.Option(help="Format of a model's weights; bf16.")] = None,
    activations: Annotated[str | None, typer.Option(help="Of its activations; bf16.")] = None,
    kv_cache: Annotated[str | None, typer.Option(help="Of its keys and values; bf16.")] = None,
    prefill: Annotated[int | None, typer.Option(min=1, help="Tokens of the prompt; 512.")] = None,
    decode: Annotated[
        int | None, typer.Option(min=1, max=100_000, help="Sequences that decode a token; 1.")
    ] = None,
    context: Annotated[int | None, typer.Option(min=0, help="Tokens cached of each of them; 512.")] = None,
    figure: Annotated[
        Path | None, typer.Option(help="Draw the model's work graph: a .png, .svg or .pdf file.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show a scenario after merging: every value, and where it comes from. Or a model: what it consists of,
    what it keeps in memory, and the work of a prefill and of a decode step."""
    asked = {"weights": weights, "activations": activations, "kv_cache": kv_cache,
             "prefill": prefill, "decode": decode, "context": context}  # fmt: skip
    given = {key: value for key, value in asked.items() if value is not None}
    if scenario is not None and model is None:
        keys = [f"--{key.replace('_', '-')}" for key in (*given, *(("figure",) if figure else ()))]
        _refuse(keys, "is for a model; leave it out, or take --model NAME")
        _show_scenario(scenario, set_ or (), as_json)
    elif model is not None and scenario is None:
        _refuse(["--set"] if set_ else [], "is for a SCENARIO; leave it out")
        _show_model(model, given, figure, as_json)
    else:
        _refuse(["show"], "takes a SCENARIO or --model NAME, one of the two")


def _refuse(keys: Sequence[str], advice: str) -> None:
    """Raise InputError about each of some options that were given, if any."""
    from simulator.errors import InputError, Problem

    if keys:
        raise InputError([Problem("command line", key=key, advice=advice) for key in keys])


def _show_scenario(scenario: Path, overrides: Sequence[str], as_json: bool) -> None:
    from simulator.study.show import merged

    rows = merged(scenario, overrides)
    if as_json:
        terminal.print_json([{"key": row.key, "value": row.value, "origin": row.origin} for row in rows])
        return
    from simulator.report.listing import print_table

    cells = [(row.key, row.value, row.origin) for row in rows]
    print_table(("key", "value", "from"), cells, terminal.console())


def _show_model(model: str, asked: dict[str, Any], figure: Path | None, as_json: bool) -> None:
    from simulator.study.model_question import ask
    from simulator.study.show_model import show_model

    question = ask(model, **asked)
    sheet = show_model(question)
    if figure is not None:
        _draw_model(question, figure)
    if as_json:
        terminal.print_json(sheet.as_dict())
        return
    from simulator.report.model_sheet import print_model

    console = terminal.console()
    print_model(sheet, console)
    if figure is not None:
        console.print(f"wrote {figure}", markup=False, highlight=False)


def _draw_model(question: Any, path: Path) -> None:
    from simulator.report.files import write_atomically
    from simulator.report.graph_figure import file_bytes, model_graph
    from simulator.study.folded_graph import folded_graph

    write_atomically(path, file_bytes(model_graph(folded_graph(question)), path))


@app.command(name="list")
def list_(
    kind: Annotated[
        str, typer.Argument(help="devices, classes, hosts, links, machines, models, engines or lengths.")
    ] = "machines",
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]...", help="Only these; all if none is named.")
    ] = None,
    sources: Annotated[
        bool,
        typer.Option("--sources", help="Instead, each figure of hardware files and its source."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List what the catalogue holds, and of hardware how well its figures are known."""
    if sources:
        _list_sources(kind, ids or (), as_json)
    else:
        _list_files(kind, ids or (), as_json)


def _list_files(kind: str, ids: Sequence[str], as_json: bool) -> None:
    from simulator.study.show import catalogued, kind_of

    entries = catalogued(kind_of(kind), ids)
    if as_json:
        terminal.print_json([each.as_dict() for each in entries])
        return
    from simulator.report.listing import print_catalogue

    print_catalogue(entries, terminal.console())


def _list_sources(kind: str, ids: Sequence[str], as_json: bool) -> None:
    from simulator.study.show import kind_of
    from simulator.study.sources import sourced

    figures = sourced(kind_of(kind), ids)
    if as_json:
        terminal.print_json([each.as_dict() for each in figures])
        return
    from simulator.report.listing import print_sources

    print_sources(figures, terminal.console())


@app.command()
def schema(
    kind: Annotated[
        str | None, typer.Argument(help="device, host, link, machine, model, engine, lengths or scenario.")
    ] = None,
) -> None:
    """Print the JSON Schema of a kind of file, or of all, for editors that complete and check YAML."""
    from simulator.study.show import schema_of

    terminal.print_json(schema_of(kind))


init = typer.Typer(no_args_is_help=True, help="Write a profile of hardware that the catalogue lacks.")
app.add_typer(init, name="init")

@init.command("device")
def init_device(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the files, such as my-card.")],
    kind: Annotated[str, typer.Option(help="gpu, accelerator or cpu: whose defaults it takes.")] = "gpu",
    title: Annotated[str | None, typer.Option(help="As its maker calls it; NAME if not given.")] = None,
    memory: Annotated[str | None, typer.Option(help="Capacity, as '48 GB'.")] = None,
    bandwidth: Annotated[str | None, typer.Option(help="Of its memory, as '864 GB/s'.")] = None,
    usable: Annotated[str | None, typer.Option(help="What programs can allocate of its memory.")] = None,
    cache: Annotated[str | None, typer.Option(help="Its last-level cache, as '96 MB'.")] = None,
    fp64: Annotated[str | None, typer.Option(help="Dense peak, as '1.4 TFLOP/s'; so the next eight.")] = None,
    fp32: Annotated[str | None, typer.Option()] = None,
    tf32: Annotated[str | None, typer.Option()] = None,
    bf16: Annotated[str | None, typer.Option()] = None,
    fp16: Annotated[str | None, typer.Option()] = None,
    fp8: Annotated[str | None, typer.Option()] = None,
    int8: Annotated[str | None, typer.Option(help="As '733 TOP/s'.")] = None,
    fp4: Annotated[str | None, typer.Option()] = None,
    int4: Annotated[str | None, typer.Option()] = None,
    power: Annotated[str | None, typer.Option(help="Under full load, as '350 W'.")] = None,
    idle: Annotated[str | None, typer.Option(help="Doing nothing, as '25..50 W'.")] = None,
    price: Annotated[str | None, typer.Option(help="As '7_500..9_000 USD'.")] = None,
    generation: Annotated[str | None, typer.Option(help="Architecture, as ada.")] = None,
    units: Annotated[int | None, typer.Option(help="Its multiprocessors, compute units or cores.")] = None,
    source: Annotated[str | None, typer.Option(help="Title of the data sheet; else all is assumed.")] = None,
    date: Annotated[str | None, typer.Option(help="Of the data sheet, as 2026-03.")] = None,
    host: Annotated[str | None, typer.Option(help="Of the machine; epyc-9654-2s if not given.")] = None,
    host_link: Annotated[str | None, typer.Option(help="To its host; pcie-gen5-x16.")] = None,
    network: Annotated[str | None, typer.Option(help="To the clients; eth-100.")] = None,
    count: Annotated[int, typer.Option(min=1, max=1024, help="How many the machine has.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder in which hardware_profiles/ is or will be.")] = Path(),
    force: Annotated[bool, typer.Option("--force", help="Write over files that are there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a commented profile of a device, and a machine that holds it. Without a data sheet's figures, a
    form to fill in."""
    from simulator.report.files import make_folder, write_atomically
    from simulator.study.data_sheet import DataSheet, Surroundings
    from simulator.study.init import init_device as draft_of

    given = {
        "generation": generation, "units": units, "memory.capacity": memory, "memory.bandwidth": bandwidth,
        "memory.usable": usable, "memory.cache": cache, "compute.fp64": fp64, "compute.fp32": fp32,
        "compute.tf32": tf32, "compute.bf16": bf16, "compute.fp16": fp16, "compute.fp8": fp8,
        "compute.int8": int8, "compute.fp4": fp4, "compute.int4": int4, "power.idle": idle,
        "power.max": power, "price.purchase": price,
    }  # fmt: skip
    if kind == "cpu":
        options = {"--host": host, "--host-link": host_link, "--count": None if count == 1 else count}
        _refuse([key for key, value in options.items() if value is not None],
                "a processor gets a host of its own; leave it out")  # fmt: skip
    figures = {key: value for key, value in given.items() if value is not None}
    named = {"host": host, "host_link": host_link, "network": network}
    around = Surroundings(count=count, **{key: value for key, value in named.items() if value is not None})
    draft = draft_of(DataSheet(name, kind, title, figures, source, date), around, out, force=force)
    for path, text in draft.files:
        make_folder(path.parent)
        write_atomically(path, text)
    if as_json:
        terminal.print_json(draft.as_dict())
        return
    from simulator.report.listing import print_draft

    print_draft(draft, terminal.console())


if __name__ == "__main__":
    main()

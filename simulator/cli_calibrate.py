"""The commands of `calibrate`: numbers of devices from measurements."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simulator import terminal
from simulator.terminal import AsJson

if TYPE_CHECKING:
    from simulator.study.calibration.calibrate import FittedDevice
    from simulator.study.calibration.calibrate_link import FittedLink

calibrate_app = typer.Typer(no_args_is_help=True, help="Turn measured operators into device profiles.")


@calibrate_app.command()
def measure(
    name: Annotated[str, typer.Option(help="Id of the files that it writes.")] = "this-machine",
    out: Annotated[
        Path, typer.Option(help="Folder to write into. Runs look for profiles in the working folder.")
    ] = Path("."),
    seconds: Annotated[
        float, typer.Option(min=10, max=170, help="About how long to measure; longer is more exact.")
    ] = 100,
    threads: Annotated[
        int | None, typer.Option(min=1, max=4096, help="That PyTorch computes with; as it chooses.")
    ] = None,
    no_compare: Annotated[
        bool, typer.Option("--no-compare", help="Do not try the profile on real steps of small models.")
    ] = False,
    no_gpu: Annotated[bool, typer.Option("--no-gpu", help="Leave a GPU out, if there is one.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure this machine: write a profile that runs take, and compare real steps with simulated ones."""
    from simulator.report.files import make_folder, write_atomically
    from simulator.study.calibration import measure as calibration

    calibration.check_name(name)
    if not force:
        calibration.refuse_existing(name, out)
    with terminal.progress_of_seconds("Measuring") as progress:
        measured = calibration.measure(name, seconds, not no_compare, threads, not no_gpu, progress)
    for path, text in measured.texts.items():
        make_folder((out / path).parent)
        write_atomically(out / path, text)
    if as_json:
        terminal.print_json(measured.as_dict())
        return
    from simulator.report.measured import print_measured

    print_measured(measured, terminal.console())
    for path in measured.texts:
        terminal.console().print(f"wrote {out / path}", markup=False, highlight=False)


@calibrate_app.command()
def fit(
    tables: Annotated[
        list[Path] | None,
        typer.Argument(metavar="TABLE...", help="Measured kernels; docs/calibrate.md says how."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Id of the device that was measured; see `list devices`.")
    ] = None,
    link: Annotated[
        str | None,
        typer.Option(help="Fit this link to the table's collectives, and its copies to and from the device."),
    ] = None,
    silicon: Annotated[
        bool, typer.Option("--silicon", help="Take vLLM's tables of NVIDIA's databases (extra `silicon`).")
    ] = False,
    ref: Annotated[
        str | None, typer.Option(help="Where the measurements come from, for the profile's sources.")
    ] = None,
    date: Annotated[
        str | None, typer.Option(help="When they were made: YYYY, YYYY-MM or YYYY-MM-DD.")
    ] = None,
    out: Annotated[
        Path,
        typer.Option(help="Folder whose profile to change. Runs look for profiles in the working folder."),
    ] = Path("."),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the numbers and write nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Fit a device's or a link's numbers to measured tables, and write them into its profile."""
    from simulator.report.files import make_folder, write_atomically

    fitted = _fitted(tables or [], device, link, silicon, ref, date, out)
    path = out / fitted.path
    if not dry_run:
        make_folder(path.parent)
        write_atomically(path, fitted.text)
    if as_json:
        terminal.print_json(fitted.as_dict())
        return
    from simulator.report.fitted import print_fitted

    print_fitted(fitted, terminal.console())
    terminal.console().print(
        f"would write {path}" if dry_run else f"wrote {path}", markup=False, highlight=False
    )


def _fitted(
    tables: list[Path], device: str | None, link: str | None, silicon: bool, ref: str | None,
    date: str | None, out: Path,
) -> FittedDevice | FittedLink:  # fmt: skip
    from simulator.study.calibration.calibrate import fit_device
    from simulator.study.calibration.calibrate_link import fit_link
    from simulator.study.calibration.silicon import SILICON_REF, silicon_tables

    if silicon == bool(tables):
        raise typer.BadParameter("name one TABLE or more, or say --silicon")
    if silicon and link is not None:
        raise typer.BadParameter("--silicon has tables of devices; name a TABLE of the link")
    if link is not None:
        return fit_link(tables, link, device, ref, date, out)
    if device is None:
        raise typer.BadParameter("say what was measured: --device or --link")
    if silicon:
        tables, ref = list(silicon_tables(device, ("vllm",))), ref or SILICON_REF
    return fit_device(tables, device, ref, date, out)

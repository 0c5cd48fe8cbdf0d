"""A scenario file multiplied out into its runs: layers, axes, strategies, references."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Union

from pydantic import Field, ValidationError, create_model

from simulator.errors import InputError, Problem
from simulator.specs.axes import Choice, choices, find_axes
from simulator.specs.base import Case, LoadContext, Spec, Uncertain, is_path
from simulator.specs.catalogue import Catalogue, Kind
from simulator.specs.engine import EngineMemory, SchedulerSettings, changes_of
from simulator.specs.layers import base_folder, read_layers
from simulator.specs.load import in_file_order, try_validate
from simulator.specs.machine import INLINE, crowding_problems, reference_problems
from simulator.specs.provenance import Figure, figures_of
from simulator.specs.scenario_file import Cost, Fidelity, PrecisionChoice, Routing, ScenarioFile
from simulator.specs.workload import Workload
from simulator.specs.yaml_file import Document, Loc, dotted, plain

__all__ = ["Cost", "PrecisionChoice", "RunSpec", "Scenario", "ScenarioFile", "load_scenario", "scenario_type"]

FILES: tuple[Kind, ...] = ("models", "lengths")
"""Kinds that a scenario may also name by a path."""

_LISTED = ("machine", "placements")
"""Keys whose entries multiply the runs one by one; an axis inside an entry multiplies that entry only."""


@dataclass(frozen=True)
class RunSpec:
    """One simulation of one placement under one workload, fully said."""

    machine_ref: str | Mapping[str, Any]
    """What `load_machine` takes."""
    machine_name: str
    """Its id; for a machine written in place its name, else `inline`, or `inline-1` and so on of several."""
    model: str
    """Id or path, as `load_model` takes it."""
    engine: str
    precision: PrecisionChoice
    placement: Spec
    workload: Workload
    slo: Mapping[str, float]
    """Longest acceptable seconds by metric."""
    cost: Cost
    seed: int
    fidelity: Fidelity
    scheduler: Mapping[str, Any]
    """Settings of the engine's scheduler that differ from its profile."""
    memory: Mapping[str, Any]
    """And of its memory."""
    kv_blocks: int | None
    """As the engine reported them."""
    routing: Routing
    bands: bool
    """Whether ranges are gone through."""
    axes: Mapping[str, Any]
    """What distinguishes this run, by dotted key: SI floats, counts, words."""


@dataclass(frozen=True)
class Scenario:
    """A scenario file, checked and multiplied out."""

    name: str
    path: Path
    runs: tuple[RunSpec, ...]
    """Machines outermost, then other axes in file order, placements innermost."""
    figures: tuple[Figure, ...]
    """Figures of the file itself that are ranges, such as an electricity price."""
    document: Document
    """The merged file; its marks tell where each value comes from."""


def load_scenario(
    path: str | Path,
    strategies: Sequence[type[Spec]],
    overrides: Sequence[str] = (),
    *,
    catalogue: Catalogue | None = None,
    case: Case = "nominal",
) -> Scenario:
    """The scenario in a file and every run it asks for; raises InputError with every problem.

    `strategies` are the records a placement may be, told apart by their literal `strategy`.
    `overrides` are `key=value` as on the command line.
    """
    path = Path(path)
    document = read_layers(path, overrides)
    folders = tuple(dict.fromkeys((path.parent, base_folder(path), Path.cwd())))
    reader = _Reader(document, scenario_type(tuple(strategies)), catalogue or Catalogue(), case, folders)
    runs = reader.runs()
    figures = figures_of({each.loc: each for each in reader.uncertain}.values(), {})
    return Scenario(str(document.data["name"]), path, runs, figures, document)


@lru_cache
def scenario_type(strategies: tuple[type[Spec], ...]) -> type[ScenarioFile]:
    """ScenarioFile whose placements are one of `strategies`."""
    one: Any = Union[strategies]  # noqa: UP007 - built from a tuple
    if len(strategies) > 1:
        one = Annotated[one, Field(discriminator="strategy")]
    scheduler: Any = SCHEDULER_CHANGES | None
    memory: Any = MEMORY_CHANGES | None
    several: Any = Annotated[list[one], Field(min_length=1)]
    return create_model(
        "ScenarioFile", __base__=ScenarioFile, __doc__=ScenarioFile.__doc__, placements=(several, ...),
        scheduler=(scheduler, None), memory=(memory, None),
    )  # fmt: skip


@dataclass(frozen=True)
class _Entry:
    """One entry of `machine` or `placements` after its own axes were chosen."""

    choice: Choice
    loc: Loc
    """Of the entry in the file."""
    axes: tuple[Loc, ...]


class _Reader:
    """Reads one merged scenario; collects problems until all are known."""

    def __init__(
        self,
        document: Document,
        file_type: type[ScenarioFile],
        catalogue: Catalogue,
        case: Case,
        folders: tuple[Path, ...],
    ) -> None:
        self.document = document
        self.file_type = file_type
        self.catalogue = catalogue
        self.case = case
        self.folders = folders
        self.problems: list[Problem] = []
        self.uncertain: list[Uncertain] = []
        self.axes = self._axes()
        self.entries = {key: self._entries(key) for key in _LISTED}
        self.inline_names = self._inline_names()

    def runs(self) -> tuple[RunSpec, ...]:
        own = [axis for axis in self.axes if axis[0] not in _LISTED]
        files = [(choice, self._file(choice)) for choice in choices(self._with_entries(), own)]
        if self.problems:
            raise InputError(in_file_order(self.problems))
        sound = [(choice, file) for choice, file in files if file is not None]
        return tuple(
            self._run(choice, file, machine, placement)
            for machine in range(len(self.entries["machine"]))
            for choice, file in sound
            for placement in range(len(self.entries["placements"]))
        )

    def _axes(self) -> list[Loc]:
        """Every axis of the file; one that makes no sense is a problem."""
        axes = find_axes(self.document.data, self.file_type) + self._axes_of_single_entries()
        empty = [axis for axis in axes if not self.document.at(axis)]
        self.problems += [
            self.document.problem(axis, "an empty list; write at least one value") for axis in empty
        ]
        single = [axis for axis in axes if axis in (("name",), ("extends",))]
        self.problems += [self.document.problem(axis, "write one text, not a list") for axis in single]
        if self.problems:
            raise InputError(self.problems)
        return axes

    def _axes_of_single_entries(self) -> list[Loc]:
        """Axes inside a machine or placement that is written without a list around it."""
        data = self.document.data
        alone = {key: [data[key]] for key in _LISTED if isinstance(data.get(key), dict)}
        return [(loc[0], *loc[2:]) for loc in find_axes(alone, self.file_type)]

    def _entries(self, key: str) -> list[_Entry]:
        listed = self.document.data.get(key)
        if isinstance(listed, list):
            return [entry for index, each in enumerate(listed) for entry in self._choices(each, (key, index))]
        return [] if listed is None else self._choices(listed, (key,))

    def _choices(self, data: Any, loc: Loc) -> list[_Entry]:
        axes = tuple(axis for axis in self.axes if axis[: len(loc)] == loc)
        inner = [axis[len(loc) :] for axis in axes]
        return [_Entry(choice, loc, axes) for choice in choices(data, inner)]

    def _with_entries(self) -> dict[str, Any]:
        """The file with the entries of both lists multiplied out."""
        chosen = {key: [entry.choice.data for entry in self.entries[key]] for key in _LISTED}
        present = {key: entries for key, entries in chosen.items() if key in self.document.data}
        return {**self.document.data, **present}

    def _original(self, choice: Choice, loc: Loc) -> Loc:
        """The place in the file of what stands at `loc` after all choices."""
        if len(loc) > 1 and loc[0] in _LISTED and isinstance(loc[1], int):
            entry = self.entries[str(loc[0])][loc[1]]
            return (*entry.loc, *entry.choice.original(loc[2:]))
        return choice.original(loc)

    def _file(self, choice: Choice) -> ScenarioFile | None:
        """The record of one combination, with the problems noted."""
        context = LoadContext(self.case, self.folders)
        chosen = Document(self.document.path, choice.data, {})
        file, problems = try_validate(
            chosen, self.file_type, context, lambda loc: self._original(choice, loc), self.document
        )
        self.problems += problems
        self.uncertain += context.uncertain
        self.problems += self._unknown_ids(choice)
        if file is not None:
            self.problems += self._unknown_parts(file, choice)
            self.problems += self._unlike_settings(file, choice)
        return file

    def _unknown_ids(self, choice: Choice) -> list[Problem]:
        """Ids that name nothing, whatever else is wrong with the file."""
        chosen = Document(self.document.path, choice.data, {})
        places: list[tuple[Kind, Loc]] = [
            ("engines", ("engine",)),
            ("models", ("model",)),
            ("lengths", ("workload", "lengths", "histogram")),
        ]
        machines = choice.data.get("machine")
        listed = len(machines) if isinstance(machines, list) else 0
        places += [("machines", ("machine", index)) for index in range(listed)]
        placements = choice.data.get("placements")
        drafts = len(placements) if isinstance(placements, list) else 0
        places += [("models", ("placements", index, "draft")) for index in range(drafts)]
        named = [(kind, chosen.at(loc), loc) for kind, loc in places]
        return [
            self.document.problem(self._original(choice, loc), self.catalogue.advice(kind, name), value=name)
            for kind, name, loc in named
            if isinstance(name, str) and not (kind in FILES and is_path(name))
            and self.catalogue.find(kind, name) is None
        ]  # fmt: skip

    def _unknown_parts(self, file: ScenarioFile, choice: Choice) -> list[Problem]:
        """Parts of machines written in place that name nothing, or are too many for their host."""
        found: list[Problem] = []
        for index, machine in enumerate(file.machine):
            if not isinstance(machine, str):
                top = self._original(choice, ("machine", index))
                found += reference_problems(machine, self.document, self.catalogue, top)
                found += crowding_problems(machine, self.document, self.catalogue, self.case, top)
        return found

    def _unlike_settings(self, file: ScenarioFile, choice: Choice) -> list[Problem]:
        """Settings of the engine that do not go together with the others of its profile."""
        if self.catalogue.find("engines", file.engine) is None or not (file.scheduler or file.memory):
            return []
        engine = self.catalogue.engine(file.engine, self.case).record
        changes = _changes(file.scheduler)
        found = []
        try:
            SchedulerSettings.model_validate(engine.scheduler.model_dump() | dict(changes))
        except ValidationError as error:
            for each in error.errors():
                blamed = str(each.get("ctx", {}).get("key"))
                key = blamed if blamed in changes else next(iter(changes))
                found.append((key, f"with the other settings of {file.engine}, {blamed} {each['msg']}"))
        host_kv = _changes(file.memory).get("host_kv_bytes", engine.memory.host_kv_bytes)
        if changes.get("preemption") == "swap" and not host_kv:
            found.append(("preemption", "needs room in host memory: say how much as memory.host_kv"))
        return [
            self.document.problem(self._original(choice, ("scheduler", key)), advice, value=changes[key])
            for key, advice in found
        ]

    def _inline_names(self) -> dict[Loc, str]:
        """What machines written in place without a name are called, by their place."""
        nameless = [
            entry.loc
            for entry in self.entries["machine"]
            if isinstance(entry.choice.data, dict) and not entry.choice.data.get("name")
        ]
        places = list(dict.fromkeys(nameless))
        if len(places) == 1:
            return {places[0]: INLINE}
        return {loc: f"{INLINE}-{number}" for number, loc in enumerate(places, start=1)}

    def _run(self, choice: Choice, file: ScenarioFile, machine: int, placement: int) -> RunSpec:
        entry = self.entries["machine"][machine]
        record = file.machine[machine]
        ref = record if isinstance(record, str) else plain(entry.choice.data)
        name = record if isinstance(record, str) else record.name or self.inline_names[entry.loc]
        several = isinstance(self.document.data["machine"], list) and len(self.document.data["machine"]) > 1
        axes = {"machine": name} if several else {}
        axes |= self._columns("machine", machine, record)
        axes |= {dotted(axis): _value(file, choice.data, axis) for axis in choice.picked}
        axes |= self._columns("placements", placement, file.placements[placement])
        return RunSpec(
            machine_ref=ref,
            machine_name=name,
            model=file.model,
            engine=file.engine,
            precision=file.precision,
            placement=file.placements[placement],
            workload=file.workload,
            slo=file.slo,
            cost=file.cost,
            seed=file.seed,
            fidelity=file.fidelity,
            scheduler=_changes(file.scheduler),
            memory=_changes(file.memory),
            kv_blocks=file.kv_blocks,
            routing=file.routing,
            bands=file.bands,
            axes=axes,
        )

    def _columns(self, key: str, index: int, record: Any) -> dict[str, Any]:
        """The axes inside one entry, as `placement.degree` or `machine.devices.l40s`."""
        entry = self.entries[key][index]
        prefix = key.removesuffix("s")
        return {
            f"{prefix}.{dotted(axis)}": _value(record, entry.choice.data, axis)
            for axis in entry.choice.picked
        }


SCHEDULER_CHANGES, MEMORY_CHANGES = changes_of(SchedulerSettings), changes_of(EngineMemory)


def _changes(record: Spec | None) -> Mapping[str, Any]:
    """What a record of changes says."""
    return {} if record is None else record.model_dump(exclude_none=True)


def _value(record: Any, data: Any, loc: Loc) -> Any:
    """What an axis picked: the checked value if it is a single one, else the text of the file."""
    for step in loc:
        record = _inside(record, step)
        data = data[step]
    if record is None or isinstance(record, str | int | float):
        return record
    return _label(plain(data))


def _inside(record: Any, step: str | int) -> Any:
    if isinstance(record, Spec):
        names = {info.alias or name: name for name, info in type(record).model_fields.items()}
        return getattr(record, names[str(step)])
    return record[step]


def _label(data: Any) -> str:
    """A mapping in a table's cell: `process=poisson, rate=4 req/s`."""
    if isinstance(data, Mapping):
        return ", ".join(f"{key}={_label(value)}" for key, value in data.items())
    return str(data)

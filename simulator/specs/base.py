"""What every record of a file shares: frozen, no unknown keys, docstrings as its reference."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from simulator.specs.yaml_file import Loc

Case = Literal["nominal", "best", "worst"]
"""Which end of every range a load takes, seen by whoever owns the machine."""

Affects = Literal["time", "money", "energy"]

KeyPath = str
"""Keys joined by dots, as in `memory.bandwidth`."""


@dataclass(frozen=True)
class Uncertain:
    """A range or an `unknown`, as met while a file was read."""

    loc: Loc
    low: float | None
    high: float | None
    affects: Affects


@dataclass
class LoadContext:
    """What validators of one load may look at, and what they leave behind."""

    case: Case = "nominal"
    folders: tuple[Path, ...] = ()
    """Where file names inside the file are looked up, in this order."""
    uncertain: list[Uncertain] = field(default_factory=list)
    known_keys: dict[int, tuple[str, ...]] = field(default_factory=dict)
    """Keys allowed in a mapping, by the mapping's identity: what `did you mean` chooses from."""


class Spec(BaseModel):
    """Base of every record that a file may hold.

    Files use the aliases (`capacity: 80 GiB`); code that builds a record itself uses the field
    names and plain SI floats (`Memory(capacity_bytes=80e9, ...)`).
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_by_name=True,
        validate_by_alias=True,
        allow_inf_nan=False,
    )

    needs_sources: ClassVar[bool] = False
    """Whether every figure of such a file must name its source."""
    without_source: ClassVar[frozenset[str]] = frozenset()
    """Keys that hold no figure: names, kinds, ids."""

    @model_validator(mode="before")
    @classmethod
    def _note_keys(cls, data: Any, info: ValidationInfo) -> Any:
        context = context_of(info)
        if context is not None and isinstance(data, dict):
            context.known_keys[id(data)] = cls.keys()
        return data

    @classmethod
    def keys(cls) -> tuple[str, ...]:
        """The keys a file may use, in order."""
        return tuple(field.alias or name for name, field in cls.model_fields.items())


def context_of(info: ValidationInfo) -> LoadContext | None:
    """The context of a load; None when code builds the record itself."""
    return info.context if isinstance(info.context, LoadContext) else None


def rule_broken(advice: str, key: str | None = None) -> PydanticCustomError:
    """The error a validator raises; `key` names the field below that is to blame."""
    return PydanticCustomError("rule_broken", advice, {"key": key} if key else None)


def is_identifier(name: str) -> bool:
    """Whether `name` can be the id of a catalogue file."""
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,199}", name) is not None


def is_file(path: Path) -> bool:
    """Whether there is such a file; a path that the system cannot even look up names none."""
    try:
        return path.is_file()
    except OSError:
        return False


def is_path(ref: str) -> bool:
    """Whether a reference names a file and not an id."""
    return ref.endswith((".json", ".yaml", ".yml"))


def existing_file(name: str, info: ValidationInfo) -> str:
    """The path of a file named in a file: looked up beside it, then in the working folder."""
    context = context_of(info)
    if context is None:
        return name
    found = [folder / name for folder in context.folders if is_file(folder / name)]
    if not found:
        raise rule_broken(f"no such file; looked in {', '.join(str(each) for each in context.folders)}")
    return str(found[0])


InputFile = Annotated[str, AfterValidator(existing_file)]
"""A path as written, resolved to a file that exists."""

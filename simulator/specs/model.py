"""Model files: an architecture by the field names of a Hugging Face `config.json`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from simulator.errors import InputError, Problem
from simulator.specs.architecture import Architecture
from simulator.specs.base import LoadContext, Spec, is_path
from simulator.specs.catalogue import Catalogue
from simulator.specs.config_fields import ConfigFields
from simulator.specs.families import READERS
from simulator.specs.load import validate
from simulator.specs.provenance import Sources
from simulator.specs.yaml_file import Document, Loc, read_document


class ModelFile(Spec):
    """One model: a published configuration, verbatim."""

    without_source: ClassVar = frozenset({"name"})

    name: str
    """As its makers call it."""
    config: dict[str, Any]
    """The fields of its Hugging Face `config.json`; fields that change no result may be left out."""
    sources: Sources
    """Where the configuration comes from."""


def load_model(ref: str | Path, catalogue: Catalogue) -> Architecture:
    """The architecture of an id, a model file or a `config.json`; raises InputError with every problem."""
    path = Path(ref) if is_path(str(ref)) else catalogue.path("models", str(ref))
    document = read_document(path)
    if path.suffix == ".json":
        folder = path.resolve().parent.name
        return _architecture(document, (), folder if path.stem == "config" else path.stem)
    file = validate(document, ModelFile, LoadContext()).record
    return _architecture(document, ("config",), file.name)


def model_asked_for(ref: str | Path, catalogue: Catalogue) -> Architecture:
    """The architecture that `--model` of a command names; a name that does not exist is the command's."""
    if not is_path(str(ref)) and catalogue.find("models", str(ref)) is None:
        advice = catalogue.advice("models", str(ref))
        raise InputError([Problem("command line", key="--model", value=ref, advice=advice)])
    return load_model(ref, catalogue)


def from_config(config: Mapping[str, Any], name: str) -> Architecture:
    """The architecture that a Hugging Face configuration describes.

    Raises InputError naming every field that is missing, wrong, or asks for something that is not
    modelled and would change results.
    """
    return _architecture(Document(f"config of {name}", dict(config), {}), (), name)


def _architecture(document: Document, prefix: Loc, name: str) -> Architecture:
    """The architecture in the mapping at `prefix`; problems carry its positions."""
    fields = ConfigFields(document, prefix)
    read = READERS.get(fields.family(tuple(READERS)))
    architecture = read(fields, name) if read else None
    if architecture is None or fields.problems:
        raise InputError(fields.problems)
    return architecture

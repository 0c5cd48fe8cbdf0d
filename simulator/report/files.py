"""Writing a report to a file: whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simulator.errors import InputError, Problem


def write_atomically(path: Path | str, content: bytes | str) -> None:
    """Put `content` at `path` in one move, so that nobody ever reads half a file; text is UTF-8.

    A link is followed, a device or pipe is written to. Raises InputError where it cannot be written.
    """
    target = Path(os.path.realpath(path))
    data = content.encode() if isinstance(content, str) else content
    if target.is_dir():
        raise InputError([Problem(path, advice="is a folder; name a file in it")])
    if not target.parent.is_dir():
        raise InputError([Problem(path, advice=f"there is no folder {target.parent}; create it first")])
    try:
        if target.exists() and not target.is_file():
            target.write_bytes(data)
        else:
            _replace(target, data)
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        advice = f"cannot be written ({why}); choose another folder or change its permissions"
        raise InputError([Problem(path, advice=advice)]) from error


def make_folder(path: Path | str) -> None:
    """Make a folder and those above it; one that is there already is fine. Raises InputError."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        advice = f"cannot be made a folder ({why}); choose another"
        raise InputError([Problem(path, advice=advice)]) from error


def write_json(path: Path | str, document: Mapping[str, Any]) -> None:
    """Write one JSON document, with a newline at its end."""
    write_atomically(path, json.dumps(document, ensure_ascii=False, allow_nan=False) + "\n")


def _replace(target: Path, data: bytes) -> None:
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)

"""Writes fitted numbers into the text of a device's profile, leaving the rest of it as it is, comments
too."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import yaml

from simulator.errors import InputError, Problem
from simulator.specs.hardware import Efficiency
from simulator.specs.yaml_file import read_text
from simulator.study.calibration.fit import PLAIN, FittedClass

INDENT = "  "
LEAST = 1e-6
LEAST_CHAIN_S = 1e-12
"""For each number; the longest chains take nothing at less than this."""


def with_numbers(path: Path, fitted: Sequence[FittedClass], ref: str, date: str | None) -> str:
    """The text of the profile in a file with the fitted classes in `efficiency` and where they come from in
    `sources`; what it says of those classes is replaced, all else stays. Raises InputError where the file is
    written in a way that cannot be changed in its place."""
    numbers = {each.key: efficiency_line(each.efficiency) for each in fitted}
    sources = {f"efficiency.{each.key}": source_line(each, ref, date, each.note) for each in fitted}
    return with_entries(path, {"efficiency": numbers, "sources": sources})


def with_entries(
    path: Path, sections: Mapping[str, Mapping[str, str]], top: Mapping[str, str] | None = None
) -> str:
    """The text of a profile with entries, as YAML, at its `top` and in some of the mappings there; raises
    InputError where the file is written in a way that cannot be changed in its place."""
    text = read_text(path)
    expected = {**yaml.safe_load(text), **_read(top or {})}
    _refuse_flow(path, text)
    text = _with_top(text, top or {})
    for section, entries in sections.items():
        _refuse_flow(path, text, section)
        text = _with_entries(text, section, entries)
        if entries:
            expected[section] = {**(expected.get(section) or {}), **_read(entries)}
    if _reread(text) != expected:
        advice = "nothing can be put into a file written like this; write mappings as lines `key: value`"
        raise InputError([Problem(path, advice=advice)])
    return text


def _read(entries: Mapping[str, str]) -> dict[str, Any]:
    return {key: yaml.safe_load(value) for key, value in entries.items()}


def _reread(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None


def _refuse_flow(path: Path, text: str, section: str | None = None) -> None:
    """Nothing can be put into the braces of a section, or of the whole file."""
    found = _root(text) if section is None else _section(text, section)
    if found is not None and found.flow_style and found.value:
        advice = "write it as lines `key: value` without braces, so that numbers can be put there"
        raise InputError([Problem(path, found.start_mark.line + 1, None, section, "{...}", advice)])


def efficiency_line(efficiency: Efficiency) -> str:
    """The numbers as a profile writes them, those left out that say nothing."""
    parts = [
        f"compute: {short(efficiency.compute)}", f"memory: {short(efficiency.memory)}",
        f"overhead: {short(efficiency.overhead_s * 1e6)} us", f"blend: {short(efficiency.blend)}",
    ]  # fmt: skip
    has_chain = efficiency.chain_s >= LEAST_CHAIN_S
    if has_chain:
        parts.append(f"chain: {short(efficiency.chain_s * 1e9)} ns")
    if has_chain and efficiency.chain_most is not None:
        parts.append(f"chain_most: {round(efficiency.chain_most)}")
    if round(efficiency.block):
        parts.append(f"block: {round(efficiency.block)}")
    if efficiency.split_s:
        parts.append(f"split: {short(efficiency.split_s * 1e6)} us")
    if efficiency.regroup_s:
        parts.append(f"regroup: {short(efficiency.regroup_s * 1e6)} us")
    if round(efficiency.joint):
        parts.append(f"joint: {round(efficiency.joint)}")
    if efficiency.cached_bytes_per_s:
        parts.append(f"cached: {short(efficiency.cached_bytes_per_s / 1e9)} GB/s")
    return "{" + ", ".join(parts) + "}"


def short(value: float) -> str:
    """Three significant digits, never in powers of ten; what is below a millionth is nothing."""
    digits = f"{float(f'{value:.3g}'):.10f}".rstrip("0").rstrip(".")
    return digits if digits and abs(value) >= LEAST else "0"


def rounded(efficiency: Efficiency) -> Efficiency:
    """The numbers that the line of a profile stands for."""
    raw: Mapping[str, Any] = yaml.safe_load(efficiency_line(efficiency))
    scale = {"overhead": 1e-6, "chain": 1e-9, "split": 1e-6, "regroup": 1e-6, "cached": 1e9}
    names = {"overhead": "overhead_s", "chain": "chain_s", "split": "split_s", "regroup": "regroup_s",
             "cached": "cached_bytes_per_s"}  # fmt: skip
    values = {
        names.get(key, key): float(str(value).split()[0]) * scale[key] if key in scale else value
        for key, value in raw.items()
    }
    return PLAIN.model_copy(update=values)


class Scored(Protocol):
    """Numbers that were fitted, and how far the rows they were fitted to are from them."""

    @property
    def samples(self) -> int: ...
    @property
    def median_error(self) -> float: ...
    @property
    def p90_error(self) -> float: ...


def source_line(fitted: Scored, ref: str, date: str | None, note: str = "") -> str:
    """Where numbers come from, as `sources` has it."""
    fields = ["kind: measured", f"ref: {json.dumps(ref, ensure_ascii=False)}", *_dated(date),
              f"samples: {fitted.samples}", f"median_error: {_percent(fitted.median_error)}",
              f"p90_error: {_percent(fitted.p90_error)}"]  # fmt: skip
    if note:
        fields.append(f"note: {json.dumps(note, ensure_ascii=False)}")
    return "{" + ", ".join(fields) + "}"


def _dated(date: str | None) -> list[str]:
    """A day stands as it is; a year or a month would be read as a number or as text that is none."""
    return [] if date is None else [f"date: {date}" if date.count("-") == 2 else f'date: "{date}"']


def _percent(share: float) -> str:
    return f"{share:.1%}"


def _with_top(text: str, entries: Mapping[str, str]) -> str:
    """`text` with entries of its own: each where it was, a new one before `sources`."""
    for key, value in entries.items():
        lines = text.splitlines()
        old = {name.value: (name.start_mark.line, _last_line(node)) for name, node in _root(text).value}
        start, _ = old.get("sources", (len(lines), 0))
        first, last = old.get(key, (start, start - 1))
        entry = f"{key}: {value}".replace(": \n", ":\n")
        text = "\n".join([*lines[:first], entry, *lines[last + 1 :]]) + "\n"
    return text


def _with_entries(text: str, section: str, entries: Mapping[str, str]) -> str:
    """`text` with lines `key: value` in one of its mappings, in place of those with the same keys."""
    if not entries:
        return text
    lines = text.splitlines()
    at = _section(text, section)
    if at is None or not at.value:
        return _with_section(lines, section, entries)
    old = {key.value: (key.start_mark.line, _last_line(value)) for key, value in at.value}
    replaced = [key for key in old if key in entries]
    kept = set(range(len(lines))) - {n for key in replaced for n in range(old[key][0], old[key][1] + 1)}
    end = max(last for _, last in old.values())
    new = _written(entries, " " * at.value[0][0].start_mark.column)
    before = [lines[n] for n in range(end + 1) if n in kept]
    return "\n".join([*before, *new, *lines[end + 1 :]]) + "\n"


def _with_section(lines: Sequence[str], section: str, entries: Mapping[str, str]) -> str:
    """Lines with a section that they lack, or have with nothing in it."""
    new = [f"{section}:", *_written(entries, INDENT)]
    is_there = [n for n, line in enumerate(lines) if line.startswith(f"{section}:")]
    if is_there:
        return "\n".join([*lines[: is_there[0]], *new, *lines[is_there[0] + 1 :]]) + "\n"
    at = next((n for n, line in enumerate(lines) if line.startswith("sources:")), len(lines))
    return "\n".join([*lines[:at], *new, *lines[at:]]) + "\n"


def _written(entries: Mapping[str, str], indent: str) -> list[str]:
    return [f"{indent}{key}: {value}" for key, value in entries.items()]


def _section(text: str, name: str) -> yaml.MappingNode | None:
    """A mapping at the top of a document; None where there is none, or nothing in it."""
    for key, value in _root(text).value:
        if key.value == name and isinstance(value, yaml.MappingNode):
            return value
    return None


def _root(text: str) -> yaml.MappingNode:
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode), "a profile that has been read is a mapping"
    return root


def _last_line(node: yaml.Node) -> int:
    """The line a node ends on; a block's end mark stands on the line after it."""
    end = node.end_mark
    return end.line - 1 if end.column == 0 and end.line > node.start_mark.line else int(end.line)

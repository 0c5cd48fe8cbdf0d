"""Writes fitted numbers into the text of a device's profile, leaving the rest of it as it is, comments
too."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from simulator.specs.hardware import Efficiency
from simulator.specs.yaml_file import read_text
from simulator.study.calibration.fit import PLAIN, FittedClass

INDENT = "  "


def with_numbers(path: Path, fitted: Sequence[FittedClass], ref: str, date: str | None) -> str:
    """The text of the profile in a file with the fitted classes in `efficiency` and where they come from in
    `sources`; what it says of those classes is replaced, all else stays."""
    numbers = {each.key: efficiency_line(each.efficiency) for each in fitted}
    sources = {f"efficiency.{each.key}": source_line(each, ref, date) for each in fitted}
    text = _with_entries(read_text(path), "efficiency", numbers)
    return _with_entries(text, "sources", sources)


def efficiency_line(efficiency: Efficiency) -> str:
    """The numbers as a profile writes them, those left out that say nothing."""
    parts = [
        f"compute: {_short(efficiency.compute)}", f"memory: {_short(efficiency.memory)}",
        f"overhead: {_short(efficiency.overhead_s * 1e6)} us", f"blend: {_short(efficiency.blend)}",
    ]  # fmt: skip
    if efficiency.chain_s:
        parts.append(f"chain: {_short(efficiency.chain_s * 1e9)} ns")
    if efficiency.chain_s and efficiency.chain_most is not None:
        parts.append(f"chain_most: {round(efficiency.chain_most)}")
    if round(efficiency.block):
        parts.append(f"block: {round(efficiency.block)}")
    if efficiency.split_s:
        parts.append(f"split: {_short(efficiency.split_s * 1e6)} us")
    if round(efficiency.joint):
        parts.append(f"joint: {round(efficiency.joint)}")
    if efficiency.cached_bytes_per_s:
        parts.append(f"cached: {_short(efficiency.cached_bytes_per_s / 1e9)} GB/s")
    return "{" + ", ".join(parts) + "}"


def _short(value: float) -> str:
    """Three significant digits, never in powers of ten."""
    return f"{float(f'{value:.3g}'):.10f}".rstrip("0").rstrip(".") or "0"


def rounded(efficiency: Efficiency) -> Efficiency:
    """The numbers that the line of a profile stands for."""
    raw: Mapping[str, Any] = yaml.safe_load(efficiency_line(efficiency))
    scale = {"overhead": 1e-6, "chain": 1e-9, "split": 1e-6, "cached": 1e9}
    names = {"overhead": "overhead_s", "chain": "chain_s", "split": "split_s", "cached": "cached_bytes_per_s"}
    values = {
        names.get(key, key): float(str(value).split()[0]) * scale[key] if key in scale else value
        for key, value in raw.items()
    }
    return PLAIN.model_copy(update=values)


def source_line(fitted: FittedClass, ref: str, date: str | None) -> str:
    """Where numbers come from, as `sources` has it."""
    fields = ["kind: measured", f"ref: {json.dumps(ref, ensure_ascii=False)}", *_dated(date),
              f"samples: {fitted.samples}", f"median_error: {_percent(fitted.median_error)}",
              f"p90_error: {_percent(fitted.p90_error)}"]  # fmt: skip
    if fitted.note:
        fields.append(f"note: {json.dumps(fitted.note, ensure_ascii=False)}")
    return "{" + ", ".join(fields) + "}"


def _dated(date: str | None) -> list[str]:
    """A day stands as it is; a year or a month would be read as a number or as text that is none."""
    return [] if date is None else [f"date: {date}" if date.count("-") == 2 else f'date: "{date}"']


def _percent(share: float) -> str:
    return f"{share:.1%}"


def _with_entries(text: str, section: str, entries: Mapping[str, str]) -> str:
    """`text` with lines `key: value` in one of its mappings, in place of those with the same keys."""
    if not entries:
        return text
    lines = text.splitlines()
    at = _section(text, section)
    if at is None:
        before_sources = next((n for n, line in enumerate(lines) if line.startswith("sources:")), len(lines))
        new = [f"{section}:", *_written(entries)]
        return "\n".join([*lines[:before_sources], *new, *lines[before_sources:]]) + "\n"
    old = {key.value: (key.start_mark.line, _last_line(value)) for key, value in at.value}
    replaced = [key for key in old if key in entries]
    kept = set(range(len(lines))) - {n for key in replaced for n in range(old[key][0], old[key][1] + 1)}
    end = max((last for _, last in old.values()), default=at.start_mark.line)
    new = _written(entries)
    before = [lines[n] for n in range(end + 1) if n in kept]
    return "\n".join([*before, *new, *lines[end + 1 :]]) + "\n"


def _written(entries: Mapping[str, str]) -> list[str]:
    return [f"{INDENT}{key}: {value}" for key, value in entries.items()]


def _section(text: str, name: str) -> yaml.MappingNode | None:
    """A mapping at the top of a document, written as a block; None where there is none."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode), "a profile that has been read is a mapping"
    for key, value in root.value:
        if key.value == name and isinstance(value, yaml.MappingNode):
            return value
    return None


def _last_line(node: yaml.Node) -> int:
    """The line a node ends on; a block's end mark stands on the line after it."""
    end = node.end_mark
    return end.line - 1 if end.column == 0 and end.line > node.start_mark.line else int(end.line)

"""Published tables of collectives, recognised by their columns, as rows by system.

- `nccl`, `custom_allreduce` of ai-dynamo/aiconfigurator@095f58a: `message_size` counts elements, of 2 bytes
  (half, bfloat16) or 1 (int8), of the whole result (all-reduce, all-gather) or of one rank's input. oneCCL's
  all-gather is an exception: by the bandwidth it would reach, its sizes are one rank's part. The all-reduce
  of vLLM in a CUDA graph is `engine`, launched from Python `engine-eager`.
- `collectives` of microsoft/vidur@7d47513: NCCL called from PyTorch, all-reduce and send_recv (a copy from a
  device to another), by number of devices on each node.

Where a kernel is launched from Python, a small collective takes as long as the launch. That is the
benchmark's host, not the link: `LAUNCHED_S` has it by system. Outside graphs vLLM copies what it hands to the
library.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from simulator.errors import InputError, Problem
from simulator.study.calibration.collectives import BY, SMALL_BYTES, CollectiveRows
from simulator.study.calibration.columns import Columns, Floats, Texts, names_of


@dataclass(frozen=True)
class System:
    """What a published name of a system stands for."""

    link: str
    """Id of the link among its devices."""
    device: str
    """Id of the device."""
    network: str | None = None
    """Id of the link between its nodes, where one is known."""
    most_ranks: int | None = None
    """Devices that the link joins, where not all of a node's are."""

    def is_of(self, other: System) -> bool:
        """Whether both are the same devices, joined by the same link."""
        return (self.link, self.device) == (other.link, other.device)


SYSTEMS: Mapping[str, System] = {
    "a100_sxm": System("nvlink-3", "a100-80-sxm"),
    "h100_sxm": System("nvlink-4", "h100-sxm"),
    "h200_sxm": System("nvlink-4", "h200-sxm"),
    "b200_sxm": System("nvlink-5", "b200-sxm"),
    "b300_sxm": System("nvlink-5", "b300-sxm"),
    "gb200": System("nvlink-5", "gb200"),
    "gb200_sxm": System("nvlink-5", "gb200"),
    "gb300": System("nvlink-5", "gb300"),
    "gb300_sxm": System("nvlink-5", "gb300"),
    "l40s": System("pcie-gen4-x16", "l40s"),
    "rtx_pro_6000": System("pcie-gen5-x16", "rtx-pro-6000"),
    "rtx_pro_6000_server": System("pcie-gen5-x16", "rtx-pro-6000"),
    "b60": System("pcie-gen5-x8", "arc-pro-b60"),
    "a100_dgx": System("nvlink-3", "a100-80-sxm"),
    "h100_dgx": System("nvlink-4", "h100-sxm", network="ib-ndr"),
    "a100_pairwise_nvlink": System("nvlink-3", "a100-80-sxm", most_ranks=2),
}
"""By the tables' names, in lower case and without what stands in brackets. A DGX H100 has a 400 Gb/s
InfiniBand adapter for each GPU; which network joined the A100 nodes is not published."""

LAUNCHED_S: Mapping[str, tuple[str, float]] = {
    "a100_sxm": ("0.14", 45e-6),
    "h100_sxm": ("0.24", 22e-6),
    "l40s": ("0.14", 66e-6),
    "b60": ("0.20", 43e-6),
}
"""Version of vLLM, and what an all-reduce of up to 256 KiB that it launched eagerly took: medians of 33 rows
each, ai-dynamo/aiconfigurator@095f58a, custom_allreduce."""


def launched_s(version: str, system: str | None) -> float:
    """Seconds that launching from Python takes at least: as measured on a system, else (also for None) as on
    those with the nearest version of vLLM; their geometric mean where several are as near."""
    if system is not None and system in LAUNCHED_S:
        return LAUNCHED_S[system][1]
    known = [(abs(_minor(version) - _minor(each)), seconds) for each, seconds in LAUNCHED_S.values()]
    nearest = min(distance for distance, _ in known) if version else math.inf
    return math.exp(float(np.mean([math.log(s) for distance, s in known if distance <= nearest])))


def _minor(version: str) -> int:
    """The number that tells releases of vLLM apart; 0 where there is none."""
    found = re.match(r"0\.(\d+)", version)
    return int(found.group(1)) if found else 0


ANOMALOUS = "all-reduce of more than 256 KiB among 8 L40S: NCCL's, anomalous in the source"


@dataclass(frozen=True)
class Published:
    """A table's rows that can be predicted, and why the others cannot."""

    rows: CollectiveRows
    system: Texts
    """Of each row, a key of `SYSTEMS` if we know it."""
    copies: CollectiveRows
    """Rows that are copies from one device to another: `algorithm` says `send_recv`."""
    copies_system: Texts
    across: NDArray[np.bool_]
    """Whether a copy goes from node to node."""
    is_launched: NDArray[np.bool_]
    """Whether a collective was launched from Python, not in a graph or from C++."""
    version: Texts
    """Of the engine, of each collective; blank where the table has none."""
    unsupported: Mapping[str, int]
    row_count: int


def kind_of(names: tuple[str, ...]) -> str | None:
    """Which published table the names of its columns tell; None for another."""
    return next((kind for kind, (needed, _) in _KINDS.items() if needed <= set(names)), None)


def read_published(columns: Columns) -> Published:
    """The rows of a published table of collectives; raises InputError."""
    kind = kind_of(columns.names)
    if kind is None:
        raise InputError([Problem(columns.path, advice="is no published table of collectives")])
    return _KINDS[kind][1](columns)


def system_name(text: str) -> str:
    """A table's name of a system as a key of `SYSTEMS`.

    >>> system_name("b60(oneccl)")
    'b60'
    """
    return re.sub(r"\(.*\)", "", text).strip().lower()


def _common(columns: Columns) -> tuple[Texts, NDArray[np.int64], Floats]:
    """System, ranks and time of a table of aiconfigurator."""
    system = np.array([system_name(text) for text in columns.texts("system").tolist()], dtype=np.str_)
    return system, _ranks(columns, "num_gpus"), columns.positive("latency_ms") / 1000


_ALGORITHMS = {"all_reduce": "all_reduce", "all_gather": "all_gather", "reduce_scatter": "reduce_scatter",
               "alltoall": "all_to_all", "all_to_all": "all_to_all"}  # fmt: skip

_ITEM_BYTES = {"half": 2, "float16": 2, "bfloat16": 2, "int8": 1, "fp8": 1, "float": 4, "float32": 4}


def _nccl(columns: Columns) -> Published:
    system, ranks, time_s = _common(columns)
    names, formats = columns.texts("op_name"), columns.texts("nccl_dtype")
    payload = columns.positive("message_size") * _item_bytes(formats)
    of_one = (columns.texts("kernel_source", "") == "oneCCL") & (names == "all_gather")
    payload = np.where(of_one, payload * ranks, payload)
    why = _why_not(system, names, formats, ranks)
    why[_anomalous(system, names, ranks, payload)] = ANOMALOUS
    algorithm = np.array([_ALGORITHMS.get(name, name) for name in names.tolist()], dtype=np.str_)
    by = np.full(len(columns), "library")
    return _published(CollectiveRows(algorithm, by, ranks, payload, time_s), system, why, columns)


def _anomalous(
    system: Texts, names: Texts, ranks: NDArray[np.int64], payload: Floats
) -> NDArray[np.bool_]:
    odd: NDArray[np.bool_] = (
        (system == "l40s") & (names == "all_reduce") & (ranks == 8) & (payload > SMALL_BYTES)
    )
    return odd


def _custom_all_reduce(columns: Columns) -> Published:
    system, ranks, time_s = _common(columns)
    names, formats = columns.texts("op_name"), columns.texts("allreduce_dtype")
    payload = columns.positive("message_size") * _item_bytes(formats)
    backend = columns.texts("backend")
    by = np.array(["engine" if text.endswith("graph") else "engine-eager" for text in backend.tolist()])
    why = _why_not(system, names, formats, ranks)
    why[_anomalous(system, names, ranks, payload)] = ANOMALOUS
    return _published(CollectiveRows(names, by, ranks, payload, time_s), system, why, columns)


def _vidur(columns: Columns) -> Published:
    system = np.array([text.lower() for text in columns.texts("node_type").tolist()], dtype=np.str_)
    ranks, names = _ranks(columns, "num_workers"), columns.texts("collective")
    time_s = columns.positive("time_ms_median") / 1000
    across = columns.positive("devices_per_node") < ranks
    formats = np.full(len(columns), "int8")
    why = _why_not(system, names, formats, ranks, known=(*_ALGORITHMS, SEND_RECV))
    for number in np.flatnonzero(across & (why == "")).tolist():
        known = SYSTEMS[system[number]]
        if names[number] != SEND_RECV:
            why[number] = "all-reduce across nodes: NCCL's way of nodes and then between them is not modelled"
        elif known.network is None:
            why[number] = f"{system[number]} across nodes: its network is not published"
    by = np.full(len(columns), "library")
    rows = CollectiveRows(names, by, ranks, columns.positive("size_bytes"), time_s)
    return _published(rows, system, why, columns, across, is_launched=True)


SEND_RECV = "send_recv"

_KINDS: Mapping[str, tuple[frozenset[str], Callable[[Columns], Published]]] = {
    "nccl": (frozenset({"nccl_dtype", "op_name", "num_gpus", "message_size", "latency_ms"}), _nccl),
    "custom_allreduce": (
        frozenset({"allreduce_dtype", "backend", "num_gpus", "message_size", "latency_ms"}),
        _custom_all_reduce,
    ),
    "vidur_collectives": (
        frozenset({"node_type", "collective", "num_workers", "devices_per_node", "size_bytes"}),
        _vidur,
    ),
}
"""Each kind of table: the columns that tell it, and what reads it."""


def _ranks(columns: Columns, name: str) -> NDArray[np.int64]:
    values = columns.positive(name)
    wrong = np.flatnonzero((values < 2) | (values != np.floor(values)))
    if len(wrong):
        first = int(wrong[0])
        problem = Problem(columns.path, columns.line(first), None, name, f"{values[first]:g}",
                          "write a whole number from 2")  # fmt: skip
        raise InputError([problem])
    return values.astype(np.int64)


def _item_bytes(formats: Texts) -> Floats:
    return np.array([_ITEM_BYTES.get(name, 0) for name in formats.tolist()], dtype=np.float64)


def _why_not(
    system: Texts, names: Texts, formats: Texts, ranks: NDArray[np.int64],
    known: tuple[str, ...] = tuple(_ALGORITHMS),
) -> NDArray[np.object_]:  # fmt: skip
    """Why each row cannot be predicted; blank where it can."""
    why = np.full(len(system), "", dtype=object)
    for number, (each, name, item, count) in enumerate(
        zip(system.tolist(), names.tolist(), formats.tolist(), ranks.tolist(), strict=True)
    ):
        if each not in SYSTEMS:
            why[number] = f"system {each}: no link of the catalogue is known to be its"
        elif name not in known:
            why[number] = f"{name}: not a collective of the simulator"
        elif item not in _ITEM_BYTES:
            why[number] = f"format {item}: its bytes are not known"
        elif count > (SYSTEMS[each].most_ranks or count):
            why[number] = f"{each} among {count}: what joins its pairs is not published"
    return why


def _published(
    rows: CollectiveRows, system: Texts, why: NDArray[np.object_], columns: Columns,
    across: NDArray[np.bool_] | None = None, is_launched: bool = False,
) -> Published:  # fmt: skip
    assert set(rows.by.tolist()) <= set(BY)
    fine, is_copy = why == "", rows.algorithm == SEND_RECV
    collectives, copies = fine & ~is_copy, fine & is_copy
    version = columns.texts("version", "")
    return Published(
        rows.where(collectives), system[collectives], rows.where(copies), system[copies],
        (np.zeros(len(why), dtype=bool) if across is None else across)[copies],
        ((rows.by == "engine-eager") | is_launched)[collectives], version[collectives],
        Counter(str(reason) for reason in why[~fine]), len(why),
    )  # fmt: skip


def is_published(path: Path) -> bool:
    """Whether a file is a published table of collectives, by the names of its columns alone."""
    return kind_of(names_of(path)) is not None

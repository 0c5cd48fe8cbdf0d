"""Quantities as people write them (`80 GiB`, `100 Gb/s`) to plain SI floats, and back to short text.

The only place that knows what a giga is. Bits are a lower-case b, bytes an upper-case B; `k`, `M`, `G`
are powers of 1000, `Ki`, `Mi`, `Gi` powers of 1024. A year has 365 days, as electricity bills and
depreciation tables have it.
"""

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

Better = Literal["high", "low"]

HOURS_PER_YEAR = 365 * 24
JOULES_PER_KWH = 3_600_000.0
SECONDS_PER_YEAR = HOURS_PER_YEAR * 3600.0
SECONDS_PER_HOUR = 3600.0
SECONDS_PER_DAY = 24 * SECONDS_PER_HOUR

_DECIMAL = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}
_BINARY = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50}
GIB = _BINARY["Gi"]
"""Bytes in the unit that memory is accounted in for people."""
_NUMBER = r"[-+]?\d[\d_]*(?:\.\d[\d_]*)?(?:[eE][-+]?\d+)?"
_QUANTITY = re.compile(rf"(?P<number>{_NUMBER})\s*(?P<unit>\D.*)?", re.ASCII)
_RANGE = re.compile(
    rf"(?P<low>{_NUMBER})\s*(?P<low_unit>[^\s.\d-][^.]*?)?\s*\.\.\s*(?P<high>{_NUMBER})\s*(?P<unit>\D.*)?",
    re.ASCII,
)


class UnitError(ValueError):
    """A text that is no quantity of the dimension asked for; the message says what to write."""


@dataclass(frozen=True, eq=False)
class Dimension:
    """One kind of quantity: its units as factors to SI, and which end of it an owner prefers."""

    name: str
    units: Mapping[str, Decimal]
    better: Better | None
    examples: tuple[str, ...]
    shown: tuple[str, ...]
    """The units an error message offers; `units` also holds longer spellings."""

    @property
    def takes_bare_numbers(self) -> bool:
        return "" in self.units

    @property
    def advice(self) -> str:
        if self.takes_bare_numbers:
            return f"write a number such as {self.examples[0]}"
        return f"write a number and one of: {', '.join(self.shown)}"


def _scaled(prefixes: Mapping[str, int], unit: str, factor: Decimal = Decimal(1)) -> dict[str, Decimal]:
    return {prefix + unit: Decimal(scale) * factor for prefix, scale in prefixes.items()}


_BYTE_UNITS = _scaled(_DECIMAL, "B") | _scaled(_BINARY, "B")
_BIT_UNITS = _scaled(_DECIMAL, "b", Decimal("0.125")) | _scaled(_DECIMAL, "bit", Decimal("0.125"))
_SHORT_TIMES = {
    "ps": Decimal("1e-12"),
    "ns": Decimal("1e-9"),
    "us": Decimal("1e-6"),
    "µs": Decimal("1e-6"),
    "ms": Decimal("1e-3"),
    "s": Decimal(1),
}
_LONG_TIMES = {
    name: Decimal(seconds)
    for names, seconds in {
        ("min", "minute", "minutes"): 60,
        ("h", "hour", "hours"): 3600,
        ("day", "days"): 86400,
        ("year", "years"): int(SECONDS_PER_YEAR),
    }.items()
    for name in names
}
_TIME_UNITS = _SHORT_TIMES | _LONG_TIMES
_SHOWN_TIMES = ("ns", "us", "ms", "s", "minutes", "hours", "days", "years")
_SHOWN_SIZES = ("B", "kB", "MB", "GB", "TB", "KiB", "MiB", "GiB", "TiB")


def _times_per(what: str) -> dict[str, Decimal]:
    return {f"{unit}{per}": factor for unit, factor in _SHORT_TIMES.items() for per in ("", f"/{what}")}


BYTES = Dimension("size", _BYTE_UNITS, "high", ("80 GB", "80 GiB"), _SHOWN_SIZES)
BYTES_PER_S = Dimension(
    "data rate",
    {f"{unit}/s": factor for unit, factor in (_BYTE_UNITS | _BIT_UNITS).items()},
    "high",
    ("3.35 TB/s", "100 Gb/s"),
    ("MB/s", "GB/s", "TB/s", "GiB/s", "Mb/s", "Gb/s (bits)"),
)
FLOPS_PER_S = Dimension(
    "arithmetic rate",
    _scaled(_DECIMAL, "FLOP/s") | _scaled(_DECIMAL, "OP/s"),
    "high",
    ("989 TFLOP/s", "362 TOP/s"),
    ("GFLOP/s", "TFLOP/s", "PFLOP/s", "TOP/s"),
)
SECONDS = Dimension("time", _TIME_UNITS, "low", ("2.5 us", "30 s"), _SHOWN_TIMES)
DURATION = Dimension("duration", _TIME_UNITS, None, ("30 s", "1 day"), _SHOWN_TIMES)
"""A time that is chosen and not uncertain, such as how long a burst lasts."""
SECONDS_PER_TOKEN = Dimension(
    "time per token", _times_per("token"), "low", ("2 us/token",), ("us/token", "ms/token")
)
SECONDS_PER_REQUEST = Dimension(
    "time per request", _times_per("request"), "low", ("50 us/request",), ("us/request", "ms/request")
)
WATTS = Dimension("power", _scaled(_DECIMAL, "W"), "low", ("700 W", "1.2 kW"), ("W", "kW", "MW"))
USD = Dimension("money", {"USD": Decimal(1)}, "low", ("30_000 USD",), ("USD",))
USD_PER_KWH = Dimension("energy price", {"USD/kWh": Decimal(1)}, "low", ("0.09 USD/kWh",), ("USD/kWh",))
SHARE = Dimension("share", {"": Decimal(1), "%": Decimal("0.01")}, None, ("0.95", "95 %"), ("%",))
SHARE_PER_YEAR = Dimension(
    "share per year", {"%/year": Decimal("0.01"), "/year": Decimal(1)}, "low", ("8 %/year",), ("%/year",)
)
PER_S = Dimension(
    "request rate",
    {
        f"{what}/{per}": Decimal(1) / seconds
        for what in ("req", "request", "requests")
        for per, seconds in {"s": Decimal(1), "min": Decimal(60), "h": Decimal(3600)}.items()
    },
    None,
    ("4 req/s",),
    ("req/s", "req/min", "req/h"),
)
NUMBER = Dimension("number", {"": Decimal(1)}, None, ("2.5",), ())


def parse_quantity(text: str, dimension: Dimension) -> float:
    """The quantity `text` as an SI float; raises UnitError with advice.

    >>> parse_quantity("80 GiB", BYTES)
    85899345920.0
    >>> parse_quantity("100 Gb/s", BYTES_PER_S)
    12500000000.0
    >>> parse_quantity("8 %/year", SHARE_PER_YEAR)
    0.08
    >>> parse_quantity("80", BYTES)
    Traceback (most recent call last):
    simulator.units.UnitError: write a number and one of: B, kB, MB, GB, TB, KiB, MiB, GiB, TiB
    """
    match = _QUANTITY.fullmatch(text.strip())
    if match is None:
        raise UnitError(dimension.advice)
    return _to_si(match["number"], match["unit"], dimension)


def is_range(text: str) -> bool:
    """Whether `text` is meant as a range, well written or not."""
    return ".." in text


def parse_range(text: str, dimension: Dimension) -> tuple[float, float]:
    """Both ends of `25_000..32_000 USD` (or `900 MB..2 GB`) as SI floats; raises UnitError with advice.

    >>> parse_range("25_000..32_000 USD", USD)
    (25000.0, 32000.0)
    """
    match = _RANGE.fullmatch(text.strip())
    if match is None:
        raise UnitError(f"write a range as low..high, such as {_range_example(dimension)}")
    low = _to_si(match["low"], match["low_unit"] or match["unit"], dimension)
    high = _to_si(match["high"], match["unit"], dimension)
    if low > high:
        raise UnitError("a range goes from low to high; swap its ends")
    return low, high


def _range_example(dimension: Dimension) -> str:
    unit = dimension.shown[0] if dimension.shown and not dimension.takes_bare_numbers else ""
    return f"1..2 {unit}".strip()


def _to_si(number: str, unit: str | None, dimension: Dimension) -> float:
    unit = (unit or "").strip()
    factor = dimension.units.get(unit)
    if factor is None:
        raise UnitError(dimension.advice + _unit_hint(unit, dimension))
    try:
        value = float(Decimal(number.replace("_", "")) * factor)
    except ArithmeticError:
        value = math.inf
    if math.isinf(value):
        raise UnitError("the number is too large")
    return value


def _unit_hint(unit: str, dimension: Dimension) -> str:
    if not unit:
        return ""
    same = [known for known in dimension.units if known.lower() == unit.lower()]
    close = same or difflib.get_close_matches(unit, dimension.units, n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def format_bytes(size_bytes: float) -> str:
    """Three significant digits in binary units, as memory is sold: `79.6 GiB`.

    >>> format_bytes(81559 * 2**20)
    '79.6 GiB'
    """
    return _format_scaled(
        size_bytes, {"B": 1.0} | {f"{name}B": float(scale) for name, scale in _BINARY.items()}
    )


def format_rate(rate_bytes_per_s: float) -> str:
    """Three significant digits in decimal units, as rates are sold: `3.35 TB/s`."""
    return _format_scaled(rate_bytes_per_s, {f"{name}B/s": float(scale) for name, scale in _DECIMAL.items()})


def format_count(count: float) -> str:
    """Three significant digits with a word for the scale.

    >>> format_count(8_030_261_248), format_count(124_439_808), format_count(1536)
    ('8.03 billion', '124 million', '1,540')
    >>> format_count(999_885_952)
    '1 billion'
    """
    scales = {"trillion": _DECIMAL["T"], "billion": _DECIMAL["G"], "million": _DECIMAL["M"]}
    for word, scale in scales.items():
        if round(count / scale, 3) >= 1:
            return f"{format_number(count / scale)} {word}"
    return format_number(count)


def format_seconds(time_s: float) -> str:
    """Three significant digits from picoseconds to days: `2.5 us`, `1.5 h`.

    >>> format_seconds(2.5e-6), format_seconds(0.0), format_seconds(5400)
    ('2.5 us', '0 s', '1.5 h')
    """
    if time_s == 0:
        return "0 s"
    names = ("ps", "ns", "us", "ms", "s", "min", "h", "days", "years")
    return _format_scaled(time_s, {name: float(_TIME_UNITS[name]) for name in names})



def format_number(value: float) -> str:
    """Three significant digits, never in exponent form, thousands grouped.

    >>> format_number(28284.3), format_number(0.09123), format_number(12.0)
    ('28,300', '0.0912', '12')
    """
    rounded = Decimal(f"{value:.3g}")
    text = f"{rounded:,f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _format_scaled(value: float, scales: Mapping[str, float]) -> str:
    """`value` in the largest unit that leaves at least one after rounding, else in the smallest."""
    fitting = [unit for unit, scale in scales.items() if float(f"{abs(value) / scale:.3g}") >= 1]
    unit = fitting[-1] if fitting else next(iter(scales))
    return f"{format_number(value / scales[unit])} {unit}"

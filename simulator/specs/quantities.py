"""Field types for quantities: unit checked, range resolved by the case, `unknown` kept as None.

A field says its dimension and what values make sense; the file may then hold `80 GiB`, a range
`25_000..32_000 USD`, `{range: "25_000..32_000 USD", nominal: 28_000 USD}`, or `unknown` where the
type is one of the `Maybe` types.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from simulator import units
from simulator.specs.base import Affects, Case, LoadContext, Uncertain, context_of, rule_broken
from simulator.specs.yaml_file import Text
from simulator.units import Better, Dimension, UnitError

UNKNOWN = "unknown"
_WIDE_RANGE = 2.0


@dataclass(frozen=True)
class Range:
    """Both ends of an uncertain figure and the value to use when asked for one."""

    low: float
    high: float
    nominal: float

    @classmethod
    def between(cls, low: float, high: float) -> "Range":
        """Nominal is the midpoint; the geometric mean where high is more than twice low."""
        wide = low > 0 and high / low > _WIDE_RANGE
        return cls(low, high, math.sqrt(low) * math.sqrt(high) if wide else (low + high) / 2)

    def at(self, case: Case, better: Better) -> float:
        """The value in a case, when the `better` end is the one an owner would wish for."""
        if case == "nominal":
            return self.nominal
        return self.high if (case == "best") == (better == "high") else self.low


@dataclass(frozen=True)
class Quantity:
    """Marks a float field as a quantity; put it into `Annotated[float, Quantity(...)]`."""

    dimension: Dimension
    better: Better | None = None
    """Which end an owner prefers, where the dimension alone does not say; without it no range."""
    above: float | None = None
    """The value must be more than this."""
    least: float = 0.0
    most: float = math.inf
    may_be_unknown: bool = False

    @property
    def direction(self) -> Better | None:
        return self.better or self.dimension.better

    def read(self, raw: Any, context: LoadContext | None) -> float | None:
        """The SI value of `raw` in the case of the load; notes what is uncertain in the context."""
        if raw is None and context is None and self.may_be_unknown:
            return None
        if isinstance(raw, str) and raw.strip() == UNKNOWN:
            self._unknown(raw, context)
            return None
        span = self._range(raw)
        if span is not None:
            return self._in_case(span, raw, context)
        return self._single(raw, bare=context is None)

    def _unknown(self, raw: str, context: LoadContext | None) -> None:
        if not self.may_be_unknown:
            raise UnitError(f"may not be unknown here; {self.dimension.advice}, or a range as low..high")
        self._note(raw, None, context)

    def _in_case(self, span: Range, raw: Any, context: LoadContext | None) -> float:
        if self.direction is None:
            raise UnitError("may not be a range here; write one value, or a list to compare several")
        self._note(raw, span, context)
        return span.at(context.case if context else "nominal", self.direction)

    def _note(self, raw: Any, span: Range | None, context: LoadContext | None) -> None:
        text = raw.get("range") if isinstance(raw, dict) else raw
        if context is not None and isinstance(text, Text):
            loc = text.loc[:-1] if isinstance(raw, dict) else text.loc
            low, high = (span.low, span.high) if span else (None, None)
            context.uncertain.append(Uncertain(loc, low, high, self.affects))

    @property
    def affects(self) -> Affects:
        """What a wrong figure of this kind would make wrong."""
        if self.dimension in (units.USD, units.USD_PER_KWH, units.SHARE_PER_YEAR):
            return "money"
        return "energy" if self.dimension is units.WATTS else "time"

    def _range(self, raw: Any) -> Range | None:
        if isinstance(raw, str) and units.is_range(raw):
            low, high = units.parse_range(raw, self.dimension)
            return Range.between(self._checked(low), self._checked(high))
        if isinstance(raw, dict):
            return self._range_with_nominal(raw)
        return None

    def _range_with_nominal(self, raw: dict[str, Any]) -> Range:
        if set(raw) != {"range", "nominal"}:
            raise UnitError('write a quantity, or {range: "low..high unit", nominal: value}')
        span = self._range(raw["range"])
        if span is None:
            raise UnitError("'range' takes low..high")
        nominal = self._single(raw["nominal"], bare=False)
        if not span.low <= nominal <= span.high:
            raise UnitError("the nominal lies outside its range")
        return Range(span.low, span.high, nominal)

    def _single(self, raw: Any, *, bare: bool) -> float:
        if isinstance(raw, str):
            return self._checked(units.parse_quantity(raw, self.dimension))
        if isinstance(raw, bool) or not isinstance(raw, int | float):
            raise UnitError(self.dimension.advice)
        if not (bare or self.dimension.takes_bare_numbers):
            raise UnitError(self.dimension.advice)
        return self._checked(float(raw))

    def _checked(self, value: float) -> float:
        if not math.isfinite(value):
            raise UnitError("write a finite number")
        if self.above is not None and value <= self.above:
            raise UnitError(f"must be more than {self.above:g}")
        if not self.least <= value <= self.most:
            upper = f" and at most {self.most:g}" if math.isfinite(self.most) else ""
            raise UnitError(f"must be at least {self.least:g}{upper}")
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_plain_validator_function(self._validate)

    def _validate(self, raw: Any, info: ValidationInfo) -> float | None:
        try:
            return self.read(raw, context_of(info))
        except UnitError as error:
            raise rule_broken(str(error)) from None

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return quantity_schema(self)


def quantity_schema(quantity: Quantity) -> JsonSchemaValue:
    """How an editor should check a quantity: text with a unit, a range where one makes sense."""
    unit = "|".join(
        sorted((_escaped(unit) for unit in quantity.dimension.units if unit), key=len, reverse=True)
    )
    number = r"[-+]?\d[\d_]*(\.\d[\d_]*)?([eE][-+]?\d+)?"
    optional = "?" if quantity.dimension.takes_bare_numbers else ""
    tail = rf"\s*({unit}){optional}" if unit else ""
    span = rf"(\s*({unit})?\s*\.\.\s*{number})?" if quantity.direction else ""
    pattern = f"^{number}{span}{tail}$" + (f"|^{UNKNOWN}$" if quantity.may_be_unknown else "")
    text = {"type": "string", "pattern": pattern, "examples": list(quantity.dimension.examples)}
    forms: list[JsonSchemaValue] = [text]
    if quantity.dimension.takes_bare_numbers:
        forms.append({"type": "number"})
    if quantity.direction:
        forms.append(_NOMINAL_SCHEMA)
    return forms[0] if len(forms) == 1 else {"anyOf": forms}


_NOMINAL_SCHEMA: JsonSchemaValue = {
    "type": "object",
    "properties": {"range": {"type": "string"}, "nominal": {"type": ["string", "number"]}},
    "required": ["range", "nominal"],
    "additionalProperties": False,
}


def _escaped(unit: str) -> str:
    return unit.replace("/", r"\/")


Bytes = Annotated[float, Quantity(units.BYTES, above=0)]
BytesPerSecond = Annotated[float, Quantity(units.BYTES_PER_S, above=0)]
FlopsPerSecond = Annotated[float, Quantity(units.FLOPS_PER_S, above=0)]
Seconds = Annotated[float, Quantity(units.SECONDS, most=units.SECONDS_PER_HOUR)]
SecondsPerToken = Annotated[float, Quantity(units.SECONDS_PER_TOKEN, most=units.SECONDS_PER_HOUR)]
SecondsPerRequest = Annotated[float, Quantity(units.SECONDS_PER_REQUEST, most=units.SECONDS_PER_HOUR)]
RequestsPerSecond = Annotated[float, Quantity(units.PER_S, above=0, least=1e-6, most=1e6)]
UsdPerKwh = Annotated[float, Quantity(units.USD_PER_KWH)]
SharePerYear = Annotated[float, Quantity(units.SHARE_PER_YEAR)]

ErrorShare = Annotated[float, Quantity(units.SHARE, most=1e6)]
"""A relative error: 30 % is 0.3, and it may exceed 1."""
Share = Annotated[float, Quantity(units.SHARE, better="high", most=1)]
"""Between 0 and 1, more is better for the owner; a file may say `95 %`."""
PositiveShare = Annotated[float, Quantity(units.SHARE, better="high", above=0, most=1)]

MaybeBytesPerSecond = Annotated[float | None, Quantity(units.BYTES_PER_S, above=0, may_be_unknown=True)]
MaybeWatts = Annotated[float | None, Quantity(units.WATTS, may_be_unknown=True)]
MaybeUsd = Annotated[float | None, Quantity(units.USD, may_be_unknown=True)]
MaybeCount = Annotated[float | None, Quantity(units.NUMBER, better="high", above=0, may_be_unknown=True)]
"""A count that may be a range such as `1..64`, or `unknown`."""


def _no_truth_value(raw: Any) -> Any:
    """`true` is no number, although Python and pydantic take it for 1."""
    if isinstance(raw, bool):
        raise rule_broken("write a whole number")
    return raw


MOST_TOKENS = 10**9
"""More tokens than any prompt, answer, cache or batch has."""

MOST_PRIORITY = 10**6

WholeNumber = Annotated[int, BeforeValidator(_no_truth_value)]
Tokens = Annotated[WholeNumber, Field(ge=1, le=MOST_TOKENS)]
Requests = Annotated[WholeNumber, Field(ge=1, le=10**7)]
"""As many as memory holds."""
Parts = Annotated[WholeNumber, Field(ge=1, le=1024)]
"""Devices, sockets: what one host holds of them."""

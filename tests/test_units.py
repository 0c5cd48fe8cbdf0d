"""Units: what people write, what they get, and what they are told."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator import units
from simulator.units import UnitError, parse_quantity, parse_range


@pytest.mark.parametrize(
    ("text", "dimension", "expected"),
    [
        ("80 GiB", units.BYTES, 80 * 2**30),
        ("80GB", units.BYTES, 80e9),
        ("81559 MiB", units.BYTES, 81559 * 2**20),
        ("512 B", units.BYTES, 512),
        ("3.35 TB/s", units.BYTES_PER_S, 3.35e12),
        ("100 Gb/s", units.BYTES_PER_S, 12.5e9),
        ("400 Gbit/s", units.BYTES_PER_S, 50e9),
        ("989 TFLOP/s", units.FLOPS_PER_S, 989e12),
        ("362 TOP/s", units.FLOPS_PER_S, 362e12),
        ("2.5 us", units.SECONDS, 2.5e-6),
        ("1 minute", units.SECONDS, 60),
        ("5 years", units.SECONDS, 5 * 365 * 86400),
        ("2 days", units.SECONDS, 172_800),
        ("30_000 USD", units.USD, 30_000),
        ("0.09 USD/kWh", units.USD_PER_KWH, 0.09),
        ("1.2 kW", units.WATTS, 1200),
        ("8 %/year", units.SHARE_PER_YEAR, 0.08),
        ("95 %", units.SHARE, 0.95),
        ("6.4%", units.SHARE, 0.064),
        ("0.95", units.SHARE, 0.95),
        ("4 req/s", units.PER_S, 4),
        ("120 req/min", units.PER_S, 2),
        ("2 us/token", units.SECONDS_PER_TOKEN, 2e-6),
        ("1e3 us", units.SECONDS, 1e-3),
    ],
)
def test_reads_what_people_write(text: str, dimension: units.Dimension, expected: float) -> None:
    assert parse_quantity(text, dimension) == expected


@pytest.mark.parametrize(
    ("text", "dimension", "advice"),
    [
        ("80", units.BYTES, "write a number and one of: B, kB, MB, GB"),
        ("80 gb", units.BYTES, "did you mean 'GB'?"),
        ("80 W", units.BYTES, "one of: B, kB"),
        ("80 Gb/s", units.BYTES, "one of: B, kB"),
        ("fast", units.BYTES_PER_S, "write a number and one of"),
        ("3 TFLOPS", units.FLOPS_PER_S, "did you mean 'TFLOP/s'?"),
        ("30,000 USD", units.USD, "one of: USD"),
        ("", units.USD, "one of: USD"),
        ("1e999999999999 s", units.SECONDS, "too large"),
        ("1e400 s", units.SECONDS, "too large"),
        ("3 apples", units.NUMBER, "such as 2.5"),
    ],
)
def test_says_what_to_write(text: str, dimension: units.Dimension, advice: str) -> None:
    with pytest.raises(UnitError) as caught:
        parse_quantity(text, dimension)
    assert advice in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("25_000..32_000 USD", (25e3, 32e3)),
        ("1 .. 2 USD", (1, 2)),
        ("1 USD..2 USD", (1, 2)),
        ("1.5..2.5 USD", (1.5, 2.5)),
    ],
)
def test_reads_ranges(text: str, expected: tuple[float, float]) -> None:
    assert parse_range(text, units.USD) == expected


def test_each_end_of_a_range_may_have_its_unit() -> None:
    assert parse_range("900 MB..2 GB", units.BYTES) == (9e8, 2e9)


@pytest.mark.parametrize("text", ["2..1 USD", "1.. USD", "..2 USD", "1..2", "1...2 USD", "a..b USD"])
def test_refuses_bad_ranges(text: str) -> None:
    with pytest.raises(UnitError):
        parse_range(text, units.USD)


@given(st.text(max_size=20))
def test_any_text_is_a_number_or_a_unit_error(text: str) -> None:
    for dimension in (units.BYTES, units.SHARE, units.SECONDS):
        try:
            assert isinstance(parse_quantity(text, dimension), float)
        except UnitError:
            pass
        try:
            assert len(parse_range(text, dimension)) == 2
        except UnitError:
            pass


@given(st.floats(1e-12, 1e15, allow_nan=False), st.sampled_from(["B", "kB", "GiB"]))
def test_twice_the_number_is_twice_the_quantity(number: float, unit: str) -> None:
    once = parse_quantity(f"{number!r} {unit}", units.BYTES)
    assert parse_quantity(f"{number * 2!r} {unit}", units.BYTES) == pytest.approx(2 * once)


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (units.format_bytes(80 * 2**30), "80 GiB"),
        (units.format_bytes(0), "0 B"),
        (units.format_bytes(1000 * 2**20), "1,000 MiB"),
        (units.format_bytes(1023.9 * 2**20), "1 GiB"),
        (units.format_rate(3.35e12), "3.35 TB/s"),
        (units.format_seconds(0.06), "60 ms"),
        (units.format_seconds(90), "1.5 min"),
        (units.format_seconds(-2.5e-6), "-2.5 us"),
    ],
)
def test_shows_three_significant_digits(shown: str, expected: str) -> None:
    assert shown == expected

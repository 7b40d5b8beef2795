"""A rate of bytes: how fast a tunnel or a visitor may be, and how that is written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Final

from tunnel.model.errors import InvalidValueError, did_you_mean
from tunnel.model.option_types import JsonSchema

MIN_BITS_PER_S: Final = 8_000
"""Less than a record of encrypted data in 16 s cannot be paced evenly."""
MAX_BITS_PER_S: Final = 10**12

_BIT_UNITS: Final = {"bit": 1, "kbit": 10**3, "mbit": 10**6, "gbit": 10**9}
_BYTE_UNITS: Final = {
    "B/s": 8, "kB/s": 8 * 10**3, "MB/s": 8 * 10**6, "GB/s": 8 * 10**9,
    "KiB/s": 8 << 10, "MiB/s": 8 << 20, "GiB/s": 8 << 30,
}  # fmt: skip
_NAMES: Final = {unit.lower(): unit for unit in (*_BIT_UNITS, *_BYTE_UNITS)}
_DECIMAL_BYTE_UNITS: Final = ("B/s", "kB/s", "MB/s", "GB/s")
_NONE: Final = "none"
_NUMBER: Final = r"[0-9]{1,13}(\.[0-9]{1,9})?"
_BIT_UNIT: Final = r"[kKmMgG]?[bB][iI][tT](/[sS])?"
_BYTE_UNIT: Final = r"([kKmMgG][iI]?)?B/[sS]"
_RATE: Final = re.compile(rf"(?P<number>{_NUMBER})\s*(?P<unit>[A-Za-z/]{{0,12}})")
_UNIT: Final = re.compile(rf"{_BIT_UNIT}|{_BYTE_UNIT}")
_AMBIGUOUS_UNIT: Final = re.compile(r"([kmg]?)i?b(/s|ps|yte|ytes)?", re.IGNORECASE)
_PATTERN: Final = rf"^\s*([nN][oO][nN][eE]|{_NUMBER}\s*({_BIT_UNIT}|{_BYTE_UNIT}))\s*$"
_EXAMPLES: Final = "100mbit or 10MB/s"


@dataclass(frozen=True, slots=True)
class Rate:
    """A rate of the bytes of visitors, for each of the two directions."""

    bits_per_s: int
    is_in_bytes: bool = field(default=False, compare=False)
    """whether the user has written bytes, so that messages do so, too"""

    @property
    def bytes_per_s(self) -> float:
        """The same in bytes."""
        return self.bits_per_s / 8

    def __str__(self) -> str:
        if self.is_in_bytes and self.bits_per_s % 8 == 0:
            return _format(self.bits_per_s, {unit: _BYTE_UNITS[unit] for unit in _DECIMAL_BYTE_UNITS})
        return _format(self.bits_per_s, _BIT_UNITS)


def _format(bits_per_s: int, sizes: Mapping[str, int]) -> str:
    """Return a rate exactly, in the largest unit that is not above it."""
    unit = max((unit for unit in sizes if bits_per_s >= sizes[unit]), key=sizes.__getitem__)
    number = f"{Decimal(bits_per_s) / sizes[unit]:f}"
    return f"{number.rstrip('0').rstrip('.') if '.' in number else number}{unit}"


def parse_rate(text: str) -> Rate:
    """Parse a rate, as in ``100mbit`` or ``10MB/s``. Raises InvalidValueError."""
    match = _RATE.fullmatch(text.strip())
    if match is None:
        raise InvalidValueError(f"{{}} is not a rate, as in {_EXAMPLES}", repr(text[:40]))
    number, unit = Decimal(match["number"]), match["unit"]
    if not number:
        raise InvalidValueError("{} would stop all visitors; write none for no limit", repr(text[:40]))
    if not _UNIT.fullmatch(unit):
        raise InvalidValueError(f"{{}} {_explain_unit(unit)}", repr(text[:40]))
    is_in_bytes = unit.lower().endswith("b/s")
    bits = number * (_BYTE_UNITS[_NAMES[unit.lower()]] if is_in_bytes else _BIT_UNITS[unit.lower().removesuffix("/s")])
    if not MIN_BITS_PER_S <= bits <= MAX_BITS_PER_S:
        raise InvalidValueError("{} is out of range; a rate is 8kbit to 1000gbit", repr(text[:40]))
    return Rate(int(bits), is_in_bytes)


def _explain_unit(unit: str) -> str:
    """Return what is wrong with a unit, and which one was probably meant."""
    if not unit:
        return f"has no unit; write bits or bytes per second, as in {_EXAMPLES}"
    if match := _AMBIGUOUS_UNIT.fullmatch(unit):
        prefix = match[1].lower()
        return f"could mean bits or bytes; write {prefix}bit, or {_NAMES[f'{prefix}b/s']}"
    hint = did_you_mean(unit, _NAMES) or f"; known are {', '.join(_NAMES.values())}"
    return f"has an unknown unit{hint}"


@dataclass(frozen=True, slots=True)
class RateType:
    """A rate, or ``none``."""

    values: str = "bits or bytes per second, as in `100mbit` or `10MB/s`, or `none`"

    def parse(self, value: object, _: Path) -> Rate | None:
        """Parse a rate. Raises InvalidValueError."""
        if isinstance(value, Rate):
            return value
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            value = str(value)  # a number without a unit, which the message names
        if not isinstance(value, str):
            raise InvalidValueError(f"not a rate, as in {_EXAMPLES}")
        return None if value.strip().lower() == _NONE else parse_rate(value)

    def format(self, value: Rate | None) -> str:
        """Return the rate as a URL or a file has it."""
        return _NONE if value is None else str(value)

    def json_schemas(self) -> tuple[JsonSchema, ...]:
        """Return alternatives that describe the value in a YAML file."""
        return ({"type": "string", "pattern": _PATTERN},)

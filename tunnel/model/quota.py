"""A quota: how many bytes a tunnel may carry in a month or in some days, and how that is written."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Final

from tunnel.model.errors import InvalidValueError
from tunnel.model.option_types import JsonSchema

MAX_BYTES: Final = 10**18
MAX_DAYS: Final = 366

_UNITS: Final = {
    "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "PB": 10**15,
    "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40, "PiB": 1 << 50,
}  # fmt: skip
_BY_LOWER: Final = {unit.lower(): size for unit, size in _UNITS.items()}
_DECIMAL_UNITS: Final = ("PB", "TB", "GB", "MB", "kB", "B")
_MONTH: Final = "month"
_NONE: Final = "none"
_SIZE: Final = r"[0-9]{1,18}(\.[0-9]{1,15})?"
_QUOTA: Final = re.compile(rf"(?P<size>{_SIZE})\s*(?P<unit>[A-Za-z]{{1,4}})\s*/\s*(?P<period>[A-Za-z0-9]{{1,8}})")
_DAYS: Final = re.compile(r"([0-9]{1,4})d")
_PATTERN: Final = rf"^\s*([nN][oO][nN][eE]|{_SIZE}\s*[A-Za-z]{{1,3}}\s*/\s*(month|[0-9]{{1,3}}d))\s*$"
_EXAMPLES: Final = "500GB/month or 50GB/7d"


@dataclass(frozen=True, slots=True)
class Quota:
    """Bytes of both directions that a tunnel may carry."""

    limit: int
    """bytes"""
    days: int | None = None
    """the length of the rolling period; None: calendar months"""

    def __str__(self) -> str:
        return f"{format_size(self.limit)}/{_MONTH if self.days is None else f'{self.days}d'}"


def format_size(count: int) -> str:
    """Return bytes exactly, in the largest unit that is not above them: ``1.5GB``."""
    unit = next(unit for unit in _DECIMAL_UNITS if count >= _UNITS[unit] or unit == "B")
    number = f"{Decimal(count) / _UNITS[unit]:f}"
    return f"{number.rstrip('0').rstrip('.') if '.' in number else number}{unit}"


def describe_size(count: int) -> str:
    """Return bytes for people: ``412.3 GB``."""
    unit = next(unit for unit in _DECIMAL_UNITS if count >= _UNITS[unit] or unit == "B")
    return f"{round(count / _UNITS[unit], 1):g} {unit}"


def parse_quota(text: str) -> Quota:
    """Parse a quota, as in ``500GB/month`` or ``50GB/7d``. Raises InvalidValueError."""
    match = _QUOTA.fullmatch(text.strip())
    if match is None:
        raise InvalidValueError(f"{{}} is not a quota, as in {_EXAMPLES}", repr(text[:40]))
    unit = _BY_LOWER.get(match["unit"].lower())
    if unit is None:
        raise InvalidValueError(f"unknown unit {{}}; a quota is in {', '.join(_UNITS)}", repr(match["unit"]))
    limit = int(Decimal(match["size"]) * unit)
    if not 1 <= limit <= MAX_BYTES:
        raise InvalidValueError("{} is out of range; a quota is at least 1B and at most 1000PB", repr(text[:40]))
    period = match["period"].lower()
    if period == _MONTH:
        return Quota(limit)
    days = _DAYS.fullmatch(period)
    if days is None or not 1 <= int(days[1]) <= MAX_DAYS:
        hint = f"a quota counts per month, or over 1d to {MAX_DAYS}d"
        raise InvalidValueError(f"{{}} is not a period; {hint}, as in {_EXAMPLES}", repr(match["period"]))
    return Quota(limit, int(days[1]))


@dataclass(frozen=True, slots=True)
class QuotaType:
    """A quota, or ``none``."""

    values: str = "bytes per month or days, as in `500GB/month` or `50GB/7d`, or `none`"

    def parse(self, value: object, _: Path) -> Quota | None:
        """Parse a quota. Raises InvalidValueError."""
        if not isinstance(value, str):
            raise InvalidValueError(f"not a quota, as in {_EXAMPLES}")
        return None if value.strip().lower() == _NONE else parse_quota(value)

    def format(self, value: Quota | None) -> str:
        """Return the quota as a URL or a file has it."""
        return _NONE if value is None else str(value)

    def json_schemas(self) -> tuple[JsonSchema, ...]:
        """Return alternatives that describe the value in a YAML file."""
        return ({"type": "string", "pattern": _PATTERN},)

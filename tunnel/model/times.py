"""Durations as Go writes them, and timestamps as RFC 3339 writes them."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from typing import Final

from tunnel.model.errors import InvalidValueError

_UNIT_NS: Final = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,  # U+00B5, micro sign
    "μs": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_TERM: Final = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)([a-zµμ]+)")
_UNITS_HINT: Final = "use ns, us, ms, s, m or h, as in 1m30s"
_MAX_DURATION_S: Final = 366 * 24 * 3600.0
_MAX_TEXT_LENGTH: Final = 80  # a longer text holds more digits than decimal arithmetic can handle quickly


def parse_duration(text: str) -> float:
    """Parse a duration as Go writes it (``500ms``, ``5s``, ``1m30s``) into seconds; ``0`` needs no unit.

    The grammar is that of Go's ``time.ParseDuration`` without a sign, because no duration here can be negative.
    Raises InvalidValueError with a sentence for the user.
    """
    if text == "0":
        return 0.0
    if len(text) > _MAX_TEXT_LENGTH:
        raise InvalidValueError("{} is not a duration, as in 500ms, 5s or 1m30s", repr(text[:20] + "…"))
    if text.startswith("-"):
        raise InvalidValueError("a duration cannot be negative: {}", repr(text))
    total_ns = Decimal(0)
    position = 0
    for term in _TERM.finditer(text):
        if term.start() != position:
            break
        number, unit = term.groups()
        if unit not in _UNIT_NS:
            raise InvalidValueError(f"unknown unit {{}} in {{}}; {_UNITS_HINT}", repr(unit), repr(text))
        total_ns += Decimal(number) * _UNIT_NS[unit]
        position = term.end()
    if position == 0 or position != len(text):
        if text.isascii() and text.isdigit():
            raise InvalidValueError("{} is not a duration with its unit; did you mean {}s?", repr(text), text)
        raise InvalidValueError("{} is not a duration with its unit, as in 500ms, 5s or 1m30s", repr(text))
    seconds = float(total_ns / _UNIT_NS["s"])
    if seconds > _MAX_DURATION_S:
        raise InvalidValueError("{} is longer than a year", repr(text))
    return seconds


def format_duration(seconds: float) -> str:
    """Format a duration as Go prints it, exact to the nanosecond: ``1m30s``, ``1.5s``, ``500ms``."""
    ns = round(seconds * _UNIT_NS["s"])
    if ns == 0:
        return "0s"
    if ns < _UNIT_NS["s"]:
        unit = next(name for name in ("ms", "us", "ns") if ns >= _UNIT_NS[name])
        return f"{_format_decimal(ns, _UNIT_NS[unit])}{unit}"
    hours, ns = divmod(ns, _UNIT_NS["h"])
    minutes, ns = divmod(ns, _UNIT_NS["m"])
    head = (f"{hours}h" if hours else "") + (f"{minutes}m" if minutes or (hours and ns) else "")
    return head + (f"{_format_decimal(ns, _UNIT_NS['s'])}s" if ns or not head else "")


def _format_decimal(ns: int, unit_ns: int) -> str:
    text = f"{Decimal(ns) / unit_ns:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def format_timestamp(seconds: float) -> str:
    """Format seconds since the epoch as RFC 3339 in UTC with milliseconds."""
    second = math.floor(seconds)
    microseconds = round((seconds - second) * 1e6)
    if microseconds == 1_000_000:
        second, microseconds = second + 1, 0
    return f"{_format_second(second)}.{microseconds // 1000:03d}Z"


@lru_cache(maxsize=1024)
def _format_second(second: int) -> str:
    """Format a whole second; cached, because many visitors leave, and many snapshots are made, in each."""
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")

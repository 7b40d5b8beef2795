"""What requests of the local API carry: query parameters and bodies, each checked, faults in a sentence. No I/O."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, Final

from tunnel.model.errors import did_you_mean
from tunnel.model.spec import LogLevel

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

MOST_LINES: Final = 10_000
SHORTEST_INTERVAL: Final = 0.1
LONGEST_INTERVAL: Final = 60.0
LONGEST_TIMEOUT: Final = 366 * 24 * 3600.0

_SWITCH: Final = {"true": True, "false": False}


class QueryError(ValueError):
    """A request makes no sense; the message is a sentence that names the place."""


def check_names(given: Collection[str], known: Collection[str], what: str) -> None:
    """Refuse what nobody would look at, for it was meant to have an effect. Raises QueryError."""
    for name in given:
        if name not in known:
            ours = f"known: {', '.join(known)}" if known else "none is known here"
            raise QueryError(f"unknown {what} {name[:100]!r}{did_you_mean(name, tuple(known)) or f'; {ours}'}")


def whole(query: Mapping[str, str], name: str, default: int) -> int:
    """A count of lines. Raises QueryError."""
    text = query.get(name, str(default))
    if not (text.isascii() and text.isdigit() and int(text[:9]) <= MOST_LINES):
        raise QueryError(f"{name}: {text[:40]!r} is not a whole number from 0 to {MOST_LINES}")
    return int(text)


def switch(query: Mapping[str, str], name: str, *, default: bool) -> bool:
    """``true`` or ``false``. Raises QueryError."""
    text = query.get(name, str(default).lower())
    if text not in _SWITCH:
        raise QueryError(f"{name}: {text[:40]!r} is neither true nor false")
    return _SWITCH[text]


def seconds(query: Mapping[str, str], name: str, default: float) -> float:
    """An interval; one that is too short becomes the shortest. Raises QueryError."""
    text = query.get(name, str(default))
    try:
        value = float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        value = math.nan
    if not 0 <= value <= LONGEST_INTERVAL:
        raise QueryError(f"{name}: {text[:40]!r} is not a number of seconds from 0 to {LONGEST_INTERVAL:g}")
    return max(SHORTEST_INTERVAL, value)


def level(query: Mapping[str, str], name: str, default: LogLevel) -> LogLevel:
    """A level by its name. Raises QueryError."""
    text = query.get(name, default.name.lower())
    levels = {known.name.lower(): known for known in LogLevel}
    if text not in levels:
        raise QueryError(f"{name}: {text[:40]!r} is none of {', '.join(levels)}")
    return levels[text]


def body(data: bytes, known: Mapping[str, type]) -> dict[str, Any]:
    """The JSON object of a request; an empty body is an empty object. Raises QueryError."""
    try:
        found = json.loads(data) if data else {}
    except (ValueError, RecursionError):
        raise QueryError("the body is not JSON") from None
    if not isinstance(found, dict):
        raise QueryError(f"the body is not a JSON object{' of ' + ', '.join(known) if known else ''}")
    check_names(found, known, "key in the body")
    for name, value in found.items():
        if known[name] is bool and not isinstance(value, bool):
            raise QueryError(f"{name} in the body is neither true nor false")
        if known[name] is float and not _is_duration(value):
            raise QueryError(f"{name} in the body is not a number of seconds from 0 to {LONGEST_TIMEOUT:g}")
    return found


def _is_duration(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= LONGEST_TIMEOUT

"""What a request of the local API may carry: query parameters and body fields, each with schema and parser. Pure.

A value that is not understood is a ParameterError with a sentence that names the parameter.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from orchestrator.errors import OrchestratorError
from orchestrator.history.periods import DEFAULT_DAYS, MAX_DAYS, Step
from tunnel.model.errors import InvalidValueError, did_you_mean
from tunnel.model.option_types import parse_natural
from tunnel.model.spec import LogLevel
from tunnel.model.visitors import VisitorSelector, parse_selector

Schema = Mapping[str, object]
"""A JSON Schema, as OpenAPI 3.1 uses it."""

Value = TypeVar("Value")

MAX_LINES: Final = 10_000
MIN_INTERVAL_S: Final = 0.1
MAX_INTERVAL_S: Final = 60.0
MAX_RATES_S: Final = 10.0
MAX_TIMEOUT_S: Final = 366 * 24 * 3600.0

_FLAGS: Final = {"true": True, "false": False}
_LEVELS: Final = {level.name.lower(): level for level in LogLevel}


class ParameterError(OrchestratorError, ValueError):
    """A request is malformed; the message is a sentence that names the parameter."""


@dataclass(frozen=True, slots=True)
class Parameter(Generic[Value]):
    """A query parameter of a route."""

    name: str
    summary: str
    schema: Schema
    default: Value
    parse: Callable[[Sequence[str]], Value]
    """takes all values of that name, at least one; raises ParameterError"""

    def read(self, values: Sequence[str]) -> Value:
        """Return the value of a request; ``values`` are those given under this name. Raises ParameterError."""
        return self.parse(values) if values else self.default


@dataclass(frozen=True, slots=True)
class BodyField(Generic[Value]):
    """A field of the JSON object in the body of a request."""

    name: str
    summary: str
    schema: Schema
    default: Value
    parse: Callable[[object], Value]
    """raises ParameterError"""

    def read(self, body: Mapping[str, object]) -> Value:
        """Return the value of a request. Raises ParameterError."""
        return self.parse(body[self.name]) if self.name in body else self.default


def check_names(given: Collection[str], known: Collection[str], what: str) -> None:
    """Reject unknown names: the client expects an effect of them. Raises ParameterError."""
    for name in given:
        if name not in known:
            listed = f"known: {', '.join(known)}" if known else "none is known here"
            raise ParameterError(f"unknown {what} {name[:100]!r}{did_you_mean(name, tuple(known)) or f'; {listed}'}")


def parse_body(data: bytes, known: Collection[str]) -> Mapping[str, object]:
    """Return the JSON object of a body; an empty body is an empty object. Raises ParameterError."""
    try:
        found = json.loads(data) if data else {}
    except (ValueError, RecursionError):
        raise ParameterError("the body is not JSON") from None
    if not isinstance(found, dict):
        raise ParameterError(f"the body is not a JSON object{' of ' + ', '.join(known) if known else ''}")
    check_names(found, known, "key in the body")
    return found


# --- the parameters ---------------------------------------------------------------------------------------------------


def count_parameter(default: int) -> Parameter[int]:
    """Return the parameter ``n``, a maximum number of lines."""

    def parse(values: Sequence[str]) -> int:
        count = parse_natural(values[0])
        if count is None or count > MAX_LINES:
            raise ParameterError(f"n: {values[0][:40]!r} is not a whole number from 0 to {MAX_LINES}")
        return count

    schema = {"type": "integer", "minimum": 0, "maximum": MAX_LINES, "default": default}
    return Parameter("n", "Maximum number of events.", schema, default, parse)


def follow_parameter(*, default: bool) -> Parameter[bool]:
    """Return the parameter ``follow``."""

    def parse(values: Sequence[str]) -> bool:
        if values[0] not in _FLAGS:
            raise ParameterError(f"follow: {values[0][:40]!r} is neither true nor false")
        return _FLAGS[values[0]]

    summary = "Keep the answer open and send further events as they happen."
    return Parameter("follow", summary, {"type": "boolean", "default": default}, default, parse)


def _parse_seconds(name: str, text: str, limit_s: float) -> float:
    try:
        value = float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        value = math.nan
    if not 0 <= value <= limit_s:
        raise ParameterError(f"{name}: {text[:40]!r} is not a number of seconds from 0 to {limit_s:g}")
    return value


def _parse_interval(values: Sequence[str]) -> float:
    return max(MIN_INTERVAL_S, _parse_seconds("interval", values[0], MAX_INTERVAL_S))


def _parse_rates(values: Sequence[str]) -> float:
    return _parse_seconds("rates", values[0], MAX_RATES_S)


def _parse_level(values: Sequence[str]) -> LogLevel:
    if values[0] not in _LEVELS:
        raise ParameterError(f"level: {values[0][:40]!r} is none of {', '.join(_LEVELS)}")
    return _LEVELS[values[0]]


INTERVAL: Final = Parameter(
    "interval",
    f"Seconds between two changes, at least {MIN_INTERVAL_S:g}; changes of a reload are sent at once.",
    {"type": "number", "minimum": 0, "maximum": MAX_INTERVAL_S, "default": 0.25},
    0.25,
    _parse_interval,
)
LEVEL: Final = Parameter(
    "level",
    "Lowest level.",
    {"type": "string", "enum": list(_LEVELS), "default": "info"},
    LogLevel.INFO,
    _parse_level,
)
TUNNELS: Final[Parameter[frozenset[str]]] = Parameter(
    "tunnel",
    "Names of tunnels; without it events of all.",
    {"type": "array", "items": {"type": "string"}},
    frozenset(),
    frozenset,
)
VISITORS_OF: Final[Parameter[tuple[str, ...]]] = Parameter(
    "tunnel",
    "Names of tunnels; without it those of all.",
    {"type": "array", "items": {"type": "string"}},
    (),
    lambda values: tuple(dict.fromkeys(values)),
)
RATES: Final = Parameter(
    "rates",
    f"Seconds in which rates are measured, up to {MAX_RATES_S:g}; 0: rates are null. The answer comes as much later.",
    {"type": "number", "minimum": 0, "maximum": MAX_RATES_S, "default": 0},
    0.0,
    _parse_rates,
)
TRAFFIC_TUNNELS: Final[Parameter[frozenset[str]]] = Parameter(
    "tunnel",
    "Names of tunnels, or patterns such as `edge-*`; without it all, also those that are not in the file any more.",
    {"type": "array", "items": {"type": "string"}},
    frozenset(),
    frozenset,
)


def _parse_step(values: Sequence[str]) -> Step:
    if values[0] not in list(Step):
        raise ParameterError(f"by: {values[0][:40]!r} is none of {', '.join(Step)}")
    return Step(values[0])


def _parse_days(values: Sequence[str]) -> int:
    days = parse_natural(values[0])
    if not days or days > MAX_DAYS:
        raise ParameterError(f"days: {values[0][:40]!r} is not a whole number from 1 to {MAX_DAYS}")
    return days


STEP: Final = Parameter(
    "by",
    "What a row sums up; `total`: the whole time. Days and months are those of the daemon's time zone.",
    {"type": "string", "enum": list(Step), "default": Step.DAY.value},
    Step.DAY,
    _parse_step,
)
DAYS: Final[Parameter[int]] = Parameter(
    "days",
    "How many days, today included; for `hour` 1 means the last 24 hours. Default: "
    + ", ".join(f"{days} for `{step}`" for step, days in DEFAULT_DAYS.items())
    + ".",
    {"type": "integer", "minimum": 1, "maximum": MAX_DAYS},
    0,
    _parse_days,
)
LOG_COUNT: Final = count_parameter(200)
EVENT_COUNT: Final = count_parameter(100)
FOLLOW_LOGS: Final = follow_parameter(default=False)
FOLLOW_EVENTS: Final = follow_parameter(default=False)


def _parse_timeout(value: object) -> float | None:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= MAX_TIMEOUT_S:
        return float(value)
    raise ParameterError(f"timeout in the body is not a number of seconds from 0 to {MAX_TIMEOUT_S:g}")


def _parse_text(value: object) -> str:
    if isinstance(value, str):
        return value
    raise ParameterError("content, name and target in the body are texts")


CONTENT: Final[BodyField[str | None]] = BodyField(
    "content",
    "The text of the candidate: a whole file. Relative file names in it start at the running file's directory.",
    {"type": "string"},
    None,
    _parse_text,
)
NAME: Final = BodyField(
    "name", "What faults call the candidate.", {"type": "string", "default": "candidate"}, "candidate", _parse_text
)


def _parse_selector(value: object) -> VisitorSelector | None:
    if not isinstance(value, str):
        raise ParameterError("visitors in the body is no text")
    try:
        return parse_selector(value)
    except InvalidValueError as error:
        raise ParameterError(f"visitors in the body: {error}") from None


def _parse_names(value: object) -> tuple[str, ...]:
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return tuple(dict.fromkeys(value))
    raise ParameterError("tunnels in the body is no list of names")


VISITORS: Final[BodyField[VisitorSelector | None]] = BodyField(
    "visitors",
    "An ID, an IP address with or without its port, or a network.",
    {"type": "string"},
    None,
    _parse_selector,
)
KICK_TUNNELS: Final[BodyField[tuple[str, ...]]] = BodyField(
    "tunnels",
    "Names of tunnels; without it visitors of all.",
    {"type": "array", "items": {"type": "string"}},
    (),
    _parse_names,
)


def _parse_drain(value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise ParameterError("drain in the body is neither true nor false")


TIMEOUT: Final[BodyField[float | None]] = BodyField(
    "timeout",
    "Limit of the drain in seconds.",
    {"type": "number", "minimum": 0, "maximum": MAX_TIMEOUT_S},
    None,
    _parse_timeout,
)
TARGET: Final[BodyField[str | None]] = BodyField(
    "target",
    "The address of one of several targets, as the status shows it: only this target is meant, not the tunnel.",
    {"type": "string"},
    None,
    _parse_text,
)
LINK: Final[BodyField[str | None]] = BodyField(
    "link",
    "The id of one of several links, as the status shows it: only this link is meant, not the tunnel.",
    {"type": "string"},
    None,
    _parse_text,
)
DRAIN: Final = BodyField(
    "drain",
    "false: disconnect visitors at once.",
    {"type": "boolean", "default": True},
    default=True,
    parse=_parse_drain,
)

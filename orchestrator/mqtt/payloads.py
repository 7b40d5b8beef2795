"""What is said on the broker: JSON objects, each with its version and moment. Pure."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from tunnel.model.times import format_timestamp

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tunnel.model.events import Event

VERSION: Final = 1
LARGEST: Final = 256 * 1024
"""Bytes of a payload that are looked at."""

STATS: Final = ("pool", "signals", "connections", "bytes", "rtt_ms", "cooldown")
"""What of a tunnel is told as statistics."""

_ENDLESS: Final = 1e15  # seconds: no moment, and beyond what some clocks can say

FRAME: Final = frozenset({"v", "boot", "seq", "ts"})
"""What a payload has besides what it tells."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Who speaks for a host: an installation, which stays the same, and one life of its daemon."""

    instance: str
    boot: str
    started_at: float = 0.0
    """when that life began, in seconds since the epoch"""


def encode(payload: Mapping[str, Any]) -> bytes:
    """A payload on the wire."""
    return json.dumps(payload, ensure_ascii=False, separators=(",", ":"), default=str).encode(errors="replace")


def parsed(data: object) -> dict[str, Any] | None:
    """A payload as somebody sent it; None where it is no JSON object."""
    if not isinstance(data, (bytes, bytearray)) or len(data) > LARGEST:
        return None
    try:
        found = json.loads(data, parse_constant=_number, parse_float=_number)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _number(text: str) -> float:
    """Python reads NaN and infinities where JSON has none: a command that expires at NaN would never expire."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def decode(data: object) -> dict[str, Any] | None:
    """A payload of our version; None where it is something else."""
    found = parsed(data)
    return found if found and found.get("v") == VERSION else None


def status(origin: Origin, ts: str, *, online: bool) -> dict[str, Any]:
    """Birth, last will and farewell."""
    return {
        "v": VERSION,
        "online": online,
        "boot": origin.boot,
        "instance": origin.instance,
        "started_at": format_timestamp(origin.started_at),
        "ts": ts,
    }


def info(
    origin: Origin, head: Mapping[str, Any], ts: str, *, tunnels: int, commands: bool, discovery: str | None
) -> dict[str, Any]:
    """A host in a few words; ``head`` is the status object without its tunnels, ``discovery`` the prefix in use."""
    config = head["config"]
    return {
        "v": VERSION,
        "name": head["host"],
        "version": head["version"],
        "config_ok": config["ok"],
        "config_error": config["error"],
        "generation": head["generation"],
        "tunnels": tunnels,
        "read_only": head["read_only"],
        "commands": commands,
        "discovery": discovery,
        "started_at": head["started_at"],
        "instance": origin.instance,
        "boot": origin.boot,
        "ts": ts,
    }


def state(origin: Origin, tunnel: Mapping[str, Any], seq: int, ts: str) -> dict[str, Any]:
    """Everything about a tunnel: its object of ``ps --json``."""
    return {**tunnel, "v": VERSION, "boot": origin.boot, "seq": seq, "ts": ts}


def stats(origin: Origin, tunnel: Mapping[str, Any], ts: str) -> dict[str, Any]:
    """A tunnel's numbers."""
    return {"v": VERSION, **{key: tunnel[key] for key in STATS}, "boot": origin.boot, "ts": ts}


def event(origin: Origin, happened: Event) -> dict[str, Any]:
    """Something that happened."""
    return {**happened.as_json(), "v": VERSION, "boot": origin.boot}


def answer(order: str | None, result: object = None, error: str | None = None) -> dict[str, Any]:
    """What became of a command."""
    return {"v": VERSION, "id": order, "ok": error is None, "error": error, "result": result}


def moment(value: object) -> float | None:
    """Seconds since the epoch from RFC 3339 or from a number; None where it is neither."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value) if abs(value) < _ENDLESS else None
    try:
        found = datetime.fromisoformat(str(value))
    except ValueError:
        return None
    return found.timestamp() if found.tzinfo else None

"""The payloads on the broker: JSON objects with a version. Only this module encodes and decodes them. Pure."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, Protocol, Self, cast

from orchestrator.process.terminal_text import load_printable_json
from tunnel.model.events import VISITOR
from tunnel.model.times import format_timestamp

if TYPE_CHECKING:
    from orchestrator.status.contract import DaemonInfo
    from orchestrator.status.json_types import EventJson
    from tunnel.model.events import Event

VERSION: Final = 1
MAX_PAYLOAD_BYTES: Final = 256 * 1024
"""Larger payloads are ignored."""

STATS_KEYS: Final = ("pool", "signals", "connections", "bytes", "rates", "rtt_ms", "cooldown", "quota", "rate_limits")
"""Keys of a tunnel's object that are published as its statistics."""

ENVELOPE_KEYS: Final = frozenset({"v", "boot", "seq", "ts"})
"""Keys of a state payload that do not belong to the tunnel."""

_MAX_ERROR_CHARS: Final = 2000  # of a response that is too long
_MAX_REST_BYTES: Final = 16 * 1024  # of a response, without the entries for its tunnels
_MAX_TIMESTAMP_S: Final = 1e15  # beyond what some clocks can express


JsonObject = Mapping[str, object]
"""A JSON object whose keys are not checked yet."""


class Payload(Protocol):
    """What a row of the topic table needs of its payload."""

    @classmethod
    def json_keys(cls) -> tuple[str, ...]:
        """The keys of the JSON object, for the documentation."""

    def as_json(self) -> Mapping[str, object]:
        """The JSON object that is sent."""


@dataclass(frozen=True, slots=True)
class DaemonRun:
    """One run of a host's daemon."""

    instance: str
    """id of the installation: the same in every run"""
    boot: str
    """id of this run"""
    started_at: float = 0.0
    """seconds since the epoch"""


# --- encoding and decoding --------------------------------------------------------------------------------------------


def encode(payload: Mapping[str, object]) -> bytes:
    """A payload as it is sent."""
    return json.dumps(payload, ensure_ascii=False, separators=(",", ":"), default=str).encode(errors="replace")


def parse_json(data: object) -> JsonObject | None:
    """A received JSON object of any version; None where the data is something else.

    Whatever its sender wrote, its texts have no control characters: they are shown on terminals.
    """
    if not isinstance(data, (bytes, bytearray)) or len(data) > MAX_PAYLOAD_BYTES:
        return None
    try:
        text = data.decode().removeprefix("\ufeff")
        found = load_printable_json(text, _decode_json)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _finite_number(text: str) -> float:
    """Reject NaN and infinities, which Python reads but JSON does not have: a command with exp NaN never expires."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


_DECODER: Final = json.JSONDecoder(parse_constant=_finite_number, parse_float=_finite_number)


def _decode_json(text: str) -> object:
    return _DECODER.decode(text)


def decode(data: object) -> JsonObject | None:
    """A received payload of our version; None where the data is something else."""
    found = parse_json(data)
    return found if found and found.get("v") == VERSION else None


def parse_timestamp(value: object) -> float | None:
    """Seconds since the epoch from RFC 3339 text or from a number; None where the value is neither."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value) if abs(value) < _MAX_TIMESTAMP_S else None
    try:
        found = datetime.fromisoformat(str(value))
    except ValueError:
        return None
    return found.timestamp() if found.tzinfo else None


def _has_only_texts(data: Mapping[str, object], keys: tuple[str, ...]) -> bool:
    return all(isinstance(data.get(key), str | None) for key in keys)


# --- the host ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _FlatPayload:
    """A payload whose fields are the keys of its JSON object."""

    texts: ClassVar[tuple[str, ...]] = ()
    """keys that hold a text or null; an object with anything else there is not decoded"""
    flags: ClassVar[tuple[str, ...]] = ()
    counts: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def json_keys(cls) -> tuple[str, ...]:
        """The keys of the JSON object, for the documentation."""
        return ("v", *(field.name for field in fields(cls)))

    def as_json(self) -> dict[str, object]:
        """The JSON object that is sent."""
        return {"v": VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, data: JsonObject) -> Self | None:
        """The payload in a received object; None where a text is not a text. Other values of a wrong type are null."""
        if not _has_only_texts(data, cls.texts):
            return None
        values: dict[str, Any] = {key: data.get(key) for key in cls.texts}
        values |= {key: data[key] for key in cls.flags if isinstance(data.get(key), bool)}
        values |= {key: data[key] for key in cls.counts if type(data.get(key)) is int}
        return cls(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusPayload(_FlatPayload):
    """Whether a host is online: sent at birth and at its end, and the last will."""

    texts = ("boot", "instance", "started_at", "ts")
    flags = ("online",)

    online: bool = False
    boot: str | None = None
    instance: str | None = None
    started_at: str | None = None
    ts: str | None = None

    @classmethod
    def of_run(cls, run: DaemonRun, ts: str, *, online: bool) -> StatusPayload:
        """The status of a run of a daemon."""
        return cls(
            online=online, boot=run.boot, instance=run.instance, started_at=format_timestamp(run.started_at), ts=ts
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class InfoPayload(_FlatPayload):
    """Version, configuration and settings of a host."""

    texts = ("name", "version", "config_error", "discovery", "started_at", "instance", "boot", "ts")
    flags = ("config_ok", "read_only", "commands")
    counts = ("generation", "tunnels", "bytes_today", "bytes_month")

    name: str | None = None
    """host name of the machine"""
    version: str | None = None
    config_ok: bool | None = None
    config_error: str | None = None
    generation: int | None = None
    tunnels: int | None = None
    """number of tunnels"""
    read_only: bool | None = None
    commands: bool | None = None
    """whether commands over MQTT are accepted"""
    discovery: str | None = None
    """prefix of the Home Assistant discovery topics, if they are published"""
    bytes_today: int | None = None
    """of all tunnels in both directions, since midnight in the host's time zone; None: not recorded"""
    bytes_month: int | None = None
    """the same since the first of the month"""
    started_at: str | None = None
    instance: str | None = None
    boot: str | None = None
    ts: str | None = None

    @classmethod
    def of_run(
        cls, run: DaemonRun, daemon: DaemonInfo, ts: str, *, tunnels: int, commands: bool, discovery: str | None
    ) -> InfoPayload:
        """``discovery`` is the prefix in use, if there is one."""
        return cls(
            name=daemon.host,
            version=daemon.version,
            config_ok=daemon.config.ok,
            config_error=daemon.config.error,
            generation=daemon.generation,
            tunnels=tunnels,
            read_only=daemon.read_only,
            commands=commands,
            discovery=discovery,
            started_at=daemon.started_at,
            instance=run.instance,
            boot=run.boot,
            ts=ts,
        )


# --- tunnels and events -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StatePayload:
    """Everything about a tunnel: its object of ``ps --json``."""

    tunnel: Mapping[str, object]
    boot: str
    seq: int
    """counts the states that this run of the daemon has published"""
    ts: str

    @classmethod
    def json_keys(cls) -> tuple[str, ...]:
        """The keys of the JSON object, for the documentation."""
        return ("v", "boot", "seq", "ts", "…")

    def as_json(self) -> dict[str, object]:
        """The JSON object that is sent."""
        return {**self.tunnel, "v": VERSION, "boot": self.boot, "seq": self.seq, "ts": self.ts}


class StateParts(NamedTuple):
    """An encoded StatePayload, split where its envelope begins."""

    tunnel: bytes
    """the tunnel's object without its closing brace"""
    boot: str
    ts: str


_ENVELOPE_START: Final = b',"v":%d,"boot":' % VERSION
_ENVELOPE: Final = re.compile(rb',"v":%d,"boot":"([0-9A-Za-z-]*)","seq":[0-9]+,"ts":"([0-9TZ:.+-]*)"\}' % VERSION)


def split_state(data: object) -> StateParts | None:
    """The parts of a state as our publisher encodes it; None for other data, which may be a valid state nevertheless.

    If two states have the same ``tunnel`` and one is valid, they describe the same tunnel: a repeated state needs no
    decoding.
    """
    if not isinstance(data, bytes):
        return None
    start = data.rfind(_ENVELOPE_START)
    envelope = _ENVELOPE.fullmatch(data, max(start, 0))
    return None if envelope is None else StateParts(data[:start], envelope[1].decode(), envelope[2].decode())


@dataclass(frozen=True, slots=True)
class StatsPayload:
    """The numbers of a tunnel."""

    tunnel: Mapping[str, object]
    """its object of ``ps --json``; only STATS_KEYS of it are published"""
    boot: str
    ts: str

    @classmethod
    def json_keys(cls) -> tuple[str, ...]:
        """The keys of the JSON object, for the documentation."""
        return ("v", "boot", "ts", *STATS_KEYS)

    def as_json(self) -> dict[str, object]:
        """The JSON object that is sent."""
        return {"v": VERSION, **{key: self.tunnel[key] for key in STATS_KEYS}, "boot": self.boot, "ts": self.ts}


@dataclass(frozen=True, slots=True)
class EventPayload:
    """One event of the host or of a tunnel."""

    event: Event
    boot: str

    @classmethod
    def json_keys(cls) -> tuple[str, ...]:
        """The keys of the JSON object, for the documentation."""
        return ("v", "boot", "ts", "tunnel", "level", "kind", "text", "…")

    def as_json(self) -> dict[str, object]:
        """The JSON object that is sent: without the address of a visitor."""
        known = self.event.as_json()
        known.pop(VISITOR, None)
        return {**known, "v": VERSION, "boot": self.boot}


def parse_event(data: object) -> EventJson | None:
    """A received event; None where the data is something else."""
    found = decode(data)
    keys = ("ts", "tunnel", "level", "kind", "text")
    if found is None or not all(isinstance(found.get(key), str) for key in keys):
        return None
    return cast("EventJson", found)


# --- commands ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandPayload:
    """A command to a host. The host validates the received object in ``commands.py``."""

    id: str
    op: str
    target: str | None
    reply: str | None = None
    """last level of the response topic; None: the id"""
    exp: str | None = None
    """when the command expires, RFC 3339"""
    boot: str | None = None
    """the run of the daemon that the command is for"""
    timeout: float | None = None
    """limit of the drain that the command implies, in seconds"""
    link: str | None = None
    """only this one of several links of the tunnel starts or drains"""
    target_address: str | None = None
    """only this one of several targets of the tunnel starts or drains"""

    @classmethod
    def json_keys(cls) -> tuple[str, ...]:
        """The keys of the JSON object, for the documentation."""
        return ("v", *(field.name for field in fields(cls)))

    def as_json(self) -> dict[str, object]:
        """The JSON object, without optional keys that have no value."""
        optional = {
            "reply": self.reply, "exp": self.exp, "boot": self.boot, "timeout": self.timeout, "link": self.link,
            "target_address": self.target_address,
        }  # fmt: skip
        given = {key: value for key, value in optional.items() if value is not None}
        return {"v": VERSION, "id": self.id, "op": self.op, "target": self.target, **given}


_LISTS: Final = ("results", "tunnels")
"""Keys of a result that hold one entry for each tunnel."""


def _shortened(result: Mapping[str, object]) -> dict[str, object]:
    """The result with as many entries as there is room for."""
    shorter = dict(result)
    for key in _LISTS:
        entries = result.get(key)
        if isinstance(entries, Mapping):
            shorter[key] = kept = _entries_with_room(entries)
            shorter["omitted"] = len(entries) - len(kept)
    return shorter


def _entries_with_room(entries: Mapping[str, object]) -> dict[str, object]:
    kept: dict[str, object] = {}
    room = MAX_PAYLOAD_BYTES - _MAX_REST_BYTES
    for name in sorted(entries, key=lambda name: not _has_failed(entries[name])):
        room -= len(encode({name: entries[name]}))
        if room < 0:
            break
        kept[name] = entries[name]
    return kept


def _has_failed(entry: object) -> bool:
    return isinstance(entry, Mapping) and (entry.get("ok") is False or entry.get("action") in {"rejected", "failed"})


def _count_entries(result: Mapping[str, object]) -> int:
    return sum(len(entries) for key in _LISTS if isinstance(entries := result.get(key), Mapping))


@dataclass(frozen=True, slots=True)
class ResponsePayload:
    """The result of a command."""

    id: str | None
    result: Mapping[str, object] | None = None
    error: str | None = None
    ok: bool = True

    @classmethod
    def failed(cls, id_: str | None, error: str, result: Mapping[str, object] | None = None) -> ResponsePayload:
        """The response to a command that was refused or that failed."""
        return cls(id_, result, error, ok=False)

    @classmethod
    def json_keys(cls) -> tuple[str, ...]:
        """The keys of the JSON object, for the documentation."""
        return ("v", "id", "ok", "error", "result")

    def as_json(self) -> dict[str, object]:
        """The JSON object that is sent."""
        return {"v": VERSION, "id": self.id, "ok": self.ok, "error": self.error, "result": self.result}

    def bounded(self) -> ResponsePayload:
        """The response in at most MAX_PAYLOAD_BYTES, which no reader would accept otherwise.

        Of many tunnels the failed ones come first, and ``omitted`` in the result is how many there is no room for.
        """
        if len(encode(self.as_json())) <= MAX_PAYLOAD_BYTES:
            return self
        error = None if self.error is None else self.error[:_MAX_ERROR_CHARS]
        result = {} if self.result is None else _shortened(self.result)
        shorter = replace(self, error=error, result=result)
        if len(encode(shorter.as_json())) <= MAX_PAYLOAD_BYTES:
            return shorter
        return replace(shorter, result={"omitted": _count_entries(self.result or {})})

    @classmethod
    def from_json(cls, data: JsonObject) -> ResponsePayload:
        """The response in a received object of any version."""
        id_, error, result = data.get("id"), data.get("error"), data.get("result")
        return cls(
            id_ if isinstance(id_, str) else None,
            result if isinstance(result, dict) else None,
            None if error is None else str(error),
            ok=data.get("ok") is True,
        )

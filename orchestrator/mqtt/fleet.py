"""All hosts as they tell of themselves, each with the age of its last word. Pure: words go in, a picture is there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from orchestrator.mqtt import payloads
from orchestrator.mqtt.rivals import SILENCE
from tunnel.model.times import format_timestamp

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from orchestrator.mqtt.topics import Spot

Json = dict[str, Any]

ONLINE: Final = "online"
SILENT: Final = "silent"
"""It never said farewell, and has not spoken for too long: host and broker may have died together."""
GONE: Final = "gone"

_GROUPS: Final = {
    "pool": ("idle", "capacity"),
    "signals": ("queued",),
    "connections": ("active", "total"),
    "bytes": ("in", "out"),
    "cooldown": ("remaining_s", "attempt"),
}
_TEXTS: Final = ("name", "role", "state", "tunnel_addr", "target_addr", "auth")
_UNKNOWN: Final = dict.fromkeys(
    ("direction", "reason", "since", "data_addr", "peer", "link", "last_error", "last_error_at")
)
"""Texts that may be missing, for another version may have none."""
_ABSENT: Final = {**_UNKNOWN, "worker": 0, "tags": ()}
_OF_HOST: Final = ("boot", "instance", "name", "version", "config_error", "started_at")
_LARGEST: Final = 1 << 64


@dataclass(slots=True)
class Host:
    """One host as last heard of. Moments are seconds of our monotonic clock: one that is set makes nobody silent."""

    name: str
    status: Json = field(default_factory=dict)
    info: Json = field(default_factory=dict)
    heard_at: float | None = None
    """when it last spoke; None: nobody knows"""
    _tunnels: dict[str, Json] = field(default_factory=dict)
    _links: dict[str, str] = field(default_factory=dict)

    @property
    def boot(self) -> str | None:
        """The life of its daemon that speaks now, or spoke last."""
        return self.status.get("boot")

    @property
    def label(self) -> str:
        """Its name, with the machine's beside it where the two differ."""
        machine = self.info.get("name")
        return f"{self.name} ({machine})" if machine and machine != self.name else self.name

    def presence(self, now: float) -> str:
        """ONLINE, SILENT or GONE."""
        if self.status.get("online") is not True:
            return GONE
        return ONLINE if self.heard_at is not None and now - self.heard_at < SILENCE else SILENT

    def age(self, now: float) -> float | None:
        """Seconds since its last word; None where nobody knows."""
        return None if self.heard_at is None else max(0.0, now - self.heard_at)

    def tunnels(self) -> list[Json]:
        """Its tunnels as in its ``ps --json``, by name; leftovers of an earlier life are none."""
        told = [self.told(name) for name in sorted(self._tunnels)]
        return [{key: value for key, value in one.items() if key not in payloads.FRAME} for one in told if one]

    def names(self) -> list[str]:
        """The names of its tunnels."""
        return [name for name in sorted(self._tunnels) if self.told(name) is not None]

    def told(self, name: str) -> Json | None:
        """One of its tunnels as it was told last, with the frame of that; None where it is none."""
        told = self._tunnels.get(name)
        if told is None or (self.status.get("online") is True and told.get("boot") != self.boot):
            return None
        return told

    def link_of(self, tunnel: str) -> str | None:
        """The id of its link, or of the last one it had as long as we look."""
        return self._links.get(tunnel)

    def as_json(self, now: float, wall: float) -> Json:
        """The host as ``fleet ps --json`` shows it; ``wall`` is the time of day at ``now``, as of the epoch."""
        age = self.age(now)
        return {
            "host": self.name,
            "presence": self.presence(now),
            "heard_at": None if age is None else format_timestamp(wall - age),
            "age_s": None if age is None else round(age, 1),
            "boot": self.boot,
            "name": self.info.get("name"),
            "version": self.info.get("version"),
            "generation": self.info.get("generation"),
            "config": {"ok": self.info.get("config_ok"), "error": self.info.get("config_error")},
            "read_only": self.info.get("read_only"),
            "commands": self.info.get("commands"),
            "started_at": self.info.get("started_at"),
            "tunnels": self.tunnels(),
        }

    def hear(self, spot: Spot, payload: Json) -> bool:
        """Something it said; whether that told anything."""
        match spot.kind:
            case "status" | "info" if not _has_texts(payload, _OF_HOST):
                return False
            case "status":
                self.status = payload
            case "info":
                self.info = payload
            case "state":
                if not _is_tunnel(payload, spot.name):
                    return False
                self._tunnels[spot.name] = {**_ABSENT, **payload}
                if payload.get("link"):
                    self._links[spot.name] = str(payload["link"])
            case "stats":
                told = self._tunnels.get(spot.name)
                if told is None or told.get("boot") != payload.get("boot"):
                    return False
                numbers: Json = {key: payload[key] for key in (*payloads.STATS, "ts") if key in payload}
                if not _has_groups({**told, **numbers}):
                    return False
                self._tunnels[spot.name] = {**told, **numbers}
        return True

    def forget(self, spot: Spot) -> None:
        """Something is taken back."""
        match spot.kind:
            case "status":
                self.status = {}
            case "info":
                self.info = {}
            case "state":
                self._tunnels.pop(spot.name, None)
                self._links.pop(spot.name, None)

    @property
    def is_empty(self) -> bool:
        """Whether nothing of it is left."""
        return not (self.status or self.info or self._tunnels)


class Fleet:
    """All hosts that were ever heard of, by name."""

    def __init__(self) -> None:
        self.hosts: dict[str, Host] = {}

    def __iter__(self) -> Iterator[Host]:
        return iter(sorted(self.hosts.values(), key=lambda host: host.name))

    def take(self, spot: Spot, data: object, now: float, wall: float, *, is_retained: bool) -> bool:
        """What was said at a spot at ``now``; whether it told anything. An empty payload takes back what was there.

        The age of what is retained is found by the time of day ``wall``: only that means something to its host too.
        """
        if not data:
            host = self.hosts.get(spot.host)
            if host is None:
                return False
            host.forget(spot)
            if host.is_empty:
                del self.hosts[spot.host]
            return True
        payload = payloads.decode(data)
        if payload is None:
            return False
        host = self.hosts.get(spot.host) or Host(spot.host)
        if not host.hear(spot, payload):
            return False
        self.hosts[spot.host] = host
        age = _age(spot, payload, wall, is_retained=is_retained)
        if age is not None:
            host.heard_at = now - age if host.heard_at is None else max(host.heard_at, now - age)
        return True


def _age(spot: Spot, payload: Json, wall: float, *, is_retained: bool) -> float | None:
    """Seconds since the host itself said this: a will is the broker's word, written when the connection began."""
    if spot.kind == "status" and payload.get("online") is not True:
        return None
    if not is_retained:
        return 0.0
    said = payloads.moment(payload.get("ts"))
    return None if said is None else max(0.0, wall - said)


def _is_tunnel(payload: Json, name: str) -> bool:
    return (
        payload.get("name") == name
        and all(isinstance(payload.get(key), str) for key in _TEXTS)
        and _has_texts(payload, _UNKNOWN)
        and isinstance(payload.get("tags", []), list)
        and _is_number(payload.get("worker", 0))
        and _has_groups(payload)
    )


def _has_groups(payload: Json) -> bool:
    for group, keys in _GROUPS.items():
        found = payload.get(group)
        if not isinstance(found, Mapping) or not all(_is_number(found.get(key)) for key in keys):
            return False
    return True


def _has_texts(payload: Json, keys: Iterable[str]) -> bool:
    """Whether each of them is a text, or nothing."""
    return all(isinstance(payload.get(key), str | None) for key in keys)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -_LARGEST < value < _LARGEST

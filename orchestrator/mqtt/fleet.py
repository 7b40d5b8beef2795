"""All hosts of a broker as their messages describe them. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from orchestrator.mqtt.ownership import SILENT_AFTER_S
from orchestrator.mqtt.payloads import (
    ENVELOPE_KEYS,
    STATS_KEYS,
    InfoPayload,
    JsonObject,
    StateParts,
    StatusPayload,
    decode,
    parse_timestamp,
    split_state,
)
from orchestrator.status.contract import (
    StatusFormatError,
    are_valid_changes,
    complete_changes,
    complete_snapshot,
    share_values,
)
from tunnel.model.times import format_timestamp

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from orchestrator.mqtt.topics import ParsedTopic
    from orchestrator.status.json_types import HostJson, TunnelJson

ONLINE: Final = "online"
SILENT: Final = "silent"
"""Said to be online, but nothing was published for too long: host and broker may have died together."""
GONE: Final = "gone"

MAX_LOST_LINKS: Final = 16
"""Lost links of a tunnel that are remembered: their clients may still show them."""

_MAX_LATENCY_S: Final = 5.0
"""A stamp that is so much ahead of our clock was made by a clock that is ahead: it says nothing about its age."""
_UNKNOWN_STATUS: Final = StatusPayload()
_UNKNOWN_INFO: Final = InfoPayload()

# --- hosts ------------------------------------------------------------------------------------------------------------


class RemoteTunnel(NamedTuple):
    """A tunnel as its last messages describe it. One is made for each message, and most of its time is never read."""

    json: TunnelJson
    """its object of ``ps --json``, valid by the status contract"""
    boot: str | None
    """the run of the daemon that published it"""
    ts: object
    """when, as the message says"""
    fingerprint: int | None = None
    """hash of the encoded object, if ``json`` is as the last state had it; None if unknown"""

    @property
    def sent_at(self) -> float | None:
        """When, by the clock of its host, in seconds since the epoch."""
        return parse_timestamp(self.ts)


@dataclass(slots=True)
class Host:
    """One host as its last messages describe it.

    Times are seconds of our monotonic clock, so that setting the time of day makes no host silent.
    """

    name: str
    status: StatusPayload = _UNKNOWN_STATUS
    info: InfoPayload = _UNKNOWN_INFO
    last_message_at: float | None = None
    """when the host last published; None: unknown"""
    clock_offset_s: float | None = None
    """seconds by which the host's clock is ahead of ours, as of a message that arrived when it was sent"""
    newest_stamp: float | None = None
    """the latest time in a message of the host, by its clock, in seconds since the epoch"""
    _tunnels: dict[str, RemoteTunnel] = field(default_factory=dict)
    _last_links: dict[str, str] = field(default_factory=dict)
    _lost_links: dict[str, list[str]] = field(default_factory=dict)

    @property
    def boot(self) -> str | None:
        """The run of the daemon that published last."""
        return self.status.boot

    @property
    def label(self) -> str:
        """The name, with that of the machine where the two differ."""
        machine = self.info.name
        return f"{self.name} ({machine})" if machine and machine != self.name else self.name

    @property
    def is_empty(self) -> bool:
        """Whether the broker retains nothing of it any more."""
        return self.status is _UNKNOWN_STATUS and self.info is _UNKNOWN_INFO and not self._tunnels

    def presence(self, now: float) -> str:
        """ONLINE, SILENT or GONE."""
        if not self.status.online:
            return GONE
        is_recent = self.last_message_at is not None and now - self.last_message_at < SILENT_AFTER_S
        return ONLINE if is_recent else SILENT

    def age(self, now: float) -> float | None:
        """Seconds since the last message; None where that is unknown."""
        return None if self.last_message_at is None else max(0.0, now - self.last_message_at)

    def clock_lead_s(self, wall: float) -> float:
        """Seconds by which the host's clock is ahead of ours at least, as far as is known: never negative."""
        if self.clock_offset_s is not None:
            return max(0.0, self.clock_offset_s)
        return 0.0 if self.newest_stamp is None else max(0.0, self.newest_stamp - wall)

    def note_live_message(self, now: float, wall: float, ts: object) -> None:
        """The host has just sent something; ``ts``, the time by its clock, shows how the clocks differ."""
        self.last_message_at = now
        if (stamp := parse_timestamp(ts)) is not None:
            self.clock_offset_s = stamp - wall

    def tunnels(self) -> list[TunnelJson]:
        """The objects of ``ps --json`` of its tunnels, by name; without leftovers of an earlier run."""
        found = (self.tunnel(name) for name in sorted(self._tunnels))
        return [one.json for one in found if one is not None]

    def tunnel_names(self) -> list[str]:
        """The names of its tunnels."""
        return [name for name in sorted(self._tunnels) if self.tunnel(name) is not None]

    def tunnel(self, name: str) -> RemoteTunnel | None:
        """A tunnel as its last messages describe it; None where the host has no such tunnel."""
        found = self._tunnels.get(name)
        if found is None or (self.status.online and found.boot != self.boot):
            return None
        return found

    def last_link_of(self, tunnel: str) -> str | None:
        """The id of the tunnel's link, or of the last one that was seen."""
        return self._last_links.get(tunnel)

    def lost_links_of(self, tunnel: str) -> Sequence[str]:
        """The ids of links that the tunnel lost while it had several: the last ones, and at most MAX_LOST_LINKS."""
        return self._lost_links.get(tunnel, ())

    def as_json(self, now: float, wall: float) -> HostJson:
        """The host as ``fleet ps --json`` shows it; ``wall`` is the time of day at ``now``, seconds since the epoch."""
        age, info = self.age(now), self.info
        return {
            "host": self.name,
            "presence": self.presence(now),
            "heard_at": None if age is None else format_timestamp(wall - age),
            "age_s": None if age is None else round(age, 1),
            "clock_offset_s": None if self.clock_offset_s is None else round(self.clock_offset_s, 1),
            "boot": self.boot,
            "name": info.name,
            "version": info.version,
            "generation": info.generation,
            "config": {"ok": info.config_ok, "error": info.config_error},
            "read_only": info.read_only,
            "commands": info.commands,
            "bytes_today": info.bytes_today,
            "bytes_month": info.bytes_month,
            "started_at": info.started_at,
            "tunnels": self.tunnels(),
        }

    def repeat_state(self, name: str, parts: StateParts) -> bool:
        """Take over a state that differs from the last message of its tunnel in its envelope only; False if more does.

        Idle tunnels repeat their states, which are most of the messages of a fleet.
        """
        known = self._tunnels.get(name)
        if known is None or known.fingerprint != hash(parts.tunnel):
            return False
        self._tunnels[name] = RemoteTunnel(known.json, parts.boot, parts.ts, known.fingerprint)
        return True

    def apply(self, topic: ParsedTopic, payload: JsonObject, fingerprint: int | None = None) -> bool:
        """Take over a message of the host; False where it is malformed, or of an earlier run."""
        match topic.kind:
            case "status":
                status = StatusPayload.from_json(payload)
                self.status = status or self.status
                return status is not None
            case "info":
                info = InfoPayload.from_json(payload)
                self.info = info or self.info
                return info is not None
            case "state":
                return self._apply_state(topic.name, payload, fingerprint)
            case "stats":
                return self._apply_stats(topic.name, payload)
        return True

    def _apply_state(self, name: str, payload: JsonObject, fingerprint: int | None) -> bool:
        tunnel = dict(payload)
        for key in ENVELOPE_KEYS:
            tunnel.pop(key, None)
        known = self._tunnels.get(name)
        if known is not None and known.json == tunnel:
            self._set_tunnel(name, known.json, payload, fingerprint)
            return True
        if tunnel.get("name") != name:
            return False
        shared = share_values(tunnel)
        if shared is None:
            try:  # the host has another version, or the message is wrong
                shared = complete_snapshot(tunnel)
            except StatusFormatError:
                return False
        self._set_tunnel(name, shared, payload, fingerprint)
        return True

    def _apply_stats(self, name: str, payload: JsonObject) -> bool:
        known = self._tunnels.get(name)
        if known is None or known.boot != payload.get("boot"):
            return False
        numbers = {key: payload[key] for key in STATS_KEYS if key in payload}
        if not are_valid_changes(numbers):
            try:
                numbers = cast("dict[str, object]", complete_changes(numbers))
            except StatusFormatError:
                return False
        self._set_tunnel(name, cast("TunnelJson", {**known.json, **numbers}), payload, None)
        return True

    def _set_tunnel(self, name: str, tunnel: TunnelJson, payload: JsonObject, fingerprint: int | None) -> None:
        boot = payload.get("boot")
        known_boot = boot if isinstance(boot, str) else None
        known = self._tunnels.get(name)
        if known is not None and len(known.json["links"]) > 1 and known.json["links"] is not tunnel["links"]:
            self._note_lost_links(name, known.json, tunnel)
        self._tunnels[name] = RemoteTunnel(tunnel, known_boot, payload.get("ts"), fingerprint)
        if tunnel["link"]:
            self._last_links[name] = tunnel["link"]

    def _note_lost_links(self, name: str, before: TunnelJson, now: TunnelJson) -> None:
        present = {link["id"] for link in now["links"]}
        if lost := [link["id"] for link in before["links"] if link["id"] not in present]:
            self._lost_links[name] = [*self._lost_links.get(name, ()), *lost][-MAX_LOST_LINKS:]

    def clear(self, topic: ParsedTopic) -> None:
        """The broker no longer retains this topic."""
        match topic.kind:
            case "status":
                self.status = _UNKNOWN_STATUS
            case "info":
                self.info = _UNKNOWN_INFO
            case "state":
                self._tunnels.pop(topic.name, None)
                self._last_links.pop(topic.name, None)
                self._lost_links.pop(topic.name, None)


class Fleet:
    """All hosts that have published, by name."""

    def __init__(self) -> None:
        self.hosts: dict[str, Host] = {}

    def __iter__(self) -> Iterator[Host]:
        return iter(sorted(self.hosts.values(), key=lambda host: host.name))

    def apply_message(self, topic: ParsedTopic, data: object, now: float, wall: float, *, is_retained: bool) -> bool:
        """Take over a message that arrived at ``now``; whether it changed anything. An empty one clears its topic.

        The age of a retained message is computed with the time of day ``wall``, which its host knows too.
        """
        if not data:
            return self._clear(topic)
        host = self.hosts.get(topic.host) or Host(topic.host)
        state = split_state(data) if topic.kind == "state" else None
        payload: JsonObject | None
        if state is not None and host.repeat_state(topic.name, state):
            payload = {"ts": state.ts}
        else:
            payload = decode(data)
            if payload is None or not host.apply(topic, payload, None if state is None else hash(state.tunnel)):
                return False
        self.hosts[topic.host] = host
        if topic.kind == "status" and not host.status.online:
            return True  # a will was written when the connection began, so its time says nothing
        if is_retained:
            self._note_retained(host, parse_timestamp(payload.get("ts")), now, wall)
        else:
            host.last_message_at = now
            # Each host sends its info twice a minute; to look at the time of every message would cost too much.
            if topic.kind == "info" or host.clock_offset_s is None:
                host.note_live_message(now, wall, payload.get("ts"))
        return True

    @staticmethod
    def _note_retained(host: Host, stamp: float | None, now: float, wall: float) -> None:
        """A message is as old as its time says, but one from the future may have any age."""
        if stamp is None:
            return
        host.newest_stamp = max(host.newest_stamp or stamp, stamp)
        if stamp <= wall + _MAX_LATENCY_S:
            sent_at = now - max(0.0, wall - stamp)
            host.last_message_at = sent_at if host.last_message_at is None else max(host.last_message_at, sent_at)

    def _clear(self, topic: ParsedTopic) -> bool:
        host = self.hosts.get(topic.host)
        if host is None:
            return False
        host.clear(topic)
        if host.is_empty:
            del self.hosts[topic.host]
        return True

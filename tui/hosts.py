"""A fleet, as its hosts tell of themselves, as the messages that the dashboard folds. No I/O.

A tunnel is known as ``HOST/NAME``. Its host's presence goes with it, so that nothing looks alive whose host is gone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from orchestrator.mqtt.fleet import GONE, ONLINE
from tunnel.model.times import format_timestamp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from orchestrator.mqtt.fleet import Fleet, Host, RemoteTunnel
    from orchestrator.mqtt.topics import ParsedTopic
    from tui.model import Json

FEW: Final = 400
"""Tunnels up to which the numbers of all are followed; of a larger fleet, of those that somebody looks at."""

_REST: Final = 5.0  # seconds without statistics after which nothing moves: they come every two where something does
_LONG_REST: Final = 45.0  # the same where only the state is heard, every thirty
_SHORTEST: Final = 0.5  # seconds between two words that tell a rate
_SETTLING: Final = 1.5  # seconds in which a daemon that was started anew has told of all its tunnels
_DOUBT: Final = 1.0  # seconds until a farewell is believed: a broker that ends says it for all, and then is gone itself
_BEAT: Final = 1.0  # seconds after which it is told that nothing has changed


class HostsPicture:
    """What has been told of one fleet, and what is to be told. Clocks: ``now`` monotonic, ``wall`` the time of day."""

    def __init__(self, fleet: Fleet, now: Callable[[], float], wall: Callable[[], float]) -> None:
        self._fleet = fleet
        self._now = now
        self._wall = wall
        self._told: dict[str, set[str]] = {}
        self._presence: dict[str, str] = {}
        self._counted: dict[str, tuple[int, int, float]] = {}
        self._rates: dict[str, tuple[float, float]] = {}
        self._moving: dict[str, float] = {}
        """tunnels with traffic, and when each was last heard"""
        self._words: dict[tuple[str, str], None] = {}
        self._hosts_spoke = False
        self._leaving: dict[str, float] = {}
        """hosts that are said to be gone, and since when"""
        self._review: dict[str, float] = {}
        """hosts that were started anew, and when what is left of their earlier life is to go"""
        self._live: frozenset[str] | None = None
        self._is_live_told = True
        self._beat_at = 0.0

    @property
    def count(self) -> int:
        """How many tunnels there are."""
        return sum(map(len, self._told.values()))

    def follow(self, live: frozenset[str] | None) -> None:
        """From now on the statistics of these are heard; None: of all."""
        if live != self._live:
            self._live, self._is_live_told = live, False

    def hear(self, spot: ParsedTopic) -> None:
        """Something was said there."""
        match spot.kind:
            case "state" | "stats":
                self._words[spot.host, spot.name] = None
            case "status":
                self._hosts_spoke = True
                self._review[spot.host] = self._now() + _SETTLING
            case _:
                self._hosts_spoke = True

    def whole(self) -> Json:
        """Everything, as a status."""
        self._words.clear()
        self._review.clear()
        tunnels = [self._tunnel(host, name) for host in self._fleet for name in self._note_host(host)]
        self._live = None if len(tunnels) <= FEW else frozenset()
        return {"ts": format_timestamp(self._wall()), "hosts": self._hosts(), "tunnels": tunnels, "live": self._live}

    def changes(self) -> Json | None:
        """What differs from what was told; None where there is nothing to tell."""
        now = self._now()
        changed: dict[str, Json] = {}
        removed: list[str] = []
        self._take_words(changed, removed)
        self._take_hosts(changed, removed, now)
        self._take_rest(changed, now)
        message: dict[str, object] = {"ts": format_timestamp(self._wall()), "changed": changed, "removed": removed}
        if self._hosts_spoke:
            self._hosts_spoke = False
            message["status"] = {"hosts": self._hosts()}
        if not self._is_live_told:
            self._is_live_told = True
            message["live"] = self._live
        if not (changed or removed or len(message) > 3 or now - self._beat_at >= _BEAT):
            return None
        self._beat_at = now
        return message

    def _take_words(self, changed: dict[str, Json], removed: list[str]) -> None:
        words, self._words = self._words, {}
        for host_name, name in words:
            host = self._fleet.hosts.get(host_name)
            if host is not None and host.tunnel(name) is not None:
                self._told.setdefault(host_name, set()).add(name)
                changed[f"{host_name}/{name}"] = self._tunnel(host, name)
            elif name in self._told.get(host_name, ()):
                self._drop(host_name, [name], removed)

    def _take_hosts(self, changed: dict[str, Json], removed: list[str], now: float) -> None:
        """Hosts that came, went, fell silent or were started anew."""
        for host in self._fleet:
            presence, told = host.presence(now), self._presence.get(host.name)
            if presence != GONE or told != ONLINE:
                self._leaving.pop(host.name, None)
            elif now - self._leaving.setdefault(host.name, now) < _DOUBT:
                continue
            if presence != told:
                self._hosts_spoke = True
                self._presence[host.name] = presence
                self._told.setdefault(host.name, set()).update(host.tunnel_names())
                changed.update({f"{host.name}/{name}": self._tunnel(host, name) for name in host.tunnel_names()})
        due = [name for name, at in self._review.items() if now >= at]
        for host_name in due:
            del self._review[host_name]
        for host_name in {*due, *(self._told.keys() - self._fleet.hosts.keys())}:
            found = self._fleet.hosts.get(host_name)
            names = set(found.tunnel_names()) if found else set()
            self._drop(host_name, sorted(self._told.get(host_name, set()) - names), removed)
            if found is None:
                self._hosts_spoke = True
                self._told.pop(host_name, None)
                self._presence.pop(host_name, None)

    def _take_rest(self, changed: dict[str, Json], now: float) -> None:
        """Silence is knowledge too: numbers are told as they change."""
        for key, heard in list(self._moving.items()):
            is_live = self._live is None or key in self._live
            if now - heard >= (_REST if is_live else _LONG_REST):
                del self._moving[key]
                self._rates.pop(key, None)
                changed[key] = {**changed.get(key, {}), "rates": (0.0, 0.0)}

    def _drop(self, host_name: str, names: Iterable[str], removed: list[str]) -> None:
        for name in names:
            key = f"{host_name}/{name}"
            self._told[host_name].discard(name)
            removed.append(key)
            for kept in (self._counted, self._rates, self._moving):
                kept.pop(key, None)

    def _note_host(self, host: Host) -> list[str]:
        names = host.tunnel_names()
        self._told[host.name] = set(names)
        self._presence[host.name] = host.presence(self._now())
        return names

    def _tunnel(self, host: Host, name: str) -> Json:
        tunnel = host.tunnel(name)
        presence = self._presence.get(host.name, ONLINE)
        rates = (0.0, 0.0)
        if tunnel is not None and presence == ONLINE:
            rates = self._rate(f"{host.name}/{name}", tunnel)
        return {
            **(tunnel.json if tunnel is not None else {}),
            "host": host.name,
            "presence": presence,
            "last_word": host.last_message_at,
            "last_link": host.last_link_of(name),
            "rates": rates,
        }

    def _rate(self, key: str, tunnel: RemoteTunnel) -> tuple[float, float]:
        """Bytes a second from and to visitors, between two words of the same host by its own clock."""
        moved = tunnel.json["bytes"]
        counted = (moved["in"], moved["out"], tunnel.sent_at or self._wall())
        before = self._counted.setdefault(key, counted)
        elapsed = counted[2] - before[2]
        if 0 <= elapsed < _SHORTEST:
            return self._rates.get(key, (0.0, 0.0))
        self._counted[key] = counted
        if elapsed < 0:  # its clock was set
            return self._rates.get(key, (0.0, 0.0))
        # a counter that fell belongs to an engine that was started anew
        rates = (max(0, counted[0] - before[0]) / elapsed, max(0, counted[1] - before[1]) / elapsed)
        self._rates[key] = rates
        if any(rates):
            self._moving[key] = self._now()
        else:
            self._moving.pop(key, None)
        return rates

    def _hosts(self) -> Json:
        """What is known of each host besides its tunnels."""
        return {host.name: self._host(host) for host in self._fleet}

    def _host(self, host: Host) -> Json:
        info = host.info
        return {
            "presence": self._presence.get(host.name, ONLINE),
            "last_word": host.last_message_at,
            "label": host.label,
            "version": info.version,
            "generation": info.generation,
            "config": {"ok": info.config_ok, "error": info.config_error},
            "commands": info.commands,
            "started_at": info.started_at,
        }

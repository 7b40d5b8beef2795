"""A fleet as status and change messages for the dashboard. No I/O.

A tunnel has the name ``HOST/NAME``. It carries its host's presence, so that no tunnel looks alive while its host is
offline.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

from orchestrator.mqtt.fleet import GONE, ONLINE
from orchestrator.status.store import StatusStore
from tui.sources.base import StatusChanged, StatusReceived
from tunnel.model.times import format_timestamp

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from orchestrator.mqtt.fleet import Fleet, Host, RemoteTunnel
    from orchestrator.mqtt.topics import ParsedTopic
    from orchestrator.status.json_types import TrafficRatesJson, TunnelJson
    from orchestrator.status.store import ValueChange
    from tui.model.messages import ChangeData, HostData, StatusData, TunnelData

MAX_LIVE_FLEET: Final = 400
"""Tunnels up to which the counters of all are received; of a larger fleet, only those of the visible ones."""

_RATE_TIMEOUT_S: Final = 5.0
"""After this time without statistics the rate is zero: they arrive every two seconds while there is traffic."""
_STATE_RATE_TIMEOUT_S: Final = 45.0
"""The same for a tunnel of which only the state is received, every thirty seconds."""
_MIN_RATE_INTERVAL_S: Final = 0.5
"""Between two messages from which a rate is computed."""
_RESTART_GRACE_S: Final = 1.5
"""A restarted daemon has published all its tunnels within this time."""
_OFFLINE_DELAY_S: Final = 1.0
"""Before a host counts as gone: a broker that shuts down publishes every host's will, and then is gone too."""
_HEARTBEAT_INTERVAL_S: Final = 1.0
"""A message is sent at least this often, even if nothing changed."""

_NO_TRAFFIC: Final[TrafficRatesJson] = {"in_bps": 0, "out_bps": 0}


class FleetFeed:
    """Turns one fleet into messages: a complete status first, then the differences.

    Clocks: ``now`` is monotonic, ``wall`` the time of day.
    """

    def __init__(self, fleet: Fleet, now: Callable[[], float], wall: Callable[[], float]) -> None:
        self._fleet = fleet
        self._now = now
        self._wall = wall
        self._store: StatusStore[str, TunnelData] = StatusStore(_changed_fields)
        """the tunnels as they were sent"""
        self._is_status_sent = False
        self._sent_revision = 0
        self._presence: dict[str, str] = {}
        self._names: dict[str, set[str]] = {}
        """the tunnels in the store, by host"""
        self._fed: dict[str, TunnelJson] = {}
        """the objects of the hosts that tunnels of online hosts were last updated with"""
        self._counters: dict[str, tuple[int, int, float]] = {}
        """bytes from and to visitors, and the host's time of these counts"""
        self._traffic_at: dict[str, float] = {}
        """tunnels with traffic, and when it was last received"""
        self._changed: dict[tuple[str, str], None] = {}
        """(host, tunnel) of which a message arrived, in order"""
        self._is_host_changed = False
        self._leaving_since: dict[str, float] = {}
        """hosts that reported their end"""
        self._cleanup_at: dict[str, float] = {}
        """restarted hosts, and when tunnels of their previous run are removed"""
        self._live: frozenset[str] | None = None
        self._is_live_changed = False
        self._sent_at = 0.0

    @property
    def tunnel_count(self) -> int:
        """How many tunnels there are."""
        return len(self._store)

    def set_live(self, live: frozenset[str] | None) -> None:
        """Set the tunnels whose statistics are received from now on; None: all."""
        if live != self._live:
            self._live, self._is_live_changed = live, True

    def note_change(self, spot: ParsedTopic) -> None:
        """Note that a message of a host or tunnel arrived."""
        match spot.kind:
            case "state" | "stats":
                self._changed[spot.host, spot.name] = None
            case "status":
                self._is_host_changed = True
                self._cleanup_at[spot.host] = self._now() + _RESTART_GRACE_S
            case _:
                self._is_host_changed = True

    def next_message(self) -> StatusReceived | StatusChanged | None:
        """Return the complete status at first, then the differences from what was sent; None if there are none."""
        now = self._now()
        if not self._is_status_sent:
            return self._complete_status(now)
        self._update_changed()
        self._update_presence(now)
        self._remove_leftovers(now)
        self._stop_idle_rates(now)
        delta = self._store.changes_since(self._sent_revision)
        if delta.is_full and self._sent_revision:  # more tunnels were removed than the store remembers
            return self._complete_status(now)
        self._sent_revision = delta.revision
        message: ChangeData = {
            "ts": format_timestamp(self._wall()),
            "changed": {key: _encode_change(change) for key, change in delta.changed.items()},
            "removed": delta.removed,
        }
        is_due = not delta.is_empty or now - self._sent_at >= _HEARTBEAT_INTERVAL_S
        if self._is_host_changed:
            self._is_host_changed, is_due = False, True
            message["status"] = {"hosts": self._hosts()}
        if self._is_live_changed:
            self._is_live_changed, is_due = False, True
            message["live"] = self._live
        if not is_due:
            return None
        self._sent_at = now
        return StatusChanged(message)

    def _complete_status(self, now: float) -> StatusReceived:
        self._changed.clear()
        self._cleanup_at.clear()
        for host in self._fleet:
            self._presence[host.name] = host.presence(now)
            self._update_tunnels(host)
        tunnels = self._store.snapshots()
        self._live = None if len(tunnels) <= MAX_LIVE_FLEET else frozenset()
        self._is_status_sent, self._sent_revision = True, self._store.revision
        status: StatusData = {"ts": format_timestamp(self._wall()), "hosts": self._hosts(), "tunnels": tunnels}
        return StatusReceived({**status, "live": self._live})

    # -- updates of the store ----------------------------------------------------------------------------------------

    def _update_changed(self) -> None:
        """Update the tunnels of which a message arrived."""
        changed, self._changed = self._changed, {}
        for host_name, name in changed:
            host = self._fleet.hosts.get(host_name)
            if host is not None and host.tunnel(name) is not None:
                self._update_tunnel(host, name)
            else:
                self._remove(host_name, name)

    def _update_presence(self, now: float) -> None:
        """Update the tunnels of hosts that came online, went offline or fell silent."""
        for host in self._fleet:
            presence, sent = host.presence(now), self._presence.get(host.name)
            if presence != GONE or sent != ONLINE:
                self._leaving_since.pop(host.name, None)
            elif now - self._leaving_since.setdefault(host.name, now) < _OFFLINE_DELAY_S:
                continue
            if presence != sent:
                self._is_host_changed = True
                self._presence[host.name] = presence
                self._update_tunnels(host)

    def _remove_leftovers(self, now: float) -> None:
        """Remove the tunnels of removed hosts, and those that a restarted host no longer has."""
        due = [name for name, at in self._cleanup_at.items() if now >= at]
        for host_name in due:
            del self._cleanup_at[host_name]
        removed_hosts = self._presence.keys() - self._fleet.hosts.keys()
        for host_name in {*due, *removed_hosts}:
            host = self._fleet.hosts.get(host_name)
            for name in self._names.get(host_name, set()).difference(host.tunnel_names() if host else ()):
                self._remove(host_name, name)
        for host_name in removed_hosts:
            self._is_host_changed = True
            del self._presence[host_name]
            self._names.pop(host_name, None)

    def _stop_idle_rates(self, now: float) -> None:
        """Set the rates of tunnels to zero whose counters no longer arrive: they are published only on change."""
        for key, at in list(self._traffic_at.items()):
            is_live = self._live is None or key in self._live
            if now - at >= (_RATE_TIMEOUT_S if is_live else _STATE_RATE_TIMEOUT_S):
                del self._traffic_at[key]
                data = self._store.get(key)
                if data is not None:
                    self._store.update(key, {**data, "rates": _NO_TRAFFIC})

    def _update_tunnels(self, host: Host) -> None:
        for name in host.tunnel_names():
            self._update_tunnel(host, name)

    def _update_tunnel(self, host: Host, name: str) -> None:
        remote = host.tunnel(name)
        if remote is None:
            return
        key = f"{host.name}/{name}"
        presence = self._presence.get(host.name, ONLINE)
        is_online = presence == ONLINE
        if is_online and key not in self._traffic_at and self._fed.get(key) is remote.json:
            # Nearly always: an idle tunnel repeats its state. Its next rate is a mean from now on.
            self._counters[key] = _counters_of(remote, self._wall)
            return
        if is_online:
            self._fed[key] = remote.json
        else:
            self._fed.pop(key, None)
        tunnel: TunnelData = {
            **remote.json,
            "host": host.name,
            "presence": presence,
            "last_message_at": None if is_online else host.last_message_at,
            "last_link": host.last_link_of(name),
            "lost_links": host.lost_links_of(name),
            "rates": self._measure(key, remote) if is_online else _NO_TRAFFIC,
        }
        self._store.update(key, tunnel)
        self._names.setdefault(host.name, set()).add(name)

    def _remove(self, host_name: str, name: str) -> None:
        key = f"{host_name}/{name}"
        self._names.get(host_name, set()).discard(name)
        self._store.remove(key)
        self._fed.pop(key, None)
        self._counters.pop(key, None)
        self._traffic_at.pop(key, None)

    def _measure(self, key: str, remote: RemoteTunnel) -> TrafficRatesJson:
        """Return bits a second from and to visitors, between two messages of a host by the host's own clock."""
        before = self._store.get(key)
        present = (before and before["rates"]) or _NO_TRAFFIC
        counters = _counters_of(remote, self._wall)
        earlier = self._counters.setdefault(key, counters)
        elapsed = counters[2] - earlier[2]
        if 0 <= elapsed < _MIN_RATE_INTERVAL_S:
            return present
        self._counters[key] = counters
        if elapsed < 0:  # the host's clock was set
            return present
        # a counter that fell belongs to a restarted engine
        carried = [max(0, now - then) for now, then in zip(counters[:2], earlier[:2], strict=True)]
        rates: TrafficRatesJson = {
            "in_bps": round(8 * carried[0] / elapsed), "out_bps": round(8 * carried[1] / elapsed),
        }  # fmt: skip
        if any(carried):
            self._traffic_at[key] = self._now()
        else:
            self._traffic_at.pop(key, None)
        return rates

    # -- hosts -------------------------------------------------------------------------------------------------------

    def _hosts(self) -> Mapping[str, HostData]:
        """Return what is known of each host, without its tunnels."""
        return {host.name: self._host(host) for host in self._fleet}

    def _host(self, host: Host) -> HostData:
        info = host.info
        return {
            "presence": self._presence.get(host.name, ONLINE),
            "last_message_at": host.last_message_at,
            "label": host.label,
            "version": info.version,
            "generation": info.generation,
            "config": {"ok": info.config_ok, "error": info.config_error},
            "commands": info.commands,
            "bytes_month": info.bytes_month,
            "started_at": info.started_at,
        }


def _counters_of(remote: RemoteTunnel, wall: Callable[[], float]) -> tuple[int, int, float]:
    counted = remote.json["bytes"]
    return counted["in"], counted["out"], remote.sent_at or wall()


def _changed_fields(before: TunnelData, now: TunnelData) -> list[str]:
    old = cast("Mapping[str, Any]", before)
    return [key for key, value in now.items() if key not in old or old[key] != value]


def _encode_change(change: ValueChange[TunnelData]) -> TunnelData:
    """Return the changed fields of a tunnel, or all of a new one."""
    if change.fields is None:
        return change.value
    return cast("TunnelData", {key: value for key, value in change.value.items() if key in change.fields})

"""What the dashboard knows: the daemon's status and its changes, as immutable views.

A tunnel keeps the source's object as it arrived and decodes a value on demand. Of five hundred tunnels that change four
times a second, about thirty are on the screen, and only these are decoded.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from orchestrator.mqtt.fleet import ONLINE
from tui.model.messages import StatusData, TunnelData
from tui.model.states import is_running
from tunnel.model.state import State

if TYPE_CHECKING:
    from orchestrator.status.json_types import (
        BytesJson,
        ConfigJson,
        ConnectionsJson,
        CooldownJson,
        LinkJson,
        PoolJson,
        RefusedJson,
        SignalsJson,
    )
    from tui.model.messages import ChangeData, HostData

MAX_SAMPLES: Final = 180
"""Samples kept of each tunnel, one a second."""

SAMPLE_INTERVAL_S: Final = 1.0
"""Between two samples: rates are means over this time."""

_MIN_COUNTDOWN_S: Final = 0.05
"""Less would be shown as 0.0 seconds."""
_MAX_LAG: Final = 8
"""Samples by which the history of an idle tunnel may lag behind."""
_MAX_CLOCK_STEP_S: Final = 60.0
"""Between two messages; a larger step means that a clock was set, and no rate can be computed across it."""

# values of a tunnel that has not reported a group yet
_NO_POOL: Final[PoolJson] = {"idle": 0, "capacity": 0, "dialing": 0, "min": 0, "max": 0}
_NO_SIGNALS: Final[SignalsJson] = {"queued": 0, "limit": 0, "total": 0}
_NO_CONNECTIONS: Final[ConnectionsJson] = {"active": 0, "total": 0, "failed": 0, "limit": 0}
_NO_BYTES: Final[BytesJson] = {"in": 0, "out": 0}
_NO_REFUSED: Final[RefusedJson] = {
    "handshakes": 0, "prefaces": 0, "silent": 0,
    "allow": None, "per_address": None, "rate": None, "proxy": None, "quota": None, "limit": None,
}  # fmt: skip
_NO_COOLDOWN: Final[CooldownJson] = {"remaining_s": 0.0, "attempt": 0}

TextKey = Literal[
    "host", "name", "role", "direction", "tunnel_addr", "target_addr", "data_addr", "peer", "link", "auth",
    "service", "key_name", "published_by", "presence", "last_error",
]  # fmt: skip
_SEARCHED: Final[tuple[TextKey, ...]] = (
    "host", "name", "role", "direction", "tunnel_addr", "target_addr", "peer", "service",
)  # fmt: skip


def parse_timestamp(text: object) -> float | None:
    """Return an RFC 3339 timestamp as seconds since the epoch; None if it is not one."""
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except ValueError:
        return None


class HistorySample(NamedTuple):
    """A tunnel at one second, for the sparklines."""

    idle: int
    queued: int
    rate_in: float
    rate_out: float
    rtt_ms: float | None


class Tunnel(NamedTuple):
    """A tunnel as last received. Rates are in bytes a second, times in seconds.

    A tuple, because hundreds are made for each change, and a frozen dataclass takes three times as long to make.
    """

    name: str
    """its key: the name, in a fleet ``HOST/NAME``"""
    data: TunnelData
    received_at: float
    """when its cooldown was last received, on the monotonic clock"""
    rate_in: float = 0.0
    """from visitors"""
    rate_out: float = 0.0
    """to visitors"""
    sampled_bytes: tuple[int, int] | None = None
    """bytes from and to visitors at the last sample"""
    history: tuple[HistorySample, ...] = ()
    """one sample a second; that of an idle tunnel may end some seconds ago, to save equal samples"""
    last_sample: int = 0
    """the number of the view's sample with which the history ends"""
    sampled_data: TunnelData | None = None
    """the data of that sample"""

    @property
    def state(self) -> str:
        """A State's value or one that only a newer daemon knows; while the host is offline, the host's presence."""
        return str(self.data["presence"]) if self.is_host_offline else self.last_state

    @property
    def last_state(self) -> str:
        """The last state that its daemon reported."""
        return str(self.data.get("state", State.STARTING))

    @property
    def is_host_offline(self) -> bool:
        """Whether its host is gone or silent, so that all data is old."""
        return self.data.get("presence", ONLINE) != ONLINE

    @property
    def is_running(self) -> bool:
        """Whether it has an engine that is meant to serve."""
        return is_running(self.last_state) and not self.is_host_offline

    @property
    def host(self) -> str:
        """The host that it runs on; empty for a single daemon."""
        return self.data.get("host") or ""

    @property
    def label(self) -> str:
        """Its name on its host."""
        return self.data.get("name") or self.name

    @property
    def link(self) -> str | None:
        """The id of its link, or of the last one it had."""
        return self.data.get("link") or self.data.get("last_link")

    @property
    def is_linked(self) -> bool:
        """Whether it has a link now."""
        return bool(self.data.get("link"))

    @property
    def links(self) -> Sequence[LinkJson]:
        """Its links: one, or one for each of several clients or servers."""
        return self.data.get("links") or ()

    @property
    def link_ids(self) -> Sequence[str]:
        """The ids of its links; without a link, that of the last one it had."""
        links = self.links
        if len(links) > 1:
            return [link["id"] for link in links]
        return (self.link,) if self.link else ()

    def has_link(self, link: str | None) -> bool:
        """Whether this is one of its present links."""
        return self.data.get("link") == link or any(one["id"] == link for one in self.links)

    @property
    def reason(self) -> str | None:
        """Why it is in this state."""
        return self.data.get("reason") or None

    @property
    def tags(self) -> list[str]:
        """The tags of its entry."""
        return [str(tag) for tag in self.data.get("tags") or ()]

    def text(self, key: TextKey) -> str:
        """Return a top-level text, empty if unknown."""
        value = self.data.get(key)
        return "" if value is None else str(value)

    @property
    def pool(self) -> PoolJson:
        """The pool in numbers."""
        return self.data.get("pool") or _NO_POOL

    @property
    def signals(self) -> SignalsJson:
        """Visitors that wait for a data connection."""
        return self.data.get("signals") or _NO_SIGNALS

    @property
    def connections(self) -> ConnectionsJson:
        """Visitors that were served."""
        return self.data.get("connections") or _NO_CONNECTIONS

    @property
    def bytes(self) -> BytesJson:
        """Bytes from (in) and to (out) visitors."""
        return self.data.get("bytes") or _NO_BYTES

    @property
    def refused(self) -> RefusedJson:
        """Refused connection attempts, by kind."""
        return self.data.get("refused") or _NO_REFUSED

    @property
    def visitors(self) -> int:
        """Visitors that are being served."""
        return self.connections["active"]

    @property
    def rtt_ms(self) -> float | None:
        """Round trip of the control channel in milliseconds."""
        return self.data.get("rtt_ms")

    @property
    def attempt(self) -> int:
        """How many attempts have failed in a row."""
        return (self.data.get("cooldown") or _NO_COOLDOWN)["attempt"]

    @property
    def is_ingress(self) -> bool | None:
        """Whether this end accepts visitors; None until the direction is known."""
        direction = self.data.get("direction")
        return None if direction is None else (direction == "reverse") == (self.data.get("role") == "server")

    def cooldown_left(self, now: float) -> float:
        """Return the seconds of cooldown left at ``now`` on the monotonic clock; 0 if it is over, or ends now."""
        if self.state != State.COOLDOWN:
            return 0.0
        cooldown = self.data.get("cooldown") or _NO_COOLDOWN
        left = cooldown["remaining_s"] - (now - self.received_at)
        return left if left >= _MIN_COUNTDOWN_S else 0.0

    def host_silence(self, now: float) -> float | None:
        """Return the seconds since the last message of its offline host; None if it is online or the time unknown."""
        at = self.data.get("last_message_at")
        return None if at is None or not self.is_host_offline else max(0.0, now - at)

    def search_values(self) -> list[str]:
        """Return the texts that the filter searches."""
        return [self.name, *(self.text(key) for key in _SEARCHED), *self.tags]

    def search_text(self) -> str:
        """Return all texts that the filter searches, case-folded."""
        return " ".join(self.search_values()).casefold()


@dataclass(frozen=True, slots=True)
class StatusView:
    """All that is known at one time."""

    status: StatusData = field(default_factory=StatusData)
    """the status object without its tunnels; empty until one has been received"""
    tunnels: Mapping[str, Tunnel] = field(default_factory=dict)
    """in the daemon's order"""
    daemon_time: float = 0.0
    """the daemon's clock when the last message was made, in seconds since the epoch"""
    sampled_at: float = 0.0
    """the daemon's clock at the last sample"""
    sample_count: int = 0
    received_at: float = 0.0
    """our monotonic clock at ``daemon_time``"""
    rates: tuple[float, float] = (0.0, 0.0)
    """bytes a second of all tunnels, to and from visitors"""
    live: frozenset[str] | None = None
    """the tunnels whose counters are received as they change, so that they have a history; None: all"""
    on_screen: Collection[str] = ()
    """the tunnels whose history is on the screen and must not lag"""

    @property
    def config(self) -> ConfigJson | None:
        """The file: its path, whether it is valid, the place of its error; None in a fleet, or if unknown."""
        return self.status.get("config")

    @property
    def is_read_only(self) -> bool:
        """Whether the daemon accepts no commands."""
        return bool(self.status.get("read_only"))

    @property
    def hosts(self) -> Mapping[str, HostData] | None:
        """The hosts of a fleet; None for a single daemon."""
        return self.status.get("hosts")


def tunnel_key(data: TunnelData) -> str:
    """Return the key of a tunnel: its name, in a fleet ``HOST/NAME``."""
    name, host = data.get("name", ""), data.get("host")
    return f"{host}/{name}" if host else name


def apply_status(status: StatusData, at: float, now: float, before: StatusView | None = None) -> StatusView:
    """Return the view of a complete status; tunnels keep the history that ``before`` has of them.

    ``at`` is the daemon's clock (seconds since the epoch), ``now`` our monotonic clock.
    """
    before = before or StatusView()
    tunnels: dict[str, Tunnel] = {}
    for data in status.get("tunnels") or ():
        name = tunnel_key(data)
        old = before.tunnels.get(name)
        first = _new_tunnel(name, data, now)
        tunnels[name] = first._replace(history=old.history, last_sample=before.sample_count) if old else first
    rest = status.copy()
    live = rest.pop("live", None)
    rest.pop("tunnels", None)
    count, on_screen = before.sample_count, before.on_screen
    return _take_sample(StatusView(rest, tunnels, at, at, count, now, live=live, on_screen=on_screen), at)


def _new_tunnel(name: str, data: TunnelData, now: float) -> Tunnel:
    rate_in, rate_out = _reported_rates(data) or (0.0, 0.0)
    return Tunnel(name, data, now, rate_in, rate_out)


def _reported_rates(data: TunnelData) -> tuple[float, float] | None:
    """Return the bytes a second from and to visitors that the source has measured; None if it does not know."""
    rates = data.get("rates")
    return None if rates is None else (rates["in_bps"] / 8, rates["out_bps"] / 8)


def apply_change(view: StatusView, message: ChangeData, now: float) -> StatusView:
    """Return the view after a change; ``now`` is our monotonic clock."""
    tunnels = dict(view.tunnels)
    for name in message.get("removed") or ():
        tunnels.pop(name, None)
    for name, fields in (message.get("changed") or {}).items():
        old = tunnels.get(name)
        if old is None:
            tunnels[name] = _new_tunnel(name, {"name": name, **fields}, now)
        else:
            tunnels[name] = _updated_tunnel(old, fields, now)
    live = view.live
    if "live" in message:
        live = message["live"]
        _drop_histories(tunnels, view.live, live)
    status: StatusData = {**view.status, **message.get("status", {})}
    at = parse_timestamp(message.get("ts")) or view.daemon_time
    elapsed = at - view.sampled_at
    changed = replace(view, status=status, tunnels=tunnels, daemon_time=at, received_at=now, live=live)
    if not -SAMPLE_INTERVAL_S <= elapsed <= _MAX_CLOCK_STEP_S:  # a clock was set: restart the byte counts
        tunnels = {name: tunnel._replace(sampled_bytes=None, sampled_data=None) for name, tunnel in tunnels.items()}
        return _take_sample(replace(changed, tunnels=tunnels, sampled_at=at), at)
    return _take_sample(changed, at) if elapsed >= SAMPLE_INTERVAL_S else changed


def _updated_tunnel(old: Tunnel, fields: TunnelData, now: float) -> Tunnel:
    """Return a tunnel with changed fields. Written out, because this is the hottest path."""
    received_at = now if "cooldown" in fields or "state" in fields else old.received_at
    data: TunnelData = {**old.data, **fields}
    if old.link and not data.get("link"):
        data["last_link"] = old.link  # one end may lose the link before the other
    rate_in, rate_out = _reported_rates(fields) or (old.rate_in, old.rate_out)
    return Tunnel(
        old.name, data, received_at, rate_in, rate_out, old.sampled_bytes, old.history, old.last_sample,
        old.sampled_data,
    )  # fmt: skip


def advance_clock(view: StatusView, now: float) -> StatusView:
    """Return the view at ``now``, our monotonic clock: without messages nothing has changed, and rates fall to zero.

    Returns the same view if the last message is so recent that the next one may still bring more for this second.
    """
    at = view.daemon_time + now - view.received_at
    is_due = at - view.sampled_at >= 1.5 * SAMPLE_INTERVAL_S
    return replace(_take_sample(view, at), received_at=now) if is_due else view


def _take_sample(view: StatusView, at: float) -> StatusView:
    """Return the view with the rates up to ``at``, the daemon's clock, and one more sample of each tunnel."""
    elapsed, number, known = at - view.sampled_at, view.sample_count + 1, view.tunnels
    names, on_screen = (known, view.on_screen) if view.live is None else (view.live, view.live)
    due = (known[name] for name in names if name in known and (name in on_screen or not _is_idle(known[name], number)))
    fresh = {tunnel.name: _sampled(tunnel, elapsed, number) for tunnel in due}
    tunnels = {**known, **fresh}
    rates = _total_rates(tunnels.values())
    daemon_time = max(at, view.daemon_time)
    return replace(view, tunnels=tunnels, sampled_at=at, sample_count=number, daemon_time=daemon_time, rates=rates)


def _total_rates(tunnels: Collection[Tunnel]) -> tuple[float, float]:
    """Return the rates of all ingress ends, or of all tunnels if none is an ingress.

    Otherwise the traffic of a pair with both ends in one file would be counted twice.
    """
    moving = [tunnel for tunnel in tunnels if tunnel.rate_out or tunnel.rate_in]
    counted = [tunnel for tunnel in moving if tunnel.is_ingress] or moving
    return sum(tunnel.rate_out for tunnel in counted), sum(tunnel.rate_in for tunnel in counted)


def _drop_histories(tunnels: dict[str, Tunnel], before: frozenset[str] | None, live: frozenset[str] | None) -> None:
    """Drop the histories of tunnels that are no longer live: one with gaps misleads, and ten thousand take memory."""
    left = () if live is None else (tunnels.keys() if before is None else before) - live
    for name in left:
        if name in tunnels and tunnels[name].history:
            tunnels[name] = tunnels[name]._replace(history=())


def _is_idle(tunnel: Tunnel, number: int) -> bool:
    """Return whether the sample of this number would equal the last one and can wait."""
    is_sampled = tunnel.sampled_data is tunnel.data and bool(tunnel.history) and number - tunnel.last_sample < _MAX_LAG
    return is_sampled and not tunnel.rate_in and not tunnel.rate_out


def _sampled(tunnel: Tunnel, elapsed: float, number: int) -> Tunnel:
    if tunnel.is_host_offline:
        return tunnel
    counters = tunnel.bytes
    counted = (counters["in"], counters["out"])
    rate_in = rate_out = 0.0
    given = _reported_rates(tunnel.data)
    if given is not None:
        rate_in, rate_out = given
    elif tunnel.sampled_bytes is not None and elapsed > 0:
        # a counter that fell belongs to a restarted engine
        rate_in = max(0, counted[0] - tunnel.sampled_bytes[0]) / elapsed
        rate_out = max(0, counted[1] - tunnel.sampled_bytes[1]) / elapsed
    sample = HistorySample(tunnel.pool["idle"], tunnel.signals["queued"], rate_in, rate_out, tunnel.rtt_ms)
    history, missed = tunnel.history, number - 1 - tunnel.last_sample
    if history and 0 < missed < _MAX_LAG:
        history = (*history, *[history[-1]] * missed)
    history = (*history[1 - MAX_SAMPLES :], sample)
    data = tunnel.data
    return Tunnel(tunnel.name, data, tunnel.received_at, rate_in, rate_out, counted, history, number, data)

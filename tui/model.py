"""What the dashboard knows: the daemon's status and its changes, folded into immutable views. No I/O, no screen.

A tunnel keeps the object of the API as it came and reads from it what is asked for: of five hundred tunnels that change
four times a second, some thirty are on the screen, and only these are worth taking apart.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from orchestrator.mqtt.fleet import ONLINE
from tunnel.model.state import State

Json = Mapping[str, Any]

KEPT: Final = 180
"""Samples remembered of each tunnel, one a second."""

STEP: Final = 1.0
"""Seconds between two samples: rates are means over this time."""

_LAG: Final = 8  # samples that the past of a tunnel where nothing goes on may lag behind
_GAP: Final = 60.0  # seconds between two messages, beyond which their clocks are not to be trusted
_EMPTY: Final[Json] = MappingProxyType({})


def moment(text: object) -> float | None:
    """Seconds since the epoch from RFC 3339; None where that is not what it is."""
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except ValueError:
        return None


class Sample(NamedTuple):
    """A tunnel at one second, for the small pictures of its past."""

    idle: int
    queued: int
    rate_in: float
    rate_out: float
    rtt_ms: float | None


@dataclass(frozen=True, slots=True)
class Tunnel:
    """A tunnel as last heard of. Rates in bytes a second, moments in seconds."""

    name: str
    """what it is known by: its name, in a fleet ``HOST/NAME``"""
    data: Json
    heard: float
    """when its cooldown was last told, on the monotonic clock"""
    rate_in: float = 0.0
    """from visitors"""
    rate_out: float = 0.0
    """to visitors"""
    counted: tuple[int, int] | None = None
    """bytes in and out at the last sample"""
    history: tuple[Sample, ...] = ()
    """one a second; where nothing goes on it may end some seconds ago, to save taking the same again"""
    recorded: int = 0
    """the number of the view's sample with which that ends"""
    known: Json | None = None
    """the data of that sample"""

    @property
    def state(self) -> str:
        """A State's value, or a word that only a newer daemon knows; of a host that is gone, nobody knows more."""
        return str(self.data["presence"]) if self.is_gone else self.told_state

    @property
    def told_state(self) -> str:
        """The state that it was last said to be in."""
        return str(self.data.get("state", State.STARTING))

    @property
    def is_gone(self) -> bool:
        """Whether its host is not there to speak for it: everything known of it is old."""
        return bool(self.data.get("presence", ONLINE) != ONLINE)

    @property
    def is_running(self) -> bool:
        """Whether it has an engine that is meant to serve."""
        return self.state not in {State.STOPPED, State.FAILED, State.DRAINING} and not self.is_gone

    @property
    def host(self) -> str:
        """The host that it runs on; empty where there is but one."""
        return str(self.data.get("host") or "")

    @property
    def label(self) -> str:
        """Its name on its host."""
        return str(self.data.get("name") or self.name)

    @property
    def link(self) -> str | None:
        """The id of its link, or of the last one it had."""
        return self.data.get("link") or self.data.get("last_link")

    @property
    def reason(self) -> str | None:
        """Why it is in this state."""
        return self.data.get("reason") or None

    def text(self, key: str) -> str:
        """A top-level text, empty where unknown."""
        value = self.data.get(key)
        return "" if value is None else str(value)

    def part(self, key: str) -> Json:
        """One of the groups of numbers: pool, signals, connections, bytes, cooldown."""
        value = self.data.get(key)
        return value if isinstance(value, Mapping) else _EMPTY

    def count_of(self, key: str) -> int:
        """A top-level number; 0 where unknown."""
        return int(self.data.get(key) or 0)

    def count(self, group: str, key: str) -> int:
        """One of their numbers; 0 where unknown."""
        return int(self.part(group).get(key) or 0)

    @property
    def active(self) -> int:
        """Visitors being served."""
        return self.count("connections", "active")

    @property
    def rtt_ms(self) -> float | None:
        """Round trip of the control channel."""
        return self.data.get("rtt_ms")

    @property
    def attempt(self) -> int:
        """How many attempts have failed in a row."""
        return self.count("cooldown", "attempt")

    @property
    def entrance(self) -> bool | None:
        """Whether this end accepts visitors; None until the direction is known."""
        direction = self.data.get("direction")
        return None if direction is None else (direction == "reverse") == (self.data.get("role") == "server")

    def remaining(self, now: float) -> float:
        """Seconds of cooldown that are left at ``now``, on the monotonic clock."""
        if self.state != State.COOLDOWN:
            return 0.0
        return max(0.0, float(self.part("cooldown").get("remaining_s") or 0.0) - (now - self.heard))

    def unheard(self, now: float) -> float | None:
        """Seconds since the last word of its host, where that is gone and the moment is known."""
        at = self.data.get("last_word")
        return None if at is None or not self.is_gone else max(0.0, now - at)

    def searched(self) -> str:
        """Everything that the filter looks at, folded to one case."""
        keys = ("host", "name", "role", "direction", "tunnel_addr", "target_addr", "peer")
        return " ".join([*(self.text(key) for key in keys), *map(str, self.data.get("tags") or ())]).casefold()


@dataclass(frozen=True, slots=True)
class View:
    """Everything that was known at one moment."""

    status: Json = field(default_factory=dict)
    """the status object without its tunnels; empty until one has come"""
    tunnels: Mapping[str, Tunnel] = field(default_factory=dict)
    """in the daemon's order"""
    at: float = 0.0
    """the daemon's clock when the last message was made, seconds since the epoch"""
    sampled: float = 0.0
    """the same, when rates were last reckoned"""
    samples: int = 0
    """how often that was so"""
    heard: float = 0.0
    """our monotonic clock at ``at``"""
    rates: tuple[float, float] = (0.0, 0.0)
    """bytes a second of all tunnels, to and from visitors"""
    live: frozenset[str] | None = None
    """the tunnels whose numbers are told as they change, so that they have a past; None: all"""
    looked_at: Collection[str] = ()
    """the tunnels whose past is on the screen, and lags behind in nothing"""

    @property
    def config(self) -> Json:
        """The file: path, whether it is valid, where it is not."""
        value = self.status.get("config")
        return value if isinstance(value, Mapping) else _EMPTY

    @property
    def is_read_only(self) -> bool:
        """Whether the daemon takes no commands."""
        return bool(self.status.get("read_only"))

    @property
    def hosts(self) -> Mapping[str, Json] | None:
        """What is known of each host of a fleet; None where this is one daemon."""
        return self.status.get("hosts")


def key_of(data: Json) -> str:
    """What a tunnel is known by."""
    name = str(data.get("name", ""))
    return f"{data['host']}/{name}" if data.get("host") else name


def begin(status: Json, at: float, now: float, before: View | None = None) -> View:
    """The view of a whole status; what ``before`` knew of the past of its tunnels is kept.

    Where not all numbers are told as they change, ``live`` in it, and in a change, is the set of those that are.

    ``at`` is the daemon's clock (seconds since the epoch), ``now`` our monotonic one.
    """
    before = before or View()
    tunnels: dict[str, Tunnel] = {}
    for data in status.get("tunnels") or ():
        name = key_of(data)
        old = before.tunnels.get(name)
        first = _first(name, data, now)
        tunnels[name] = replace(first, history=old.history, recorded=before.samples) if old else first
    rest = {key: value for key, value in status.items() if key not in {"tunnels", "live"}}
    live, samples, looked_at = status.get("live"), before.samples, before.looked_at
    return sample(View(rest, tunnels, at, at, samples, now, live=live, looked_at=looked_at), at)


def _first(name: str, data: Json, now: float) -> Tunnel:
    rate_in, rate_out = data.get("rates") or (0.0, 0.0)
    return Tunnel(name, data, now, rate_in, rate_out)


def change(view: View, message: Json, now: float) -> View:
    """The view after a ``change`` of the API."""
    tunnels = dict(view.tunnels)
    for name in message.get("removed") or ():
        tunnels.pop(name, None)
    for name, keys in (message.get("changed") or _EMPTY).items():
        old = tunnels.get(name)
        if old is None:
            tunnels[name] = _first(name, {"name": name, **keys}, now)
        else:
            heard = now if "cooldown" in keys or "state" in keys else old.heard
            data = {**old.data, **keys}  # written out, for replace() costs twice as much and this is done most
            if old.link and not data.get("link"):
                data["last_link"] = old.link  # one end may lose it before the other
            rate_in, rate_out = keys.get("rates") or (old.rate_in, old.rate_out)
            tunnels[name] = Tunnel(name, data, heard, rate_in, rate_out, old.counted, old.history, old.recorded)
    live = view.live
    if "live" in message:
        live = message["live"]
        _forget_past(tunnels, view.live, live)
    status = {**view.status, **(message.get("status") or _EMPTY)}
    at = moment(message.get("ts")) or view.at
    elapsed = at - view.sampled
    if not -STEP <= elapsed <= _GAP:  # a clock that was set, or is not ours: begin to count anew
        tunnels = {name: replace(tunnel, counted=None, known=None) for name, tunnel in tunnels.items()}
        jumped = replace(view, status=status, tunnels=tunnels, at=at, sampled=at, heard=now, live=live)
        return sample(jumped, at)
    changed = replace(view, status=status, tunnels=tunnels, at=at, heard=now, live=live)
    return sample(changed, at) if elapsed >= STEP else changed


def quiet(view: View, now: float) -> View:
    """The view at ``now``, our monotonic clock: silence is knowledge too, for then nothing has changed.

    The view itself where a message came so lately that the next one may still tell more.
    """
    at = view.at + now - view.heard
    return replace(sample(view, at), heard=now) if at - view.sampled >= 1.5 * STEP else view


def sample(view: View, at: float) -> View:
    """The view with rates reckoned up to ``at``, the daemon's clock, and one sample more of each tunnel."""
    elapsed, number, known = at - view.sampled, view.samples + 1, view.tunnels
    names, on_screen = (known, view.looked_at) if view.live is None else (view.live, view.live)
    due = (known[name] for name in names if name in known and (name in on_screen or not _is_still(known[name], number)))
    fresh = {tunnel.name: _sampled(tunnel, elapsed, number) for tunnel in due}
    tunnels = {**known, **fresh}
    rates = _total(tunnels.values())
    return replace(view, tunnels=tunnels, sampled=at, samples=number, at=max(at, view.at), rates=rates)


def _total(tunnels: Collection[Tunnel]) -> tuple[float, float]:
    """The rates of the tunnels that accept visitors, or of all where none does.

    A pair whose ends share a file would else be counted twice.
    """
    moving = [tunnel for tunnel in tunnels if tunnel.rate_out or tunnel.rate_in]
    counted = [tunnel for tunnel in moving if tunnel.entrance] or moving
    return sum(tunnel.rate_out for tunnel in counted), sum(tunnel.rate_in for tunnel in counted)


def _forget_past(tunnels: dict[str, Tunnel], before: frozenset[str] | None, live: frozenset[str] | None) -> None:
    """A past with gaps would be a wrong picture, and ten thousand of them take too much memory."""
    left = () if live is None else (tunnels.keys() if before is None else before) - live
    for name in left:
        if name in tunnels and tunnels[name].history:
            tunnels[name] = replace(tunnels[name], history=())


def _is_still(tunnel: Tunnel, number: int) -> bool:
    """Whether the sample of this number would be as the last one was, and can wait."""
    is_known = tunnel.known is tunnel.data and bool(tunnel.history) and number - tunnel.recorded < _LAG
    return is_known and not tunnel.rate_in and not tunnel.rate_out


def _sampled(tunnel: Tunnel, elapsed: float, number: int) -> Tunnel:
    if tunnel.is_gone:
        return tunnel
    moved = tunnel.part("bytes")
    counted = (int(moved.get("in") or 0), int(moved.get("out") or 0))
    rate_in = rate_out = 0.0
    given = tunnel.data.get("rates")
    if given is not None:
        rate_in, rate_out = given
    elif tunnel.counted is not None and elapsed > 0:
        # a counter that fell belongs to an engine that was started anew
        rate_in = max(0, counted[0] - tunnel.counted[0]) / elapsed
        rate_out = max(0, counted[1] - tunnel.counted[1]) / elapsed
    taken = Sample(tunnel.count("pool", "idle"), tunnel.count("signals", "queued"), rate_in, rate_out, tunnel.rtt_ms)
    history, missed = tunnel.history, number - 1 - tunnel.recorded
    if history and 0 < missed < _LAG:
        history = (*history, *[history[-1]] * missed)
    history = (*history[1 - KEPT :], taken)
    data = tunnel.data
    return Tunnel(tunnel.name, data, tunnel.heard, rate_in, rate_out, counted, history, number, data)

"""The running relays of one end of a tunnel, and the links on which they were started."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import TYPE_CHECKING, Final

from tunnel.engine.time_limits import TimeLimits
from tunnel.forwarding.tunnel_rates import RateLimitedForwarder, TunnelRates
from tunnel.model.events import VISITOR, EventKind
from tunnel.model.spec import LogLevel, Proto
from tunnel.model.visitor_end import VisitorEnd
from tunnel.model.wording import plural
from tunnel.protocol.visitor_address import unpack_address

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Collection, Iterable, Mapping

    from tunnel.forwarding.base import (
        ForwardedVisitor,
        Forwarder,
        ForwardingOwner,
        OwnedConnection,
        RelayLink,
        UsedConnection,
    )
    from tunnel.forwarding.tcp import Relay
    from tunnel.model.events import EventLog
    from tunnel.model.rate import Rate
    from tunnel.model.spec import End, TunnelSpec
    from tunnel.runtime.reactor import Reactor

_MAINTENANCE_INTERVAL_S: Final = 5.0  # also the age at which a relay is worth the system calls that enable keepalive
_CHECK_SHARES: Final = 3  # of the relays, one share is checked for vanished peers at each maintenance
_CLOSE_SLICE_SIZE: Final = 64  # relays of a turn: two milliseconds, mostly for the system calls
_SCAN_SLICE_SIZE: Final = 100  # relays of a turn: half a millisecond, mostly for the system calls of a third of them
_TIMER_TOLERANCE_S: Final = 0.01
VANISHED_AFTER_S: Final = 60.0
"""How long a peer may leave data unacknowledged before its relay is aborted."""

_FAULTY_PATH: Final = (
    "a data connection is not answered although the link is: the path probably loses large packets; "
    "lower the MTU of this host's interface, or set net.ipv4.tcp_mtu_probing=1"
)
"""Routers that drop packets with DF and whose ICMP is filtered (RFC 2923 §2.1); small packets, as of pings, pass."""


class RelaySet:
    """Owns its relays, the visitors that are being forwarded. They outlive links; only a drain's limit ends them."""

    def __init__(
        self,
        reactor: Reactor,
        forwarder: Forwarder,
        event_log: EventLog,
        *,
        on_first_relay: Callable[[], None],
        on_relay_closed: Callable[[ForwardedVisitor], None],
        on_aborted: Callable[[VisitorEnd, int], None],
        maintenance_interval_s: float = _MAINTENANCE_INTERVAL_S,
        vanished_after_s: float = VANISHED_AFTER_S,
    ) -> None:
        """``on_first_relay`` is called before a relay starts while none runs, ``on_relay_closed`` with each that ended.

        ``on_aborted`` is called with why relays were aborted, or their targets refused them, and how many.
        """
        self.active = 0
        """relays that run now"""
        self._reactor = reactor
        self.rates = TunnelRates(reactor)
        """the limits of the rates at this end"""
        self._unlimited = self._forwarder = forwarder
        self._event_log = event_log
        self._on_first_relay = on_first_relay
        self._on_relay_closed = on_relay_closed
        self._on_aborted = on_aborted
        self._on_unreachable: Callable[[str], None] | None = None
        self._by_link: dict[RelayLink, dict[int, ForwardedVisitor]] = {}  # by the id of the data connection
        self._lost: set[RelayLink] = set()  # lost links that still have relays
        self._suspects: dict[ForwardedVisitor, float] = {}  # relays with an unanswering peer, and since when
        self._interval_s = maintenance_interval_s
        self._vanished_after_s = vanished_after_s
        self._peers_due_at = 0.0  # on the monotonic clock
        self._is_checking_peers = False
        self._unscanned: list[ForwardedVisitor] = []  # of the present scan
        self._vanished: list[ForwardedVisitor] = []  # found by the present scan
        self._expired: Counter[tuple[VisitorEnd, Proto]] = Counter()  # of the present scan
        self._time_limits: TimeLimits | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._maintenances = self._closed = 0  # the latter: relays that were closed gradually

    def set_forwarder(self, forwarder: Forwarder) -> None:
        """Forward the visitors that come from now on with another forwarder."""
        self._unlimited = forwarder
        self._forwarder = RateLimitedForwarder(forwarder, self.rates) if self.rates.is_limited else forwarder

    def set_rates(self, rate: Rate | None, visitor_rate: Rate | None) -> None:
        """Limit the rates of all visitors together, and of each; None: no limit. Of present ones, too."""
        self.rates.set_rates(rate, visitor_rate, self.running())
        self.set_forwarder(self._unlimited)

    def set_close_callback(self, on_relay_closed: Callable[[ForwardedVisitor], None]) -> None:
        """Call this with each relay that ends from now on, instead of the former callback."""
        self._on_relay_closed = on_relay_closed

    def set_unreachable_callback(self, on_unreachable: Callable[[str], None]) -> None:
        """Call this with the reason when a target has refused a flow of UDP."""
        self._on_unreachable = on_unreachable

    def add_link(self, link: RelayLink) -> None:
        """Register the relays that are started on this link from now on, so that ``find`` returns them."""
        self._by_link[link] = {}

    def remove_link(self, link: RelayLink) -> None:
        """Let the relays of a lost link continue without it."""
        relays = self._by_link.get(link)
        if not relays:
            self._by_link.pop(link, None)
            return
        self._lost.add(link)
        for relay in list(relays.values()):
            relay.on_link_lost()

    def count_of(self, link: RelayLink) -> int:
        """Return the number of running relays that were started on a present link."""
        return len(self._by_link.get(link, ()))

    def running(self) -> list[ForwardedVisitor]:
        """Return the relays that run now, in no order; each of them may end at any time."""
        return [relay for relays in self._by_link.values() for relay in relays.values()]

    def take_untouched(self, link: RelayLink, ident: int | None = None) -> list[tuple[socket.SocketType, object]]:
        """End the relays of a present link that have forwarded nothing, or that of one data connection alone.

        Return their visitors, with their addresses: the caller owns the sockets, which the reactor no longer watches.
        The visitors have not left, so the callback for those that have is not called.
        """
        relays = self._by_link.get(link, {})
        visitors: list[tuple[socket.SocketType, object]] = []
        for relay in list(relays.values()) if ident is None else filter(None, [relays.get(ident)]):
            near = relay.release_near()
            if near is not None:
                visitors.append((near, unpack_address(relay.visitor_address)))
                self._suspects.pop(relay, None)
                self.active -= 1
                del relays[relay.ident]
        return visitors

    def find(self, link: RelayLink, ident: int) -> ForwardedVisitor | None:
        """Return the running relay over this data connection of a link, if there is one."""
        relays = self._by_link.get(link)
        return relays.get(ident) if relays is not None else None

    def start(
        self,
        near: socket.SocketType,
        data: UsedConnection,
        link: RelayLink,
        *,
        near_events: int | None,
        owner: ForwardingOwner | None = None,
    ) -> ForwardedVisitor:
        """Forward between a visitor's or target's socket and a data connection; the relay owns both from now on.

        ``near_events`` are the events that ``near`` had so far; None: the reactor does not watch it yet. An ``owner``
        is notified in place of this set, and passes everything on to it.
        """
        if not self.active:
            self._on_first_relay()
        relay = self._forwarder.create(data, link, near, owner or self)
        self.active += 1
        relays = self._by_link.get(link)
        if relays is None:  # the link is lost already
            relays = self._by_link[link] = {}
            self._lost.add(link)
        relays[data.ident] = relay
        if self._timer is None:
            self._schedule_maintenance()
        relay.start(near_events, data.events)
        return relay

    def on_relay_finished(self, relay: ForwardedVisitor, sock: socket.SocketType) -> None:
        """Forget a relay that has ended in order, and give its data connection back to the link."""
        self.on_relay_closed(relay)
        relay.link.take_back(relay, sock)

    def on_relay_closed(self, relay: ForwardedVisitor) -> None:
        """Forget a relay that has closed its sockets."""
        if self._suspects:
            self._suspects.pop(relay, None)
        self.active -= 1
        relays = self._by_link[relay.link]
        del relays[relay.ident]
        if self._lost and not relays and relay.link in self._lost:
            self._lost.discard(relay.link)
            del self._by_link[relay.link]
        self._on_relay_closed(relay)

    def on_relay_moved(self, relay: Relay, data: OwnedConnection) -> None:
        """Find a relay under the id of its data connection from now on."""
        relays = self._by_link[relay.link]
        del relays[relay.ident]
        relay.ident, relay.use = data.ident, data.use
        relays[relay.ident] = relay

    def on_flows_changed(self, relay: Relay) -> None:
        """Limit the rates of the new flows, too."""
        if self.rates.is_limited:
            self.rates.apply(relay)

    def on_relay_error(self, relay: ForwardedVisitor, error: Exception) -> None:
        """Log a defect that ended one relay; the others continue."""
        self._event_log.log_error(
            EventKind.VISITOR, f"an internal error ended visitor {relay.id}: {type(error).__name__}: {error}"
        )

    def on_target_unreachable(self, relay: ForwardedVisitor, reason: str) -> None:
        """Count and log a UDP flow whose target has refused its datagrams."""
        self._on_aborted(VisitorEnd.FAILED, 1)
        if self._on_unreachable is not None:
            self._on_unreachable(reason)
        self._event_log.warn_throttled(EventKind.TARGET, reason, reason, id=relay.id)

    def on_stream_error(self, relay: ForwardedVisitor, error: Exception) -> None:
        """Log that data connections are interfered with."""
        text = f"a visitor was disconnected: its data connection carried {error}"
        self._event_log.warn_throttled(
            EventKind.VISITOR,
            "record",
            text,
            **{VISITOR: relay.describe_visitor(), "id": relay.id},
        )

    def apply_limits(self, spec: TunnelSpec, end: End) -> None:
        """Use the time limits and the rates of a spec, also for present visitors."""
        self.set_time_limits(spec.idle_limits(end), spec.max_age)
        self.set_rates(spec.rate, spec.visitor_rate)

    def set_time_limits(self, idle_timeouts_s: Mapping[Proto, float], max_age_s: float) -> None:
        """Disconnect visitors that are idle, or connected, for longer than this; 0: no limit. Present ones, too."""
        has_limits = any(idle_timeouts_s.values()) or bool(max_age_s)
        self._time_limits = TimeLimits(idle_timeouts_s, max_age_s, self._time_limits) if has_limits else None
        if self._timer is not None and not self._unscanned:
            self._timer.cancel()
            self._schedule_maintenance()

    def _maintain(self) -> None:
        """Start a scan of the relays: enable keepalive, and find those with a vanished peer or beyond a limit."""
        self._unscanned = self.running()
        now = time.monotonic()
        self._is_checking_peers = now >= self._peers_due_at
        if self._is_checking_peers:
            self._maintenances += 1
            self._peers_due_at = now + self._interval_s - _TIMER_TOLERANCE_S
        self._scan_slice()

    def _scan_slice(self) -> None:
        """Scan some relays; the others follow in the next turn of the event loop."""
        relays, self._unscanned = self._unscanned[:_SCAN_SLICE_SIZE], self._unscanned[_SCAN_SLICE_SIZE:]
        if self._is_checking_peers:
            self._check_peers(relays)
        if self._time_limits is not None:
            for relay, end in self._time_limits.find_expired(relays, time.monotonic()):
                relay.abort(end)
                self._expired[end, relay.proto] += 1
        if self._unscanned:
            self._timer = self._reactor.call_later(0.0, self._scan_slice)
        else:
            self._end_scan()

    def _check_peers(self, relays: Iterable[ForwardedVisitor]) -> None:
        share = self._maintenances % _CHECK_SHARES
        for relay in relays:
            if not relay.is_open:
                continue
            if not relay.keepalive_enabled:
                relay.enable_keepalive()
            if relay.ident % _CHECK_SHARES == share and self._has_vanished_peer(relay):
                self._vanished.append(relay)

    def _end_scan(self) -> None:
        """Disconnect what has a vanished peer, and report what the scan has done."""
        vanished, self._vanished = [relay for relay in self._vanished if relay.is_open], []
        is_path_faulty = any(relay.link not in self._lost and relay.is_data_unanswered for relay in vanished)
        for relay in vanished:
            relay.abort(VisitorEnd.VANISHED)
        if vanished:
            self._on_aborted(VisitorEnd.VANISHED, len(vanished))
            self._log_vanished(len(vanished))
        if is_path_faulty:
            self._event_log.warn_throttled(EventKind.VISITOR, "path", _FAULTY_PATH)
        if self._time_limits is not None:
            self._time_limits.end_scan()
        for (end, proto), count in self._expired.items():
            self._on_aborted(end, count)
            text = f"{plural(count, 'visitor')} disconnected: "
            if end is VisitorEnd.IDLE_TIMEOUT and proto is Proto.UDP:  # how a flow ends: no fault, and there are many
                self._event_log.log_debug(EventKind.VISITOR, f"{text}udp_timeout")
            else:
                self._event_log.log_paced(LogLevel.INFO, EventKind.VISITOR, "limit", f"{text}{end.value}")
        self._expired.clear()
        self._schedule_maintenance()

    def _schedule_maintenance(self) -> None:
        limits = self._time_limits
        interval_s = self._interval_s if limits is None else min(self._interval_s, limits.scan_interval_s)
        self._timer = self._reactor.call_later(interval_s, self._maintain) if self.active else None

    def _has_vanished_peer(self, relay: ForwardedVisitor) -> bool:
        """Whether a peer has been silent for too long at every check since it became suspect.

        A single check would not do: after an idle hour, the first repetition of new data looks the same.
        """
        unanswered_s = relay.unanswered_s()
        if unanswered_s is None:
            self._suspects.pop(relay, None)
            return False
        now = time.monotonic()
        return now - self._suspects.setdefault(relay, now) >= self._vanished_after_s <= unanswered_s

    def _log_vanished(self, count: int) -> None:
        peers = "the peer of a relay" if count == 1 else f"the peers of {count} relays"
        self._event_log.log_info(
            EventKind.VISITOR,
            f"{peers} vanished: no acknowledgement for {self._vanished_after_s:.0f} s; disconnected",
        )

    def close_of(self, links: Collection[RelayLink]) -> int:
        """Close the relays that were started on these links, also on lost ones; return how many there were."""
        relays = [relay for relay in self.running() if relay.link in links]
        for relay in relays:
            relay.close(VisitorEnd.KEY_REVOKED)
        return len(relays)

    async def close_gradually(self) -> None:
        """Close the relays that run now, some in each turn of the loop; ``close_all`` counts them. Safe to cancel.

        Thousands at once would delay the visitors of other tunnels by a quarter of a second.
        """
        running = self.running()
        for start in range(0, len(running), _CLOSE_SLICE_SIZE):
            for relay in running[start : start + _CLOSE_SLICE_SIZE]:
                if relay.is_open:
                    self._closed += 1
                    relay.close(VisitorEnd.TUNNEL_CLOSED)
            await asyncio.sleep(0)

    def close_all(self) -> int:
        """Close all relays now; return how many were closed because the tunnel ends."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.rates.close()
        running = self.running()
        for relay in running:
            relay.close(VisitorEnd.TUNNEL_CLOSED)
        return len(running) + self._closed

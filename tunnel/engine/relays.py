"""The running relays of one end of a tunnel, and the links on which they were started."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from tunnel.model.events import VISITOR, EventKind
from tunnel.model.visitors import visitor_id

if TYPE_CHECKING:
    import asyncio
    import socket
    from collections.abc import Callable, Collection

    from tunnel.engine.pool import DataConnection
    from tunnel.forwarding.base import ForwardedVisitor, Forwarder, ForwardingOwner, RelayLink
    from tunnel.model.events import EventLog
    from tunnel.runtime.reactor import Reactor

_MAINTENANCE_INTERVAL_S: Final = 5.0  # also the age at which a relay is worth the system calls that enable keepalive
_CHECK_SHARES: Final = 3  # of the relays, one share is checked for vanished peers at each maintenance
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
        on_vanished: Callable[[int], None],
        maintenance_interval_s: float = _MAINTENANCE_INTERVAL_S,
        vanished_after_s: float = VANISHED_AFTER_S,
    ) -> None:
        """``on_first_relay`` is called before a relay starts while none runs, ``on_relay_closed`` with each that ended.

        ``on_vanished`` is called with the number of relays that were aborted because a peer had vanished.
        """
        self.active = 0
        """relays that run now"""
        self._reactor = reactor
        self._forwarder = forwarder
        self._event_log = event_log
        self._on_first_relay = on_first_relay
        self._on_relay_closed = on_relay_closed
        self._on_vanished = on_vanished
        self._by_link: dict[RelayLink, dict[int, ForwardedVisitor]] = {}  # by the id of the data connection
        self._lost: set[RelayLink] = set()  # lost links that still have relays
        self._suspects: dict[ForwardedVisitor, float] = {}  # relays with an unanswering peer, and since when
        self._interval_s = maintenance_interval_s
        self._vanished_after_s = vanished_after_s
        self._maintenances = 0
        self._timer: asyncio.TimerHandle | None = None

    def set_forwarder(self, forwarder: Forwarder) -> None:
        """Forward the visitors that come from now on with another forwarder."""
        self._forwarder = forwarder

    def set_close_callback(self, on_relay_closed: Callable[[ForwardedVisitor], None]) -> None:
        """Call this with each relay that ends from now on, instead of the former callback."""
        self._on_relay_closed = on_relay_closed

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

    def running(self) -> list[ForwardedVisitor]:
        """Return the relays that run now, in no order; each of them may end at any time."""
        return [relay for relays in self._by_link.values() for relay in relays.values()]

    def find(self, link: RelayLink, ident: int) -> ForwardedVisitor | None:
        """Return the running relay over this data connection of a link, if there is one."""
        relays = self._by_link.get(link)
        return relays.get(ident) if relays is not None else None

    def start(
        self,
        near: socket.SocketType,
        data: DataConnection,
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

    def on_relay_error(self, relay: ForwardedVisitor, error: Exception) -> None:
        """Log a defect that ended one relay; the others continue."""
        self._event_log.log_error(
            EventKind.VISITOR, f"an internal error ended relay {relay.ident}: {type(error).__name__}: {error}"
        )

    def on_stream_error(self, relay: ForwardedVisitor, error: Exception) -> None:
        """Log that data connections are interfered with."""
        text = f"a visitor was disconnected: its data connection carried {error}"
        self._event_log.warn_throttled(
            EventKind.VISITOR,
            "record",
            text,
            **{VISITOR: relay.describe_visitor(), "id": visitor_id(relay.link.ident, relay.ident, relay.use)},
        )

    def _maintain(self) -> None:
        """Enable keepalive on relays that have lived for a while, and abort those with a vanished peer."""
        self._maintenances += 1
        share = self._maintenances % _CHECK_SHARES
        vanished: list[ForwardedVisitor] = []
        for relay in self.running():
            if not relay.keepalive_enabled:
                relay.enable_keepalive()
            if relay.ident % _CHECK_SHARES == share and self._has_vanished_peer(relay):
                vanished.append(relay)
        is_path_faulty = any(relay.link not in self._lost and relay.is_data_unanswered for relay in vanished)
        for relay in vanished:
            relay.abort()
        if vanished:
            self._on_vanished(len(vanished))
            self._log_vanished(len(vanished))
        if is_path_faulty:
            self._event_log.warn_throttled(EventKind.VISITOR, "path", _FAULTY_PATH)
        self._schedule_maintenance()

    def _schedule_maintenance(self) -> None:
        self._timer = self._reactor.call_later(self._interval_s, self._maintain) if self.active else None

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
            relay.close()
        return len(relays)

    def close_all(self) -> int:
        """Close all relays now; return how many there were."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        running = self.running()
        for relay in running:
            relay.close()
        return len(running)

"""The running relays of one end of a tunnel, and the links on which they were started."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tunnel.model.events import EventKind
from tunnel.runtime.reactor import HANGUP, READABLE

if TYPE_CHECKING:
    import asyncio
    import socket
    from collections.abc import Callable

    from tunnel.engine.pool import DataConnection
    from tunnel.forwarding.base import ForwardedVisitor, Forwarder, RelayLink
    from tunnel.model.events import EventLog
    from tunnel.runtime.reactor import Reactor

_KEEPALIVE_AFTER_S: Final = 5.0  # age at which a relay is worth the system calls that enable keepalive


class RelaySet:
    """Owns its relays, the visitors that are being forwarded. They outlive links; only a drain's limit ends them."""

    def __init__(
        self,
        reactor: Reactor,
        forwarder: Forwarder,
        event_log: EventLog,
        *,
        on_first_relay: Callable[[], None],
        on_relay_closed: Callable[[], None],
    ) -> None:
        """``on_first_relay`` is called before a relay starts while none runs, ``on_relay_closed`` after each end."""
        self.active = 0
        """relays that run now"""
        self._reactor = reactor
        self._forwarder = forwarder
        self._event_log = event_log
        self._on_first_relay = on_first_relay
        self._on_relay_closed = on_relay_closed
        self._running: set[ForwardedVisitor] = set()
        self._by_link: dict[RelayLink, dict[int, ForwardedVisitor]] = {}  # by the id of the data connection
        self._keepalive_timer: asyncio.TimerHandle | None = None

    def add_link(self, link: RelayLink) -> None:
        """Register the relays that are started on this link from now on, so that ``find`` returns them."""
        self._by_link[link] = {}

    def remove_link(self, link: RelayLink) -> None:
        """Let the relays of a lost link continue without it."""
        for relay in list(self._by_link.pop(link, {}).values()):
            relay.on_link_lost()

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
    ) -> ForwardedVisitor:
        """Forward between a visitor's or target's socket and a data connection; the relay owns both from now on.

        ``near_events`` are the events that ``near`` had so far; None: the reactor does not watch it yet.
        """
        if not self.active:
            self._on_first_relay()
        ident, stream = data.ident, data.stream
        relay = self._forwarder.create(ident, link, near, data.sock, stream, self)
        self.active += 1
        self._running.add(relay)
        relays = self._by_link.get(link)
        if relays is not None:  # the link may be lost already
            relays[ident] = relay
        if self._keepalive_timer is None:
            self._keepalive_timer = self._reactor.call_later(_KEEPALIVE_AFTER_S, self._enable_keepalive)
        events = data.events
        if stream.has_buffered_input:  # read it, as if bytes had arrived
            events = events | READABLE & ~HANGUP
        relay.start(near_events, events)
        return relay

    def on_relay_closed(self, relay: ForwardedVisitor) -> None:
        """Forget a relay that has closed its sockets."""
        self._running.discard(relay)
        self.active -= 1
        relays = self._by_link.get(relay.link)
        if relays is not None:
            relays.pop(relay.ident, None)
        self._on_relay_closed()

    def on_relay_error(self, relay: ForwardedVisitor, error: Exception) -> None:
        """Log a defect that ended one relay; the others continue."""
        self._event_log.log_error(
            EventKind.VISITOR, f"an internal error ended relay {relay.ident}: {type(error).__name__}: {error}"
        )

    def _enable_keepalive(self) -> None:
        self._keepalive_timer = None
        for relay in self._running:
            if not relay.keepalive_enabled:
                relay.enable_keepalive()
        if self._running:
            self._keepalive_timer = self._reactor.call_later(_KEEPALIVE_AFTER_S, self._enable_keepalive)

    def close_all(self) -> int:
        """Close all relays now; return how many there were."""
        if self._keepalive_timer is not None:
            self._keepalive_timer.cancel()
            self._keepalive_timer = None
        running = list(self._running)
        for relay in running:
            relay.close()
        return len(running)

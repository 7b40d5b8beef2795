"""What ingress and egress have in common: relays over data connections, counted and owned until they end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tunnel.carriers.encrypted import DecryptingFlow, EncryptingFlow
from tunnel.forwarding.tcp import Flow, Relay
from tunnel.runtime.reactor import HANGUP, READABLE

if TYPE_CHECKING:
    import asyncio
    import socket
    from collections.abc import Callable

    from tunnel.engine.pool import DataConnection
    from tunnel.engine.stats import Stats
    from tunnel.forwarding.tcp import ByteCounter, RelayLink
    from tunnel.model.events import EventLog
    from tunnel.runtime.reactor import Reactor
    from tunnel.runtime.splice import PipePool

_KEEPALIVE_AFTER_S: Final = 5.0  # age at which a relay is worth the system calls that enable keepalive


class RelaySet:
    """The running relays of one end of a tunnel. They outlive links; only the limit of a drain ends them early."""

    def __init__(
        self,
        reactor: Reactor,
        pipes: PipePool,
        stats: Stats,
        event_log: EventLog,
        on_crash: Callable[[Exception], None],
    ) -> None:
        self.reactor = reactor
        self.stats = stats
        self.event_log = event_log
        self._on_crash = on_crash
        self._pipes = pipes
        self._running: set[Relay] = set()
        self._keepalive_timer: asyncio.TimerHandle | None = None
        reactor.fd_budget.reservations.add(self)

    def start(
        self,
        near: socket.SocketType,
        data: DataConnection,
        link: RelayLink,
        *,
        near_events: int | None,
        from_near: ByteCounter,
        to_near: ByteCounter,
    ) -> Relay:
        """Relay between a visitor's or target's socket and a data connection; the relay owns both from now on.

        ``from_near`` counts bytes that come from ``near``, ``to_near`` bytes that go to it. ``near_events`` are the
        events that ``near`` had so far; None: the reactor does not watch it yet.
        """
        far, session = data.sock, data.session
        relay = Relay(data.ident, link, self.reactor, self._pipes, near, far, self)
        self._running.add(relay)
        if not self.stats.active:
            self.stats.notify_activity()
        self.stats.active += 1
        if self._keepalive_timer is None:
            self._keepalive_timer = self.reactor.call_later(_KEEPALIVE_AFTER_S, self._enable_keepalive)
        if session is None:
            relay.start(Flow(relay, near, far, from_near), Flow(relay, far, near, to_near), near_events, data.events)
        else:
            encrypting = EncryptingFlow(relay, near, far, from_near, session)
            decrypting = DecryptingFlow(relay, far, near, to_near, session, encrypting.push)
            # The session may hold the first bytes already: read it, as if bytes had arrived.
            relay.start(encrypting, decrypting, near_events, data.events | READABLE & ~HANGUP)
        return relay

    def on_handler_error(self, error: Exception) -> None:
        """Report a defect outside any relay to the engine."""
        self._on_crash(error)

    def on_relay_closed(self, relay: Relay) -> None:
        """Forget a relay that has closed its sockets."""
        self._running.discard(relay)
        self.stats.active -= 1
        self.on_visitor_left()

    def on_visitor_left(self) -> None:
        """React to the end of a relay; the ingress overrides it."""

    def on_relay_error(self, relay: Relay, error: Exception) -> None:
        """Log a defect that ended one relay; the others continue."""
        self.event_log.log_error(
            "visitor", f"an internal error ended relay {relay.ident}: {type(error).__name__}: {error}"
        )

    def _enable_keepalive(self) -> None:
        self._keepalive_timer = None
        for relay in self._running:
            if not relay.keepalive_enabled:
                relay.enable_keepalive()
        if self._running:
            self._keepalive_timer = self.reactor.call_later(_KEEPALIVE_AFTER_S, self._enable_keepalive)

    def on_link_lost(self) -> None:
        """Let the relays continue without their link."""
        for relay in list(self._running):
            relay.on_link_lost()

    @property
    def reserved(self) -> int:
        """Descriptors that present visitors will need yet."""
        return 0

    @property
    def is_busy(self) -> bool:
        """Whether a drain has visitors to wait for."""
        return bool(self._running)

    def close_all(self) -> int:
        """End all relays now, and the use of this set; return how many there were."""
        self.reactor.fd_budget.reservations.discard(self)
        if self._keepalive_timer is not None:
            self._keepalive_timer.cancel()
        running = list(self._running)
        for relay in running:
            relay.finish()
        return len(running)

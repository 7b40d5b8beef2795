"""What entrance and exit have in common: relays over data connections, counted and owned until they end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tunnel.carriers.encrypted import OpeningFlow, SealingFlow
from tunnel.forwarding.tcp import Flow, Relay
from tunnel.runtime.reactor import ENDING, READ

if TYPE_CHECKING:
    import asyncio
    import socket
    from collections.abc import Callable

    from tunnel.engine.pool import DataConnection
    from tunnel.engine.stats import Stats
    from tunnel.forwarding.tcp import EndTeller, Meter
    from tunnel.model.events import EventLog
    from tunnel.runtime.reactor import Reactor
    from tunnel.runtime.splice import Pipes

_SETTLED: Final = 5.0  # seconds after which a relay is worth the system calls that watch over it


class Relays:
    """The running relays of one end of a tunnel. They outlive links; only a drain's limit ends them early."""

    def __init__(
        self,
        reactor: Reactor,
        pipes: Pipes,
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
        self._round: asyncio.TimerHandle | None = None
        reactor.descriptors.promisers.add(self)

    def join(
        self,
        near: socket.SocketType,
        data: DataConnection,
        link: EndTeller,
        *,
        near_events: int | None,
        inward: Meter,
        outward: Meter,
    ) -> Relay:
        """Relay between a visitor's or target's socket and a data connection, both owned by the relay from now on.

        ``inward`` counts what leaves ``near``, ``outward`` what goes to it.
        """
        far, session = data.sock, data.session
        relay = Relay(data.ident, link, self.reactor, self._pipes, near, far, self)
        self._running.add(relay)
        if not self.stats.active:
            self.stats.notify_activity()
        self.stats.active += 1
        if self._round is None:
            self._round = self.reactor.later(_SETTLED, self._go_round)
        if session is None:
            relay.start(Flow(relay, near, far, inward), Flow(relay, far, near, outward), near_events, data.events)
        else:
            seal = SealingFlow(relay, near, far, inward, session)
            opening = OpeningFlow(relay, far, near, outward, session, seal.push)
            # The session may hold the first bytes already: look, as if some had come.
            relay.start(seal, opening, near_events, data.events | READ & ~ENDING)
        return relay

    def crashed(self, error: Exception) -> None:
        """A defect outside any relay: the engine's."""
        self._on_crash(error)

    def relay_done(self, relay: Relay) -> None:
        """A relay has closed its sockets."""
        self._running.discard(relay)
        self.stats.active -= 1
        self.freed(relay)

    def freed(self, relay: Relay) -> None:
        """A visitor has left; what an end makes of it."""

    def relay_crashed(self, relay: Relay, error: Exception) -> None:
        """A defect ended one relay; the others go on."""
        self.event_log.log_error("visitor", f"a defect ended relay {relay.ident}: {type(error).__name__}: {error}")

    def _go_round(self) -> None:
        self._round = None
        for relay in self._running:
            if not relay.kept:
                relay.keep_alive()
        if self._running:
            self._round = self.reactor.later(_SETTLED, self._go_round)

    def link_lost(self) -> None:
        """The link is gone; the relays go on without it."""
        for relay in list(self._running):
            relay.link_lost()

    @property
    def promised(self) -> int:
        """Descriptors that those who are here will need yet."""
        return 0

    @property
    def busy(self) -> bool:
        """Whether there are visitors that a drain waits for."""
        return bool(self._running)

    def cut(self) -> int:
        """End all relays now; how many there were. The end of this end."""
        self.reactor.descriptors.promisers.discard(self)
        if self._round is not None:
            self._round.cancel()
        running = list(self._running)
        for relay in running:
            relay.finish()
        return len(running)

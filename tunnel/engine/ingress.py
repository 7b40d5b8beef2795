"""Visitors in: accept, give each an idle data connection or a place in the queue, signal, relay.

Knows nothing of server or client; whoever has a link attaches it here.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final

from tunnel.engine.relays import Relays
from tunnel.runtime.acceptor import Acceptor

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from tunnel.engine.link import Link
    from tunnel.engine.pool import DataConnection
    from tunnel.engine.stats import Stats
    from tunnel.forwarding.tcp import Relay
    from tunnel.model.address import Address
    from tunnel.model.events import EventLog
    from tunnel.model.settings import Settings
    from tunnel.runtime.reactor import Reactor
    from tunnel.runtime.splice import Pipes

WAIT: Final = 5.0
"""Seconds that a visitor waits for a data connection at most, and that visitors are still taken in without a link."""


class Entrance(Relays):
    """The end that accepts visitors. Owns the listener, the queue and the relays."""

    def __init__(
        self,
        reactor: Reactor,
        pipes: Pipes,
        stats: Stats,
        event_log: EventLog,
        settings: Settings,
        on_crash: Callable[[Exception], None],
    ) -> None:
        super().__init__(reactor, pipes, stats, event_log, on_crash)
        self._loop = asyncio.get_running_loop()
        self.acceptor: Acceptor | None = None
        self._link: Link | None = None
        self._linkless_since = self._loop.time()
        self._queue: deque[tuple[socket.SocketType, float]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._queue_limit = settings.signal_queue_limit
        self._visitors = settings.semaphore_limit
        self.address: str | None = None
        """where visitors are accepted, once that is so"""

    @property
    def queued(self) -> int:
        """Visitors who wait for a data connection."""
        return len(self._queue)

    @property
    def promised(self) -> int:
        """A data connection for each that waits for one."""
        return len(self._queue)

    @property
    def busy(self) -> bool:
        """Whether there are visitors that a drain waits for."""
        return super().busy or bool(self._queue)

    def open(self, listener: socket.SocketType, asked: Address) -> None:
        """Begin to accept visitors on a listener, owned from now on; ``asked`` is the address in the spec."""
        self.acceptor = Acceptor(
            self.reactor, listener, self.event_log, self._serve, self._has_room, asked, yields=True
        )
        self.address = self.acceptor.address

    def finish_accepting(self) -> None:
        """Give the address up, and take in those before it whose connection the kernel has made already."""
        if self.acceptor is not None:
            self.acceptor.take_rest()
        self.stop_accepting()

    def stop_accepting(self) -> None:
        """Give the address up. Visitors who are here stay."""
        if self.acceptor is not None:
            self.acceptor.close()
            self.acceptor = None

    def set_limits(self, visitors: int, queue: int) -> None:
        """Serve and queue so many from now on; nobody who is here is sent away."""
        self._visitors, self._queue_limit = visitors, queue
        self._resume_accepting()

    def attach(self, link: Link) -> None:
        """Serve visitors over this link."""
        self._link = link
        self._visitors = link.limits.visitors
        if self._queue:
            link.send_queue_length(len(self._queue))

    def detach(self) -> None:
        """The link is gone. Relays go on; who waits may yet be served by the next one."""
        self._link = None
        self.link_lost()
        self._linkless_since = self._loop.time()

    # --- visitors -------------------------------------------------------------------------------------------------

    def _has_room(self) -> bool:
        waiting = len(self._queue)
        return waiting < self._queue_limit and self.stats.active + waiting < self._visitors

    def _serve(self, visitor: socket.SocketType, _peer: object) -> None:
        link = self._link
        if link is not None and not self._queue:
            data = link.pool.take()
            if data is not None:
                self._launch(link, visitor, data)
                return
        deadline = self._loop.time() + WAIT
        if link is None:
            deadline = self._linkless_since + WAIT
            if deadline <= self._loop.time():
                self._turn_away(visitor, "there is no link")
                return
        self._queue.append((visitor, deadline))
        if self._timer is None:
            self.stats.notify_activity()
            self._timer = self.reactor.later(deadline - self._loop.time(), self._expire)
        if link is not None:
            link.send_queue_length(len(self._queue))

    def _launch(self, link: Link, visitor: socket.SocketType, data: DataConnection) -> None:
        link.send_launch(data.ident)
        stats = self.stats
        stats.signals += 1
        stats.total += 1
        self.join(visitor, data, link, near_events=None, inward=stats.from_visitors, outward=stats.to_visitors)

    def pooled(self) -> None:
        """There are idle connections: serve those who wait, the longest first."""
        link = self._link
        if link is None or not self._queue:
            return
        while self._queue:
            data = link.pool.take()
            if data is None:
                break
            visitor, _ = self._queue.popleft()
            self._launch(link, visitor, data)
        link.send_queue_length(len(self._queue))
        self._resume_accepting()

    def failed(self, ident: int, reason: str) -> None:
        """The exit could not reach the target for this visitor: close it at once."""
        relay = self._link.relays.get(ident) if self._link is not None else None
        self.event_log.warn_throttled("target", "failed", f"a visitor could not be served: {reason}")
        if relay is not None:
            self.stats.failed += 1
            relay.finish()

    def ended(self, ident: int, total: int) -> None:
        """The exit's target has ended after so many bytes."""
        relay = self._link.relays.get(ident) if self._link is not None else None
        if relay is not None:
            relay.expect_end(total)

    def launch(self, idents: tuple[int, ...]) -> None:
        """Signals are for exits; the link lets none through."""

    def freed(self, relay: Relay) -> None:
        """A visitor has left: there may be room for another."""
        self._resume_accepting()

    def _resume_accepting(self) -> None:
        if self.acceptor is not None:
            self.acceptor.resume()

    def _turn_away(self, visitor: socket.SocketType, why: str) -> None:
        self.stats.failed += 1
        self.reactor.close(visitor)
        self.event_log.warn_throttled("visitor", "away", f"a visitor was closed: {why}")

    def _expire(self) -> None:
        self._timer = None
        now = self._loop.time()
        why = "no link" if self._link is None else "no data connection"
        while self._queue and self._queue[0][1] <= now:
            visitor, _ = self._queue.popleft()
            self._turn_away(visitor, f"there was {why} for it in {WAIT:g} s")
        if self._queue:
            self._timer = self.reactor.later(self._queue[0][1] - now, self._expire)
        self._resume_accepting()

    def close(self) -> int:
        """Close everything; how many visitors were cut off."""
        self.stop_accepting()
        if self._timer is not None:
            self._timer.cancel()
        cut = len(self._queue)
        while self._queue:
            visitor, _ = self._queue.popleft()
            self.reactor.close(visitor)
        return cut + self.cut()

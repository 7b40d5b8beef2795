"""The pool: idle data connections of one link, at either end of it."""

from __future__ import annotations

import random
import socket
import time
from typing import TYPE_CHECKING, Final

from tunnel.model.spec import Proto
from tunnel.protocol.visitor_address import UNKNOWN
from tunnel.runtime import sockets
from tunnel.runtime.reactor import HANGUP, READABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tunnel.forwarding.base import FlowSource
    from tunnel.forwarding.flow import ByteCounter, Flow
    from tunnel.forwarding.tcp import Relay
    from tunnel.runtime.reactor import Reactor

MAX_AGE_S: Final = 240.0
"""Idle time after which a connection is replaced: a NAT or firewall may forget a silent one after 300 seconds."""
SIGNAL_GRACE_S: Final = 10.0
"""How long a connection that has ended waits for the signal that may still be under way."""
_MAX_ENDED: Final = 2048
"""Ended connections that wait for their signals: more than a pool of usual size, and few enough for the process."""
_RECHECK_AFTER_S: Final = 1.0  # an idle connection older than this is checked once more before a visitor gets it


class DataConnection:
    """One pooled connection. The caller that takes it out of the pool owns its socket from then on."""

    __slots__ = (
        "created_at",
        "end_offset",
        "events",
        "expires_at",
        "flow_source",
        "ident",
        "keepalive_enabled",
        "pool",
        "proto",
        "sock",
        "use",
        "visitor_address",
    )

    def __init__(
        self, ident: int, sock: socket.SocketType, flow_source: FlowSource, pool: Pool, events: int = 0
    ) -> None:
        self.ident = ident
        self.sock = sock
        self.flow_source = flow_source
        """what makes the flows of a relay over it"""
        self.pool = pool
        self.end_offset: int | None = None
        """bytes that it carries in all, if the other end has announced that before this end knows the visitor"""
        self.use = 0
        """which visitor uses it next, from 0"""
        self.proto = Proto.TCP
        """what the visitor that uses the connection speaks"""
        self.visitor_address = UNKNOWN
        """the address of the visitor that uses the connection, as LAUNCH carries it"""
        self.events = events
        """all event bits that the reactor has reported and no relay has handled yet"""
        self.keepalive_enabled = False
        self.created_at = time.monotonic()
        # The random part spreads replacements over time.
        self.expires_at = self.created_at + MAX_AGE_S * (0.8 + 0.2 * random.random())  # noqa: S311  no secret

    def ready(self, events: int) -> None:
        """Handle events of the idle connection."""
        self.events |= events
        if events & READABLE:
            self.pool.on_idle_event(self)

    def create_flows(
        self, relay: Relay, near: socket.SocketType, from_near: ByteCounter, to_near: ByteCounter
    ) -> tuple[Flow, Flow]:
        """Create the flows of a relay between ``near`` and this connection: from near, and to near."""
        return self.flow_source.create_flows(relay, near, self.sock, from_near, to_near)

    def watch(self, handler: Callable[[int], None] | None) -> None:
        """Call ``handler`` with the events of the connection, which is in no pool; None: only gather them."""
        self.pool.reactor.set_handler(self.sock, handler or self.ready)

    def close(self) -> None:
        """Close the connection, which is in no pool."""
        self.pool.reactor.close(self.sock)

    def reset(self) -> None:
        """Close the connection, which is in no pool, so that the other end sees a reset."""
        sockets.reset_on_close(self.sock)
        self.pool.reactor.close(self.sock)

    def on_handler_error(self, error: Exception) -> None:
        """Report a defect in the handler."""
        self.pool.on_crash(error)


class Pool:
    """Idle connections. The ingress acquires them for visitors; the egress claims them by the id in a signal.

    At the ingress nothing may arrive on an idle connection, so bytes or an end mean that it died: it is closed and
    ``on_connection_lost`` gets its id. At the egress the first bytes, and even the end, of a quick visitor may come
    before the signal: a connection that has ended waits for its signal. With reuse, an ingress holds a used connection
    until the egress frees it.
    """

    def __init__(
        self,
        reactor: Reactor,
        *,
        is_ingress: bool,
        on_connection_lost: Callable[[int], None],
        on_crash: Callable[[Exception], None],
    ) -> None:
        self.on_crash = on_crash
        """called with a defect in the handler of an idle connection"""
        self.unused = 0
        """connections that the other end, or the network between, has closed before a visitor used them"""
        self.reactor = reactor
        self._is_ingress = is_ingress
        self._on_connection_lost = on_connection_lost
        self.idle: Final[dict[int, DataConnection]] = {}
        """idle connections by id; only the pool changes them"""
        self._ended: dict[int, DataConnection] = {}
        self._held: dict[int, DataConnection] = {}  # at an ingress: used, and not freed by the egress yet

    def __len__(self) -> int:
        return len(self.idle)

    @property
    def open_connections(self) -> int:
        """Number of idle connections, of ended ones that wait for their signals, and of those that are not free yet."""
        return len(self.idle) + len(self._ended) + len(self._held)

    def __repr__(self) -> str:
        return f"<Pool idle={len(self.idle)} ended={len(self._ended)} held={len(self._held)}>"

    def add(self, connection: DataConnection, *, is_registered: bool) -> None:
        """Add an authenticated connection, owned from now on; ``is_registered``: the reactor watches it already."""
        self.idle[connection.ident] = connection
        if is_registered:
            self.reactor.set_handler(connection.sock, connection.ready)
        else:
            self.reactor.register(connection.sock, connection.ready)

    def hold(self, connection: DataConnection) -> None:
        """Keep a connection that was used until the egress frees it; the reactor watches it already."""
        self._held[connection.ident] = connection
        self.reactor.set_handler(connection.sock, connection.ready)

    def free(self, ident: int) -> bool:
        """Let a connection that is held be used again; return whether there was one."""
        connection = self._held.pop(ident, None)
        if connection is None:
            return False
        self.idle[ident] = connection
        return True

    def acquire(self) -> DataConnection | None:
        """Return the youngest live connection, for a visitor: it is the least likely to have died unnoticed."""
        while self.idle:
            _, connection = self.idle.popitem()
            if time.monotonic() - connection.created_at < _RECHECK_AFTER_S or self._is_alive(connection):
                return connection
            self._close_lost(connection)
        return None

    def find(self, ident: int) -> DataConnection | None:
        """Return the connection with this id, also one that has ended and waits for its signal; it stays here."""
        return self.idle.get(ident) or self._ended.get(ident)

    def claim(self, ident: int) -> DataConnection | None:
        """Return the connection that a signal names."""
        return self.idle.pop(ident, None) or self._ended.pop(ident, None)

    def discard(self, idents: Iterable[int]) -> None:
        """Close the connections that the other end has retired."""
        for ident in idents:
            connection = self.claim(ident)
            if connection is not None:
                self.unused += 1
                self.reactor.close(connection.sock)

    def on_idle_event(self, connection: DataConnection) -> None:
        """Handle bytes, or the end, on an idle connection."""
        if self._is_ingress:
            if self._is_alive(connection):
                return  # the event is older than this connection's place here: the relay before has handled it
            if self.idle.pop(connection.ident, None) is not None:
                self._close_lost(connection)
            elif self._held.pop(connection.ident, None) is not None:
                self.reactor.close(connection.sock)
        elif connection.events & HANGUP and self.idle.pop(connection.ident, None) is not None:
            connection.expires_at = time.monotonic() + SIGNAL_GRACE_S
            self._ended[connection.ident] = connection
            if len(self._ended) > _MAX_ENDED:
                self._close_unclaimed(next(iter(self._ended)))
            self._on_connection_lost(connection.ident)

    def _close_lost(self, connection: DataConnection) -> None:
        self.unused += 1
        self.reactor.close(connection.sock)
        self._on_connection_lost(connection.ident)

    def _close_unclaimed(self, ident: int) -> None:
        self.unused += 1
        self.reactor.close(self._ended.pop(ident).sock)

    def close_surplus(self, surplus: int) -> list[int]:
        """Close the ``surplus`` oldest connections and all that are too old; return their ids, for the other end."""
        now = time.monotonic()
        retired = [c.ident for c in self.idle.values() if c.expires_at < now]
        if surplus > len(retired):
            retired = list(self.idle)[:surplus]
        for ident in retired:
            self.reactor.close(self.idle.pop(ident).sock)
        return retired

    def run_maintenance(self) -> None:
        """Enable keepalive on connections that stay, close ended ones for which no signal came in time."""
        now = time.monotonic()
        for connection in (*self.idle.values(), *self._held.values()):
            if not connection.keepalive_enabled:
                connection.keepalive_enabled = True
                sockets.enable_keepalive(connection.sock)
        for connection in [c for c in self._ended.values() if c.expires_at < now]:
            self._close_unclaimed(connection.ident)

    def close(self) -> None:
        """Close every idle connection: the link is lost."""
        for connections in (self.idle, self._ended, self._held):
            for connection in connections.values():
                self.reactor.close(connection.sock)
            connections.clear()

    @staticmethod
    def _is_alive(connection: DataConnection) -> bool:
        """Whether the kernel reports neither bytes nor an end on a connection that should be silent."""
        try:
            connection.sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

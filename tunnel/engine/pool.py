"""The pool: idle data connections of one link, at either end of it."""

from __future__ import annotations

import random
import socket
import time
from typing import TYPE_CHECKING, Final

from tunnel.runtime import sockets
from tunnel.runtime.reactor import ENDING, READ

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnel.runtime.reactor import Reactor
    from tunnel.runtime.tls import TlsSession

_MAX_AGE: Final = 240.0  # seconds; what stands between the ends may forget a silent connection after 300
_LIMBO: Final = 10.0  # seconds that an ended connection waits for the signal that may still be on its way
_STALE: Final = 1.0  # seconds after which an idle connection is looked at once more before a visitor gets it


class DataConnection:
    """One pooled connection. Whoever takes it out of the pool owns its socket from then on."""

    __slots__ = ("born", "events", "expires", "ident", "kept", "pool", "session", "sock")

    def __init__(self, ident: int, sock: socket.SocketType, session: TlsSession | None, pool: Pool) -> None:
        self.ident = ident
        self.sock = sock
        self.session = session
        self.pool = pool
        self.events = 0
        """what the reactor has said of it while it was idle"""
        self.kept = False
        """whether the kernel watches over it"""
        self.born = time.monotonic()
        self.expires = self.born + _MAX_AGE * (0.8 + 0.2 * random.random())  # noqa: S311  spreads replacements over time

    def ready(self, events: int) -> None:
        """Handler while idle."""
        self.events |= events
        if events & READ:
            self.pool.stirred(self)

    def crashed(self, error: Exception) -> None:
        """A defect in the handler."""
        self.pool.on_crash(error)


class Pool:
    """Idle connections. At the entrance they are taken for visitors; at the exit claimed by the id in a signal.

    At the entrance nothing may arrive on an idle one, so whatever stirs it means that it died: it is dropped and
    ``on_drop`` told its id. At the exit the first bytes, and even the end, of a quick visitor may come before the
    signal: an ended one waits in limbo for it.
    """

    def __init__(
        self,
        reactor: Reactor,
        *,
        at_entrance: bool,
        on_drop: Callable[[int], None],
        on_crash: Callable[[Exception], None],
    ) -> None:
        self.on_crash = on_crash
        """told of a defect in the handler of an idle connection"""
        self._reactor = reactor
        self._at_entrance = at_entrance
        self._on_drop = on_drop
        self._idle: dict[int, DataConnection] = {}
        self._limbo: dict[int, DataConnection] = {}

    def __len__(self) -> int:
        return len(self._idle)

    def __repr__(self) -> str:
        return f"<Pool idle={len(self._idle)} limbo={len(self._limbo)}>"

    def add(self, connection: DataConnection, *, watched: bool) -> None:
        """Put in a connection that was proven; the pool owns it now."""
        self._idle[connection.ident] = connection
        if watched:
            self._reactor.hand_over(connection.sock, connection.ready)
        else:
            self._reactor.register(connection.sock, connection.ready)

    def take(self) -> DataConnection | None:
        """The youngest one that lives, for a visitor: it is the least likely to have died unseen."""
        while self._idle:
            ident, connection = self._idle.popitem()
            if time.monotonic() - connection.born < _STALE or self._alive(connection):
                return connection
            self._reactor.close(connection.sock)
            self._on_drop(ident)
        return None

    def claim(self, ident: int) -> DataConnection | None:
        """The one that a signal names."""
        return self._idle.pop(ident, None) or self._limbo.pop(ident, None)

    def discard(self, ident: int) -> None:
        """Close the one that the other end has given up."""
        connection = self.claim(ident)
        if connection is not None:
            self._reactor.close(connection.sock)

    def stirred(self, connection: DataConnection) -> None:
        """Something happened to an idle connection."""
        if self._at_entrance:
            if self._idle.pop(connection.ident, None) is not None:
                self._reactor.close(connection.sock)
                self._on_drop(connection.ident)
        elif connection.events & ENDING and self._idle.pop(connection.ident, None) is not None:
            connection.expires = time.monotonic() + _LIMBO
            self._limbo[connection.ident] = connection
            self._on_drop(connection.ident)

    def retire(self, surplus: int) -> list[int]:
        """Close the ``surplus`` oldest and all that are too old; their ids, for the other end."""
        now = time.monotonic()
        retired = [c.ident for c in self._idle.values() if c.expires < now]
        if surplus > len(retired):
            retired = list(self._idle)[:surplus]
        for ident in retired:
            self._reactor.close(self._idle.pop(ident).sock)
        return retired

    def sweep(self) -> None:
        """Watch over those that stay, close what waited in limbo for too long: no signal is coming for it."""
        now = time.monotonic()
        for connection in self._idle.values():
            if not connection.kept:
                connection.kept = True
                sockets.keep_alive(connection.sock)
        for connection in [c for c in self._limbo.values() if c.expires < now]:
            self._reactor.close(self._limbo.pop(connection.ident).sock)

    def close(self) -> None:
        """Close every idle connection: the link is over."""
        for connection in (*self._idle.values(), *self._limbo.values()):
            self._reactor.close(connection.sock)
        self._idle.clear()
        self._limbo.clear()

    @staticmethod
    def _alive(connection: DataConnection) -> bool:
        """Whether the kernel has nothing to say about a connection that should be silent."""
        try:
            connection.sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

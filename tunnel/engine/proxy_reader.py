"""Reads the PROXY header of connections from balancers: option ``proxy_from`` of an ingress.

A connection from one of the networks has to start with a header, within a time limit. The header is read with
MSG_PEEK and then taken off alone, so that the socket is passed on as if the visitor had connected directly.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Final, Protocol

from tunnel.protocol.proxy_header import MAX_V2_BYTES, ProxyHeaderError, parse_header
from tunnel.protocol.visitor_address import pack_host
from tunnel.runtime import sockets
from tunnel.runtime.reactor import ERROR, HANGUP

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnel.model.networks import NetworkSet
    from tunnel.runtime.reactor import Reactor

HEADER_TIMEOUT_S: Final = 5.0
"""Time in which a header has to be complete: long enough for a segment that is sent again (§2 of the specification)."""
MAX_AWAITED: Final = 512
"""Connections of one ingress whose header is awaited; the oldest gives way to another one."""


class HeaderOwner(Protocol):
    """The ingress, as its reader sees it."""

    def on_header_refused(self, sock: socket.SocketType, peer: object, reason: str) -> None:
        """Close a connection without a valid header; ``reason`` is the end of a sentence."""

    def on_header_gone(self) -> None:
        """React to fewer connections whose header is awaited."""

    def on_handler_error(self, error: Exception) -> None:
        """Handle a defect in the reading of a header."""


class AwaitedHeader:
    """A connection whose header has not arrived completely."""

    __slots__ = ("_reader", "deadline", "peer", "sock")

    def __init__(self, reader: ProxyHeaderReader, sock: socket.SocketType, peer: object, deadline: float) -> None:
        self._reader = reader
        self.sock = sock
        self.peer = peer
        self.deadline = deadline

    def ready(self, events: int) -> None:
        """Read the header again after events of the connection."""
        self._reader.read_again(self, is_closed=bool(events & (HANGUP | ERROR)))

    def on_handler_error(self, error: Exception) -> None:
        """Report a defect in the handler."""
        self._reader.on_handler_error(error)


class ProxyHeaderReader:
    """Owns the connections whose header is awaited; passes on all others, and those whose header was read."""

    def __init__(
        self,
        reactor: Reactor,
        owner: HeaderOwner,
        balancers: NetworkSet,
        on_visitor: Callable[[socket.SocketType, object], None],
        *,
        timeout_s: float = HEADER_TIMEOUT_S,
        max_awaited: int = MAX_AWAITED,
    ) -> None:
        """``on_visitor`` receives each visitor with the address that the balancer passes, or its own."""
        self._reactor = reactor
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._balancers = balancers
        self._on_visitor = on_visitor
        self._timeout_s = timeout_s
        self._max_awaited = max_awaited
        self._awaited: dict[AwaitedHeader, None] = {}  # ordered by deadline
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._awaited)

    def update(self, balancers: NetworkSet, on_visitor: Callable[[socket.SocketType, object], None]) -> None:
        """Use other networks, and another callback; connections whose header is awaited still need one."""
        self._balancers, self._on_visitor = balancers, on_visitor

    def accept(self, sock: socket.SocketType, peer: object) -> None:
        """Pass on a new connection, after its header if it comes from a balancer."""
        host = pack_host(peer[0]) if isinstance(peer, tuple) else b""
        if host not in self._balancers:
            self._on_visitor(sock, peer)
            return
        awaited = AwaitedHeader(self, sock, peer, self._loop.time() + self._timeout_s)
        if self._read(awaited, is_closed=False):
            return
        if len(self._awaited) >= self._max_awaited:
            self._refuse(next(iter(self._awaited)), f"more than {self._max_awaited} connections wait for their header")
        self._awaited[awaited] = None
        self._reactor.register(sock, awaited.ready)
        if self._timer is None:
            self._timer = self._reactor.call_later(self._timeout_s, self._on_timeout)

    def read_again(self, awaited: AwaitedHeader, *, is_closed: bool) -> None:
        """Read after more has arrived; ``is_closed``: nothing will follow."""
        if awaited in self._awaited:
            self._read(awaited, is_closed=is_closed)

    def _read(self, awaited: AwaitedHeader, *, is_closed: bool) -> bool:
        """Pass on or refuse a connection; return whether that was done."""
        sock = awaited.sock
        try:
            data = sock.recv(MAX_V2_BYTES, socket.MSG_PEEK)
            header = parse_header(data)
            if header is not None and len(sock.recv(header.size)) != header.size:
                raise ProxyHeaderError("its PROXY header was interrupted by urgent data")
        except BlockingIOError:
            data, header = b"", None
        except OSError as error:
            self._refuse(awaited, f"its PROXY header could not be read: {sockets.describe_error(error)}")
            return True
        except ProxyHeaderError as error:
            self._refuse(awaited, str(error))
            return True
        else:
            is_closed = is_closed or not data
        if header is None:
            if is_closed:
                self._refuse(awaited, "it was closed before its PROXY header was complete")
            return is_closed
        self._forget(awaited)
        self._on_visitor(sock, header.source or awaited.peer)
        return True

    def _forget(self, awaited: AwaitedHeader) -> None:
        if awaited in self._awaited:
            del self._awaited[awaited]
            self._reactor.unregister(awaited.sock)
            self._owner.on_header_gone()

    def _refuse(self, awaited: AwaitedHeader, reason: str) -> None:
        self._forget(awaited)
        self._owner.on_header_refused(awaited.sock, awaited.peer, reason)

    def _on_timeout(self) -> None:
        self._timer = None
        now = self._loop.time()
        for awaited in list(self._awaited):
            if awaited.deadline > now:
                self._timer = self._reactor.call_later(awaited.deadline - now, self._on_timeout)
                return
            self._refuse(awaited, f"its PROXY header was not complete in {self._timeout_s:g} s")

    def on_handler_error(self, error: Exception) -> None:
        """Report a defect to the ingress."""
        self._owner.on_handler_error(error)

    def close(self) -> int:
        """Close the connections whose header is awaited; return how many there were."""
        if self._timer is not None:
            self._timer.cancel()
        count = len(self._awaited)
        for awaited in self._awaited:
            self._reactor.close(awaited.sock)
        self._awaited.clear()
        return count

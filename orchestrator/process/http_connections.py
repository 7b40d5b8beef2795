"""Bounds what HTTP clients cost a daemon: places, time for a request, time and memory for an answer.

aiohttp has no deadline for a request's head and none for clients that do not read. So each connection is wrapped: the
protocol of aiohttp runs inside of a ``GuardedConnection``. A connection is in one of three conditions:

- waiting for a complete request: it has a place at a ``FrontDoor`` with a deadline, and older ones give way to newer;
- answering: a handler runs. Their number is bounded; streams belong to them;
- writing: the client has not read everything. It has a deadline, and all together have a bounded amount of memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, cast

from aiohttp import web

from orchestrator.errors import OrchestratorError
from tunnel.runtime import listeners
from tunnel.runtime.fd_budget import FdBudget
from tunnel.runtime.front_door import FrontDoor, FrontDoorLimits, PeerOrigin, origin_of

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler

    from tunnel.model.address import Address

_ACCEPTS_PER_TURN: Final = 8
_FD_PAUSE_S: Final = 0.1  # pause without accepting when descriptors have run out
_LINGER_S: Final = 1.0  # for the rest of a request's body after the answer
_MAX_HEADERS: Final = 50


class TooManyRequestsError(OrchestratorError):
    """As many requests are being answered as the limits allow."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Limits of the connections that share a guard."""

    front_door: FrontDoorLimits = field(default_factory=lambda: FrontDoorLimits(total=128, per_prefix=64))
    """for connections without a complete request, idle ones too"""
    max_answering: int = 64
    max_writing: int = 64
    max_unsent_bytes: int = 8 << 20
    """of all answers together; the connection that has been writing longest is aborted first, the last one never"""
    write_timeout_s: float = 30.0
    """for an answer, besides the time that its unsent part takes at ``min_rate_bps``"""
    min_rate_bps: float = 16 << 10
    """bytes per second"""


TCP_LIMITS: Final = ConnectionLimits()
LOCAL_LIMITS: Final = ConnectionLimits(FrontDoorLimits(total=256, per_prefix=256, timeout_s=60.0), max_answering=256)
"""for the Unix socket, which only its owner and root can open"""


class ConnectionGuard:
    """Created inside a running event loop; ``close`` it after the servers of its connections."""

    def __init__(self, limits: ConnectionLimits = TCP_LIMITS) -> None:
        self.limits = limits
        self._probe = socket.socket()  # any descriptor: the budget duplicates it
        self.fd_budget = FdBudget(self._probe.fileno())
        self.door = FrontDoor(self.fd_budget, limits.front_door)
        self._answering: set[GuardedConnection] = set()
        self._writing: dict[GuardedConnection, None] = {}  # the one that has been writing longest is the first

    def close(self) -> None:
        """Stop the timers of the front door; the connections are closed already."""
        self.door.close()
        self._probe.close()

    @contextlib.contextmanager
    def answering(self, connection: GuardedConnection) -> Iterator[None]:
        """Mark a connection whose request is complete and allowed. Raises TooManyRequestsError."""
        if len(self._answering) >= self.limits.max_answering:
            raise TooManyRequestsError(f"{len(self._answering)} requests are being answered; try again later")
        self.door.release(connection)
        self._answering.add(connection)
        try:
            yield
        finally:
            self._answering.discard(connection)
            self.wait_for_request(connection)

    def wait_for_request(self, connection: GuardedConnection) -> None:
        """Give a connection the time of one request, unless it is answering, writing or closed."""
        if not (connection.is_closed or connection in self._answering or connection in self._writing):
            self.door.release(connection)
            self.door.admit(connection)

    def start_writing(self, connection: GuardedConnection) -> float:
        """Count a client that has not read everything; return the seconds that it has for it."""
        self.door.release(connection)
        self._writing[connection] = None
        unsent = sum(one.unsent_bytes for one in self._writing)
        while len(self._writing) > 1 and (
            len(self._writing) > self.limits.max_writing or unsent > self.limits.max_unsent_bytes
        ):
            oldest = next(iter(self._writing))
            unsent -= oldest.unsent_bytes
            del self._writing[oldest]
            oldest.evict("too many clients do not read their answers")
        return self.limits.write_timeout_s + connection.unsent_bytes / self.limits.min_rate_bps

    def stop_writing(self, connection: GuardedConnection) -> None:
        """The client has read everything."""
        self._writing.pop(connection, None)
        self.wait_for_request(connection)

    def forget(self, connection: GuardedConnection) -> None:
        """The connection is closed."""
        self.door.release(connection)
        self._writing.pop(connection, None)


class GuardedConnection(asyncio.Protocol):
    """The protocol of aiohttp with the bounds of a guard."""

    def __init__(self, guard: ConnectionGuard, handler: asyncio.Protocol, peer: object = None) -> None:
        """``peer`` is the address that ``accept`` returned; None: ask the transport."""
        self.guard = guard
        self.origin: PeerOrigin = origin_of(peer)
        self._handler = handler
        self._transport: asyncio.Transport | None = None
        self._is_evicted = False
        self._write_timer: asyncio.TimerHandle | None = None
        self._flushed: asyncio.Future[None] | None = None

    @property
    def owner(self) -> object:
        """What has accepted it (see PendingPeer)."""
        return self.guard

    @property
    def is_closed(self) -> bool:
        """Whether the connection is closed, or is being closed."""
        return self._is_evicted or (self._transport is not None and self._transport.is_closing())

    @property
    def unsent_bytes(self) -> int:
        """Bytes of answers that wait for the client."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def evict(self, _reason: str) -> None:
        """Abort the connection; unsent bytes are dropped."""
        self._is_evicted = True
        if self._transport is not None:
            self._transport.abort()

    async def wait_flushed(self) -> None:
        """Wait until the client has read everything, or the connection is closed."""
        if self._write_timer is not None:
            self._flushed = self._flushed or asyncio.get_running_loop().create_future()
            await asyncio.shield(self._flushed)

    # --- what the transport calls ---------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a place at the front door, and pass on."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=0)  # each unsent byte counts as one that the client did not read
        if self._is_evicted:
            self._transport.abort()
        else:
            self.guard.wait_for_request(self)
        self._handler.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Pass received bytes to aiohttp; they do not extend the deadline."""
        self._handler.data_received(data)

    def eof_received(self) -> bool | None:
        """Pass the end of the client's data to aiohttp."""
        return self._handler.eof_received()

    def pause_writing(self) -> None:
        """Set a deadline for the client, and pass on."""
        timeout_s = self.guard.start_writing(self)
        self._write_timer = asyncio.get_running_loop().call_later(timeout_s, self.evict, "it does not read its answer")
        self._handler.pause_writing()

    def resume_writing(self) -> None:
        """End the deadline of the answer, and pass on."""
        self._end_writing()
        self.guard.stop_writing(self)
        self._handler.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Free the place of the connection, and pass on."""
        self._is_evicted = True
        self._end_writing()
        self.guard.forget(self)
        self._handler.connection_lost(exc)

    def _end_writing(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        if self._flushed is not None and not self._flushed.done():
            self._flushed.set_result(None)
        self._flushed = None


def connection_of(request: web.Request) -> GuardedConnection | None:
    """Return the guarded connection of a request; None if it is closed, or if its server has no guard."""
    protocol = request.transport.get_protocol() if request.transport is not None else None
    return protocol if isinstance(protocol, GuardedConnection) else None


@web.middleware
async def count_answers(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Mark a connection as answering while the handler of a request runs; the last middleware of an application."""
    connection = connection_of(request)
    if connection is None:
        return await handler(request)
    with connection.guard.answering(connection):
        return await handler(request)


class GuardedRunner(web.AppRunner):
    """Serves an application with a guard, on sites of aiohttp or on ``listen``."""

    __slots__ = ("_accepting", "_guard", "_listeners")

    def __init__(self, app: web.Application, guard: ConnectionGuard, logger: logging.Logger, grace_s: float) -> None:
        """``grace_s`` is the time of requests in progress at the end."""
        super().__init__(
            app, access_log=None, logger=logger, shutdown_timeout=grace_s,
            lingering_time=_LINGER_S, max_headers=_MAX_HEADERS, auto_decompress=False,  # a small body may become large
        )  # fmt: skip
        self._guard = guard
        self._listeners: list[_Listener] = []

    @property
    def server(self) -> web.Server | None:
        """What makes the protocol of each connection that a site accepts."""
        return cast("web.Server", self.make_connection) if super().server is not None else None

    def make_connection(self, peer: object = None) -> GuardedConnection:
        """Return the protocol of a connection."""
        server = super().server
        if server is None:
            raise RuntimeError("setup() comes first")
        return GuardedConnection(self._guard, server(), peer)

    async def listen(self, address: Address, purpose: str) -> int:
        """Accept on a TCP address until ``cleanup``; return the port. Raises NetError."""
        found = await listeners.listen(address, purpose)
        listener = _Listener(socket.socket(fileno=found.detach()), self.make_connection, self._guard)
        self._listeners.append(listener)
        return listener.port

    async def close_listeners(self) -> None:
        """Accept no more connections."""
        for listener in self._listeners:
            await listener.close()
        self._listeners.clear()


class _Listener:
    """Accepts TCP connections in small batches, and none while only reserved descriptors are left."""

    def __init__(
        self, sock: socket.socket, make_connection: Callable[[object], GuardedConnection], guard: ConnectionGuard
    ) -> None:
        sock.setblocking(False)
        self.port: Final = int(sock.getsockname()[1])
        self._sock = sock
        self._make_connection = make_connection
        self._guard = guard
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[object]] = set()
        self._pause: asyncio.TimerHandle | None = None
        self._loop.add_reader(sock, self._accept)

    async def close(self) -> None:
        """Close the listener; the connections that it has accepted are known to their server afterwards."""
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._sock)
        self._sock.close()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_PER_TURN):
            try:
                sock, peer = self._sock.accept()
            except BlockingIOError:
                return
            except ConnectionAbortedError:
                continue
            except OSError:
                self._wait()
                return
            if not len(self._guard.door) and self._guard.fd_budget.is_short(sock.fileno()):
                sock.close()  # nothing of ours can give way
                self._wait()
                return
            self._start(sock, peer)

    def _start(self, sock: socket.socket, peer: object) -> None:
        sock.setblocking(False)
        connection = self._make_connection(peer)
        self._guard.door.admit(connection, sock.fileno())
        task: asyncio.Task[object] = self._loop.create_task(
            self._loop.connect_accepted_socket(lambda: connection, sock)
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _wait(self) -> None:
        self._loop.remove_reader(self._sock)
        self._pause = self._loop.call_later(_FD_PAUSE_S, self._resume)

    def _resume(self) -> None:
        self._pause = None
        self._loop.add_reader(self._sock, self._accept)

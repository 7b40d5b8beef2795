"""Connecting to the first of several addresses that answers (RFC 8305 §5, "Happy Eyeballs").

A host name may have an address that drops packets silently: a broken IPv6 route, a dead replica. The next address is
tried as soon as one fails, or after ``ATTEMPT_DELAY_S`` while the earlier attempts go on; the first connection wins.
Once all others have failed, silent addresses have ``SILENT_LIMIT_S``.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, ClassVar, Final

from tunnel.model.errors import TunnelError
from tunnel.model.spec import Proto
from tunnel.runtime import sockets
from tunnel.runtime.reactor import CONNECT_FAILED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunnel.runtime.reactor import Reactor
    from tunnel.runtime.resolver import Candidate
    from tunnel.runtime.sockets import SockAddr

ATTEMPT_DELAY_S: Final = 0.25
"""Time after which the next address is tried beside those that have not answered yet (RFC 8305 §8)."""

SILENT_LIMIT_S: Final = 4.0
"""How long silent addresses may still answer after all others have failed: the next attempt may find those again."""

Failure = tuple["SockAddr", OSError]
"""An address and how the attempt to connect to it failed."""


class SelfConnectError(TunnelError, OSError):
    """A socket is its own peer (TCP simultaneous open): its port was the target's, on which nothing listens."""

    def __init__(self) -> None:
        super().__init__("nothing listens on that port")


class ConnectRace:
    """Base of an object that connects to one of several addresses. Owns the sockets until one is handed over.

    The first attempt needs no object of its own, for it is nearly always the only one.
    """

    __slots__ = ("_candidates", "_failures", "_later", "_next", "_reactor", "_sock", "_sockaddr", "_timer")

    proto: ClassVar = Proto.TCP

    def __init__(self, reactor: Reactor) -> None:
        self._reactor = reactor
        self._candidates: Sequence[Candidate] = ()
        self._next = 0  # index of the next candidate to try
        self._failures: list[Failure] | None = None
        self._sock: socket.SocketType | None = None
        self._sockaddr: SockAddr | None = None
        self._later: list[_LaterAttempt] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def on_connected(self, sock: socket.SocketType, sockaddr: SockAddr, events: int) -> None:
        """Take over the connected socket, which the reactor watches; ``events`` are those seen so far."""
        raise NotImplementedError

    def on_all_failed(self, failures: Sequence[Failure]) -> None:
        """Handle the failure of every address; no socket is left. Empty where there was no address to try."""
        raise NotImplementedError

    def on_handler_error(self, error: Exception) -> None:
        """Handle a defect in a handler of one of the attempts."""
        raise NotImplementedError

    def start(self, candidates: Sequence[Candidate]) -> None:
        """Start with the first address."""
        self._candidates = candidates
        self._start_next()

    def cancel(self) -> None:
        """Close every socket that is connecting."""
        self._next = len(self._candidates)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._sock is not None:
            self._reactor.close(self._sock)
            self._sock = None
        if self._later:
            for attempt in self._later:
                self._reactor.close(attempt.sock)
            self._later = None

    def ready(self, events: int) -> None:
        """Handle the end of the first attempt."""
        sock, sockaddr = self._sock, self._sockaddr
        if sock is not None and sockaddr is not None:
            self._sock = None
            self.finish_attempt(sock, sockaddr, events)

    def finish_attempt(self, sock: socket.SocketType, sockaddr: SockAddr, events: int) -> None:
        """Handle the end of an attempt whose socket this race no longer lists."""
        error = sockets.get_connect_error(sock) if events & CONNECT_FAILED else None
        if error is None and sockets.is_connected_to_itself(sock, sockaddr):
            error = SelfConnectError()
            sockets.reset_on_close(sock)
        if error is None:
            if self._timer is not None or self._sock is not None or self._later:
                self.cancel()
            self.on_connected(sock, sockaddr, events)
            return
        self._reactor.close(sock)
        self._note_failure(sockaddr, error)
        self._start_next()

    def remove_later(self, attempt: _LaterAttempt) -> None:
        """Drop an attempt other than the first, which has ended."""
        if self._later is not None:
            self._later.remove(attempt)

    def _note_failure(self, sockaddr: SockAddr, error: OSError) -> None:
        if self._failures is None:
            self._failures = []
        self._failures.append((sockaddr, error))

    def _start_next(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._next < len(self._candidates):
            family, sockaddr = self._candidates[self._next]
            self._next += 1
            try:
                sock = sockets.start_connect(family, sockaddr)
            except OSError as error:
                self._note_failure(sockaddr, error)
                continue
            if self._sock is None:
                self._sock, self._sockaddr = sock, sockaddr
                self._reactor.register(sock, self.ready)
            else:
                self._add_later(_LaterAttempt(self, sock, sockaddr))
            if self._next < len(self._candidates) and not sockets.is_loopback(sockaddr):
                self._timer = self._reactor.call_later(ATTEMPT_DELAY_S, self._start_next)  # loopback answers at once
            return
        if self._sock is None and not self._later:
            self.on_all_failed(self._failures or ())
        elif self._failures:
            self._timer = self._reactor.call_later(SILENT_LIMIT_S, self._fail_silent_attempts)

    def _fail_silent_attempts(self) -> None:
        """Fail the attempts that are still silent, after all others have failed."""
        for sock, sockaddr in [
            (self._sock, self._sockaddr),
            *((each.sock, each.sockaddr) for each in self._later or ()),
        ]:
            if sock is not None and sockaddr is not None:
                self._note_failure(sockaddr, TimeoutError())
        self.cancel()
        self.on_all_failed(self._failures or ())

    def _add_later(self, attempt: _LaterAttempt) -> None:
        if self._later is None:
            self._later = []
        self._later.append(attempt)
        self._reactor.register(attempt.sock, attempt.ready)


class _LaterAttempt:
    """An attempt that runs in parallel with the first one. Its race owns the socket."""

    __slots__ = ("_race", "sock", "sockaddr")

    def __init__(self, race: ConnectRace, sock: socket.SocketType, sockaddr: SockAddr) -> None:
        self.sock = sock
        self._race = race
        self.sockaddr = sockaddr

    def ready(self, events: int) -> None:
        """Handle the end of this attempt."""
        self._race.remove_later(self)
        self._race.finish_attempt(self.sock, self.sockaddr, events)

    def on_handler_error(self, error: Exception) -> None:
        """Handle a defect in the handler."""
        self._race.on_handler_error(error)


class _AwaitedRace(ConnectRace):
    """A race whose outcome a task awaits."""

    __slots__ = ("outcome",)

    def __init__(self, reactor: Reactor) -> None:
        super().__init__(reactor)
        self.outcome: asyncio.Future[tuple[socket.SocketType, SockAddr]] = asyncio.get_running_loop().create_future()

    def on_connected(self, sock: socket.SocketType, sockaddr: SockAddr, events: int) -> None:
        if self.outcome.done():
            self._reactor.close(sock)  # the task was cancelled in this very turn
        else:
            self.outcome.set_result((sock, sockaddr))

    def on_all_failed(self, failures: Sequence[Failure]) -> None:
        if not self.outcome.done():
            self.outcome.set_exception(OSError(describe_failures(failures)))

    def on_handler_error(self, error: Exception) -> None:
        self.cancel()
        if not self.outcome.done():
            self.outcome.set_exception(error)


async def connect_to_first(reactor: Reactor, candidates: Sequence[Candidate]) -> tuple[socket.SocketType, SockAddr]:
    """A connected socket, watched by the reactor and owned by the caller, and its address.

    Raises OSError, whose text says for each address how it failed. Safe to cancel; has no time limit of its own.
    """
    race = _AwaitedRace(reactor)
    race.start(candidates)
    try:
        return await race.outcome
    except BaseException:
        race.cancel()
        if race.outcome.done() and not race.outcome.cancelled() and race.outcome.exception() is None:
            reactor.close(race.outcome.result()[0])  # connected and cancelled in the same turn
        raise


def describe_failures(failures: Sequence[Failure]) -> str:
    """How connecting failed, as the end of a sentence: once if all addresses failed alike, else for each of them."""
    if not failures:
        return "its name has no address"
    reasons = {sockets.describe_connect_error(error) for _, error in failures}
    if len(reasons) == 1:
        return reasons.pop()
    return "; ".join(
        f"{sockets.format_address(addr)}: {sockets.describe_connect_error(error)}" for addr, error in failures
    )

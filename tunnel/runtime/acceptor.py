"""The accept loop of a listener: a bounded batch a turn, a pause while there is no room or descriptors are short."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from tunnel.runtime import sockets

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from tunnel.model.address import Address
    from tunnel.model.events import EventLog
    from tunnel.runtime.reactor import Reactor

_BATCH: Final = 64  # connections taken in one turn
_BREATH: Final = 0.1  # seconds without accepting when descriptors have run out


class Acceptor:
    """Accepts while there is room; what it leaves stays in the kernel's backlog. Owns the listener."""

    __slots__ = (
        "_breath",
        "_event_log",
        "_has_room",
        "_listener",
        "_paused",
        "_reactor",
        "_take",
        "_yields",
        "address",
        "asked",
        "port",
    )

    def __init__(
        self,
        reactor: Reactor,
        listener: socket.SocketType,
        event_log: EventLog,
        take: Callable[[socket.SocketType, object], None],
        has_room: Callable[[], bool],
        asked: Address,
        *,
        yields: bool = False,
    ) -> None:
        name = listener.getsockname()
        self.asked = asked
        """the address as the tunnel's spec has it"""
        self.address = sockets.show(name)
        self.port = int(name[1])
        self._reactor = reactor
        self._listener: socket.SocketType | None = listener
        self._event_log = event_log
        self._take = take
        self._has_room = has_room
        self._yields = yields
        """whether it leaves the last descriptors to others"""
        self._paused = False
        self._breath: asyncio.TimerHandle | None = None
        reactor.register(listener, self._ready)

    def resume(self) -> None:
        """There may be room again."""
        if self._paused and self._listener is not None and self._has_room():
            self._paused = False
            self._reactor.again(self._ready)

    def surrender(self) -> socket.SocketType | None:
        """Give the listener itself to somebody else; None where it was closed before."""
        listener = self._listener
        if listener is not None:
            self._reactor.release(listener)
            self._listener = None
        self.close()
        return listener

    def take_rest(self) -> None:
        """Take in who stands at the door already, as far as there is room: the address is about to be given up."""
        if self._breath is None:
            self._take_in(sockets.BACKLOG)

    def close(self) -> None:
        """Give the address up."""
        if self._breath is not None:
            self._breath.cancel()
        if self._listener is not None:
            self._reactor.close(self._listener)
            self._listener = None

    def crashed(self, error: Exception) -> None:
        """A defect in what takes the connections."""
        owner = getattr(self._take, "__self__", None)
        if owner is None:
            raise error
        owner.crashed(error)

    def _ready(self, _events: int) -> None:
        if self._breath is None and self._take_in(_BATCH):
            self._reactor.again(self._ready)

    def _take_in(self, most: int) -> bool:
        """Accept so many at the most; whether there may be more."""
        listener = self._listener
        if listener is None:
            return False
        for _ in range(most):
            if not self._has_room():
                self._paused = True
                return False
            try:
                sock, peer = sockets.accept(listener)
            except BlockingIOError:
                return False
            except ConnectionAbortedError:
                continue
            except OSError as error:
                self._take_a_breath(sockets.describe(error))
                return False
            fd = sock.fileno()
            try:
                self._take(sock, peer)
            except Exception:
                self._reactor.close(sock)  # a defect: nobody else will
                raise
            if self._reactor.descriptors.are_scarce(fd):
                if self._yields:
                    self._take_a_breath(str(self._reactor.descriptors))
                    return False
                break  # those who were sent away give theirs back at the end of the batch
        return True

    def _take_a_breath(self, why: str) -> None:
        self._event_log.warn_throttled("listen", self.address, f"nobody is accepted on {self.address} for now: {why}")
        self._breath = self._reactor.later(_BREATH, self._breathed)

    def _breathed(self) -> None:
        if self._yields and self._reactor.descriptors.are_scarce_now():
            self._breath = self._reactor.later(_BREATH, self._breathed)
        else:
            self._breath = None
            self._reactor.again(self._ready)

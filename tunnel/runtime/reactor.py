"""Edge-triggered readiness inside asyncio's loop: one epoll of our own, whose descriptor asyncio watches.

A socket is registered once for its life, for input, output and hang-up at the same time; its handler gets the mask.
Edge-triggered means that an event comes once for what is new: a handler reads to the end or remembers that it did not.
That spares a task, a transport and two system calls for every visitor, which is where the time of a plain asyncio
relay goes. The socket's owner closes it through ``close``; closing takes the registration away.

Needs epoll, hence Linux.
"""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Callable
from typing import Final, Protocol

from tunnel.runtime.fd_budget import Descriptors

READ: Final = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
"""Bits that mean: reading will give bytes, the end, or an error."""
ENDING: Final = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
"""Bits that mean: the other end has finished; a short read is not the last one."""
BROKEN: Final = select.EPOLLERR
"""Bit that means: the connection was reset, or timed out."""
FAILED: Final = select.EPOLLHUP | select.EPOLLERR
"""Bits that mean, on a socket that is connecting: it did not work."""
WRITE: Final = select.EPOLLOUT
"""Bit that means: writing may go on."""
CALM: Final = select.EPOLLIN | select.EPOLLOUT
"""The whole mask of a connection in the midst of its work: bytes have come, and there is room for more to go."""

_ALL: Final = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
_BATCH: Final = 256  # events taken at once
_ROUNDS: Final = 4  # batches in a row before asyncio has its turn again

BUFFER_SIZE: Final = 1 << 17
"""Bytes of the one buffer through which all copying goes."""


class Owner(Protocol):
    """What a handler is bound to."""

    def crashed(self, error: Exception) -> None:
        """A handler of this owner raised: a defect. Nothing of the owner's must go on as if it had not."""


Handler = Callable[[int], None]


class Reactor:
    """Tells sockets' owners when they can go on. Made inside a running loop, one for all engines on it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._epoll = select.epoll()
        self.descriptors: Final = Descriptors(self._epoll.fileno())
        self._handlers: dict[int, Handler] = {}
        self._again: list[Handler] = []
        self._deferred: list[Callable[[], None]] = []
        self._closing: list[socket.SocketType] = []
        self._in_turn = False
        self._woken = False
        self.view: Final = memoryview(bytearray(BUFFER_SIZE))
        """The shared buffer; nothing in it outlives the handler that filled it."""
        self._loop.add_reader(self._epoll.fileno(), self._turn)

    def __len__(self) -> int:
        return len(self._handlers)

    def register(self, sock: socket.SocketType, handler: Handler) -> None:
        """Watch a socket from now on. The first event comes by itself: a new socket is writable or it is connecting."""
        fd = sock.fileno()
        self._epoll.register(fd, _ALL)
        self._handlers[fd] = handler

    def hand_over(self, sock: socket.SocketType, handler: Handler) -> None:
        """Give a watched socket another handler. Events that came before are not repeated."""
        self._handlers[sock.fileno()] = handler

    def release(self, sock: socket.SocketType) -> None:
        """Watch a socket no more, for somebody else takes it over as it is."""
        del self._handlers[sock.fileno()]
        self._epoll.unregister(sock.fileno())

    def close(self, sock: socket.SocketType) -> None:
        """Close a socket, watched or not.

        In the middle of a batch the descriptor stays taken until its end, so that no event meant for the old socket
        can reach a new one that was given the same number.
        """
        self._handlers.pop(sock.fileno(), None)
        if self._in_turn:
            self._closing.append(sock)
        else:
            sock.close()

    def again(self, handler: Handler) -> None:
        """Call a handler in the next turn, with no bits set: it stopped for fairness, not for lack of bytes."""
        self._again.append(handler)
        self._wake()

    def defer(self, callback: Callable[[], None]) -> None:
        """Call once when everything that is ready now has been handled: what gathers leaves together."""
        self._deferred.append(callback)
        self._wake()

    def later(self, delay: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        """Call once after ``delay`` seconds; what it raises reaches its owner, as with a handler."""
        return self._loop.call_later(delay, self._timed, callback)

    def _timed(self, callback: Callable[[], None]) -> None:
        try:
            callback()
        except Exception as error:  # noqa: BLE001  a defect of one tunnel is that tunnel's alone
            self._crashed(callback, error)

    def _wake(self) -> None:
        if not self._in_turn and not self._woken:
            self._woken = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._woken = False
        if self._epoll.closed:  # a turn that was asked for before the reactor stopped
            return
        self._in_turn = True
        poll, handlers = self._epoll.poll, self._handlers
        for _ in range(_ROUNDS):
            again, self._again = self._again, []
            batch = poll(0, _BATCH)
            for fd, events in batch:
                handler = handlers.get(fd)
                if handler is not None:
                    try:
                        handler(events)
                    except Exception as error:  # noqa: BLE001  a defect of one tunnel is that tunnel's alone
                        self._crashed(handler, error)
            for handler in again:
                try:
                    handler(0)
                except Exception as error:  # noqa: BLE001  as above
                    self._crashed(handler, error)
            self._finish()
            if not batch and not self._again:
                break
        self._in_turn = False
        if self._again:
            self._wake()

    def _finish(self) -> None:
        while self._deferred:
            callbacks, self._deferred = self._deferred, []
            for callback in callbacks:
                try:
                    callback()
                except Exception as error:  # noqa: BLE001  as above
                    self._crashed(callback, error)
        if self._closing:
            closing, self._closing = self._closing, []
            for sock in closing:
                sock.close()

    def _crashed(self, callback: Callable[..., None], error: Exception) -> None:
        owner = getattr(callback, "__self__", None)
        try:
            if owner is None:
                raise error
            owner.crashed(error)
        except Exception as unclaimed:  # noqa: BLE001  raised here, it would take the rest of the batch along: edges come once
            self._loop.call_exception_handler({"message": "a defect that nobody answers for", "exception": unclaimed})

    def stop(self) -> None:
        """Stop watching. Sockets still registered belong to their owners, who close them."""
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()
        self._handlers.clear()

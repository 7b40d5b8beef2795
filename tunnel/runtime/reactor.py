"""Edge-triggered readiness inside asyncio's loop: in the loop's own epoll instance, or in one that asyncio watches.

A socket is registered once in its life, for input, output and hang-up together; its handler receives the event mask.
Edge-triggered means that an event comes once for each change: a handler reads to the end, or remembers that it did not.
That saves a task, a transport and two system calls for every visitor, which is where a plain asyncio relay spends its
time. The owner of a socket closes it through ``close``, which also unregisters it.

Needs epoll, hence Linux.
"""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Callable
from typing import Final, Protocol

from tunnel.runtime.event_loop import EpollEvents, SharedEpollLoop, SharedSelector
from tunnel.runtime.fd_budget import FdBudget

READABLE: Final = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
"""Bits that mean: a read returns bytes, the end of the stream, or an error."""
HANGUP: Final = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
"""Bits that mean: the peer has finished sending, and no event will follow for what is unread."""
ERROR: Final = select.EPOLLERR
"""Bit that means: the connection was reset, or timed out."""
CONNECT_FAILED: Final = select.EPOLLHUP | select.EPOLLERR
"""Bits that mean, on a connecting socket: the attempt failed."""
WRITABLE: Final = select.EPOLLOUT
"""Bit that means: there is room to write again."""
URGENT: Final = select.EPOLLPRI
"""Bit that means: TCP urgent data lies in what has arrived; a read stops at its mark (tcp(7))."""
READ_WRITE: Final = select.EPOLLIN | select.EPOLLOUT
"""The whole mask of a connection in normal operation: bytes have arrived, and there is room to send."""

_EVENTS: Final = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLPRI | select.EPOLLET
_INPUT_EVENTS: Final = select.EPOLLIN | select.EPOLLET
_BATCH_SIZE: Final = 256  # events fetched at once
_BATCHES_PER_TURN: Final = 4  # of an epoll instance inside asyncio's: a turn of asyncio costs more than another poll

BUFFER_SIZE: Final = (1 << 17) + (1 << 12)
"""Bytes of the buffer that handlers share: for encrypted bulk (eight full records), datagrams, control channels."""


class HandlerOwner(Protocol):
    """The object that a handler is a method of."""

    def on_handler_error(self, error: Exception) -> None:
        """A handler of this owner raised, which is a defect: close what it may have left half done."""


Handler = Callable[[int], None]


class Reactor:
    """Calls handlers when their sockets become ready. Made inside a running loop, one for all engines on that loop."""

    def __init__(self, buffer_size: int = BUFFER_SIZE) -> None:
        self._loop = asyncio.get_running_loop()
        self._shared = _free_selector(self._loop)
        self._epoll = select.epoll() if self._shared is None else self._shared.epoll
        self.fd_budget: Final = FdBudget(self._epoll.fileno())
        self._handlers: dict[int, Handler] = {}
        self._call_again: list[Handler] = []
        self._deferred: list[Callable[[], None]] = []
        self._closing: list[socket.SocketType] = []
        self._is_in_turn = False
        self._is_scheduled = False
        self.needs_turn = False
        """whether ``handle_events`` is to be called now, even without an event"""
        self.scratch: Final = memoryview(bytearray(buffer_size))
        """The shared buffer; its content is valid only inside the handler that filled it."""
        self._is_stopped = False
        if self._shared is None:
            self._loop.add_reader(self._epoll.fileno(), self._run_turn)
        else:
            self._shared.reactor = self

    def __len__(self) -> int:
        return len(self._handlers)

    def register(self, sock: socket.SocketType, handler: Handler) -> None:
        """Watch a socket. A first event always follows: a new socket is writable, or it is connecting."""
        fd = sock.fileno()
        self._epoll.register(fd, _EVENTS)
        self._handlers[fd] = handler

    def register_receiver(self, sock: socket.SocketType, handler: Handler) -> None:
        """Watch a UDP socket for input and errors alone: each datagram that is sent would be an event of output."""
        fd = sock.fileno()
        self._epoll.register(fd, _INPUT_EVENTS)
        self._handlers[fd] = handler

    def set_handler(self, sock: socket.SocketType, handler: Handler) -> None:
        """Give a registered socket another handler. Events that came before are not repeated."""
        self._handlers[sock.fileno()] = handler

    def unregister(self, sock: socket.SocketType) -> None:
        """Stop watching a socket without closing it: another owner takes it over."""
        del self._handlers[sock.fileno()]
        self._epoll.unregister(sock.fileno())

    def close(self, sock: socket.SocketType) -> None:
        """Close a socket, registered or not. Calling it twice is allowed.

        In the middle of a batch the descriptor stays open until the batch ends. So no event meant for the old socket
        can reach a new one that was given the same number.
        """
        self._handlers.pop(sock.fileno(), None)
        if self._is_in_turn:
            self._closing.append(sock)
        else:
            sock.close()

    def call_again(self, handler: Handler) -> None:
        """Call a handler in the next turn with no bits set: it stopped for fairness, not for lack of bytes."""
        self._call_again.append(handler)
        self.needs_turn = True
        if self._shared is None:
            self._schedule_turn()

    def defer(self, callback: Callable[[], None]) -> None:
        """Call once when all events that are ready now have been handled, so that gathered output leaves together."""
        self._deferred.append(callback)
        self.needs_turn = True
        if self._shared is None:
            self._schedule_turn()

    def call_later(self, delay: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        """Call once after ``delay`` seconds; an exception reaches the callback's owner, as with a handler."""
        return self._loop.call_later(delay, self._run_timer, callback)

    def _run_timer(self, callback: Callable[[], None]) -> None:
        try:
            callback()
        except Exception as error:  # noqa: BLE001  a defect in one tunnel must not affect the others
            self._report_error(callback, error)

    def _schedule_turn(self) -> None:
        if not self._is_in_turn and not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._run_turn)

    def _run_turn(self) -> None:
        """Handle what is ready in an epoll instance of this reactor's own, and what arrives meanwhile."""
        self._is_scheduled = False
        for _ in range(_BATCHES_PER_TURN):
            if self._is_stopped:  # before this turn, or in it
                return
            events = self._epoll.poll(0, _BATCH_SIZE)
            if not events and not self.needs_turn:
                return
            self.handle_events(events)
        if self.needs_turn:
            self._schedule_turn()

    def handle_events(self, events: EpollEvents) -> EpollEvents:
        """Call the handlers of one batch of events, and return the events of descriptors that are not watched here.

        Those are asyncio's, or of a socket that was closed in this batch.
        """
        self._is_in_turn = True
        handlers, others = self._handlers, []
        call_again, self._call_again = self._call_again, []
        for event in events:
            handler = handlers.get(event[0])
            if handler is None:
                others.append(event)
                continue
            try:
                handler(event[1])
            except Exception as error:  # noqa: BLE001  a defect in one tunnel must not affect the others
                self._report_error(handler, error)
        for handler in call_again:
            try:
                handler(0)
            except Exception as error:  # noqa: BLE001  as above
                self._report_error(handler, error)
        if self._deferred or self._closing:
            self._finish_batch()
        self._is_in_turn = False
        self.needs_turn = bool(self._call_again)
        return others

    def _finish_batch(self) -> None:
        while self._deferred:
            callbacks, self._deferred = self._deferred, []
            for callback in callbacks:
                try:
                    callback()
                except Exception as error:  # noqa: BLE001  as above
                    self._report_error(callback, error)
        if self._closing:
            closing, self._closing = self._closing, []
            for sock in closing:
                sock.close()

    def _report_error(self, callback: Callable[..., None], error: Exception) -> None:
        owner = getattr(callback, "__self__", None)
        try:
            if owner is None:
                raise error
            owner.on_handler_error(error)
        except Exception as unhandled:  # noqa: BLE001  raised here, it would lose the rest of the batch: edges come once
            context = {"message": "unhandled exception in a reactor callback", "exception": unhandled}
            self._loop.call_exception_handler(context)

    def stop(self) -> None:
        """Stop watching. Sockets that are still registered belong to their owners, which close them."""
        self._is_stopped = True
        self._handlers.clear()
        if self._shared is not None:
            self._shared.reactor = None
        else:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()


def _free_selector(loop: asyncio.AbstractEventLoop) -> SharedSelector | None:
    """Return the selector whose epoll instance a new reactor may share, unless there is none or another has it."""
    if not isinstance(loop, SharedEpollLoop) or loop.shared_selector.reactor is not None:
        return None
    return loop.shared_selector

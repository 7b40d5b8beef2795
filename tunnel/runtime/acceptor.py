"""The accept loop of a listener: bounded batches, paused while there is no room or file descriptors are short.

A listener on a link-local address is bound to a network interface. It is opened again when that interface is.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, ClassVar, Final

from tunnel.model.events import EventKind
from tunnel.model.spec import Proto
from tunnel.runtime import resolver, sockets

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnel.model.address import Address
    from tunnel.model.events import EventLog
    from tunnel.runtime.fd_budget import FdHolder
    from tunnel.runtime.reactor import Reactor

ACCEPTS_PER_TURN: Final = 64
_FD_PAUSE_S: Final = 0.1  # pause without accepting when descriptors have run out
INTERFACE_CHECK_S: Final = 2.0
"""Seconds between two checks of the network interface of a link-local listener."""


class Acceptor:
    """Accepts connections while there is room; the rest stays in the kernel's backlog. Owns the listener."""

    __slots__ = (
        "_accepts_per_turn",
        "_event_log",
        "_fd_holder",
        "_has_room",
        "_interface_timer",
        "_listener",
        "_on_accept",
        "_on_waiting",
        "_pause_timer",
        "_reactor",
        "address",
        "is_waiting_for_room",
        "port",
        "requested_address",
    )

    proto: ClassVar = Proto.TCP

    def __init__(
        self,
        reactor: Reactor,
        listener: socket.SocketType,
        event_log: EventLog,
        on_accept: Callable[[socket.SocketType, object], None],
        has_room: Callable[[], bool],
        requested_address: Address,
        *,
        fd_holder: FdHolder | None = None,
        accepts_per_turn: Callable[[], int] = lambda: ACCEPTS_PER_TURN,
    ) -> None:
        """Start to accept. ``on_accept`` gets each connection, which it owns, and the peer's address.

        With ``fd_holder``, the owner of visitors, the last descriptors of the process are left to others.
        ``accepts_per_turn`` returns after how many connections other sockets have their turn.
        """
        name = listener.getsockname()
        self.requested_address = requested_address
        """the address as it is written in the tunnel's spec"""
        self.address = sockets.format_address(name)
        self.port = int(name[1])
        self._reactor = reactor
        self._listener: socket.SocketType | None = listener
        self._event_log = event_log
        self._on_accept = on_accept
        self._has_room = has_room
        self._fd_holder = fd_holder
        self._accepts_per_turn = accepts_per_turn
        self._on_waiting: Callable[[], None] | None = None
        self.is_waiting_for_room = False
        """whether connections wait in the backlog until ``resume`` is called"""
        self._pause_timer: asyncio.TimerHandle | None = None
        self._interface_timer: asyncio.TimerHandle | None = None
        reactor.register(listener, self._on_events)
        if "%" in requested_address.host and name[3]:  # the kernel has an interface only for link-local addresses
            self._check_interface_later()

    def set_callbacks(
        self, on_accept: Callable[[socket.SocketType, object], None], has_room: Callable[[], bool]
    ) -> None:
        """Use other callbacks for the connections that are accepted from now on."""
        self._on_accept, self._has_room = on_accept, has_room

    def set_waiting_callback(self, on_waiting: Callable[[], None]) -> None:
        """Call this when connections wait in the backlog because there is no room."""
        self._on_waiting = on_waiting

    def resume(self) -> None:
        """Accept again if there is room now; called when room may have become free."""
        if self.is_waiting_for_room and self._listener is not None and self._has_room():
            self.is_waiting_for_room = False
            self._reactor.call_again(self._on_events)

    def count_waiting(self) -> int:
        """Return how many connections wait in the backlog for room."""
        listener = self._listener
        return sockets.count_backlog(listener) if self.is_waiting_for_room and listener is not None else 0

    def detach_listener(self) -> socket.SocketType | None:
        """Stop accepting and return the open listener, which the caller then owns; None if it is closed already."""
        listener = self._listener
        if listener is not None:
            self._reactor.unregister(listener)
            self._listener = None
        self.close()
        return listener

    def set_event_log(self, event_log: EventLog) -> None:
        """Log in another tunnel's name from now on: several share the listener, and the first may end."""
        self._event_log = event_log

    def accept_backlog(self) -> None:
        """Accept the connections that are in the backlog already, as far as there is room, before the close.

        No further ones are completed from now on.
        """
        if self._listener is not None:
            sockets.drop_new_connections(self._listener)
        if self._pause_timer is None:
            self._accept_batch(sockets.BACKLOG)

    def close(self) -> None:
        """Close the listener and stop accepting."""
        for timer in (self._pause_timer, self._interface_timer):
            if timer is not None:
                timer.cancel()
        if self._listener is not None:
            self._reactor.close(self._listener)
            self._listener = None

    def on_handler_error(self, error: Exception) -> None:
        """Pass a defect in ``on_accept`` to the object that it is a method of."""
        owner = getattr(self._on_accept, "__self__", None)
        if owner is None:
            raise error
        owner.on_handler_error(error)

    def _on_events(self, _events: int) -> None:
        if self._pause_timer is None and self._accept_batch(self._accepts_per_turn()):
            self._reactor.call_again(self._on_events)

    def _accept_batch(self, limit: int) -> bool:
        """Accept up to ``limit`` connections; return whether the backlog may hold more."""
        listener = self._listener
        if listener is None:
            return False
        for _ in range(limit):
            if not self._has_room():
                self.is_waiting_for_room = True
                if self._on_waiting is not None and self.count_waiting():
                    self._on_waiting()
                return False
            try:
                sock, peer = sockets.accept(listener)
            except BlockingIOError:
                return False
            except ConnectionAbortedError:
                continue
            except OSError as error:
                self._pause(sockets.describe_error(error))
                return False
            fd = sock.fileno()
            try:
                self._on_accept(sock, peer)
            except Exception:
                self._reactor.close(sock)  # a defect: the callback did not take the socket over
                raise
            if self._reactor.fd_budget.is_short(fd, self._fd_holder):
                if self._fd_holder is not None:
                    self._pause(self._reactor.fd_budget.describe_shortage(self._fd_holder))
                    return False
                break  # the descriptors of rejected connections become free at the end of the batch
        return True

    def _pause(self, reason: str) -> None:
        self._event_log.warn_throttled(
            EventKind.LISTEN, self.address, f"accepting on {self.address} is paused: {reason}"
        )
        self._pause_timer = self._reactor.call_later(_FD_PAUSE_S, self._on_pause_end)

    def _on_pause_end(self) -> None:
        if self._fd_holder is not None and self._reactor.fd_budget.is_short_now(self._fd_holder):
            self._pause_timer = self._reactor.call_later(_FD_PAUSE_S, self._on_pause_end)
        else:
            self._pause_timer = None
            self._reactor.call_again(self._on_events)

    # --- the network interface of a link-local address ------------------------------------------------------------

    def _check_interface_later(self) -> None:
        self._interface_timer = self._reactor.call_later(INTERFACE_CHECK_S, self._check_interface)

    def _check_interface(self) -> None:
        """Listen again if the interface was created again: the kernel knows it under another number now."""
        listener, zone = self._listener, self.requested_address.host.partition("%")[2]
        if listener is None:
            return
        self._check_interface_later()
        try:
            host, port, flow, index = listener.getsockname()
            present = resolver.interface_index(zone)
            if present == index:
                return
            defers = bool(listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT))
            reopened = sockets.open_listener(socket.AF_INET6, (host, port, flow, present), client_speaks_first=defers)
        except OSError:  # the interface, or its address, is not there yet
            return
        self._reactor.close(listener)
        self._listener = reopened
        self._reactor.register(reopened, self._on_events)
        text = f"listening again on {self.address}: the network interface {zone} was created again"
        self._event_log.log_info(EventKind.LISTEN, text)

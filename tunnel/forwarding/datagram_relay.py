"""UDP flows, each with a data connection of its own: every datagram behind its length, in records where these are used.

Where the link has a path for datagrams (``tunnel.engine.datagram_path``) that is usable, a flow sends on that instead,
and its data connection has only what is too long for the path.

Fresh datagrams are worth more than complete ones: where the data connection does not take them, 64 wait for a tenth of
a second, and the oldest is dropped. Little may wait inside the data connection (TCP_NOTSENT_LOWAT), and nothing is
added to what TCP repeats because the other end does not answer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from time import monotonic, time
from typing import TYPE_CHECKING, ClassVar, Final

from tunnel.model.spec import Proto
from tunnel.model.visitor_end import VisitorEnd, VisitorRecord
from tunnel.model.visitors import visitor_id
from tunnel.protocol.datagram_frames import MAX_DATAGRAM_BYTES, READY, DatagramReader, encode_datagrams
from tunnel.protocol.errors import ProtocolError
from tunnel.protocol.visitor_address import unpack_address
from tunnel.runtime import sockets
from tunnel.runtime.datagram_port import MAX_WAIT_S, MAX_WAITING
from tunnel.runtime.datagram_sockets import bound_unsent
from tunnel.runtime.reactor import HANGUP, READABLE, WRITABLE

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from tunnel.forwarding.base import FlowPath, ForwardingOwner, OwnedConnection, RelayLink
    from tunnel.forwarding.flow import Flow
    from tunnel.forwarding.udp import UdpForwarder
    from tunnel.runtime.datagram_batches import Datagram

_SETTLED_S: Final = 1.0  # the first datagrams of a flow travel on its data connection, until both ends are ready
_MAX_UNSENT_BYTES: Final = 1  # what the connection does not send at once is to wait here, where it can be dropped
_CHECK_INTERVAL_S: Final = 0.05
"""Seconds between two checks whether TCP repeats what was sent before; then nothing is added, which would be late."""
_READ_BYTES: Final = 1 << 15  # of a data connection in one turn: 300 datagrams of 100 bytes, some 1 ms


class DatagramRelay(ABC):
    """A flow that is being forwarded. Owns the near side and the data connection, ``far``, until it is closed."""

    __slots__ = (
        "_check_at",
        "_codec",
        "_far",
        "_header",
        "_is_flush_due",
        "_is_stalled",
        "_owner",
        "_passed_from_near",
        "_passed_to_near",
        "_path",
        "_pending",
        "_reader",
        "_waiting",
        "activity",
        "forwarder",
        "ident",
        "is_freed",
        "is_open",
        "keepalive_enabled",
        "link",
        "started_at",
        "use",
        "visitor_address",
    )

    proto: ClassVar = Proto.UDP

    def __init__(self, forwarder: UdpForwarder, data: OwnedConnection, link: RelayLink, owner: ForwardingOwner) -> None:
        self.ident = data.ident
        self.visitor_address = data.visitor_address
        self.use = data.use
        self.link = link
        self.is_open = True
        self.is_freed = False
        self.keepalive_enabled = False
        self.started_at = monotonic()
        self.activity = 0
        """datagrams that went either way"""
        self.forwarder = forwarder
        self._owner = owner
        self._far = data.sock
        self._codec = data.flow_source.create_codec(data.ident, data.use)
        self._path = link.datagram_path
        awaits_ready = forwarder.is_ingress and self._path is not None
        self._reader = DatagramReader(awaits_ready=awaits_ready)
        self._waiting: deque[tuple[bytes, float]] = deque()  # datagrams for ``far``, and when they were received
        self._pending: bytes | bytearray | memoryview = b""  # what ``far`` has not taken of those before
        self._passed_from_near = self._passed_to_near = 0
        self._check_at = self.started_at  # when it is checked next whether the other end answers
        self._is_stalled = self._is_flush_due = False
        self._header = b""  # before each datagram to the target

    @property
    def id(self) -> str:
        """The visitor's id, the same at both ends."""
        return visitor_id(self.link.ident, self.ident, self.use)

    # --- the near side: the visitor's flow, or the target's socket ----------------------------------------------------

    @abstractmethod
    def _start_near(self, near_events: int | None) -> None:
        """Receive from the near side from now on."""

    @abstractmethod
    def _send_near(self, datagrams: Sequence[Datagram], start: int) -> int:
        """Send some datagrams to the near side, as ``DatagramSender.send``. Raises OSError."""

    @abstractmethod
    def _close_near(self) -> None:
        """Close the near side."""

    @abstractmethod
    def describe_near(self) -> str | None:
        """Return the address of the peer on the near side as text."""

    def _on_near_error(self, error: OSError) -> None:
        """Handle a datagram that the near side did not take: it is lost, as datagrams may be."""
        del error
        self.forwarder.dropped.total += 1

    # --- life ---------------------------------------------------------------------------------------------------------

    def start(self, near_events: int | None, far_events: int) -> None:
        """Start to forward. The events are those of the two sockets so far."""
        bound_unsent(self._far, _MAX_UNSENT_BYTES)
        self.forwarder.reactor.set_handler(self._far, self.on_far)
        if self._path is not None:
            self._path.add_flow(self.ident, self)
            if not self.forwarder.is_ingress:
                self._pending = self._codec.seal(READY)
                self._send_pending()
        self._start_near(near_events)
        if far_events & READABLE and self.is_open:
            self.on_far(far_events)

    def close(self, cause: VisitorEnd | None = None, reason: str | None = None) -> None:
        """End the flow: close both sides. Calling it twice is allowed.

        The data connection is reset, so that neither end keeps its port (TIME_WAIT): a client may have 470 new flows
        per second, and more.
        """
        if not self.is_open:
            return
        if self.forwarder.log is not None:
            self.forwarder.log(self._describe_end(cause or VisitorEnd.TUNNEL_CLOSED, reason))
        self.is_open = False
        self.forwarder.dropped.total += len(self._waiting)
        self._waiting.clear()
        self._pending = b""
        if self._path is not None:
            self._path.remove_flow(self.ident)
        sockets.reset_on_close(self._far)
        self.forwarder.reactor.close(self._far)
        self._close_near()
        self._owner.on_relay_closed(self)

    def abort(self, cause: VisitorEnd | None = None) -> None:
        """End the flow as ``close`` does."""
        self.close(cause)

    def release_near(self) -> socket.SocketType | None:
        """Return None: a flow starts with a datagram, which is forwarded at once. Its visitor sends another one."""
        return None

    def fail(self, reason: str) -> None:
        """End the flow, because the target was not reached; ``reason`` is a sentence."""
        self.close(VisitorEnd.FAILED, reason)

    def evict(self) -> None:
        """End the flow: it is idle, and its place is needed."""
        self.close(VisitorEnd.IDLE_TIMEOUT)

    def set_end_offset(self, total: int) -> None:
        """Ignore it: a flow has no end that is announced."""
        del total

    def note_freed(self) -> None:
        """Note it, although the data connection of a flow is not used again."""
        self.is_freed = True

    def on_link_lost(self) -> None:  # noqa: B027  the same for both ends
        """Do nothing: a flow needs its data connection alone."""

    def enable_keepalive(self) -> None:
        """Enable keepalive on the data connection."""
        self.keepalive_enabled = True
        sockets.enable_keepalive(self._far)

    def describe_visitor(self) -> str:
        """Return the visitor's address as text."""
        return sockets.format_address(unpack_address(self.visitor_address))

    @property
    def flows(self) -> tuple[Flow, ...]:
        """None: datagrams are no streams of bytes."""
        return ()

    def passed(self) -> tuple[int, int]:
        """Return the bytes that came from the near side, and those that went to it."""
        return self._passed_from_near, self._passed_to_near

    def unanswered_s(self) -> float | None:
        """Return the seconds since the last sign of the other end if that leaves data unacknowledged; else None."""
        return sockets.unanswered_s(self._far)

    @property
    def is_data_unanswered(self) -> bool:
        """Whether the other end of the tunnel leaves data unacknowledged."""
        return self.unanswered_s() is not None

    def _describe_end(self, end: VisitorEnd, reason: str | None) -> VisitorRecord:
        is_ingress = self.forwarder.is_ingress
        from_near, to_near = self.passed()
        address = unpack_address(self.visitor_address)
        return VisitorRecord(
            self.id,
            None if address is None else sockets.format_address(address),
            self.proto,
            None if is_ingress else self.describe_near(),
            self.link.ident,
            from_near if is_ingress else to_near,
            to_near if is_ingress else from_near,
            monotonic() - self.started_at,
            end,
            reason,
            time(),
        )

    def on_handler_error(self, error: Exception) -> None:
        """End this flow alone after a defect in a handler."""
        if self.is_open:
            self.close(VisitorEnd.DEFECT)
            self._owner.on_relay_error(self, error)

    # --- from near to far ---------------------------------------------------------------------------------------------

    def receive(self, datagram: bytes, now: float) -> None:
        """Take a datagram of the near side; ``now`` is when it was received. ``flush`` sends it."""
        if len(datagram) > MAX_DATAGRAM_BYTES:  # an IPv6 datagram may be 20 bytes longer
            self.forwarder.dropped.total += 1
            return
        if len(self._waiting) == MAX_WAITING:
            self.flush()
            if len(self._waiting) == MAX_WAITING:
                self._waiting.popleft()
                self.forwarder.dropped.total += 1
        self._waiting.append((datagram, now))

    def receive_all(self, datagrams: Sequence[bytes], now: float) -> None:
        """Take datagrams that were received together; several of them leave on the path at once."""
        path = self._path
        if (
            len(datagrams) > 1
            and path is not None
            and path.is_usable
            and self._is_far_ready
            and not self._waiting
            and max(map(len, datagrams)) <= path.max_datagram
        ):
            self._send_on_path(path, datagrams)
            return
        for datagram in datagrams:
            self.receive(datagram, now)

    def flush(self) -> None:
        """Send what waits: on the path of the link if that is usable, else as far as the data connection takes it."""
        if not self.is_open:
            return
        path = self._path
        if path is not None and self._waiting and (path.is_usable or path.carries_all):
            self._flush_to_path(path)
        if self._pending and not self._send_pending():
            return
        waiting, now = self._waiting, monotonic()
        if now >= self._check_at:
            self._check_at = now + _CHECK_INTERVAL_S
            self._is_stalled = sockets.unanswered_s(self._far) is not None
        if self._is_stalled:  # what it takes now arrives late, behind what it repeats
            self._flush_later()
            return
        oldest = now - MAX_WAIT_S
        while waiting and waiting[0][1] < oldest:
            waiting.popleft()
            self.forwarder.dropped.total += 1
        if not waiting:
            return
        size = sum(len(datagram) for datagram, _ in waiting)
        self.activity += len(waiting)
        self._passed_from_near += size
        self.forwarder.from_near.total += size
        self._pending = self._codec.seal(encode_datagrams(datagram for datagram, _ in waiting))
        waiting.clear()
        self._send_pending()

    def _flush_to_path(self, path: FlowPath) -> None:
        """Send what waits on the path; what it does not carry stays for the data connection, if that may carry it."""
        if not self._is_far_ready and path.is_usable:
            return
        waiting, self._waiting = self._waiting, deque()
        longest = path.max_datagram if path.is_usable else -1
        fitting = [datagram for datagram, _ in waiting if len(datagram) <= longest]
        if len(fitting) < len(waiting):
            others = [each for each in waiting if len(each[0]) > longest]
            if path.carries_all:
                self.forwarder.dropped.total += len(others)
            else:
                self._waiting.extend(others)
        if fitting:
            self._send_on_path(path, fitting)
        if self._waiting:
            path.note_sent_by_stream()

    def _send_on_path(self, path: FlowPath, datagrams: Sequence[bytes]) -> None:
        """Send datagrams that the path can carry."""
        lost = path.send(self.ident, datagrams)
        size = sum(map(len, datagrams))
        if lost:
            size -= sum(map(len, lost))
            self.forwarder.dropped.total += len(lost)
        self.activity += len(datagrams) - len(lost)
        self._passed_from_near += size
        self.forwarder.from_near.total += size

    @property
    def _is_far_ready(self) -> bool:
        """Whether the other end has its relay: an ingress has, and an egress has announced it."""
        return self._reader.is_ready or not self.forwarder.is_ingress

    def _flush_later(self) -> None:
        if self._waiting and not self._is_flush_due:
            self._is_flush_due = True
            self.forwarder.reactor.call_later(_CHECK_INTERVAL_S, self._on_flush_due)

    def _on_flush_due(self) -> None:
        self._is_flush_due = False
        self.flush()

    def _send_pending(self) -> bool:
        """Send what the data connection has not taken; return whether nothing is left."""
        try:
            sent = self._far.send(self._pending)
        except BlockingIOError:
            return False
        except OSError:
            self._on_far_ended()
            return False
        self._pending = memoryview(self._pending)[sent:] if sent < len(self._pending) else b""
        return not self._pending

    # --- from far to near ---------------------------------------------------------------------------------------------

    def on_far(self, events: int) -> None:
        """Handle events of the data connection."""
        if events & WRITABLE and self._pending:
            self.flush()
        if not self.is_open or (events and not events & READABLE):
            return
        scratch, left = self.forwarder.reactor.scratch, _READ_BYTES
        while left > 0:
            try:
                got = self._far.recv_into(scratch, left)
            except BlockingIOError:
                return
            except OSError:
                got = 0
            if not got:
                self._on_far_ended()
                return
            if not self._deliver(scratch[:got]):
                return
            if got < left and not events & HANGUP:
                return
            left -= got
        self.forwarder.reactor.call_again(self.on_far)

    def _deliver(self, received: memoryview) -> bool:
        """Send the datagrams that are complete to the near side; return whether the flow continues."""
        try:
            datagrams = [each for content in self._codec.open(received) for each in self._reader.split(content)]
        except ProtocolError as error:
            self._owner.on_stream_error(self, error)
            self.close(VisitorEnd.CORRUPTED)
            return False
        path = self._path
        if path is not None and path.is_usable and monotonic() - self.started_at > _SETTLED_S:
            path.note_received_by_stream()
        self.receive_from_path(datagrams)
        return self.is_open

    def receive_from_path(self, datagrams: Sequence[Datagram]) -> None:
        """Send datagrams of the other end to the near side."""
        start = size = 0
        while start < len(datagrams):
            try:
                sent = self._send_near(datagrams, start)
            except BlockingIOError:  # there is no room: the others are lost as well
                self.forwarder.dropped.total += len(datagrams) - start
                break
            except OSError as error:
                self._on_near_error(error)
                if not self.is_open:
                    break
                start += 1
            else:
                size += len(datagrams[start]) if sent == 1 else sum(map(len, datagrams[start : start + sent]))
                self.activity += sent
                start += sent
        self._passed_to_near += size
        self.forwarder.to_near.total += size

    @abstractmethod
    def _on_far_ended(self) -> None:
        """End the flow, because the other end has."""

"""The path on which a link carries datagrams without a data connection: the client's end, and the server's.

A path has the flows of its link that run at this end. Each flow asks ``is_usable`` before it sends, and falls back to
its data connection; what arrives on the path is passed to its flow in any case. The rules when a path is usable are
those of ``tunnel.protocol.path_probing``.
"""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from time import monotonic
from typing import TYPE_CHECKING, Final

from tunnel.model.events import EventKind
from tunnel.model.spec import LogLevel
from tunnel.protocol.datagram_messages import (
    FLOW_HEADER_BYTES,
    MAX_SEALED_BYTES,
    Answer,
    DatagramContent,
    FlowDatagram,
    Probe,
    decode_content,
    encode_answer,
    encode_flow_datagram,
    encode_probe,
)
from tunnel.protocol.datagram_records import LINK_BYTES, OVERHEAD_BYTES, DatagramOpener, DatagramSealer
from tunnel.protocol.errors import ProtocolError
from tunnel.protocol.path_probing import PathProber, PathResponder
from tunnel.protocol.records import RecordDirection
from tunnel.runtime.link_datagrams import LinkDatagramSocket, Origin, connect_link_socket, open_tunnel_socket

if TYPE_CHECKING:
    import asyncio
    import socket

    from tunnel.engine.link import Link
    from tunnel.forwarding.base import FlowEnd
    from tunnel.model.events import EventLog
    from tunnel.runtime.reactor import Reactor
    from tunnel.runtime.sockets import SockAddr

MAX_FLOW_DATAGRAM_BYTES: Final = MAX_SEALED_BYTES - OVERHEAD_BYTES - FLOW_HEADER_BYTES
"""The longest datagram of a flow that fits into a datagram of a path."""


class DatagramPath(ABC):
    """One end of a path. Owned by its link, which starts and closes it."""

    def __init__(self, link: Link, reactor: Reactor, event_log: EventLog, *, carries_all: bool) -> None:
        """``carries_all``: what the path does not carry is lost (``udp_carrier=datagram``)."""
        self.carries_all = carries_all
        self.is_usable = False
        """whether flows send on the path"""
        self.reason: str | None = "no answer of the server has arrived yet"
        """why it is not usable, as part of a sentence"""
        self.max_datagram = MAX_FLOW_DATAGRAM_BYTES
        """the longest datagram of a flow that can be sent"""
        self._link = link
        self._reactor = reactor
        self._event_log = event_log
        ours, theirs = RecordDirection.TO_SERVER, RecordDirection.TO_CLIENT
        if not link.is_client:
            ours, theirs = theirs, ours
        self._sealer = DatagramSealer(link.wire_id, link.secret, ours)
        self._opener = DatagramOpener(link.secret, theirs)
        self._flows: dict[int, FlowEnd] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._is_open = False

    @abstractmethod
    def start(self) -> None:
        """Send and receive datagrams from now on."""

    def close(self) -> None:
        """End the path. Its flows continue on their data connections. Calling it twice is allowed."""
        self._is_open = self.is_usable = self.carries_all = False
        self.reason = "the link is closed"
        self._flows.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # --- flows --------------------------------------------------------------------------------------------------------

    def add_flow(self, ident: int, flow: FlowEnd) -> None:
        """Pass what arrives for a flow to its relay; ``ident`` is the id of its data connection."""
        self._flows[ident] = flow

    def remove_flow(self, ident: int) -> None:
        """Forget a flow, which has ended."""
        self._flows.pop(ident, None)

    def send(self, ident: int, datagram: bytes) -> bool:
        """Send a datagram of a flow, of ``max_datagram`` bytes at most; return whether the kernel took it."""
        self._note_sent()
        return self._transmit(encode_flow_datagram(ident, datagram))

    @abstractmethod
    def _note_sent(self) -> None:
        """Note that a datagram of a flow is sent."""

    @abstractmethod
    def _note_received(self) -> None:
        """Note that a datagram of a flow has arrived."""

    # --- the wire -----------------------------------------------------------------------------------------------------

    @abstractmethod
    def _send_sealed(self, datagram: bytes) -> None:
        """Send to the other end. Raises OSError."""

    def _transmit(self, content: bytes) -> bool:
        sealed = self._sealer.seal(content)
        try:
            self._send_sealed(sealed)
        except OSError as error:
            if error.errno == errno.EMSGSIZE:  # the path's MTU has become smaller
                self.max_datagram = min(self.max_datagram, len(sealed) - OVERHEAD_BYTES - FLOW_HEADER_BYTES - 1)
            return False
        return True

    def on_datagram(self, datagram: memoryview, origin: Origin | None) -> None:
        """Handle a datagram of the link; one that is not genuine, or came before, is dropped."""
        opener = self._opener
        highest = opener.highest
        try:
            content = decode_content(opener.open(datagram))
        except ProtocolError:
            return
        self._note_genuine(origin, is_newest=opener.highest > highest)
        if isinstance(content, FlowDatagram):
            self._note_received()
            flow = self._flows.get(content.flow)
            if flow is not None:
                flow.receive_from_path(content.content)
        else:
            self._handle(content)

    @abstractmethod
    def _note_genuine(self, origin: Origin | None, *, is_newest: bool) -> None:
        """Note that a datagram of the other end has arrived."""

    @abstractmethod
    def _handle(self, content: DatagramContent) -> None:
        """Handle a probe, or the answer to one."""

    # --- whether it is usable -----------------------------------------------------------------------------------------

    def _on_changed(self, *, is_usable: bool, reason: str | None) -> None:
        self.is_usable, self.reason = is_usable, reason
        if is_usable:
            self.max_datagram = MAX_FLOW_DATAGRAM_BYTES
            text = f"UDP of link {self._link.ident} travels as datagrams"
        else:
            way = "is dropped" if self.carries_all else "travels over data connections"
            text = f"UDP of link {self._link.ident} {way}: {reason}"
        self._event_log.log_paced(LogLevel.INFO, EventKind.LINK, f"path {is_usable}", text, link=self._link.ident)

    def _set_timer(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._reactor.call_later(max(0.0, at - monotonic()), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        # After the process was stopped or starved, datagrams of that time are still unread: read them before judging.
        self._reactor.defer(self._check)

    @abstractmethod
    def _check(self) -> None:
        """Do what is due, and set the timer again."""

    def on_handler_error(self, error: Exception) -> None:
        """Report a defect in a handler of the path."""
        self._link.on_handler_error(error)


class ClientPath(DatagramPath):
    """The client's end of a path: it opens the path, and keeps it open. Owns its socket."""

    def __init__(
        self,
        link: Link,
        reactor: Reactor,
        event_log: EventLog,
        server: SockAddr,
        *,
        carries_all: bool,
    ) -> None:
        """``server`` is the address of the tunnel port."""
        super().__init__(link, reactor, event_log, carries_all=carries_all)
        self._server = server
        self._prober = PathProber()
        self._socket: LinkDatagramSocket | None = None

    def start(self) -> None:
        """Open the socket and send the first probe."""
        try:
            self._socket = connect_link_socket(self._reactor, self._server, self)
        except OSError as error:
            self.reason = f"no UDP socket can be opened: {error.strerror}"
            return
        self._is_open = True
        self._probe()

    def close(self) -> None:
        """End the path and close its socket."""
        super().close()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send_sealed(self, datagram: bytes) -> None:
        if self._socket is not None:
            self._socket.send(datagram, None)

    def _note_sent(self) -> None:
        if self._prober.note_traffic():
            self._set_timer(self._prober.next_probe_at)

    def _note_genuine(self, origin: Origin | None, *, is_newest: bool) -> None:
        """Do nothing: the server has one address, and answers alone show that the path is usable."""

    def _note_received(self) -> None:
        self._note_sent()

    def _handle(self, content: DatagramContent) -> None:
        if isinstance(content, Answer) and self._prober.note_answer(content.number, monotonic()):
            self._on_changed(is_usable=True, reason=None)
            self._probe()

    def _probe(self) -> None:
        probe = self._prober.create_probe(monotonic(), MAX_SEALED_BYTES - OVERHEAD_BYTES)
        self._transmit(encode_probe(probe.number, is_usable=probe.is_usable, size=probe.size))
        self._set_timer(self._prober.next_probe_at)

    def _check(self) -> None:
        if not self._is_open:
            return
        now = monotonic()
        if self._prober.expire(now):
            self._on_changed(is_usable=False, reason="the server's answers do not arrive")
            self._probe()
        elif now >= self._prober.next_probe_at:
            self._probe()
        else:
            self._set_timer(self._prober.next_probe_at)


class ServerPath(DatagramPath):
    """The server's end of a path. Sends nothing before a genuine datagram of the client has arrived."""

    def __init__(
        self, link: Link, reactor: Reactor, event_log: EventLog, port: TunnelDatagrams, *, carries_all: bool
    ) -> None:
        super().__init__(link, reactor, event_log, carries_all=carries_all)
        self.reason = "no datagram of the client has arrived yet"
        self._port = port
        self._responder = PathResponder()
        self._origin: Origin | None = None

    def start(self) -> None:
        """Receive the datagrams of the link."""
        self._is_open = True
        self._port.add(self._link.wire_id, self)

    def close(self) -> None:
        """End the path; the socket stays with the tunnel port."""
        super().close()
        self._port.remove(self._link.wire_id)

    def _send_sealed(self, datagram: bytes) -> None:
        if self._origin is not None:
            self._port.send(datagram, self._origin)

    def _note_sent(self) -> None:
        if self._responder.note_sent(monotonic()):
            self._set_timer(self._responder.deadline)

    def _note_received(self) -> None:
        """Do nothing: probes alone show that the path is usable."""

    def _note_genuine(self, origin: Origin | None, *, is_newest: bool) -> None:
        if is_newest:  # an older one may have been sent before the client's address changed
            self._origin = origin

    def _handle(self, content: DatagramContent) -> None:
        if not isinstance(content, Probe):
            return
        self._transmit(encode_answer(content))
        if self._responder.note_probe(content, monotonic()):
            reason = None if content.is_usable else "this server's answers do not reach the client"
            self._on_changed(is_usable=content.is_usable, reason=reason)
        if self.is_usable and self._timer is None:
            self._set_timer(self._responder.deadline)

    def _check(self) -> None:
        if not self._is_open:
            return
        if self._responder.expire(monotonic()):
            self._on_changed(is_usable=False, reason="the client's datagrams do not arrive")
        elif self.is_usable:
            self._set_timer(self._responder.deadline)


class TunnelDatagrams:
    """The datagrams of a tunnel port, for all links of all its services. Owns its socket."""

    def __init__(self, reactor: Reactor, family: socket.AddressFamily, address: SockAddr) -> None:
        """Open the socket on the address of the tunnel port. Raises OSError."""
        self._reactor = reactor
        self._paths: dict[bytes, ServerPath] = {}
        self._socket = open_tunnel_socket(reactor, family, address, self)

    def create_path(self, link: Link, event_log: EventLog, *, carries_all: bool) -> ServerPath:
        """Create the path of a link, which owns it."""
        return ServerPath(link, self._reactor, event_log, self, carries_all=carries_all)

    def add(self, wire_id: bytes, path: ServerPath) -> None:
        """Pass the datagrams of a link to its path."""
        self._paths[wire_id] = path

    def remove(self, wire_id: bytes) -> None:
        """Drop the datagrams of a link from now on."""
        self._paths.pop(wire_id, None)

    def on_datagram(self, datagram: memoryview, origin: Origin | None) -> None:
        """Pass a datagram to the path of its link; one that names none is dropped, without an answer."""
        path = self._paths.get(bytes(datagram[:LINK_BYTES]))
        if path is None:
            return
        try:
            path.on_datagram(datagram, origin)
        except Exception as error:  # noqa: BLE001  a defect ends the engine of that link, not that of another service
            path.on_handler_error(error)

    def send(self, datagram: bytes, origin: Origin) -> None:
        """Send a datagram to a client. Raises OSError."""
        self._socket.send(datagram, origin)

    def close(self) -> None:
        """Close the socket, and the paths of links that are left: these use their data connections."""
        for path in list(self._paths.values()):
            path.close()
        self._socket.close()

    def on_handler_error(self, error: Exception) -> None:
        """Raise a defect that belongs to no link."""
        raise error

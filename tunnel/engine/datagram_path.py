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
from tunnel.model.spec import LogLevel, UdpCarrier
from tunnel.protocol.datagram_messages import (
    FLOW_HEADER_BYTES,
    MAX_SEALED_BYTES,
    PathMessage,
    Probe,
    ProbeAnswer,
    encode_answer,
    encode_flow_header,
    encode_probe,
    sort_contents,
)
from tunnel.protocol.datagram_records import LINK_BYTES, OVERHEAD_BYTES, DatagramOpener, DatagramSealer
from tunnel.protocol.errors import ProtocolError
from tunnel.protocol.path_probing import PathProber, PathResponder
from tunnel.protocol.records import RecordDirection
from tunnel.runtime.link_datagrams import LinkDatagramSocket, Origin, connect_link_socket, open_tunnel_socket

if TYPE_CHECKING:
    import asyncio
    import socket
    from collections.abc import Sequence

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

    @property
    def carrier(self) -> UdpCarrier:
        """How flows travel at this moment."""
        return UdpCarrier.DATAGRAM if self.is_usable or self.carries_all else UdpCarrier.STREAM

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

    def send(self, ident: int, datagrams: Sequence[bytes]) -> Sequence[bytes]:
        """Send datagrams of a flow, each of ``max_datagram`` bytes at most; return those that the kernel refused."""
        self._note_sent()
        return [datagrams[at] for at in self._transmit(self._sealer.seal_all(encode_flow_header(ident), datagrams))]

    @abstractmethod
    def note_sent_by_stream(self) -> None:
        """Note that a datagram of a flow is sent on its data connection, although the path is usable."""

    @abstractmethod
    def note_received_by_stream(self) -> None:
        """Note that a datagram of a flow has arrived on its data connection, although the path is usable."""

    @abstractmethod
    def _note_sent(self) -> None:
        """Note that a datagram of a flow is sent."""

    @abstractmethod
    def _note_received(self) -> None:
        """Note that a datagram of a flow has arrived."""

    # --- the wire -----------------------------------------------------------------------------------------------------

    @abstractmethod
    def _send_sealed(self, datagrams: Sequence[bytes], start: int) -> int:
        """Send some datagrams to the other end, as ``DatagramSender.send``. Raises OSError."""

    def _transmit(self, sealed: Sequence[bytes]) -> list[int]:
        """Send datagrams to the other end; return the places of those that the kernel refused."""
        start = 0
        refused: list[int] = []
        while start < len(sealed):
            try:
                start += self._send_sealed(sealed, start)
            except BlockingIOError:
                refused += range(start, len(sealed))  # there is no room: the others are lost as well
                break
            except OSError as error:  # also an ICMP error of an earlier datagram: this one alone is lost
                if error.errno == errno.EMSGSIZE:  # the path's MTU has become smaller
                    longest = len(sealed[start]) - OVERHEAD_BYTES - FLOW_HEADER_BYTES - 1
                    self.max_datagram = min(self.max_datagram, longest)
                refused.append(start)
                start += 1
        return refused

    def on_datagrams(self, datagrams: Sequence[bytes], origin: Origin | None) -> None:
        """Handle datagrams of the link; one that is not genuine, or came before, is dropped."""
        opener, contents = self._opener, []
        highest = opener.highest
        for datagram in datagrams:
            try:
                contents.append(opener.open(datagram))
            except ProtocolError:
                continue
        if not contents:
            return
        self._note_genuine(origin, is_newest=opener.highest > highest)
        flows, messages = sort_contents(contents)
        for ident, batch in flows.items():
            self._note_received()
            flow = self._flows.get(ident)
            if flow is not None:
                flow.receive_from_path(batch)
        for message in messages:
            self._handle(message)

    @abstractmethod
    def _note_genuine(self, origin: Origin | None, *, is_newest: bool) -> None:
        """Note that a datagram of the other end has arrived."""

    @abstractmethod
    def _handle(self, content: PathMessage) -> None:
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

    def _send_sealed(self, datagrams: Sequence[bytes], start: int) -> int:
        if self._socket is None:
            return 1
        return self._socket.send(datagrams, start, None)

    def _note_sent(self) -> None:
        if self._prober.note_traffic():
            self._set_timer(self._prober.next_probe_at)

    def _note_genuine(self, origin: Origin | None, *, is_newest: bool) -> None:
        """Do nothing: the server has one address, and answers alone show that the path is usable."""

    def _note_received(self) -> None:
        self._note_sent()

    def note_sent_by_stream(self) -> None:
        """Send the next probe soon, as for a datagram on the path: else the server suspects it."""
        self._note_sent()

    def note_received_by_stream(self) -> None:
        """Look whether the path is still usable: the server may have found that it is not."""
        if self._prober.suspect(monotonic()):
            self._probe()

    def _handle(self, content: PathMessage) -> None:
        if isinstance(content, ProbeAnswer) and self._prober.note_answer(content.number, monotonic()):
            self._on_changed(is_usable=True, reason=None)
            self._probe()

    def _probe(self) -> None:
        probe = self._prober.create_probe(monotonic(), MAX_SEALED_BYTES - OVERHEAD_BYTES)
        self._transmit([self._sealer.seal(encode_probe(probe.number, is_usable=probe.is_usable, size=probe.size))])
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

    def _send_sealed(self, datagrams: Sequence[bytes], start: int) -> int:
        if self._origin is None:
            return 1
        return self._port.send(datagrams, start, self._origin)

    def _note_sent(self) -> None:
        if self._responder.note_sent(monotonic()):
            self._set_timer(self._responder.deadline)

    def _note_received(self) -> None:
        """Do nothing: probes alone show that the path is usable."""

    def note_sent_by_stream(self) -> None:
        """Do nothing, as above."""

    def note_received_by_stream(self) -> None:
        """Stop using the path soon if no probe comes: the client may have found that its datagrams do not arrive."""
        if self._responder.suspect(monotonic()):
            self._set_timer(self._responder.deadline)

    def _note_genuine(self, origin: Origin | None, *, is_newest: bool) -> None:
        if is_newest:  # an older one may have been sent before the client's address changed
            self._origin = origin

    def _handle(self, content: PathMessage) -> None:
        if not isinstance(content, Probe):
            return
        self._transmit([self._sealer.seal(encode_answer(content))])
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

    def on_datagrams(self, datagrams: Sequence[bytes], origin: Origin | None) -> None:
        """Pass datagrams to the path of their link; one that names none is dropped, without an answer."""
        link = datagrams[0][:LINK_BYTES]
        if len(datagrams) > 1 and not all(each.startswith(link) for each in datagrams):
            for each in datagrams:
                self.on_datagrams((each,), origin)
            return
        path = self._paths.get(link)
        if path is None:
            return
        try:
            path.on_datagrams(datagrams, origin)
        except Exception as error:  # noqa: BLE001  a defect ends the engine of that link, not that of another service
            path.on_handler_error(error)

    def send(self, datagrams: Sequence[bytes], start: int, origin: Origin) -> int:
        """Send some datagrams to a client, as ``DatagramSender.send``. Raises OSError."""
        return self._socket.send(datagrams, start, origin)

    def close(self) -> None:
        """Close the socket, and the paths of links that are left: these use their data connections."""
        for path in list(self._paths.values()):
            path.close()
        self._socket.close()

    def on_handler_error(self, error: Exception) -> None:
        """Raise a defect that belongs to no link."""
        raise error

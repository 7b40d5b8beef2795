"""A tunnel port: what a server accepts on one address, for all services that share it.

The tunnel port accepts control channels and data connections and tells them apart by their first byte; a data port
accepts data connections alone. HELLO names the service, and the preface of a data connection its link, so the port
finds the engine that each belongs to. The accept loop only accepts: each connection authenticates in its own time,
under the rules of ``FrontDoor``.

An engine joins the port of its address, claims its service, and opens its place when it is ready to judge clients.
Until then clients of that service wait, as they would in the backlog of a listener. The port is closed when the last
engine has left it.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from functools import partial
from typing import TYPE_CHECKING, Final

from tunnel.engine.control_channel import ChannelLostError, ControlChannel
from tunnel.engine.pending import PendingConnection
from tunnel.engine.refusals import Refusals
from tunnel.engine.service_place import ServicePlace
from tunnel.protocol import preface
from tunnel.protocol.errors import HandshakeRefusedError, ProtocolError, WrongServiceError
from tunnel.protocol.frames import Kind
from tunnel.protocol.handshake import REFUSAL, ServerHandshake, describe_service
from tunnel.runtime import listeners, sockets, tls
from tunnel.runtime.acceptor import Acceptor
from tunnel.runtime.sockets import NetError

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from tunnel.engine.datagram_path import TunnelDatagrams
    from tunnel.engine.link import Link
    from tunnel.engine.link_acceptor import LinkAcceptor
    from tunnel.model.address import Address
    from tunnel.model.spec import TunnelSpec
    from tunnel.runtime.front_door import FrontDoor
    from tunnel.runtime.reactor import Reactor
    from tunnel.runtime.sockets import SockAddr

_MAX_CLIENT_BYTES: Final = 1 << 15  # a client without a certificate sends less than 4 KB until it has authenticated


def _always_has_room() -> bool:
    """The front door makes room for each new connection."""
    return True


class TunnelPort:
    """Owns the listeners of one tunnel address and their pending connections. A link belongs to its engine."""

    def __init__(self, reactor: Reactor, front_door: FrontDoor, on_closed: Callable[[], None]) -> None:
        self._reactor = reactor
        self._front_door = front_door
        self._on_closed = on_closed
        self._binding = asyncio.Lock()
        self._bound: dict[int | None, tuple[Address, socket.SocketType]] = {}  # nothing accepts on them yet
        self._acceptors: dict[int | None, Acceptor] = {}  # by data port as in the specs; None: the tunnel port
        self._places: dict[ServicePlace, None] = {}
        self._holders: dict[str | None, ServicePlace] = {}  # what receives the clients, by service; None: that publish
        self._changed = asyncio.Event()  # pulses when a place has opened or left
        self._links: dict[bytes, LinkAcceptor] = {}  # by the id in the prefaces of their data connections
        self._handshakes: dict[PendingConnection, asyncio.Task[None]] = {}  # of control channels
        self._context: ssl.SSLContext
        self._certificate = b""
        self._reporter: LinkAcceptor  # counts and logs what belongs to no service: that of the oldest open place
        self._offer: tuple[tuple[str, ...], int] | None = None  # features of all services, and most keys of one
        self._socket_address: tuple[socket.AddressFamily, SockAddr]  # of the tunnel port, once a place is open
        self._datagrams: TunnelDatagrams | None = None

    # --- places of engines --------------------------------------------------------------------------------------------

    @property
    def tunnel_acceptor(self) -> Acceptor | None:
        """What accepts on the tunnel address, once a place is open."""
        return self._acceptors.get(None)

    def data_acceptor(self, data_port: int | None) -> Acceptor | None:
        """What accepts on a data port, as a spec names it; None for the tunnel port."""
        return self._acceptors.get(data_port) if data_port is not None else None

    @property
    def acceptors(self) -> tuple[Acceptor, ...]:
        """The acceptors of the tunnel port and of its data ports."""
        return tuple(self._acceptors.values())

    async def join(self, spec: TunnelSpec, predecessor: ServicePlace | None) -> ServicePlace:
        """Return a new place, and bind what is not bound yet. Raises NetError, with nothing changed."""
        place = ServicePlace(self, spec)
        self._places[place] = None  # the port is not closed while this engine waits for others to bind
        try:
            async with self._binding:
                await self._bind(spec, predecessor)
        except BaseException:
            place.leave()
            raise
        return place

    async def _bind(self, spec: TunnelSpec, predecessor: ServicePlace | None) -> None:
        present = {*self._bound, *self._acceptors}
        wanted = {} if None in present else {listeners.TUNNEL: spec.tunnel}
        data_address = listeners.data_address(spec)
        if data_address is not None and spec.data_port not in present:
            wanted[listeners.DATA] = data_address
        inherited = {}
        if predecessor is not None and predecessor.port is not self and predecessor.port.is_used_only_by(predecessor):
            former = predecessor.data_acceptor  # the tunnel address has changed and the data port has not
            inherited = {listeners.DATA: former} if former is not None else {}
        for purpose, listener in (await listeners.bind(spec, wanted, inherited)).items():
            number = None if purpose == listeners.TUNNEL else spec.data_port
            self._bound[number] = (wanted[purpose], listener)
        if self._acceptors:
            self._start_accepting()

    def is_used_only_by(self, place: ServicePlace) -> bool:
        """Whether no other engine has joined the port."""
        return list(self._places) == [place]

    def claim(self, place: ServicePlace, replaced: ServicePlace | None) -> None:
        """Give the clients of its service to a place. Raises NetError if another place than ``replaced`` has them."""
        holder = self._holders.get(place.claimed)
        if holder is not None and holder is not replaced:
            what = "lets clients publish" if place.claimed is None else f"has {describe_service(place.claimed)}"
            way_out = "keep one of them" if place.claimed is None else "give each a service= of its own"
            text = f"cannot listen on {place.spec.tunnel} for the tunnel: another tunnel {what} there; {way_out}"
            raise NetError(text, errno.EADDRINUSE)
        place.former = holder
        self._holders[place.claimed] = place

    def open(self, place: ServicePlace, acceptor: LinkAcceptor, context: ssl.SSLContext) -> None:
        """Let the acceptor of a place judge clients, with the certificate of ``context`` for all new ones."""
        place.acceptor, place.former = acceptor, None
        self._context, self._certificate = context, tls.presented_certificate(context)
        self._on_places_changed()
        self._start_accepting()

    def remove(self, place: ServicePlace) -> None:
        """Forget a place and its links; close listeners that no other place uses."""
        if self._places.pop(place, self) is self:
            return
        if self._holders.get(place.claimed) is place:
            del self._holders[place.claimed]
            if place.former is not None and place.former in self._places:
                self._holders[place.claimed] = place.former
        for wire_id in [wire_id for wire_id, owner in self._links.items() if owner is place.acceptor]:
            del self._links[wire_id]
        if self._places:
            self._close_listeners({None, *(one.spec.data_port for one in self._places)})
            self._on_places_changed()
        else:
            self._close()

    def on_specs_changed(self) -> None:
        """Compute again what depends on the specs of all places."""
        self._offer = None

    def _on_places_changed(self) -> None:
        self._offer = None
        reporter = next((place.acceptor for place in self._places if place.acceptor is not None), None)
        if reporter is not None:
            self._reporter = reporter
            for acceptor in self._acceptors.values():
                acceptor.set_event_log(reporter.event_log)
        self._changed.set()
        self._changed.clear()

    def _start_accepting(self) -> None:
        for number in list(self._bound):
            address, listener = self._bound.pop(number)
            if number is None:
                self._socket_address = socket.AddressFamily(listener.family), listener.getsockname()
            self._acceptors[number] = Acceptor(
                self._reactor,
                listener,
                self._reporter.event_log,
                self._accept if number is None else self._accept_data,
                _always_has_room,
                address,
                accepts_per_turn=self._front_door.accepts_per_turn,
            )

    def _close_listeners(self, used: set[int | None]) -> None:
        for number in self._bound.keys() - used:
            self._bound.pop(number)[1].close()
        for number in self._acceptors.keys() - used:
            self._acceptors.pop(number).close()

    def _close(self) -> None:
        """Close the listeners and all pending connections. Links that were made stay."""
        self._on_closed()
        self._close_listeners(set())
        if self._datagrams is not None:
            self._datagrams.close()
        self._front_door.evict_all(self, "the server is closing")
        for task in list(self._handshakes.values()):
            task.cancel()

    def open_datagrams(self) -> TunnelDatagrams:
        """Return what carries the datagrams of links: a UDP socket with the number of the tunnel port.

        It is closed with the port. Raises OSError.
        """
        if self._datagrams is None:
            from tunnel.engine.datagram_path import TunnelDatagrams  # noqa: PLC0415  the cipher, only where it is used

            self._datagrams = TunnelDatagrams(self._reactor, *self._socket_address)
        return self._datagrams

    def add_link(self, link: Link, acceptor: LinkAcceptor) -> None:
        """Pass data connections of this link to ``acceptor``."""
        self._links[link.wire_id] = acceptor

    def acceptor_of(self, service: str) -> LinkAcceptor | None:
        """Return what judges the clients of a service, if its place is open."""
        place = self._holders.get(service)
        return place.acceptor if place is not None else None

    def remove_link(self, link: Link) -> None:
        """Refuse data connections of this link."""
        self._links.pop(link.wire_id, None)

    # --- pending connections ------------------------------------------------------------------------------------------

    def _accept(self, sock: socket.SocketType, peer: object) -> None:
        self._receive(PendingConnection(self, sock, peer, data_only=False))

    def _accept_data(self, sock: socket.SocketType, peer: object) -> None:
        self._receive(PendingConnection(self, sock, peer, data_only=True))

    def _receive(self, connection: PendingConnection) -> None:
        """Read what has come with a new connection: mostly a whole preface, or the first bytes of a handshake."""
        connection.read()
        if connection.is_waiting:
            self._admit(connection)
            self._register(connection)

    def _admit(self, connection: PendingConnection) -> None:
        connection.is_admitted = True
        self._front_door.admit(connection, connection.sock.fileno())

    def _register(self, connection: PendingConnection) -> None:
        connection.is_registered = True
        self._reactor.register(connection.sock, connection.ready)

    def discard(self, connection: PendingConnection) -> None:
        """Close a connection whose peer closed it before it was authenticated."""
        self._front_door.release(connection)
        self._reactor.close(connection.sock)

    def on_evicted(self, connection: PendingConnection, reason: str) -> None:
        """Close a connection that the front door has removed."""
        self._reporter.count_silent(connection, reason)
        handshake = self._handshakes.get(connection)
        if handshake is not None:
            handshake.cancel()
        else:
            self._reactor.close(connection.sock)

    def refuse_data_connection(self, connection: PendingConnection, reason: str) -> None:
        """Close, count and log what cannot be a data connection."""
        self._reporter.count_refused_preface(connection, reason)
        self.discard(connection)

    def check_preface(self, connection: PendingConnection, received: bytes) -> None:
        """Pass a data connection with a complete preface to the engine of its link."""
        try:
            wire_id, ident, mac = preface.decode_preface(received)
        except ProtocolError as error:
            self.refuse_data_connection(connection, str(error))
            return
        acceptor = self._links.get(wire_id)
        if acceptor is None:
            self.refuse_data_connection(connection, "a preface of another link" if self._links else "there is no link")
            return
        try:
            acceptor.accept_data_connection(connection, wire_id, ident, mac)
        except Exception as error:  # noqa: BLE001  a defect ends the engine of that link, not that of another service
            self.discard(connection)
            acceptor.on_handler_error(error)

    def on_handler_error(self, error: Exception) -> None:
        """Report a defect in a handler."""
        self._reporter.on_handler_error(error)

    # --- control channels ---------------------------------------------------------------------------------------------

    def request_handshake(self, connection: PendingConnection) -> None:
        """Start the handshake of a control channel when the front door allows it.

        Until then the reactor does not watch a new connection: most of a flood are closed before their turn comes.
        """
        if not connection.is_admitted:
            self._admit(connection)
        self._front_door.request_handshake(connection, partial(self._start_handshake, connection))

    def refuse_closed(self, connection: PendingConnection) -> None:
        """Count and log a client that has closed its connection before its handshake could start."""
        self._reporter.count_refusal(connection, Refusals.HANDSHAKE, "the other end closed the connection")
        self.discard(connection)

    def _start_handshake(self, connection: PendingConnection) -> None:
        if not connection.is_registered:
            if sockets.is_closed_by_peer(connection.sock):
                self.refuse_closed(connection)
                return
            self._register(connection)
        session = tls.TlsSession(self._context, server_side=True)
        # The channel owns the socket from now on, not from the task's start: more bytes may arrive in this very turn.
        channel = ControlChannel(
            self._reactor,
            connection.sock,
            session,
            self._reporter.read_size,
            connection.first_bytes,
            max_pending_bytes=_MAX_CLIENT_BYTES,
        )
        task = asyncio.get_running_loop().create_task(self._handshake(connection, channel, self._certificate))
        self._handshakes[connection] = task
        task.add_done_callback(lambda done: self._on_handshake_done(connection, done, channel))

    def _on_handshake_done(
        self, connection: PendingConnection, task: asyncio.Task[None], channel: ControlChannel
    ) -> None:
        del self._handshakes[connection]
        if task.cancelled():  # perhaps before its first step, and then it has closed nothing
            channel.close("the handshake was aborted")

    async def _handshake(self, connection: PendingConnection, channel: ControlChannel, certificate: bytes) -> None:
        made, acceptor, service, sought = False, self._reporter, "", None
        try:
            await channel.secure()
            features, most_keys = self._describe_services()
            handshake = ServerHandshake("", certificate, features=features)
            channel.send(handshake.challenge())
            handshake.receive_hello(await _expect(channel, Kind.HELLO))
            proof = await _expect(channel, Kind.PROOF)
            service = handshake.requested_service
            sought = None if handshake.wants_publishing and None in self._holders else service
            place = await self._find_place(connection, sought)
            acceptor = self._reporter if place is None or place.acceptor is None else place.acceptor
            made = await acceptor.judge_client(connection, channel, handshake, proof, most_keys)
        except (ChannelLostError, ProtocolError) as error:
            acceptor.count_refusal(connection, Refusals.HANDSHAKE, str(error))
        except HandshakeRefusedError as error:
            self._refuse_proof(connection, channel, acceptor, sought, error)
        except Exception as error:  # noqa: BLE001  a defect must reach the engine, not vanish in a task
            acceptor.on_handler_error(error)
        finally:
            self._front_door.release(connection)
            if not made:
                channel.close("the handshake was aborted")

    def _refuse_proof(
        self,
        connection: PendingConnection,
        channel: ControlChannel,
        acceptor: LinkAcceptor,
        sought: str | None,
        refused: HandshakeRefusedError,
    ) -> None:
        """Refuse a client whose service or key is wrong; the reporter has judged it if no place has its service."""
        if sought not in self._holders and len(self._holders) > 1:
            # the place of a draining engine has left the port
            reason = f"no tunnel on this port has {describe_service(sought or '')}, or the one that has it is draining"
            acceptor.count_refusal(connection, Refusals.SERVICE, reason)
            acceptor.send_refusal(channel, REFUSAL)
        else:
            topic = Refusals.SERVICE if isinstance(refused, WrongServiceError) else Refusals.PROOF
            acceptor.refuse_client(connection, channel, topic, str(refused), answer=REFUSAL)

    async def _find_place(self, connection: PendingConnection, sought: str | None) -> ServicePlace | None:
        """Return the open place of a service, None for publishing, when a proof of this peer may be judged.

        Where clients may publish, that place explains to a client with a valid key that its service is unknown. Waits
        while the place has been claimed and is not open yet, until the front door evicts the connection.
        """
        while True:
            await self._front_door.wait_to_verify(connection.origin)
            place = self._holders.get(sought) or self._holders.get(None)
            if place is None or place.acceptor is not None:
                return place
            await self._changed.wait()

    def _describe_services(self) -> tuple[tuple[str, ...], int]:
        """Return the features that some service has, and the greatest number of keys of a service.

        CHALLENGE comes before the client names its service, so it offers the same for each.
        """
        if self._offer is None:
            specs = [place.spec for place in self._places if place.acceptor is not None]
            features = dict.fromkeys(name for spec in specs for name in spec.features)
            self._offer = (tuple(features), max((len(spec.named_keys) for spec in specs), default=1))
        return self._offer


class TunnelPorts:
    """All tunnel ports of one process."""

    def __init__(self, reactor: Reactor, front_door: FrontDoor) -> None:
        self._reactor = reactor
        self._front_door = front_door
        self._ports: dict[Address, TunnelPort] = {}  # by the address as it is written in the specs

    async def join(self, spec: TunnelSpec, predecessor: ServicePlace | None = None) -> ServicePlace:
        """Return a place on the port of a spec's tunnel address, which is bound unless another engine uses it.

        The caller has to ``leave``. A random port (0) is never shared. ``predecessor`` may hand over its data port.
        Raises NetError, with nothing changed.
        """
        address = spec.tunnel
        port = self._ports.get(address)
        if port is None:
            port = TunnelPort(self._reactor, self._front_door, partial(self._forget, address))
            if address.port:
                self._ports[address] = port
        return await port.join(spec, predecessor)

    def _forget(self, address: Address) -> None:
        self._ports.pop(address, None)


async def _expect(channel: ControlChannel, kind: Kind) -> bytes:
    got, payload = await channel.receive()
    if got is not kind:
        raise ProtocolError(f"received a {got.name} frame instead of {kind.name}")
    return payload

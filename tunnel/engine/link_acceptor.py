"""The listening side of a server: accepts control channels and data connections, authenticates them, creates links.

The tunnel port accepts both kinds and tells them apart by their first byte; the data port accepts data connections
alone. The accept loop only accepts: each connection authenticates in its own time, under the rules of ``FrontDoor``.
"""

from __future__ import annotations

import asyncio
import enum
import secrets
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

from tunnel.engine.control_channel import ChannelLostError, ControlChannel
from tunnel.engine.link import Link, LinkTerms
from tunnel.engine.pending import PendingConnection
from tunnel.engine.pool import DataConnection
from tunnel.model.events import EventKind
from tunnel.model.limits import configured_limits, default_limits
from tunnel.model.spec import Direction, Mode, TunnelSpec
from tunnel.protocol import preface
from tunnel.protocol.errors import HandshakeRefusedError, ProtocolError
from tunnel.protocol.frame_codec import encode_message
from tunnel.protocol.frames import Kind
from tunnel.protocol.handshake import REFUSAL, AuthenticatedClient, ServerHandshake
from tunnel.protocol.handshake_messages import LINK_ID_BYTES, Hello, Refusal, Welcome
from tunnel.protocol.replay import ReplayWindow
from tunnel.protocol.session import Negotiation, SessionRole
from tunnel.runtime import listeners, tls
from tunnel.runtime.acceptor import PENDING_ACCEPTS_PER_TURN, Acceptor

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Callable

    from tunnel.engine.context import EngineContext
    from tunnel.engine.key_ring import KeyRing
    from tunnel.engine.stats import Stats
    from tunnel.model.address import Address
    from tunnel.model.events import EventLog

_MAX_CLIENT_BYTES: Final = 1 << 15  # a client without a certificate sends less than 4 KB until it has authenticated
_MAX_UNDECIDED: Final = 16  # a decision may take two seconds, and the front door does not count those that wait for it


def _always_has_room() -> bool:
    """The front door makes room for each new connection."""
    return True


class _Refusals(enum.StrEnum):
    """Why connections are refused: the topics of warnings, none of which has text that a peer chooses."""

    SILENT = "silent"
    PREFACE = "preface"
    HANDSHAKE = "handshake"
    PROOF = "proof"
    OBJECTION = "objection"


class LinkAcceptorOwner(Protocol):
    """The engine, as its acceptor sees it."""

    def start_link(self, link: Link) -> None:
        """Take over the link of a client that has authenticated."""

    def on_client_refused(self, reason: str) -> None:
        """Show why a client cannot have the tunnel, while there is no link; at most once in a few seconds."""

    def on_handler_error(self, error: Exception) -> None:
        """End the engine because of a defect."""


class LinkAcceptor:
    """Owns the listeners and all pending connections of a server. A link belongs to the engine once it is made."""

    def __init__(
        self,
        spec: TunnelSpec,
        context: EngineContext,
        event_log: EventLog,
        stats: Stats,
        key_ring: KeyRing,
        owner: LinkAcceptorOwner,
    ) -> None:
        self._spec = spec
        self._reactor = context.reactor
        self._timing = context.timing
        self._event_log = event_log
        self._stats = stats
        self._identity = context.identity
        self._owner = owner
        self._direction = listeners.decide_direction(spec)
        self._front_door = context.front_door
        self.acceptors: dict[str, Acceptor] = {}
        """by purpose, as in ``listeners``"""
        self._handshakes: dict[PendingConnection, asyncio.Task[None]] = {}  # of control channels
        self._key_ring = key_ring
        self._has_key = spec.auth == "key"  # otherwise any peer authenticates
        self._link_decision = asyncio.Lock()
        self._undecided = 0  # clients that have authenticated and wait for the decision
        self._context: ssl.SSLContext
        self._certificate = b""
        self._link: Link | None = None
        self._link_instance = ""
        self._replay_window = ReplayWindow()
        self.address: str | None = None
        """where control channels are accepted, once they are"""
        self.data_addr: str | None = None
        """where data connections are accepted, if they have a port of their own"""
        self._data_port: int | None = None

    def update_spec(self, spec: TunnelSpec) -> None:
        """Use the settings of a changed spec from now on."""
        self._spec = spec

    async def open(self, bound: dict[str, socket.SocketType]) -> None:
        """Start to accept on the listeners in ``bound``, which are removed from it and owned here.

        Raises TlsError, and NetError while there is no thread for certificate or key.
        """
        await self._key_ring.load()
        self._context = await tls.server_context(self._spec, self._identity)
        self._certificate = tls.presented_certificate(self._context)
        addresses = listeners.listening_addresses(self._spec, None)
        tunnel = self._make_acceptor(bound.pop(listeners.TUNNEL), self._accept, addresses[listeners.TUNNEL])
        self.acceptors[listeners.TUNNEL] = tunnel
        self.address = tunnel.address
        if listeners.DATA in addresses:
            data = self._make_acceptor(bound.pop(listeners.DATA), self._accept_data, addresses[listeners.DATA])
            self.acceptors[listeners.DATA] = data
            self.data_addr, self._data_port = data.address, data.port

    def _make_acceptor(
        self, listener: socket.SocketType, on_accept: Callable[[socket.SocketType, object], None], asked: Address
    ) -> Acceptor:
        return Acceptor(
            self._reactor,
            listener,
            self._event_log,
            on_accept,
            _always_has_room,
            asked,
            accepts_per_turn=PENDING_ACCEPTS_PER_TURN,
        )

    def close(self) -> None:
        """Close the listeners and all pending connections. A link that was made stays."""
        for acceptor in self.acceptors.values():
            acceptor.close()
        self.acceptors.clear()
        self._front_door.evict_all(self, "the server is closing")
        for task in list(self._handshakes.values()):
            task.cancel()

    # --- pending connections ------------------------------------------------------------------------------------------

    def _accept(self, sock: socket.SocketType, peer: object) -> None:
        self._admit(PendingConnection(self, sock, peer, data_only=False))

    def _accept_data(self, sock: socket.SocketType, peer: object) -> None:
        connection = PendingConnection(self, sock, peer, data_only=True)
        connection.read()  # TCP_DEFER_ACCEPT: its first bytes have arrived, mostly the whole preface
        if connection.is_waiting:
            self._admit(connection)

    def _admit(self, connection: PendingConnection) -> None:
        self._front_door.admit(connection, connection.sock.fileno())
        self._reactor.register(connection.sock, connection.ready)

    def discard(self, connection: PendingConnection) -> None:
        """Close a connection whose peer closed it before it was authenticated."""
        self._front_door.release(connection)
        self._reactor.close(connection.sock)

    def on_evicted(self, connection: PendingConnection, reason: str) -> None:
        """Close a connection that the front door has removed."""
        self._stats.silent += 1
        if not self._event_log.suppresses(_Refusals.SILENT):
            text = f"closed a pending connection from {connection.peer}: {reason}"
            self._event_log.warn_throttled(EventKind.REFUSED, _Refusals.SILENT, text)
        handshake = self._handshakes.get(connection)
        if handshake is not None:
            handshake.cancel()
        else:
            self._reactor.close(connection.sock)

    def refuse_data_connection(self, connection: PendingConnection, reason: str) -> None:
        """Close, count and log a data connection, or what arrived in its place."""
        self._stats.refused_prefaces += 1
        if not self._event_log.suppresses(_Refusals.PREFACE):
            text = f"refused a connection from {connection.peer}: {reason}"
            self._event_log.warn_throttled(EventKind.REFUSED, _Refusals.PREFACE, text)
        self.discard(connection)

    # --- data connections ---------------------------------------------------------------------------------------------

    def check_preface(self, connection: PendingConnection, received: bytes) -> None:
        """Check a complete preface, and pool its connection."""
        link = self._link
        try:
            wire_id, ident, mac = preface.decode_preface(received)
            if link is None or link.channel.closed_reason is not None:
                raise ProtocolError("there is no link")
            if wire_id != link.wire_id:
                raise ProtocolError("a preface of another link")
            preface.check_preface(link.secret, ident, mac)
        except ProtocolError as error:
            self.refuse_data_connection(connection, str(error))
            return
        if not self._replay_window.accept(ident):
            self.refuse_data_connection(connection, "its id was used before")
        elif len(link.pool) >= link.session.limits.pool_max + self._spec.settings.signal_queue_limit:
            self.refuse_data_connection(connection, "the pool is full")
        elif (shortage := self._fd_shortage(connection.sock.fileno(), link)) is not None:
            self.refuse_data_connection(connection, shortage)
        else:
            self._add_to_pool(connection, link, ident)

    def _fd_shortage(self, fd: int, link: Link) -> str | None:
        """Why a link may not have another data connection, if descriptors are short; ``fd`` is the one opened last."""
        descriptors = self._reactor.fd_budget
        if fd < descriptors.ample_below:
            return None
        if not descriptors.allows_idle(fd, idle=link.pool.open_connections, wanted=link.own_pool_min):
            return f"enough are idle, and {descriptors}"
        if self._direction is Direction.FORWARD and descriptors.is_short(fd):
            return str(descriptors)  # pooled connections need theirs for targets
        return None

    def _add_to_pool(self, connection: PendingConnection, link: Link, ident: int) -> None:
        if connection.peer_closed:  # the client has closed it, and the reactor reports that only once
            self.discard(connection)
            return
        is_registered = self._front_door.release(connection, authenticated=self._has_key)
        pool = link.pool
        before = len(pool)
        pool.add(DataConnection(ident, connection.sock, link.flow_source, pool), is_registered=is_registered)
        link.session.send_pooled(ident)
        link.note_pool_grown(before)

    # --- control channels ---------------------------------------------------------------------------------------------

    def request_handshake(self, connection: PendingConnection) -> None:
        """Start the handshake of a control channel when the front door allows it."""
        self._front_door.request_handshake(connection, partial(self._start_handshake, connection))

    def refuse_closed(self, connection: PendingConnection) -> None:
        """Count and log a client that has closed its connection before its handshake could start."""
        self._count_refusal(connection, _Refusals.HANDSHAKE, "the other end closed the connection")
        self.discard(connection)

    def _start_handshake(self, connection: PendingConnection) -> None:
        session = tls.TlsSession(self._context, server_side=True)
        # The channel owns the socket from now on, not from the task's start: more bytes may arrive in this very turn.
        channel = ControlChannel(
            self._reactor,
            connection.sock,
            session,
            self._spec.settings.signal_buffer,
            connection.first_bytes,
            max_pending_bytes=_MAX_CLIENT_BYTES,
        )
        task = asyncio.get_running_loop().create_task(self._handshake(connection, channel))
        self._handshakes[connection] = task
        task.add_done_callback(lambda done: self._on_handshake_done(connection, done, channel))

    def _on_handshake_done(
        self, connection: PendingConnection, task: asyncio.Task[None], channel: ControlChannel
    ) -> None:
        del self._handshakes[connection]
        if task.cancelled():  # perhaps before its first step, and then it has closed nothing
            channel.close("the handshake was aborted")

    async def _handshake(self, connection: PendingConnection, channel: ControlChannel) -> None:
        made = False
        try:
            made = await self._authenticate(connection, channel)
        except (ChannelLostError, ProtocolError) as error:
            self._count_refusal(connection, _Refusals.HANDSHAKE, str(error))
        except HandshakeRefusedError as error:
            self._refuse_client(connection, channel, _Refusals.PROOF, str(error), answer=REFUSAL)
        except Exception as error:  # noqa: BLE001  a defect must reach the engine, not vanish in a task
            self._owner.on_handler_error(error)
        finally:
            self._front_door.release(connection)
            if not made:
                channel.close("the handshake was aborted")

    def _refuse_client(
        self, connection: PendingConnection, channel: ControlChannel, topic: _Refusals, reason: str, *, answer: str
    ) -> None:
        """Refuse a client that has sent a proof; ``answer`` is all that it learns."""
        text = self._count_refusal(connection, topic, reason)
        if text is not None:
            self._owner.on_client_refused(text)
        channel.send(encode_message(Refusal(answer)))

    def _count_refusal(self, connection: PendingConnection, topic: _Refusals, reason: str) -> str | None:
        """Count a refused client, and log it unless others of its kind were logged lately; what was logged."""
        self._stats.refused_handshakes += 1
        if self._event_log.suppresses(topic):
            return None
        text = f"refused a client from {connection.peer}: {reason}"
        self._event_log.warn_throttled(EventKind.REFUSED, topic, text, peer=connection.peer)
        return text

    async def _authenticate(self, connection: PendingConnection, channel: ControlChannel) -> bool:
        await channel.secure()
        handshake = ServerHandshake(self._spec.service, self._certificate, features=self._spec.features)
        channel.send(handshake.challenge())
        handshake.receive_hello(await _expect(channel, Kind.HELLO))
        proof = await _expect(channel, Kind.PROOF)
        await self._front_door.wait_to_verify(connection.origin)
        try:
            client = handshake.receive_proof(proof, self._key_ring.keys)
        except HandshakeRefusedError:
            self._front_door.note_wrong_proof(connection.origin)
            raise
        channel.note_authenticated()
        self._front_door.release(connection)  # it is no longer evicted
        if self._has_key:
            self._front_door.note_authenticated(connection.origin)
        return await self._decide(connection, channel, handshake, client)

    async def _decide(
        self,
        connection: PendingConnection,
        channel: ControlChannel,
        handshake: ServerHandshake,
        client: AuthenticatedClient,
    ) -> bool:
        """Make the link of a client that has authenticated, or refuse the client; return whether there is a link."""
        if self._undecided >= _MAX_UNDECIDED:
            objection: str | None = "too many other clients want this tunnel at this moment"
        else:
            self._undecided += 1
            try:
                async with self._link_decision:
                    channel.check_open()  # the wait may have been long: a closed channel must not replace a link
                    hello = client.hello
                    objection = self._check_key(client) or self._check_mode(hello)
                    objection = objection or await self._check_present_client(hello) or self._check_key(client)
                    if objection is None:
                        channel.check_open()
                        self._make_link(channel, handshake, client)
            finally:
                self._undecided -= 1
        if objection is not None:  # the client has authenticated, so it may learn the reason
            self._refuse_client(connection, channel, _Refusals.OBJECTION, objection, answer=objection)
        return objection is None

    def _check_key(self, client: AuthenticatedClient) -> str | None:
        return None if self._key_ring.accepts(client.key) else "its key was revoked at this moment"

    def _check_mode(self, hello: Hello) -> str | None:
        if hello.mode is Mode.AUTO or hello.mode.value == self._direction.value:
            return None
        return (
            f"the client has mode={hello.mode.value}, but the server decided {self._direction.value} "
            f"from its target {self._spec.target}; set mode= on the server"
        )

    async def _check_present_client(self, hello: Hello) -> str | None:
        """Why the client cannot have the tunnel: another client has it and answers.

        A client that returns (same instance) replaces its own old link at once.
        """
        link = self._link
        if link is None or link.channel.closed_reason is not None:
            return None
        if hello.instance == self._link_instance:
            link.close("the same client came back on a new connection")
            return None
        timing, four_round_trips_s = self._timing, 4 * (link.session.heartbeat.round_trip_s or 0.0)
        timeout_s = max(timing.liveness_timeout_s, min(timing.max_liveness_timeout_s, four_round_trips_s))
        if await link.answers(timeout_s):
            return f"another client, {link.channel.peer}, has this tunnel and answers"
        link.close(f"it did not answer within {timeout_s:.1f} s and another client wants the tunnel")
        return None

    def _make_link(self, channel: ControlChannel, handshake: ServerHandshake, client: AuthenticatedClient) -> None:
        spec, hello = self._spec, client.hello
        ours = configured_limits(spec.settings)
        welcome = Welcome(
            features=handshake.negotiate_features(),
            link=secrets.token_hex(LINK_ID_BYTES),
            direction=self._direction,
            data_port=self._data_port,
            carrier=hello.tls.carrier.or_stricter(spec.carrier),
            bounds=ours,
        )
        answer, secret = handshake.welcome(welcome)
        terms = LinkTerms(
            ident=welcome.link,
            secret=secret,
            direction=self._direction,
            carrier=welcome.carrier,
            features=welcome.features,
            key_name=client.key.name,
            role=SessionRole(is_client=False, is_ingress=self._direction is Direction.REVERSE),
            negotiation=Negotiation(ours, hello.bounds, default_limits(spec.settings)),
            report_interval_s=spec.settings.report_interval,
        )
        link = Link(terms, channel, self._reactor)
        self._link, self._link_instance, self._replay_window = link, hello.instance, ReplayWindow()
        channel.send(answer)
        self._owner.start_link(link)

    def on_handler_error(self, error: Exception) -> None:
        """Report a defect in a handler."""
        self._owner.on_handler_error(error)


async def _expect(channel: ControlChannel, kind: Kind) -> bytes:
    got, payload = await channel.receive()
    if got is not kind:
        raise ProtocolError(f"received a {got.name} frame instead of {kind.name}")
    return payload

"""What a server decides about its clients: authenticates them for its service, creates links, pools their connections.

The connections come from the ``TunnelPort`` of the server's address, which several servers may share.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING, Final, Protocol

from tunnel.engine.link import Link
from tunnel.engine.link_terms import LinkTerms
from tunnel.engine.pool import DataConnection
from tunnel.engine.refusals import Refusals
from tunnel.model.events import OTHER_SERVICE, EventKind
from tunnel.model.limits import configured_limits, default_limits
from tunnel.model.spec import DATAGRAMS, UDP, Direction, Mode, TunnelSpec, UdpCarrier, proto_of
from tunnel.protocol import preface
from tunnel.protocol.errors import HandshakeRefusedError, ProtocolError
from tunnel.protocol.frame_codec import encode_message
from tunnel.protocol.handshake import AuthenticatedClient
from tunnel.protocol.handshake_messages import LINK_ID_BYTES, Hello, Refusal, Welcome
from tunnel.protocol.replay import ReplayWindow
from tunnel.protocol.session import Negotiation, SessionRole
from tunnel.runtime import listeners, sockets, tls

if TYPE_CHECKING:
    from tunnel.engine.context import EngineContext
    from tunnel.engine.control_channel import ControlChannel
    from tunnel.engine.datagram_path import TunnelDatagrams
    from tunnel.engine.key_ring import KeyRing
    from tunnel.engine.pending import PendingConnection
    from tunnel.engine.service_place import ServicePlace
    from tunnel.engine.stats import Stats
    from tunnel.model.events import EventLog
    from tunnel.protocol.handshake import ServerHandshake

_MAX_UNDECIDED: Final = 16  # a decision may take two seconds, and the front door does not count those that wait for it


class LinkAcceptorOwner(Protocol):
    """The engine, as its acceptor sees it."""

    def start_link(self, link: Link) -> None:
        """Take over the link of a client that has authenticated."""

    def on_client_refused(self, reason: str) -> None:
        """Show why a client cannot have the tunnel, while there is no link; at most once in a few seconds."""

    def on_handler_error(self, error: Exception) -> None:
        """End the engine because of a defect."""


class _PresentLink:
    """A link of this server, and what checks its data connections."""

    __slots__ = ("instance", "link", "replay_window")

    def __init__(self, link: Link, instance: str) -> None:
        self.link = link
        self.instance = instance
        """the random id of the client"""
        self.replay_window = ReplayWindow()


class LinkAcceptor:
    """Judges the clients of one service. A link belongs to the engine once it is made."""

    def __init__(
        self,
        spec: TunnelSpec,
        context: EngineContext,
        event_log: EventLog,
        stats: Stats,
        key_ring: KeyRing,
        owner: LinkAcceptorOwner,
    ) -> None:
        self.event_log = event_log
        """of the tunnel; the port logs here what belongs to no service"""
        self._spec = spec
        self._reactor = context.reactor
        self._timing = context.timing
        self._stats = stats
        self._identity = context.identity
        self._owner = owner
        self._direction = listeners.decide_direction(spec)
        self._front_door = context.front_door
        self._place: ServicePlace | None = None
        self._key_ring = key_ring
        self._has_key = spec.auth == "key"  # otherwise any peer authenticates
        self._link_decision = asyncio.Lock()
        self._undecided = 0  # clients that have authenticated and wait for the decision
        self._judging: set[asyncio.Task[object]] = set()
        self._present: dict[bytes, _PresentLink] = {}  # by the id in the prefaces
        self.address: str | None = None
        """where control channels are accepted, once they are"""
        self.data_addr: str | None = None
        """where data connections are accepted, if they have a port of their own"""
        self._data_port: int | None = None
        self._datagrams: TunnelDatagrams | None = None

    def update_spec(self, spec: TunnelSpec) -> None:
        """Use the settings of a changed spec from now on."""
        self._spec = spec
        if self._place is not None:
            self._place.update_spec(spec)

    @property
    def place(self) -> ServicePlace | None:
        """Its place on the tunnel port, from ``open`` to ``close``."""
        return self._place

    @property
    def is_publishing(self) -> bool:
        """Whether this judges clients that publish, whatever their service is."""
        return bool(self._spec.publish_rules)

    @property
    def read_size(self) -> int:
        """Bytes to read at once from a control channel."""
        return self._spec.settings.signal_buffer

    async def open(self, place: ServicePlace) -> None:
        """Start to judge the clients that arrive at a place, which this acceptor owns once this has returned.

        Raises TlsError, and NetError while there is no thread for certificate or key.
        """
        await self._key_ring.load()
        place.open(self, await tls.server_context(self._spec, self._identity))
        self._place = place
        self.address, data = place.address, place.data_acceptor
        if data is not None:
            self.data_addr, self._data_port = data.address, data.port
        if DATAGRAMS in self._spec.features:
            self._open_datagrams(place)

    @property
    def _features(self) -> tuple[str, ...]:
        """The optional parts of the protocol that this end can use."""
        return tuple(name for name in self._spec.features if name != DATAGRAMS or self._datagrams is not None)

    def _open_datagrams(self, place: ServicePlace) -> None:
        """Carry datagrams on UDP, too, if the port is free there."""
        try:
            self._datagrams = place.port.open_datagrams()
        except OSError as error:
            reason = sockets.describe_bind_error(error)
            text = f"UDP cannot travel as datagrams, because UDP port {self.address} cannot be opened: {reason}"
            self.event_log.log_warn(EventKind.START, text)

    def close(self) -> None:
        """Leave the place, with the clients whose handshakes are not complete. A link that was made stays."""
        if self._place is not None:
            self._place.leave()
            self._place = None
        for task in list(self._judging):
            task.cancel()

    # --- what is refused ----------------------------------------------------------------------------------------------

    def count_silent(self, connection: PendingConnection, reason: str) -> None:
        """Count and log a connection that did not authenticate in time, or had to make room."""
        self._stats.silent += 1
        if not self.event_log.suppresses(Refusals.SILENT):
            text = f"closed a pending connection from {connection.peer}: {reason}"
            self.event_log.warn_throttled(EventKind.REFUSED, Refusals.SILENT, text)

    def count_refused_preface(self, connection: PendingConnection, reason: str) -> None:
        """Count and log a data connection that is refused, or what arrived in its place."""
        self._stats.refused_prefaces += 1
        if not self.event_log.suppresses(Refusals.PREFACE):
            text = f"refused a connection from {connection.peer}: {reason}"
            self.event_log.warn_throttled(EventKind.REFUSED, Refusals.PREFACE, text)

    def count_refusal(self, connection: PendingConnection, topic: Refusals, reason: str) -> str | None:
        """Count a refused client, and log it unless others of its kind were logged lately; what was logged."""
        self._stats.refused_handshakes += 1
        if self.event_log.suppresses(topic):
            return None
        text = f"refused a client from {connection.peer}: {reason}"
        mark = {OTHER_SERVICE: True} if topic is Refusals.SERVICE else {}
        self.event_log.warn_throttled(EventKind.REFUSED, topic, text, peer=connection.peer, **mark)
        return text

    def refuse_client(
        self, connection: PendingConnection, channel: ControlChannel, topic: Refusals, reason: str, *, answer: str
    ) -> None:
        """Refuse a client that has sent a proof; ``answer`` is all that it learns."""
        text = self.count_refusal(connection, topic, reason)
        if text is not None:
            self._owner.on_client_refused(text)
        self.send_refusal(channel, answer)

    @staticmethod
    def send_refusal(channel: ControlChannel, answer: str) -> None:
        """Tell a client no more than ``answer``."""
        channel.send(encode_message(Refusal(answer)))

    # --- data connections ---------------------------------------------------------------------------------------------

    def accept_data_connection(self, connection: PendingConnection, wire_id: bytes, ident: int, mac: bytes) -> None:
        """Pool a data connection whose preface names a link of this acceptor, if it belongs to it."""
        present = self._present.get(wire_id)
        try:
            if present is None or present.link.is_lost:
                raise ProtocolError("there is no link")
            link = present.link
            preface.check_preface(link.secret, ident, mac)
        except ProtocolError as error:
            self._refuse_data_connection(connection, str(error))
            return
        if not present.replay_window.accept(ident):
            self._refuse_data_connection(connection, "its id was used before")
        elif (idle := len(link.pool.idle)) >= link.session.limits.pool_max + self._spec.settings.signal_queue_limit:
            self._refuse_data_connection(connection, "the pool is full")
        elif (
            connection.sock.fileno() >= self._reactor.fd_budget.ample_below
            and (shortage := self._fd_shortage(connection.sock.fileno(), link)) is not None
        ):
            self._refuse_data_connection(connection, shortage)
        else:
            self._add_to_pool(connection, link, ident, idle)

    def _fd_shortage(self, fd: int, link: Link) -> str | None:
        """Why a link may not have another data connection, if descriptors are short; ``fd`` is the one opened last."""
        descriptors = self._reactor.fd_budget
        if not descriptors.allows_idle(fd, idle=link.pool.open_connections, wanted=link.own_pool_min):
            return f"enough are idle, and {descriptors}"
        if self._direction is Direction.FORWARD and descriptors.is_short(fd):
            return str(descriptors)  # pooled connections need theirs for targets
        return None

    def _refuse_data_connection(self, connection: PendingConnection, reason: str) -> None:
        self.count_refused_preface(connection, reason)
        connection.owner.discard(connection)

    def _add_to_pool(self, connection: PendingConnection, link: Link, ident: int, idle: int) -> None:
        """``idle`` is the number of connections that the pool has so far."""
        if connection.peer_closed:  # the client has closed it, and the reactor reports that only once
            connection.owner.discard(connection)
            return
        if connection.is_admitted:
            self._front_door.release(connection, authenticated=self._has_key)
        data = DataConnection(ident, connection.sock, link.flow_source, link.pool)
        link.pool.add(data, is_registered=connection.is_registered)
        link.session.send_pooled(ident)
        link.note_pool_grown(idle)

    # --- clients ------------------------------------------------------------------------------------------------------

    async def judge_client(
        self,
        connection: PendingConnection,
        channel: ControlChannel,
        handshake: ServerHandshake,
        proof: bytes,
        most_keys: int,
    ) -> bool:
        """Check the proof of a client, and make its link; return whether there is a link.

        The check costs what a service with ``most_keys`` keys costs. It comes before the first await, because the
        front door has just allowed it. Raises HandshakeRefusedError, ChannelLostError.
        """
        service = handshake.requested_service if self.is_publishing else self._spec.service
        handshake.select_service(service, self._features)
        try:
            client = handshake.receive_proof(proof, self._key_ring.keys, least_keys=most_keys)
        except HandshakeRefusedError:
            self._front_door.note_wrong_proof(connection.origin)
            raise
        channel.note_authenticated()
        self._front_door.release(connection)  # it is no longer evicted
        if self._has_key:
            self._front_door.note_authenticated(connection.origin)
        return await self._decide_in_task(connection, channel, handshake, client)

    async def adopt_client(
        self,
        connection: PendingConnection,
        channel: ControlChannel,
        handshake: ServerHandshake,
        client: AuthenticatedClient,
    ) -> bool:
        """Make the link of a client whose proof another acceptor of the port has checked, or refuse the client."""
        handshake.select_service(self._spec.service, self._features)
        own = AuthenticatedClient(client.hello, self._key_ring.find_equal(client.key))
        return await self._decide_in_task(connection, channel, handshake, own)

    async def _decide_in_task(
        self,
        connection: PendingConnection,
        channel: ControlChannel,
        handshake: ServerHandshake,
        client: AuthenticatedClient,
    ) -> bool:
        """Decide about a client that has authenticated; ``close`` cancels this."""
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a client is judged outside a task")
        self._judging.add(task)
        try:
            return await self._decide(connection, channel, handshake, client)
        finally:
            self._judging.discard(task)

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
                    checks = (self._check_publish, self._check_mode, self._check_proto, self._check_udp_carrier)
                    objection = self._check_key(client) or next(filter(None, (check(hello) for check in checks)), None)
                    objection = objection or await self._check_present_client(hello) or self._check_key(client)
                    if objection is None:
                        channel.check_open()
                        self._make_link(channel, handshake, client)
            finally:
                self._undecided -= 1
        if objection is not None:  # the client has authenticated, so it may learn the reason
            self.refuse_client(connection, channel, Refusals.OBJECTION, objection, answer=objection)
        return objection is None

    def _check_key(self, client: AuthenticatedClient) -> str | None:
        return None if self._key_ring.accepts(client.key) else "its key was revoked at this moment"

    def _check_publish(self, hello: Hello) -> str | None:
        if hello.publish is None or self._spec.published_by is not None:
            return None
        return "the client has publish=, but the server lets no client publish on this port; remove it"

    def _check_mode(self, hello: Hello) -> str | None:
        if hello.mode is Mode.AUTO or hello.mode.value == self._direction.value:
            return None
        return (
            f"the client has mode={hello.mode.value}, but the server decided {self._direction.value} "
            f"from its target {self._spec.target}; set mode= on the server"
        )

    def _check_proto(self, hello: Hello) -> str | None:
        """Return why client and server cannot forward together: their visitors do not speak the same."""
        if (client := proto_of(hello.features)) is self._spec.proto:
            return None
        return (
            f"the client has proto={client.value}, but the server {self._spec.proto.value}; write the same at both ends"
        )

    def _check_udp_carrier(self, hello: Hello) -> str | None:
        """Return why flows of UDP cannot travel as this server demands."""
        if UDP not in self._spec.features or self._spec.udp_carrier is not UdpCarrier.DATAGRAM:
            return None
        if self._datagrams is None:
            return f"this server has udp_carrier=datagram, but UDP port {self.address} cannot be opened"
        if DATAGRAMS not in hello.features:
            return "the server has udp_carrier=datagram, but the client sends no datagrams; write auto at both ends"
        return None

    async def _check_present_client(self, hello: Hello) -> str | None:
        """Why the client cannot have the tunnel: as many others as may be have it and answer.

        A client that returns (same instance) replaces its own old link at once.
        """
        for present in [one for one in self._present.values() if one.instance == hello.instance]:
            present.link.close("the same client came back on a new connection")
            self.forget_link(present.link)
        links = [one.link for one in self._present.values() if not one.link.is_lost]
        if len(links) < self._spec.clients:
            return None
        silent = sum(await asyncio.gather(*map(self._close_if_silent, links)))
        if len(links) - silent < self._spec.clients:  # which may have been lowered
            return None
        if self._spec.clients == 1:
            text = f"another client, {links[0].channel.peer}, has this tunnel and answers"
            return f"{text}; to serve both, write clients: 2 in the server's entry"
        return (
            f"{len(links) - silent} other clients have this tunnel and answer, as many as clients= of the server allows"
        )

    async def _close_if_silent(self, link: Link) -> bool:
        """Close a link whose client does not answer in time; return whether it did not."""
        timing, four_round_trips_s = self._timing, 4 * (link.session.heartbeat.round_trip_s or 0.0)
        timeout_s = max(timing.liveness_timeout_s, min(timing.max_liveness_timeout_s, four_round_trips_s))
        if await link.answers(timeout_s):
            return False
        link.close(f"it did not answer within {timeout_s:.1f} s and another client wants the tunnel")
        return True

    def forget_link(self, link: Link) -> None:
        """Refuse data connections of a link that is closed."""
        self._present.pop(link.wire_id, None)
        if self._place is not None:
            self._place.port.remove_link(link)

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
            weight=hello.weight,
            is_backup=hello.backup,
            mux=spec.mux,
        )
        link = Link(terms, channel, self._reactor)
        if DATAGRAMS in welcome.features and self._datagrams is not None:
            carries_all = spec.udp_carrier is UdpCarrier.DATAGRAM
            link.set_datagram_path(self._datagrams.create_path(link, self.event_log, carries_all=carries_all))
        if self._place is None:
            raise RuntimeError("a link is made for an acceptor that is closed")
        for closed in [one.link for one in self._present.values() if one.link.is_lost]:
            self.forget_link(closed)
        self._place.port.add_link(link, self)
        self._present[link.wire_id] = _PresentLink(link, hello.instance)
        channel.send(answer)
        self._owner.start_link(link)

    def on_handler_error(self, error: Exception) -> None:
        """Report a defect in a handler."""
        self._owner.on_handler_error(error)

"""The dialling side of a client: connects to the server, authenticates, creates the link and its pool filler."""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import TYPE_CHECKING, Final

from tunnel.engine.control_channel import ChannelLostError, ControlChannel
from tunnel.engine.key_ring import KeyRing
from tunnel.engine.link import Link
from tunnel.engine.link_terms import LinkTerms
from tunnel.engine.pool_filler import PoolFiller, ServerEndpoint
from tunnel.model.errors import TunnelError
from tunnel.model.limits import configured_limits, default_limits
from tunnel.model.spec import DATAGRAMS, UDP, DataTls, Direction, TunnelSpec, UdpCarrier
from tunnel.protocol.errors import HandshakeRefusedError, ProtocolError
from tunnel.protocol.frames import Kind
from tunnel.protocol.handshake import ClientHandshake
from tunnel.protocol.handshake_messages import Refusal
from tunnel.protocol.session import Negotiation, SessionRole
from tunnel.runtime import resolver, sockets, tls
from tunnel.runtime.connect_race import connect_to_first

if TYPE_CHECKING:
    import socket
    import ssl

    from tunnel.engine.context import EngineContext
    from tunnel.engine.handshake_slots import HandshakeSlot
    from tunnel.model.address import Address
    from tunnel.model.events import EventLog
    from tunnel.runtime.sockets import SockAddr

_HANDSHAKE_ROUND_TRIPS: Final = 4  # after that of TCP: TLS, challenge, proof, and one for a busy path
_SILENT_INTERVALS: Final = 3  # of REPORT_INTERVAL without acknowledgement: the kernel closes the connection


class LinkFailedError(TunnelError):
    """No link was established; the message is a sentence. ``is_final``: another attempt cannot help."""

    def __init__(self, message: str, *, is_final: bool = False) -> None:
        super().__init__(message)
        self.is_final = is_final


class LinkConnector:
    """Establishes the links of a client with one of its servers.

    Keeps what outlives a link: the instance id by which the server knows the client.
    """

    def __init__(self, spec: TunnelSpec, address: Address, context: EngineContext, event_log: EventLog) -> None:
        self._spec = spec
        self._address = address  # of the server
        self._reactor = context.reactor
        self._timeout_s = context.timing.handshake_timeout_s
        self._event_log = event_log
        self._instance = secrets.token_hex(8)
        self._server = resolver.DialTarget(address)
        self._key_ring = KeyRing(spec)
        self._slots = context.handshake_slots

    def update_spec(self, spec: TunnelSpec) -> None:
        """Use the settings of a changed spec from now on."""
        self._spec = spec

    async def connect(self) -> tuple[Link, PoolFiller]:
        """Make one attempt: connect, TLS, proof; in turn with others to the same server. Safe to cancel.

        Raises LinkFailedError.
        """
        spec = self._spec
        try:
            context = await tls.client_context(spec)
            await self._key_ring.load()
        except tls.TlsError as error:
            raise LinkFailedError(str(error), is_final=True) from None
        except sockets.NetError as error:  # no thread for certificates or key: a later attempt may have one
            raise LinkFailedError(str(error)) from None
        async with self._slots.slot(self._address) as slot:
            return await self._attempt(context, slot)

    async def _attempt(self, context: ssl.SSLContext, slot: HandshakeSlot) -> tuple[Link, PoolFiller]:
        spec = self._spec
        channel: ControlChannel | None = None
        sockaddr: SockAddr | None = None
        started_at = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(self._timeout_s) as limit:
                session = tls.TlsSession(context, server_side=False, host=self._verified_name())
                sock, sockaddr, round_trip_s = await self._dial()
                slow_end = asyncio.get_running_loop().time() + _HANDSHAKE_ROUND_TRIPS * round_trip_s
                limit.reschedule(max(limit.when() or 0.0, slow_end))
                channel = ControlChannel(self._reactor, sock, session, spec.settings.signal_buffer)
                await slot.note_connected()
                link = await self._authenticate(channel, sockaddr, round_trip_s)
                self._server.prefer(sockaddr)  # not before: a frozen or another server accepts connections too
                return link
        except BaseException as error:
            if channel is not None:
                channel.close("the handshake was aborted")
            if sockaddr is not None:
                self._server.defer(sockaddr)
            if isinstance(error, TimeoutError):
                waited_s = asyncio.get_running_loop().time() - started_at
                raise LinkFailedError(f"the server {self._address} did not answer within {waited_s:.2g} s") from None
            if isinstance(error, tls.TlsError):
                is_final = not self._server.has_alternatives
                raise LinkFailedError(f"no link with {self._address}: {error}", is_final=is_final) from None
            if isinstance(error, ChannelLostError):
                raise LinkFailedError(f"no link with {self._address}: {error}") from None
            if isinstance(error, (HandshakeRefusedError, ProtocolError)):
                hint = "; this client has no key" if isinstance(error, HandshakeRefusedError) and not spec.key else ""
                raise LinkFailedError(f"no link with {self._address}: {error}{hint}") from None
            raise

    def _verified_name(self) -> str | None:
        """The name that the server's certificate has to be for; None where it is not verified."""
        if self._spec.data_tls is not DataTls.VERIFIED:
            return None
        return self._address.host.partition("%")[0] or "localhost"  # no zone; an empty host is dialled on this host

    async def _dial(self) -> tuple[socket.SocketType, SockAddr, float]:
        """Connect to the server: the socket, its remote address, the duration of the TCP handshake in seconds."""
        spec = self._spec
        try:
            candidates = await self._server.resolve()
            started_at = time.monotonic()
            sock, sockaddr = await connect_to_first(self._reactor, candidates)
        except OSError as error:
            reason = sockets.describe_connect_error(error)
            raise LinkFailedError(f"cannot connect to the server {self._address}: {reason}") from None
        sockets.set_user_timeout(sock, _SILENT_INTERVALS * spec.settings.report_interval)
        return sock, sockaddr, time.monotonic() - started_at

    async def _authenticate(
        self, channel: ControlChannel, sockaddr: SockAddr, round_trip_s: float
    ) -> tuple[Link, PoolFiller]:
        spec = self._spec
        certificate = await channel.secure()
        [key] = self._key_ring.keys
        handshake = ClientHandshake(key, spec.service, certificate, features=spec.features)
        handshake.receive_challenge(await _receive(channel, Kind.CHALLENGE))
        ours = configured_limits(spec.settings)
        channel.send(
            handshake.hello(
                instance=self._instance,
                mode=spec.mode,
                tls=spec.data_tls,
                bounds=ours,
                weight=spec.weight,
                backup=spec.backup,
                publish=spec.publish,
            )
        )
        handshake.receive_welcome(await _receive(channel, Kind.WELCOME))
        welcome, secret = handshake.receive_proof(await _receive(channel, Kind.PROOF))
        channel.note_authenticated()
        terms = LinkTerms(
            ident=welcome.link,
            secret=secret,
            direction=welcome.direction,
            carrier=welcome.carrier,
            features=welcome.features,
            role=SessionRole(is_client=True, is_ingress=welcome.direction is Direction.FORWARD),
            negotiation=Negotiation(ours, welcome.bounds, default_limits(spec.settings)),
            report_interval_s=spec.settings.report_interval,
            weight=spec.weight,
            is_backup=spec.backup,
            server=self._address,
            mux=spec.mux,
        )
        link = Link(terms, channel, self._reactor)
        self._add_datagram_path(link, sockaddr)
        endpoint = ServerEndpoint(sockaddr, welcome.data_port, round_trip_s)
        return link, PoolFiller(link, self._reactor, self._event_log, endpoint)

    def _add_datagram_path(self, link: Link, server: SockAddr) -> None:
        """Give a link its path for datagrams if both ends want it. Raises ProtocolError if this end needs one alone."""
        carrier = self._spec.udp_carrier
        if DATAGRAMS in link.features:
            from tunnel.engine.datagram_path import ClientPath  # noqa: PLC0415  the cipher, only where it is used

            carries_all = carrier is UdpCarrier.DATAGRAM
            link.set_datagram_path(ClientPath(link, self._reactor, self._event_log, server, carries_all=carries_all))
        elif UDP in link.features and carrier is UdpCarrier.DATAGRAM:
            raise ProtocolError("this client has udp_carrier=datagram, but the server sends no datagrams; write auto")


async def _receive(channel: ControlChannel, expected: Kind) -> bytes:
    """The payload of the next frame. Raises ProtocolError and HandshakeRefusedError."""
    kind, payload = await channel.receive()
    if kind is Kind.REFUSED:
        raise HandshakeRefusedError(f"the server answers: {Refusal.decode(payload).reason}")
    if kind is not expected:
        raise ProtocolError(f"received a {kind.name} frame instead of {expected.name}")
    return payload

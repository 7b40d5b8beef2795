"""A client: makes the link by dialling the server, and keeps its pool filled by dialling data connections."""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import TYPE_CHECKING, Final

from tunnel.engine.channel import Channel, ChannelLostError
from tunnel.engine.link import Link
from tunnel.engine.pool_filler import Filler
from tunnel.model.limits import bounds_of, defaults_of
from tunnel.model.spec import DataTls, Direction, Mode, TunnelSpec
from tunnel.protocol.frames import Kind, ProtocolError, decode_text
from tunnel.protocol.handshake import ClientHandshake, RefusedError
from tunnel.runtime import sockets, tls
from tunnel.runtime.reactor import FAILED

if TYPE_CHECKING:
    import socket

    from tunnel.model.events import Journal
    from tunnel.runtime.reactor import Reactor
    from tunnel.runtime.sockets import SockAddr

HANDSHAKE_LIMIT: Final = 10.0
"""Seconds for connecting, TLS and the proof together."""


class LinkFailedError(Exception):
    """No link came about; the message is a sentence. ``final``: trying again cannot help."""

    def __init__(self, message: str, *, final: bool = False) -> None:
        super().__init__(message)
        self.final = final


class Client:
    """Makes links. Keeps what outlives one: the identity by which the server knows it again."""

    def __init__(self, spec: TunnelSpec, reactor: Reactor, journal: Journal) -> None:
        self._spec = spec
        self._reactor = reactor
        self._journal = journal
        self._instance = secrets.token_hex(8)
        self._server = sockets.Dialled(spec.tunnel)

    def respec(self, spec: TunnelSpec) -> None:
        """Settings have changed."""
        self._spec = spec

    async def connect(self) -> tuple[Link, Filler]:
        """One attempt: connect, TLS, proof. Raises LinkFailedError."""
        spec = self._spec
        try:
            context = tls.client_context(spec)
        except tls.TlsError as error:
            raise LinkFailedError(str(error), final=True) from None
        channel: Channel | None = None
        try:
            async with asyncio.timeout(HANDSHAKE_LIMIT):
                sock, sockaddr, round_trip = await self._dial()
                verify = spec.data_tls is DataTls.VERIFIED
                session = tls.TlsSession(context, server_side=False, host=spec.tunnel.host if verify else None)
                channel = Channel(self._reactor, sock, session, spec.settings.signal_buffer)
                return await self._greet(channel, sockaddr, round_trip)
        except BaseException as error:
            if channel is not None:
                channel.close("the handshake was broken off")
            if isinstance(error, TimeoutError):
                raise LinkFailedError(f"the server {spec.tunnel} did not answer within {HANDSHAKE_LIMIT:g} s") from None
            if isinstance(error, ChannelLostError):
                raise LinkFailedError(f"the server {spec.tunnel} ended the handshake: {error}") from None
            if isinstance(error, (RefusedError, ProtocolError)):
                raise LinkFailedError(f"no link with {spec.tunnel}: {error}") from None
            raise

    async def _dial(self) -> tuple[socket.SocketType, SockAddr, float]:
        """A connection to the server, to which address it is, and the seconds that TCP's handshake took."""
        spec = self._spec
        try:
            candidates = await self._server.refresh()
        except OSError as error:
            raise LinkFailedError(f"cannot connect to the server {spec.tunnel}: {sockets.describe(error)}") from None
        problem: OSError = OSError("it has no address")
        for family, sockaddr in candidates:
            began = time.monotonic()
            try:
                sock = sockets.begin_connect(family, sockaddr)
            except OSError as error:
                problem = error
                continue
            try:
                await _writable(self._reactor, sock)
            except OSError as error:
                problem = error
                self._reactor.close(sock)
                continue
            except BaseException:
                self._reactor.close(sock)
                raise
            self._server.answered(sockaddr)
            sockets.limit_silence(sock, 3 * spec.settings.report_interval)
            return sock, sockaddr, time.monotonic() - began
        raise LinkFailedError(f"cannot connect to the server {spec.tunnel}: {sockets.describe(problem)}")

    async def _greet(self, channel: Channel, sockaddr: SockAddr, round_trip: float) -> tuple[Link, Filler]:
        spec = self._spec
        certificate = await channel.secure()
        handshake = ClientHandshake(spec.key, certificate)
        handshake.hear_challenge(await _expect(channel, Kind.CHALLENGE))
        ours = bounds_of(spec.settings)
        channel.send(
            handshake.hello(
                instance=self._instance, mode=spec.mode, data_tls=spec.data_tls is not DataTls.OFF, bounds=ours
            )
        )
        handshake.hear_welcome(await _expect(channel, Kind.WELCOME))
        welcome, secret = handshake.hear_proof(await _expect(channel, Kind.PROOF))
        if spec.mode is not Mode.AUTO and spec.mode.value != welcome.direction.value:
            raise ProtocolError(f"this end has mode={spec.mode} and the server decided {welcome.direction}")
        link = Link(
            ident=welcome.link,
            secret=secret,
            direction=welcome.direction,
            channel=channel,
            reactor=self._reactor,
            at_entrance=welcome.direction is Direction.FORWARD,
            data_tls=welcome.data_tls,
        )
        link.agree(ours, welcome.bounds, defaults_of(spec.settings))
        filler = Filler(link, self._reactor, self._journal, sockaddr, round_trip, welcome.data_port, certificate)
        return link, filler


async def _expect(channel: Channel, kind: Kind) -> bytes:
    got, payload = await channel.receive()
    if got is Kind.REFUSED:
        raise RefusedError(f"the server says: {decode_text(payload)}")
    if got is not kind:
        raise ProtocolError(f"a {got.name} frame where {kind.name} belongs")
    return payload


async def _writable(reactor: Reactor, sock: socket.SocketType) -> None:
    """Wait until a connection attempt is over. Raises OSError."""
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def ready(events: int) -> None:
        if not done.done():
            error = sockets.connect_error(sock) if events & FAILED else None
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(error)

    reactor.register(sock, ready)
    await done

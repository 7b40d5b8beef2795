"""A server: listens for control channels and data connections, lets in who proves itself, makes the link.

The tunnel port takes both, told apart by their first byte; the data port takes data connections alone. Nothing is
done in the accept loop but accepting: every newcomer proves itself in its own time, watched by ``Strangers``.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING, Final, Protocol

from tunnel.engine.admission import Strangers
from tunnel.engine.channel import Channel, ChannelLostError
from tunnel.engine.link import Link
from tunnel.engine.pool import DataConnection
from tunnel.model.limits import bounds_of, defaults_of
from tunnel.model.spec import DataTls, Direction, Mode, TunnelSpec
from tunnel.protocol import frames
from tunnel.protocol.frames import Kind, Once, ProtocolError
from tunnel.protocol.handshake import REFUSAL, Hello, RefusedError, ServerHandshake, Welcome
from tunnel.runtime import listeners, sockets, tls
from tunnel.runtime.acceptor import Acceptor
from tunnel.runtime.reactor import ENDING, READ

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Callable

    from tunnel.engine.stats import Stats
    from tunnel.model.events import Journal
    from tunnel.model.spec import Address
    from tunnel.runtime.reactor import Reactor

LIFE_SIGN: Final = 0.3
"""Seconds in which the present client has to answer when another one wants its tunnel; four round trips if they are
more, and two seconds at the most."""


def _always() -> bool:
    """There is always room for a newcomer: ``Strangers`` makes it."""
    return True


class LinkTaker(Protocol):
    """The engine, as its server sees it."""

    def link_made(self, link: Link) -> None:
        """A client has proven itself and has this link."""

    def crashed(self, error: Exception) -> None:
        """A defect."""


class Newcomer:
    """A connection whose first bytes are awaited, or whose proof is under way. Owns its socket until then."""

    __slots__ = (
        "_data_only",
        "_got",
        "_hung",
        "_peer",
        "_server",
        "_session",
        "_shown",
        "ident",
        "settled",
        "sock",
        "task",
        "watched",
    )

    def __init__(self, server: Server, sock: socket.SocketType, peer: object, *, data_only: bool) -> None:
        self.sock = sock
        self.settled = False
        """whether it is known what becomes of it"""
        self.watched = False
        """whether the reactor watches its socket"""
        self.task: asyncio.Task[None] | None = None
        self.ident: int | None = None
        self._peer = peer
        self._server = server
        self._data_only = data_only
        self._got = b""
        self._shown = b""
        self._session: tls.TlsSession | None = None
        self._hung = False

    @property
    def peer(self) -> str:
        """Where it comes from."""
        return sockets.show(self._peer)

    @property
    def address(self) -> str:
        """The same without the port."""
        return self.peer.rpartition(":")[0]

    def ready(self, events: int) -> None:
        """Handler until it is known what this is, and for data connections until the proof is complete."""
        if events & ENDING:
            self._hung = True
        if events & READ:
            self.read()

    def read(self) -> None:
        """Take what there is, and go on with the proof."""
        try:
            if self._session is not None:
                self._go_on_securing(self._session)
                return
            while len(self._got) < frames.PREFACE_SIZE:
                data = self.sock.recv(frames.PREFACE_SIZE - len(self._got))
                if not data:
                    self._server.left(self)
                    return
                self._got += data
                if self._got[0] == frames.TLS_HANDSHAKE_BYTE and not self._data_only:
                    self._server.greet(self, self._got)
                    return
        except BlockingIOError:
            return
        except (OSError, tls.TlsError) as error:
            self._server.refuse_data(self, sockets.describe(error))
            return
        self._server.check_preface(self, self._got)

    def secure(self, ident: int, context: ssl.SSLContext) -> None:
        """The preface was genuine: now TLS, and the proof inside it."""
        self.ident = ident
        self._session = tls.TlsSession(context, server_side=True)
        self.read()

    def _go_on_securing(self, session: tls.TlsSession) -> None:
        if self.ident is None:
            return
        session.feed_from(self.sock)
        if not session.ready:
            session.handshake()
            self.sock.send(session.take())
        if session.ready:
            size = frames.DATA_TLS_PROOF_SIZE - len(self._shown)
            proof = memoryview(bytearray(size))
            self._shown += bytes(proof[: session.read_into(proof)])
            if len(self._shown) == frames.DATA_TLS_PROOF_SIZE:
                self._server.check_proof(self, self.ident, self._shown, session)

    @property
    def hung(self) -> bool:
        """Whether the other end has finished already."""
        return self._hung

    def dismiss(self, why: str) -> None:
        """Close it: it was silent for too long, or others need its place."""
        self._server.dismissed(self, why)

    def crashed(self, error: Exception) -> None:
        """A defect in the handler."""
        self._server.crashed(error)


class Server:
    """The listening side of a tunnel. Owns its listeners and all newcomers; links are the engine's once made."""

    dials = False

    def __init__(
        self,
        spec: TunnelSpec,
        reactor: Reactor,
        journal: Journal,
        stats: Stats,
        identity: tls.Identity,
        taker: LinkTaker,
    ) -> None:
        self._spec = spec
        self._reactor = reactor
        self._journal = journal
        self._stats = stats
        self._identity = identity
        self._taker = taker
        self._direction = sockets.direction_of(spec)
        self._strangers = Strangers(reactor.descriptors.limit)
        self.acceptors: dict[str, Acceptor] = {}
        """by purpose, as in ``listeners``"""
        self._tasks: set[asyncio.Task[None]] = set()
        self._deciding = asyncio.Lock()
        self._context: ssl.SSLContext
        self._certificate = b""
        self._link: Link | None = None
        self._link_instance = ""
        self._once = Once()
        self.address: str | None = None
        """where control channels are accepted, once that is so"""
        self.data_addr: str | None = None
        """where data connections are accepted beside it"""
        self._data_port: int | None = None

    def respec(self, spec: TunnelSpec) -> None:
        """Settings have changed."""
        self._spec = spec

    async def open(self, bound: dict[str, socket.SocketType]) -> None:
        """Begin to accept on listeners that are bound, which it takes out of ``bound``. Raises TlsError."""
        self._context = await tls.server_context(self._spec, self._identity)
        self._certificate = tls.own_certificate(self._context)
        addresses = listeners.wanted(self._spec, None)
        tunnel = self._accept(bound.pop(listeners.TUNNEL), self._arrive, addresses[listeners.TUNNEL])
        self.acceptors[listeners.TUNNEL] = tunnel
        self.address = tunnel.address
        if listeners.DATA in addresses:
            data = self._accept(bound.pop(listeners.DATA), self._arrive_for_data, addresses[listeners.DATA])
            self.acceptors[listeners.DATA] = data
            self.data_addr, self._data_port = data.address, data.port

    def _accept(
        self, listener: socket.SocketType, take: Callable[[socket.SocketType, object], None], asked: Address
    ) -> Acceptor:
        return Acceptor(self._reactor, listener, self._journal, take, _always, asked)

    def close(self) -> None:
        """Give the addresses up and send all newcomers away. A link that was made goes on."""
        for acceptor in self.acceptors.values():
            acceptor.close()
        self.acceptors.clear()
        self._strangers.dismiss_all("the server is closing")
        for task in list(self._tasks):
            task.cancel()

    # --- newcomers ------------------------------------------------------------------------------------------------

    def _arrive(self, sock: socket.SocketType, peer: object) -> None:
        self._admit(Newcomer(self, sock, peer, data_only=False))

    def _arrive_for_data(self, sock: socket.SocketType, peer: object) -> None:
        newcomer = Newcomer(self, sock, peer, data_only=True)
        newcomer.read()  # the kernel hands it over with its first bytes, mostly the whole preface
        if not newcomer.settled:
            self._admit(newcomer)

    def _admit(self, newcomer: Newcomer) -> None:
        newcomer.watched = True
        self._strangers.admit(newcomer)
        self._reactor.register(newcomer.sock, newcomer.ready)

    def left(self, newcomer: Newcomer) -> None:
        """It went away without having said enough."""
        newcomer.settled = True
        self._strangers.release(newcomer)
        self._reactor.close(newcomer.sock)

    def dismissed(self, newcomer: Newcomer, why: str) -> None:
        """It is sent away by ``Strangers``."""
        self._stats.silent += 1
        self._journal.complain("refused", "silent", f"closed an unproven connection from {newcomer.peer}: {why}")
        if newcomer.task is not None:
            newcomer.task.cancel()
        else:
            self._reactor.close(newcomer.sock)

    def refuse_data(self, newcomer: Newcomer, why: str) -> None:
        """A data connection, or what came instead of one, is not let in."""
        self._stats.refused_prefaces += 1
        self._journal.complain("refused", "preface", f"refused a data connection from {newcomer.peer}: {why}")
        self.left(newcomer)

    # --- data connections -----------------------------------------------------------------------------------------

    def check_preface(self, newcomer: Newcomer, preface: bytes) -> None:
        """The preface is complete."""
        link, descriptors = self._link, self._reactor.descriptors
        if link is None or link.channel.loss is not None:
            self.refuse_data(newcomer, "there is no link")
            return
        try:
            ident = frames.decode_preface(link.secret, preface)
        except ProtocolError as error:
            self.refuse_data(newcomer, str(error))
            return
        if not self._once.accept(ident):
            self.refuse_data(newcomer, "its id was used before")
        elif len(link.pool) >= link.limits.pool_max + self._spec.settings.signal_queue_limit:
            self.refuse_data(newcomer, "the pool is full")
        elif self._direction is Direction.FORWARD and descriptors.are_scarce(newcomer.sock.fileno()):
            self.refuse_data(newcomer, str(descriptors))  # the rest is for the targets of those in the pool
        elif link.data_tls:
            newcomer.secure(ident, self._context)
        else:
            self._pool(newcomer, link, ident, None)

    def check_proof(self, newcomer: Newcomer, ident: int, proof: bytes, session: tls.TlsSession) -> None:
        """The proof inside TLS is complete."""
        link = self._link
        if link is None or link.channel.loss is not None:
            self.refuse_data(newcomer, "there is no link")
        elif not secrets.compare_digest(proof, frames.data_tls_proof(link.secret, ident)):
            self.refuse_data(newcomer, "a wrong proof inside TLS")
        else:
            self._pool(newcomer, link, ident, session)

    def _pool(self, newcomer: Newcomer, link: Link, ident: int, session: tls.TlsSession | None) -> None:
        if newcomer.hung:  # the client has given it up, and the reactor will not say so again
            self.left(newcomer)
            return
        newcomer.settled = True
        self._strangers.release(newcomer)
        pool = link.pool
        before = len(pool)
        pool.add(DataConnection(ident, newcomer.sock, session, pool), watched=newcomer.watched)
        link.say_pooled(ident)
        link.note_pooled(before)

    # --- control channels -----------------------------------------------------------------------------------------

    def greet(self, newcomer: Newcomer, first: bytes) -> None:
        """It speaks TLS: it wants to make a link."""
        session = tls.TlsSession(self._context, server_side=True)
        # The channel takes the socket over now, not in the task: the rest of the greeting may come in this very turn.
        channel = Channel(self._reactor, newcomer.sock, session, self._spec.settings.signal_buffer, first)
        task = asyncio.get_running_loop().create_task(self._handshake(newcomer, channel))
        newcomer.task = task
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._broken_off(done, channel))

    def _broken_off(self, task: asyncio.Task[None], channel: Channel) -> None:
        self._tasks.discard(task)
        if task.cancelled():  # perhaps before its first step, and then it closed nothing
            channel.close("the handshake was broken off")

    async def _handshake(self, newcomer: Newcomer, channel: Channel) -> None:
        made = False
        try:
            made = await self._prove(newcomer, channel)
        except (ChannelLostError, ProtocolError) as error:
            self._refuse(newcomer, channel, str(error), told=None)
        except RefusedError as error:
            self._refuse(newcomer, channel, str(error), told=REFUSAL)
        except Exception as error:  # noqa: BLE001  a defect met by one newcomer must reach the engine, not vanish in a task
            self._taker.crashed(error)
        finally:
            self._strangers.release(newcomer)
            if not made:
                channel.close("the handshake was broken off")

    def _refuse(self, newcomer: Newcomer, channel: Channel, why: str, told: str | None) -> None:
        self._stats.refused_handshakes += 1
        self._journal.complain("refused", why, f"refused a client from {newcomer.peer}: {why}", peer=newcomer.peer)
        if told is not None:
            channel.send(frames.encode_text(Kind.REFUSED, told))

    async def _prove(self, newcomer: Newcomer, channel: Channel) -> bool:
        await channel.secure()
        handshake = ServerHandshake(self._spec.key, self._certificate)
        channel.send(handshake.challenge())
        handshake.hear_hello(await _expect(channel, Kind.HELLO))
        hello = handshake.hear_proof(await _expect(channel, Kind.PROOF))
        self._strangers.release(newcomer)  # known from here on, and no longer dismissed
        async with self._deciding:
            objection = self._objection(hello) or await self._rival(hello)
            if objection is not None:
                self._refuse(newcomer, channel, objection, told=objection)
                return False
            if channel.loss is not None:
                raise ChannelLostError(channel.loss)
            self._make_link(channel, handshake, hello)
        return True

    def _objection(self, hello: Hello) -> str | None:
        if hello.mode is Mode.AUTO or hello.mode.value == self._direction.value:
            return None
        return (
            f"the client has mode={hello.mode.value}, but the server decided {self._direction.value} "
            f"from its target {self._spec.target}; set mode= on the server"
        )

    async def _rival(self, hello: Hello) -> str | None:
        """Whether another client, that lives, has the link; one that returns takes over from itself at once."""
        link = self._link
        if link is None or link.channel.loss is not None:
            return None
        if hello.instance == self._link_instance:
            link.close("the same client came back on a new connection")
            return None
        patience = max(LIFE_SIGN, min(2.0, 4 * (link.rtt or 0.0)))
        if await link.answers(patience):
            return f"another client, {link.channel.peer}, has this tunnel and answers"
        link.close(f"it did not answer within {patience:.1f} s and another client is here")
        return None

    def _make_link(self, channel: Channel, handshake: ServerHandshake, hello: Hello) -> None:
        spec = self._spec
        ours = bounds_of(spec.settings)
        welcome = Welcome(
            link=secrets.token_hex(8),
            direction=self._direction,
            data_port=self._data_port,
            data_tls=hello.data_tls or spec.data_tls is not DataTls.OFF,
            bounds=ours,
        )
        frames, secret = handshake.welcome(welcome)
        link = Link(
            ident=welcome.link,
            secret=secret,
            direction=self._direction,
            channel=channel,
            reactor=self._reactor,
            at_entrance=self._direction is Direction.REVERSE,
            data_tls=welcome.data_tls,
        )
        link.agree(ours, hello.bounds, defaults_of(spec.settings))
        link.data_addr = self.data_addr or self.address
        self._link, self._link_instance, self._once = link, hello.instance, Once()
        channel.send(frames)
        self._taker.link_made(link)

    # --- what a link asks of its maker ----------------------------------------------------------------------------

    def pooled(self, idents: tuple[int, ...]) -> None:
        """Only servers say this."""
        raise ProtocolError("a client that pools")

    def queued(self, count: int) -> None:
        """Only servers say this."""
        raise ProtocolError("a client that queues")

    def taken(self, count: int) -> None:
        """The client sees to the pool."""

    def crashed(self, error: Exception) -> None:
        """A defect in a handler."""
        self._taker.crashed(error)


async def _expect(channel: Channel, kind: Kind) -> bytes:
    got, payload = await channel.receive()
    if got is not kind:
        raise ProtocolError(f"a {got.name} frame where {kind.name} belongs")
    return payload

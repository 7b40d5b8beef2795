"""What strangers do at a server's door, and that nothing of it stays."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from tests.support.engine_parts import Events, no_descriptor_leak, shared_parts
from tests.support.scale import GUARD_S
from tests.support.sockets import close_with_reset
from tests.support.waiting import run_loop_turns, wait_until_async
from tunnel.engine import server
from tunnel.engine.admission import AdmissionLimits, PendingConnections
from tunnel.engine.channel import ControlChannel
from tunnel.engine.context import EngineContext
from tunnel.engine.link import Link
from tunnel.engine.server import LinkAcceptor
from tunnel.engine.stats import Stats
from tunnel.model.address import Address
from tunnel.model.limits import ConfiguredLimits
from tunnel.model.spec import Direction, Key, Mode, Role, TunnelSpec
from tunnel.protocol import frames
from tunnel.protocol.frames import Frame, Kind
from tunnel.protocol.handshake import ClientHandshake
from tunnel.runtime import listeners, tls

KEY = Key("a shared key of some length")


@dataclass
class Taker:
    """The engine as a server sees it, and the entrance as its link sees it."""

    server: LinkAcceptor | None = None
    links: list[Link] = field(default_factory=list)
    defects: list[Exception] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    def link_made(self, link: Link) -> None:
        self.links.append(link)
        assert self.server is not None
        link.begin(self, self.server, self, 60.0)

    def on_handler_error(self, error: Exception) -> None:
        self.defects.append(error)

    def link_changed(self, link: Link) -> None:
        """Nothing follows from it here."""

    def link_lost(self, link: Link, reason: str) -> None:
        self.lost.append(f"{link.ident}: {reason}")

    def launch(self, idents: tuple[int, ...]) -> None:
        raise AssertionError(idents)

    def ended(self, ident: int, total: int) -> None:
        raise AssertionError((ident, total))

    def failed(self, ident: int, reason: str) -> None:
        """No visitor is launched here."""

    def pooled(self) -> None:
        """Nobody waits."""


class Door:
    """A server that listens, and what it has told."""

    def __init__(self, shared: EngineContext, spec: TunnelSpec) -> None:
        self.shared = shared
        self.spec = spec
        self.taker = Taker()
        self.events = Events()
        self.stats = Stats()
        self.server = LinkAcceptor(
            spec, shared.reactor, self.events.event_log(), self.stats, shared.identity, self.taker
        )
        self.taker.server = self.server

    async def open(self) -> None:
        await self.server.open(await listeners.bind(self.spec, listeners.listening_addresses(self.spec, None)))
        self.tunnel = ("127.0.0.1", self.server.acceptors[listeners.TUNNEL].port)
        self.data = ("127.0.0.1", self.server.acceptors[listeners.DATA].port)

    def knock(self, where: tuple[str, int], data: bytes = b"") -> socket.socket:
        """Connect and say something, without the server's having had a turn."""
        sock = socket.create_connection(where)
        sock.setblocking(False)
        if data:
            sock.send(data)
        return sock

    @property
    def idle(self) -> bool:
        """Whether nobody but the listeners is watched."""
        return len(self.shared.reactor) == len(self.server.acceptors)


@pytest.fixture
async def door() -> AsyncIterator[Door]:
    with no_descriptor_leak():
        async with shared_parts() as shared:
            spec = TunnelSpec(role=Role.SERVER, tunnel=Address("127.0.0.1", 0), target=Address("", 1), key=KEY)
            made = Door(shared, spec)
            await made.open()
            yield made
            made.server.close()
            await run_loop_turns(2)
            for link in made.taker.links:
                link.pool.close()
                link.channel.close("the test is over")
            await run_loop_turns(3)
            assert not made.taker.defects


async def greet(door: Door, instance: str = "me", key: Key | None = KEY) -> tuple[ControlChannel, bytes]:
    """Make a link as a client does; its channel and secret."""
    sock = door.knock(door.tunnel)
    door.shared.reactor.register(sock, lambda _events: None)
    channel = ControlChannel(door.shared.reactor, sock, tls.TlsSession(tls.pinned_context(), server_side=False), 4096)
    handshake = ClientHandshake(key, await channel.secure())
    kind, payload = await channel.receive()
    assert kind is Kind.CHALLENGE
    handshake.receive_challenge(payload)
    channel.send(handshake.hello(instance=instance, mode=Mode.AUTO, data_tls=False, bounds=ConfiguredLimits()))
    kind, payload = await channel.receive()
    if kind is not Kind.WELCOME:
        channel.close("refused")
        raise AssertionError(frames.decode_text(payload))
    handshake.receive_welcome(payload)
    _, proof = await channel.receive()
    welcome, secret = handshake.receive_proof(proof)
    assert welcome.direction is Direction.REVERSE
    await wait_until_async(lambda: door.taker.links, "the link is made")
    return channel, secret


class Answering:
    """Answers pings, as a client that lives."""

    def __init__(self, channel: ControlChannel) -> None:
        self.channel = channel

    def on_frames(self, received: list[Frame]) -> None:
        for kind, payload in received:
            if kind is Kind.PING:
                self.channel.send(frames.encode(Kind.PONG, payload))

    def on_closed(self, reason: str) -> None:
        """Ignore the end of the channel."""

    def on_handler_error(self, error: Exception) -> None:
        raise error


def client_hello() -> bytes:
    session = tls.TlsSession(tls.pinned_context(), server_side=False)
    session.do_handshake()
    return session.data_to_send()


async def test_a_stranger_who_resets_after_the_first_byte_of_tls_leaves_nothing(door: Door) -> None:
    close_with_reset(door.knock(door.tunnel, client_hello()[:1]))
    close_with_reset(door.knock(door.tunnel, client_hello()))
    close_with_reset(door.knock(door.data, b"NP"))
    door.knock(door.tunnel).close()
    await wait_until_async(lambda: door.idle and not len(door.server._pending), "all are gone")
    assert not door.taker.defects


async def test_a_greeting_in_pieces_within_one_turn_is_whole(door: Door) -> None:
    """The second piece comes before the handshake's task has had its first step."""
    sock = door.knock(door.tunnel)
    hello = client_hello()
    await wait_until_async(lambda: len(door.server._pending) == 1, "it was accepted")
    sock.send(hello[:40])
    door.shared.reactor._run_turn()
    sock.send(hello[40:])
    door.shared.reactor._run_turn()
    answer = b""

    def answered() -> bool:
        nonlocal answer
        try:
            answer += sock.recv(4096)
        except BlockingIOError:
            return False
        return len(answer) > 100

    await wait_until_async(answered, "the server answers")
    assert answer[0] == frames.TLS_HANDSHAKE_BYTE
    assert not door.stats.refused_prefaces
    sock.close()
    await wait_until_async(lambda: door.idle, "it is gone")


async def test_pending_dismissed_in_the_turn_in_which_they_came_leave_nothing(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    door.server._pending = PendingConnections(limits=AdmissionLimits(per_address=10))
    crowd = [door.knock(door.tunnel, client_hello()[:50]) for _ in range(40)]
    await wait_until_async(lambda: door.stats.silent == 30, "the oldest were dismissed")
    await wait_until_async(
        lambda: len(door.shared.reactor) == len(door.server.acceptors) + 10, "their sockets are closed"
    )
    for sock in crowd:
        sock.close()
    await wait_until_async(lambda: door.idle, "all are gone")


async def test_who_says_too_little_is_sent_away_in_time(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    door.server._pending = PendingConnections(limits=AdmissionLimits(timeout_s=0.05))
    pieces = ((door.tunnel, b"N"), (door.data, b"NPD"), (door.tunnel, client_hello()[:50]))
    silent = [door.knock(where, piece) for where, piece in pieces]
    await wait_until_async(lambda: door.stats.silent == 3, "they were sent away")
    await wait_until_async(lambda: door.idle, "their sockets are closed")
    for sock in silent:
        sock.close()


@pytest.mark.parametrize("where", ["tunnel", "data"])
async def test_garbage_is_refused_and_counted(door: Door, where: str) -> None:
    sock = door.knock(getattr(door, where), b"GET / HTTP/1.1\r\nHost: somebody\r\n\r\n" * 20)
    await wait_until_async(lambda: door.stats.refused_prefaces == 1, "it was refused")
    await wait_until_async(lambda: door.idle, "it is gone")
    assert door.events.said("refused a data connection")
    sock.close()
    broken = door.knock(door.tunnel, b"\x16" + b"\0" * 200)
    await wait_until_async(lambda: door.stats.refused_handshakes == 1, "broken TLS was refused")
    await wait_until_async(lambda: door.idle, "it is gone")
    broken.close()


@pytest.mark.parametrize("key", [Key("another key of some length"), None])
async def test_who_does_not_know_the_key_learns_nothing(door: Door, key: Key | None) -> None:
    with pytest.raises(AssertionError, match="the handshake was refused"):
        await greet(door, key=key)
    assert door.stats.refused_handshakes == 1
    assert not door.taker.links
    assert KEY.reveal() not in repr(list(door.events))


async def test_a_data_connection_is_let_in_once_and_only_with_the_links_secret(door: Door) -> None:
    channel, secret = await greet(door)
    genuine = frames.encode_preface(secret, 1)
    link = door.taker.links[0]
    first = door.knock(door.data, genuine)
    await wait_until_async(lambda: len(link.pool) == 1, "it is pooled")
    copies = [
        door.knock(door.data, genuine),
        door.knock(door.data, frames.encode_preface(b"x" * 32, 2)),
        door.knock(door.tunnel, genuine[:-1] + bytes([genuine[-1] ^ 1])),
    ]
    await wait_until_async(lambda: door.stats.refused_prefaces == 3, "replayed and forged ones are refused")
    assert len(link.pool) == 1
    second = door.knock(door.tunnel, frames.encode_preface(secret, 2))
    await wait_until_async(lambda: len(link.pool) == 2, "the tunnel port takes data connections too")
    for sock in (first, second, *copies):
        sock.close()
    channel.close("done")


async def test_a_data_connection_that_ends_with_its_preface_is_not_pooled(door: Door) -> None:
    channel, secret = await greet(door)
    link = door.taker.links[0]
    watched = len(door.shared.reactor)
    given_up = [door.knock(door.data, frames.encode_preface(secret, n)) for n in range(3)]
    for sock in given_up:
        sock.close()
    living = door.knock(door.data, frames.encode_preface(secret, 9))
    await wait_until_async(lambda: 9 in link.pool._idle, "the living one is pooled")
    await wait_until_async(lambda: len(door.shared.reactor) == watched + 1, "the others are closed")
    data = link.pool.acquire()
    assert data is not None
    assert data.ident == 9
    assert link.pool.acquire() is None
    door.shared.reactor.close(data.sock)
    living.close()
    channel.close("done")


async def test_the_same_client_takes_over_at_once_and_a_rival_does_not(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "LIVENESS_TIMEOUT_S", GUARD_S)
    first, _ = await greet(door)
    first.set_receiver(Answering(first))
    with pytest.raises(AssertionError, match=r"another client, .*, has this tunnel and answers"):
        await greet(door, instance="a rival")
    again, _ = await greet(door)
    await wait_until_async(lambda: len(door.taker.links) == 2, "the second link is made")
    assert "the same client came back" in door.taker.lost[0]
    await wait_until_async(lambda: first.closed_reason is not None, "the first one is over")
    again.close("done")


async def test_a_silent_client_gives_way_to_a_rival(door: Door) -> None:
    first, _ = await greet(door)  # nobody listens to it: pings stay unanswered
    rival, _ = await greet(door, instance="a rival")
    assert "did not answer within" in door.taker.lost[0]
    first.close("done")
    rival.close("done")


async def test_an_answer_that_came_while_the_server_was_stopped_counts(door: Door) -> None:
    channel, _ = await greet(door)
    link = door.taker.links[0]
    await wait_until_async(lambda: channel._frames, "the first ping is here")
    door.shared.reactor.unregister(channel._sock)
    stopped, answered = threading.Event(), threading.Event()

    def answer() -> None:
        stopped.wait(GUARD_S)
        channel._sock.setblocking(True)
        channel._session.receive_data(channel._sock.recv(4096))
        view = memoryview(bytearray(4096))
        [(kind, payload)] = frames.FrameDecoder().feed(bytes(view[: channel._session.read_into(view)]))
        assert kind is Kind.PING
        channel._session.write(frames.encode(Kind.PONG, payload))
        channel._sock.send(channel._session.data_to_send())
        answered.set()

    client = threading.Thread(target=answer)
    client.start()
    asking = asyncio.create_task(link.answers(0.1))
    await wait_until_async(lambda: link._answer is not None, "the question is asked")
    await run_loop_turns(3)
    stopped.set()
    assert answered.wait(GUARD_S)
    time.sleep(0.2)  # noqa: ASYNC251  the loop stands still until the time for an answer is over
    assert await asking
    client.join()
    channel.close("done")


async def test_a_client_that_leaves_with_its_greeting_is_not_waited_for(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    door.server._pending = PendingConnections(limits=AdmissionLimits(timeout_s=10 * GUARD_S))
    hello = tls.TlsSession(tls.pinned_context(), server_side=False)
    hello.do_handshake()
    sock = door.knock(door.tunnel, hello.data_to_send())
    sock.shutdown(socket.SHUT_WR)  # greeting and end arrive as one event
    await wait_until_async(lambda: door.stats.refused_handshakes == 1, "it is refused")
    await wait_until_async(lambda: door.idle, "its socket is closed")
    sock.close()

"""Connections at a server's ports: what is accepted, what is refused, and that nothing of it stays."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import socket
import threading
import time
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache

import pytest

from tests.support.engine_parts import Events, no_descriptor_leak, shared_parts
from tests.support.scale import GUARD_S
from tests.support.sockets import close_with_reset
from tests.support.waiting import run_loop_turns, wait_until_async
from tunnel.engine.context import DEFAULT_TIMING, EngineContext, Timing
from tunnel.engine.control_channel import ControlChannel
from tunnel.engine.key_ring import KeyRing
from tunnel.engine.link import Link
from tunnel.engine.link_acceptor import LinkAcceptor
from tunnel.engine.link_events import EventTable, LinkClosed, LinkEvent
from tunnel.engine.stats import Stats
from tunnel.model.address import Address
from tunnel.model.keys import Key, NamedKey
from tunnel.model.limits import ConfiguredLimits
from tunnel.model.spec import DataTls, Direction, Mode, Role, TunnelSpec
from tunnel.protocol.frame_codec import Frame, FrameDecoder, encode_frame
from tunnel.protocol.frames import Kind
from tunnel.protocol.handshake import ClientHandshake
from tunnel.protocol.handshake_messages import Refusal
from tunnel.protocol.keys import BaseKey, compute_base_key
from tunnel.protocol.preface import TLS_HANDSHAKE_BYTE, encode_preface
from tunnel.runtime import tls
from tunnel.runtime.front_door import DEFAULT_FRONT_DOOR, FrontDoorLimits, origin_of

KEY = Key("a shared key of some length")
base_key = cache(compute_base_key)


@dataclass
class FakeOwner:
    """Stands for the engine of an acceptor, and for the ingress of its links."""

    links: list[Link] = field(default_factory=list)
    defects: list[Exception] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def start_link(self, link: Link) -> None:
        self.links.append(link)
        link.start(self, self, None)

    def on_client_refused(self, reason: str) -> None:
        self.refused.append(reason)

    def on_handler_error(self, error: Exception) -> None:
        self.defects.append(error)

    def on_link_event(self, link: Link, event: LinkEvent) -> None:
        if isinstance(event, LinkClosed):
            self.closed.append(f"{link.ident}: {event.reason}")

    def register_handlers(self, table: EventTable) -> None:
        """No event of a link concerns this owner."""


class AcceptorHarness:
    """A link acceptor that listens, and what it has reported."""

    def __init__(self, context: EngineContext, spec: TunnelSpec) -> None:
        self.context = context
        self.spec = spec
        self.owner = FakeOwner()
        self.events = Events()
        self.stats = Stats()
        self.key_ring = KeyRing(spec)
        self.acceptor = LinkAcceptor(spec, context, self.events.event_log(), self.stats, self.key_ring, self.owner)

    async def open(self) -> None:
        place = await self.context.tunnel_ports.join(self.spec)
        place.claim()
        await self.acceptor.open(place)
        self.port = place.port
        self.tunnel, self.data = (("127.0.0.1", acceptor.port) for acceptor in self.port.acceptors)

    def connect(self, address: tuple[str, int], data: bytes = b"") -> socket.socket:
        """Connect and send, before the acceptor has had a turn."""
        sock = socket.create_connection(address)
        sock.setblocking(False)
        if data:
            sock.send(data)
        return sock

    @property
    def is_idle(self) -> bool:
        """Whether the reactor watches the listeners alone."""
        return len(self.context.reactor) == len(self.port.acceptors)


@asynccontextmanager
async def accepting(
    timing: Timing = DEFAULT_TIMING,
    front_door: FrontDoorLimits = DEFAULT_FRONT_DOOR,
    key: Key | None = KEY,
    named_keys: tuple[NamedKey, ...] = (),
) -> AsyncIterator[AcceptorHarness]:
    with no_descriptor_leak():
        async with shared_parts(timing, front_door) as context:
            spec = TunnelSpec(
                role=Role.SERVER,
                tunnel=Address("127.0.0.1", 0),
                target=Address("", 1),
                key=key,
                named_keys=named_keys,
            )
            harness = AcceptorHarness(context, spec)
            await harness.open()
            yield harness
            harness.acceptor.close()
            await run_loop_turns(2)
            for link in harness.owner.links:
                link.pool.close()
                link.channel.close("the test is over")
            await run_loop_turns(3)
            assert not harness.owner.defects


@pytest.fixture
async def harness(request: pytest.FixtureRequest) -> AsyncIterator[AcceptorHarness]:
    """A parameter of the fixture gives the arguments of ``accepting``."""
    async with accepting(**getattr(request, "param", {})) as made:
        yield made


async def send_hello(
    harness: AcceptorHarness, instance: str = "me", key: Key | None = KEY, service: str = ""
) -> tuple[ControlChannel, ClientHandshake]:
    """Connect as a client and authenticate; its channel and handshake."""
    sock = harness.connect(harness.tunnel)
    harness.context.reactor.register(sock, lambda _events: None)
    channel = ControlChannel(
        harness.context.reactor, sock, tls.TlsSession(tls.pinned_context(), server_side=False), 4096
    )
    base = BaseKey(base_key(key), is_open=key is None)
    handshake = ClientHandshake(base, service, await channel.secure())
    kind, payload = await channel.receive()
    assert kind is Kind.CHALLENGE
    handshake.receive_challenge(payload)
    channel.send(handshake.hello(instance=instance, mode=Mode.AUTO, tls=DataTls.OFF, bounds=ConfiguredLimits()))
    return channel, handshake


async def establish_link(
    harness: AcceptorHarness, instance: str = "me", key: Key | None = KEY, service: str = ""
) -> tuple[ControlChannel, bytes]:
    """Establish a link as a client does; its channel and secret."""
    channel, handshake = await send_hello(harness, instance, key, service)
    kind, payload = await channel.receive()
    if kind is not Kind.WELCOME:
        channel.close("refused")
        raise AssertionError(Refusal.decode(payload).reason)
    handshake.receive_welcome(payload)
    _, proof = await channel.receive()
    welcome, secret = handshake.receive_proof(proof)
    assert welcome.direction is Direction.REVERSE
    await wait_until_async(lambda: harness.owner.links, "the link is made")
    return channel, secret


class PongSender:
    """Answers pings, as a client that is alive."""

    def __init__(self, channel: ControlChannel) -> None:
        self.channel = channel

    def on_frames(self, received: list[Frame]) -> None:
        for kind, payload in received:
            if kind is Kind.PING:
                self.channel.send(encode_frame(Kind.PONG, payload))

    def on_closed(self, reason: str) -> None:
        """Ignore the end of the channel."""

    def on_handler_error(self, error: Exception) -> None:
        raise error


def client_hello() -> bytes:
    session = tls.TlsSession(tls.pinned_context(), server_side=False)
    session.do_handshake()
    return session.data_to_send()


async def test_connections_that_reset_after_their_first_bytes_leave_nothing(harness: AcceptorHarness) -> None:
    close_with_reset(harness.connect(harness.tunnel, client_hello()[:1]))
    close_with_reset(harness.connect(harness.tunnel, client_hello()))
    close_with_reset(harness.connect(harness.data, b"NP"))
    harness.connect(harness.tunnel).close()
    await wait_until_async(lambda: harness.is_idle and not len(harness.context.front_door), "all are closed")
    assert not harness.owner.defects


async def test_a_greeting_that_arrives_in_pieces_within_one_turn_is_complete(harness: AcceptorHarness) -> None:
    """The second piece arrives before the handshake's task has had its first step."""
    sock = harness.connect(harness.tunnel)
    hello = client_hello()
    await wait_until_async(lambda: len(harness.context.front_door) == 1, "it was accepted")
    sock.send(hello[:40])
    harness.context.reactor._run_turn()
    sock.send(hello[40:])
    harness.context.reactor._run_turn()
    answer = b""

    def answered() -> bool:
        nonlocal answer
        try:
            answer += sock.recv(4096)
        except BlockingIOError:
            return False
        return len(answer) > 100

    await wait_until_async(answered, "the server answers")
    assert answer[0] == TLS_HANDSHAKE_BYTE
    assert not harness.stats.refused_prefaces
    sock.close()
    await wait_until_async(lambda: harness.is_idle, "it is closed")


@pytest.mark.parametrize("harness", [{"front_door": FrontDoorLimits(per_prefix=10)}], indirect=True)
async def test_connections_evicted_in_the_turn_of_their_arrival_leave_nothing(harness: AcceptorHarness) -> None:
    connections = [harness.connect(harness.tunnel, client_hello()[:50]) for _ in range(40)]
    await wait_until_async(lambda: harness.stats.silent == 30, "the oldest were evicted")
    await wait_until_async(
        lambda: len(harness.context.reactor) == len(harness.port.acceptors) + 10, "their sockets are closed"
    )
    for sock in connections:
        sock.close()
    await wait_until_async(lambda: harness.is_idle, "all are closed")


@pytest.mark.parametrize("harness", [{"front_door": FrontDoorLimits(timeout_s=0.05)}], indirect=True)
async def test_a_connection_that_sends_too_little_is_evicted_in_time(harness: AcceptorHarness) -> None:
    pieces = ((harness.tunnel, b"N"), (harness.data, b"NPD"), (harness.tunnel, client_hello()[:50]))
    silent = [harness.connect(where, piece) for where, piece in pieces]
    await wait_until_async(lambda: harness.stats.silent == 3, "they were evicted")
    await wait_until_async(lambda: harness.is_idle, "their sockets are closed")
    for sock in silent:
        sock.close()


@pytest.mark.parametrize("where", ["tunnel", "data"])
async def test_garbage_is_refused_counted_and_logged(harness: AcceptorHarness, where: str) -> None:
    sock = harness.connect(getattr(harness, where), b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n" * 20)
    await wait_until_async(lambda: harness.stats.refused_prefaces == 1, "it was refused")
    await wait_until_async(lambda: harness.is_idle, "it is closed")
    assert harness.events.said("it is neither a client nor a data connection of this program")
    sock.close()
    broken = harness.connect(harness.tunnel, b"\x16" + b"\0" * 200)
    await wait_until_async(lambda: harness.stats.refused_handshakes == 1, "broken TLS was refused")
    await wait_until_async(lambda: harness.is_idle, "it is closed")
    broken.close()


@pytest.mark.parametrize("key", [Key("another key of some length"), None])
async def test_a_client_without_the_key_receives_one_generic_sentence(
    harness: AcceptorHarness, key: Key | None
) -> None:
    with pytest.raises(AssertionError, match="most likely the keys or the service names differ"):
        await establish_link(harness, key=key)
    assert harness.stats.refused_handshakes == 1
    assert not harness.owner.links
    assert KEY.reveal() not in repr(list(harness.events))


@pytest.mark.parametrize(
    ("key", "service", "logged"),
    [
        (KEY, "admin", "the client wants the service 'admin', this is the service without a name"),
        (Key("another key of some length"), "admin", "the client has another key and wants another service, or"),
    ],
)
async def test_a_client_of_another_service_receives_the_sentence_of_a_wrong_key(
    harness: AcceptorHarness, key: Key, service: str, logged: str
) -> None:
    with pytest.raises(AssertionError, match="most likely the keys or the service names differ"):
        await establish_link(harness, key=key, service=service)
    await wait_until_async(lambda: harness.events.said(logged), "the local log knows more")
    assert not harness.owner.links


async def test_a_client_whose_key_is_revoked_during_its_handshake_is_refused() -> None:
    keys = (NamedKey("home", KEY), NamedKey("office", Key("the key of the office")))
    async with accepting(key=None, named_keys=keys) as harness:
        async with harness.acceptor._link_decision:  # as if another client was being judged
            channel, _ = await send_hello(harness)
            await wait_until_async(lambda: harness.acceptor._undecided == 1, "its proof was right")
            assert harness.key_ring.update(dataclasses.replace(harness.spec, named_keys=keys[1:])) == {"home"}
        kind, payload = await channel.receive()
        assert (kind, Refusal.decode(payload).reason) == (Kind.REFUSED, "its key was revoked at this moment")
        assert not harness.owner.links
        channel.close("the test is over")


async def test_a_data_connection_is_pooled_once_and_only_with_the_secret_of_the_link(harness: AcceptorHarness) -> None:
    channel, secret = await establish_link(harness)
    link = harness.owner.links[0]
    genuine = encode_preface(link.wire_id, secret, 1)
    first = harness.connect(harness.data, genuine)
    await wait_until_async(lambda: len(link.pool) == 1, "it is pooled")
    copies = [
        harness.connect(harness.data, genuine),
        harness.connect(harness.data, encode_preface(link.wire_id, b"x" * 32, 2)),
        harness.connect(harness.data, encode_preface(b"another!", secret, 3)),
        harness.connect(harness.tunnel, genuine[:-1] + bytes([genuine[-1] ^ 1])),
    ]
    await wait_until_async(lambda: harness.stats.refused_prefaces == 4, "replayed and forged ones are refused")
    assert len(link.pool) == 1
    second = harness.connect(harness.tunnel, encode_preface(link.wire_id, secret, 2))
    await wait_until_async(lambda: len(link.pool) == 2, "the tunnel port takes data connections too")
    for sock in (first, second, *copies):
        sock.close()
    channel.close("done")


async def test_a_data_connection_that_ends_with_its_preface_is_not_pooled(harness: AcceptorHarness) -> None:
    channel, secret = await establish_link(harness)
    link = harness.owner.links[0]
    watched = len(harness.context.reactor)
    abandoned = [harness.connect(harness.data, encode_preface(link.wire_id, secret, n)) for n in range(3)]
    for sock in abandoned:
        sock.close()
    living = harness.connect(harness.data, encode_preface(link.wire_id, secret, 9))
    await wait_until_async(lambda: 9 in link.pool.idle, "the living one is pooled")
    await wait_until_async(lambda: len(harness.context.reactor) == watched + 1, "the others are closed")
    data = link.pool.acquire()
    assert data is not None
    assert data.ident == 9
    assert link.pool.acquire() is None
    harness.context.reactor.close(data.sock)
    living.close()
    channel.close("done")


async def test_a_client_that_is_gone_before_its_decision_does_not_replace_the_present_link(
    harness: AcceptorHarness,
) -> None:
    present, _ = await establish_link(harness)
    acceptor = harness.acceptor
    async with acceptor._link_decision:
        gone, _ = await send_hello(harness)
        await wait_until_async(lambda: acceptor._undecided == 1, "the client waits for its decision")
        watched = len(harness.context.reactor)
        gone.close("it went away")
        await wait_until_async(lambda: len(harness.context.reactor) == watched - 2, "both ends have closed it")
    await wait_until_async(lambda: acceptor._undecided == 0, "the decision is made")
    assert harness.owner.links[0].channel.closed_reason is None
    assert len(harness.owner.links) == 1
    present.close("done")


@pytest.mark.parametrize("harness", [{"timing": Timing(liveness_timeout_s=GUARD_S)}], indirect=True)
async def test_the_same_client_replaces_its_link_at_once_and_another_one_is_refused(harness: AcceptorHarness) -> None:
    first, _ = await establish_link(harness)
    first.set_receiver(PongSender(first))
    with pytest.raises(AssertionError, match=r"another client, .* answers; to serve both, write clients: 2"):
        await establish_link(harness, instance="another")
    again, _ = await establish_link(harness)
    await wait_until_async(lambda: len(harness.owner.links) == 2, "the second link is made")
    assert "the same client came back" in harness.owner.closed[0]
    await wait_until_async(lambda: first.closed_reason is not None, "the first one is over")
    again.close("done")


async def test_a_silent_client_is_replaced_by_another_one(harness: AcceptorHarness) -> None:
    first, _ = await establish_link(harness)  # it does not answer pings
    other, _ = await establish_link(harness, instance="another")
    assert "did not answer within" in harness.owner.closed[0]
    first.close("done")
    other.close("done")


@pytest.mark.parametrize("harness", [{"timing": Timing(liveness_timeout_s=0.5)}], indirect=True)
async def test_a_silent_client_makes_no_room_while_as_many_answer_as_are_allowed_since(
    harness: AcceptorHarness,
) -> None:
    harness.acceptor.update_spec(dataclasses.replace(harness.spec, clients=3))
    channels = [(await establish_link(harness, instance=name))[0] for name in ("silent", "one", "other")]
    for channel in channels[1:]:
        channel.set_receiver(PongSender(channel))
    harness.acceptor.update_spec(dataclasses.replace(harness.spec, clients=2))
    with pytest.raises(AssertionError, match="2 other clients have this tunnel and answer"):
        await establish_link(harness, instance="new")
    assert len(harness.owner.closed) == 1
    assert "did not answer within" in harness.owner.closed[0]
    for channel in channels:
        channel.close("done")


async def test_an_answer_that_arrived_while_the_server_was_stopped_counts(harness: AcceptorHarness) -> None:
    channel, _ = await establish_link(harness)
    link = harness.owner.links[0]
    await wait_until_async(lambda: channel._frames, "the first ping is here")
    harness.context.reactor.unregister(channel._sock)
    stopped, answered = threading.Event(), threading.Event()

    def answer() -> None:
        stopped.wait(GUARD_S)
        channel._sock.setblocking(True)
        channel._session.receive_data(channel._sock.recv(4096))
        view = memoryview(bytearray(4096))
        pings = FrameDecoder().feed(bytes(view[: channel._session.read_into(view)]))
        assert {kind for kind, _ in pings} == {Kind.PING}  # two, if the time for the next one has come
        for _, payload in pings:
            channel._session.write(encode_frame(Kind.PONG, payload))
        channel._sock.send(channel._session.data_to_send())
        answered.set()

    client = threading.Thread(target=answer)
    client.start()
    question = asyncio.create_task(link.answers(0.1))
    await wait_until_async(lambda: link._pong is not None, "the ping is sent")
    await run_loop_turns(3)
    stopped.set()
    assert answered.wait(GUARD_S)
    time.sleep(0.2)  # noqa: ASYNC251  the loop is blocked until the time for an answer is over
    assert await question
    client.join()
    channel.close("done")


@pytest.mark.parametrize("harness", [{"front_door": FrontDoorLimits(timeout_s=10 * GUARD_S)}], indirect=True)
async def test_a_client_that_closes_right_after_its_greeting_is_refused_at_once(harness: AcceptorHarness) -> None:
    hello = tls.TlsSession(tls.pinned_context(), server_side=False)
    hello.do_handshake()
    sock = harness.connect(harness.tunnel, hello.data_to_send())
    sock.shutdown(socket.SHUT_WR)  # greeting and end arrive as one event
    await wait_until_async(lambda: harness.stats.refused_handshakes == 1, "it is refused")
    await wait_until_async(lambda: harness.is_idle, "its socket is closed")
    sock.close()


async def test_few_clients_wait_for_the_decision_about_a_tunnel(harness: AcceptorHarness) -> None:
    async with harness.acceptor._link_decision:
        waiting = [asyncio.create_task(establish_link(harness)) for _ in range(20)]
        await wait_until_async(lambda: sum(task.done() for task in waiting) == 4, "those that are too many are refused")
    done, _ = await asyncio.wait(waiting)
    errors = [error for task in done if (error := task.exception()) is not None]
    assert len(errors) == 4
    assert all("too many other clients" in str(error) for error in errors)
    for task in done:
        if task.exception() is None:
            task.result()[0].close("done")


async def test_a_client_of_an_open_tunnel_is_not_known_at_the_front_door() -> None:
    async with accepting(key=None) as harness:
        channel, _ = await establish_link(harness, key=None)
        assert not harness.context.front_door.is_known(origin_of(("127.0.0.1", 1)))
        channel.close("done")


async def test_a_client_with_the_key_is_known_at_the_front_door(harness: AcceptorHarness) -> None:
    channel, _ = await establish_link(harness)
    assert harness.context.front_door.is_known(origin_of(("127.0.0.1", 1)))
    channel.close("done")


@pytest.mark.parametrize("harness", [{"front_door": FrontDoorLimits(per_prefix=2)}], indirect=True)
async def test_an_evicted_handshake_is_freed_at_once(harness: AcceptorHarness) -> None:
    """Without the help of the garbage collector, which a flood would outrun."""
    made: list[weakref.ref[ControlChannel]] = []
    connections: list[socket.socket] = []
    start = ControlChannel.secure

    async def secure(self: ControlChannel) -> bytes:
        made.append(weakref.ref(self))
        return await start(self)

    gc.disable()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ControlChannel, "secure", secure)
            for number in range(10):
                sock = harness.connect(harness.tunnel, client_hello())
                await wait_until_async(lambda: len(made) > number, "its handshake has started")  # noqa: B023
                connections.append(sock)
        await wait_until_async(lambda: harness.stats.silent == 8, "the oldest were evicted")
        await wait_until_async(lambda: sum(channel() is not None for channel in made) <= 2, "they are freed")
    finally:
        gc.enable()
        for sock in connections:
            sock.close()
    await wait_until_async(lambda: harness.is_idle, "all are closed")

"""The control channel over a loopback pair: frames in order, and every way to lose it is reported once."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.engine_parts import no_descriptor_leak, server_context, shared_parts
from tests.support.sockets import close_with_reset, tcp_pair
from tests.support.waiting import run_loop_turns, wait_until_async
from tunnel.engine.context import EngineContext
from tunnel.engine.control_channel import MAX_UNSENT_BYTES, ChannelLostError, ControlChannel
from tunnel.protocol.errors import ProtocolError
from tunnel.protocol.frame_codec import Frame, encode_frame, encode_message
from tunnel.protocol.frames import Goodbye, Kind
from tunnel.runtime.tls import MAX_HANDSHAKE_BYTES, TlsSession, pinned_context


@dataclass
class Receiver:
    frames: list[Frame] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    defects: list[Exception] = field(default_factory=list)
    error: Exception | None = None
    """raised when frames arrive"""

    def on_frames(self, received: list[Frame]) -> None:
        if self.error is not None and received:
            raise self.error
        self.frames += received

    def on_closed(self, reason: str) -> None:
        self.reasons.append(reason)

    def on_handler_error(self, error: Exception) -> None:
        self.defects.append(error)


def channel_pair(
    context: EngineContext, read_size: int = 1024, max_unsent_bytes: int = MAX_UNSENT_BYTES
) -> tuple[ControlChannel, ControlChannel]:
    """The two ends of a control channel before the TLS handshake: the server's, the client's."""
    ours, theirs = tcp_pair()
    for sock in (ours, theirs):
        context.reactor.register(sock, lambda _events: None)
    server_session = TlsSession(server_context(), server_side=True)
    server = ControlChannel(context.reactor, ours, server_session, read_size, max_unsent_bytes=max_unsent_bytes)
    client = ControlChannel(context.reactor, theirs, TlsSession(pinned_context(), server_side=False), read_size)
    return server, client


@pytest.fixture
async def context() -> AsyncIterator[EngineContext]:
    server_context()
    with no_descriptor_leak():
        async with shared_parts() as parts:
            yield parts


@dataclass
class OpenPair:
    """Two ends of a channel after the TLS handshake."""

    server: ControlChannel
    client: ControlChannel
    at_server: Receiver = field(default_factory=Receiver)
    at_client: Receiver = field(default_factory=Receiver)


async def open_pair(
    context: EngineContext, read_size: int = 1024, max_unsent_bytes: int = MAX_UNSENT_BYTES
) -> OpenPair:
    server, client = channel_pair(context, read_size, max_unsent_bytes)
    await asyncio.gather(server.secure(), client.secure())
    opened = OpenPair(server, client)
    server.set_receiver(opened.at_server)
    client.set_receiver(opened.at_client)
    return opened


@given(
    payloads=st.lists(st.binary(max_size=300), max_size=30),
    read_size=st.sampled_from([1, 7, 1024, 1 << 20]),
    pause_every=st.integers(1, 5),
)
async def test_frames_arrive_in_order(payloads: list[bytes], read_size: int, pause_every: int) -> None:
    async with shared_parts() as context:
        pair = await open_pair(context, read_size)
        for number, payload in enumerate(payloads):
            pair.server.send(encode_frame(Kind.BYE, payload))
            if number % pause_every == 0:
                await run_loop_turns(1)
        await wait_until_async(lambda: len(pair.at_client.frames) == len(payloads), "all frames have arrived")
        assert pair.at_client.frames == [(Kind.BYE, payload) for payload in payloads]
        pair.server.close("done")
        await wait_until_async(lambda: pair.at_client.reasons, "the end is reported")
        assert pair.client.closed_reason == "the other end closed the connection"


async def test_frames_sent_before_closing_arrive_and_later_ones_do_not(context: EngineContext) -> None:
    pair = await open_pair(context)
    pair.server.send(encode_message(Goodbye("the last frame")))
    pair.server.close("done")
    pair.server.send(encode_message(Goodbye("too late")))
    await wait_until_async(lambda: pair.at_client.reasons, "the end is reported")
    assert pair.at_client.frames == [(Kind.BYE, b"the last frame")]


async def test_frames_and_loss_from_before_the_receiver_was_set_are_passed_to_it(context: EngineContext) -> None:
    server, client = channel_pair(context)
    await asyncio.gather(server.secure(), client.secure())
    server.send(encode_message(Goodbye("the last frame")))
    await run_loop_turns(1)
    server.close("done")
    await wait_until_async(lambda: client.closed_reason is not None, "the channel is closed")
    receiver = Receiver()
    client.set_receiver(receiver)
    assert receiver.frames == [(Kind.BYE, b"the last frame")]
    assert receiver.reasons == ["the other end closed the connection"]


@pytest.mark.parametrize("is_early", [True, False])
async def test_a_protocol_error_of_the_receiver_closes_the_channel(context: EngineContext, *, is_early: bool) -> None:
    server, client = channel_pair(context)
    await asyncio.gather(server.secure(), client.secure())
    receiver = Receiver(error=ProtocolError("not allowed"))
    if not is_early:
        client.set_receiver(receiver)
    server.send(encode_message(Goodbye("x")))
    if is_early:
        await wait_until_async(lambda: client._frames, "the frame has arrived")
        client.set_receiver(receiver)
    await wait_until_async(lambda: receiver.reasons, "the end is reported")
    assert receiver.reasons == ["not allowed"]
    assert not receiver.defects
    server.close("done")


async def test_a_defect_of_the_receiver_is_reported_to_it(context: EngineContext) -> None:
    pair = await open_pair(context)
    pair.at_client.error = RuntimeError("a defect")
    pair.server.send(encode_message(Goodbye("x")))
    await wait_until_async(lambda: pair.at_client.defects, "the defect is reported")
    assert pair.at_client.reasons == ["a defect in this program"]
    pair.server.close("done")


@pytest.mark.parametrize("how", ["reset", "close", "garbage", "half-close"])
async def test_every_loss_is_reported_once(context: EngineContext, how: str) -> None:
    pair = await open_pair(context)
    sock = pair.server._sock
    if how == "garbage":
        sock.send(b"garbage" * 10)
    elif how == "half-close":
        sock.shutdown(socket.SHUT_WR)
    if how == "reset":
        context.reactor._handlers.pop(sock.fileno())
        close_with_reset(sock)
    elif how == "close":
        pair.server.close("done")
    await wait_until_async(lambda: pair.at_client.reasons, "the loss is reported")
    pair.client.close("again")
    await run_loop_turns(5)
    assert len(pair.at_client.reasons) == 1
    assert pair.client.closed_reason == pair.at_client.reasons[0]
    pair.server.close("done")


async def test_a_handshake_that_is_cut_short_raises_in_both_waiting_calls(context: EngineContext) -> None:
    server, client = channel_pair(context)
    waiting = asyncio.gather(client.secure(), server.receive(), return_exceptions=True)
    await run_loop_turns(1)
    server.close("gone")
    for result in await waiting:
        assert isinstance(result, ChannelLostError)


async def test_a_peer_that_reads_nothing_is_given_up(context: EngineContext) -> None:
    pair = await open_pair(context, max_unsent_bytes=100_000)
    context.reactor.set_handler(pair.client._sock, lambda _events: None)  # reads no more
    frame = encode_frame(Kind.LAUNCH, b"\0" * 16_000)

    def is_closed() -> bool:
        for _ in range(20):
            pair.server.send(frame)
        return bool(pair.at_server.reasons)

    await wait_until_async(is_closed, "the channel is closed")
    assert pair.at_server.reasons == ["the other end reads no control frames"]
    pair.client.close("done")


async def test_a_slow_reader_receives_everything(context: EngineContext) -> None:
    pair = await open_pair(context, 1 << 16)
    context.reactor.set_handler(pair.client._sock, lambda _events: None)
    frame = encode_frame(Kind.LAUNCH, b"\0" * 16_000)
    sent = 0

    def is_stuck() -> bool:
        nonlocal sent
        pair.server.send(frame)
        sent += 1
        return bool(pair.server._unsent)

    await wait_until_async(is_stuck, "the kernel accepts no more")
    context.reactor.set_handler(pair.client._sock, pair.client._ready)
    context.reactor.call_again(pair.client._ready)
    await wait_until_async(lambda: len(pair.at_client.frames) == sent, "all frames have arrived")
    pair.server.close("done")
    pair.client.close("done")


async def test_one_turn_reads_little_of_any_peer(context: EngineContext) -> None:
    """The reactor serves the other tunnels between two turns."""
    pair = await open_pair(context)
    context.reactor.set_handler(pair.client._sock, lambda _events: None)  # has no turn of its own
    frame = encode_message(Goodbye(""))
    pair.server.send(frame * 15_000)
    pair.client._read()
    assert len(pair.at_client.frames) * len(frame) <= 1 << 15, "a TLS record has 16 KiB, and the last one is whole"
    pair.server.close("done")
    pair.client.close("done")


async def test_what_a_slow_reader_leaves_unsent_is_not_copied_for_each_frame(context: EngineContext) -> None:
    pair = await open_pair(context)
    context.reactor.set_handler(pair.client._sock, lambda _events: None)
    frame = encode_frame(Kind.LAUNCH, b"\0" * 16_000)

    def is_stuck() -> bool:
        pair.server.send(frame)
        return bool(pair.server._unsent)

    await wait_until_async(is_stuck, "the kernel accepts no more")
    unsent, size = pair.server._unsent, len(pair.server._unsent)
    pair.server.send(frame)
    assert pair.server._unsent is unsent
    assert len(unsent) > size
    pair.server.close("done")
    pair.client.close("done")


def raw_peer(context: EngineContext, *, server_side: bool) -> tuple[ControlChannel, socket.socket]:
    """A channel, and a socket to which a hostile peer writes what it likes."""
    ours, theirs = tcp_pair()
    context.reactor.register(ours, lambda _events: None)
    tls = server_context() if server_side else pinned_context()
    return ControlChannel(context.reactor, ours, TlsSession(tls, server_side=server_side), 1 << 20), theirs


def send_all_it_takes(sock: socket.socket, data: bytes) -> int:
    """Send as much as the kernel takes; the number of bytes."""
    sent = 0
    with contextlib.suppress(OSError):
        while True:
            sent += sock.send(data)
    return sent


EMPTY_RECORDS = b"\x14\x03\x03\x00\x01\x01" * 500  # change_cipher_spec, which TLS 1.3 ignores (RFC 8446 §5)
HELLO_REQUESTS = b"\x16\x03\x03\x00\x04\x00\x00\x00\x00" * 500  # which OpenSSL's client skips
LONG_MESSAGE = b"\x16\x03\x03\x40\x00" + bytes([1, 1, 0, 0]) + bytes(16380)


@pytest.mark.parametrize("server_side", [True, False], ids=["server", "client"])
@pytest.mark.parametrize("stream", [EMPTY_RECORDS, HELLO_REQUESTS, LONG_MESSAGE], ids=["ccs", "hello request", "long"])
async def test_endless_bytes_before_the_handshake_end_the_channel(
    context: EngineContext, stream: bytes, *, server_side: bool
) -> None:
    channel, hostile = raw_peer(context, server_side=server_side)
    securing = asyncio.create_task(channel.secure())
    sent = 0

    def is_closed() -> bool:
        nonlocal sent
        sent += send_all_it_takes(hostile, stream)
        return channel.closed_reason is not None

    await wait_until_async(is_closed, "the channel is closed")
    with pytest.raises(ChannelLostError):
        await securing
    assert channel._session._incoming.pending <= MAX_HANDSHAKE_BYTES
    hostile.close()


async def test_one_turn_reads_little_of_a_peer_that_has_not_authenticated(context: EngineContext) -> None:
    channel, hostile = raw_peer(context, server_side=True)
    hostile.send(LONG_MESSAGE)
    channel._read()
    assert channel._session._incoming.pending <= 4096
    channel.close("done")
    hostile.close()


async def test_a_peer_that_is_authenticated_only_in_tls_is_bounded_too(context: EngineContext) -> None:
    server, client = channel_pair(context)
    await asyncio.gather(server.secure(), client.secure())
    closed = asyncio.create_task(wait_until_async(lambda: server.closed_reason is not None, "it is closed"))
    while not closed.done():
        client.send(encode_frame(Kind.BYE, b"x" * 500))
        await server.receive() if server._frames else await run_loop_turns(1)
    assert server.closed_reason == "the other end sent too many bytes before it had authenticated"
    client.close("done")


@pytest.mark.parametrize("payload", [b"", b"x" * 500])
async def test_frames_that_are_not_wanted_yet_stay_in_the_kernel(context: EngineContext, payload: bytes) -> None:
    """At a server a client waits for its turn; at a client the end of the tunnel is opened."""
    server, client = channel_pair(context)
    await asyncio.gather(server.secure(), client.secure())
    for channel in (server, client):
        channel.note_authenticated()
    frames = [encode_frame(Kind.BYE, payload)] * 3000
    client.send(b"".join(frames))
    client.send(encode_message(Goodbye("the last one")))
    await wait_until_async(lambda: server._is_paused, "the server has stopped reading")
    await run_loop_turns(20)
    assert len(server._frames) == 16
    assert server._session._incoming.pending < 1 << 17
    assert (await server.receive())[0] is Kind.BYE
    await wait_until_async(lambda: len(server._frames) == 16, "another frame took its place")
    receiver = Receiver()
    server.set_receiver(receiver)
    await wait_until_async(lambda: len(receiver.frames) == 3000, "all frames arrive after all")
    assert receiver.frames[-1] == (Kind.BYE, b"the last one")
    client.close("done")
    await wait_until_async(lambda: receiver.reasons, "the end is reported")

"""The control channel over a loopback pair: frames in order, one write a turn, every way to lose it told once."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.engine_parts import no_descriptor_leak, server_context, shared_parts
from tests.support.sockets import close_with_reset, tcp_pair
from tests.support.waiting import run_loop_turns, wait_until_async
from tunnel.engine.channel import MAX_UNSENT_BYTES, ChannelLostError, ControlChannel
from tunnel.engine.context import EngineContext
from tunnel.protocol import frames
from tunnel.protocol.frames import Frame, Kind, ProtocolError
from tunnel.runtime.tls import TlsSession, pinned_context


@dataclass
class Ear:
    frames: list[Frame] = field(default_factory=list)
    losses: list[str] = field(default_factory=list)
    defects: list[Exception] = field(default_factory=list)
    objection: Exception | None = None

    def on_frames(self, received: list[Frame]) -> None:
        if self.objection is not None and received:
            raise self.objection
        self.frames += received

    def on_closed(self, reason: str) -> None:
        self.losses.append(reason)

    def on_handler_error(self, error: Exception) -> None:
        self.defects.append(error)


def channels(
    shared: EngineContext, read_size: int = 1024, max_unsent_bytes: int = MAX_UNSENT_BYTES
) -> tuple[ControlChannel, ControlChannel]:
    """The two ends of a control channel, not yet secured: the server's, the client's."""
    ours, theirs = tcp_pair()
    for sock in (ours, theirs):
        shared.reactor.register(sock, lambda _events: None)
    server = ControlChannel(
        shared.reactor,
        ours,
        TlsSession(server_context(), server_side=True),
        read_size,
        max_unsent_bytes=max_unsent_bytes,
    )
    client = ControlChannel(shared.reactor, theirs, TlsSession(pinned_context(), server_side=False), read_size)
    return server, client


@pytest.fixture
async def shared() -> AsyncIterator[EngineContext]:
    server_context()
    with no_descriptor_leak():
        async with shared_parts() as parts:
            yield parts


async def secured(
    shared: EngineContext, read_size: int = 1024, max_unsent_bytes: int = MAX_UNSENT_BYTES
) -> tuple[ControlChannel, ControlChannel, Ear, Ear]:
    server, client = channels(shared, read_size, max_unsent_bytes)
    await asyncio.gather(server.secure(), client.secure())
    ears = Ear(), Ear()
    server.set_receiver(ears[0])
    client.set_receiver(ears[1])
    return server, client, *ears


@given(
    payloads=st.lists(st.binary(max_size=300), max_size=30),
    read_size=st.sampled_from([1, 7, 1024, 1 << 20]),
    rests=st.integers(1, 5),
)
async def test_frames_arrive_in_order(payloads: list[bytes], read_size: int, rests: int) -> None:
    async with shared_parts() as shared:
        server, client, _, ear = await secured(shared, read_size)
        for number, payload in enumerate(payloads):
            server.send(frames.encode(Kind.BYE, payload))
            if number % rests == 0:
                await run_loop_turns(1)
        await wait_until_async(lambda: len(ear.frames) == len(payloads), "all frames have arrived")
        assert ear.frames == [(Kind.BYE, payload) for payload in payloads]
        server.close("done")
        await wait_until_async(lambda: ear.losses, "the end is told")
        assert client.closed_reason == "the other end closed the connection"


async def test_all_signals_of_a_turn_leave_in_one_write(shared: EngineContext) -> None:
    server, client, _, ear = await secured(shared, 1 << 16)
    writes: list[int] = []
    write = server._write

    def counted(data: bytes) -> None:
        if data:
            writes.append(len(data))
        write(data)

    server._write = counted  # type: ignore[method-assign,assignment]  # counts and passes on
    for ident in range(500):
        server.send(frames.encode_ids(Kind.LAUNCH, [ident]))
    await wait_until_async(lambda: len(ear.frames) == 500, "all have arrived")
    assert len(writes) == 1
    client.close("done")
    server.close("done")


async def test_what_was_sent_before_closing_arrives(shared: EngineContext) -> None:
    server, _, _, ear = await secured(shared)
    server.send(frames.encode_text(Kind.BYE, "last words"))
    server.close("done")
    server.send(frames.encode_text(Kind.BYE, "too late"))
    await wait_until_async(lambda: ear.losses, "the end is told")
    assert ear.frames == [(Kind.BYE, b"last words")]


async def test_what_came_before_anybody_listened_is_told_then(shared: EngineContext) -> None:
    server, client = channels(shared)
    await asyncio.gather(server.secure(), client.secure())
    server.send(frames.encode_text(Kind.BYE, "last words"))
    await run_loop_turns(1)
    server.close("done")
    await wait_until_async(lambda: client.closed_reason is not None, "the end has come")
    ear = Ear()
    client.set_receiver(ear)
    assert ear.frames == [(Kind.BYE, b"last words")]
    assert ear.losses == ["the other end closed the connection"]


async def test_a_frame_that_nobody_understands_ends_the_channel_whenever_it_is_heard(shared: EngineContext) -> None:
    for early in (True, False):
        server, client = channels(shared)
        await asyncio.gather(server.secure(), client.secure())
        ear = Ear(objection=ProtocolError("odd"))
        if not early:
            client.set_receiver(ear)
        server.send(frames.encode_text(Kind.BYE, "x"))
        if early:
            await wait_until_async(lambda c=client: c._frames, "the frame has come")  # type: ignore[misc]  # a default binds it
            client.set_receiver(ear)
        await wait_until_async(lambda e=ear: e.losses, "the end is told")  # type: ignore[misc]  # as above
        assert ear.losses == ["odd"]
        assert not ear.defects
        server.close("done")


async def test_a_defect_of_the_listener_is_its_own(shared: EngineContext) -> None:
    server, _, _, ear = await secured(shared)
    ear.objection = RuntimeError("a slip")
    server.send(frames.encode_text(Kind.BYE, "x"))
    await wait_until_async(lambda: ear.defects, "the defect is told")
    assert ear.losses == ["a defect in this program"]
    server.close("done")


@pytest.mark.parametrize("how", ["reset", "end", "garbage", "cut"])
async def test_every_loss_is_told_once(shared: EngineContext, how: str) -> None:
    server, client, _, ear = await secured(shared)
    sock = server._sock
    if how == "garbage":
        sock.send(b"garbage" * 10)
    elif how == "cut":
        sock.shutdown(socket.SHUT_WR)
    if how == "reset":
        shared.reactor._handlers.pop(sock.fileno())
        close_with_reset(sock)
    elif how == "end":
        server.close("done")
    await wait_until_async(lambda: ear.losses, "the loss is told")
    client.close("again")
    await run_loop_turns(5)
    assert len(ear.losses) == 1
    assert client.closed_reason == ear.losses[0]
    server.close("done")


async def test_a_handshake_that_ends_early_is_told_to_who_waits(shared: EngineContext) -> None:
    server, client = channels(shared)
    waiting = asyncio.gather(client.secure(), server.receive(), return_exceptions=True)
    await run_loop_turns(1)
    server.close("gone")
    for result in await waiting:
        assert isinstance(result, ChannelLostError)


async def test_who_takes_nothing_is_given_up(shared: EngineContext) -> None:
    server, client, ear, _ = await secured(shared, max_unsent_bytes=100_000)
    shared.reactor.set_handler(client._sock, lambda _events: None)  # reads no more
    frame = frames.encode(Kind.LAUNCH, b"\0" * 16_000)

    def given_up() -> bool:
        for _ in range(20):
            server.send(frame)
        return bool(ear.losses)

    await wait_until_async(given_up, "it was given up")
    assert ear.losses == ["the other end reads no control frames"]
    client.close("done")


async def test_a_slow_reader_gets_all_in_the_end(shared: EngineContext) -> None:
    server, client, _, ear = await secured(shared, 1 << 16)
    shared.reactor.set_handler(client._sock, lambda _events: None)
    frame = frames.encode(Kind.LAUNCH, b"\0" * 16_000)
    sent = 0

    def stuck() -> bool:
        nonlocal sent
        server.send(frame)
        sent += 1
        return bool(server._unsent)

    await wait_until_async(stuck, "the kernel takes no more")
    shared.reactor.set_handler(client._sock, client._ready)
    shared.reactor.call_again(client._ready)
    await wait_until_async(lambda: len(ear.frames) == sent, "all has arrived")
    server.close("done")
    client.close("done")

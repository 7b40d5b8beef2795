"""The channel between the supervisor and a worker: messages arrive whole and in order, and nothing else does."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.supervisor.runner import stopped_snapshot
from orchestrator.workers.messages import (
    NOTIFICATION_KINDS,
    REQUEST_KINDS,
    CloseEngine,
    CreateEngine,
    DiscardEngine,
    DrainEngine,
    DrainLink,
    DrainTarget,
    EngineEnded,
    EngineEvent,
    EnginePrepared,
    IpcChannel,
    IpcDecoder,
    IpcError,
    PrepareEngine,
    RetryEngine,
    RunEngine,
    SnapshotBatch,
    UpdateSpec,
    WorkerAlive,
    encode,
)
from tests.support.strategies import addresses, keys
from tests.support.waiting import wait_until_async
from tunnel.model.events import Event, EventKind
from tunnel.model.options import make_spec
from tunnel.model.spec import LogLevel, Mode, Role, TunnelSpec
from tunnel.model.url import parse_url

ALL_KINDS = REQUEST_KINDS + NOTIFICATION_KINDS

numbers = st.integers(1, 2**31)
texts = st.text(max_size=20)
specs = st.builds(
    TunnelSpec,
    role=st.sampled_from(Role),
    tunnel=addresses,
    target=addresses,
    key=st.none() | keys,
    mode=st.sampled_from(Mode),
    data_port=st.none() | st.integers(0, 65535),
    log=st.sampled_from(LogLevel),
)


def _event(name: str, text: str) -> Event:
    return Event(
        ts=1.5, tunnel=name, level=LogLevel.WARN, kind=EventKind.LINK, text=text, data={"held": 3, "peer": None}
    )


messages = st.one_of(
    st.builds(CreateEngine, numbers, texts, specs),
    st.builds(PrepareEngine, numbers, numbers),
    st.builds(RunEngine, numbers),
    st.builds(DrainEngine, numbers, st.none() | st.floats(0, 1e6)),
    st.builds(CloseEngine, numbers),
    st.builds(RetryEngine, numbers),
    st.builds(DrainTarget, numbers, texts, st.booleans()),
    st.builds(DrainLink, numbers, texts, st.booleans()),
    st.builds(UpdateSpec, numbers, specs),
    st.builds(DiscardEngine, numbers),
    st.builds(WorkerAlive),
    st.builds(
        lambda number, name, spec: SnapshotBatch(((number, stopped_snapshot(name, spec)),)), numbers, texts, specs
    ),
    st.builds(lambda number, name, text: EngineEvent(number, _event(name, text)), numbers, texts, texts),
    st.builds(EnginePrepared, numbers, st.none() | texts, st.none() | st.integers(1, 133)),
    st.builds(EngineEnded, numbers, st.none(), st.none() | texts, st.lists(texts, max_size=3).map(tuple)),
)


@given(frames=st.lists(st.lists(messages, max_size=3), max_size=4), splits=st.lists(st.integers(1, 700), min_size=1))
def test_messages_arrive_however_the_bytes_are_split(frames: list[list[Any]], splits: list[int]) -> None:
    stream = b"".join(map(encode, frames))
    decoder, found, position, turn = IpcDecoder(ALL_KINDS), [], 0, 0
    while position < len(stream):
        step = splits[turn % len(splits)]
        found += decoder.feed(stream[position : position + step])
        position, turn = position + step, turn + 1
    assert found == [message for frame in frames for message in frame]


def test_keys_are_sent_but_not_shown_by_repr() -> None:
    spec = make_spec(parse_url("server://very-secret@127.0.0.1:1/127.0.0.1:2"), environ={})
    (found,) = IpcDecoder(ALL_KINDS).feed(encode([CreateEngine(1, "web", spec)]))
    assert found.spec.key.reveal() == "very-secret"
    assert "very-secret" not in repr(found)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\xff\xff\xff\xff", "too long"),
        (struct.pack("!I", 4) + b"junk", "another version"),
        (encode([WorkerAlive()]).replace(b"WorkerAlive", b"WorkerAlivf"), "another version"),
    ],
)
def test_bytes_of_another_program_are_refused(data: bytes, expected: str) -> None:
    with pytest.raises(IpcError, match=expected):
        IpcDecoder(ALL_KINDS).feed(data)


def test_each_end_refuses_the_messages_that_it_sends_itself() -> None:
    with pytest.raises(IpcError, match="another version"):
        IpcDecoder(REQUEST_KINDS).feed(encode([WorkerAlive()]))
    with pytest.raises(IpcError, match="another version"):
        IpcDecoder(NOTIFICATION_KINDS).feed(encode([RunEngine(1)]))


class ChannelPair:
    """Both ends of a channel."""

    def __init__(self) -> None:
        self.received: list[Any] = []
        self.lost: list[str | None] = []
        self.ours = IpcChannel(ALL_KINDS, lambda _: None, lambda _: None)
        self.theirs = IpcChannel(ALL_KINDS, self.received.append, self.lost.append)
        self.sockets = socket.socketpair()

    async def open(self, *, theirs: bool = True) -> None:
        loop = asyncio.get_running_loop()
        await loop.create_unix_connection(lambda: self.ours, sock=self.sockets[0])
        if theirs:
            await loop.create_unix_connection(lambda: self.theirs, sock=self.sockets[1])


@pytest.fixture
async def pair() -> AsyncIterator[ChannelPair]:
    pair = ChannelPair()
    yield pair
    for channel in (pair.ours, pair.theirs):
        channel.abort()
    await asyncio.sleep(0)
    for end in pair.sockets:
        end.close()


async def test_many_messages_keep_their_order(pair: ChannelPair) -> None:
    await pair.open()
    for number in range(1000):
        pair.ours.send(RunEngine(number))
    await wait_until_async(lambda: len(pair.received) == 1000)
    assert pair.received == [RunEngine(number) for number in range(1000)]


async def test_messages_sent_before_the_end_still_arrive(pair: ChannelPair) -> None:
    await pair.open()
    pair.ours.send(RunEngine(1))
    pair.ours.close()
    pair.ours.send(RunEngine(2))
    await wait_until_async(lambda: pair.lost)
    assert pair.received == [RunEngine(1)]
    assert pair.lost == [None]


async def test_an_end_that_sends_something_else_is_cut_off(pair: ChannelPair) -> None:
    await pair.open(theirs=False)
    await asyncio.get_running_loop().create_unix_connection(lambda: pair.theirs, sock=pair.sockets[1])
    assert pair.ours._transport is not None
    pair.ours._transport.write(struct.pack("!I", 4) + b"junk")
    await wait_until_async(lambda: pair.lost)
    assert "another version" in (pair.lost[0] or "")


async def test_an_end_that_does_not_read_makes_the_channel_clogged(pair: ChannelPair) -> None:
    await pair.open(theirs=False)
    assert not pair.ours.is_clogged
    pair.ours.send(EngineEnded(1, None, "x" * (8 << 20)))
    await wait_until_async(lambda: pair.ours.is_clogged)

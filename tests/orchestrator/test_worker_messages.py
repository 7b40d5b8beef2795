"""The border between the supervisor and a worker: what is said arrives, whole, in order, and nothing else does."""

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
    Adopt,
    Beat,
    BorderError,
    Channel,
    Close,
    Decoder,
    Drain,
    Drop,
    Ended,
    Happened,
    Make,
    Prepare,
    Prepared,
    Retry,
    Run,
    Views,
    encode,
)
from tests.support.strategies import addresses, keys
from tests.support.waiting import wait_until_async
from tunnel.model.events import Event, EventKind
from tunnel.model.options import make_spec
from tunnel.model.spec import LogLevel, Mode, Role, TunnelSpec
from tunnel.model.url import parse_url

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
    st.builds(Make, numbers, texts, specs),
    st.builds(Prepare, numbers, numbers),
    st.builds(Run, numbers),
    st.builds(Drain, numbers, st.none() | st.floats(0, 1e6)),
    st.builds(Close, numbers),
    st.builds(Retry, numbers),
    st.builds(Adopt, numbers, specs),
    st.builds(Drop, numbers),
    st.builds(Beat),
    st.builds(lambda number, name, spec: Views(((number, stopped_snapshot(name, spec)),)), numbers, texts, specs),
    st.builds(lambda number, name, text: Happened(number, _event(name, text)), numbers, texts, texts),
    st.builds(Prepared, numbers, st.none() | texts, st.none() | st.integers(1, 133)),
    st.builds(Ended, numbers, st.none(), st.none() | texts, st.lists(texts, max_size=3).map(tuple)),
)


@given(frames=st.lists(st.lists(messages, max_size=3), max_size=4), cuts=st.lists(st.integers(1, 700), min_size=1))
def test_what_is_said_arrives_however_it_is_cut(frames: list[list[Any]], cuts: list[int]) -> None:
    stream = b"".join(map(encode, frames))
    decoder, found, position, turn = Decoder(), [], 0, 0
    while position < len(stream):
        step = cuts[turn % len(cuts)]
        found += decoder.feed(stream[position : position + step])
        position, turn = position + step, turn + 1
    assert found == [message for frame in frames for message in frame]


def test_keys_travel_but_do_not_show() -> None:
    spec = make_spec(parse_url("server://very-secret@127.0.0.1:1/127.0.0.1:2"), environ={})
    (found,) = Decoder().feed(encode([Make(1, "web", spec)]))
    assert found.spec.key.reveal() == "very-secret"
    assert "very-secret" not in repr(found)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"\xff\xff\xff\xff", "without end"),
        (struct.pack("!I", 4) + b"junk", "speaks differently"),
        (encode([Beat()]).replace(b"Beat", b"Bean"), "speaks differently"),
    ],
)
def test_what_is_not_ours_is_refused(data: bytes, says: str) -> None:
    with pytest.raises(BorderError, match=says):
        Decoder().feed(data)


class Border:
    """Both ends of a border."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.lost: list[str | None] = []
        self.ours = Channel(lambda _: None, lambda _: None)
        self.theirs = Channel(self.heard.append, self.lost.append)
        self.sockets = socket.socketpair()

    async def open(self, *, theirs: bool = True) -> None:
        loop = asyncio.get_running_loop()
        await loop.create_unix_connection(lambda: self.ours, sock=self.sockets[0])
        if theirs:
            await loop.create_unix_connection(lambda: self.theirs, sock=self.sockets[1])


@pytest.fixture
async def border() -> AsyncIterator[Border]:
    border = Border()
    yield border
    for channel in (border.ours, border.theirs):
        channel.abort()
    await asyncio.sleep(0)
    for end in border.sockets:
        end.close()


async def test_many_messages_keep_their_order(border: Border) -> None:
    await border.open()
    for number in range(1000):
        border.ours.send(Run(number))
    await wait_until_async(lambda: len(border.heard) == 1000)
    assert border.heard == [Run(number) for number in range(1000)]


async def test_what_was_said_before_the_end_still_arrives(border: Border) -> None:
    await border.open()
    border.ours.send(Run(1))
    border.ours.close()
    border.ours.send(Run(2))
    await wait_until_async(lambda: border.lost)
    assert border.heard == [Run(1)]
    assert border.lost == [None]


async def test_an_end_that_speaks_differently_is_cut_off(border: Border) -> None:
    await border.open(theirs=False)
    await asyncio.get_running_loop().create_unix_connection(lambda: border.theirs, sock=border.sockets[1])
    assert border.ours._transport is not None
    border.ours._transport.write(struct.pack("!I", 4) + b"junk")
    await wait_until_async(lambda: border.lost)
    assert "speaks differently" in (border.lost[0] or "")


async def test_an_end_that_does_not_read_is_noticed(border: Border) -> None:
    await border.open(theirs=False)
    assert not border.ours.is_clogged
    border.ours.send(Ended(1, None, "x" * (8 << 20)))
    await wait_until_async(lambda: border.ours.is_clogged)

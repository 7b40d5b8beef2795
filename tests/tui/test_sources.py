"""The stream of a daemon, its losses, and its refusals."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.scale import GUARD_S
from tests.tui.fake import FakeDaemon
from tui.sources import ApiSource, Beat, Change, Happened, Heard, Lost, RefusedError, Status
from tui.stream import EventStream, StreamError


@given(st.lists(st.integers(1, 7), min_size=1, max_size=60))
def test_a_stream_may_be_cut_anywhere(cuts: list[int]) -> None:
    whole = ': hello\n\nevent: status\ndata: {"a":\ndata: 1}\n\nevent: event\r\ndata: ü\r\n\r\n'.encode()
    stream, events, start = EventStream(), [], 0
    for cut in [*cuts, len(whole)]:
        events += stream.feed(whole[start : start + cut])
        start += cut
    assert events == [("status", '{"a":\n1}'), ("event", "ü")]


def test_an_event_without_an_end_is_refused() -> None:
    stream = EventStream()
    for _ in range(63):
        assert stream.feed(b"x" * (1 << 20)) == []
    with pytest.raises(StreamError):
        stream.feed(b"x" * (2 << 20))


async def following(heard: AsyncIterator[Heard]) -> Heard:
    async with asyncio.timeout(GUARD_S):
        while isinstance(message := await anext(heard), Beat):
            pass
        return message


async def test_watching_tells_status_changes_events_loss_and_return(socket: Path, daemon: FakeDaemon) -> None:
    async with ApiSource(socket) as source, aclosing(source.watch()) as heard:  # type: ignore[type-var]  # it is a generator
        assert isinstance(await following(heard), Status)
        daemon.change("db-east", state="failed")
        change = await following(heard)
        assert isinstance(change, Change)
        assert change.data["changed"] == {"db-east": {"state": "failed"}}
        daemon.happen(daemon.event("warn", "link", "lost", "db-east"))
        assert isinstance(await following(heard), Happened)
        await daemon.stop()
        assert isinstance(await following(heard), Lost)
        assert await following(heard) == Lost("nobody listens there")
        await daemon.start()
        while isinstance(again := await following(heard), Lost):
            pass
        assert isinstance(again, Status)


async def test_names_travel_unharmed(socket: Path) -> None:
    name = "a/b %2F?#[red] 世界"
    async with FakeDaemon(socket, [{"name": name, "state": "stopped"}]) as fake, ApiSource(socket) as source:
        await source.command("start", name)
        assert fake.commands == [("start", name)]
        assert (await source.tunnel(name))["name"] == name


async def test_refusals_are_sentences(socket: Path, daemon: FakeDaemon) -> None:
    async with ApiSource(socket) as source:
        with pytest.raises(RefusedError, match="no tunnel is named 'none'"):
            await source.tunnel("none")
        daemon.refusal = "it is draining"
        with pytest.raises(RefusedError, match="it is draining"):
            await source.command("start", "db-east")
        await daemon.stop()
        with pytest.raises(RefusedError, match="nobody listens there"):
            await source.plan()


async def test_somebody_else_at_the_socket(socket: Path) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")
        writer.close()

    async with await asyncio.start_unix_server(answer, socket), ApiSource(socket) as source:
        with pytest.raises(RefusedError, match="does not answer as a daemon"):
            await source.plan()

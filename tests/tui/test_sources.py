"""The API of a daemon as a source: its stream, lost connections, refusals."""

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
from tui.sources.base import (
    Disconnected,
    EventReceived,
    SourceError,
    SourceHeartbeat,
    SourceMessage,
    StatusChanged,
    StatusReceived,
)
from tui.sources.daemon import ApiSource
from tui.sources.sse import SseError, SseParser


@given(st.lists(st.integers(1, 7), min_size=1, max_size=60))
def test_the_parser_accepts_a_stream_in_pieces_of_any_size(cuts: list[int]) -> None:
    whole = ': hello\n\nevent: status\ndata: {"a":\ndata: 1}\n\nevent: event\r\ndata: ü\r\n\r\n'.encode()
    stream, events, start = SseParser(), [], 0
    for cut in [*cuts, len(whole)]:
        events += stream.receive_data(whole[start : start + cut])
        start += cut
    assert events == [("status", '{"a":\n1}'), ("event", "ü")]


def test_the_parser_rejects_an_event_without_an_end() -> None:
    stream = SseParser()
    for _ in range(63):
        assert stream.receive_data(b"x" * (1 << 20)) == []
    with pytest.raises(SseError):
        stream.receive_data(b"x" * (2 << 20))


async def next_change(messages: AsyncIterator[SourceMessage]) -> SourceMessage:
    async with asyncio.timeout(GUARD_S):
        while isinstance(message := await anext(messages), SourceHeartbeat):
            pass
        return message


async def test_watching_yields_status_changes_events_and_reconnects_after_a_loss(
    socket: Path, daemon: FakeDaemon
) -> None:
    async with ApiSource(socket) as source, aclosing(source.watch()) as messages:  # type: ignore[type-var]  # it is a generator
        assert isinstance(await next_change(messages), StatusReceived)
        daemon.change("db-east", state="failed")
        change = await next_change(messages)
        assert isinstance(change, StatusChanged)
        assert change.data["changed"] == {"db-east": {"state": "failed"}}
        daemon.send_event(daemon.event("warn", "link", "lost", "db-east"))
        assert isinstance(await next_change(messages), EventReceived)
        await daemon.stop()
        assert isinstance(await next_change(messages), Disconnected)
        assert await next_change(messages) == Disconnected("no daemon listens there")
        await daemon.start()
        while isinstance(again := await next_change(messages), Disconnected):
            pass
        assert isinstance(again, StatusReceived)


async def test_names_with_special_characters_reach_the_api_unchanged(socket: Path) -> None:
    name = "a/b %2F?#[red] 世界"
    async with FakeDaemon(socket, [{"name": name, "state": "stopped"}]) as fake, ApiSource(socket) as source:
        await source.send_command("start", name)
        assert fake.commands == [("start", name)]
        assert (await source.fetch_tunnel(name))["name"] == name


async def test_failed_and_refused_requests_raise_a_sentence(socket: Path, daemon: FakeDaemon) -> None:
    async with ApiSource(socket) as source:
        with pytest.raises(SourceError, match="no tunnel is named 'none'"):
            await source.fetch_tunnel("none")
        daemon.refusal = "it is draining"
        with pytest.raises(SourceError, match="it is draining"):
            await source.send_command("start", "db-east")
        await daemon.stop()
        with pytest.raises(SourceError, match="no daemon listens there"):
            await source.fetch_plan()


async def test_a_server_that_is_not_our_daemon_is_reported(socket: Path) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")
        writer.close()

    async with await asyncio.start_unix_server(answer, socket), ApiSource(socket) as source:
        with pytest.raises(SourceError, match="not that of a nodepass-orch daemon"):
            await source.fetch_plan()

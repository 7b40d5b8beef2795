"""What an engine does with a shared connection beside its lanes: moves, when it shares no more, what it promises."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.support.engine_parts import no_descriptor_leak, shared_parts
from tests.support.scale import GUARD_S
from tests.support.waiting import wait_until_async
from tests.tunnel.test_engine import RunningEngine, echo, pair, pool_of, round_trip, visit, visitors_address
from tunnel.engine import pool_filler
from tunnel.engine.context import EngineContext
from tunnel.engine.link import Link
from tunnel.engine.relays import VANISHED_AFTER_S
from tunnel.engine.shared_connection import SharedConnection
from tunnel.model.spec import Direction, Mux
from tunnel.protocol.session import Session

BULK_BYTES = 1 << 20


@pytest.fixture
async def shared() -> AsyncIterator[EngineContext]:
    with no_descriptor_leak():
        async with shared_parts() as parts:
            yield parts


def link_of(running: RunningEngine) -> Link:
    """The only link of an engine."""
    end = running.engine._end
    assert end is not None
    (link,) = end._links
    return link


def idle(running: RunningEngine) -> set[int]:
    """The ids of the idle data connections of an engine."""
    return set(pool_of(running).idle)


async def start_sharing(*ends: RunningEngine) -> None:
    """Serve the first visitor, which lets the next ones share a data connection."""
    await wait_until_async(lambda: len(idle(ends[0])) >= 8 <= len(idle(ends[1])), "the pools are full")
    await round_trip(visitors_address(*ends), size=1_000)


async def test_a_visitor_may_move_to_a_connection_that_the_client_does_not_know_as_pooled_yet(
    shared: EngineContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    late: list[int] = []
    async with echo() as target, pair(shared, target, Direction.REVERSE, mux=Mux.ON) as (server, client):
        await start_sharing(server, client)
        monkeypatch.setattr(Session, "send_pooled", lambda _session, ident: late.append(ident))
        await round_trip(visitors_address(server, client), size=BULK_BYTES)  # the client dials another one
        await wait_until_async(lambda: late, "the server has one that the client does not know")
        youngest = next(reversed(pool_of(server).idle))
        assert youngest in late, "the next visitor moves to it"
        assert not set(late) & idle(client)
        await round_trip(visitors_address(server, client), size=BULK_BYTES)
        assert youngest not in idle(server), "a visitor has moved to it"
        assert client.engine.snapshot().connections.failed == 0


@pytest.mark.parametrize("direction", list(Direction))
async def test_connections_that_visitors_have_moved_to_are_replaced(
    shared: EngineContext, monkeypatch: pytest.MonkeyPatch, direction: Direction
) -> None:
    for name in ("_PAUSE_S", "_SWEEP_INTERVAL_S"):  # neither timer, nor a ping, fills the pool in this test
        monkeypatch.setattr(pool_filler, name, 3600.0)
    monkeypatch.setattr(Link, "_refill", lambda _link: None)
    async with echo() as target, pair(shared, target, direction, mux=Mux.ON) as ends:
        await start_sharing(*ends)
        for _ in range(12):
            await round_trip(visitors_address(*ends), size=BULK_BYTES)
        await wait_until_async(lambda: len(idle(ends[1])) >= 6, "the pool is ample again")


async def test_a_stalled_connection_gets_no_new_visitors_and_keeps_those_it_has(
    shared: EngineContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with echo() as target, pair(shared, target, Direction.REVERSE, mux=Mux.ON) as ends:
        await start_sharing(*ends)
        address = visitors_address(*ends)
        stalled = link_of(ends[0]).sharing.current
        assert stalled is not None
        async with visit(address) as (reader, writer):
            writer.write(b"before")
            assert await reader.readexactly(6) == b"before"
            assert len(stalled) == 1
            monkeypatch.setattr(SharedConnection, "unanswered_s", lambda _shared: 4.0)
            link_of(ends[0]).sharing.check()
            monkeypatch.undo()
            await round_trip(address, size=1_000)
            await round_trip(address, size=1_000)
            assert link_of(ends[0]).sharing.current not in {None, stalled}
            writer.write(b"after")
            assert await reader.readexactly(5) == b"after"
        await wait_until_async(lambda: stalled.sock.fileno() < 0, "it is closed after its last visitor")


@pytest.mark.parametrize("direction", list(Direction))
async def test_a_connection_whose_peer_has_vanished_is_closed_with_its_visitors(
    shared: EngineContext, monkeypatch: pytest.MonkeyPatch, direction: Direction
) -> None:
    async with echo() as target, pair(shared, target, direction, mux=Mux.ON) as ends:
        await start_sharing(*ends)
        async with visit(visitors_address(*ends)) as (reader, writer):
            writer.write(b"before")
            assert await reader.readexactly(6) == b"before"
            monkeypatch.setattr(SharedConnection, "unanswered_s", lambda _shared: VANISHED_AFTER_S + 1)
            link_of(ends[0]).sharing.check()
            monkeypatch.undo()
            with pytest.raises(ConnectionResetError):
                async with asyncio.timeout(GUARD_S):
                    await reader.read()
        await round_trip(visitors_address(*ends), size=1_000)


async def test_no_visitor_moves_after_the_goodbye(shared: EngineContext) -> None:
    async with echo() as target, pair(shared, target, Direction.REVERSE, mux=Mux.ON) as (server, client):
        await start_sharing(server, client)
        async with visit(visitors_address(server, client)) as (reader, writer):
            writer.write(b"before")
            assert await reader.readexactly(6) == b"before"
            connection = link_of(server).sharing.current
            assert connection is not None
            (lane,) = connection.lanes.values()
            link_of(server).send_goodbye("test")
            sent = bytes(BULK_BYTES)
            writer.write(sent)
            async with asyncio.timeout(GUARD_S):
                assert await reader.readexactly(BULK_BYTES) == sent
            assert not lane.is_moving
            assert list(connection.lanes.values()) == [lane]

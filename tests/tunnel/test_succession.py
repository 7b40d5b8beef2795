"""One engine takes another's place; and who closes data connections first."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support.engine_parts import Events
from tests.support.ports import free_port
from tests.support.scale import GUARD_S
from tests.support.waiting import wait_until_async
from tests.tunnel.test_engine import (
    KEY,
    UP,
    Life,
    echo,
    living,
    pair,
    server_spec,
    shared,
    spec,
    visit,
    visitors_address,
)
from tunnel.engine.context import EngineContext
from tunnel.engine.factory import create_engine
from tunnel.forwarding.tcp import Relay
from tunnel.model.spec import DataTls, Direction, Mode, Role, TunnelSpec
from tunnel.model.state import State
from tunnel.runtime.sockets import NetError

__all__ = ["shared"]  # a fixture, used by name


@asynccontextmanager
async def succeeding(parts: EngineContext, old: Life, changed: TunnelSpec) -> AsyncIterator[Life]:
    """An engine in the place of another, which drains."""
    engine = create_engine(old.engine.name, changed, parts, old.events.append)
    await engine.prepare(old.engine)
    old.engine.drain(2 * GUARD_S)
    life = Life(engine, old.events, asyncio.create_task(engine.run()))
    try:
        yield life
    finally:
        engine.close()
        await asyncio.wait({life.task})


@asynccontextmanager
async def speaking(word: bytes) -> AsyncIterator[str]:
    """A target that says a word, and ends when its visitor has."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            writer.write(word)
            await reader.read()
        writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    finally:
        listener.close()


async def test_a_changed_server_takes_the_port_without_losing_anybody(shared: EngineContext) -> None:
    tunnel = f"127.0.0.1:{free_port()}"
    visitors = f"127.0.0.1:{free_port()}"
    async with (
        speaking(b"old") as first,
        speaking(b"new") as second,
        living(shared, server_spec(first, tunnel, mode=Mode.FORWARD)) as server,
        living(shared, spec(Role.CLIENT, tunnel, visitors, key=KEY)) as client,
    ):
        await client.becomes(UP)
        async with contextlib.AsyncExitStack() as stack:
            reader, writer = await stack.enter_async_context(visit(visitors))
            async with asyncio.timeout(GUARD_S):
                assert await reader.readexactly(3) == b"old"
            changed = server_spec(second, tunnel, mode=Mode.FORWARD)
            successor = await stack.enter_async_context(succeeding(shared, server, changed))
            async with visit(visitors) as (other, _), asyncio.timeout(GUARD_S):  # while the link moves
                assert await other.readexactly(3) in {b"old", b"new"}
            await successor.becomes(UP)
            async with visit(visitors) as (other, _), asyncio.timeout(GUARD_S):
                assert await other.readexactly(3) == b"new"
            assert server.state is State.DRAINING
            writer.write_eof()
            assert await reader.read() == b""
            await server.end()


async def test_a_changed_client_keeps_accepting_on_its_port(shared: EngineContext) -> None:
    visitors = f"127.0.0.1:{free_port()}"
    tunnel = f"127.0.0.1:{free_port()}"
    async with (
        speaking(b"word") as target,
        living(shared, server_spec(target, tunnel, mode=Mode.FORWARD)),
        living(shared, spec(Role.CLIENT, tunnel, visitors, key=KEY)) as client,
    ):
        await client.becomes(UP)
        changed = dataclasses.replace(client.engine.spec, data_tls=DataTls.PINNED)
        async with succeeding(shared, client, changed) as successor:
            async with visit(visitors) as (reader, _), asyncio.timeout(GUARD_S):
                assert await reader.readexactly(4) == b"word"
            await successor.becomes(UP)
            assert successor.engine.snapshot().data_tls == 1
            await client.end()


async def test_what_cannot_be_bound_leaves_the_old_one_as_it_was(shared: EngineContext) -> None:
    async with speaking(b"word") as target, pair(shared, target) as (server, client):
        watched = len(shared.reactor)
        taken = dataclasses.replace(server.engine.spec, target=client.engine.spec.target)
        with pytest.raises(NetError, match="in use"):
            await create_engine("successor", taken, shared, Events().append).prepare(server.engine)
        assert len(shared.reactor) == watched
        async with visit(visitors_address(server, client)) as (reader, _), asyncio.timeout(GUARD_S):
            assert await reader.readexactly(4) == b"word"


@pytest.mark.parametrize("direction", list(Direction))
@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize("visitor_first", [False, True])
async def test_the_server_is_the_first_to_close_data_connections(
    shared: EngineContext,
    direction: Direction,
    *,
    encrypted: bool,
    visitor_first: bool,
) -> None:
    tls = DataTls.PINNED if encrypted else DataTls.OFF
    async with (
        echo() if visitor_first else hasty() as target,
        pair(shared, target, direction, data_tls=tls) as (server, client),
    ):
        data_port = int((server.engine.snapshot().data_addr or "").rpartition(":")[2])
        async with visit(visitors_address(server, client)) as (reader, writer), asyncio.timeout(GUARD_S):
            connection = (data_port, await client_port_of_the_visitor(server))
            writer.write(b"hello")
            if visitor_first:
                writer.write_eof()
            assert await reader.read() == b"hello"
            writer.write_eof()
            await wait_until_async(lambda: not server.engine.snapshot().connections.active, "the visitor is served")
            await wait_until_async(lambda: not client.engine.snapshot().connections.active, "at the client too")
        await wait_until_async(lambda: "server" in lingering(*connection), "the server's end lingers")
        assert "client" not in lingering(*connection)


async def client_port_of_the_visitor(server: Life) -> int:
    """The client's port of the data connection that the only visitor has got: others may have ended otherwise."""
    end = server.engine._end
    assert end is not None
    await wait_until_async(lambda: end.relays.active, "the visitor has a data connection")
    (relay,) = end.relays._running
    assert isinstance(relay, Relay)
    port: int = relay._far.getpeername()[1]
    return port


def lingering(server_port: int, client_port: int) -> set[str]:
    """Whose ends of a data connection are in TIME_WAIT."""
    ends = set()
    for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]:
        _, local, remote, state, *_ = line.split()
        if state == "06":
            ports = (int(local[-4:], 16), int(remote[-4:], 16))
            ends |= {"server"} if ports == (server_port, client_port) else set()
            ends |= {"client"} if ports == (client_port, server_port) else set()
    return ends


@asynccontextmanager
async def hasty() -> AsyncIterator[str]:
    """A target that answers once and ends first."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read(5))
        writer.write_eof()
        await reader.read()
        writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    finally:
        listener.close()

"""One engine replaces another; and the server closes data connections first."""

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
from tests.support.sockets import close_listener
from tests.support.waiting import wait_until_async
from tests.tunnel.test_engine import (
    KEY,
    UP,
    RunningEngine,
    echo,
    pair,
    running_engine,
    server_spec,
    shared,
    spec,
    visit,
    visitors_address,
)
from tunnel.engine.context import EngineContext
from tunnel.engine.factory import create_engine
from tunnel.forwarding.tcp import Relay
from tunnel.model.spec import DataTls, Direction, Mode, Mux, Role, TunnelSpec
from tunnel.model.state import State
from tunnel.runtime.sockets import NetError

__all__ = ["shared"]  # a fixture, used by name


@asynccontextmanager
async def replacing(parts: EngineContext, old: RunningEngine, changed: TunnelSpec) -> AsyncIterator[RunningEngine]:
    """An engine that replaces another, which drains."""
    engine = create_engine(old.engine.name, changed, parts, old.events.append)
    await engine.prepare(old.engine)
    old.engine.drain(2 * GUARD_S)
    running = RunningEngine(engine, old.events, asyncio.create_task(engine.run()))
    try:
        yield running
    finally:
        engine.close()
        await asyncio.wait({running.task})


@asynccontextmanager
async def greeting_target(word: bytes) -> AsyncIterator[str]:
    """A target that sends a word, and ends after its visitor."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            writer.write(word)
            await reader.read()
        writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    finally:
        await close_listener(listener)


@pytest.mark.usefixtures("carriage")
async def test_a_changed_server_takes_over_the_port_without_losing_a_visitor(shared: EngineContext) -> None:
    tunnel = f"127.0.0.1:{free_port()}"
    visitors = f"127.0.0.1:{free_port()}"
    async with (
        greeting_target(b"old") as first,
        greeting_target(b"new") as second,
        running_engine(shared, server_spec(first, tunnel, mode=Mode.FORWARD)) as server,
        running_engine(shared, spec(Role.CLIENT, tunnel, visitors, key=KEY)) as client,
    ):
        await client.wait_state(UP)
        async with contextlib.AsyncExitStack() as stack:
            reader, writer = await stack.enter_async_context(visit(visitors))
            async with asyncio.timeout(GUARD_S):
                assert await reader.readexactly(3) == b"old"
            changed = server_spec(second, tunnel, mode=Mode.FORWARD)
            replacement = await stack.enter_async_context(replacing(shared, server, changed))
            async with visit(visitors) as (other, _), asyncio.timeout(GUARD_S):  # while the link moves
                assert await other.readexactly(3) in {b"old", b"new"}
            await replacement.wait_state(UP)
            async with visit(visitors) as (other, _), asyncio.timeout(GUARD_S):
                assert await other.readexactly(3) == b"new"
            assert server.state is State.DRAINING
            writer.write_eof()
            assert await reader.read() == b""
            await server.wait_end()


@pytest.mark.usefixtures("carriage")
async def test_a_changed_client_keeps_accepting_on_its_port(shared: EngineContext) -> None:
    visitors = f"127.0.0.1:{free_port()}"
    tunnel = f"127.0.0.1:{free_port()}"
    async with (
        greeting_target(b"word") as target,
        running_engine(shared, server_spec(target, tunnel, mode=Mode.FORWARD)),
        running_engine(shared, spec(Role.CLIENT, tunnel, visitors, key=KEY)) as client,
    ):
        await client.wait_state(UP)
        changed = dataclasses.replace(client.engine.spec, data_tls=DataTls.ENCRYPTED)
        async with replacing(shared, client, changed) as replacement:
            async with visit(visitors) as (reader, _), asyncio.timeout(GUARD_S):
                assert await reader.readexactly(4) == b"word"
            await replacement.wait_state(UP)
            assert replacement.engine.snapshot().data_tls == 1
            await client.wait_end()


async def test_a_replacement_that_cannot_bind_leaves_the_old_engine_unchanged(shared: EngineContext) -> None:
    async with greeting_target(b"word") as target, pair(shared, target) as (server, client):
        watched = len(shared.reactor)
        taken = dataclasses.replace(server.engine.spec, target=client.engine.spec.target)
        with pytest.raises(NetError, match="in use"):
            await create_engine("replacement", taken, shared, Events().append).prepare(server.engine)
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
    tls = DataTls.ENCRYPTED if encrypted else DataTls.OFF
    async with (
        echo() if visitor_first else early_closing_target() as target,
        pair(shared, target, direction, data_tls=tls, mux=Mux.OFF) as (server, client),
    ):
        data_port = int((server.engine.snapshot().data_addr or "").rpartition(":")[2])
        async with visit(visitors_address(server, client)) as (reader, writer), asyncio.timeout(GUARD_S):
            connection = (data_port, await get_data_connection_port(server))
            writer.write(b"hello")
            if visitor_first:
                writer.write_eof()
            assert await reader.read() == b"hello"
            writer.write_eof()
            await wait_until_async(lambda: not server.engine.snapshot().connections.active, "the visitor is served")
            await wait_until_async(lambda: not client.engine.snapshot().connections.active, "at the client too")
        await wait_until_async(lambda: "server" in time_wait_ends(*connection), "the server's end lingers")
        assert "client" not in time_wait_ends(*connection)


async def get_data_connection_port(server: RunningEngine) -> int:
    """The client's port of the data connection of the only visitor."""
    end = server.engine._end
    assert end is not None
    await wait_until_async(lambda: end.relays.active, "the visitor has a data connection")
    (relay,) = end.relays.running()
    assert isinstance(relay, Relay)
    port: int = relay._far.getpeername()[1]
    return port


def time_wait_ends(server_port: int, client_port: int) -> set[str]:
    """The ends of a data connection that are in TIME_WAIT."""
    ends = set()
    for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]:
        _, local, remote, state, *_ = line.split()
        if state == "06":
            ports = (int(local[-4:], 16), int(remote[-4:], 16))
            ends |= {"server"} if ports == (server_port, client_port) else set()
            ends |= {"client"} if ports == (client_port, server_port) else set()
    return ends


@asynccontextmanager
async def early_closing_target() -> AsyncIterator[str]:
    """A target that answers once and ends before its visitor."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read(5))
        writer.write_eof()
        await reader.read()
        writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    finally:
        await close_listener(listener)


@pytest.mark.parametrize("data_tls", [DataTls.OFF, DataTls.ENCRYPTED])
async def test_what_a_client_announces_before_it_answers_a_goodbye_still_counts(
    shared: EngineContext, data_tls: DataTls
) -> None:
    """The end of the target's stream is on its way over the link when the server starts to drain."""
    async with echo() as target, pair(shared, target, data_tls=data_tls, reuse=True, mux=Mux.OFF) as (server, client):
        async with visit(visitors_address(server)) as (reader, writer), asyncio.timeout(GUARD_S):
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
            link = client.engine._link
            assert link is not None
            link.session._on_output = lambda: None  # what the client sends stays in the session until it is flushed
            writer.write_eof()
            await wait_until_async(lambda: not client.engine.snapshot().connections.active, "the client has finished")
            assert server.engine.snapshot().connections.active == 1
            server.engine.drain(5)
            assert await reader.read() == b""
        await asyncio.wait_for(server.task, GUARD_S)

"""Engines whose network is not as it was: silent addresses of a name, closed ports, addresses that come later."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import pytest

from tests.support.ports import free_port
from tests.support.waiting import wait_until_async
from tests.tunnel.test_engine import (
    KEY,
    UP,
    RunningEngine,
    echo,
    pair,
    round_trip,
    running_engine,
    server_spec,
    shared,
    spec,
    visitors_address,
)
from tunnel.engine import pool_filler
from tunnel.engine.context import EngineContext, Timing
from tunnel.engine.control_channel import ControlChannel
from tunnel.engine.link import Link
from tunnel.engine.server_engine import ServerEngine
from tunnel.model.keys import Key
from tunnel.model.spec import Direction, Mode, Mux, Role
from tunnel.model.state import State
from tunnel.runtime import backoff, listeners
from tunnel.runtime.name_lookup import SYSTEM_NAMES

__all__ = ["shared"]  # a fixture, used by name

OpenServer = Callable[[EngineContext, int], contextlib.AbstractAsyncContextManager[None]]
QUICK = Timing(handshake_timeout_s=0.3, retry_delay=lambda *_: 0.01)


@asynccontextmanager
async def silent_server(_shared: EngineContext, port: int) -> AsyncIterator[None]:
    """A host that accepts connections and sends nothing, as a frozen process does."""
    with socket.create_server(("127.0.0.2", port)):
        yield


@asynccontextmanager
async def other_server(shared: EngineContext, port: int) -> AsyncIterator[None]:
    """A server with another key."""
    other = server_spec("127.0.0.1:0", f"127.0.0.2:{port}", mode=Mode.REVERSE, key=Key("the key of another service"))
    async with running_engine(shared, other, "other"):
        yield


@pytest.mark.parametrize("first", [silent_server, other_server])
@pytest.mark.parametrize("shared", [QUICK], indirect=True)
async def test_a_client_tries_the_next_address_after_one_that_only_accepts_connections(
    shared: EngineContext, monkeypatch: pytest.MonkeyPatch, first: OpenServer
) -> None:
    def getaddrinfo(_host: str, _port: None, *, type: socket.SocketKind) -> list[tuple[object, ...]]:  # noqa: A002  as socket's
        return [(socket.AF_INET, type, 6, "", (ip, 0)) for ip in ("127.0.0.2", "127.0.0.1")]

    monkeypatch.setattr(SYSTEM_NAMES, "_getaddrinfo", getaddrinfo)
    port = free_port()
    async with (
        echo() as target,
        first(shared, port),
        running_engine(shared, server_spec("127.0.0.1:0", f"127.0.0.1:{port}", mode=Mode.REVERSE)) as server,
        running_engine(shared, spec(Role.CLIENT, f"replicas.test:{port}", target, key=KEY)) as client,
    ):
        await client.wait_state(UP)
        await server.wait_state(UP)
        assert client.engine.snapshot().peer == f"127.0.0.1:{port}"


def close_ports(server: RunningEngine, *purposes: str) -> Iterator[int]:
    """Close listeners of a server whose link stays; yield the ports."""
    assert isinstance(server.engine, ServerEngine)
    place = server.engine.place
    assert place is not None
    for acceptor in [
        place.port.tunnel_acceptor if name == listeners.TUNNEL else place.data_acceptor for name in purposes
    ]:
        assert acceptor is not None
        acceptor.close()
        yield acceptor.port


@pytest.mark.parametrize("is_silent", [True, False], ids=["silent", "refusing"])
async def test_a_data_port_that_is_closed_later_is_replaced_before_visitors_give_up(
    shared: EngineContext, monkeypatch: pytest.MonkeyPatch, *, is_silent: bool
) -> None:
    monkeypatch.setattr(pool_filler, "_SLOW_DIAL_S", 0.1)
    async with echo() as target, pair(shared, target, mux=Mux.OFF) as (server, client):
        await round_trip(visitors_address(server))
        (port,) = close_ports(server, listeners.DATA)
        with contextlib.ExitStack() as stack:
            if is_silent:
                silent = stack.enter_context(socket.create_server(("127.0.0.1", port), backlog=0))
                for _ in range(3):
                    filler = stack.enter_context(socket.socket())
                    filler.setblocking(False)
                    filler.connect_ex(silent.getsockname())
            for _ in range(2 * server.engine.spec.settings.min_pool_capacity):
                await round_trip(visitors_address(server), 100)
        assert client.engine.snapshot().data_addr == server.engine.snapshot().tunnel_addr
        assert client.events.said(f"data port {port}: it does not answer; using the tunnel port") is is_silent


async def test_retry_ends_the_pause_after_failed_data_connections(
    shared: EngineContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backoff, "blocked_delay", lambda *_: 600.0)
    async with echo() as target, pair(shared, target) as (server, client):
        ports = list(close_ports(server, listeners.DATA, listeners.TUNNEL))
        await round_trip(visitors_address(server), 100)
        await wait_until_async(lambda: client.events.said("next attempt in 600 s"), "dialling pauses")
        with contextlib.ExitStack() as stack:
            opened = [stack.enter_context(socket.create_server(("127.0.0.1", port))) for port in ports]
            for listener in opened:
                listener.setblocking(False)
            client.engine.retry()

            def has_visitor() -> bool:
                for listener in opened:
                    with contextlib.suppress(BlockingIOError):
                        listener.accept()[0].close()
                        return True
                return False

            await wait_until_async(has_visitor, "the client dials again")


async def test_a_server_accepts_visitors_on_an_address_that_its_host_received_later(
    shared: EngineContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listeners, "decide_direction", lambda _spec: Direction.FORWARD)
    tunnel = f"127.0.0.1:{free_port()}"
    async with echo() as target, running_engine(shared, server_spec(f"127.0.0.1:{free_port()}", tunnel)) as server:
        await server.wait_state(State.WAITING)
        monkeypatch.undo()
        async with running_engine(shared, spec(Role.CLIENT, tunnel, target, key=KEY)) as client:
            await wait_until_async(lambda: server.events.said("has become an address of this server"), "it is noticed")
            await client.wait_state(UP)
            await server.wait_state(UP)
            assert server.engine.snapshot().direction == Direction.REVERSE
            await round_trip(visitors_address(server))


async def test_a_link_ends_soon_when_its_local_address_is_gone(
    shared: EngineContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with echo() as target, pair(shared, target, report_interval=0.2) as (server, client):
        with monkeypatch.context() as patch:
            patch.setattr(ControlChannel, "has_local_address", lambda _self: False)
            patch.setattr(Link, "on_frames", lambda *_: None)
            await wait_until_async(lambda: client.events.said("no longer has the address 127.0.0.1:"), "it is noticed")
        assert not client.events.said("has been silent for ")
        await client.wait_state(UP)
        await server.wait_state(UP)

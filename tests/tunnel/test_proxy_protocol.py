"""PROXY headers over real sockets: what a target is sent, and what an ingress expects from a balancer."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest

from tests.support.engine_parts import shared_parts
from tests.support.scale import GUARD_S
from tests.support.sockets import close_listener
from tests.support.waiting import run_loop_turns, wait_until_async
from tests.tunnel.test_engine import (
    UP,
    RunningEngine,
    client_spec,
    running_engine,
    server_spec,
    shared,
    visit,
    visitors_address,
)
from tests.tunnel.test_visitor_rules import networks
from tunnel.engine.context import EngineContext
from tunnel.engine.proxy_reader import ProxyHeaderReader
from tunnel.model.address import parse_address
from tunnel.model.spec import DataTls, Mode, ProxyVersion
from tunnel.model.state import State
from tunnel.protocol.proxy_header import ProxyHeader, encode_header, parse_header
from tunnel.protocol.visitor_address import pack_address

__all__ = ["shared"]


@asynccontextmanager
async def recorder(received: list[bytes]) -> AsyncIterator[str]:
    """A target that speaks first, and records what it receives of each connection."""
    writers = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.add(writer)
        writer.write(b"220 ready\r\n")
        received.append(await reader.read(-1))
        writer.close()
        writers.discard(writer)

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    finally:
        await close_listener(listener)
        await wait_until_async(lambda: not writers, "the target's connections are over")


@asynccontextmanager
async def proxy_pair(
    shared: EngineContext,
    target: str,
    version: ProxyVersion,
    **both: Any,  # noqa: ANN401  any field of a spec
) -> AsyncIterator[tuple[RunningEngine, RunningEngine]]:
    """An ingress, and an egress that sends headers."""
    async with running_engine(shared, server_spec("127.0.0.1:0", mode=Mode.REVERSE, **both)) as ingress:
        await ingress.wait_state(State.WAITING)
        async with running_engine(shared, client_spec(ingress, target, proxy=version, **both)) as egress:
            await ingress.wait_state(UP)
            await egress.wait_state(UP)
            yield ingress, egress


def _has_received(received: list[bytes], count: int) -> bool:
    return len(received) == count


async def send(address: str, content: bytes) -> tuple[str, int]:
    """Visit: wait for the target's greeting, then send; return the visitor's own address."""
    async with visit(address) as (reader, writer), asyncio.timeout(GUARD_S):
        assert await reader.readline() == b"220 ready\r\n"
        writer.write(content)
        writer.write_eof()
        assert await reader.read() == b""
        host, port = writer.get_extra_info("sockname")[:2]
        return host, port


@pytest.mark.usefixtures("carriage")
@pytest.mark.parametrize("data_tls", [DataTls.OFF, DataTls.ENCRYPTED])
@pytest.mark.parametrize("version", [ProxyVersion.V1, ProxyVersion.V2])
async def test_the_target_is_sent_the_visitors_address_before_its_first_byte(
    shared: EngineContext, data_tls: DataTls, version: ProxyVersion
) -> None:
    received: list[bytes] = []
    content = bytes(n % 251 for n in range(200_000))
    async with (
        recorder(received) as target,
        proxy_pair(shared, target, version, data_tls=data_tls) as (ingress, egress),
    ):
        visitor = await send(visitors_address(ingress, egress), content)
        await wait_until_async(lambda: received, "the target has received everything")
        header = parse_header(received[0])
        assert header is not None
        assert header.source == visitor
        assert received[0][header.size :] == content
        assert egress.engine.snapshot().bytes.from_visitors == len(content), "the header is not the visitor's"


@pytest.mark.usefixtures("carriage")
async def test_each_visitor_of_a_data_connection_has_an_id_of_its_own_that_both_ends_know(
    shared: EngineContext,
) -> None:
    received: list[bytes] = []
    both = {"reuse": True, "min_pool_capacity": 1, "max_pool_capacity": 1}
    async with (
        recorder(received) as target,
        proxy_pair(shared, target, ProxyVersion.V2, **both) as (ingress, egress),
    ):
        for count in range(1, 4):
            await send(visitors_address(ingress, egress), b"x")
            await wait_until_async(partial(_has_received, received, count), "the target has received everything")
        headers = [parse_header(data) for data in received]
        ids = [header.unique_id.decode() for header in headers if isinstance(header, ProxyHeader)]
        assert len(set(ids)) == 3
        assert all(ident.startswith(f"{ingress.engine.snapshot().link}-") for ident in ids)


async def test_the_header_changes_live_for_new_visitors(shared: EngineContext) -> None:
    received: list[bytes] = []
    async with recorder(received) as target, proxy_pair(shared, target, ProxyVersion.OFF) as (ingress, egress):
        address = visitors_address(ingress, egress)
        await send(address, b"without")
        egress.engine.apply_live_settings(dataclasses.replace(egress.engine.spec, proxy=ProxyVersion.V1))
        _, port = await send(address, b"with")
        assert received == [b"without", f"PROXY TCP4 127.0.0.1 {target.replace(':', f' {port} ')}\r\nwith".encode()]


# --- from a balancer ----------------------------------------------------------------------------------------------

V1 = b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 443\r\n"
V2 = encode_header(ProxyVersion.V2, pack_address(("2001:db8::7", 4712)), ("::1", 443), b"")
LOCAL = encode_header(ProxyVersion.V2, b"", ("::1", 443), b"")


@asynccontextmanager
async def balanced_pair(shared: EngineContext, target: str, **rules: Any) -> AsyncIterator[RunningEngine]:  # noqa: ANN401
    """An ingress that expects headers from 127.0.0.1, and an egress that sends them."""
    rules = {"proxy_from": networks("127.0.0.1"), **rules}
    async with running_engine(shared, server_spec("127.0.0.1:0", mode=Mode.REVERSE, **rules)) as ingress:
        await ingress.wait_state(State.WAITING)
        async with running_engine(shared, client_spec(ingress, target, proxy=ProxyVersion.V1)) as egress:
            await ingress.wait_state(UP)
            await egress.wait_state(UP)
            yield ingress


async def connect_from(address: str, source: str, *pieces: bytes) -> bytes:
    """Send pieces one after the other, and the end; return what comes back, or ``reset``."""
    where = parse_address(address)
    reader, writer = await asyncio.open_connection(where.host, where.port, local_addr=(source, 0))
    try:
        async with asyncio.timeout(GUARD_S):
            for piece in pieces:
                writer.write(piece)
                await run_loop_turns(5)
            writer.write_eof()
            return await reader.read()
    except ConnectionError:
        return b"reset"
    finally:
        writer.transport.abort()


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([V1 + b"hello"], b"PROXY TCP4 192.0.2.7 127.0.0.1 4711 PORT\r\nhello"),
        ([V1, b"hello"], b"PROXY TCP4 192.0.2.7 127.0.0.1 4711 PORT\r\nhello"),
        ([V2[:1], V2[1:20], V2[20:] + b"he", b"llo"], b"PROXY TCP6 2001:db8::7 :: 4712 PORT\r\nhello"),
    ],
)
async def test_the_address_that_a_balancer_passes_is_the_visitors(
    shared: EngineContext, pieces: list[bytes], expected: bytes
) -> None:
    received: list[bytes] = []
    async with recorder(received) as target, balanced_pair(shared, target) as ingress:
        assert await connect_from(visitors_address(ingress), "127.0.0.1", *pieces) == b"220 ready\r\n"
        assert received == [expected.replace(b"PORT", target.partition(":")[2].encode())]


async def test_local_and_unknown_mean_the_balancer_itself(shared: EngineContext) -> None:
    received: list[bytes] = []
    async with recorder(received) as target, balanced_pair(shared, target) as ingress:
        for header in (LOCAL, b"PROXY UNKNOWN\r\n"):
            assert await connect_from(visitors_address(ingress), "127.0.0.1", header + b"check") == b"220 ready\r\n"
        assert all(data.startswith(b"PROXY TCP4 127.0.0.1 ") and data.endswith(b"\r\ncheck") for data in received)


async def test_a_header_from_another_address_is_plain_data(shared: EngineContext) -> None:
    received: list[bytes] = []
    async with recorder(received) as target, balanced_pair(shared, target) as ingress:
        assert await connect_from(visitors_address(ingress), "127.0.0.2", V1 + b"hello") == b"220 ready\r\n"
        assert received[0].startswith(b"PROXY TCP4 127.0.0.2 ")
        assert received[0].endswith(b"\r\n" + V1 + b"hello")


@pytest.mark.parametrize(
    ("pieces", "reason"),
    [
        ([b"GET / HTTP/1.1\r\n\r\n"], "it does not start with a PROXY header"),
        ([V2[:-1]], "it was closed before its PROXY header was complete"),
        ([], "it was closed before its PROXY header was complete"),
        ([b"PROXY ", b"x" * 200], "its PROXY line is longer than 107 bytes"),
    ],
)
async def test_a_connection_of_a_balancer_without_a_valid_header_is_refused_with_a_reason(
    shared: EngineContext, pieces: list[bytes], reason: str
) -> None:
    received: list[bytes] = []
    async with recorder(received) as target, balanced_pair(shared, target) as ingress:
        assert await connect_from(visitors_address(ingress), "127.0.0.1", *pieces) == b"reset"
        assert ingress.events.said(f"a visitor was refused: {reason}")
        assert ingress.engine.snapshot().refused.proxy == 1
        assert received == []


async def test_the_rules_judge_the_address_that_is_passed(shared: EngineContext) -> None:
    received: list[bytes] = []
    rules = {"allow": networks("192.0.2.0/24"), "max_per_address": 1}
    async with recorder(received) as target, balanced_pair(shared, target, **rules) as ingress:
        address = visitors_address(ingress)
        for _ in range(2):
            assert await connect_from(address, "127.0.0.1", V1 + b"1") == b"220 ready\r\n"
            await wait_until_async(lambda: not ingress.engine.snapshot().connections.active, "the visitor has left")
        assert await connect_from(address, "127.0.0.1", V2 + b"2") == b"reset"
        assert await connect_from(address, "127.0.0.1", LOCAL) == b"reset", "its own address is not in allow"
        refused = ingress.engine.snapshot().refused
        assert (refused.allow, refused.per_address) == (2, 0)


class Owner:
    """The owner of a reader, which records what happens."""

    def __init__(self) -> None:
        self.refused: list[str] = []
        self.visitors: list[object] = []

    def on_visitor(self, sock: socket.SocketType, peer: object) -> None:
        self.visitors.append(peer)
        sock.close()

    def on_header_refused(self, sock: socket.SocketType, _peer: object, reason: str) -> None:
        self.refused.append(reason)
        sock.close()

    def on_header_gone(self) -> None:
        """Ignore the room that is free again: this owner accepts nothing."""

    def on_handler_error(self, error: Exception) -> None:
        raise error


async def test_silent_balancers_are_bounded_in_number_and_time_and_delay_no_others() -> None:
    async with shared_parts() as parts:
        owner, balancer = Owner(), ("127.0.0.1", 1)
        reader = ProxyHeaderReader(
            parts.reactor, owner, networks("127.0.0.1"), owner.on_visitor, timeout_s=0.1, max_awaited=2
        )
        peers = []
        for _ in range(3):
            near, far = socket.socketpair()
            near.setblocking(False)
            peers.append(far)
            reader.accept(near, balancer)
        assert owner.refused == ["more than 2 connections wait for their header"]
        near, far = socket.socketpair()
        near.setblocking(False)
        far.send(V1)
        reader.accept(near, balancer)
        assert owner.visitors == [("192.0.2.7", 4711)], "one whose header is there waits for none of them"
        await wait_until_async(lambda: not reader, "the others are refused")
        assert owner.refused[1:] == ["its PROXY header was not complete in 0.1 s"] * 2
        assert reader.close() == 0
        for sock in (*peers, far):
            sock.close()


async def test_a_drain_waits_for_a_header_and_then_serves_its_visitor(shared: EngineContext) -> None:
    received: list[bytes] = []
    async with recorder(received) as target, balanced_pair(shared, target) as ingress:
        async with visit(visitors_address(ingress)) as (reader, writer), asyncio.timeout(GUARD_S):
            writer.write(V1[:10])
            await run_loop_turns(10)
            ingress.engine.drain(GUARD_S)
            await ingress.wait_state(State.DRAINING)
            writer.write(V1[10:] + b"hello")
            writer.write_eof()
            assert await reader.read() == b"220 ready\r\n"
        assert received[0].endswith(b"hello")

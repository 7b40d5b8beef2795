"""PROXY headers over real sockets: what a target is sent, and what an ingress expects from a balancer."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest

from tests.support.scale import GUARD_S
from tests.support.waiting import wait_until_async
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
from tunnel.engine.context import EngineContext
from tunnel.model.spec import DataTls, Mode, ProxyVersion
from tunnel.model.state import State
from tunnel.protocol.proxy_header import ProxyHeader, parse_header

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
        listener.close()
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

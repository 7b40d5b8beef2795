"""Clients of the API that send nothing, read nothing, or too much: places, deadlines and memory are bounded."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
from aiohttp import web

from orchestrator.process.http_connections import ConnectionGuard, ConnectionLimits, GuardedRunner, count_answers
from tests.support.scale import GUARD_S
from tests.support.waiting import wait_until_async
from tunnel.model.address import Address
from tunnel.runtime.front_door import FrontDoorLimits

BODY = bytes(16 << 20)  # more than the kernel takes
DOOR = FrontDoorLimits(total=40, per_prefix=20)
Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Served:
    """An application with a guard, and its clients."""

    def __init__(self, guard: ConnectionGuard, port: int) -> None:
        self.guard = guard
        self.port = port
        self.clients: list[Client] = []

    async def connect(self, request: str = "") -> Client:
        client = await asyncio.open_connection("127.0.0.1", self.port)
        self.clients.append(client)
        client[1].write(request.encode())
        return client

    async def get(self, path: str) -> bytes:
        reader, _ = await self.connect(f"GET {path} HTTP/1.0\r\n\r\n")
        return await asyncio.wait_for(reader.readline(), GUARD_S)


async def _large(_: web.Request) -> web.Response:
    return web.Response(body=BODY)


async def _small(_: web.Request) -> web.Response:
    return web.Response(text="ok")


async def _slow(_: web.Request) -> web.Response:
    await asyncio.sleep(GUARD_S)
    return web.Response()


@asynccontextmanager
async def serve(limits: ConnectionLimits) -> AsyncIterator[Served]:
    app = web.Application(middlewares=[count_answers])
    app.add_routes([web.get("/large", _large), web.get("/small", _small), web.get("/slow", _slow)])
    guard = ConnectionGuard(limits)
    runner = GuardedRunner(app, guard, logging.getLogger("test"), 0.01)
    await runner.setup()
    served = Served(guard, await runner.listen(Address("127.0.0.1", 0), "the test"))
    try:
        yield served
    finally:
        await runner.close_listeners()
        for _, writer in served.clients:
            writer.transport.abort()
        await runner.cleanup()
        guard.close()


async def is_closed(client: Client) -> None:
    """Return when the server has closed the connection."""
    with suppress(ConnectionError):
        assert await asyncio.wait_for(client[0].read(1), GUARD_S) == b""


async def test_silent_clients_give_way_to_newer_ones() -> None:
    async with serve(ConnectionLimits(DOOR)) as served:
        silent = [await served.connect() for _ in range(60)]
        assert b"200" in await served.get("/small")
        for client in silent[:39]:
            await is_closed(client)
        assert len(served.guard.door) <= 20


@pytest.mark.parametrize("request_", ["", "GET /small HTTP/1.1\r\nHost:", "GET /small HTTP/1.1\r\nHost: x\r\n\r\n"])
async def test_a_request_has_to_be_complete_in_time_also_the_next_one_of_a_connection(request_: str) -> None:
    async with serve(ConnectionLimits(FrontDoorLimits(timeout_s=0.1))) as served:
        reader, _ = await served.connect(request_)
        try:
            rest = await asyncio.wait_for(reader.read(), GUARD_S)
        except ConnectionError:
            rest = b""
        assert rest.count(b"HTTP/1.1 200") <= 1


async def test_clients_that_do_not_read_are_disconnected_and_their_answers_freed() -> None:
    limits = ConnectionLimits(DOOR, max_unsent_bytes=20 << 20, write_timeout_s=0.2, min_rate_bps=1 << 40)
    async with serve(limits) as served:
        readers = [await served.connect("GET /large HTTP/1.1\r\nHost: x\r\n\r\n") for _ in range(6)]
        writing = served.guard._writing
        await wait_until_async(lambda: len(writing) >= 1)
        assert sum(one.unsent_bytes for one in writing) <= 36 << 20, "the limit, and the newest answer"
        assert b"200" in await served.get("/small")
        await wait_until_async(lambda: not writing)
        for reader, _ in readers:
            reader._transport.resume_reading()  # type: ignore[attr-defined]
        for reader, _ in readers:
            with suppress(ConnectionError):
                assert len(await asyncio.wait_for(reader.read(), GUARD_S)) < len(BODY), "disconnected before the end"
        assert b"200" in await served.get("/small")


async def test_a_slow_reader_that_keeps_the_minimum_rate_gets_everything() -> None:
    async with serve(ConnectionLimits(write_timeout_s=0.05, min_rate_bps=1 << 20)) as served:
        reader, _ = await served.connect("GET /large HTTP/1.0\r\n\r\n")
        received = 0
        while data := await reader.read(1 << 20):
            received += len(data)
            await asyncio.sleep(0.02)
        assert received > len(BODY)


async def test_requests_in_progress_are_bounded_and_do_not_lose_their_places() -> None:
    async with serve(ConnectionLimits(FrontDoorLimits(timeout_s=0.1), max_answering=2)) as served:
        slow = [await served.connect("GET /slow HTTP/1.1\r\nHost: x\r\n\r\n") for _ in range(2)]
        await wait_until_async(lambda: len(served.guard._answering) == 2)
        assert b"500" in await served.get("/small"), "503 in the API, whose outer middleware describes errors"
        await asyncio.sleep(0.2)
        assert all(not reader.at_eof() for reader, _ in slow), "the deadline is for requests, not for answers"
        slow[0][1].transport.abort()
        await wait_until_async(lambda: len(served.guard.door) == 0)

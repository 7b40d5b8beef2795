"""Simulated targets and visitors on the loopback interface, for the demonstration."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket as sockets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

DENIED_ADDRESS: Final = "127.0.0.2"
"""An address of this host, as Linux routes all of 127.0.0.0/8; its visitors are not admitted."""

_ANSWER_TIMEOUT_S: Final = 5.0  # of one visitor
_FIRST_ANSWER_TIMEOUT_S: Final = 1.0  # of datagrams that are sent before there is a link
_RETRY_S: Final = 0.1
_PAGE: Final = b"This page came through a tunnel.\n" * 64
_FILE: Final = b"This file came through a tunnel with a limit.\n" * 8192
_FILE_PATH: Final = "/file"
_FLAP_S: Final = (6.0, 4.0)  # how long a flapping target listens, and how long it does not


@dataclass(slots=True)
class VisitorCounts:
    """How many requests of simulated visitors were answered, and how many failed."""

    answered: int = 0
    failed: int = 0
    refused: int = 0
    """visitors of the tunnel whose target refuses connections"""
    denied: int = 0
    """visitors that were not admitted"""


# --- targets ----------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def serve_target() -> AsyncIterator[int]:
    """Run an HTTP server with one page and one larger file until the context ends; yields its port."""
    server = await asyncio.start_server(_serve_pages, "127.0.0.1", 0)
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        server.close()


async def serve_flapping_target(port: int) -> None:
    """Run such a server that does not listen for some seconds now and then; until cancelled."""
    while True:
        server = await asyncio.start_server(_serve_pages, "127.0.0.1", port, reuse_address=True)
        try:
            await asyncio.sleep(_FLAP_S[0])
        finally:
            server.close()  # connections stay
        await asyncio.sleep(_FLAP_S[1])


async def _serve_pages(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        while request := await reader.readuntil(b"\r\n\r\n"):
            content = _FILE if request.startswith(f"GET {_FILE_PATH} ".encode()) else _PAGE
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(content), content))
            await writer.drain()
    writer.close()


@contextlib.asynccontextmanager
async def serve_datagrams() -> AsyncIterator[int]:
    """Send each datagram back until the context ends; yields the UDP port."""
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(_EchoedDatagrams, ("127.0.0.1", 0))
    try:
        yield int(transport.get_extra_info("sockname")[1])
    finally:
        transport.close()


class _EchoedDatagrams(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)  # which asyncio's own is not, to isinstance

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._transport.sendto(data, addr)


# --- visitors ---------------------------------------------------------------------------------------------------------


async def simulate_visitor(port: int, counts: VisitorCounts) -> None:
    """Connect, send a few requests, close, repeat; until cancelled."""
    while True:
        requests = random.randint(1, 4)  # noqa: S311  traffic, not a secret
        await _visit(port, counts, "/", requests, pause_s=(0.02, 0.2))


async def simulate_download(port: int, counts: VisitorCounts) -> None:
    """Fetch the larger file again and again, each time as a new visitor; until cancelled."""
    while True:
        await _visit(port, counts, _FILE_PATH, 1, pause_s=(0.5, 1.0))


async def _visit(port: int, counts: VisitorCounts, path: str, requests: int, *, pause_s: tuple[float, float]) -> None:
    try:
        async with asyncio.timeout(_ANSWER_TIMEOUT_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:  # the listener is not open yet
        await asyncio.sleep(_RETRY_S)
        return
    try:
        for _ in range(requests):
            await _request(reader, writer, path)
            counts.answered += 1
            await asyncio.sleep(random.uniform(*pause_s))  # noqa: S311  traffic, not a secret
    except (OSError, asyncio.IncompleteReadError):
        counts.failed += 1
        await asyncio.sleep(_RETRY_S)
    finally:
        writer.close()


async def _request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str) -> None:
    async with asyncio.timeout(_ANSWER_TIMEOUT_S):
        writer.write(f"GET {path} HTTP/1.1\r\nHost: demo\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.split(b":")[-1]))


async def simulate_refused_visitor(port: int, counts: VisitorCounts) -> None:
    """Connect once a second and read until the tunnel closes the connection; until cancelled."""
    while True:
        counts.refused += await _is_disconnected(port, "127.0.0.1")
        await asyncio.sleep(1.0)


async def simulate_denied_visitor(port: int, counts: VisitorCounts) -> None:
    """Connect once a second from the address that is not admitted; until cancelled."""
    while True:
        counts.denied += await _is_disconnected(port, DENIED_ADDRESS)
        await asyncio.sleep(1.0)


async def _is_disconnected(port: int, source: str) -> bool:
    """Connect and read to the end; return False where nothing listens."""
    try:
        async with asyncio.timeout(_ANSWER_TIMEOUT_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
            with contextlib.closing(writer):
                await reader.read()
    except ConnectionResetError:
        return True
    except OSError:  # TimeoutError, too
        return False
    return True


async def simulate_datagrams(port: int, counts: VisitorCounts) -> None:
    """Send a datagram ten times a second and wait for its echo; until cancelled."""
    loop = asyncio.get_running_loop()
    is_open = False
    with sockets.socket(sockets.AF_INET, sockets.SOCK_DGRAM) as visitor:
        visitor.setblocking(False)
        visitor.connect(("127.0.0.1", port))
        while True:
            try:
                async with asyncio.timeout(_ANSWER_TIMEOUT_S if is_open else _FIRST_ANSWER_TIMEOUT_S):
                    await loop.sock_sendall(visitor, b"a datagram")
                    await loop.sock_recv(visitor, 100)
                counts.answered += 1
                is_open = True
            except OSError:  # TimeoutError, too
                counts.failed += is_open
            await asyncio.sleep(_RETRY_S)

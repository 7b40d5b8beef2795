"""Targets behind the tunnels (an echo server, nginx, iperf3) and visitors of the echo server."""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from . import loads
from .processes import BenchError, find_program, is_listening, run_process

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

_CONCURRENCY: Final = 32
_BACKLOG: Final = 1024
_START_LIMIT_S: Final = 15.0
_EXCHANGE_LIMIT_S: Final = 20.0
_POLL_S: Final = 0.002
_HELLO: Final = b"hello, is there an echo?\n"


async def connect(visitor: socket.socket, port: int) -> None:
    """Connect a socket to a port of this machine."""
    visitor.setblocking(False)
    await asyncio.get_running_loop().sock_connect(visitor, ("127.0.0.1", port))


async def exchange(visitor: socket.socket) -> bool:
    """Send a few bytes; return whether their complete echo comes back."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(visitor, _HELLO)
    answer = b""
    while len(answer) < len(_HELLO):
        part = await loop.sock_recv(visitor, len(_HELLO) - len(answer))
        if not part:
            return False
        answer += part
    return answer == _HELLO


class _Echo(asyncio.Protocol):
    def __init__(self, peers: set[asyncio.Transport]) -> None:
        self._peers = peers
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._peers.add(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._peers.discard(self._transport)

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)


@asynccontextmanager
async def echo(port: int) -> AsyncIterator[None]:
    """Run an echo server on the port for the duration of the block."""
    peers: set[asyncio.Transport] = set()
    server = await asyncio.get_running_loop().create_server(lambda: _Echo(peers), "127.0.0.1", port, backlog=_BACKLOG)
    try:
        yield
    finally:
        server.close()
        for peer in tuple(peers):
            peer.abort()
        await server.wait_closed()


async def exchange_all(visitors: Sequence[socket.socket], port: int | None = None) -> list[bool]:
    """Return which visitors received an echo in time, a few at once; with a port they are connected first."""
    slots = asyncio.Semaphore(_CONCURRENCY)
    deadline = asyncio.get_running_loop().time() + _EXCHANGE_LIMIT_S

    async def exchange_one(visitor: socket.socket) -> bool:
        try:
            async with asyncio.timeout_at(deadline), slots:
                if port is not None:
                    await connect(visitor, port)
                return await exchange(visitor)
        except (OSError, TimeoutError):
            return False

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(exchange_one(visitor)) for visitor in visitors]
    return [task.result() for task in tasks]


@asynccontextmanager
async def target(port: int, directory: Path, name: str, *arguments: str) -> AsyncIterator[None]:
    """Run a program that listens on the port for the duration of the block."""
    program = find_program(name)
    if program is None:
        raise BenchError(f"{name} is not installed")
    async with run_process(f"target-{name}", (program, *arguments), directory=directory) as process:
        deadline = time.monotonic() + _START_LIMIT_S
        while not is_listening(port):
            process.check()
            if time.monotonic() > deadline:
                raise BenchError(f"{name} does not listen")
            await asyncio.sleep(_POLL_S)
        yield


@asynccontextmanager
async def nginx(port: int, directory: Path, *more_ports: int) -> AsyncIterator[None]:
    """Run a web server whose responses are a few bytes: one process, however many ports it listens on."""
    config = directory / "nginx.conf"
    listens = "\n".join(f"        listen 127.0.0.1:{one} backlog=4096;" for one in (port, *more_ports))
    config.write_text(loads.NGINX.replace("{dir}", str(directory)).replace("{listens}", listens))
    async with target(port, directory, "nginx", "-c", str(config), "-p", str(directory), "-e", "stderr"):
        yield

"""What stands behind the tunnels: an echo of our own, nginx, iperf3; and visitors that greet the echo."""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from . import loads
from .processes import BenchError, find, listening, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

_AT_ONCE: Final = 32
_BACKLOG: Final = 1024
_START_LIMIT_S: Final = 15.0
_EXCHANGE_LIMIT_S: Final = 20.0
_POLL_S: Final = 0.002
_HELLO: Final = b"hello, anybody there?\n"


async def connect(visitor: socket.socket, port: int) -> None:
    """Connect a socket to a port of this machine."""
    visitor.setblocking(False)
    await asyncio.get_running_loop().sock_connect(visitor, ("127.0.0.1", port))


async def exchange(visitor: socket.socket) -> bool:
    """Whether the target's echo of a few bytes comes back whole."""
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
    """Whatever comes to the port is sent back."""
    peers: set[asyncio.Transport] = set()
    server = await asyncio.get_running_loop().create_server(lambda: _Echo(peers), "127.0.0.1", port, backlog=_BACKLOG)
    try:
        yield
    finally:
        server.close()
        for peer in tuple(peers):
            peer.abort()
        await server.wait_closed()


async def greet(visitors: Sequence[socket.socket], port: int | None = None) -> list[bool]:
    """Which of them got an echo within the limit, a few at a time; they are connected first if a port is given."""
    turns = asyncio.Semaphore(_AT_ONCE)
    deadline = asyncio.get_running_loop().time() + _EXCHANGE_LIMIT_S

    async def one(visitor: socket.socket) -> bool:
        try:
            async with asyncio.timeout_at(deadline), turns:
                if port is not None:
                    await connect(visitor, port)
                return await exchange(visitor)
        except (OSError, TimeoutError):
            return False

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(visitor)) for visitor in visitors]
    return [task.result() for task in tasks]


@asynccontextmanager
async def target(port: int, directory: Path, name: str, *arguments: str) -> AsyncIterator[None]:
    """A program that listens on the port, as long as the block lasts."""
    program = find(name)
    if program is None:
        raise BenchError(f"{name} is not installed")
    async with running(f"target-{name}", (program, *arguments), directory=directory) as process:
        deadline = time.monotonic() + _START_LIMIT_S
        while not listening(port):
            process.check()
            if time.monotonic() > deadline:
                raise BenchError(f"{name} does not listen")
            await asyncio.sleep(_POLL_S)
        yield


@asynccontextmanager
async def nginx(port: int, directory: Path) -> AsyncIterator[None]:
    """A web server whose every answer is a few bytes."""
    config = directory / "nginx.conf"
    config.write_text(loads.NGINX.replace("{dir}", str(directory)).replace("{port}", str(port)))
    async with target(port, directory, "nginx", "-c", str(config), "-p", str(directory), "-e", "stderr"):
        yield

"""The measurements. Each visit starts its own target and its own pair of processes on fresh ports, and ends them:
nothing of one visit (pool, memory, TIME_WAIT) is there in the next."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import time
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

from tunnel.settings import NAMES

from . import loads
from .processes import BenchError, Running, find, free_ports, listening, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from .contenders import Contender

IDLE_CONNECTIONS: Final = 1000
DESCRIPTORS: Final = 3 * IDLE_CONNECTIONS
"""Open files a process needs to hold the idle connections at either end, with room for pools."""

_AT_ONCE: Final = 32
_START_LIMIT_S: Final = 15.0
_ATTEMPT_S: Final = 0.5
_EXCHANGE_LIMIT_S: Final = 20.0
_STEADY_LIMIT_S: Final = 3.0
_POLL_S: Final = 0.002
_HELLO: Final = b"hello, anybody there?\n"


@dataclass(frozen=True, slots=True)
class Sample:
    """What one visit measured: metric to value, and what went wrong meanwhile, in words."""

    values: dict[str, float]
    errors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Visit:
    """A contender that runs and has carried a first byte; ``ends`` are its server and client, or nobody."""

    directory: Path
    visitor_port: int
    target_port: int
    ends: tuple[Running, ...]
    start_ms: float

    def cpu_seconds(self) -> float:
        """CPU seconds both ends have used since their start."""
        for end in self.ends:
            end.check()
        return sum(end.cpu_seconds() for end in self.ends)

    async def steady_rss(self) -> list[int]:
        """Resident bytes of each end, once they have stopped moving (or after some seconds)."""
        before: list[int] = []
        deadline = time.monotonic() + _STEADY_LIMIT_S
        while True:
            now = [end.rss_bytes() for end in self.ends]
            if now == before or time.monotonic() > deadline:
                return now
            before = now
            await asyncio.sleep(0.5)


@dataclass(frozen=True, slots=True)
class Measurement:
    """One thing that is measured: its name, the programs it needs, whether it says anything without a tunnel."""

    name: str
    take: Callable[[Visit, int], Awaitable[Sample]]
    tools: tuple[str, ...] = ()
    of_direct: bool = True


async def measure(measurement: Measurement, contender: Contender, seconds: int) -> Sample:
    """One visit. Whatever fails in it becomes an error of the sample."""
    try:
        async with _visit(contender) as visit:
            return await measurement.take(visit, seconds)
    except (BenchError, OSError) as error:
        return Sample({}, (str(error),))


@asynccontextmanager
async def _visit(contender: Contender) -> AsyncIterator[Visit]:
    tunnel_port, visitor_port, target_port = free_ports(3)
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="bench-")))
        if not contender.server:
            yield Visit(directory, target_port, target_port, (), 0.0)
            return
        places = {"tunnel_port": tunnel_port, "visitor_port": visitor_port, "target_port": target_port}
        filled = contender.filled({**places, "dir": directory})
        for name, text in filled.files.items():
            (directory / name).write_text(text)
        # default settings are measured, not those of the caller's shell
        env = {k: v for k, v in os.environ.items() if k.lower() not in NAMES} | dict(filled.env)
        async with _echo(target_port):
            began = time.perf_counter()
            ends = [
                await stack.enter_async_context(
                    running(f"{contender.name}-{end}", command, directory=directory, env=env)
                )
                for end, command in (("server", filled.server), ("client", filled.client))
            ]
            await _first_byte(visitor_port, ends)
            start_ms = (time.perf_counter() - began) * 1000
        yield Visit(directory, visitor_port, target_port, tuple(ends), start_ms)


async def _first_byte(port: int, ends: Sequence[Running]) -> None:
    deadline = time.monotonic() + _START_LIMIT_S
    while time.monotonic() < deadline:
        for end in ends:
            end.check()
        with socket.socket() as visitor, suppress(OSError, TimeoutError):
            async with asyncio.timeout(_ATTEMPT_S):
                await _connect(visitor, port)
                if await _exchange(visitor):
                    return
        await asyncio.sleep(_POLL_S)
    raise BenchError(f"no byte came through within {_START_LIMIT_S:.0f} s of the start")


async def _connect(visitor: socket.socket, port: int) -> None:
    visitor.setblocking(False)
    await asyncio.get_running_loop().sock_connect(visitor, ("127.0.0.1", port))


async def _exchange(visitor: socket.socket) -> bool:
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
async def _echo(port: int) -> AsyncIterator[None]:
    peers: set[asyncio.Transport] = set()
    server = await asyncio.get_running_loop().create_server(
        lambda: _Echo(peers), "127.0.0.1", port, backlog=IDLE_CONNECTIONS
    )
    try:
        yield
    finally:
        server.close()
        for peer in tuple(peers):
            peer.abort()
        await server.wait_closed()


@asynccontextmanager
async def _target(visit: Visit, name: str, *arguments: str) -> AsyncIterator[None]:
    program = find(name)
    if program is None:
        raise BenchError(f"{name} is not installed")
    async with running(f"target-{name}", (program, *arguments), directory=visit.directory) as target:
        deadline = time.monotonic() + _START_LIMIT_S
        while not listening(visit.target_port):
            target.check()
            if time.monotonic() > deadline:
                raise BenchError(f"{name} does not listen")
            await asyncio.sleep(_POLL_S)
        yield


async def _requests(visit: Visit, kind: str, *, connections: int, seconds: int, close: bool) -> Sample:
    config = visit.directory / "nginx.conf"
    text = loads.NGINX.replace("{dir}", str(visit.directory)).replace("{port}", str(visit.target_port))
    config.write_text(text)
    async with _target(visit, "nginx", "-c", str(config), "-p", str(visit.directory), "-e", "stderr"):
        before = visit.cpu_seconds()
        load = await loads.requests(visit.visitor_port, connections=connections, seconds=seconds, close=close)
        used = visit.cpu_seconds() - before
    values = {f"{kind}.rate": load.rate, f"{kind}.p50": load.p50_ms, f"{kind}.p99": load.p99_ms}
    if visit.ends and load.count:
        values[f"{kind}.cpu"] = used / load.count * 1e6
    return Sample(values, load.errors)


async def _keepalive(visit: Visit, seconds: int) -> Sample:
    return await _requests(visit, "keepalive", connections=64, seconds=seconds, close=False)


async def _newconn(visit: Visit, seconds: int) -> Sample:
    return await _requests(visit, "newconn", connections=32, seconds=seconds, close=True)


async def _bulk(visit: Visit, seconds: int, streams: int) -> Sample:
    async with _target(visit, "iperf3", "-s", "-1", "-B", "127.0.0.1", "-p", str(visit.target_port)):
        before = visit.cpu_seconds()
        load = await loads.bulk(visit.visitor_port, streams=streams, seconds=seconds)
        used = visit.cpu_seconds() - before
    values = {f"bulk{streams}.rate": load.gbit_s}
    if visit.ends and load.gigabytes:
        values[f"bulk{streams}.cpu"] = used / load.gigabytes
    return Sample(values)


async def _bulk1(visit: Visit, seconds: int) -> Sample:
    return await _bulk(visit, seconds, 1)


async def _bulk8(visit: Visit, seconds: int) -> Sample:
    return await _bulk(visit, seconds, 8)


async def _start(visit: Visit, seconds: int) -> Sample:
    return Sample({"start.ms": visit.start_ms})


async def _idle(visit: Visit, seconds: int) -> Sample:
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if allowed < DESCRIPTORS:
        raise BenchError(f"{DESCRIPTORS} open files are needed and {allowed} allowed; raise the limit (ulimit -Hn)")
    at_rest = await visit.steady_rss()
    values = {"idle.rest_server": at_rest[0] / 1e6, "idle.rest_client": at_rest[1] / 1e6}
    async with _echo(visit.target_port):
        visitors = [socket.socket() for _ in range(IDLE_CONNECTIONS)]
        try:
            served = [visitor for visitor, ok in zip(visitors, await _greet(visitors, visit), strict=True) if ok]
            with_them = await visit.steady_rss()
            for end in visit.ends:
                end.check()
            alive = sum(await _greet(served))
        finally:
            for visitor in visitors:
                visitor.close()
    errors = []
    if len(served) < IDLE_CONNECTIONS:
        errors.append(f"served {len(served)} of {IDLE_CONNECTIONS} connections")
    if alive < len(served):
        errors.append(f"{len(served) - alive} idle connections were lost")
    if served:
        grown = [(now - then) / len(served) / 1024 for now, then in zip(with_them, at_rest, strict=True)]
        values |= {"idle.server": grown[0], "idle.client": grown[1], "idle.both": sum(grown)}
    return Sample(values, tuple(errors))


async def _greet(visitors: Sequence[socket.socket], connect_to: Visit | None = None) -> list[bool]:
    """Which of them got an echo within the limit, a few at a time; they are connected first if a visit is given."""
    turns = asyncio.Semaphore(_AT_ONCE)
    deadline = asyncio.get_running_loop().time() + _EXCHANGE_LIMIT_S

    async def greet(visitor: socket.socket) -> bool:
        try:
            async with asyncio.timeout_at(deadline), turns:
                if connect_to is not None:
                    await _connect(visitor, connect_to.visitor_port)
                return await _exchange(visitor)
        except (OSError, TimeoutError):
            return False

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(greet(visitor)) for visitor in visitors]
    return [task.result() for task in tasks]


MEASUREMENTS: Final = (
    Measurement("start", _start, of_direct=False),
    Measurement("idle", _idle, of_direct=False),
    Measurement("keepalive", _keepalive, ("nginx", "wrk")),
    Measurement("bulk1", _bulk1, ("iperf3",)),
    Measurement("bulk8", _bulk8, ("iperf3",)),
    Measurement("newconn", _newconn, ("nginx", "wrk")),
)
"""In the order in which a round takes them."""

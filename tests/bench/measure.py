"""The measurements. Each visit starts its own target and its own pair of processes on fresh ports, and ends them:
nothing of one visit (pool, memory, TIME_WAIT) is there in the next."""

from __future__ import annotations

import asyncio
import resource
import socket
import time
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

from . import loads
from .processes import BenchError, Running, free_ports, plain_environment, running, steady_rss
from .section import Sample
from .targets import connect, echo, exchange, greet, nginx, target

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from .contenders import Contender

IDLE_CONNECTIONS: Final = 1000
DESCRIPTORS: Final = 3 * IDLE_CONNECTIONS
"""Open files a process needs to hold the idle connections at either end, with room for pools."""

_START_LIMIT_S: Final = 15.0
_ATTEMPT_S: Final = 0.5
_POLL_S: Final = 0.002


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
        env = plain_environment(filled.env)
        async with echo(target_port):
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
                await connect(visitor, port)
                if await exchange(visitor):
                    return
        await asyncio.sleep(_POLL_S)
    raise BenchError(f"no byte came through within {_START_LIMIT_S:.0f} s of the start")


async def _requests(visit: Visit, kind: str, *, connections: int, seconds: int, close: bool) -> Sample:
    async with nginx(visit.target_port, visit.directory):
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
    arguments = ("-s", "-1", "-B", "127.0.0.1", "-p", str(visit.target_port))
    async with target(visit.target_port, visit.directory, "iperf3", *arguments):
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
    stopped_snapshot = await steady_rss(visit.ends)
    values = {"idle.rest_server": stopped_snapshot[0] / 1e6, "idle.rest_client": stopped_snapshot[1] / 1e6}
    async with echo(visit.target_port):
        visitors = [socket.socket() for _ in range(IDLE_CONNECTIONS)]
        try:
            served = [
                visitor for visitor, ok in zip(visitors, await greet(visitors, visit.visitor_port), strict=True) if ok
            ]
            with_them = await steady_rss(visit.ends)
            for end in visit.ends:
                end.check()
            alive = sum(await greet(served))
        finally:
            for visitor in visitors:
                visitor.close()
    errors = []
    if len(served) < IDLE_CONNECTIONS:
        errors.append(f"served {len(served)} of {IDLE_CONNECTIONS} connections")
    if alive < len(served):
        errors.append(f"{len(served) - alive} idle connections were lost")
    if served:
        grown = [(now - then) / len(served) / 1024 for now, then in zip(with_them, stopped_snapshot, strict=True)]
        values |= {"idle.server": grown[0], "idle.client": grown[1], "idle.both": sum(grown)}
    return Sample(values, tuple(errors))


MEASUREMENTS: Final = (
    Measurement("start", _start, of_direct=False),
    Measurement("idle", _idle, of_direct=False),
    Measurement("keepalive", _keepalive, ("nginx", "wrk")),
    Measurement("bulk1", _bulk1, ("iperf3",)),
    Measurement("bulk8", _bulk8, ("iperf3",)),
    Measurement("newconn", _newconn, ("nginx", "wrk")),
)
"""In the order in which a round takes them."""

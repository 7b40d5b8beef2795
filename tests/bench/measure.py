"""The measurements. Each run starts its own target and its own pair of processes on fresh ports and ends them, so
that no pool, memory or TIME_WAIT of one run affects the next."""

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

from tests.support.ports import free_ports

from . import loads
from .processes import BenchError, RunningProcess, clean_environment, run_process, steady_rss
from .section import Sample
from .targets import connect, echo, exchange, exchange_all, nginx, target

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from .contenders import Contender

IDLE_CONNECTIONS: Final = 1000
DESCRIPTORS: Final = 3 * IDLE_CONNECTIONS
"""Open files that a process needs for the idle connections at either end, including pools."""

_START_LIMIT_S: Final = 15.0
_ATTEMPT_S: Final = 0.5
_POLL_S: Final = 0.002


@dataclass(frozen=True, slots=True)
class ContenderRun:
    """A running contender that has carried a first byte; ``ends`` are its server and client, if any."""

    directory: Path
    visitor_port: int
    target_port: int
    ends: tuple[RunningProcess, ...]
    start_ms: float

    def cpu_seconds(self) -> float:
        """Return the CPU seconds that both ends have used since their start."""
        for end in self.ends:
            end.check()
        return sum(end.cpu_seconds() for end in self.ends)


@dataclass(frozen=True, slots=True)
class Measurement:
    """A measurement: its name, the programs it needs, and whether it is meaningful without a tunnel."""

    name: str
    take: Callable[[ContenderRun, int], Awaitable[Sample]]
    tools: tuple[str, ...] = ()
    of_direct: bool = True


async def measure(measurement: Measurement, contender: Contender, seconds: int) -> Sample:
    """Run one measurement; a failure becomes an error of the sample."""
    try:
        async with _run_contender(contender) as run:
            return await measurement.take(run, seconds)
    except (BenchError, OSError) as error:
        return Sample({}, (str(error),))


@asynccontextmanager
async def _run_contender(contender: Contender) -> AsyncIterator[ContenderRun]:
    tunnel_port, visitor_port, target_port = free_ports(3)
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="bench-")))
        if not contender.server:
            yield ContenderRun(directory, target_port, target_port, (), 0.0)
            return
        places = {"tunnel_port": tunnel_port, "visitor_port": visitor_port, "target_port": target_port}
        filled = contender.filled({**places, "dir": directory})
        for name, text in filled.files.items():
            (directory / name).write_text(text)
        env = clean_environment(filled.env)
        async with echo(target_port):
            began = time.perf_counter()
            ends = [
                await stack.enter_async_context(
                    run_process(f"{contender.name}-{end}", command, directory=directory, env=env)
                )
                for end, command in (("server", filled.server), ("client", filled.client))
            ]
            await _first_byte(visitor_port, ends)
            start_ms = (time.perf_counter() - began) * 1000
        yield ContenderRun(directory, visitor_port, target_port, tuple(ends), start_ms)


async def _first_byte(port: int, ends: Sequence[RunningProcess]) -> None:
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
    raise BenchError(f"no byte was echoed within {_START_LIMIT_S:.0f} s of the start")


async def _requests(run: ContenderRun, kind: str, *, connections: int, seconds: int, close: bool) -> Sample:
    async with nginx(run.target_port, run.directory):
        before = run.cpu_seconds()
        load = await loads.requests(run.visitor_port, connections=connections, seconds=seconds, close=close)
        used = run.cpu_seconds() - before
    values = {f"{kind}.rate": load.rate, f"{kind}.p50": load.p50_ms, f"{kind}.p99": load.p99_ms}
    if run.ends and load.count:
        values[f"{kind}.cpu"] = used / load.count * 1e6
    return Sample(values, load.errors)


async def _keepalive(run: ContenderRun, seconds: int) -> Sample:
    return await _requests(run, "keepalive", connections=64, seconds=seconds, close=False)


async def _newconn(run: ContenderRun, seconds: int) -> Sample:
    return await _requests(run, "newconn", connections=32, seconds=seconds, close=True)


async def _lone(run: ContenderRun, seconds: int) -> Sample:
    return await _requests(run, "lone", connections=1, seconds=seconds, close=True)


async def _bulk(run: ContenderRun, seconds: int, streams: int) -> Sample:
    arguments = ("-s", "-1", "-B", "127.0.0.1", "-p", str(run.target_port))
    async with target(run.target_port, run.directory, "iperf3", *arguments):
        before = run.cpu_seconds()
        load = await loads.bulk(run.visitor_port, streams=streams, seconds=seconds)
        used = run.cpu_seconds() - before
    values = {f"bulk{streams}.rate": load.gbit_s}
    if run.ends and load.gigabytes:
        values[f"bulk{streams}.cpu"] = used / load.gigabytes
    return Sample(values)


async def _bulk1(run: ContenderRun, seconds: int) -> Sample:
    return await _bulk(run, seconds, 1)


async def _bulk8(run: ContenderRun, seconds: int) -> Sample:
    return await _bulk(run, seconds, 8)


async def _start(run: ContenderRun, seconds: int) -> Sample:
    return Sample({"start.ms": run.start_ms})


async def _idle(run: ContenderRun, seconds: int) -> Sample:
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if allowed < DESCRIPTORS:
        raise BenchError(f"{DESCRIPTORS} open files are needed and {allowed} allowed; raise the limit (ulimit -Hn)")
    stopped_snapshot = await steady_rss(run.ends)
    values = {"idle.rest_server": stopped_snapshot[0] / 1e6, "idle.rest_client": stopped_snapshot[1] / 1e6}
    async with echo(run.target_port):
        visitors = [socket.socket() for _ in range(IDLE_CONNECTIONS)]
        try:
            served = [
                visitor
                for visitor, ok in zip(visitors, await exchange_all(visitors, run.visitor_port), strict=True)
                if ok
            ]
            under_load = await steady_rss(run.ends)
            for end in run.ends:
                end.check()
            alive = sum(await exchange_all(served))
        finally:
            for visitor in visitors:
                visitor.close()
    errors = []
    if len(served) < IDLE_CONNECTIONS:
        errors.append(f"served {len(served)} of {IDLE_CONNECTIONS} connections")
    if alive < len(served):
        errors.append(f"{len(served) - alive} idle connections were lost")
    if served:
        growth = [(now - then) / len(served) / 1024 for now, then in zip(under_load, stopped_snapshot, strict=True)]
        values |= {"idle.server": growth[0], "idle.client": growth[1], "idle.both": sum(growth)}
    return Sample(values, tuple(errors))


MEASUREMENTS: Final = (
    Measurement("start", _start, of_direct=False),
    Measurement("idle", _idle, of_direct=False),
    Measurement("keepalive", _keepalive, ("nginx", "wrk")),
    Measurement("bulk1", _bulk1, ("iperf3",)),
    Measurement("bulk8", _bulk8, ("iperf3",)),
    Measurement("newconn", _newconn, ("nginx", "wrk")),
    Measurement("lone", _lone, ("nginx", "wrk")),
)
"""All measurements in the order of a round."""

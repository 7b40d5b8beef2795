"""Daemons with several tunnels under measurement: their files, their start, and what they say of themselves."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

from orchestrator.client import ApiClient, NoDaemonError

from . import loads
from .processes import BenchError, Running, free_ports, plain_environment, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

_FIRST_LOOK_S: Final = 0.01
_LOOK_S: Final = 0.0002  # more for each tunnel: to look is work for who is looked at


@dataclass(frozen=True, slots=True)
class Pairs:
    """Tunnels, both ends of each: the entries of the file, and where visitors come."""

    servers: Mapping[str, str]
    clients: Mapping[str, str]
    visitor_ports: Sequence[int]


@dataclass(frozen=True, slots=True)
class BenchDaemon:
    """A running daemon."""

    process: Running
    socket: Path

    async def is_up(self) -> bool:
        """Whether it answers, and each of its tunnels is up."""
        self.process.check()
        try:
            status = await asyncio.to_thread(ApiClient(self.socket).status)
        except NoDaemonError:
            return False
        return all(tunnel["state"] == "up" for tunnel in status["tunnels"])

    async def tunnel(self, name: str) -> dict[str, Any]:
        """What it says of one of its tunnels. Raises BenchError."""
        self.process.check()
        try:
            status = await asyncio.to_thread(ApiClient(self.socket).status)
        except NoDaemonError as error:
            raise BenchError(str(error)) from None
        return next(tunnel for tunnel in status["tunnels"] if tunnel["name"] == name)


def pairs(count: int, target_port: int) -> Pairs:
    """So many tunnels on free ports, all to one target."""
    ports = free_ports(2 * count)
    tunnel_ports, visitor_ports = ports[:count], ports[count:]
    return Pairs(
        servers={
            f"s{number}": f"server://127.0.0.1:{tunnel}/127.0.0.1:{visitor}"
            for number, (tunnel, visitor) in enumerate(zip(tunnel_ports, visitor_ports, strict=True))
        },
        clients={
            f"c{number}": f"client://127.0.0.1:{tunnel}/127.0.0.1:{target_port}"
            for number, tunnel in enumerate(tunnel_ports)
        },
        visitor_ports=visitor_ports,
    )


@asynccontextmanager
async def house(
    program: Sequence[str],
    name: str,
    directory: Path,
    tunnels: Mapping[str, str],
    supervisor: Mapping[str, Any] | None = None,
) -> AsyncIterator[BenchDaemon]:
    """A daemon with these tunnels, default settings but for ``supervisor``; gone when the block is left."""
    file, socket = directory / f"{name}.yaml", directory / f"{name}.sock"
    document = {
        "version": 1, "supervisor": dict(supervisor or {}), "defaults": {"log": "warn"}, "tunnels": dict(tunnels),
    }  # fmt: skip
    file.write_text(json.dumps(document))  # JSON is YAML
    command = (*program, "up", str(file), "--no-tui", "--socket", str(socket))
    env = plain_environment({"XDG_STATE_HOME": str(directory)})
    async with running(name, command, directory=directory, env=env) as process:
        yield BenchDaemon(process, socket)


async def all_up(houses: Sequence[BenchDaemon], tunnels: int, *, within: float) -> None:
    """Until every tunnel of the houses is up. Raises BenchError."""
    deadline = time.monotonic() + within
    for one in houses:
        while not await one.is_up():
            if time.monotonic() > deadline:
                raise BenchError(f"not all of {tunnels:,} tunnels came up within {within:.0f} s")
            await asyncio.sleep(_FIRST_LOOK_S + _LOOK_S * tunnels)


@asynccontextmanager
async def home(
    program: Sequence[str], count: int, supervisor: Mapping[str, Any] | None = None
) -> AsyncIterator[tuple[BenchDaemon, Pairs, int, Path]]:
    """One daemon that has both ends of some tunnels, all of them up; with the port of their target, which is not
    there yet, and a directory that goes with it."""
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="bench-")))
        (target_port,) = free_ports(1)
        made = pairs(count, target_port)
        both = {**made.servers, **made.clients}
        one = await stack.enter_async_context(house(program, "both-ends", directory, both, supervisor))
        await all_up([one], len(both), within=30)
        yield one, made, target_port, directory


def cpu_seconds(houses: Sequence[BenchDaemon]) -> float:
    """CPU seconds they have used. Raises BenchError where one has ended."""
    for one in houses:
        one.process.check()
    return sum(one.process.cpu_seconds() for one in houses)


async def share_of_core(process: Running, seconds: float) -> float:
    """Percent of a core that a process uses in the next seconds."""
    began, before = time.monotonic(), process.cpu_seconds()
    await asyncio.sleep(seconds)
    process.check()
    return 100 * (process.cpu_seconds() - before) / (time.monotonic() - began)


async def requests_over(ports: Sequence[int], *, connections: int, seconds: int, close: bool) -> loads.Requests:
    """Requests through several tunnels at once: rates are summed, of latencies the worst tunnel's counts."""
    found = await asyncio.gather(
        *(loads.requests(port, connections=connections, seconds=seconds, close=close) for port in ports)
    )
    return loads.Requests(
        count=sum(load.count for load in found),
        rate=sum(load.rate for load in found),
        p50_ms=max(load.p50_ms for load in found),
        p99_ms=max(load.p99_ms for load in found),
        errors=tuple(error for load in found for error in load.errors),
    )

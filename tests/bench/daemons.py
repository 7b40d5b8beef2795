"""Daemons with several tunnels under measurement: their files, their start and their status."""

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
from tests.support.ports import free_ports

from . import loads
from .processes import BenchError, RunningProcess, clean_environment, run_process

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from orchestrator.status.json_types import TunnelJson

_MIN_POLL_S: Final = 0.01
_POLL_PER_TUNNEL_S: Final = 0.0002  # status requests cost the daemon time in proportion to its tunnels


@dataclass(frozen=True, slots=True)
class Pairs:
    """Both ends of several tunnels as entries of a file, and the ports for visitors."""

    servers: Mapping[str, str]
    clients: Mapping[str, str]
    visitor_ports: Sequence[int]


@dataclass(frozen=True, slots=True)
class BenchDaemon:
    """A running daemon under measurement."""

    process: RunningProcess
    socket: Path

    async def is_up(self) -> bool:
        """Whether the daemon answers and all its tunnels are up."""
        self.process.check()
        try:
            status = await asyncio.to_thread(ApiClient(self.socket).status)
        except NoDaemonError:
            return False
        return all(tunnel["state"] == "up" for tunnel in status["tunnels"])

    async def tunnel(self, name: str) -> TunnelJson:
        """Return the status of one tunnel. Raises BenchError."""
        self.process.check()
        try:
            status = await asyncio.to_thread(ApiClient(self.socket).status)
        except NoDaemonError as error:
            raise BenchError(str(error)) from None
        return next(tunnel for tunnel in status["tunnels"] if tunnel["name"] == name)


def make_pairs(count: int, target_port: int) -> Pairs:
    """Return ``count`` tunnels on free ports, all to one target."""
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
async def start_daemon(
    program: Sequence[str],
    name: str,
    directory: Path,
    tunnels: Mapping[str, str],
    supervisor: Mapping[str, Any] | None = None,
) -> AsyncIterator[BenchDaemon]:
    """Run a daemon with these tunnels and ``supervisor`` settings for the duration of the block."""
    file, socket = directory / f"{name}.yaml", directory / f"{name}.sock"
    document = {
        "version": 1, "supervisor": dict(supervisor or {}), "defaults": {"log": "warn"}, "tunnels": dict(tunnels),
    }  # fmt: skip
    file.write_text(json.dumps(document))  # JSON is YAML
    command = (*program, "up", str(file), "--no-tui", "--socket", str(socket))
    env = clean_environment({"XDG_STATE_HOME": str(directory)})
    async with run_process(name, command, directory=directory, env=env) as process:
        yield BenchDaemon(process, socket)


async def wait_all_up(daemons: Sequence[BenchDaemon], tunnels: int, *, within: float) -> None:
    """Wait until every tunnel of the daemons is up. Raises BenchError."""
    deadline = time.monotonic() + within
    for one in daemons:
        while not await one.is_up():
            if time.monotonic() > deadline:
                raise BenchError(f"not all of {tunnels:,} tunnels came up within {within:.0f} s")
            await asyncio.sleep(_MIN_POLL_S + _POLL_PER_TUNNEL_S * tunnels)


@asynccontextmanager
async def start_pairs(
    program: Sequence[str], count: int, supervisor: Mapping[str, Any] | None = None
) -> AsyncIterator[tuple[BenchDaemon, Pairs, int, Path]]:
    """Run one daemon with both ends of some tunnels until all are up; yield it with the tunnels, the port of their
    target, which the caller must start, and a temporary directory."""
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="bench-")))
        (target_port,) = free_ports(1)
        made = make_pairs(count, target_port)
        both = {**made.servers, **made.clients}
        one = await stack.enter_async_context(start_daemon(program, "both-ends", directory, both, supervisor))
        await wait_all_up([one], len(both), within=30)
        yield one, made, target_port, directory


def cpu_seconds(daemons: Sequence[BenchDaemon]) -> float:
    """Return the CPU seconds used by the daemons. Raises BenchError if one has ended."""
    for one in daemons:
        one.process.check()
    return sum(one.process.cpu_seconds() for one in daemons)


async def measure_cpu_percent(process: RunningProcess, seconds: float) -> float:
    """Return the percentage of a core that a process uses in the next ``seconds``."""
    began, before = time.monotonic(), process.cpu_seconds()
    await asyncio.sleep(seconds)
    process.check()
    return 100 * (process.cpu_seconds() - before) / (time.monotonic() - began)


async def load_tunnels(ports: Sequence[int], *, connections: int, seconds: int, close: bool) -> loads.RequestFigures:
    """Load several tunnels at once; return the sum of the rates and the latencies of the worst tunnel."""
    found = await asyncio.gather(
        *(loads.requests(port, connections=connections, seconds=seconds, close=close) for port in ports)
    )
    return loads.RequestFigures(
        count=sum(load.count for load in found),
        rate=sum(load.rate for load in found),
        p50_ms=max(load.p50_ms for load in found),
        p99_ms=max(load.p99_ms for load in found),
        errors=tuple(error for load in found for error in load.errors),
    )

"""Services that share one tunnel port: a daemon with 500 servers on one address, their clients in another daemon."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

from orchestrator.client import ApiClient
from tests.support.ports import free_ports

from . import loads
from .daemons import BenchDaemon, measure_cpu_percent, start_daemon, wait_all_up
from .report import Goal, Metric
from .section import Counts, Sample, Section
from .targets import nginx

if TYPE_CHECKING:
    from collections.abc import Sequence

COUNTS: Final = (1, 500)
KEY: Final = "npk_ZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXp7fH1-f4CBgoNtm-wx"  # made by keygen: a daemon computes nothing for it

_START_LIMIT_S: Final = 60.0
_RELOAD_LIMIT_S: Final = 10.0
_REST_S: Final = 5.5  # slightly more than one interval of pings
_CONNECTIONS: Final = 32

_METRICS: Final = (
    Metric("gateway.start", "start of all, s", 2, Goal(10.0, ratio=False)),
    Metric("gateway.rest", "CPU at rest, the busier end, % of a core", 2, Goal(3.0, ratio=False)),
    Metric("gateway.reload", "reload of one service, s", 3, Goal(0.5, ratio=False)),
    Metric("gateway.touched", "  links of other services that it closed", 0, Goal(0, ratio=False)),
    Metric("gateway.rate", "new connections/s of one service", 0, Goal(0.95, at_least=True)),
    Metric("gateway.p99", "  p99 ms", 2),
)


def section(program: Sequence[str]) -> Section:
    """Return the section: one service on a port, and many."""
    counts = Counts(
        section="gateway",
        noun="service",
        counts=COUNTS,
        metrics=_METRICS,
        plotted=("gateway.start", "gateway.rest", "gateway.rate"),
        measure=_measure,
        is_compared=True,
        tools=("nginx", "wrk"),
    )
    return counts.make_section("Services on one tunnel port", program)


async def _measure(program: Sequence[str], count: int, seconds: int) -> Sample:
    with TemporaryDirectory(prefix="bench-") as name:
        directory = Path(name)
        target_port, tunnel_port, *visitor_ports = free_ports(count + 2)
        servers = {
            f"s{number}": f"server://{KEY}@127.0.0.1:{tunnel_port}/127.0.0.1:{port}?service=s{number}&data_port=tunnel"
            for number, port in enumerate(visitor_ports)
        }
        clients = {
            f"c{number}": f"client://{KEY}@127.0.0.1:{tunnel_port}/127.0.0.1:{target_port}?service=s{number}"
            for number in range(count)
        }
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(nginx(target_port, directory))
            began = time.perf_counter()
            server = await stack.enter_async_context(start_daemon(program, "server", directory, servers))
            client = await stack.enter_async_context(start_daemon(program, "client", directory, clients))
            await wait_all_up((client, server), count, within=_START_LIMIT_S)
            values = {"gateway.start": time.perf_counter() - began}
            await asyncio.sleep(_REST_S)
            rests = (measure_cpu_percent(end.process, _REST_S) for end in (server, client))
            values["gateway.rest"] = max(await asyncio.gather(*rests))
            load = await loads.requests(visitor_ports[0], connections=_CONNECTIONS, seconds=seconds, close=True)
            values |= {"gateway.rate": load.rate, "gateway.p99": load.p99_ms}
            values |= await _reload_last(server, directory / "server.yaml", count)
    return Sample(values, load.errors)


async def _reload_last(server: BenchDaemon, file: Path, count: int) -> dict[str, float]:
    """Change an option of the last service, which needs another engine, and reload."""
    api, name = ApiClient(server.socket), f"s{count - 1}"
    before = await _links(api)
    await asyncio.sleep(1.1)  # so that the watcher has read the present file
    began = time.perf_counter()
    await asyncio.to_thread(_change_file_and_reload, api, file, name)
    took = time.perf_counter() - began
    deadline = time.perf_counter() + _RELOAD_LIMIT_S
    after = await _links(api)
    while after[name] in {None, before[name]} and time.perf_counter() < deadline:
        await asyncio.sleep(0.05)
        after = await _links(api)
    touched = sum(after[other] != link for other, link in before.items() if other != name)
    if after[name] in {None, before[name]}:
        touched += 1
    return {"gateway.reload": took, "gateway.touched": touched}


def _change_file_and_reload(api: ApiClient, file: Path, name: str) -> None:
    file.write_text(file.read_text().replace(f"?service={name}&", f"?service={name}&tls=0&"))
    api.reload()


async def _links(api: ApiClient) -> dict[str, str | None]:
    status = await asyncio.to_thread(api.status)
    return {tunnel["name"]: tunnel["link"] for tunnel in status["tunnels"]}

"""The cost of a tunnel: pairs of daemons with 1, 10, 100 and 1,000 tunnels, compared with a pair without any."""

from __future__ import annotations

import asyncio
import itertools
import resource
import socket
import time
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

from tests.support.ports import free_ports

from .daemons import BenchDaemon, cpu_seconds, make_pairs, measure_cpu_percent, start_daemon, wait_all_up
from .processes import steady_rss
from .report import Goal, Metric
from .section import Counts, Sample, Section
from .targets import connect, echo, exchange

if TYPE_CHECKING:
    from collections.abc import Sequence

COUNTS: Final = (1, 10, 100, 1000)

_SOCKETS: Final = 16
"""Open files of a tunnel at either end, rounded up: the pool at rest, listeners, the control channel."""

_START_LIMIT_S: Final = 60.0
_REST_S: Final = 5.5  # slightly more than one interval of pings
_CONCURRENCY: Final = 8
_VISIT_LIMIT_S: Final = 10.0

_METRICS: Final = (
    Metric("tunnels.start", "start of all, s", 2, Goal(10.0, ratio=False)),
    Metric("tunnels.rss_server", "RSS per tunnel, server end, KB", 0, Goal(150.0, ratio=False)),
    Metric("tunnels.rss_client", "  client end, KB", 0, Goal(150.0, ratio=False), "RSS per tunnel, client end, KB"),
    Metric("tunnels.files_server", "descriptors per tunnel, server end", 1),
    Metric("tunnels.files_client", "  client end", 1),
    Metric("tunnels.rest", "CPU at rest, the busier end, % of a core", 2, Goal(3.0, ratio=False)),
    Metric("tunnels.visitor", "CPU per visitor, both ends, µs", 0),
)


def section(program: Sequence[str]) -> Section:
    """Return the section with all counts."""
    counts = Counts(
        section="tunnels",
        noun="tunnel",
        counts=COUNTS,
        metrics=_METRICS,
        plotted=("tunnels.start", "tunnels.rss_server", "tunnels.rss_client", "tunnels.rest", "tunnels.visitor"),
        measure=_measure,
    )
    return counts.make_section("Tunnels in one pair of daemons", program, max_rounds=2)


async def _measure(program: Sequence[str], count: int, seconds: int) -> Sample:
    needed = _SOCKETS * count + 512
    if (allowed := resource.getrlimit(resource.RLIMIT_NOFILE)[0]) < needed:
        reason = f"{needed} open files are needed and {allowed} allowed; raise the limit (ulimit -Hn)"
        return Sample({}, skipped={f"{count:,} tunnels": reason})
    with TemporaryDirectory(prefix="bench-") as name:
        directory = Path(name)
        rss, files = await _measure_without_tunnels(program, directory)
        (target_port,) = free_ports(1)
        made = make_pairs(count, target_port)
        async with AsyncExitStack() as stack:
            began = time.perf_counter()
            ends = [
                await stack.enter_async_context(start_daemon(program, end, directory, tunnels))
                for end, tunnels in (("server", made.servers), ("client", made.clients))
            ]
            await wait_all_up(ends[::-1], count, within=_START_LIMIT_S)  # if the client is up, the server is too
            values = {"tunnels.start": time.perf_counter() - began}
            processes = [end.process for end in ends]
            growth = [now - then for now, then in zip(await steady_rss(processes), rss, strict=True)]
            opened = [end.descriptors() - before for end, before in zip(processes, files, strict=True)]
            for end_name, bytes_, number in zip(("server", "client"), growth, opened, strict=True):
                values[f"tunnels.rss_{end_name}"] = bytes_ / count / 1024
                values[f"tunnels.files_{end_name}"] = number / count
            values["tunnels.rest"] = max(
                await asyncio.gather(*(measure_cpu_percent(end, _REST_S) for end in processes))
            )
            async with echo(target_port):
                before = cpu_seconds(ends)
                served, failed = await _visits(made.visitor_ports, seconds)
                if served:
                    values["tunnels.visitor"] = (cpu_seconds(ends) - before) / served * 1e6
    return Sample(values, (f"{failed} of {served + failed} visitors got no echo",) if failed else ())


async def _measure_without_tunnels(program: Sequence[str], directory: Path) -> tuple[list[int], list[int]]:
    """Return RSS and descriptors of daemons without tunnels."""
    async with AsyncExitStack() as stack:
        ends: list[BenchDaemon] = [
            await stack.enter_async_context(start_daemon(program, f"empty-{end}", directory, {}))
            for end in ("server", "client")
        ]
        await wait_all_up(ends, 0, within=_START_LIMIT_S)
        processes = [end.process for end in ends]
        return await steady_rss(processes), [process.descriptors() for process in processes]


async def _visits(ports: Sequence[int], seconds: float) -> tuple[int, int]:
    """Visit the tunnels in turn; return how many visitors received their echo and how many did not."""
    deadline = time.monotonic() + seconds
    next_port = itertools.cycle(ports)
    counts = {True: 0, False: 0}

    async def visit_repeatedly() -> None:
        while time.monotonic() < deadline:
            with socket.socket() as visitor:
                try:
                    async with asyncio.timeout(_VISIT_LIMIT_S):
                        await connect(visitor, next(next_port))
                        counts[await exchange(visitor)] += 1
                except (OSError, TimeoutError):
                    counts[False] += 1

    await asyncio.gather(*(visit_repeatedly() for _ in range(_CONCURRENCY)))
    return counts[True], counts[False]

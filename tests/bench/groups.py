"""What a choice for each visitor costs: of one of three targets, and of one of two links, compared with no choice."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

from tests.support.ports import free_ports

from . import loads
from .daemons import start_daemon, wait_all_up
from .report import Goal, Metric
from .section import Counts, Sample, Section
from .targets import nginx

if TYPE_CHECKING:
    from collections.abc import Sequence

COUNTS: Final = (1, 3)
LINK_COUNTS: Final = (1, 2)
KEY: Final = "npk_ZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXp7fH1-f4CBgoNtm-wx"  # made by keygen: a daemon computes nothing for it

_CONNECTIONS: Final = 32
_START_LIMIT_S: Final = 30.0

_METRICS: Final = (
    Metric("groups.new", "new connections/s", 0, Goal(0.97, at_least=True)),
    Metric("groups.new_p99", "  p99 ms", 2),
    Metric("groups.kept", "requests/s on kept connections", 0, Goal(0.97, at_least=True)),
)


def section(program: Sequence[str]) -> Section:
    """Return the section: one target, and three."""
    counts = Counts(
        section="groups",
        noun="target",
        counts=COUNTS,
        metrics=_METRICS,
        plotted=("groups.new", "groups.kept"),
        measure=_measure,
        is_compared=True,
        tools=("nginx", "wrk"),
    )
    return counts.make_section("One visitor through several targets", program)


def link_section(program: Sequence[str]) -> Section:
    """Return the section: one client of a server, and two."""
    counts = Counts(
        section="links",
        noun="client",
        counts=LINK_COUNTS,
        metrics=tuple(replace(metric, key=metric.key.replace("groups.", "links.")) for metric in _METRICS),
        plotted=("links.new", "links.kept"),
        measure=_measure_links,
        is_compared=True,
        tools=("nginx", "wrk"),
    )
    return counts.make_section("One visitor through several links", program)


async def _measure_links(program: Sequence[str], count: int, seconds: int) -> Sample:
    with TemporaryDirectory(prefix="bench-") as name:
        directory = Path(name)
        tunnel_port, visitor_port, target_port = free_ports(3)
        server = f"server://{KEY}@127.0.0.1:{tunnel_port}/127.0.0.1:{visitor_port}?mode=reverse&clients={count}"
        client = {"t": f"client://{KEY}@127.0.0.1:{tunnel_port}/127.0.0.1:{target_port}"}
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(nginx(target_port, directory))
            ends = [await stack.enter_async_context(start_daemon(program, "server", directory, {"t": server}))]
            for number in range(count):
                place = directory / str(number)
                place.mkdir()
                ends.append(await stack.enter_async_context(start_daemon(program, "client", place, client)))
            await wait_all_up(ends, 1, within=_START_LIMIT_S)
            return await _measure_visitors("links", visitor_port, seconds)


async def _measure_visitors(section: str, visitor_port: int, seconds: int) -> Sample:
    new = await loads.requests(visitor_port, connections=_CONNECTIONS, seconds=seconds, close=True)
    kept = await loads.requests(visitor_port, connections=_CONNECTIONS, seconds=seconds, close=False)
    values = {f"{section}.new": new.rate, f"{section}.new_p99": new.p99_ms, f"{section}.kept": kept.rate}
    return Sample(values, (*new.errors, *kept.errors))


async def _measure(program: Sequence[str], count: int, seconds: int) -> Sample:
    with TemporaryDirectory(prefix="bench-") as name:
        directory = Path(name)
        tunnel_port, visitor_port, *target_ports = free_ports(count + 2)
        targets = ",".join(f"127.0.0.1:{port}" for port in target_ports)
        server = {"t": f"server://{KEY}@127.0.0.1:{tunnel_port}/127.0.0.1:{visitor_port}?mode=reverse"}
        client = {"t": f"client://{KEY}@127.0.0.1:{tunnel_port}/{targets}"}
        async with AsyncExitStack() as stack:
            for port in target_ports:
                place = directory / str(port)
                place.mkdir()
                await stack.enter_async_context(nginx(port, place))
            ends = (
                await stack.enter_async_context(start_daemon(program, "server", directory, server)),
                await stack.enter_async_context(start_daemon(program, "client", directory, client)),
            )
            await wait_all_up(ends, 1, within=_START_LIMIT_S)
            return await _measure_visitors("groups", visitor_port, seconds)

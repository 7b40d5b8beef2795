"""What a choice for each visitor costs: of one of three targets, and of one of two links, compared with no choice.

The targets are ports of one process and the clients entries of one daemon, so that both variants have as many
processes: on one machine another process costs more than the choice.
"""

from __future__ import annotations

import statistics
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

from tests.support.ports import free_ports

from . import loads
from .daemons import start_daemon, wait_all_up
from .report import Goal, Metric, Sheet
from .section import Sample, Section, Trial
from .targets import nginx
from .turns import measure_ratios

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from contextlib import AbstractAsyncContextManager

TARGETS: Final = 3
LINKS: Final = 2
KEY: Final = "npk_ZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXp7fH1-f4CBgoNtm-wx"  # made by keygen: a daemon computes nothing for it

_CONNECTIONS: Final = 32
_START_LIMIT_S: Final = 30.0
_LABELS: Final = {
    "new": "new connections/s, ratio to one",
    "lone": "new connections/s of one visitor at a time, ratio",
    "kept": "requests/s on kept connections, ratio",
}


def section(program: Sequence[str]) -> Section:
    """Return the section: a tunnel with three targets, compared with one that has a single target."""
    title = "One visitor through several targets"
    return _make_section("groups", title, f"{TARGETS} targets", partial(_start_targets, tuple(program)), TARGETS)


def link_section(program: Sequence[str]) -> Section:
    """Return the section: a server with two clients, compared with one that has a single client."""
    title = "One visitor through several links"
    return _make_section("links", title, f"{LINKS} clients", partial(_start_links, tuple(program)), LINKS)


def _make_section(
    name: str, title: str, variant: str, start: Callable[[int, Path], AbstractAsyncContextManager[int]], count: int
) -> Section:
    metrics: list[Metric] = []
    for kind, label in _LABELS.items():
        metrics += (
            Metric(f"{name}.{kind}_x", label, 2, Goal(0.97, at_least=True, ratio=False)),
            Metric(f"{name}.{kind}_spread", "  spread of the turns", 2),
        )
    sheet = Sheet(metrics=tuple(metrics), variants=(variant,), judged=(variant,), plotted=(f"{name}.new_x",))
    trial = Trial(name, variant, partial(_compare, name, start, count), ("nginx", "wrk"))
    return Section(name=name, title=title, sheet=sheet, trials=(trial,))


async def _compare(
    name: str, start: Callable[[int, Path], AbstractAsyncContextManager[int]], count: int, seconds: int
) -> Sample:
    values: dict[str, float] = {}
    errors: list[str] = []
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="bench-")))
        one = await stack.enter_async_context(start(1, directory / "one"))
        several = await stack.enter_async_context(start(count, directory / "several"))
        for kind in _LABELS:
            load = partial(_load, kind, seconds=seconds, errors=errors)
            ratios = await measure_ratios(partial(load, one), partial(load, several))
            values[f"{name}.{kind}_x"] = statistics.median(ratios)
            values[f"{name}.{kind}_spread"] = (max(ratios) - min(ratios)) / 2
    return Sample(values, tuple(errors))


async def _load(kind: str, port: int, *, seconds: int, errors: list[str]) -> float:
    connections = 1 if kind == "lone" else _CONNECTIONS
    load = await loads.requests(port, connections=connections, seconds=seconds, close=kind != "kept")
    errors += load.errors
    return load.rate


@asynccontextmanager
async def _start_links(program: Sequence[str], count: int, directory: Path) -> AsyncIterator[int]:
    """Run a server with some clients; yield the port of its visitors."""
    directory.mkdir()  # noqa: ASYNC240  before anything is measured
    tunnel_port, visitor_port, target_port = free_ports(3)
    server = f"server://{KEY}@127.0.0.1:{tunnel_port}/127.0.0.1:{visitor_port}?mode=reverse&clients={count}"
    client = f"client://{KEY}@127.0.0.1:{tunnel_port}/127.0.0.1:{target_port}"
    clients = {f"t{number}": client for number in range(count)}
    async with (
        nginx(target_port, directory),
        start_daemon(program, "server", directory, {"t": server}) as one,
        start_daemon(program, "client", directory, clients) as other,
    ):
        await wait_all_up([one, other], count, within=_START_LIMIT_S)
        yield visitor_port


@asynccontextmanager
async def _start_targets(program: Sequence[str], count: int, directory: Path) -> AsyncIterator[int]:
    """Run a server and a client with some targets; yield the port of the visitors."""
    directory.mkdir()  # noqa: ASYNC240  before anything is measured
    tunnel_port, visitor_port, *target_ports = free_ports(count + 2)
    targets = ",".join(f"127.0.0.1:{port}" for port in target_ports)
    server = {"t": f"server://{KEY}@127.0.0.1:{tunnel_port}/127.0.0.1:{visitor_port}?mode=reverse"}
    client = {"t": f"client://{KEY}@127.0.0.1:{tunnel_port}/{targets}"}
    async with (
        nginx(target_ports[0], directory, *target_ports[1:]),
        start_daemon(program, "server", directory, server) as one,
        start_daemon(program, "client", directory, client) as other,
    ):
        await wait_all_up([one, other], 1, within=_START_LIMIT_S)
        yield visitor_port

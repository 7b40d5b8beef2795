"""The cost for visitors of an observer: a dashboard on the daemon, or a broker that the daemon publishes to.

Two identical daemons differ by more than an observer costs, and so does one machine from minute to minute. Therefore
a trial alternates between loads with and without an observer, and takes the ratio within each turn.
"""

from __future__ import annotations

import asyncio
import statistics
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

from . import broker, loads
from .daemons import BenchDaemon, cpu_seconds, start_pairs
from .processes import clean_environment
from .report import Goal, Metric, Sheet
from .screen import selected_tunnel
from .section import Sample, Section, Trial
from .targets import nginx
from .terminal import run_on_terminal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

DASHBOARD, MQTT = "dashboard", "mqtt"
PAIRS: Final = 250
TURNS: Final = 4

_DAEMON_SETTLING_S: Final = 6.0  # a daemon that has just started is still busy
_SETTLING_S: Final = 2.0  # and so is a dashboard
_START_LIMIT_S: Final = 20.0

_METRICS: Final = (
    Metric("keepalive.rate", "keep-alive requests/s", 0),
    Metric("keepalive.rate_x", "keep-alive rate, ratio to unobserved", 2, Goal(0.95, at_least=True, ratio=False)),
    Metric("keepalive.p99", "  p99 ms", 2),
    Metric("keepalive.p99_x", "  p99, ratio to unobserved", 2, chart_title="keep-alive p99, ratio to unobserved"),
    Metric("keepalive.cpu", "  CPU µs per request", 1),
    Metric("keepalive.cpu_x", "  CPU, ratio to unobserved", 2),
    Metric("newconn.rate", "new connections/s", 0),
    Metric(
        "newconn.rate_x", "  rate, ratio to unobserved", 2, chart_title="rate of new connections, ratio to unobserved"
    ),
    Metric("newconn.p99", "  p99 ms", 2),
    Metric("newconn.p99_x", "p99 of new connections, ratio to unobserved", 2, Goal(1.1, ratio=False)),
    Metric("newconn.cpu", "  CPU µs per connection", 0),
    Metric("newconn.cpu_x", "  CPU, ratio to unobserved", 2),
)


def section(program: Sequence[str]) -> Section:
    """Return the section: a dashboard and a broker, each compared with an unobserved daemon."""
    sheet = Sheet(
        metrics=_METRICS,
        variants=(DASHBOARD, MQTT),
        judged=(DASHBOARD, MQTT),
        plotted=("keepalive.rate_x", "keepalive.p99_x", "newconn.rate_x", "newconn.p99_x"),
    )
    trials = tuple(
        Trial(
            kind,
            variant,
            partial(_measure, tuple(program), kind, variant),
            ("nginx", "wrk", broker.TOOL) if variant == MQTT else ("nginx", "wrk"),
        )
        for kind in ("keepalive", "newconn")
        for variant in sheet.variants
    )
    return Section(name="watched", title="With a dashboard, and with a broker", sheet=sheet, trials=trials)


@dataclass(frozen=True, slots=True)
class LoadFigures:
    """Figures of one load: requests or connections per second, p99 in milliseconds, CPU seconds per request."""

    rate: float
    p99: float
    cpu: float
    errors: tuple[str, ...] = ()


def compare_loads(kind: str, alone: Sequence[LoadFigures], watched: Sequence[LoadFigures]) -> Sample:
    """Return the medians of the loads with an observer and of their ratios to those without, turn by turn."""
    errors = tuple(error for load in (*alone, *watched) for error in load.errors)
    values = {}
    for name, scale in (("rate", 1.0), ("p99", 1.0), ("cpu", 1e6)):
        pairs = [(getattr(one, name), getattr(other, name)) for one, other in zip(watched, alone, strict=True)]
        values[f"{kind}.{name}"] = statistics.median(figure for figure, _ in pairs) * scale
        if all(other for _, other in pairs):
            values[f"{kind}.{name}_x"] = statistics.median(figure / other for figure, other in pairs)
    return Sample(values, errors)


async def _measure(program: Sequence[str], kind: str, variant: str, seconds: int) -> Sample:
    async with AsyncExitStack() as stack:
        daemon = watched_daemon = await stack.enter_async_context(_daemon(program, {}))
        observer: Callable[[], AbstractAsyncContextManager[None]] = nullcontext
        if variant == MQTT:  # publishing cannot be switched on while a daemon runs
            broker_directory = Path(stack.enter_context(TemporaryDirectory(prefix="bench-")))
            url, _ = await stack.enter_async_context(broker.mosquitto(broker_directory))
            publishing = _daemon(program, {"mqtt": {"url": url, "host": "bench"}})
            watched_daemon = await stack.enter_async_context(publishing)
        else:
            observer = partial(_dashboard, program, daemon)
        await asyncio.sleep(_DAEMON_SETTLING_S)
        alone: list[LoadFigures] = []
        watched: list[LoadFigures] = []
        for turn in range(TURNS):
            for is_watched in (
                (False, True) if turn % 2 == 0 else (True, False)
            ):  # the order alternates, so that steady drift cancels out
                async with observer() if is_watched else nullcontext():
                    await asyncio.sleep(_SETTLING_S)
                    load = await _load(watched_daemon if is_watched else daemon, kind, seconds)
                (watched if is_watched else alone).append(load)
    return compare_loads(kind, alone, watched)


@dataclass(frozen=True, slots=True)
class _Daemon:
    daemon: BenchDaemon
    visitor_port: int
    directory: Path


@asynccontextmanager
async def _daemon(program: Sequence[str], supervisor: Mapping[str, Any]) -> AsyncIterator[_Daemon]:
    async with (
        start_pairs(program, PAIRS, supervisor) as (daemon, made, target_port, directory),
        nginx(target_port, directory),
    ):
        yield _Daemon(daemon, made.visitor_ports[0], directory)


@asynccontextmanager
async def _dashboard(program: Sequence[str], daemon: _Daemon) -> AsyncIterator[None]:
    command = (*program, "top", "--socket", str(daemon.daemon.socket))
    async with run_on_terminal("dashboard", command, directory=daemon.directory, env=clean_environment()) as top:
        await top.wait_shown(selected_tunnel, "the tunnels", within=_START_LIMIT_S)
        yield
        top.check()


async def _load(daemon: _Daemon, kind: str, seconds: int) -> LoadFigures:
    close, connections = (True, 32) if kind == "newconn" else (False, 64)
    before = cpu_seconds([daemon.daemon])
    load = await loads.requests(daemon.visitor_port, connections=connections, seconds=seconds, close=close)
    used = cpu_seconds([daemon.daemon]) - before
    return LoadFigures(load.rate, load.p99_ms, used / load.count if load.count else 0.0, load.errors)

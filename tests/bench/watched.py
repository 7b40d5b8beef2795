"""What it costs visitors that somebody looks on: a dashboard on the daemon, or a broker that it publishes to.

Two daemons of the same kind differ by more than an onlooker costs, and so does one machine from minute to minute.
Therefore a visit measures with and without an onlooker by turns, and the ratio is taken within each turn.
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
from .house import BenchDaemon, cpu_seconds, home
from .processes import plain_environment
from .report import Goal, Metric, Sheet
from .screen import chosen
from .section import Sample, Section, Trial
from .targets import nginx
from .terminal import on_terminal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

DASHBOARD, MQTT = "dashboard", "mqtt"
PAIRS: Final = 250
TURNS: Final = 4

_BEGINNING_S: Final = 6.0  # a daemon that has just begun has other things to do
_SETTLING_S: Final = 2.0  # and so has a dashboard
_START_LIMIT_S: Final = 20.0

_METRICS: Final = (
    Metric("keepalive.rate", "keep-alive requests/s", 0),
    Metric("keepalive.rate_x", "keep-alive rate, x of alone", 2, Goal(0.95, at_least=True, ratio=False)),
    Metric("keepalive.p99", "  p99 ms", 2),
    Metric("keepalive.p99_x", "  p99, x of alone", 2, drawn="keep-alive p99, x of alone"),
    Metric("keepalive.cpu", "  CPU µs per request", 1),
    Metric("keepalive.cpu_x", "  CPU, x of alone", 2),
    Metric("newconn.rate", "new connections/s", 0),
    Metric("newconn.rate_x", "  rate, x of alone", 2, drawn="rate of new connections, x of alone"),
    Metric("newconn.p99", "  p99 ms", 2),
    Metric("newconn.p99_x", "p99 of new connections, x of alone", 2, Goal(1.1, ratio=False)),
    Metric("newconn.cpu", "  CPU µs per connection", 0),
    Metric("newconn.cpu_x", "  CPU, x of alone", 2),
)


def section(program: Sequence[str]) -> Section:
    """A dashboard, a broker; each beside nobody."""
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
            partial(_take, tuple(program), kind, variant),
            ("nginx", "wrk", broker.TOOL) if variant == MQTT else ("nginx", "wrk"),
        )
        for kind in ("keepalive", "newconn")
        for variant in sheet.variants
    )
    return Section(name="watched", title="With a dashboard, and with a broker", sheet=sheet, trials=trials)


@dataclass(frozen=True, slots=True)
class Served:
    """What visitors got in one load: requests or connections a second, milliseconds, CPU seconds for each."""

    rate: float
    p99: float
    cpu: float
    errors: tuple[str, ...] = ()


def compared(kind: str, alone: Sequence[Served], watched: Sequence[Served]) -> Sample:
    """The loads with an onlooker, and their ratios to those without, turn by turn; of both the medians."""
    errors = tuple(error for load in (*alone, *watched) for error in load.errors)
    values = {}
    for name, scale in (("rate", 1.0), ("p99", 1.0), ("cpu", 1e6)):
        beside = [(getattr(one, name), getattr(other, name)) for one, other in zip(watched, alone, strict=True)]
        values[f"{kind}.{name}"] = statistics.median(figure for figure, _ in beside) * scale
        if all(other for _, other in beside):
            values[f"{kind}.{name}_x"] = statistics.median(figure / other for figure, other in beside)
    return Sample(values, errors)


async def _take(program: Sequence[str], kind: str, variant: str, seconds: int) -> Sample:
    async with AsyncExitStack() as stack:
        daemon = watched_daemon = await stack.enter_async_context(_daemon(program, {}))
        onlooker: Callable[[], AbstractAsyncContextManager[None]] = nullcontext
        if variant == MQTT:  # a daemon cannot be told to publish while it runs
            place = Path(stack.enter_context(TemporaryDirectory(prefix="bench-")))
            url, _ = await stack.enter_async_context(broker.mosquitto(place))
            publishing = _daemon(program, {"mqtt": {"url": url, "host": "bench"}})
            watched_daemon = await stack.enter_async_context(publishing)
        else:
            onlooker = partial(_dashboard, program, daemon)
        await asyncio.sleep(_BEGINNING_S)
        alone: list[Served] = []
        watched: list[Served] = []
        for turn in range(TURNS):
            for is_watched in (False, True) if turn % 2 == 0 else (True, False):  # what drifts steadily cancels out
                async with onlooker() if is_watched else nullcontext():
                    await asyncio.sleep(_SETTLING_S)
                    load = await _load(watched_daemon if is_watched else daemon, kind, seconds)
                (watched if is_watched else alone).append(load)
    return compared(kind, alone, watched)


@dataclass(frozen=True, slots=True)
class _Daemon:
    house: BenchDaemon
    visitor_port: int
    directory: Path


@asynccontextmanager
async def _daemon(program: Sequence[str], supervisor: Mapping[str, Any]) -> AsyncIterator[_Daemon]:
    async with (
        home(program, PAIRS, supervisor) as (house, made, target_port, directory),
        nginx(target_port, directory),
    ):
        yield _Daemon(house, made.visitor_ports[0], directory)


@asynccontextmanager
async def _dashboard(program: Sequence[str], daemon: _Daemon) -> AsyncIterator[None]:
    command = (*program, "top", "--socket", str(daemon.house.socket))
    async with on_terminal("dashboard", command, directory=daemon.directory, env=plain_environment()) as top:
        await top.shows(chosen, "the tunnels", within=_START_LIMIT_S)
        yield
        top.check()


async def _load(daemon: _Daemon, kind: str, seconds: int) -> Served:
    close, connections = (True, 32) if kind == "newconn" else (False, 64)
    before = cpu_seconds([daemon.house])
    load = await loads.requests(daemon.visitor_port, connections=connections, seconds=seconds, close=close)
    used = cpu_seconds([daemon.house]) - before
    return Served(load.rate, load.p99_ms, used / load.count if load.count else 0.0, load.errors)

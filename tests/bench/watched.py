"""What it costs visitors that somebody looks on: a dashboard on the daemon, or a broker that it publishes to."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

from . import broker, loads
from .house import cpu_seconds, home
from .processes import plain_environment
from .report import Goal, Metric, Sheet
from .section import Sample, Section, Trial
from .targets import nginx
from .terminal import on_terminal

if TYPE_CHECKING:
    from collections.abc import Sequence

ALONE, DASHBOARD, MQTT = "alone", "dashboard", "mqtt"
PAIRS: Final = 250

_SETTLING_S: Final = 6.0  # a daemon or a dashboard that has just begun has other things to do

_METRICS: Final = (
    Metric("keepalive.rate", "keep-alive requests/s", 0, Goal(0.95, at_least=True)),
    Metric("keepalive.p99", "  p99 ms", 2, drawn="keep-alive requests, p99 ms"),
    Metric("keepalive.cpu", "  CPU µs per request", 1),
    Metric("newconn.rate", "new connections/s", 0),
    Metric("newconn.p99", "  p99 ms, new connections", 2, Goal(1.1), drawn="new connections, p99 ms"),
    Metric("newconn.cpu", "  CPU µs per connection", 0),
)


def section(program: Sequence[str]) -> Section:
    """Nobody, a dashboard, a broker."""
    sheet = Sheet(
        metrics=_METRICS,
        variants=(ALONE, DASHBOARD, MQTT),
        baseline=ALONE,
        judged=(DASHBOARD, MQTT),
        plotted=("keepalive.rate", "keepalive.p99", "newconn.rate", "newconn.p99"),
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


async def _take(program: Sequence[str], kind: str, variant: str, seconds: int) -> Sample:
    close, connections = (True, 32) if kind == "newconn" else (False, 64)
    async with AsyncExitStack() as stack:
        supervisor = {}
        if variant == MQTT:
            place = Path(stack.enter_context(TemporaryDirectory(prefix="bench-")))
            url, _ = await stack.enter_async_context(broker.mosquitto(place))
            supervisor = {"mqtt": {"url": url, "host": "bench"}}
        house, made, target_port, directory = await stack.enter_async_context(home(program, PAIRS, supervisor))
        onlookers = []
        if variant == DASHBOARD:
            command = (*program, "top", "--socket", str(house.socket))
            top = await stack.enter_async_context(
                on_terminal("dashboard", command, directory=directory, env=plain_environment())
            )
            await top.shows(lambda screen: any(" c0 " in row for row in screen), "the tunnels", within=20)
            onlookers.append(top)
        await stack.enter_async_context(nginx(target_port, directory))
        await asyncio.sleep(_SETTLING_S)
        before = cpu_seconds([house])
        load = await loads.requests(made.visitor_ports[0], connections=connections, seconds=seconds, close=close)
        used = cpu_seconds([house]) - before
        for top in onlookers:
            top.check()
    values = {f"{kind}.rate": load.rate, f"{kind}.p99": load.p99_ms}
    if load.count:
        values[f"{kind}.cpu"] = used / load.count * 1e6
    return Sample(values, load.errors)

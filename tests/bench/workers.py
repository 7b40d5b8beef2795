"""One daemon with several tunnels under load at once, with 0, 1 and 2 workers."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from .daemons import cpu_seconds, load_tunnels, start_pairs
from .report import Metric, Sheet
from .section import Sample, Section, Trial
from .targets import nginx

if TYPE_CHECKING:
    from collections.abc import Sequence

WORKERS: Final = (0, 1, 2)
PAIRS: Final = 4

_METRICS: Final = (
    Metric("keepalive.rate", f"keep-alive requests/s, {PAIRS} tunnels", 0),
    Metric("keepalive.p99", "  p99 ms", 2),
    Metric("keepalive.cpu", "  CPU µs per request", 1),
    Metric("newconn.rate", f"new connections/s, {PAIRS} tunnels", 0),
    Metric("newconn.p99", "  p99 ms", 2, chart_title="new connections, p99 ms"),
    Metric("newconn.cpu", "  CPU µs per connection", 0),
)


def section(program: Sequence[str]) -> Section:
    """Return the section with all numbers of workers."""
    names = tuple(f"workers: {count}" for count in WORKERS)
    sheet = Sheet(
        metrics=_METRICS,
        variants=names,
        baseline=names[0],
        plotted=("keepalive.rate", "newconn.rate", "newconn.p99"),
    )
    trials = tuple(
        Trial(kind, name, partial(_measure, tuple(program), kind, count), ("nginx", "wrk"))
        for kind in ("keepalive", "newconn")
        for name, count in zip(names, WORKERS, strict=True)
    )
    return Section(name="workers", title="Workers", sheet=sheet, trials=trials)


async def _measure(program: Sequence[str], kind: str, workers: int, seconds: int) -> Sample:
    close, connections = (True, 32) if kind == "newconn" else (False, 64)
    async with (
        start_pairs(program, PAIRS, {"workers": workers}) as (daemon, made, target_port, directory),
        nginx(target_port, directory),
    ):
        before = cpu_seconds([daemon])
        load = await load_tunnels(made.visitor_ports, connections=connections // PAIRS, seconds=seconds, close=close)
        used = cpu_seconds([daemon]) - before
    values = {f"{kind}.rate": load.rate, f"{kind}.p99": load.p99_ms}
    if load.count:
        values[f"{kind}.cpu"] = used / load.count * 1e6
    return Sample(values, load.errors)

"""The sections that compare pairs of processes: contenders, encryption, and visitors that share a connection."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

from . import contenders as contender_list
from .measure import MEASUREMENTS, measure
from .report import Goal, Metric, Sheet
from .section import Section, Trial

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .contenders import Contender

METRICS: Final = (
    Metric("keepalive.rate", "keep-alive requests/s", 0),
    Metric("keepalive.p50", "  p50 ms", 2),
    Metric("keepalive.p99", "  p99 ms", 2, chart_title="keep-alive requests, p99 ms"),
    Metric("keepalive.cpu", "  CPU µs per request", 1),
    Metric("newconn.rate", "new connections/s", 0),
    Metric("newconn.p50", "  p50 ms", 2),
    Metric("newconn.p99", "  p99 ms, new connections", 2, chart_title="new connections, p99 ms"),
    Metric("newconn.cpu", "  CPU µs per connection", 0),
    Metric("lone.rate", "one visitor at a time, connections/s", 0),
    Metric("lone.p50", "  p50 ms, one at a time", 3, chart_title="one new connection at a time, p50 ms"),
    Metric("lone.p99", "  p99 ms, one at a time", 2),
    Metric("lone.cpu", "  CPU µs per connection, one at a time", 0),
    Metric("bulk1.rate", "bulk, 1 stream, Gbit/s", 2),
    Metric("bulk1.cpu", "  CPU s per GB, 1 stream", 3, chart_title="bulk, 1 stream, CPU s per GB"),
    Metric("bulk8.rate", "bulk, 8 streams, Gbit/s", 2),
    Metric("bulk8.cpu", "  CPU s per GB, 8 streams", 3),
    Metric("idle.both", "idle connection, both ends, KB", 2),
    Metric("idle.server", "  server end", 2),
    Metric("idle.client", "  client end", 2),
    Metric("idle.rest_server", "RSS at rest, server end, MB", 1),
    Metric("idle.rest_client", "RSS at rest, client end, MB", 1),
    Metric("start.ms", "start to first byte, ms", 0),
)

_GOALS: Final = {
    contender_list.OURS: {
        "lone.p50": Goal(1.7),
        "bulk1.rate": Goal(1.0, at_least=True),
        "bulk1.cpu": Goal(1.15),
        "bulk8.rate": Goal(1.0, at_least=True),
        "bulk8.cpu": Goal(1.15),
        "idle.both": Goal(4.0, ratio=False),
        "idle.rest_server": Goal(40.0, ratio=False),
        "idle.rest_client": Goal(40.0, ratio=False),
        "start.ms": Goal(1000.0, ratio=False),
    },
    contender_list.OURS_PLAIN: {
        "keepalive.rate": Goal(1.0, at_least=True),
        "newconn.rate": Goal(0.7, at_least=True),
        "newconn.p99": Goal(2.0),
        "lone.p50": Goal(1.7),
        "bulk1.rate": Goal(1.5, at_least=True),
        "bulk1.cpu": Goal(0.5),
        "bulk8.rate": Goal(1.5, at_least=True),
        "bulk8.cpu": Goal(0.5),
        "idle.both": Goal(2.0, ratio=False),
        "idle.rest_server": Goal(32.0, ratio=False),
        "idle.rest_client": Goal(32.0, ratio=False),
    },
    contender_list.OURS_PLAIN_REUSED: {"newconn.rate": Goal(0.92, at_least=True), "newconn.cpu": Goal(1.0)},
    contender_list.OURS_REUSED: {"newconn.rate": Goal(0.85, at_least=True)},
}
"""What this project has to reach, by variant and metric; ratios are those to HAProxy."""

KINDS: Final = ("start", "idle", "keepalive", "newconn", "lone", "bulk")
"""The measurements of contenders by their names on the command line."""

_PLOTTED: Final = (
    "keepalive.rate", "keepalive.p99", "newconn.rate", "newconn.p99", "lone.p50", "bulk1.rate", "bulk1.cpu",
    "bulk8.rate", "idle.both",
)  # fmt: skip

PLAIN: Final = "tls=0"
ENCRYPTED: Final = "encrypted"
PLAIN_REUSED: Final = "tls=0, reuse=1"
ENCRYPTED_REUSED: Final = "encrypted, reuse=1"

_TLS_GOALS: Final = {
    "keepalive.rate": Goal(0.8, at_least=True),
    "newconn.rate": Goal(0.85, at_least=True),
    "newconn.p99": Goal(1.3),
}

EACH: Final = "mux=0"
SHARED: Final = "mux=1"
EACH_REUSED: Final = "mux=0, reuse=1"

_MUX_GOALS: Final = {
    "keepalive.rate": Goal(1.0, at_least=True),
    "newconn.rate": Goal(1.0, at_least=True),
    "newconn.p99": Goal(1.1),
    "bulk1.rate": Goal(0.95, at_least=True),
    "bulk8.rate": Goal(0.95, at_least=True),
}


def contenders(contenders: Sequence[Contender], kinds: Sequence[str]) -> Section:
    """Return the section that compares this project with others in some of the KINDS."""
    names = tuple(contender.name for contender in contenders)
    sheet = Sheet(
        metrics=tuple(replace(metric, goals=_goals_of(metric.key)) for metric in METRICS),
        variants=names,
        baseline=contender_list.BASELINE,
        judged=tuple(name for name in _GOALS if name in names),
        plotted=_PLOTTED,
    )
    return Section(
        name="contenders", title="Comparison with other tunnels", sheet=sheet, trials=_trials(contenders, kinds)
    )


def _goals_of(key: str) -> tuple[tuple[str, Goal], ...]:
    return tuple((name, goals[key]) for name, goals in _GOALS.items() if key in goals)


def tls(command: str | None) -> Section:
    """Return the section that compares encrypted data connections with those in the clear."""
    variants = {PLAIN: "&tls=0", ENCRYPTED: "", PLAIN_REUSED: "&tls=0&reuse=1", ENCRYPTED_REUSED: "&reuse=1"}
    return _variants("tls", "Plain and encrypted data connections", command, variants, ENCRYPTED, _TLS_GOALS)


def mux(command: str | None) -> Section:
    """Return the section that compares visitors that share a connection with those that have one each."""
    variants = {EACH: "&mux=0", SHARED: "&mux=1", EACH_REUSED: "&mux=0&reuse=1"}
    return _variants("mux", "Visitors that share a connection, and one for each", command, variants, SHARED, _MUX_GOALS)


def _variants(
    name: str, title: str, command: str | None, variants: Mapping[str, str], judged: str, goals: Mapping[str, Goal]
) -> Section:
    """Return a section on pairs with these options; the first one is the baseline."""
    pairs = tuple(contender_list.ours(command, name=variant, options=options) for variant, options in variants.items())
    metrics = tuple(
        replace(metric, goal=goals.get(metric.key)) for metric in METRICS if metric.measurement not in {"idle", "start"}
    )
    sheet = Sheet(
        metrics=metrics,
        variants=tuple(variants),
        baseline=next(iter(variants)),
        judged=(judged,),
        plotted=("keepalive.rate", "newconn.rate", "bulk1.rate", "bulk8.rate", "bulk1.cpu"),
    )
    return Section(name=name, title=title, sheet=sheet, trials=_trials(pairs, KINDS[2:]))


def _trials(pairs: Sequence[Contender], kinds: Sequence[str]) -> tuple[Trial, ...]:
    return tuple(
        Trial(measurement.name, contender.name, partial(measure, measurement, contender), measurement.tools)
        for measurement in MEASUREMENTS
        if measurement.name.rstrip("18") in kinds
        for contender in pairs
        if contender.server or measurement.of_direct
    )

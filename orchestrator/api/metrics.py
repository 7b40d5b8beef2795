"""Prometheus metrics: one row for each metric, read from the daemon or from the snapshot of a tunnel."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Final, Generic, TypeAlias, TypeVar

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from tunnel.model.snapshot import HELP, REFUSED_VISITORS, CountersView, RateLimitsView, Snapshot
from tunnel.model.spec import Proto, UdpCarrier
from tunnel.model.state import State
from tunnel.model.targets import TargetState

if TYPE_CHECKING:
    from prometheus_client import Metric

    from orchestrator.history.recorder import HistoryStatus
    from orchestrator.status.contract import DaemonInfo

_PREFIX: Final = "nodepass_orch"
MetricType: TypeAlias = type[CounterMetricFamily | GaugeMetricFamily]
COUNTER, GAUGE = CounterMetricFamily, GaugeMetricFamily
"""The types of metrics. The name of a counter gets the suffix ``_total``."""

Source = TypeVar("Source")


@dataclass(frozen=True, slots=True)
class DaemonReading:
    """The values that belong to the daemon and not to a tunnel."""

    info: DaemonInfo
    tasks: int
    """tasks in the daemon's event loop: a number that only grows is a leak"""
    access_log: tuple[int, int] = (0, 0)
    """lines of the access log: written, and lost"""
    history: HistoryStatus | None = None
    """the writer of the traffic history; None where nothing is recorded"""


@dataclass(frozen=True, slots=True)
class LabelSet(Generic[Source]):
    """Names of labels, and how to read their values."""

    names: tuple[str, ...]
    read: Callable[[Source], tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class MetricSpec(Generic[Source]):
    """One metric. Rows of the same name, which differ in a label, follow each other and form one family."""

    name: str
    type: MetricType
    help: str
    read: Callable[[Source], float | None]
    """returns None if the value is unknown: the sample is left out then"""
    labels: LabelSet[Source]


def _timestamp(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()


def _to_seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def _refusal(kind: str) -> LabelSet[Snapshot]:
    return LabelSet(("tunnel", "what"), lambda s: (s.name, kind))


def _visitor_refusal(reason: str) -> LabelSet[Snapshot]:
    return LabelSet(("tunnel", "reason"), lambda s: (s.name, reason))


_NO_LABELS: Final[LabelSet[DaemonReading]] = LabelSet((), lambda _: ())
_VERSION: Final[LabelSet[DaemonReading]] = LabelSet(("version",), lambda d: (d.info.version,))
_TUNNEL: Final[LabelSet[Snapshot]] = LabelSet(
    ("tunnel", "role", "direction"), lambda s: (s.name, s.role, s.direction or "")
)
_STATE: Final[LabelSet[Snapshot]] = LabelSet(("tunnel", "state"), lambda s: (s.name, s.state.value))


def _target_states(*states: TargetState) -> tuple[LabelSet[Snapshot], Callable[[Snapshot], float | None]]:
    """Return the label and the reader of the number of targets in one of several states, of a group alone."""

    def count(snapshot: Snapshot) -> float | None:
        checked = [target for target in snapshot.targets if target.checks is not None]
        return sum(target.state in states for target in checked) if checked else None

    return LabelSet(("tunnel", "state"), lambda s: (s.name, states[0].value)), count


_TARGET_STATES: Final = (
    _target_states(TargetState.UP),
    _target_states(TargetState.DOWN),
    _target_states(TargetState.DRAINED, TargetState.DRAINING),
)
_REFUSED_HELP: Final = "Connection attempts that failed to authenticate."
_REFUSED_VISITORS_HELP: Final = "Visitors that were refused, by reason; at the end that accepts them."


def _daemon(
    name: str, text: str, read: Callable[[DaemonReading], float], labels: LabelSet[DaemonReading] = _NO_LABELS
) -> MetricSpec[DaemonReading]:
    return MetricSpec(name, GAUGE, text, read, labels)


def _history(
    name: str, text: str, read: Callable[[HistoryStatus], float | None], kind: MetricType = GAUGE
) -> MetricSpec[DaemonReading]:
    return MetricSpec(f"history_{name}", kind, text, lambda d: read(d.history) if d.history else None, _NO_LABELS)


def _gauge(
    name: str, text: str, read: Callable[[Snapshot], float | None], labels: LabelSet[Snapshot] = _TUNNEL
) -> MetricSpec[Snapshot]:
    return MetricSpec(f"tunnel_{name}", GAUGE, text, read, labels)


def _counter(
    name: str, text: str, read: Callable[[Snapshot], float | None], labels: LabelSet[Snapshot] = _TUNNEL
) -> MetricSpec[Snapshot]:
    return MetricSpec(f"tunnel_{name}", COUNTER, text, read, labels)


DAEMON_METRICS: Final[tuple[MetricSpec[DaemonReading], ...]] = (
    _daemon("build_info", "Version of the program.", lambda _: 1, _VERSION),
    _daemon("config_generation", "Generation of the configuration in force.", lambda d: d.info.generation),
    _daemon("config_ok", "1 if the file is valid, else 0.", lambda d: float(d.info.config.ok)),
    _daemon(
        "config_loaded_timestamp_seconds",
        "Time at which the configuration in force was read.",
        lambda d: _timestamp(d.info.config.loaded_at),
    ),
    _history("pending_rows", "Rows of the traffic history that are not written yet.", lambda h: h.pending_rows),
    _history("lost_rows", "Rows of the traffic history that could not be kept.", lambda h: h.lost_rows, COUNTER),
    _history("failed_writes", "Attempts to write the traffic history that failed.", lambda h: h.failed_writes, COUNTER),
    _history("last_write_timestamp_seconds", "Time of the last write of the history.", lambda h: h.last_write),
    MetricSpec(
        "access_log_lines", COUNTER, "Lines of the access log that were written.", lambda d: d.access_log[0], _NO_LABELS
    ),
    MetricSpec(
        "access_log_lost", COUNTER, "Lines of the access log that were lost.", lambda d: d.access_log[1], _NO_LABELS
    ),
    _daemon("tasks", "Tasks in the daemon's event loop, without those of workers.", lambda d: d.tasks),
)


def _rate_limit(read: Callable[[RateLimitsView], float | None]) -> Callable[[Snapshot], float | None]:
    """Return what reads a value of the limits of rates; None without a limit at this end."""
    return lambda s: read(s.rate_limits) if s.rate_limits else None


def _count_lanes(snapshot: Snapshot) -> float | None:
    """Return how many visitors share data connections; None if no link has shared connections."""
    counts = [link.lanes for link in snapshot.links if link.lanes is not None]
    return sum(counts) if counts else None


TUNNEL_METRICS: Final[tuple[MetricSpec[Snapshot], ...]] = (
    _gauge("up", "1 if the tunnel can serve visitors, else 0.", lambda s: float(s.state is State.UP)),
    _gauge("state_since_timestamp_seconds", "Time of the last state change.", lambda s: _timestamp(s.since)),
    _gauge("pool_idle", "Idle data connections.", lambda s: s.pool.idle),
    _gauge("pool_capacity", "Idle data connections wanted at present.", lambda s: s.pool.capacity),
    _gauge("pool_dialing", "Data connections that are being dialled.", lambda s: s.pool.dialing),
    _gauge("pool_min", "Minimum number of idle data connections.", lambda s: s.pool.min),
    _gauge("pool_max", "Maximum number of idle data connections.", lambda s: s.pool.max),
    _gauge("signals_queued", "Visitors that wait for a data connection.", lambda s: s.signals.queued),
    _gauge("signals_queue_limit", "Maximum number of visitors that wait.", lambda s: s.signals.limit),
    _counter("signals", "Signals sent or received.", lambda s: s.signals.total),
    _gauge("connections_active", "Visitors connected at present.", lambda s: s.connections.active),
    _gauge("connections_limit", "Maximum number of connected visitors.", lambda s: s.connections.limit),
    _counter("connections", "Visitors served.", lambda s: s.connections.total),
    _counter("connections_failed", "Visitors that could not be served.", lambda s: s.connections.failed),
    _counter("in_bytes", "Bytes from visitors.", lambda s: s.bytes.from_visitors),
    _counter("out_bytes", "Bytes to visitors.", lambda s: s.bytes.to_visitors),
    _gauge(
        "links_present",
        "Links at present; one for each client of a server, or server of a client.",
        lambda s: len(s.links),
    ),
    _gauge(
        "datagram_links",
        "Links over which UDP travels as datagrams at present; none in a tunnel of TCP.",
        lambda s: sum(link.udp_carrier == UdpCarrier.DATAGRAM for link in s.links) if s.proto != Proto.TCP else None,
    ),
    _gauge(
        "lanes",
        "Visitors that share a data connection at present; none unless both ends allow that (mux).",
        _count_lanes,
    ),
    _gauge("rtt_seconds", "Round-trip time of the control channel.", lambda s: _to_seconds(s.rtt_ms)),
    _gauge("cooldown_remaining_seconds", "Time until the next attempt.", lambda s: s.cooldown.remaining_s),
    _gauge("cooldown_attempt", "Consecutive failed attempts.", lambda s: s.cooldown.attempt),
    _gauge(
        "quota_used_bytes", "Bytes of the tunnel's quota that are used.", lambda s: s.quota.used if s.quota else None
    ),
    _gauge("quota_limit_bytes", "Bytes of the tunnel's quota.", lambda s: s.quota.limit if s.quota else None),
    _gauge("rate_limit_bits", "Bits per second of all visitors together, each way.", _rate_limit(lambda r: r.rate_bps)),
    _gauge(
        "visitor_rate_limit_bits",
        "Bits per second of each visitor, each way.",
        _rate_limit(lambda r: r.visitor_rate_bps),
    ),
    _counter(
        "rate_paused_in_seconds",
        "Time in which a limit of the rate held bytes from visitors back.",
        _rate_limit(lambda r: r.paused_in_s),
    ),
    _counter(
        "rate_paused_out_seconds",
        "Time in which a limit of the rate held bytes to visitors back.",
        _rate_limit(lambda r: r.paused_out_s),
    ),
    _counter("restarts", "Restarts of the engine after a crash.", lambda s: s.restarts),
    *(_gauge("targets", "Targets of a group by state.", count, label) for label, count in _TARGET_STATES),
    _gauge("state", "1 for the present state of the tunnel.", lambda _: 1, _STATE),
    _counter("refused", _REFUSED_HELP, lambda s: s.refused.handshakes, _refusal("handshake")),
    _counter("refused", _REFUSED_HELP, lambda s: s.refused.prefaces, _refusal("preface")),
    _counter("refused", _REFUSED_HELP, lambda s: s.refused.silent, _refusal("silence")),
    *(
        _counter("refused_visitors", _REFUSED_VISITORS_HELP, attrgetter(f"refused.{reason}"), _visitor_refusal(reason))
        for reason in REFUSED_VISITORS
    ),
    *(
        _counter(counter.name, counter.metadata[HELP], attrgetter(f"counters.{counter.name}"))
        for counter in fields(CountersView)
    ),
)


def render(daemon: DaemonReading, snapshots: Sequence[Snapshot], accept: str, process: Collector) -> tuple[bytes, str]:
    """Return the page of metrics and its content type; ``accept`` is the header of that name.

    Takes a tenth of a second for some hundred tunnels and uses nothing but its arguments, so it may run in a thread.
    """
    registry = CollectorRegistry()
    registry.register(_Reading(daemon, snapshots))
    registry.register(process)
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


def process_collector() -> Collector:
    """Return a collector of the daemon's CPU time, memory and file descriptors."""
    return ProcessCollector(registry=None)


class _Reading(Collector):
    def __init__(self, daemon: DaemonReading, snapshots: Sequence[Snapshot]) -> None:
        self._daemon = daemon
        self._snapshots = snapshots

    def collect(self) -> Iterator[Metric]:
        """Yield every family once, each with all tunnels."""
        yield from _families(DAEMON_METRICS, [self._daemon])
        yield from _families(TUNNEL_METRICS, self._snapshots)


def _families(specs: Sequence[MetricSpec[Source]], sources: Sequence[Source]) -> Iterator[Metric]:
    label_values: dict[int, list[tuple[str, ...]]] = {}  # most metrics share one label set: read it once
    for name, group in groupby(specs, attrgetter("name")):
        rows = list(group)
        family = rows[0].type(f"{_PREFIX}_{name}", rows[0].help, labels=rows[0].labels.names)
        for row in rows:
            values = label_values.setdefault(id(row.labels), [])
            if not values:
                values += map(row.labels.read, sources)
            for labels, source in zip(values, sources, strict=True):
                if (value := row.read(source)) is not None:
                    family.add_metric(labels, value)
        yield family

"""The tunnels in numbers, as Prometheus reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from tunnel.model.snapshot import Snapshot
from tunnel.model.state import State

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from prometheus_client import Metric

_PREFIX: Final = "nodepass_orch"
_LABELS: Final = ("tunnel", "role", "direction")
_Family = type[CounterMetricFamily] | type[GaugeMetricFamily]


@dataclass(frozen=True, slots=True)
class _Measure:
    family: _Family
    name: str
    help: str
    value: Callable[[Snapshot], float | None]


def _gauge(name: str, text: str, value: Callable[[Snapshot], float | None]) -> _Measure:
    return _Measure(GaugeMetricFamily, name, text, value)


def _counter(name: str, text: str, value: Callable[[Snapshot], float | None]) -> _Measure:
    return _Measure(CounterMetricFamily, name, text, value)


_MEASURES: Final = (
    _gauge("up", "1 if visitors can be served, else 0.", lambda s: float(s.state is State.UP)),
    _gauge("state_since_timestamp_seconds", "When the present state began.", lambda s: _epoch(s.since)),
    _gauge("pool_idle", "Idle data connections.", lambda s: s.pool.idle),
    _gauge("pool_capacity", "Idle data connections wanted just now.", lambda s: s.pool.capacity),
    _gauge("pool_dialing", "Data connections that are being dialled.", lambda s: s.pool.dialing),
    _gauge("pool_min", "Least number of idle data connections.", lambda s: s.pool.min),
    _gauge("pool_max", "Largest number of idle data connections.", lambda s: s.pool.max),
    _gauge("signals_queued", "Visitors that wait for a data connection.", lambda s: s.signals.queued),
    _gauge("signals_queue_limit", "Visitors that may wait for a data connection.", lambda s: s.signals.limit),
    _counter("signals", "Signals sent or received.", lambda s: s.signals.total),
    _gauge("connections_active", "Visitors served now.", lambda s: s.connections.active),
    _gauge("connections_limit", "Visitors that may be served at once.", lambda s: s.connections.limit),
    _counter("connections", "Visitors served ever.", lambda s: s.connections.total),
    _counter("connections_failed", "Visitors that could not be served.", lambda s: s.connections.failed),
    _counter("in_bytes", "Bytes that came from visitors.", lambda s: s.bytes.from_visitors),
    _counter("out_bytes", "Bytes that went to visitors.", lambda s: s.bytes.to_visitors),
    _gauge("rtt_seconds", "Round-trip time of the control channel.", lambda s: _seconds(s.rtt_ms)),
    _gauge("cooldown_remaining_seconds", "Time until the next attempt.", lambda s: s.cooldown.remaining_s),
    _gauge("cooldown_attempt", "Attempts in a row that failed.", lambda s: s.cooldown.attempt),
    _counter("restarts", "Times that an engine broke and was replaced.", lambda s: s.restarts),
)


def _epoch(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def render(
    head: Mapping[str, Any], snapshots: Sequence[Snapshot], tasks: int, accept: str, process: Collector
) -> tuple[bytes, str]:
    """The page of metrics and its content type; ``accept`` is the header of that name.

    ``tasks`` is how many there are in the daemon's event loop: one that only grows is a leak.
    Takes a tenth of a second for some hundred tunnels and touches nothing but its arguments, so it may run in a thread.
    """
    registry = CollectorRegistry()
    registry.register(_Tunnels(head, snapshots, tasks))
    registry.register(process)
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


def process_collector() -> Collector:
    """The daemon's own processor time, memory and descriptors."""
    return ProcessCollector(registry=None)


class _Tunnels(Collector):
    def __init__(self, head: Mapping[str, Any], snapshots: Sequence[Snapshot], tasks: int) -> None:
        self._head = head
        self._snapshots = snapshots
        self._tasks = tasks

    def collect(self) -> Iterator[Metric]:
        """Every family once, each with all tunnels."""
        yield from _house(self._head)
        text = "Tasks in the daemon's event loop, without its workers'."
        yield GaugeMetricFamily(f"{_PREFIX}_tasks", text, self._tasks)
        labels = [(s.name, s.role, s.direction or "") for s in self._snapshots]
        for measure in _MEASURES:
            family = measure.family(f"{_PREFIX}_tunnel_{measure.name}", measure.help, labels=_LABELS)
            for label, snapshot in zip(labels, self._snapshots, strict=True):
                if (value := measure.value(snapshot)) is not None:
                    family.add_metric(label, value)
            yield family
        yield _states(self._snapshots)
        yield _refused(self._snapshots)


def _house(head: Mapping[str, Any]) -> Iterator[Metric]:
    config = head["config"]
    build = GaugeMetricFamily(f"{_PREFIX}_build_info", "The program's version.", labels=("version",))
    build.add_metric((str(head["version"]),), 1)
    yield build
    for name, text, value in (
        ("generation", "Generation of the configuration that is in force.", head["generation"]),
        ("ok", "1 if the file can be run as it is now, else 0.", float(config["ok"])),
        ("loaded_timestamp_seconds", "When that configuration was read.", _epoch(config["loaded_at"])),
    ):
        yield GaugeMetricFamily(f"{_PREFIX}_config_{name}", text, value=value)


def _states(snapshots: Iterable[Snapshot]) -> Metric:
    text = "1 for the state that the tunnel is in."
    family = GaugeMetricFamily(f"{_PREFIX}_tunnel_state", text, labels=("tunnel", "state"))
    for snapshot in snapshots:
        family.add_metric((snapshot.name, snapshot.state.value), 1)
    return family


def _refused(snapshots: Iterable[Snapshot]) -> Metric:
    text = "What strangers tried and did not get."
    family = CounterMetricFamily(f"{_PREFIX}_tunnel_refused", text, labels=("tunnel", "what"))
    for snapshot in snapshots:
        family.add_metric((snapshot.name, "handshake"), snapshot.refused.handshakes)
        family.add_metric((snapshot.name, "preface"), snapshot.refused.prefaces)
        family.add_metric((snapshot.name, "silence"), snapshot.refused.silent)
    return family

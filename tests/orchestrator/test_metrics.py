"""A parser reads from the page of metrics the values of the snapshots."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from orchestrator.api import metrics
from orchestrator.status.contract import ConfigStatus, DaemonInfo
from orchestrator.supervisor.runner import stopped_snapshot
from tunnel.model.options import make_spec
from tunnel.model.snapshot import (
    BytesView,
    ConnectionsView,
    CountersView,
    LinkView,
    RateLimitsView,
    RefusedView,
    SignalsView,
    Snapshot,
    TargetChecksView,
    TargetView,
)
from tunnel.model.state import State
from tunnel.model.targets import TargetState
from tunnel.model.url import parse_url

INFO = DaemonInfo(
    generation=4,
    pid=1,
    config=ConfigStatus(path="tunnels.yaml", ok=False, loaded_at="2026-01-02T03:04:05.500Z"),
    version="1.2.3",
    host="edge-1",
    read_only=False,
    started_at="2026-01-01T00:00:00.000Z",
)


def snapshot(name: str = "web", **changes: Any) -> Snapshot:  # noqa: ANN401  any field of a snapshot
    return replace(
        stopped_snapshot(name, make_spec(parse_url("server://127.0.0.1:1/127.0.0.1:2"), environ={})), **changes
    )


def page(*snapshots: Snapshot, accept: str = "") -> tuple[str, str]:
    daemon = metrics.DaemonReading(INFO, tasks=17)
    body, content_type = metrics.render(daemon, snapshots, accept, metrics.process_collector())
    return body.decode(), content_type


def samples(*snapshots: Snapshot) -> dict[tuple[str, tuple[str, ...]], float]:
    found = {}
    for family in read_text(page(*snapshots)[0]):
        for sample in family.samples:
            key = (sample.name.removeprefix("nodepass_orch_"), tuple(sample.labels.values()))
            assert key not in found
            found[key] = sample.value
    return found


def test_each_metric_has_the_value_of_the_snapshot() -> None:
    seen = snapshot(
        state=State.UP,
        direction="reverse",
        connections=ConnectionsView(active=3, total=50, failed=2, limit=1024),
        signals=SignalsView(queued=1, limit=9, total=52),
        bytes=BytesView(from_visitors=7, to_visitors=(1 << 53) + 2),
        refused=RefusedView(handshakes=4, prefaces=5, silent=6),
        counters=CountersView(links=3, vanished=1),
        rtt_ms=12.5,
        restarts=8,
    )
    found = samples(seen)
    label = ("reverse", "server", "web")
    assert {name: value for (name, labels), value in found.items() if labels == label} == {
        "tunnel_up": 1,
        "tunnel_state_since_timestamp_seconds": pytest.approx(found["tunnel_state_since_timestamp_seconds", label]),
        "tunnel_pool_idle": 0,
        "tunnel_pool_capacity": 0,
        "tunnel_pool_dialing": 0,
        "tunnel_pool_min": 8,
        "tunnel_pool_max": 1024,
        "tunnel_signals_queued": 1,
        "tunnel_signals_queue_limit": 9,
        "tunnel_signals_total": 52,
        "tunnel_connections_active": 3,
        "tunnel_connections_limit": 1024,
        "tunnel_connections_total": 50,
        "tunnel_connections_failed_total": 2,
        "tunnel_in_bytes_total": 7,
        "tunnel_out_bytes_total": (1 << 53) + 2,
        "tunnel_links_present": 0,
        "tunnel_rtt_seconds": 0.0125,
        "tunnel_cooldown_remaining_seconds": 0,
        "tunnel_cooldown_attempt": 0,
        "tunnel_restarts_total": 8,
        "tunnel_links_total": 3,
        "tunnel_vanished_total": 1,
        "tunnel_kicked_total": 0,
        "tunnel_idle_timeouts_total": 0,
        "tunnel_dropped_datagrams_total": 0,
        "tunnel_max_ages_total": 0,
        "tunnel_redispatched_total": 0,
    }
    assert [found["tunnel_refused_total", ("web", what)] for what in ("handshake", "preface", "silence")] == [4, 5, 6]
    assert found["tunnel_state", ("up", "web")] == 1


def test_limits_of_the_rate_have_metrics_where_there_are_any() -> None:
    limits = RateLimitsView(rate_bps=8_000_000, paused_in_s=1.5, paused_out_s=2.0)
    found = samples(snapshot(rate_limits=limits))
    values = {name: value for (name, _), value in found.items() if "rate_" in name}
    assert values == {
        "tunnel_rate_limit_bits": 8_000_000,
        "tunnel_rate_paused_in_seconds_total": 1.5,
        "tunnel_rate_paused_out_seconds_total": 2.0,
    }


def test_the_daemon_has_metrics_of_its_own() -> None:
    found = samples()
    assert found["build_info", ("1.2.3",)] == 1
    assert (found["config_generation", ()], found["config_ok", ()]) == (4, 0)
    assert found["tasks", ()] == 17
    assert found["config_loaded_timestamp_seconds", ()] == 1767323045.5
    assert found["process_resident_memory_bytes", ()] > 1 << 20


def test_an_unknown_value_has_no_sample() -> None:
    assert not [name for name, _ in samples(snapshot(rtt_ms=None)) if "rtt" in name]


@pytest.mark.parametrize(("lanes", "value"), [((), None), ((None,), None), ((0,), 0), ((2, None), 2), ((2, 3), 5)])
def test_visitors_that_share_data_connections_are_counted(lanes: tuple[int | None, ...], value: int | None) -> None:
    links = tuple(
        LinkView(id=str(number), peer="h:1", state="up", lanes=count, since="") for number, count in enumerate(lanes)
    )
    found = samples(snapshot(direction="reverse", links=links))
    assert found.get(("tunnel_lanes", ("reverse", "server", "web"))) == value


def test_targets_of_a_group_are_counted_by_state() -> None:
    checks = TargetChecksView(kind="tcp")
    states = [TargetState.UP, TargetState.UP, TargetState.DRAINING, TargetState.DRAINED]
    targets = tuple(TargetView(address=f"a:{n}", state=state, checks=checks) for n, state in enumerate(states))
    found = samples(snapshot(targets=targets), snapshot("one", targets=(TargetView(address="a:1", state=states[0]),)))
    counted = {labels: value for (name, labels), value in found.items() if name == "tunnel_targets"}
    assert counted == {("up", "web"): 2, ("down", "web"): 0, ("drained", "web"): 2}


def test_labels_hold_names_with_any_characters() -> None:
    odd = 'a "b" \\ [red] ü\u2028'
    assert samples(snapshot(odd), snapshot("web"))["tunnel_up", ("", "server", odd)] == 0


def test_names_types_and_labels_follow_the_conventions() -> None:
    for family in read_text(page(snapshot(rtt_ms=1.0))[0]):
        assert family.documentation.endswith(".")
        for sample in family.samples:
            assert (family.type == "counter") is sample.name.endswith("_total")
            assert set(sample.labels) <= {"tunnel", "role", "direction", "state", "what", "version"}


def test_a_client_can_request_the_openmetrics_format() -> None:
    body, content_type = page(snapshot(), accept="application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert len(list(read_openmetrics(body))) > 20  # type: ignore[no-untyped-call]  # the library leaves it untyped
    assert page(snapshot())[1].startswith("text/plain")


def test_every_counter_of_a_snapshot_has_a_metric() -> None:
    text = page(snapshot(rtt_ms=1.0))[0]
    for view in (ConnectionsView, SignalsView):
        for field in fields(view):
            kind = "connections" if view is ConnectionsView else "signals"
            assert any(f"_{kind}_{word}" in text for word in (field.name, f"queue_{field.name}"))

"""The snapshot of a tunnel is the object that scripts rely on."""

from __future__ import annotations

import dataclasses
import json
import pickle

import pytest

from tunnel.model.events import Event, EventKind
from tunnel.model.limits import default_limits
from tunnel.model.links import LinkState
from tunnel.model.options import make_spec
from tunnel.model.snapshot import (
    BytesView,
    ConnectionsView,
    CooldownView,
    CountersView,
    LinkView,
    PoolView,
    RefusedView,
    SignalsView,
    Snapshot,
    TargetChecksView,
    TargetView,
)
from tunnel.model.snapshot_builder import LinkFacts, ServerFacts, SnapshotBuilder, SnapshotInput
from tunnel.model.spec import LogLevel
from tunnel.model.state import State, StateRecord
from tunnel.model.targets import TargetState
from tunnel.model.times import format_timestamp
from tunnel.model.url import parse_url

CONTRACT = {
    "name": "web",
    "role": "server",
    "direction": "reverse",
    "state": "up",
    "reason": None,
    "since": "2026-01-01T00:00:00.000Z",
    "tunnel_addr": "127.0.0.1:10101",
    "target_addr": "127.0.0.1:8080",
    "targets": [
        {
            "address": "127.0.0.1:8080",
            "state": "down",
            "reason": "it refused the connection",
            "weight": 2,
            "backup": True,
            "visitors": 3,
            "checks": {"kind": "tcp", "failed": 5, "in_a_row": 1, "changes": 4},
        }
    ],
    "data_addr": "127.0.0.1:43211",
    "peer": "127.0.0.1:5123",
    "link": "6f1c",
    "auth": "key",
    "service": "shop",
    "proto": "tcp",
    "key_name": "office",
    "published_by": None,
    "data_tls": 0,
    "carrier": None,
    "tags": ["prod"],
    "enabled": True,
    "worker": 0,
    "clients": 2,
    "links": [
        {
            "id": "6f1c",
            "client": "office",
            "peer": "127.0.0.1:5123",
            "state": "up",
            "reason": None,
            "weight": 2,
            "backup": False,
            "pool": 8,
            "rtt_ms": 0.4,
            "udp_carrier": "datagram",
            "udp_reason": None,
            "visitors": 3,
            "lanes": 2,
            "since": "2026-01-01T00:00:00.000Z",
        }
    ],
    "servers": [],
    "pool": {"idle": 8, "capacity": 8, "dialing": 0, "min": 8, "max": 1024},
    "signals": {"queued": 0, "limit": 1024, "total": 0},
    "connections": {"active": 0, "total": 0, "failed": 0, "limit": 1024},
    "bytes": {"in": 1, "out": 2},
    "rates": None,
    "refused": {
        "handshakes": 0,
        "prefaces": 0,
        "silent": 0,
        "allow": None,
        "per_address": None,
        "rate": None,
        "proxy": None,
        "quota": None,
        "limit": None,
    },
    "counters": {
        "links": 0,
        "vanished": 0,
        "kicked": 0,
        "idle_timeouts": 0,
        "max_ages": 0,
        "redispatched": 0,
        "dropped_datagrams": 0,
    },
    "rtt_ms": 0.4,
    "cooldown": {"remaining_s": 0.0, "attempt": 0},
    "rate_limits": None,
    "quota": None,
    "restarts": 0,
    "last_error": None,
    "last_error_at": None,
}
"""An element of ``tunnels`` in ``ps --json``."""


def snapshot() -> Snapshot:
    return Snapshot(
        name="web",
        role="server",
        direction="reverse",
        state=State.UP,
        since=format_timestamp(1767225600.0),
        tunnel_addr="127.0.0.1:10101",
        target_addr="127.0.0.1:8080",
        targets=(
            TargetView(
                address="127.0.0.1:8080",
                state=TargetState.DOWN,
                reason="it refused the connection",
                weight=2,
                backup=True,
                visitors=3,
                checks=TargetChecksView(kind="tcp", failed=5, in_a_row=1, changes=4),
            ),
        ),
        data_addr="127.0.0.1:43211",
        peer="127.0.0.1:5123",
        link="6f1c",
        auth="key",
        service="shop",
        key_name="office",
        data_tls=0,
        tags=("prod",),
        clients=2,
        links=(
            LinkView(
                id="6f1c",
                client="office",
                peer="127.0.0.1:5123",
                state="up",
                weight=2,
                pool=8,
                rtt_ms=0.4,
                udp_carrier="datagram",
                visitors=3,
                lanes=2,
                since=format_timestamp(1767225600.0),
            ),
        ),
        pool=PoolView(idle=8, capacity=8, min=8, max=1024),
        signals=SignalsView(limit=1024),
        connections=ConnectionsView(limit=1024),
        bytes=BytesView(from_visitors=1, to_visitors=2),
        refused=RefusedView(),
        rtt_ms=0.4,
        cooldown=CooldownView(),
    )


def test_a_snapshot_is_the_object_that_scripts_rely_on() -> None:
    shown = snapshot().as_json()
    assert json.loads(json.dumps(shown)) == CONTRACT
    assert list(shown) == list(CONTRACT)


def test_unknown_values_are_null() -> None:
    unknown = dataclasses.replace(snapshot(), direction=None, data_addr=None, peer=None, link=None, rtt_ms=None)
    shown = unknown.as_json()
    assert {name for name, value in shown.items() if value is None} >= {
        "direction",
        "data_addr",
        "peer",
        "link",
        "rtt_ms",
    }


def test_a_snapshot_can_be_pickled_and_its_readers_cannot_change_it() -> None:
    before = snapshot()
    assert pickle.loads(pickle.dumps(before)) == before  # noqa: S301  our own bytes
    before.as_json()["pool"]["idle"] = 99
    assert before.pool.idle == 8
    with pytest.raises(dataclasses.FrozenInstanceError):
        before.state = State.FAILED  # type: ignore[misc]  # what the test is about


def test_selected_fields_are_those_of_the_whole_object() -> None:
    assert snapshot().as_json(["pool", "state"]) == {"pool": CONTRACT["pool"], "state": "up"}


def _values() -> SnapshotInput:
    spec = make_spec(parse_url("client://127.0.0.1:1/127.0.0.1:2?report_interval=1s"))
    return SnapshotInput(
        spec=spec, record=StateRecord(State.COOLDOWN, 0.0, "refused"), direction=None, tunnel_addr=None,
        target_addr=None, targets=(), data_addr=None, peer=None, link=None, key_name=None, carrier=None,
        limits=default_limits(spec.settings),
        idle=0, capacity=0, links=(), servers=(), dialing=0, queued=0, rtt=0.25, signals=0, active=0, total=0, failed=0,
        from_visitors=3, to_visitors=4, refused_handshakes=0, refused_prefaces=0, silent=0,
        refused_visitors=RefusedView(),
        counters=CountersView(links=2), rate_limits=None, attempt=1, remaining=1.5, error=None,
    )  # fmt: skip


def test_the_builder_returns_the_same_snapshot_while_nothing_changes() -> None:
    values, builder = _values(), SnapshotBuilder("web")
    first = builder.build(values)
    assert builder.build(values._replace()) is first
    assert (first.reason, first.rtt_ms, first.bytes.as_json()) == ("refused", 250.0, {"in": 3, "out": 4})
    assert (first.tunnel_addr, first.target_addr, first.last_error) == ("127.0.0.1:1", "127.0.0.1:2", None)
    event = Event(ts=0.0, tunnel="web", level=LogLevel.WARN, kind=EventKind.STATE, text="refused")
    assert builder.build(values._replace(error=event)).last_error_at == format_timestamp(0.0)


@pytest.mark.parametrize(
    ("error", "is_usable", "state"),
    [("the target refuses", True, "cooldown"), (None, True, "up"), (None, False, "connecting")],
)
def test_each_link_has_a_state_of_its_own(error: str | None, state: str, *, is_usable: bool) -> None:
    link = LinkFacts(
        id="6f1c", client=None, peer="h:1", target_error=error, is_usable=is_usable, is_drained=False, weight=1,
        backup=True, pool=1, rtt=None, visitors=0, since=0.0,
    )  # fmt: skip
    shown = SnapshotBuilder("web").build(_values()._replace(links=(link,))).as_json()["links"]
    assert [(one["state"], one["reason"], one["backup"], one["rtt_ms"]) for one in shown] == [
        (state, error, True, None)
    ]


def test_a_server_of_several_has_the_state_of_its_link_or_says_why_it_has_none() -> None:
    link = LinkFacts(
        id="6f1c", client=None, peer="h:1", target_error=None, is_usable=True, is_drained=False, weight=1, backup=False,
        pool=1, rtt=None, visitors=0, since=0.0,
    )  # fmt: skip
    servers = (
        ServerFacts("a:1", "6f1c", LinkState.CONNECTING, None),
        ServerFacts("b:1", None, LinkState.COOLDOWN, "it refused", 3, backup=True),
    )
    shown = SnapshotBuilder("web").build(_values()._replace(links=(link,), servers=servers)).as_json()["servers"]
    assert shown == [
        {"address": "a:1", "state": "up", "reason": None, "link": "6f1c", "weight": 1, "backup": False},
        {"address": "b:1", "state": "cooldown", "reason": "it refused", "link": None, "weight": 3, "backup": True},
    ]


@pytest.mark.parametrize(("visitors", "state"), [(1, "draining"), (0, "drained")])
def test_a_drained_link_says_whether_visitors_may_finish(visitors: int, state: str) -> None:
    link = LinkFacts(
        id="6f1c", client=None, peer="h:1", target_error=None, is_usable=True, is_drained=True, weight=1, backup=False,
        pool=1, rtt=None, visitors=visitors, since=0.0,
    )  # fmt: skip
    [shown] = SnapshotBuilder("web").build(_values()._replace(links=(link,))).links
    assert shown.state == state


def test_counters_add_up_field_by_field() -> None:
    assert CountersView(links=1, vanished=2).plus(CountersView(links=10)) == CountersView(links=11, vanished=2)


def test_the_traffic_of_a_snapshot_is_what_rates_are_measured_by() -> None:
    seen = snapshot()
    assert seen.traffic == (seen.bytes.from_visitors, seen.bytes.to_visitors, seen.connections.active)

from __future__ import annotations

import dataclasses
import json
import pickle
import time
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.model.events import Event
from tunnel.model.snapshot import BytesView, ConnectionsView, CooldownView, PoolView, RefusedView, SignalsView, Snapshot
from tunnel.model.spec import LogLevel
from tunnel.model.state import TRANSITIONS, InvalidTransitionError, State, StateRecord
from tunnel.model.times import format_timestamp

CONTRACT = {
    "name": "web",
    "role": "server",
    "direction": "reverse",
    "state": "up",
    "reason": None,
    "since": "2026-01-01T00:00:00.000Z",
    "tunnel_addr": "127.0.0.1:10101",
    "target_addr": "127.0.0.1:8080",
    "data_addr": "127.0.0.1:43211",
    "peer": "127.0.0.1:5123",
    "link": "6f1c",
    "auth": "key",
    "data_tls": 0,
    "tags": ["prod"],
    "worker": 0,
    "pool": {"idle": 8, "capacity": 8, "dialing": 0, "min": 8, "max": 1024},
    "signals": {"queued": 0, "limit": 1024, "total": 0},
    "connections": {"active": 0, "total": 0, "failed": 0, "limit": 1024},
    "bytes": {"in": 1, "out": 2},
    "refused": {"handshakes": 0, "prefaces": 0, "silent": 0},
    "rtt_ms": 0.4,
    "cooldown": {"remaining_s": 0.0, "attempt": 0},
    "restarts": 0,
    "last_error": None,
    "last_error_at": None,
}
"""An element of ``tunnels`` as scripts rely on it, and what strangers tried beside it."""


def snapshot() -> Snapshot:
    return Snapshot(
        name="web",
        role="server",
        direction="reverse",
        state=State.UP,
        since=format_timestamp(1767225600.0),
        tunnel_addr="127.0.0.1:10101",
        target_addr="127.0.0.1:8080",
        data_addr="127.0.0.1:43211",
        peer="127.0.0.1:5123",
        link="6f1c",
        auth="key",
        data_tls=0,
        tags=("prod",),
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


def test_the_unknown_is_null() -> None:
    unknown = dataclasses.replace(snapshot(), direction=None, data_addr=None, peer=None, link=None, rtt_ms=None)
    shown = unknown.as_json()
    assert {name for name, value in shown.items() if value is None} >= {
        "direction",
        "data_addr",
        "peer",
        "link",
        "rtt_ms",
    }


def test_a_snapshot_crosses_a_process_border_and_is_not_changed_by_its_readers() -> None:
    before = snapshot()
    assert pickle.loads(pickle.dumps(before)) == before  # noqa: S301  our own bytes
    before.as_json()["pool"]["idle"] = 99
    assert before.pool.idle == 8
    with pytest.raises(dataclasses.FrozenInstanceError):
        before.state = State.FAILED  # type: ignore[misc]  # what the test is about


def test_the_table_names_every_state_and_nothing_else() -> None:
    assert set(TRANSITIONS) == set(State)
    assert all(state not in following for state, following in TRANSITIONS.items())


def test_every_state_can_be_reached_and_left() -> None:
    reached, fresh = {State.STARTING}, {State.STARTING}
    while fresh:
        fresh = set().union(*(TRANSITIONS[state] for state in fresh)) - reached
        reached |= fresh
    assert reached == set(State)
    assert all(TRANSITIONS.values())


def test_whatever_a_tunnel_does_it_can_be_drained_or_stopped() -> None:
    for state in set(State) - {State.STOPPED}:
        assert State.STOPPED in TRANSITIONS[state] or State.DRAINING in TRANSITIONS[state]
    assert State.UP not in TRANSITIONS[State.DRAINING]


@given(st.sampled_from(State), st.sampled_from(State))
def test_a_step_is_in_the_table_or_it_is_a_defect(before: State, after: State) -> None:
    standing = StateRecord(before, 1.0, "a reason")
    if after is before or after in TRANSITIONS[before]:
        assert standing.transition_to(after, "next").state is after
    else:
        with pytest.raises(InvalidTransitionError, match=f"{before} cannot become {after}"):
            standing.transition_to(after)


def test_standing_still_keeps_the_moment_and_takes_the_new_reason() -> None:
    standing = StateRecord(State.COOLDOWN, 1.0, "refused")
    assert standing.transition_to(State.COOLDOWN, "refused") is standing
    assert standing.transition_to(State.COOLDOWN, "silent") == StateRecord(State.COOLDOWN, 1.0, "silent")
    moved = standing.transition_to(State.CONNECTING)
    assert moved.since == pytest.approx(time.time(), abs=60)
    assert moved.reason is None


def test_an_event_is_one_json_object() -> None:
    event = Event(
        ts=0.0,
        tunnel="web",
        level=LogLevel.WARN,
        kind="refused",
        text="no",
        data=MappingProxyType({"peer": "127.0.0.1:5"}),
    )
    assert json.loads(json.dumps(event.as_json())) == {
        "ts": "1970-01-01T00:00:00.000Z",
        "tunnel": "web",
        "level": "warn",
        "kind": "refused",
        "text": "no",
        "peer": "127.0.0.1:5",
    }


def test_an_events_data_cannot_pose_as_its_frame() -> None:
    event = Event(ts=0.0, tunnel="web", level=LogLevel.WARN, kind="refused", text="no", data={"tunnel": "other"})
    assert event.as_json()["tunnel"] == "web"

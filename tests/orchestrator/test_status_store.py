"""The status store: what a reader is given, applied to what it had, is what there is."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.status.contract import BrokerInfo, ConfigStatus, DaemonInfo, encode_info
from orchestrator.status.store import MAX_REMOVALS, StatusDelta, StatusStore, encode_delta, snapshot_store
from orchestrator.supervisor.runner import stopped_snapshot
from tunnel.model.options import make_spec
from tunnel.model.snapshot import ConnectionsView, CooldownView, Snapshot
from tunnel.model.state import State
from tunnel.model.url import parse_url

PLAIN = replace(
    stopped_snapshot("x", make_spec(parse_url("server://127.0.0.1:1/127.0.0.1:2"), environ={})),
    since="2026-01-01T00:00:00.000Z",
)
INFO = DaemonInfo(
    generation=1,
    pid=7,
    config=ConfigStatus(path="/t.yaml", ok=True, loaded_at="2026-01-01T00:00:00.000Z"),
    version="0",
    host="edge-1",
    read_only=False,
    started_at="2026-01-01T00:00:00.000Z",
)


def named(name: str, **changes: Any) -> Snapshot:  # noqa: ANN401  as of replace()
    return replace(PLAIN, name=name, **changes)


@st.composite
def snapshots(draw: st.DrawFn) -> tuple[Snapshot, ...]:
    """Some tunnels, each in some condition."""
    names = draw(st.lists(st.sampled_from("abcd"), unique=True))
    return tuple(
        named(
            name,
            state=draw(st.sampled_from([State.UP, State.COOLDOWN])),
            reason=draw(st.sampled_from([None, "because"])),
            rtt_ms=draw(st.sampled_from([None, 1.5])),
            connections=ConnectionsView(active=draw(st.integers(0, 2)), limit=9),
        )
        for name in names
    )


infos = st.builds(
    lambda generation, state: replace(INFO, generation=generation, mqtt=BrokerInfo(state=state)),
    st.integers(0, 2),
    st.sampled_from(["off", "online"]),
)


class Reader:
    """Keeps what it is sent, as a dashboard does, and one revision."""

    def __init__(self) -> None:
        self.revision = 0
        self.tunnels: dict[str, dict[str, Any]] = {}
        self.status: dict[str, Any] = {}

    def read(self, store: StatusStore[str, Snapshot]) -> None:
        delta = store.changes_since(self.revision)
        self.revision = delta.revision
        if delta.is_full:
            self.tunnels.clear()
        message = encode_delta(delta)
        for name in message["removed"]:
            self.tunnels.pop(name, None)
        for name, changed in message["changed"].items():
            assert changed, "a tunnel is named only where something of it changed"
            self.tunnels[name] = {**self.tunnels.get(name, {}), **changed}
        self.status |= message["status"]


@given(st.lists(st.tuples(infos, snapshots(), st.sets(st.integers(0, 2))), min_size=1))
def test_deltas_add_up_to_the_present_however_often_a_reader_asks(
    steps: list[tuple[DaemonInfo, tuple[Snapshot, ...], set[int]]],
) -> None:
    store = snapshot_store()
    readers = [Reader() for _ in range(3)]
    for info, present, asking in steps:
        for snapshot in present:
            store.update(snapshot.name, snapshot)
        store.retain([snapshot.name for snapshot in present])
        store.update_daemon(info)
        for number in asking:
            readers[number].read(store)
            assert readers[number].tunnels == {snapshot.name: snapshot.as_json() for snapshot in present}
            assert readers[number].status == encode_info(info)
            assert store.changes_since(readers[number].revision).is_empty


@given(st.lists(snapshots(), min_size=1))
def test_the_revision_grows_with_every_change_and_with_nothing_else(steps: list[tuple[Snapshot, ...]]) -> None:
    store = snapshot_store()
    for present in steps:
        for snapshot in present:
            before, revision = store.get(snapshot.name), store.revision
            is_changed = store.update(snapshot.name, snapshot)
            assert is_changed is (before != snapshot)
            assert store.revision == revision + is_changed
            assert store.get(snapshot.name) == snapshot


def test_a_delta_names_the_fields_that_changed_since_then() -> None:
    store = snapshot_store()
    store.update("x", PLAIN)
    store.update("y", named("y"))
    first = store.revision
    store.update("x", named("x", reason="because"))
    second = store.revision
    store.update("x", named("x", reason="because", rtt_ms=2.0))
    assert encode_delta(store.changes_since(first))["changed"] == {"x": {"reason": "because", "rtt_ms": 2.0}}
    assert encode_delta(store.changes_since(second))["changed"] == {"x": {"rtt_ms": 2.0}}
    assert encode_delta(store.changes_since(0))["changed"].keys() == {"x", "y"}


def test_a_field_that_changed_back_is_named_for_a_reader_may_have_seen_the_value_between() -> None:
    store = snapshot_store()
    store.update("x", PLAIN)
    first = store.revision
    store.update("x", named("x", rtt_ms=2.0))
    store.update("x", PLAIN)
    assert encode_delta(store.changes_since(first))["changed"] == {"x": {"rtt_ms": None}}


def waiting(remaining: float, attempt: int = 1) -> Snapshot:
    return named("x", state=State.COOLDOWN, cooldown=CooldownView(remaining_s=remaining, attempt=attempt))


def test_a_cooldown_that_merely_passes_is_no_change_but_is_stored() -> None:
    store = snapshot_store()
    store.update("x", waiting(3.0))
    first = store.revision
    assert not store.update("x", waiting(2.5))
    assert store.get("x") == waiting(2.5)
    store.update("x", replace(waiting(2.0), reason="refused"))
    assert encode_delta(store.changes_since(first))["changed"] == {"x": {"reason": "refused"}}
    second = store.revision
    store.update("x", replace(waiting(4.0, attempt=2), reason="refused"))
    changed = encode_delta(store.changes_since(second))["changed"]
    assert changed == {"x": {"cooldown": {"remaining_s": 4.0, "attempt": 2}}}


def test_a_removed_tunnel_that_comes_back_is_sent_whole() -> None:
    store = snapshot_store()
    store.update("x", PLAIN)
    first = store.revision
    store.remove("x")
    assert store.changes_since(first).removed == ("x",)
    store.update("x", PLAIN)
    delta = store.changes_since(first)
    assert (delta.removed, encode_delta(delta)["changed"]) == ((), {"x": PLAIN.as_json()})


def test_removing_what_is_not_there_changes_nothing() -> None:
    store = snapshot_store()
    store.remove("x")
    assert store.revision == 0


def test_retain_takes_over_the_order_of_the_file() -> None:
    store = snapshot_store()
    for name in "abcd":
        store.update(name, named(name))
    store.retain(["d", "b", "new", "a"])
    assert [snapshot.name for snapshot in store.snapshots()] == ["d", "b", "a"]
    assert list(store) == ["d", "b", "a"]
    assert (len(store), "a" in store, "c" in store) == (3, True, False)


def test_a_reader_who_missed_too_many_removals_is_given_everything_anew() -> None:
    store = snapshot_store()
    store.update("kept", PLAIN)
    store.update("t", PLAIN)
    late = store.revision
    for number in range(MAX_REMOVALS + 1):
        store.update(f"t{number}", PLAIN)
        store.remove(f"t{number}")
    store.remove("t")
    on_time = store.revision
    delta = store.changes_since(late)
    assert delta.is_full
    assert set(delta.changed) == {"kept"}
    assert store.changes_since(on_time) == StatusDelta(on_time)


def test_a_snapshot_is_built_only_where_its_facts_changed() -> None:
    store = snapshot_store()
    built = []

    def build() -> Snapshot:
        built.append(1)
        return PLAIN

    assert store.observe("x", (1, "a"), build)
    assert not store.observe("x", (1, "a"), build)
    assert len(built) == 1
    assert not store.observe("x", (2, "a"), build), "other facts, the same to be seen of it"
    assert len(built) == 2


def test_the_order_of_changes_does_not_depend_on_how_many_tunnels_there_are() -> None:
    store = snapshot_store()
    for number in range(1000):
        store.update(f"t{number}", named(f"t{number}"))
    first = store.revision
    store.update("t3", named("t3", rtt_ms=1.0))
    store.update("t900", named("t900", rtt_ms=1.0))
    assert set(store.changes_since(first).changed) == {"t3", "t900"}


async def test_waiting_ends_with_the_next_change() -> None:
    store = snapshot_store()
    store.update("x", PLAIN)
    assert await store.wait_beyond(0) == 1
    waiter = asyncio.create_task(store.wait_beyond(1))
    await asyncio.sleep(0)
    store.update("x", PLAIN)
    await asyncio.sleep(0)
    assert not waiter.done()
    store.update_daemon(INFO)
    assert await waiter == 2


async def test_a_waiter_that_is_cancelled_leaves_nothing_behind() -> None:
    store = snapshot_store()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await store.wait_beyond(0)
    store.update("x", PLAIN)
    assert await store.wait_beyond(0) == 1

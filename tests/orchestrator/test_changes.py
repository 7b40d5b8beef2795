"""What a watcher is sent, applied to what he had, is what there is."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.api.changes import Picture
from orchestrator.supervisor.runner import stopped_snapshot
from tunnel.model.options import make_spec
from tunnel.model.snapshot import ConnectionsView, CooldownView, Snapshot
from tunnel.model.state import State
from tunnel.model.url import parse_url

if TYPE_CHECKING:
    from collections.abc import Iterable

PLAIN = replace(
    stopped_snapshot("x", make_spec(parse_url("server://127.0.0.1:1/127.0.0.1:2"), environ={})),
    since="2026-01-01T00:00:00.000Z",
)


@st.composite
def snapshots(draw: st.DrawFn) -> tuple[Snapshot, ...]:
    """Some tunnels, each in some condition."""
    names = draw(st.lists(st.sampled_from("abcd"), unique=True))
    return tuple(
        replace(
            PLAIN,
            name=name,
            state=draw(st.sampled_from([State.UP, State.COOLDOWN])),
            reason=draw(st.sampled_from([None, "because"])),
            rtt_ms=draw(st.sampled_from([None, 1.5])),
            connections=ConnectionsView(active=draw(st.integers(0, 2)), limit=9),
        )
        for name in names
    )


Head = dict[str, Any]

heads = st.dictionaries(st.sampled_from(["generation", "config"]), st.integers(0, 2))


@given(st.lists(st.tuples(heads, snapshots()), min_size=1))
def test_changes_make_the_picture_again(looks: list[tuple[Head, tuple[Snapshot, ...]]]) -> None:
    head, seen = looks[0]
    picture = begun(head, seen)
    known = {snapshot.name: snapshot.as_json() for snapshot in seen}
    status = dict(head)
    for head, seen in looks[1:]:
        change = looked(picture, head, seen)
        if change is not None:
            for name in change["removed"]:
                del known[name]
            for name, changed in change["changed"].items():
                assert changed
                known[name] = {**known.get(name, {}), **changed}
            status |= change["status"]
        assert known == {snapshot.name: snapshot.as_json() for snapshot in seen}
        assert status | head == status
        assert looked(picture, head, seen) is None


def begun(head: Head, seen: Iterable[Snapshot]) -> Picture:
    """What a watcher has been told who came just now."""
    picture = Picture(0.25)
    first = looked(picture, head, seen) or {"changed": {}, "removed": [], "status": {}}
    assert first == {"changed": {one.name: one.as_json() for one in seen}, "removed": [], "status": head}
    return picture


def looked(picture: Picture, head: Head, seen: Iterable[Snapshot]) -> dict[str, Any] | None:
    """What the next look has to tell, where something was heard of every tunnel."""
    there = {one.name: one for one in seen}
    for name in there:
        picture.hear(name)
    due = picture.due(there)
    assert due == list(there)
    for name in due:
        picture.see(there[name])
    return picture.change(head, there)


def test_quiet_tunnels_are_looked_at_in_turn_and_lively_ones_always() -> None:
    busy = replace(PLAIN, name="busy", connections=ConnectionsView(active=1, limit=9))
    there = {f"t{number}": replace(PLAIN, name=f"t{number}") for number in range(500)} | {"busy": busy}
    picture = begun({}, there.values())
    rounds = []
    for _ in range(17):
        rounds.append(picture.due(there))
        for name in rounds[-1]:
            picture.see(there[name])
        assert picture.change({}, there) is None
    assert rounds[0] == list(there), "they have changed just now: they came"
    assert all("busy" in due for due in rounds)
    assert sorted(name for due in rounds[1:] for name in due if name != "busy") == sorted(set(there) - {"busy"})
    assert max(map(len, rounds[1:])) < 35
    for name in ("t1", "t2", "t3", "t4", "gone"):
        picture.hear(name)
    assert {"t1", "t2", "t3", "t4", "busy"} <= set(picture.due(there)) <= set(there)


def test_a_few_tunnels_are_all_looked_at_every_time() -> None:
    there = {f"t{number}": replace(PLAIN, name=f"t{number}") for number in range(30)}
    picture = begun({}, there.values())
    assert [picture.due(there) for _ in range(3)] == [list(there)] * 3


def waiting(remaining: float, attempt: int = 1) -> Snapshot:
    return replace(PLAIN, state=State.COOLDOWN, cooldown=CooldownView(remaining_s=remaining, attempt=attempt))


def test_time_that_goes_by_is_no_change() -> None:
    picture = begun({}, [waiting(3.0)])
    assert looked(picture, {}, [waiting(2.5)]) is None
    change = looked(picture, {}, [replace(waiting(2.0), reason="refused")])
    assert change is not None
    assert change["changed"] == {"x": {"reason": "refused"}}
    change = looked(picture, {}, [replace(waiting(4.0, attempt=2), reason="refused")])
    assert change is not None
    assert change["changed"] == {"x": {"cooldown": {"remaining_s": 4.0, "attempt": 2}}}


def test_only_what_differs_is_sent() -> None:
    picture = begun({"generation": 1, "pid": 7}, [PLAIN, replace(PLAIN, name="y")])
    change = looked(
        picture, {"generation": 2, "pid": 7}, [replace(PLAIN, name="y", rtt_ms=2.0), replace(PLAIN, name="z")]
    )
    assert change is not None
    assert change["changed"] == {"y": {"rtt_ms": 2.0}, "z": replace(PLAIN, name="z").as_json()}
    assert (change["removed"], change["status"]) == (["x"], {"generation": 2})

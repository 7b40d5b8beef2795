"""What a watcher is sent, applied to what he had, is what there is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.api.changes import Picture
from orchestrator.supervisor.keeper import at_rest
from tunnel.options import make_spec
from tunnel.state import ConnectionsView, CooldownView, Snapshot, State
from tunnel.url import parse

PLAIN = replace(
    at_rest("x", make_spec(parse("server://127.0.0.1:1/127.0.0.1:2"), environ={})), since="2026-01-01T00:00:00.000Z"
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


heads = st.dictionaries(st.sampled_from(["generation", "config"]), st.integers(0, 2))


@given(st.lists(st.tuples(heads, snapshots()), min_size=1))
def test_changes_make_the_picture_again(looks: list[tuple[dict[str, Any], tuple[Snapshot, ...]]]) -> None:
    head, seen = looks[0]
    picture = Picture(head, seen)
    known = {snapshot.name: snapshot.as_json() for snapshot in seen}
    status = dict(head)
    for head, seen in looks[1:]:
        change = picture.update(head, seen)
        if change is not None:
            for name in change["removed"]:
                del known[name]
            for name, changed in change["changed"].items():
                assert changed
                known[name] = {**known.get(name, {}), **changed}
            status |= change["status"]
        assert known == {snapshot.name: snapshot.as_json() for snapshot in seen}
        assert status | head == status
        assert picture.update(head, seen) is None


def waiting(remaining: float, attempt: int = 1) -> Snapshot:
    return replace(PLAIN, state=State.COOLDOWN, cooldown=CooldownView(remaining_s=remaining, attempt=attempt))


def test_time_that_goes_by_is_no_change() -> None:
    picture = Picture({}, [waiting(3.0)])
    assert picture.update({}, [waiting(2.5)]) is None
    change = picture.update({}, [replace(waiting(2.0), reason="refused")])
    assert change is not None
    assert change["changed"] == {"x": {"reason": "refused"}}
    change = picture.update({}, [replace(waiting(4.0, attempt=2), reason="refused")])
    assert change is not None
    assert change["changed"] == {"x": {"cooldown": {"remaining_s": 4.0, "attempt": 2}}}


def test_only_what_differs_is_sent() -> None:
    picture = Picture({"generation": 1, "pid": 7}, [PLAIN, replace(PLAIN, name="y")])
    change = picture.update(
        {"generation": 2, "pid": 7}, [replace(PLAIN, name="y", rtt_ms=2.0), replace(PLAIN, name="z")]
    )
    assert change is not None
    assert change["changed"] == {"y": {"rtt_ms": 2.0}, "z": replace(PLAIN, name="z").as_json()}
    assert (change["removed"], change["status"]) == (["x"], {"generation": 2})

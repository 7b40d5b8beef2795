"""The picture of a fleet, and both ends of a link as one path."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import aiomqtt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.mqtt import payloads
from orchestrator.mqtt.fleet import GONE, ONLINE, SILENT, Fleet
from orchestrator.mqtt.inbox import NewestInbox
from orchestrator.mqtt.pairing import paths
from orchestrator.mqtt.payloads import Origin
from orchestrator.mqtt.rivals import SILENCE
from orchestrator.mqtt.topics import Spot
from orchestrator.supervisor.runner import stopped_snapshot
from orchestrator.table import format_table
from tunnel.model.options import make_spec
from tunnel.model.snapshot import Snapshot
from tunnel.model.state import State
from tunnel.model.times import format_timestamp
from tunnel.model.url import parse_url

NOW = 1_800_000_000.0
SPEC = make_spec(parse_url("server://127.0.0.1:10101/127.0.0.1:8080"))


def snapshot(
    name: str = "web",
    *,
    role: str = "server",
    target: str = "10.0.0.1:80",
    **changes: Any,  # noqa: ANN401  any field
) -> Snapshot:
    return replace(stopped_snapshot(name, SPEC), role=role, target_addr=target, **changes)


class Speaker:
    """One host that speaks to a fleet."""

    def __init__(self, fleet: Fleet, host: str, boot: str = "boot-1") -> None:
        self.fleet = fleet
        self.host = host
        self.origin = Origin("instance", boot)

    def say(self, kind: str, payload: dict[str, Any], name: str = "", now: float = NOW, *, old: bool = False) -> bool:
        return self.fleet.take(Spot(self.host, kind, name), payloads.encode(payload), now, now, is_retained=old)

    def status(self, *, online: bool = True, now: float = NOW, old: bool = False) -> bool:
        return self.say("status", payloads.status(self.origin, format_timestamp(now), online=online), now=now, old=old)

    def state(self, seen: Snapshot, now: float = NOW, ts: float = NOW, *, old: bool = False) -> bool:
        return self.say(
            "state", payloads.state(self.origin, seen.as_json(), 1, format_timestamp(ts)), seen.name, now, old=old
        )


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


def test_a_host_is_what_it_said_last(fleet: Fleet) -> None:
    edge = Speaker(fleet, "edge-1")
    assert edge.status()
    seen = snapshot(state=State.UP)
    assert edge.state(seen)
    host = fleet.hosts["edge-1"]
    assert host.presence(NOW) == ONLINE
    assert host.tunnels() == [seen.as_json()]
    busy = replace(seen, connections=replace(seen.connections, active=3))
    assert edge.say("stats", payloads.stats(edge.origin, busy.as_json(), format_timestamp(NOW)), "web")
    assert host.tunnels() == [busy.as_json()]
    assert edge.say("info", {"v": 1, "name": "machine", "generation": 4, "config_ok": True, "config_error": None})
    shown = host.as_json(NOW + 2, NOW + 2)
    assert (shown["host"], shown["generation"], shown["age_s"]) == ("edge-1", 4, 2.0)
    assert host.label == "edge-1 (machine)"


def test_a_host_that_is_gone_keeps_its_last_picture_and_its_age(fleet: Fleet) -> None:
    edge = Speaker(fleet, "edge-1")
    edge.status(now=NOW - 500, old=True)
    edge.state(snapshot(), ts=NOW - 100, old=True)
    host = fleet.hosts["edge-1"]
    assert host.age(NOW) == 100.0
    assert host.presence(NOW) == SILENT, "online, says a broker that may have lost it"
    edge.status(online=False)
    assert host.presence(NOW) == GONE
    assert host.age(NOW) == 100.0, "the will is the broker's word, not the host's"
    assert len(host.tunnels()) == 1


def test_silence_is_seen(fleet: Fleet) -> None:
    edge = Speaker(fleet, "edge-1")
    edge.status()
    host = fleet.hosts["edge-1"]
    assert host.presence(NOW + SILENCE - 1) == ONLINE
    assert host.presence(NOW + SILENCE) == SILENT
    assert Speaker(fleet, "x").say("info", {"v": 1})
    assert fleet.hosts["x"].presence(NOW) == GONE


def test_setting_our_clock_makes_nobody_silent_and_no_word_older(fleet: Fleet) -> None:
    edge = Speaker(fleet, "edge-1")
    old = payloads.encode(payloads.status(edge.origin, format_timestamp(NOW - 20), online=True))
    fleet.take(Spot("edge-1", "status"), old, 1000.0, NOW, is_retained=True)
    host = fleet.hosts["edge-1"]
    for set_by in (3600.0, -3600.0):
        shown = host.as_json(1010.0, NOW + 10 + set_by)
        assert (shown["presence"], shown["age_s"]) == (ONLINE, 30.0)
        assert shown["heard_at"] == format_timestamp(NOW - 20 + set_by), "by the clock as it is now"
    assert host.presence(1000.0 + SILENCE) == SILENT


def test_a_clock_ahead_of_ours_makes_no_negative_age(fleet: Fleet) -> None:
    edge = Speaker(fleet, "edge-1")
    edge.state(snapshot(), ts=NOW + 3600, old=True)
    assert fleet.hosts["edge-1"].age(NOW) == 0.0


def test_leftovers_of_an_earlier_life_are_not_shown(fleet: Fleet) -> None:
    earlier, edge = Speaker(fleet, "edge-1", "boot-0"), Speaker(fleet, "edge-1")
    earlier.state(snapshot("old"), old=True)
    edge.status()
    edge.state(snapshot("new"))
    assert [t["name"] for t in fleet.hosts["edge-1"].tunnels()] == ["new"]
    assert not earlier.say("stats", payloads.stats(earlier.origin, snapshot("new").as_json(), ""), "new")


def test_what_is_taken_back_is_gone(fleet: Fleet) -> None:
    edge = Speaker(fleet, "edge-1")
    edge.status()
    edge.state(snapshot())
    for kind, name in (("state", "web"), ("status", ""), ("info", "")):
        fleet.take(Spot("edge-1", kind, name), b"", NOW, NOW, is_retained=False)
    assert not fleet.hosts
    assert not fleet.take(Spot("edge-1", "status"), b"", NOW, NOW, is_retained=False)


@pytest.mark.parametrize(
    "change",
    [{"name": "other"}, {"pool": None}, {"pool": {"idle": "8", "capacity": 8}}, {"state": 7}, {"tags": "x"}, {"v": 2},
     {"reason": 7}, {"direction": []}, {"link": {}}, {"worker": "1"}, {"bytes": {"in": 10**400, "out": 0}},
     {"cooldown": {"remaining_s": float("nan"), "attempt": 0}}, {"rtt_ms": float("inf")}],
)  # fmt: skip
def test_words_of_another_shape_are_not_taken(fleet: Fleet, change: dict[str, Any]) -> None:
    edge = Speaker(fleet, "edge-1")
    whole = payloads.state(edge.origin, snapshot().as_json(), 1, "")
    assert not edge.say("state", {**whole, **change}, "web")
    assert not fleet.hosts
    edge.state(snapshot())
    assert not edge.say("stats", {"v": 1, "boot": "boot-1", "pool": {"idle": None}}, "web")


def test_a_host_whose_words_have_another_shape_is_not_believed(fleet: Fleet) -> None:
    edge = Speaker(fleet, "edge-1")
    strange: list[dict[str, Any]] = [{"name": []}, {"name": 7}, {"version": {}}, {"config_error": ["x"]}, {"boot": 7}]
    for odd in strange:
        assert not edge.say("info", {"v": 1, **odd})
    assert not edge.say("status", {"v": 1, "online": True, "boot": ["boot-1"]})
    assert not fleet.hosts


def test_a_tunnel_of_which_less_is_told_can_be_shown(fleet: Fleet) -> None:
    """Another version may know less, or nothing of workers."""
    edge = Speaker(fleet, "edge-1")
    told = payloads.state(edge.origin, snapshot().as_json(), 1, "")
    less = {key: value for key, value in told.items() if key not in {"reason", "direction", "worker", "link", "tags"}}
    assert edge.say("state", less, "web")
    assert "web" in format_table(fleet.hosts["edge-1"].tunnels(), columns=None, paint=lambda text, _: text)


@given(st.sampled_from(["status", "info", "state", "stats", "event"]), st.binary(max_size=30))
def test_rubbish_changes_nothing(kind: str, data: bytes) -> None:
    fleet = Fleet()
    fleet.take(Spot("h", kind, "t"), data, NOW, NOW, is_retained=False)
    assert all(host.as_json(NOW, NOW) for host in fleet)


odd_values: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.just([]) | st.just({})
)


@given(st.dictionaries(st.sampled_from(sorted(snapshot().as_json())), odd_values, max_size=3), odd_values, st.data())
def test_whatever_is_believed_can_be_shown(changes: dict[str, Any], odd: object, data: st.DataObject) -> None:
    fleet = Fleet()
    edge = Speaker(fleet, "edge-1")
    told = payloads.state(edge.origin, snapshot().as_json(), 1, format_timestamp(NOW))
    group = data.draw(st.sampled_from(["pool", "signals", "connections", "bytes", "cooldown"]))
    changed_group = {**told[group], data.draw(st.sampled_from(sorted(told[group]))): odd}
    edge.say("state", {**told, group: changed_group, **changes}, "web")
    edge.say("info", {"v": 1, "name": odd, "config_error": None})
    for host in fleet:
        assert format_table(host.tunnels(), columns=80, paint=lambda text, _: text)
        assert host.label
        json.dumps(host.as_json(NOW, NOW), allow_nan=False)
    assert all(str(path) for path in paths(fleet, NOW))


# --- pairs ------------------------------------------------------------------------------------------------------------


def test_two_ends_on_two_hosts_are_one_path(fleet: Fleet) -> None:
    east, west = Speaker(fleet, "east"), Speaker(fleet, "west")
    for speaker in (east, west):
        speaker.status()
    common = {"state": State.UP, "link": "l1", "direction": "reverse"}
    east.state(snapshot("web", target="0.0.0.0:80", **common))
    west.state(snapshot("app", role="client", target="127.0.0.1:8080", **common))
    west.state(snapshot("alone", role="client"))
    alone, path = paths(fleet, NOW)[::-1]
    assert (alone.server, alone.link, alone.is_up) == (None, None, False)
    assert str(path) == "visitors → 0.0.0.0:80 east/web (up) ═ west/app (up) → 127.0.0.1:8080"
    assert path.as_json()["entrance"]["host"] == "east"
    assert path.is_up


def test_forward_turns_the_path_round(fleet: Fleet) -> None:
    host = Speaker(fleet, "h")
    host.status()
    common = {"state": State.UP, "link": "l1", "direction": "forward"}
    host.state(snapshot("s", target="db:5432", **common))
    host.state(snapshot("c", role="client", target="127.0.0.1:5432", **common))
    (path,) = paths(fleet, NOW)
    assert str(path) == "visitors → 127.0.0.1:5432 h/c (up) ═ h/s (up) → db:5432"


def test_a_lost_link_does_not_tear_the_path_until_there_is_another(fleet: Fleet) -> None:
    east, west = Speaker(fleet, "east"), Speaker(fleet, "west")
    east.status()
    west.status()
    east.state(snapshot("web", state=State.UP, link="l1", direction="reverse"))
    west.state(snapshot("app", role="client", state=State.UP, link="l1", direction="reverse"))
    west.state(snapshot("app", role="client", state=State.COOLDOWN, direction="reverse"))
    (path,) = paths(fleet, NOW)
    assert not path.is_up
    assert "(cooldown)" in str(path)
    west.status(online=False)
    (path,) = paths(fleet, NOW)
    assert "gone, was cooldown" in str(path)
    east.state(snapshot("web", state=State.UP, link="l2", direction="reverse"))
    assert len(paths(fleet, NOW)) == 2


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b"]),
            st.sampled_from("xyz"),
            st.sampled_from(["server", "client"]),
            st.sampled_from([None, "l1", "l2"]),
            st.sampled_from([None, "reverse", "forward"]),
        ),
        max_size=8,
    )
)
def test_every_tunnel_is_in_exactly_one_path(told: list[tuple[str, str, str, str | None, str | None]]) -> None:
    fleet = Fleet()
    for host, name, role, link, direction in told:
        Speaker(fleet, host).state(snapshot(name, role=role, link=link, direction=direction))
    found = [(end.host, end.tunnel["name"]) for path in paths(fleet, NOW) for end in (path.server, path.client) if end]
    assert sorted(found) == sorted({(host, name) for host, name, *_ in told})
    assert all(str(path) and path.as_json() for path in paths(fleet, NOW))


# --- what comes in too fast -------------------------------------------------------------------------------------------


async def test_of_waiting_words_the_newest_on_each_topic_is_read() -> None:
    inbox = NewestInbox(10)
    for number in range(5):
        for topic in ("nodepass-orch/v1/h/t/a/stats", "nodepass-orch/v1/h/event"):
            inbox.put_nowait(aiomqtt.Message(topic, b"%d" % number, 0, retain=False, mid=number, properties=None))
    read = [inbox.get_nowait().payload for _ in range(inbox.qsize())]
    assert sorted(read) == [b"0", b"1", b"2", b"3", b"4", b"4"]
    assert inbox.empty()

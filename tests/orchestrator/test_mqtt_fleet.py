"""The fleet model: hosts, their tunnels, and both ends of a link as one path."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.link_routes import link_routes, route_texts
from orchestrator.mqtt import payloads
from orchestrator.mqtt.broker import Broker
from orchestrator.mqtt.broker_socket import ReceivedMessage
from orchestrator.mqtt.fleet import GONE, MAX_LOST_LINKS, ONLINE, SILENT, Fleet
from orchestrator.mqtt.ownership import SILENT_AFTER_S
from orchestrator.mqtt.payloads import DaemonRun, StatePayload, StatsPayload, StatusPayload
from orchestrator.mqtt.reader import FleetReader
from orchestrator.mqtt.topics import INFO, STATE, STATUS, HostTopics, ParsedTopic
from orchestrator.process.task_scope import task_scope
from orchestrator.process.terminal_text import printable
from orchestrator.supervisor.runner import stopped_snapshot
from orchestrator.table import format_table
from tests.support.waiting import wait_until_async
from tunnel.model.options import make_spec
from tunnel.model.snapshot import LinkView, Snapshot
from tunnel.model.state import State
from tunnel.model.times import format_timestamp
from tunnel.model.url import parse_url

if TYPE_CHECKING:
    from orchestrator.mqtt.session import BrokerSession

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


class PublishingHost:
    """One host whose messages a fleet receives."""

    def __init__(self, fleet: Fleet, host: str, boot: str = "boot-1") -> None:
        self.fleet = fleet
        self.host = host
        self.boot = boot

    def send(
        self, kind: str, payload: Mapping[str, object], name: str = "", now: float = NOW, *, old: bool = False
    ) -> bool:
        topic = ParsedTopic(self.host, kind, name)
        return self.fleet.apply_message(topic, payloads.encode(payload), now, now, is_retained=old)

    def status(self, *, online: bool = True, now: float = NOW, old: bool = False) -> bool:
        run = DaemonRun("instance", self.boot)
        return self.send(
            "status", StatusPayload.of_run(run, format_timestamp(now), online=online).as_json(), now=now, old=old
        )

    def state(self, tunnel: Snapshot, now: float = NOW, ts: float = NOW, *, old: bool = False) -> bool:
        return self.send("state", self.state_json(tunnel, ts), tunnel.name, now, old=old)

    def state_json(self, tunnel: Snapshot, ts: float = NOW) -> dict[str, Any]:
        return StatePayload(tunnel.as_json(), self.boot, 1, format_timestamp(ts)).as_json()

    def stats(self, tunnel: Snapshot) -> bool:
        return self.send("stats", StatsPayload(tunnel.as_json(), self.boot, format_timestamp(NOW)).as_json(), "web")


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


def test_a_host_is_as_its_last_messages_say(fleet: Fleet) -> None:
    edge = PublishingHost(fleet, "edge-1")
    assert edge.status()
    seen = snapshot(state=State.UP)
    assert edge.state(seen)
    host = fleet.hosts["edge-1"]
    assert host.presence(NOW) == ONLINE
    assert host.tunnels() == [seen.as_json()]
    busy = replace(seen, connections=replace(seen.connections, active=3))
    assert edge.stats(busy)
    assert host.tunnels() == [busy.as_json()]
    assert edge.send("info", {"v": 1, "name": "machine", "generation": 4, "config_ok": True, "config_error": None})
    shown = host.as_json(NOW + 2, NOW + 2)
    assert (shown["host"], shown["generation"], shown["age_s"]) == ("edge-1", 4, 2.0)
    assert host.label == "edge-1 (machine)"


def test_a_host_that_is_gone_keeps_its_last_state_and_its_age(fleet: Fleet) -> None:
    edge = PublishingHost(fleet, "edge-1")
    edge.status(now=NOW - 500, old=True)
    edge.state(snapshot(), ts=NOW - 100, old=True)
    host = fleet.hosts["edge-1"]
    assert host.age(NOW) == 100.0
    assert host.presence(NOW) == SILENT, "online, says a broker that may have lost it"
    edge.status(online=False)
    assert host.presence(NOW) == GONE
    assert host.age(NOW) == 100.0, "the will was written when the connection began"
    assert len(host.tunnels()) == 1


def test_a_host_without_messages_becomes_silent(fleet: Fleet) -> None:
    edge = PublishingHost(fleet, "edge-1")
    edge.status()
    host = fleet.hosts["edge-1"]
    assert host.presence(NOW + SILENT_AFTER_S - 1) == ONLINE
    assert host.presence(NOW + SILENT_AFTER_S) == SILENT
    assert PublishingHost(fleet, "x").send("info", {"v": 1})
    assert fleet.hosts["x"].presence(NOW) == GONE


def test_setting_our_clock_changes_neither_presence_nor_age(fleet: Fleet) -> None:
    old = payloads.encode(
        StatusPayload.of_run(DaemonRun("instance", "boot-1"), format_timestamp(NOW - 20), online=True).as_json()
    )
    fleet.apply_message(ParsedTopic("edge-1", "status"), old, 1000.0, NOW, is_retained=True)
    host = fleet.hosts["edge-1"]
    for set_by in (3600.0, -3600.0):
        shown = host.as_json(1010.0, NOW + 10 + set_by)
        assert (shown["presence"], shown["age_s"]) == (ONLINE, 30.0)
        assert shown["heard_at"] == format_timestamp(NOW - 20 + set_by), "by the clock as it is now"
    assert host.presence(1000.0 + SILENT_AFTER_S) == SILENT


def test_a_retained_message_from_the_future_may_have_any_age(fleet: Fleet) -> None:
    edge = PublishingHost(fleet, "edge-1")
    run = DaemonRun("instance", "boot-1")
    edge.send("status", StatusPayload.of_run(run, format_timestamp(NOW + 3600), online=True).as_json(), old=True)
    edge.state(snapshot(), ts=NOW + 3600, old=True)
    host = fleet.hosts["edge-1"]
    assert (host.presence(NOW), host.age(NOW)) == (SILENT, None)
    assert host.clock_lead_s(NOW) == 3600.0, "commands have to expire by its clock"
    host.note_live_message(NOW, NOW, format_timestamp(NOW + 3610))
    assert (host.presence(NOW), host.age(NOW)) == (ONLINE, 0.0)
    assert host.as_json(NOW, NOW)["clock_offset_s"] == 3610.0


def test_a_message_that_has_just_been_sent_shows_how_the_clocks_differ(fleet: Fleet) -> None:
    edge = PublishingHost(fleet, "edge-1")
    edge.status(now=NOW)
    edge.send("info", {"v": 1, "ts": format_timestamp(NOW - 90)})
    host = fleet.hosts["edge-1"]
    assert host.presence(NOW) == ONLINE
    assert host.as_json(NOW, NOW)["clock_offset_s"] == -90.0
    assert host.clock_lead_s(NOW) == 0.0


def test_retained_states_of_an_earlier_run_are_not_shown(fleet: Fleet) -> None:
    earlier, edge = PublishingHost(fleet, "edge-1", "boot-0"), PublishingHost(fleet, "edge-1")
    earlier.state(snapshot("old"), old=True)
    edge.status()
    edge.state(snapshot("new"))
    assert [t["name"] for t in fleet.hosts["edge-1"].tunnels()] == ["new"]
    assert not earlier.stats(snapshot("new"))


def test_a_cleared_topic_removes_what_it_held(fleet: Fleet) -> None:
    edge = PublishingHost(fleet, "edge-1")
    edge.status()
    edge.state(snapshot())
    for kind, name in (("state", "web"), ("status", ""), ("info", "")):
        fleet.apply_message(ParsedTopic("edge-1", kind, name), b"", NOW, NOW, is_retained=False)
    assert not fleet.hosts
    assert not fleet.apply_message(ParsedTopic("edge-1", "status"), b"", NOW, NOW, is_retained=False)


@pytest.mark.parametrize(
    "change",
    [{"name": "other"}, {"pool": None}, {"pool": {"idle": "8", "capacity": 8}}, {"state": 7}, {"tags": "x"}, {"v": 2},
     {"reason": 7}, {"direction": []}, {"link": {}}, {"worker": "1"}, {"bytes": {"in": 10**400, "out": 0}},
     {"cooldown": {"remaining_s": float("nan"), "attempt": 0}}, {"rtt_ms": float("inf")}],
)  # fmt: skip
def test_malformed_tunnels_are_ignored(fleet: Fleet, change: dict[str, Any]) -> None:
    edge = PublishingHost(fleet, "edge-1")
    whole = edge.state_json(snapshot())
    assert not edge.send("state", {**whole, **change}, "web")
    assert not fleet.hosts
    edge.state(snapshot())
    assert not edge.send("stats", {"v": 1, "boot": "boot-1", "pool": {"idle": None}}, "web")


def test_malformed_messages_of_a_host_are_ignored(fleet: Fleet) -> None:
    edge = PublishingHost(fleet, "edge-1")
    strange: list[dict[str, Any]] = [{"name": []}, {"name": 7}, {"version": {}}, {"config_error": ["x"]}, {"boot": 7}]
    for odd in strange:
        assert not edge.send("info", {"v": 1, **odd})
    assert not edge.send("status", {"v": 1, "online": True, "boot": ["boot-1"]})
    assert not fleet.hosts


def test_a_tunnel_with_missing_optional_keys_can_be_shown(fleet: Fleet) -> None:
    """Another version may not have them."""
    edge = PublishingHost(fleet, "edge-1")
    told = edge.state_json(snapshot())
    less = {key: value for key, value in told.items() if key not in {"reason", "direction", "worker", "link", "tags"}}
    del less["pool"]["idle"], less["connections"]["active"], less["bytes"]["in"]
    assert edge.send("state", less, "web")
    assert edge.send("stats", {"v": 1, "boot": told["boot"], "pool": {"min": 1, "max": 2}}, "web")
    assert "web" in format_table(fleet.hosts["edge-1"].tunnels(), columns=None, paint=lambda text, _: text)


@given(st.sampled_from(["status", "info", "state", "stats", "event"]), st.binary(max_size=30))
def test_random_bytes_change_nothing(kind: str, data: bytes) -> None:
    fleet = Fleet()
    fleet.apply_message(ParsedTopic("h", kind, "t"), data, NOW, NOW, is_retained=False)
    assert all(host.as_json(NOW, NOW) for host in fleet)


odd_values: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.just([]) | st.just({})
)


@given(st.dictionaries(st.sampled_from(sorted(snapshot().as_json())), odd_values, max_size=3), odd_values, st.data())
def test_every_accepted_tunnel_can_be_shown(changes: dict[str, Any], odd: object, data: st.DataObject) -> None:
    fleet = Fleet()
    edge = PublishingHost(fleet, "edge-1")
    told = edge.state_json(snapshot())
    group = data.draw(st.sampled_from(["pool", "signals", "connections", "bytes", "cooldown"]))
    changed_group = {**told[group], data.draw(st.sampled_from(sorted(told[group]))): odd}
    edge.send("state", {**told, group: changed_group, **changes}, "web")
    edge.send("info", {"v": 1, "name": odd, "config_error": None})
    for host in fleet:
        assert format_table(host.tunnels(), columns=80, paint=lambda text, _: text)
        assert host.label
        json.dumps(host.as_json(NOW, NOW), allow_nan=False)
    assert all(str(route) for route in link_routes(fleet, NOW))


# --- links ------------------------------------------------------------------------------------------------------------


def test_both_ends_of_a_link_on_two_hosts_are_one_route(fleet: Fleet) -> None:
    east, west = PublishingHost(fleet, "east"), PublishingHost(fleet, "west")
    for host in (east, west):
        host.status()
    common = {"state": State.UP, "link": "l1", "direction": "reverse"}
    east.state(snapshot("web", target="0.0.0.0:80", **common))
    west.state(snapshot("app", role="client", target="127.0.0.1:8080", **common))
    west.state(snapshot("alone", role="client"))
    alone, route = link_routes(fleet, NOW)[::-1]
    assert (alone.server, alone.link, alone.is_up) == (None, None, False)
    assert str(route) == "visitors → 0.0.0.0:80 east/web (up) ═ west/app (up) → 127.0.0.1:8080"
    ingress = route.as_json()["ingress"]
    assert ingress is not None
    assert ingress["host"] == "east"
    assert route.is_up


def test_the_client_is_the_ingress_of_a_forward_route(fleet: Fleet) -> None:
    host = PublishingHost(fleet, "h")
    host.status()
    common = {"state": State.UP, "link": "l1", "direction": "forward"}
    host.state(snapshot("s", target="db:5432", **common))
    host.state(snapshot("c", role="client", target="127.0.0.1:5432", **common))
    (route,) = link_routes(fleet, NOW)
    assert str(route) == "visitors → 127.0.0.1:5432 h/c (up) ═ h/s (up) → db:5432"


def test_a_route_stays_paired_by_its_last_link_until_there_is_another(fleet: Fleet) -> None:
    east, west = PublishingHost(fleet, "east"), PublishingHost(fleet, "west")
    east.status()
    west.status()
    east.state(snapshot("web", state=State.UP, link="l1", direction="reverse"))
    west.state(snapshot("app", role="client", state=State.UP, link="l1", direction="reverse"))
    west.state(snapshot("app", role="client", state=State.COOLDOWN, direction="reverse"))
    (route,) = link_routes(fleet, NOW)
    assert not route.is_up
    assert "(cooldown)" in str(route)
    west.status(online=False)
    (route,) = link_routes(fleet, NOW)
    assert "gone, was cooldown" in str(route)
    east.state(snapshot("web", state=State.UP, link="l2", direction="reverse"))
    assert len(link_routes(fleet, NOW)) == 2


def link_views(*idents: str, **changes: Any) -> tuple[LinkView, ...]:  # noqa: ANN401  any field
    return tuple(LinkView(**{"id": ident, "peer": "p", "state": "up", "since": "", **changes}) for ident in idents)


def test_a_server_with_two_clients_has_a_branch_for_each(fleet: Fleet) -> None:
    gate, east, west = (PublishingHost(fleet, name) for name in ("gate", "east", "west"))
    for host in (gate, east, west):
        host.status()
    common = {"state": State.UP, "direction": "reverse"}
    links = (*link_views("l1"), *link_views("l2", state="drained"))
    gate.state(snapshot("web", target="0.0.0.0:80", link="l1", links=links, **common))
    east.state(snapshot("app", role="client", target="a:1", link="l1", links=link_views("l1"), **common))
    west.state(snapshot("app", role="client", target="b:1", link="l2", links=link_views("l2"), **common))
    routes = link_routes(fleet, NOW)
    assert route_texts(routes) == [
        "visitors → 0.0.0.0:80 gate/web (up)", "  ├═ east/app (up) → a:1", "  └═ west/app (up) → b:1 [link drained]",
    ]  # fmt: skip
    assert [route.as_json()["link_state"] for route in routes] == ["up", "drained"]
    west.status(online=False)
    gate.state(snapshot("web", target="0.0.0.0:80", link="l1", links=link_views("l1"), **common))
    assert route_texts(link_routes(fleet, NOW))[1:] == [
        "  ├═ east/app (up) → a:1", "  └╌ west/app (gone, was up) → b:1",
    ]  # fmt: skip
    gate.state(snapshot("web", target="0.0.0.0:80", link=None, state=State.WAITING, direction="reverse"))
    assert not any(route.is_up for route in link_routes(fleet, NOW))


def test_an_entry_whose_clients_publish_is_no_route(fleet: Fleet) -> None:
    gate = PublishingHost(fleet, "gate")
    gate.status()
    gate.state(snapshot("gw", state=State.UP, target="0.0.0.0:8000-8999", direction="reverse"))
    assert link_routes(fleet, NOW) == []
    gate.state(snapshot("gw/web", state=State.WAITING, direction="reverse"))
    assert len(link_routes(fleet, NOW)) == 1


def test_lost_links_are_remembered_up_to_a_bound(fleet: Fleet) -> None:
    gate = PublishingHost(fleet, "gate")
    gate.status()
    for number in range(3 * MAX_LOST_LINKS):
        links = link_views("stays", f"l{number}")
        gate.state(snapshot("web", state=State.UP, link="stays", links=links, direction="reverse"))
    lost = fleet.hosts["gate"].lost_links_of("web")
    assert list(lost) == [f"l{number}" for number in range(2 * MAX_LOST_LINKS - 1, 3 * MAX_LOST_LINKS - 1)]
    gate.send("state", {}, "web")
    fleet.apply_message(ParsedTopic("gate", "state", "web"), b"", NOW, NOW, is_retained=False)
    assert not fleet.hosts["gate"].lost_links_of("web")


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b"]),
            st.sampled_from("xyz"),
            st.sampled_from(["server", "client"]),
            st.lists(st.sampled_from(["l1", "l2", "l3"]), max_size=3, unique=True),
            st.sampled_from([None, "reverse", "forward"]),
        ),
        max_size=8,
    )
)
def test_every_tunnel_is_in_a_route_and_once_for_each_link(
    told: list[tuple[str, str, str, list[str], str | None]],
) -> None:
    fleet = Fleet()
    for host, name, role, links, direction in told:
        PublishingHost(fleet, host).state(
            snapshot(name, role=role, link=next(iter(links), None), links=link_views(*links), direction=direction)
        )
    routes = link_routes(fleet, NOW)
    ends = [(route, end) for route in routes for end in (route.server, route.client) if end]
    assert {(end.host, end.tunnel["name"]) for _, end in ends} == {(host, name) for host, name, *_ in told}
    assert len({(route.link, end.place) for route, end in ends}) == len(ends)
    for known in fleet:
        for tunnel in known.tunnels():
            has = {route.link for route, end in ends if (end.host, end.tunnel["name"]) == (known.name, tunnel["name"])}
            assert has >= {one["id"] for one in tunnel["links"]}
    assert all(str(route) and route.as_json() for route in routes)
    text = "\n".join(route_texts(routes))
    assert all(end.place in text for _, end in ends)


async def test_only_valid_messages_make_a_host_whose_tunnels_are_subscribed_to() -> None:
    """Any user of the broker may publish below names that it invents."""
    reader = FleetReader(Broker.from_url("mqtt://127.0.0.1"))
    status = StatusPayload.of_run(DaemonRun("instance", "boot-1"), format_timestamp(NOW), online=True)
    valid = payloads.encode(status.as_json())
    for host, payload in (("invented", b"{}"), ("empty", b""), ("edge", valid)):
        topic = HostTopics(host).of(STATUS)
        reader._receive_message(ReceivedMessage(topic, payload, retain=True), NOW, NOW)
    assert reader._take_hosts() == ["edge"]


class BlockingSession:
    """A session whose broker confirms subscriptions when the test says so."""

    def __init__(self) -> None:
        self.topics: list[str] = []
        self.open: list[asyncio.Future[None]] = []

    async def subscribe(self, *topics: str, timeout_s: float) -> None:
        assert topics
        self.topics += topics
        confirmed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.open.append(confirmed)
        await confirmed

    def has_open(self, count: int) -> bool:
        assert len(self.open) <= count
        return len(self.open) == count

    def confirm_first(self) -> None:
        self.open.pop(0).set_result(None)


async def test_two_subscriptions_to_tunnels_are_open_at_a_time() -> None:
    """Two, because one would leave the broker waiting for the reader; not all, because the broker would drop some."""
    reader, session = FleetReader(Broker.from_url("mqtt://127.0.0.1")), BlockingSession()

    def receive_info(host: str) -> None:
        info = payloads.encode({"v": payloads.VERSION, "tunnels": 300, "boot": "boot-1"})
        reader._receive_message(ReceivedMessage(HostTopics(host).of(INFO), info, retain=True), NOW, NOW)

    for number in range(5):
        receive_info(f"edge-{number}")
    async with task_scope() as start:
        reader._start_subscribing(cast("BrokerSession", session), start)
        for expected in (2, 2, 2, 2, 1):
            await wait_until_async(functools.partial(session.has_open, expected))
            assert reader._awaits_tunnels
            session.confirm_first()
        await wait_until_async(lambda: not reader._awaits_tunnels)
        receive_info("edge-5")  # both wait for a host now, and one gets it
        await wait_until_async(functools.partial(session.has_open, 1))
    assert session.topics == [HostTopics(f"edge-{number}").of(STATE) for number in range(6)]


def test_a_repeated_state_is_not_decoded_again(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    edge, web = PublishingHost(fleet, "edge-1"), snapshot()
    edge.status()
    edge.state(web, ts=NOW - 30)
    decode = Mock(wraps=payloads.decode)
    monkeypatch.setattr("orchestrator.mqtt.fleet.decode", decode)
    before = fleet.hosts["edge-1"].tunnel("web")
    edge.boot = "boot-2"
    assert edge.state(web, ts=NOW)
    edge.boot = "boot-1"
    assert edge.state(web, now=NOW + 1, ts=NOW + 1)
    after = fleet.hosts["edge-1"].tunnel("web")
    assert before is not None
    assert after is not None
    assert after.json is before.json
    assert (after.boot, after.sent_at) == ("boot-1", NOW + 1)
    assert fleet.hosts["edge-1"].last_message_at == NOW + 1
    decode.assert_not_called()
    edge.state(replace(web, reason="why"))
    decode.assert_called_once()


states = st.builds(snapshot, state=st.sampled_from([State.UP, State.COOLDOWN]), reason=st.none() | st.text(max_size=3))


@given(st.lists(states, min_size=1, max_size=4), st.integers(0, 3), st.data())
def test_a_state_means_the_same_whatever_came_before(told: list[Snapshot], cut: int, data: st.DataObject) -> None:
    fleet = Fleet()
    edge = PublishingHost(fleet, "edge-1")
    for one in told:
        if data.draw(st.booleans()):
            edge.stats(replace(one, restarts=1, connections=replace(one.connections, active=7)))
        encoded = payloads.encode(edge.state_json(one))
        fleet.apply_message(ParsedTopic("edge-1", "state", "web"), encoded, NOW, NOW, is_retained=False)
        assert [found["reason"] for found in fleet.hosts["edge-1"].tunnels()] == [
            one.reason if one.reason is None else printable(one.reason)
        ]
        assert fleet.hosts["edge-1"].tunnels()[0]["connections"]["active"] == 0
        damaged = encoded[: len(encoded) - cut] if cut else encoded + b" "
        fleet.apply_message(ParsedTopic("edge-1", "state", "web"), damaged, NOW, NOW, is_retained=False)

"""From the messages of a fleet's hosts to views and routes."""

from __future__ import annotations

import pytest

from orchestrator.mqtt.fleet import Fleet
from orchestrator.mqtt.topics import ParsedTopic
from tests.tui.fake import Json, connections
from tests.tui.fake_fleet import BROKER, FakeReader, fill_two_hosts
from tests.tui.test_member_list import link
from tui.format.route_diagram import path_lines, route_lines
from tui.format.route_rows import route_heading, route_row
from tui.format.text import STYLES, length
from tui.model.routes import all_routes, path_verdict, routes_of, verdict
from tui.model.tunnels import StatusView, apply_change, apply_status
from tui.sources.base import StatusReceived
from tui.sources.fleet_feed import FleetFeed


class SettableClock:
    """Both clocks, as set by a test."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return 1_800_000_000.0 + self.now


class FedView:
    """A feed of two hosts, and the view that its messages make."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = SettableClock()
        monkeypatch.setattr("time.time", self.clock.wall)
        monkeypatch.setattr("time.monotonic", self.clock.monotonic)
        self.feed = FleetFeed(Fleet(), self.clock.monotonic, self.clock.wall)
        self.reader = FakeReader(BROKER, on_message=self._note_change, on_event=lambda *_: None)
        fill_two_hosts(self.reader)
        self.feed = FleetFeed(self.reader.fleet, self.clock.monotonic, self.clock.wall)
        self.view = StatusView()
        self.receive()

    def _note_change(self, spot: ParsedTopic) -> None:
        self.feed.note_change(spot)

    def receive(self) -> Json:
        """Apply the feed's next message to the view and return its data; empty if there is none."""
        message = self.feed.next_message()
        if message is None:
            return {}
        if isinstance(message, StatusReceived):
            self.view = apply_status(message.data, self.clock.wall(), self.clock.now, self.view)
        else:
            self.view = apply_change(self.view, message.data, self.clock.now)
        return message.data

    def later(self, seconds: float = 0.25) -> Json:
        """Let time pass, then receive."""
        self.clock.now += seconds
        return self.receive()

    def count_bytes(self, count: int) -> None:
        """Publish the bytes that the pair has carried in total."""
        self.reader.publish_stats("edge-1", "web", bytes={"in": count, "out": 10 * count}, ts=self.clock.wall())


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> FedView:
    return FedView(monkeypatch)


def test_a_tunnel_has_the_name_of_its_host_and_its_own(fed: FedView) -> None:
    assert list(fed.view.tunnels) == ["edge-1/db", "edge-1/web", "home/lone", "home/web"]
    web = fed.view.tunnels["home/web"]
    assert (web.host, web.label, web.state, web.is_host_offline) == ("home", "web", "up", False)
    assert set(fed.view.hosts or ()) == {"edge-1", "home"}


def test_only_a_heartbeat_is_sent_while_nothing_changes(fed: FedView) -> None:
    fed.later(1.0)
    assert fed.later() == {}
    assert fed.later(1.0)["changed"] == {}


def test_a_change_contains_only_the_fields_that_changed(fed: FedView) -> None:
    fed.clock.now += 0.25
    fed.reader.publish_state("home", "lone", "cooldown", link="77aa", role="client", peer="198.51.100.7:10101")
    changed = fed.receive()["changed"]
    assert set(changed) == {"home/lone"}
    assert changed["home/lone"]["state"] == "cooldown"
    assert "peer" not in changed["home/lone"]


def test_rates_are_computed_with_the_clock_of_the_host(fed: FedView) -> None:
    fed.count_bytes(0)
    fed.later(2)
    fed.count_bytes(2000)
    fed.later()
    assert fed.view.tunnels["edge-1/web"].rate_in == pytest.approx(2000 / 2, rel=0.01)
    assert fed.view.tunnels["edge-1/web"].rate_out == pytest.approx(20_000 / 2, rel=0.01)
    fed.later(6)
    assert fed.view.tunnels["edge-1/web"].rate_out == 0, "no message means no traffic"


def test_a_repeated_state_is_no_change_and_the_rate_counts_from_there(fed: FedView) -> None:
    idle: Json = {"role": "server", "bytes": {"in": 0, "out": 0}}
    fed.reader.publish_state("edge-1", "web", **idle)
    fed.later(2)
    for _ in range(3):
        fed.clock.now += 10
        fed.reader.publish_state("edge-1", "web", **idle)
        assert fed.receive()["changed"] == {}
    fed.clock.now += 2
    fed.count_bytes(2000)
    fed.receive()
    assert fed.view.tunnels["edge-1/web"].rate_in == pytest.approx(2000 / 2, rel=0.01)


def test_a_host_counts_as_gone_one_second_after_its_last_message(fed: FedView) -> None:
    fed.reader.stop_host("home")
    fed.later()
    assert fed.view.tunnels["home/web"].state == "up"
    fed.later(1.2)
    assert fed.view.tunnels["home/web"].state == "gone"
    assert fed.view.tunnels["home/web"].last_state == "up"
    fed.later(60)
    silence = fed.view.tunnels["home/web"].host_silence(fed.clock.now)
    assert silence == pytest.approx(61.45, abs=0.1)
    assert fed.view.tunnels["edge-1/web"].state == "up"


def test_a_host_that_restarts_at_once_never_looks_gone(fed: FedView) -> None:
    fed.reader.stop_host("home")
    fed.later()
    fed.reader.start_host("home", "boot-2")
    fed.reader.publish_state("home", "web", "connecting", role="client")
    fed.later(0.5)
    assert fed.view.tunnels["home/web"].state == "connecting"
    assert "home/lone" in fed.view.tunnels, "its state may not have been published yet"
    fed.later(2)
    assert "home/lone" not in fed.view.tunnels


def test_a_host_that_is_silent_for_too_long_is_not_up(fed: FedView) -> None:
    fed.later(80)
    assert {tunnel.state for tunnel in fed.view.tunnels.values()} == {"silent"}
    fed.reader.publish_state("home", "web", role="client")
    fed.later()
    assert fed.view.tunnels["home/web"].state == "up"


def test_a_large_host_that_is_removed_takes_all_its_tunnels_with_it(fed: FedView) -> None:
    names = [f"t-{number}" for number in range(1500)]
    fed.reader.start_host("attic")
    for name in names:
        fed.reader.publish_state("attic", name)
    fed.later()
    assert "attic/t-1499" in fed.view.tunnels
    for name in names:
        fed.reader.clear("attic", name)
    fed.later()
    assert not any(name.startswith("attic/") for name in fed.view.tunnels)
    assert len(fed.view.tunnels) == 4


def test_tunnels_that_are_not_live_have_no_history(fed: FedView) -> None:
    fed.feed.set_live(frozenset({"home/web"}))
    for _ in range(5):
        fed.later(1.0)
    assert len(fed.view.tunnels["home/web"].history) > 3
    assert not fed.view.tunnels["edge-1/web"].history
    fed.feed.set_live(None)
    for _ in range(3):
        fed.later(1.0)
    assert fed.view.tunnels["edge-1/web"].history


def test_both_ends_of_a_link_are_one_route(fed: FedView) -> None:
    routes = {route.key: route for route in all_routes(fed.view.tunnels.values())}
    assert set(routes) == {"edge-1/db", "edge-1/web home/web", "home/lone"}
    web = routes["edge-1/web home/web"]
    assert (web.ingress and web.ingress.name, web.egress and web.egress.name) == ("edge-1/web", "home/web")
    assert web.is_up
    assert verdict(web)[0] == "Visitors of 0.0.0.0:80 on edge-1 reach 127.0.0.1:3000 through home."
    assert not routes["home/lone"].is_complete
    assert [route.rank[0] for route in all_routes(fed.view.tunnels.values())] == [0, 1, 2]


def test_a_route_stays_complete_when_one_end_loses_the_link_first(fed: FedView) -> None:
    fed.reader.publish_state("edge-1", "web", "waiting", link=None, target_addr="0.0.0.0:80")
    fed.later()
    (route,) = routes_of(fed.view.tunnels, "home/web")
    assert route.is_complete
    assert not route.is_linked
    assert verdict(route) == ("Visitors do not reach the target: edge-1/web is waiting for its client.", "warn")
    assert routes_of(fed.view.tunnels, "nowhere") == []


@pytest.mark.parametrize("width", range(40, 220, 7))
@pytest.mark.parametrize("name", ["home/web", "home/lone", "edge-1/db"])
def test_a_route_fits_every_width(fed: FedView, name: str, width: int) -> None:
    fed.reader.stop_host("home" if width % 2 else "edge-1")
    fed.later(0.25)
    fed.later(2)
    (route,) = routes_of(fed.view.tunnels, name)
    lines = route_lines(route, width, fed.clock.now, fed.clock.wall(), is_fleet=True)
    assert all(length(line) <= width for line in lines)
    assert {style for line in lines for _, style in line} <= {"", *STYLES}
    assert length(route_row(route, width)) == length(route_heading(width)) <= width


# --- several branches -------------------------------------------------------------------------------------------------


def fill_gateway(fed: FedView) -> None:
    """Publish a server with two clients on two hosts."""
    fed.reader.start_host("gate")
    first, second = link("aa01"), link("aa02", state="draining", visitors=2)
    fed.reader.publish_state(
        "gate", "app", target_addr="0.0.0.0:443", link="aa01", links=[first, second], connections=connections(5)
    )
    for host, ident, visitors in (("site-a", "aa01", 3), ("site-b", "aa02", 2)):
        fed.reader.start_host(host)
        fed.reader.publish_state(
            host, "app", role="client", link=ident, links=[link(ident)], target_addr="127.0.0.1:3000",
            connections=connections(visitors),
        )  # fmt: skip
    fed.later()


def test_each_link_of_a_server_is_a_branch_with_its_own_numbers(fed: FedView) -> None:
    fill_gateway(fed)
    branches = routes_of(fed.view.tunnels, "gate/app")
    assert [(one.key, one.visitors, one.is_up, one.link_state) for one in branches] == [
        ("gate/app site-a/app", 3, True, ""), ("gate/app site-b/app", 2, True, "draining"),
    ]  # fmt: skip
    text = "Visitors of 0.0.0.0:443 on gate are served over 1 of 2 links."
    assert path_verdict(branches) == (text, "warn")
    assert verdict(branches[1])[0] == "The link gets no new visitors: it is draining."
    (branch,) = routes_of(fed.view.tunnels, "site-b/app")
    assert branch.ingress is not None
    assert branch.ingress.name == "gate/app"
    assert branch.facts is not None


def test_a_branch_whose_host_is_gone_stays_with_its_server(fed: FedView) -> None:
    fill_gateway(fed)
    fed.reader.stop_host("site-b")
    fed.reader.publish_state("gate", "app", target_addr="0.0.0.0:443", link="aa01", links=[link("aa01")])
    fed.later()
    fed.later(2)
    branches = routes_of(fed.view.tunnels, "gate/app")
    assert [(one.key, one.is_linked) for one in branches] == [
        ("gate/app site-a/app", True), ("gate/app site-b/app", False),
    ]  # fmt: skip
    fed.reader.start_host("site-b")
    fed.reader.publish_state("site-b", "app", role="client", link="aa03", links=[link("aa03")])
    both = [link("aa01"), link("aa03")]
    fed.reader.publish_state("gate", "app", target_addr="0.0.0.0:443", link="aa01", links=both)
    fed.later()
    assert [one.link for one in routes_of(fed.view.tunnels, "gate/app")] == ["aa01", "aa03"]


@pytest.mark.parametrize("width", range(40, 200, 13))
def test_branches_fit_every_width(fed: FedView, width: int) -> None:
    fill_gateway(fed)
    fed.reader.stop_host("site-a")
    fed.later(0.25)
    fed.later(2)
    routes = routes_of(fed.view.tunnels, "gate/app")
    lines = path_lines(routes, width, fed.clock.now, fed.clock.wall(), is_fleet=True)
    assert all(length(line) <= width for line in lines)
    assert {style for line in lines for _, style in line} <= {"", *STYLES}
    text = "\n".join("".join(part for part, _ in line) for line in lines)
    assert text.count("0.0.0.0:443") == 2, "in the sentence and in the box"
    assert all(ident in text for ident in ("├╌╌ link aa01", "└══ link aa02"))


def test_an_entry_whose_clients_publish_is_no_route_and_says_so(fed: FedView) -> None:
    fed.reader.publish_state("edge-1", "gw", link=None, peer=None, target_addr="0.0.0.0:8000-8999")
    fed.later()
    assert "edge-1/gw" not in {route.key for route in all_routes(fed.view.tunnels.values())}
    (route,) = routes_of(fed.view.tunnels, "edge-1/gw")
    assert verdict(route)[1] == "good"
    lines = path_lines([route], 100, fed.clock.now, fed.clock.wall(), is_fleet=True)
    assert "its clients publish tunnels" in "\n".join("".join(part for part, _ in line) for line in lines)

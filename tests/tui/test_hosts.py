"""What a fleet's words become for the dashboard: pure."""

from __future__ import annotations

import pytest

from orchestrator.mqtt.fleet import Fleet
from orchestrator.mqtt.topics import ParsedTopic
from tests.tui.fake_fleet import BROKER, FakeReader, two_hosts
from tui.hosts import HostsPicture
from tui.lines import STYLES, length
from tui.model import Json, View, begin, change
from tui.path import all_paths, path_of, verdict
from tui.path_picture import path_lines
from tui.path_rows import path_heading, path_row


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return 1_800_000_000.0 + self.now


class Watched:
    """A picture of two hosts, and the view that its messages make."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = Clock()
        monkeypatch.setattr("time.time", self.clock.wall)
        monkeypatch.setattr("time.monotonic", self.clock.monotonic)
        self.reader = FakeReader(BROKER, on_message=self._word, on_event=lambda *_: None)
        self.picture = HostsPicture(Fleet(), self.clock.monotonic, self.clock.wall)
        two_hosts(self.reader)
        self.picture = HostsPicture(self.reader.fleet, self.clock.monotonic, self.clock.wall)
        self.view: View = begin(self.picture.whole(), self.clock.wall(), self.clock.now)

    def _word(self, spot: ParsedTopic) -> None:
        self.picture.hear(spot)

    def later(self, seconds: float = 0.25) -> Json:
        """What is told after so many seconds; it is folded into the view."""
        self.clock.now += seconds
        message = self.picture.changes()
        if message is not None:
            self.view = change(self.view, message, self.clock.now)
        return message or {}

    def moved(self, count: int) -> None:
        """The pair has carried so many bytes in all."""
        moved = {"in": count, "out": 10 * count}
        self.reader.stats("edge-1", "web", bytes=moved, ts=self.clock.wall())


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(monkeypatch)


def test_a_tunnel_is_known_by_its_host_and_name(watched: Watched) -> None:
    assert list(watched.view.tunnels) == ["edge-1/db", "edge-1/web", "home/lone", "home/web"]
    web = watched.view.tunnels["home/web"]
    assert (web.host, web.label, web.state, web.is_gone) == ("home", "web", "up", False)
    assert set(watched.view.hosts or ()) == {"edge-1", "home"}


def test_nothing_is_told_where_nothing_changed(watched: Watched) -> None:
    watched.later(1.0)
    assert watched.later() == {}
    assert watched.later(1.0)["changed"] == {}, "but that it lives"


def test_rates_are_reckoned_by_the_clock_of_the_host(watched: Watched) -> None:
    watched.moved(0)
    watched.later(2)
    watched.moved(2000)
    watched.later()
    assert watched.view.tunnels["edge-1/web"].rate_in == pytest.approx(2000 / 2, rel=0.01)
    assert watched.view.tunnels["edge-1/web"].rate_out == pytest.approx(20_000 / 2, rel=0.01)
    watched.later(6)
    assert watched.view.tunnels["edge-1/web"].rate_out == 0, "silence: nothing moves"


def test_a_farewell_is_believed_after_a_second(watched: Watched) -> None:
    watched.reader.farewell("home")
    watched.later()
    assert watched.view.tunnels["home/web"].state == "up"
    watched.later(1.2)
    assert watched.view.tunnels["home/web"].state == "gone"
    assert watched.view.tunnels["home/web"].told_state == "up"
    watched.later(60)
    unheard = watched.view.tunnels["home/web"].unheard(watched.clock.now)
    assert unheard == pytest.approx(61.45, abs=0.1)
    assert watched.view.tunnels["edge-1/web"].state == "up"


def test_who_returns_at_once_was_never_gone(watched: Watched) -> None:
    watched.reader.farewell("home")
    watched.later()
    watched.reader.birth("home", "boot-2")
    watched.reader.state("home", "web", "connecting", role="client")
    watched.later(0.5)
    assert watched.view.tunnels["home/web"].state == "connecting"
    assert "home/lone" in watched.view.tunnels, "it may not have been told yet"
    watched.later(2)
    assert "home/lone" not in watched.view.tunnels


def test_a_host_that_is_silent_for_too_long_is_not_up(watched: Watched) -> None:
    watched.later(80)
    assert {tunnel.state for tunnel in watched.view.tunnels.values()} == {"silent"}
    watched.reader.state("home", "web", role="client")
    watched.later()
    assert watched.view.tunnels["home/web"].state == "up"


def test_numbers_of_what_is_not_looked_at_have_no_past(watched: Watched) -> None:
    watched.picture.follow(frozenset({"home/web"}))
    for _ in range(5):
        watched.later(1.0)
    assert len(watched.view.tunnels["home/web"].history) > 3
    assert not watched.view.tunnels["edge-1/web"].history
    watched.picture.follow(None)
    for _ in range(3):
        watched.later(1.0)
    assert watched.view.tunnels["edge-1/web"].history


def test_ends_of_one_link_are_one_path(watched: Watched) -> None:
    paths = {path.key: path for path in all_paths(watched.view.tunnels.values())}
    assert set(paths) == {"edge-1/db", "edge-1/web", "home/lone"}
    web = paths["edge-1/web"]
    assert (web.entrance and web.entrance.name, web.exit and web.exit.name) == ("edge-1/web", "home/web")
    assert web.is_up
    assert verdict(web)[0] == "Visitors of 0.0.0.0:80 on edge-1 reach 127.0.0.1:3000 by way of home."
    assert not paths["home/lone"].is_whole
    assert [path.rank[0] for path in all_paths(watched.view.tunnels.values())] == [0, 1, 2]


def test_a_path_stays_together_when_one_end_loses_the_link_first(watched: Watched) -> None:
    watched.reader.state("edge-1", "web", "waiting", link=None, target_addr="0.0.0.0:80")
    watched.later()
    path = path_of(watched.view.tunnels, "home/web")
    assert path is not None
    assert path.is_whole
    assert not path.is_linked
    assert verdict(path) == ("No visitor gets through: edge-1/web is waiting for its client.", "warn")
    assert path_of(watched.view.tunnels, "nowhere") is None


@pytest.mark.parametrize("width", range(40, 220, 7))
@pytest.mark.parametrize("name", ["home/web", "home/lone", "edge-1/db"])
def test_a_path_fits_every_width(watched: Watched, name: str, width: int) -> None:
    watched.reader.farewell("home" if width % 2 else "edge-1")
    watched.later(0.25)
    watched.later(2)
    path = path_of(watched.view.tunnels, name)
    assert path is not None
    lines = path_lines(path, width, watched.clock.now, watched.clock.wall(), is_fleet=True)
    assert all(length(line) <= width for line in lines)
    assert {style for line in lines for _, style in line} <= {"", *STYLES}
    assert length(path_row(path, width)) == length(path_heading(width)) <= width

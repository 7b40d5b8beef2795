"""The dashboard on a fleet that is none: hosts, filters, presence, commands, paths."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.tui.conftest import Seen, picture, shows, wait_until_shown
from tests.tui.fake import connections
from tests.tui.fake_fleet import FakeReader, fleet_of, two_hosts
from tui.app import Dashboard
from tui.hosts import FEW
from tui.screens.paths import AllPaths, OnePath
from tui.screens.questions import Question


@asynccontextmanager
async def opened(
    fill: Callable[[FakeReader], None] | None = two_hosts,
    size: tuple[int, int] = (120, 40),
    **options: Any,  # noqa: ANN401  the dashboard's own
) -> AsyncIterator[tuple[FakeReader, Seen]]:
    reader, source = fleet_of(fill)
    app = Dashboard(source, **options)
    async with app.run_test(size=size, notifications=True) as pilot:
        if fill is not None:
            await wait_until_shown(pilot, lambda: bool(app.view.tunnels))
        yield reader, (app, pilot)


def row(app: Dashboard, host: str, name: str) -> str:
    """The row of a tunnel; empty where it is not shown."""
    rows = [line.split("▏")[0] for line in picture(app).splitlines()]
    return next((line for line in rows if f" {host} " in f" {' '.join(line.split())} " and f" {name} " in line), "")


async def test_all_hosts_are_on_one_screen() -> None:
    async with opened() as (_, (app, pilot)):
        await wait_until_shown(
            pilot, shows(app, "2 hosts", "mqtt://broker:1883", "HOST", "All 4", "● up 3", "◇ gone 0")
        )
        assert "up" in row(app, "edge-1", "web")
        assert "up" in row(app, "home", "web")
        assert "secret" not in picture(app)


@pytest.mark.parametrize(
    ("words", "rows"),
    [
        ("host:home", [("home", "web"), ("home", "lone")]),
        ("host:edge-* web", [("edge-1", "web")]),
        ("tag:prod", [("edge-1", "web"), ("home", "web")]),
        ("state:waiting", [("edge-1", "db")]),
        ("tag:prod host:home|db", [("home", "web"), ("edge-1", "db")]),
    ],
)
async def test_words_of_the_filter_mean_host_tag_and_state(words: str, rows: list[tuple[str, str]]) -> None:
    async with opened() as (_, (app, pilot)):
        await pilot.press("slash")
        await wait_until_shown(pilot, lambda: app.focused is not None and app.focused.id == "typing")
        await pilot.press(*words, "enter")
        await wait_until_shown(pilot, shows(app, f"{len(rows)} of 4"))
        assert all(row(app, *expected) for expected in rows)


async def test_a_host_that_is_gone_never_looks_alive_and_comes_back() -> None:
    async with opened() as (reader, (app, pilot)):
        reader.farewell("home")
        await wait_until_shown(pilot, shows(app, "◇ gone 2", "◇ 1 gone"))
        assert "gone" in row(app, "home", "web")
        assert "up" not in row(app, "home", "web")
        assert "up" in row(app, "edge-1", "web")
        await pilot.press("6")
        await wait_until_shown(pilot, shows(app, "was up"))
        reader.birth("home", "boot-2")
        reader.state("home", "web", "connecting", role="client")
        await pilot.press("6")
        await wait_until_shown(pilot, lambda: "connecting" in row(app, "home", "web"))
        await wait_until_shown(pilot, lambda: not row(app, "home", "lone"))  # which only its earlier life had
        assert "gone" not in row(app, "home", "web")


async def test_a_removed_tunnel_goes_and_a_new_host_comes() -> None:
    async with opened() as (reader, (app, pilot)):
        reader.clear("home", "lone")
        reader.birth("attic")
        reader.state("attic", "backup", "failed", reason="address in use")
        await wait_until_shown(pilot, shows(app, "3 hosts", "✖ failed 1", "attic"))
        assert not row(app, "home", "lone")


async def test_a_lost_broker_leaves_the_last_view_and_is_found_again() -> None:
    async with opened() as (reader, (app, pilot)):
        reader.lose("the broker mqtt://broker:1883 does not answer: it refused the connection")
        await wait_until_shown(pilot, shows(app, "The broker has not answered for", "refused the connection", "stale"))
        assert row(app, "edge-1", "web")
        reader.connect()
        await wait_until_shown(pilot, lambda: "stale" not in picture(app))


async def test_no_host_gives_two_lines_to_copy() -> None:
    async with opened(None) as (reader, (app, pilot)):
        await wait_until_shown(pilot, shows(app, "Asking the broker at mqtt://broker:1883"))
        reader.connect()
        await wait_until_shown(
            pilot, shows(app, "supervisor:", "mqtt: {url: mqtt://broker:1883, host: edge-1, commands: true}")
        )


async def test_a_command_names_the_host_and_shows_its_answer() -> None:
    def busy(reader: FakeReader) -> None:
        two_hosts(reader)
        reader.stats("home", "web", connections=connections(3))

    async with opened(busy) as (reader, (app, pilot)):
        app._main._table.move_to("home/web")
        await pilot.press("r")
        await wait_until_shown(pilot, shows(app, "Restart home/web?", "3 visitors are being served on home", "cut 3"))
        await pilot.click("#yes")
        await wait_until_shown(pilot, lambda: reader.commands == [("home", "restart", "web")])
        await wait_until_shown(pilot, shows(app, "home/web is restarted"))


async def test_a_refusal_and_a_host_that_is_gone_are_said() -> None:
    async with opened() as (reader, (app, pilot)):
        app._main._table.move_to("home/lone")
        reader.refusal = "commands over MQTT are off on this host"
        await pilot.press("r")
        await wait_until_shown(pilot, lambda: isinstance(app.screen, Question))
        await pilot.click("#yes")
        await wait_until_shown(pilot, shows(app, "commands over MQTT are off"))
        reader.farewell("home")
        await wait_until_shown(pilot, shows(app, "◇ gone 2"))
        await pilot.press("s")
        await wait_until_shown(pilot, shows(app, "for home is gone"))
        assert not reader.commands


async def test_read_only_gives_no_commands() -> None:
    async with opened(is_read_only=True) as (reader, (app, pilot)):
        await wait_until_shown(pilot, shows(app, "READ-ONLY"))
        await pilot.press("r", "R")
        await pilot.pause(0.3)
        assert not isinstance(app.screen, Question)
        assert not reader.commands


async def test_a_reload_is_for_the_host_of_the_tunnel() -> None:
    async with opened() as (reader, (app, pilot)):
        app._main._table.move_to("home/web")
        await pilot.press("R")
        await wait_until_shown(pilot, shows(app, "Have home read its file again?", "known on the host alone"))
        await pilot.click("#yes")
        await wait_until_shown(pilot, lambda: reader.commands == [("home", "reload", None)])
        await wait_until_shown(pilot, shows(app, "home: generation 7: nothing changed"))


async def test_what_a_broker_is_not_told_is_said_in_its_place() -> None:
    async with opened() as (reader, (app, pilot)):
        app._main._table.move_to("edge-1/web")
        await wait_until_shown(pilot, shows(app, "The log stays on its host", "URL, settings and log are not"))
        reader.happen("edge-1", "up → cooldown: the target is gone", "web")
        reader.happen("home", "not of this tunnel", "web")
        await wait_until_shown(pilot, shows(app, "up → cooldown: the target is gone"))
        assert "not of this tunnel" not in picture(app)
        await pilot.press("w")
        await wait_until_shown(pilot, shows(app, "what a reload would change is"))
        await pilot.press("y")
        await wait_until_shown(pilot, shows(app, "the broker does not tell its URL"))
        await pilot.press("e")
        await wait_until_shown(pilot, shows(app, "Events", "home/web ", "not of this tunnel"))


async def test_a_wrong_file_of_a_host_is_told_with_its_place() -> None:
    async with opened() as (reader, (app, pilot)):
        reader.birth("edge-1", config_ok=False, config_error="tunnels.yaml:7:3: unknown key 'tunels'")
        await wait_until_shown(
            pilot, shows(app, "edge-1: tunnels.yaml:7:3: unknown key 'tunels'", "serve on as before")
        )


async def test_the_hosts_have_a_page() -> None:
    async with opened() as (reader, (app, pilot)):
        reader.birth("attic", commands=False)
        reader.farewell("home")
        await pilot.press("h")
        await wait_until_shown(pilot, shows(app, "Hosts", "takes no commands", "◇ home", "● attic", "1/2"))


@pytest.mark.parametrize("size", [(120, 40), (80, 24), (60, 15)])
async def test_both_ends_are_one_path(size: tuple[int, int]) -> None:
    async with opened(size=size) as (reader, (app, pilot)):
        app._main._table.move_to("home/web")
        await pilot.press("p")
        await wait_until_shown(
            pilot, shows(app, "Path of home/web", "entrance", "exit", "0.0.0.0:80", "127.0.0.1:3000", "visitors")
        )
        whole = " ".join(" ".join(line.strip("│╎ ") for line in picture(app).splitlines()).split())
        assert "Visitors of 0.0.0.0:80 on edge-1 reach 127.0.0.1:3000 by way of home." in whole
        reader.state("home", "web", "cooldown", role="client", link="1f0c0d2e", reason="the target refuses connections")
        await wait_until_shown(pilot, shows(app, "No visitor gets through"))


async def test_an_end_that_nobody_has_seen_says_so() -> None:
    async with opened() as (_, (app, pilot)):
        app._main._table.move_to("home/lone")
        await pilot.press("p")
        await wait_until_shown(pilot, shows(app, "no other end seen with this link", "198.51.100.7:10101"))
        await pilot.press("escape")
        app._main._table.move_to("edge-1/db")
        await pilot.press("p")
        await wait_until_shown(pilot, shows(app, "Path of edge-1/db", "no other end seen: there is no"))


async def test_all_paths_are_listed_and_lead_to_each() -> None:
    async with opened() as (reader, (app, pilot)):
        await pilot.press("v")
        await wait_until_shown(pilot, lambda: isinstance(app.screen, AllPaths) and "3 paths" in picture(app))
        await wait_until_shown(
            pilot, shows(app, "1 broken", "1 with one end not seen", "edge-1/web", "home/web", "not seen")
        )
        await pilot.press("G", "enter")
        await wait_until_shown(pilot, lambda: isinstance(app.screen, OnePath))
        await wait_until_shown(pilot, shows(app, "Visitors of 0.0.0.0:80"))
        reader.farewell("home")
        await wait_until_shown(pilot, shows(app, "Nobody knows: home is gone"))
        await pilot.press("p")
        await wait_until_shown(pilot, shows(app, "3 paths, 3 broken"))
        await pilot.press("escape", "escape")
        await wait_until_shown(pilot, lambda: app.screen is app._main)


async def test_of_a_large_fleet_only_what_is_seen_is_followed() -> None:
    def crowd(reader: FakeReader) -> None:
        reader.birth("edge-1")
        for number in range(FEW + 1):
            reader.state("edge-1", f"t-{number:03}")
        reader.connect()

    async with opened(crowd, (120, 24)) as (reader, (app, pilot)):
        await wait_until_shown(pilot, lambda: len(reader.heard) > 5)
        assert all(topic.endswith("/stats") and "/t-0" in topic for topic in reader.heard)
        assert len(reader.heard) < 24
        await wait_until_shown(pilot, lambda: len(app.view.live or ()) == len(reader.heard))
        await pilot.press("G")
        await wait_until_shown(pilot, lambda: any("t-400" in topic for topic in reader.heard))
        assert not any("t-000" in topic for topic in reader.heard)


async def test_of_a_small_fleet_all_is_followed() -> None:
    async with opened() as (reader, (app, pilot)):
        await wait_until_shown(pilot, lambda: reader.heard == {"nodepass-orch/v1/+/t/+/stats"})
        assert app.view.live is None

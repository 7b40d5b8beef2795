"""The dashboard on a fake fleet: hosts, filters, presence, commands, routes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.tui.conftest import DashboardPilot, paste, screen_text, shows, wait_until_shown
from tests.tui.fake import connections
from tests.tui.fake_fleet import FakeReader, fill_two_hosts, make_fleet
from tui.app import Dashboard
from tui.screens.dialogs import ConfirmDialog
from tui.screens.routes import RouteListModal, RouteModal
from tui.sources.fleet_feed import MAX_LIVE_FLEET


@asynccontextmanager
async def opened(
    fill: Callable[[FakeReader], None] | None = fill_two_hosts,
    size: tuple[int, int] = (120, 40),
    **options: Any,  # noqa: ANN401  the dashboard's own
) -> AsyncIterator[tuple[FakeReader, DashboardPilot]]:
    reader, source = make_fleet(fill)
    app = Dashboard(source, **options)
    async with app.run_test(size=size, notifications=True) as pilot:
        if fill is not None:
            await wait_until_shown(pilot, lambda: bool(app.view.tunnels))
        yield reader, (app, pilot)


def row(app: Dashboard, host: str, name: str) -> str:
    """The row of a tunnel; empty where it is not shown."""
    rows = [line.split("▏")[0] for line in screen_text(app).splitlines()]
    return next((line for line in rows if f" {host} " in f" {' '.join(line.split())} " and f" {name} " in line), "")


async def test_the_tunnels_of_all_hosts_are_in_one_table() -> None:
    async with opened() as (_, (app, pilot)):
        await wait_until_shown(
            pilot, shows(app, "2 hosts", "mqtt://broker:1883", "HOST", "All 4", "● up 3", "◇ gone 0")
        )
        assert "up" in row(app, "edge-1", "web")
        assert "up" in row(app, "home", "web")
        assert "secret" not in screen_text(app)


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
async def test_the_filter_has_terms_for_host_tag_and_state(words: str, rows: list[tuple[str, str]]) -> None:
    async with opened() as (_, (app, pilot)):
        await pilot.press("slash")
        await wait_until_shown(pilot, lambda: app.focused is not None and app.focused.id == "filter-input")
        await paste(pilot, words)
        await pilot.press("enter")
        await wait_until_shown(pilot, shows(app, f"{len(rows)} of 4"))
        assert all(row(app, *expected) for expected in rows)


async def test_an_offline_host_never_looks_alive_and_can_come_back() -> None:
    async with opened() as (reader, (app, pilot)):
        reader.stop_host("home")
        await wait_until_shown(pilot, shows(app, "◇ gone 2", "◇ 1 gone"))
        assert "gone" in row(app, "home", "web")
        assert "up" not in row(app, "home", "web")
        assert "up" in row(app, "edge-1", "web")
        await pilot.press("7")
        await wait_until_shown(pilot, shows(app, "was up"))
        reader.start_host("home", "boot-2")
        reader.publish_state("home", "web", "connecting", role="client")
        await pilot.press("7")
        await wait_until_shown(pilot, lambda: "connecting" in row(app, "home", "web"))
        await wait_until_shown(pilot, lambda: not row(app, "home", "lone"))  # which only its earlier life had
        assert "gone" not in row(app, "home", "web")


async def test_a_removed_tunnel_disappears_and_a_new_host_appears() -> None:
    async with opened() as (reader, (app, pilot)):
        reader.clear("home", "lone")
        reader.start_host("attic")
        reader.publish_state("attic", "backup", "failed", reason="address in use")
        await wait_until_shown(pilot, shows(app, "3 hosts", "✖ failed 1", "attic"))
        assert not row(app, "home", "lone")


async def test_the_last_values_stay_while_the_broker_is_lost() -> None:
    async with opened() as (reader, (app, pilot)):
        reader.disconnect("the broker mqtt://broker:1883 does not answer: it refused the connection")
        await wait_until_shown(pilot, shows(app, "The broker has not answered for", "refused the connection", "stale"))
        assert row(app, "edge-1", "web")
        reader.connect()
        await wait_until_shown(pilot, lambda: "stale" not in screen_text(app))


async def test_without_hosts_two_lines_for_their_file_are_shown() -> None:
    async with opened(None) as (reader, (app, pilot)):
        await wait_until_shown(pilot, shows(app, "Connecting to the broker at mqtt://broker:1883"))
        reader.connect()
        await wait_until_shown(
            pilot, shows(app, "supervisor:", "mqtt: {url: mqtt://broker:1883, host: edge-1, commands: true}")
        )


async def test_a_command_names_the_host_and_shows_its_result() -> None:
    def busy(reader: FakeReader) -> None:
        fill_two_hosts(reader)
        reader.publish_stats("home", "web", connections=connections(3))

    async with opened(busy) as (reader, (app, pilot)):
        app._main._table.move_to("home/web")
        await pilot.press("r")
        await wait_until_shown(
            pilot, shows(app, "Restart home/web?", "3 visitors are being served on home", "disconnect 3")
        )
        await pilot.click("#yes")
        await wait_until_shown(pilot, lambda: reader.commands == [("home", "restart", "web")])
        await wait_until_shown(pilot, shows(app, "home/web is restarted"))


async def test_a_refusal_and_an_offline_host_are_reported() -> None:
    async with opened() as (reader, (app, pilot)):
        app._main._table.move_to("home/lone")
        reader.refusal = "commands over MQTT are off on this host"
        await pilot.press("r")
        await wait_until_shown(pilot, lambda: isinstance(app.screen, ConfirmDialog))
        await pilot.click("#yes")
        await wait_until_shown(pilot, shows(app, "commands over MQTT are off"))
        reader.stop_host("home")
        await wait_until_shown(pilot, shows(app, "◇ gone 2"))
        await pilot.press("s")
        await wait_until_shown(pilot, shows(app, "home is offline"))
        assert not reader.commands


async def test_read_only_mode_sends_no_command() -> None:
    async with opened(is_read_only=True) as (reader, (app, pilot)):
        await wait_until_shown(pilot, shows(app, "READ-ONLY"))
        await pilot.press("r", "R")
        await pilot.pause(0.3)
        assert not isinstance(app.screen, ConfirmDialog)
        assert not reader.commands


async def test_a_reload_goes_to_the_host_of_the_tunnel() -> None:
    async with opened() as (reader, (app, pilot)):
        app._main._table.move_to("home/web")
        await pilot.press("R")
        await wait_until_shown(pilot, shows(app, "Reload the file of home?", "Only the host knows"))
        await pilot.click("#yes")
        await wait_until_shown(pilot, lambda: reader.commands == [("home", "reload", None)])
        await wait_until_shown(pilot, shows(app, "home: no change (generation 7)"))


async def test_notes_replace_what_hosts_do_not_publish() -> None:
    async with opened() as (reader, (app, pilot)):
        app._main._table.move_to("edge-1/web")
        await wait_until_shown(pilot, shows(app, "The log stays on its host", "URL, settings and log"))
        reader.publish_event("edge-1", "up → cooldown: the target is gone", "web")
        reader.publish_event("home", "not of this tunnel", "web")
        await wait_until_shown(pilot, shows(app, "up → cooldown: the target is gone"))
        assert "not of this tunnel" not in screen_text(app)
        await pilot.press("w")
        await wait_until_shown(pilot, shows(app, "only the host knows what a reload"))
        await pilot.press("y")
        await wait_until_shown(pilot, shows(app, "its URL is not published"))
        await pilot.press("e")
        await wait_until_shown(pilot, shows(app, "Events", "home/web ", "not of this tunnel"))


async def test_an_invalid_file_of_a_host_is_shown_with_its_place() -> None:
    async with opened() as (reader, (app, pilot)):
        reader.start_host("edge-1", config_ok=False, config_error="tunnels.yaml:7:3: unknown key 'tunels'")
        await wait_until_shown(pilot, shows(app, "edge-1: tunnels.yaml:7:3: unknown key 'tunels'", "not affected"))


async def test_the_page_of_hosts_shows_presence_and_file() -> None:
    async with opened() as (reader, (app, pilot)):
        reader.start_host("attic", commands=False)
        reader.stop_host("home")
        await pilot.press("h")
        await wait_until_shown(pilot, shows(app, "Hosts", "accepts no commands", "◇ home", "● attic", "1/2"))


@pytest.mark.parametrize("size", [(120, 40), (80, 24), (60, 15)])
async def test_both_ends_are_shown_as_one_route(size: tuple[int, int]) -> None:
    async with opened(size=size) as (reader, (app, pilot)):
        app._main._table.move_to("home/web")
        await pilot.press("p")
        await wait_until_shown(
            pilot, shows(app, "Route of home/web", "ingress", "egress", "0.0.0.0:80", "127.0.0.1:3000", "visitors")
        )
        whole = " ".join(" ".join(line.strip("│╎ ") for line in screen_text(app).splitlines()).split())
        assert "Visitors of 0.0.0.0:80 on edge-1 reach 127.0.0.1:3000 through home." in whole
        reader.publish_state(
            "home", "web", "cooldown", role="client", link="1f0c0d2e", reason="the target refuses connections"
        )
        await wait_until_shown(pilot, shows(app, "Visitors do not reach"))


async def test_the_branches_of_a_server_are_one_path_and_a_row_each() -> None:
    def fill(reader: FakeReader) -> None:
        from tests.tui.test_member_list import link  # noqa: PLC0415  it imports this module

        links = [link("aa01"), link("aa02", weight=3)]
        for host in ("gate", "site-a", "site-b"):
            reader.start_host(host)
        reader.publish_state("gate", "app", target_addr="0.0.0.0:443", link="aa01", links=links)
        for host, one in zip(("site-a", "site-b"), links, strict=True):
            reader.publish_state(host, "app", role="client", link=one["id"], links=[one], target_addr="10.0.0.9:80")
        reader.connect()

    async with opened(fill) as (_, (app, pilot)):
        app._main._table.move_to("gate/app")
        await pilot.press("p")
        await wait_until_shown(
            pilot, shows(app, "served over 2 of 2 links", "link aa01", "site-a", "link aa02  weight 3", "site-b")
        )
        await pilot.press("p")
        await wait_until_shown(pilot, shows(app, "2 routes"))
        await pilot.press("down")
        assert isinstance(app.screen, RouteListModal)
        app.screen.refresh_live()
        assert app.screen._table.cursor == 1


async def test_a_route_says_that_its_other_end_is_unknown() -> None:
    async with opened() as (_, (app, pilot)):
        app._main._table.move_to("home/lone")
        await pilot.press("p")
        await wait_until_shown(pilot, shows(app, "no other end of this link", "198.51.100.7:10101"))
        await pilot.press("escape")
        app._main._table.move_to("edge-1/db")
        await pilot.press("p")
        await wait_until_shown(pilot, shows(app, "Route of edge-1/db", "no other end is known: there"))


async def test_the_list_of_routes_opens_each_route() -> None:
    async with opened() as (reader, (app, pilot)):
        await pilot.press("v")
        await wait_until_shown(pilot, lambda: isinstance(app.screen, RouteListModal) and "3 routes" in screen_text(app))
        await wait_until_shown(
            pilot, shows(app, "1 broken", "1 with one end unknown", "edge-1/web", "home/web", "unknown")
        )
        await pilot.press("G", "enter")
        await wait_until_shown(pilot, lambda: isinstance(app.screen, RouteModal))
        await wait_until_shown(pilot, shows(app, "Visitors of 0.0.0.0:80"))
        reader.stop_host("home")
        await wait_until_shown(pilot, shows(app, "Unknown: home is offline"))
        await pilot.press("p")
        await wait_until_shown(pilot, shows(app, "3 routes, 3 broken"))
        await pilot.press("escape", "escape")
        await wait_until_shown(pilot, lambda: app.screen is app._main)


async def test_only_visible_tunnels_of_a_large_fleet_are_subscribed() -> None:
    def crowd(reader: FakeReader) -> None:
        reader.start_host("edge-1")
        for number in range(MAX_LIVE_FLEET + 1):
            reader.publish_state("edge-1", f"t-{number:03}")
        reader.connect()

    async with opened(crowd, (120, 24)) as (reader, (app, pilot)):
        await wait_until_shown(pilot, lambda: len(reader.subscribed) > 5)
        assert all(topic.endswith("/stats") and "/t-0" in topic for topic in reader.subscribed)
        assert len(reader.subscribed) < 24
        await wait_until_shown(pilot, lambda: len(app.view.live or ()) == len(reader.subscribed))
        await pilot.press("G")
        await wait_until_shown(pilot, lambda: any("t-400" in topic for topic in reader.subscribed))
        assert not any("t-000" in topic for topic in reader.subscribed)


async def test_all_tunnels_of_a_small_fleet_are_subscribed() -> None:
    async with opened() as (reader, (app, pilot)):
        await wait_until_shown(pilot, lambda: reader.subscribed == {"nodepass-orch/v1/+/t/+/stats"})
        assert app.view.live is None

"""The list of a tunnel's links and targets: its rows, and the screen with its keys on a fake daemon and fleet."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.tui.conftest import OpenDashboard, screen_text, shows, wait_until_shown
from tests.tui.fake import FakeDaemon
from tests.tui.fake import tunnel as tunnel_json
from tests.tui.fake_fleet import FakeReader
from tests.tui.test_dashboard import has_notice
from tests.tui.test_fleet_screen import opened as opened_fleet
from tui.format.member_rows import TunnelMember, member_heading, member_row, tunnel_members
from tui.format.text import length
from tui.model.tunnels import Tunnel
from tui.screens.dialogs import ConfirmDialog
from tui.screens.members import MemberListModal

FIRST, SECOND = "1111111111111111", "2222222222222222"


def link(ident: str, **changes: Any) -> Any:  # noqa: ANN401  fields of the API's object
    return {
        "id": ident, "client": "site-a", "peer": "192.0.2.7:4000", "state": "up", "reason": None, "weight": 1,
        "backup": False, "pool": 8, "rtt_ms": 0.4, "udp_carrier": None, "udp_reason": None, "visitors": 3,
        "lanes": None, "since": "2026-01-01T12:00:00.000Z", **changes,
    }  # fmt: skip


def target(address: str, **changes: Any) -> Any:  # noqa: ANN401  as above
    checks = {"kind": "tcp", "failed": 0, "in_a_row": 0, "changes": 0}
    return {
        "address": address, "state": "up", "reason": None, "weight": 1, "backup": False, "visitors": 0,
        "checks": checks, **changes,
    }  # fmt: skip


def members(**fields: Any) -> list[TunnelMember]:  # noqa: ANN401  as above
    return tunnel_members(Tunnel("db-east", tunnel_json("db-east", **fields), 0.0))


def test_links_come_before_servers_without_a_link_and_targets_last() -> None:
    servers = [
        {"address": "a:1", "state": "up", "reason": None, "link": FIRST, "weight": 1, "backup": False},
        {
            "address": "b:1",
            "state": "cooldown",
            "reason": "it refused the connection",
            "link": None,
            "weight": 2,
            "backup": True,
        },
    ]
    found = members(links=[link(FIRST, weight=3)], servers=servers, targets=[target("db:1", backup=True)])
    assert [(one.kind, one.name, one.about, one.reason) for one in found] == [
        ("link", FIRST, "a:1", ""), ("server", "b:1", "", "it refused the connection"), ("target", "db:1", "", ""),
    ]  # fmt: skip
    assert [(one.weight, one.is_backup, one.visitors) for one in found] == [
        (3, False, 3),
        (2, True, None),
        (1, True, 0),
    ]
    assert members(links=[link(FIRST)])[0].about == "site-a 192.0.2.7:4000"


@given(st.integers(20, 200))
def test_heading_and_rows_have_the_same_columns(width: int) -> None:
    (row,) = (member_row(one, width) for one in members(links=[link(FIRST, reason="its target is down")]))
    heading = member_heading(width)
    assert length(heading) == length(row)
    assert [length((span,)) for span in heading] == [length((span,)) for span in row]


async def test_a_link_is_drained_after_a_question_and_gets_visitors_again(
    daemon: FakeDaemon, opened: OpenDashboard
) -> None:
    daemon.tunnels["db-east"]["links"] = [link(FIRST), link(SECOND, client="site-b")]
    async with opened((140, 30)) as (app, pilot):
        await pilot.press("slash", *"db-east", "enter", "m")
        await wait_until_shown(pilot, shows(app, "Links and targets of db-east", FIRST, "site-b 192.0.2.7:4000"))
        await pilot.press("down", "d")
        question = f"Drain link {SECOND} of db-east?"
        await wait_until_shown(
            pilot, shows(app, question, "Its 3 present visitors may stay.", "They go to 1 other link")
        )
        await pilot.press("n")
        await wait_until_shown(pilot, lambda: isinstance(app.screen, MemberListModal))
        assert not daemon.commands
        await pilot.press("d")
        await wait_until_shown(pilot, lambda: isinstance(app.screen, ConfirmDialog))
        await pilot.press("y")
        await wait_until_shown(pilot, lambda: has_notice(app, f"$ nodepass-orch drain db-east --link {SECOND}"))
        daemon.change("db-east", links=[link(FIRST), link(SECOND, state="draining")])
        await wait_until_shown(pilot, shows(app, "draining"))
        await pilot.press("up", "d")
        await wait_until_shown(pilot, shows(app, "No other link is up: visitors may not be served."))
        await pilot.press("n", "down", "s")
        await wait_until_shown(pilot, lambda: has_notice(app, f"$ nodepass-orch start db-east --link {SECOND}"))
        assert daemon.commands == [("drain", "db-east"), ("start", "db-east")]
        assert daemon.members == [{"link": SECOND}] * 2
        await pilot.press("escape")
        await wait_until_shown(pilot, lambda: not isinstance(app.screen, MemberListModal))


async def test_a_target_is_drained_and_a_refusal_is_shown(daemon: FakeDaemon, opened: OpenDashboard) -> None:
    daemon.tunnels["db-east"]["targets"] = [target("db-1:5432"), target("db-2:5432", state="down", reason="it refused")]
    async with opened((140, 30)) as (app, pilot):
        await pilot.press("slash", *"db-east", "enter", "m")
        await wait_until_shown(pilot, shows(app, "db-2:5432", "it refused"))
        await pilot.press("d")
        await wait_until_shown(pilot, shows(app, "Drain target db-1:5432 of db-east?", "No other target is up"))
        await pilot.press("y")
        await wait_until_shown(pilot, lambda: daemon.members == [{"target": "db-1:5432"}])
        daemon.refusal = "db-1:5432 is the only target; drain the tunnel instead"
        await pilot.press("s")
        await wait_until_shown(pilot, lambda: has_notice(app, "start db-east: db-1:5432 is the only target"))


async def test_a_server_without_a_link_and_an_empty_list_cannot_be_drained(
    daemon: FakeDaemon, opened: OpenDashboard
) -> None:
    servers = [
        {"address": "b:1", "state": "cooldown", "reason": "it refused", "link": None, "weight": 1, "backup": False}
    ]
    daemon.tunnels["db-east"]["servers"] = servers
    async with opened((100, 30)) as (app, pilot):
        await pilot.press("slash", *"db-east", "enter", "m")
        await wait_until_shown(pilot, shows(app, "cooldown", "b:1"))
        await pilot.press("d")
        await wait_until_shown(pilot, lambda: has_notice(app, "b:1 has no link that could be drained"))
        await pilot.press("s")
        await wait_until_shown(
            pilot, lambda: has_notice(app, "b:1 has no link yet: visitors go to it once its link is up")
        )
        daemon.change("db-east", servers=[])
        await wait_until_shown(pilot, shows(app, "no link and no target"))
        await pilot.press("d")
        await wait_until_shown(pilot, lambda: has_notice(app, "No link and no target is selected"))
        daemon.remove("db-east")
        await wait_until_shown(pilot, shows(app, "the tunnel was removed"))
        assert not daemon.commands


async def test_a_read_only_dashboard_drains_no_link(daemon: FakeDaemon, opened: OpenDashboard) -> None:
    daemon.tunnels["db-east"]["links"] = [link(FIRST), link(SECOND)]
    daemon.status["read_only"] = True
    async with opened() as (app, pilot):
        await pilot.press("slash", *"db-east", "enter", "m")
        await wait_until_shown(pilot, shows(app, FIRST))
        await pilot.press("d")
        await wait_until_shown(pilot, lambda: has_notice(app, "Read-only, drain was not sent"))
        assert not isinstance(app.screen, ConfirmDialog)
        assert not daemon.commands


async def test_in_a_fleet_the_command_names_the_host_and_the_link() -> None:
    def fill(reader: FakeReader) -> None:
        reader.start_host("edge-1")
        reader.publish_state("edge-1", "web", links=[link(FIRST), link(SECOND)])
        reader.connect()

    async with opened_fleet(fill) as (reader, (app, pilot)):
        app._main._table.move_to("edge-1/web")
        await pilot.press("m")
        await wait_until_shown(pilot, shows(app, "Links and targets of edge-1/web", FIRST))
        await pilot.press("d")
        await wait_until_shown(pilot, lambda: isinstance(app.screen, ConfirmDialog))
        await pilot.press("y")
        await wait_until_shown(pilot, lambda: has_notice(app, f"$ nodepass-orch fleet drain edge-1/web --link {FIRST}"))
        assert reader.commands == [("edge-1", "drain", "web")]
        assert reader.members == [{"link": FIRST}]
        reader.stop_host("edge-1")
        await wait_until_shown(pilot, lambda: app.view.tunnels["edge-1/web"].is_host_offline)
        await pilot.press("d")
        await wait_until_shown(pilot, lambda: has_notice(app, "edge-1/web: edge-1 is offline"))
        assert "Links and targets" in screen_text(app)

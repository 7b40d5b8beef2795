"""The list of visitors: which rows it has, and the screen with its keys on a fake daemon."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.tui.conftest import OpenDashboard, screen_text, shows, wait_until_shown
from tests.tui.fake import FakeDaemon
from tests.tui.test_dashboard import has_notice
from tui.format.text import length
from tui.format.visitor_rows import VISITOR_SORTS, choose_visitors, sort_at, visitor_heading, visitor_row
from tui.screens.dialogs import ConfirmDialog
from tui.screens.visitors import VisitorListModal


def visitor(number: int, tunnel: str = "db-east", **changes: Any) -> Any:  # noqa: ANN401  fields of the API's object
    return {
        "id": f"0123456789abcdef-{number}", "tunnel": tunnel, "address": f"192.0.2.{number}:1000", "since": None,
        "age_s": 10.0 * number, "bytes": {"in": 1000 * number, "out": 0}, "rates": None, "target": "127.0.0.1:5432",
        "link": "0123456789abcdef", "state": "connected", "proto": "tcp", **changes,
    }  # fmt: skip


@given(st.integers(20, 200), st.sampled_from(VISITOR_SORTS), st.booleans())
def test_heading_and_rows_have_the_same_columns(width: int, sort: str, is_reversed: bool) -> None:  # noqa: FBT001
    heading, row = visitor_heading(width, sort, is_reversed=is_reversed), visitor_row(visitor(1), width)
    assert length(heading) == length(row)
    assert [len(text) for text, _ in heading] == [len(text) for text, _ in row]
    assert {sort_at(width, x) for x in range(width)} <= {*VISITOR_SORTS, ""}


def test_each_order_can_be_reversed_and_each_word_filters() -> None:
    visitors = [visitor(1), visitor(3, address="[2001:db8::7]:9"), visitor(2, tunnel="web")]
    ids = [(one["id"] or "")[-1] for one in choose_visitors(visitors, "", "bytes", is_reversed=False)]
    assert ids == ["3", "2", "1"]
    ids = [(one["id"] or "")[-1] for one in choose_visitors(visitors, "", "bytes", is_reversed=True)]
    assert ids == ["1", "2", "3"]
    for text, found in (("db8", "3"), ("192.0.2.* !web", "1"), ("WEB", "2"), ("web db8", ""), ("[2001*", "3")):
        assert (
            "".join((one["id"] or "")[-1] for one in choose_visitors(visitors, text, "age", is_reversed=False)) == found
        )


async def test_the_visitors_of_the_tunnel_under_the_cursor_are_listed(
    daemon: FakeDaemon, opened: OpenDashboard
) -> None:
    daemon.visitors = [visitor(1), visitor(2), visitor(3, tunnel="edge-7")]
    async with opened((140, 30)) as (app, pilot):
        await pilot.press("slash", *"db-east", "enter", "V")
        await wait_until_shown(
            pilot, shows(app, "Visitors of db-east", "192.0.2.1:1000", "192.0.2.2:1000", "2 visitors")
        )
        assert "192.0.2.3" not in screen_text(app)
        await pilot.press("slash", *"2.2:", "enter")
        await wait_until_shown(pilot, lambda: "192.0.2.1" not in screen_text(app))
        assert isinstance(app.screen, VisitorListModal)
        await pilot.press("escape")
        await wait_until_shown(pilot, shows(app, "192.0.2.1:1000"))
        await pilot.press("escape")
        await wait_until_shown(pilot, lambda: not isinstance(app.screen, VisitorListModal))


async def test_a_visitor_is_disconnected_after_a_question(daemon: FakeDaemon, opened: OpenDashboard) -> None:
    daemon.visitors = [visitor(1), visitor(2)]
    async with opened((140, 30)) as (app, pilot):
        await pilot.press("slash", *"db-east", "enter", "V")
        await wait_until_shown(pilot, shows(app, "2 visitors"))
        await pilot.press("o", "o", "o", "down", "x")  # by address
        await wait_until_shown(pilot, shows(app, "Disconnect 192.0.2.2:1000?"))
        await pilot.press("n")
        await wait_until_shown(pilot, lambda: not isinstance(app.screen, ConfirmDialog))
        assert daemon.commands == []
        await pilot.press("x")
        await wait_until_shown(pilot, lambda: isinstance(app.screen, ConfirmDialog))
        await pilot.press("y")
        await wait_until_shown(pilot, lambda: has_notice(app, "1 visitor disconnected"))
        await wait_until_shown(pilot, shows(app, "1 visitor ·"))
        await pilot.press("X")
        await wait_until_shown(pilot, shows(app, "Disconnect all visitors from 192.0.2.1?"))
        await pilot.press("y")
        await wait_until_shown(pilot, shows(app, "no visitors"))
        assert daemon.commands == [("kick", "0123456789abcdef-2 db-east"), ("kick", "192.0.2.1 db-east")]


async def test_a_read_only_dashboard_lists_visitors_and_kicks_none(daemon: FakeDaemon, opened: OpenDashboard) -> None:
    daemon.visitors = [visitor(1)]
    daemon.status["read_only"] = True
    async with opened((140, 30)) as (app, pilot):
        await pilot.press("slash", *"db-east", "enter", "V")
        await wait_until_shown(pilot, shows(app, "1 visitor"))
        await pilot.press("x")
        await wait_until_shown(pilot, lambda: has_notice(app, "Read-only, kick was not sent"))
        assert daemon.commands == []


async def test_a_test_of_a_tunnel_is_shown_with_its_command_line(daemon: FakeDaemon, opened: OpenDashboard) -> None:
    async with opened((140, 30)) as (app, pilot):
        await pilot.press("slash", *"db-east", "enter", "c")
        await wait_until_shown(pilot, shows(app, "Test of db-east: failed"))
        await wait_until_shown(pilot, shows(app, "target db:1, timed at the other end: it refused"))
        await wait_until_shown(pilot, shows(app, "nodepass-orch test db-east"))
        await pilot.press("escape")
        daemon.refusal = "the tunnel is being tested"
        await pilot.press("c")
        await wait_until_shown(pilot, lambda: has_notice(app, "test db-east: the tunnel is being tested"))
        assert daemon.commands == [("test", "db-east")]

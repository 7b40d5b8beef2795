"""The chart of a tunnel's traffic: the right bar at the right time, and the screen that shows it."""

from __future__ import annotations

from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.status.json_types import TrafficJson
from tests.tui.conftest import OpenDashboard, shows, wait_until_shown
from tests.tui.fake import FakeDaemon
from tui.format.text import Line, length
from tui.format.traffic_chart import STEPS, bar_lines, chart_slots, traffic_lines

UNTIL = "2026-11-28T14:05:00+01:00"


def answer(step: str, *rows: tuple[str, int, int], until: str = UNTIL) -> TrafficJson:
    listed = [{"start": at, "in": i, "out": o, "visitors": 3, "failed": 1, "refused": 0} for at, i, o in rows]
    total = {"in": 0, "out": 0, "visitors": 0, "failed": 0, "refused": 0}
    tunnels = [{"name": "web", "present": True, "total": total, "rows": listed}]
    return cast("TrafficJson", {"by": step, "days": 30, "since": until, "until": until, "tunnels": tunnels})


def texts(lines: list[Line]) -> list[str]:
    return ["".join(text for text, _ in line).rstrip() for line in lines]


def test_each_step_has_its_periods_up_to_now() -> None:
    assert [slot.label for slot in chart_slots("hour", UNTIL, 4)] == ["11", "12", "13", "14"]
    assert [slot.key for slot in chart_slots("day", "2026-03-01T00:10:00+01:00", 3)] == [
        "2026-02-27", "2026-02-28", "2026-03-01",
    ]  # fmt: skip
    assert [slot.key for slot in chart_slots("month", "2026-02-01T00:10:00+01:00", 3)] == [
        "2025-12",
        "2026-01",
        "2026-02",
    ]


def test_bars_have_the_height_of_their_values() -> None:
    assert texts(bar_lines([0, 1, 50, 100], ["01", "02", "03", "04"], 3, 4)) == [
        "  100          ██",
        "               ██",
        "   50       ██ ██",
        "         ▁▁ ██ ██",
        "      01 02 03 04",
    ]


def test_hours_on_both_sides_of_a_change_of_the_offset_are_found() -> None:
    rows = [("2026-10-25T02:00:00+02:00", 10, 10), ("2026-10-25T02:00:00+01:00", 20, 20)]
    shown = texts(traffic_lines(answer("hour", *rows, until="2026-10-25T03:10:00+01:00"), 100, 30))
    assert "to visitors  30" in shown


def test_the_page_names_directions_sums_and_the_chosen_step() -> None:
    lines = traffic_lines(answer("day", ("2026-11-27T00:00:00+01:00", 1 << 20, 5 << 30)), 80, 24)
    shown = texts(lines)
    assert ("pick", " day") in [(style, text) for text, style in lines[0]]
    assert "to visitors  5.0G" in shown
    assert "from visitors  1.0M" in shown
    assert shown[-1] == "3 visitors, 1 not served in the last 31 days"


@pytest.mark.parametrize("step", STEPS)
def test_without_traffic_the_page_says_so(step: str) -> None:
    assert "No traffic in the last" in texts(traffic_lines(answer(step), 80, 24))[2]


@given(
    step=st.sampled_from(STEPS),
    width=st.integers(20, 200),
    height=st.integers(3, 60),
    values=st.lists(st.integers(0, 1 << 60), min_size=1, max_size=28),
)
def test_the_page_fits_its_width(step: str, width: int, height: int, values: list[int]) -> None:
    stamp = {"hour": "2026-11-27T{:02}:00:00+01:00", "day": "2026-11-{:02}T00:00:00+01:00"}.get(step, "2026-11-01")
    rows = [
        (stamp.format(number % 24 + 1 if step == "day" else number % 24), value, value)
        for number, value in enumerate(values)
    ]
    lines = traffic_lines(answer(step, *rows), width, height)
    assert max(map(length, lines)) <= width
    assert len(lines) <= max(height, 18)


def row(start: str, count: int) -> dict[str, object]:
    return {"start": start, "in": count, "out": 10 * count, "visitors": 2, "failed": 0, "refused": 0}


async def test_keys_choose_hours_days_and_months(daemon: FakeDaemon, opened: OpenDashboard) -> None:
    daemon.traffic = {
        "hour": [row("2026-11-28T13:00:00+01:00", 100)],
        "day": [row("2026-11-27T00:00:00+01:00", 200)],
        "month": [row("2026-10-01T00:00:00+01:00", 300)],
    }
    async with opened((100, 30)) as (app, pilot):
        await pilot.press("slash", *"db-east", "enter", "T")
        await wait_until_shown(pilot, shows(app, "Traffic of db-east", "to visitors  2.0K", "in the last 31 days"))
        await pilot.press("h")
        await wait_until_shown(pilot, shows(app, "to visitors  1.0K", "in the last 48 hours"))
        await pilot.press("left")
        await wait_until_shown(pilot, shows(app, "from visitors  300", "in the last 12 months"))
        await pilot.press("escape")


async def test_a_history_that_cannot_be_read_is_explained(daemon: FakeDaemon, opened: OpenDashboard) -> None:
    daemon.refusal = "traffic is not recorded: the file says supervisor: history: 0"
    async with opened((100, 30)) as (app, pilot):
        await pilot.press("T")
        await wait_until_shown(pilot, shows(app, "traffic is not recorded: the file says supervisor: history: 0"))
        await pilot.press("escape")

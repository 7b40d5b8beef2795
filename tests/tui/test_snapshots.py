"""A few whole screens as text, with a fixed clock.

``UPDATE_SNAPSHOTS=1 pytest tests/tui/test_snapshots.py`` writes them; read the difference before you commit it.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.tui.conftest import screen_text, wait_until_shown
from tests.tui.fake import FakeDaemon
from tui.app import Dashboard
from tui.screens.dialogs import ConfirmDialog
from tui.sources.daemon import ApiSource
from tui.themes import DARK, LIGHT

if TYPE_CHECKING:
    from textual.pilot import Pilot

_SNAPSHOTS: Final = Path(__file__).parent / "snapshots"
_NOON: Final = 1_767_268_800.0
"""Since when the fake daemon's tunnels are in their states, in seconds since the epoch."""

Scene = Callable[["Pilot[str]", FakeDaemon], Awaitable[None]]


class FixedPlaceSource(ApiSource):
    """Shows the same address in every test."""

    @property
    def place(self) -> str:
        return "unix:/run/np.sock"


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()


@asynccontextmanager
async def open_at_fixed_time(socket: Path, size: tuple[int, int]) -> AsyncIterator[tuple[Dashboard, Pilot[str]]]:
    async with FixedPlaceSource(socket) as source:
        app = Dashboard(source, now=lambda: 100.0, wall=lambda: _NOON + 300)
        async with app.run_test(size=size) as pilot:
            await wait_until_shown(pilot, lambda: bool(app.view.status))
            yield app, pilot


async def show_all(_: Pilot[str], __: FakeDaemon) -> None:
    """Press no key: all tunnels are shown."""


async def remove_all_tunnels(pilot: Pilot[str], daemon: FakeDaemon) -> None:
    for name in list(daemon.tunnels):
        daemon.remove(name)


async def invalidate_file(_: Pilot[str], daemon: FakeDaemon) -> None:
    good = daemon.status["config"]
    daemon.set_status(config={**good, "ok": False, "error": "unknown key 'tunels'", "line": 12, "column": 7})


async def filter_and_mark(pilot: Pilot[str], _: FakeDaemon) -> None:
    await pilot.press("slash", *"db", "enter", "space")


async def open_confirmation(pilot: Pilot[str], _: FakeDaemon) -> None:
    await pilot.press("1", "end", "r")
    await wait_until_shown(pilot, lambda: isinstance(pilot.app.screen, ConfirmDialog))


async def open_help(pilot: Pilot[str], _: FakeDaemon) -> None:
    await pilot.press("question_mark")


@pytest.mark.parametrize(
    ("name", "size", "scene"),
    [
        ("mixed-120", (120, 40), show_all),
        ("mixed-200", (200, 30), show_all),
        ("narrow-60", (60, 15), show_all),
        ("empty-80", (80, 24), remove_all_tunnels),
        ("error-80", (80, 24), invalidate_file),
        ("filtered-80", (80, 24), filter_and_mark),
        ("confirm-80", (80, 24), open_confirmation),
        ("help-80", (80, 24), open_help),
    ],
)
async def test_a_screen_equals_its_snapshot(
    socket: Path, daemon: FakeDaemon, name: str, size: tuple[int, int], scene: Scene
) -> None:
    stored = _SNAPSHOTS / f"{name}.txt"
    async with open_at_fixed_time(socket, size) as (app, pilot):
        await scene(pilot, daemon)
        if os.environ.get("UPDATE_SNAPSHOTS"):
            await pilot.pause(1.0)
            stored.parent.mkdir(exist_ok=True)
            stored.write_text(screen_text(app) + "\n", encoding="utf-8")
        expected = stored.read_text(encoding="utf-8").rstrip("\n")
        await wait_until_shown(pilot, lambda: screen_text(app) == expected)


@pytest.mark.parametrize("theme", [DARK, LIGHT])
async def test_red_means_failed_and_nothing_else(socket: Path, daemon: FakeDaemon, theme: object) -> None:
    daemon.log.append(daemon.event("error", "link", "a severe error", "broken"))
    daemon.status["config"] |= {"ok": False, "error": "unknown key", "line": 1, "column": 1}
    async with open_at_fixed_time(socket, (120, 40)) as (app, pilot):
        if theme is LIGHT:
            await pilot.press("t")
        await wait_until_shown(pilot, lambda: "a severe error" in screen_text(app))
        red = app._main._table.get_component_rich_style("pane--error", partial=True).color
        strips = app.screen._compositor.render_strips()
        found = [s.text for strip in strips for s in strip if s.style and s.style.color == red]
        assert found
        assert all("failed" in text for text in found)

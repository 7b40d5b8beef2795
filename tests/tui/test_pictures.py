"""A handful of whole screens, as text, with a clock that stands still.

``UPDATE_PICTURES=1 pytest tests/tui/test_pictures.py`` writes them anew; look at the difference before you keep it.
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

_PICTURES: Final = Path(__file__).parent / "pictures"
_NOON: Final = 1_767_268_800.0  # when the fake daemon's tunnels began to be what they are

Scene = Callable[["Pilot[str]", FakeDaemon], Awaitable[None]]


class Placed(ApiSource):
    """At a place that is the same in every test."""

    @property
    def place(self) -> str:
        return "unix:/run/np.sock"


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()


@asynccontextmanager
async def still(socket: Path, size: tuple[int, int]) -> AsyncIterator[tuple[Dashboard, Pilot[str]]]:
    async with Placed(socket) as source:
        app = Dashboard(source, now=lambda: 100.0, wall=lambda: _NOON + 300)
        async with app.run_test(size=size) as pilot:
            await wait_until_shown(pilot, lambda: bool(app.view.status))
            yield app, pilot


async def nothing(_: Pilot[str], __: FakeDaemon) -> None:
    """Only look."""


async def no_tunnels(pilot: Pilot[str], daemon: FakeDaemon) -> None:
    for name in list(daemon.tunnels):
        daemon.remove(name)


async def wrong_file(_: Pilot[str], daemon: FakeDaemon) -> None:
    good = daemon.status["config"]
    daemon.set_status(config={**good, "ok": False, "error": "unknown key 'tunels'", "line": 12, "column": 7})


async def filtered(pilot: Pilot[str], _: FakeDaemon) -> None:
    await pilot.press("slash", *"db", "enter", "space")


async def confirm(pilot: Pilot[str], _: FakeDaemon) -> None:
    await pilot.press("1", "end", "r")
    await wait_until_shown(pilot, lambda: isinstance(pilot.app.screen, ConfirmDialog))


async def helping(pilot: Pilot[str], _: FakeDaemon) -> None:
    await pilot.press("question_mark")


@pytest.mark.parametrize(
    ("name", "size", "scene"),
    [
        ("mixed-120", (120, 40), nothing),
        ("mixed-200", (200, 30), nothing),
        ("narrow-60", (60, 15), nothing),
        ("empty-80", (80, 24), no_tunnels),
        ("error-80", (80, 24), wrong_file),
        ("filtered-80", (80, 24), filtered),
        ("confirm-80", (80, 24), confirm),
        ("help-80", (80, 24), helping),
    ],
)
async def test_a_screen_is_as_it_was(
    socket: Path, daemon: FakeDaemon, name: str, size: tuple[int, int], scene: Scene
) -> None:
    stored = _PICTURES / f"{name}.txt"
    async with still(socket, size) as (app, pilot):
        await scene(pilot, daemon)
        if os.environ.get("UPDATE_PICTURES"):
            await pilot.pause(1.0)
            stored.parent.mkdir(exist_ok=True)
            stored.write_text(screen_text(app) + "\n", encoding="utf-8")
        expected = stored.read_text(encoding="utf-8").rstrip("\n")
        await wait_until_shown(pilot, lambda: screen_text(app) == expected)


@pytest.mark.parametrize("theme", [DARK, LIGHT])
async def test_red_says_failed_and_nothing_else(socket: Path, daemon: FakeDaemon, theme: object) -> None:
    daemon.log.append(daemon.event("error", "link", "a grave thing", "broken"))
    daemon.status["config"] |= {"ok": False, "error": "unknown key", "line": 1, "column": 1}
    async with still(socket, (120, 40)) as (app, pilot):
        if theme is LIGHT:
            await pilot.press("t")
        await wait_until_shown(pilot, lambda: "a grave thing" in screen_text(app))
        red = app._main._table.get_component_rich_style("pane--failed", partial=True).color
        strips = app.screen._compositor.render_strips()
        found = [s.text for strip in strips for s in strip if s.style and s.style.color == red]
        assert found
        assert all("failed" in text for text in found)

"""What the dashboard's tests share: a dashboard on a fake daemon."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from textual.events import Paste

from tests.support.scale import GUARD_S
from tests.support.waiting import wait_until_async
from tests.tui.fake import FakeDaemon
from tui.app import Dashboard
from tui.sources.daemon import ApiSource

if TYPE_CHECKING:
    from textual.pilot import Pilot

    from tests.tui.fake import Json

DashboardPilot = tuple[Dashboard, "Pilot[str]"]
OpenDashboard = Callable[..., AbstractAsyncContextManager[DashboardPilot]]


@pytest.fixture
def socket(tmp_path: Path) -> Path:
    return tmp_path / "np.sock"


@pytest_asyncio.fixture
async def daemon(socket: Path) -> AsyncIterator[FakeDaemon]:
    async with FakeDaemon(socket) as fake:
        yield fake


@pytest.fixture
def opened(socket: Path) -> OpenDashboard:
    """Opens a dashboard of a given size on the daemon's socket, and waits until it has a status."""

    @asynccontextmanager
    async def open_dashboard(
        size: tuple[int, int] = (120, 40),
        *,
        must_have_status: bool = True,
        **options: Any,  # noqa: ANN401  those of Dashboard
    ) -> AsyncIterator[DashboardPilot]:
        async with ApiSource(socket) as source:
            app = Dashboard(source, **options)
            async with app.run_test(size=size, notifications=True) as pilot:
                if must_have_status:
                    await wait_until_shown(pilot, lambda: bool(app.view.status))
                    await pilot.pause()
                yield app, pilot

    return open_dashboard


async def wait_until_shown(pilot: Pilot[str], condition: Callable[[], bool], seconds: float = GUARD_S) -> None:
    """Wait for a condition; the failure shows the screen."""
    await wait_until_async(
        condition,
        lambda: f"the condition holds; the screen was\n{screen_text(pilot.app)}",
        within=seconds,
        pause=lambda: pilot.pause(0.02),
    )


async def paste(pilot: Pilot[str], text: str) -> None:
    """Paste a text, which draws the screen once and not for each letter."""
    pilot.app.post_message(Paste(text))
    await pilot.pause()


def screen_text(app: Any) -> str:  # noqa: ANN401  any application
    """Return the text on the screen."""
    lines = app.screen._compositor.render_strips()
    return "\n".join("".join(segment.text for segment in strip).rstrip() for strip in lines)


def shows(app: Any, *texts: str) -> Callable[[], bool]:  # noqa: ANN401  any application
    """Return a condition: all of these texts are on the screen."""
    return lambda: all(text in screen_text(app) for text in texts)


def named(*names: str, **fields: Any) -> list[Json]:  # noqa: ANN401  fields of a tunnel
    """Return tunnels with these names."""
    from tests.tui.fake import tunnel  # noqa: PLC0415  pytest rewrites this module before that one

    return [tunnel(name, **fields) for name in names]

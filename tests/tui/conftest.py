"""What the dashboard's tests share: a daemon that is none, and a dashboard on it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from tests.support.scale import GUARD_S
from tests.tui.fake import FakeDaemon
from tui.app import Dashboard
from tui.sources import ApiSource

if TYPE_CHECKING:
    from textual.pilot import Pilot

    from tests.tui.fake import Json

Seen = tuple[Dashboard, "Pilot[str]"]
Open = Callable[..., AbstractAsyncContextManager[Seen]]


@pytest.fixture
def socket(tmp_path: Path) -> Path:
    return tmp_path / "np.sock"


@pytest_asyncio.fixture
async def daemon(socket: Path) -> AsyncIterator[FakeDaemon]:
    async with FakeDaemon(socket) as fake:
        yield fake


@pytest.fixture
def opened(socket: Path) -> Open:
    """Opens a dashboard of a given size on the daemon, and waits until it shows something."""

    @asynccontextmanager
    async def open_dashboard(
        size: tuple[int, int] = (120, 40),
        *,
        waits: bool = True,
        **options: Any,  # noqa: ANN401  the dashboard's own
    ) -> AsyncIterator[Seen]:
        async with ApiSource(socket) as source:
            app = Dashboard(source, **options)
            async with app.run_test(size=size, notifications=True) as pilot:
                if waits:
                    await wait_until_shown(pilot, lambda: bool(app.view.status))
                    await pilot.pause()
                yield app, pilot

    return open_dashboard


async def wait_until_shown(pilot: Pilot[str], condition: Callable[[], bool], seconds: float = GUARD_S) -> None:
    """Until a condition holds; fails after so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"it did not come true; the screen was\n{picture(pilot.app)}"
        await pilot.pause(0.02)


def picture(app: Any) -> str:  # noqa: ANN401  any application
    """What stands on the screen."""
    lines = app.screen._compositor.render_strips()
    return "\n".join("".join(segment.text for segment in strip).rstrip() for strip in lines)


def shows(app: Any, *texts: str) -> Callable[[], bool]:  # noqa: ANN401  any application
    """Whether all of these stand on the screen."""
    return lambda: all(text in picture(app) for text in texts)


def named(*names: str, **keys: Any) -> list[Json]:  # noqa: ANN401  whatever a tunnel has
    """Tunnels of these names."""
    from tests.tui.fake import tunnel  # noqa: PLC0415  pytest rewrites this module before that one

    return [tunnel(name, **keys) for name in names]

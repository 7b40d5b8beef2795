"""Pictures of the dashboard, taken of the running demonstration: ``python -m tui.picture [FOLDER]``."""

from __future__ import annotations

import asyncio
import re
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tui.app import Dashboard
from tui.opening import running_demo
from tui.sources import ApiSource, Heard, Status

if TYPE_CHECKING:
    from textual.pilot import Pilot

FOLDER: Final = Path(__file__).parent / "pictures"

_PATIENCE: Final = 60.0  # seconds for a scene to come about
_PAST: Final = 25  # seconds of history, for the small pictures to show something

SCENES: Final[dict[str, tuple[tuple[int, int], tuple[str, ...], tuple[str, ...]]]] = {
    "dashboard": ((120, 36), (), ()),
    "narrow": ((80, 24), (), ()),
    "detail": ((80, 36), ("enter",), ("escape",)),
    "question": ((100, 28), ("1", "r"), ("escape", "0")),
    "events": ((100, 28), ("e",), ("escape",)),
    "help": ((100, 48), ("question_mark",), ("escape",)),
    "light": ((120, 36), ("t",), ("t",)),
}
"""Each main view: the size of its screen, the keys that lead there, and those that lead back."""


class _Somewhere(ApiSource):
    """The demonstration, without the place that it happens to have on this machine."""

    @property
    def place(self) -> str:
        return "unix:/run/np.sock"

    async def watch(self) -> AsyncIterator[Heard]:
        async for heard in super().watch():
            yield Status({**heard.data, "host": "edge-1"}) if isinstance(heard, Status) else heard


async def take(socket: Path, folder: Path) -> None:
    """Write an SVG of each scene."""
    async with _Somewhere(socket) as source:
        app = Dashboard(source)
        async with app.run_test() as pilot:
            for name, (size, keys, back) in SCENES.items():
                await pilot.resize_terminal(*size)
                await _until(pilot, lambda: _is_worth_a_picture(app))
                await pilot.press(*keys)
                await pilot.pause(0.6)  # whatever the keys asked the daemon has been answered
                _write(folder / f"{name}.svg", app.export_screenshot(title="nodepass-orch top"))
                await pilot.press(*back)


def _write(path: Path, svg: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # whoever looks at the picture shall not have to fetch a font from somewhere, and shall see every space
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    path.write_text(svg.replace("<svg ", '<svg xml:space="preserve" ', 1), encoding="utf-8")


def _is_worth_a_picture(app: Dashboard) -> bool:
    """Whether traffic flows, somebody is in cooldown, and there is some past to show."""
    tunnels = app.view.tunnels.values()
    waiting = [t for t in tunnels if t.state == "cooldown" and t.remaining(app.now()) > 0.5]
    return bool(waiting) and app.view.rates[0] > 0 and all(len(t.history) >= _PAST for t in tunnels)


async def _until(pilot: Pilot[str], condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the demonstration does not show what a picture needs")
        await pilot.pause(0.1)


def main() -> int:
    """Take all pictures; the exit code."""
    with running_demo() as demo:
        asyncio.run(take(demo.socket, Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Pictures of the dashboard, taken of the running demonstration: ``python -m tui.picture [FOLDER]``.

Those of a fleet are taken where there is a mosquitto.
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from orchestrator.mqtt.broker import Broker
from orchestrator.process.process import say
from tui.app import Dashboard
from tui.fleet import FleetSource
from tui.opening import running_demo
from tui.showcase import broker_program, running_fleet
from tui.sources import ApiSource, Heard, Status

if TYPE_CHECKING:
    from textual.pilot import Pilot

    from tui.sources import Source

FOLDER: Final = Path(__file__).parent / "pictures"

_PATIENCE: Final = 60.0  # seconds for a scene to come about
_PAST: Final = 25  # seconds of history, for the small pictures to show something

Scenes = Mapping[str, tuple[tuple[int, int], tuple[str, ...], tuple[str, ...]]]

SCENES: Final[Scenes] = {
    "dashboard": ((120, 36), (), ()),
    "narrow": ((80, 24), (), ()),
    "detail": ((80, 36), ("enter",), ("escape",)),
    "question": ((100, 28), ("1", "r"), ("escape", "0")),
    "events": ((100, 28), ("e",), ("escape",)),
    "help": ((100, 48), ("question_mark",), ("escape",)),
    "light": ((120, 36), ("t",), ("t",)),
}
"""Each main view of one daemon: the size of its screen, the keys that lead there, and those that lead back."""

FLEET_SCENES: Final[Scenes] = {
    "fleet": ((120, 32), (), ()),
    "path": ((120, 24), ("slash", *"host:home web", "enter", "p"), ("escape", "escape")),
    "paths": ((100, 16), ("v",), ("escape",)),
}
"""The same of a fleet."""


class _Somewhere(ApiSource):
    """The demonstration, without the place that it happens to have on this machine."""

    @property
    def place(self) -> str:
        return "unix:/run/np.sock"

    async def watch(self) -> AsyncIterator[Heard]:
        async for heard in super().watch():
            yield Status({**heard.data, "host": "edge-1"}) if isinstance(heard, Status) else heard


class _SomeBroker(FleetSource):
    """The same of a broker."""

    @property
    def place(self) -> str:
        return "mqtt://broker:1883"


async def take(socket: Path, folder: Path) -> None:
    """Write an SVG of each scene of the demonstration."""
    async with _Somewhere(socket) as source:
        await _take(source, SCENES, _is_worth_a_picture, folder, "nodepass-orch top")


async def take_fleet(mosquitto: str, folder: Path) -> None:
    """Write an SVG of each scene of a fleet."""
    async with running_fleet(mosquitto) as url, _SomeBroker(Broker.from_url(url)) as source:
        await _take(source, FLEET_SCENES, _is_a_fleet, folder, "nodepass-orch top --mqtt mqtt://broker:1883")


async def _take(
    source: Source, scenes: Scenes, is_ready: Callable[[Dashboard], bool], folder: Path, title: str
) -> None:
    app = Dashboard(source)
    async with app.run_test() as pilot:
        for name, (size, keys, back) in scenes.items():
            await pilot.resize_terminal(*size)
            await _until(pilot, lambda: is_ready(app))
            for key in keys:
                await pilot.press(key)
                await pilot.pause(0.1)
            await pilot.pause(0.6)  # whatever the keys asked has been answered
            _write(folder / f"{name}.svg", app.export_screenshot(title=title))
            await pilot.press(*back)


def _write(path: Path, svg: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # whoever looks at the picture shall not have to fetch a font from somewhere, and shall see every space
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    path.write_text(svg.replace("<svg ", '<svg xml:space="preserve" ', 1), encoding="utf-8")


def _is_worth_a_picture(app: Dashboard) -> bool:
    """Whether traffic flows, somebody is in cooldown, and there is some past to show."""
    tunnels = app.view.tunnels.values()
    waiting = [t for t in tunnels if t.state == "cooldown" and t.remaining(app.now) > 0.5]
    return bool(waiting) and app.view.rates[0] > 0 and all(len(t.history) >= _PAST for t in tunnels)


def _is_a_fleet(app: Dashboard) -> bool:
    """Whether one host is gone, traffic flows on both paths, and there is some past to show."""
    states = {tunnel.state for tunnel in app.view.tunnels.values()}
    moving = [t for t in app.view.tunnels.values() if t.rate_out > 0 and len(t.history) >= _PAST]
    return {"gone", "cooldown", "up"} <= states and len(moving) >= 4


async def _until(pilot: Pilot[str], condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the demonstration does not show what a picture needs")
        await pilot.pause(0.1)


def main() -> int:
    """Take all pictures; the exit code."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    with running_demo() as demo:
        asyncio.run(take(demo.socket, folder))
    mosquitto = broker_program()
    if mosquitto is None:
        say("there is no mosquitto here: the pictures of a fleet are left as they are")
    else:
        asyncio.run(take_fleet(mosquitto, folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Takes screenshots of the dashboard on the running demonstration: ``python -m tests.pictures [FOLDER]``.

Those of a fleet are taken if mosquitto is installed.
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from orchestrator.commands.background import run_demo
from orchestrator.mqtt.broker import Broker
from orchestrator.process.messages import print_message
from tests.pictures.fleet import find_mosquitto, run_fleet
from tui.app import Dashboard
from tui.sources.base import SourceMessage, StatusReceived
from tui.sources.daemon import ApiSource
from tui.sources.fleet import FleetSource

if TYPE_CHECKING:
    from textual.pilot import Pilot

    from tui.sources.base import Source

FOLDER: Final = Path(__file__).parents[2] / "docs" / "pictures"

_SCENE_TIMEOUT_S: Final = 60.0
_MIN_HISTORY_S: Final = 25  # for the sparklines

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
"""Each main view of one daemon: the size of the terminal, the keys that open the view, and those that close it."""

FLEET_SCENES: Final[Scenes] = {
    "fleet": ((120, 32), (), ()),
    "route": ((120, 24), ("slash", *"host:home web", "enter", "p"), ("escape", "escape")),
    "routes": ((100, 16), ("v",), ("escape",)),
}
"""The same of a fleet."""


class _DemoSource(ApiSource):
    """The demonstration, with a place and a host name that do not depend on this machine."""

    @property
    def place(self) -> str:
        return "unix:/run/np.sock"

    async def watch(self) -> AsyncIterator[SourceMessage]:
        async for message in super().watch():
            yield StatusReceived({**message.data, "host": "edge-1"}) if isinstance(message, StatusReceived) else message


class _BrokerSource(FleetSource):
    """A broker, with a place that does not depend on this machine."""

    @property
    def place(self) -> str:
        return "mqtt://broker:1883"


async def take_daemon_screenshots(socket: Path, folder: Path) -> None:
    """Write an SVG of each scene of the demonstration."""
    async with _DemoSource(socket) as source:
        await _take_screenshots(source, SCENES, _has_traffic_and_cooldown, folder, "nodepass-orch top")


async def take_fleet_screenshots(mosquitto: str, folder: Path) -> None:
    """Write an SVG of each scene of a fleet."""
    title = "nodepass-orch top --mqtt mqtt://broker:1883"
    async with run_fleet(mosquitto) as url, _BrokerSource(Broker.from_url(url)) as source:
        await _take_screenshots(source, FLEET_SCENES, _has_traffic_and_gone_host, folder, title)


async def _take_screenshots(
    source: Source, scenes: Scenes, is_ready: Callable[[Dashboard], bool], folder: Path, title: str
) -> None:
    app = Dashboard(source)
    async with app.run_test() as pilot:
        for name, (size, keys, back) in scenes.items():
            await pilot.resize_terminal(*size)
            await _wait_until(pilot, lambda: is_ready(app))
            for key in keys:
                await pilot.press(key)
                await pilot.pause(0.1)
            await pilot.pause(0.6)  # requests that the keys caused are answered by then
            _write(folder / f"{name}.svg", app.export_screenshot(title=title))
            await pilot.press(*back)


def _write(path: Path, svg: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # No font is loaded from another host, and every space is visible.
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    path.write_text(svg.replace("<svg ", '<svg xml:space="preserve" ', 1), encoding="utf-8")


def _has_traffic_and_cooldown(app: Dashboard) -> bool:
    """Whether traffic flows, a tunnel is in cooldown, and the sparklines have enough history."""
    tunnels = app.view.tunnels.values()
    waiting = [t for t in tunnels if t.state == "cooldown" and t.cooldown_left(app.now) > 0.5]
    return bool(waiting) and app.view.rates[0] > 0 and all(len(t.history) >= _MIN_HISTORY_S for t in tunnels)


def _has_traffic_and_gone_host(app: Dashboard) -> bool:
    """Whether one host is gone, traffic flows on both routes, and the sparklines have enough history."""
    states = {tunnel.state for tunnel in app.view.tunnels.values()}
    moving = [t for t in app.view.tunnels.values() if t.rate_out > 0 and len(t.history) >= _MIN_HISTORY_S]
    return {"gone", "cooldown", "up"} <= states and len(moving) >= 4


async def _wait_until(pilot: Pilot[str], condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _SCENE_TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the demonstration does not show what the screenshot needs")
        await pilot.pause(0.1)


def main() -> int:
    """Take all screenshots. Returns the exit code."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    with run_demo() as demo:
        asyncio.run(take_daemon_screenshots(demo.socket, folder))
    mosquitto = find_mosquitto()
    if mosquitto is None:
        print_message("mosquitto is not installed: the screenshots of a fleet are not taken")
    else:
        asyncio.run(take_fleet_screenshots(mosquitto, folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())

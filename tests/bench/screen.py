"""The dashboard at scale: its CPU with 500 constantly changing tunnels, and its response time to keys."""

from __future__ import annotations

import asyncio
import random
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

from .daemons import measure_cpu_percent
from .processes import BenchError, clean_environment, run_process
from .report import Goal, Metric, Sheet
from .section import Sample, Section, Trial
from .terminal import Screen, Terminal, run_on_terminal

if TYPE_CHECKING:
    from collections.abc import Sequence

TUNNELS: Final = 500
KEYS: Final = 50

_ROOT: Final = Path(__file__).resolve().parents[2]
_START_LIMIT_S: Final = 30.0
_SETTLING_S: Final = 3.0
_OBSERVATION_S: Final = 10.0
_POLL_S: Final = 0.05
_KEY_INTERVAL_S: Final = (0.15, 0.35)  # random, so that keys fall at any moment between two refreshes

_METRICS: Final = (
    Metric("screen.cpu", f"CPU of the dashboard, {TUNNELS} tunnels, % of a core", 1, Goal(8.0, ratio=False)),
    Metric("screen.key", f"key to changed screen, median of {KEYS}, ms", 0, Goal(100.0, ratio=False)),
    Metric("screen.worst", f"  worst of {KEYS}, ms", 0, Goal(100.0, ratio=False), f"worst of {KEYS} keys, ms"),
    Metric("screen.rss", "RSS, MB", 0),
)


def section(program: Sequence[str]) -> Section:
    """Return the section: the dashboard on a simulated daemon whose numbers all change four times a second."""
    sheet = Sheet(metrics=_METRICS, variants=("top",), judged=("top",))
    trials = (Trial("screen", "top", partial(_measure, tuple(program))),)
    return Section(name="screen", title="The dashboard", sheet=sheet, trials=trials, max_rounds=3)


async def _measure(program: Sequence[str], seconds: int) -> Sample:
    with TemporaryDirectory(prefix="bench-") as name:
        directory = Path(name)
        socket = directory / "np.sock"
        env = clean_environment({"PYTHONPATH": str(_ROOT)})
        command = (sys.executable, "-m", "tests.tui.fake", str(socket), "--tunnels", str(TUNNELS))
        async with run_process("daemon", command, directory=directory, env=env) as daemon:
            deadline = time.monotonic() + _START_LIMIT_S
            while not socket.exists():
                daemon.check()
                if time.monotonic() > deadline:
                    raise BenchError("the daemon does not listen")
                await asyncio.sleep(_POLL_S)
            top = (*program, "top", "--socket", str(socket))
            async with run_on_terminal("dashboard", top, directory=directory, env=clean_environment()) as terminal:
                return Sample(await measure_dashboard(terminal, "screen"))


async def measure_dashboard(terminal: Terminal, kind: str) -> dict[str, float]:
    """Measure CPU, response times and memory of a dashboard."""
    await terminal.wait_shown(selected_tunnel, "the tunnels", within=_START_LIMIT_S)
    await asyncio.sleep(_SETTLING_S)
    cpu = await measure_cpu_percent(terminal.program, _OBSERVATION_S)
    response_times_ms = [
        1000 * await _time_key(terminal, key) for key in ("j" * (KEYS // 2) + "k" * (KEYS - KEYS // 2))
    ]
    return {
        f"{kind}.cpu": cpu,
        f"{kind}.key": statistics.median(response_times_ms),
        f"{kind}.worst": max(response_times_ms),
        f"{kind}.rss": terminal.program.rss_bytes() / 1e6,
    }


async def _time_key(terminal: Terminal, key: str) -> float:
    await asyncio.sleep(random.uniform(*_KEY_INTERVAL_S))
    before = selected_tunnel(terminal.screen())
    return await terminal.press_and_wait(
        key, lambda screen: selected_tunnel(screen) not in {before, ""}, "the next tunnel"
    )


def selected_tunnel(screen: Screen) -> str:
    """Return the name of the tunnel whose details are shown: the first row of the pane on the right."""
    return next((row.rpartition("▏")[2].strip() for row in screen if "▏" in row), "")

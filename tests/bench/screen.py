"""The dashboard at scale: what it costs to show 500 tunnels that change all the time, and how soon a key shows."""

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

from .house import share_of_core
from .processes import BenchError, plain_environment, running
from .report import Goal, Metric, Sheet
from .section import Sample, Section, Trial
from .terminal import Screen, Terminal, on_terminal

if TYPE_CHECKING:
    from collections.abc import Sequence

TUNNELS: Final = 500
KEYS: Final = 50

_ROOT: Final = Path(__file__).resolve().parents[2]
_START_LIMIT_S: Final = 30.0
_SETTLING_S: Final = 3.0
_LOOKED_AT_S: Final = 10.0
_POLL_S: Final = 0.05
_BETWEEN_S: Final = (0.15, 0.35)  # at any moment between two refreshes

_METRICS: Final = (
    Metric("screen.cpu", f"CPU of the dashboard, {TUNNELS} tunnels, % of a core", 1, Goal(8.0, ratio=False)),
    Metric("screen.key", f"key to changed screen, median of {KEYS}, ms", 0, Goal(100.0, ratio=False)),
    Metric("screen.worst", f"  worst of {KEYS}, ms", 0, Goal(100.0, ratio=False), f"worst of {KEYS} keys, ms"),
    Metric("screen.rss", "RSS, MB", 0),
)


def section(program: Sequence[str]) -> Section:
    """The dashboard on a daemon that is none, whose numbers all change four times a second."""
    sheet = Sheet(metrics=_METRICS, variants=("top",), judged=("top",))
    trials = (Trial("screen", "top", partial(_take, tuple(program))),)
    return Section(name="screen", title="The dashboard", sheet=sheet, trials=trials, most_rounds=3)


async def _take(program: Sequence[str], seconds: int) -> Sample:
    with TemporaryDirectory(prefix="bench-") as name:
        directory = Path(name)
        socket = directory / "np.sock"
        env = plain_environment({"PYTHONPATH": str(_ROOT)})
        command = (sys.executable, "-m", "tests.tui.fake", str(socket), "--tunnels", str(TUNNELS))
        async with running("daemon", command, directory=directory, env=env) as daemon:
            deadline = time.monotonic() + _START_LIMIT_S
            while not socket.exists():
                daemon.check()
                if time.monotonic() > deadline:
                    raise BenchError("the daemon does not listen")
                await asyncio.sleep(_POLL_S)
            top = (*program, "top", "--socket", str(socket))
            async with on_terminal("dashboard", top, directory=directory, env=plain_environment()) as terminal:
                return Sample(await figures(terminal, "screen"))


async def figures(terminal: Terminal, kind: str) -> dict[str, float]:
    """CPU, keys and memory of a dashboard that shows tunnels."""
    await terminal.shows(chosen, "the tunnels", within=_START_LIMIT_S)
    await asyncio.sleep(_SETTLING_S)
    cpu = await share_of_core(terminal.program, _LOOKED_AT_S)
    answers = [1000 * await _moved(terminal, key) for key in ("j" * (KEYS // 2) + "k" * (KEYS - KEYS // 2))]
    return {
        f"{kind}.cpu": cpu,
        f"{kind}.key": statistics.median(answers),
        f"{kind}.worst": max(answers),
        f"{kind}.rss": terminal.program.rss_bytes() / 1e6,
    }


async def _moved(terminal: Terminal, key: str) -> float:
    await asyncio.sleep(random.uniform(*_BETWEEN_S))
    before = chosen(terminal.screen())
    return await terminal.answers(key, lambda screen: chosen(screen) not in {before, ""}, "the next tunnel")


def chosen(screen: Screen) -> str:
    """The name of the tunnel whose details are shown: it stands in the first row of the pane on the right."""
    return next((row.rpartition("▏")[2].strip() for row in screen if "▏" in row), "")

"""A fleet on one broker: the cost of publishing for a host and of a dashboard with 200 hosts of 50 tunnels."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import signal
import socket
import sys
import time
from contextlib import AsyncExitStack, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

from tests.fleet_simulator import HOSTS, TUNNELS, name_of_host, name_of_tunnel
from tests.support.ports import free_ports

from . import broker
from .daemons import BenchDaemon, make_pairs, measure_cpu_percent, start_daemon, wait_all_up
from .processes import BenchError, RunningProcess, clean_environment, run_and_read, run_process
from .report import Goal, Metric, Sheet
from .screen import selected_tunnel
from .section import Sample, Section, Trial
from .targets import connect, echo, exchange
from .terminal import Screen, Terminal, run_on_terminal

if TYPE_CHECKING:
    from collections.abc import Sequence

_ROOT: Final = Path(__file__).resolve().parents[2]
_READY_LIMIT_S: Final = 90.0
_FLEET_PS_LIMIT_S: Final = 60.0
_SHOWN_LIMIT_S: Final = 30.0
_OBSERVATION_S: Final = 10.0
_SETTLING_S: Final = 5.0
_COUNT_S: Final = 5.0
_POLL_S: Final = 0.1
_VISITORS_PER_S: Final = 0.5  # per tunnel: often enough that its numbers always change
_CHANGES: Final = 5
_RESTARTS: Final = 3
_REAL_HOST: Final = "real"
_CONFIRM: Final = "\x1b[C\r"  # move from Cancel to the other button, then Enter
_ALL_COUNT: Final = re.compile(r"\bAll (\d+)")
FILTER_HINT: Final = "words or patterns"

_METRICS: Final = (
    Metric("fleet.messages", f"publications/s of {HOSTS} hosts x {TUNNELS} tunnels", 0),
    Metric("fleet.picture", "fleet ps --json, s until the full picture", 2),
    Metric("fleet.publishing", "CPU of publishing on one host, % of a core", 2, Goal(1.0, ratio=False)),
    Metric("fleet.host", "  the whole daemon, % of a core", 2),
    Metric("fleet.without", "  the same without a broker, % of a core", 2),
    Metric("fleet.top", "CPU of top --mqtt, % of a core", 1, Goal(15.0, ratio=False)),
    Metric("fleet.change", f"  a change until it is shown, worst of {_CHANGES}, s", 2, Goal(2.0, ratio=False)),
    Metric("fleet.restart", f"  a restart until done and answered, worst of {_RESTARTS}, s", 2, Goal(1.0, ratio=False)),
)


def section(program: Sequence[str]) -> Section:
    """Return the section: one broker, a simulated fleet, and one real host in it."""
    sheet = Sheet(metrics=_METRICS, variants=("fleet",), judged=("fleet",))
    trials = (Trial("fleet", "fleet", partial(_measure, tuple(program)), (broker.TOOL,)),)
    return Section(name="fleet", title="The fleet", sheet=sheet, trials=trials, max_rounds=2)


async def _measure(program: Sequence[str], seconds: int) -> Sample:
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="bench-")))
        url, _ = await stack.enter_async_context(broker.mosquitto(directory))
        simulator = await stack.enter_async_context(_simulator(url, directory))
        await _wait_ready(simulator)
        values = await _measure_publishing(program, url, directory)
        values["fleet.messages"] = await broker.publications_per_second(url, _COUNT_S)
        values["fleet.picture"] = await _picture(program, url)
        return await _measure_dashboard(program, url, directory, simulator, values)


def _simulator(url: str, directory: Path) -> Any:  # noqa: ANN401  the context manager of run_process
    command = (sys.executable, "-m", "tests.fleet_simulator", url)
    return run_process("simulator", command, directory=directory, env=clean_environment({"PYTHONPATH": str(_ROOT)}))


async def _wait_ready(simulator: RunningProcess) -> None:
    deadline = time.monotonic() + _READY_LIMIT_S
    while "ready" not in simulator.log.read_text():
        simulator.check()
        if time.monotonic() > deadline:
            raise BenchError(f"the simulated fleet was not ready within {_READY_LIMIT_S:.0f} s")
        await asyncio.sleep(_POLL_S)


async def _measure_publishing(program: Sequence[str], url: str, directory: Path) -> dict[str, float]:
    """Compare two daemons with the same tunnels and the same light traffic: one publishes, one does not."""
    async with AsyncExitStack() as stack:
        (target_port,) = free_ports(1)
        await stack.enter_async_context(echo(target_port))
        daemons: list[BenchDaemon] = []
        ports: list[int] = []
        for name, supervisor in (("publishing", {"mqtt": {"url": url, "host": "bench"}}), ("silent", {})):
            made = make_pairs(TUNNELS // 2, target_port)
            both = {**made.servers, **made.clients}
            daemons.append(await stack.enter_async_context(start_daemon(program, name, directory, both, supervisor)))
            ports += made.visitor_ports
        await wait_all_up(daemons, TUNNELS, within=_READY_LIMIT_S)
        traffic = asyncio.create_task(_send_light_traffic(ports))
        try:
            await asyncio.sleep(_SETTLING_S)
            publishing, silent = await asyncio.gather(
                *(measure_cpu_percent(h.process, _OBSERVATION_S) for h in daemons)
            )
        finally:
            traffic.cancel()
            await asyncio.wait([traffic])
    return {"fleet.host": publishing, "fleet.without": silent, "fleet.publishing": max(0.0, publishing - silent)}


async def _send_light_traffic(ports: Sequence[int]) -> None:
    for port in itertools.cycle(ports):
        with socket.socket() as visitor, suppress(OSError, TimeoutError):
            async with asyncio.timeout(1):
                await connect(visitor, port)
                await exchange(visitor)
        await asyncio.sleep(1 / (_VISITORS_PER_S * len(ports)))


async def _picture(program: Sequence[str], url: str) -> float:
    began = time.perf_counter()
    text = await run_and_read((*program, "fleet", "ps", "--json", "--mqtt", url), limit_s=_FLEET_PS_LIMIT_S)
    took = time.perf_counter() - began
    try:
        hosts = json.loads(text)["hosts"]
    except (ValueError, KeyError):
        raise BenchError(f"fleet ps: {text.strip()[-200:] or 'no output'}") from None
    complete = sum(
        host["host"].startswith("sim-") and host["presence"] == "online" and len(host["tunnels"]) == TUNNELS
        for host in hosts
    )
    if complete != HOSTS:
        raise BenchError(f"fleet ps: {complete} of {HOSTS} hosts are complete")
    return took


async def _measure_dashboard(
    program: Sequence[str], url: str, directory: Path, simulator: RunningProcess, values: dict[str, float]
) -> Sample:
    """Measure the dashboard on the whole fleet."""
    command = (*program, "top", "--mqtt", url)
    try:
        async with run_on_terminal("top --mqtt", command, directory=directory, env=clean_environment()) as top:
            await top.wait_shown(_shows_whole_fleet, f"{HOSTS * TUNNELS} tunnels", within=_SHOWN_LIMIT_S)
            await asyncio.sleep(_SETTLING_S)
            values["fleet.top"] = await measure_cpu_percent(top.program, _OBSERVATION_S)
            await _filter_by_host(top, name_of_host(0), TUNNELS)
            values["fleet.change"] = max([await _time_change(top, simulator) for _ in range(_CHANGES)])
            values["fleet.restart"] = await _time_restarts(program, url, directory, top)
    except BenchError as error:
        return Sample(values, (str(error),))
    return Sample(values)


def _shows_whole_fleet(screen: Screen) -> bool:
    """Whether the dashboard shows the whole fleet: a tunnel is selected and all are counted."""
    counted = next((int(found[1]) for row in screen if (found := _ALL_COUNT.search(row))), 0)
    return bool(selected_tunnel(screen)) and counted >= HOSTS * TUNNELS  # the real host adds some


def _table(screen: Screen) -> list[str]:
    """Return the part of the screen left of the details."""
    return [row.partition("▏")[0] for row in screen if "▏" in row]


async def _filter_by_host(top: Terminal, host: str, tunnels: int) -> None:
    """Filter by a host and move to the first row."""
    await top.press_and_wait(
        "/", lambda screen: any(FILTER_HINT in row for row in screen), "the filter input", within=_SHOWN_LIMIT_S
    )
    await asyncio.sleep(_POLL_S)
    top.type(host)
    await top.wait_shown(lambda screen: any(host in row for row in screen[:4]), "a filter", within=_SHOWN_LIMIT_S)
    top.type("\r")
    await top.wait_shown(
        lambda screen: any(f" {tunnels} of " in row for row in screen), "the tunnels of one host", within=_SHOWN_LIMIT_S
    )
    top.type("g")  # the first row, where a failing tunnel will appear


async def _time_change(top: Terminal, simulator: RunningProcess) -> float:
    """Return the seconds from a change of a tunnel's state to its row on the screen, then wait for the change back."""

    def is_out_of_service(screen: Screen) -> bool:
        return any("cooldown" in row and name_of_tunnel(0) in row for row in _table(screen))

    began = time.perf_counter()
    simulator.process.send_signal(signal.SIGUSR1)
    shown = await top.wait_shown(is_out_of_service, "the tunnel that went out of service", within=_SHOWN_LIMIT_S)
    await asyncio.sleep(_SETTLING_S / 2)
    simulator.process.send_signal(signal.SIGUSR1)
    await top.wait_shown(lambda screen: not is_out_of_service(screen), "the tunnel's return", within=_SHOWN_LIMIT_S)
    await asyncio.sleep(_SETTLING_S / 2)
    return shown - began


async def _time_restarts(program: Sequence[str], url: str, directory: Path, top: Terminal) -> float:
    """Restart a tunnel of the real host several times; return the longest time in seconds."""
    (target_port,) = free_ports(1)
    made = make_pairs(1, target_port)
    supervisor = {"mqtt": {"url": url, "host": _REAL_HOST, "commands": True}}
    async with start_daemon(program, _REAL_HOST, directory, {**made.servers, **made.clients}, supervisor) as real:
        await wait_all_up([real], 2, within=_READY_LIMIT_S)
        await top.press_and_wait(
            "\x1b", lambda screen: not any(" of " in row for row in screen[:4]), "all", within=_SHOWN_LIMIT_S
        )
        await _filter_by_host(top, _REAL_HOST, 2)
        name = f"{_REAL_HOST}/{next(iter(made.clients))}"
        await top.wait_shown(lambda screen: selected_tunnel(screen) == name, name, within=_SHOWN_LIMIT_S)
        return max([await _time_restart(top, real, name) for _ in range(_RESTARTS)])


async def _time_restart(top: Terminal, real: BenchDaemon, name: str) -> float:
    """Return the seconds from the confirming key until the answer is shown and the tunnel is up on a new link."""
    tunnel = name.partition("/")[2]
    link = (await real.tunnel(tunnel))["link"]

    def is_confirmation_shown(screen: Screen) -> bool:
        return any(f"Restart {name}?" in row for row in screen)

    await top.press_and_wait("r", is_confirmation_shown, "the confirmation", within=_SHOWN_LIMIT_S)
    pressed = time.perf_counter()
    await top.press_and_wait(_CONFIRM, lambda screen: any(f"{name} restarting" in row for row in screen), "the answer")
    while (seen := await real.tunnel(tunnel))["link"] in {link, None} or seen["state"] != "up":
        if time.perf_counter() - pressed > _SHOWN_LIMIT_S:
            raise BenchError(f"{name} was not up again within {_SHOWN_LIMIT_S:.0f} s")
        await asyncio.sleep(_POLL_S / 20)
    took = time.perf_counter() - pressed
    await asyncio.sleep(_SETTLING_S)  # until the answer has disappeared from the screen
    return took

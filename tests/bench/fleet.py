"""A fleet on one broker: what it costs a host to publish, and an onlooker to see 200 hosts of 50 tunnels."""

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

from . import broker
from .house import BenchDaemon, all_up, house, pairs, share_of_core
from .processes import BenchError, Running, free_ports, output_of, plain_environment, running
from .report import Goal, Metric, Sheet
from .screen import chosen
from .section import Sample, Section, Trial
from .targets import connect, echo, exchange
from .terminal import Screen, Terminal, on_terminal

if TYPE_CHECKING:
    from collections.abc import Sequence

_ROOT: Final = Path(__file__).resolve().parents[2]
_BIRTH_LIMIT_S: Final = 90.0
_PICTURE_LIMIT_S: Final = 60.0
_SHOWN_LIMIT_S: Final = 30.0
_LOOKED_AT_S: Final = 10.0
_SETTLING_S: Final = 5.0
_COUNTED_S: Final = 5.0
_POLL_S: Final = 0.1
_VISITORS_PER_S: Final = 0.5  # of each tunnel: often enough that its numbers are always news
_CHANGES: Final = 5
_RESTARTS: Final = 3
_STEERED: Final = "real"
_CONFIRM: Final = "\x1b[C\r"  # from Cancel to the other button, and Enter
_ALL: Final = re.compile(r"\bAll (\d+)")
_HINT: Final = "words of name"

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
    """One broker, a simulated fleet, and a real host among it."""
    sheet = Sheet(metrics=_METRICS, variants=("fleet",), judged=("fleet",))
    trials = (Trial("fleet", "fleet", partial(_take, tuple(program)), (broker.TOOL,)),)
    return Section(name="fleet", title="The fleet", sheet=sheet, trials=trials, most_rounds=2)


async def _take(program: Sequence[str], seconds: int) -> Sample:
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="bench-")))
        url, _ = await stack.enter_async_context(broker.mosquitto(directory))
        simulator = await stack.enter_async_context(_simulator(url, directory))
        await _born(simulator)
        values = await _publishing(program, url, directory)
        values["fleet.messages"] = await broker.publications_per_second(url, _COUNTED_S)
        values["fleet.picture"] = await _picture(program, url)
        return await _onlooker(program, url, directory, simulator, values)


def _simulator(url: str, directory: Path) -> Any:  # noqa: ANN401  a context manager, as running gives
    command = (sys.executable, "-m", "tests.fleet_simulator", url)
    return running("simulator", command, directory=directory, env=plain_environment({"PYTHONPATH": str(_ROOT)}))


async def _born(simulator: Running) -> None:
    deadline = time.monotonic() + _BIRTH_LIMIT_S
    while "ready" not in simulator.log.read_text():
        simulator.check()
        if time.monotonic() > deadline:
            raise BenchError(f"the simulated fleet was not on the broker within {_BIRTH_LIMIT_S:.0f} s")
        await asyncio.sleep(_POLL_S)


async def _publishing(program: Sequence[str], url: str, directory: Path) -> dict[str, float]:
    """Two daemons with as many tunnels and the same light traffic, at the same time: one publishes, one does not."""
    async with AsyncExitStack() as stack:
        (target_port,) = free_ports(1)
        await stack.enter_async_context(echo(target_port))
        houses: list[BenchDaemon] = []
        ports: list[int] = []
        for name, supervisor in (("publishing", {"mqtt": {"url": url, "host": "bench"}}), ("silent", {})):
            made = pairs(TUNNELS // 2, target_port)
            both = {**made.servers, **made.clients}
            houses.append(await stack.enter_async_context(house(program, name, directory, both, supervisor)))
            ports += made.visitor_ports
        await all_up(houses, TUNNELS, within=_BIRTH_LIMIT_S)
        traffic = asyncio.create_task(_trickle(ports))
        try:
            await asyncio.sleep(_SETTLING_S)
            with_it, without = await asyncio.gather(*(share_of_core(h.process, _LOOKED_AT_S) for h in houses))
        finally:
            traffic.cancel()
            await asyncio.wait([traffic])
    return {"fleet.host": with_it, "fleet.without": without, "fleet.publishing": max(0.0, with_it - without)}


async def _trickle(ports: Sequence[int]) -> None:
    for port in itertools.cycle(ports):
        with socket.socket() as visitor, suppress(OSError, TimeoutError):
            async with asyncio.timeout(1):
                await connect(visitor, port)
                await exchange(visitor)
        await asyncio.sleep(1 / (_VISITORS_PER_S * len(ports)))


async def _picture(program: Sequence[str], url: str) -> float:
    began = time.perf_counter()
    text = await output_of((*program, "fleet", "ps", "--json", "--mqtt", url), limit_s=_PICTURE_LIMIT_S)
    took = time.perf_counter() - began
    try:
        hosts = json.loads(text)["hosts"]
    except (ValueError, KeyError):
        raise BenchError(f"fleet ps: {text.strip()[-200:] or 'said nothing'}") from None
    whole = sum(
        host["host"].startswith("sim-") and host["presence"] == "online" and len(host["tunnels"]) == TUNNELS
        for host in hosts
    )
    if whole != HOSTS:
        raise BenchError(f"fleet ps: {whole} of {HOSTS} hosts are whole")
    return took


async def _onlooker(
    program: Sequence[str], url: str, directory: Path, simulator: Running, values: dict[str, float]
) -> Sample:
    """The dashboard on all of it, where this version has one."""
    command = (*program, "top", "--mqtt", url)
    try:
        async with on_terminal("top --mqtt", command, directory=directory, env=plain_environment()) as top:
            await top.shows(_is_whole, f"{HOSTS * TUNNELS} tunnels", within=_SHOWN_LIMIT_S)
            await asyncio.sleep(_SETTLING_S)
            values["fleet.top"] = await share_of_core(top.program, _LOOKED_AT_S)
            await _narrow(top, name_of_host(0), TUNNELS)
            values["fleet.change"] = max([await _change(top, simulator) for _ in range(_CHANGES)])
            values["fleet.restart"] = await _restarts(program, url, directory, top)
    except BenchError as error:
        return Sample(values, (str(error),))
    return Sample(values)


def _is_whole(screen: Screen) -> bool:
    """Whether the fleet is on the screen: something is chosen, and all are counted."""
    counted = next((int(found[1]) for row in screen if (found := _ALL.search(row))), 0)
    return bool(chosen(screen)) and counted >= HOSTS * TUNNELS  # beside them are those of the real host


def _table(screen: Screen) -> list[str]:
    """What stands left of the details."""
    return [row.partition("▏")[0] for row in screen if "▏" in row]


async def _narrow(top: Terminal, host: str, tunnels: int) -> None:
    """Filter by a host: the cursor follows its tunnel, and the view the cursor."""
    await top.answers("/", lambda screen: any(_HINT in row for row in screen), "where to type", within=_SHOWN_LIMIT_S)
    await asyncio.sleep(_POLL_S)
    top.type(host)
    await top.shows(lambda screen: any(host in row for row in screen[:4]), "a filter", within=_SHOWN_LIMIT_S)
    top.type("\r")
    await top.shows(
        lambda screen: any(f" {tunnels} of " in row for row in screen), "the tunnels of one host", within=_SHOWN_LIMIT_S
    )
    top.type("g")  # to the top, where what is wrong will stand


async def _change(top: Terminal, simulator: Running) -> float:
    """Seconds from a change of a tunnel's state to its row; the change back is waited for, and not counted."""

    def is_out(screen: Screen) -> bool:
        return any("cooldown" in row and name_of_tunnel(0) in row for row in _table(screen))

    began = time.perf_counter()
    simulator.process.send_signal(signal.SIGUSR1)
    shown = await top.shows(is_out, "the tunnel that went out of service", within=_SHOWN_LIMIT_S)
    await asyncio.sleep(_SETTLING_S / 2)
    simulator.process.send_signal(signal.SIGUSR1)
    await top.shows(lambda screen: not is_out(screen), "the tunnel's return", within=_SHOWN_LIMIT_S)
    await asyncio.sleep(_SETTLING_S / 2)
    return shown - began


async def _restarts(program: Sequence[str], url: str, directory: Path, top: Terminal) -> float:
    """Restart a tunnel of a real host among all of them, again and again; the most seconds that it took."""
    (target_port,) = free_ports(1)
    made = pairs(1, target_port)
    supervisor = {"mqtt": {"url": url, "host": _STEERED, "commands": True}}
    async with house(program, _STEERED, directory, {**made.servers, **made.clients}, supervisor) as real:
        await all_up([real], 2, within=_BIRTH_LIMIT_S)
        await top.answers(
            "\x1b", lambda screen: not any(" of " in row for row in screen[:4]), "all", within=_SHOWN_LIMIT_S
        )
        await _narrow(top, _STEERED, 2)
        name = f"{_STEERED}/{next(iter(made.clients))}"
        await top.shows(lambda screen: chosen(screen) == name, name, within=_SHOWN_LIMIT_S)
        return max([await _restart(top, real, name) for _ in range(_RESTARTS)])


async def _restart(top: Terminal, real: BenchDaemon, name: str) -> float:
    """Seconds from the key that confirms it until it is answered on the screen, and the tunnel is up on a new link."""
    tunnel = name.partition("/")[2]
    link = (await real.tunnel(tunnel))["link"]

    def asks(screen: Screen) -> bool:
        return any(f"Restart {name}?" in row for row in screen)

    await top.answers("r", asks, "a question", within=_SHOWN_LIMIT_S)
    pressed = time.perf_counter()
    await top.answers(_CONFIRM, lambda screen: any(f"{name} is restarted" in row for row in screen), "an answer")
    while (seen := await real.tunnel(tunnel))["link"] in {link, None} or seen["state"] != "up":
        if time.perf_counter() - pressed > _SHOWN_LIMIT_S:
            raise BenchError(f"{name} did not come up again within {_SHOWN_LIMIT_S:.0f} s")
        await asyncio.sleep(_POLL_S / 20)
    took = time.perf_counter() - pressed
    await asyncio.sleep(_SETTLING_S)  # until the answer is gone from the screen
    return took

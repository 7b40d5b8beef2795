"""A fleet whose tunnels are made up and whose words are real: each host is the publisher of a daemon, over numbers
that move by themselves.

``python -m tests.fleet_simulator mqtt://127.0.0.1:1883`` runs 200 hosts of 50 tunnels in one process until SIGTERM; it
says ``ready`` when all of them have told everything. SIGUSR1 takes the first tunnel of the first host out of service,
or back into it. Commands over the broker are obeyed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import random
import signal
import sys
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, cast

from orchestrator.mqtt.broker import Broker
from orchestrator.mqtt.commands import CommandHandler
from orchestrator.mqtt.payloads import DaemonRun
from orchestrator.mqtt.publisher import Publisher
from orchestrator.mqtt.session import BrokerClient
from orchestrator.mqtt.topics import HostTopics
from orchestrator.process.task_scope import task_scope
from orchestrator.supervisor.control import ControlService
from orchestrator.supervisor.event_bus import EventBus
from orchestrator.supervisor.runner import stopped_snapshot
from orchestrator.supervisor.supervisor import Supervisor, UnknownTunnelError
from tunnel.model.options import make_spec
from tunnel.model.snapshot import Snapshot
from tunnel.model.spec import LogLevel
from tunnel.model.state import State
from tunnel.model.times import format_timestamp
from tunnel.model.url import parse_url

HOSTS: Final = 200
TUNNELS: Final = 50
BUSY: Final = 0.1
"""The part of the tunnels that carry traffic, so that their numbers change all the time."""
FLAPS: Final = 1.0
"""Tunnels of the whole fleet that change their state each second."""

REASON: Final = "the target 10.0.0.1:5432 cannot be reached: it refused the connection"

_BEAT: Final = 1.0  # seconds between two changes of the numbers
_AT_ONCE: Final = 20  # hosts that are born together
_BIRTH: Final = 60.0  # seconds in which all have to be born
_LOOK: Final = 0.05
_FAREWELL: Final = 30.0  # seconds for the last words of all
_OUT: Final = 5  # tunnels that are out of service at a time


def name_of_host(number: int) -> str:
    """The hosts' names, counted from 0."""
    return f"sim-{number:03}"


def name_of_tunnel(number: int) -> str:
    """The tunnels' names on each host, counted from 0; the even ones are servers."""
    return f"tunnel-{number:02}"


class MadeUpTunnels:
    """What a supervisor's tunnels would be to those who look on and to those who command."""

    def __init__(self, host: int, hosts: int, count: int, busy: float) -> None:
        self.bus = EventBus()
        self.tunnels = {seen.name: seen for seen in (_tunnel(host, hosts, number) for number in range(count))}
        self.busy = tuple(self.tunnels)[: round(busy * count)]

    def snapshots(self) -> tuple[Snapshot, ...]:
        """All of them now."""
        return tuple(self.each())

    def each(self) -> Iterator[Snapshot]:
        """The same, each as it is asked for."""
        yield from tuple(self.tunnels.values())

    def snapshot(self, name: str) -> Snapshot:
        """One of them now."""
        if name not in self.tunnels:
            raise UnknownTunnelError(name)
        return self.tunnels[name]

    @property
    def is_ready(self) -> bool:
        """Commands are welcome."""
        return True

    def head(self) -> dict[str, Any]:
        """The status without the tunnels."""
        return {"generation": 1, "config": {"ok": True, "error": None}, "mqtt": {"state": "off"}}

    def carry(self) -> None:
        """The busy ones have served some more visitors."""
        for name in self.busy:
            seen = self.tunnels[name]
            if seen.state is State.UP:
                self.tunnels[name] = _after_traffic(seen)

    def enter(self, name: str, state: State, reason: str | None = None) -> None:
        """A tunnel changes its state, as its engine would tell."""
        seen = replace(self.snapshot(name), state=state, reason=reason, since=format_timestamp(time.time()))
        idle = seen.pool.capacity if state is State.UP else 0
        attempt = 1 if state is State.COOLDOWN else 0
        self.tunnels[name] = replace(
            seen,
            pool=replace(seen.pool, idle=idle),
            connections=replace(seen.connections, active=0),
            cooldown=replace(seen.cooldown, attempt=attempt, remaining_s=float(attempt)),
        )
        level = LogLevel.WARN if state is State.COOLDOWN else LogLevel.INFO
        self.bus.emit(level, "state", f"{state}: {reason}" if reason else str(state), tunnel=name)

    def toggle(self, name: str) -> None:
        """Out of service, or back."""
        if self.snapshot(name).state is State.UP:
            self.enter(name, State.COOLDOWN, REASON)
        else:
            self.enter(name, State.UP)

    # what commands do, all of it at once, for there is nobody to wait for

    def start(self, name: str) -> None:
        """Run it."""
        self.enter(name, State.UP)

    def retry(self, name: str) -> None:
        """Its target is there again."""
        self.enter(name, State.UP)

    def stop(self, name: str, timeout: float | None = None) -> None:
        """Let it rest."""
        self.enter(name, State.STOPPED)

    def drain(self, name: str, timeout: float | None = None) -> None:
        """Let it rest."""
        self.enter(name, State.STOPPED)

    def restart(self, name: str, timeout: float | None = None) -> None:
        """Run it anew."""
        self.enter(name, State.CONNECTING)
        self.enter(name, State.UP)


def _tunnel(host: int, hosts: int, number: int) -> Snapshot:
    """A server has its client on the next host, as the tunnel after it."""
    is_server = number % 2 == 0
    home = host if is_server else (host - 1) % hosts
    pair = number - number % 2
    port = 10_000 + pair
    address = f"10.0.{home}.1:{port}"
    url = f"server://{address}/0.0.0.0:{port + 1}" if is_server else f"client://{address}/127.0.0.1:8080"
    resting = stopped_snapshot(name_of_tunnel(number), make_spec(parse_url(url)))
    return replace(
        resting,
        state=State.UP,
        direction="reverse",
        data_addr=f"10.0.{home}.1:{port + 20_000}",
        peer=f"10.0.{(home + 1) % hosts if is_server else home}.1:{port + 30_000}",
        link=f"{home:08x}{pair:08x}",
        auth="key",
        tags=("prod",) if pair % 4 else ("test",),
        pool=replace(resting.pool, idle=8, capacity=8),
        rtt_ms=0.4,
    )


def _after_traffic(seen: Snapshot) -> Snapshot:
    visitors = random.randrange(1, 30)
    return replace(
        seen,
        connections=replace(seen.connections, active=random.randrange(1, 60), total=seen.connections.total + visitors),
        signals=replace(seen.signals, total=seen.signals.total + visitors),
        bytes=replace(
            seen.bytes,
            from_visitors=seen.bytes.from_visitors + 1_000 * visitors,
            to_visitors=seen.bytes.to_visitors + 50_000 * visitors,
        ),
        pool=replace(seen.pool, idle=random.randrange(1, 9)),
        rtt_ms=round(random.uniform(0.3, 30.0), 2),
    )


@dataclass(frozen=True, slots=True)
class SimulatedHost:
    """One host: its tunnels, and who speaks for them."""

    name: str
    tunnels: MadeUpTunnels
    publisher: Publisher

    @property
    def has_told_all(self) -> bool:
        """Whether nothing waits to be told to the broker."""
        return self.publisher.has_published_all


def make_host(broker: Broker, number: int, hosts: int, tunnels: int, busy: float) -> SimulatedHost:
    """A host that is not on the broker yet."""
    name = name_of_host(number)
    made_up = MadeUpTunnels(number, hosts, tunnels, busy)
    control = ControlService(cast("Supervisor", made_up))  # of a supervisor it needs no more than that
    run = DaemonRun(str(uuid.UUID(int=number)), uuid.uuid4().hex, time.time())
    handler = CommandHandler(control, HostTopics(name), run.boot, is_enabled=True)
    publisher = Publisher(control, BrokerClient(broker, f"np-{name}"), host=name, run=run, handler=handler)
    control.mqtt = publisher.status
    return SimulatedHost(name, made_up, publisher)


@contextlib.asynccontextmanager
async def simulated_fleet(
    broker: Broker, *, hosts: int = HOSTS, tunnels: int = TUNNELS, busy: float = BUSY, flaps: float = FLAPS
) -> AsyncIterator[Sequence[SimulatedHost]]:
    """Hosts that live on the broker as long as the block does; entered when all have told everything.

    Raises TimeoutError where the broker does not take it.
    """
    fleet = [make_host(broker, number, hosts, tunnels, busy) for number in range(hosts)]
    lives: list[asyncio.Task[None]] = []
    try:
        async with asyncio.timeout(_BIRTH):
            for first in range(0, hosts, _AT_ONCE):
                born = fleet[first : first + _AT_ONCE]
                lives += [asyncio.create_task(host.publisher.run()) for host in born]
                await _told(born)
        async with task_scope() as start:
            start(_carry(fleet))
            if flaps:
                start(_flap(fleet, 1 / flaps))
            yield fleet
    finally:
        for host in fleet:
            host.publisher.close()
        if lives:
            await asyncio.wait(lives, timeout=_FAREWELL)
        for life in lives:
            life.cancel()
        await asyncio.gather(*lives, return_exceptions=True)


async def _told(hosts: Sequence[SimulatedHost]) -> None:
    while not all(host.has_told_all for host in hosts):  # noqa: ASYNC110  nobody signals that
        await asyncio.sleep(_LOOK)


async def _carry(fleet: Sequence[SimulatedHost]) -> None:
    for host in itertools.cycle(fleet):
        host.tunnels.carry()
        await asyncio.sleep(_BEAT / len(fleet))  # real hosts do not keep time with one another either


async def _flap(fleet: Sequence[SimulatedHost], pause: float) -> None:
    out: deque[tuple[MadeUpTunnels, str]] = deque()
    while True:
        await asyncio.sleep(pause)
        if len(out) < _OUT:
            tunnels = random.choice(fleet[1:] or fleet).tunnels  # the first host's are left to whoever asks
            out.append((tunnels, random.choice(tuple(tunnels.tunnels))))
            tunnels.enter(out[-1][1], State.COOLDOWN, REASON)
        else:
            tunnels, name = out.popleft()
            tunnels.enter(name, State.UP)


async def _main(url: str, hosts: int, tunnels: int, busy: float, flaps: float) -> None:
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, over.set)
    async with simulated_fleet(Broker.from_url(url), hosts=hosts, tunnels=tunnels, busy=busy, flaps=flaps) as fleet:
        loop.add_signal_handler(signal.SIGUSR1, fleet[0].tunnels.toggle, name_of_tunnel(0))
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await over.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Many hosts on a broker, in one process.")
    parser.add_argument("url", help="mqtt://HOST:PORT")
    parser.add_argument("--hosts", type=int, default=HOSTS)
    parser.add_argument("--tunnels", type=int, default=TUNNELS, help="of each host (%(default)s)")
    parser.add_argument("--busy", type=float, default=BUSY, help="part of them whose numbers change (%(default)s)")
    parser.add_argument("--flaps", type=float, default=FLAPS, help="changes of state per second in all (%(default)s)")
    given = parser.parse_args()
    asyncio.run(_main(given.url, given.hosts, given.tunnels, given.busy, given.flaps))

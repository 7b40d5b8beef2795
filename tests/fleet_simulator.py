"""A simulated fleet: each host is the real publisher of a daemon, with invented tunnels whose numbers change.

``python -m tests.fleet_simulator mqtt://127.0.0.1:1883`` runs 200 hosts of 50 tunnels in one process until SIGTERM. It
prints ``ready`` when all of them have published everything. SIGUSR1 takes the first tunnel of the first host out of
service, or back into it. Commands over the broker are executed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import gc
import itertools
import random
import signal
import sys
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, cast

from orchestrator.mqtt.broker import Broker
from orchestrator.mqtt.commands import CommandHandler
from orchestrator.mqtt.payloads import DaemonRun
from orchestrator.mqtt.publisher import Publisher
from orchestrator.mqtt.session import BrokerClient
from orchestrator.mqtt.topics import HostTopics
from orchestrator.process.setup import handle_signal
from orchestrator.process.task_scope import task_scope
from orchestrator.status.contract import ConfigStatus
from orchestrator.status.store import snapshot_store
from orchestrator.supervisor.control import ControlService
from orchestrator.supervisor.event_bus import EventBus
from orchestrator.supervisor.registry import UnknownTunnelError
from orchestrator.supervisor.runner import stopped_snapshot
from orchestrator.supervisor.supervisor import Supervisor
from tunnel.model.events import EventKind
from tunnel.model.options import make_spec
from tunnel.model.snapshot import Snapshot
from tunnel.model.spec import LogLevel
from tunnel.model.state import State
from tunnel.model.times import format_timestamp
from tunnel.model.url import parse_url

HOSTS: Final = 200
TUNNELS: Final = 50
BUSY: Final = 0.1
"""Share of the tunnels with traffic, whose numbers change all the time."""
FLAPS: Final = 1.0
"""State changes per second in the whole fleet."""

REASON: Final = "the target 10.0.0.1:5432 cannot be reached: it refused the connection"

_CHANGE_INTERVAL_S: Final = 1.0  # between two changes of the numbers
_START_BATCH: Final = 20  # hosts that connect at the same time
_START_TIMEOUT_S: Final = 180.0  # until all hosts are online
_POLL_INTERVAL_S: Final = 0.05
_SHUTDOWN_TIMEOUT_S: Final = 30.0  # until all hosts are offline
_MAX_OUT_OF_SERVICE: Final = 5  # tunnels at a time
_GC_THRESHOLD: Final = 200_000  # new objects


def name_of_host(number: int) -> str:
    """Return the name of a host, counted from 0."""
    return f"sim-{number:03}"


def name_of_tunnel(number: int) -> str:
    """Return the name of a tunnel, counted from 0 on each host. Even numbers are servers."""
    return f"tunnel-{number:02}"


class SimulatedTunnels:
    """Invented tunnels with the part of the supervisor's interface that status readers and commands use."""

    generation = 1
    is_started = True

    def __init__(self, host: int, hosts: int, count: int, busy: float) -> None:
        self.bus = EventBus()
        self.store = snapshot_store()
        self.tunnels = {seen.name: seen for seen in (_tunnel(host, hosts, number) for number in range(count))}
        self.busy = tuple(self.tunnels)[: round(busy * count)]
        self._started_at = format_timestamp(time.time())

    async def refresh(self, within_s: float = 0.0, *, everything: bool = False) -> None:
        """Bring the store up to date."""
        for name, snapshot in self.tunnels.items():
            self.store.update(name, snapshot)

    def config_status(self) -> ConfigStatus:
        """Return the status of a file that does not exist."""
        return ConfigStatus(path="simulated.yaml", ok=True, loaded_at=self._started_at)

    def snapshots(self) -> tuple[Snapshot, ...]:
        """Return the snapshots of all tunnels."""
        return tuple(self.tunnels.values())

    def snapshot(self, name: str) -> Snapshot:
        """Return the snapshot of one tunnel. Raises UnknownTunnelError."""
        if name not in self.tunnels:
            raise UnknownTunnelError(name)
        return self.tunnels[name]

    def add_traffic(self) -> None:
        """Add visitors to the busy tunnels."""
        for name in self.busy:
            seen = self.tunnels[name]
            if seen.state is State.UP:
                self.tunnels[name] = _after_traffic(seen)

    def enter(self, name: str, state: State, reason: str | None = None) -> None:
        """Change the state of a tunnel, with the event that its engine would emit."""
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
        self.bus.emit(level, EventKind.STATE, f"{state}: {reason}" if reason else str(state), tunnel=name)

    def toggle(self, name: str) -> None:
        """Take a tunnel out of service, or back into service."""
        if self.snapshot(name).state is State.UP:
            self.enter(name, State.COOLDOWN, REASON)
        else:
            self.enter(name, State.UP)

    # commands take effect at once, because no visitor has to be waited for

    def start(self, name: str) -> None:
        """Start a tunnel, which is up at once."""
        self.enter(name, State.UP)

    def retry(self, name: str) -> None:
        """End the cooldown of a tunnel successfully."""
        self.enter(name, State.UP)

    def stop(self, name: str, timeout: float | None = None) -> None:
        """Stop a tunnel at once, as if it had no visitors."""
        self.enter(name, State.STOPPED)

    def drain(self, name: str, timeout: float | None = None) -> None:
        """Drain a tunnel, which has no visitors to wait for."""
        self.enter(name, State.STOPPED)

    def restart(self, name: str, timeout: float | None = None) -> None:
        """Restart a tunnel by way of connecting."""
        self.enter(name, State.CONNECTING)
        self.enter(name, State.UP)


def _ip_of_host(number: int) -> str:
    return f"10.{number >> 8}.{number & 0xFF}.1"


def _tunnel(host: int, hosts: int, number: int) -> Snapshot:
    """Return an initial snapshot. The client of a server is the next tunnel on the next host."""
    is_server = number % 2 == 0
    home = host if is_server else (host - 1) % hosts
    pair = number - number % 2
    port = 10_000 + pair
    address = f"{_ip_of_host(home)}:{port}"
    url = f"server://{address}/0.0.0.0:{port + 1}" if is_server else f"client://{address}/127.0.0.1:8080"
    resting = stopped_snapshot(name_of_tunnel(number), make_spec(parse_url(url)))
    return replace(
        resting,
        state=State.UP,
        direction="reverse",
        data_addr=f"{_ip_of_host(home)}:{port + 20_000}",
        peer=f"{_ip_of_host((home + 1) % hosts if is_server else home)}:{port + 30_000}",
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
    """One host: its tunnels and their publisher."""

    name: str
    tunnels: SimulatedTunnels
    publisher: Publisher


def make_host(broker: Broker, number: int, hosts: int, tunnels: int, busy: float) -> SimulatedHost:
    """Make a host that is not connected yet."""
    name = name_of_host(number)
    simulated = SimulatedTunnels(number, hosts, tunnels, busy)
    control = ControlService(cast("Supervisor", simulated))  # it uses only this part of a supervisor
    run = DaemonRun(str(uuid.UUID(int=number)), uuid.uuid4().hex, time.time())
    handler = CommandHandler(control, HostTopics(name), run.boot, is_enabled=True)
    publisher = Publisher(control, BrokerClient(broker, f"np-{name}"), host=name, run=run, handler=handler)
    control.set_broker_status(publisher.status)
    return SimulatedHost(name, simulated, publisher)


@contextlib.asynccontextmanager
async def simulated_fleet(
    broker: Broker, *, hosts: int = HOSTS, tunnels: int = TUNNELS, busy: float = BUSY, flaps: float = FLAPS
) -> AsyncIterator[Sequence[SimulatedHost]]:
    """Run the hosts for the duration of the block, which starts when all have published everything.

    Raises TimeoutError if the broker does not accept that in time.
    """
    fleet = [make_host(broker, number, hosts, tunnels, busy) for number in range(hosts)]
    tasks: list[asyncio.Task[None]] = []
    try:
        async with asyncio.timeout(_START_TIMEOUT_S):
            for first in range(0, hosts, _START_BATCH):
                batch = fleet[first : first + _START_BATCH]
                tasks += [asyncio.create_task(host.publisher.run()) for host in batch]
                await _wait_published(batch)
        async with task_scope() as start:
            start(_generate_traffic(fleet))
            if flaps:
                start(_change_states(fleet, 1 / flaps))
            yield fleet
    finally:
        for host in fleet:
            host.publisher.close()
        if tasks:
            await asyncio.wait(tasks, timeout=_SHUTDOWN_TIMEOUT_S)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _wait_published(hosts: Sequence[SimulatedHost]) -> None:
    while not all(host.publisher.has_published_all for host in hosts):  # noqa: ASYNC110  publishers have no event for it
        await asyncio.sleep(_POLL_INTERVAL_S)


async def _generate_traffic(fleet: Sequence[SimulatedHost]) -> None:
    for host in itertools.cycle(fleet):
        host.tunnels.add_traffic()
        await asyncio.sleep(_CHANGE_INTERVAL_S / len(fleet))  # spread over the interval, as with real hosts


async def _change_states(fleet: Sequence[SimulatedHost], pause: float) -> None:
    out: deque[tuple[SimulatedTunnels, str]] = deque()
    while True:
        await asyncio.sleep(pause)
        if len(out) < _MAX_OUT_OF_SERVICE:
            tunnels = random.choice(fleet[1:] or fleet).tunnels  # the first host changes on request only
            out.append((tunnels, random.choice(tuple(tunnels.tunnels))))
            tunnels.enter(out[-1][1], State.COOLDOWN, REASON)
        else:
            tunnels, name = out.popleft()
            tunnels.enter(name, State.UP)


async def _main(url: str, hosts: int, tunnels: int, busy: float, flaps: float) -> None:
    stopped = asyncio.Event()
    # a search of a thousand hosts for garbage would delay their messages by seconds
    gc.set_threshold(_GC_THRESHOLD, 20, 1000)
    for number in (signal.SIGTERM, signal.SIGINT):
        handle_signal(number, stopped.set)
    async with simulated_fleet(Broker.from_url(url), hosts=hosts, tunnels=tunnels, busy=busy, flaps=flaps) as fleet:
        handle_signal(signal.SIGUSR1, functools.partial(fleet[0].tunnels.toggle, name_of_tunnel(0)))
        gc.freeze()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await stopped.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Simulate many hosts on a broker in one process.")
    parser.add_argument("url", help="mqtt://HOST:PORT")
    parser.add_argument("--hosts", type=int, default=HOSTS)
    parser.add_argument("--tunnels", type=int, default=TUNNELS, help="tunnels per host (default: %(default)s)")
    parser.add_argument(
        "--busy", type=float, default=BUSY, help="share of the tunnels with traffic (default: %(default)s)"
    )
    parser.add_argument(
        "--flaps", type=float, default=FLAPS, help="state changes per second in the whole fleet (default: %(default)s)"
    )
    given = parser.parse_args()
    asyncio.run(_main(given.url, given.hosts, given.tunnels, given.busy, given.flaps))

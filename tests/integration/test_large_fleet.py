"""A fleet larger than what a broker holds ready for one reader, in made-up tunnels and real words."""

from __future__ import annotations

import asyncio
import time

import pytest

from orchestrator.link_routes import link_routes
from orchestrator.mqtt import publisher
from orchestrator.mqtt.broker import Broker
from orchestrator.mqtt.fleet import GONE, ONLINE
from orchestrator.mqtt.publications import MIN_STATE_INTERVAL_S
from orchestrator.mqtt.reader import FleetReader
from tests.fleet_simulator import make_host, name_of_host, name_of_tunnel, simulated_fleet
from tests.integration.test_fleet import Mosquitto, wait_offline
from tests.integration.test_programs import needs
from tests.support.processes import ProcessHarness
from tests.support.waiting import wait_until_async

pytestmark = needs("mosquitto")

HOSTS, TUNNELS = 60, 50


def shown(reader: FleetReader, host: str, tunnel: str) -> str | None:
    """The tunnel's state in the reader's picture, if it is there."""
    known = reader.fleet.hosts.get(host)
    tunnels = known.tunnels() if known else []
    return next((seen["state"] for seen in tunnels if seen["name"] == tunnel), None)


async def test_all_tunnels_of_many_hosts_are_read_and_controlled(harness: ProcessHarness) -> None:
    broker = Broker.from_url(harness.close_at_end(Mosquitto(harness.directory / "broker")).url)
    first, tunnel = name_of_host(0), name_of_tunnel(0)
    async with simulated_fleet(broker, hosts=HOSTS, tunnels=TUNNELS, flaps=0) as fleet:
        reader = FleetReader(broker, with_stats=True)
        async with reader.connected():
            assert {host.presence(time.monotonic()) for host in reader.fleet} == {ONLINE}
            assert [len(host.tunnels()) for host in reader.fleet] == [TUNNELS] * HOSTS
            routes = link_routes(reader.fleet, time.monotonic())
            assert len(routes) == HOSTS * TUNNELS // 2
            assert all(route.is_up for route in routes)
            fleet[0].tunnels.toggle(tunnel)
            await wait_until_async(lambda: shown(reader, first, tunnel) == "cooldown", "the cooldown is shown")
            answer = await reader.send_command(first, "retry", tunnel)
            assert answer.ok, answer
            await wait_until_async(lambda: shown(reader, first, tunnel) == "up", "the end of the cooldown is shown")
        chosen = FleetReader(broker, wants_tunnels=first.__eq__)
        async with chosen.connected():
            counts = {host.name: len(host.tunnels()) for host in chosen.fleet}
            assert (len(counts), counts[first], sum(counts.values())) == (HOSTS, TUNNELS, TUNNELS)
    reader = FleetReader(broker)
    async with reader.connected():
        gone = {GONE}
        await wait_until_async(
            lambda: {host.presence(time.monotonic()) for host in reader.fleet} == gone, "all are offline"
        )


async def unconfirmed(*_: object) -> None:
    """Publish to a broker that does not confirm."""
    await asyncio.Event().wait()


async def test_a_host_without_time_for_its_offline_status_relies_on_its_will(
    harness: ProcessHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = Broker.from_url(harness.close_at_end(Mosquitto(harness.directory / "broker")).url)
    reader, host = FleetReader(broker), name_of_host(1)
    async with reader.connected():
        async with simulated_fleet(broker, hosts=2, tunnels=4, busy=0, flaps=0) as fleet:
            await wait_until_async(lambda: shown(reader, host, name_of_tunnel(3)) == "up", "its tunnels are shown")
            monkeypatch.setattr(publisher, "_OFFLINE_TIMEOUT_S", 0.1)
            monkeypatch.setattr(publisher, "publish_all", unconfirmed)
            for _ in range(2):  # one state that is being published, and one that waits
                await asyncio.sleep(MIN_STATE_INTERVAL_S)
                fleet[1].tunnels.toggle(name_of_tunnel(3))
        await wait_until_async(lambda: reader.fleet.hosts[host].presence(time.monotonic()) == GONE, "it is offline")


async def test_a_host_that_comes_online_later_is_read_completely(harness: ProcessHarness) -> None:
    broker = Broker.from_url(harness.close_at_end(Mosquitto(harness.directory / "broker")).url)
    reader, host = FleetReader(broker), name_of_host(1)
    async with reader.connected():
        assert not reader.fleet.hosts
        async with simulated_fleet(broker, hosts=2, tunnels=4, busy=0, flaps=0):
            tunnels = [name_of_tunnel(number) for number in range(4)]
            await wait_until_async(
                lambda: [shown(reader, host, tunnel) for tunnel in tunnels] == ["up"] * 4, "all are shown"
            )
        await wait_until_async(lambda: reader.fleet.hosts[host].presence(time.monotonic()) == GONE, "it is offline")


async def test_the_broker_publishes_the_last_will_of_a_publisher_that_is_cancelled(harness: ProcessHarness) -> None:
    """A daemon cancels it if the broker confirms too slowly. DISCONNECT would withdraw the last will."""
    broker = harness.close_at_end(Mosquitto(harness.directory / "broker"))
    host = make_host(Broker.from_url(broker.url), 0, 1, 2, 0.0)
    publishing = asyncio.create_task(host.publisher.run())
    await wait_until_async(lambda: host.publisher.has_published_all, "the host is online")
    publishing.cancel()
    await asyncio.wait([publishing])
    wait_offline(broker, host.name)

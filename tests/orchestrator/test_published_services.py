"""Clients publish services at a running gateway: opened, shown, limited, handed over, removed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from orchestrator.config.load import load
from orchestrator.status.contract import encode_snapshot
from orchestrator.supervisor.supervisor import Supervisor
from orchestrator.table import format_table
from tests.support.engine_parts import shared_parts
from tests.support.ports import free_ports
from tests.support.scale import GUARD_S
from tests.support.waiting import wait_until_async
from tests.tunnel.test_engine import echo, round_trip
from tests.tunnel.test_udp import peer as udp_peer
from tunnel.engine.context import EngineContext
from tunnel.engine.factory import create_engine
from tunnel.model.keys import generate_key
from tunnel.model.snapshot import Snapshot
from tunnel.model.state import State

KEYS = {name: generate_key() for name in ("alice", "bob")}


class PublishingHarness:
    """A gateway whose file lets two keys publish, and clients in a supervisor of their own."""

    def __init__(self, folder: Path, shared: EngineContext) -> None:
        self.tunnel, self.target, *self.ports = sorted(free_ports(8))
        self.folder = folder
        self._shared = shared
        self.ends: dict[str, Supervisor] = {}
        self._lives: list[asyncio.Task[None]] = []

    @property
    def gateway(self) -> Supervisor:
        return self.ends["gateway"]

    def rules(
        self, grace: str = "60s", more: str = "", keys: tuple[str, ...] = ("alice", "bob"), options: str = ""
    ) -> str:
        ports = ",".join(map(str, self.ports))
        named = ", ".join(f"{name}: {KEYS[name]}" for name in keys)
        rule = f"{{address: 127.0.0.1, ports: '{ports}', services: 'team-*', grace: {grace}, max_services: 2{more}}}"
        return f"  gw: {{url: 'server://127.0.0.1:{self.tunnel}', keys: {{{named}}}, publish: {rule}{options}}}\n"

    def client(self, name: str, service: str, port: int | None, key: str, options: str = "") -> str:
        wanted = options + ("" if port is None else f"&publish={port}")
        url = f"client://127.0.0.1:{self.tunnel}/127.0.0.1:{self.target}?service={service}{wanted}"
        return f"  {name}: {{url: '{url}&client_cooldown=50ms', key: {KEYS.get(key, key)}}}\n"

    def start(self, end: str, tunnels: str) -> None:
        factory = lambda name, spec, sink: partial(create_engine, context=self._shared)(name, spec, sink=sink)  # noqa: E731
        self.ends[end] = Supervisor(load(self._write(end, tunnels), {}), engine_factory=factory)
        if end == "gateway":
            self._shared.publisher = self.gateway.published
        self._lives.append(asyncio.create_task(self.ends[end].run()))

    def _write(self, end: str, tunnels: str) -> Path:
        file = self.folder / f"{end}.yaml"
        file.write_text(f"version: 1\ntunnels:\n{tunnels}")
        return file

    async def reload(self, end: str, tunnels: str) -> None:
        self._write(end, tunnels)
        result = await self.ends[end].reload()
        assert result.is_ok, result

    def seen(self, end: str, name: str) -> Snapshot:
        return self.ends[end].snapshot(name)

    async def wait_state(self, end: str, name: str, state: State) -> None:
        def is_so() -> bool:
            return name in self.ends[end].names() and self.seen(end, name).state is state

        await wait_until_async(is_so, f"{name} is {state}")

    async def wait_reason(self, name: str, part: str) -> None:
        await wait_until_async(lambda: part in (self.seen("clients", name).reason or ""), f"{name}: {part}")

    async def wait_gone(self, name: str) -> None:
        await wait_until_async(lambda: name not in self.gateway.names(), f"{name} is gone")

    async def end(self) -> None:
        for supervisor in self.ends.values():
            supervisor.close()
        async with asyncio.timeout(GUARD_S):
            await asyncio.gather(*self._lives)


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[PublishingHarness]:
    async with shared_parts() as shared:
        found = PublishingHarness(tmp_path, shared)
        try:
            yield found
        finally:
            await found.end()


async def test_a_client_publishes_a_service_which_is_removed_after_its_client_has_left(
    harness: PublishingHarness,
) -> None:
    harness.start("gateway", harness.rules(grace="50ms", more=", visitors: 7"))
    await harness.wait_state("gateway", "gw", State.UP)
    async with echo(port=harness.target):
        harness.start("clients", harness.client("c", "team-web", harness.ports[0], "alice"))
        await harness.wait_state("gateway", "gw/team-web", State.UP)
        await round_trip(f"127.0.0.1:{harness.ports[0]}", 1000)
    seen = harness.seen("gateway", "gw/team-web")
    assert (seen.published_by, seen.key_name, seen.service) == ("alice", "alice", "team-web")
    assert seen.connections.limit == 7
    assert harness.gateway.details("gw/team-web")["url"].endswith(f":{harness.ports[0]}?service=team-web")
    tunnels = [encode_snapshot(one) for one in harness.gateway.snapshots()]
    assert "PUBLISHED BY" in format_table(tunnels, columns=None, paint=lambda text, _: text)
    await harness.reload("clients", "")
    await harness.wait_gone("gw/team-web")
    assert list(harness.gateway.names()) == ["gw"]


async def test_a_reload_shortens_and_lengthens_the_grace_of_a_client_that_is_away(harness: PublishingHarness) -> None:
    harness.start("gateway", harness.rules(grace="1h"))
    first, second = (harness.client(n, f"team-{n}", p, "alice") for n, p in zip("ab", harness.ports, strict=False))
    harness.start("clients", first + second)
    for name in ("gw/team-a", "gw/team-b"):
        await harness.wait_state("gateway", name, State.UP)
    await harness.reload("clients", second)
    await harness.wait_state("gateway", "gw/team-a", State.WAITING)
    await harness.reload("gateway", harness.rules(grace="2h"))
    assert "gw/team-a" in harness.gateway.names()
    await harness.reload("gateway", harness.rules(grace="50ms"))
    await harness.wait_gone("gw/team-a")
    assert harness.seen("gateway", "gw/team-b").state is State.UP
    await harness.reload("gateway", harness.rules(grace="1h"))
    await harness.reload("clients", "")
    await harness.wait_state("gateway", "gw/team-b", State.WAITING)


async def test_a_service_of_udp_is_published_and_a_client_of_tcp_is_refused(harness: PublishingHarness) -> None:
    harness.start("gateway", harness.rules(options=", proto: udp"))
    first, second, *_ = harness.ports
    with udp_peer(port=harness.target) as target, udp_peer(to=f"127.0.0.1:{first}") as visitor:
        harness.start(
            "clients",
            harness.client("c", "team-dns", first, "alice", "&proto=udp")
            + harness.client("t", "team-web", second, "bob"),
        )
        await harness.wait_state("gateway", "gw/team-dns", State.UP)
        await wait_until_async(
            lambda: harness.seen("gateway", "gw/team-dns").links[0].udp_carrier, "the carrier is known"
        )
        visitor.sock.send(b"a question")
        question, source = await target.receive_from()
        target.sock.sendto(b"an answer", source)
        assert (question, await visitor.receive()) == (b"a question", b"an answer")
        await harness.wait_reason("t", "the client has proto=tcp, but the server udp; write the same at both ends")
    assert list(harness.gateway.names()) == ["gw", "gw/team-dns"], "nothing was opened for the other client"
    assert harness.seen("gateway", "gw/team-dns").proto == "udp"
    assert harness.seen("gateway", "gw/team-dns").connections.active == 1


async def test_a_service_of_both_protocols_has_both_on_the_port_that_its_client_asked_for(
    harness: PublishingHarness,
) -> None:
    port = harness.ports[0]
    with udp_peer(port=harness.target) as target, udp_peer(to=f"127.0.0.1:{port}") as visitor:
        async with echo(port=harness.target):
            harness.start("gateway", harness.rules(options=", proto: both"))
            harness.start("clients", harness.client("c", "team-dns", port, "alice", "&proto=both"))
            await harness.wait_state("gateway", "gw/team-dns", State.UP)
            await round_trip(f"127.0.0.1:{port}", 1000)
        visitor.sock.send(b"a question")
        question, source = await target.receive_from()
        target.sock.sendto(b"an answer", source)
        assert (question, await visitor.receive()) == (b"a question", b"an answer")
    assert harness.seen("gateway", "gw/team-dns").proto == "both"


async def test_a_client_that_returns_in_time_finds_its_tunnel(harness: PublishingHarness) -> None:
    harness.start("gateway", harness.rules())
    client = harness.client("c", "team-web", harness.ports[0], "alice")
    harness.start("clients", client)
    await harness.wait_state("gateway", "gw/team-web", State.UP)
    await harness.reload("clients", "")
    await harness.wait_state("gateway", "gw/team-web", State.WAITING)
    await harness.reload("clients", client)
    await harness.wait_state("gateway", "gw/team-web", State.UP)
    await harness.reload("clients", "")
    await harness.wait_state("gateway", "gw/team-web", State.WAITING)
    await harness.reload("clients", harness.client("c", "team-web", harness.ports[1], "alice"))
    await harness.wait_state("gateway", "gw/team-web", State.UP)
    assert harness.seen("gateway", "gw/team-web").target_addr == f"127.0.0.1:{harness.ports[1]}"
    harness.gateway.stop("gw/team-web")
    await harness.wait_reason("c", "is stopped at the server: stopped by command")
    await harness.reload("clients", harness.client("d", "team-web", harness.ports[2], "alice"))
    await harness.wait_reason("d", "is stopped at the server: stopped by command")


async def test_what_is_not_allowed_is_refused_with_the_reason_at_both_ends(harness: PublishingHarness) -> None:
    first, second, third, taken, *_ = harness.ports
    harness.start("gateway", harness.rules())
    harness.start("clients", harness.client("c", "team-web", first, "alice"))
    await harness.wait_state("gateway", "gw/team-web", State.UP)
    async with echo(port=taken):
        await harness.reload(
            "clients",
            harness.client("c", "team-web", first, "alice")
            + harness.client("same", "team-web", second, "alice")
            + harness.client("name", "team-web", second, "bob")
            + harness.client("port", "team-b", first, "bob")
            + harness.client("rule", "other", second, "bob")
            + harness.client("busy", "team-x", taken, "bob")
            + harness.client("none", "team-y", None, "bob")
            + harness.client("wrong", "team-z", third, generate_key()),
        )
        await harness.wait_reason("same", f"published on 127.0.0.1:{first}, and its client is present")
        await harness.wait_reason("name", "published by the client with another key")
        await harness.wait_reason("port", f"127.0.0.1:{first} is in use by another published service")
        await harness.wait_reason("rule", "the key bob may not publish a service named other")
        await harness.wait_reason("busy", f"cannot listen on 127.0.0.1:{taken} for visitors")
        await harness.wait_reason("none", "a client that publishes it writes publish=PORT")
        await harness.wait_reason("wrong", "refused: most likely the keys or the service names differ")
    assert list(harness.gateway.names()) == ["gw", "gw/team-web"]
    assert "refused a client from 127.0.0.1" in (harness.seen("gateway", "gw").last_error or "")


async def test_a_key_has_no_more_services_than_its_rule_says(harness: PublishingHarness) -> None:
    harness.start("gateway", harness.rules())
    ports = harness.ports
    three = "".join(harness.client(f"c{n}", f"team-{n}", ports[n], "alice") for n in range(3))
    harness.start("clients", three + harness.client("bob", "team-3", ports[3], "bob"))
    await harness.wait_state("clients", "bob", State.UP)
    names = [f"c{n}" for n in range(3)]

    def is_full() -> bool:
        reasons = [harness.seen("clients", name).reason or "" for name in names]
        return sum("2 services of the key alice are published, and 2 may be" in reason for reason in reasons) == 1

    await wait_until_async(is_full, "the third service is refused")
    await wait_until_async(
        lambda: sum(harness.seen("clients", name).state is State.UP for name in names) == 2, "two are up"
    )


async def test_a_reload_removes_what_is_no_longer_allowed_and_adapts_the_rest(harness: PublishingHarness) -> None:
    harness.start("gateway", harness.rules())
    a, b = (
        harness.client(n, f"team-{n}", p, k) for n, p, k in zip("ab", harness.ports, ("alice", "bob"), strict=False)
    )
    harness.start("clients", a + b)
    await harness.wait_state("gateway", "gw/team-a", State.UP)
    await harness.wait_state("gateway", "gw/team-b", State.UP)
    link = harness.seen("gateway", "gw/team-a").link
    await harness.reload("gateway", harness.rules(more=", rate: 1mbit", keys=("alice",)))
    await harness.wait_gone("gw/team-b")
    limits = harness.seen("gateway", "gw/team-a").rate_limits
    assert limits is not None
    assert limits.rate_bps == 1_000_000
    assert harness.seen("gateway", "gw/team-a").link == link
    await harness.wait_reason("b", "refused")
    static = f"  web: server://{KEYS['alice']}@127.0.0.1:{harness.tunnel}/127.0.0.1:{harness.ports[0]}?service=web\n"
    await harness.reload("gateway", harness.rules(keys=("alice",)) + static)
    await harness.wait_gone("gw/team-a")
    await harness.wait_state("gateway", "web", State.WAITING)
    await harness.wait_reason("a", "in use by a tunnel of the server's file")
    await harness.reload("gateway", harness.rules(keys=("alice",)))
    await harness.wait_state("gateway", "gw/team-a", State.UP)
    await harness.reload("gateway", static.replace("web", "other"))
    await harness.wait_gone("gw/team-a")
    await harness.wait_reason("a", "refused")


async def test_a_plain_server_refuses_a_client_that_publishes(harness: PublishingHarness) -> None:
    where = f"127.0.0.1:{harness.tunnel}/127.0.0.1:{harness.ports[0]}"
    harness.start("gateway", f"  web: server://{KEYS['alice']}@{where}?service=web\n")
    harness.start("clients", harness.client("c", "web", harness.ports[1], "alice"))
    await harness.wait_reason("c", "the server lets no client publish on this port")

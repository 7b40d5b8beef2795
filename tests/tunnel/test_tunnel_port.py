"""Several servers on one tunnel port, told apart by their services."""

from __future__ import annotations

import asyncio
import dataclasses
import hmac
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.peers import connect
from tests.support.ports import free_port
from tests.support.scale import GUARD_S
from tests.support.waiting import run_loop_turns, wait_until_async
from tests.tunnel.test_engine import (
    KEY,
    UP,
    RunningEngine,
    certificate,
    echo,
    round_trip,
    running_engine,
    server_spec,
    shared,
    spec,
    visit,
    visitors_address,
)
from tests.tunnel.test_replacement import replacing
from tunnel.engine.context import EngineContext, Timing
from tunnel.engine.factory import create_engine
from tunnel.engine.link_acceptor import LinkAcceptor
from tunnel.engine.server_engine import ServerEngine
from tunnel.engine.tunnel_port import TunnelPort
from tunnel.model.address import parse_address
from tunnel.model.keys import Key, NamedKey
from tunnel.model.spec import Mode, Role, TunnelSpec
from tunnel.model.state import State
from tunnel.protocol.preface import encode_preface
from tunnel.runtime import tls
from tunnel.runtime.sockets import NetError, is_closed_by_peer

__all__ = ["certificate", "shared"]  # fixtures, used by name

OTHER = Key("another key of some length")


def service_spec(tunnel: str, service: str, key: Key | None = KEY, **rest: Any) -> TunnelSpec:  # noqa: ANN401  fields of a spec
    return server_spec("127.0.0.1:0", tunnel, service=service, mode=Mode.REVERSE, key=key, **rest)


def client_of(tunnel: str, service: str, target: str = "127.0.0.1:1", key: Key | None = KEY) -> TunnelSpec:
    return spec(Role.CLIENT, tunnel, target, service=service, key=key)


def port_of(running: RunningEngine) -> TunnelPort:
    assert isinstance(running.engine, ServerEngine)
    assert running.engine.place is not None
    return running.engine.place.port


class Gateway:
    """Servers and clients of one tunnel port."""

    def __init__(self, shared: EngineContext, stack: AsyncExitStack, target: str) -> None:
        self.shared = shared
        self.tunnel = f"127.0.0.1:{free_port()}"
        self.target = target
        self._stack = stack

    async def serve(self, service: str, **rest: Any) -> RunningEngine:  # noqa: ANN401  as above
        server = await self._start(service_spec(self.tunnel, service, **rest), f"server {service}")
        await server.wait_state(State.WAITING)
        return server

    async def connect(self, service: str, **rest: Any) -> RunningEngine:  # noqa: ANN401  as above
        client = await self._start(client_of(self.tunnel, service, self.target, **rest), f"client {service}")
        await client.wait_state(UP)
        return client

    async def refused(self, service: str, key: Key | None = KEY) -> str:
        """The reason that a client shows which gets no link."""
        client = await self._start(client_of(self.tunnel, service, self.target, key), f"refused {service}")
        await wait_until_async(lambda: client.state is State.COOLDOWN, "the client is refused")
        reason = client.reason
        client.engine.close()
        return reason

    async def _start(self, wanted: TunnelSpec, name: str) -> RunningEngine:
        return await self._stack.enter_async_context(running_engine(self.shared, wanted, name))


@asynccontextmanager
async def running_gateway(shared: EngineContext) -> AsyncIterator[Gateway]:
    async with echo() as target, AsyncExitStack() as stack:
        yield Gateway(shared, stack, target)


@pytest.fixture
async def gateway(shared: EngineContext) -> AsyncIterator[Gateway]:
    async with running_gateway(shared) as made:
        yield made


async def test_each_service_of_a_port_serves_its_own_visitors(gateway: Gateway) -> None:
    servers = [await gateway.serve(name, key=key) for name, key in (("", KEY), ("web", OTHER), ("mail", None))]
    clients = [await gateway.connect(name, key=key) for name, key in (("", KEY), ("web", OTHER), ("mail", None))]
    for server, client in zip(servers, clients, strict=True):
        await server.wait_state(UP)
        await round_trip(visitors_address(server))
        seen = client.engine.snapshot()
        assert (seen.signals.total, seen.service) == (1, server.engine.spec.service)
    assert len({port_of(server) for server in servers}) == 1
    assert len({server.engine.snapshot().data_addr for server in servers}) == 1


async def test_services_that_start_together_share_the_port_that_one_of_them_binds(shared: EngineContext) -> None:
    tunnel = f"127.0.0.1:{free_port()}"
    async with AsyncExitStack() as stack:
        specs = [service_spec(tunnel, f"s{number}") for number in range(20)]
        servers = [await stack.enter_async_context(running_engine(shared, one, one.service)) for one in specs]
        await asyncio.gather(*(server.wait_state(State.WAITING) for server in servers))
        assert len(port_of(servers[0]).acceptors) == 2
        assert not any(server.events.said("cannot listen") for server in servers)


async def test_the_last_service_closes_the_port(gateway: Gateway) -> None:
    first, second = await gateway.serve("a"), await gateway.serve("b")
    port = port_of(first)
    first.engine.close()
    await first.wait_end()
    await gateway.connect("b")
    assert port.acceptors
    second.engine.close()
    await second.wait_end()
    assert not port.acceptors
    host, _, number = gateway.tunnel.partition(":")
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(host, int(number))
    await gateway.serve("a")  # the address is free again


async def test_a_second_server_of_a_service_waits_until_the_first_has_left(gateway: Gateway) -> None:
    first = await gateway.serve("web")
    async with running_engine(gateway.shared, service_spec(gateway.tunnel, "web"), "second") as second:
        await second.wait_state(State.COOLDOWN)
        assert second.reason == (
            f"cannot listen on {gateway.tunnel} for the tunnel: another tunnel has the service 'web' there; "
            "give each a service= of its own"
        )
        first.engine.close()
        second.engine.retry()
        await second.wait_state(State.WAITING)


async def test_what_is_refused_looks_the_same_from_outside(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown service, a wrong key, a service whose engine has ended; also the number of computations."""
    named = tuple(NamedKey(f"key{number}", Key(f"a key of some length {number}")) for number in range(3))
    web = await gateway.serve("web")
    team = await gateway.serve("team", key=None, named_keys=named)
    ended = await gateway.serve("ended")
    ended.engine.close()
    await ended.wait_end()
    counts = []
    computed = 0
    real = hmac.digest

    def count(*arguments: object) -> bytes:
        nonlocal computed
        computed += 1
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(hmac, "digest", count)
    answers = set()
    for service, key in (("nothing", KEY), ("web", OTHER), ("team", OTHER), ("ended", KEY), ("", KEY), ("web", None)):
        computed = 0
        answers.add((await gateway.refused(service, key)).removesuffix("; this client has no key"))
        counts.append(computed)
    assert len(answers) == 1
    assert "most likely the keys or the service names differ" in answers.pop()
    assert len(set(counts)) == 1
    assert counts[0] >= 2 * len(named)
    assert web.events.said("no tunnel on this port has the service 'nothing', or the one that has it is draining")
    assert team.events.said("the client has another key")
    assert "'nothing'" not in web.reason, "the state of another tunnel is not concerned"


async def test_a_service_cannot_be_entered_with_the_key_of_another_one(gateway: Gateway) -> None:
    await gateway.serve("web", key=KEY)
    await gateway.serve("mail", key=OTHER)
    assert "refused" in await gateway.refused("mail", KEY)
    assert "refused" in await gateway.refused("web", OTHER)


async def test_a_client_waits_for_a_service_that_is_about_to_open(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    await gateway.serve("first")
    may_open = asyncio.Event()
    real = LinkAcceptor.open

    async def open_later(acceptor: LinkAcceptor, place: object) -> None:
        await may_open.wait()
        await real(acceptor, place)  # type: ignore[arg-type]

    monkeypatch.setattr(LinkAcceptor, "open", open_later)
    async with (
        running_engine(gateway.shared, service_spec(gateway.tunnel, "late"), "late") as late,
        running_engine(gateway.shared, client_of(gateway.tunnel, "late", gateway.target), "client") as client,
    ):
        await wait_until_async(lambda: len(gateway.shared.front_door) == 1, "the client has connected")
        await run_loop_turns(20)
        assert client.state is State.CONNECTING
        may_open.set()
        await client.wait_state(UP)
        await late.wait_state(UP)
        assert not client.events.said("no link")


async def test_a_restart_of_the_service_that_bound_the_port_leaves_the_others_alone(gateway: Gateway) -> None:
    first, second = await gateway.serve("first"), await gateway.serve("second")
    clients = [await gateway.connect("first"), await gateway.connect("second")]
    before = second.engine.snapshot().link
    async with visit(visitors_address(second)) as (reader, writer):
        writer.write(b"a")
        assert await reader.readexactly(1) == b"a"
        changed = dataclasses.replace(first.engine.spec, reuse=True)
        async with replacing(gateway.shared, first, changed) as replacement:
            await first.wait_end()
            await replacement.wait_state(UP)
            await clients[0].wait_state(UP)
            await round_trip(visitors_address(replacement))
            await round_trip(visitors_address(second))
            assert port_of(replacement) is port_of(second)
            assert not clients[0].events.said("refused")
        writer.write(b"b")
        assert await reader.readexactly(1) == b"b"
    assert second.engine.snapshot().link == before


async def test_a_replacement_that_cannot_bind_leaves_the_service_to_its_predecessor(gateway: Gateway) -> None:
    first, second = await gateway.serve("first"), await gateway.serve("second")
    taken = dataclasses.replace(first.engine.spec, target=parse_address(visitors_address(second)))
    engine = create_engine("replacement", taken, gateway.shared, first.events.append)
    with pytest.raises(NetError, match="in use"):
        await engine.prepare(first.engine)
    stolen = dataclasses.replace(first.engine.spec, service="second")
    engine = create_engine("replacement", stolen, gateway.shared, first.events.append)
    with pytest.raises(NetError, match="another tunnel has the service 'second'"):
        await engine.prepare(first.engine)
    await gateway.connect("first")
    await round_trip(visitors_address(first))


async def test_a_service_that_closes_while_its_successor_is_prepared_is_not_lost(gateway: Gateway) -> None:
    first = await gateway.serve("web")
    await gateway.serve("other")
    async with replacing(gateway.shared, first, first.engine.spec) as replacement:
        first.engine.close()
        await replacement.wait_state(State.WAITING)
        await gateway.connect("web")


async def test_a_client_that_has_left_before_its_turn_costs_no_handshake(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await gateway.serve("web")
    waiting: list[tuple[Any, Callable[[], None]]] = []
    with monkeypatch.context() as patch:
        patch.setattr(gateway.shared.front_door, "request_handshake", lambda *request: waiting.append(request))
        client = connect(("127.0.0.1", int(gateway.tunnel.partition(":")[2])))
        client.sendall(b"\x16\x03\x01")  # it is there when the connection is accepted
        await wait_until_async(lambda: bool(waiting), "it waits for its turn")
    (connection, start), watched = waiting[0], len(gateway.shared.reactor)
    client.close()
    await wait_until_async(lambda: is_closed_by_peer(connection.sock), "the close has arrived")
    monkeypatch.setattr(tls, "TlsSession", None)
    start()
    assert server.engine.snapshot().refused.handshakes == 1
    assert len(gateway.shared.reactor) == watched, "the reactor has not watched it"
    assert not len(gateway.shared.front_door)


async def test_a_data_connection_needs_the_secret_of_its_own_link(gateway: Gateway) -> None:
    first, second = await gateway.serve("first"), await gateway.serve("second")
    await gateway.connect("first")
    await gateway.connect("second")
    links = [running.engine._link for running in (first, second)]
    assert links[0] is not None
    assert links[1] is not None
    host, _, port = gateway.tunnel.partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(encode_preface(links[0].wire_id, links[1].secret, 1_000_000))
    async with asyncio.timeout(GUARD_S):
        assert await reader.read() == b""
    writer.close()
    await wait_until_async(lambda: first.engine.snapshot().refused.prefaces == 1, "the link's own tunnel counts it")
    assert second.engine.snapshot().refused.prefaces == 0


async def test_a_defect_in_one_service_ends_that_engine_alone(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = await gateway.serve("first"), await gateway.serve("second")
    assert isinstance(second.engine, ServerEngine)
    acceptor = second.engine._acceptor
    real = LinkAcceptor.accept_data_connection

    def fail(self: LinkAcceptor, *arguments: object) -> None:
        if self is acceptor:
            raise RuntimeError("a defect")
        real(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(LinkAcceptor, "accept_data_connection", fail)
    await gateway.connect("first")
    async with running_engine(gateway.shared, client_of(gateway.tunnel, "second", gateway.target)):
        await wait_until_async(second.task.done, "its engine has ended")
    assert str(second.task.exception()) == "a defect"
    await round_trip(visitors_address(first))


@pytest.mark.parametrize("shared", [Timing(retry_delay=lambda *_: 0.05)], indirect=True)
async def test_the_certificate_of_the_latest_engine_is_used_for_the_whole_port(
    gateway: Gateway, certificate: Path
) -> None:
    first = await gateway.serve("first")
    await gateway.serve("second")
    port = port_of(first)
    before = port._certificate
    changed = dataclasses.replace(first.engine.spec, tls_cert=certificate, tls_key=certificate)
    async with replacing(gateway.shared, first, changed) as replacement:
        await replacement.wait_state(State.WAITING)
        assert port._certificate != before
        await gateway.connect("second")
        await gateway.connect("first")


async def test_another_tunnel_address_keeps_the_data_port(shared: EngineContext) -> None:
    old, new, data = (free_port() for _ in range(3))
    before = service_spec(f"127.0.0.1:{old}", "web", data_port=data)
    async with echo() as target, running_engine(shared, before) as server:
        await server.wait_state(State.WAITING)
        changed = dataclasses.replace(before, tunnel=dataclasses.replace(before.tunnel, port=new))
        async with (
            replacing(shared, server, changed) as replacement,
            running_engine(shared, client_of(f"127.0.0.1:{new}", "web", target)) as client,
        ):
            await client.wait_state(UP)
            assert replacement.engine.snapshot().data_addr == f"127.0.0.1:{data}"
            assert client.engine.snapshot().data_addr == f"127.0.0.1:{data}"
            await round_trip(visitors_address(replacement))

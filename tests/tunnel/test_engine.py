"""Pairs of engines in one loop, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime as dt
import ipaddress
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.support.engine_parts import Events, no_descriptor_leak, shared_parts
from tests.support.ports import free_port
from tests.support.scale import GUARD_S
from tests.support.sockets import close_listener
from tests.support.waiting import run_loop_turns, wait_until_async
from tunnel.engine import key_ring, server_engine
from tunnel.engine.context import DEFAULT_TIMING, EngineContext, Timing
from tunnel.engine.egress import Egress
from tunnel.engine.engine import Engine
from tunnel.engine.factory import create_engine
from tunnel.engine.link import Link
from tunnel.engine.link_acceptor import LinkAcceptor
from tunnel.engine.link_events import EventTable
from tunnel.engine.pool import Pool
from tunnel.engine.pool_filler import PoolFiller
from tunnel.engine.server_engine import ServerEngine
from tunnel.engine.single_target import SingleTarget
from tunnel.model.address import Address, parse_address
from tunnel.model.keys import Key, NamedKey
from tunnel.model.settings import Settings
from tunnel.model.spec import Carrier, DataTls, Direction, LogLevel, Mode, Mux, Role, TunnelSpec
from tunnel.model.state import State
from tunnel.protocol.frames import TargetStatus
from tunnel.protocol.handshake import ServerHandshake
from tunnel.protocol.handshake_messages import Welcome
from tunnel.runtime.key_stretching import derive_base_key
from tunnel.runtime.sockets import NetError

KEY = Key("a shared key of some length")
UP = State.UP


@pytest.fixture
async def shared(request: pytest.FixtureRequest) -> AsyncIterator[EngineContext]:
    """A parameter of the fixture is the timing of all engines."""
    with no_descriptor_leak():
        async with shared_parts(getattr(request, "param", DEFAULT_TIMING)) as parts:
            yield parts


@dataclasses.dataclass
class RunningEngine:
    """An engine that runs, and its events."""

    engine: Engine
    events: Events
    task: asyncio.Task[None]

    @property
    def state(self) -> State:
        return self.engine.snapshot().state

    @property
    def reason(self) -> str:
        return self.engine.snapshot().reason or ""

    async def wait_state(self, state: State) -> None:
        await wait_until_async(lambda: self.state is state or self.task.done(), f"{self.engine.name} is {state}")
        assert self.state is state, (self.state, [event.text for event in self.events])

    async def wait_end(self) -> None:
        await wait_until_async(self.task.done, f"{self.engine.name} has ended")
        self.task.result()


@asynccontextmanager
async def running_engine(shared: EngineContext, spec: TunnelSpec, name: str = "") -> AsyncIterator[RunningEngine]:
    events = Events()
    engine = create_engine(name or spec.role.value, spec, shared, events.append)
    running = RunningEngine(engine, events, asyncio.create_task(engine.run()))
    try:
        yield running
    finally:
        engine.close()
        await asyncio.wait({running.task})


def spec(role: Role, tunnel: str, target: str, **rest: Any) -> TunnelSpec:  # noqa: ANN401  any field of a spec
    values = {name: rest.pop(name) for name in list(rest) if name in Settings.__slots__}
    settings = Settings(**values, explicit=frozenset(values))
    return TunnelSpec(role=role, tunnel=parse_address(tunnel), target=parse_address(target), settings=settings, **rest)


def server_spec(target: str, tunnel: str = "127.0.0.1:0", **rest: Any) -> TunnelSpec:  # noqa: ANN401  as above
    return spec(Role.SERVER, tunnel, target, **{"key": KEY, **rest})


def client_spec(server: RunningEngine, target: str, **rest: Any) -> TunnelSpec:  # noqa: ANN401  as above
    return spec(Role.CLIENT, server.engine.snapshot().tunnel_addr, target, **{"key": KEY, **rest})


@asynccontextmanager
async def echo(host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
    """A target that echoes its input, and ends after the end of the input."""
    writers: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.add(writer)
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()
        writers.discard(writer)

    listener = await asyncio.start_server(serve, host, port, reuse_address=True)
    try:
        yield str(Address(host, listener.sockets[0].getsockname()[1]))
    finally:
        await close_listener(listener)
        for writer in list(writers):
            writer.transport.abort()
        await wait_until_async(lambda: not writers, "the target's connections are over")
        await run_loop_turns(3)


@asynccontextmanager
async def visit(address: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    where = parse_address(address)
    reader, writer = await asyncio.open_connection(where.host, where.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        await run_loop_turns(3)


async def round_trip(address: str, size: int = 200_000) -> None:
    """One visitor: sends ``size`` bytes and the end, and receives the same bytes."""
    async with visit(address) as (reader, writer), asyncio.timeout(GUARD_S):
        sent = bytes(n % 251 for n in range(size))
        writer.write(sent)
        writer.write_eof()
        assert await reader.read(-1) == sent


def visitors_address(*engines: RunningEngine) -> str:
    return next(
        running.engine.snapshot().target_addr
        for running in engines
        if (running.engine.spec.role is Role.SERVER) is (running.engine.snapshot().direction == "reverse")
    )


@asynccontextmanager
async def pair(
    shared: EngineContext,
    target: str,
    direction: Direction = Direction.REVERSE,
    host: str = "127.0.0.1",
    **rest: Any,  # noqa: ANN401  as above
) -> AsyncIterator[tuple[RunningEngine, RunningEngine]]:
    """A server and its client, both up."""
    visitors = str(Address(host, 0))
    reverse = direction is Direction.REVERSE
    configured = server_spec(visitors if reverse else target, str(Address(host, 0)), mode=Mode(direction.value), **rest)
    async with running_engine(shared, configured) as server:
        await server.wait_state(State.WAITING)
        async with running_engine(shared, client_spec(server, target if reverse else visitors, **rest)) as client:
            await server.wait_state(UP)
            await client.wait_state(UP)
            yield server, client


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1 and its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    pem = serialization.Encoding.PEM
    plain = serialization.NoEncryption()
    path.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain) + made.public_bytes(serialization.Encoding.PEM)
    )
    return path


@pytest.mark.usefixtures("carriage")
@pytest.mark.parametrize("direction", list(Direction))
@pytest.mark.parametrize("data_tls", list(DataTls))
async def test_a_pair_carries_visitors(
    shared: EngineContext, direction: Direction, data_tls: DataTls, certificate: Path
) -> None:
    rest: dict[str, Any] = {"data_tls": data_tls}
    if data_tls is DataTls.VERIFIED:
        rest |= {"tls_cert": certificate, "tls_key": certificate, "tls_ca": certificate}
    async with echo() as target, pair(shared, target, direction, **rest) as (server, client):
        await asyncio.gather(*(round_trip(visitors_address(server, client)) for _ in range(12)))
        await wait_until_async(lambda: not server.engine.snapshot().connections.active, "all have disconnected")
        for running in (server, client):
            shown = json.loads(json.dumps(running.engine.snapshot().as_json()))
            assert shown["state"] == "up"
            assert shown["direction"] == direction.value
            assert shown["connections"] == {"active": 0, "total": 12, "failed": 0, "limit": 1024}
            assert shown["bytes"] == {"in": 12 * 200_000, "out": 12 * 200_000}
            assert running.engine.read_traffic() == running.engine.snapshot().traffic
            assert shown["data_tls"] == data_tls
            assert shown["auth"] == "key"
            assert shown["peer"]
            assert KEY.reveal() not in json.dumps(shown)
        assert server.engine.snapshot().link == client.engine.snapshot().link


@pytest.mark.parametrize("direction", list(Direction))
@pytest.mark.parametrize("data_tls", [DataTls.OFF, DataTls.ENCRYPTED])
@pytest.mark.parametrize("wanted_by", ["both", "server", "client"])
async def test_data_connections_are_used_again_if_both_ends_want_that(
    shared: EngineContext, direction: Direction, data_tls: DataTls, wanted_by: str
) -> None:
    rest: dict[str, Any] = {"data_tls": data_tls, "min_pool_capacity": 2, "mux": Mux.OFF}
    wants = {"server": wanted_by != "client", "client": wanted_by != "server"}
    reverse = direction is Direction.REVERSE
    dialled: set[int] = set()
    async with echo() as target:
        ends = ("127.0.0.1:0", target) if reverse else (target, "127.0.0.1:0")
        serving = server_spec(ends[0], mode=Mode(direction.value), reuse=wants["server"], **rest)
        async with running_engine(shared, serving) as server:
            await server.wait_state(State.WAITING)
            dialling = client_spec(server, ends[1], reuse=wants["client"], **rest)
            async with running_engine(shared, dialling) as client:
                await client.wait_state(UP)
                await server.wait_state(UP)
                for visits in range(1, 13):
                    await round_trip(visitors_address(server, client))
                    await wait_until_async(partial(_is_at_rest, server, client, visits), "both relays have ended")
                    dialled |= {*pool_of(server).idle}
    assert max(dialled) <= 8 if wanted_by == "both" else max(dialled) > 12


def pool_of(running: RunningEngine) -> Pool:
    """The data connections of the only link of an engine."""
    end = running.engine._end
    assert end is not None
    (link,) = end._links
    return link.pool


def _is_at_rest(server: RunningEngine, client: RunningEngine, visits: int) -> bool:
    counts = [running.engine.snapshot().connections for running in (server, client)]
    return all((count.active, count.total) == (0, visits) for count in counts) and len(pool_of(server)) >= 2


@pytest.mark.usefixtures("carriage")
@pytest.mark.parametrize("direction", list(Direction))
async def test_subscribers_are_notified_when_the_first_visitor_arrives(
    shared: EngineContext, direction: Direction
) -> None:
    notified: list[str] = []
    shared.subscribe_activity(notified.append)
    async with echo() as target, pair(shared, target, direction) as both:
        assert notified == []
        async with visit(visitors_address(*both)), visit(visitors_address(*both)):
            await wait_until_async(
                lambda: all(running.engine.snapshot().connections.active == 2 for running in both), "both are served"
            )
            assert sorted(notified) == ["client", "server"], "once, however many visitors arrive"
        await wait_until_async(
            lambda: not any(running.engine.snapshot().connections.active for running in both), "both have disconnected"
        )
        await round_trip(visitors_address(*both))
        assert sorted(notified) == ["client", "client", "server", "server"]


async def test_subscribers_are_notified_of_a_visitor_that_has_to_wait(shared: EngineContext) -> None:
    notified: list[str] = []
    shared.subscribe_activity(notified.append)
    async with running_engine(shared, server_spec("127.0.0.1:0", mode=Mode.REVERSE)) as server:
        await server.wait_state(State.WAITING)
        async with visit(visitors_address(server)), visit(visitors_address(server)):
            await wait_until_async(lambda: server.engine.snapshot().signals.queued == 2, "both wait")
            assert notified == ["server"]


async def test_a_pair_works_over_ipv6(shared: EngineContext) -> None:
    async with echo("::1") as target, pair(shared, target, host="::1") as (server, client):
        assert server.engine.snapshot().target_addr.startswith("[::1]:")
        await round_trip(visitors_address(server, client))


@pytest.mark.parametrize("host", ["0.0.0.0", ""])
async def test_a_wildcard_target_that_is_dialled_is_named_in_the_log_and_the_state(
    shared: EngineContext, host: str
) -> None:
    async with echo() as target:
        port = target.rpartition(":")[2]
        async with pair(shared, f"{host}:{port}") as (server, client):
            await server.wait_state(State.UP)
            await client.wait_state(State.UP)
            here = f"write 127.0.0.1:{port}, or change mode= at both ends"
            remark = f"the target {host}:{port} is dialled, so it means this host: {here}"
            assert client.reason == remark
            assert any(event.text == remark for event in client.events)
            assert not any("is dialled" in event.text for event in server.events)


async def test_an_open_pair_works_and_is_shown_as_open(shared: EngineContext) -> None:
    async with echo() as target, pair(shared, target, key=None) as (server, client):
        await round_trip(visitors_address(server, client))
        assert {running.engine.snapshot().auth for running in (server, client)} == {"open"}


@pytest.mark.parametrize("key", [Key("another key of some length"), None])
async def test_a_client_without_the_key_is_refused_and_cools_down(shared: EngineContext, key: Key | None) -> None:
    async with running_engine(shared, server_spec("127.0.0.1:0", mode=Mode.REVERSE)) as server:
        await server.wait_state(State.WAITING)
        async with running_engine(shared, client_spec(server, "127.0.0.1:1", key=key)) as client:
            await wait_until_async(lambda: client.state is State.COOLDOWN, "the client cools down")
            assert "most likely the keys or the service names differ" in client.reason
            assert server.engine.snapshot().refused.handshakes >= 1
            assert server.state is State.WAITING
            assert server.reason.startswith("refused a client from 127.0.0.1:")
            assert KEY.reveal() not in repr([*server.events, *client.events])


@pytest.mark.parametrize("shared", [Timing(retry_delay=lambda *_: 600.0)], indirect=True)
async def test_a_client_of_another_service_with_the_same_key_gets_no_link(shared: EngineContext) -> None:
    async with running_engine(shared, server_spec("127.0.0.1:0", mode=Mode.REVERSE, service="website")) as server:
        await server.wait_state(State.WAITING)
        async with running_engine(shared, client_spec(server, "127.0.0.1:1", service="admin")) as client:
            await client.wait_state(State.COOLDOWN)
            assert "most likely the keys or the service names differ" in client.reason
            reason = "the client wants the service 'admin', this is the service 'website'"
            assert server.reason.endswith(reason)
            assert reason in (server.engine.snapshot().last_error or "")
        async with running_engine(shared, client_spec(server, "127.0.0.1:1", service="website")) as client:
            await wait_until_async(lambda: client.engine.snapshot().link is not None, "there is a link")
            assert client.engine.snapshot().service == "website"
            assert server.engine.snapshot().last_error is None  # the tunnel's own client is there


async def test_a_client_whose_entry_follows_is_no_error_of_a_tunnel_that_has_its_client(shared: EngineContext) -> None:
    async with echo() as target, pair(shared, target) as (server, _):
        await wait_until_async(lambda: server.engine.snapshot().link is not None, "there is a link")
        async with running_engine(shared, client_spec(server, target, service="docs")) as early:
            await early.wait_state(State.COOLDOWN)
            await wait_until_async(lambda: server.events.said("the client wants the service 'docs'"), "the log says so")
        assert (server.state, server.engine.snapshot().last_error) == (UP, None)
        stranger = client_spec(server, target, service="docs", key=Key("another key of some length"))
        async with running_engine(shared, stranger) as other:
            await other.wait_state(State.COOLDOWN)
            await wait_until_async(lambda: server.engine.snapshot().last_error, "a wrong key is an error all the same")


HOME, OFFICE = NamedKey("home", Key("the key at home, of some length")), NamedKey("office", KEY)


def with_keys(running: RunningEngine, *keys: NamedKey) -> None:
    """Apply a change of the named keys, as a reload does."""
    running.engine.apply_live_settings(dataclasses.replace(running.engine.spec, named_keys=keys))


@asynccontextmanager
async def office_pair(
    shared: EngineContext, target: str, direction: Direction
) -> AsyncIterator[tuple[RunningEngine, RunningEngine]]:
    """A server with two named keys, and a client with that of the office, both up."""
    reverse = direction is Direction.REVERSE
    visitors = "127.0.0.1:0"
    configured = server_spec(
        visitors if reverse else target, key=None, named_keys=(HOME, OFFICE), mode=Mode(direction.value)
    )
    async with running_engine(shared, configured) as server:
        await server.wait_state(State.WAITING)
        async with running_engine(shared, client_spec(server, target if reverse else visitors)) as client:
            await server.wait_state(UP)
            await client.wait_state(UP)
            yield server, client


async def test_the_name_of_the_key_in_use_is_shown_at_the_server_alone(shared: EngineContext) -> None:
    async with echo() as target, office_pair(shared, target, Direction.REVERSE) as (server, client):
        shown = server.engine.snapshot()
        assert (shown.auth, shown.key_name) == ("key", "office")
        assert client.engine.snapshot().key_name is None
        assert any(f"with {shown.peer} with key office, reverse" in event.text for event in server.events)
        assert KEY.reveal() not in repr([shown, *server.events])


@pytest.mark.usefixtures("carriage")
@pytest.mark.parametrize("direction", list(Direction))
async def test_adding_and_removing_other_keys_disturbs_no_link_and_no_visitor(
    shared: EngineContext, direction: Direction
) -> None:
    async with (
        echo() as target,
        office_pair(shared, target, direction) as (server, client),
        visit(visitors_address(server, client)) as (reader, writer),
        asyncio.timeout(GUARD_S),
    ):
        link = server.engine.snapshot().link
        added = NamedKey("new", Key("the key of a new client"))
        with_keys(server, HOME, added, OFFICE)
        with_keys(server, added, OFFICE)
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"
        assert server.engine.snapshot().link == link


@pytest.mark.usefixtures("carriage")
@pytest.mark.parametrize("direction", list(Direction))
@pytest.mark.parametrize("replacement", [(), (NamedKey("office", Key("another key of the office")),)])
async def test_a_revoked_key_loses_its_link_and_its_visitors_at_once(
    shared: EngineContext, direction: Direction, replacement: tuple[NamedKey, ...]
) -> None:
    async with echo() as target, office_pair(shared, target, direction) as (server, client):
        async with visit(visitors_address(server, client)) as (reader, writer), asyncio.timeout(GUARD_S):
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
            with_keys(server, HOME, *replacement)
            assert server.engine.snapshot().connections.active == 0
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read(-1) == b""
        await client.wait_state(State.COOLDOWN)
        assert server.events.said("its key office was revoked")  # the reason may be that of a later refusal already
        assert client.events.said("the key of this client was revoked")
        client.engine.retry()
        await wait_until_async(lambda: "names differ" in client.reason, "it is refused from now on")
        assert server.engine.snapshot().link is None


@pytest.mark.usefixtures("carriage")
async def test_visitors_of_a_former_link_of_a_revoked_key_are_disconnected(shared: EngineContext) -> None:
    async with (
        echo() as target,
        office_pair(shared, target, Direction.REVERSE) as (server, _),
        visit(visitors_address(server)) as (reader, writer),
        asyncio.timeout(GUARD_S),
    ):
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"
        link = server.engine._link
        assert link is not None
        link.close("the network was interrupted")
        await wait_until_async(lambda: server.engine.snapshot().link not in {None, link.ident}, "it returns")
        assert server.engine.snapshot().connections.active == 1
        with_keys(server, HOME)
        assert server.engine.snapshot().connections.active == 0


@pytest.mark.parametrize("shared", [Timing(retry_delay=lambda *_: 0.05)], indirect=True)
async def test_a_key_that_is_added_live_is_accepted(shared: EngineContext) -> None:
    configured = server_spec("127.0.0.1:0", key=None, named_keys=(HOME,), mode=Mode.REVERSE)
    async with echo() as target, running_engine(shared, configured) as server:
        await server.wait_state(State.WAITING)
        async with running_engine(shared, client_spec(server, target)) as client:
            await wait_until_async(lambda: "names differ" in client.reason, "it is refused")
            with_keys(server, HOME, OFFICE)
            await server.wait_state(UP)
            assert server.engine.snapshot().key_name == "office"


@pytest.mark.parametrize("shared", [Timing(retry_delay=lambda *_: 0.05)], indirect=True)
async def test_a_new_key_that_cannot_be_computed_yet_is_reported_and_computed_later(
    shared: EngineContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_engine, "_KEY_RETRY_DELAY_S", 0.05)
    failures = iter([True, True])

    async def derive_late(key: Key | None) -> bytes:
        if key == KEY and next(failures, False):
            raise NetError("there is no memory")
        return await derive_base_key(key)

    configured = server_spec("127.0.0.1:0", key=None, named_keys=(HOME,), mode=Mode.REVERSE)
    async with running_engine(shared, configured) as server:
        engine = server.engine
        assert isinstance(engine, ServerEngine)
        await server.wait_state(State.WAITING)
        monkeypatch.setattr(key_ring, "derive_base_key", derive_late)
        with_keys(server, HOME, OFFICE)
        await wait_until_async(lambda: len(engine._key_ring.keys) == 2, "it was tried again")
        assert server.events.said("a new key is not accepted yet: there is no memory")


@pytest.mark.parametrize("shared", [Timing(liveness_timeout_s=GUARD_S)], indirect=True)
async def test_another_client_is_refused_and_takes_over_when_the_first_is_gone(shared: EngineContext) -> None:
    async with echo() as target, pair(shared, target) as (server, client):
        link = server.engine.snapshot().link
        async with running_engine(shared, client_spec(server, target), "other") as other:
            await wait_until_async(lambda: "has this tunnel and answers" in other.reason, "the other client is refused")
            assert server.engine.snapshot().link == link
            client.engine.close()
            await client.wait_end()
            await other.wait_state(UP)
            await server.wait_state(UP)
            assert server.engine.snapshot().link == other.engine.snapshot().link != link
            await round_trip(visitors_address(server))


@pytest.mark.parametrize("shared", [Timing(retry_delay=lambda *_: 600.0)], indirect=True)
async def test_retry_ends_a_cooldown(shared: EngineContext) -> None:
    port = free_port()
    async with (
        echo() as target,
        running_engine(shared, spec(Role.CLIENT, f"127.0.0.1:{port}", target, key=KEY)) as client,
    ):
        await client.wait_state(State.COOLDOWN)
        assert "it refused the connection" in client.reason
        cooldown = client.engine.snapshot().cooldown
        assert cooldown.attempt == 1
        assert 500 < cooldown.remaining_s <= 600
        async with running_engine(shared, server_spec("127.0.0.1:0", f"127.0.0.1:{port}", mode=Mode.REVERSE)) as server:
            await server.wait_state(State.WAITING)
            client.engine.retry()
            await client.wait_state(UP)
            assert client.engine.snapshot().cooldown.attempt == 0
            await server.wait_state(UP)
            client.engine.close()
            await client.wait_end()


@pytest.mark.parametrize("direction", list(Direction))
async def test_an_unreachable_target_is_shown_at_both_ends_until_it_answers(
    shared: EngineContext, direction: Direction
) -> None:
    port = free_port()
    async with pair(shared, f"127.0.0.1:{port}", direction, server_cooldown=0.3, client_cooldown=0.3) as both:
        address = visitors_address(*both)
        async with visit(address) as (reader, _), asyncio.timeout(GUARD_S):
            assert await reader.read(-1) == b""
        for running in both:
            await running.wait_state(State.COOLDOWN)
            assert "it refused the connection" in running.reason
        await wait_until_async(
            lambda: all(running.engine.snapshot().connections.failed == 1 for running in both), "it is counted"
        )
        async with echo(port=port):
            for running in both:
                await running.wait_state(UP)
            await round_trip(address)


async def test_a_closed_engine_does_not_connect_to_its_target_any_more(
    shared: EngineContext,
) -> None:
    port = free_port()
    async with pair(shared, f"127.0.0.1:{port}", client_cooldown=0.05) as (server, client):
        async with visit(visitors_address(server)) as (reader, _), asyncio.timeout(GUARD_S):
            await reader.read(-1)
        await client.wait_state(State.COOLDOWN)
        client.engine.retry()
        client.engine.close()
        await client.wait_end()
        with socket.create_server(("127.0.0.1", port)) as listener:
            listener.setblocking(False)
            await asyncio.sleep(0.3)  # six times the delay between two probes
            with pytest.raises(BlockingIOError):
                listener.accept()
        assert not client.events.said("disconnected")


@pytest.mark.usefixtures("carriage")
async def test_visitors_beyond_the_limit_wait_in_the_backlog(shared: EngineContext) -> None:
    async with echo() as target, pair(shared, target, semaphore_limit=2) as (server, client):
        address = visitors_address(server, client)
        async with visit(address) as (_, first), visit(address) as (_, second):
            first.write(b"x")
            second.write(b"x")
            await wait_until_async(lambda: server.engine.snapshot().connections.active == 2, "two are served")
            async with visit(address) as (reader, third):
                third.write(b"third")
                third.write_eof()
                answer = asyncio.create_task(reader.read(-1))
                await assert_stays(server, lambda shown: shown.connections.active == 2)
                assert not answer.done()
                first.transport.abort()
                async with asyncio.timeout(GUARD_S):
                    assert await answer == b"third"
        assert server.engine.snapshot().connections.limit == 2


async def assert_stays(running: RunningEngine, condition: Callable[[Any], bool]) -> None:
    """Assert that a condition holds over many turns."""
    for _ in range(50):
        assert condition(running.engine.snapshot())
        await run_loop_turns(1)


@pytest.mark.usefixtures("carriage")
async def test_limits_change_live_without_closing_visitors_or_link(shared: EngineContext) -> None:
    async with echo() as target, pair(shared, target, semaphore_limit=1) as (server, client):
        address = visitors_address(server, client)
        async with visit(address) as (_, first):
            first.write(b"x")
            await wait_until_async(lambda: server.engine.snapshot().connections.active == 1, "one is served")
            more = Settings(semaphore_limit=3, explicit=frozenset({"semaphore_limit"}), report_interval=4.0)
            link = server.engine.snapshot().link
            for running in (server, client):
                running.engine.apply_live_settings(dataclasses.replace(running.engine.spec, settings=more))
            await round_trip(address)
            shown = server.engine.snapshot()
            assert shown.connections.limit == 3
            assert shown.connections.active >= 1
            assert shown.link == link


async def test_the_queue_of_visitors_is_bounded(shared: EngineContext) -> None:
    configured = server_spec("127.0.0.1:0", mode=Mode.REVERSE, signal_queue_limit=3)
    async with echo() as target, running_engine(shared, configured) as server:
        await server.wait_state(State.WAITING)
        address = visitors_address(server)
        crowd = [asyncio.create_task(round_trip(address, 10)) for _ in range(10)]
        await wait_until_async(lambda: server.engine.snapshot().signals.queued == 3, "three wait")
        await assert_stays(server, lambda shown: shown.signals.queued == 3)
        async with running_engine(shared, client_spec(server, target)):
            await asyncio.gather(*crowd)  # no visitor was disconnected
            assert server.engine.snapshot().connections.total == 10


@pytest.mark.parametrize("shared", [Timing(queue_timeout_s=5.0)], indirect=True)
async def test_a_visitor_waits_for_a_link_for_a_bounded_time(shared: EngineContext) -> None:
    async with running_engine(shared, server_spec("127.0.0.1:0", mode=Mode.REVERSE)) as server:
        await server.wait_state(State.WAITING)
        for _ in range(2):  # the second one arrives when the time is over already
            async with visit(visitors_address(server)) as (reader, _), asyncio.timeout(GUARD_S):
                assert await reader.read(-1) == b""
        assert server.engine.snapshot().connections.failed == 2
        assert server.events.said("there was no link for it in 5 s")


@pytest.mark.usefixtures("carriage")
@pytest.mark.parametrize("direction", list(Direction))
@pytest.mark.parametrize("index", [0, 1])
async def test_a_drain_lets_visitors_finish_and_serves_no_new_ones(
    shared: EngineContext, direction: Direction, index: int
) -> None:
    async with echo() as target, pair(shared, target, direction) as both:
        address = visitors_address(*both)
        async with visit(address) as (reader, writer):
            writer.write(b"before ")
            assert await reader.readexactly(7) == b"before "
            both[index].engine.drain(30)
            await wait_until_async(lambda: both[index].state is State.DRAINING, "it drains")
            async with contextlib.AsyncExitStack() as late:
                with contextlib.suppress(
                    ConnectionRefusedError
                ):  # at the ingress; it still accepts if the egress drains
                    _, late_writer = await late.enter_async_context(visit(address))
                    late_writer.write(b"late")
                await assert_stays(both[index], lambda shown: shown.connections.total == 1)
            writer.write(b"after")
            assert await reader.readexactly(5) == b"after"
            assert not both[index].task.done()
            writer.write_eof()
            assert await reader.read(-1) == b""
        await both[index].wait_end()
        assert both[index].state is State.STOPPED


@pytest.mark.usefixtures("carriage")
async def test_a_drain_ends_at_its_time_limit_or_when_the_engine_is_closed(shared: EngineContext) -> None:
    for drain in (True, False):
        async with echo() as target, pair(shared, target) as (server, client):
            async with visit(visitors_address(server)) as (reader, writer):
                writer.write(b"x")
                assert await reader.readexactly(1) == b"x"
                if drain:
                    server.engine.drain(0.1)
                else:
                    server.engine.drain(30)
                    await run_loop_turns(5)
                    server.engine.close()
                async with asyncio.timeout(GUARD_S):
                    with contextlib.suppress(ConnectionError):
                        assert await reader.read(-1) == b""
                await server.wait_end()
            reason = "the drain of 0.1 s was over" if drain else "the tunnel was stopped at once"
            assert server.events.said(f"1 visitor was disconnected: {reason}")
            await wait_until_async(lambda: client.state is not UP, "the client knows")


@pytest.mark.parametrize("leaving", ["server", "client"])
async def test_the_orderly_end_of_a_peer_is_no_warning(shared: EngineContext, leaving: str) -> None:
    async with echo() as target, pair(shared, target) as (server, client):
        gone, other = (server, client) if leaving == "server" else (client, server)
        gone.engine.drain(5)
        await gone.wait_end()
        text = "was closed: the other end is shutting down"
        await wait_until_async(lambda: other.events.said(text), "the other end knows why")
        levels = [event.level for event in other.events if text in event.text]
        assert set(levels) == {LogLevel.INFO}
        assert not other.events.said("was lost")


@pytest.mark.usefixtures("carriage")
async def test_relays_outlive_their_link(shared: EngineContext) -> None:
    async with (
        echo() as target,
        pair(shared, target) as (server, client),
        visit(visitors_address(server)) as (reader, writer),
    ):
        writer.write(b"one")
        assert await reader.readexactly(3) == b"one"
        link = server.engine._link
        assert link is not None
        link.channel.close("cut by the test")
        await wait_until_async(lambda: server.engine.snapshot().link not in {None, link.ident}, "there is another link")
        await client.wait_state(UP)
        writer.write(b"two")
        writer.write_eof()
        assert await reader.read(-1) == b"two"


async def test_silence_ends_a_link_after_three_intervals(
    shared: EngineContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with echo() as target, pair(shared, target, report_interval=0.1) as (server, client):
        before = server.engine.snapshot().link
        with monkeypatch.context() as patch:
            patch.setattr(Link, "on_frames", lambda *_: None)
            await wait_until_async(lambda: server.events.said("has been silent for "), "the silence was noticed")
        texts = [event.text for event in server.events if "has been silent for " in event.text]
        silences = [float(text.partition("silent for ")[2].split()[0]) for text in texts]
        assert 0.3 <= min(silences) < GUARD_S
        await client.wait_state(UP)
        await server.wait_state(UP)
        assert server.engine.snapshot().link != before


@pytest.mark.parametrize(
    ("owner", "name"),
    [(EventTable, "handle"), (Link, "_flush"), (Pool, "acquire"), (LinkAcceptor, "accept_data_connection")],
)
async def test_a_defect_ends_the_engine_alone_and_is_raised(
    shared: EngineContext, monkeypatch: pytest.MonkeyPatch, owner: type, name: str
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a defect")

    async with echo() as target, pair(shared, target, report_interval=0.05) as both:
        address = visitors_address(*both)
        monkeypatch.setattr(owner, name, fail)
        if owner is LinkAcceptor:  # it sees data connections only while the pool is filled
            both[1].engine.close()
            async with running_engine(shared, client_spec(both[0], target)):
                await wait_until_async(both[0].task.done, "the engine has ended")
        else:
            with contextlib.suppress(ConnectionError):  # frames arrive all the time: it may have ended by now
                async with visit(address) as (_, writer):
                    writer.write(b"x")
            await wait_until_async(lambda: any(running.task.done() for running in both), "an engine has ended")
        for running in both:
            running.engine.close()
        await asyncio.wait({running.task for running in both})
        defects = [running.task.exception() for running in both]
        assert any(defects)
        assert {str(defect) for defect in defects if defect} == {"a defect"}
        monkeypatch.undo()
    async with echo() as target, pair(shared, target) as both:
        await round_trip(visitors_address(*both))


@pytest.mark.parametrize("times", [1, 2])
async def test_cancelling_closes_everything(shared: EngineContext, times: int) -> None:
    async with echo() as target, pair(shared, target) as (server, client):
        async with visit(visitors_address(server)) as (reader, writer):
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
            for running in (server, client):
                for _ in range(times):
                    running.task.cancel()
                    await run_loop_turns(1)
                await asyncio.wait({running.task})
                assert running.task.cancelled()
            with contextlib.suppress(ConnectionError):
                assert await reader.read(-1) == b""
        assert len(shared.reactor) == 0


async def test_a_client_retries_after_a_server_that_closes_with_its_welcome(
    shared: EngineContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of the connection comes together with the proof."""
    begin = Engine.start_link

    def close_at_once(self: Engine, link: Link, filler: PoolFiller | None = None) -> None:
        if self.spec.role is Role.SERVER:
            link.channel.close("gone")
        else:
            begin(self, link, filler)

    async with echo() as target, running_engine(shared, server_spec("127.0.0.1:0", mode=Mode.REVERSE)) as server:
        await server.wait_state(State.WAITING)
        with monkeypatch.context() as patch:
            patch.setattr(Engine, "start_link", close_at_once)
            client_context = running_engine(shared, client_spec(server, target))
            client = await client_context.__aenter__()
            await client.wait_state(State.COOLDOWN)
        await client.wait_state(UP)
        await server.wait_state(UP)
        await round_trip(visitors_address(server))
        await client_context.__aexit__(None, None, None)


async def test_a_server_that_resets_every_connection_causes_cooldowns_only(shared: EngineContext) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        configured = spec(Role.CLIENT, f"127.0.0.1:{listener.getsockname()[1]}", "127.0.0.1:1")
        async with running_engine(shared, configured) as client:
            resets = 0

            def reset_all() -> bool:
                nonlocal resets
                with contextlib.suppress(BlockingIOError):
                    sock, _ = listener.accept()
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                    sock.close()
                    resets += 1
                assert not client.task.done(), client.task.exception()
                return resets >= 4

            await wait_until_async(reset_all, "it was reset four times")
            await client.wait_state(State.COOLDOWN)


async def test_an_address_in_use_is_a_cooldown_with_a_hint_until_it_is_free(shared: EngineContext) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        running = running_engine(shared, server_spec(f"127.0.0.1:{port}"))
        server = await running.__aenter__()
        await server.wait_state(State.COOLDOWN)
        assert "in use" in server.reason
        assert "mode=forward" in server.reason
    await server.wait_state(State.WAITING)
    await running.__aexit__(None, None, None)


async def test_another_mode_than_the_servers_is_explained(shared: EngineContext) -> None:
    async with running_engine(shared, server_spec("127.0.0.1:0", mode=Mode.REVERSE)) as server:
        await server.wait_state(State.WAITING)
        async with running_engine(shared, client_spec(server, "127.0.0.1:1", mode=Mode.FORWARD)) as client:
            await wait_until_async(lambda: client.state is State.COOLDOWN, "the client cools down")
            assert "the server decided reverse" in client.reason


async def test_a_server_cannot_take_the_encryption_of_data_connections_back(
    shared: EngineContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = ServerHandshake.welcome

    def without_tls(self: ServerHandshake, welcome: Welcome) -> tuple[bytes, bytes]:
        return genuine(self, dataclasses.replace(welcome, carrier=Carrier.TCP))

    monkeypatch.setattr(ServerHandshake, "welcome", without_tls)
    async with running_engine(shared, server_spec("127.0.0.1:0", mode=Mode.REVERSE)) as server:
        await server.wait_state(State.WAITING)
        encrypted = client_spec(server, "127.0.0.1:1", data_tls=DataTls.ENCRYPTED)
        async with running_engine(shared, encrypted) as client:
            await client.wait_state(State.COOLDOWN)
            assert "this client has tls=1 and the server does not encrypt data connections" in client.reason


@pytest.mark.parametrize("host", ["", "%.example"])
async def test_a_verifying_client_with_an_unusable_host_name_does_not_crash(shared: EngineContext, host: str) -> None:
    """An empty host is dialled on this host and verified as localhost."""
    configured = spec(Role.CLIENT, "127.0.0.1:1", "127.0.0.1:1", key=KEY, data_tls=DataTls.VERIFIED)
    configured = dataclasses.replace(configured, tunnel=Address(host, free_port()))
    async with running_engine(shared, configured) as client:
        await client.wait_state(State.COOLDOWN)
        assert "cannot connect to the server" in client.reason


async def test_a_target_that_fails_every_other_time_does_not_flood_link_and_log(shared: EngineContext) -> None:
    async with echo() as target, pair(shared, target) as (server, client):
        end = client.engine._end
        assert isinstance(end, Egress)
        assert isinstance(end._dialler, SingleTarget)
        for _ in range(500):
            end._dialler._on_failed("it refused the connection", probe=False)
            end._dialler._on_recovered()
            await run_loop_turns(1)
        await server.wait_state(UP)
        assert not server.events.said("was lost")
        assert len(server.events) + len(client.events) < 80


async def test_a_peer_whose_target_status_flaps_loses_its_link(shared: EngineContext) -> None:
    async with echo() as target, pair(shared, target) as (server, client):
        link = client.engine._link
        assert link is not None
        for number in range(200):
            link.session.send(TargetStatus(None if number % 2 else f"reason {number}"))
        await wait_until_async(lambda: server.events.said("changes the status of its target too often"), "it is closed")
        assert len(server.events) < 100
        await server.wait_state(UP)


async def test_a_missing_certificate_file_fails_for_good(shared: EngineContext, tmp_path: Path) -> None:
    configured = server_spec("127.0.0.1:0", tls_cert=tmp_path / "none.pem", tls_key=tmp_path / "none.pem")
    async with running_engine(shared, configured) as server:
        await server.wait_end()
        assert server.state is State.FAILED
        assert "none.pem" in server.reason


@contextlib.contextmanager
def silent_port() -> Iterator[int]:
    """A port that drops every connection attempt: its backlog is full."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, contextlib.ExitStack() as stack:
        for _ in range(3):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


@pytest.mark.parametrize("is_silent", [True, False], ids=["silent", "refusing"])
async def test_data_connections_use_the_tunnel_port_when_the_data_port_does_not_answer(
    shared: EngineContext, monkeypatch: pytest.MonkeyPatch, *, is_silent: bool
) -> None:
    with silent_port() if is_silent else contextlib.nullcontext(free_port()) as port:
        data_port = property(lambda _self: port, lambda *_: None)
        monkeypatch.setattr(LinkAcceptor, "_data_port", data_port, raising=False)
        async with echo() as target, pair(shared, target) as (server, client):
            await round_trip(visitors_address(server))
            assert client.engine.snapshot().data_addr == server.engine.snapshot().tunnel_addr
            reason = "it does not answer" if is_silent else "it refused the connection"
            assert client.events.said(f"data port {port}: {reason}; using the tunnel port")


async def test_several_pairs_run_in_one_event_loop(shared: EngineContext) -> None:
    async with contextlib.AsyncExitStack() as stack:
        target = await stack.enter_async_context(echo())
        pairs = [await stack.enter_async_context(pair(shared, target)) for _ in range(4)]
        await asyncio.gather(*(round_trip(visitors_address(*both)) for both in pairs for _ in range(3)))

"""Pairs of engines in one loop, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime as dt
import ipaddress
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
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
from tests.support.sockets import tcp_pair
from tests.support.waiting import run_loop_turns, wait_until_async
from tunnel.engine import ingress
from tunnel.engine.context import DEFAULT_TIMING, EngineContext, Timing
from tunnel.engine.engine import Engine
from tunnel.engine.factory import create_engine
from tunnel.engine.link import Link
from tunnel.engine.pool import Pool
from tunnel.engine.server import LinkAcceptor
from tunnel.model.address import Address, parse_address
from tunnel.model.settings import Settings
from tunnel.model.spec import DataTls, Direction, Key, Mode, Role, TunnelSpec
from tunnel.model.state import State
from tunnel.runtime import backoff

KEY = Key("a shared key of some length")
UP = State.UP


@pytest.fixture
async def shared(request: pytest.FixtureRequest) -> AsyncIterator[EngineContext]:
    """A parameter of the fixture is the timing of all engines."""
    with no_descriptor_leak():
        async with shared_parts(getattr(request, "param", DEFAULT_TIMING)) as parts:
            yield parts


@dataclasses.dataclass
class Life:
    """An engine that runs, and what it says."""

    engine: Engine
    events: Events
    task: asyncio.Task[None]

    @property
    def state(self) -> State:
        return self.engine.snapshot().state

    @property
    def reason(self) -> str:
        return self.engine.snapshot().reason or ""

    async def becomes(self, state: State) -> None:
        await wait_until_async(lambda: self.state is state or self.task.done(), f"{self.engine.name} is {state}")
        assert self.state is state, (self.state, [event.text for event in self.events])

    async def end(self) -> None:
        await wait_until_async(self.task.done, f"{self.engine.name} has ended")
        self.task.result()


@asynccontextmanager
async def living(shared: EngineContext, spec: TunnelSpec, name: str = "") -> AsyncIterator[Life]:
    events = Events()
    engine = create_engine(name or spec.role.value, spec, shared, events.append)
    life = Life(engine, events, asyncio.create_task(engine.run()))
    try:
        yield life
    finally:
        engine.close()
        await asyncio.wait({life.task})


def spec(role: Role, tunnel: str, target: str, **rest: Any) -> TunnelSpec:  # noqa: ANN401  any field of a spec
    values = {name: rest.pop(name) for name in list(rest) if name in Settings.__slots__}
    settings = Settings(**values, explicit=frozenset(values))
    return TunnelSpec(role=role, tunnel=parse_address(tunnel), target=parse_address(target), settings=settings, **rest)


def server_spec(target: str, tunnel: str = "127.0.0.1:0", **rest: Any) -> TunnelSpec:  # noqa: ANN401  as above
    return spec(Role.SERVER, tunnel, target, **{"key": KEY, **rest})


def client_spec(server: Life, target: str, **rest: Any) -> TunnelSpec:  # noqa: ANN401  as above
    return spec(Role.CLIENT, server.engine.snapshot().tunnel_addr, target, **{"key": KEY, **rest})


@asynccontextmanager
async def echo(host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
    """A target that answers what it hears, and ends when the other side has."""
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
        listener.close()
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


async def ask(address: str, size: int = 200_000) -> None:
    """One visitor: says much, ends, and hears all of it again."""
    async with visit(address) as (reader, writer), asyncio.timeout(GUARD_S):
        said = bytes(n % 251 for n in range(size))
        writer.write(said)
        writer.write_eof()
        assert await reader.read(-1) == said


def visitors_address(*lives: Life) -> str:
    return next(
        life.engine.snapshot().target_addr
        for life in lives
        if (life.engine.spec.role is Role.SERVER) is (life.engine.snapshot().direction == "reverse")
    )


@asynccontextmanager
async def pair(
    shared: EngineContext,
    target: str,
    direction: Direction = Direction.REVERSE,
    host: str = "127.0.0.1",
    **rest: Any,  # noqa: ANN401  as above
) -> AsyncIterator[tuple[Life, Life]]:
    """A server and its client, both up."""
    visitors = str(Address(host, 0))
    reverse = direction is Direction.REVERSE
    told = server_spec(visitors if reverse else target, str(Address(host, 0)), mode=Mode(direction.value), **rest)
    async with living(shared, told) as server:
        await server.becomes(State.WAITING)
        async with living(shared, client_spec(server, target if reverse else visitors, **rest)) as client:
            await server.becomes(UP)
            await client.becomes(UP)
            yield server, client


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 that signs itself, and its key, in one file."""
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


@pytest.mark.parametrize("direction", list(Direction))
@pytest.mark.parametrize("data_tls", list(DataTls))
async def test_a_pair_carries_visitors(
    shared: EngineContext, direction: Direction, data_tls: DataTls, certificate: Path
) -> None:
    rest: dict[str, Any] = {"data_tls": data_tls}
    if data_tls is DataTls.VERIFIED:
        rest |= {"tls_cert": certificate, "tls_key": certificate, "tls_ca": certificate}
    async with echo() as target, pair(shared, target, direction, **rest) as (server, client):
        await asyncio.gather(*(ask(visitors_address(server, client)) for _ in range(12)))
        await wait_until_async(lambda: not server.engine.snapshot().connections.active, "all have left")
        for life in (server, client):
            shown = json.loads(json.dumps(life.engine.snapshot().as_json()))
            assert shown["state"] == "up"
            assert shown["direction"] == direction.value
            assert shown["connections"] == {"active": 0, "total": 12, "failed": 0, "limit": 1024}
            assert shown["bytes"] == {"in": 12 * 200_000, "out": 12 * 200_000}
            assert shown["data_tls"] == data_tls
            assert shown["auth"] == "key"
            assert shown["peer"]
            assert KEY.reveal() not in json.dumps(shown)
        assert server.engine.snapshot().link == client.engine.snapshot().link


@pytest.mark.parametrize("direction", list(Direction))
async def test_whoever_looks_on_is_told_where_visitors_begin_to_come(
    shared: EngineContext, direction: Direction
) -> None:
    stirred: list[str] = []
    shared.subscribe_activity(stirred.append)
    async with echo() as target, pair(shared, target, direction) as both:
        assert stirred == []
        async with visit(visitors_address(*both)), visit(visitors_address(*both)):
            await wait_until_async(
                lambda: all(life.engine.snapshot().connections.active == 2 for life in both), "both are served"
            )
            assert sorted(stirred) == ["client", "server"], "once, however many come"
        await wait_until_async(
            lambda: not any(life.engine.snapshot().connections.active for life in both), "both have left"
        )
        await ask(visitors_address(*both))
        assert sorted(stirred) == ["client", "client", "server", "server"]


async def test_visitors_who_have_to_wait_are_seen_too(shared: EngineContext) -> None:
    stirred: list[str] = []
    shared.subscribe_activity(stirred.append)
    async with living(shared, server_spec("127.0.0.1:0", mode=Mode.REVERSE)) as server:
        await server.becomes(State.WAITING)
        async with visit(visitors_address(server)), visit(visitors_address(server)):
            await wait_until_async(lambda: server.engine.snapshot().signals.queued == 2, "both wait")
            assert stirred == ["server"]


async def test_ipv6(shared: EngineContext) -> None:
    async with echo("::1") as target, pair(shared, target, host="::1") as (server, client):
        assert server.engine.snapshot().target_addr.startswith("[::1]:")
        await ask(visitors_address(server, client))


async def test_an_open_pair_works_and_says_so(shared: EngineContext) -> None:
    async with echo() as target, pair(shared, target, key=None) as (server, client):
        await ask(visitors_address(server, client))
        assert {life.engine.snapshot().auth for life in (server, client)} == {"open"}


@pytest.mark.parametrize("key", [Key("another key of some length"), None])
async def test_who_has_not_the_key_is_refused_and_cools_down(shared: EngineContext, key: Key | None) -> None:
    async with living(shared, server_spec("127.0.0.1:0", mode=Mode.REVERSE)) as server:
        await server.becomes(State.WAITING)
        async with living(shared, client_spec(server, "127.0.0.1:1", key=key)) as client:
            await wait_until_async(lambda: client.state is State.COOLDOWN, "the client cools down")
            assert "the handshake was refused" in client.reason
            assert server.engine.snapshot().refused.handshakes >= 1
            assert server.state is State.WAITING
            assert KEY.reveal() not in repr([*server.events, *client.events])


@pytest.mark.parametrize("shared", [Timing(liveness_timeout_s=GUARD_S)], indirect=True)
async def test_another_client_is_refused_and_takes_over_when_the_first_is_gone(shared: EngineContext) -> None:
    async with echo() as target, pair(shared, target) as (server, client):
        link = server.engine.snapshot().link
        async with living(shared, client_spec(server, target), "rival") as rival:
            await wait_until_async(lambda: "has this tunnel and answers" in rival.reason, "the rival is refused")
            assert server.engine.snapshot().link == link
            client.engine.close()
            await client.end()
            await rival.becomes(UP)
            await server.becomes(UP)
            assert server.engine.snapshot().link == rival.engine.snapshot().link != link
            await ask(visitors_address(server))


async def test_a_cooldown_ends_when_somebody_asks(shared: EngineContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "retry_delay", lambda *_: 600.0)
    port = free_port()
    async with (
        echo() as target,
        living(shared, spec(Role.CLIENT, f"127.0.0.1:{port}", target, key=KEY)) as client,
    ):
        await client.becomes(State.COOLDOWN)
        assert "it refused the connection" in client.reason
        cooldown = client.engine.snapshot().cooldown
        assert cooldown.attempt == 1
        assert 500 < cooldown.remaining_s <= 600
        async with living(shared, server_spec("127.0.0.1:0", f"127.0.0.1:{port}", mode=Mode.REVERSE)) as server:
            await server.becomes(State.WAITING)
            client.engine.retry()
            await client.becomes(UP)
            assert client.engine.snapshot().cooldown.attempt == 0
            await server.becomes(UP)
            client.engine.close()
            await client.end()


@pytest.mark.parametrize("direction", list(Direction))
async def test_a_refused_target_is_told_at_both_ends_and_heals_by_itself(
    shared: EngineContext, direction: Direction
) -> None:
    port = free_port()
    async with pair(shared, f"127.0.0.1:{port}", direction, server_cooldown=0.3, client_cooldown=0.3) as both:
        address = visitors_address(*both)
        async with visit(address) as (reader, _), asyncio.timeout(GUARD_S):
            assert await reader.read(-1) == b""
        for life in both:
            await life.becomes(State.COOLDOWN)
            assert "it refused the connection" in life.reason
        await wait_until_async(
            lambda: all(life.engine.snapshot().connections.failed == 1 for life in both), "it is counted"
        )
        async with echo(port=port):
            for life in both:
                await life.becomes(UP)
            await ask(address)


async def test_an_exit_that_is_closed_tries_its_target_no_more(
    shared: EngineContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backoff, "retry_delay", lambda *_: 0.05)
    async with pair(shared, f"127.0.0.1:{free_port()}") as (server, client):
        async with visit(visitors_address(server)) as (reader, _), asyncio.timeout(GUARD_S):
            await reader.read(-1)
        await client.becomes(State.COOLDOWN)
        for _ in range(5):
            client.engine.retry()
        exit_ = client.engine._end
        tries = 0

        def counted() -> None:
            nonlocal tries
            tries += 1

        await run_loop_turns(20)
        client.engine.close()
        await client.end()
        monkeypatch.setattr(type(exit_), "probe_now", lambda _self: counted())
        done = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(0.2, done.set_result, None)
        await done
        assert not tries
        assert not client.events.said("visitors were cut off")


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
                await ask_snapshot(server, lambda shown: shown.connections.active == 2)
                assert not answer.done()
                first.transport.abort()
                async with asyncio.timeout(GUARD_S):
                    assert await answer == b"third"
        assert server.engine.snapshot().connections.limit == 2


async def ask_snapshot(life: Life, condition: Callable[[Any], bool]) -> None:
    """A condition holds, and goes on to hold over many turns."""
    for _ in range(50):
        assert condition(life.engine.snapshot())
        await run_loop_turns(1)


async def test_limits_change_while_visitors_are_here(shared: EngineContext) -> None:
    async with echo() as target, pair(shared, target, semaphore_limit=1) as (server, client):
        address = visitors_address(server, client)
        async with visit(address) as (_, first):
            first.write(b"x")
            await wait_until_async(lambda: server.engine.snapshot().connections.active == 1, "one is served")
            more = Settings(semaphore_limit=3, explicit=frozenset({"semaphore_limit"}), report_interval=4.0)
            link = server.engine.snapshot().link
            for life in (server, client):
                life.engine.adopt(dataclasses.replace(life.engine.spec, settings=more))
            await ask(address)
            shown = server.engine.snapshot()
            assert shown.connections.limit == 3
            assert shown.connections.active >= 1
            assert shown.link == link


async def test_the_queue_of_visitors_is_bounded(shared: EngineContext) -> None:
    told = server_spec("127.0.0.1:0", mode=Mode.REVERSE, signal_queue_limit=3)
    async with echo() as target, living(shared, told) as server:
        await server.becomes(State.WAITING)
        address = visitors_address(server)
        crowd = [asyncio.create_task(ask(address, 10)) for _ in range(10)]
        await wait_until_async(lambda: server.engine.snapshot().signals.queued == 3, "three wait")
        await ask_snapshot(server, lambda shown: shown.signals.queued == 3)
        async with living(shared, client_spec(server, target)):
            await asyncio.gather(*crowd)  # nobody was dropped
            assert server.engine.snapshot().connections.total == 10


async def test_a_visitor_waits_for_a_link_for_a_bounded_time(
    shared: EngineContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingress, "QUEUE_TIMEOUT_S", 2.0)
    async with living(shared, server_spec("127.0.0.1:0", mode=Mode.REVERSE)) as server:
        await server.becomes(State.WAITING)
        for _ in range(2):  # the second one comes when the time is over already
            async with visit(visitors_address(server)) as (reader, _), asyncio.timeout(GUARD_S):
                assert await reader.read(-1) == b""
        assert server.engine.snapshot().connections.failed == 2
        assert server.events.said("there was no link for it in 2 s")


@pytest.mark.parametrize("direction", list(Direction))
@pytest.mark.parametrize("who", [0, 1])
async def test_a_drain_lets_visitors_finish_and_takes_no_new_ones(
    shared: EngineContext, direction: Direction, who: int
) -> None:
    async with echo() as target, pair(shared, target, direction) as both:
        address = visitors_address(*both)
        async with visit(address) as (reader, writer):
            writer.write(b"before ")
            assert await reader.readexactly(7) == b"before "
            both[who].engine.drain(30)
            await wait_until_async(lambda: both[who].state is State.DRAINING, "it drains")
            writer.write(b"after")
            assert await reader.readexactly(5) == b"after"
            assert not both[who].task.done()
            writer.write_eof()
            assert await reader.read(-1) == b""
        await both[who].end()
        assert both[who].state is State.STOPPED


async def test_a_drain_has_a_limit_and_closing_cuts(shared: EngineContext) -> None:
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
                await server.end()
            assert server.events.said("1 visitors were cut off")
            await wait_until_async(lambda: client.state is not UP, "the client knows")


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
        await client.becomes(UP)
        writer.write(b"two")
        writer.write_eof()
        assert await reader.read(-1) == b"two"


async def test_silence_ends_a_link_after_three_intervals(
    shared: EngineContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with echo() as target, pair(shared, target, report_interval=0.1) as (server, client):
        before = server.engine.snapshot().link
        on_frames = Link.on_frames
        with monkeypatch.context() as patch:
            patch.setattr(Link, "on_frames", lambda *_: None)
            await wait_until_async(lambda: server.events.said("has been silent for "), "the silence was noticed")
        assert Link.on_frames is on_frames
        await client.becomes(UP)
        await server.becomes(UP)
        assert server.engine.snapshot().link != before


@pytest.mark.parametrize(
    ("owner", "name"),
    [(Link, "_handle_event"), (Link, "_flush"), (Pool, "acquire"), (LinkAcceptor, "check_preface")],
)
async def test_a_defect_ends_the_engine_alone_and_is_raised(
    shared: EngineContext, monkeypatch: pytest.MonkeyPatch, owner: type, name: str
) -> None:
    def slip(*_: object) -> None:
        raise RuntimeError("a slip")

    async with echo() as target, pair(shared, target, report_interval=0.05) as both:
        address = visitors_address(*both)
        monkeypatch.setattr(owner, name, slip)
        if owner is LinkAcceptor:  # it sees data connections only while the pool is filled
            both[1].engine.close()
            async with living(shared, client_spec(both[0], target)):
                await wait_until_async(both[0].task.done, "the engine has ended")
        else:
            async with visit(address) as (_, writer):
                writer.write(b"x")
                await wait_until_async(lambda: any(life.task.done() for life in both), "an engine has ended")
        for life in both:
            life.engine.close()
        await asyncio.wait({life.task for life in both})
        defects = [life.task.exception() for life in both]
        assert any(defects)
        assert {str(defect) for defect in defects if defect} == {"a slip"}
        monkeypatch.undo()
    async with echo() as target, pair(shared, target) as both:
        await ask(visitors_address(*both))


@pytest.mark.parametrize("times", [1, 2])
async def test_cancelling_closes_everything(shared: EngineContext, times: int) -> None:
    async with echo() as target, pair(shared, target) as (server, client):
        async with visit(visitors_address(server)) as (reader, writer):
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
            for life in (server, client):
                for _ in range(times):
                    life.task.cancel()
                    await run_loop_turns(1)
                await asyncio.wait({life.task})
                assert life.task.cancelled()
            with contextlib.suppress(ConnectionError):
                assert await reader.read(-1) == b""
        assert len(shared.reactor) == 0


async def test_a_server_that_goes_with_its_welcome_is_tried_again(
    shared: EngineContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of the connection comes together with the proof."""
    begin = Engine.start_link

    def gone_at_once(self: Engine, link: Link) -> None:
        if self.spec.role is Role.SERVER:
            link.channel.close("gone")
        else:
            begin(self, link)

    async with echo() as target, living(shared, server_spec("127.0.0.1:0", mode=Mode.REVERSE)) as server:
        await server.becomes(State.WAITING)
        with monkeypatch.context() as patch:
            patch.setattr(Engine, "start_link", gone_at_once)
            client_context = living(shared, client_spec(server, target))
            client = await client_context.__aenter__()
            await client.becomes(State.COOLDOWN)
        await client.becomes(UP)
        await server.becomes(UP)
        await ask(visitors_address(server))
        await client_context.__aexit__(None, None, None)


async def test_a_server_that_resets_every_connection_is_no_defect(shared: EngineContext) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        told = spec(Role.CLIENT, f"127.0.0.1:{listener.getsockname()[1]}", "127.0.0.1:1")
        async with living(shared, told) as client:
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
            await client.becomes(State.COOLDOWN)


async def test_an_address_in_use_is_a_cooldown_with_a_hint_and_heals(shared: EngineContext) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        life = living(shared, server_spec(f"127.0.0.1:{port}"))
        server = await life.__aenter__()
        await server.becomes(State.COOLDOWN)
        assert "in use" in server.reason
        assert "mode=forward" in server.reason
    await server.becomes(State.WAITING)
    await life.__aexit__(None, None, None)


async def test_another_mode_than_the_servers_is_explained(shared: EngineContext) -> None:
    async with living(shared, server_spec("127.0.0.1:0", mode=Mode.REVERSE)) as server:
        await server.becomes(State.WAITING)
        async with living(shared, client_spec(server, "127.0.0.1:1", mode=Mode.FORWARD)) as client:
            await wait_until_async(lambda: client.state is State.COOLDOWN, "the client cools down")
            assert "the server decided reverse" in client.reason


async def test_a_missing_certificate_file_fails_for_good(shared: EngineContext, tmp_path: Path) -> None:
    told = server_spec("127.0.0.1:0", tls_cert=tmp_path / "none.pem", tls_key=tmp_path / "none.pem")
    async with living(shared, told) as server:
        await server.end()
        assert server.state is State.FAILED
        assert "none.pem" in server.reason


async def test_data_connections_find_the_tunnel_port_when_theirs_does_not_answer(
    shared: EngineContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LinkAcceptor, "_data_port", property(lambda _self: free_port(), lambda *_: None), raising=False)
    async with echo() as target, pair(shared, target) as (server, client):
        await ask(visitors_address(server))
        assert client.engine.snapshot().data_addr == server.engine.snapshot().tunnel_addr


async def test_pairs_share_one_reactor(shared: EngineContext) -> None:
    async with contextlib.AsyncExitStack() as stack:
        target = await stack.enter_async_context(echo())
        pairs = [await stack.enter_async_context(pair(shared, target)) for _ in range(4)]
        await asyncio.gather(*(ask(visitors_address(*both)) for both in pairs for _ in range(3)))


def test_no_pair_of_sockets_is_left_over() -> None:
    ours, theirs = tcp_pair()
    with no_descriptor_leak():
        one, other = tcp_pair(small=True)
        one.close()
        other.close()
    ours.close()
    theirs.close()

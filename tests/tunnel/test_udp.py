"""UDP tunnels: pairs of engines in one loop, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace

import pytest

from tests.support.engine_parts import no_descriptor_leak, shared_parts
from tests.support.ports import free_port
from tests.support.scale import GUARD_S
from tests.support.waiting import wait_until_async
from tests.tunnel.test_engine import RunningEngine, client_spec, echo, running_engine, server_spec
from tunnel.engine.context import EngineContext
from tunnel.engine.factory import create_engine
from tunnel.engine.visitor_list import list_visitors
from tunnel.model.address import parse_address
from tunnel.model.networks import NO_NETWORKS, NetworkSet, parse_network
from tunnel.model.snapshot import Snapshot
from tunnel.model.spec import DataTls, Direction, End, Mode, Proto, ProxyVersion, TunnelSpec
from tunnel.model.state import State
from tunnel.model.targets import TargetSpec
from tunnel.model.visitors import parse_selector
from tunnel.protocol.datagram_frames import MAX_DATAGRAM_BYTES
from tunnel.protocol.proxy_header import SIGNATURE

UP = State.UP
UDP = Proto.UDP
LARGEST = bytes(n % 251 for n in range(MAX_DATAGRAM_BYTES))


@pytest.fixture
async def shared() -> AsyncIterator[EngineContext]:
    with no_descriptor_leak():
        async with shared_parts() as parts:
            yield parts


class Peer:
    """A UDP socket of a test: a visitor, or a target."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0, *, peer: str | None = None) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self.sock.bind((host, port))
        if peer is not None:
            address = parse_address(peer)
            self.sock.connect((address.host, address.port))

    @property
    def address(self) -> str:
        host, port = self.sock.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def receive(self) -> bytes:
        async with asyncio.timeout(GUARD_S):
            return await asyncio.get_running_loop().sock_recv(self.sock, 1 << 16)

    async def receive_from(self) -> tuple[bytes, tuple[str, int]]:
        async with asyncio.timeout(GUARD_S):
            data, source = await asyncio.get_running_loop().sock_recvfrom(self.sock, 1 << 16)
            return data, source

    async def exchange(self, datagram: bytes) -> bytes:
        self.sock.send(datagram)
        return await self.receive()


@contextmanager
def peer(host: str = "127.0.0.1", port: int = 0, *, to: str | None = None) -> Iterator[Peer]:
    one = Peer(host, port, peer=to)
    try:
        yield one
    finally:
        one.sock.close()


@asynccontextmanager
async def udp_echo(
    host: str = "127.0.0.1", change: Callable[[bytes], bytes] = lambda data: data, port: int = 0
) -> AsyncIterator[str]:
    """A target that sends each datagram back."""
    with peer(host, port) as target:
        loop = asyncio.get_running_loop()

        def answer() -> None:
            with contextlib.suppress(BlockingIOError):
                while True:
                    data, source = target.sock.recvfrom(1 << 16)
                    target.sock.sendto(change(data), source)

        loop.add_reader(target.sock, answer)
        try:
            yield target.address
        finally:
            loop.remove_reader(target.sock)


@asynccontextmanager
async def udp_pair(
    shared: EngineContext,
    target: str,
    *,
    direction: Direction = Direction.REVERSE,
    visitors: str = "127.0.0.1:0",
    tunnel: str | None = None,
    server: dict[str, object] | None = None,
    client: dict[str, object] | None = None,
) -> AsyncIterator[tuple[RunningEngine, RunningEngine]]:
    """A tunnel that is up: server and client.

    Its port is not one of port 0: another test's UDP socket might have the same number, which the server opens, too.
    """
    tunnel = tunnel or f"127.0.0.1:{free_port()}"
    mode = Mode(direction.value)
    at_server, at_client = (visitors, target) if direction is Direction.REVERSE else (target, visitors)
    options = {"mode": mode, "proto": UDP}
    async with running_engine(shared, server_spec(at_server, tunnel, **(options | (server or {})))) as one:
        await wait_until_async(lambda: one.engine.snapshot().tunnel_addr[-2:] != ":0", "the server listens")
        async with running_engine(shared, client_spec(one, at_client, **(options | (client or {})))) as other:
            await one.wait_state(UP)
            await other.wait_state(UP)
            yield one, other


async def wait_snapshot(one: RunningEngine, condition: Callable[[Snapshot], bool]) -> None:
    await wait_until_async(lambda: condition(one.engine.snapshot()), lambda: f"{one.engine.snapshot()} is as expected")


def ingress_of(pair: tuple[RunningEngine, RunningEngine]) -> RunningEngine:
    server, client = pair
    return server if server.engine.snapshot().direction == Direction.REVERSE.value else client


def visitors_at(pair: tuple[RunningEngine, RunningEngine]) -> str:
    return ingress_of(pair).engine.snapshot().target_addr


@pytest.mark.parametrize("tls", [DataTls.OFF, DataTls.ENCRYPTED])
@pytest.mark.parametrize("direction", list(Direction))
async def test_datagrams_of_every_size_go_both_ways(shared: EngineContext, direction: Direction, tls: DataTls) -> None:
    options: dict[str, object] = {"data_tls": tls}
    async with (
        udp_echo() as target,
        udp_pair(shared, target, direction=direction, server=options, client=options) as pair,
    ):
        with peer(to=visitors_at(pair)) as visitor:
            for datagram in (b"first", b"", LARGEST, LARGEST[:16_384], b"last"):
                assert await visitor.exchange(datagram) == datagram
            sent = len(LARGEST) + 16_384 + 9
            for one in pair:
                await wait_snapshot(one, lambda seen: seen.bytes.to_visitors == sent)
                seen = one.engine.snapshot()
                assert (seen.proto, seen.bytes.from_visitors) == ("udp", sent)
                assert (seen.connections.active, seen.connections.total) == (1, 1)


async def test_a_burst_arrives_in_order_and_nothing_of_it_merges(shared: EngineContext) -> None:
    async with udp_echo() as target, udp_pair(shared, target) as pair:
        with peer(to=visitors_at(pair)) as visitor:
            assert await visitor.exchange(b"open") == b"open"
            burst = [f"{n}".encode() * (n % 7) for n in range(200)]
            for datagram in burst:
                visitor.sock.send(datagram)
            assert [await visitor.receive() for _ in burst] == burst


async def test_visitors_are_told_apart_by_address_and_port(shared: EngineContext) -> None:
    async with udp_echo() as target, udp_pair(shared, target) as pair:
        with contextlib.ExitStack() as stack:
            visitors = [stack.enter_context(peer(to=visitors_at(pair))) for _ in range(20)]
            for number, visitor in enumerate(visitors):
                visitor.sock.send(b"%d" % number)
            assert [await visitor.receive() for visitor in visitors] == [b"%d" % n for n in range(20)]
            listed = [view.address async for slice_ in list_visitors(ingress_of(pair).engine._end) for view in slice_]
            assert sorted(map(str, listed)) == sorted(visitor.address for visitor in visitors)


@pytest.mark.parametrize(
    ("everywhere", "addressed"), [("0.0.0.0:0", "127.0.0.9"), (":0", "127.0.0.9"), ("[::]:0", "::1")]
)
async def test_an_answer_leaves_from_the_address_that_was_addressed(
    shared: EngineContext, everywhere: str, addressed: str
) -> None:
    async with udp_echo() as target, udp_pair(shared, target, visitors=everywhere) as pair:
        port = int(visitors_at(pair).rpartition(":")[2])
        with peer("::1" if ":" in addressed else "127.0.0.1") as visitor:
            visitor.sock.sendto(b"question", (addressed, port))
            data, source = await visitor.receive_from()
            assert (data, source[:2]) == (b"question", (addressed, port))


async def test_a_target_where_nothing_listens_ends_the_flow_with_a_reason(shared: EngineContext) -> None:
    target = f"127.0.0.1:{free_port()}"
    async with udp_pair(shared, target) as pair:
        with peer(to=visitors_at(pair)) as visitor:
            visitor.sock.send(b"anybody?")
            reason = f"the target {target} cannot be reached: nothing listens on that UDP port"
            for one in pair:
                await wait_snapshot(one, lambda seen: seen.connections.active == 0)
            await wait_until_async(lambda: all(one.events.said(reason) for one in pair), "the reason is logged")
        assert all(one.state is UP for one in pair)


async def test_each_flow_that_its_target_refuses_has_failed_at_both_ends(shared: EngineContext) -> None:
    async with udp_pair(shared, f"127.0.0.1:{free_port()}") as pair, AsyncExitStack() as visitors:
        for _ in range(8):
            visitors.enter_context(peer(to=visitors_at(pair))).sock.send(b"anybody?")
        for one in pair:  # the end of a data connection, and its reason on the link, arrive in either order
            await wait_snapshot(one, lambda seen: seen.connections.failed == seen.connections.total == 8)
            assert one.engine.snapshot().connections.active == 0
    for one in pair:
        assert one.events.said("7 more were suppressed after this: ")
        assert "suppressed" not in (one.engine.snapshot().last_error or "suppressed")  # a count is no error of its own


async def test_an_idle_flow_ends_and_its_visitor_may_return(shared: EngineContext) -> None:
    options: dict[str, object] = {"udp_timeout": 0.1}
    async with udp_echo() as target, udp_pair(shared, target, server=options) as pair:
        with peer(to=visitors_at(pair)) as visitor:
            assert await visitor.exchange(b"one") == b"one"
            for one in pair:
                await wait_snapshot(one, lambda seen: seen.connections.active == 0)
            assert await visitor.exchange(b"two") == b"two"
        seen = pair[0].engine.snapshot()
        assert (seen.counters.idle_timeouts, seen.connections.total, seen.counters.dropped_datagrams) == (1, 2, 0)
        assert not pair[0].events.said("udp_timeout")  # it is how a flow ends: nothing that an operator has to see


async def test_empty_datagrams_keep_a_flow(shared: EngineContext) -> None:
    options: dict[str, object] = {"udp_timeout": 0.3}
    async with udp_echo() as target, udp_pair(shared, target, server=options) as pair:
        with peer(to=visitors_at(pair)) as visitor:
            for _ in range(12):
                assert await visitor.exchange(b"") == b""
                await asyncio.sleep(0.05)
        assert pair[0].engine.snapshot().connections.total == 1


async def test_a_flow_is_kicked_and_refused_by_the_rules_of_visitors(shared: EngineContext) -> None:
    async with udp_echo() as target, udp_pair(shared, target) as pair:
        server = pair[0].engine
        with peer(to=visitors_at(pair)) as visitor:
            assert await visitor.exchange(b"one") == b"one"
            assert [one.address for one in await server.kick(parse_selector("127.0.0.1"))] == [visitor.address]
            assert server.snapshot().connections.active == 0
            server.apply_live_settings(replace(server.spec, deny=NetworkSet.of([parse_network("127.0.0.0/8")])))
            visitor.sock.send(b"two")
            await wait_until_async(lambda: server.snapshot().refused.allow == 1, "the visitor is refused")
            server.apply_live_settings(replace(server.spec, deny=NO_NETWORKS))
            assert await visitor.exchange(b"three") == b"three"


async def test_an_idle_flow_gives_way_where_there_is_no_room(
    shared: EngineContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunnel.runtime.datagram_acceptor.EVICT_AFTER_S", 0.05)
    async with udp_echo() as target, udp_pair(shared, target, server={"semaphore_limit": 1}) as pair:
        server = pair[0].engine
        with peer(to=visitors_at(pair)) as first, peer(to=visitors_at(pair)) as second:
            assert await first.exchange(b"one") == b"one"
            second.sock.send(b"too early")
            await wait_until_async(lambda: server.snapshot().counters.dropped_datagrams == 1, "it is dropped")
            async with asyncio.timeout(GUARD_S):
                while True:
                    second.sock.send(b"two")
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(0.02):
                            assert await asyncio.get_running_loop().sock_recv(second.sock, 9) == b"two"
                        break
            assert server.snapshot().connections.active == 1
            assert server.snapshot().counters.idle_timeouts == 1


async def test_each_datagram_to_the_target_has_a_proxy_header(shared: EngineContext) -> None:
    with peer() as target:
        async with udp_pair(shared, target.address, client={"proxy": ProxyVersion.V2}) as pair:
            with peer(to=visitors_at(pair)) as visitor:
                for sent in (b"one", b"two"):
                    visitor.sock.send(sent)
                    data, _ = await target.receive_from()
                    assert data.startswith(SIGNATURE + b"\x21\x12")
                    assert data.endswith(sent)
                    port = int(visitor.address.rpartition(":")[2])
                    assert data[16:20] + data[24:26] == bytes([127, 0, 0, 1]) + port.to_bytes(2)


async def test_flows_survive_the_engine_that_replaces_theirs(shared: EngineContext) -> None:
    visitors, tunnel = (f"127.0.0.1:{free_port()}" for _ in range(2))
    async with udp_echo() as target, udp_pair(shared, target, visitors=visitors, tunnel=tunnel) as (server, _):
        with peer(to=visitors) as old, peer(to=visitors) as new:
            assert await old.exchange(b"one") == b"one"
            successor = create_engine("server", replace(server.engine.spec, reuse=True), shared, server.events.append)
            await successor.prepare(server.engine)
            server.engine.drain(GUARD_S)
            assert await old.exchange(b"two") == b"two"
            new.sock.send(b"three")  # waits in the port, which has no acceptor in this moment
            running = asyncio.create_task(successor.run())
            try:
                await wait_until_async(lambda: successor.snapshot().state is UP, "the successor has the link")
                assert await old.exchange(b"four") == b"four"
                assert await new.exchange(b"five") in {b"three", b"five"}
                assert server.engine.snapshot().connections.active == 1
                assert successor.snapshot().connections.active == 1
            finally:
                successor.close()
                await asyncio.wait({running})


async def test_a_tunnel_starts_again_while_its_former_visitors_finish(shared: EngineContext) -> None:
    visitors, tunnel = (f"127.0.0.1:{free_port()}" for _ in range(2))
    async with udp_echo() as target, udp_pair(shared, target, visitors=visitors, tunnel=tunnel) as (server, _):
        with peer(to=visitors) as old, peer(to=visitors) as new:
            assert await old.exchange(b"one") == b"one"
            server.engine.drain(GUARD_S)
            await wait_until_async(lambda: server.state is State.DRAINING, "the server drains")
            async with running_engine(shared, server.engine.spec, "again") as again:
                await again.wait_state(UP)
                assert await old.exchange(b"two") == b"two"
                assert await new.exchange(b"three") == b"three"
                assert [one.engine.snapshot().connections.active for one in (server, again)] == [1, 1]
                server.engine.close()
                await server.wait_end()
                assert await new.exchange(b"four") == b"four"
                assert await old.exchange(b"five") == b"five"


async def test_a_group_serves_flows_from_the_targets_that_are_there(shared: EngineContext) -> None:
    nothing = f"127.0.0.1:{free_port()}"
    async with udp_echo() as target:
        targets = tuple(TargetSpec(parse_address(each)) for each in (nothing, target))
        async with udp_pair(shared, nothing, client={"targets": targets, "inter": 60.0}) as pair:
            client = pair[1].engine

            async def answers() -> bool:
                with peer(to=visitors_at(pair)) as visitor:
                    visitor.sock.send(b"x")
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(0.2):
                            return await asyncio.get_running_loop().sock_recv(visitor.sock, 9) == b"x"
                return False

            for _ in range(8):
                await answers()
            assert [view.state.value for view in client.snapshot().targets] == ["down", "up"]
            assert all([await answers() for _ in range(4)])


def test_the_idle_limit_of_a_flow_is_the_shorter_one() -> None:
    spec = TunnelSpec(role=server_spec("127.0.0.1:1").role, tunnel=parse_address(":1"), target=parse_address(":2"))
    for changes, limits in (
        ({}, {Proto.TCP: 0.0}),
        ({"proto": UDP}, {UDP: 60.0}),
        ({"proto": UDP, "idle_timeout": 5.0}, {UDP: 5.0}),
        ({"proto": UDP, "idle_timeout": 500.0}, {UDP: 60.0}),
        ({"proto": Proto.BOTH, "idle_timeout": 500.0}, {Proto.TCP: 500.0, UDP: 60.0}),
    ):
        changed = replace(spec, **changes)
        assert changed.idle_limits(End.INGRESS) == limits
        at_egress = changed.idle_limits(End.EGRESS)
        assert all(at_egress[proto] >= limit for proto, limit in limits.items())


async def test_an_address_that_is_in_use_is_a_sentence(shared: EngineContext) -> None:
    with peer() as taken:
        spec = server_spec(taken.address, proto=UDP, mode=Mode.REVERSE)
        async with running_engine(shared, spec) as server:
            text = f"cannot listen on {taken.address} for UDP visitors: the address is in use by another program"
            await wait_until_async(lambda: server.events.said(text), "the reason is logged")


@pytest.mark.parametrize("direction", list(Direction))
@pytest.mark.parametrize("proto", [Proto.UDP, Proto.BOTH])
async def test_a_target_that_refuses_flows_is_the_reason_until_one_is_answered(
    shared: EngineContext, monkeypatch: pytest.MonkeyPatch, direction: Direction, proto: Proto
) -> None:
    monkeypatch.setattr("tunnel.engine.udp_failures._CHECK_INTERVAL_S", 0.02)
    port, options = free_port(), {"proto": proto}
    target = f"127.0.0.1:{port}"
    async with AsyncExitStack() as parts:
        if proto is Proto.BOTH:
            await parts.enter_async_context(echo(port=port))
        pair = await parts.enter_async_context(
            udp_pair(shared, target, direction=direction, server=dict(options), client=dict(options))
        )
        reason = f"the target {target} cannot be reached: nothing listens on that UDP port"

        with peer(to=visitors_at(pair)) as visitor:

            def is_shown() -> bool:  # with both, the end of the first flow may come before its reason
                visitor.sock.send(b"anybody?")
                return all(one.reason == reason for one in pair)

            await wait_until_async(is_shown, "both ends show the reason")
        assert all(one.state is UP for one in pair)
        await parts.enter_async_context(udp_echo(port=port))
        with peer(to=visitors_at(pair)) as visitor:
            assert await visitor.exchange(b"back") == b"back"
            await wait_until_async(lambda: not any(one.reason for one in pair), "a flow was answered")

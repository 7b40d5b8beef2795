"""Tunnels with proto=both: visitors of TCP and of UDP on one address, served by one pair of engines."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

import pytest

from tests.support.engine_parts import no_descriptor_leak, shared_parts
from tests.support.ports import free_port
from tests.support.scale import GUARD_S
from tests.support.waiting import wait_until_async
from tests.tunnel.test_engine import RunningEngine, client_spec, echo, pool_of, running_engine, server_spec, visit
from tests.tunnel.test_udp import ingress_of, peer, udp_echo, udp_pair, visitors_at, wait_snapshot
from tunnel.engine.context import EngineContext
from tunnel.engine.factory import create_engine
from tunnel.engine.visitor_list import list_visitors
from tunnel.model.address import parse_address
from tunnel.model.events import Event
from tunnel.model.networks import NetworkSet, parse_network
from tunnel.model.spec import DataTls, Direction, LogLevel, Mode, Mux, Proto, ProxyVersion
from tunnel.model.state import State
from tunnel.model.targets import TargetSpec
from tunnel.protocol.frames import Launch, UdpLaunch
from tunnel.protocol.proxy_header import SIGNATURE
from tunnel.runtime.listeners import UDP_VISITORS, VISITORS

UP = State.UP
BOTH: dict[str, object] = {"proto": Proto.BOTH}


@pytest.fixture
async def shared() -> AsyncIterator[EngineContext]:
    with no_descriptor_leak():
        async with shared_parts() as parts:
            yield parts


def mark(data: bytes) -> bytes:
    """What a target answers to a datagram: not what it answers to a stream."""
    return b"u" + data


@asynccontextmanager
async def echo_of_both() -> AsyncIterator[str]:
    """A target that answers streams and datagrams on one address."""
    port = free_port()
    async with udp_echo(change=mark, port=port) as target, echo(port=port):
        yield target


async def exchange_stream(address: str, data: bytes = b"stream") -> None:
    async with visit(address) as (reader, writer):
        writer.write(data)
        async with asyncio.timeout(GUARD_S):
            assert await reader.readexactly(len(data)) == data


async def exchange_datagram(address: str, data: bytes = b"datagram") -> None:
    with peer(to=address) as visitor:
        assert await visitor.exchange(data) == b"u" + data


async def protos_at(running: RunningEngine) -> list[tuple[str, str]]:
    """What each visitor speaks, and its state."""
    views = [view async for slice_ in list_visitors(running.engine._end) for view in slice_]
    return sorted((view.proto.value, view.state) for view in views)


@pytest.mark.parametrize("tls", [DataTls.OFF, DataTls.ENCRYPTED])
@pytest.mark.parametrize("direction", list(Direction))
async def test_visitors_of_both_protocols_are_served_on_one_port(
    shared: EngineContext, direction: Direction, tls: DataTls
) -> None:
    options = BOTH | {"data_tls": tls}
    async with (
        echo_of_both() as target,
        udp_pair(shared, target, direction=direction, server=options, client=options) as pair,
    ):
        address = visitors_at(pair)
        with peer(to=address) as flow:
            async with visit(address) as (reader, writer):
                for number in range(3):
                    writer.write(b"stream %d" % number)
                    assert await reader.readexactly(8) == b"stream %d" % number
                    assert await flow.exchange(b"%d" % number) == b"u%d" % number
                for one in pair:
                    assert await protos_at(one) == [("tcp", "connected"), ("udp", "connected")]
                    seen = one.engine.snapshot()
                    assert (seen.proto, seen.connections.active, seen.bytes.from_visitors) == ("both", 2, 27)
                    assert [link.udp_carrier for link in seen.links] == ["datagram"]


async def test_data_connections_of_tcp_are_used_again_beside_a_flow(shared: EngineContext) -> None:
    options = BOTH | {"reuse": True, "min_pool_capacity": 2, "mux": Mux.OFF}
    dialled: set[int] = set()
    async with echo_of_both() as target, udp_pair(shared, target, server=options, client=options) as pair:
        address = visitors_at(pair)
        with peer(to=address) as flow:
            assert await flow.exchange(b"first") == b"ufirst"
            for visits in range(1, 13):
                await exchange_stream(address)
                await wait_until_async(partial(is_flow_alone, pair, visits + 1), "the stream has ended at both ends")
                dialled |= {*pool_of(pair[0]).idle}
            assert await flow.exchange(b"last") == b"ulast"
        assert [one.engine.snapshot().connections.failed for one in pair] == [0, 0]
    assert max(dialled) <= 8, "a data connection for each visitor would be the 13th at least"


def is_flow_alone(pair: Sequence[RunningEngine], total: int) -> bool:
    counts = [one.engine.snapshot().connections for one in pair]
    return all((count.active, count.total) == (1, total) for count in counts) and len(pool_of(pair[0]).idle) >= 2


@pytest.mark.parametrize(("server", "client"), list(itertools.permutations(Proto, 2)))
async def test_two_ends_that_disagree_about_the_protocol_make_no_link(
    shared: EngineContext, server: Proto, client: Proto
) -> None:
    options = {"mode": Mode.REVERSE}
    async with running_engine(shared, server_spec("127.0.0.1:0", proto=server, **options)) as one:
        await wait_until_async(lambda: one.engine.snapshot().tunnel_addr[-2:] != ":0", "the server listens")
        async with running_engine(shared, client_spec(one, "127.0.0.1:9", proto=client, **options)) as other:
            text = f"the client has proto={client}, but the server {server}; write the same at both ends"
            await wait_until_async(lambda: one.events.said(text) and other.events.said(text), "both say why")


@pytest.mark.parametrize(("proto", "launch"), [(Proto.TCP, UdpLaunch), (Proto.UDP, Launch)])
async def test_an_egress_dials_only_what_its_tunnel_speaks(
    shared: EngineContext, proto: Proto, launch: type[Launch]
) -> None:
    options: dict[str, object] = {"proto": proto}
    async with udp_pair(shared, "127.0.0.1:9", server=options, client=options) as (server, client):
        link = server.engine._link
        assert link is not None
        link.session.send(launch(((1, b""),)))
        await wait_until_async(lambda: client.events.said("and this tunnel has none"), "the client closes the link")


async def test_each_protocol_has_its_idle_time(shared: EngineContext) -> None:
    options = BOTH | {"udp_timeout": 0.1, "log": LogLevel.DEBUG}
    async with echo_of_both() as target, udp_pair(shared, target, server=options, client=BOTH) as pair:
        async with visit(visitors_at(pair)) as (reader, writer):
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
            await exchange_datagram(visitors_at(pair))
            for one in pair:
                await wait_snapshot(one, lambda seen: seen.connections.active == 1)
            assert await protos_at(pair[0]) == [("tcp", "connected")]
        assert pair[0].engine.snapshot().counters.idle_timeouts == 1
        assert pair[0].events.said("1 visitor disconnected: udp_timeout")


async def test_limits_and_rules_count_visitors_of_both_together(shared: EngineContext) -> None:
    options = BOTH | {"max_per_address": 1}
    async with echo_of_both() as target, udp_pair(shared, target, server=options, client=BOTH) as pair:
        server = pair[0].engine
        async with visit(visitors_at(pair)) as (reader, writer):
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
            with peer(to=visitors_at(pair)) as flow:
                flow.sock.send(b"one too many")
                await wait_until_async(lambda: server.snapshot().refused.per_address == 1, "the flow is refused")
        await wait_snapshot(pair[0], lambda seen: seen.connections.active == 0)
        deny = NetworkSet.of([parse_network("127.0.0.0/8")])
        server.apply_live_settings(replace(server.spec, deny=deny))
        with peer(to=visitors_at(pair)) as flow:
            flow.sock.send(b"denied")
            with contextlib.suppress(ConnectionError):
                async with visit(visitors_at(pair)) as (reader, _):
                    assert await reader.read() == b""
            await wait_until_async(lambda: server.snapshot().refused.allow == 2, "both are refused")


async def test_a_target_without_tcp_still_serves_flows_and_the_state_says_why(shared: EngineContext) -> None:
    async with (
        udp_echo(change=mark, port=free_port()) as target,
        udp_pair(shared, target, server=BOTH, client=BOTH | {"client_cooldown": 60.0}) as pair,
    ):
        async with visit(visitors_at(pair)) as (reader, _):
            assert await reader.read() == b""
        for one in pair:
            await one.wait_state(State.COOLDOWN)
        await exchange_datagram(visitors_at(pair))
        assert [one.state for one in pair] == [State.COOLDOWN] * 2
        assert f"the target {target} cannot be reached" in (pair[1].engine.snapshot().reason or "")
        async with echo(port=int(target.rpartition(":")[2])):
            pair[1].engine.retry()
            for one in pair:
                await one.wait_state(UP)
            await exchange_stream(visitors_at(pair))


async def test_a_group_is_judged_by_tcp_and_by_what_closed_ports_answer(shared: EngineContext) -> None:
    nothing = f"127.0.0.1:{free_port()}"
    async with echo_of_both() as target, udp_echo(change=mark, port=free_port()) as without_tcp:
        targets = tuple(TargetSpec(parse_address(each)) for each in (nothing, without_tcp, target))
        options = BOTH | {"targets": targets, "inter": 0.1, "fall": 1}
        async with udp_pair(shared, nothing, server=BOTH, client=options) as pair:

            def states() -> list[str]:
                return [view.state.value for view in pair[1].engine.snapshot().targets]

            await wait_until_async(lambda: states() == ["down", "down", "up"], "the checks are made")
            for _ in range(4):
                await exchange_datagram(visitors_at(pair))
                await exchange_stream(visitors_at(pair))
            assert states() == ["down", "down", "up"]


@asynccontextmanager
async def group_with_closed_udp_port(shared: EngineContext, **options: object) -> AsyncIterator[list[RunningEngine]]:
    """A group of a target that accepts TCP alone, and one of both if ``has_other``; the UDP pause is an hour."""
    has_other = options.pop("has_other", True)
    async with echo_of_both() as other, echo() as without_udp:
        targets = tuple(TargetSpec(parse_address(each)) for each in (without_udp, other)[: 1 + bool(has_other)])
        group = BOTH | {"targets": targets, "inter": 3600.0, "rise": 1} | options
        async with udp_pair(shared, without_udp, server=BOTH, client=group) as pair:
            yield list(pair)


async def send_until(pair: list[RunningEngine], condition: Callable[[], bool]) -> None:
    """Let visitors of UDP come, each from another port, until the client meets a condition."""

    def comes() -> bool:
        with peer(to=pair[0].engine.snapshot().target_addr) as visitor:
            visitor.sock.send(b"anything")
        return condition()

    await wait_until_async(comes, "visitors of UDP have met a closed port")


async def test_a_closed_udp_port_keeps_visitors_of_udp_away_and_leaves_those_of_tcp(shared: EngineContext) -> None:
    async with group_with_closed_udp_port(shared) as pair:
        engine = pair[1].engine
        await send_until(pair, lambda: engine.snapshot().targets[0].reason is not None)
        address = pair[0].engine.snapshot().target_addr
        for _ in range(4):
            await exchange_datagram(address)
            await exchange_stream(address)
        first, second = engine.snapshot().targets
        assert (first.state.value, second.state.value) == ("up", "up")
        assert "met a closed port, and get other targets" in (first.reason or "")
        assert second.reason is None
        assert pair[1].events.said("does not listen on UDP: visitors of UDP avoid it for 3600 s")
        assert first.checks is not None
        assert first.checks.changes == 0
        assert [one.state for one in pair] == [UP] * 2


async def test_the_only_target_of_a_group_still_gets_visitors_that_meet_its_closed_port(shared: EngineContext) -> None:
    async with group_with_closed_udp_port(shared, has_other=False) as pair:
        engine, port = pair[1].engine, int(pair[1].engine.snapshot().targets[0].address.rpartition(":")[2])
        await send_until(pair, lambda: engine.snapshot().targets[0].reason is not None)
        address = pair[0].engine.snapshot().target_addr
        await exchange_stream(address)
        async with udp_echo(change=mark, port=port):
            await exchange_datagram(address)
        await wait_snapshot(pair[1], lambda seen: seen.state is UP)


async def test_idle_flows_give_way_to_connections_also_while_new_flows_come(
    shared: EngineContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen to fail: a visitor of TCP waited for ``udp_timeout`` while forged visitors of UDP had every place."""
    monkeypatch.setattr("tunnel.runtime.datagram_acceptor.EVICT_AFTER_S", 0.05)
    options = BOTH | {"semaphore_limit": 4}
    async with echo_of_both() as target, udp_pair(shared, target, server=options, client=BOTH) as pair:
        address, server = visitors_at(pair), pair[0].engine
        with contextlib.ExitStack() as stack:

            def floods_until(condition: Callable[[], bool]) -> bool:
                stack.enter_context(peer(to=address)).sock.send(b"forged")
                return condition()

            is_full = partial(floods_until, lambda: server.snapshot().connections.active == 4)
            await wait_until_async(is_full, "visitors of UDP have every place")
            for _ in range(3):
                exchanged = asyncio.create_task(exchange_stream(address))
                await wait_until_async(partial(floods_until, exchanged.done), "a connection is served")
                await exchanged


async def test_a_header_goes_before_the_stream_and_before_each_datagram(shared: EngineContext) -> None:
    with peer(port=free_port()) as flows:
        listener = await asyncio.start_server(_answer_all, "127.0.0.1", int(flows.address.rpartition(":")[2]))
        async with listener:
            options = BOTH | {"proxy": ProxyVersion.V2}
            async with udp_pair(shared, flows.address, server=BOTH, client=options) as pair:
                async with visit(visitors_at(pair)) as (reader, writer):
                    writer.write(b"x")
                    writer.write_eof()
                    received = await reader.read()
                    assert received.startswith(SIGNATURE + b"\x21\x11")
                    assert received.endswith(b"x")
                with peer(to=visitors_at(pair)) as visitor:
                    visitor.sock.send(b"one")
                    data, _ = await flows.receive_from()
                    assert data.startswith(SIGNATURE + b"\x21\x12")


async def _answer_all(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(await reader.read())
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize(
    ("before", "after"), [("both", "both"), ("both", "tcp"), ("both", "udp"), ("tcp", "both"), ("udp", "both")]
)
async def test_a_successor_takes_over_the_sockets_that_it_wants(shared: EngineContext, before: str, after: str) -> None:
    visitors, tunnel = (f"127.0.0.1:{free_port()}" for _ in range(2))
    options: dict[str, object] = {"proto": Proto(before)}
    async with (
        echo_of_both() as target,
        udp_pair(shared, target, visitors=visitors, tunnel=tunnel, server=options, client=options) as (server, client),
    ):
        present = _sockets_of(server)
        with peer(to=visitors) as flow:
            has_flow = before != "tcp"
            if has_flow:
                assert await flow.exchange(b"1") == b"u1"
            spec = replace(server.engine.spec, proto=Proto(after), dial_timeout=9.0)
            successor = create_engine("server", spec, shared, server.events.append)
            await successor.prepare(server.engine)
            assert {name: one for name, one in successor._bound.items() if name in present} == {
                name: one for name, one in present.items() if name in successor._bound
            }
            server.engine.drain(GUARD_S)
            running = asyncio.create_task(successor.run())
            try:
                if has_flow:
                    assert await flow.exchange(b"2") == b"u2"
                client.engine.close()
                async with running_engine(shared, replace(client.engine.spec, proto=Proto(after)), "again") as again:
                    await again.wait_state(UP)
                    if after != "udp":
                        await exchange_stream(visitors)
                    if after != "tcp":
                        await exchange_datagram(visitors)
            finally:
                successor.close()
                await asyncio.wait({running})


def _sockets_of(running: RunningEngine) -> dict[str, socket.SocketType]:
    end = running.engine._end
    assert end is not None
    listeners = {purpose: one._listener for purpose, one in end.visitor_acceptors.items()}
    return {purpose: listener for purpose, listener in listeners.items() if listener is not None}


async def test_connections_and_flows_survive_the_engine_that_replaces_theirs(shared: EngineContext) -> None:
    visitors, tunnel = (f"127.0.0.1:{free_port()}" for _ in range(2))
    async with (
        echo_of_both() as target,
        udp_pair(shared, target, visitors=visitors, tunnel=tunnel, server=BOTH, client=BOTH) as (server, _),
    ):
        with peer(to=visitors) as flow:
            async with visit(visitors) as (reader, writer):
                writer.write(b"1")
                assert await reader.readexactly(1) == b"1"
                assert await flow.exchange(b"1") == b"u1"
                spec = replace(server.engine.spec, reuse=True)
                successor = create_engine("server", spec, shared, server.events.append)
                await successor.prepare(server.engine)
                server.engine.drain(GUARD_S)
                running = asyncio.create_task(successor.run())
                try:
                    await wait_until_async(lambda: successor.snapshot().state is UP, "the successor has the link")
                    writer.write(b"2")
                    assert await reader.readexactly(1) == b"2"
                    assert await flow.exchange(b"2") == b"u2"
                    assert server.engine.snapshot().connections.active == 2
                    await exchange_stream(visitors)
                    await exchange_datagram(visitors)
                finally:
                    successor.close()
                    await asyncio.wait({running})


async def test_a_random_port_is_one_that_both_protocols_have(shared: EngineContext) -> None:
    spec = server_spec("127.0.0.1:0", mode=Mode.REVERSE, proto=Proto.BOTH)
    async with running_engine(shared, spec) as server:
        await server.wait_state(State.WAITING)
        ports = {purpose: sock.getsockname()[1] for purpose, sock in _sockets_of(server).items()}
        assert set(ports) == {VISITORS, UDP_VISITORS}
        assert len(set(ports.values())) == 1


async def test_a_port_that_is_taken_for_udp_leaves_none_open_for_tcp(shared: EngineContext) -> None:
    with peer(port=free_port()) as taken:
        async with running_engine(shared, server_spec(taken.address, mode=Mode.REVERSE, proto=Proto.BOTH)) as server:
            text = f"cannot listen on {taken.address} for UDP visitors: the address is in use by another program"
            await wait_until_async(lambda: server.events.said(text), "the reason is logged")
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection(*taken.sock.getsockname())


async def test_a_defect_in_the_log_while_visitors_are_accepted_first_leaves_no_port_open(shared: EngineContext) -> None:
    seen: list[Event] = []

    def fail_once(event: Event) -> None:
        seen.append(event)
        if "visitors are accepted on" in event.text:
            raise RuntimeError("a defect")

    address = f"127.0.0.1:{free_port()}"
    engine = create_engine("server", server_spec(address, mode=Mode.REVERSE, proto=Proto.BOTH), shared, fail_once)
    with pytest.raises(RuntimeError, match="a defect"):
        await engine.run()
    assert any(address in event.text for event in seen), "it did accept"
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*address.split(":"))
    with peer(port=int(address.split(":")[1])):
        pass  # the port is free for UDP, too


async def test_two_clients_share_visitors_of_both(shared: EngineContext) -> None:
    server_options, client_options = BOTH | {"clients": 2}, BOTH
    async with (
        echo_of_both() as target,
        udp_pair(shared, target, server=server_options, client=client_options) as (server, client),
    ):
        second = client_spec(server, target, mode=Mode.REVERSE, proto=Proto.BOTH)
        async with running_engine(shared, second, "second") as other:
            await other.wait_state(UP)
            await wait_snapshot(server, lambda seen: len(seen.links) == 2)
            address = ingress_of((server, client)).engine.snapshot().target_addr
            for _ in range(3):
                await exchange_stream(address)
                await exchange_datagram(address)
            totals = [one.engine.snapshot().connections.total for one in (client, other)]
            assert sorted(totals) == [3, 3]

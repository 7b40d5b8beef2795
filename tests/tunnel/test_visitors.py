"""The list of visitors and the ways to disconnect them: the selector alone, then engines over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ipaddress
import itertools
import socket
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.engine_parts import no_descriptor_leak, shared_parts
from tests.support.scale import GUARD_S
from tests.support.sockets import close_listener
from tests.support.waiting import run_loop_turns, wait_until_async
from tests.tunnel.test_engine import (
    RunningEngine,
    client_spec,
    echo,
    pair,
    running_engine,
    server_spec,
    visitors_address,
)
from tunnel.engine import visitor_list
from tunnel.engine.context import EngineContext
from tunnel.engine.visitor_list import kick_visitors, list_visitors
from tunnel.forwarding.flow import Flow
from tunnel.forwarding.lanes import Lane
from tunnel.forwarding.tcp import CLOSED_FLOW, Relay
from tunnel.model.address import parse_address
from tunnel.model.errors import InvalidValueError
from tunnel.model.networks import NetworkSet, parse_network
from tunnel.model.spec import DataTls, Direction
from tunnel.model.state import State
from tunnel.model.visitor_end import VisitorEnd, VisitorRecord
from tunnel.model.visitors import CONNECTED, QUEUED, VisitorView, parse_selector, visitor_id
from tunnel.protocol.visitor_address import pack_address

if TYPE_CHECKING:
    from tunnel.engine.tunnel_end import TunnelEnd

UP = State.UP
IPS = st.ip_addresses(v=4) | st.ip_addresses(v=6, network="2000::/3")
PORTS = st.integers(1, 65535)


@given(IPS, IPS, PORTS, st.data())
def test_a_network_selects_what_the_standard_library_says_is_in_it(
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address,
    other: ipaddress.IPv4Address | ipaddress.IPv6Address,
    port: int,
    data: st.DataObject,
) -> None:
    bits = data.draw(st.integers(0, ip.max_prefixlen))
    network = ipaddress.ip_network(f"{ip}/{bits}", strict=False)
    selector = parse_selector(str(network))
    assert selector.selects("any", pack_address((str(ip), port)))
    assert selector.selects("any", pack_address((str(other), port))) is (other in network)


@given(IPS, PORTS, PORTS)
def test_an_address_with_a_port_selects_one_connection(
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int, other: int
) -> None:
    if ip.is_multicast or str(ip) == "255.255.255.255":
        return  # TCP has no such visitors
    selector = parse_selector(f"[{ip}]:{port}" if ip.version == 6 else f"{ip}:{port}")
    assert selector.selects(None, pack_address((str(ip), port)))
    assert selector.selects(None, pack_address((str(ip), other))) is (port == other)


@given(st.text(max_size=60))
def test_any_text_is_a_selector_or_a_sentence(text: str) -> None:
    with contextlib.suppress(InvalidValueError):
        parse_selector(text)


def test_a_mapped_address_selects_visitors_of_ipv4() -> None:
    visitor = pack_address(("192.0.2.7", 1))
    assert parse_selector("::ffff:192.0.2.7").selects(None, visitor)
    assert parse_selector("::ffff:192.0.2.0/120").selects(None, visitor)
    assert not parse_selector("::/0").selects(None, visitor)


def test_an_address_selects_another_port_only_if_it_names_none() -> None:
    visitor = pack_address(("192.0.2.7", 1))
    assert parse_selector("192.0.2.7").selects(None, visitor)
    assert parse_selector("192.0.2.7:1").selects(None, visitor)
    assert not parse_selector("192.0.2.7:2").selects(None, visitor)


def test_an_id_selects_one_visitor_and_no_unknown_one() -> None:
    ident = visitor_id("0123456789abcdef", 7, 2)
    assert ident == "0123456789abcdef-7.2"
    selector = parse_selector(ident)
    assert selector.selects(ident, b"")
    assert not selector.selects(visitor_id("0123456789abcdef", 7, 0), b"")
    assert not selector.selects(None, pack_address(("192.0.2.7", 1)))


@pytest.mark.parametrize("text", ["192.0.2.1/24", "", "web", "192.0.2", "0123456789abcdef-", "192.0.2.1:99999", "*"])
def test_what_is_no_selector_is_named_with_the_way_out(text: str) -> None:
    with pytest.raises(InvalidValueError, match=r"write 192\.0\.2\.0/24|write a visitor's ID, an IP address"):
        parse_selector(text)


# --- engines ----------------------------------------------------------------------------------------------------------


@pytest.fixture
async def shared() -> AsyncIterator[EngineContext]:
    with no_descriptor_leak():
        async with shared_parts() as parts:
            yield parts


class Visitor:
    """A connected visitor that has had an answer."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.address = "{}:{}".format(*writer.get_extra_info("sockname"))

    async def is_reset(self) -> bool:
        """Whether the connection ends with a reset, within a time."""
        async with asyncio.timeout(GUARD_S):
            try:
                await self.reader.read()
            except ConnectionResetError:
                return True
            return False


@asynccontextmanager
async def visitor_from(host: str, address: str, size: int = 1) -> AsyncIterator[Visitor]:
    where = parse_address(address)
    reader, writer = await asyncio.open_connection(where.host, where.port, local_addr=(host, 0))
    try:
        async with asyncio.timeout(GUARD_S):
            writer.write(bytes(size))
            await reader.readexactly(size)
        yield Visitor(reader, writer)
    finally:
        writer.transport.abort()


async def listed(running: RunningEngine) -> list[VisitorView]:
    return [visitor async for visitors in running.engine.visitors() for visitor in visitors]


def _active(running: RunningEngine) -> int:
    return running.engine.snapshot().connections.active


@pytest.mark.usefixtures("carriage")
@pytest.mark.parametrize("direction", list(Direction))
@pytest.mark.parametrize("data_tls", [DataTls.OFF, DataTls.ENCRYPTED])
async def test_both_ends_list_a_visitor_with_the_same_id_address_and_bytes(
    shared: EngineContext, direction: Direction, data_tls: DataTls
) -> None:
    async with echo() as target, pair(shared, target, direction, data_tls=data_tls) as ends:
        ingress, egress = ends if direction is Direction.REVERSE else ends[::-1]
        async with visitor_from("127.0.0.7", visitors_address(*ends), size=100_000) as visitor:
            (near,), (far,) = await listed(ingress), await listed(egress)
            assert near.address == far.address == visitor.address
            assert near.id == far.id
            assert near.link == far.link == ingress.engine.snapshot().link
            assert (near.from_visitor, near.to_visitor) == (far.from_visitor, far.to_visitor) == (100_000, 100_000)
            assert near.target is None
            assert far.target == target
            assert near.state == far.state == CONNECTED
            assert near.since is not None
            assert far.since is not None
            assert abs(near.since - time.time()) < GUARD_S
        await wait_until_async(lambda: not _active(ingress) and not _active(egress), "the visitor has left")
        assert await listed(ingress) == []


@pytest.mark.usefixtures("carriage")
@pytest.mark.parametrize("data_tls", [DataTls.OFF, DataTls.ENCRYPTED])
@pytest.mark.parametrize("at_ingress", [True, False])
async def test_a_kick_at_either_end_resets_the_selected_visitors_and_no_other(
    shared: EngineContext, data_tls: DataTls, *, at_ingress: bool
) -> None:
    async with echo() as target, pair(shared, target, data_tls=data_tls) as (server, client):
        address = visitors_address(server, client)
        async with (
            visitor_from("127.0.1.1", address) as first,
            visitor_from("127.0.1.254", address) as second,
            visitor_from("127.0.2.1", address) as other,
        ):
            end = server if at_ingress else client
            kicked = await end.engine.kick(parse_selector("127.0.1.0/24"))
            assert {one.address for one in kicked} == {first.address, second.address}
            assert await first.is_reset()
            assert await second.is_reset()
            other.writer.write(b"still here")
            assert await other.reader.readexactly(10) == b"still here"
            await wait_until_async(lambda: _active(server) == _active(client) == 1, "two have left")
            assert end.engine.snapshot().counters.kicked == 2


@pytest.mark.usefixtures("carriage")
async def test_a_kick_by_id_means_one_visitor(shared: EngineContext) -> None:
    async with echo() as target, pair(shared, target) as (server, client):
        address = visitors_address(server, client)
        async with visitor_from("127.0.0.1", address) as one, visitor_from("127.0.0.1", address) as other:
            ident = next(seen.id for seen in await listed(client) if seen.address == one.address)
            assert ident is not None
            (kicked,) = await server.engine.kick(parse_selector(ident))
            assert kicked.id == ident
            assert await one.is_reset()
            assert await server.engine.kick(parse_selector(ident)) == []
            assert [seen.address for seen in await listed(server)] == [other.address]


async def test_a_waiting_visitor_is_listed_without_id_and_can_be_kicked(shared: EngineContext) -> None:
    async with running_engine(shared, server_spec("127.0.0.1:0")) as server:
        await server.wait_state(State.WAITING)
        where = parse_address(server.engine.snapshot().target_addr)
        reader, writer = await asyncio.open_connection(where.host, where.port)
        visitor = Visitor(reader, writer)
        await wait_until_async(lambda: server.engine.snapshot().signals.queued == 1, "it waits")
        (seen,) = await listed(server)
        assert (seen.id, seen.address, seen.state) == (None, visitor.address, QUEUED)
        assert await server.engine.kick(parse_selector("127.0.0.2")) == []
        assert len(await server.engine.kick(parse_selector("127.0.0.1"))) == 1
        assert await visitor.is_reset()
        assert server.engine.snapshot().signals.queued == 0
        writer.transport.abort()


@pytest.mark.usefixtures("carriage")
async def test_a_visitor_whose_target_is_dialled_can_be_kicked_at_the_egress(shared: EngineContext) -> None:
    dead = "192.0.2.1:9"  # TEST-NET-1 (RFC 5737): packets are dropped or refused
    async with running_engine(shared, server_spec("127.0.0.1:0")) as server:
        await server.wait_state(State.WAITING)
        async with running_engine(shared, client_spec(server, dead)) as client:
            await client.wait_state(UP)
            where = parse_address(server.engine.snapshot().target_addr)
            reader, writer = await asyncio.open_connection(where.host, where.port)
            await wait_until_async(lambda: client.engine.snapshot().signals.total == 1, "its launch has arrived")
            if not await listed(client):
                writer.transport.abort()
                pytest.skip("this network refuses the address at once")
            kicked = await client.engine.kick(parse_selector("127.0.0.1"))
            assert [one.state for one in kicked] == ["dialing"]
            assert await Visitor(reader, writer).is_reset()
            writer.transport.abort()


async def test_an_engine_without_an_end_has_no_visitors() -> None:
    assert [visitors async for visitors in list_visitors(None)] == []
    assert await kick_visitors(None, parse_selector("0.0.0.0/0")) == []


@pytest.mark.usefixtures("carriage")
@pytest.mark.parametrize("data_tls", [DataTls.OFF, DataTls.ENCRYPTED])
async def test_time_limits_change_while_visitors_are_connected(shared: EngineContext, data_tls: DataTls) -> None:
    log = log_of(shared)
    async with echo() as target, pair(shared, target, data_tls=data_tls) as (server, client):
        address = visitors_address(server, client)
        async with visitor_from("127.0.0.1", address) as idle, visitor_from("127.0.0.1", address) as busy:
            server.engine.apply_live_settings(replace(server.engine.spec, idle_timeout=0.5))
            async with asyncio.timeout(GUARD_S):
                while not idle.reader.at_eof() and idle.reader.exception() is None:
                    busy.writer.write(b".")
                    await busy.reader.readexactly(1)
            assert await idle.is_reset()
            assert server.engine.snapshot().counters.idle_timeouts == 1
            client.engine.apply_live_settings(replace(client.engine.spec, max_age=0.1))
            server.engine.apply_live_settings(replace(server.engine.spec, idle_timeout=0.0))
            assert await busy.is_reset()
            assert client.engine.snapshot().counters.max_ages == 1
            await wait_until_async(lambda: len(log) == 4, "both ends have logged both visitors")
            seen = {(name, record.address): record.end for name, record in log}
            assert seen["server", idle.address] is VisitorEnd.IDLE_TIMEOUT
            assert seen["client", busy.address] is VisitorEnd.MAX_AGE


# --- the access log ---------------------------------------------------------------------------------------------------


def log_of(shared: EngineContext) -> list[tuple[str, VisitorRecord]]:
    """The visitors that leave the tunnels which start from now on, with the names of these tunnels."""
    log: list[tuple[str, VisitorRecord]] = []
    shared.visitor_log = lambda name, record: log.append((name, record))
    return log


class TargetAnswer:
    """A target that does one thing after the visitor's first byte."""

    def __init__(self, *, resets: bool) -> None:
        self._resets = resets

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        if self._resets:
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.close()


@pytest.mark.usefixtures("carriage")
@pytest.mark.parametrize("data_tls", [DataTls.OFF, DataTls.ENCRYPTED])
@pytest.mark.parametrize("reuse", [False, True])
async def test_the_log_says_who_closed_a_visitor(shared: EngineContext, data_tls: DataTls, *, reuse: bool) -> None:
    log = log_of(shared)
    async with echo() as target, pair(shared, target, data_tls=data_tls, reuse=reuse) as ends:
        address = visitors_address(*ends)
        async with visitor_from("127.0.0.5", address, size=1000) as visitor:
            visitor.writer.write_eof()
            await visitor.reader.read()
        await wait_until_async(lambda: len(log) == 2, "both ends have logged the visitor")
        assert {name for name, _ in log} == {"server", "client"}
        (_, one), (_, other) = log
        assert one.id == other.id
        assert one.address == other.address == visitor.address
        assert {record.target for _, record in log} == {None, target}
        assert {(record.from_visitor, record.to_visitor) for _, record in log} == {(1000, 1000)}
        assert {record.end for _, record in log} == {VisitorEnd.VISITOR_CLOSED}
        log.clear()
        async with visitor_from("127.0.0.5", address):
            await ends[1].engine.kick(parse_selector("127.0.0.5"))
            await wait_until_async(lambda: len(log) == 2, "both ends have logged the visitor")
        assert dict(log)["client"].end is VisitorEnd.KICKED
        assert dict(log)["server"].end is VisitorEnd.TARGET_RESET
        log.clear()
        async with visitor_from("127.0.0.5", address) as visitor:
            visitor.writer.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
        await wait_until_async(lambda: len(log) == 2, "both ends have logged the visitor")
        assert {record.end for _, record in log} == {VisitorEnd.VISITOR_RESET}
        log.clear()
        async with visitor_from("127.0.0.5", address):
            ends[0].engine.close()
            await wait_until_async(lambda: "server" in dict(log), "the server has logged the visitor")
        assert dict(log)["server"].end is VisitorEnd.TUNNEL_CLOSED


@pytest.mark.usefixtures("carriage")
@pytest.mark.parametrize("data_tls", [DataTls.OFF, DataTls.ENCRYPTED])
@pytest.mark.parametrize("resets", [False, True])
async def test_the_log_says_that_it_was_the_target(shared: EngineContext, data_tls: DataTls, *, resets: bool) -> None:
    log = log_of(shared)
    listener = await asyncio.start_server(TargetAnswer(resets=resets).serve, "127.0.0.1", 0)
    target = f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    async with pair(shared, target, data_tls=data_tls) as ends:
        where = parse_address(visitors_address(*ends))
        reader, writer = await asyncio.open_connection(where.host, where.port)
        writer.write(b"x")
        with contextlib.suppress(ConnectionResetError):
            await reader.read()
        writer.close()
        await wait_until_async(lambda: len(log) == 2, "both ends have logged the visitor")
        expected = VisitorEnd.TARGET_RESET if resets else VisitorEnd.TARGET_CLOSED
        assert {record.end for _, record in log} == {expected}
    await close_listener(listener)


@pytest.mark.usefixtures("carriage")
async def test_the_log_says_why_a_visitor_was_not_served(shared: EngineContext) -> None:
    log = log_of(shared)
    async with pair(shared, "127.0.0.1:9") as ends:
        where = parse_address(visitors_address(*ends))
        reader, writer = await asyncio.open_connection(where.host, where.port)
        async with asyncio.timeout(GUARD_S):
            assert await reader.read() == b""
        writer.close()
        await wait_until_async(lambda: len(log) == 2, "both ends have logged the visitor")
        for _, record in log:
            assert record.end is VisitorEnd.FAILED
            assert "127.0.0.1:9 cannot be reached" in (record.reason or "")
        assert len({record.id for _, record in log}) == 1


async def test_the_log_says_why_a_visitor_was_refused(shared: EngineContext) -> None:
    log = log_of(shared)
    async with echo() as target, pair(shared, target) as (server, client):
        where = parse_address(visitors_address(server, client))
        server.engine.set_refusal("the quota is used up")
        for reason in ("the quota is used up", "its address is in deny"):
            with contextlib.suppress(ConnectionError):
                reader, writer = await asyncio.open_connection(where.host, where.port)
                await Visitor(reader, writer).is_reset()
            await wait_until_async(lambda: bool(log), "the visitor is logged")
            ((_, record),) = log
            assert (record.end, record.reason) == (VisitorEnd.REFUSED, reason)
            assert (record.address or "").startswith("127.0.0.1:")
            assert record.duration_s is None
            log.clear()
            denied = NetworkSet.of([parse_network("127.0.0.0/8")])
            server.engine.apply_live_settings(replace(server.engine.spec, deny=denied))
            server.engine.set_refusal(None)


@pytest.mark.usefixtures("carriage")
@pytest.mark.parametrize("size", [1, 1_000_000], ids=["a byte", "bulk"])
async def test_a_logged_relay_leaves_nothing_to_the_garbage_collector(shared: EngineContext, size: int) -> None:
    log = log_of(shared)
    gc.collect()
    gc.disable()
    try:
        async with echo() as target, pair(shared, target) as ends:
            async with visitor_from("127.0.0.1", visitors_address(*ends), size) as visitor:
                visitor.writer.write_eof()
                await visitor.reader.read()
            await wait_until_async(lambda: len(log) == 2, "both ends have logged the visitor")
            assert {record.end for _, record in log} == {VisitorEnd.VISITOR_CLOSED}
            await run_loop_turns(2)
            alive = [thing for thing in gc.get_objects() if isinstance(thing, (Flow, Lane, Relay))]
            assert [thing for thing in alive if thing is not CLOSED_FLOW] == []
    finally:
        gc.enable()


async def test_the_log_names_visitors_that_waited_when_their_tunnel_was_closed(shared: EngineContext) -> None:
    log = log_of(shared)
    async with running_engine(shared, server_spec("127.0.0.1:0")) as server:
        await server.wait_state(State.WAITING)
        where = parse_address(server.engine.snapshot().target_addr)
        _, writer = await asyncio.open_connection(where.host, where.port)
        await wait_until_async(lambda: server.engine.snapshot().signals.queued == 1, "it waits")
    assert [record.end for _, record in log] == [VisitorEnd.TUNNEL_CLOSED]
    writer.transport.abort()


async def test_a_long_list_is_made_in_slices_with_a_turn_of_the_event_loop_after_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    relays = [SimpleNamespace(is_open=True) for _ in range(10 * visitor_list.SLICE_SIZE + 1)]
    end = SimpleNamespace(waiting_visitors=list, relays=SimpleNamespace(running=lambda: relays))
    monkeypatch.setattr(visitor_list, "describe", lambda relay, *_: relay)
    turns: list[int] = []

    async def count_turns() -> None:
        while True:
            await asyncio.sleep(0)
            turns.append(len(turns))

    counting = asyncio.create_task(count_turns())
    sizes, seen = [], []
    async for visitors in list_visitors(cast("TunnelEnd", end)):
        sizes.append(len(visitors))
        seen.append(len(turns))
    counting.cancel()
    assert sizes == [*[visitor_list.SLICE_SIZE] * 10, 1]
    assert all(later > earlier for earlier, later in itertools.pairwise(seen[1:])), "two slices in one turn"

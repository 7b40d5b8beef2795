"""What an engine does with a shared connection: moves, when new visitors get another one, what an egress promises."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import cast

import pytest

from tests.support.engine_parts import no_descriptor_leak, shared_parts
from tests.support.scale import GUARD_S
from tests.support.sockets import tcp_pair
from tests.support.waiting import wait_until_async
from tests.tunnel.test_engine import RunningEngine, echo, pair, pool_of, round_trip, visit, visitors_address
from tests.tunnel.test_lanes import FakeLaneLink, LaneEnd
from tests.tunnel.test_relay import SECRET, relay_parts
from tunnel.carriers import create_carrier
from tunnel.engine import shared_connection
from tunnel.engine.context import EngineContext
from tunnel.engine.link import Link
from tunnel.engine.pool import DataConnection, Pool
from tunnel.engine.pool_filler import PoolFiller
from tunnel.engine.relays import VANISHED_AFTER_S
from tunnel.engine.shared_connection import SharedConnection
from tunnel.model.spec import Carrier, Direction, Mux
from tunnel.protocol.lane_frames import CREDIT, LaneDecoder, LaneFrame, LaneKind, encode_lane_frame
from tunnel.protocol.session import Session
from tunnel.runtime.fd_budget import FdBudget

BULK_BYTES = 1 << 20


@pytest.fixture
async def shared() -> AsyncIterator[EngineContext]:
    with no_descriptor_leak():
        async with shared_parts() as parts:
            yield parts


def link_of(running: RunningEngine) -> Link:
    """The only link of an engine."""
    end = running.engine._end
    assert end is not None
    (link,) = end._links
    return link


def idle(running: RunningEngine) -> set[int]:
    """The ids of the idle data connections of an engine."""
    return set(pool_of(running).idle)


async def start_sharing(*ends: RunningEngine) -> None:
    """Serve the first visitor, which lets the next ones share a data connection."""
    await wait_until_async(lambda: len(idle(ends[0])) >= 8 <= len(idle(ends[1])), "the pools are full")
    await round_trip(visitors_address(*ends), size=1_000)


async def test_a_visitor_may_move_to_a_connection_that_the_client_does_not_know_as_pooled_yet(
    shared: EngineContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    late: list[int] = []
    async with echo() as target, pair(shared, target, Direction.REVERSE, mux=Mux.ON) as (server, client):
        await start_sharing(server, client)
        monkeypatch.setattr(Session, "send_pooled", lambda _session, ident: late.append(ident))
        await round_trip(visitors_address(server, client), size=BULK_BYTES)  # the client dials another one
        await wait_until_async(lambda: late, "the server has one that the client does not know")
        assert next(reversed(pool_of(server).idle)) in late, "the next visitor moves to the youngest one"
        assert not set(late) & idle(client)
        await round_trip(visitors_address(server, client), size=BULK_BYTES)
        assert set(late) - idle(server), "a visitor has moved to one of them"
        assert client.engine.snapshot().connections.failed == 0


@pytest.mark.usefixtures("no_refill_timers")
@pytest.mark.parametrize("direction", list(Direction))
async def test_connections_that_visitors_have_moved_to_are_replaced(
    shared: EngineContext, direction: Direction
) -> None:
    async with echo() as target, pair(shared, target, direction, mux=Mux.ON) as ends:
        await start_sharing(*ends)
        for _ in range(12):
            await round_trip(visitors_address(*ends), size=BULK_BYTES)
        await wait_until_async(lambda: len(idle(ends[1])) >= 6, "the pool is ample again")


async def test_a_move_to_a_pooled_connection_leaves_the_reason_why_dials_fail(
    shared: EngineContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with echo() as target, pair(shared, target, Direction.REVERSE, mux=Mux.ON) as (server, client):
        await start_sharing(server, client)
        await wait_until_async(lambda: idle(server) == idle(client), "the client knows all connections")
        monkeypatch.setattr(PoolFiller, "_refill", lambda _filler: None)
        filler = link_of(client)._filler
        assert filler is not None
        filler.dial_error = "they are refused"
        before = idle(client)
        await round_trip(visitors_address(server, client), size=BULK_BYTES)
        assert idle(client) < before, "the visitor has moved"
        assert link_of(client).dial_error == "they are refused"


async def test_a_stalled_connection_gets_no_new_visitors_and_keeps_those_it_has(
    shared: EngineContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with echo() as target, pair(shared, target, Direction.REVERSE, mux=Mux.ON) as ends:
        await start_sharing(*ends)
        address = visitors_address(*ends)
        stalled = link_of(ends[0]).sharing.current
        assert stalled is not None
        async with visit(address) as (reader, writer):
            writer.write(b"before")
            assert await reader.readexactly(6) == b"before"
            assert len(stalled) == 1
            monkeypatch.setattr(SharedConnection, "unanswered_s", lambda _shared: 4.0)
            link_of(ends[0]).sharing.check()
            monkeypatch.undo()
            await round_trip(address, size=1_000)
            await round_trip(address, size=1_000)
            assert link_of(ends[0]).sharing.current not in {None, stalled}
            writer.write(b"after")
            assert await reader.readexactly(5) == b"after"
        await wait_until_async(lambda: stalled.sock.fileno() < 0, "it is closed after its last visitor")


@pytest.mark.parametrize("direction", list(Direction))
async def test_a_connection_whose_peer_has_vanished_is_closed_with_its_visitors(
    shared: EngineContext, monkeypatch: pytest.MonkeyPatch, direction: Direction
) -> None:
    async with echo() as target, pair(shared, target, direction, mux=Mux.ON) as ends:
        await start_sharing(*ends)
        async with visit(visitors_address(*ends)) as (reader, writer):
            writer.write(b"before")
            assert await reader.readexactly(6) == b"before"
            monkeypatch.setattr(SharedConnection, "unanswered_s", lambda _shared: VANISHED_AFTER_S + 1)
            link_of(ends[0]).sharing.check()
            monkeypatch.undo()
            with pytest.raises(ConnectionResetError):
                async with asyncio.timeout(GUARD_S):
                    await reader.read()
        await round_trip(visitors_address(*ends), size=1_000)


async def test_no_visitor_moves_after_the_goodbye(shared: EngineContext) -> None:
    async with echo() as target, pair(shared, target, Direction.REVERSE, mux=Mux.ON) as (server, client):
        await start_sharing(server, client)
        async with visit(visitors_address(server, client)) as (reader, writer):
            writer.write(b"before")
            assert await reader.readexactly(6) == b"before"
            connection = link_of(server).sharing.current
            assert connection is not None
            (lane,) = connection.lanes.values()
            link_of(server).send_goodbye("test")
            sent = bytes(BULK_BYTES)
            writer.write(sent)
            async with asyncio.timeout(GUARD_S):
                assert await reader.readexactly(BULK_BYTES) == sent
            assert not lane.is_moving
            assert list(connection.lanes.values()) == [lane]


@dataclass
class EgressOfFrames:
    """The egress of a shared connection in clear text, whose other end is a socket."""

    shared: SharedConnection
    end: LaneEnd
    peer: socket.socket

    def send(self, number: int, kind: LaneKind, payload: bytes = b"") -> None:
        """Send a frame as the ingress."""
        self.peer.sendall(encode_lane_frame(number, kind, payload))

    async def receive(self) -> list[LaneFrame]:
        """Receive some frames at the ingress."""
        async with asyncio.timeout(GUARD_S):
            data = await asyncio.get_running_loop().sock_recv(self.peer, 1 << 16)
        return LaneDecoder(is_ingress=True).feed(data)

    async def wait_violation(self) -> str:
        """Return what was wrong with the frames."""
        await wait_until_async(lambda: self.end.violations, "the egress has closed the connection")
        return self.end.violations[0]


@asynccontextmanager
async def egress_of_frames() -> AsyncIterator[EgressOfFrames]:
    with no_descriptor_leak():
        async with relay_parts() as parts:
            ours, peer = tcp_pair()
            link = FakeLaneLink(is_client=True, reuses=False, sends=lambda send: send())
            pool = Pool(
                parts.reactor, is_ingress=False, on_connection_lost=lambda _ident: None, on_crash=lambda _: None
            )
            carrier = create_carrier(Carrier.TCP, SECRET, parts.reactor.scratch, is_client=True)
            data = DataConnection(7, ours, carrier, pool)
            parts.reactor.register(ours, data.ready)
            end = LaneEnd(None, link, is_ingress=False, out=peer, connects_at_once=False)  # type: ignore[arg-type]  # no relay is started
            shared = SharedConnection(parts.reactor, data, cast("Link", link), end)
            with peer:
                yield EgressOfFrames(shared, end, peer)
                shared.close()


async def test_an_egress_promises_lanes_as_far_as_it_has_descriptors_and_accepts_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left = [3]

    def promise(_budget: FdBudget, wanted: int) -> int:
        count = min(wanted, left[0])
        left[0] -= count
        return count

    monkeypatch.setattr(FdBudget, "promise", promise)
    async with egress_of_frames() as egress:
        assert await egress.receive() == [(0, LaneKind.CREDIT, CREDIT.pack(3))]
        for number in (1, 2, 3):
            egress.send(number, LaneKind.OPEN)
        await wait_until_async(lambda: len(egress.shared) == 3, "three lanes are open")
        left[0] = 1
        egress.send(2, LaneKind.RESET)
        assert await egress.receive() == [(0, LaneKind.CREDIT, CREDIT.pack(1))], "one descriptor is free again"
        egress.send(4, LaneKind.OPEN)
        egress.send(5, LaneKind.OPEN)
        assert await egress.wait_violation() == "a lane that may not be opened"


async def test_an_egress_accepts_lanes_for_a_while_after_the_link_and_no_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_connection, "_LATE_OPEN_S", 0.2)
    async with egress_of_frames() as egress:
        egress.shared.on_link_lost()
        egress.send(1, LaneKind.OPEN)
        await wait_until_async(lambda: len(egress.shared) == 1, "the lane is open")
        await wait_until_async(lambda: not egress.shared.may_grow, "no other may be opened")
        assert len(egress.shared) == 1
        egress.send(2, LaneKind.OPEN)
        assert await egress.wait_violation() == "a lane that may not be opened"


async def test_an_egress_without_lanes_ends_the_connection_after_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_connection, "_END_TIMEOUT_S", 0.05)
    async with egress_of_frames() as egress:
        egress.send(1, LaneKind.OPEN)
        egress.send(0, LaneKind.LAST)
        await wait_until_async(lambda: not egress.shared.may_grow, "LAST has arrived")
        assert len(egress.shared) == 1
        assert egress.shared.sock.fileno() >= 0, "a lane is open yet"
        egress.send(1, LaneKind.RESET)
        await wait_until_async(lambda: egress.shared.sock.fileno() < 0, "it is closed, although the peer does nothing")
        assert not egress.end.violations

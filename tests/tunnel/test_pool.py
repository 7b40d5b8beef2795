from __future__ import annotations

import select
import socket
from collections.abc import AsyncIterator

import pytest

from tests.support.engine_parts import shared_parts
from tests.support.scale import GUARD_S
from tests.support.sockets import tcp_pair
from tests.support.waiting import run_loop_turns, wait_until_async
from tunnel.carriers.tcp import PlainCarrier
from tunnel.engine import pool as pool_module
from tunnel.engine.context import EngineContext
from tunnel.engine.pool import DataConnection, Pool
from tunnel.runtime.reactor import HANGUP, READABLE


class PoolHarness:
    """A pool, the other ends of its connections, and the ids of those that it lost."""

    def __init__(self, shared: EngineContext, *, is_ingress: bool) -> None:
        self.shared = shared
        self.lost: list[int] = []
        self.defects: list[Exception] = []
        self.peers: dict[int, socket.socket] = {}
        self.pool = Pool(
            shared.reactor, is_ingress=is_ingress, on_connection_lost=self.lost.append, on_crash=self.defects.append
        )

    def add(self, *idents: int) -> None:
        for ident in idents:
            ours, self.peers[ident] = tcp_pair()
            self.pool.add(DataConnection(ident, ours, PlainCarrier(), self.pool), is_registered=False)

    def age(self, seconds: float) -> None:
        for connection in (*self.pool.idle.values(), *self.pool._ended.values()):
            connection.created_at -= seconds
            connection.expires_at -= seconds

    def close(self) -> None:
        self.pool.close()
        assert not self.defects
        for peer in self.peers.values():
            peer.close()


@pytest.fixture(params=[True, False], ids=["ingress", "egress"])
async def harness(request: pytest.FixtureRequest) -> AsyncIterator[PoolHarness]:
    async with shared_parts() as shared:
        made = PoolHarness(shared, is_ingress=request.param)
        yield made
        made.close()


at_ingress = pytest.mark.parametrize("harness", [True], indirect=True)
at_egress = pytest.mark.parametrize("harness", [False], indirect=True)


def acquire_ident(harness: PoolHarness) -> int | None:
    connection = harness.pool.acquire()
    if connection is None:
        return None
    harness.shared.reactor.close(connection.sock)
    return connection.ident


@at_ingress
async def test_a_used_connection_is_acquired_again_only_after_it_was_freed(harness: PoolHarness) -> None:
    harness.add(1)
    connection = harness.pool.acquire()
    assert connection is not None
    harness.pool.hold(connection)
    assert harness.pool.acquire() is None
    assert harness.pool.open_connections == 1
    assert not harness.pool.free(2)
    assert harness.pool.free(1)
    assert not harness.pool.free(1)
    assert acquire_ident(harness) == 1


@at_ingress
async def test_an_event_without_bytes_or_an_end_costs_no_connection(harness: PoolHarness) -> None:
    """One that was fetched together with the last event of the visitor before."""
    harness.add(1, 2)
    held = harness.pool.acquire()
    assert held is not None
    harness.pool.hold(held)
    for connection in (held, harness.pool.idle[1]):
        connection.ready(READABLE)
    assert harness.pool.open_connections == 2
    assert harness.pool.free(2)
    assert [acquire_ident(harness) for _ in range(3)] == [2, 1, None]
    assert not harness.lost


@at_ingress
async def test_a_held_connection_that_ends_is_closed_and_never_acquired(harness: PoolHarness) -> None:
    harness.add(1, 2)
    connection = harness.pool.acquire()
    assert connection is not None
    assert connection.ident == 2
    harness.pool.hold(connection)
    harness.peers[2].close()
    await wait_until_async(lambda: harness.pool.open_connections == 1, "it is closed")
    assert not harness.pool.free(2)
    assert not harness.lost, "its visitor had used it"


@at_ingress
async def test_the_youngest_connection_is_acquired_first(harness: PoolHarness) -> None:
    harness.add(1, 2, 3)
    assert repr(harness.pool) == "<Pool idle=3 ended=0 held=0>"
    assert [acquire_ident(harness) for _ in range(4)] == [3, 2, 1, None]
    assert not harness.lost


@at_ingress
@pytest.mark.parametrize("last_bytes", [b"", b"x"])
async def test_an_idle_connection_with_an_event_is_closed_at_the_ingress(
    harness: PoolHarness, last_bytes: bytes
) -> None:
    harness.add(1, 2)
    await run_loop_turns(3)
    if last_bytes:
        harness.peers[2].send(last_bytes)
    else:
        harness.peers[2].close()
    await wait_until_async(lambda: harness.lost == [2], "the connection was closed")
    assert acquire_ident(harness) == 1


@at_ingress
async def test_a_connection_that_died_unnoticed_is_never_given_to_a_visitor(harness: PoolHarness) -> None:
    """The reactor has had no turn since it died."""
    harness.add(1, 2, 3)
    harness.age(2)
    harness.peers[3].close()
    harness.peers[2].send(b"x")
    for ident in (3, 2):
        assert select.select([harness.pool.idle[ident].sock], [], [], GUARD_S)[0]
    assert acquire_ident(harness) == 1
    assert harness.lost == [3, 2]


@at_egress
async def test_bytes_that_arrive_before_the_signal_are_kept(harness: PoolHarness) -> None:
    harness.add(1)
    harness.peers[1].send(b"early")
    await wait_until_async(lambda: harness.pool.idle[1].events & READABLE, "the reactor has reported the bytes")
    connection = harness.pool.claim(1)
    assert connection is not None
    assert connection.sock.recv(10) == b"early"
    assert connection.events & READABLE
    harness.shared.reactor.close(connection.sock)
    assert harness.pool.claim(1) is None


@at_egress
async def test_an_ended_connection_waits_for_its_signal(harness: PoolHarness) -> None:
    harness.add(1, 2)
    for ident in (1, 2):
        harness.peers[ident].send(b"all")
        harness.peers[ident].close()
    await wait_until_async(lambda: sorted(harness.lost) == [1, 2], "both have ended")
    assert repr(harness.pool) == "<Pool idle=0 ended=2 held=0>"
    connection = harness.pool.claim(1)
    assert connection is not None
    assert connection.sock.recv(10) == b"all"
    assert connection.events & HANGUP
    harness.shared.reactor.close(connection.sock)
    harness.pool.run_maintenance()
    assert repr(harness.pool) == "<Pool idle=0 ended=1 held=0>"
    harness.age(pool_module.SIGNAL_GRACE_S + 1)
    harness.pool.run_maintenance()
    assert repr(harness.pool) == "<Pool idle=0 ended=0 held=0>"


async def test_surplus_and_expired_connections_are_closed(harness: PoolHarness) -> None:
    harness.add(1, 2, 3, 4)
    assert harness.pool.close_surplus(0) == []
    assert harness.pool.close_surplus(2) == [1, 2]
    harness.age(pool_module.MAX_AGE_S + 1)
    harness.add(5)
    assert harness.pool.close_surplus(0) == [3, 4]
    assert len(harness.pool) == 1
    harness.pool.discard([5])
    harness.pool.discard([5])
    assert not len(harness.pool)
    assert len(harness.shared.reactor) == 0


@at_egress
async def test_few_ended_connections_wait_for_their_signals(
    harness: PoolHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "_MAX_ENDED", 2)
    harness.add(1, 2, 3)
    for ident in (1, 2, 3):
        harness.peers[ident].close()
        await wait_until_async(lambda: ident in harness.lost, "it has ended")  # noqa: B023  awaited in this turn
    assert (harness.pool.open_connections, harness.pool.unused) == (2, 1)
    assert harness.pool.claim(1) is None


async def test_connections_that_end_before_a_visitor_uses_them_are_counted(harness: PoolHarness) -> None:
    harness.add(1, 2, 3)
    harness.pool.discard([1, 9])
    assert harness.pool.unused == 1
    harness.peers[2].close()
    await wait_until_async(lambda: harness.lost == [2], "it has ended")
    harness.age(pool_module.SIGNAL_GRACE_S + 1)
    harness.pool.run_maintenance()
    assert harness.pool.unused == 2
    harness.pool.close_surplus(1)
    assert harness.pool.unused == 2, "closed by this end"

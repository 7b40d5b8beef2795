from __future__ import annotations

import select
import socket
from collections.abc import AsyncIterator

import pytest

from tests.support.engine_parts import shared_parts
from tests.support.scale import GUARD_S
from tests.support.sockets import tcp_pair
from tests.support.waiting import run_loop_turns, wait_until_async
from tunnel.carriers.tcp import PlainStream
from tunnel.engine import pool as pool_module
from tunnel.engine.context import EngineContext
from tunnel.engine.pool import DataConnection, Pool
from tunnel.runtime.reactor import HANGUP, READABLE


class Filled:
    """A pool, the other ends of its connections, and the ids it has dropped."""

    def __init__(self, shared: EngineContext, *, is_ingress: bool) -> None:
        self.shared = shared
        self.dropped: list[int] = []
        self.defects: list[Exception] = []
        self.peers: dict[int, socket.socket] = {}
        self.pool = Pool(
            shared.reactor, is_ingress=is_ingress, on_connection_lost=self.dropped.append, on_crash=self.defects.append
        )

    def add(self, *idents: int) -> None:
        for ident in idents:
            ours, self.peers[ident] = tcp_pair()
            self.pool.add(DataConnection(ident, ours, PlainStream(), self.pool), is_registered=False)

    def age(self, seconds: float) -> None:
        for connection in (*self.pool._idle.values(), *self.pool._ended.values()):
            connection.created_at -= seconds
            connection.expires_at -= seconds

    def close(self) -> None:
        self.pool.close()
        assert not self.defects
        for peer in self.peers.values():
            peer.close()


@pytest.fixture(params=[True, False], ids=["entrance", "exit"])
async def filled(request: pytest.FixtureRequest) -> AsyncIterator[Filled]:
    async with shared_parts() as shared:
        made = Filled(shared, is_ingress=request.param)
        yield made
        made.close()


entrance = pytest.mark.parametrize("filled", [True], indirect=True)
exit_ = pytest.mark.parametrize("filled", [False], indirect=True)


def taken(filled: Filled) -> int | None:
    connection = filled.pool.acquire()
    if connection is None:
        return None
    filled.shared.reactor.close(connection.sock)
    return connection.ident


@entrance
async def test_the_youngest_is_taken_first(filled: Filled) -> None:
    filled.add(1, 2, 3)
    assert repr(filled.pool) == "<Pool idle=3 ended=0>"
    assert [taken(filled) for _ in range(4)] == [3, 2, 1, None]
    assert not filled.dropped


@entrance
@pytest.mark.parametrize("last_words", [b"", b"x"])
async def test_one_that_stirs_at_the_entrance_is_dropped(filled: Filled, last_words: bytes) -> None:
    filled.add(1, 2)
    await run_loop_turns(3)
    if last_words:
        filled.peers[2].send(last_words)
    else:
        filled.peers[2].close()
    await wait_until_async(lambda: filled.dropped == [2], "it was dropped")
    assert taken(filled) == 1


@entrance
async def test_one_that_died_unseen_is_never_given_to_a_visitor(filled: Filled) -> None:
    """The reactor has had no turn since."""
    filled.add(1, 2, 3)
    filled.age(2)
    filled.peers[3].close()
    filled.peers[2].send(b"x")
    for ident in (3, 2):
        assert select.select([filled.pool._idle[ident].sock], [], [], GUARD_S)[0]
    assert taken(filled) == 1
    assert filled.dropped == [3, 2]


@exit_
async def test_first_bytes_before_the_signal_are_kept(filled: Filled) -> None:
    filled.add(1)
    filled.peers[1].send(b"early")
    await wait_until_async(lambda: filled.pool._idle[1].events & READABLE, "the reactor has told of it")
    connection = filled.pool.claim(1)
    assert connection is not None
    assert connection.sock.recv(10) == b"early"
    assert connection.events & READABLE
    filled.shared.reactor.close(connection.sock)
    assert filled.pool.claim(1) is None


@exit_
async def test_a_visitor_that_came_and_went_waits_for_its_signal(
    filled: Filled, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled.add(1, 2)
    for ident in (1, 2):
        filled.peers[ident].send(b"all")
        filled.peers[ident].close()
    await wait_until_async(lambda: sorted(filled.dropped) == [1, 2], "both have ended")
    assert repr(filled.pool) == "<Pool idle=0 ended=2>"
    connection = filled.pool.claim(1)
    assert connection is not None
    assert connection.sock.recv(10) == b"all"
    assert connection.events & HANGUP
    filled.shared.reactor.close(connection.sock)
    filled.pool.run_maintenance()
    assert repr(filled.pool) == "<Pool idle=0 ended=1>"
    filled.age(pool_module.SIGNAL_GRACE_S + 1)
    filled.pool.run_maintenance()
    assert repr(filled.pool) == "<Pool idle=0 ended=0>"


async def test_the_oldest_and_what_is_too_old_are_given_up(filled: Filled) -> None:
    filled.add(1, 2, 3, 4)
    assert filled.pool.close_surplus(0) == []
    assert filled.pool.close_surplus(2) == [1, 2]
    filled.age(pool_module.MAX_AGE_S + 1)
    filled.add(5)
    assert filled.pool.close_surplus(0) == [3, 4]
    assert len(filled.pool) == 1
    filled.pool.discard(5)
    filled.pool.discard(5)
    assert not len(filled.pool)
    assert len(filled.shared.reactor) == 0

"""Who goes without when descriptors run short: visitors first, strangers with them, the house never."""

from __future__ import annotations

import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.engine_parts import Events
from tests.support.waiting import wait_until_async
from tunnel.engine.admission import PendingConnections
from tunnel.model.address import Address
from tunnel.runtime import listeners
from tunnel.runtime.acceptor import Acceptor
from tunnel.runtime.fd_budget import FdBudget
from tunnel.runtime.reactor import Reactor
from tunnel.runtime.splice import PipePool


class FixedReservation:
    def __init__(self, reserved: int) -> None:
        self.reserved = reserved


@contextmanager
def limit(count: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@given(count=st.integers(30, 100_000))
def test_some_are_spared_and_most_are_not(count: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resource, "getrlimit", lambda _what: (count, count))
        ceiling = FdBudget(0).visitor_ceiling
    assert count * 0.6 < ceiling < count
    assert 10 <= count - ceiling <= 512


@given(used=st.integers(0, 1100), reserved=st.integers(0, 1100))
def test_what_was_promised_counts_as_taken(used: int, reserved: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resource, "getrlimit", lambda _what: (1024, 1024))
        descriptors = FdBudget(0)
    reserved = min(reserved, used)  # nobody promises more than one for each that he has
    descriptors.reservations |= {FixedReservation(reserved // 2), FixedReservation(reserved - reserved // 2)}
    assert descriptors.is_short(used) is (used + reserved >= descriptors.visitor_ceiling)


async def test_visitors_wait_in_the_backlog_until_there_are_descriptors_again() -> None:
    with limit(200):
        reactor, events, taken = Reactor(), Events(), list[socket.SocketType]()
        listener = await listeners.listen(Address("127.0.0.1", 0), "visitors")
        event_log = events.event_log()
        visitors = Acceptor(
            reactor,
            listener,
            event_log,
            lambda sock, _: taken.append(sock),
            lambda: True,
            Address("", 0),
            keeps_fd_reserve=True,
        )
        address = listener.getsockname()
        hoard = [socket.socket() for _ in range(reactor.fd_budget.visitor_ceiling - listener.fileno() - 10)]
        comers = [socket.create_connection(address) for _ in range(8)]
        await wait_until_async(lambda: events, "somebody is told")
        assert len(taken) < len(comers)
        assert "almost none left" in events[0].text
        for sock in hoard:
            sock.close()
        await wait_until_async(lambda: len(taken) == len(comers), "all are taken")
        assert len(events) == 1
        visitors.close()
        for comer in comers:
            comer.close()
        for visitor in taken:
            visitor.close()
        reactor.stop()


def test_no_pipe_takes_one_of_the_last() -> None:
    assert PipePool(fd_ceiling=3).acquire() is None
    assert PipePool(fd_ceiling=3).acquire() is None
    pipes = PipePool(fd_ceiling=10_000)
    pipe = pipes.acquire()
    assert pipe is not None
    pipe.close()


async def test_strangers_get_a_quarter_at_most() -> None:
    class Someone:
        address = "10.0.0.1"

        def __init__(self) -> None:
            self.gone = False

        def evict(self, reason: str) -> None:
            self.gone = True

    crowd, someones = PendingConnections(40), [Someone() for _ in range(12)]
    for someone in someones:
        crowd.admit(someone)
    assert [someone.gone for someone in someones] == [True] * 2 + [False] * 10
    crowd.evict_all("the test is over")

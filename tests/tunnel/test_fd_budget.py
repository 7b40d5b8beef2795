"""File descriptors that run short are refused to visitors first; a reserve stays for everything else."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.engine_parts import Events
from tests.support.waiting import wait_until_async
from tunnel.model.address import Address
from tunnel.runtime import listeners
from tunnel.runtime.acceptor import Acceptor
from tunnel.runtime.fd_budget import FdBudget
from tunnel.runtime.reactor import Reactor
from tunnel.runtime.splice import PipePool


class FixedHolder:
    def __init__(self, held: int) -> None:
        self.held = held


class FixedReservation:
    def __init__(self, reserved: int) -> None:
        self.reserved = reserved


class CountedReservation:
    def __init__(self, reserved: int) -> None:
        self._reserved = reserved
        self.reads = 0

    @property
    def reserved(self) -> int:
        self.reads += 1
        return self._reserved

    def add(self) -> None:
        self._reserved += 1


@contextmanager
def descriptor_limit(count: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@given(count=st.integers(30, 100_000))
def test_a_small_part_of_the_descriptors_is_reserved(count: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resource, "getrlimit", lambda _what: (count, count))
        ceiling = FdBudget(0).visitor_ceiling
    assert count * 0.6 < ceiling < count
    assert 10 <= count - ceiling <= 512


@given(used=st.integers(0, 1100), reserved=st.integers(0, 1100))
def test_reserved_descriptors_count_as_used(used: int, reserved: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resource, "getrlimit", lambda _what: (1024, 1024))
        descriptors = FdBudget(0)
    reserved = min(reserved, used)  # a reservation never exceeds the descriptors that its owner has
    descriptors.reservations |= {FixedReservation(reserved // 2), FixedReservation(reserved - reserved // 2)}
    assert descriptors.is_short(used) is (used + reserved >= descriptors.visitor_ceiling)


def test_with_many_tunnels_a_question_adds_up_few_reservations() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resource, "getrlimit", lambda _what: (65_536, 65_536))
        descriptors = FdBudget(0)
    tunnels = [CountedReservation(8) for _ in range(1000)]
    descriptors.reservations |= set(tunnels)
    used, asked = descriptors.visitor_ceiling - 9000, 0
    while not descriptors.is_short(used):
        tunnels[asked].add()  # the visitor that was accepted waits for a data connection
        used, asked = used + 1, asked + 1
    assert 500 - 64 <= asked <= 500, "each visitor takes two, and 1,000 are free"
    assert sum(tunnel.reads for tunnel in tunnels) < 20 * asked


@given(others=st.integers(0, 1100), held=st.integers(0, 1100))
def test_the_visitors_of_one_tunnel_leave_descriptors_to_the_others(others: int, held: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resource, "getrlimit", lambda _what: (1024, 1024))
        descriptors = FdBudget(0)
    used, holder = others + held, FixedHolder(held)
    free = descriptors.visitor_ceiling - used
    descriptors.reservations.add(FixedReservation(0))
    assert descriptors.is_short(used, holder) is (free <= 0), "a single tunnel may use all of them"
    descriptors.reservations.add(FixedReservation(0))
    assert descriptors.is_short(used, holder) is (free <= 0 or held > 3 * free)
    assert not descriptors.is_short(used, FixedHolder(0)) or free <= 0, "one without visitors gets what is left"


@pytest.mark.parametrize(("greedy", "share"), [(1, 0.75), (2, 3 / 7), (5, 3 / 16)])
def test_greedy_tunnels_get_equal_shares(greedy: int, share: float) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resource, "getrlimit", lambda _what: (4096, 4096))
        descriptors = FdBudget(0)
    descriptors.reservations |= {FixedReservation(0) for _ in range(greedy + 1)}
    holders = [FixedHolder(0) for _ in range(greedy)]
    used, is_growing = 0, True
    while is_growing:
        is_growing = False
        for holder in holders:
            if not descriptors.is_short(used, holder):
                holder.held, used, is_growing = holder.held + 2, used + 2, True
    for holder in holders:
        assert holder.held == pytest.approx(share * descriptors.visitor_ceiling, rel=0.02)


@given(used=st.integers(0, 1100), reserved=st.integers(0, 1100), idle=st.integers(0, 100), wanted=st.integers(1, 100))
def test_a_quarter_is_kept_from_large_pools_that_this_end_did_not_want(
    used: int, reserved: int, idle: int, wanted: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resource, "getrlimit", lambda _what: (1024, 1024))
        descriptors = FdBudget(0)
    reserved = min(reserved, used)
    descriptors.reservations.add(FixedReservation(reserved))
    has_room = used + reserved < descriptors.visitor_ceiling * 3 // 4
    allowed = has_room or idle < max(28, wanted)
    assert descriptors.allows_idle(used, idle=idle, wanted=wanted) is allowed


async def test_visitors_wait_in_the_backlog_until_descriptors_are_free_again() -> None:
    with descriptor_limit(200):
        reactor, events, accepted = Reactor(), Events(), list[socket.SocketType]()
        listener = await listeners.listen(Address("127.0.0.1", 0), "visitors")
        event_log = events.event_log()
        visitors = Acceptor(
            reactor,
            listener,
            event_log,
            lambda sock, _: accepted.append(sock),
            lambda: True,
            Address("", 0),
            fd_holder=FixedHolder(0),
        )
        address = listener.getsockname()
        used_up = [socket.socket() for _ in range(reactor.fd_budget.visitor_ceiling - listener.fileno() - 10)]
        connections = [socket.create_connection(address) for _ in range(8)]
        await wait_until_async(lambda: events, "the pause is logged")
        assert len(accepted) < len(connections)
        assert "almost none left" in events[0].text
        for sock in used_up:
            sock.close()
        await wait_until_async(lambda: len(accepted) == len(connections), "all visitors are accepted")
        assert len(events) == 1
        visitors.close()
        for connection in connections:
            connection.close()
        for visitor in accepted:
            visitor.close()
        reactor.stop()


def test_a_pipe_never_uses_a_reserved_descriptor() -> None:
    assert PipePool(fd_ceiling=3).acquire() is None
    assert PipePool(fd_ceiling=3).acquire() is None
    pipes = PipePool(fd_ceiling=10_000)
    pipe = pipes.acquire()
    assert pipe is not None
    pipe.close()


def test_a_limit_that_cannot_be_read_has_a_default() -> None:
    def deny(_what: int) -> tuple[int, int]:
        raise PermissionError(1, "Operation not permitted")

    with pytest.MonkeyPatch.context() as patch, Path(os.devnull).open() as probe:
        patch.setattr(resource, "getrlimit", deny)
        assert FdBudget(probe.fileno()).limit == 1024
        patch.setattr(resource, "getrlimit", lambda _what: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert FdBudget(probe.fileno()).limit == 1 << 20

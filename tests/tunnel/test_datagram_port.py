"""Flows that give way where a UDP port has no room for another visitor."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from time import monotonic
from typing import cast

import pytest

from tests.support.engine_parts import no_descriptor_leak
from tests.support.waiting import run_loop_turns, wait_until_async
from tunnel.model.address import Address
from tunnel.runtime.datagram_acceptor import EVICT_AFTER_S, DatagramAcceptor
from tunnel.runtime.datagram_batches import DATAGRAMS_PER_TURN
from tunnel.runtime.datagram_port import MAX_WAITING, DatagramFlow, open_visitor_socket
from tunnel.runtime.datagram_sockets import DatagramListener
from tunnel.runtime.reactor import Reactor

FLOWS = 256


class FlowCounter:
    """Counts the datagrams that were dropped."""

    total = 0


class IdleFlow:
    """A relay that does nothing but give way."""

    def __init__(self, port: CrowdedPort, flow: DatagramFlow) -> None:
        self._port = port
        self._flow = flow
        flow.attach(self)

    def receive_all(self, datagrams: Sequence[bytes], now: float) -> None: ...

    def flush(self) -> None: ...

    def evict(self) -> None:
        self._port.evicted.append(self._flow.peer)
        self._flow.close()


class CrowdedPort:
    """An acceptor on a port of its own, which has as many visitors as it may have."""

    def __init__(self, reactor: Reactor) -> None:
        self.accepted: list[object] = []
        self.evicted: list[object] = []
        self.has_room = True
        self.dropped, self.beyond_limit = FlowCounter(), FlowCounter()
        listener = open_visitor_socket(socket.AF_INET, ("127.0.0.1", 0))
        address = Address("127.0.0.1", 0)
        self.acceptor = DatagramAcceptor(
            reactor, listener, self._accept, lambda: self.has_room, address, self.dropped, self.beyond_limit
        )
        self._flows: list[IdleFlow] = []

    def _accept(self, sock: socket.SocketType, peer: object) -> None:
        self.accepted.append(peer)
        self._flows.append(IdleFlow(self, cast("DatagramFlow", sock)))

    def on_handler_error(self, error: Exception) -> None:
        raise error

    def evict_all(self) -> None:
        for flow in self._flows:
            flow.evict()


@pytest.fixture
async def crowded() -> AsyncIterator[CrowdedPort]:
    with no_descriptor_leak():
        reactor = Reactor()
        port = CrowdedPort(reactor)
        with ExitStack() as stack:
            for _ in range(FLOWS):
                visitor = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                visitor.sendto(b"x", ("127.0.0.1", port.acceptor.port))
            await wait_until_async(lambda: len(port.accepted) == FLOWS, "all visitors are accepted")
            port.has_room = False
            yield port  # while their sockets are open, no other visitor gets one of their ports
        port.acceptor.close()
        port.evict_all()
        await run_loop_turns(3)
        assert len(reactor) == 0
        reactor.stop()


async def test_a_flood_makes_few_visitors_at_once_give_way(crowded: CrowdedPort) -> None:
    now = monotonic() + EVICT_AFTER_S
    counts = []
    for step in range(40):
        before = len(crowded.evicted)
        for _ in range(10):
            assert not crowded.acceptor.find_room(now + step * 0.006)
        counts.append(len(crowded.evicted) - before)
    assert max(counts) == 2, "no turn pays for more"
    assert FLOWS // 8 < len(crowded.evicted) <= 3 * FLOWS // 8, "each of three searches finds an eighth"
    assert crowded.evicted == crowded.accepted[: len(crowded.evicted)], "the longest idle first"


async def test_a_visitor_that_sends_again_before_its_turn_stays(crowded: CrowdedPort) -> None:
    now = monotonic() + EVICT_AFTER_S
    crowded.acceptor.find_room(now)
    for flow in crowded.acceptor._idle:
        flow.last_seen = now
    for step in range(1, 10):
        crowded.acceptor.find_room(now + step * 0.006)
    assert len(crowded.evicted) == 2


async def test_where_no_visitor_is_idle_a_new_one_is_dropped(crowded: CrowdedPort) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as visitor:
        visitor.sendto(b"x", ("127.0.0.1", crowded.acceptor.port))
        await wait_until_async(lambda: crowded.dropped.total == 1, "it is dropped")
    assert crowded.evicted == []


async def test_datagrams_that_no_acceptor_takes_are_counted(crowded: CrowdedPort) -> None:
    """Seen to fail: those that waited for an acceptor, and none came, were not counted."""
    listener = crowded.acceptor.detach_listener()
    assert listener is not None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as visitor:
        for _ in range(MAX_WAITING + 5):
            visitor.sendto(b"x", ("127.0.0.1", crowded.acceptor.port))
        await wait_until_async(lambda: crowded.dropped.total == 5, "the oldest give way")
    listener.close()
    assert crowded.dropped.total == MAX_WAITING + 5


async def test_new_visitors_leave_turns_to_other_sockets(crowded: CrowdedPort, monkeypatch: pytest.MonkeyPatch) -> None:
    crowded.has_room = True
    port = crowded.acceptor._port
    before = len(crowded.accepted)
    with ExitStack() as stack:
        for _ in range(DATAGRAMS_PER_TURN):
            visitor = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            visitor.sendto(b"x", ("127.0.0.1", crowded.acceptor.port))
        port.ready(0)
        assert 0 < len(crowded.accepted) - before < DATAGRAMS_PER_TURN / 4
        await wait_until_async(lambda: len(crowded.accepted) == FLOWS + DATAGRAMS_PER_TURN, "all are accepted")


@pytest.mark.parametrize("was_released", [False, True])
async def test_a_port_whose_last_visitor_has_left_goes_to_the_next_acceptor(*, was_released: bool) -> None:
    """Seen to fail: an engine that took over a port without visitors crashed, as its socket was registered already."""
    with no_descriptor_leak():
        reactor = Reactor()
        first = CrowdedPort(reactor)
        place = ("127.0.0.1", first.acceptor.port)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as visitor:
            visitor.sendto(b"x", place)
            await wait_until_async(lambda: len(first.accepted) == 1, "the visitor is accepted")
            if was_released:
                first.acceptor.close()
                listener = open_visitor_socket(socket.AF_INET, place)
            else:
                listener = cast("DatagramListener", first.acceptor.detach_listener())
            first.evict_all()
            accepted: list[object] = []
            second = DatagramAcceptor(
                reactor,
                listener,
                lambda flow, _peer: accepted.append(flow),
                lambda: True,
                Address(*place),
                FlowCounter(),
                FlowCounter(),
            )
            visitor.sendto(b"again", place)
            await wait_until_async(lambda: len(accepted) == 1, "the next acceptor has the visitor")
            second.close()
            for flow in accepted:
                cast("DatagramFlow", flow).close()
        await run_loop_turns(3)
        assert len(reactor) == 0
        reactor.stop()

"""Edges come once, closing is safe in the middle of a batch, a defect stays with its owner."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import pytest

from tests.support.engine_parts import no_descriptor_leak
from tests.support.waiting import run_loop_turns, wait_until_async
from tunnel.runtime.reactor import HANGUP, READABLE, WRITABLE, Reactor


@pytest.fixture
async def reactor() -> AsyncIterator[Reactor]:
    with no_descriptor_leak():
        made = Reactor()
        yield made
        assert len(made) == 0
        made.stop()


class Ear:
    """Hears what the reactor says of one socket."""

    def __init__(self, reactor: Reactor, sock: socket.socket) -> None:
        self.reactor = reactor
        self.sock = sock
        self.heard: list[int] = []
        self.defects: list[Exception] = []
        self.on_event: Callable[[int], None] = lambda _events: None
        reactor.register(sock, self.ready)

    def ready(self, events: int) -> None:
        self.heard.append(events)
        self.on_event(events)

    def on_handler_error(self, error: Exception) -> None:
        self.defects.append(error)

    @property
    def bits(self) -> int:
        both = 0
        for events in self.heard:
            both |= events
        return both

    def close(self) -> None:
        self.reactor.close(self.sock)


def ears(reactor: Reactor, count: int) -> tuple[list[Ear], list[socket.socket]]:
    pairs = [socket.socketpair() for _ in range(count)]
    for ours, theirs in pairs:
        ours.setblocking(False)
        theirs.setblocking(False)
    return [Ear(reactor, ours) for ours, _ in pairs], [theirs for _, theirs in pairs]


def close(*some: Ear | socket.socket) -> None:
    for one in some:
        one.close()


async def test_what_is_new_comes_once(reactor: Reactor) -> None:
    (ear,), (peer,) = ears(reactor, 1)
    await wait_until_async(lambda: ear.bits & WRITABLE, "a new socket is writable")
    ear.heard.clear()
    peer.send(b"one")
    await wait_until_async(lambda: ear.bits & READABLE, "bytes are told")
    count = len(ear.heard)
    await run_loop_turns(10)
    assert len(ear.heard) == count, "an edge came twice"
    peer.send(b"two")
    await wait_until_async(lambda: len(ear.heard) > count, "new bytes are told although the old ones are unread")
    peer.close()
    await wait_until_async(lambda: ear.bits & HANGUP, "the end is told")
    assert ear.sock.recv(100) == b"onetwo"
    ear.close()


async def test_a_socket_handed_over_speaks_to_its_new_handler_alone(reactor: Reactor) -> None:
    (ear,), (peer,) = ears(reactor, 1)
    await wait_until_async(lambda: ear.heard, "the first event")
    heard: list[int] = []
    reactor.set_handler(ear.sock, heard.append)
    before = len(ear.heard)
    peer.send(b"x")
    await wait_until_async(lambda: heard, "the new handler hears")
    assert len(ear.heard) == before
    assert len(reactor) == 1
    ear.close()
    peer.close()


async def test_an_event_of_a_batch_never_reaches_a_socket_that_was_closed_in_it(reactor: Reactor) -> None:
    """Nor a new one with the same number: the number stays taken until the batch is over."""
    some, peers = ears(reactor, 8)
    await wait_until_async(lambda: all(ear.heard for ear in some), "the first events")
    strangers: list[tuple[Ear, socket.socket]] = []

    def close_the_others(first: Ear) -> Callable[[int], None]:
        def on_event(_events: int) -> None:
            if strangers:
                return
            for other in some:
                if other is not first:
                    other.close()
            for _ in some:  # new sockets, which would get the numbers of those just closed
                ours, theirs = socket.socketpair()
                strangers.append((Ear(reactor, ours), theirs))

        return on_event

    for ear in some:
        ear.heard.clear()
        ear.on_event = close_the_others(ear)
    for peer in peers:
        peer.send(b"x")
    await wait_until_async(lambda: strangers, "the batch came")
    await run_loop_turns(5)
    assert sum(bool(ear.heard) for ear in some) == 1
    assert not any(ear.bits & READABLE for ear, _ in strangers)
    assert all(ear.sock.fileno() == -1 for ear in some if not ear.heard), "closed when the batch was over"
    for ear, theirs in strangers:
        ear.close()
        theirs.close()
    for ear in some:
        ear.close()
    for peer in peers:
        peer.close()


async def test_closing_twice_closes_once(reactor: Reactor) -> None:
    (ear,), (peer,) = ears(reactor, 1)
    ear.close()
    with os.fdopen(os.open("/dev/null", os.O_RDONLY)) as newcomer:  # takes the number
        ear.close()
        os.fstat(newcomer.fileno())
    peer.close()


async def test_who_stops_for_fairness_is_called_again_after_the_others(reactor: Reactor) -> None:
    (greedy, modest), peers = ears(reactor, 2)
    await wait_until_async(lambda: greedy.heard and modest.heard, "the first events")
    order: list[str] = []

    def take_one(_events: int) -> None:
        with suppress(BlockingIOError):
            greedy.sock.recv(1)
            order.append("greedy")
            reactor.call_again(greedy.ready)

    def take_all(events: int) -> None:
        if events & READABLE:
            order.append("modest")

    greedy.on_event, modest.on_event = take_one, take_all
    peers[0].send(b"x" * 200)
    peers[1].send(b"x")
    await wait_until_async(lambda: order.count("greedy") == 200, "all was read")
    assert order.index("modest") <= 2
    close(*peers, greedy, modest)


async def test_a_defect_reaches_its_owner_alone(reactor: Reactor) -> None:
    some, peers = ears(reactor, 5)
    await wait_until_async(lambda: all(ear.heard for ear in some), "the first events")

    def slip(_events: int) -> None:
        raise RuntimeError("a slip")

    some[2].on_event = slip
    for ear in some:
        ear.heard.clear()
    for peer in peers:
        peer.send(b"x")
    await wait_until_async(lambda: all(ear.bits & READABLE for ear in some), "all were told")
    assert [len(ear.defects) for ear in some] == [0, 0, 1, 0, 0]
    some[2].defects.clear()
    reactor.call_again(some[2].ready)
    await wait_until_async(lambda: some[2].defects, "a defect in a second call is told")
    close(*some, *peers)


async def test_a_defect_that_nobody_answers_for_costs_no_neighbour_an_event(reactor: Reactor) -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: told.append(context))
    some, peers = ears(reactor, 6)
    await wait_until_async(lambda: all(ear.heard for ear in some), "the first events")

    def slip(_events: int) -> None:
        raise RuntimeError("a slip")

    class Careless(Ear):
        def on_handler_error(self, error: Exception) -> None:
            raise error

    ours, careless_peer = socket.socketpair()
    careless = Careless(reactor, ours)
    await wait_until_async(lambda: careless.heard, "the first event")
    careless.on_event = slip
    reactor.set_handler(some[0].sock, lambda _events: slip(0))
    for ear in some:
        ear.heard.clear()
    for peer in (careless_peer, *peers):
        peer.send(b"x")
    await wait_until_async(lambda: all(ear.bits & READABLE for ear in some[1:]), "the neighbours were told")
    await wait_until_async(lambda: len(told) == 2, "both defects were told to the loop")
    done: list[int] = []
    reactor.defer(lambda: done.append(1))
    await wait_until_async(lambda: done, "the reactor goes on")
    close(*some, *peers, careless, careless_peer)


async def test_what_is_deferred_in_a_batch_leaves_after_all_of_it(reactor: Reactor) -> None:
    some, peers = ears(reactor, 5)
    await wait_until_async(lambda: all(ear.heard for ear in some), "the first events")
    order: list[str] = []

    def on_event(_events: int) -> None:
        if not order:
            reactor.defer(lambda: reactor.defer(lambda: order.append("nested")))
            reactor.defer(lambda: order.append("deferred"))
        order.append("event")

    for ear in some:
        ear.on_event = on_event
    for peer in peers:
        peer.send(b"x")
    await wait_until_async(lambda: "nested" in order, "the deferred was called")
    assert order == ["event"] * 5 + ["deferred", "nested"]
    close(*some, *peers)


async def test_a_turn_that_was_asked_for_before_the_stop_is_no_defect() -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: told.append(context))
    reactor = Reactor()
    reactor.defer(lambda: None)
    reactor.stop()
    await run_loop_turns(3)
    assert not told

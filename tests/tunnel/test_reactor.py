"""Edges come once, closing is safe in the middle of a batch, and an exception stays with its owner."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import partial
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


class RecordingHandler:
    """Records the events of one socket, and the defects of its handler."""

    def __init__(self, reactor: Reactor, sock: socket.socket) -> None:
        self.reactor = reactor
        self.sock = sock
        self.events: list[int] = []
        self.defects: list[Exception] = []
        self.on_event: Callable[[int], None] = lambda _events: None
        reactor.register(sock, self.ready)

    def ready(self, events: int) -> None:
        self.events.append(events)
        self.on_event(events)

    def on_handler_error(self, error: Exception) -> None:
        self.defects.append(error)

    @property
    def bits(self) -> int:
        both = 0
        for events in self.events:
            both |= events
        return both

    def close(self) -> None:
        self.reactor.close(self.sock)


def make_handlers(reactor: Reactor, count: int) -> tuple[list[RecordingHandler], list[socket.socket]]:
    pairs = [socket.socketpair() for _ in range(count)]
    for ours, theirs in pairs:
        ours.setblocking(False)
        theirs.setblocking(False)
    return [RecordingHandler(reactor, ours) for ours, _ in pairs], [theirs for _, theirs in pairs]


def close_all(*closables: RecordingHandler | socket.socket) -> None:
    for closable in closables:
        closable.close()


async def test_an_event_is_reported_once(reactor: Reactor) -> None:
    (handler,), (peer,) = make_handlers(reactor, 1)
    await wait_until_async(lambda: handler.bits & WRITABLE, "a new socket is writable")
    handler.events.clear()
    peer.send(b"one")
    await wait_until_async(lambda: handler.bits & READABLE, "bytes are reported")
    count = len(handler.events)
    await run_loop_turns(10)
    assert len(handler.events) == count, "an edge came twice"
    peer.send(b"two")
    await wait_until_async(
        lambda: len(handler.events) > count, "new bytes are reported although the old ones are unread"
    )
    peer.close()
    await wait_until_async(lambda: handler.bits & HANGUP, "the end is reported")
    assert handler.sock.recv(100) == b"onetwo"
    handler.close()


async def test_a_new_handler_replaces_the_old_one(reactor: Reactor) -> None:
    (handler,), (peer,) = make_handlers(reactor, 1)
    await wait_until_async(lambda: handler.events, "the first event")
    recorded: list[int] = []
    reactor.set_handler(handler.sock, recorded.append)
    before = len(handler.events)
    peer.send(b"x")
    await wait_until_async(lambda: recorded, "the new handler is called")
    assert len(handler.events) == before
    assert len(reactor) == 1
    handler.close()
    peer.close()


async def test_an_event_never_reaches_a_socket_that_was_closed_in_its_batch(reactor: Reactor) -> None:
    """Nor a new one with the same number: the number stays taken until the batch is over."""
    handlers, peers = make_handlers(reactor, 8)
    await wait_until_async(lambda: all(handler.events for handler in handlers), "the first events")
    new_sockets: list[tuple[RecordingHandler, socket.socket]] = []

    def close_the_others(first: RecordingHandler) -> Callable[[int], None]:
        def on_event(_events: int) -> None:
            if new_sockets:
                return
            for other in handlers:
                if other is not first:
                    other.close()
            for _ in handlers:  # new sockets, which would get the numbers of those just closed
                ours, theirs = socket.socketpair()
                new_sockets.append((RecordingHandler(reactor, ours), theirs))

        return on_event

    for handler in handlers:
        handler.events.clear()
        handler.on_event = close_the_others(handler)
    for peer in peers:
        peer.send(b"x")
    await wait_until_async(lambda: new_sockets, "the batch came")
    await run_loop_turns(5)
    assert sum(bool(handler.events) for handler in handlers) == 1
    assert not any(handler.bits & READABLE for handler, _ in new_sockets)
    assert all(handler.sock.fileno() == -1 for handler in handlers if not handler.events), (
        "closed when the batch was over"
    )
    for handler, theirs in new_sockets:
        handler.close()
        theirs.close()
    for handler in handlers:
        handler.close()
    for peer in peers:
        peer.close()


async def test_closing_twice_closes_once(reactor: Reactor) -> None:
    (handler,), (peer,) = make_handlers(reactor, 1)
    handler.close()
    with os.fdopen(os.open("/dev/null", os.O_RDONLY)) as other:  # takes the number
        handler.close()
        os.fstat(other.fileno())
    peer.close()


async def test_a_handler_that_stops_for_fairness_is_called_again_after_the_others(reactor: Reactor) -> None:
    (greedy, modest), peers = make_handlers(reactor, 2)
    await wait_until_async(lambda: greedy.events and modest.events, "the first events")
    order: list[str] = []

    def read_one(_events: int) -> None:
        with suppress(BlockingIOError):
            greedy.sock.recv(1)
            order.append("greedy")
            reactor.call_again(greedy.ready)

    def read_all(events: int) -> None:
        if events & READABLE:
            order.append("modest")

    greedy.on_event, modest.on_event = read_one, read_all
    peers[0].send(b"x" * 200)
    peers[1].send(b"x")
    await wait_until_async(lambda: order.count("greedy") == 200, "all was read")
    assert order.index("modest") <= 2
    close_all(*peers, greedy, modest)


async def test_an_exception_in_a_handler_reaches_only_its_owner(reactor: Reactor) -> None:
    handlers, peers = make_handlers(reactor, 5)
    await wait_until_async(lambda: all(handler.events for handler in handlers), "the first events")

    def fail(_events: int) -> None:
        raise RuntimeError("a bug")

    handlers[2].on_event = fail
    for handler in handlers:
        handler.events.clear()
    for peer in peers:
        peer.send(b"x")
    await wait_until_async(lambda: all(handler.bits & READABLE for handler in handlers), "all events were reported")
    assert [len(handler.defects) for handler in handlers] == [0, 0, 1, 0, 0]
    handlers[2].defects.clear()
    reactor.call_again(handlers[2].ready)
    await wait_until_async(lambda: handlers[2].defects, "an exception in a second call is reported")
    close_all(*handlers, *peers)


async def test_an_exception_without_an_owner_costs_no_other_socket_an_event(reactor: Reactor) -> None:
    contexts: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: contexts.append(context))
    handlers, peers = make_handlers(reactor, 6)
    await wait_until_async(lambda: all(handler.events for handler in handlers), "the first events")

    def fail(_events: int) -> None:
        raise RuntimeError("a bug")

    class FailingOwner(RecordingHandler):
        def on_handler_error(self, error: Exception) -> None:
            raise error

    ours, failing_peer = socket.socketpair()
    failing = FailingOwner(reactor, ours)
    await wait_until_async(lambda: failing.events, "the first event")
    failing.on_event = fail
    reactor.set_handler(handlers[0].sock, lambda _events: fail(0))
    for handler in handlers:
        handler.events.clear()
    for peer in (failing_peer, *peers):
        peer.send(b"x")
    await wait_until_async(
        lambda: all(handler.bits & READABLE for handler in handlers[1:]), "the other sockets got their events"
    )
    await wait_until_async(lambda: len(contexts) == 2, "both exceptions were reported to the loop")
    done: list[int] = []
    reactor.defer(lambda: done.append(1))
    await wait_until_async(lambda: done, "the reactor continues")
    close_all(*handlers, *peers, failing, failing_peer)


async def test_deferred_callbacks_run_after_the_whole_batch(reactor: Reactor) -> None:
    handlers, peers = make_handlers(reactor, 5)
    await wait_until_async(lambda: all(handler.events for handler in handlers), "the first events")
    order: list[str] = []

    def on_event(_events: int) -> None:
        if not order:
            reactor.defer(lambda: reactor.defer(lambda: order.append("nested")))
            reactor.defer(lambda: order.append("deferred"))
        order.append("event")

    for handler in handlers:
        handler.on_event = on_event
    for peer in peers:
        peer.send(b"x")
    await wait_until_async(lambda: "nested" in order, "the deferred was called")
    assert order == ["event"] * 5 + ["deferred", "nested"]
    close_all(*handlers, *peers)


async def test_no_event_is_lost_when_handlers_cause_events_on_and_on(reactor: Reactor) -> None:
    """Four tokens go round a ring of sockets: each batch of events causes the next one in the same turn."""
    handlers, peers = make_handlers(reactor, 8)
    await wait_until_async(lambda: all(handler.events for handler in handlers), "the first events")
    passed = 0

    def pass_on(index: int, _events: int) -> None:
        nonlocal passed
        with suppress(BlockingIOError):
            handlers[index].sock.recv(1)
            passed += 1
            if passed <= 1000:
                peers[(index + 1) % 8].send(b"x")

    for index, handler in enumerate(handlers):
        handler.on_event = partial(pass_on, index)
    for peer in peers[::2]:
        peer.send(b"x")
    await wait_until_async(lambda: passed == 1004, "every token was passed on until the end")
    close_all(*handlers, *peers)


async def test_a_turn_scheduled_before_the_stop_does_nothing() -> None:
    contexts: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: contexts.append(context))
    reactor = Reactor()
    reactor.defer(lambda: None)
    reactor.stop()
    await run_loop_turns(3)
    assert not contexts

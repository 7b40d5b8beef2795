"""asyncio and a reactor share one epoll instance, and each gets its own events."""

from __future__ import annotations

import asyncio
import os
import selectors
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

import pytest

from tests.support.engine_parts import no_descriptor_leak
from tests.support.scale import GUARD_S
from tests.support.waiting import wait_until_async
from tunnel.runtime.event_loop import EpollEvents, SharedEpollLoop, SharedSelector
from tunnel.runtime.reactor import READABLE, Reactor


@pytest.fixture
def selector() -> Iterator[SharedSelector]:
    with no_descriptor_leak():
        made = SharedSelector()
        yield made
        made.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


Pair = tuple[socket.socket, socket.socket]


def test_a_watched_socket_is_selected_with_its_key_until_it_is_unregistered(
    selector: SharedSelector, pair: Pair
) -> None:
    key = selector.register(pair[0], selectors.EVENT_READ | selectors.EVENT_WRITE, "data")
    assert selector.select(0) == [(key, selectors.EVENT_WRITE)]
    pair[1].send(b"x")
    assert selector.select(0) == [(key, selectors.EVENT_READ | selectors.EVENT_WRITE)]
    changed = selector.modify(pair[0], selectors.EVENT_READ, "other")
    assert selector.select(0) == [(changed, selectors.EVENT_READ)]
    assert selector.get_key(pair[0]) == changed
    assert selector.unregister(pair[0]) == changed
    assert selector.select(0) == []


def test_a_socket_that_was_closed_can_still_be_unregistered(selector: SharedSelector) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        key = selector.register(ours, selectors.EVENT_READ)
        ours.close()
        assert selector.unregister(ours) == key
        assert not selector.get_map()


def test_a_watched_socket_is_found_in_the_map_by_itself_and_by_its_number(selector: SharedSelector, pair: Pair) -> None:
    key = selector.register(pair[0], selectors.EVENT_READ)
    watched = selector.get_map()
    assert watched.get(pair[0]) is watched[pair[0].fileno()] is key
    assert watched.get(pair[1]) is None
    assert list(watched) == [pair[0].fileno()]
    assert len(watched) == 1


def test_registering_twice_and_using_an_unknown_socket_are_refused(selector: SharedSelector, pair: Pair) -> None:
    selector.register(pair[0].fileno(), selectors.EVENT_READ)
    with pytest.raises(KeyError, match="already registered"):
        selector.register(pair[0], selectors.EVENT_READ)
    with pytest.raises(KeyError):
        selector.unregister(pair[1])
    with pytest.raises(KeyError):
        selector.modify(pair[1], selectors.EVENT_READ)


def test_an_end_is_reported_as_readable_and_writable_as_far_as_it_was_asked_for(
    selector: SharedSelector, pair: Pair
) -> None:
    key = selector.register(pair[0], selectors.EVENT_READ)
    pair[1].close()
    assert selector.select(0) == [(key, selectors.EVENT_READ)]
    key = selector.modify(pair[0], selectors.EVENT_WRITE)
    assert selector.select(0) == [(key, selectors.EVENT_WRITE)]


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, 0.0104])
def test_selecting_nothing_ends_after_its_timeout_and_not_earlier(selector: SharedSelector, timeout_s: float) -> None:
    began = time.monotonic()
    assert selector.select(timeout_s) == []
    assert time.monotonic() - began >= timeout_s


def test_selecting_without_a_timeout_waits_for_an_event(selector: SharedSelector, pair: Pair) -> None:
    key = selector.register(pair[0], selectors.EVENT_READ)
    timer = threading.Timer(0.01, pair[1].send, (b"x",))
    timer.start()
    assert selector.select() == [(key, selectors.EVENT_READ)]
    timer.join()


async def test_one_reactor_shares_the_epoll_instance_and_a_second_one_has_its_own(pair: Pair) -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, SharedEpollLoop)
    with no_descriptor_leak():
        first, second = Reactor(), Reactor()
        bits = [0, 0]

        def collect(index: int, events: int) -> None:
            bits[index] |= events

        for index, reactor in enumerate((first, second)):
            pair[index].setblocking(False)
            reactor.register(pair[index], partial(collect, index))
        for sock in pair:
            sock.send(b"to the other one")
        await wait_until_async(lambda: all(each & READABLE for each in bits), "both reactors report their socket")
        for reactor, sock in ((first, pair[0]), (second, pair[1])):
            reactor.unregister(sock)
            reactor.stop()
    assert loop.shared_selector.reactor is None


class _CountingReactor:
    """A reactor with one socket: counts the bytes that it reads there, and returns the events of other descriptors."""

    def __init__(self, selector: SharedSelector, sock: socket.socket) -> None:
        self.needs_turn = False
        self.bytes_read = 0
        self.sock = sock
        self.selector = selector
        selector.epoll.register(sock.fileno(), READABLE)
        selector.reactor = self

    def handle_events(self, events: EpollEvents) -> EpollEvents:
        own = [event for event in events if event[0] == self.sock.fileno()]
        for _ in own:
            self.bytes_read += len(self.sock.recv(1))
        return [event for event in events if event not in own]


def test_events_of_the_reactor_alone_do_not_end_the_wait_of_asyncio(selector: SharedSelector, pair: Pair) -> None:
    reactor = _CountingReactor(selector, pair[0])
    pair[1].send(b"two")
    began = time.monotonic()
    assert selector.select(0.03) == []
    assert time.monotonic() - began >= 0.03
    assert reactor.bytes_read == 3


def test_a_reactor_that_needs_its_turn_gets_it_without_an_event(selector: SharedSelector, pair: Pair) -> None:
    reactor = _CountingReactor(selector, pair[0])
    reactor.needs_turn = True
    turns = 0

    def end_turn(events: EpollEvents) -> EpollEvents:
        nonlocal turns
        turns += 1
        reactor.needs_turn = False
        return events

    reactor.handle_events = end_turn  # type: ignore[method-assign]  # of this test
    assert selector.select(0.01) == []
    assert turns == 1


@pytest.mark.parametrize("delay_s", [None, 0.0, 0.01])
async def test_a_callback_that_a_handler_schedules_does_not_wait_for_another_timer(
    pair: Pair, delay_s: float | None
) -> None:
    loop, done, reactor = asyncio.get_running_loop(), asyncio.Event(), Reactor()

    def act(events: int) -> None:
        if events & READABLE and pair[0].recv(1):
            if delay_s is None:
                loop.call_soon(done.set)
            else:
                loop.call_later(delay_s, done.set)

    pair[0].setblocking(False)
    reactor.register(pair[0], act)
    timer = threading.Timer(0.02, pair[1].send, (b"x",))
    timer.start()
    async with asyncio.timeout(GUARD_S):
        await done.wait()
    timer.join()
    reactor.unregister(pair[0])
    reactor.stop()


async def test_asyncio_works_beside_a_busy_reactor() -> None:
    """Streams, timers and threads are served although a handler asks for every turn."""
    with ExitStack() as stack:
        reactor = Reactor()
        stack.callback(reactor.stop)
        calls = 0

        def call_again(_events: int) -> None:
            nonlocal calls
            calls += 1
            reactor.call_again(call_again)

        reactor.call_again(call_again)

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write((await reader.readline()).upper())
            writer.close()
            await writer.wait_closed()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
        writer.write(b"hello\n")
        assert await reader.readline() == b"HELLO\n"
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()
        assert await asyncio.to_thread(os.getpid) == os.getpid()
        await asyncio.sleep(0.01)
        assert calls > 10

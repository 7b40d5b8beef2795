"""Relays with vanished peers: which are aborted, and when."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

import pytest

from tests.support.engine_parts import Events
from tests.support.sockets import tcp_pair
from tests.support.waiting import wait_until_async
from tunnel.carriers.tcp import PlainCarrier
from tunnel.engine.pool import DataConnection, Pool
from tunnel.engine.relays import RelaySet
from tunnel.engine.time_limits import TimeLimits
from tunnel.model.spec import Proto
from tunnel.model.visitor_end import VisitorEnd
from tunnel.model.visitors import visitor_id
from tunnel.runtime import sockets
from tunnel.runtime.reactor import Reactor

if TYPE_CHECKING:
    from tunnel.forwarding.base import FlowPath, ForwardedVisitor, ForwardingOwner, RelayLink, UsedConnection
    from tunnel.forwarding.flow import Flow

VANISHED_AFTER_S = 0.05


class FakeVisitor:
    """A forwarded visitor whose peer answers, or has not answered for ``unanswered`` seconds."""

    proto: ClassVar = Proto.TCP

    def __init__(self, ident: int, link: RelayLink, owner: ForwardingOwner) -> None:
        self.ident = ident
        self.link = link
        self.is_open = True
        self.keepalive_enabled = False
        self.unanswered: float | None = None
        self.answers_in_between = False
        self.is_data_unanswered = False
        self.checks = 0
        self.visitor_address = b""
        self.use = 0
        self.started_at = time.monotonic()
        self.moved = 0
        self.ended: VisitorEnd | None = None
        self.is_freed = False
        self.flows: tuple[Flow, ...] = ()
        self._owner = owner

    @property
    def id(self) -> str:
        return visitor_id(self.link.ident, self.ident, self.use)

    def start(self, near_events: int | None, far_events: int) -> None: ...

    def set_end_offset(self, total: int) -> None: ...

    def note_freed(self) -> None: ...

    def on_link_lost(self) -> None: ...

    def enable_keepalive(self) -> None:
        self.keepalive_enabled = True

    def describe_visitor(self) -> str:
        return "somewhere"

    def describe_near(self) -> str | None:
        return None

    def passed(self) -> tuple[int, int]:
        return self.moved, 0

    @property
    def activity(self) -> int:
        return self.moved

    def unanswered_s(self) -> float | None:
        self.checks += 1
        return None if self.answers_in_between and self.checks % 2 else self.unanswered

    def release_near(self) -> None:
        """Forwards something from its start."""

    def fail(self, reason: str) -> None:
        self.close()

    def close(self, cause: VisitorEnd | None = None) -> None:
        self.ended = cause
        self.is_open = False
        self._owner.on_relay_closed(self)

    abort = close


class FakeForwarder:
    def create(
        self, data: UsedConnection, link: RelayLink, near: socket.SocketType, owner: ForwardingOwner
    ) -> FakeVisitor:
        assert isinstance(data, DataConnection)
        near.close()
        data.sock.close()
        return FakeVisitor(data.ident, link, owner)


class FakeLink:
    ident = "0123456789abcdef"
    is_client = is_lost = False
    announces_ends = has_announced_ends = False
    reuses = False
    datagram_path: FlowPath | None = None

    def take_back(self, relay: ForwardedVisitor, sock: socket.SocketType) -> None:
        raise AssertionError("no data connection is used twice")

    def send_stream_ended(self, ident: int, total: int) -> bool:
        return False

    def fail_visitor(self, ident: int, reason: str) -> None:
        raise AssertionError("no target turns out to be unreachable")


class Relays:
    """A relay set that checks its relays all the time, and the events that it logs."""

    def __init__(self, reactor: Reactor) -> None:
        self.events = Events()
        self.aborted: list[tuple[VisitorEnd, int]] = []
        self._reactor = reactor
        self.set = RelaySet(
            reactor,
            FakeForwarder(),
            self.events.event_log(),
            on_first_relay=lambda: None,
            on_relay_closed=lambda _: None,
            on_aborted=lambda end, count: self.aborted.append((end, count)),
            maintenance_interval_s=0.002,
            vanished_after_s=VANISHED_AFTER_S,
        )

    def start(self, ident: int, link: RelayLink | None = None) -> FakeVisitor:
        pool = Pool(self._reactor, is_ingress=False, on_connection_lost=lambda _ident: None, on_crash=_fail)
        near, far = tcp_pair()
        visitor = self.set.start(
            near, DataConnection(ident, far, PlainCarrier(), pool), link or FakeLink(), near_events=None
        )
        assert isinstance(visitor, FakeVisitor)
        return visitor


def _fail(error: Exception) -> None:
    raise error


@pytest.fixture
async def relays() -> AsyncIterator[Relays]:
    reactor = Reactor()
    relays = Relays(reactor)
    try:
        yield relays
    finally:
        relays.set.close_all()
        reactor.stop()


async def test_a_relay_is_aborted_when_its_peer_stays_silent(relays: Relays) -> None:
    gone, present = relays.start(1), relays.start(2)
    gone.unanswered = 2 * VANISHED_AFTER_S
    await wait_until_async(lambda: not gone.is_open, "the relay of the vanished peer is aborted")
    assert present.is_open
    assert gone.checks >= 2, "aborted at the first check, which may show an idle hour before new data"
    assert relays.aborted == [(VisitorEnd.VANISHED, 1)]
    assert gone.ended is VisitorEnd.VANISHED
    assert [event.text for event in relays.events] == [
        "the peer of a relay vanished: no acknowledgement for 0 s; disconnected"
    ]


@pytest.mark.parametrize("is_link_alive", [True, False])
async def test_a_silent_data_connection_beside_a_link_that_answers_is_a_fault_of_the_path(
    relays: Relays, *, is_link_alive: bool
) -> None:
    link = FakeLink()
    relays.set.add_link(link)
    relay = relays.start(1, link)
    if not is_link_alive:
        relays.set.remove_link(link)
    relay.unanswered, relay.is_data_unanswered = 2 * VANISHED_AFTER_S, True
    await wait_until_async(lambda: not relay.is_open, "the relay is aborted")
    assert relays.events.said("the path probably loses large packets") is is_link_alive


async def test_a_relay_survives_when_its_peer_answers_in_between(relays: Relays) -> None:
    relay = relays.start(1)
    relay.answers_in_between, relay.unanswered = True, 3600.0  # new data after an idle hour: repeated, but not for long
    await asyncio.sleep(3 * VANISHED_AFTER_S)
    seen = relay.checks
    await wait_until_async(lambda: relay.checks > seen + 2, "the relay was checked after that time, too")
    assert relay.is_open


async def test_a_paused_peer_is_not_taken_for_a_vanished_one(relays: Relays) -> None:
    relay = relays.start(1)
    relay.unanswered = VANISHED_AFTER_S / 2  # the last window probe was answered
    seen = relay.checks
    await wait_until_async(lambda: relay.checks > seen + 20, "the relay was checked many times")
    assert relay.is_open


def test_an_answering_peer_leaves_nothing_unanswered() -> None:
    ours, theirs = tcp_pair(small=True)
    with ours, theirs:
        assert sockets.unanswered_s(ours) is None
        ours.send(b"x")
        assert sockets.unanswered_s(ours) is None
    assert sockets.unanswered_s(ours) is None


async def test_an_idle_visitor_is_disconnected_and_a_busy_one_stays(relays: Relays) -> None:
    idle, busy = relays.start(1), relays.start(2)
    relays.set.set_time_limits({Proto.TCP: 0.25}, 0.0)

    def has_ended() -> bool:
        busy.moved += 1
        return not idle.is_open

    await wait_until_async(has_ended, "the idle visitor is disconnected")
    assert busy.is_open
    assert idle.ended is VisitorEnd.IDLE_TIMEOUT
    assert time.monotonic() - idle.started_at >= 0.25
    await wait_until_async(lambda: relays.aborted == [(VisitorEnd.IDLE_TIMEOUT, 1)], "it is counted")
    assert relays.events.said("1 visitor disconnected: idle_timeout")
    relays.set.set_time_limits({Proto.TCP: 0.0}, 0.0)


async def test_a_change_of_the_limits_in_the_middle_of_a_scan_keeps_idle_times() -> None:
    reactor = Reactor()
    try:
        relays = Relays(reactor)
        first, second = (FakeVisitor(ident, FakeLink(), relays.set) for ident in (1, 2))
        limits, start = TimeLimits({Proto.TCP: 10.0}, 0.0), first.started_at
        limits.find_expired([first, second], start)
        limits.end_scan()
        limits.find_expired([first], start + 6)
        changed = TimeLimits({Proto.TCP: 8.0}, 0.0, limits)
        changed.find_expired([second], start + 6)
        changed.end_scan()
        assert [relay for relay, _ in changed.find_expired([first, second], start + 9)] == [first, second]
    finally:
        reactor.stop()


async def test_a_new_limit_applies_to_present_visitors_and_a_lifted_one_to_none(relays: Relays) -> None:
    visitors = [relays.start(ident) for ident in range(250)]
    relays.set.set_time_limits({Proto.TCP: 0.0}, 60.0)
    relays.set.set_time_limits({Proto.TCP: 60.0}, 60.0)
    for visitor in visitors[:200]:
        visitor.started_at -= 61.0
        visitor.moved = 1
    await wait_until_async(lambda: not any(one.is_open for one in visitors[:200]), "the old ones are disconnected")
    assert all(one.is_open for one in visitors[200:])
    assert {one.ended for one in visitors[:200]} == {VisitorEnd.MAX_AGE}
    relays.set.set_time_limits({Proto.TCP: 0.0}, 0.0)
    visitors[200].started_at -= 61.0
    await wait_until_async(lambda: sum(count for _, count in relays.aborted) == 200, "all are counted")
    assert visitors[200].is_open


async def test_the_end_of_a_tunnel_closes_its_relays_over_several_turns_of_the_loop(relays: Relays) -> None:
    started = [relays.start(number) for number in range(200)]
    closing = asyncio.create_task(relays.set.close_gradually())
    left = []
    while not closing.done():
        await asyncio.sleep(0)
        left.append(sum(relay.is_open for relay in started))
    assert max(before - after for before, after in pairwise([200, *left])) <= 64
    assert left[-1] == 0
    last = relays.start(200)
    assert relays.set.close_all() == 201, "all that were closed because the tunnel ends"
    assert {relay.ended for relay in (*started, last)} == {VisitorEnd.TUNNEL_CLOSED}

"""One relay of a UDP flow at a time, with a data connection that the test holds."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator
from time import monotonic
from typing import TYPE_CHECKING

import pytest

from tests.support.engine_parts import no_descriptor_leak
from tests.support.sockets import tcp_pair
from tests.support.waiting import run_loop_turns, wait_until_async
from tests.tunnel.test_relay import FakeLink
from tunnel.carriers.tcp import PlainCarrier
from tunnel.engine.pool import DataConnection, Pool
from tunnel.forwarding.base import NearCounters
from tunnel.forwarding.flow import ByteCounter
from tunnel.forwarding.udp import TargetRelay, UdpForwarder
from tunnel.model.visitor_end import VisitorEnd, VisitorRecord
from tunnel.protocol.datagram_frames import MAX_DATAGRAM_BYTES, DatagramReader, encode_datagrams
from tunnel.protocol.visitor_address import pack_address
from tunnel.runtime import sockets
from tunnel.runtime.datagram_port import MAX_WAITING
from tunnel.runtime.datagram_sockets import connect_datagram
from tunnel.runtime.reactor import Reactor

if TYPE_CHECKING:
    from tunnel.forwarding.base import ForwardedVisitor, OwnedConnection
    from tunnel.forwarding.tcp import Relay

MAX_WAIT_S = 60.0
"""Longer than what follows takes on a busy machine."""


class Flow:
    """A relay between a target and a data connection; ``far`` is the other end of that."""

    def __init__(self, reactor: Reactor) -> None:
        self.records: list[VisitorRecord] = []
        self.errors: list[str] = []
        self.target = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.target.bind(("127.0.0.1", 0))
        near = connect_datagram(socket.AF_INET, self.target.getsockname())
        self.near_address = near.getsockname()
        ours, self.far = tcp_pair()
        self.far.setblocking(False)
        reactor.register(near, lambda _: None)
        reactor.register(ours, lambda _: None)
        self.counters = NearCounters(ByteCounter(), ByteCounter(), ByteCounter())
        forwarder = UdpForwarder(reactor, self.counters, log=self.records.append, is_ingress=False)
        pool = Pool(reactor, is_ingress=False, on_connection_lost=lambda _: None, on_crash=lambda _: None)
        data = DataConnection(1, ours, PlainCarrier(), pool)
        data.visitor_address = pack_address(("192.0.2.7", 5))
        relay = forwarder.create(data, FakeLink(is_client=True, delays=False), near, self)
        assert isinstance(relay, TargetRelay)
        self.relay = relay
        relay.start(0, 0)

    def on_relay_closed(self, relay: ForwardedVisitor) -> None: ...

    def on_relay_finished(self, relay: ForwardedVisitor, sock: socket.SocketType) -> None:
        raise AssertionError("a flow does not give its data connection back")

    def on_relay_moved(self, relay: Relay, data: OwnedConnection) -> None:
        raise AssertionError("a flow stays on its data connection")

    def on_flows_changed(self, relay: Relay) -> None:
        raise AssertionError("a flow has no streams of bytes")

    def on_relay_error(self, relay: ForwardedVisitor, error: Exception) -> None:
        self.errors.append(str(error))

    def on_target_unreachable(self, relay: ForwardedVisitor, reason: str) -> None:
        self.errors.append(reason)

    def on_stream_error(self, relay: ForwardedVisitor, error: Exception) -> None:
        self.errors.append(str(error))

    def close(self) -> None:
        self.relay.close()
        self.target.close()
        self.far.close()


@pytest.fixture
async def flow(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Flow]:
    monkeypatch.setattr("tunnel.forwarding.datagram_relay.MAX_WAIT_S", MAX_WAIT_S)
    with no_descriptor_leak():
        reactor = Reactor()
        one = Flow(reactor)
        yield one
        one.close()
        await run_loop_turns(3)
        assert len(reactor) == 0
        reactor.stop()


async def read_far(flow: Flow) -> list[bytes]:
    """Return all datagrams that come until there are none for a moment."""
    reader, found = DatagramReader(), []
    for _ in range(20):
        try:
            while data := flow.far.recv(1 << 16):
                found += [one.tobytes() for one in reader.split(data)]
        except BlockingIOError:
            await asyncio.sleep(0.002)
    return found


def fill(flow: Flow) -> None:
    """Send until the data connection takes nothing more."""
    while not flow.relay._pending:
        flow.relay.receive(bytes(8000), monotonic())
        flow.relay.flush()


async def test_where_the_data_connection_is_slow_the_oldest_datagrams_are_dropped(flow: Flow) -> None:
    fill(flow)
    for number in range(MAX_WAITING + 10):
        flow.relay.receive(b"%d" % number, monotonic())
    flow.relay.flush()
    assert flow.counters.dropped.total == 10
    found = [one for one in await read_far(flow) if len(one) < 8000]
    assert found == [b"%d" % number for number in range(10, MAX_WAITING + 10)]


async def test_a_datagram_that_has_waited_for_too_long_is_dropped(flow: Flow) -> None:
    fill(flow)
    flow.relay.receive(b"old", monotonic() - MAX_WAIT_S)
    flow.relay.receive(b"new", monotonic())
    assert [one for one in await read_far(flow) if len(one) < 8000] == [b"new"]
    assert flow.counters.dropped.total == 1


async def test_nothing_is_added_to_what_tcp_repeats(flow: Flow, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(sockets, "unanswered_s", lambda _: 0.3)
        flow.relay.receive(b"held", monotonic())
        flow.relay.flush()
        assert await read_far(flow) == []
    await wait_until_async(lambda: flow.counters.from_near.total == 4, "it is sent after all")
    assert await read_far(flow) == [b"held"]


async def test_a_datagram_that_is_too_long_is_dropped(flow: Flow) -> None:
    flow.relay.receive(bytes(MAX_DATAGRAM_BYTES + 1), monotonic())
    flow.relay.receive(b"short", monotonic())
    flow.relay.flush()
    assert await read_far(flow) == [b"short"]
    assert flow.counters.dropped.total == 1


async def test_a_stream_that_is_none_of_datagrams_ends_the_flow(flow: Flow) -> None:
    flow.far.send(encode_datagrams([b"one"]) + b"\xff\xff")
    await wait_until_async(lambda: not flow.relay.is_open, "the flow is over")
    assert flow.errors == ["a datagram that is too long"]
    [record] = flow.records
    assert (record.end, record.address) == (VisitorEnd.CORRUPTED, "192.0.2.7:5")
    with pytest.raises(ConnectionResetError):
        flow.far.recv(1)


async def test_the_end_of_the_data_connection_ends_the_flow(flow: Flow) -> None:
    flow.far.send(encode_datagrams([b"last"]))
    flow.far.shutdown(socket.SHUT_WR)
    await wait_until_async(lambda: not flow.relay.is_open, "the flow is over")
    assert flow.target.recv(99) == b"last"
    assert [(record.end, record.from_visitor) for record in flow.records] == [(VisitorEnd.VISITOR_CLOSED, 4)]


async def test_many_datagrams_of_the_target_are_sent_in_several_turns(flow: Flow) -> None:
    sent = [b"%d" % number for number in range(150)]
    for one in sent:
        flow.target.sendto(one, flow.near_address)
    assert await read_far(flow) == sent


async def test_datagrams_keep_their_order_where_many_follow_a_lone_one(flow: Flow) -> None:
    for count in (1, 1, 40, 1, 2):
        sent = [b"%d" % number for number in range(count)]
        for one in sent:
            flow.target.sendto(one, flow.near_address)
        assert await read_far(flow) == sent


async def test_a_flow_that_ends_while_its_target_is_read_drops_nothing_more(flow: Flow) -> None:
    """Seen to fail: the closed socket was read again, and that counted as a dropped datagram."""
    sockets.reset_on_close(flow.far)
    flow.far.close()
    for _ in range(10):
        flow.relay.receive(b"waits", monotonic())
    for _ in range(MAX_WAITING):
        flow.target.sendto(b"x", flow.near_address)
    flow.relay.on_near(0)
    assert not flow.relay.is_open
    assert flow.counters.dropped.total == 0


async def test_a_datagram_that_the_target_does_not_take_is_lost_alone(
    flow: Flow, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> int:
        raise OSError(errno.EMSGSIZE, "")

    with monkeypatch.context() as patched:
        patched.setattr(TargetRelay, "_send_near", lambda *_: refuse())
        flow.far.send(encode_datagrams([b"one"]))
        await wait_until_async(lambda: flow.counters.dropped.total == 1, "it is counted")
    flow.far.send(encode_datagrams([b"two"]))
    await wait_until_async(lambda: flow.counters.to_near.total == 3, "the next one passes")
    assert flow.target.recv(99) == b"two"


async def test_a_defect_ends_its_flow_alone(flow: Flow) -> None:
    flow.relay.on_handler_error(ValueError("a defect"))
    assert flow.errors == ["a defect"]
    assert [record.end for record in flow.records] == [VisitorEnd.DEFECT]

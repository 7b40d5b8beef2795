"""Bursts of datagrams through pairs of engines over real sockets, sent as one piece where the kernel can do that."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import ExitStack

import pytest

from tests.support.engine_parts import no_descriptor_leak, shared_parts
from tests.support.ports import free_port
from tests.support.scale import GUARD_S
from tests.support.waiting import wait_until_async
from tests.tunnel.test_engine import RunningEngine
from tests.tunnel.test_udp import Peer, peer, udp_echo, udp_pair, visitors_at
from tunnel.engine.context import EngineContext
from tunnel.engine.datagram_path import ServerPath
from tunnel.forwarding.udp import VisitorRelay
from tunnel.model.address import parse_address
from tunnel.model.spec import Direction, ProxyVersion, UdpCarrier
from tunnel.protocol.proxy_header import SIGNATURE
from tunnel.runtime.datagram_batches import DatagramSender

COUNT = 50
EQUAL = [bytes([n]) * 1100 for n in range(COUNT)]
UNEQUAL = [*EQUAL[:20], b"short", *(bytes([n]) * 90 for n in range(COUNT - 22)), b""]
CARRIERS = list(UdpCarrier)


@pytest.fixture
async def shared() -> AsyncIterator[EngineContext]:
    with no_descriptor_leak():
        async with shared_parts() as parts:
            yield parts


async def wait_ready(pair: tuple[RunningEngine, RunningEngine], visitor: Peer, carrier: UdpCarrier) -> None:
    """Exchange datagrams until those of the visitor travel in the way of the carrier."""
    await visitor.exchange(b"first")
    link = pair[0].engine._links.first
    assert link is not None
    path = link.datagram_path
    if carrier is UdpCarrier.STREAM:
        return
    assert isinstance(path, ServerPath)

    def is_ready() -> bool:
        return path.is_usable and all(
            flow._is_far_ready for flow in path._flows.values() if isinstance(flow, VisitorRelay)
        )

    await wait_until_async(is_ready, "datagrams travel as such")


def send_burst(sender: Peer, datagrams: list[bytes]) -> None:
    burst, start = DatagramSender(sender.sock), 0
    while start < len(datagrams):
        start += burst.send(datagrams, start)


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("burst", [EQUAL, UNEQUAL], ids=["equal", "unequal"])
@pytest.mark.parametrize("visitors", ["127.0.0.1:0", "0.0.0.0:0", "[::]:0"])
async def test_a_burst_of_a_visitor_and_its_answers_arrive_whole_and_in_order(
    shared: EngineContext, carrier: UdpCarrier, burst: list[bytes], visitors: str
) -> None:
    options: dict[str, object] = {"udp_carrier": carrier}
    async with (
        udp_echo() as target,
        udp_pair(shared, target, visitors=visitors, server=options, client=options) as pair,
    ):
        with peer(to=f"127.0.0.1:{visitors_at(pair).rpartition(':')[2]}") as visitor:
            await wait_ready(pair, visitor, carrier)
            send_burst(visitor, burst)
            assert [await visitor.receive() for _ in burst] == burst
            sent = sum(map(len, burst)) + len(b"first")
            await wait_until_async(
                lambda: all(
                    one.engine.snapshot().bytes.from_visitors == one.engine.snapshot().bytes.to_visitors == sent
                    for one in pair
                ),
                "both ends count all bytes",
            )
        assert not any(one.engine.snapshot().counters.dropped_datagrams for one in pair)


@pytest.mark.parametrize("direction", list(Direction))
async def test_bursts_of_several_visitors_reach_each_its_own_flow(shared: EngineContext, direction: Direction) -> None:
    async with udp_echo() as target, udp_pair(shared, target, direction=direction) as pair:
        with ExitStack() as stack:
            visitors = [stack.enter_context(peer(to=visitors_at(pair))) for _ in range(5)]
            for visitor in visitors:
                await visitor.exchange(b"first")
            for part in range(0, COUNT, 10):
                for number, visitor in enumerate(visitors):
                    send_burst(visitor, [bytes([number]) * (1000 + part) for _ in range(10)])
            for number, visitor in enumerate(visitors):
                got = Counter([await visitor.receive() for _ in range(COUNT)])
                assert got == {bytes([number]) * (1000 + part): 10 for part in range(0, COUNT, 10)}


async def test_a_burst_of_the_target_arrives_whole_and_in_order(shared: EngineContext) -> None:
    with peer() as target:
        async with udp_pair(shared, target.address) as pair:
            with peer(to=visitors_at(pair)) as visitor:
                visitor.sock.send(b"question")
                _, flow = await target.receive_from()
                target.sock.connect(flow)
                send_burst(target, UNEQUAL)
                assert [await visitor.receive() for _ in UNEQUAL] == UNEQUAL


async def test_each_datagram_of_a_burst_has_its_header(shared: EngineContext) -> None:
    options: dict[str, object] = {"proxy": ProxyVersion.V2}
    async with udp_echo() as target, udp_pair(shared, target, client=options) as pair:
        with peer(to=visitors_at(pair)) as visitor:
            await visitor.exchange(b"first")
            send_burst(visitor, EQUAL)
            for datagram in EQUAL:
                answer = await visitor.receive()
                assert answer.startswith(SIGNATURE)
                assert answer.endswith(datagram)
        await wait_until_async(
            lambda: pair[1].engine.snapshot().bytes.from_visitors == sum(map(len, EQUAL)) + len(b"first"),
            "headers are not counted",
        )


async def test_a_burst_to_a_target_that_has_left_ends_the_flow_with_its_reason(shared: EngineContext) -> None:
    with peer(port=free_port()) as target:
        async with udp_pair(shared, target.address) as pair:
            with peer(to=visitors_at(pair)) as visitor:
                visitor.sock.send(b"question")
                await target.receive()
                address = parse_address(target.address)
                target.sock.close()
                send_burst(visitor, EQUAL)
                send_burst(visitor, EQUAL)
                await wait_until_async(lambda: pair[1].engine.snapshot().connections.active == 0, "the flow is over")
                assert any("nothing listens on that UDP port" in event.text for event in pair[1].events)
                with peer(port=address.port) as successor:
                    async with asyncio.timeout(GUARD_S):
                        send_burst(visitor, [b"again"])
                        assert await successor.receive() in {*EQUAL, b"again"}

"""Floods of strangers at a UDP port: when the kernel drops them, which share, and until when."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import cast

import pytest

from tests.support.engine_parts import no_descriptor_leak, shared_parts
from tests.support.waiting import run_loop_turns, wait_until_async
from tests.tunnel.test_datagram_port import CrowdedPort
from tests.tunnel.test_udp import peer, udp_echo, udp_pair, visitors_at
from tunnel.engine.context import EngineContext
from tunnel.model.networks import NO_NETWORKS, NetworkSet, parse_network
from tunnel.runtime import flood_filter, flood_guard
from tunnel.runtime.datagram_sockets import DatagramListener
from tunnel.runtime.flood_filter import SourceHash
from tunnel.runtime.flood_guard import CALM_S, FLOOD_RATE, PASSED_RATE, WINDOW_S, FloodPolicy
from tunnel.runtime.reactor import Reactor


def run_flood(
    policy: FloodPolicy,
    rate: float,
    seconds: float,
    *,
    started_per_s: float = 0.0,
    admitted: float = 1.0,
) -> list[float]:
    """Let a flood go on; return how many strangers a second were let through in each window.

    ``admitted`` is the part of them that the lists of networks admit: a filter drops the others.
    """
    passed_rates = []
    for _ in range(round(seconds / WINDOW_S)):
        sent = rate * WINDOW_S
        passed = sent if policy.share is None else sent * admitted * policy.share
        started = min(passed, started_per_s * WINDOW_S)
        policy.end_window(
            WINDOW_S, refused=round(passed - started), started=round(started), dropped=round(sent - passed)
        )
        passed_rates.append(passed / WINDOW_S)
    return passed_rates


def test_few_strangers_are_no_flood() -> None:
    policy = FloodPolicy()
    run_flood(policy, FLOOD_RATE - 100, 5)
    assert policy.share is None


@pytest.mark.parametrize("rate", [FLOOD_RATE + 500, 100_000, 3_000_000])
def test_of_a_flood_as_many_strangers_pass_as_could_get_a_place(rate: float) -> None:
    policy = FloodPolicy()
    first, *others = run_flood(policy, rate, 3, started_per_s=400)
    assert first == rate
    assert all(PASSED_RATE / 2 <= one <= PASSED_RATE * 2 for one in others)


def test_where_many_strangers_get_a_place_more_of_them_pass() -> None:
    policy = FloodPolicy()
    assert run_flood(policy, 100_000, 3, started_per_s=3_000)[-1] > 3_000


def test_the_share_follows_the_rate() -> None:
    policy = FloodPolicy()
    run_flood(policy, 10_000, 1)
    first, second, *others = run_flood(policy, 1_000_000, 1)
    assert first > PASSED_RATE * 2
    assert all(PASSED_RATE / 2 <= one <= PASSED_RATE * 2 for one in (second, *others))
    assert PASSED_RATE / 2 <= run_flood(policy, 10_000, 1)[-1] <= PASSED_RATE * 2


def test_admitted_strangers_all_pass_where_lists_refuse_the_flood() -> None:
    policy = FloodPolicy()
    run_flood(policy, 100_000, 1, admitted=0.0)
    assert policy.share == 1.0


def test_after_a_calm_second_all_strangers_pass() -> None:
    policy = FloodPolicy()
    run_flood(policy, 100_000, 1)
    run_flood(policy, 100, CALM_S - 2 * WINDOW_S)
    assert policy.share is not None
    run_flood(policy, 100_000, WINDOW_S)
    run_flood(policy, 100, CALM_S - 2 * WINDOW_S)
    assert policy.share is not None, "the flood went on in between"
    run_flood(policy, 100, 3 * WINDOW_S)
    assert policy.share is None


# --- a port -----------------------------------------------------------------------------------------------------------


@pytest.fixture
async def shared() -> AsyncIterator[EngineContext]:
    with no_descriptor_leak():
        async with shared_parts() as parts:
            yield parts


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


class FilterLog:
    """Counts the programs of all sockets, and refuses further ones if wanted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.attached = 0
        self.detached = 0
        self.error: OSError | None = None
        self.shares: list[float] = []
        """the share of strangers that each program lets through"""
        self._build = flood_filter.build_program
        monkeypatch.setattr(flood_guard, "build_program", self._on_build)
        self._attach, self._detach = flood_filter.attach_filter, flood_filter.detach_filter
        monkeypatch.setattr(flood_guard, "attach_filter", self._on_attach)
        monkeypatch.setattr(flood_guard, "detach_filter", self._on_detach)

    def _on_build(
        self,
        source_hash: SourceHash,
        numbers: Collection[int],
        share: float,
        *rules: *tuple[NetworkSet, NetworkSet, int],
    ) -> bytes:
        self.shares.append(share)
        return self._build(source_hash, numbers, share, *rules)

    def _on_attach(self, sock: socket.SocketType, program: bytes) -> None:
        self.attached += 1
        if self.error is not None:
            raise self.error
        self._attach(sock, program)

    def _on_detach(self, sock: socket.SocketType) -> None:
        self._detach(sock)
        self.detached += 1


@pytest.fixture
def filters(monkeypatch: pytest.MonkeyPatch) -> FilterLog:
    """Floods are small, and windows short."""
    for name, value in {"FLOOD_RATE": 500.0, "PASSED_RATE": 100.0, "WINDOW_S": 0.02, "CALM_S": 0.3}.items():
        monkeypatch.setattr(flood_guard, name, value)
    return FilterLog(monkeypatch)


class Strangers:
    """Sends datagrams from one socket without end, some thousands a second."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._sock.bind((host, 0))
        self._place = ("127.0.0.1", port)
        self.sent = 0
        self._task = asyncio.create_task(self._send())

    async def _send(self) -> None:
        while True:
            for _ in range(10):
                self._sock.sendto(b"stranger", self._place)
                self.sent += 1
            await asyncio.sleep(0.001)  # the rate of the flood

    async def stop(self) -> None:
        """End the flood, and close its socket."""
        self._task.cancel()
        await asyncio.wait({self._task})
        self._sock.close()


@asynccontextmanager
async def flood_of(port: int, host: str = "127.0.0.1") -> AsyncIterator[Strangers]:
    strangers = Strangers(port, host)
    try:
        yield strangers
    finally:
        await strangers.stop()


async def test_the_kernel_drops_a_flood_and_present_visitors_are_answered(
    shared: EngineContext, filters: FilterLog
) -> None:
    async with udp_echo() as target, udp_pair(shared, target, server={"semaphore_limit": 1}) as pair:
        server = pair[0].engine
        with peer(to=visitors_at(pair)) as visitor:
            assert await visitor.exchange(b"one") == b"one"
            async with flood_of(port_of(visitors_at(pair))) as strangers:
                await wait_until_async(lambda: filters.attached, "the flood is noticed")
                for number in range(30):
                    assert await visitor.exchange(b"%d" % number) == b"%d" % number
            await wait_until_async(lambda: filters.detached, "the flood is over")
            assert server.snapshot().connections.active == 1
            await wait_until_async(
                lambda: server.snapshot().counters.dropped_datagrams == strangers.sent, "each datagram is counted"
            )


async def test_where_lists_refuse_a_flood_visitors_that_they_admit_are_served(
    shared: EngineContext, filters: FilterLog
) -> None:
    allow = NetworkSet.of([parse_network("127.0.0.1")])
    async with udp_echo() as target, udp_pair(shared, target, server={"allow": allow}) as pair:
        server = pair[0].engine
        async with flood_of(port_of(visitors_at(pair)), "127.0.0.2") as strangers:
            await wait_until_async(lambda: filters.attached, "the flood is noticed")
            with peer(to=visitors_at(pair)) as visitor:
                await wait_until_async(lambda: filters.shares[-1] == 1.0, "all admitted strangers pass")
                assert await visitor.exchange(b"one") == b"one"
            refused, sent = server.snapshot().refused.allow or 0, strangers.sent
            await wait_until_async(lambda: strangers.sent > sent + 500, "the flood goes on")
            assert (server.snapshot().refused.allow or 0) < refused + 250, "the kernel drops it"
            server.apply_live_settings(replace(server.spec, allow=NO_NETWORKS))
            await wait_until_async(lambda: server.snapshot().connections.active == 2, "the changed list is known")
        await wait_until_async(lambda: filters.detached, "the flood is over")
        assert 0 < server.snapshot().counters.dropped_datagrams < strangers.sent


async def test_a_kernel_that_refuses_filters_is_asked_once(shared: EngineContext, filters: FilterLog) -> None:
    filters.error = OSError(errno.ENOPROTOOPT, "no such option")
    async with udp_echo() as target, udp_pair(shared, target, server={"semaphore_limit": 1}) as pair:
        server = pair[0].engine
        with peer(to=visitors_at(pair)) as visitor:
            assert await visitor.exchange(b"one") == b"one"
            async with flood_of(port_of(visitors_at(pair))) as strangers:
                await wait_until_async(lambda: filters.attached, "the flood is noticed")
                for number in range(30):
                    assert await visitor.exchange(b"%d" % number) == b"%d" % number
            await wait_until_async(
                lambda: server.snapshot().counters.dropped_datagrams == strangers.sent, "the process drops the flood"
            )
    assert filters.attached == 1


async def test_a_program_that_the_kernel_has_no_memory_for_ends_the_filter(
    shared: EngineContext, filters: FilterLog
) -> None:
    async with udp_echo() as target, udp_pair(shared, target, server={"semaphore_limit": 1}) as pair:
        with peer(to=visitors_at(pair)) as first:
            assert await first.exchange(b"one") == b"one"
            async with flood_of(port_of(visitors_at(pair))):
                await wait_until_async(lambda: filters.attached, "the flood is noticed")
                filters.error = OSError(errno.ENOMEM, "no memory")
                ingress = pair[0].engine
                ingress.apply_live_settings(replace(ingress.spec, deny=NetworkSet.of([parse_network("192.0.2.1")])))
                await wait_until_async(lambda: filters.detached, "all datagrams are read again")
                filters.error, attached = None, filters.attached
                await wait_until_async(lambda: filters.attached > attached, "the flood is noticed again")
                assert await first.exchange(b"two") == b"two"
            await wait_until_async(lambda: filters.detached > 1, "the flood is over")


@pytest.mark.parametrize("is_closed", [False, True])
async def test_a_port_that_nobody_accepts_at_has_no_filter(*, filters: FilterLog, is_closed: bool) -> None:
    with no_descriptor_leak():
        reactor = Reactor()
        port = CrowdedPort(reactor)
        place = ("127.0.0.1", port.acceptor.port)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as visitor:
            visitor.sendto(b"x", place)
            await wait_until_async(lambda: len(port.accepted) == 1, "the visitor is accepted")
            port.has_room = False
            async with flood_of(place[1]) as strangers:
                await wait_until_async(lambda: filters.attached, "the flood is noticed")
                listener = port.acceptor if is_closed else cast("DatagramListener", port.acceptor.detach_listener())
                if is_closed:
                    listener.close()
                assert filters.detached
                attached, sent = filters.attached, strangers.sent
                await wait_until_async(lambda: strangers.sent > sent + 500, "the flood goes on")
                assert filters.attached == attached
        listener.close()
        port.evict_all()
        await run_loop_turns(3)
        assert len(reactor) == 0
        reactor.stop()

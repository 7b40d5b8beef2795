"""Limits of rates: the limiter with simulated flows and time, then relays, then engines over real sockets."""

from __future__ import annotations

import asyncio
import heapq
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast
from unittest.mock import patch

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support.engine_parts import no_descriptor_leak, shared_parts
from tests.support.scale import GUARD_S
from tests.support.waiting import wait_until_async
from tests.tunnel.test_engine import echo, pair, round_trip, visit, visitors_address
from tests.tunnel.test_relay import (
    KINDS,
    LARGEST,
    PATTERN,
    SPLICE_EARLY,
    RelayChain,
    check_outcome,
    make_chain,
    play_script,
    relay_parts,
    scripts,
)
from tunnel.engine.context import EngineContext
from tunnel.engine.time_limits import TimeLimits
from tunnel.forwarding import rate_limiter
from tunnel.forwarding.limited_flow import LimitedFlow, LimitedPlainFlow, paused_s
from tunnel.forwarding.rate_limiter import FlowLimit, RateLimiter
from tunnel.forwarding.tcp import DEFAULT_LIMITS, PlainFlow
from tunnel.model.rate import Rate, parse_rate
from tunnel.model.spec import DataTls, Direction, Proto

if TYPE_CHECKING:
    from tunnel.runtime.reactor import Reactor

MBIT = 1_000_000
SECONDS = 10.0
RECORD_BYTES = 16_384


class SimulatedTimer:
    """A timer of ``SimulatedReactor``."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class SimulatedReactor:
    """Timers on a clock that only this object advances; each fires late by up to a millisecond."""

    def __init__(self) -> None:
        self.now = 100.0
        self._timers: list[tuple[float, int, SimulatedTimer]] = []
        self._random = random.Random(1)
        self._count = 0

    def call_later(self, delay: float, callback: Callable[[], None]) -> SimulatedTimer:
        timer = SimulatedTimer(callback)
        self._count += 1
        late_s = self._random.random() / 1000
        heapq.heappush(self._timers, (self.now + delay + late_s, self._count, timer))
        return timer

    def run_until(self, end: float) -> None:
        while self._timers and self._timers[0][0] <= end:
            self.now, _, timer = heapq.heappop(self._timers)
            if timer.callback is not None:
                timer.callback()
        self.now = end


@dataclass
class GreedyFlow:
    """A flow whose source always has bytes, which it passes in pieces of ``piece`` bytes: 1, or those of records."""

    limiter: RateLimiter
    piece: int = 1
    passed: int = 0
    is_paused: bool = False
    limit: FlowLimit = field(init=False)
    failures: list[Exception] = field(default_factory=list)
    _read: int = 0

    def __post_init__(self) -> None:
        self.limit = FlowLimit(self, self.limiter)

    def end_pause(self) -> None:
        self.is_paused = False
        while allowed := self.limiter.request(self.limit):
            self._read += allowed
            passed = self._read - self._read % self.piece
            self._read -= passed
            self.passed += passed
            self.limiter.charge(self.limit, passed)
        self.is_paused = True

    def on_handler_error(self, error: Exception) -> None:
        self.failures.append(error)


def simulated() -> tuple[SimulatedReactor, RateLimiter]:
    reactor = SimulatedReactor()
    return reactor, RateLimiter(cast("Reactor", reactor), lambda: reactor.now)


@pytest.mark.parametrize("piece", [1, RECORD_BYTES])
@pytest.mark.parametrize("visitors", [1, 8, 100])
@pytest.mark.parametrize("mbit", [1, 100, 1000, 5000])
def test_the_rate_of_a_tunnel_is_exact_and_shared_fairly(mbit: int, visitors: int, piece: int) -> None:
    reactor, limiter = simulated()
    limiter.set_rates(mbit * MBIT / 8, None)
    flows = [GreedyFlow(limiter, piece) for _ in range(visitors)]
    for flow in flows:
        flow.end_pause()
    reactor.run_until(reactor.now + SECONDS)
    expected = mbit * MBIT / 8 * SECONDS
    assert sum(flow.passed for flow in flows) == pytest.approx(expected, rel=0.03)
    share = expected / visitors
    tolerance = max(0.2 * share, piece)
    assert all(abs(flow.passed - share) <= tolerance for flow in flows), sorted(flow.passed for flow in flows)
    assert limiter.paused == visitors
    assert limiter.paused_s == pytest.approx(SECONDS, rel=0.05)
    limiter.close()
    assert not limiter.paused


@pytest.mark.parametrize("mbit", [1, 100, 1000])
def test_each_visitor_has_its_own_rate(mbit: int) -> None:
    reactor, limiter = simulated()
    limiter.set_rates(None, mbit * MBIT / 8)
    flows = [GreedyFlow(limiter, piece) for piece in (1, 1, RECORD_BYTES)]
    for flow in flows:
        flow.end_pause()
    reactor.run_until(reactor.now + SECONDS)
    for flow in flows:
        assert flow.passed == pytest.approx(mbit * MBIT / 8 * SECONDS, rel=0.04)
        assert flow.limit.paused_s(reactor.now) == pytest.approx(SECONDS, rel=0.1)


def test_a_visitor_with_small_pieces_gets_as_much_as_one_with_records() -> None:
    reactor, limiter = simulated()
    limiter.set_rates(10 * MBIT / 8, None)
    flows = [GreedyFlow(limiter, piece) for piece in (1, RECORD_BYTES, 700, 1)]
    for flow in flows:
        flow.end_pause()
    reactor.run_until(reactor.now + SECONDS)
    assert max(flow.passed for flow in flows) < 1.1 * min(flow.passed for flow in flows)


def test_both_limits_hold_at_once_and_change_at_any_time() -> None:
    reactor, limiter = simulated()
    limiter.set_rates(8 * MBIT / 8, 1 * MBIT / 8)
    flows = [GreedyFlow(limiter) for _ in range(4)]
    for flow in flows:
        flow.end_pause()

    def passed_in(seconds: float) -> int:
        before = sum(flow.passed for flow in flows)
        reactor.run_until(reactor.now + seconds)
        return sum(flow.passed for flow in flows) - before

    passed_in(1)
    assert passed_in(10) == pytest.approx(4 * MBIT / 8 * 10, rel=0.05), "the visitors' own limits are lower"
    limiter.set_rates(2 * MBIT / 8, 1 * MBIT / 8)
    passed_in(1)
    assert passed_in(10) == pytest.approx(2 * MBIT / 8 * 10, rel=0.05), "the tunnel's limit is lower"
    limiter.set_rates(None, 3 * MBIT / 8)
    passed_in(1)
    assert passed_in(10) == pytest.approx(12 * MBIT / 8 * 10, rel=0.05)
    limiter.set_rates(20 * MBIT / 8, None)
    passed_in(1)
    assert passed_in(10) == pytest.approx(20 * MBIT / 8 * 10, rel=0.05)


def test_a_visitor_that_comes_later_waits_its_turn() -> None:
    reactor, limiter = simulated()
    limiter.set_rates(1 * MBIT / 8, None)
    first, later, gone = GreedyFlow(limiter), GreedyFlow(limiter), GreedyFlow(limiter)
    first.end_pause()
    gone.end_pause()
    later.end_pause()
    assert (first.is_paused, later.is_paused, later.passed) == (True, True, 0)
    gone.is_paused = False  # its visitor has left
    reactor.run_until(reactor.now + SECONDS)
    assert gone.passed == 0
    assert later.passed == pytest.approx(first.passed, rel=0.2)


def test_a_defect_of_one_flow_ends_that_one_alone() -> None:
    reactor, limiter = simulated()
    limiter.set_rates(1 * MBIT / 8, None)
    good, bad = GreedyFlow(limiter), GreedyFlow(limiter)
    good.end_pause()
    bad.end_pause()
    defect = RuntimeError("defect")
    with patch.object(bad, "end_pause", side_effect=defect):
        reactor.run_until(reactor.now + SECONDS)
    assert bad.failures == [defect]
    assert good.passed > SECONDS * MBIT / 8 * 0.9
    with pytest.raises(RuntimeError):
        limiter.on_handler_error(defect)


# --- relays -----------------------------------------------------------------------------------------------------------

PAUSING = {"_MIN_BURST_BYTES": 1, "_BURST_S": 1e-5, "_MIN_WAIT_S": 0.0}
"""Pacing that pauses after almost every read, for a turn of the event loop."""
FAST = Rate(4_000 * MBIT)


async def play_limited(script: list[tuple[str, str, int]], kind: str, *limits: Rate | None) -> None:
    is_spliced = kind == "spliced"
    async with relay_parts(
        4096 if is_spliced else PlainFlow.max_read_bytes, SPLICE_EARLY if is_spliced else DEFAULT_LIMITS
    ) as parts:
        with patch.multiple(rate_limiter, **cast("Any", PAUSING)):
            chain = make_chain(parts, kind)
            for relays in chain.sets:
                relays.set_rates(*limits)
            await play_script(chain, script)
            check_outcome(chain)
            for relays in chain.sets:
                relays.rates.close()


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=8)
@given(script=scripts, limits=st.sampled_from([(FAST, None), (None, FAST), (FAST, FAST)]))
@example(script=[("write", "A", LARGEST), ("end", "A", 0), ("write", "B", LARGEST)], limits=(FAST, None))
@example(script=[("write", "A", LARGEST), ("turns", "A", 6), ("reset", "A", 0)], limits=(None, FAST))
@example(script=[("stall", "B", 0), ("write", "A", LARGEST), ("turns", "A", 6), ("reset", "B", 0)], limits=(FAST, FAST))
@example(script=[("urgent", "A", 70_000), ("turns", "A", 6), ("urgent", "B", 1), ("end", "A", 0)], limits=(FAST, None))
def test_bytes_in_are_bytes_out_under_a_limit(
    script: list[tuple[str, str, int]], kind: str, limits: tuple[Rate | None, Rate | None]
) -> None:
    with no_descriptor_leak():
        asyncio.run(play_limited(script, kind, *limits))


@pytest.mark.parametrize("kind", KINDS)
async def test_a_limit_comes_and_goes_in_the_middle_of_a_stream(kind: str) -> None:
    with no_descriptor_leak():
        async with relay_parts() as parts:
            chain = RelayChain(parts, carrier=KINDS[kind])
            visitor, target = chain.programs["A"], chain.programs["B"]
            visitor.offered = 200_000
            await chain.step_until(lambda: len(target.received) == 200_000, "the stream has begun")
            classes = [type(flow) for relay in (chain.ingress_relay, chain.egress_relay) for flow in relay.flows]
            for relays in chain.sets:
                relays.set_rates(Rate(10 * MBIT), None)
            flow = chain.ingress_relay.flows[0]
            assert isinstance(flow, LimitedFlow)
            visitor.offered = len(PATTERN)
            await chain.step_until(lambda: flow.is_paused, "the limit has paused the stream")
            assert chain.sets[0].rates.view(is_ingress=True)
            for relays in chain.sets:
                relays.set_rates(None, None)
            assert [
                type(flow) for relay in (chain.ingress_relay, chain.egress_relay) for flow in relay.flows
            ] == classes
            await chain.end()
            check_outcome(chain)
            assert chain.sets[0].rates.view(is_ingress=True) is None


async def test_bulk_is_spliced_within_the_limit_and_a_pause_holds_no_pipe() -> None:
    with no_descriptor_leak():
        async with relay_parts() as parts:
            chain = make_chain(parts, "spliced")
            chain.programs["A"].offered = 1_000_000
            with patch.object(rate_limiter, "_TURN_S", 0.01):  # large reads at a rate that this test exceeds
                chain.sets[0].set_rates(Rate(60 * MBIT), None)
            pause, held = LimitedPlainFlow._pause, []

            def record_pipes(flow: LimitedPlainFlow) -> None:
                pause(flow)
                held.append(parts.pipes.in_use)

            with (
                patch.object(parts.pipes, "acquire", wraps=parts.pipes.acquire) as acquire,
                patch.object(LimitedPlainFlow, "_pause", record_pipes),
            ):
                await chain.end()
            check_outcome(chain)
            assert acquire.called
            assert held
            assert not any(held)


async def test_a_paused_visitor_is_not_idle() -> None:
    with no_descriptor_leak():
        async with relay_parts() as parts:
            chain = make_chain(parts, "plain")
            for relays in chain.sets:
                relays.set_rates(Rate(8_000), None)
            chain.programs["A"].offered = 200_000
            relay = chain.ingress_relay
            flow = relay.flows[0]
            assert isinstance(flow, LimitedFlow)
            await chain.step_until(lambda: flow.is_paused, "the limit has paused the stream")
            limits = TimeLimits({Proto.TCP: 5.0}, 0.0)
            for now in (1e6, 1e6 + 10.0):
                assert limits.find_expired([relay], now) == []
                limits.end_scan()
            assert paused_s(relay.flows) is not None
            relay.abort()
            await chain.step_until(lambda: chain.is_closed, "both relays are closed")
            await chain.finish()
            for relays in chain.sets:
                relays.rates.close()


# --- engines ----------------------------------------------------------------------------------------------------------


@pytest.fixture
async def shared() -> AsyncIterator[EngineContext]:
    with no_descriptor_leak():
        async with shared_parts() as parts:
            yield parts


@pytest.mark.usefixtures("carriage")
@pytest.mark.parametrize("data_tls", [DataTls.OFF, DataTls.ENCRYPTED])
@pytest.mark.parametrize("direction", list(Direction))
async def test_a_limit_at_one_end_holds_both_directions_back_and_changes_live(
    shared: EngineContext, direction: Direction, data_tls: DataTls
) -> None:
    async with echo() as target, pair(shared, target, direction, data_tls=data_tls) as (server, client):
        address = visitors_address(server, client)
        assert server.engine.snapshot().rate_limits is None
        server.engine.apply_live_settings(replace(server.engine.spec, visitor_rate=parse_rate("10mbit")))
        async with visit(address) as (reader, writer), asyncio.timeout(GUARD_S):
            writer.write(bytes(400_000))
            before = asyncio.get_running_loop().time()
            await reader.readexactly(350_000)
            assert asyncio.get_running_loop().time() - before > (350_000 - 130_000) * 8 / 10e6 * 0.9
            (views,) = [views async for views in server.engine.visitors()]
            assert views[0].paused_s
            (views,) = [views async for views in client.engine.visitors()]
            assert views[0].paused_s is None
            server.engine.apply_live_settings(replace(server.engine.spec, visitor_rate=None))
            await reader.readexactly(50_000)
            await round_trip(address)
        server.engine.apply_live_settings(replace(server.engine.spec, rate=parse_rate("1MB/s")))
        limits = server.engine.snapshot().rate_limits
        assert limits is not None
        assert (limits.rate_bps, limits.visitor_rate_bps) == (8 * MBIT, None)
        assert limits.paused_in_s + limits.paused_out_s > 0


async def test_bytes_are_never_paused_at_the_end_without_a_limit(shared: EngineContext) -> None:
    async with echo() as target, pair(shared, target) as (server, client):
        await round_trip(visitors_address(server, client))
        await wait_until_async(lambda: not client.engine.snapshot().connections.active, "the visitor has left")
        assert client.engine.snapshot().rate_limits is None

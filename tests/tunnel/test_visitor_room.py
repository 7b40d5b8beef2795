"""Tunnels that have as many visitors as they may have: what an operator sees."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest

from tests.support.engine_parts import no_descriptor_leak, shared_parts
from tests.support.waiting import wait_until_async
from tests.tunnel.test_both import BOTH, echo_of_both
from tests.tunnel.test_engine import echo, visit
from tests.tunnel.test_udp import peer, udp_echo, udp_pair, visitors_at, wait_snapshot
from tunnel.engine.context import EngineContext
from tunnel.model.events import EventKind
from tunnel.model.spec import LogLevel, Proto

FULL = "1 visitor is present, as many as semaphore_limit of both ends allows"
LIMIT: dict[str, object] = {"semaphore_limit": 1}


@pytest.fixture
async def shared(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[EngineContext]:
    """Engines that check more often whether visitors still find them full."""
    monkeypatch.setattr("tunnel.engine.visitor_room._CHECK_INTERVAL_S", 0.05)
    with no_descriptor_leak():
        async with shared_parts() as parts:
            yield parts


async def test_flows_without_a_place_are_counted_as_refused_and_named_in_log_and_state(shared: EngineContext) -> None:
    async with udp_echo() as target, udp_pair(shared, target, server=LIMIT) as pair:
        server = pair[0]
        with peer(to=visitors_at(pair)) as first, peer(to=visitors_at(pair)) as second:
            assert await first.exchange(b"one") == b"one"
            assert server.engine.snapshot().refused.limit == 0
            for _ in range(3):
                second.sock.send(b"no place")
                await wait_until_async(lambda: server.events.said(FULL), "the first one is logged")
            await wait_snapshot(server, lambda seen: seen.refused.limit == 3)
            assert server.reason == f"{FULL}: others are refused"
            await wait_until_async(lambda: not server.reason, "the reason ends with the visitors that are refused")
        lines = [(event.level, event.text) for event in server.events if event.kind is EventKind.REFUSED]
        rest = "2 more visitors were refused because there was no room"
        assert lines == [(LogLevel.WARN, f"{FULL}: others are refused"), (LogLevel.WARN, rest)]
        assert pair[1].engine.snapshot().refused.limit is None


async def test_the_log_has_the_refused_visitors_also_if_the_tunnel_ends(shared: EngineContext) -> None:
    async with udp_echo() as target, udp_pair(shared, target, server=LIMIT) as pair:
        with peer(to=visitors_at(pair)) as first, peer(to=visitors_at(pair)) as second:
            assert await first.exchange(b"one") == b"one"
            second.sock.send(b"no place")
            await wait_snapshot(pair[0], lambda seen: seen.refused.limit == 1)
            second.sock.send(b"no place")
            await wait_snapshot(pair[0], lambda seen: seen.refused.limit == 2)
            pair[0].engine.close()
            await pair[0].wait_end()
    assert pair[0].events.said("1 more visitor was refused because there was no room")


@pytest.mark.parametrize("proto", [Proto.TCP, Proto.BOTH])
async def test_connections_that_wait_for_a_place_are_named_in_log_and_state(
    shared: EngineContext, proto: Proto
) -> None:
    options = BOTH | {"proto": proto}
    async with (
        echo() if proto is Proto.TCP else echo_of_both() as target,
        udp_pair(shared, target, server=options | LIMIT, client=options) as pair,
        AsyncExitStack() as visitors,
    ):
        server = pair[0]
        _, first = await visitors.enter_async_context(visit(visitors_at(pair)))
        await wait_snapshot(server, lambda seen: seen.connections.active == 1)
        assert not server.reason  # no visitor waits
        reader, second = await visitors.enter_async_context(visit(visitors_at(pair)))
        second.write(b"x")
        await wait_until_async(lambda: server.reason == f"{FULL}: others wait", "the state has the reason")
        assert server.events.said(f"{FULL}: others wait")
        first.close()
        assert await reader.readexactly(1) == b"x"
        await wait_until_async(lambda: not server.reason, "no connection waits")
        assert server.engine.snapshot().refused.limit == 0


async def test_a_limit_that_is_raised_ends_the_reason(shared: EngineContext) -> None:
    async with (
        echo() as target,
        udp_pair(shared, target, server={**LIMIT, "proto": Proto.TCP}, client={"proto": Proto.TCP}) as pair,
    ):
        engine = pair[0].engine
        async with visit(visitors_at(pair)), visit(visitors_at(pair)) as (reader, writer):
            writer.write(b"x")
            await wait_until_async(lambda: FULL in pair[0].reason, "the state has the reason")
            settings = replace(engine.spec.settings, semaphore_limit=2)
            engine.apply_live_settings(replace(engine.spec, settings=settings))
            assert await reader.readexactly(1) == b"x"
            await wait_until_async(lambda: not pair[0].reason, "the reason ends")

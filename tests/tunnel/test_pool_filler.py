"""When a client dials data connections: before visitors need them, and not while it serves one."""

from __future__ import annotations

import pytest

from tests.support.waiting import wait_until_async
from tests.tunnel.test_engine import RunningEngine, echo, pair, round_trip, shared, visitors_address
from tunnel.engine.context import EngineContext
from tunnel.model.spec import Direction, Mux

__all__ = ["shared"]  # a fixture, used by name


def is_full(client: RunningEngine) -> bool:
    """Whether the pool has the eight connections of a tunnel without visitors, or more."""
    return client.engine.snapshot().pool.idle >= 8


@pytest.mark.usefixtures("no_refill_timers")
@pytest.mark.parametrize("direction", list(Direction))
async def test_connections_are_replaced_at_once_when_few_are_left(shared: EngineContext, direction: Direction) -> None:
    async with echo() as target, pair(shared, target, direction, mux=Mux.OFF) as (server, client):
        await wait_until_async(lambda: is_full(client), "the pool is full")
        for left in range(client.engine.snapshot().pool.idle - 1, 5, -1):
            await round_trip(visitors_address(server, client))
            assert client.engine.snapshot().pool.idle == left, "three quarters are ample"
        await round_trip(visitors_address(server, client))
        await wait_until_async(lambda: is_full(client), "the pool is full again")


async def test_a_connection_is_replaced_after_its_visitor_was_served(shared: EngineContext) -> None:
    async with echo() as target, pair(shared, target) as (server, client):
        await wait_until_async(lambda: is_full(client), "the pool is full")
        await round_trip(visitors_address(server, client))
        await wait_until_async(lambda: is_full(client), "the pool is full again")

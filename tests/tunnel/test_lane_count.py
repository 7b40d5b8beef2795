"""How many visitors share a data connection, as the snapshots of both ends show it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.support.engine_parts import no_descriptor_leak, shared_parts
from tests.support.waiting import wait_until_async
from tests.tunnel.test_engine import (
    RunningEngine,
    client_spec,
    echo,
    pair,
    pool_of,
    round_trip,
    running_engine,
    server_spec,
    visit,
    visitors_address,
)
from tunnel.engine.context import EngineContext
from tunnel.model.spec import Direction, Mode, Mux, Proto
from tunnel.model.state import State


@pytest.fixture
async def shared() -> AsyncIterator[EngineContext]:
    with no_descriptor_leak():
        async with shared_parts() as parts:
            yield parts


def lanes_of(*engines: RunningEngine) -> list[int | None]:
    """The number that each end shows for its only link."""
    return [link.lanes for running in engines for link in running.engine.snapshot().links]


@pytest.mark.parametrize("mux", [Mux.ON, Mux.AUTO])
@pytest.mark.parametrize("direction", list(Direction))
async def test_the_second_visitor_is_counted_in_a_lane_until_it_leaves(
    shared: EngineContext, direction: Direction, mux: Mux
) -> None:
    async with echo() as target, pair(shared, target, direction, mux=mux) as ends:
        address = visitors_address(*ends)
        await wait_until_async(lambda: len(pool_of(ends[0])) > 1 < len(pool_of(ends[1])), "the pools have connections")
        assert lanes_of(*ends) == [0, 0]
        async with visit(address) as (reader, writer):
            writer.write(b"first")
            assert await reader.readexactly(5) == b"first"
            assert lanes_of(*ends) == [0, 0], "the first visitor has a data connection"
            async with visit(address) as (second_reader, second_writer):
                second_writer.write(b"second")
                assert await second_reader.readexactly(6) == b"second"
                assert lanes_of(*ends) == [1, 1]
                assert [link.visitors for end in ends for link in end.engine.snapshot().links] == [2, 2]
            await wait_until_async(lambda: lanes_of(*ends) == [0, 0], "the lane is closed at both ends")


@pytest.mark.parametrize(
    ("server_mux", "client_mux", "lanes"), [(Mux.OFF, Mux.ON, None), (Mux.ON, Mux.OFF, None), (Mux.ON, Mux.AUTO, 0)]
)
async def test_the_number_is_unknown_unless_both_ends_let_visitors_share(
    shared: EngineContext, server_mux: Mux, client_mux: Mux, lanes: int | None
) -> None:
    serving = server_spec("127.0.0.1:0", mode=Mode.REVERSE, mux=server_mux)
    async with echo() as target, running_engine(shared, serving) as server:
        await server.wait_state(State.WAITING)
        async with running_engine(shared, client_spec(server, target, mux=client_mux)) as client:
            await client.wait_state(State.UP)
            await server.wait_state(State.UP)
            await round_trip(visitors_address(server, client), size=1_000)
            assert lanes_of(server, client) == [lanes, lanes]


async def test_a_link_of_udp_has_no_number(shared: EngineContext) -> None:
    async with pair(shared, "127.0.0.1:9", proto=Proto.UDP, mux=Mux.ON) as ends:
        assert lanes_of(*ends) == [None, None]

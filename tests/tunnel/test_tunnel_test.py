"""Tests of a tunnel that a user requests: legs as data, then engines over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.support.engine_parts import no_descriptor_leak, shared_parts
from tests.support.sockets import close_listener
from tests.tunnel.test_engine import client_spec, echo, pair, running_engine, server_spec
from tunnel.engine.context import EngineContext
from tunnel.model.keys import Key
from tunnel.model.spec import DataTls, Direction, Mode, ProxyVersion
from tunnel.model.state import State
from tunnel.model.tunnel_test import Leg, LegResult, TargetTimes

HERE_LEGS = [Leg.LINK, Leg.DATA_CONNECTION, Leg.SIGNAL]


@pytest.mark.parametrize(
    ("times", "legs"),
    [
        (TargetTimes("db:1", True, 0.1, 0.2, None, None), [Leg.LOOKUP, Leg.DIAL, Leg.FIRST_BYTE]),
        (TargetTimes("db:1", True, None, None, None, "no such name"), [Leg.LOOKUP]),
        (TargetTimes("db:1", True, 0.1, None, None, "it refused"), [Leg.LOOKUP, Leg.DIAL]),
        (TargetTimes("[::1]:1", False, None, None, None, "it refused"), [Leg.DIAL]),
        (TargetTimes("[::1]:1", False, None, None, None, None), [Leg.DIAL]),
        (TargetTimes("[::1]:1", False, None, 0.2, None, "it closed"), [Leg.DIAL, Leg.FIRST_BYTE]),
    ],
)
def test_the_last_leg_that_was_tried_has_the_error(times: TargetTimes, legs: list[Leg]) -> None:
    found = times.legs("link", is_here=False)
    assert [one.leg for one in found] == legs
    assert [one.error for one in found] == [None] * (len(legs) - 1) + [times.error]
    assert {(one.link, one.target, one.is_here) for one in found} == {("link", times.target, False)}


@pytest.fixture
async def shared() -> AsyncIterator[EngineContext]:
    with no_descriptor_leak():
        async with shared_parts() as parts:
            yield parts


@asynccontextmanager
async def target_that(greets: bytes) -> AsyncIterator[str]:
    """A target that sends a greeting, or closes its connections at once if there is none."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if greets:
            writer.write(greets)
            await reader.read()
        writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    finally:
        await close_listener(listener)


def durations(legs: list[LegResult]) -> dict[Leg, float | None]:
    assert [one.error for one in legs] == [None] * len(legs)
    return {one.leg: one.duration_s for one in legs}


@pytest.mark.parametrize("data_tls", [DataTls.OFF, DataTls.ENCRYPTED])
@pytest.mark.parametrize("direction", [Direction.REVERSE, Direction.FORWARD])
async def test_the_ingress_times_the_whole_way_and_no_visitor_is_counted(
    shared: EngineContext, data_tls: DataTls, direction: Direction
) -> None:
    async with target_that(b"220 hello") as target, pair(shared, target, direction, data_tls=data_tls) as ends:
        is_reverse = direction is Direction.REVERSE
        ingress, egress = ends if is_reverse else ends[::-1]
        legs = await ingress.engine.test()
        assert [one.leg for one in legs] == [*HERE_LEGS, Leg.DIAL, Leg.FIRST_BYTE]
        assert [one.is_here for one in legs] == [True] * 3 + [False] * 2
        assert {one.target for one in legs[3:]} == {target}
        assert all(one.duration_s is not None and one.duration_s >= 0 for one in legs)
        assert {one.link for one in legs} == {ingress.engine.snapshot().link}
        for end in ends:
            seen = end.engine.snapshot()
            assert (seen.connections.total, seen.connections.failed, seen.signals.total) == (0, 0, 0)
        assert [one.leg for one in await egress.engine.test()] == [Leg.LINK, Leg.DIAL, Leg.FIRST_BYTE]


async def test_a_silent_target_has_no_first_byte_and_that_is_no_error(shared: EngineContext) -> None:
    async with echo() as target, pair(shared, target, proxy=ProxyVersion.OFF) as (server, _):
        assert durations(await server.engine.test())[Leg.FIRST_BYTE] is None


async def test_a_name_is_looked_up_anew(shared: EngineContext) -> None:
    async with target_that(b"hello") as target, pair(shared, target.replace("127.0.0.1", "localhost")) as (server, _):
        timed = durations(await server.engine.test())
        assert timed[Leg.LOOKUP] is not None
        assert timed[Leg.FIRST_BYTE] is not None


async def test_a_target_that_refuses_or_closes_at_once_is_named_with_the_reason(shared: EngineContext) -> None:
    async with pair(shared, "127.0.0.1:9") as (server, _):
        last = (await server.engine.test())[-1]
        assert (last.leg, last.target, last.duration_s) == (Leg.DIAL, "127.0.0.1:9", None)
        assert "refused" in (last.error or "")
    async with target_that(b"") as target, pair(shared, target) as (server, _):
        last = (await server.engine.test())[-1]
        assert last.leg is Leg.FIRST_BYTE
        assert "closed the connection" in (last.error or "")


async def test_without_a_link_an_end_tests_what_it_has(shared: EngineContext) -> None:
    async with running_engine(shared, server_spec("127.0.0.1:0")) as server:
        await server.wait_state(State.WAITING)
        legs = [(Leg.LINK, "there is no link: the server listens; no client is connected")]
        assert [(one.leg, one.error) for one in await server.engine.test()] == legs
    async with echo() as target, pair(shared, target) as (server, client):
        server.engine.close()
        await client.wait_state(State.COOLDOWN)
        assert [(one.leg, one.error is None) for one in await client.engine.test()] == [
            (Leg.LINK, False), (Leg.DIAL, True), (Leg.FIRST_BYTE, True),
        ]  # fmt: skip


async def test_a_missing_link_has_the_reason_at_both_ends(shared: EngineContext) -> None:
    async with running_engine(shared, server_spec("127.0.0.1:0", mode=Mode.REVERSE)) as server:
        await server.wait_state(State.WAITING)
        spec = client_spec(server, "127.0.0.1:9", key=Key("another key of some length"))
        async with running_engine(shared, spec) as client:
            await client.wait_state(State.COOLDOWN)
            at_client, at_server = (await client.engine.test())[0], (await server.engine.test())[0]
    assert "most likely the keys or the service names differ" in (at_client.error or "")
    assert "there is no link: refused a client from 127.0.0.1:" in (at_server.error or "")


async def test_many_tests_at_once_are_answered_one_way_or_the_other(shared: EngineContext) -> None:
    async with echo() as target, pair(shared, target) as (server, client):
        found = await asyncio.gather(*(server.engine.test() for _ in range(6)))
        errors = {one.error for legs in found for one in legs}
        assert errors == {None, "too many tests run at once"}
        assert client.engine.snapshot().connections.total == 0


async def test_a_link_that_is_lost_ends_its_test(shared: EngineContext) -> None:
    async with target_that(b"hello") as target, pair(shared, target) as (server, client):
        testing = asyncio.create_task(server.engine.test())
        await asyncio.sleep(0)
        client.engine.close()
        errors = [one.error for one in await testing if one.error is not None]
        assert errors, "the test ends soon, and says why"

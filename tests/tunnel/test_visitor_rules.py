"""Rules about visitors, over real sockets: which are refused, and how rules change while visitors are connected."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.scale import GUARD_S
from tests.support.waiting import wait_until_async
from tests.tunnel.test_engine import (
    UP,
    RunningEngine,
    client_spec,
    echo,
    pair,
    round_trip,
    running_engine,
    server_spec,
    shared,
    visit,
    visitors_address,
)
from tunnel.engine.context import EngineContext, Timing
from tunnel.model.address import parse_address
from tunnel.model.events import VISITOR, EventKind
from tunnel.model.networks import NO_NETWORKS, NetworkSet
from tunnel.model.spec import Direction, LogLevel, Mode
from tunnel.model.state import State
from tunnel.model.visitor_option_types import NetworksType

__all__ = ["shared"]


def networks(text: str) -> NetworkSet:
    return NetworksType().parse(text, Path())


def set_rules(ingress: RunningEngine, **rules: Any) -> None:  # noqa: ANN401  any field of a spec
    ingress.engine.apply_live_settings(dataclasses.replace(ingress.engine.spec, **rules))


@asynccontextmanager
async def ruled_pair(
    shared: EngineContext,
    target: str,
    direction: Direction = Direction.REVERSE,
    **rules: Any,  # noqa: ANN401  as above
) -> AsyncIterator[tuple[RunningEngine, RunningEngine]]:
    """A pair whose ingress has rules from its start: the ingress, and the egress."""
    is_reverse = direction is Direction.REVERSE
    mode = {"mode": Mode(direction.value)}
    listening = server_spec("127.0.0.1:0" if is_reverse else target, **mode, **(rules if is_reverse else {}))
    async with running_engine(shared, listening) as server:
        await server.wait_state(State.WAITING)
        dialling = client_spec(server, target if is_reverse else "127.0.0.1:0", **({} if is_reverse else rules))
        async with running_engine(shared, dialling) as client:
            await server.wait_state(UP)
            await client.wait_state(UP)
            yield (server, client) if is_reverse else (client, server)


async def is_refused(address: str, source: str = "127.0.0.1") -> bool:
    """Visit from a source address; return whether the visitor is reset."""
    where = parse_address(address)
    try:
        async with asyncio.timeout(GUARD_S):
            reader, writer = await asyncio.open_connection(where.host, where.port, local_addr=(source, 0))
    except ConnectionResetError:
        return True
    try:
        async with asyncio.timeout(GUARD_S):
            writer.write(b"x")
            return await reader.read(1) != b"x"
    except ConnectionError:
        return True
    finally:
        writer.transport.abort()


def refused(ingress: RunningEngine) -> dict[str, int | None]:
    shown = json.loads(json.dumps(ingress.engine.snapshot().as_json()))["refused"]
    return {reason: shown[reason] for reason in ("allow", "per_address", "rate", "quota", "limit")}


@pytest.mark.parametrize("direction", list(Direction))
async def test_a_visitor_outside_allow_or_in_deny_is_reset_and_uses_no_data_connection(
    shared: EngineContext, direction: Direction
) -> None:
    rules = {"allow": networks("127.0.0.0/30"), "deny": networks("127.0.0.2")}
    async with echo() as target, ruled_pair(shared, target, direction, **rules) as (ingress, egress):
        address = visitors_address(ingress, egress)
        signals = ingress.engine.snapshot().signals.total
        assert await is_refused(address, "127.0.0.2")
        assert await is_refused(address, "127.0.0.9")
        assert refused(ingress)["allow"] == 2
        assert ingress.engine.snapshot().signals.total == signals
        await round_trip(address)
        events = [event for event in ingress.events if "was refused" in event.text]
        assert [event.text for event in events] == ["a visitor was refused: its address is in deny"], (
            "one in five seconds"
        )
        assert events[0].level is LogLevel.INFO
        assert events[0].data["reason"] == "allow"
        assert events[0].data[VISITOR].startswith("127.0.0.2:")
        assert ingress.engine.snapshot().last_error is None


async def test_only_the_ingress_knows_how_many_visitors_were_refused(shared: EngineContext) -> None:
    async with echo() as target, pair(shared, target) as (ingress, egress):
        assert refused(ingress) == {"allow": 0, "per_address": 0, "rate": 0, "quota": 0, "limit": 0}
        assert set(refused(egress).values()) == {None}


async def test_rules_change_while_visitors_stay_connected(shared: EngineContext) -> None:
    async with echo() as target, pair(shared, target) as (ingress, egress):
        address = visitors_address(ingress, egress)
        async with visit(address) as (reader, writer):
            writer.write(b"a")
            assert await reader.read(1) == b"a"
            set_rules(ingress, deny=networks("127.0.0.1"))
            assert await is_refused(address)
            writer.write(b"b")
            assert await reader.read(1) == b"b", "a present visitor is not concerned"
            set_rules(ingress, deny=NO_NETWORKS, max_per_address=2)
            async with visit(address) as (second, asks):
                asks.write(b"c")
                assert await second.read(1) == b"c"
                assert await is_refused(address), "the visitor from before the rule counts"
        await wait_until_async(lambda: not ingress.engine.snapshot().connections.active, "all have left")
        assert not await is_refused(address)
        set_rules(ingress, max_per_address=0)
        assert refused(ingress) == {"allow": 1, "per_address": 1, "rate": 0, "quota": 0, "limit": 0}


async def test_visitors_of_an_address_may_come_again_as_others_leave(shared: EngineContext) -> None:
    async with echo() as target, ruled_pair(shared, target, max_per_address=2) as (ingress, egress):
        address = visitors_address(ingress, egress)
        for _ in range(4):
            async with visit(address) as (one, asks_one), visit(address) as (other, asks_other):
                asks_one.write(b"1")
                asks_other.write(b"2")
                assert (await one.read(1), await other.read(1)) == (b"1", b"2")
                assert await is_refused(address)
                assert not await is_refused(address, "127.0.0.7")
            await wait_until_async(lambda: not ingress.engine.snapshot().connections.active, "both have left")
        assert refused(ingress)["per_address"] == 4


@pytest.mark.parametrize("shared", [Timing(queue_timeout_s=0.1)], indirect=True)
async def test_a_visitor_that_was_not_served_no_longer_counts(shared: EngineContext) -> None:
    configured = server_spec("127.0.0.1:0", mode=Mode.REVERSE, max_per_address=1)
    async with running_engine(shared, configured) as server:
        await server.wait_state(State.WAITING)
        for count in (1, 2):
            async with visit(visitors_address(server)) as (reader, _), asyncio.timeout(GUARD_S):
                assert await reader.read(1) == b""
            assert server.engine.snapshot().connections.failed == count
        assert refused(server)["per_address"] == 0


async def test_new_visitors_of_an_address_have_a_rate(shared: EngineContext) -> None:
    async with echo() as target, ruled_pair(shared, target, rate_new=0.01) as (ingress, egress):
        address = visitors_address(ingress, egress)
        assert not await is_refused(address)
        assert await is_refused(address)
        assert not await is_refused(address, "127.0.0.8")
        assert refused(ingress)["rate"] == 1


async def test_the_log_has_each_visitor_that_was_refused_when_the_tunnel_ends(shared: EngineContext) -> None:
    async with echo() as target, ruled_pair(shared, target, deny=networks("127.0.0.0/8")) as (ingress, egress):
        for _ in range(4):
            assert await is_refused(visitors_address(ingress, egress))
    lines = [event.text for event in ingress.events if event.kind is EventKind.REFUSED]
    assert lines == [
        "a visitor was refused: its address is in deny",
        "3 more were suppressed after this: a visitor was refused: its address is in deny",
    ]


async def test_a_rule_at_the_end_that_dials_is_named_in_state_and_log(shared: EngineContext) -> None:
    async with echo() as target, running_engine(shared, server_spec("127.0.0.1:0", mode=Mode.REVERSE)) as server:
        await server.wait_state(State.WAITING)
        configured = client_spec(server, target, mode=Mode.AUTO, allow=networks("10.0.0.0/8"))
        async with running_engine(shared, configured) as client:
            await client.wait_state(UP)
            text = "allow acts at the end that accepts visitors, which is the server here; write it there"
            assert client.reason == text
            assert client.events.said(text)
            await round_trip(visitors_address(server))

"""The egress dials the target for each visitor, within a time limit."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace

import pytest

from tests.support.peers import BlackHole
from tests.support.scale import GUARD_S
from tests.support.waiting import wait_until_async
from tests.tunnel.test_engine import pair, shared, visit, visitors_address
from tunnel.engine.context import EngineContext
from tunnel.model.state import State

__all__ = ["shared"]


async def wait_disconnected(reader: asyncio.StreamReader) -> None:
    """Wait until a visitor that received nothing is disconnected, in order or with a reset."""
    async with asyncio.timeout(GUARD_S):
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read(-1) == b""


async def test_a_target_that_does_not_accept_in_time_fails_the_visitor(shared: EngineContext) -> None:
    with contextlib.closing(BlackHole()) as hole:
        async with pair(shared, f"127.0.0.1:{hole.port}", dial_timeout=0.05) as (server, client):
            async with visit(visitors_address(server)) as (reader, _):
                await wait_disconnected(reader)
            await client.wait_state(State.COOLDOWN)
            assert "it did not answer in time" in client.reason


@pytest.mark.parametrize("timeout_s", [0.05, 3600.0])
async def test_the_time_limit_of_a_dial_changes_live(shared: EngineContext, timeout_s: float) -> None:
    """A shorter limit also holds for dials in progress; a longer one for later dials."""
    with contextlib.closing(BlackHole()) as hole:
        async with pair(shared, f"127.0.0.1:{hole.port}", dial_timeout=600.0) as (server, client):
            async with visit(visitors_address(server)) as (reader, _):
                await wait_until_async(lambda: client.engine.snapshot().connections.total == 1, "the target is dialled")
                client.engine.apply_live_settings(replace(client.engine.spec, dial_timeout=timeout_s))
                if timeout_s < 1:
                    await wait_disconnected(reader)
            assert client.engine.snapshot().connections.failed == int(timeout_s < 1)

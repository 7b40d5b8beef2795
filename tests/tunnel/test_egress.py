"""The egress dials the target for each visitor, within a time limit."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.engine_parts import Events
from tests.support.peers import BlackHole
from tests.support.scale import GUARD_S
from tests.support.waiting import wait_until_async
from tests.tunnel.test_engine import pair, shared, spec, visit, visitors_address
from tunnel.carriers import create_carrier
from tunnel.engine.context import EngineContext
from tunnel.engine.pool import DataConnection, Pool
from tunnel.engine.single_target import SingleTarget
from tunnel.engine.target_group import TargetGroup
from tunnel.model.address import Address
from tunnel.model.spec import Carrier, Role
from tunnel.model.state import State
from tunnel.model.targets import CHECK_OFF, TargetSpec

__all__ = ["shared"]


async def wait_disconnected(reader: asyncio.StreamReader) -> None:
    """Wait until a visitor that received nothing is disconnected, in order or with a reset."""
    async with asyncio.timeout(GUARD_S):
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read(-1) == b""


def _fail(error: Exception) -> None:
    raise error


@pytest.mark.usefixtures("carriage")
async def test_a_target_that_does_not_accept_in_time_fails_the_visitor(shared: EngineContext) -> None:
    with contextlib.closing(BlackHole()) as hole:
        async with pair(shared, f"127.0.0.1:{hole.port}", dial_timeout=0.05) as (server, client):
            async with visit(visitors_address(server)) as (reader, _):
                await wait_disconnected(reader)
            await client.wait_state(State.COOLDOWN)
            assert "it did not answer in time" in client.reason


@pytest.mark.parametrize("several", [False, True], ids=["one target", "several"])
async def test_dials_of_two_links_are_told_apart(shared: EngineContext, *, several: bool) -> None:
    """The numbers of data connections are those of their link, so both links may have a number 7."""
    with contextlib.closing(BlackHole()) as hole:
        silent = TargetSpec(Address("127.0.0.1", hole.port))
        other = replace(silent, address=Address("127.0.0.2", hole.port))
        members = (silent, other) if several else ()
        tunnel = spec(Role.CLIENT, "127.0.0.1:1", str(silent.address), targets=members, check=CHECK_OFF)
        owner: Any = SimpleNamespace(reactor=shared.reactor, relays=None, on_targets_changed=lambda: None)
        dialler = (TargetGroup if several else SingleTarget)(owner, Events().event_log(), tunnel)
        links: list[Any] = [object(), object()]
        pool = Pool(shared.reactor, is_ingress=False, on_connection_lost=lambda _: None, on_crash=_fail)
        carrier = create_carrier(Carrier.TCP, bytes(32), shared.reactor.scratch, is_client=True)
        pairs = [socket.socketpair() for _ in links]
        for link, (near, _) in zip(links, pairs, strict=True):
            shared.reactor.register(near, lambda _events: None)
            dialler.dial(link, DataConnection(7, near, carrier, pool), asyncio.get_running_loop().time())
        found = [dialler.find(link, 7) for link in links]
        assert [dial is not None and dial.link for dial in found] == links
        assert dialler.close() == 2
        assert [dialler.find(link, 7) for link in links] == [None, None]
        for _, far in pairs:
            far.close()


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

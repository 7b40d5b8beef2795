"""Several servers of one client: each has a link of its own, and the loss of one disturbs no other."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, cast

import pytest

from tests.support.scale import GUARD_S
from tests.support.waiting import wait_until_async
from tests.tunnel.test_engine import (
    UP,
    RunningEngine,
    client_spec,
    running_engine,
    server_spec,
    shared,
    visit,
    visitors_address,
)
from tests.tunnel.test_replacement import greeting_target
from tunnel.engine.context import EngineContext, Timing
from tunnel.engine.link import Link
from tunnel.model.address import Address, parse_address
from tunnel.model.balancer import Balance
from tunnel.model.servers import ServerShare
from tunnel.model.spec import DataTls, LogLevel, Mode, Role, TunnelSpec
from tunnel.model.state import State
from tunnel.model.targets import TargetSpec

__all__ = ["shared"]  # a fixture, used by name

pytestmark = pytest.mark.parametrize("shared", [Timing(retry_delay=lambda *_: 0.05)], indirect=True)
CLOSED = Address("127.0.0.1", 1)
"""an address where no server listens"""


class Servers:
    """Servers that each dial a target of their own, which greets with the server's letter."""

    def __init__(self, shared: EngineContext, stack: AsyncExitStack) -> None:
        self.shared = shared
        self.running: dict[str, RunningEngine] = {}
        self._stack = stack

    async def start(
        self,
        letter: str,
        tunnel: str = "127.0.0.1:0",
        mode: Mode = Mode.FORWARD,
        **rest: Any,  # noqa: ANN401
    ) -> Address:
        target = await self._stack.enter_async_context(greeting_target(letter.encode()))
        configured = server_spec(target if mode is Mode.FORWARD else "127.0.0.1:0", tunnel, mode=mode, **rest)
        server = await self._stack.enter_async_context(running_engine(self.shared, configured, letter))
        await server.wait_state(State.WAITING)
        self.running[letter] = server
        return self.address(letter)

    def address(self, letter: str) -> Address:
        return parse_address(self.running[letter].engine.snapshot().tunnel_addr)

    def spec(self, first: str, *others: str, target: str = "127.0.0.1:0", **rest: Any) -> TunnelSpec:  # noqa: ANN401
        further = tuple(self.address(letter) for letter in others)
        return client_spec(self.running[first], target, other_servers=further, **rest)

    async def client(self, spec: TunnelSpec) -> RunningEngine:
        client = await self._stack.enter_async_context(running_engine(self.shared, spec))
        await client.wait_state(UP)
        return client

    async def client_of(self, letters: str, **rest: Any) -> RunningEngine:  # noqa: ANN401  fields of a spec
        """Start the servers of these letters and a client that is linked with all of them."""
        for letter in letters:
            await self.start(letter)
        client = await self.client(self.spec(*letters, **rest))
        await wait_linked(client, len(letters))
        return client


async def wait_linked(client: RunningEngine, count: int) -> None:
    def is_linked() -> bool:
        links = client.engine.snapshot().links
        return len(links) == count and all(link.pool >= 4 for link in links)

    await wait_until_async(is_linked, f"the client has {count} links")


async def count(client: RunningEngine, visitors: int) -> Counter[str]:
    letters = []
    for _ in range(visitors):
        async with visit(visitors_address(client)) as (reader, _), asyncio.timeout(GUARD_S):
            letters.append((await reader.read(1)).decode())
    return Counter(letters)


@pytest.fixture
async def servers(shared: EngineContext) -> AsyncIterator[Servers]:
    async with AsyncExitStack() as stack:
        yield Servers(shared, stack)


async def test_visitors_are_shared_and_each_server_is_shown_with_its_link(servers: Servers) -> None:
    client = await servers.client_of("abc")
    assert await count(client, 9) == {"a": 3, "b": 3, "c": 3}
    seen = client.engine.snapshot()
    assert [server.address for server in seen.servers] == [str(servers.address(letter)) for letter in "abc"]
    assert {server.link for server in seen.servers} == {link.id for link in seen.links}
    assert {server.state for server in seen.servers} == {"up"}
    assert seen.tunnel_addr == client.engine.spec.tunnel_text
    assert seen.pool.idle == sum(link.pool for link in seen.links)


async def test_a_single_server_is_shown_as_before(servers: Servers) -> None:
    client = await servers.client_of("a")
    assert client.engine.snapshot().servers == ()


async def test_the_first_server_is_the_first_of_the_url_and_the_order_changes_live(servers: Servers) -> None:
    client = await servers.client_of("ab", balance=Balance.FIRST)
    before = {link.id for link in client.engine.snapshot().links}
    assert await count(client, 3) == {"a": 3}
    client.engine.apply_live_settings(servers.spec("b", "a", balance=Balance.FIRST))
    assert await count(client, 3) == {"b": 3}
    assert {link.id for link in client.engine.snapshot().links} == before


@pytest.mark.parametrize("share", [{"weight": 0}, {"backup": True}])
async def test_what_a_client_asks_of_a_server_with_several_clients_does_not_concern_its_own_visitors(
    servers: Servers, share: dict[str, Any]
) -> None:
    client = await servers.client_of("ab", **share)
    assert await count(client, 4) == {"a": 2, "b": 2}


def shares_of(servers: Servers, **weights: int) -> tuple[ServerShare, ...]:
    """Return the servers of these letters; one with weight -1 is a backup."""
    return tuple(
        ServerShare(servers.address(one), max(w, 1) if w else 0, is_backup=w < 0) for one, w in weights.items()
    )


async def test_the_weights_of_servers_share_visitors_and_change_live(servers: Servers) -> None:
    for letter in "abc":
        await servers.start(letter)
    spec = servers.spec("a", "b", "c")
    weighted = dataclasses.replace(spec, server_shares=shares_of(servers, a=3, b=1, c=0))
    client = await servers.client(weighted)
    await wait_linked(client, 3)
    before = {link.id for link in client.engine.snapshot().links}
    assert await count(client, 8) == {"a": 6, "b": 2}
    seen = client.engine.snapshot()
    assert [(server.weight, server.backup) for server in seen.servers] == [(3, False), (1, False), (0, False)]
    weights = {link.id: link.weight for link in seen.links}
    assert [weights[server.link or ""] for server in seen.servers] == [3, 1, 0]
    client.engine.apply_live_settings(dataclasses.replace(spec, server_shares=shares_of(servers, a=0, b=1, c=1)))
    assert await count(client, 4) == {"b": 2, "c": 2}
    client.engine.apply_live_settings(spec)
    assert await count(client, 6) == {"a": 2, "b": 2, "c": 2}
    assert {link.id for link in client.engine.snapshot().links} == before


async def test_a_backup_server_gets_visitors_only_while_no_other_can_serve(servers: Servers) -> None:
    for letter in "ab":
        await servers.start(letter)
    shares = shares_of(servers, a=-1, b=1)
    client = await servers.client(dataclasses.replace(servers.spec("a", "b"), server_shares=shares))
    await wait_linked(client, 2)
    assert await count(client, 4) == {"b": 4}
    where = str(servers.address("b"))
    servers.running["b"].engine.close()
    await wait_linked(client, 1)
    assert await count(client, 2) == {"a": 2}
    await servers.start("b", where)
    await wait_linked(client, 2)
    assert await count(client, 3) == {"b": 3}


@pytest.mark.usefixtures("carriage")
async def test_a_server_that_is_gone_leaves_the_others_untouched_and_is_used_again(servers: Servers) -> None:
    client = await servers.client_of("ab")
    where = str(servers.address("b"))
    async with AsyncExitStack() as stack:
        visitors = {}
        for _ in range(2):
            reader, writer = await stack.enter_async_context(visit(visitors_address(client)))
            visitors[await reader.read(1)] = (reader, writer)
        servers.running["b"].engine.close()
        await wait_linked(client, 1)
        await wait_until_async(lambda: client.engine.snapshot().servers[1].reason is not None, "the reason is shown")
        assert client.state is UP
        assert not client.events.said("up → ")
        assert await count(client, 4) == {"a": 4}
        reader, writer = visitors[b"a"]
        writer.write_eof()
        async with asyncio.timeout(GUARD_S):
            assert await reader.read() == b""
    await servers.running["b"].wait_end()
    await servers.start("b", where)
    await wait_linked(client, 2)
    assert (await count(client, 4))["b"] == 2
    assert client.engine.snapshot().servers[1].reason is None


async def test_a_server_that_never_answered_costs_nothing_and_says_why(servers: Servers) -> None:
    await servers.start("a")
    client = await servers.client(dataclasses.replace(servers.spec("a"), other_servers=(CLOSED,)))
    await wait_until_async(lambda: client.engine.snapshot().servers[1].reason is not None, "its reason is known")
    assert "cannot connect to the server 127.0.0.1:1" in (client.engine.snapshot().servers[1].reason or "")
    assert await count(client, 4) == {"a": 4}


async def test_without_any_server_the_state_is_a_cooldown_with_a_reason_until_one_answers(
    servers: Servers, shared: EngineContext
) -> None:
    address = await servers.start("a")
    configured = dataclasses.replace(servers.spec("a"), other_servers=(CLOSED,))
    servers.running["a"].engine.close()
    await servers.running["a"].wait_end()
    async with running_engine(shared, configured) as client:
        await client.wait_state(State.COOLDOWN)
        assert "cannot connect to the server" in client.reason
        assert client.engine.snapshot().cooldown.attempt >= 1
        await servers.start("a", str(address))
        client.engine.retry()
        await client.wait_state(UP)


@pytest.mark.usefixtures("carriage")
async def test_another_server_and_one_less_keep_the_link_of_the_rest_and_its_visitors(servers: Servers) -> None:
    client = await servers.client_of("ab")
    await servers.start("c")
    kept = client.engine.snapshot().servers[1].link
    async with AsyncExitStack() as stack:
        visitors = {}
        for _ in range(2):
            reader, writer = await stack.enter_async_context(visit(visitors_address(client)))
            visitors[await reader.read(1)] = (reader, writer)
        client.engine.apply_live_settings(servers.spec("b", "c"))
        assert await count(client, 1) == {"b": 1}  # at once: the link of "a" gets no new visitors
        await wait_linked(client, 2)
        assert [server.address for server in client.engine.snapshot().servers] == [
            str(servers.address(letter)) for letter in "bc"
        ]
        assert client.engine.snapshot().servers[0].link == kept
        assert (await count(client, 4)).keys() == {"b", "c"}
        assert client.state is UP
        for reader, writer in visitors.values():  # those of the removed server may finish, too
            writer.write_eof()
            async with asyncio.timeout(GUARD_S):
                assert await reader.read() == b""
    assert client.events.said(f"the server {servers.address('a')} was removed")


async def test_a_removed_server_that_does_not_answer_the_goodbye_loses_its_link(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await servers.client_of("ab")
    [link] = [link for link in client.engine._links if link.server == servers.address("a")]
    monkeypatch.setattr(link, "send_goodbye", lambda _reason: None)
    client.engine.apply_live_settings(servers.spec("b"))
    await wait_linked(client, 1)
    assert await count(client, 2) == {"b": 2}
    assert client.engine.snapshot().servers == ()


@pytest.mark.usefixtures("carriage")
async def test_the_loss_of_a_link_with_waiting_visitors_gives_them_to_another_server(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await servers.client_of("ab")
    [link] = [link for link in client.engine._links if link.server == servers.address("a")]
    [busy] = servers.running["a"].engine._links
    handle = Link.on_frames
    monkeypatch.setattr(Link, "on_frames", lambda one, frames: one is busy or handle(one, frames))  # it dials no target
    visitors = [socket.create_connection(servers_target(client)) for _ in range(4)]
    await wait_until_async(lambda: client.engine.snapshot().connections.active == 4, "the links have all visitors")
    link.channel.close("it is lost")
    loop = asyncio.get_running_loop()
    for visitor in visitors:
        visitor.setblocking(False)
        async with asyncio.timeout(GUARD_S):
            assert await loop.sock_recv(visitor, 1) in {b"a", b"b"}
        visitor.close()
    seen = client.engine.snapshot()
    assert (seen.counters.redispatched, seen.connections.failed) == (2, 0)


def servers_target(client: RunningEngine) -> tuple[str, int]:
    where = parse_address(visitors_address(client))
    return where.host, where.port


@pytest.mark.usefixtures("carriage")
async def test_a_server_that_falls_silent_costs_no_visitor(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    for letter in "abc":
        await servers.start(letter, report_interval=0.1)
    client = await servers.client(servers.spec(*"abc", report_interval=0.1))
    await wait_linked(client, 3)
    silent = client.engine.snapshot().servers[1].link
    handle = Link.on_frames
    monkeypatch.setattr(Link, "on_frames", lambda link, frames: link.ident == silent or handle(link, frames))
    async with visit(visitors_address(client)) as (reader, writer):
        assert await reader.read(1) == b"a"  # the others are untouched
        counts = await asyncio.gather(*(count(client, 1) for _ in range(9)))
        assert all(counts)
        assert set().union(*counts) <= set("abc")
        writer.write_eof()
        async with asyncio.timeout(GUARD_S):
            assert await reader.read() == b""
    seen = client.engine.snapshot()
    assert seen.connections.failed == 0
    assert seen.counters.redispatched >= 1
    assert client.state is UP


async def test_servers_of_different_modes_are_explained(servers: Servers) -> None:
    await servers.start("a")
    client = await servers.client(servers.spec("a"))
    await servers.start("b", mode=Mode.REVERSE)
    client.engine.apply_live_settings(servers.spec("a", "b"))
    text = "wants mode=reverse, other servers of this client mode=forward; set the same mode at all of them"
    await wait_until_async(lambda: text in (client.engine.snapshot().servers[1].reason or ""), "the reason is shown")
    assert client.state is UP
    assert await count(client, 2) == {"a": 2}


async def test_in_reverse_each_server_accepts_visitors_for_the_one_target(servers: Servers) -> None:
    for letter in "ab":
        await servers.start(letter, mode=Mode.REVERSE)
    async with greeting_target(b"t") as target:
        client = await servers.client(servers.spec("a", "b", target=target))
        await wait_linked(client, 2)
        for letter in "ab":
            await servers.running[letter].wait_state(UP)
            assert await count(servers.running[letter], 3) == {"t": 3}
        servers.running["a"].engine.drain(1.0)
        await wait_linked(client, 1)
        assert await count(servers.running["b"], 3) == {"t": 3}
        client.engine.apply_live_settings(servers.spec("b", target=target))
        assert client.engine.snapshot().servers == ()
        assert await count(servers.running["b"], 3) == {"t": 3}


async def test_what_fails_for_good_at_one_of_several_servers_is_tried_again(
    servers: Servers, shared: EngineContext, tmp_path: Path
) -> None:
    await servers.start("a")
    await servers.start("b")
    rest: dict[str, Any] = {"data_tls": DataTls.VERIFIED, "tls_ca": tmp_path / "none.pem"}
    async with running_engine(shared, servers.spec("a", "b", **rest)) as client:
        await client.wait_state(State.COOLDOWN)
        assert "none.pem" in client.reason
    async with running_engine(shared, servers.spec("a", **rest)) as client:
        await client.wait_end()
        assert client.state is State.FAILED


async def test_a_change_that_no_server_allows_closes_the_links_with_the_reason(servers: Servers) -> None:
    client = await servers.client_of("ab")
    targets = tuple(TargetSpec(Address("127.0.0.1", port)) for port in (2, 3))
    client.engine.apply_live_settings(servers.spec("a", "b", targets=targets))
    await client.wait_state(State.COOLDOWN)
    assert "several targets to dial" in client.reason


async def test_a_defect_in_one_server_ends_the_engine(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    await servers.start("a")

    def fail(*_: object) -> None:
        raise LookupError("a defect")

    engine = await servers.client(servers.spec("a"))
    monkeypatch.setattr(cast("Callable[..., None]", type(engine.engine)), "on_server_changed", fail)
    servers.running["a"].engine.close()
    with pytest.raises(LookupError, match="a defect"):
        await engine.wait_end()


async def test_stopping_while_the_servers_are_tried_closes_everything(shared: EngineContext) -> None:
    listener = socket.create_server(("127.0.0.1", 0))  # accepts connections and says nothing
    try:
        where = Address("127.0.0.1", listener.getsockname()[1])
        spec = dataclasses.replace(
            server_spec("127.0.0.1:0"), role=Role.CLIENT, tunnel=where, other_servers=(CLOSED,), log=LogLevel.DEBUG
        )
        async with running_engine(shared, spec) as client:
            await wait_until_async(lambda: client.engine.snapshot().servers[1].reason is not None, "one has failed")
            await client.wait_state(State.CONNECTING)
            assert "127.0.0.1:1" in client.reason
            client.engine.drain()
            await client.wait_end()
        assert client.engine.snapshot().state == "stopped"
    finally:
        listener.close()

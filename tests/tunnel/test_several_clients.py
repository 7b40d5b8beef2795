"""Several clients of one server: which of them gets a visitor, and what happens when one of them leaves."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from tests.support.scale import GUARD_S
from tests.support.waiting import wait_until_async
from tests.tunnel.test_engine import (
    UP,
    RunningEngine,
    client_spec,
    echo,
    running_engine,
    server_spec,
    shared,
    visit,
    visitors_address,
)
from tests.tunnel.test_replacement import greeting_target
from tunnel.engine.context import EngineContext, Timing
from tunnel.engine.visitor_queue import VisitorQueue
from tunnel.model.balancer import Balance
from tunnel.model.spec import LogLevel, Mode, TunnelSpec
from tunnel.model.state import State

__all__ = ["shared"]  # a fixture, used by name

QUICK = Timing(retry_delay=lambda *_: 0.05)


class Site:
    """A server and its clients, each with a target of its own that greets with the client's letter."""

    def __init__(self, shared: EngineContext, stack: AsyncExitStack, server: RunningEngine) -> None:
        self.shared = shared
        self.server = server
        self._stack = stack

    async def connect(self, letter: str, **rest: Any) -> RunningEngine:  # noqa: ANN401  fields of a spec
        target = await self._stack.enter_async_context(greeting_target(letter.encode()))
        return await self.connect_to(target, letter, **rest)

    async def connect_to(self, target: str, letter: str, **rest: Any) -> RunningEngine:  # noqa: ANN401  as above
        before = len(self.links())
        wanted = client_spec(self.server, target, mode=Mode.REVERSE, **rest)
        client = await self._stack.enter_async_context(running_engine(self.shared, wanted, letter))
        await wait_until_async(lambda: len(self.links()) > before, f"{letter} has a link")
        await wait_until_async(lambda: self.links()[before].pool >= 4, "its pool is filled")
        return client

    def links(self) -> Any:  # noqa: ANN401  views of links
        return self.server.engine.snapshot().links

    async def visit(self) -> str:
        async with visit(visitors_address(self.server)) as (reader, _), asyncio.timeout(GUARD_S):
            return (await reader.read(1)).decode()

    async def count(self, visitors: int) -> Counter[str]:
        return Counter([await self.visit() for _ in range(visitors)])


@pytest.fixture
async def site(shared: EngineContext, request: pytest.FixtureRequest) -> AsyncIterator[Site]:
    """A parameter of the fixture are fields of the server's spec."""
    rest = {"clients": 3, **getattr(request, "param", {})}
    async with running_engine(shared, server_spec("127.0.0.1:0", mode=Mode.REVERSE, **rest)) as server:
        await server.wait_state(State.WAITING)
        async with AsyncExitStack() as stack:
            yield Site(shared, stack, server)


async def test_visitors_are_shared_by_weight(site: Site) -> None:
    await site.connect("a")
    await site.connect("b", weight=3)
    assert await site.count(16) == {"a": 4, "b": 12}
    links = site.links()
    assert [(link.weight, link.backup, link.state) for link in links] == [(1, False, "up"), (3, False, "up")]
    assert len({link.id for link in links}) == 2
    assert site.server.engine.snapshot().pool.idle == sum(link.pool for link in links)


async def test_a_client_with_the_weight_0_gets_no_visitors(site: Site) -> None:
    await site.connect("a", weight=0)
    await site.connect("b")
    assert await site.count(5) == {"b": 5}


async def test_a_backup_serves_only_while_no_other_client_can(site: Site) -> None:
    await site.connect("b", backup=True)
    first = await site.connect("a")
    assert await site.count(5) == {"a": 5}
    first.engine.close()
    await wait_until_async(lambda: len(site.links()) == 1, "the first client is gone")
    assert site.server.state is UP
    assert await site.count(5) == {"b": 5}


@pytest.mark.parametrize("site", [{"balance": Balance.SOURCE}], indirect=True)
async def test_a_source_stays_with_its_client(site: Site) -> None:
    for letter in "abc":
        await site.connect(letter)
    assert len(await site.count(9)) == 1


@pytest.mark.usefixtures("carriage")
@pytest.mark.parametrize("site", [{"balance": Balance.LEASTCONN}], indirect=True)
async def test_the_client_with_the_fewest_visitors_gets_the_next(site: Site) -> None:
    await site.connect("a")
    await site.connect("b")
    async with AsyncExitStack() as stack:
        letters = []
        for _ in range(6):
            reader, _ = await stack.enter_async_context(visit(visitors_address(site.server)))
            letters.append(await reader.read(1))
        assert sorted(letters) == [b"a"] * 3 + [b"b"] * 3
        assert [link.visitors for link in site.links()] == [3, 3]


async def test_the_balance_changes_live(site: Site) -> None:
    await site.connect("a")
    await site.connect("b")
    before = [link.id for link in site.links()]
    site.server.engine.apply_live_settings(dataclasses.replace(site.server.engine.spec, balance=Balance.FIRST))
    assert await site.count(5) == {"a": 5}
    assert [link.id for link in site.links()] == before


@pytest.mark.parametrize("shared", [QUICK], indirect=True)
async def test_a_client_whose_target_cannot_be_reached_gets_no_visitors(site: Site) -> None:
    await site.connect("a")
    await site.connect_to("127.0.0.1:1", "b")
    letters = await site.count(2)  # one visitor finds out
    await wait_until_async(lambda: site.links()[1].state == "cooldown", "its target is known to be down")
    assert letters["a"] >= 1
    assert await site.count(6) == {"a": 6}
    assert site.server.state is UP
    assert "cannot be reached" in (site.links()[1].reason or "")
    assert site.server.events.said("the target 127.0.0.1:1 cannot be reached")


@pytest.mark.usefixtures("carriage")
async def test_the_loss_of_one_client_disturbs_neither_the_other_nor_its_visitors(site: Site) -> None:
    first, _ = await site.connect("a"), await site.connect("b")
    async with AsyncExitStack() as stack:
        visitors = {}
        for _ in range(2):
            reader, writer = await stack.enter_async_context(visit(visitors_address(site.server)))
            visitors[await reader.read(1)] = (reader, writer)
        first.engine.close()
        await wait_until_async(lambda: len(site.links()) == 1, "one link is left")
        assert site.server.state is UP
        assert not site.server.events.said("up → waiting")
        reader, writer = visitors[b"b"]
        writer.write_eof()
        async with asyncio.timeout(GUARD_S):
            assert await reader.read() == b""
    assert await site.count(4) == {"b": 4}


async def test_a_visitor_that_waits_gets_the_first_data_connection_of_any_client(site: Site) -> None:
    first = await site.connect("a")
    first.engine.close()
    await site.server.wait_state(State.WAITING)
    waiting = asyncio.create_task(site.visit())
    await wait_until_async(lambda: site.server.engine.snapshot().signals.queued == 1, "the visitor waits")
    await site.connect("b")
    await site.connect("c")
    assert await waiting == "b"


@pytest.mark.parametrize("site", [{"clients": 2}], indirect=True)
async def test_another_client_than_the_server_allows_is_refused_with_the_number(site: Site) -> None:
    await site.connect("a")
    await site.connect("b")
    wanted = client_spec(site.server, "127.0.0.1:1", mode=Mode.REVERSE)
    async with running_engine(site.shared, wanted, "c") as third:
        await third.wait_state(State.COOLDOWN)
        assert "2 other clients have this tunnel and answer, as many as clients= of the server allows" in third.reason
        changed = dataclasses.replace(site.server.engine.spec, clients=3)
        site.server.engine.apply_live_settings(changed)
        third.engine.retry()
        await wait_until_async(lambda: len(site.links()) == 3, "one more is allowed now")


async def test_a_client_of_several_that_comes_back_replaces_its_own_link_alone(site: Site) -> None:
    first, second = await site.connect("a"), await site.connect("b")
    before = [link.id for link in site.links()]
    link = first.engine._link
    assert link is not None
    link.channel.close("a test cuts it")
    first.engine.retry()
    await wait_until_async(lambda: first.engine._link not in {None, link}, "it has another link")
    await wait_until_async(lambda: len(site.links()) == 2, "the old one is gone")
    assert before[1] in {one.id for one in site.links()}
    assert second.state is UP


async def test_the_weight_and_backup_of_a_client_change_live(site: Site) -> None:
    first, second = await site.connect("a"), await site.connect("b")
    before = [link.id for link in site.links()]

    def change(client: RunningEngine, **rest: Any) -> None:  # noqa: ANN401  fields of a spec
        client.engine.apply_live_settings(dataclasses.replace(client.engine.spec, **rest))

    change(first, weight=3)
    await wait_until_async(lambda: site.links()[0].weight == 3, "the server knows the weight")
    assert await site.count(8) == {"a": 6, "b": 2}
    change(first, backup=True)
    change(second, log=LogLevel.DEBUG)
    await wait_until_async(lambda: site.links()[0].backup, "the server knows that it is a backup")
    assert await site.count(4) == {"b": 4}
    assert [link.id for link in site.links()] == before


async def test_an_older_server_learns_another_weight_with_a_new_link(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TunnelSpec, "features", ())
    client = await site.connect("a")
    before = site.links()[0].id
    client.engine.apply_live_settings(dataclasses.replace(client.engine.spec, weight=3))
    client.engine.retry()
    await wait_until_async(lambda: [link.id != before and link.weight for link in site.links()] == [3], "it is new")


async def test_a_drained_link_gets_no_new_visitors_while_there_is_another(site: Site) -> None:
    await site.connect("a")
    second = await site.connect("b")
    drained = site.links()[0].id
    site.server.engine.set_link_drained(drained, is_drained=True)
    assert await site.count(5) == {"b": 5}
    assert [link.state for link in site.links()] == ["drained", "up"]
    site.server.engine.set_link_drained(drained, is_drained=False)
    assert await site.count(4) == {"a": 2, "b": 2}
    site.server.engine.set_link_drained(drained, is_drained=True)
    second.engine.close()
    await wait_until_async(lambda: len(site.links()) == 1, "only the drained one is left")
    assert await site.count(2) == {"a": 2}


@pytest.mark.usefixtures("carriage")
@pytest.mark.parametrize("site", [{"balance": Balance.FIRST}], indirect=True)
async def test_a_visitor_of_which_nothing_was_forwarded_is_served_by_another_client(site: Site) -> None:
    async with echo() as silent:
        await site.connect_to(silent, "a")
        await site.connect("b")
        visitor = asyncio.create_task(site.visit())
        await wait_until_async(lambda: site.links()[0].visitors == 1, "the first client has the visitor")
        link = site.server.engine._link
        assert link is not None
        link.channel.close("a test cuts it")
        assert await visitor == "b"
    snapshot = site.server.engine.snapshot()
    assert (snapshot.counters.redispatched, snapshot.connections.total, snapshot.connections.failed) == (1, 1, 0)


@pytest.mark.usefixtures("carriage")
async def test_visitors_that_have_sent_nothing_yet_may_finish_when_the_server_or_their_client_stops(site: Site) -> None:
    async with echo() as target:
        first, second = await site.connect_to(target, "a"), await site.connect_to(target, "b")
        async with (
            visit(visitors_address(site.server)) as (r, w),
            visit(visitors_address(site.server)) as (reader, writer),
        ):
            await wait_until_async(lambda: [link.visitors for link in site.links()] == [1, 1], "each client has one")
            first.engine.drain(GUARD_S)
            await wait_until_async(lambda: len(site.links()) == 1, "the first client stops")
            site.server.engine.drain(GUARD_S)
            await wait_until_async(lambda: not site.links(), "the server stops")
            for letter, come, go in ((b"a", r, w), (b"b", reader, writer)):
                go.write(letter)
                go.write_eof()
                async with asyncio.timeout(GUARD_S):
                    assert await come.read() == letter
        assert second.state is not State.FAILED
    assert site.server.engine.snapshot().counters.redispatched == 0


@pytest.mark.usefixtures("carriage")
@pytest.mark.parametrize("site", [{"balance": Balance.FIRST}], indirect=True)
async def test_a_target_that_cannot_be_reached_costs_no_visitor_that_has_sent_nothing(site: Site) -> None:
    await site.connect_to("127.0.0.1:1", "a")
    await site.connect("b")
    assert await site.count(5) == {"b": 5}
    snapshot = site.server.engine.snapshot()
    assert (snapshot.connections.total, snapshot.connections.failed) == (5, 0)
    assert snapshot.counters.redispatched >= 1


@pytest.mark.usefixtures("carriage")
async def test_a_visitor_that_no_client_can_serve_is_disconnected(site: Site) -> None:
    for letter in "ab":
        await site.connect_to("127.0.0.1:1", letter)
    assert await site.visit() == ""
    await wait_until_async(lambda: site.server.engine.snapshot().connections.failed == 1, "it has failed")
    assert site.server.engine.snapshot().connections.total == 1


def test_a_visitor_is_launched_again_three_times_and_another_on_its_descriptor_as_often() -> None:
    queue = VisitorQueue()
    with socket.socket() as sock:
        visitor, another = ("192.0.2.1", 1), ("192.0.2.2", 1)
        assert not queue.was_launched(sock, visitor)
        assert [queue.count_launch(sock, visitor) for _ in range(4)] == [True, True, True, False]
        assert queue.was_launched(sock, visitor)
        assert not queue.was_launched(sock, another)
        assert queue.count_launch(sock, another)


@pytest.mark.parametrize("direction", [Mode.FORWARD])
async def test_several_clients_accept_visitors_for_one_target(shared: EngineContext, direction: Mode) -> None:
    async with (
        greeting_target(b"t") as target,
        running_engine(shared, server_spec(target, mode=direction, clients=2)) as server,
    ):
        await server.wait_state(State.WAITING)
        async with (
            running_engine(shared, client_spec(server, "127.0.0.1:0"), "a") as first,
            running_engine(shared, client_spec(server, "127.0.0.1:0"), "b") as second,
        ):
            for client in (first, second):
                await client.wait_state(UP)
                async with visit(visitors_address(client)) as (reader, _), asyncio.timeout(GUARD_S):
                    assert await reader.read(1) == b"t"
            assert [link.state for link in server.engine.snapshot().links] == ["up", "up"]
        await server.wait_state(State.WAITING)
        assert server.engine.snapshot().clients == 2  # how many may come, also while there is none

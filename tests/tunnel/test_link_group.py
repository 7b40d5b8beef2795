"""The choice among several links: which of them start slowly, and which do not."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from tunnel.engine.link import Link
from tunnel.engine.link_group import LinkGroup
from tunnel.engine.pool import DataConnection
from tunnel.model.balancer import Balance


class FakePool:
    """A pool that always has an idle data connection."""

    def __init__(self) -> None:
        self.idle = {1: self}

    def acquire(self) -> FakePool:
        return self


class LinkStub:
    """What a group reads of a link; it is its own channel and session."""

    key_name = None
    peer = "192.0.2.1:1000"
    target_error: str | None = None
    weight = server_weight = 100
    is_backup = False
    is_drained = is_client = is_server_backup = False
    server: object = None

    def __init__(self) -> None:
        self.channel = self.session = self
        self.pool = FakePool()


def take_idle(link: Link) -> DataConnection | None:
    return link.pool.acquire()


def weights(group: LinkGroup) -> list[int]:
    return [round(member.balance_weight) for member in group._members.values()]


async def test_a_new_link_starts_slowly_and_the_loss_of_another_one_of_its_host_changes_no_weight() -> None:
    group = LinkGroup(lambda _: 0)
    group.configure(Balance.ROUNDROBIN, 3600.0)
    first, second, third = (cast("Link", LinkStub()) for _ in range(3))
    group.set_links([first, second])
    assert weights(group) == [100, 100]
    group.set_links([first, second, third])
    assert weights(group) == [100, 100, 5]
    group.set_links([second, third])
    assert weights(group) == [100, 5]
    assert len({member.balance_key for member in group._members.values()}) == 2


async def test_the_weight_of_a_link_that_starts_slowly_grows_with_each_visitor(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    start = loop.time()
    group = LinkGroup(lambda _: 0)
    group.configure(Balance.ROUNDROBIN, 100.0)
    first, second = (cast("Link", LinkStub()) for _ in range(2))
    group.set_links([first])
    group.set_links([first, second])
    for passed_s, weight in ((50.0, 50), (101.0, 100)):
        monkeypatch.setattr(loop, "time", lambda now=start + passed_s: now)
        assert group.acquire(("192.0.2.9", 1), take_idle) is not None
        assert weights(group) == [100, weight]


async def test_a_link_whose_target_is_down_serves_rather_than_a_drained_one_or_one_of_weight_0() -> None:
    group = LinkGroup(lambda _: 0)
    down, drained, unweighted = LinkStub(), LinkStub(), LinkStub()
    down.target_error, drained.is_drained, unweighted.weight = "it refused", True, 0
    links = [cast("Link", each) for each in (down, drained, unweighted)]
    group.set_links(links)
    found = [group.acquire(("192.0.2.9", port), take_idle) for port in range(4)]
    assert [each and each[0] for each in found] == links[:1] * 4

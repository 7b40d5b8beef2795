"""A worker from the inside: real engines behind a border, and orders that come early, late or twice."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import pytest

from orchestrator.workers.messages import (
    Adopt,
    Beat,
    Channel,
    Close,
    Drain,
    Drop,
    Ended,
    Happened,
    Make,
    Order,
    Prepare,
    Prepared,
    Retry,
    Run,
    Views,
)
from orchestrator.workers.worker import Worker
from tests.support.engine_parts import server_context, shared_parts
from tests.support.ports import free_port
from tests.support.scale import GUARD_S
from tests.support.waiting import wait_until_async
from tunnel.engine.context import EngineContext
from tunnel.engine.engine import Engine
from tunnel.model.options import make_spec
from tunnel.model.snapshot import Snapshot
from tunnel.model.spec import TunnelSpec
from tunnel.model.state import State
from tunnel.model.url import parse_url
from tunnel.runtime.tls import SelfSignedCertificate

ROOT = Path(__file__).parent.parent.parent
T = TypeVar("T")


def spec(url: str) -> TunnelSpec:
    return make_spec(parse_url(url), environ={})


def a_server(port: int = 0) -> TunnelSpec:
    return spec(f"server://k@127.0.0.1:{port or free_port()}/127.0.0.1:{free_port()}?mode=reverse")


class Desk:
    """The supervisor's end."""

    def __init__(self, shared: EngineContext) -> None:
        self.heard: list[Any] = []
        self.worker = Worker(shared)
        self.channel = Channel(self.heard.append, lambda _: None)

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        await loop.create_unix_connection(lambda: self.channel, sock=ours)
        await loop.create_unix_connection(lambda: self.worker.channel, sock=theirs)
        self.life = asyncio.create_task(self.worker.run())

    def order(self, *orders: Order) -> None:
        for order in orders:
            self.channel.send(order)

    def all(self, kind: type[T]) -> list[T]:
        return [message for message in self.heard if isinstance(message, kind)]

    def views(self, engine: int) -> list[Snapshot]:
        return [view for views in self.all(Views) for number, view in views.views if number == engine]

    def state(self, engine: int) -> State | None:
        views = self.views(engine)
        return views[-1].state if views else None

    async def ended(self, engine: int) -> Ended:
        await wait_until_async(lambda: any(ended.engine == engine for ended in self.all(Ended)))
        return next(ended for ended in self.all(Ended) if ended.engine == engine)

    async def close(self) -> None:
        self.channel.close()
        await asyncio.wait_for(self.life, GUARD_S)


@pytest.fixture(autouse=True)
def ready_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    """The making of a certificate is another matter, and another process."""

    async def context(_: SelfSignedCertificate) -> ssl.SSLContext:
        return server_context()

    monkeypatch.setattr(SelfSignedCertificate, "context", context)


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    async with shared_parts() as shared:
        desk = Desk(shared)
        await desk.open()
        yield desk
        await desk.close()


async def test_the_life_of_an_engine_is_told(desk: Desk) -> None:
    desk.order(Make(1, "web", a_server()), Run(1))
    await wait_until_async(lambda: desk.state(1) is State.WAITING)
    desk.order(Drain(1, 1.0))
    ended = await desk.ended(1)
    assert ended.defect is None
    assert ended.last is not None
    assert ended.last.state is State.STOPPED
    assert [h.event.data["state"] for h in desk.all(Happened) if h.event.kind == "state"][-1] == "stopped"


async def test_who_hears_of_a_state_has_seen_it(desk: Desk) -> None:
    desk.order(Make(1, "web", a_server()), Run(1), Drain(1, 0.0))
    await desk.ended(1)
    shown: str | None = None
    for message in desk.heard:
        if isinstance(message, Views):
            shown = message.views[-1][1].state.value
        elif isinstance(message, Happened) and message.event.kind == "state":
            assert message.event.data["state"] == shown


async def test_what_does_not_change_is_not_repeated(desk: Desk) -> None:
    desk.order(Make(1, "web", a_server()), Run(1))
    await wait_until_async(lambda: desk.state(1) is State.WAITING)
    await wait_until_async(lambda: len(desk.all(Beat)) >= 1)
    before = len(desk.views(1))
    await wait_until_async(lambda: len(desk.all(Beat)) >= 3)
    assert len(desk.views(1)) <= before + 1


async def test_a_wait_that_merely_runs_down_is_not_repeated(desk: Desk) -> None:
    url = f"client://k@127.0.0.1:{free_port()}/127.0.0.1:1?client_cooldown=60s"
    desk.order(Make(1, "web", spec(url)), Run(1))
    await wait_until_async(lambda: desk.state(1) is State.COOLDOWN)
    await wait_until_async(lambda: len(desk.all(Beat)) >= 2)
    still = [replace(view, cooldown=replace(view.cooldown, remaining_s=0.0)) for view in desk.views(1)]
    assert len(still) > 3
    assert all(one != next_one for one, next_one in pairwise(still))


async def test_orders_are_obeyed(desk: Desk) -> None:
    port = free_port()
    first = spec(f"client://k@127.0.0.1:{port}/127.0.0.1:1?max_pool_capacity=9")
    second = spec(f"client://k@127.0.0.1:{port}/127.0.0.1:1?max_pool_capacity=11")
    desk.order(Make(1, "web", first), Run(1))
    await wait_until_async(lambda: desk.state(1) is State.COOLDOWN)
    desk.order(Adopt(1, second), Retry(1))
    await wait_until_async(lambda: desk.views(1)[-1].pool.max == 11)
    desk.order(Close(1))
    await desk.ended(1)


async def test_an_heir_takes_the_listener_over(desk: Desk) -> None:
    port = free_port()
    desk.order(Make(1, "web", a_server(port)), Run(1))
    await wait_until_async(lambda: desk.state(1) is State.WAITING)
    desk.order(Make(2, "web", a_server(port)), Prepare(2, 1))
    await wait_until_async(lambda: desk.all(Prepared))
    assert desk.all(Prepared) == [Prepared(2)]
    desk.order(Drain(1, 0.0), Run(2))
    await desk.ended(1)
    await wait_until_async(lambda: desk.state(2) is State.WAITING)
    with socket.create_connection(("127.0.0.1", port), GUARD_S):
        pass


async def test_an_heir_that_cannot_bind_is_refused_and_forgotten(desk: Desk) -> None:
    desk.order(Make(1, "web", a_server()), Run(1))
    await wait_until_async(lambda: desk.state(1) is State.WAITING)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        desk.order(Make(2, "web", a_server(taken.getsockname()[1])), Prepare(2, 1))
        await wait_until_async(lambda: desk.all(Prepared))
    (answer,) = desk.all(Prepared)
    assert answer.errno == errno.EADDRINUSE
    assert "in use" in (answer.error or "")
    assert list(desk.worker._charges) == [1]


async def test_an_heir_that_was_given_up_gives_its_listeners_back(desk: Desk) -> None:
    port = free_port()
    desk.order(Make(1, "web", a_server()), Run(1))
    await wait_until_async(lambda: desk.state(1) is State.WAITING)
    desk.order(Make(2, "web", a_server(port)), Prepare(2, 1))
    await wait_until_async(lambda: desk.all(Prepared))
    desk.order(Drop(2))
    await wait_until_async(lambda: not is_taken(port))


def is_taken(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return True
    return False


async def test_a_dropped_engine_closes_without_another_word(desk: Desk) -> None:
    port = free_port()
    desk.order(Make(1, "web", a_server(port)), Run(1))
    await wait_until_async(lambda: desk.state(1) is State.WAITING)
    desk.order(Drop(1))
    await wait_until_async(lambda: not is_taken(port))
    assert desk.all(Ended) == []


async def test_orders_for_engines_that_are_over_are_no_trouble(desk: Desk) -> None:
    desk.order(Make(1, "web", a_server()), Run(1), Close(1))
    await desk.ended(1)
    desk.order(Drain(1, 1.0), Close(1), Retry(1), Drop(1), Run(99), Prepare(98, 97))
    desk.order(Make(2, "next", a_server()), Run(2))
    await wait_until_async(lambda: desk.state(2) is State.WAITING)


async def test_an_engine_that_breaks_is_described(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(_: Engine) -> None:
        raise RuntimeError("broken inside")

    desk.order(Make(1, "web", a_server()), Run(1))
    await wait_until_async(lambda: desk.state(1) is State.WAITING)
    monkeypatch.setattr(Engine, "run", broken)
    desk.order(Make(2, "next", a_server()), Run(2))
    ended = await desk.ended(2)
    assert "internal fault: RuntimeError: broken inside in broken (test_worker.py" in (ended.defect or "")
    assert any("broken" in frame for frame in ended.frames)
    assert desk.state(1) is State.WAITING


@pytest.mark.parametrize("part", ["retry", "__init__"])
async def test_an_engine_that_breaks_at_an_order_takes_nobody_along(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("does not listen")

    desk.order(Make(1, "web", a_server()), Run(1), Make(2, "next", a_server()), Run(2))
    await wait_until_async(lambda: desk.state(1) is desk.state(2) is State.WAITING)
    monkeypatch.setattr(Engine, part, broken)
    desk.order(Make(3, "last", a_server()), Run(3), Retry(3))
    assert "does not listen" in ((await desk.ended(3)).defect or "")
    assert desk.state(1) is desk.state(2) is State.WAITING


async def test_an_engine_that_cannot_be_looked_at_hides_nobody(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Engine) -> Snapshot:
        raise RuntimeError("too broken to say anything")

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "snapshot", broken)
        desk.order(Make(1, "web", a_server()), Run(1))
        await wait_until_async(lambda: desk.all(Beat))
    await wait_until_async(lambda: desk.state(1) is State.WAITING)


async def test_a_supervisor_that_does_not_read_costs_events_and_nothing_else(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Channel, "is_clogged", True)
        desk.order(Make(1, "web", a_server()), Run(1))
        await wait_until_async(lambda: 1 in desk.worker._charges)
        engine = desk.worker._charges[1].engine
        await wait_until_async(lambda: engine.snapshot().state is State.WAITING)
        assert desk.heard == []
    await wait_until_async(lambda: desk.state(1) is State.WAITING)


async def test_the_end_of_the_supervisor_closes_everything() -> None:
    port = free_port()
    async with shared_parts() as shared:
        desk = Desk(shared)
        await desk.open()
        desk.order(Make(1, "web", a_server(port)), Run(1))
        await wait_until_async(lambda: desk.state(1) is State.WAITING)
        await desk.close()
        assert not is_taken(port)


@pytest.mark.parametrize("arguments", [[], ["x"], ["99"]])
def test_nobody_starts_a_worker_by_hand(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.workers.worker", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "nodepass-orch: workers are started by the supervisor; write workers: N into the file's supervisor: section\n"
    )

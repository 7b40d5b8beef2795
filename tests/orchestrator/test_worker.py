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
    NOTIFICATION_KINDS,
    CloseEngine,
    CreateEngine,
    DiscardEngine,
    DrainEngine,
    EngineEnded,
    EngineEvent,
    EnginePrepared,
    IpcChannel,
    PrepareEngine,
    Request,
    RetryEngine,
    RunEngine,
    SnapshotBatch,
    UpdateSpec,
    WorkerAlive,
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


class SupervisorEnd:
    """The supervisor's end of the channel to a worker."""

    def __init__(self, shared: EngineContext) -> None:
        self.received: list[Any] = []
        self.worker = Worker(shared)
        self.channel = IpcChannel(NOTIFICATION_KINDS, self.received.append, lambda _: None)

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        await loop.create_unix_connection(lambda: self.channel, sock=ours)
        await loop.create_unix_connection(lambda: self.worker.channel, sock=theirs)
        self.life = asyncio.create_task(self.worker.run())

    def send(self, *requests: Request) -> None:
        for request in requests:
            self.channel.send(request)

    def all(self, kind: type[T]) -> list[T]:
        return [message for message in self.received if isinstance(message, kind)]

    def snapshots(self, engine: int) -> list[Snapshot]:
        return [seen for batch in self.all(SnapshotBatch) for number, seen in batch.snapshots if number == engine]

    def state(self, engine: int) -> State | None:
        views = self.snapshots(engine)
        return views[-1].state if views else None

    async def ended(self, engine: int) -> EngineEnded:
        await wait_until_async(lambda: any(ended.engine == engine for ended in self.all(EngineEnded)))
        return next(ended for ended in self.all(EngineEnded) if ended.engine == engine)

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
async def supervisor() -> AsyncIterator[SupervisorEnd]:
    async with shared_parts() as shared:
        supervisor = SupervisorEnd(shared)
        await supervisor.open()
        yield supervisor
        await supervisor.close()


async def test_an_engine_is_reported_from_its_start_to_its_end(supervisor: SupervisorEnd) -> None:
    supervisor.send(CreateEngine(1, "web", a_server()), RunEngine(1))
    await wait_until_async(lambda: supervisor.state(1) is State.WAITING)
    supervisor.send(DrainEngine(1, 1.0))
    ended = await supervisor.ended(1)
    assert ended.crash is None
    assert ended.last is not None
    assert ended.last.state is State.STOPPED
    assert [h.event.data["state"] for h in supervisor.all(EngineEvent) if h.event.kind == "state"][-1] == "stopped"


async def test_the_snapshot_of_a_state_arrives_before_its_event(supervisor: SupervisorEnd) -> None:
    supervisor.send(CreateEngine(1, "web", a_server()), RunEngine(1), DrainEngine(1, 0.0))
    await supervisor.ended(1)
    shown: str | None = None
    for message in supervisor.received:
        if isinstance(message, SnapshotBatch):
            shown = message.snapshots[-1][1].state.value
        elif isinstance(message, EngineEvent) and message.event.kind == "state":
            assert message.event.data["state"] == shown


async def test_an_unchanged_snapshot_is_sent_once(supervisor: SupervisorEnd) -> None:
    supervisor.send(CreateEngine(1, "web", a_server()), RunEngine(1))
    await wait_until_async(lambda: supervisor.state(1) is State.WAITING)
    await wait_until_async(lambda: len(supervisor.all(WorkerAlive)) >= 1)
    before = len(supervisor.snapshots(1))
    await wait_until_async(lambda: len(supervisor.all(WorkerAlive)) >= 3)
    assert len(supervisor.snapshots(1)) <= before + 1


async def test_a_cooldown_that_merely_passes_is_not_sent_again(supervisor: SupervisorEnd) -> None:
    url = f"client://k@127.0.0.1:{free_port()}/127.0.0.1:1?client_cooldown=60s"
    supervisor.send(CreateEngine(1, "web", spec(url)), RunEngine(1))
    await wait_until_async(lambda: supervisor.state(1) is State.COOLDOWN)
    await wait_until_async(lambda: len(supervisor.all(WorkerAlive)) >= 2)
    still = [replace(view, cooldown=replace(view.cooldown, remaining_s=0.0)) for view in supervisor.snapshots(1)]
    assert len(still) > 3
    assert all(one != next_one for one, next_one in pairwise(still))


async def test_requests_are_carried_out(supervisor: SupervisorEnd) -> None:
    port = free_port()
    first = spec(f"client://k@127.0.0.1:{port}/127.0.0.1:1?max_pool_capacity=9")
    second = spec(f"client://k@127.0.0.1:{port}/127.0.0.1:1?max_pool_capacity=11")
    supervisor.send(CreateEngine(1, "web", first), RunEngine(1))
    await wait_until_async(lambda: supervisor.state(1) is State.COOLDOWN)
    supervisor.send(UpdateSpec(1, second), RetryEngine(1))
    await wait_until_async(lambda: supervisor.snapshots(1)[-1].pool.max == 11)
    supervisor.send(CloseEngine(1))
    await supervisor.ended(1)


async def test_a_successor_takes_over_the_listener(supervisor: SupervisorEnd) -> None:
    port = free_port()
    supervisor.send(CreateEngine(1, "web", a_server(port)), RunEngine(1))
    await wait_until_async(lambda: supervisor.state(1) is State.WAITING)
    supervisor.send(CreateEngine(2, "web", a_server(port)), PrepareEngine(2, 1))
    await wait_until_async(lambda: supervisor.all(EnginePrepared))
    assert supervisor.all(EnginePrepared) == [EnginePrepared(2)]
    supervisor.send(DrainEngine(1, 0.0), RunEngine(2))
    await supervisor.ended(1)
    await wait_until_async(lambda: supervisor.state(2) is State.WAITING)
    with socket.create_connection(("127.0.0.1", port), GUARD_S):
        pass


async def test_a_successor_that_cannot_bind_is_refused_and_forgotten(supervisor: SupervisorEnd) -> None:
    supervisor.send(CreateEngine(1, "web", a_server()), RunEngine(1))
    await wait_until_async(lambda: supervisor.state(1) is State.WAITING)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        supervisor.send(CreateEngine(2, "web", a_server(taken.getsockname()[1])), PrepareEngine(2, 1))
        await wait_until_async(lambda: supervisor.all(EnginePrepared))
    (answer,) = supervisor.all(EnginePrepared)
    assert answer.errno == errno.EADDRINUSE
    assert "in use" in (answer.error or "")
    assert list(supervisor.worker._engines) == [1]


async def test_a_discarded_successor_closes_its_listeners(supervisor: SupervisorEnd) -> None:
    port = free_port()
    supervisor.send(CreateEngine(1, "web", a_server()), RunEngine(1))
    await wait_until_async(lambda: supervisor.state(1) is State.WAITING)
    supervisor.send(CreateEngine(2, "web", a_server(port)), PrepareEngine(2, 1))
    await wait_until_async(lambda: supervisor.all(EnginePrepared))
    supervisor.send(DiscardEngine(2))
    await wait_until_async(lambda: not is_taken(port))


def is_taken(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return True
    return False


async def test_a_discarded_engine_closes_without_a_notification(supervisor: SupervisorEnd) -> None:
    port = free_port()
    supervisor.send(CreateEngine(1, "web", a_server(port)), RunEngine(1))
    await wait_until_async(lambda: supervisor.state(1) is State.WAITING)
    supervisor.send(DiscardEngine(1))
    await wait_until_async(lambda: not is_taken(port))
    assert supervisor.all(EngineEnded) == []


async def test_requests_for_engines_that_have_ended_are_ignored(supervisor: SupervisorEnd) -> None:
    supervisor.send(CreateEngine(1, "web", a_server()), RunEngine(1), CloseEngine(1))
    await supervisor.ended(1)
    supervisor.send(
        DrainEngine(1, 1.0), CloseEngine(1), RetryEngine(1), DiscardEngine(1), RunEngine(99), PrepareEngine(98, 97)
    )
    supervisor.send(CreateEngine(2, "next", a_server()), RunEngine(2))
    await wait_until_async(lambda: supervisor.state(2) is State.WAITING)


async def test_a_crash_of_an_engine_is_described(supervisor: SupervisorEnd, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(_: Engine) -> None:
        raise RuntimeError("broken inside")

    supervisor.send(CreateEngine(1, "web", a_server()), RunEngine(1))
    await wait_until_async(lambda: supervisor.state(1) is State.WAITING)
    monkeypatch.setattr(Engine, "run", broken)
    supervisor.send(CreateEngine(2, "next", a_server()), RunEngine(2))
    ended = await supervisor.ended(2)
    assert "internal fault: RuntimeError: broken inside in broken (test_worker.py" in (ended.crash or "")
    assert any("broken" in frame for frame in ended.frames)
    assert supervisor.state(1) is State.WAITING


@pytest.mark.parametrize("part", ["retry", "__init__"])
async def test_a_crash_at_a_request_affects_no_other_engine(
    supervisor: SupervisorEnd, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("does not listen")

    supervisor.send(CreateEngine(1, "web", a_server()), RunEngine(1), CreateEngine(2, "next", a_server()), RunEngine(2))
    await wait_until_async(lambda: supervisor.state(1) is supervisor.state(2) is State.WAITING)
    monkeypatch.setattr(Engine, part, broken)
    supervisor.send(CreateEngine(3, "last", a_server()), RunEngine(3), RetryEngine(3))
    assert "does not listen" in ((await supervisor.ended(3)).crash or "")
    assert supervisor.state(1) is supervisor.state(2) is State.WAITING


async def test_an_engine_that_cannot_be_read_hides_no_other(
    supervisor: SupervisorEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Engine) -> Snapshot:
        raise RuntimeError("too broken to say anything")

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "snapshot", broken)
        supervisor.send(CreateEngine(1, "web", a_server()), RunEngine(1))
        await wait_until_async(lambda: supervisor.all(WorkerAlive))
    await wait_until_async(lambda: supervisor.state(1) is State.WAITING)


async def test_a_supervisor_that_does_not_read_loses_events_and_nothing_else(
    supervisor: SupervisorEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(IpcChannel, "is_clogged", True)
        supervisor.send(CreateEngine(1, "web", a_server()), RunEngine(1))
        await wait_until_async(lambda: 1 in supervisor.worker._engines)
        engine = supervisor.worker._engines[1].engine
        await wait_until_async(lambda: engine.snapshot().state is State.WAITING)
        assert supervisor.received == []
    await wait_until_async(lambda: supervisor.state(1) is State.WAITING)


async def test_the_end_of_the_supervisor_closes_everything() -> None:
    port = free_port()
    async with shared_parts() as shared:
        supervisor = SupervisorEnd(shared)
        await supervisor.open()
        supervisor.send(CreateEngine(1, "web", a_server(port)), RunEngine(1))
        await wait_until_async(lambda: supervisor.state(1) is State.WAITING)
        await supervisor.close()
        assert not is_taken(port)


@pytest.mark.parametrize("arguments", [[], ["x"], ["99"]])
def test_a_worker_cannot_be_started_by_hand(arguments: list[str]) -> None:
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

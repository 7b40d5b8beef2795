"""An engine in a worker, seen from the supervisor: whatever becomes of the worker, its owner gets an answer."""

from __future__ import annotations

import asyncio
import errno
import time
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.supervisor.crash_reports import RemoteEngineError, describe_crash, short_traceback
from orchestrator.supervisor.runner import stopped_snapshot
from orchestrator.workers.messages import (
    CloseEngine,
    CreateEngine,
    DiscardEngine,
    DrainEngine,
    DrainLink,
    DrainTarget,
    EngineEnded,
    EngineEvent,
    EnginePrepared,
    PrepareEngine,
    RetryEngine,
    RunEngine,
    UpdateSpec,
)
from orchestrator.workers.remote import RemoteEngine
from tests.support.scale import GUARD_S
from tests.support.waiting import wait_until_async
from tunnel.model.events import Event, EventKind
from tunnel.model.options import make_spec
from tunnel.model.snapshot import CooldownView
from tunnel.model.spec import LogLevel
from tunnel.model.state import State
from tunnel.model.url import parse_url
from tunnel.runtime.sockets import NetError

SPEC = make_spec(parse_url("server://k@127.0.0.1:10101/127.0.0.1:8080"), environ={})


class FakeWorker:
    """A worker that records requests."""

    number = 2

    def __init__(self, *, is_connected: bool = True) -> None:
        self.is_connected = is_connected
        self.problem: str | None = None
        self.requests: list[Any] = []
        self.engines: set[int] = set()

    def attach(self, engine: RemoteEngine) -> None:
        self.engines.add(engine.number)

    def detach(self, engine: RemoteEngine) -> None:
        self.engines.discard(engine.number)

    def send(self, request: object) -> None:
        self.requests.append(request)


class EngineHarness:
    """One engine at a worker, and its life."""

    def __init__(self, worker: FakeWorker, number: int = 7) -> None:
        self.worker = worker
        self.events: list[Event] = []
        self.engine = RemoteEngine(number, "web", SPEC, worker, self.events.append)
        self.life: asyncio.Task[None] | None = None

    async def run(self) -> None:
        self.life = asyncio.create_task(self.engine.run())
        await asyncio.sleep(0)

    async def end(self) -> None:
        assert self.life is not None
        await asyncio.wait_for(self.life, GUARD_S)


async def test_an_engine_is_created_run_and_ended_by_the_worker() -> None:
    harness = EngineHarness(FakeWorker())
    await harness.run()
    assert harness.worker.requests == [CreateEngine(7, "web", SPEC), RunEngine(7)]
    assert harness.worker.engines == {7}
    assert harness.engine.snapshot().state is State.STARTING
    last = replace(stopped_snapshot("web", SPEC), state=State.STOPPED, reason="drained")
    harness.engine.on_notification(EngineEnded(7, last))
    await harness.end()
    assert harness.engine.snapshot() == replace(last, worker=2)
    assert harness.worker.engines == set()
    assert len(harness.worker.requests) == 2


async def test_an_engine_waits_for_a_worker_that_is_being_started() -> None:
    worker = FakeWorker(is_connected=False)
    worker.problem = "worker 2 is being started"
    harness = EngineHarness(worker)
    await harness.run()
    assert worker.requests == []
    assert harness.engine.snapshot().reason == "worker 2 is being started"
    harness.engine.on_connected()
    assert worker.requests == [CreateEngine(7, "web", SPEC), RunEngine(7)]
    harness.engine.close()
    assert worker.requests[2:] == [CloseEngine(7)]
    harness.engine.on_notification(EngineEnded(7, None))
    await harness.end()


@pytest.mark.parametrize("command", ["drain", "close"])
@pytest.mark.parametrize("is_running", [True, False])
async def test_an_engine_that_was_never_created_ends_at_once(command: str, *, is_running: bool) -> None:
    harness = EngineHarness(FakeWorker(is_connected=False))
    if is_running:
        await harness.run()
    getattr(harness.engine, command)()
    if not is_running:
        await harness.run()
    await harness.end()
    assert harness.worker.requests == []
    assert harness.worker.engines == set()


async def test_commands_are_sent_to_the_worker() -> None:
    harness = EngineHarness(FakeWorker())
    await harness.run()
    changed = replace(SPEC, log=LogLevel.DEBUG)
    harness.engine.retry()
    harness.engine.set_target_drained("a:1", is_drained=True)
    harness.engine.set_link_drained("5c0a7f678b76a357", is_drained=True)
    harness.engine.apply_live_settings(changed)
    harness.engine.drain(1.5)
    drained = [DrainTarget(7, "a:1", True), DrainLink(7, "5c0a7f678b76a357", True)]
    expected = [RetryEngine(7), *drained, UpdateSpec(7, changed), DrainEngine(7, 1.5)]
    assert harness.worker.requests[2:] == expected
    harness.engine.on_notification(EngineEnded(7, None))
    await harness.end()
    assert harness.engine.spec == changed


async def test_events_reach_the_sink() -> None:
    harness = EngineHarness(FakeWorker())
    event = Event(ts=1.0, tunnel="web", level=LogLevel.INFO, kind=EventKind.LINK, text="there is a link")
    harness.engine.on_notification(EngineEvent(7, event))
    assert harness.events == [event]


async def test_a_crash_in_the_worker_is_raised_with_its_description() -> None:
    harness = EngineHarness(FakeWorker())
    await harness.run()
    harness.engine.on_notification(EngineEnded(7, None, "internal fault: KeyError: 3", ("pool.py:3 take",)))
    with pytest.raises(RemoteEngineError) as caught:
        await harness.end()
    assert describe_crash(caught.value) == "internal fault: KeyError: 3"
    assert short_traceback(caught.value) == ["pool.py:3 take"]
    assert DiscardEngine(7) not in harness.worker.requests


async def test_the_death_of_the_worker_ends_the_engine_with_an_error() -> None:
    harness = EngineHarness(FakeWorker())
    await harness.run()
    harness.worker.is_connected = False
    harness.engine.on_disconnected("worker 2 was killed by SIGKILL")
    with pytest.raises(RemoteEngineError, match="worker 2 was killed by SIGKILL"):
        await harness.end()
    assert len(harness.worker.requests) == 2


async def test_a_worker_that_cannot_be_started_ends_no_engine() -> None:
    harness = EngineHarness(FakeWorker(is_connected=False))
    await harness.run()
    harness.engine.on_disconnected("worker 2 cannot be started")
    await asyncio.sleep(0)
    assert harness.life is not None
    assert not harness.life.done()
    harness.engine.close()
    await harness.end()


async def test_a_cancelled_engine_is_discarded_in_the_worker() -> None:
    harness = EngineHarness(FakeWorker())
    await harness.run()
    assert harness.life is not None
    harness.life.cancel()
    with pytest.raises(asyncio.CancelledError):
        await harness.end()
    assert harness.worker.requests[2:] == [DiscardEngine(7)]
    assert harness.worker.engines == set()


async def test_the_remaining_cooldown_is_computed_locally() -> None:
    engine = EngineHarness(FakeWorker()).engine
    seen = replace(
        stopped_snapshot("web", SPEC), state=State.COOLDOWN, cooldown=CooldownView(remaining_s=2.5, attempt=3)
    )
    began = time.monotonic()
    engine.on_snapshot(seen)
    await wait_until_async(lambda: 0 < engine.snapshot().cooldown.remaining_s < 2.4)
    await wait_until_async(lambda: engine.snapshot().cooldown.remaining_s == 0)
    assert time.monotonic() - began >= 2.49
    assert engine.snapshot().cooldown.attempt == 3


async def test_a_worker_that_does_not_answer_is_shown_as_the_reason() -> None:
    harness = EngineHarness(FakeWorker())
    harness.engine.on_snapshot(replace(stopped_snapshot("web", SPEC), state=State.UP))
    harness.worker.problem = "worker 2 has not answered for 6 s"
    assert harness.engine.snapshot().reason == "worker 2 has not answered for 6 s"
    assert harness.engine.snapshot().state is State.UP
    harness.worker.problem = None
    assert harness.engine.snapshot().reason is None


class SuccessorHarness(EngineHarness):
    """An engine that replaces another one."""

    def __init__(self, worker: FakeWorker) -> None:
        super().__init__(worker, 8)
        self.before = RemoteEngine(7, "web", SPEC, worker, self.events.append)

    async def prepare(self) -> asyncio.Task[None]:
        task = asyncio.create_task(self.engine.prepare(self.before))
        await asyncio.sleep(0)
        return task


async def test_a_prepared_engine_is_run() -> None:
    harness = SuccessorHarness(FakeWorker())
    preparing = await harness.prepare()
    assert harness.worker.requests == [CreateEngine(8, "web", SPEC), PrepareEngine(8, 7)]
    harness.engine.on_notification(EnginePrepared(8))
    await asyncio.wait_for(preparing, GUARD_S)
    await harness.run()
    assert harness.worker.requests[2:] == [RunEngine(8)]
    harness.engine.on_notification(EngineEnded(8, None))
    await harness.end()


async def test_a_bind_error_of_the_worker_is_raised_with_its_errno() -> None:
    harness = SuccessorHarness(FakeWorker())
    preparing = await harness.prepare()
    harness.engine.on_notification(EnginePrepared(8, "cannot listen on 127.0.0.1:1", errno.EACCES))
    with pytest.raises(NetError, match="cannot listen on") as caught:
        await asyncio.wait_for(preparing, GUARD_S)
    assert caught.value.errno == errno.EACCES
    assert harness.worker.engines == set()
    assert DiscardEngine(8) not in harness.worker.requests


async def test_a_crash_while_preparing_is_raised_by_prepare() -> None:
    harness = SuccessorHarness(FakeWorker())
    preparing = await harness.prepare()
    harness.engine.on_notification(EngineEnded(8, None, "internal fault"))
    with pytest.raises(RemoteEngineError):
        await asyncio.wait_for(preparing, GUARD_S)


async def test_preparing_can_be_cancelled() -> None:
    harness = SuccessorHarness(FakeWorker())
    preparing = await harness.prepare()
    preparing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(preparing, GUARD_S)
    assert harness.worker.requests[2:] == [DiscardEngine(8)]
    harness.engine.on_notification(EnginePrepared(8))  # it was under way


async def test_a_predecessor_that_died_with_its_worker_needs_no_handover() -> None:
    harness = SuccessorHarness(FakeWorker())
    preparing = await harness.prepare()
    harness.worker.is_connected = False
    harness.engine.on_disconnected("worker 2 was killed by SIGKILL")
    await asyncio.wait_for(preparing, GUARD_S)
    await harness.run()
    harness.worker.is_connected = True
    harness.engine.on_connected()
    assert harness.worker.requests[2:] == [CreateEngine(8, "web", SPEC), RunEngine(8)]
    harness.engine.close()
    harness.engine.on_notification(EngineEnded(8, None))
    await harness.end()


async def test_without_a_worker_there_is_nothing_to_prepare() -> None:
    harness = SuccessorHarness(FakeWorker(is_connected=False))
    await asyncio.wait_for(await harness.prepare(), GUARD_S)
    assert harness.worker.requests == []

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
    Adopt,
    Close,
    Drain,
    Drop,
    Ended,
    Happened,
    Make,
    Prepare,
    Prepared,
    Retry,
    Run,
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


class FakePost:
    """A worker that writes down its orders."""

    number = 2

    def __init__(self, *, is_there: bool = True) -> None:
        self.is_there = is_there
        self.trouble: str | None = None
        self.orders: list[Any] = []
        self.engines: set[int] = set()

    def admit(self, engine: RemoteEngine) -> None:
        self.engines.add(engine.number)

    def dismiss(self, engine: RemoteEngine) -> None:
        self.engines.discard(engine.number)

    def send(self, order: object) -> None:
        self.orders.append(order)


class Bench:
    """One engine at a post, and its life."""

    def __init__(self, post: FakePost, number: int = 7) -> None:
        self.post = post
        self.events: list[Event] = []
        self.engine = RemoteEngine(number, "web", SPEC, post, self.events.append)
        self.life: asyncio.Task[None] | None = None

    async def run(self) -> None:
        self.life = asyncio.create_task(self.engine.run())
        await asyncio.sleep(0)

    async def end(self) -> None:
        assert self.life is not None
        await asyncio.wait_for(self.life, GUARD_S)


async def test_it_is_made_and_run_and_ends_as_the_worker_says() -> None:
    bench = Bench(FakePost())
    await bench.run()
    assert bench.post.orders == [Make(7, "web", SPEC), Run(7)]
    assert bench.post.engines == {7}
    assert bench.engine.snapshot().state is State.STARTING
    last = replace(stopped_snapshot("web", SPEC), state=State.STOPPED, reason="drained")
    bench.engine.take(Ended(7, last))
    await bench.end()
    assert bench.engine.snapshot() == replace(last, worker=2)
    assert bench.post.engines == set()
    assert len(bench.post.orders) == 2


async def test_it_waits_for_a_worker_that_is_not_there_yet() -> None:
    post = FakePost(is_there=False)
    post.trouble = "worker 2 is being started"
    bench = Bench(post)
    await bench.run()
    assert post.orders == []
    assert bench.engine.snapshot().reason == "worker 2 is being started"
    bench.engine.appear()
    assert post.orders == [Make(7, "web", SPEC), Run(7)]
    bench.engine.close()
    assert post.orders[2:] == [Close(7)]
    bench.engine.take(Ended(7, None))
    await bench.end()


@pytest.mark.parametrize("command", ["drain", "close"])
@pytest.mark.parametrize("is_running", [True, False])
async def test_it_ends_at_once_where_no_worker_ever_had_it(command: str, *, is_running: bool) -> None:
    bench = Bench(FakePost(is_there=False))
    if is_running:
        await bench.run()
    getattr(bench.engine, command)()
    if not is_running:
        await bench.run()
    await bench.end()
    assert bench.post.orders == []
    assert bench.post.engines == set()


async def test_commands_cross_the_border() -> None:
    bench = Bench(FakePost())
    await bench.run()
    changed = replace(SPEC, log=LogLevel.DEBUG)
    bench.engine.retry()
    bench.engine.apply_live_settings(changed)
    bench.engine.drain(1.5)
    assert bench.post.orders[2:] == [Retry(7), Adopt(7, changed), Drain(7, 1.5)]
    bench.engine.take(Ended(7, None))
    await bench.end()
    assert bench.engine.spec == changed


async def test_events_reach_the_sink() -> None:
    bench = Bench(FakePost())
    event = Event(ts=1.0, tunnel="web", level=LogLevel.INFO, kind=EventKind.LINK, text="there is a link")
    bench.engine.take(Happened(7, event))
    assert bench.events == [event]


async def test_a_defect_in_the_worker_is_raised_as_it_was_described() -> None:
    bench = Bench(FakePost())
    await bench.run()
    bench.engine.take(Ended(7, None, "internal fault: KeyError: 3", ("pool.py:3 take",)))
    with pytest.raises(RemoteEngineError) as caught:
        await bench.end()
    assert describe_crash(caught.value) == "internal fault: KeyError: 3"
    assert short_traceback(caught.value) == ["pool.py:3 take"]
    assert Drop(7) not in bench.post.orders


async def test_the_death_of_the_worker_breaks_it() -> None:
    bench = Bench(FakePost())
    await bench.run()
    bench.post.is_there = False
    bench.engine.lost("worker 2 was killed by SIGKILL")
    with pytest.raises(RemoteEngineError, match="worker 2 was killed by SIGKILL"):
        await bench.end()
    assert len(bench.post.orders) == 2


async def test_a_worker_that_cannot_be_started_breaks_nobody() -> None:
    bench = Bench(FakePost(is_there=False))
    await bench.run()
    bench.engine.lost("worker 2 cannot be started")
    await asyncio.sleep(0)
    assert bench.life is not None
    assert not bench.life.done()
    bench.engine.close()
    await bench.end()


async def test_its_task_can_be_taken_away() -> None:
    bench = Bench(FakePost())
    await bench.run()
    assert bench.life is not None
    bench.life.cancel()
    with pytest.raises(asyncio.CancelledError):
        await bench.end()
    assert bench.post.orders[2:] == [Drop(7)]
    assert bench.post.engines == set()


async def test_the_wait_before_the_next_attempt_runs_down_here() -> None:
    engine = Bench(FakePost()).engine
    seen = replace(
        stopped_snapshot("web", SPEC), state=State.COOLDOWN, cooldown=CooldownView(remaining_s=2.5, attempt=3)
    )
    began = time.monotonic()
    engine.look(seen)
    await wait_until_async(lambda: 0 < engine.snapshot().cooldown.remaining_s < 2.4)
    await wait_until_async(lambda: engine.snapshot().cooldown.remaining_s == 0)
    assert time.monotonic() - began >= 2.49
    assert engine.snapshot().cooldown.attempt == 3


async def test_a_worker_that_does_not_answer_is_the_reason_shown() -> None:
    bench = Bench(FakePost())
    bench.engine.look(replace(stopped_snapshot("web", SPEC), state=State.UP))
    bench.post.trouble = "worker 2 has not answered for 6 s"
    assert bench.engine.snapshot().reason == "worker 2 has not answered for 6 s"
    assert bench.engine.snapshot().state is State.UP
    bench.post.trouble = None
    assert bench.engine.snapshot().reason is None


class Succession(Bench):
    """An engine that shall take the place of another."""

    def __init__(self, post: FakePost) -> None:
        super().__init__(post, 8)
        self.before = RemoteEngine(7, "web", SPEC, post, self.events.append)

    async def prepare(self) -> asyncio.Task[None]:
        task = asyncio.create_task(self.engine.prepare(self.before))
        await asyncio.sleep(0)
        return task


async def test_prepared_then_run() -> None:
    bench = Succession(FakePost())
    preparing = await bench.prepare()
    assert bench.post.orders == [Make(8, "web", SPEC), Prepare(8, 7)]
    bench.engine.take(Prepared(8))
    await asyncio.wait_for(preparing, GUARD_S)
    await bench.run()
    assert bench.post.orders[2:] == [Run(8)]
    bench.engine.take(Ended(8, None))
    await bench.end()


async def test_what_cannot_be_bound_is_refused_with_the_same_error() -> None:
    bench = Succession(FakePost())
    preparing = await bench.prepare()
    bench.engine.take(Prepared(8, "cannot listen on 127.0.0.1:1", errno.EACCES))
    with pytest.raises(NetError, match="cannot listen on") as caught:
        await asyncio.wait_for(preparing, GUARD_S)
    assert caught.value.errno == errno.EACCES
    assert bench.post.engines == set()
    assert Drop(8) not in bench.post.orders


async def test_a_defect_while_preparing_is_raised_there() -> None:
    bench = Succession(FakePost())
    preparing = await bench.prepare()
    bench.engine.take(Ended(8, None, "internal fault"))
    with pytest.raises(RemoteEngineError):
        await asyncio.wait_for(preparing, GUARD_S)


async def test_preparing_can_be_given_up() -> None:
    bench = Succession(FakePost())
    preparing = await bench.prepare()
    preparing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(preparing, GUARD_S)
    assert bench.post.orders[2:] == [Drop(8)]
    bench.engine.take(Prepared(8))  # it was under way


async def test_a_predecessor_that_died_with_its_worker_leaves_nothing() -> None:
    bench = Succession(FakePost())
    preparing = await bench.prepare()
    bench.post.is_there = False
    bench.engine.lost("worker 2 was killed by SIGKILL")
    await asyncio.wait_for(preparing, GUARD_S)
    await bench.run()
    bench.post.is_there = True
    bench.engine.appear()
    assert bench.post.orders[2:] == [Make(8, "web", SPEC), Run(8)]
    bench.engine.close()
    bench.engine.take(Ended(8, None))
    await bench.end()


async def test_there_is_nothing_to_prepare_where_no_worker_is() -> None:
    bench = Succession(FakePost(is_there=False))
    await asyncio.wait_for(await bench.prepare(), GUARD_S)
    assert bench.post.orders == []

"""The worker pool: engines are spread evenly, workers that die or hang are replaced, and none is left at the end."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.supervisor.crash_reports import RemoteEngineError
from orchestrator.workers.pool import Command, WorkerPool, WorkerProcess, WorkerTiming, choose_worker, worker_command
from orchestrator.workers.remote import RemoteEngine
from tests.support.scale import GUARD_S
from tests.support.waiting import wait_until_async
from tunnel.model.events import Event, EventKind
from tunnel.model.options import make_spec
from tunnel.model.spec import LogLevel
from tunnel.model.state import State
from tunnel.model.url import parse_url

TIMEOUT_S = 2 * GUARD_S
SPEC = make_spec(parse_url("client://k@127.0.0.1:9/127.0.0.1:10?client_cooldown=60s"), environ={})


@given(workers=st.integers(1, 20), tunnels=st.integers(0, 100))
def test_new_tunnels_are_spread_evenly(workers: int, tunnels: int) -> None:
    loads = [0] * workers
    for _ in range(tunnels):
        loads[choose_worker(None, loads)] += 1
    assert max(loads) - min(loads) <= 1


@given(loads=st.lists(st.integers(0, 50), min_size=1, max_size=20), data=st.data())
def test_a_tunnel_stays_with_its_worker(loads: list[int], data: st.DataObject) -> None:
    home = data.draw(st.integers(0, len(loads) - 1))
    assert choose_worker(home, loads) == home
    assert choose_worker(len(loads), loads) == loads.index(min(loads))


def test_a_worker_imports_nothing_from_the_working_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f":.:/one:{tempfile.gettempdir()}")
    monkeypatch.chdir(tempfile.gettempdir())
    arguments, environ = worker_command(5)
    assert arguments[1:] == ["-P", "-m", "orchestrator.workers.worker", "5"]
    assert environ["PYTHONPATH"].split(":")[-1] == "/one"
    assert tempfile.gettempdir() not in environ["PYTHONPATH"].split(":")


class EmittedEvents:
    """What the pool emitted the supervisor's log."""

    def __init__(self) -> None:
        self.lines: list[tuple[LogLevel, str]] = []
        self.pids: dict[int, int] = {}
        self.active: list[str] = []

    def __call__(self, level: LogLevel, kind: EventKind, text: str, **data: object) -> None:
        assert kind is EventKind.WORKER
        self.lines.append((level, text))
        if "pid" in data:
            worker, pid = data["worker"], data["pid"]
            assert isinstance(worker, int)
            assert isinstance(pid, int)
            self.pids[worker] = pid

    def contain(self, part: str) -> bool:
        return any(part in text for _, text in self.lines)


@asynccontextmanager
async def running_pool(
    count: int, emitted: EmittedEvents, timing: WorkerTiming | None = None
) -> AsyncIterator[WorkerPool]:
    """A running pool; none of its processes is left afterwards."""
    async with WorkerPool(count, emitted, emitted.active.append, timing=timing).running() as pool:
        yield pool
    assert not any(map(is_alive, emitted.pids.values()))


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def run(
    pool: WorkerPool, name: str, sink: Callable[[Event], None] | None = None
) -> tuple[RemoteEngine, asyncio.Task[None]]:
    engine = pool.make_engine(name, SPEC, sink or (lambda _: None))
    life = asyncio.create_task(engine.run())
    await wait_until_async(
        lambda: engine.snapshot().state is State.COOLDOWN and not engine._worker.problem, within=TIMEOUT_S
    )
    return engine, life


async def test_engines_run_in_separate_processes() -> None:
    emitted, events = EmittedEvents(), list[Event]()
    async with running_pool(2, emitted) as pool:
        engine, life = await run(pool, "one", events.append)
        other, other_life = await run(pool, "two")
        assert (engine.snapshot().worker, other.snapshot().worker) == (1, 2)
        assert {engine.name, other.name} <= set(emitted.active), "a changed snapshot marks its tunnel as busy"
        assert len({os.getpid(), *emitted.pids.values()}) == 3
        assert any("refused" in event.text for event in events)
        for e, task in ((engine, life), (other, other_life)):
            e.drain(0.0)
            await asyncio.wait_for(task, TIMEOUT_S)
            assert e.snapshot().state is State.STOPPED


async def test_a_worker_that_is_killed_is_replaced_and_the_others_are_not_affected() -> None:
    emitted = EmittedEvents()
    async with running_pool(2, emitted) as pool:
        _, life = await run(pool, "one")
        other, other_life = await run(pool, "two")
        first = dict(emitted.pids)
        os.kill(first[1], signal.SIGKILL)
        with pytest.raises(RemoteEngineError, match="worker 1 was killed by SIGKILL"):
            await asyncio.wait_for(life, TIMEOUT_S)
        again, _ = await run(pool, "one")
        assert again.snapshot().worker == 1
        assert emitted.pids[1] != first[1]
        assert emitted.pids[2] == first[2]
        assert not other_life.done()
        await wait_until_async(lambda: other.snapshot().state is State.COOLDOWN)
        assert emitted.contain("worker 1 was killed by SIGKILL; the next one starts in")


async def test_a_worker_that_hangs_is_reported_then_killed_then_replaced() -> None:
    emitted = EmittedEvents()
    async with running_pool(1, emitted, WorkerTiming(interval_s=0.3)) as pool:
        engine, life = await run(pool, "one")
        first = emitted.pids[1]
        os.kill(first, signal.SIGSTOP)
        await wait_until_async(
            lambda: "worker 1 has not answered for" in (engine.snapshot().reason or ""), within=TIMEOUT_S
        )
        assert engine.snapshot().state in {State.COOLDOWN, State.CONNECTING}
        with pytest.raises(RemoteEngineError, match=r"worker 1 did not answer for .* and was killed"):
            await asyncio.wait_for(life, TIMEOUT_S)
        await run(pool, "one")
        assert emitted.pids[1] != first


async def test_a_worker_that_hangs_does_not_delay_the_shutdown() -> None:
    emitted = EmittedEvents()
    async with running_pool(1, emitted) as pool:
        await run(pool, "one")
        os.kill(emitted.pids[1], signal.SIGSTOP)


async def test_workers_ignore_process_signals_sent_to_the_whole_group() -> None:
    emitted = EmittedEvents()
    async with running_pool(1, emitted) as pool:
        _, life = await run(pool, "one")
        assert os.getpgid(emitted.pids[1]) == emitted.pids[1]
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(emitted.pids[1], number)
        engine, _ = await run(pool, "two")
        assert engine.snapshot().worker == 1
        assert not life.done()


@asynccontextmanager
async def running_worker(emitted: EmittedEvents, command: Command) -> AsyncIterator[WorkerProcess]:
    worker = WorkerProcess(1, emitted, emitted.active.append, command=command)
    task = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        task.cancel()
        await asyncio.wait([task])


_SENDS_JUNK = "import os, sys; os.write(int(sys.argv[1]), b'\\0\\0\\0\\4junk'); sys.stdin.read()"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["/nowhere/python"], "worker 1 cannot be started: no such file or directory; the next one starts in"),
        (["sh", "-c", "exit 3"], "worker 1 ended by itself with exit code 3; the next one starts in"),
        ([sys.executable, "-c", _SENDS_JUNK], "worker 1 was ended: it runs another version"),
    ],
)
async def test_a_worker_that_cannot_run_is_started_again_with_a_reason(arguments: list[str], says: str) -> None:
    emitted = EmittedEvents()
    async with running_worker(emitted, lambda fd: ([*arguments, str(fd)], dict(os.environ))) as worker:
        engine = RemoteEngine(1, "one", SPEC, worker, lambda _: None)
        life = asyncio.create_task(engine.run())
        await wait_until_async(lambda: len([text for _, text in emitted.lines if says in text]) >= 2, within=TIMEOUT_S)
        assert all(level is LogLevel.ERROR for level, _ in emitted.lines)
        assert "worker 1" in (engine.snapshot().reason or "")
        engine.close()
        await asyncio.wait([life], timeout=TIMEOUT_S)
        assert life.done()
        life.exception()


async def test_what_a_worker_writes_to_standard_error_becomes_events() -> None:
    emitted = EmittedEvents()
    script = "echo nodepass-orch: the first >&2; head -c 100000 /dev/zero >&2; echo >&2; echo the last >&2; exit 3"
    async with running_worker(emitted, lambda _: (["sh", "-c", script], dict(os.environ))):
        await wait_until_async(lambda: emitted.contain("worker 1 ended by itself with exit code 3"), within=TIMEOUT_S)
    assert (LogLevel.WARN, "worker 1: the first") in emitted.lines
    assert (LogLevel.WARN, "worker 1: the last") in emitted.lines


async def test_an_internal_error_in_one_worker_leads_to_the_next() -> None:
    def broken(_: int) -> tuple[list[str], dict[str, str]]:
        raise KeyError("inside")

    emitted = EmittedEvents()
    async with running_worker(emitted, broken):
        await wait_until_async(lambda: emitted.contain("worker 1 failed: internal fault: KeyError"), within=TIMEOUT_S)


async def test_a_sink_that_raises_ends_no_worker() -> None:
    emitted = EmittedEvents()

    def broken(_: Event) -> None:
        raise RuntimeError("cannot listen")

    async with running_pool(1, emitted) as pool:
        await run(pool, "one", broken)
        assert emitted.contain("internal fault: RuntimeError: cannot listen")
        engine, _ = await run(pool, "two")
        assert engine.snapshot().worker == 1

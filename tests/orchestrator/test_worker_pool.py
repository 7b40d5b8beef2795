"""The crew: engines spread evenly, workers that die or stand still replaced, and none of them left at the end."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.supervisor.crash_reports import RemoteEngineError
from orchestrator.workers import pool as crews
from orchestrator.workers.pool import WorkerPool, WorkerProcess, command_line, place
from orchestrator.workers.remote import RemoteEngine
from tests.support.scale import GUARD_S
from tests.support.waiting import wait_until_async
from tunnel.model.events import Event
from tunnel.model.options import make_spec
from tunnel.model.spec import LogLevel
from tunnel.model.state import State
from tunnel.model.url import parse_url

PATIENCE = 2 * GUARD_S
SPEC = make_spec(parse_url("client://k@127.0.0.1:9/127.0.0.1:9?client_cooldown=60s"), environ={})


@given(workers=st.integers(1, 20), tunnels=st.integers(0, 100))
def test_new_tunnels_are_spread_evenly(workers: int, tunnels: int) -> None:
    loads = [0] * workers
    for _ in range(tunnels):
        loads[place(None, loads)] += 1
    assert max(loads) - min(loads) <= 1


@given(loads=st.lists(st.integers(0, 50), min_size=1, max_size=20), data=st.data())
def test_a_tunnel_stays_where_it_was(loads: list[int], data: st.DataObject) -> None:
    home = data.draw(st.integers(0, len(loads) - 1))
    assert place(home, loads) == home
    assert place(len(loads), loads) == loads.index(min(loads))


def test_a_worker_finds_the_modules_where_its_supervisor_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", ["", "/one", "/two"])
    arguments, environ = command_line(5)
    assert arguments[1:] == ["-P", "-m", "orchestrator.workers.worker", "5"]
    assert environ["PYTHONPATH"] == ".:/one:/two"


class Told:
    """What the crew told the supervisor's log."""

    def __init__(self) -> None:
        self.lines: list[tuple[LogLevel, str]] = []
        self.pids: dict[int, int] = {}
        self.stirred: list[str] = []

    def __call__(self, level: LogLevel, kind: str, text: str, **data: int) -> None:
        assert kind == "worker"
        self.lines.append((level, text))
        if "pid" in data:
            self.pids[data["worker"]] = data["pid"]

    def says(self, part: str) -> bool:
        return any(part in text for _, text in self.lines)


@asynccontextmanager
async def crew_of(count: int, told: Told) -> AsyncIterator[WorkerPool]:
    """A crew at work; afterwards none of its processes lives."""
    async with WorkerPool(count, told, told.stirred.append).running() as crew:
        yield crew
    assert not any(map(lives, told.pids.values()))


def lives(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def run(
    crew: WorkerPool, name: str, sink: Callable[[Event], None] | None = None
) -> tuple[RemoteEngine, asyncio.Task[None]]:
    engine = crew.make_engine(name, SPEC, sink or (lambda _: None))
    life = asyncio.create_task(engine.run())
    await wait_until_async(
        lambda: engine.snapshot().state is State.COOLDOWN and not engine._post.trouble, within=PATIENCE
    )
    return engine, life


async def test_engines_live_in_processes_of_their_own() -> None:
    told, events = Told(), list[Event]()
    async with crew_of(2, told) as crew:
        engine, life = await run(crew, "one", events.append)
        other, other_life = await run(crew, "two")
        assert (engine.snapshot().worker, other.snapshot().worker) == (1, 2)
        assert {engine.name, other.name} <= set(told.stirred), "whoever looks on is told what a worker said"
        assert len({os.getpid(), *told.pids.values()}) == 3
        assert any("refused" in event.text for event in events)
        for e, task in ((engine, life), (other, other_life)):
            e.drain(0.0)
            await asyncio.wait_for(task, PATIENCE)
            assert e.snapshot().state is State.STOPPED


async def test_a_worker_that_is_killed_is_replaced_and_its_neighbour_does_not_notice() -> None:
    told = Told()
    async with crew_of(2, told) as crew:
        _, life = await run(crew, "one")
        other, other_life = await run(crew, "two")
        first = dict(told.pids)
        os.kill(first[1], signal.SIGKILL)
        with pytest.raises(RemoteEngineError, match="worker 1 was killed by SIGKILL"):
            await asyncio.wait_for(life, PATIENCE)
        again, _ = await run(crew, "one")
        assert again.snapshot().worker == 1
        assert told.pids[1] != first[1]
        assert told.pids[2] == first[2]
        assert not other_life.done()
        await wait_until_async(lambda: other.snapshot().state is State.COOLDOWN)
        assert told.says("worker 1 was killed by SIGKILL; the next one starts in")


async def test_a_worker_that_stands_still_is_shown_then_killed_then_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told()
    monkeypatch.setattr(crews, "TICK", 0.3)
    async with crew_of(1, told) as crew:
        engine, life = await run(crew, "one")
        first = told.pids[1]
        os.kill(first, signal.SIGSTOP)
        await wait_until_async(
            lambda: "worker 1 has not answered for" in (engine.snapshot().reason or ""), within=PATIENCE
        )
        assert engine.snapshot().state in {State.COOLDOWN, State.CONNECTING}
        with pytest.raises(RemoteEngineError, match=r"worker 1 did not answer for .* and was killed"):
            await asyncio.wait_for(life, PATIENCE)
        await run(crew, "one")
        assert told.pids[1] != first


async def test_a_worker_that_stands_still_does_not_hold_up_the_end() -> None:
    told = Told()
    async with crew_of(1, told) as crew:
        await run(crew, "one")
        os.kill(told.pids[1], signal.SIGSTOP)


async def test_what_terminals_and_service_managers_send_to_all_is_not_for_workers() -> None:
    told = Told()
    async with crew_of(1, told) as crew:
        _, life = await run(crew, "one")
        assert os.getpgid(told.pids[1]) == told.pids[1]
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(told.pids[1], number)
        engine, _ = await run(crew, "two")
        assert engine.snapshot().worker == 1
        assert not life.done()


@asynccontextmanager
async def kept(told: Told) -> AsyncIterator[WorkerProcess]:
    worker = WorkerProcess(1, told, told.stirred.append)
    task = asyncio.create_task(worker.keep())
    try:
        yield worker
    finally:
        task.cancel()
        await asyncio.wait([task])


_SPEAKS = "import os, sys; os.write(int(sys.argv[1]), b'\\0\\0\\0\\4junk'); sys.stdin.read()"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["/nowhere/python"], "worker 1 cannot be started: no such file or directory; the next one starts in"),
        (["sh", "-c", "exit 3"], "worker 1 ended by itself with exit code 3; the next one starts in"),
        ([sys.executable, "-c", _SPEAKS], "worker 1 was ended: it speaks differently"),
    ],
)
async def test_a_worker_that_cannot_work_is_tried_again_with_a_reason(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str
) -> None:
    monkeypatch.setattr(crews, "command_line", lambda fd: ([*arguments, str(fd)], dict(os.environ)))
    told = Told()
    async with kept(told) as worker:
        engine = RemoteEngine(1, "one", SPEC, worker, lambda _: None)
        life = asyncio.create_task(engine.run())
        await wait_until_async(lambda: len([text for _, text in told.lines if says in text]) >= 2, within=PATIENCE)
        assert all(level is LogLevel.ERROR for level, _ in told.lines)
        assert "worker 1" in (engine.snapshot().reason or "")
        engine.close()
        await asyncio.wait([life], timeout=PATIENCE)
        assert life.done()
        life.exception()


async def test_a_defect_of_ours_in_one_worker_leads_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: int) -> tuple[list[str], dict[str, str]]:
        raise KeyError("inside")

    monkeypatch.setattr(crews, "command_line", broken)
    told = Told()
    async with kept(told):
        await wait_until_async(lambda: told.says("worker 1 was given up: internal fault: KeyError"), within=PATIENCE)


async def test_a_sink_that_breaks_costs_nobody_a_worker() -> None:
    told = Told()

    def broken(_: Event) -> None:
        raise RuntimeError("cannot listen")

    async with crew_of(1, told) as crew:
        await run(crew, "one", broken)
        assert told.says("internal fault: RuntimeError: cannot listen")
        engine, _ = await run(crew, "two")
        assert engine.snapshot().worker == 1

"""The supervisor's workers: spreads engines over them, watches them, and starts another where one died."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Final

from orchestrator.supervisor.crash_reports import describe_crash, restart_delay
from orchestrator.workers.messages import Beat, Channel, Order, Report, Views
from orchestrator.workers.remote import RemoteEngine
from tunnel.model.events import EventKind
from tunnel.model.spec import LogLevel
from tunnel.runtime import sockets

if TYPE_CHECKING:
    from tunnel.model.events import EventSink
    from tunnel.model.spec import TunnelSpec

Tell = Callable[..., None]
"""EventBus.tell."""

TICK: Final = 1.0
"""Seconds between two looks at whether a worker said anything; it does so once in each when all is well."""
SUSPECT: Final = 3
"""Ticks of silence after which it is said aloud."""
DEAD: Final = 15
"""Ticks of silence after which a worker is killed."""

_STEADY: Final = 60.0  # seconds after which a worker that dies is not one that dies at once
_PARTING: Final = 2.0  # seconds that a worker has to end by itself


def place(home: int | None, loads: Sequence[int]) -> int:
    """Which worker gets an engine, counted from 0: the tunnel's home if it has one, else the least loaded."""
    if home is not None and home < len(loads):
        return home
    return min(range(len(loads)), key=lambda number: loads[number])


def command_line(fd: int) -> tuple[list[str], dict[str, str]]:
    """How a worker is started, and its environment: it finds every module where this process does, nowhere else."""
    paths = os.pathsep.join(path or "." for path in sys.path)
    return [sys.executable, "-P", "-m", "orchestrator.workers.worker", str(fd)], {**os.environ, "PYTHONPATH": paths}


class WorkerProcess:
    """One worker: a process, and after its death the next one."""

    def __init__(self, number: int, tell: Tell, stir: Callable[[str], None]) -> None:
        self.number = number
        self.trouble: str | None = f"worker {number} is being started"
        self.engines: dict[int, RemoteEngine] = {}
        self._tell = tell
        self._stir = stir
        self._channel: Channel | None = None
        self._silence = 0
        self._pid = 0

    @property
    def is_there(self) -> bool:
        """Whether there is a process that takes orders."""
        return self._channel is not None

    def admit(self, engine: RemoteEngine) -> None:
        """Pass on to the engine what the worker says about it, and tell it when the worker comes and goes."""
        self.engines[engine.number] = engine

    def dismiss(self, engine: RemoteEngine) -> None:
        """Do so no more."""
        self.engines.pop(engine.number, None)

    def send(self, order: Order) -> None:
        """Tell the worker, if it is there."""
        if self._channel is not None:
            self._channel.send(order)

    async def keep(self) -> None:
        """See to it that there is a process, until cancelled; none is left then."""
        breaks = 0
        while True:
            began = time.monotonic()
            try:
                reason = await self._live()
            except OSError as error:
                reason = f"worker {self.number} cannot be started: {sockets.describe_error(error)}"
            except Exception as error:  # noqa: BLE001  whatever is wrong with one worker, there has to be a next
                reason = f"worker {self.number} was given up: {describe_crash(error)}"
            breaks = 1 if time.monotonic() - began > _STEADY else breaks + 1
            pause = restart_delay(breaks, random.uniform)
            self.trouble = reason
            text = f"{reason}; the next one starts in {pause:.1f} s"
            self._tell(LogLevel.ERROR, EventKind.WORKER, text, worker=self.number, tunnels=len(self.engines))
            for engine in tuple(self.engines.values()):
                engine.lost(reason)
            await asyncio.sleep(pause)

    async def _live(self) -> str:
        """The life of one process; why it is over."""
        loop = asyncio.get_running_loop()
        lost: asyncio.Future[str | None] = loop.create_future()
        channel = Channel(self._take, lambda fault: None if lost.done() else lost.set_result(fault))
        self._silence = 0
        process, border = await _start()
        self._pid = process.pid
        watching = asyncio.create_task(self._watch(process))
        try:
            await loop.create_unix_connection(lambda: channel, sock=border)
            self._channel = channel
            for engine in tuple(self.engines.values()):
                engine.appear()
            fault = await lost
        finally:
            self._channel = None
            watching.cancel()
            channel.close()
            await _end(process)
            channel.abort()
        return self._cause_of_death(process, fault)

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        """Count ticks, not seconds: after a sleep of the whole machine, or of this process, nobody was silent."""
        while self._silence < DEAD:
            await asyncio.sleep(TICK)
            self._silence += 1
            if self._silence > SUSPECT:
                self.trouble = f"worker {self.number} has not answered for {self._silence * TICK:g} s"
            if self._silence == SUSPECT + 1:
                self._tell(LogLevel.WARN, EventKind.WORKER, self.trouble or "", worker=self.number, pid=self._pid)
        _kill(process)

    def _take(self, report: Report) -> None:
        if self.trouble:
            text = f"worker {self.number} is at work as process {self._pid}"
            self._tell(LogLevel.INFO, EventKind.WORKER, text, worker=self.number, pid=self._pid)
        self._silence, self.trouble = 0, None
        if isinstance(report, Views):
            for number, seen in report.views:
                if (engine := self.engines.get(number)) is not None:
                    engine.look(seen)
                    self._stir(engine.name)
        elif not isinstance(report, Beat) and (engine := self.engines.get(report.engine)) is not None:
            try:
                engine.take(report)
            except Exception as error:  # noqa: BLE001  a defect in what listens to one engine must not cost the others theirs
                self._tell(LogLevel.ERROR, EventKind.WORKER, describe_crash(error), worker=self.number)

    def _cause_of_death(self, process: asyncio.subprocess.Process, fault: str | None) -> str:
        name, code = f"worker {self.number}", process.returncode or 0
        if fault is not None:
            return f"{name} was ended: {fault}"
        if self._silence >= DEAD:
            return f"{name} did not answer for {DEAD * TICK:g} s and was killed"
        if code < 0:
            return f"{name} was killed by {signal.Signals(-code).name}"
        return f"{name} ended by itself with exit code {code}"


async def _start() -> tuple[asyncio.subprocess.Process, socket.socket]:
    """A new worker process, and our end of the socket that it was given. Raises OSError."""
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            arguments, environ = command_line(theirs.fileno())
            process = await asyncio.create_subprocess_exec(
                *arguments,
                env=environ,
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                process_group=0,  # what the terminal sends to all is for the supervisor to pass on
            )
        except BaseException:
            ours.close()
            raise
    return process, ours


async def _end(process: asyncio.subprocess.Process) -> None:
    """Wait for a process that has been left alone, or kill it."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_PARTING):
            await process.wait()
    _kill(process)
    await process.wait()


def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()


class WorkerPool:
    """All workers."""

    def __init__(self, count: int, tell: Tell, stir: Callable[[str], None]) -> None:
        """``stir`` is told the names of tunnels that are not as they were."""
        self._workers = [WorkerProcess(number, tell, stir) for number in range(1, count + 1)]
        self._homes: dict[str, int] = {}
        self._numbers = itertools.count(1)

    def make_engine(self, name: str, spec: TunnelSpec, sink: EventSink) -> RemoteEngine:
        """An EngineFactory: the engine runs in one of the workers, the same for all engines of a tunnel."""
        home = place(self._homes.get(name), [len(worker.engines) for worker in self._workers])
        self._homes[name] = home
        return RemoteEngine(next(self._numbers), name, spec, self._workers[home], sink)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[WorkerPool]:
        """The crew with its processes; afterwards none of them is left."""
        tasks = [asyncio.create_task(worker.keep(), name=f"worker {worker.number}") for worker in self._workers]
        try:
            yield self
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

"""The supervisor's worker processes: distributes engines over them, monitors them, and replaces one that died."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Concatenate, Final

from orchestrator.supervisor.crash_reports import describe_crash, restart_delay
from orchestrator.workers.messages import (
    NOTIFICATION_KINDS,
    IpcChannel,
    Notification,
    Request,
    SnapshotBatch,
    StartAccessLog,
    VisitorsLeft,
    WorkerAlive,
)
from orchestrator.workers.remote import RemoteEngine
from tunnel.model.events import EventKind
from tunnel.model.spec import LogLevel, Role
from tunnel.runtime import sockets
from tunnel.runtime.python_programs import module_command, python_environment

if TYPE_CHECKING:
    from tunnel.model.address import Address
    from tunnel.model.events import EventSink
    from tunnel.model.spec import TunnelSpec

Emit = Callable[Concatenate[LogLevel, EventKind, str, ...], None]
"""EventBus.emit."""

OnVisitorsLeft = Callable[[bytes, int, int], None]
"""Receives lines of the access log, their number, and the number of lines that the worker has lost."""

Command = Callable[[int], tuple[list[str], dict[str, str]]]
"""The arguments and the environment of a worker process, for the number of its socket."""


@dataclass(frozen=True, slots=True)
class WorkerTiming:
    """When a worker that sends nothing is reported, and when it is killed; a healthy one sends in every interval."""

    interval_s: float = 1.0
    report_after: int = 3
    """silent intervals"""
    kill_after: int = 15
    """silent intervals"""
    kill_at_start_after: int = 60
    """silent intervals of a worker that has not sent anything yet: on a busy host it takes long to start"""
    stable_after_s: float = 60.0
    """a worker that lived this long before it died starts a new series of deaths"""
    exit_timeout_s: float = 2.0
    """for a worker to end by itself once its channel is closed"""


def choose_worker(home: int | None, loads: Sequence[int]) -> int:
    """The index of the worker that gets an engine: its home if the tunnel or port has one, else the least loaded."""
    if home is not None and home < len(loads):
        return home
    return min(range(len(loads)), key=lambda number: loads[number])


def worker_command(fd: int) -> tuple[list[str], dict[str, str]]:
    """The command of a worker, and its environment."""
    return module_command("orchestrator.workers.worker", str(fd)), python_environment(os.environ)


class WorkerProcess:
    """One worker: a process, and after its death the next one. A WorkerHandle for its engines."""

    def __init__(
        self,
        number: int,
        emit: Emit,
        notify_activity: Callable[[str], None],
        *,
        timing: WorkerTiming | None = None,
        command: Command = worker_command,
        on_visitors_left: OnVisitorsLeft | None = None,
    ) -> None:
        self._number = number
        self._emit = emit
        self._notify_activity = notify_activity
        self._timing = timing or WorkerTiming()
        self._command = command
        self._on_visitors_left = on_visitors_left
        self._engines: dict[int, RemoteEngine] = {}
        self._problem: str | None = f"worker {number} is being started"
        self._channel: IpcChannel | None = None
        self._silent_intervals = 0
        self._kill_after = self._timing.kill_at_start_after  # silent intervals of the present process
        self._pid = 0

    @property
    def number(self) -> int:
        """The worker's number, from 1."""
        return self._number

    @property
    def problem(self) -> str | None:
        """Why the worker does not answer, in a sentence; None while it does."""
        return self._problem

    @property
    def is_connected(self) -> bool:
        """Whether there is a process that takes requests."""
        return self._channel is not None

    @property
    def load(self) -> int:
        """The number of its engines."""
        return len(self._engines)

    def attach(self, engine: RemoteEngine) -> None:
        """Forward the worker's notifications to this engine, and its coming and going."""
        self._engines[engine.number] = engine

    def detach(self, engine: RemoteEngine) -> None:
        """Stop forwarding to this engine."""
        self._engines.pop(engine.number, None)

    def send(self, request: Request) -> None:
        """Send a request, if there is a process."""
        if self._channel is not None:
            self._channel.send(request)

    async def run(self) -> None:
        """Keep a process running until cancelled; no process is left then."""
        deaths = 0
        while True:
            started_at = time.monotonic()
            try:
                reason = await self._run_process()
            except OSError as error:
                reason = f"worker {self._number} cannot be started: {sockets.describe_error(error)}"
            except Exception as error:  # noqa: BLE001  whatever is wrong with one process, there has to be a next
                reason = f"worker {self._number} failed: {describe_crash(error)}"
            deaths = 1 if time.monotonic() - started_at > self._timing.stable_after_s else deaths + 1
            pause_s = restart_delay(deaths, random.uniform)
            self._problem = reason
            text = f"{reason}; the next one starts in {pause_s:.1f} s"
            self._emit(LogLevel.ERROR, EventKind.WORKER, text, worker=self._number, tunnels=len(self._engines))
            for engine in tuple(self._engines.values()):
                engine.on_disconnected(reason)
            await asyncio.sleep(pause_s)

    async def _run_process(self) -> str:
        """Run one process; why it ended."""
        lost: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        channel = IpcChannel(
            NOTIFICATION_KINDS,
            self._on_notification,
            lambda fault: None if lost.done() else lost.set_result(fault),
        )
        self._silent_intervals, self._kill_after = 0, self._timing.kill_at_start_after
        process, connection = await _start(self._command)
        self._pid = process.pid
        monitoring = asyncio.create_task(self._monitor(process))
        reporting = asyncio.create_task(self._report_messages(process.stderr))
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: channel, sock=connection)
            self._channel = channel
            if self._on_visitors_left is not None:
                channel.send(StartAccessLog())
            for engine in tuple(self._engines.values()):
                engine.on_connected()
            fault = await lost
        finally:
            self._channel = None
            monitoring.cancel()
            channel.close()
            await _end(process, self._timing.exit_timeout_s)
            channel.abort()
            await asyncio.wait({reporting}, timeout=self._timing.exit_timeout_s)
            reporting.cancel()
        return self._describe_end(process, fault)

    async def _monitor(self, process: asyncio.subprocess.Process) -> None:
        """Count intervals, not seconds: after the machine was suspended, or this process, no worker was silent."""
        timing = self._timing
        while self._silent_intervals < self._kill_after:
            await asyncio.sleep(timing.interval_s)
            self._silent_intervals += 1
            if self._silent_intervals > timing.report_after:
                silent_s = self._silent_intervals * timing.interval_s
                self._problem = f"worker {self._number} has not answered for {silent_s:g} s"
            if self._silent_intervals == timing.report_after + 1:
                self._emit(LogLevel.WARN, EventKind.WORKER, self._problem or "", worker=self._number, pid=self._pid)
        _kill(process)

    async def _report_messages(self, messages: asyncio.StreamReader | None) -> None:
        """Emit what a process writes to standard error. If it inherited the log, a rotated file would stay open."""
        while messages is not None and (line := await _read_line(messages)):
            text = line.decode(errors="replace").strip().removeprefix("nodepass-orch: ")
            self._emit(LogLevel.WARN, EventKind.WORKER, f"worker {self._number}: {text}", worker=self._number)

    def _on_notification(self, notification: Notification) -> None:
        if self._problem:
            text = f"worker {self._number} runs as process {self._pid}"
            self._emit(LogLevel.INFO, EventKind.WORKER, text, worker=self._number, pid=self._pid)
        self._silent_intervals, self._kill_after, self._problem = 0, self._timing.kill_after, None
        if isinstance(notification, SnapshotBatch):
            for number, seen in notification.snapshots:
                if (engine := self._engines.get(number)) is not None:
                    engine.on_snapshot(seen)
                    self._notify_activity(engine.name)
        elif isinstance(notification, VisitorsLeft):
            if self._on_visitors_left is not None:
                self._on_visitors_left(notification.data, notification.lines, notification.lost)
        elif not isinstance(notification, WorkerAlive):
            engine = self._engines.get(notification.engine)
            if engine is None:
                return
            try:
                engine.on_notification(notification)
            except Exception as error:  # noqa: BLE001  a crash in the sink of one engine must not affect the others
                self._emit(LogLevel.ERROR, EventKind.WORKER, describe_crash(error), worker=self._number)

    def _describe_end(self, process: asyncio.subprocess.Process, fault: str | None) -> str:
        name, code = f"worker {self._number}", process.returncode or 0
        if fault is not None:
            return f"{name} was ended: {fault}"
        if self._silent_intervals >= self._kill_after:
            return f"{name} did not answer for {self._kill_after * self._timing.interval_s:g} s and was killed"
        if code < 0:
            return f"{name} was killed by {signal.Signals(-code).name}"
        return f"{name} ended by itself with exit code {code}"


async def _start(command: Command) -> tuple[asyncio.subprocess.Process, socket.socket]:
    """Start a worker process; returns our end of the socket that it inherits. Raises OSError."""
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            arguments, environ = command(theirs.fileno())
            process = await asyncio.create_subprocess_exec(
                *arguments,
                env=environ,
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                process_group=0,  # the supervisor forwards what a terminal sends to all
            )
        except BaseException:
            ours.close()
            raise
    return process, ours


async def _read_line(stream: asyncio.StreamReader) -> bytes:
    """Return the next line, without a part that is too long for the buffer; nothing at the end of the stream."""
    while True:
        with contextlib.suppress(ValueError):  # the buffer was full
            return await stream.readline()


async def _end(process: asyncio.subprocess.Process, timeout_s: float) -> None:
    """Wait for a process whose channel is closed, or kill it."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await process.wait()
    _kill(process)
    await process.wait()


def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()


class WorkerPool:
    """All worker processes of a supervisor."""

    def __init__(
        self,
        count: int,
        emit: Emit,
        notify_activity: Callable[[str], None],
        *,
        timing: WorkerTiming | None = None,
        on_visitors_left: OnVisitorsLeft | None = None,
    ) -> None:
        """``notify_activity`` is called with the names of tunnels whose snapshots changed.

        ``on_visitors_left`` receives the lines of the access log; without it there is none.
        """
        numbers = range(1, count + 1)
        self._workers = [
            WorkerProcess(number, emit, notify_activity, timing=timing, on_visitors_left=on_visitors_left)
            for number in numbers
        ]
        self._homes: dict[str | Address, int] = {}  # by the tunnel's name, and by the address of a server's port
        self._numbers: Final = itertools.count(1)

    def make_engine(self, name: str, spec: TunnelSpec, sink: EventSink) -> RemoteEngine:
        """An EngineFactory: the engine runs in one of the workers, the same for all engines of a tunnel or a port."""
        port = spec.tunnel if spec.role is Role.SERVER and spec.tunnel.port else name
        former = self._homes.get(port, self._homes.get(name))
        home = choose_worker(former, [worker.load for worker in self._workers])
        self._homes[port] = self._homes[name] = home
        return RemoteEngine(next(self._numbers), name, spec, self._workers[home], sink)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[WorkerPool]:
        """The pool with its processes; none of them is left afterwards."""
        tasks = [asyncio.create_task(worker.run(), name=f"worker {worker.number}") for worker in self._workers]
        try:
            yield self
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

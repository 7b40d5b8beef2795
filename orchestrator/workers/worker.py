"""A worker process: runs some of the supervisor's engines, so that more than one core is used.

Started by the supervisor alone, with the number of an inherited socket; it ends when that is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import itertools
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any, Final

from orchestrator.process.messages import print_message
from orchestrator.process.setup import prepare_serving_process, run_event_loop
from orchestrator.status.scanner import ScanSchedule
from orchestrator.status.store import StatusStore, snapshot_store
from orchestrator.status.visitor_lines import VisitorLines
from orchestrator.supervisor.crash_reports import (
    describe_crash,
    install_exception_handlers,
    short_traceback,
    suppress_tracebacks,
)
from orchestrator.workers.messages import (
    REQUEST_KINDS,
    CloseEngine,
    CreateEngine,
    DiscardEngine,
    DrainEngine,
    DrainLink,
    DrainTarget,
    EngineEnded,
    EngineEvent,
    EnginePrepared,
    IpcChannel,
    KickVisitors,
    ListVisitors,
    PrepareEngine,
    Request,
    RetryEngine,
    RunEngine,
    SetRefusal,
    SnapshotBatch,
    StartAccessLog,
    TimeLegs,
    TunnelTested,
    UpdateSpec,
    VisitorsLeft,
    VisitorSlice,
    WorkerAlive,
)
from tunnel.engine.context import EngineContext
from tunnel.engine.factory import create_engine
from tunnel.engine.visitor_list import SLICE_SIZE
from tunnel.model.events import EventKind
from tunnel.runtime.sockets import NetError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence

    from tunnel.engine.engine import Engine
    from tunnel.model.events import Event
    from tunnel.model.snapshot import Snapshot
    from tunnel.model.visitors import VisitorView

SCAN_INTERVAL_S: Final = 0.25
"""Seconds between two scans for changes."""

QUIET_ROUND_S: Final = 2.0
"""Seconds in which every engine is read: hundreds of quiet ones must cost nearly nothing."""

_SCANS_PER_HEARTBEAT: Final = 4
_PR_SET_PDEATHSIG: Final = 1  # prctl(2)
_IGNORED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # for the supervisor, which forwards what they mean


class HostedEngine:
    """An engine with the task that runs it."""

    def __init__(self, number: int, engine: Engine) -> None:
        self.number = number
        self.engine = engine
        self._task: asyncio.Task[None] | None = None

    def run(self, work: Coroutine[None, None, None]) -> None:
        """Run this in the engine's own task."""
        self._task = asyncio.create_task(work, name=f"tunnel {self.engine.name}")

    def cancel(self) -> asyncio.Task[None] | None:
        """Cancel the engine's task and return it; None where it never ran."""
        if self._task is not None:
            self._task.cancel()
        return self._task


class Worker:
    """Carries out the supervisor's requests and sends it what happens."""

    def __init__(self, context: EngineContext) -> None:
        self._context = context
        self._engines: dict[int, HostedEngine] = {}
        self._store: StatusStore[int, Snapshot] = snapshot_store()
        self._sent_revision = 0
        self._schedule = ScanSchedule[str](QUIET_ROUND_S, min_quiet=0)
        context.subscribe_activity(self._schedule.mark)
        self._lines: VisitorLines | None = None  # of the access log, if there is one
        self._lost_lines = 0
        self._disconnected = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._handlers: Mapping[type[Request], Callable[[HostedEngine, Any], None]] = {
            PrepareEngine: lambda hosted, request: self._start(self._prepare(hosted, request.predecessor)),
            RunEngine: lambda hosted, _: hosted.run(self._run(hosted)),
            DrainEngine: lambda hosted, request: hosted.engine.drain(request.timeout),
            CloseEngine: lambda hosted, _: hosted.engine.close(),
            RetryEngine: lambda hosted, _: hosted.engine.retry(),
            DrainTarget: lambda hosted, request: hosted.engine.set_target_drained(
                request.address, is_drained=request.is_drained
            ),
            DrainLink: lambda hosted, request: hosted.engine.set_link_drained(
                request.ident, is_drained=request.is_drained
            ),
            ListVisitors: lambda hosted, request: self._start(self._list_visitors(hosted, request)),
            TimeLegs: lambda hosted, request: self._start(self._test_tunnel(hosted, request)),
            KickVisitors: lambda hosted, request: self._start(self._kick_visitors(hosted, request)),
            UpdateSpec: lambda hosted, request: hosted.engine.apply_live_settings(request.spec),
            SetRefusal: lambda hosted, request: hosted.engine.set_refusal(request.reason),
            DiscardEngine: lambda hosted, _: self._discard(hosted),
        }
        self.channel = IpcChannel(REQUEST_KINDS, self._dispatch, lambda _: self._disconnected.set())

    async def run(self) -> None:
        """Work until the supervisor has closed its end of the channel, or has died."""
        scanning = asyncio.create_task(self._scan_periodically())
        await self._disconnected.wait()
        scanning.cancel()
        for task in self._tasks:
            task.cancel()
        lives = [life for hosted in self._engines.values() if (life := hosted.cancel()) is not None]
        await asyncio.wait([scanning, *self._tasks, *lives])

    # --- requests -------------------------------------------------------------------------------------------------

    def _dispatch(self, request: Request) -> None:
        if isinstance(request, CreateEngine):
            self._create(request)
        elif isinstance(request, StartAccessLog):
            self._lines = VisitorLines(self._send_lines)
            self._context.visitor_log = self._lines.add
        elif (hosted := self._engines.get(request.engine)) is not None:  # it may have ended meanwhile
            try:
                self._handlers[type(request)](hosted, request)
            except Exception as error:  # noqa: BLE001  an engine that fails at a request has crashed, the others have not
                self._end_crashed(hosted, error)

    def _create(self, request: CreateEngine) -> None:
        number = request.engine

        def sink(event: Event) -> None:
            self._send_event(number, event)

        try:
            engine = create_engine(request.name, request.spec, self._context, sink)
        except Exception as error:  # noqa: BLE001  as above
            self.channel.send(EngineEnded(number, None, describe_crash(error), tuple(short_traceback(error))))
            return
        self._engines[number] = HostedEngine(number, engine)
        self._schedule.mark(request.name)

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _prepare(self, hosted: HostedEngine, predecessor: int) -> None:
        old = self._engines.get(predecessor)
        try:
            if old is not None:
                await hosted.engine.prepare(old.engine)
        except NetError as error:
            self._forget(hosted)
            self.channel.send(EnginePrepared(hosted.number, str(error), error.errno))
        except Exception as error:  # noqa: BLE001  as above
            self._end_crashed(hosted, error)
        else:
            self.channel.send(EnginePrepared(hosted.number))

    async def _run(self, hosted: HostedEngine) -> None:
        crash: BaseException | None = None
        try:
            await hosted.engine.run()
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task and task.cancelling():
                raise
            crash = error
        except Exception as error:  # noqa: BLE001  whatever an engine raises must stay with that engine
            crash = error
        if self._forget(hosted):
            self._send_ended(hosted, crash)

    def _end_crashed(self, hosted: HostedEngine, error: Exception) -> None:
        if self._forget(hosted):
            self._send_ended(hosted, error)
            hosted.cancel()

    def _discard(self, hosted: HostedEngine) -> None:
        self._forget(hosted)
        hosted.engine.close()
        if hosted.cancel() is None:
            self._start(hosted.engine.run())  # it returns at once and closes what was prepared

    def _forget(self, hosted: HostedEngine) -> bool:
        """Whether the engine was not forgotten before."""
        self._store.remove(hosted.number)
        return self._engines.pop(hosted.number, None) is not None

    # --- visitors -------------------------------------------------------------------------------------------------

    async def _list_visitors(self, hosted: HostedEngine, request: ListVisitors) -> None:
        try:
            async for visitors in hosted.engine.visitors():
                await self._send_slice(request, visitors)
        finally:
            self.channel.send(VisitorSlice(request.engine, request.request, ()))

    async def _kick_visitors(self, hosted: HostedEngine, request: KickVisitors) -> None:
        try:
            kicked = await hosted.engine.kick(request.selector)
            for start in range(0, len(kicked), SLICE_SIZE):
                await self._send_slice(request, kicked[start : start + SLICE_SIZE])
        finally:
            self.channel.send(VisitorSlice(request.engine, request.request, ()))

    async def _test_tunnel(self, hosted: HostedEngine, request: TimeLegs) -> None:
        legs = await hosted.engine.test()
        self.channel.send(TunnelTested(request.engine, request.request, tuple(legs)))

    async def _send_slice(self, request: ListVisitors | KickVisitors, visitors: Sequence[VisitorView]) -> None:
        if visitors:  # an empty slice would be the last one
            self.channel.send(VisitorSlice(request.engine, request.request, tuple(visitors)))
            await asyncio.sleep(0)
        if self.channel.is_clogged:
            await asyncio.sleep(SCAN_INTERVAL_S)

    def _send_lines(self, data: bytes, lines: int) -> None:
        if self.channel.is_clogged:
            self._lost_lines += lines
            return
        self.channel.send(VisitorsLeft(data, lines, self._lost_lines))
        self._lost_lines = 0

    # --- notifications --------------------------------------------------------------------------------------------

    def _send_ended(self, hosted: HostedEngine, crash: BaseException | None) -> None:
        if self._lines is not None:
            self._lines.flush()
        last: Snapshot | None = None
        with contextlib.suppress(Exception):  # where it crashed, its last snapshot is a courtesy
            last = hosted.engine.snapshot()
        if crash is None:
            self.channel.send(EngineEnded(hosted.number, last))
        else:
            frames = tuple(short_traceback(crash))
            self.channel.send(EngineEnded(hosted.number, last, describe_crash(crash), frames))

    def _send_event(self, number: int, event: Event) -> None:
        if self.channel.is_clogged:  # a supervisor that does not read loses events; visitors are not affected
            return
        hosted = self._engines.get(number)
        if event.kind is EventKind.STATE and hosted is not None and self._read(hosted):
            self._send_changes()  # first: a reader of the event finds the snapshot that belongs to it
        self.channel.send(EngineEvent(number, event))

    async def _scan_periodically(self) -> None:
        for scan in itertools.count():
            await asyncio.sleep(SCAN_INTERVAL_S)
            if self.channel.is_clogged:
                continue
            self._scan()
            self._send_changes()
            if scan % _SCANS_PER_HEARTBEAT == 0:
                self.channel.send(WorkerAlive())

    def _scan(self) -> None:
        names = [hosted.engine.name for hosted in self._engines.values()]
        due = set(self._schedule.due(names, names, SCAN_INTERVAL_S))
        for hosted in self._engines.values():
            if hosted.engine.name in due and self._read(hosted):
                self._schedule.mark(hosted.engine.name)

    def _read(self, hosted: HostedEngine) -> bool:
        """Store the engine's snapshot; whether it has changed."""
        try:
            seen = hosted.engine.snapshot()
        except Exception:  # noqa: BLE001  an engine that cannot be read must not hide the others; it will crash by itself
            return False
        return self._store.update(hosted.number, seen)

    def _send_changes(self) -> None:
        delta = self._store.changes_since(self._sent_revision)
        self._sent_revision = delta.revision
        if delta.changed:
            self.channel.send(SnapshotBatch(tuple((number, one.value) for number, one in delta.changed.items())))


async def _serve(connection: socket.socket) -> None:
    context = EngineContext()
    worker = Worker(context)
    install_exception_handlers(lambda _, text: print_message(text))
    try:
        await asyncio.get_running_loop().create_unix_connection(lambda: worker.channel, sock=connection)
        worker.channel.send(WorkerAlive())
        await worker.run()
    finally:
        context.close()


def _end_with_supervisor() -> None:
    """Have the kernel kill this process when the supervisor dies, even if its event loop does not run."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> int:
    """Serve the supervisor at the other end of the socket whose number is the only argument; the exit code."""
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    try:
        connection = socket.socket(fileno=int(sys.argv[1]))
    except (IndexError, ValueError, OSError):
        print_message("workers are started by the supervisor; write workers: N into the file's supervisor: section")
        return 2
    _end_with_supervisor()
    with contextlib.suppress(OSError):
        os.set_blocking(2, False)  # a pipe to the supervisor: if that hangs, messages are dropped
    prepare_serving_process()
    suppress_tracebacks()
    run_event_loop(_serve(connection))
    return 0


if __name__ == "__main__":
    sys.exit(main())

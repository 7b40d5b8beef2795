"""Composes a daemon for a file: engines or workers, supervisor, watcher, API and MQTT. Used by ``up`` and ``demo``."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING

from orchestrator.access_log import opened_access_log
from orchestrator.api.server import serve_api
from orchestrator.history.recorder import TrafficRecorder
from orchestrator.process import socket_paths
from orchestrator.process.daemon_lock import DaemonLock, hold_daemon_lock, hold_socket_lock
from orchestrator.process.state_directory import file_key, state_directories, usable_directories
from orchestrator.process.task_scope import task_scope
from orchestrator.supervisor.control import ControlService
from orchestrator.supervisor.crash_reports import install_exception_handlers
from orchestrator.supervisor.event_bus import SUPERVISOR, EventBus
from orchestrator.supervisor.supervisor import Supervisor
from orchestrator.supervisor.watcher import watch_files
from orchestrator.workers.pool import WorkerPool
from tunnel.engine.context import EngineContext
from tunnel.engine.factory import create_engine
from tunnel.model.events import EventKind, EventLog
from tunnel.model.spec import LogLevel

if TYPE_CHECKING:
    from pathlib import Path

    from orchestrator.access_log import AccessLog
    from orchestrator.config.manifest import Manifest
    from orchestrator.supervisor.engine_handle import EngineFactory
    from tunnel.model.events import Event, EventSink


class DaemonClaim:
    """The right of this process to run a file, and the socket of its API."""

    def __init__(
        self, lock: DaemonLock, named: Path | None, choose_socket: Callable[[], Path], history_file: Path | None
    ) -> None:
        """``named`` is the socket that the user or the file names; without one ``choose_socket`` returns a place."""
        self._lock = lock
        self._named = named
        self._choose_socket = choose_socket
        self.history_file = history_file
        """where the traffic of the file's tunnels is kept; None where no state directory can be written"""

    def choose_socket(self) -> Path:
        """Return the path for the socket and record it for clients. Raises SocketPathError."""
        socket = self._named or self._choose_socket()
        self._lock.record_socket(socket)
        return socket

    def answering(self) -> contextlib.AbstractContextManager[None]:
        """Answer processes that ask which daemon runs the file."""
        return self._lock.announcement.answering()


@contextlib.contextmanager
def claimed_daemon(
    manifest: Manifest, given: Path | None, environ: Mapping[str, str], history_file: Path | None = None
) -> Iterator[DaemonClaim]:
    """Hold the lock of the file, and that of a named socket, for this process alone. Raises SocketPathError.

    Without ``history_file``, the traffic history is in the state directory.
    """
    uid = os.getuid()
    with contextlib.ExitStack() as stack:
        lock = stack.enter_context(hold_daemon_lock(manifest.path, environ, uid))
        named = given or socket_paths.explicit_socket(manifest.supervisor.api.socket, {})
        if named is not None:
            stack.enter_context(hold_socket_lock(named, environ, uid))
        if history_file is None:
            directory = next(usable_directories(state_directories(environ, uid), uid), None)
            history_file = directory / f"{file_key(manifest.path)}.history.db" if directory is not None else None
        choose_socket = partial(socket_paths.choose_socket, manifest.path, environ, uid)
        yield DaemonClaim(lock, named, choose_socket, history_file)


@contextlib.asynccontextmanager
async def running_daemon(
    manifest: Manifest, claim: DaemonClaim, log: EventSink, level: LogLevel, *, read_only: bool = False
) -> AsyncIterator[Supervisor]:
    """A supervisor with its API, not started yet; ``level`` is that of its own log lines. Raises SocketPathError."""
    bus = EventBus()
    event_log = EventLog(SUPERVISOR, bus.publish, call_later=asyncio.get_running_loop().call_later)
    install_exception_handlers(lambda topic, text: event_log.warn_throttled(EventKind.DEFECT, topic, text))
    with opened_access_log(manifest.supervisor.access_log, log, event_log) as access_log:
        async with _running(manifest, claim, log, level, bus, access_log, read_only=read_only) as supervisor:
            yield supervisor


@contextlib.asynccontextmanager
async def _running(
    manifest: Manifest,
    claim: DaemonClaim,
    log: EventSink,
    level: LogLevel,
    bus: EventBus,
    access_log: AccessLog | None,
    *,
    read_only: bool,
) -> AsyncIterator[Supervisor]:
    async with _engine_factory(manifest.supervisor.workers, bus, access_log) as (engine_factory, context):
        supervisor = Supervisor(manifest, engine_factory=engine_factory, bus=bus)
        if context is not None:
            context.publisher = supervisor.published
        write_log = _filter_by_level(log, supervisor, level)
        for event in bus.events_of(SUPERVISOR):  # of the workers, from before there was a supervisor with log levels
            write_log(event)
        bus.subscribe(write_log)
        control = ControlService(supervisor, read_only=read_only)
        if access_log is not None:
            supervisor.subscribe_hang_up(access_log.reopen)
            control.set_access_log_status(access_log.status)
        with claim.answering():
            async with (
                _recording_traffic(control, claim.history_file),
                serve_api(control, claim.choose_socket(), manifest.supervisor, relocate=claim.choose_socket),
                watch_files(supervisor.sources, supervisor.reload_after_change, bus),
                _publishing(control, manifest),
            ):
                yield supervisor


@contextlib.asynccontextmanager
async def _publishing(control: ControlService, manifest: Manifest) -> AsyncIterator[None]:
    """Publish the tunnels to the broker that the file names, if any."""
    if manifest.supervisor.mqtt is None:
        yield
        return
    from orchestrator.mqtt.publisher import publish_host  # noqa: PLC0415  only where a broker is named

    async with publish_host(control, manifest, manifest.supervisor.mqtt):
        yield


@contextlib.asynccontextmanager
async def _recording_traffic(control: ControlService, path: Path | None) -> AsyncIterator[None]:
    """Record what the tunnels carry, until they have stopped."""
    supervisor, bus = control.supervisor, control.bus
    if path is None:
        text = "no state directory can be written, so the traffic of tunnels is not recorded; set STATE_DIRECTORY"
        bus.emit(LogLevel.WARN, EventKind.HISTORY, text)
    recorder = control.history = TrafficRecorder(supervisor, path, bus.publish)
    supervisor.subscribe_removals(recorder.on_removed)
    bus.subscribe(recorder.on_event)
    with bus.subscribe_activity(recorder.mark_busy):
        try:
            async with task_scope() as start_task:
                start_task(recorder.run())
                yield
        finally:
            await recorder.close()


@contextlib.asynccontextmanager
async def _engine_factory(
    workers: int, bus: EventBus, access_log: AccessLog | None
) -> AsyncIterator[tuple[EngineFactory, EngineContext | None]]:
    """Makes engines in so many workers; with none, in this process, with what they share."""
    if workers:
        on_left = None if access_log is None else access_log.add_lines
        pool = WorkerPool(workers, bus.emit, bus.notify_activity, on_visitors_left=on_left)
        async with pool.running():
            yield pool.make_engine, None
        return
    context = EngineContext()
    context.visitor_log = None if access_log is None else access_log.add
    context.subscribe_activity(bus.notify_activity)
    try:
        yield lambda name, spec, sink: create_engine(name, spec, context, sink), context
    finally:
        context.close()


def _filter_by_level(log: EventSink, supervisor: Supervisor, level: LogLevel) -> Callable[[Event], None]:
    def write(event: Event) -> None:
        if event.level >= (supervisor.log_level(event.tunnel) if event.tunnel != SUPERVISOR else level):
            log(event)

    return write

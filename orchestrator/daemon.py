"""A file's tunnels, running in this process: what ``up`` and ``demo`` have in common."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from orchestrator.api.server import serve_api
from orchestrator.mqtt.publisher import publish_host
from orchestrator.process import socket_paths
from orchestrator.supervisor.control import ControlService
from orchestrator.supervisor.crash_reports import install_exception_handlers
from orchestrator.supervisor.event_bus import SUPERVISOR, EventBus
from orchestrator.supervisor.supervisor import Supervisor
from orchestrator.supervisor.watcher import watching
from orchestrator.workers.pool import Crew
from tunnel.engine.context import EngineContext
from tunnel.engine.factory import create_engine
from tunnel.model.events import EventLog
from tunnel.model.spec import LogLevel

if TYPE_CHECKING:
    from pathlib import Path

    from orchestrator.config.manifest import Manifest
    from orchestrator.supervisor.runner import EngineFactory
    from tunnel.model.events import Event, EventSink


@contextlib.contextmanager
def claimed_daemon_socket(manifest: Manifest, named: Path | None, environ: Mapping[str, str]) -> Iterator[Path]:
    """The path of the daemon's socket, ours alone. Raises SocketPathError.

    A socket that the file itself names gets a pointer in the usual place, so that ``ps`` finds it without reading the
    file.
    """
    with contextlib.ExitStack() as stack:
        if named is None:
            usual = named = socket_paths.choose_socket(manifest.path, environ, os.getuid())
            stack.enter_context(socket_paths.claim_socket(usual))
            inside = socket_paths.explicit_socket(manifest.supervisor.api.socket, {})
            if inside is not None and inside != usual:
                named = inside
                stack.enter_context(socket_paths.claim_socket(inside))
                with contextlib.suppress(OSError):
                    usual.symlink_to(inside.absolute())
        else:
            stack.enter_context(socket_paths.claim_socket(named))
        yield named


@contextlib.asynccontextmanager
async def running_daemon(
    manifest: Manifest, socket: Path, log: EventSink, level: LogLevel, *, read_only: bool = False
) -> AsyncIterator[Supervisor]:
    """A supervisor with its API, not started yet; ``level`` is that of its own lines. Raises SocketPathError."""
    bus = EventBus()
    event_log = EventLog(SUPERVISOR, bus.publish)
    install_exception_handlers(lambda topic, text: event_log.warn_throttled("defect", topic, text))
    async with _workshop(manifest.supervisor.workers, bus) as engine_factory:
        supervisor = Supervisor(manifest, engine_factory=engine_factory, bus=bus)
        listen = _filtered(log, supervisor, level)
        for event in bus.events_of(SUPERVISOR):  # of the workers, from before there was anyone to ask for levels
            listen(event)
        bus.subscribe(listen)
        control = ControlService(supervisor, read_only=read_only)
        async with (
            serve_api(control, socket, manifest.supervisor),
            watching(supervisor.sources, supervisor.follow, bus),
            publish_host(control, manifest),
        ):
            yield supervisor


@contextlib.asynccontextmanager
async def _workshop(workers: int, bus: EventBus) -> AsyncIterator[EngineFactory]:
    """Where engines are made: in so many workers, or, with none of them, in this process."""
    if workers:
        async with Crew(workers, bus.emit, bus.notify_activity).at_work() as crew:
            yield crew.engine_factory
        return
    shared = EngineContext()
    shared.subscribe_activity(bus.notify_activity)
    try:
        yield lambda name, spec, sink: create_engine(name, spec, shared, sink)
    finally:
        shared.close()


def _filtered(log: EventSink, supervisor: Supervisor, level: LogLevel) -> Callable[[Event], None]:
    def listen(event: Event) -> None:
        if event.level >= (supervisor.log_level(event.tunnel) if event.tunnel != SUPERVISOR else level):
            log(event)

    return listen

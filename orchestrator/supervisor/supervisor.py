"""The one owner of all tunnels: runs an engine for each entry, carries out commands, and stores snapshots."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Final

from orchestrator.status.scanner import StatusScanner
from orchestrator.status.store import StatusStore, snapshot_store
from orchestrator.supervisor.event_bus import EventBus
from orchestrator.supervisor.published_services import PublishedServices
from orchestrator.supervisor.registry import TunnelRegistry
from orchestrator.supervisor.reload import Reloader
from orchestrator.supervisor.totals import count_visitors
from orchestrator.supervisor.traffic_rates import TrafficSampler
from orchestrator.supervisor.tunnel_details import describe_tunnel
from tunnel.model.events import EventKind
from tunnel.model.spec import LogLevel
from tunnel.model.state import State
from tunnel.model.wording import plural

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Sequence

    from orchestrator.config.candidate import Candidate
    from orchestrator.config.file_set import FileSet
    from orchestrator.config.manifest import Manifest
    from orchestrator.status.contract import ConfigStatus
    from orchestrator.status.json_types import TunnelDetailsJson
    from orchestrator.supervisor.engine_handle import EngineFactory
    from orchestrator.supervisor.reload import PlanResult, ReloadResult
    from tunnel.model.events import Event
    from tunnel.model.quota import Quota
    from tunnel.model.snapshot import QuotaView, Snapshot
    from tunnel.model.tunnel_test import LegResult
    from tunnel.model.visitors import VisitorSelector, VisitorView

CLOSE_TIMEOUT_S: Final = 2.0
"""How long engines have to end once everything of them is closed."""

READY_TIMEOUT_S: Final = 60.0
"""How long the report to the service manager waits for tunnels that are starting, such as by a slow name server."""


class Supervisor:
    """Made and used inside a running event loop; ``run`` is its life."""

    def __init__(self, manifest: Manifest, *, engine_factory: EngineFactory, bus: EventBus | None = None) -> None:
        self.bus = bus or EventBus()
        self.store: StatusStore[str, Snapshot] = snapshot_store()
        """the tunnels as they were last read; ``refresh`` reads them"""
        self._registry = TunnelRegistry(manifest.entries, engine_factory=engine_factory, sink=self.bus.publish)
        self.published = PublishedServices(self._registry, self.bus, lambda: self._drain_timeout)
        self._reloader = Reloader(manifest, registry=self._registry, published=self.published, bus=self.bus)
        self._scanner = StatusScanner(self.store, self._registry)
        self._traffic_sampler = TrafficSampler(self._registry, self._registry.traffic_meter)
        self._hang_up_subscribers: list[Callable[[], None]] = []
        self._started = asyncio.Event()
        self._has_left_starting = False
        self._stopping = asyncio.Event()
        self._closed = asyncio.Event()

    # --- its life -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Start every enabled tunnel; return when all are stopped after ``shutdown`` or ``close``."""
        entries = self._registry.entries()
        self.bus.subscribe(self._mark_busy)
        sampling = asyncio.create_task(self._traffic_sampler.run())
        activity = self.bus.subscribe_activity
        with activity(self._scanner.schedule.mark), activity(self._traffic_sampler.mark):
            self._registry.start()
            self._started.set()
            count = sum(entry.enabled for entry in entries)
            self.bus.emit(
                LogLevel.INFO,
                EventKind.SUPERVISOR,
                f"{count} of {plural(len(entries), 'tunnel')} started",
                pid=os.getpid(),
            )
            try:
                await self._stopping.wait()
                await self._wait_stopped()
            finally:
                self.published.close()
                sampling.cancel()
                self._registry.cancel()
                self.bus.unsubscribe(self._mark_busy)
        self.bus.emit(LogLevel.INFO, EventKind.SUPERVISOR, "all tunnels are closed")

    def _mark_busy(self, event: Event) -> None:
        self._scanner.schedule.mark(event.tunnel)

    async def _wait_stopped(self) -> None:
        stopped = asyncio.create_task(self._registry.wait_stopped())
        closed = asyncio.create_task(self._closed.wait())
        await asyncio.wait([stopped, closed], return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait([stopped], timeout=CLOSE_TIMEOUT_S)
        stopped.cancel()
        closed.cancel()

    def shutdown(self) -> None:
        """Drain every tunnel, each up to its SHUTDOWN_TIMEOUT or the file's ``drain_timeout``, and end."""
        if not self._stopping.is_set():
            active = self.count_visitors()
            visitors = f": {plural(active, 'visitor')} may finish" if active else ""
            self.bus.emit(LogLevel.INFO, EventKind.SUPERVISOR, f"shutting down{visitors}")
        self._stopping.set()
        self._registry.drain(self._drain_timeout, "shutting down")

    def close(self) -> None:
        """End now and disconnect the visitors."""
        self._stopping.set()
        self._closed.set()
        self._registry.close()

    def subscribe_hang_up(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` when the daemon receives SIGHUP."""
        self._hang_up_subscribers.append(callback)

    def notify_hang_up(self) -> None:
        """Notify the subscribers of SIGHUP: files that another program may have renamed are opened again."""
        for callback in self._hang_up_subscribers:
            callback()

    async def wait_ready(self) -> None:
        """Wait until every enabled tunnel has bound its addresses or failed to, for READY_TIMEOUT_S at most."""
        await self._started.wait()
        await self._registry.wait_until(self._is_past_starting, READY_TIMEOUT_S)

    async def wait_stopping(self) -> None:
        """Wait until ``shutdown`` or ``close`` has been called."""
        await self._stopping.wait()

    @property
    def is_started(self) -> bool:
        """Whether every enabled tunnel has been started, and none is being stopped for the end of the daemon."""
        return self._started.is_set() and not self._stopping.is_set()

    @property
    def is_ready(self) -> bool:
        """Whether every tunnel has left ``starting`` once. Later reloads and restarts do not change the result."""
        return self.is_started and self._is_past_starting()

    def _is_past_starting(self) -> bool:
        if not self._has_left_starting:
            is_starting = any(self.snapshot(name).state is State.STARTING for name in self.names())
            self._has_left_starting = self._stopping.is_set() or not is_starting
        return self._has_left_starting

    # --- commands: all raise UnknownTunnelError -------------------------------------------------------------------

    def start(self, name: str) -> None:
        """Start a stopped tunnel."""
        self._registry.runner(name).start()

    def stop(self, name: str, timeout: float | None = None) -> None:
        """Stop a tunnel after a drain of up to ``timeout`` seconds (None: its own SHUTDOWN_TIMEOUT)."""
        self._registry.runner(name).drain(timeout)

    def drain(self, name: str, timeout: float | None = None) -> None:
        """Stop a tunnel after a drain of up to ``timeout`` seconds (None: the file's ``drain_timeout``)."""
        limit = self._drain_timeout if timeout is None else timeout
        self._registry.runner(name).drain(limit, "drained by command")

    def restart(self, name: str, timeout: float | None = None) -> None:
        """Start a tunnel again after a drain of up to ``timeout`` seconds (None: its own SHUTDOWN_TIMEOUT)."""
        self._registry.runner(name).restart(timeout)

    def set_target_drained(self, name: str, address: str, *, is_drained: bool) -> None:
        """Give one of a tunnel's targets no new visitors, or new ones again."""
        self._registry.runner(name).set_target_drained(address, is_drained=is_drained)

    def set_link_drained(self, name: str, ident: str, *, is_drained: bool) -> None:
        """Give one of a tunnel's links no new visitors, or new ones again."""
        self._registry.runner(name).set_link_drained(ident, is_drained=is_drained)

    def retry(self, name: str) -> None:
        """End a tunnel's cooldown."""
        self._registry.runner(name).retry()

    @property
    def _drain_timeout(self) -> float | None:
        return self._reloader.manifest.supervisor.drain_timeout

    # --- the file -------------------------------------------------------------------------------------------------

    async def reload(self) -> ReloadResult:
        """Read the file again and apply it. An invalid file changes nothing."""
        return await self._reloader.reload()

    async def reload_after_change(self) -> None:
        """Reload because the file has changed, without a command."""
        await self._reloader.reload_after_change()

    async def plan(self, candidate: Candidate | None = None) -> PlanResult:
        """What a reload would do, of the file or with a candidate in its place."""
        return await (self._reloader.plan_candidate(candidate) if candidate else self._reloader.plan())

    async def apply_candidate(self, candidate: Candidate) -> ReloadResult:
        """Put a candidate in place of the file and apply it. An invalid one changes nothing."""
        return await self._reloader.apply_candidate(candidate)

    def sources(self) -> FileSet:
        """The files as they were last read: if one differs, a reload is due."""
        return self._reloader.sources

    @property
    def generation(self) -> int:
        """Grows with each reload that changes something."""
        return self._reloader.generation

    def config_status(self) -> ConfigStatus:
        """The file, and what is wrong in it."""
        return self._reloader.status()

    def log_level(self, name: str) -> LogLevel:
        """The log level of a tunnel; the default where it is gone from the file."""
        entry = self._registry.entry(name)
        return entry.spec.log if entry else LogLevel.INFO

    @property
    def history_hours(self) -> int:
        """How long the traffic of each hour is kept; 0: it is not recorded."""
        return self._reloader.manifest.supervisor.history.hours

    def quotas(self) -> dict[str, Quota]:
        """The quotas of the tunnels that have one."""
        return {entry.name: entry.spec.quota for entry in self._registry.entries() if entry.spec.quota}

    def set_quota(self, name: str, quota: QuotaView | None, refusal: str | None) -> None:
        """Show this of a tunnel's quota; with ``refusal`` refuse new visitors. A tunnel that is gone is ignored."""
        if self._registry.entry(name) is not None:
            self._registry.runner(name).set_quota(quota, refusal)
            self._scanner.schedule.mark(name)

    def subscribe_removals(self, callback: Callable[[str, Snapshot], None]) -> None:
        """Call ``callback`` with the name and the last snapshot of each tunnel that was removed and has ended."""
        self._registry.subscribe_removals(callback)

    # --- reading --------------------------------------------------------------------------------------------------

    async def refresh(self, within_s: float = 0.0, *, everything: bool = False) -> None:
        """Read the tunnels into ``store``: those that may have changed, or all; it may take ``within_s`` seconds."""
        await (self._scanner.scan_all(within_s) if everything else self._scanner.scan(within_s))

    def names(self) -> Collection[str]:
        """All tunnels in the order of the file; then those that were removed from it and drain."""
        return self._registry.names()

    def snapshots(self) -> tuple[Snapshot, ...]:
        """All tunnels now, read at once: for few of them, or where nothing else runs."""
        return tuple(self._registry.snapshot(name) for name in self.names())

    def snapshot(self, name: str) -> Snapshot:
        """One tunnel now. Raises UnknownTunnelError."""
        return self._registry.snapshot(name)

    def visitors(self, name: str) -> AsyncIterator[Sequence[VisitorView]]:
        """Yield the visitors of one tunnel in slices. Raises EngineSilentError; an unknown tunnel has none."""
        return self._registry.visitors(name)

    async def kick(self, name: str, selector: VisitorSelector) -> list[VisitorView]:
        """Disconnect visitors of one tunnel at once; return what was disconnected. Raises EngineSilentError."""
        return await self._registry.kick(name, selector)

    async def test(self, name: str) -> Sequence[LegResult]:
        """Time the legs of a tunnel; none where it does not run. Raises UnknownTunnelError, EngineSilentError."""
        return await self._registry.runner(name).test()

    def count_visitors(self) -> int:
        """The visitors that are connected now, also those of two tunnels that are both ends of one link: once."""
        return count_visitors(self.snapshots())

    def details(self, name: str) -> TunnelDetailsJson:
        """One tunnel with its URL and settings. Raises UnknownTunnelError."""
        seen = self._registry.snapshot(name)
        return describe_tunnel(seen, self._registry.entry(name), self._reloader.manifest.path.parent)

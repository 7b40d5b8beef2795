"""The daemon as a service: its process signals, and what it reports to its service manager."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Final

from orchestrator.process.service_manager import Notifier
from orchestrator.process.setup import handle_stop_signals
from orchestrator.supervisor.crash_reports import describe_crash
from orchestrator.supervisor.totals import count_visitors
from tunnel.model.events import EventKind
from tunnel.model.spec import LogLevel
from tunnel.model.state import State
from tunnel.model.wording import plural

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator.supervisor.supervisor import Supervisor

STATUS_INTERVAL_S: Final = 2.0
"""Seconds between two reports of the status, unless the watchdog wants them more often."""


async def run_service(supervisor: Supervisor, reopen_log: Callable[[], None]) -> None:
    """Run the supervisor until a process signal or a command ends it."""
    reporter = _ServiceReporter(supervisor, Notifier(os.environ))

    def hang_up() -> None:
        reopen_log()
        supervisor.notify_hang_up()
        reporter.start_reload()

    with handle_stop_signals(supervisor.shutdown, supervisor.close, hang_up):
        reporting = asyncio.create_task(reporter.run())
        try:
            await supervisor.run()
        finally:
            reporting.cancel()


class _ServiceReporter:
    def __init__(self, supervisor: Supervisor, notifier: Notifier) -> None:
        self._supervisor = supervisor
        self._notifier = notifier
        self._reloads: set[asyncio.Task[None]] = set()

    def start_reload(self) -> None:
        """SIGHUP: read the file again."""
        if self._supervisor.is_started:
            task = asyncio.create_task(self._reload())
            self._reloads.add(task)
            task.add_done_callback(self._reloads.discard)

    async def _reload(self) -> None:
        self._notifier.send_reloading()
        try:
            await self._supervisor.reload()
        except Exception as error:  # noqa: BLE001  the tunnels keep running, whatever happened to the reload
            self._supervisor.bus.emit(LogLevel.ERROR, EventKind.RELOAD, describe_crash(error))
        finally:
            self._notifier.send_ready()

    async def run(self) -> None:
        """Report readiness, the status, the watchdog's keep-alive and the beginning of the end."""
        if not self._notifier.is_enabled:
            return
        await self._supervisor.wait_ready()
        self._notifier.send_ready()
        stopping = asyncio.create_task(self._supervisor.wait_stopping())
        try:
            while not stopping.done():
                await self._report()
                await asyncio.wait([stopping], timeout=self._interval_s)
            self._notifier.send_stopping()
            while True:
                await self._report()
                await asyncio.sleep(self._interval_s)
        finally:
            stopping.cancel()

    @property
    def _interval_s(self) -> float:
        return min(self._notifier.watchdog_interval_s or STATUS_INTERVAL_S, STATUS_INTERVAL_S)

    async def _report(self) -> None:
        if self._notifier.watchdog_interval_s is not None:
            self._notifier.send_watchdog()
        await self._supervisor.refresh()
        snapshots = self._supervisor.store.snapshots()
        up = sum(seen.state is State.UP for seen in snapshots)
        active = count_visitors(snapshots)
        is_ok = self._supervisor.config_status().ok
        fault = "" if is_ok else "; the file has a fault, the last good one is in force"
        self._notifier.send_status(f"{up} of {plural(len(snapshots), 'tunnel')} up, {plural(active, 'visitor')}{fault}")

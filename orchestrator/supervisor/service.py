"""The daemon as a service: its signals, and what its service manager is told of it."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Final

from orchestrator.process.service_manager import Notifier
from orchestrator.process.setup import handle_stop_signals
from orchestrator.supervisor.crash_reports import describe_crash
from tunnel.model.spec import LogLevel
from tunnel.model.state import State

if TYPE_CHECKING:
    from orchestrator.supervisor.supervisor import Supervisor

_LOOK: Final = 0.05  # seconds between two looks while the tunnels are being started
_NEWS: Final = 2.0  # seconds between two looks at how the tunnels are


async def live(supervisor: Supervisor) -> None:
    """The supervisor's life, from its start to the end that a signal or a command asks for."""
    service = _Service(supervisor, Notifier(os.environ))
    with handle_stop_signals(supervisor.shutdown, supervisor.close, service.reload):
        telling = asyncio.create_task(service.tell())
        try:
            await supervisor.run()
        finally:
            telling.cancel()


class _Service:
    def __init__(self, supervisor: Supervisor, notifier: Notifier) -> None:
        self._supervisor = supervisor
        self._notifier = notifier
        self._reloads: set[asyncio.Task[None]] = set()

    def reload(self) -> None:
        """SIGHUP: read the file again."""
        if self._supervisor.is_ready:
            task = asyncio.create_task(self._reload())
            self._reloads.add(task)
            task.add_done_callback(self._reloads.discard)

    async def _reload(self) -> None:
        self._notifier.reloading()
        try:
            await self._supervisor.reload()
        except Exception as error:  # noqa: BLE001  the tunnels serve on, whatever became of this
            self._supervisor.bus.emit(LogLevel.ERROR, "reload", describe_crash(error))
        finally:
            self._notifier.ready()

    async def tell(self) -> None:
        """Tell the manager when we are ready, how it goes, that we are alive, and that the end has begun."""
        if not self._notifier.is_heard:
            return
        while not self._supervisor.is_ready:  # noqa: ASYNC110  a start announces nothing
            await asyncio.sleep(_LOOK)
        self._notifier.ready()
        stopping = asyncio.create_task(self._supervisor.wait_stopping())
        try:
            while not stopping.done():
                await self._beat()
                await asyncio.wait([stopping], timeout=self._pause)
            self._notifier.stopping()
            while True:
                await self._beat()
                await asyncio.sleep(self._pause)
        finally:
            stopping.cancel()

    @property
    def _pause(self) -> float:
        return min(self._notifier.beat_every or _NEWS, _NEWS)

    async def _beat(self) -> None:
        if self._notifier.beat_every is not None:
            self._notifier.alive()
        snapshots = await self._supervisor.look()
        up = sum(snapshot.state is State.UP for snapshot in snapshots)
        active = sum(snapshot.connections.active for snapshot in snapshots)
        is_ok = self._supervisor.head()["config"]["ok"]
        fault = "" if is_ok else "; the file has a fault, the last good one is in force"
        self._notifier.status(f"{up} of {len(snapshots)} tunnels up, {active} visitors{fault}")

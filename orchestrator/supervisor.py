"""The one owner of all tunnels: keeps an engine for each entry, takes commands, shows snapshots."""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING, Any, Final

from orchestrator.bus import Bus
from orchestrator.keeper import Keeper, MakeEngine
from tunnel.spec import LogLevel
from tunnel.state import timestamp

if TYPE_CHECKING:
    from orchestrator.manifest import Entry, Manifest
    from tunnel.state import Snapshot

_CLOSING: Final = 2.0  # seconds that an engine has to end once everything of it is closed


class UnknownTunnelError(LookupError):
    """No tunnel has that name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no tunnel is named {name[:200]!r}")


class Supervisor:
    """Made and used inside a running event loop; ``run`` is its life."""

    def __init__(self, manifest: Manifest, *, make_engine: MakeEngine, bus: Bus | None = None) -> None:
        self.bus = bus or Bus()
        self._manifest = manifest
        self._make_engine = make_engine
        self._keepers = {entry.name: self._keeper(entry) for entry in manifest.entries}
        self._loaded_at = timestamp(time.time())
        self._stopping = asyncio.Event()
        self._closed = asyncio.Event()
        self._started = False

    async def run(self) -> None:
        """Start every enabled tunnel; return when ``shutdown`` or ``close`` has been heard and all of them rest."""
        for entry in self._manifest.entries:
            if entry.enabled:
                self._keepers[entry.name].start()
            else:
                self._keepers[entry.name].drain(reason="disabled in the file")
        self._started = True
        count = sum(entry.enabled for entry in self._manifest.entries)
        self.bus.tell(LogLevel.INFO, "supervisor", f"{count} of {len(self._keepers)} tunnels started", pid=os.getpid())
        try:
            await self._stopping.wait()
            await self._all_at_rest()
        finally:
            for keeper in self._keepers.values():
                keeper.cancel()
        self.bus.tell(LogLevel.INFO, "supervisor", "all tunnels are closed")

    async def _all_at_rest(self) -> None:
        resting = asyncio.create_task(self._rest())
        closed = asyncio.create_task(self._closed.wait())
        await asyncio.wait([resting, closed], return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait([resting], timeout=_CLOSING)
        resting.cancel()
        closed.cancel()

    async def _rest(self) -> None:
        for keeper in self._keepers.values():
            await keeper.wait()

    def shutdown(self) -> None:
        """Drain every tunnel, each up to its SHUTDOWN_TIMEOUT or the file's ``drain_timeout``, and end."""
        if not self._stopping.is_set():
            present = sum(keeper.snapshot().connections.active for keeper in self._keepers.values())
            self.bus.tell(LogLevel.INFO, "supervisor", f"shutting down: {present} connections may finish")
        self._stopping.set()
        for keeper in self._keepers.values():
            keeper.drain(self._manifest.supervisor.drain_timeout, "shutting down")

    def close(self) -> None:
        """End now, whoever is being served."""
        self._stopping.set()
        self._closed.set()
        for keeper in self._keepers.values():
            keeper.close()

    async def until_stopping(self) -> None:
        """Until ``shutdown`` or ``close`` has been heard."""
        await self._stopping.wait()

    def start(self, name: str) -> None:
        """Run a tunnel that rests. Raises UnknownTunnelError, as do all commands."""
        self._find(name).start()

    def stop(self, name: str, timeout: float | None = None) -> None:
        """Drain a tunnel up to ``timeout`` seconds (None: its own SHUTDOWN_TIMEOUT), then let it rest."""
        self._find(name).drain(timeout)

    def drain(self, name: str, timeout: float | None = None) -> None:
        """Drain a tunnel up to ``timeout`` seconds (None: the file's ``drain_timeout``), then let it rest."""
        limit = self._manifest.supervisor.drain_timeout if timeout is None else timeout
        self._find(name).drain(limit, "drained by command")

    def restart(self, name: str, timeout: float | None = None) -> None:
        """Drain a tunnel up to ``timeout`` seconds (None: its own SHUTDOWN_TIMEOUT), then run it anew."""
        self._find(name).restart(timeout)

    def retry(self, name: str) -> None:
        """End a tunnel's cooldown."""
        self._find(name).retry()

    @property
    def is_ready(self) -> bool:
        """Whether every tunnel that shall run has been given its engine, and none is being taken away."""
        return self._started and not self._stopping.is_set()

    def snapshots(self) -> tuple[Snapshot, ...]:
        """All tunnels now, in the order of the file."""
        return tuple(keeper.snapshot() for keeper in self._keepers.values())

    def snapshot(self, name: str) -> Snapshot:
        """One tunnel now."""
        return self._find(name).snapshot()

    def status(self) -> dict[str, Any]:
        """The object of ``ps --json``."""
        return {**self.head(), "tunnels": [snapshot.as_json() for snapshot in self.snapshots()]}

    def head(self) -> dict[str, Any]:
        """That object without its tunnels: cheap enough to be looked at several times a second."""
        return {
            "generation": 1,
            "pid": os.getpid(),
            "config": {
                "path": str(self._manifest.path.absolute()),
                "ok": True,
                "error": None,
                "line": None,
                "column": None,
                "warnings": [str(warning) for warning in self._manifest.warnings],
                "loaded_at": self._loaded_at,
            },
            "mqtt": {"state": "off"},
        }

    def _find(self, name: str) -> Keeper:
        if name not in self._keepers:
            raise UnknownTunnelError(name)
        return self._keepers[name]

    def _keeper(self, entry: Entry) -> Keeper:
        return Keeper(entry.name, entry.spec, make_engine=self._make_engine, sink=self.bus.publish, tags=entry.tags)

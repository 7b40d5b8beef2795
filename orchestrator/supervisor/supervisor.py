"""The one owner of all tunnels: keeps an engine for each entry, takes commands, shows snapshots."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from orchestrator.supervisor.event_bus import EventBus
from orchestrator.supervisor.registry import Tunnels
from orchestrator.supervisor.reload import Reloader
from orchestrator.supervisor.runner import EngineFactory, TunnelRunner
from tunnel.model.options import format_options
from tunnel.model.spec import LogLevel

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from orchestrator.config.faults import Place
    from orchestrator.config.file_set import FileSet
    from orchestrator.config.manifest import Entry, Manifest
    from tunnel.model.snapshot import Snapshot

SCAN_BATCH_SIZE: Final = 12
"""Tunnels that are looked at without a pause: up to a fifth of a millisecond, where processor caches are cold."""
_APART: Final = 0.006  # seconds: visitors that are served at once are gone by then
_CLOSING: Final = 2.0  # seconds that an engine has to end once everything of it is closed


class UnknownTunnelError(LookupError):
    """No tunnel has that name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no tunnel is named {name[:200]!r}")


class Supervisor:
    """Made and used inside a running event loop; ``run`` is its life."""

    def __init__(self, manifest: Manifest, *, engine_factory: EngineFactory, bus: EventBus | None = None) -> None:
        self.bus = bus or EventBus()
        self._tunnels = Tunnels(manifest.entries, engine_factory=engine_factory, sink=self.bus.publish)
        self._reloader = Reloader(manifest, tunnels=self._tunnels, bus=self.bus)
        self._stopping = asyncio.Event()
        self._closed = asyncio.Event()
        self._started = False

    async def run(self) -> None:
        """Start every enabled tunnel; return when ``shutdown`` or ``close`` has been heard and all of them rest."""
        self._tunnels.start()
        self._started = True
        entries = self._tunnels.entries.values()
        count = sum(entry.enabled for entry in entries)
        self.bus.emit(LogLevel.INFO, "supervisor", f"{count} of {len(entries)} tunnels started", pid=os.getpid())
        try:
            await self._stopping.wait()
            await self._all_at_rest()
        finally:
            self._tunnels.cancel()
        self.bus.emit(LogLevel.INFO, "supervisor", "all tunnels are closed")

    async def _all_at_rest(self) -> None:
        resting = asyncio.create_task(self._tunnels.wait())
        closed = asyncio.create_task(self._closed.wait())
        await asyncio.wait([resting, closed], return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait([resting], timeout=_CLOSING)
        resting.cancel()
        closed.cancel()

    def shutdown(self) -> None:
        """Drain every tunnel, each up to its SHUTDOWN_TIMEOUT or the file's ``drain_timeout``, and end."""
        if not self._stopping.is_set():
            present = sum(seen.connections.active for seen in self.snapshots())
            self.bus.emit(LogLevel.INFO, "supervisor", f"shutting down: {present} connections may finish")
        self._stopping.set()
        self._tunnels.drain(self._drain_timeout, "shutting down")

    def close(self) -> None:
        """End now, whoever is being served."""
        self._stopping.set()
        self._closed.set()
        self._tunnels.close()

    async def wait_stopping(self) -> None:
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
        limit = self._drain_timeout if timeout is None else timeout
        self._find(name).drain(limit, "drained by command")

    def restart(self, name: str, timeout: float | None = None) -> None:
        """Drain a tunnel up to ``timeout`` seconds (None: its own SHUTDOWN_TIMEOUT), then run it anew."""
        self._find(name).restart(timeout)

    def retry(self, name: str) -> None:
        """End a tunnel's cooldown."""
        self._find(name).retry()

    async def reload(self) -> dict[str, Any]:
        """Read the file again and do what it says; the answer of ``POST /v1/reload``. A wrong file changes nothing."""
        return await self._reloader.reload()

    async def follow(self) -> None:
        """The file has changed: as ``reload``, by nobody's command."""
        await self._reloader.follow()

    async def plan(self) -> dict[str, Any]:
        """What a reload would do; the answer of ``GET /v1/plan``."""
        return await self._reloader.plan()

    def sources(self) -> FileSet:
        """The files that were looked at last: a change of them is a reason to reload."""
        return self._reloader.sources

    @property
    def is_ready(self) -> bool:
        """Whether every tunnel that shall run has been given its engine, and none is being taken away."""
        return self._started and not self._stopping.is_set()

    def names(self) -> Collection[str]:
        """All tunnels, in the order of the file; those that are gone from it and drain come last."""
        return self._tunnels.names()

    def snapshots(self) -> tuple[Snapshot, ...]:
        """All tunnels now."""
        return tuple(self.each())

    def each(self, names: Iterable[str] | None = None) -> Iterator[Snapshot]:
        """All tunnels, or these as far as they are there, each as it is asked for."""
        for name in self.names() if names is None else names:
            seen = self._tunnels.snapshot(name)
            if seen is not None:
                yield seen

    async def look(self, names: Collection[str] | None = None, within: float = 0.0) -> list[Snapshot]:
        """The same in several turns of the loop, so that no visitor waits until hundreds of tunnels were looked at.

        Where it may take so many seconds, these turns lie so far apart that hardly any visitor meets two of them.
        """
        names, seen = self.names() if names is None else names, []
        pause = min(_APART, within * SCAN_BATCH_SIZE / max(1, len(names)))
        for number, snapshot in enumerate(self.each(names), 1):
            seen.append(snapshot)
            if number % SCAN_BATCH_SIZE == 0:
                await asyncio.sleep(pause)
        return seen

    def snapshot(self, name: str) -> Snapshot:
        """One tunnel now."""
        seen = self._tunnels.snapshot(name)
        if seen is None:
            raise UnknownTunnelError(name)
        return seen

    def log_level(self, name: str) -> LogLevel:
        """From which gravity on a tunnel's events belong in the log; the usual one for a tunnel that is gone."""
        entry = self._tunnels.entries.get(name)
        return entry.spec.log if entry else LogLevel.INFO

    def inspect(self, name: str) -> dict[str, Any]:
        """One tunnel with its URL, the key masked, and each option: its value, who said so, and where."""
        entry = self._tunnels.entries.get(name)
        if entry is None:
            return self.snapshot(name).as_json()  # gone from the file, with its last visitors
        base = self._reloader.manifest.path.parent
        return {
            **self.snapshot(name).as_json(),
            "url": entry.url,
            "where": _where(entry.origin, base),
            "enabled": entry.enabled,
            "settings": _settings(entry, base),
        }

    def head(self) -> dict[str, Any]:
        """Its part of ``ps --json``, without tunnels: cheap enough to be looked at several times a second."""
        return {
            "generation": self._reloader.generation,
            "pid": os.getpid(),
            "config": self._reloader.status(),
        }

    @property
    def _drain_timeout(self) -> float | None:
        return self._reloader.manifest.supervisor.drain_timeout

    def _find(self, name: str) -> TunnelRunner:
        if name not in self._tunnels.keepers:
            raise UnknownTunnelError(name)
        return self._tunnels.keepers[name]


def _settings(entry: Entry, base: Path) -> dict[str, dict[str, Any]]:
    return {
        name: {
            "value": value,
            "source": origin.source if (origin := entry.origins.get(name)) else "built in",
            "where": _where(origin.place, base) if origin and origin.place else None,
        }
        for name, value in format_options(entry.spec).items()
    }


def _where(place: Place, base: Path) -> str:
    """A place as somebody who stands beside the file would write it."""
    path = place.path.relative_to(base) if place.path.is_relative_to(base) else place.path
    return f"{path}:{place.line}:{place.column}"

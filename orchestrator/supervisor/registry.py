"""All tunnels of a daemon: who keeps each of them running, and who is still being seen off."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from orchestrator.supervisor.runner import EngineFactory, TunnelRunner

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from orchestrator.config.manifest import Entry
    from tunnel.model.events import EventSink
    from tunnel.model.snapshot import Snapshot

DISABLED: Final = "disabled in the file"


class Tunnels:
    """Owner of the keepers: one for each entry, and those whose last visitors may finish."""

    def __init__(self, entries: Iterable[Entry], *, engine_factory: EngineFactory, sink: EventSink) -> None:
        self._make_engine = engine_factory
        self._sink = sink
        self.entries = {entry.name: entry for entry in entries}
        """what runs, or rests, in the order of the file"""
        self.keepers = {entry.name: self.make(entry) for entry in self.entries.values()}
        self.leaving: dict[TunnelRunner, asyncio.Task[None]] = {}
        """keepers of removed entries and of former engines, until their last visitor left"""
        self.is_closing = False
        """whether the end of all has begun"""

    # --- all of them ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Run every entry that is enabled."""
        for entry in self.entries.values():
            self.begin(entry)

    def drain(self, timeout: float | None, reason: str) -> None:
        """The end of all: let the present visitors finish."""
        self.is_closing = True
        for keeper in self.keepers.values():
            keeper.drain(timeout, reason)

    def close(self) -> None:
        """The end of all, now."""
        self.is_closing = True
        for keeper in (*self.keepers.values(), *self.leaving):
            keeper.close()

    def cancel(self) -> None:
        """Take their tasks away."""
        for keeper in (*self.keepers.values(), *self.leaving):
            keeper.cancel()

    async def wait(self) -> None:
        """Until all rest."""
        for keeper in (*self.keepers.values(), *self.leaving):
            await keeper.wait()

    # --- what can be seen -----------------------------------------------------------------------------------------

    def names(self) -> Collection[str]:
        """All tunnels, in the order of the file; then those that are gone from it and drain."""
        return dict.fromkeys((*self.keepers, *(keeper.name for keeper in self.leaving)))

    def snapshot(self, name: str) -> Snapshot | None:
        """One tunnel, if there is one of that name."""
        keepers = [keeper for keeper in self.leaving if keeper.name == name]
        if name in self.keepers:
            keepers.append(self.keepers[name])
        return _seen(keepers[-1], keepers[:-1]) if keepers else None

    # --- single keepers -------------------------------------------------------------------------------------------

    def make(self, entry: Entry) -> TunnelRunner:
        """A keeper that belongs to nobody yet."""
        return TunnelRunner(entry.name, entry.spec, engine_factory=self._make_engine, sink=self._sink, tags=entry.tags)

    def begin(self, entry: Entry) -> None:
        """Run an entry, if it shall run."""
        if entry.enabled and not self.is_closing:
            self.keepers[entry.name].start()
        else:
            self.keepers[entry.name].drain(reason="shutting down" if entry.enabled else DISABLED)

    def replace(self, old: TunnelRunner, entry: Entry, heir: TunnelRunner | None = None) -> None:
        """Put another keeper, a new one if none is given, in the place of an old one, who still has to be dismissed."""
        self.entries.pop(old.name, None)
        self.keepers.pop(old.name, None)
        self.entries[entry.name] = entry
        self.keepers[entry.name] = heir or self.make(entry)

    def dismiss(self, keeper: TunnelRunner, timeout: float | None, reason: str) -> None:
        """Let a keeper go; it is looked after until its last visitor left."""
        if self.keepers.get(keeper.name) is keeper:
            del self.keepers[keeper.name], self.entries[keeper.name]
        keeper.drain(timeout, reason)
        if keeper.is_running:
            self.leaving[keeper] = asyncio.create_task(self._see_off(keeper))

    async def _see_off(self, keeper: TunnelRunner) -> None:
        await keeper.wait()
        del self.leaving[keeper]


def _seen(keeper: TunnelRunner, earlier: Iterable[TunnelRunner]) -> Snapshot:
    """Visitors whom an earlier engine of the tunnel still serves are visitors of the tunnel."""
    seen = keeper.snapshot()
    active = sum(one.snapshot().connections.active for one in earlier)
    if not active:
        return seen
    return replace(seen, connections=replace(seen.connections, active=seen.connections.active + active))

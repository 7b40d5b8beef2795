"""All tunnels of a daemon, and how one configuration gives way to the next without anybody noticing who need not."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from orchestrator.defects import describe_defect
from orchestrator.handover import CHANGED, REMOVED, Claims, Handover, Step, given_up, patiently
from orchestrator.keeper import Keeper, MakeEngine
from orchestrator.plan import Result
from tunnel.spec import Role
from tunnel.state import State

if TYPE_CHECKING:
    from collections.abc import Iterable

    from orchestrator.manifest import Entry
    from orchestrator.plan import Change, Plan
    from tunnel.journal import EventSink
    from tunnel.state import Snapshot

_DISABLED: Final = "disabled in the file"


class Tunnels:
    """Owner of the keepers: one for each entry, and those whose last visitors may finish."""

    def __init__(self, entries: Iterable[Entry], *, make_engine: MakeEngine, sink: EventSink) -> None:
        self._make_engine = make_engine
        self._sink = sink
        self.entries = {entry.name: entry for entry in entries}
        """what runs, or rests, in the order of the file"""
        self.keepers = {entry.name: self.make(entry) for entry in self.entries.values()}
        self.leaving: dict[Keeper, asyncio.Task[None]] = {}
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

    def snapshots(self) -> tuple[Snapshot, ...]:
        """All tunnels, in the order of the file; then those that are gone from it and drain."""
        leaving: dict[str, list[Keeper]] = {}
        for keeper in self.leaving:
            leaving.setdefault(keeper.name, []).append(keeper)
        present = [_seen(keeper, leaving.pop(name, [])) for name, keeper in self.keepers.items()]
        return (*present, *(_seen(last, earlier) for *earlier, last in leaving.values()))

    def snapshot(self, name: str) -> Snapshot | None:
        """One tunnel, if there is one of that name."""
        keepers = [keeper for keeper in self.leaving if keeper.name == name]
        if name in self.keepers:
            keepers.append(self.keepers[name])
        return _seen(keepers[-1], keepers[:-1]) if keepers else None

    # --- from one configuration to the next -----------------------------------------------------------------------

    async def apply(self, plan: Plan, order: Iterable[Entry], drain_timeout: float | None) -> dict[str, Result]:
        """Do what the plan says; the result of each entry. Whoever is not named in the plan notices nothing.

        ``order`` is that of the new file. Changed and removed engines drain for ``drain_timeout`` at most.
        """
        results = {change.new.name: self._adopt(change, drain_timeout) for change in plan.change}
        steps = []
        for change in plan.restart:
            keeper = self.keepers[change.new.name]
            if keeper.is_wanted:
                steps.append(Step(change.new, keeper, change.texts))
            else:  # it rests by somebody's command, or in the file: so it shall, as somebody else
                keeper.respec(change.new.spec, change.new.tags)
                self.entries[change.new.name] = change.new
                results[change.new.name] = Result("changed", None, change.texts)
        removed = {entry.name: self.keepers[entry.name] for entry in plan.remove}
        claims = Claims(removed.values())
        added = []
        for entry in plan.add:
            candidates = claims.rivals(entry) if entry.enabled else ()
            namesake = next((keeper for keeper in candidates if keeper.is_wanted and keeper.name in removed), None)
            if namesake is None:
                added.append(entry)
            else:  # most likely it was given another name
                steps.append(Step(entry, removed.pop(namesake.name)))
                results[namesake.name] = Result("removed", f"{entry.name!r} takes its place")
        for name, keeper in removed.items():
            self.dismiss(keeper, drain_timeout, REMOVED)
            results[name] = Result("removed", _drain_text(keeper))
        results |= await Handover(self, drain_timeout).run(steps)
        results |= await self._add(added)
        for entry in plan.leave:
            self.entries[entry.name] = entry  # it may stand elsewhere in the file
            results[entry.name] = Result("unchanged")
        names = [entry.name for entry in order]
        self.keepers = {name: self.keepers[name] for name in names}
        self.entries = {name: self.entries[name] for name in names}
        return {name: results[name] for name in (*names, *(entry.name for entry in plan.remove))}

    def _adopt(self, change: Change, drain_timeout: float | None) -> Result:
        old, new = change.old, change.new
        keeper = self.keepers[new.name]
        if old.enabled and new.enabled:
            try:
                keeper.adopt(new.spec, new.tags)
            except Exception as error:  # noqa: BLE001  a defect of one engine: the reload of the others goes on
                keeper.complain(describe_defect(error))
                return Result("failed", describe_defect(error), change.texts)
            self.entries[new.name] = new
        elif new.enabled:
            self.replace(keeper, new)
            self.dismiss(keeper, drain_timeout, CHANGED)
            self.begin(new)
        else:
            keeper.drain(drain_timeout, _DISABLED)
            keeper.respec(new.spec, new.tags)
            self.entries[new.name] = new
        return Result("changed", None, change.texts)

    async def _add(self, entries: list[Entry]) -> dict[str, Result]:
        await given_up(self.leaving, entries)
        for entry in entries:
            self.entries[entry.name] = entry
            self.keepers[entry.name] = self.make(entry)
            self.begin(entry)
        starting = [self.keepers[entry.name] for entry in entries if entry.enabled]
        await patiently(lambda: any(one.snapshot().state is State.STARTING for one in starting))
        return {entry.name: _first_result(entry, self.keepers[entry.name].snapshot()) for entry in entries}

    # --- single keepers -------------------------------------------------------------------------------------------

    def make(self, entry: Entry) -> Keeper:
        """A keeper that belongs to nobody yet."""
        return Keeper(entry.name, entry.spec, make_engine=self._make_engine, sink=self._sink, tags=entry.tags)

    def begin(self, entry: Entry) -> None:
        """Run an entry, if it shall run."""
        if entry.enabled and not self.is_closing:
            self.keepers[entry.name].start()
        else:
            self.keepers[entry.name].drain(reason="shutting down" if entry.enabled else _DISABLED)

    def replace(self, old: Keeper, entry: Entry, heir: Keeper | None = None) -> None:
        """Put another keeper, a new one if none is given, in the place of an old one, who still has to be dismissed."""
        self.entries.pop(old.name, None)
        self.keepers.pop(old.name, None)
        self.entries[entry.name] = entry
        self.keepers[entry.name] = heir or self.make(entry)

    def dismiss(self, keeper: Keeper, timeout: float | None, reason: str) -> None:
        """Let a keeper go; it is looked after until its last visitor left."""
        if self.keepers.get(keeper.name) is keeper:
            del self.keepers[keeper.name], self.entries[keeper.name]
        keeper.drain(timeout, reason)
        if keeper.is_running:
            self.leaving[keeper] = asyncio.create_task(self._see_off(keeper))

    async def _see_off(self, keeper: Keeper) -> None:
        await keeper.wait()
        del self.leaving[keeper]


def _seen(keeper: Keeper, earlier: Iterable[Keeper]) -> Snapshot:
    """Visitors whom an earlier engine of the tunnel still serves are visitors of the tunnel."""
    seen = keeper.snapshot()
    active = sum(one.snapshot().connections.active for one in earlier)
    if not active:
        return seen
    return replace(seen, connections=replace(seen.connections, active=seen.connections.active + active))


def _first_result(entry: Entry, seen: Snapshot) -> Result:
    is_stuck = seen.state is State.FAILED or (seen.state is State.COOLDOWN and entry.spec.role is Role.SERVER)
    return Result("failed" if is_stuck else "added", seen.reason if is_stuck or not entry.enabled else None)


def _drain_text(keeper: Keeper) -> str | None:
    active = keeper.snapshot().connections.active
    return f"{active} {'visitor' if active == 1 else 'visitors'} may finish" if active else None

"""All tunnels of a daemon, and how one configuration gives way to the next without anybody noticing who need not."""

from __future__ import annotations

import asyncio
import errno
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Final

from orchestrator.keeper import Keeper, MakeEngine, describe_defect
from orchestrator.manifest import Entry, collides, listening
from orchestrator.plan import Result
from tunnel.net import NetError
from tunnel.spec import Direction, Mode, Role
from tunnel.state import State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from orchestrator.plan import Change, Plan
    from tunnel.journal import EventSink
    from tunnel.spec import Address, TunnelSpec
    from tunnel.state import Snapshot

_DISABLED: Final = "disabled in the file"
_REMOVED: Final = "removed from the file"
_CHANGED: Final = "its entry was changed"
_GIVEN_UP: Final = frozenset({State.DRAINING, State.STOPPED, State.FAILED})  # an engine has no listeners in these
_PATIENCE: Final = 0.5  # seconds for a listener of ours to be given up, so that another entry can have its address
_LOOK: Final = 0.02  # seconds between two tries


@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    """One keeper takes another's place."""

    entry: Entry
    keeper: Keeper
    changes: tuple[str, ...] = ()

    @property
    def result(self) -> Result:
        is_same = self.entry.name == self.keeper.name
        detail = None if is_same else f"it takes the place of {self.keeper.name!r}"
        return Result("restarted" if is_same else "added", detail, self.changes)


class Tunnels:
    """Owner of the keepers: one for each entry, and those whose last visitors may finish."""

    def __init__(self, entries: Iterable[Entry], *, make_engine: MakeEngine, sink: EventSink) -> None:
        self._make_engine = make_engine
        self._sink = sink
        self.entries = {entry.name: entry for entry in entries}
        """what runs, or rests, in the order of the file"""
        self.keepers = {entry.name: self._keeper(entry) for entry in self.entries.values()}
        self._leaving: dict[Keeper, asyncio.Task[None]] = {}
        self.is_closing = False
        """whether the end of all has begun"""

    # --- all of them ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Run every entry that is enabled."""
        for entry in self.entries.values():
            self._begin(entry)

    def drain(self, timeout: float | None, reason: str) -> None:
        """The end of all: let the present visitors finish."""
        self.is_closing = True
        for keeper in self.keepers.values():
            keeper.drain(timeout, reason)

    def close(self) -> None:
        """The end of all, now."""
        self.is_closing = True
        for keeper in (*self.keepers.values(), *self._leaving):
            keeper.close()

    def cancel(self) -> None:
        """Take their tasks away."""
        for keeper in (*self.keepers.values(), *self._leaving):
            keeper.cancel()

    async def wait(self) -> None:
        """Until all rest."""
        for keeper in (*self.keepers.values(), *self._leaving):
            await keeper.wait()

    # --- what can be seen -----------------------------------------------------------------------------------------

    def snapshots(self) -> tuple[Snapshot, ...]:
        """All tunnels, in the order of the file; then those that are gone from it and drain."""
        leaving: dict[str, list[Keeper]] = {}
        for keeper in self._leaving:
            leaving.setdefault(keeper.name, []).append(keeper)
        present = [_seen(keeper, leaving.pop(name, [])) for name, keeper in self.keepers.items()]
        return (*present, *(_seen(last, earlier) for *earlier, last in leaving.values()))

    def snapshot(self, name: str) -> Snapshot | None:
        """One tunnel, if there is one of that name."""
        keepers = [keeper for keeper in self._leaving if keeper.name == name]
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
                steps.append(_Step(change.new, keeper, change.texts))
            else:  # it rests by somebody's command, or in the file: so it shall, as somebody else
                keeper.respec(change.new.spec, change.new.tags)
                self.entries[change.new.name] = change.new
                results[change.new.name] = Result("changed", None, change.texts)
        removed = {entry.name: self.keepers[entry.name] for entry in plan.remove}
        added = []
        for entry in plan.add:
            namesake = _namesake(entry, removed.values()) if entry.enabled else None
            if namesake is None:
                added.append(entry)
            else:  # most likely it was given another name
                steps.append(_Step(entry, removed.pop(namesake.name)))
                results[namesake.name] = Result("removed", f"{entry.name!r} takes its place")
        for name, keeper in removed.items():
            self._dismiss(keeper, drain_timeout, _REMOVED)
            results[name] = Result("removed", _drain_text(keeper))
        results |= await self._hand_over(steps, drain_timeout)
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
            self._replace(keeper, new)
            self._dismiss(keeper, drain_timeout, _CHANGED)
            self._begin(new)
        else:
            keeper.drain(drain_timeout, _DISABLED)
            keeper.respec(new.spec, new.tags)
            self.entries[new.name] = new
        return Result("changed", None, change.texts)

    async def _hand_over(self, steps: list[_Step], drain_timeout: float | None) -> dict[str, Result]:
        """Every step, in whatever order their addresses allow."""
        results: dict[str, Result] = {}
        loop = asyncio.get_running_loop()
        until = loop.time() + _PATIENCE
        while steps:
            leaving = {keeper for keeper in self._leaving if not _has_given_up(keeper)}
            holders = leaving | {step.keeper for step in steps}
            failed: dict[_Step, Exception] = {}
            for step in steps:
                outcome = await self._succeed(step, drain_timeout)
                if isinstance(outcome, Result):
                    results[step.entry.name] = outcome
                else:
                    failed[step] = outcome
            is_hopeless = len(failed) == len(steps) and (not leaving or loop.time() > until)
            if is_hopeless:
                holders = {step.keeper for step in failed}
            waiting = [step for step, error in failed.items() if _may_come_free(step, error, holders)]
            for step in failed.keys() - set(waiting):
                results[step.entry.name] = self._reject(step, failed[step], drain_timeout)
            if is_hopeless and len(waiting) == len(steps):
                return results | await self._exchange(waiting, drain_timeout)
            steps = waiting
            if steps:
                await asyncio.sleep(_LOOK)
        return results

    async def _succeed(self, step: _Step, drain_timeout: float | None) -> Result | Exception:
        """The new engine binds, the old one drains; or what prevented it, and then the old one serves on."""
        heir = self._keeper(step.entry)
        result = step.result
        try:
            await heir.inherit(step.keeper)
        except Exception as error:  # noqa: BLE001  cannot bind, or a defect: the reload of the others goes on
            if _serves(step.keeper.snapshot()):
                return error
            result = Result("failed", _describe(error), step.changes)
        is_wanted = step.keeper.is_wanted  # somebody may have told it to rest meanwhile
        self._replace(step.keeper, step.entry, heir)
        self._dismiss(step.keeper, drain_timeout, _CHANGED)
        heir.start()
        if not is_wanted or self.is_closing:
            heir.drain(0.0)
        return result

    async def _exchange(self, steps: list[_Step], drain_timeout: float | None) -> dict[str, Result]:
        """Entries that want one another's addresses: none can bind before the other goes."""
        for step in steps:
            self._replace(step.keeper, step.entry)
            self._dismiss(step.keeper, drain_timeout, _CHANGED)
        await self._given_up([step.entry for step in steps])
        for step in steps:
            self._begin(step.entry)
        detail = "its address was in use by another changed entry: for a moment nobody listened"
        return {step.entry.name: Result("restarted", detail, step.changes) for step in steps}

    def _reject(self, step: _Step, error: Exception, drain_timeout: float | None) -> Result:
        why = _describe(error)
        if step.keeper.name == step.entry.name:
            step.keeper.complain(f"the change of the file is not in force: {why}")
            return Result("rejected", f"{why}; the tunnel serves on as it was before", step.changes)
        self._replace(step.keeper, step.entry)  # nobody has the old name any more
        self._dismiss(step.keeper, drain_timeout, _REMOVED)
        self._begin(step.entry)
        return Result("failed", why)

    async def _add(self, entries: list[Entry]) -> dict[str, Result]:
        await self._given_up(entries)
        for entry in entries:
            self.entries[entry.name] = entry
            self.keepers[entry.name] = self._keeper(entry)
            self._begin(entry)
        starting = [self.keepers[entry.name] for entry in entries if entry.enabled]
        await _patiently(lambda: any(one.snapshot().state is State.STARTING for one in starting))
        return {entry.name: _first_result(entry, self.keepers[entry.name].snapshot()) for entry in entries}

    async def _given_up(self, entries: list[Entry]) -> None:
        """Until nobody who leaves listens on addresses of these entries."""
        rivals = [keeper for keeper in self._leaving if any(_clash(entry, keeper) for entry in entries)]
        await _patiently(lambda: not all(map(_has_given_up, rivals)))

    # --- single keepers -------------------------------------------------------------------------------------------

    def _keeper(self, entry: Entry) -> Keeper:
        return Keeper(entry.name, entry.spec, make_engine=self._make_engine, sink=self._sink, tags=entry.tags)

    def _begin(self, entry: Entry) -> None:
        if entry.enabled and not self.is_closing:
            self.keepers[entry.name].start()
        else:
            self.keepers[entry.name].drain(reason="shutting down" if entry.enabled else _DISABLED)

    def _replace(self, old: Keeper, entry: Entry, heir: Keeper | None = None) -> None:
        self.entries.pop(old.name, None)
        self.keepers.pop(old.name, None)
        self.entries[entry.name] = entry
        self.keepers[entry.name] = heir or self._keeper(entry)

    def _dismiss(self, keeper: Keeper, timeout: float | None, reason: str) -> None:
        """Let a keeper go; it is looked after until its last visitor left."""
        if self.keepers.get(keeper.name) is keeper:
            del self.keepers[keeper.name], self.entries[keeper.name]
        keeper.drain(timeout, reason)
        if keeper.is_running:
            self._leaving[keeper] = asyncio.create_task(self._see_off(keeper))

    async def _see_off(self, keeper: Keeper) -> None:
        await keeper.wait()
        del self._leaving[keeper]


def _seen(keeper: Keeper, earlier: Iterable[Keeper]) -> Snapshot:
    """Visitors whom an earlier engine of the tunnel still serves are visitors of the tunnel."""
    seen = keeper.snapshot()
    active = sum(one.snapshot().connections.active for one in earlier)
    if not active:
        return seen
    return replace(seen, connections=replace(seen.connections, active=seen.connections.active + active))


def _clash(entry: Entry, keeper: Keeper) -> bool:
    return any(collides(one, other) for one, other in product(_addresses(entry.spec), _addresses(keeper.spec)))


def _addresses(spec: TunnelSpec) -> Iterator[Address]:
    yield from listening(spec)
    if spec.role is Role.CLIENT and spec.mode is Mode.AUTO:  # perhaps: only the running engine knows
        yield spec.target


def _may_come_free(step: _Step, error: Exception, holders: Iterable[Keeper]) -> bool:
    """Whether what a step wants is in use by one of our own who is about to go."""
    if not isinstance(error, NetError) or error.errno != errno.EADDRINUSE:
        return False
    return any(_clash(step.entry, holder) for holder in holders if holder is not step.keeper)


def _has_given_up(keeper: Keeper) -> bool:
    return keeper.snapshot().state in _GIVEN_UP


def _describe(error: Exception) -> str:
    return str(error) if isinstance(error, NetError) else describe_defect(error)


def _serves(seen: Snapshot) -> bool:
    """Whether an engine is worth keeping: not if it never got what it listens on itself."""
    is_entrance = seen.role == Role.CLIENT.value and seen.direction == Direction.FORWARD.value
    return seen.state is not State.COOLDOWN or seen.link is not None or is_entrance


async def _patiently(is_waiting: Callable[[], bool]) -> None:
    until = asyncio.get_running_loop().time() + _PATIENCE
    while is_waiting() and asyncio.get_running_loop().time() < until:  # noqa: ASYNC110  snapshots announce nothing
        await asyncio.sleep(_LOOK)


def _namesake(entry: Entry, keepers: Iterable[Keeper]) -> Keeper | None:
    """Of keepers that shall go the one whose addresses the entry listens on."""
    return next((keeper for keeper in keepers if keeper.is_wanted and _clash(entry, keeper)), None)


def _first_result(entry: Entry, seen: Snapshot) -> Result:
    is_stuck = seen.state is State.FAILED or (seen.state is State.COOLDOWN and entry.spec.role is Role.SERVER)
    return Result("failed" if is_stuck else "added", seen.reason if is_stuck or not entry.enabled else None)


def _drain_text(keeper: Keeper) -> str | None:
    active = keeper.snapshot().connections.active
    return f"{active} {'visitor' if active == 1 else 'visitors'} may finish" if active else None

"""From one configuration to the next, so that nobody notices who need not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.config.plan import EntryResult
from orchestrator.supervisor.crash_reports import describe_crash
from orchestrator.supervisor.handover import CHANGED, REMOVED, Claims, Handover, Step, given_up, patiently
from orchestrator.supervisor.registry import DISABLED
from tunnel.model.spec import Role
from tunnel.model.state import State

if TYPE_CHECKING:
    from collections.abc import Iterable

    from orchestrator.config.manifest import Entry
    from orchestrator.config.plan import EntryChange, Plan
    from orchestrator.supervisor.registry import Tunnels
    from orchestrator.supervisor.runner import TunnelRunner
    from tunnel.model.snapshot import Snapshot


async def apply(
    tunnels: Tunnels, plan: Plan, order: Iterable[Entry], drain_timeout: float | None
) -> dict[str, EntryResult]:
    """Do what the plan says; the result of each entry. Whoever is not named in the plan notices nothing.

    ``order`` is that of the new file. Changed and removed engines drain for ``drain_timeout`` at most.
    """
    results = {change.new.name: _adopt(tunnels, change, drain_timeout) for change in plan.change}
    steps = []
    for change in plan.restart:
        keeper = tunnels.keepers[change.new.name]
        if keeper.is_wanted:
            steps.append(Step(change.new, keeper, change.texts))
        else:  # it rests by somebody's command, or in the file: so it shall, as somebody else
            keeper.respec(change.new.spec, change.new.tags)
            tunnels.entries[change.new.name] = change.new
            results[change.new.name] = EntryResult("changed", None, change.texts)
    removed = {entry.name: tunnels.keepers[entry.name] for entry in plan.remove}
    claims = Claims(removed.values())
    added = []
    for entry in plan.add:
        candidates = claims.rivals(entry) if entry.enabled else ()
        namesake = next((keeper for keeper in candidates if keeper.is_wanted and keeper.name in removed), None)
        if namesake is None:
            added.append(entry)
        else:  # most likely it was given another name
            steps.append(Step(entry, removed.pop(namesake.name)))
            results[namesake.name] = EntryResult("removed", f"{entry.name!r} takes its place")
    for name, keeper in removed.items():
        tunnels.dismiss(keeper, drain_timeout, REMOVED)
        results[name] = EntryResult("removed", _drain_text(keeper))
    results |= await Handover(tunnels, drain_timeout).run(steps)
    results |= await _add(tunnels, added)
    for entry in plan.leave:
        tunnels.entries[entry.name] = entry  # it may stand elsewhere in the file
        results[entry.name] = EntryResult("unchanged")
    names = [entry.name for entry in order]
    tunnels.keepers = {name: tunnels.keepers[name] for name in names}
    tunnels.entries = {name: tunnels.entries[name] for name in names}
    return {name: results[name] for name in (*names, *(entry.name for entry in plan.remove))}


def _adopt(tunnels: Tunnels, change: EntryChange, drain_timeout: float | None) -> EntryResult:
    old, new = change.old, change.new
    keeper = tunnels.keepers[new.name]
    if old.enabled and new.enabled:
        try:
            keeper.adopt(new.spec, new.tags)
        except Exception as error:  # noqa: BLE001  a defect of one engine: the reload of the others goes on
            keeper.complain(describe_crash(error))
            return EntryResult("failed", describe_crash(error), change.texts)
        tunnels.entries[new.name] = new
    elif new.enabled:
        tunnels.replace(keeper, new)
        tunnels.dismiss(keeper, drain_timeout, CHANGED)
        tunnels.begin(new)
    else:
        keeper.drain(drain_timeout, DISABLED)
        keeper.respec(new.spec, new.tags)
        tunnels.entries[new.name] = new
    return EntryResult("changed", None, change.texts)


async def _add(tunnels: Tunnels, entries: list[Entry]) -> dict[str, EntryResult]:
    await given_up(tunnels.leaving, entries)
    for entry in entries:
        tunnels.entries[entry.name] = entry
        tunnels.keepers[entry.name] = tunnels.make(entry)
        tunnels.begin(entry)
    starting = [tunnels.keepers[entry.name] for entry in entries if entry.enabled]
    await patiently(lambda: any(one.snapshot().state is State.STARTING for one in starting))
    return {entry.name: _first_result(entry, tunnels.keepers[entry.name].snapshot()) for entry in entries}


def _first_result(entry: Entry, seen: Snapshot) -> EntryResult:
    is_stuck = seen.state is State.FAILED or (seen.state is State.COOLDOWN and entry.spec.role is Role.SERVER)
    return EntryResult("failed" if is_stuck else "added", seen.reason if is_stuck or not entry.enabled else None)


def _drain_text(keeper: TunnelRunner) -> str | None:
    active = keeper.snapshot().connections.active
    return f"{active} {'visitor' if active == 1 else 'visitors'} may finish" if active else None

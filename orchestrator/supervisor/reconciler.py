"""Makes what runs agree with a new configuration; tunnels that the plan does not name are not affected."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from orchestrator.config.plan import EntryResult
from orchestrator.supervisor.crash_reports import describe_crash
from orchestrator.supervisor.handover import CHANGED, RELEASE_TIMEOUT_S, REMOVED, AddressTable, Handover, Replacement
from orchestrator.supervisor.registry import DISABLED
from tunnel.model.spec import Role
from tunnel.model.state import State
from tunnel.model.wording import plural

if TYPE_CHECKING:
    from collections.abc import Iterable

    from orchestrator.config.manifest import Entry
    from orchestrator.config.plan import EntryChange, Plan
    from orchestrator.supervisor.registry import TunnelRegistry
    from orchestrator.supervisor.runner import TunnelRunner
    from tunnel.model.snapshot import Snapshot

START_TIMEOUT_S: Final = RELEASE_TIMEOUT_S
"""How long the result of a reload waits for added tunnels to leave the state ``starting``."""

Results = dict[str, EntryResult]


async def reconcile(
    registry: TunnelRegistry, plan: Plan, entries: Iterable[Entry], drain_timeout: float | None
) -> Results:
    """Carry out a plan; the result of each entry.

    ``entries`` are those of the new file, in its order. Changed and removed engines drain for ``drain_timeout``
    seconds at most.
    """
    return await _Reconciliation(registry, plan, drain_timeout).run([entry.name for entry in entries])


class _Reconciliation:
    def __init__(self, registry: TunnelRegistry, plan: Plan, drain_timeout: float | None) -> None:
        self._registry = registry
        self._plan = plan
        self._drain_timeout = drain_timeout
        self._results: Results = {}

    async def run(self, names: list[str]) -> Results:
        self._revoke_keys()
        for change in self._plan.change:
            self._results[change.new.name] = self._apply_change(change)
        replacements = self._restarts()
        removed = {entry.name: self._registry.runner(entry.name) for entry in self._plan.remove}
        renamed, added = self._match_renamed(removed)
        for runner in removed.values():
            self._registry.retire(runner, self._drain_timeout, REMOVED)
            self._results[runner.name] = EntryResult("removed", _describe_drain(runner))
        handover = Handover(self._registry, self._drain_timeout)
        self._results |= await handover.run([*replacements, *renamed])
        await handover.wait_until_released(added)
        await self._add(added)
        for entry in self._plan.leave:
            self._registry.update_entry(entry)  # its place in the file may have changed
            self._results[entry.name] = EntryResult("unchanged")
        self._registry.reorder(names)
        return {name: self._results[name] for name in (*names, *(entry.name for entry in self._plan.remove))}

    def _revoke_keys(self) -> None:
        """Update the named keys of all engines first, those of replaced and former ones too.

        An entry that is rejected afterwards keeps its engine, with the new keys. Unchanged entries are included: after
        a rejected change, the file may have the former keys again.
        """
        plan = self._plan
        entries = (*(change.new for change in (*plan.change, *plan.restart)), *plan.add, *plan.leave)
        keys = {entry.name: entry.spec.named_keys for entry in entries}
        for runner in self._registry.runners():
            try:
                runner.update_named_keys(keys.get(runner.name, ()))
            except Exception as error:  # noqa: BLE001  a crash of one engine: the reload of the others continues
                runner.set_last_error(describe_crash(error))

    def _apply_change(self, change: EntryChange) -> EntryResult:
        """A change that the running engine can apply, or that starts or stops the tunnel."""
        old, new = change.old, change.new
        runner = self._registry.runner(new.name)
        if old.enabled and new.enabled:
            try:
                runner.apply_live_settings(new.spec, new.tags)
            except Exception as error:  # noqa: BLE001  a crash of one engine: the reload of the others continues
                runner.set_last_error(describe_crash(error))
                return EntryResult("failed", describe_crash(error), change.texts)
            self._registry.update_entry(new)
        elif new.enabled:
            self._registry.replace(runner, new)
            self._registry.retire(runner, self._drain_timeout, CHANGED)
            self._registry.apply_enabled(new.name)
        else:
            runner.drain(self._drain_timeout, DISABLED)
            runner.update_spec(new.spec, new.tags)
            self._registry.update_entry(new)
        return EntryResult("changed", None, change.texts)

    def _restarts(self) -> list[Replacement]:
        """The replacements of running engines; a tunnel that is stopped stays so, with the new spec."""
        found = []
        for change in self._plan.restart:
            runner = self._registry.runner(change.new.name)
            if runner.is_wanted:
                found.append(Replacement(change.new, runner, change.texts))
            else:
                runner.update_spec(change.new.spec, change.new.tags)
                self._registry.update_entry(change.new)
                self._results[change.new.name] = EntryResult("changed", None, change.texts)
        return found

    def _match_renamed(self, removed: dict[str, TunnelRunner]) -> tuple[list[Replacement], list[Entry]]:
        """Added entries that want the address of a removed one, most likely renamed; and the other added ones.

        Takes the runners that are replaced out of ``removed``.
        """
        addresses = AddressTable(removed.values())
        renamed, added = [], []
        for entry in self._plan.add:
            candidates = addresses.conflicts(entry) if entry.enabled else ()
            old = next((runner for runner in candidates if runner.is_wanted and runner.name in removed), None)
            if old is None:
                added.append(entry)
            else:
                renamed.append(Replacement(entry, removed.pop(old.name)))
                self._results[old.name] = EntryResult("removed", f"{entry.name!r} takes its place")
        return renamed, added

    async def _add(self, entries: list[Entry]) -> None:
        runners = {entry.name: self._registry.add(entry) for entry in entries}
        starting = [runners[entry.name] for entry in entries if entry.enabled]
        await self._registry.wait_until(
            lambda: all(runner.snapshot().state is not State.STARTING for runner in starting), START_TIMEOUT_S
        )
        for entry in entries:
            self._results[entry.name] = _result_of_added(entry, runners[entry.name].snapshot())


def _result_of_added(entry: Entry, seen: Snapshot) -> EntryResult:
    is_stuck = seen.state is State.FAILED or (seen.state is State.COOLDOWN and entry.spec.role is Role.SERVER)
    return EntryResult("failed" if is_stuck else "added", seen.reason if is_stuck or not entry.enabled else None)


def _describe_drain(runner: TunnelRunner) -> str | None:
    active = runner.snapshot().connections.active
    return f"{plural(active, 'visitor')} may finish" if active else None

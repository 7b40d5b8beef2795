"""Replaces running engines by others while the old ones still serve, in whatever order their addresses allow."""

from __future__ import annotations

import asyncio
import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from orchestrator.config.address_claims import AddressClaim, ClaimTable, address_claims, visitor_claims
from orchestrator.config.manifest import Entry
from orchestrator.config.plan import EntryResult
from orchestrator.supervisor.crash_reports import describe_crash
from tunnel.model.spec import Direction, Mode, Role
from tunnel.model.state import STATES, State
from tunnel.runtime.sockets import NetError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from orchestrator.supervisor.registry import TunnelRegistry
    from orchestrator.supervisor.runner import TunnelRunner
    from tunnel.model.snapshot import Snapshot
    from tunnel.model.spec import TunnelSpec

REMOVED: Final = "removed from the file"
CHANGED: Final = "its entry was changed"

RELEASE_TIMEOUT_S: Final = 0.5
"""How long a reload waits for an engine that drains to close a listener whose address another entry wants."""

_RELEASED: Final = frozenset(state for state, info in STATES.items() if not info.is_listening)


class AddressTable:
    """The addresses on which tunnels listen, or may listen."""

    def __init__(self, runners: Iterable[TunnelRunner]) -> None:
        self._claims: ClaimTable[TunnelRunner] = ClaimTable()
        for runner in runners:
            for claim in _claims(runner.spec):
                self._claims.add(claim, runner)

    def conflicts(self, entry: Entry) -> Iterator[TunnelRunner]:
        """The tunnels that use an address which the entry wants and cannot share with them."""
        for wanted in _claims(entry.spec):
            for _, runner in self._claims.conflicts(wanted):
                yield runner


@dataclass(frozen=True, slots=True, eq=False)
class Replacement:
    """A runner that is to be replaced by another one, for ``entry``."""

    entry: Entry
    runner: TunnelRunner
    changes: tuple[str, ...] = ()

    @property
    def is_same_tunnel(self) -> bool:
        """Whether the entry has the runner's name; otherwise it is another tunnel that takes over the addresses."""
        return self.entry.name == self.runner.name

    @property
    def result(self) -> EntryResult:
        """The result where the replacement succeeds."""
        if self.is_same_tunnel:
            return EntryResult("restarted", None, self.changes)
        return EntryResult("added", f"it takes the place of {self.runner.name!r}", self.changes)


class Handover:
    """The replacements of one reload. Old engines drain for ``drain_timeout`` seconds at most."""

    def __init__(self, registry: TunnelRegistry, drain_timeout: float | None) -> None:
        self._registry = registry
        self._drain_timeout = drain_timeout

    async def run(self, replacements: list[Replacement]) -> dict[str, EntryResult]:
        """Make every replacement that can be made; the results by the name of the entry.

        In rounds: an address may come free by another replacement, or by an engine that drains.
        """
        results: dict[str, EntryResult] = {}
        loop = asyncio.get_running_loop()
        deadline = loop.time() + RELEASE_TIMEOUT_S
        while replacements:
            draining = self._holding_listeners()
            holders = draining | {one.runner for one in replacements}
            failed = await self._try_all(replacements, results)
            is_stuck = len(failed) == len(replacements) and (not draining or loop.time() > deadline)
            if is_stuck:
                holders = {one.runner for one in failed}
            addresses = AddressTable(holders)
            waiting = [one for one, error in failed.items() if _may_come_free(one, error, addresses)]
            for one in failed.keys() - set(waiting):
                results[one.entry.name] = self._reject(one, failed[one])
            if is_stuck and len(waiting) == len(replacements):
                return results | await self._exchange(waiting)
            replacements = waiting
            if replacements:
                await self._wait_for_release(deadline - loop.time())
        return results

    async def wait_until_released(self, entries: Iterable[Entry]) -> None:
        """Wait until no engine that drains listens on an address of these entries, for RELEASE_TIMEOUT_S at most."""
        addresses = AddressTable(self._registry.draining)
        holders = {runner for entry in entries for runner in addresses.conflicts(entry)}
        await self._registry.wait_until(lambda: all(map(_has_released, holders)), RELEASE_TIMEOUT_S)

    def _holding_listeners(self) -> set[TunnelRunner]:
        return {runner for runner in self._registry.draining if not _has_released(runner)}

    async def _wait_for_release(self, timeout_s: float) -> None:
        """Wait until the next engine that drains has closed its listeners, if there is one that has not."""
        holding = self._holding_listeners()
        if holding:
            await self._registry.wait_until(lambda: any(map(_has_released, holding)), max(0.0, timeout_s))
        await asyncio.sleep(0)

    async def _try_all(
        self, replacements: list[Replacement], results: dict[str, EntryResult]
    ) -> dict[Replacement, Exception]:
        """Try each; those that failed, with what prevented them."""
        failed: dict[Replacement, Exception] = {}
        for one in replacements:
            outcome = await self._try(one)
            if isinstance(outcome, EntryResult):
                results[one.entry.name] = outcome
            else:
                failed[one] = outcome
        return failed

    async def _try(self, one: Replacement) -> EntryResult | Exception:
        """Bind the new engine, then drain the old one; the error where that failed and the old engine serves on."""
        runner = self._registry.make_runner(one.entry)
        result = one.result
        try:
            await runner.take_over_from(one.runner)
        except Exception as error:  # noqa: BLE001  cannot bind, or a crash: the reload of the others continues
            if _is_worth_keeping(one.runner.snapshot()):
                return error
            result = EntryResult("failed", _describe(error), one.changes)
        is_wanted = one.runner.is_wanted  # a command may have stopped it meanwhile
        self._registry.replace(one.runner, one.entry, runner)
        self._registry.retire(one.runner, self._drain_timeout, CHANGED)
        runner.start()
        if not is_wanted or self._registry.is_closing:
            runner.drain(0.0)
        return result

    async def _exchange(self, replacements: list[Replacement]) -> dict[str, EntryResult]:
        """Entries that want the addresses of one another: none can bind before the other closes."""
        for one in replacements:
            self._retire(one)
        await self.wait_until_released([one.entry for one in replacements])
        for one in replacements:
            self._registry.apply_enabled(one.entry.name)
        detail = "its address was in use by another changed entry: there was no listener for a moment"
        return {one.entry.name: EntryResult("restarted", detail, one.changes) for one in replacements}

    def _reject(self, one: Replacement, error: Exception) -> EntryResult:
        reason = _describe(error)
        if one.is_same_tunnel:
            one.runner.set_last_error(f"the change of the file is not in force: {reason}")
            return EntryResult("rejected", f"{reason}; the tunnel keeps running as before", one.changes)
        self._retire(one)  # the old name is not in the file any more
        self._registry.apply_enabled(one.entry.name)
        return EntryResult("failed", reason)

    def _retire(self, one: Replacement) -> None:
        self._registry.replace(one.runner, one.entry)
        self._registry.retire(one.runner, self._drain_timeout, CHANGED if one.is_same_tunnel else REMOVED)


def _claims(spec: TunnelSpec) -> Iterator[AddressClaim]:
    yield from address_claims(spec)
    is_undecided = spec.role is Role.CLIENT and spec.mode is Mode.AUTO  # only the running engine knows its direction
    if is_undecided and not spec.targets:
        yield from visitor_claims(spec)


def _may_come_free(one: Replacement, error: Exception, addresses: AddressTable) -> bool:
    """Whether the address is in use by another of our tunnels, which is about to close it."""
    if not isinstance(error, NetError) or error.errno != errno.EADDRINUSE:
        return False
    return any(runner is not one.runner for runner in addresses.conflicts(one.entry))


def _has_released(runner: TunnelRunner) -> bool:
    return runner.snapshot().state in _RELEASED


def _is_worth_keeping(seen: Snapshot) -> bool:
    """Whether an engine serves visitors: not if it never got the addresses of its listeners."""
    is_ingress = seen.role == Role.CLIENT.value and seen.direction == Direction.FORWARD.value
    return seen.state is not State.COOLDOWN or seen.link is not None or is_ingress


def _describe(error: Exception) -> str:
    return str(error) if isinstance(error, NetError) else describe_crash(error)

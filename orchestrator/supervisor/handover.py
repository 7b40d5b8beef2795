"""Changed entries get other engines while the old ones still serve, in whatever order their addresses allow."""

from __future__ import annotations

import asyncio
import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from orchestrator.config.manifest import Entry, addresses_conflict, listen_addresses
from orchestrator.config.plan import EntryResult
from orchestrator.supervisor.crash_reports import describe_crash
from tunnel.model.spec import Direction, Mode, Role
from tunnel.model.state import STATES, State
from tunnel.runtime.sockets import NetError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from orchestrator.supervisor.registry import Tunnels
    from orchestrator.supervisor.runner import TunnelRunner
    from tunnel.model.address import Address
    from tunnel.model.snapshot import Snapshot
    from tunnel.model.spec import TunnelSpec

REMOVED: Final = "removed from the file"
CHANGED: Final = "its entry was changed"

_GIVEN_UP: Final = frozenset(state for state, info in STATES.items() if not info.is_listening)
_PATIENCE: Final = 0.5  # seconds for a listener of ours to be given up, so that another entry can have its address
_LOOK: Final = 0.02  # seconds between two looks


class Claims:
    """Who listens, or may listen, on which address."""

    def __init__(self, keepers: Iterable[TunnelRunner]) -> None:
        self._by_port: dict[int, list[tuple[Address, TunnelRunner]]] = {}
        for keeper in keepers:
            for address in _addresses(keeper.spec):
                self._by_port.setdefault(address.port, []).append((address, keeper))

    def rivals(self, entry: Entry) -> Iterator[TunnelRunner]:
        """Those in whose way the entry is."""
        for wanted in _addresses(entry.spec):
            for address, keeper in self._by_port.get(wanted.port, ()):
                if addresses_conflict(wanted, address):
                    yield keeper


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """A keeper whose place is taken by another one, for ``entry``."""

    entry: Entry
    keeper: TunnelRunner
    changes: tuple[str, ...] = ()

    @property
    def is_same(self) -> bool:
        """Whether it is the same tunnel; else the entry has another name and takes over the addresses."""
        return self.entry.name == self.keeper.name

    @property
    def result(self) -> EntryResult:
        """What there is to say when it is done."""
        detail = None if self.is_same else f"it takes the place of {self.keeper.name!r}"
        return EntryResult("restarted" if self.is_same else "added", detail, self.changes)


class Handover:
    """One reload's changes of keepers. Old engines drain for ``drain_timeout`` at most."""

    def __init__(self, tunnels: Tunnels, drain_timeout: float | None) -> None:
        self._tunnels = tunnels
        self._drain_timeout = drain_timeout

    async def run(self, steps: list[Step]) -> dict[str, EntryResult]:
        """Take every step that can be taken; the result by the name of its entry."""
        results: dict[str, EntryResult] = {}
        loop = asyncio.get_running_loop()
        until = loop.time() + _PATIENCE
        while steps:
            leaving = {keeper for keeper in self._tunnels.leaving if not _has_given_up(keeper)}
            holders = leaving | {step.keeper for step in steps}
            failed: dict[Step, Exception] = {}
            for step in steps:
                outcome = await self._succeed(step)
                if isinstance(outcome, EntryResult):
                    results[step.entry.name] = outcome
                else:
                    failed[step] = outcome
            is_hopeless = len(failed) == len(steps) and (not leaving or loop.time() > until)
            if is_hopeless:
                holders = {step.keeper for step in failed}
            claims = Claims(holders)
            waiting = [step for step, error in failed.items() if _may_come_free(step, error, claims)]
            for step in failed.keys() - set(waiting):
                results[step.entry.name] = self._reject(step, failed[step])
            if is_hopeless and len(waiting) == len(steps):
                return results | await self._exchange(waiting)
            steps = waiting
            if steps:
                await asyncio.sleep(_LOOK)
        return results

    async def _succeed(self, step: Step) -> EntryResult | Exception:
        """The new engine binds, the old one drains; or what prevented it, and then the old one serves on."""
        heir = self._tunnels.make(step.entry)
        result = step.result
        try:
            await heir.inherit(step.keeper)
        except Exception as error:  # noqa: BLE001  cannot bind, or a defect: the reload of the others goes on
            if _serves(step.keeper.snapshot()):
                return error
            result = EntryResult("failed", _describe(error), step.changes)
        is_wanted = step.keeper.is_wanted  # somebody may have told it to rest meanwhile
        self._tunnels.replace(step.keeper, step.entry, heir)
        self._tunnels.dismiss(step.keeper, self._drain_timeout, CHANGED)
        heir.start()
        if not is_wanted or self._tunnels.is_closing:
            heir.drain(0.0)
        return result

    async def _exchange(self, steps: list[Step]) -> dict[str, EntryResult]:
        """Entries that want one another's addresses: none can bind before the other goes."""
        for step in steps:
            self._replace(step)
        await given_up(self._tunnels.leaving, [step.entry for step in steps])
        for step in steps:
            self._tunnels.begin(step.entry)
        detail = "its address was in use by another changed entry: for a moment nobody listened"
        return {step.entry.name: EntryResult("restarted", detail, step.changes) for step in steps}

    def _reject(self, step: Step, error: Exception) -> EntryResult:
        why = _describe(error)
        if step.is_same:
            step.keeper.complain(f"the change of the file is not in force: {why}")
            return EntryResult("rejected", f"{why}; the tunnel serves on as it was before", step.changes)
        self._replace(step)  # nobody has the old name any more
        self._tunnels.begin(step.entry)
        return EntryResult("failed", why)

    def _replace(self, step: Step) -> None:
        self._tunnels.replace(step.keeper, step.entry)
        self._tunnels.dismiss(step.keeper, self._drain_timeout, CHANGED if step.is_same else REMOVED)


async def given_up(leaving: Iterable[TunnelRunner], entries: Iterable[Entry]) -> None:
    """Until nobody who leaves listens on addresses of these entries, within half a second."""
    claims = Claims(leaving)
    rivals = {rival for entry in entries for rival in claims.rivals(entry)}
    await patiently(lambda: not all(map(_has_given_up, rivals)))


async def patiently(is_waiting: Callable[[], bool]) -> None:
    """Until there is nothing to wait for, or half a second."""
    until = asyncio.get_running_loop().time() + _PATIENCE
    while is_waiting() and asyncio.get_running_loop().time() < until:  # noqa: ASYNC110  snapshots announce nothing
        await asyncio.sleep(_LOOK)


def _addresses(spec: TunnelSpec) -> Iterator[Address]:
    yield from listen_addresses(spec)
    if spec.role is Role.CLIENT and spec.mode is Mode.AUTO:  # perhaps: only the running engine knows
        yield spec.target


def _may_come_free(step: Step, error: Exception, claims: Claims) -> bool:
    """Whether what a step wants is in use by one of our own who is about to go."""
    if not isinstance(error, NetError) or error.errno != errno.EADDRINUSE:
        return False
    return any(rival is not step.keeper for rival in claims.rivals(step.entry))


def _has_given_up(keeper: TunnelRunner) -> bool:
    return keeper.snapshot().state in _GIVEN_UP


def _serves(seen: Snapshot) -> bool:
    """Whether an engine is worth keeping: not if it never got what it listens on itself."""
    is_entrance = seen.role == Role.CLIENT.value and seen.direction == Direction.FORWARD.value
    return seen.state is not State.COOLDOWN or seen.link is not None or is_entrance


def _describe(error: Exception) -> str:
    return str(error) if isinstance(error, NetError) else describe_crash(error)

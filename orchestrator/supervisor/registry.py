"""All tunnels of a daemon: the entry and the runner of each, and former runners whose last visitors may finish."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from functools import partial, reduce
from typing import TYPE_CHECKING, Final, NamedTuple

from orchestrator.errors import OrchestratorError
from orchestrator.supervisor.engine_handle import EngineFactory
from orchestrator.supervisor.runner import RunnerFacts, TunnelRunner
from orchestrator.supervisor.totals import NO_TOTALS, Totals, add_totals, read_totals
from orchestrator.supervisor.traffic_rates import TrafficMeter
from tunnel.model.snapshot import TrafficReading

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Sequence

    from orchestrator.config.manifest import Entry
    from tunnel.model.events import EventSink
    from tunnel.model.snapshot import Snapshot
    from tunnel.model.visitors import VisitorSelector, VisitorView

DISABLED: Final = "disabled in the file"


class UnknownTunnelError(OrchestratorError, LookupError):
    """No tunnel has that name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no tunnel is named {name[:200]!r}")


def _ignore(_name: str) -> None:
    """No published tunnel is observed."""


class _Slot(NamedTuple):
    entry: Entry
    runner: TunnelRunner


class TunnelFacts(NamedTuple):
    """What the snapshot of a tunnel is made from, cheap to compare."""

    is_enabled: bool
    rates_version: int
    runners: tuple[RunnerFacts, ...]
    """of the former runners that still drain, and of the present one last"""


class TunnelRegistry:
    """Owns entries and runners; nothing else adds, replaces or removes one."""

    def __init__(self, entries: Iterable[Entry], *, engine_factory: EngineFactory, sink: EventSink) -> None:
        self._engine_factory = engine_factory
        self._sink = sink
        self.traffic_meter: Final = TrafficMeter()
        self._state_changed = asyncio.Event()
        self._draining: dict[TunnelRunner, asyncio.Task[None]] = {}
        self._is_closing = False
        self._removal_subscribers: list[Callable[[str, Snapshot], None]] = []
        self._slots = {entry.name: _Slot(entry, self.make_runner(entry)) for entry in entries}
        """in the order of the file, then those that clients have published"""
        self._published_subscriber: Callable[[str], None] = _ignore

    @property
    def is_closing(self) -> bool:
        """Whether the daemon is shutting down: no runner is started any more."""
        return self._is_closing

    @property
    def draining(self) -> Collection[TunnelRunner]:
        """Runners of removed entries and of former engines, until their last visitor has left."""
        return self._draining.keys()

    # --- all tunnels ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start every enabled entry."""
        for name in self._slots:
            self.apply_enabled(name)

    def drain(self, timeout: float | None, reason: str) -> None:
        """Shut down: drain every tunnel."""
        self._is_closing = True
        for _, runner in self._slots.values():
            runner.drain(timeout, reason)

    def close(self) -> None:
        """Shut down now: close every tunnel."""
        self._is_closing = True
        for runner in self.runners():
            runner.close()

    def cancel(self) -> None:
        """Cancel the tasks of all tunnels."""
        for runner in self.runners():
            runner.cancel()

    async def wait_stopped(self) -> None:
        """Wait until all tunnels are stopped."""
        for runner in self.runners():
            await runner.wait()

    def runners(self) -> Iterator[TunnelRunner]:
        """Every runner: those of the entries, and former ones that still drain."""
        yield from [*(runner for _, runner in self._slots.values()), *self._draining]

    # --- reading --------------------------------------------------------------------------------------------------

    def entries(self) -> tuple[Entry, ...]:
        """All entries: those of the file in its order, then those that clients have published."""
        return tuple(entry for entry, _ in self._slots.values())

    def file_entries(self) -> tuple[Entry, ...]:
        """The entries of the file, in its order."""
        return tuple(entry for entry, _ in self._slots.values() if entry.publisher is None)

    def published_entries(self) -> tuple[Entry, ...]:
        """The tunnels that clients have published, in the order in which they came."""
        return tuple(entry for entry, _ in self._slots.values() if entry.publisher is not None)

    def entry(self, name: str) -> Entry | None:
        """The entry of that name; None where there is none, or none any more."""
        slot = self._slots.get(name)
        return None if slot is None else slot.entry

    def runner(self, name: str) -> TunnelRunner:
        """The runner of that entry. Raises UnknownTunnelError."""
        slot = self._slots.get(name)
        if slot is None:
            raise UnknownTunnelError(name)
        return slot.runner

    def names(self) -> Collection[str]:
        """All tunnels in the order of the file; then those that were removed from it and drain."""
        return dict.fromkeys((*self._slots, *(runner.name for runner in self._draining)))

    async def visitors(self, name: str) -> AsyncIterator[Sequence[VisitorView]]:
        """Yield the visitors of a tunnel in slices, those of former engines first. Raises EngineSilentError."""
        for runner in self._runners_of(name):
            async for visitors in runner.visitors():
                yield visitors

    async def kick(self, name: str, selector: VisitorSelector) -> list[VisitorView]:
        """Disconnect visitors of a tunnel, also of its former engines. Raises EngineSilentError."""
        return [visitor for runner in self._runners_of(name) for visitor in await runner.kick(selector)]

    def facts(self, name: str) -> TunnelFacts | None:
        """What a snapshot of a tunnel as it is now is made from; None where there is no such tunnel."""
        slot = self._slots.get(name)
        is_enabled = slot is None or slot.entry.enabled
        runners = tuple(runner.facts() for runner in self._runners_of(name))
        return TunnelFacts(is_enabled, self.traffic_meter.version(name), runners) if runners else None

    def snapshot(self, name: str) -> Snapshot:
        """One tunnel now. Visitors and counters of former engines are the tunnel's. Raises UnknownTunnelError."""
        facts = self.facts(name)
        if facts is None:
            raise UnknownTunnelError(name)
        return self.build_snapshot(name, facts)

    def build_snapshot(self, name: str, facts: TunnelFacts) -> Snapshot:
        """Return the snapshot of a tunnel from facts that were read at this moment."""
        *former, seen = (runner.snapshot() for runner in facts.runners)
        if not facts.is_enabled:
            seen = replace(seen, enabled=False)
        if former:
            active = seen.connections.active + sum(one.connections.active for one in former)
            seen = add_totals(seen, reduce(Totals.plus, map(read_totals, former), NO_TOTALS))
            seen = replace(seen, connections=replace(seen.connections, active=active))
        return self.traffic_meter.add_rates(name, seen)

    def read_traffic(self, name: str) -> TrafficReading:
        """The bytes and the visitors of a tunnel, also of its former engines. Raises UnknownTunnelError."""
        readings = [runner.read_traffic() for runner in self._runners_of(name)]
        if not readings:
            raise UnknownTunnelError(name)
        return readings[0] if len(readings) == 1 else TrafficReading(*map(sum, zip(*readings, strict=True)))

    def _runners_of(self, name: str) -> list[TunnelRunner]:
        """The former runners of a tunnel that still drain, and its present one last."""
        found = [runner for runner in self._draining if runner.name == name] if self._draining else []
        if (slot := self._slots.get(name)) is not None:
            found.append(slot.runner)
        return found

    async def wait_until(self, condition: Callable[[], bool], timeout_s: float) -> None:
        """Wait until the condition holds, for ``timeout_s`` at most; it is checked when a tunnel changes its state."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not condition():
                    self._state_changed.clear()
                    await self._state_changed.wait()

    def subscribe_removals(self, callback: Callable[[str, Snapshot], None]) -> None:
        """Call ``callback`` with the name and the last snapshot of each tunnel that was removed and has ended."""
        self._removal_subscribers.append(callback)

    def subscribe_published(self, callback: Callable[[str], None]) -> None:
        """Call ``callback`` with the name of each published tunnel whose state changes; there is one subscriber."""
        self._published_subscriber = callback

    # --- changing -------------------------------------------------------------------------------------------------

    def make_runner(self, entry: Entry) -> TunnelRunner:
        """A runner for an entry; ``replace`` or ``add`` registers it."""
        return TunnelRunner(
            entry.name,
            entry.spec,
            engine_factory=self._engine_factory,
            sink=self._sink,
            tags=entry.tags,
            on_state_change=self._state_changed.set
            if entry.publisher is None
            else partial(self._on_published_state, entry.name),
        )

    def _on_published_state(self, name: str) -> None:
        self._state_changed.set()
        self._published_subscriber(name)

    def add(self, entry: Entry) -> TunnelRunner:
        """Add a new entry with a new runner, started if it is enabled."""
        self._slots[entry.name] = _Slot(entry, self.make_runner(entry))
        self.apply_enabled(entry.name)
        return self._slots[entry.name].runner

    def apply_enabled(self, name: str) -> None:
        """Start or stop a tunnel as its entry says."""
        entry, runner = self._slots[name]
        if entry.enabled and not self._is_closing:
            runner.start()
        else:
            runner.drain(reason="shutting down" if entry.enabled else DISABLED)

    def update_entry(self, entry: Entry) -> None:
        """Take over a changed entry whose runner stays."""
        self._slots[entry.name] = _Slot(entry, self._slots[entry.name].runner)

    def replace(self, old: TunnelRunner, entry: Entry, runner: TunnelRunner | None = None) -> None:
        """Register another runner, by default a new one, in place of an old one; ``retire`` the old one afterwards."""
        self._slots.pop(old.name, None)
        self._slots[entry.name] = _Slot(entry, runner or self.make_runner(entry))

    def retire(self, runner: TunnelRunner, timeout: float | None, reason: str) -> None:
        """Drain a runner, and remove it if it is still registered; it is kept until its last visitor has left."""
        slot = self._slots.get(runner.name)
        if slot is not None and slot.runner is runner:
            del self._slots[runner.name]
        elif slot is not None:
            runner.set_former()
        runner.drain(timeout, reason)
        if runner.is_running:
            self._draining[runner] = asyncio.create_task(self._await_drained(runner))
        else:
            self._pass_totals_on(runner)

    def reorder(self, names: Iterable[str]) -> None:
        """Take over the order of the file; tunnels that clients have published come after it."""
        published = (entry.name for entry in self.published_entries())
        self._slots = {name: self._slots[name] for name in (*names, *published)}

    async def _await_drained(self, runner: TunnelRunner) -> None:
        await runner.wait()
        del self._draining[runner]
        self._pass_totals_on(runner)

    def _pass_totals_on(self, ended: TunnelRunner) -> None:
        """Let another runner of the tunnel count what an ended one has counted; without one the tunnel is gone."""
        others = [runner for runner in self._runners_of(ended.name) if runner is not ended]
        if others:
            others[-1].absorb_totals(ended)
            return
        self.traffic_meter.forget(ended.name)
        last = ended.snapshot()
        for notify in self._removal_subscribers:
            notify(ended.name, last)

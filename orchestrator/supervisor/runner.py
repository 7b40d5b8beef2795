"""Runs one tunnel: starts its engine, and starts another one after a crash."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from orchestrator.supervisor.crash_reports import describe_crash, restart_delay, short_traceback
from orchestrator.supervisor.engine_handle import EngineFactory, EngineHandle
from orchestrator.supervisor.runner_state import AT_REST, ENDING, TRANSITIONS, UNWANTED, RunnerEvent, RunnerState
from orchestrator.supervisor.totals import NO_TOTALS, Totals, add_totals, read_totals, replace_totals
from tunnel.model.events import Event, EventKind
from tunnel.model.snapshot import (
    EMPTY_READING,
    BytesView,
    ConnectionsView,
    CooldownView,
    PoolView,
    RefusedView,
    SignalsView,
    Snapshot,
    TrafficReading,
)
from tunnel.model.spec import LogLevel, TunnelSpec
from tunnel.model.state import State
from tunnel.model.times import format_timestamp

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from tunnel.model.events import EventSink
    from tunnel.model.keys import NamedKey
    from tunnel.model.snapshot import QuotaView
    from tunnel.model.tunnel_test import LegResult
    from tunnel.model.visitors import VisitorSelector, VisitorView

STABLE_AFTER_S: Final = 60.0
"""An engine that ran this long before it crashed starts a new series of crashes."""


def stopped_snapshot(name: str, spec: TunnelSpec, reason: str | None = None) -> Snapshot:
    """The snapshot of a tunnel without an engine."""
    limits = spec.settings
    return Snapshot(
        name=name,
        role=spec.role.value,
        state=State.STOPPED,
        reason=reason,
        since=format_timestamp(time.time()),
        tunnel_addr=spec.tunnel_text,
        target_addr=spec.target_text,
        auth=spec.auth,
        service=spec.service,
        proto=spec.proto.value,
        published_by=spec.published_by,
        data_tls=int(spec.data_tls),
        clients=spec.max_links,
        pool=PoolView(min=limits.min_pool_capacity, max=limits.max_pool_capacity),
        signals=SignalsView(limit=limits.signal_queue_limit),
        connections=ConnectionsView(limit=limits.semaphore_limit),
        bytes=BytesView(),
        refused=RefusedView(),
        cooldown=CooldownView(),
    )


class RunnerFacts(NamedTuple):
    """What a snapshot is made from. Comparing it costs less than the copies that ``snapshot`` makes."""

    engine: Snapshot
    totals: Totals
    """of the engines that have ended"""
    tags: tuple[str, ...]
    restarts: int
    quota: QuotaView | None
    last_error: str | None
    last_error_at: str | None
    pause_remaining_s: float

    def snapshot(self) -> Snapshot:
        """Return the tunnel as it was when this was read."""
        seen = add_totals(self.engine, self.totals)
        if self.pause_remaining_s:
            seen = replace(seen, cooldown=replace(seen.cooldown, remaining_s=self.pause_remaining_s))
        if self.last_error_at and self.last_error_at >= (seen.last_error_at or ""):
            seen = replace(seen, last_error=self.last_error, last_error_at=self.last_error_at)
        if seen.tags != self.tags or seen.restarts != self.restarts:
            seen = replace(seen, tags=self.tags, restarts=self.restarts)
        return seen if self.quota is None else replace(seen, quota=self.quota)


class TunnelRunner:
    """Owns a tunnel's engines, one after the other, and the task that runs them."""

    def __init__(
        self,
        name: str,
        spec: TunnelSpec,
        *,
        engine_factory: EngineFactory,
        sink: EventSink,
        tags: tuple[str, ...] = (),
        on_state_change: Callable[[], None] = lambda: None,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """``on_state_change`` is called after each change of the state in the snapshot; it must not raise."""
        self.name = name
        self.spec = spec
        self._engine_factory = engine_factory
        self._sink = sink
        self._tags = tags
        self._on_state_change = on_state_change
        self._uniform = uniform
        self._state = RunnerState.STOPPED
        self._engine: EngineHandle | None = None
        self._prepared: EngineHandle | None = None  # has its listeners already
        self._task: asyncio.Task[None] | None = None
        self._idle = stopped_snapshot(name, spec, "not started")  # shown while there is no engine
        self._pause_ended = asyncio.Event()
        self._paused_until = 0.0
        self._drain_reason = ""
        self._crashes_in_a_row = 0
        self._restarts = 0
        self._totals = NO_TOTALS  # of the engines that have ended
        self._is_former = False
        self._quota: QuotaView | None = None
        self._refusal: str | None = None
        self._last_error: str | None = None
        self._last_error_at: str | None = None

    # --- what can be seen -----------------------------------------------------------------------------------------

    @property
    def is_running(self) -> bool:
        """Whether there is an engine, or one will follow without a command."""
        return self._task is not None and not self._task.done()

    @property
    def is_wanted(self) -> bool:
        """Whether the last command was to run."""
        return self._state not in UNWANTED

    def snapshot(self) -> Snapshot:
        """The tunnel as it is now."""
        return self.facts().snapshot()

    def facts(self) -> RunnerFacts:
        """What a snapshot of the tunnel as it is now is made from."""
        return RunnerFacts(
            self._read_engine(),
            self._totals,
            self._tags,
            self._restarts,
            self._quota,
            self._last_error,
            self._last_error_at,
            self._pause_remaining_s(),
        )

    def read_traffic(self) -> TrafficReading:
        """The bytes relayed by all its engines so far, and the visitors present."""
        seen = EMPTY_READING if self._engine is None else self._engine.read_traffic()
        totals = self._totals
        return TrafficReading(
            seen.from_visitors + totals.from_visitors, seen.to_visitors + totals.to_visitors, seen.active
        )

    def _read_engine(self) -> Snapshot:
        if self._engine is None:
            return self._idle
        try:
            return self._engine.snapshot()
        except Exception as error:  # noqa: BLE001  one engine that cannot be read must not hide all others
            return replace(self._idle, reason=describe_crash(error))

    def _pause_remaining_s(self) -> float:
        return round(max(0.0, self._paused_until - time.monotonic()), 3) if self._paused_until else 0.0

    async def visitors(self) -> AsyncIterator[Sequence[VisitorView]]:
        """Yield the present visitors in slices. Raises EngineSilentError."""
        if self._engine is not None:
            async for visitors in self._engine.visitors():
                yield visitors

    async def kick(self, selector: VisitorSelector) -> list[VisitorView]:
        """Disconnect visitors at once; return what was disconnected. Raises EngineSilentError."""
        return [] if self._engine is None else await self._engine.kick(selector)

    async def test(self) -> Sequence[LegResult]:
        """Time the legs of a visitor's way; none where the tunnel does not run. Raises EngineSilentError."""
        return [] if self._engine is None else await self._engine.test()

    # --- configuration --------------------------------------------------------------------------------------------

    async def take_over_from(self, predecessor: TunnelRunner) -> None:
        """Before ``start``: bind the listeners of the first engine while the predecessor's engine still serves.

        Raises NetError, and then the predecessor is as it was. Otherwise it may have lost its listeners: drain it.
        """
        self._restarts, old = predecessor._restarts, predecessor._replaceable_engine()
        if old is None:
            return
        engine = self._make_engine()
        try:
            await engine.prepare(old)
        except BaseException:
            engine.close()
            raise
        self._prepared = engine

    def _replaceable_engine(self) -> EngineHandle | None:
        return None if self._state in ENDING else self._engine

    def absorb_totals(self, predecessor: TunnelRunner) -> None:
        """Count what a former runner of this tunnel has counted; it must have ended."""
        self._totals = self._totals.plus(read_totals(predecessor.snapshot()))

    def set_former(self) -> None:
        """Another runner serves the tunnel now: state changes of this one's engine are not those of the tunnel."""
        self._is_former = True

    def update_spec(self, spec: TunnelSpec, tags: tuple[str, ...]) -> None:
        """Change what later engines are made from."""
        self.spec = spec
        self._tags = tags
        idle = self._idle
        self._idle = replace(stopped_snapshot(self.name, spec), state=idle.state, reason=idle.reason, since=idle.since)

    def apply_live_settings(self, spec: TunnelSpec, tags: tuple[str, ...]) -> None:
        """Change log level, settings and tags, of the present engine too. Raises what a broken engine raises."""
        self.update_spec(spec, tags)
        if self._engine:
            self._engine.apply_live_settings(spec)

    def update_named_keys(self, keys: tuple[NamedKey, ...]) -> None:
        """Revoke keys in the present engine, also in one that drains or is about to be replaced.

        Without named keys before or afterwards nothing changes: another engine is needed, and no keys at all would
        open the tunnel. Raises what a broken engine raises.
        """
        if self.spec.named_keys and keys and self.spec.named_keys != keys:
            self.spec = replace(self.spec, named_keys=keys)
            if self._engine:
                self._engine.apply_live_settings(self.spec)

    def set_quota(self, quota: QuotaView | None, refusal: str | None) -> None:
        """Show this of the tunnel's quota; with ``refusal`` refuse new visitors for that reason."""
        self._quota = quota
        if refusal != self._refusal:
            self._refusal = refusal
            if self._engine:
                self._command_engine(partial(self._engine.set_refusal, refusal))

    def set_last_error(self, text: str) -> None:
        """Show this as the tunnel's last error."""
        self._last_error, self._last_error_at = text, format_timestamp(time.time())

    # --- commands -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Run; a tunnel that is being drained runs again afterwards."""
        if not self.is_running:
            self._state = RunnerState.STOPPED
            self._show_idle(replace(self._idle, reason=None, since=format_timestamp(time.time())), State.STARTING)
            self._task = asyncio.create_task(self._run(), name=f"tunnel {self.name}")
        self._advance(RunnerEvent.START)

    def drain(self, timeout: float | None = None, reason: str = "stopped by command") -> None:
        """Stop; the present visitors may finish within ``timeout`` seconds (None: SHUTDOWN_TIMEOUT)."""
        if self.is_running:
            self._end_engine(RunnerEvent.DRAIN, timeout, reason)
        else:
            self._state = RunnerState.STOPPED
            self._show_idle(replace(self._idle, reason=reason), State.STOPPED)

    def restart(self, timeout: float | None = None) -> None:
        """Drain, then run again."""
        if self.is_running:
            self._end_engine(RunnerEvent.RESTART, timeout, "restarting")
        else:
            self.start()

    def retry(self) -> None:
        """End a cooldown: make the next attempt now."""
        self._pause_ended.set()
        if self._engine:
            self._command_engine(self._engine.retry)

    def set_target_drained(self, address: str, *, is_drained: bool) -> None:
        """Give a target of the present engine no new visitors, or new ones again; another engine starts with all."""
        if self._engine:
            self._command_engine(partial(self._engine.set_target_drained, address, is_drained=is_drained))

    def set_link_drained(self, ident: str, *, is_drained: bool) -> None:
        """Give a link of the present engine no new visitors, or new ones again."""
        if self._engine:
            self._command_engine(partial(self._engine.set_link_drained, ident, is_drained=is_drained))

    def close(self) -> None:
        """Stop now and disconnect the visitors."""
        self.drain(0.0, "closed")
        if self._engine:
            self._command_engine(self._engine.close)

    async def wait(self) -> None:
        """Wait until the tunnel is stopped."""
        if self._task:
            await asyncio.wait([self._task])

    def cancel(self) -> None:
        """Cancel the task of an engine that does not end although it was closed."""
        if self._task:
            self._task.cancel()

    def _end_engine(self, event: RunnerEvent, timeout: float | None, reason: str) -> None:
        self._advance(event)
        self._drain_reason = reason
        self._pause_ended.set()
        if self._engine:
            self._command_engine(partial(self._engine.drain, timeout))

    def _command_engine(self, command: Callable[[], None]) -> None:
        """Give the engine a command; an engine that crashes even at that loses its task and everything it has."""
        try:
            command()
        except Exception as error:  # noqa: BLE001  other tunnels must still get their commands
            self.set_last_error(describe_crash(error))
            self._show_idle(replace(self._idle, reason=self._last_error), State.STOPPED)
            self.cancel()

    # --- the life of the engines ----------------------------------------------------------------------------------

    def _advance(self, event: RunnerEvent) -> RunnerState:
        self._state = TRANSITIONS[self._state][event]
        return self._state

    async def _run(self) -> None:
        try:
            while self._state not in AT_REST:
                started_at = time.monotonic()
                error = await self._run_engine()
                if error is None:
                    self._advance(RunnerEvent.ENGINE_ENDED)
                    continue
                is_first = time.monotonic() - started_at > STABLE_AFTER_S
                self._crashes_in_a_row = 1 if is_first else self._crashes_in_a_row + 1
                if self._advance(RunnerEvent.ENGINE_CRASHED) is RunnerState.PAUSED:
                    await self._pause(error)
        finally:
            self._crashes_in_a_row = 0
            if self._state not in AT_REST:  # cancelled
                self._state = RunnerState.ENDED if self.is_wanted else RunnerState.STOPPED

    async def _run_engine(self) -> Exception | None:
        """Run one engine; the error if it crashed."""
        try:
            self._engine, self._prepared = self._prepared or self._make_engine(), None
            if self._state in ENDING:
                self._engine.close()
            await self._engine.run()
            last = self._engine.snapshot()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task and task.cancelling():
                raise
            return self._record_crash(RuntimeError("its own work was cancelled"))
        except Exception as error:  # noqa: BLE001  whatever an engine raises must stay with that engine
            return self._record_crash(error)
        else:
            self._engine = None
            self._show_ended(last)
            return None
        finally:
            self._engine = None

    def _make_engine(self) -> EngineHandle:
        engine = self._engine_factory(self.name, self.spec, self._publish)
        if self._refusal is not None:
            engine.set_refusal(self._refusal)
        return engine

    def _publish(self, event: Event) -> None:
        is_state = event.kind is EventKind.STATE
        if self._is_former and is_state:
            text = f"the former engine: {event.text}"
            event = Event(ts=event.ts, tunnel=event.tunnel, level=event.level, kind=EventKind.RETIRED, text=text)
        self._sink(event)
        if is_state:
            self._on_state_change()

    def _show_idle(self, seen: Snapshot, state: State) -> None:
        """Show this while there is no engine."""
        self._idle = replace(seen, state=state)
        self._on_state_change()

    def _show_ended(self, last: Snapshot) -> None:
        idle = self._keep_totals(last)
        if self._state in ENDING:
            self._show_idle(replace(idle, reason=self._drain_reason), State.STOPPED)
        else:
            self._show_idle(idle, State.FAILED if last.state is State.FAILED else State.STOPPED)

    def _keep_totals(self, last: Snapshot) -> Snapshot:
        """Add the counters of an ended engine to those of its predecessors; its last snapshot without them."""
        self._totals = self._totals.plus(read_totals(last))
        return replace_totals(last, NO_TOTALS)

    def _record_crash(self, error: Exception) -> Exception:
        """Keep what can still be read from a crashed engine, and close it."""
        engine, self._engine = self._engine, None
        idle = stopped_snapshot(self.name, self.spec)
        if engine:
            with contextlib.suppress(Exception):  # it crashed: its last snapshot is a courtesy
                self._keep_totals(engine.snapshot())
            with contextlib.suppress(Exception):
                engine.close()
        self._restarts += 1
        self.set_last_error(describe_crash(error))
        self._show_idle(replace(idle, since=self._last_error_at or idle.since, reason=self._last_error), State.STOPPED)
        return error

    async def _pause(self, error: Exception) -> None:
        """Wait before the next engine, until a command ends the wait."""
        pause_s = restart_delay(self._crashes_in_a_row, self._uniform)
        cooldown = CooldownView(remaining_s=pause_s, attempt=self._crashes_in_a_row)
        self._show_idle(replace(self._idle, cooldown=cooldown), State.COOLDOWN)
        text = f"the engine crashed and starts again in {pause_s:.1f} s: {self._last_error}"
        data = {"restarts": self._restarts, "traceback": short_traceback(error)}
        self._sink(
            Event(ts=time.time(), tunnel=self.name, level=LogLevel.ERROR, kind=EventKind.RESTART, text=text, data=data)
        )
        self._paused_until = time.monotonic() + pause_s
        self._pause_ended.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._pause_ended.wait(), pause_s)
        self._paused_until = 0.0
        if self._advance(RunnerEvent.PAUSE_OVER) is RunnerState.STOPPED:
            self._show_idle(replace(self._idle, reason=self._drain_reason), State.STOPPED)

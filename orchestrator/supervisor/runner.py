"""Keeps one tunnel running: starts its engine, and starts another one when that breaks."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

from orchestrator.supervisor.crash_reports import describe_crash, restart_delay, short_traceback
from tunnel.model.events import Event
from tunnel.model.snapshot import BytesView, ConnectionsView, CooldownView, PoolView, RefusedView, SignalsView, Snapshot
from tunnel.model.spec import LogLevel, TunnelSpec
from tunnel.model.state import State
from tunnel.model.times import format_timestamp

if TYPE_CHECKING:
    from tunnel.model.events import EventSink

_STEADY: Final = 60.0  # seconds after which an engine that breaks is not one that breaks at once


class EngineHandle(Protocol):
    """The life of one tunnel, as its keeper needs it."""

    async def prepare(self, predecessor: Any) -> None:  # noqa: ANN401  an engine of the same make
        """Before ``run``: bind what it listens on while the other still serves. Raises NetError; all is as it was."""

    async def run(self) -> None:
        """Until drained or closed; raises only on a defect."""

    def drain(self, timeout: float | None = None) -> None:
        """Accept no new visitors, let the present ones finish."""

    def close(self) -> None:
        """Everything now."""

    def retry(self) -> None:
        """End a cooldown."""

    def adopt(self, spec: TunnelSpec) -> None:
        """Take over another log level and other settings; no connection is touched."""

    def snapshot(self) -> Snapshot:
        """What can be seen of it."""


EngineFactory = Callable[[str, TunnelSpec, "EventSink"], EngineHandle]


def stopped_snapshot(name: str, spec: TunnelSpec, reason: str | None = None) -> Snapshot:
    """The snapshot of a tunnel that has no engine."""
    limits = spec.settings
    return Snapshot(
        name=name,
        role=spec.role.value,
        state=State.STOPPED,
        reason=reason,
        since=format_timestamp(time.time()),
        tunnel_addr=str(spec.tunnel),
        target_addr=str(spec.target),
        auth=spec.auth,
        data_tls=int(spec.data_tls),
        pool=PoolView(min=limits.min_pool_capacity, max=limits.max_pool_capacity),
        signals=SignalsView(limit=limits.signal_queue_limit),
        connections=ConnectionsView(limit=limits.semaphore_limit),
        bytes=BytesView(),
        refused=RefusedView(),
        cooldown=CooldownView(),
    )


class TunnelRunner:
    """Owner of a tunnel's engines, one after the other, and of the task that runs them."""

    def __init__(
        self,
        name: str,
        spec: TunnelSpec,
        *,
        engine_factory: EngineFactory,
        sink: EventSink,
        tags: tuple[str, ...] = (),
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self.name = name
        self.spec = spec
        self._make_engine = engine_factory
        self._sink = sink
        self._tags = tags
        self._uniform = uniform
        self._engine: EngineHandle | None = None
        self._first: EngineHandle | None = None  # has its listeners already
        self._task: asyncio.Task[None] | None = None
        self._rest = self._shown = stopped_snapshot(name, spec, "not started")
        self._added: tuple[Snapshot, tuple[str, ...], int] | None = None  # what ``_shown`` was made from
        self._wanted = False
        self._leaving = False
        self._wake = asyncio.Event()  # ends a pause between two engines
        self._reason = ""
        self._again = False
        self._resume_at = 0.0
        self._restarts = 0
        self._last_error: str | None = None
        self._last_error_at: str | None = None

    @property
    def is_running(self) -> bool:
        """Whether there is an engine, or will be one soon without anybody's doing."""
        return self._task is not None and not self._task.done()

    @property
    def is_wanted(self) -> bool:
        """Whether it was last told to run rather than to rest."""
        return self._wanted

    async def inherit(self, predecessor: TunnelRunner) -> None:
        """Before ``start``: have the first engine bind what it listens on while the predecessor's still serves.

        Raises NetError, and then the predecessor is as it was. Otherwise it may accept nobody any more: drain it.
        """
        self._restarts = predecessor._restarts
        old = predecessor._engine
        if old is None or predecessor._leaving:
            return
        engine = self._make_engine(self.name, self.spec, self._sink)
        try:
            await engine.prepare(old)
        except BaseException:
            engine.close()
            raise
        self._first = engine

    def respec(self, spec: TunnelSpec, tags: tuple[str, ...]) -> None:
        """Change what the engines to come are made from."""
        self.spec = spec
        self._tags = tags
        limits = stopped_snapshot(self.name, spec)
        self._rest = replace(limits, state=self._rest.state, reason=self._rest.reason, since=self._rest.since)

    def adopt(self, spec: TunnelSpec, tags: tuple[str, ...]) -> None:
        """Change log level, settings and tags, those of the present engine too. Raises whatever a broken one raises."""
        self.respec(spec, tags)
        if self._engine:
            self._engine.adopt(spec)

    def complain(self, text: str) -> None:
        """Show this as the tunnel's last error."""
        self._last_error, self._last_error_at = text, format_timestamp(time.time())

    def snapshot(self) -> Snapshot:
        """What can be seen of the tunnel now."""
        seen = self._rest
        if self._engine:
            try:
                seen = self._engine.snapshot()
            except Exception as error:  # noqa: BLE001  one that cannot even be looked at must not hide all others
                seen = replace(seen, reason=describe_crash(error))
        if self._resume_at:
            left = max(0.0, self._resume_at - time.monotonic())
            seen = replace(seen, cooldown=replace(seen.cooldown, remaining_s=round(left, 3)))
        if self._last_error_at and self._last_error_at >= (seen.last_error_at or ""):
            seen = replace(seen, last_error=self._last_error, last_error_at=self._last_error_at)
        if seen.tags == self._tags and seen.restarts == self._restarts:
            return seen
        added = (seen, self._tags, self._restarts)
        if added != self._added:  # a copy costs more than the look itself, and hundreds are looked at all the time
            self._added, self._shown = added, replace(seen, tags=self._tags, restarts=self._restarts)
        return self._shown

    def start(self) -> None:
        """Run; a tunnel that is on its way out runs again after that."""
        self._wanted = True
        if not self.is_running:
            self._leaving = False
            self._again = False
            self._rest = replace(self._rest, state=State.STARTING, reason=None, since=format_timestamp(time.time()))
            self._task = asyncio.create_task(self._keep(), name=f"tunnel {self.name}")
        elif self._leaving:
            self._again = True

    def drain(self, timeout: float | None = None, reason: str = "stopped by command") -> None:
        """Let the present visitors finish within ``timeout`` seconds (None: SHUTDOWN_TIMEOUT), then rest."""
        self._wanted = False
        self._again = False
        if not self.is_running:
            self._rest = replace(self._rest, state=State.STOPPED, reason=reason)
            return
        self._reason = reason
        self._leaving = True
        self._wake.set()
        if self._engine:
            self._command(partial(self._engine.drain, timeout))

    def restart(self, timeout: float | None = None) -> None:
        """Drain, then run anew."""
        if self.is_running:
            self.drain(timeout, "restarting")
            self._wanted = self._again = True
        else:
            self.start()

    def retry(self) -> None:
        """End a cooldown."""
        self._wake.set()
        if self._engine:
            self._command(self._engine.retry)

    def close(self) -> None:
        """Rest now, whoever is being served."""
        self.drain(0.0, "closed")
        if self._engine:
            self._command(self._engine.close)

    async def wait(self) -> None:
        """Until the tunnel rests."""
        if self._task:
            await asyncio.wait([self._task])

    def cancel(self) -> None:
        """Take the task away from an engine that does not end although it was closed."""
        if self._task:
            self._task.cancel()

    def _command(self, command: Callable[[], None]) -> None:
        """Tell the engine something; one that breaks even at that loses its task, and all it has with it."""
        try:
            command()
        except Exception as error:  # noqa: BLE001  the commands to its neighbours must still be given
            self.complain(describe_crash(error))
            self._rest = replace(self._rest, state=State.STOPPED, reason=self._last_error)
            self.cancel()

    async def _keep(self) -> None:
        breaks = 0
        while True:
            began = time.monotonic()
            error = await self._run_engine()
            if error and not self._leaving:
                breaks = 1 if time.monotonic() - began > _STEADY else breaks + 1
                await self._pause(error, breaks)
            if self._leaving or not error:
                if not self._again:
                    return
                self._again = False
                self._leaving = False

    async def _run_engine(self) -> Exception | None:
        """One engine's life; what broke it, if it did not end as asked."""
        try:
            first, self._first = self._first, None
            self._engine = first or self._make_engine(self.name, self.spec, self._sink)
            if self._leaving:
                self._engine.close()
            await self._engine.run()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task and task.cancelling():
                raise
            return self._broken(RuntimeError("its own work was cancelled"))
        except Exception as error:  # noqa: BLE001  whatever an engine raises must stay with that engine
            return self._broken(error)
        else:
            self._rest = self._ended(self._engine.snapshot())
            return None
        finally:
            self._engine = None

    def _ended(self, last: Snapshot) -> Snapshot:
        if last.state is State.FAILED and not self._leaving:
            return last
        return replace(last, state=State.STOPPED, reason=self._reason if self._leaving else last.reason)

    def _broken(self, error: Exception) -> Exception:
        """Take down what can still be learned from a broken engine, and let it go."""
        self._rest = stopped_snapshot(self.name, self.spec)
        if self._engine:
            with contextlib.suppress(Exception):  # it is broken: what it says about itself is a courtesy
                last = self._engine.snapshot()
                served = replace(last.connections, active=0)
                self._rest = replace(self._rest, bytes=last.bytes, refused=last.refused, connections=served)
            with contextlib.suppress(Exception):
                self._engine.close()
        self._restarts += 1
        self._last_error = describe_crash(error)
        self._last_error_at = format_timestamp(time.time())
        self._rest = replace(self._rest, state=State.STOPPED, since=self._last_error_at, reason=self._last_error)
        return error

    async def _pause(self, error: Exception, breaks: int) -> None:
        pause = restart_delay(breaks, self._uniform)
        self._rest = replace(
            self._rest,
            state=State.COOLDOWN,
            reason=self._last_error,
            cooldown=CooldownView(remaining_s=pause, attempt=breaks),
        )
        text = f"the engine broke and starts anew in {pause:.1f} s: {self._last_error}"
        data = {"restarts": self._restarts, "traceback": short_traceback(error)}
        self._sink(Event(ts=time.time(), tunnel=self.name, level=LogLevel.ERROR, kind="restart", text=text, data=data))
        self._resume_at = time.monotonic() + pause
        self._wake.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), pause)
        self._resume_at = 0.0
        if self._leaving:
            self._rest = replace(self._rest, state=State.STOPPED, reason=self._reason)

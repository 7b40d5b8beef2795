"""The supervisor's side of an engine that runs in a worker process."""

from __future__ import annotations

import asyncio
import itertools
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Protocol

from orchestrator.supervisor.crash_reports import EngineSilentError, RemoteEngineError
from orchestrator.supervisor.runner import stopped_snapshot
from orchestrator.workers.messages import (
    CloseEngine,
    CreateEngine,
    DiscardEngine,
    DrainEngine,
    DrainLink,
    DrainTarget,
    EngineEnded,
    EngineEvent,
    EnginePrepared,
    KickVisitors,
    ListVisitors,
    PrepareEngine,
    Request,
    RetryEngine,
    RunEngine,
    SetRefusal,
    TimeLegs,
    TunnelTested,
    UpdateSpec,
    VisitorSlice,
)
from tunnel.model.state import State
from tunnel.runtime.sockets import NetError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from tunnel.model.events import EventSink
    from tunnel.model.snapshot import Snapshot, TrafficReading
    from tunnel.model.spec import TunnelSpec
    from tunnel.model.tunnel_test import LegResult
    from tunnel.model.visitors import VisitorSelector, VisitorView

_ANSWER_TIMEOUT_S: Final = 5.0  # for the next slice of a list of visitors
_TEST_TIMEOUT_S: Final = 28.0  # more than the legs of a test may take together


class WorkerHandle(Protocol):
    """What a remote engine uses of its worker, whichever process that is at the moment."""

    @property
    def number(self) -> int:
        """The worker's number, from 1."""

    @property
    def problem(self) -> str | None:
        """Why the worker does not answer, in a sentence; None while it does."""

    @property
    def is_connected(self) -> bool:
        """Whether there is a process that takes requests."""

    def attach(self, engine: RemoteEngine) -> None:
        """Forward the worker's notifications to this engine, and its coming and going."""

    def detach(self, engine: RemoteEngine) -> None:
        """Stop forwarding to this engine."""

    def send(self, request: Request) -> None:
        """Send a request, if there is a process."""


class RemoteEngine:
    """An EngineHandle for an engine in a worker; ``number`` names the engine in messages."""

    def __init__(self, number: int, name: str, spec: TunnelSpec, worker: WorkerHandle, sink: EventSink) -> None:
        self.number = number
        self.name = name
        self.spec = spec
        self._worker = worker
        self._sink = sink
        self._refusal: str | None = None
        self._is_created = False
        self._is_running = False
        self._prepared: asyncio.Future[None] | None = None
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._received_at = 0.0
        self._request_numbers = itertools.count(1)
        self._requests: dict[int, asyncio.Queue[VisitorSlice]] = {}
        self._tests: dict[int, asyncio.Future[tuple[LegResult, ...]]] = {}
        self._last = replace(stopped_snapshot(name, spec), state=State.STARTING, worker=worker.number)

    # --- calls of the owner ---------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run until drained, closed or failed. Raises RemoteEngineError where the engine crashed or its worker died."""
        self._is_running = True
        try:
            if not self._ended.done():
                self._attach()
            await self._ended
        finally:
            self._detach()

    async def prepare(self, predecessor: RemoteEngine) -> None:
        """Bind the listeners while the predecessor serves. Raises NetError.

        A predecessor whose worker died has nothing to hand over: then nothing happens.
        """
        if not self._worker.is_connected:
            return
        self._attach()
        self._prepared = asyncio.get_running_loop().create_future()
        self._worker.send(PrepareEngine(self.number, predecessor.number))
        try:
            await self._prepared
        except BaseException:
            self._detach()
            raise

    def drain(self, timeout: float | None = None) -> None:
        """Request a drain; ``run`` ends after it."""
        self._request_end(DrainEngine(self.number, timeout))

    def close(self) -> None:
        """Request that everything is closed; ``run`` ends then."""
        self._request_end(CloseEngine(self.number))

    def retry(self) -> None:
        """Request the end of a cooldown."""
        if self._is_created:
            self._worker.send(RetryEngine(self.number))

    def set_target_drained(self, address: str, *, is_drained: bool) -> None:
        """Request that a target gets no new visitors, or new ones again."""
        if self._is_created:
            self._worker.send(DrainTarget(self.number, address, is_drained))

    def set_link_drained(self, ident: str, *, is_drained: bool) -> None:
        """Request that a link gets no new visitors, or new ones again."""
        if self._is_created:
            self._worker.send(DrainLink(self.number, ident, is_drained))

    def apply_live_settings(self, spec: TunnelSpec) -> None:
        """Request that another log level and other settings are applied."""
        self.spec = spec
        if self._is_created:
            self._worker.send(UpdateSpec(self.number, spec))

    async def visitors(self) -> AsyncIterator[Sequence[VisitorView]]:
        """Yield the worker's list of visitors in slices. Raises EngineSilentError."""
        async for visitors in self._ask(ListVisitors(self.number, next(self._request_numbers))):
            yield visitors

    async def kick(self, selector: VisitorSelector) -> list[VisitorView]:
        """Have the worker disconnect visitors; return what was disconnected. Raises EngineSilentError."""
        asking = self._ask(KickVisitors(self.number, next(self._request_numbers), selector))
        return [visitor async for visitors in asking for visitor in visitors]

    async def test(self) -> Sequence[LegResult]:
        """Have the worker time the legs of a visitor's way. Raises EngineSilentError."""
        if not self._is_created:
            raise EngineSilentError(self._worker.problem or "the tunnel is being started")
        number = next(self._request_numbers)
        answer: asyncio.Future[tuple[LegResult, ...]] = asyncio.get_running_loop().create_future()
        self._tests[number] = answer
        self._worker.send(TimeLegs(self.number, number))
        try:
            async with asyncio.timeout(_TEST_TIMEOUT_S):
                return await answer
        except TimeoutError:
            text = f"worker {self._worker.number} does not answer in {_TEST_TIMEOUT_S:g} s"
            raise EngineSilentError(self._worker.problem or text) from None
        finally:
            del self._tests[number]

    async def _ask(self, request: ListVisitors | KickVisitors) -> AsyncIterator[Sequence[VisitorView]]:
        if not self._is_created:  # so there are no visitors
            return
        slices: asyncio.Queue[VisitorSlice] = asyncio.Queue()
        self._requests[request.request] = slices
        self._worker.send(request)
        try:
            while True:
                async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                    received = await slices.get()
                if received.is_last:
                    return
                yield received.visitors
        except TimeoutError:
            text = f"worker {self._worker.number} does not answer in {_ANSWER_TIMEOUT_S:g} s"
            raise EngineSilentError(self._worker.problem or text) from None
        finally:
            del self._requests[request.request]

    def _end_requests(self) -> None:
        """The engine has ended, and its visitors with it."""
        for number, slices in self._requests.items():
            slices.put_nowait(VisitorSlice(self.number, number, ()))
        for answer in self._tests.values():
            if not answer.done():
                answer.set_exception(EngineSilentError("the tunnel has ended"))

    def set_refusal(self, reason: str | None) -> None:
        """Request that new visitors are refused for this reason; None: that they are served."""
        self._refusal = reason
        if self._is_created:
            self._worker.send(SetRefusal(self.number, reason))

    def snapshot(self) -> Snapshot:
        """The last snapshot of the worker, with the reason why it does not answer if that is so."""
        seen = self._last
        if seen.cooldown.remaining_s:
            remaining = max(0.0, seen.cooldown.remaining_s - (time.monotonic() - self._received_at))
            seen = replace(seen, cooldown=replace(seen.cooldown, remaining_s=round(remaining, 3)))
        return replace(seen, reason=self._worker.problem) if self._worker.problem else seen

    def read_traffic(self) -> TrafficReading:
        """The bytes and the visitors of the last snapshot that the worker has sent."""
        return self._last.traffic

    # --- calls of the worker handle -------------------------------------------------------------------------------

    def on_connected(self) -> None:
        """The worker takes requests: create there what belongs there."""
        if not self._is_created:
            self._is_created = True
            self._worker.send(CreateEngine(self.number, self.name, self.spec))
            if self._refusal is not None:
                self._worker.send(SetRefusal(self.number, self._refusal))
        if self._is_running:
            self._worker.send(RunEngine(self.number))

    def on_snapshot(self, seen: Snapshot) -> None:
        """The worker sent a snapshot of the engine."""
        self._received_at = time.monotonic()
        self._last = replace(seen, worker=self._worker.number)

    def on_notification(
        self, notification: EngineEvent | EnginePrepared | EngineEnded | VisitorSlice | TunnelTested
    ) -> None:
        """The worker sent another notification about the engine."""
        match notification:
            case EngineEvent():
                self._sink(notification.event)
            case EnginePrepared():
                self._on_prepared(notification)
            case VisitorSlice():
                if (slices := self._requests.get(notification.request)) is not None:
                    slices.put_nowait(notification)
            case TunnelTested():
                if (answer := self._tests.get(notification.request)) is not None and not answer.done():
                    answer.set_result(notification.legs)
            case EngineEnded():
                self._is_created = False
                self._end_requests()
                if notification.last is not None:
                    self.on_snapshot(notification.last)
                crash = notification.crash
                self._set_ended(RemoteEngineError(crash, notification.frames) if crash else None)

    def on_disconnected(self, reason: str) -> None:
        """The worker died, and the engine with it if it was created there."""
        self._end_requests()
        if self._is_created:
            self._is_created = False
            if self._is_running:
                self._set_ended(RemoteEngineError(reason))
            elif self._prepared is not None and not self._prepared.done():
                self._prepared.set_result(None)

    # --------------------------------------------------------------------------------------------------------------

    def _attach(self) -> None:
        self._worker.attach(self)
        if self._worker.is_connected:
            self.on_connected()

    def _detach(self) -> None:
        self._worker.detach(self)
        if self._is_created:
            self._is_created = False
            self._worker.send(DiscardEngine(self.number))

    def _request_end(self, request: DrainEngine | CloseEngine) -> None:
        if self._is_created:
            self._worker.send(request)
        else:
            self._set_ended(None)  # it never had a visitor

    def _on_prepared(self, answer: EnginePrepared) -> None:
        if self._prepared is None or self._prepared.done():
            return
        if answer.error is None:
            self._prepared.set_result(None)
        else:
            self._is_created = False
            error = NetError(answer.error)
            error.errno = answer.errno
            self._prepared.set_exception(error)

    def _set_ended(self, error: RemoteEngineError | None) -> None:
        is_preparing = self._prepared is not None and not self._prepared.done()
        waiting = self._prepared if is_preparing and self._prepared is not None else self._ended
        if waiting.done():
            return
        if error is None:
            waiting.set_result(None)
        else:
            waiting.set_exception(error)

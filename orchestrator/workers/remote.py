"""An engine that runs in a worker, with the face of one that runs here."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from orchestrator.supervisor.crash_reports import RemoteEngineError
from orchestrator.supervisor.runner import stopped_snapshot
from orchestrator.workers.messages import (
    Adopt,
    Close,
    Drain,
    Drop,
    Ended,
    Happened,
    Make,
    Order,
    Prepare,
    Prepared,
    Retry,
    Run,
)
from tunnel.model.state import State
from tunnel.runtime.sockets import NetError

if TYPE_CHECKING:
    from tunnel.model.events import EventSink
    from tunnel.model.snapshot import Snapshot
    from tunnel.model.spec import TunnelSpec


class Post(Protocol):
    """The worker that an engine belongs to, whichever process is that worker just now."""

    number: int
    trouble: str | None
    """why the worker does not answer, in a sentence; None while it does"""

    @property
    def is_there(self) -> bool:
        """Whether there is a process that takes orders."""

    def admit(self, engine: RemoteEngine) -> None:
        """Pass on to the engine what the worker says about it, and tell it when the worker comes and goes."""

    def dismiss(self, engine: RemoteEngine) -> None:
        """Do so no more."""

    def send(self, order: Order) -> None:
        """Tell the worker."""


class RemoteEngine:
    """Stands for an engine in a worker; ``number`` names it on both sides of the border."""

    def __init__(self, number: int, name: str, spec: TunnelSpec, post: Post, sink: EventSink) -> None:
        self.number = number
        self.name = name
        self.spec = spec
        self._post = post
        self._sink = sink
        self._is_made = False
        self._is_running = False
        self._prepared: asyncio.Future[None] | None = None
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._seen_at = 0.0
        self._seen = replace(stopped_snapshot(name, spec), state=State.STARTING, worker=post.number)

    # --- what its owner asks --------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until drained, closed or failed. Raises BrokenElsewhereError where the engine broke or its worker died."""
        self._is_running = True
        try:
            if not self._over.done():
                self._admit()
            await self._over
        finally:
            self._leave()

    async def prepare(self, predecessor: RemoteEngine) -> None:
        """As Engine.prepare. A predecessor whose worker is gone has nothing to hand over: then nothing happens."""
        if not self._post.is_there:
            return
        self._admit()
        self._prepared = asyncio.get_running_loop().create_future()
        self._post.send(Prepare(self.number, predecessor.number))
        try:
            await self._prepared
        except BaseException:
            self._leave()
            raise

    def drain(self, timeout: float | None = None) -> None:
        """As Engine.drain."""
        self._tell_to_end(Drain(self.number, timeout))

    def close(self) -> None:
        """As Engine.close."""
        self._tell_to_end(Close(self.number))

    def retry(self) -> None:
        """As Engine.retry."""
        if self._is_made:
            self._post.send(Retry(self.number))

    def apply_live_settings(self, spec: TunnelSpec) -> None:
        """As Engine.adopt."""
        self.spec = spec
        if self._is_made:
            self._post.send(Adopt(self.number, spec))

    def snapshot(self) -> Snapshot:
        """What the worker said last, and whether it still answers."""
        seen = self._seen
        if seen.cooldown.remaining_s:
            left = max(0.0, seen.cooldown.remaining_s - (time.monotonic() - self._seen_at))
            seen = replace(seen, cooldown=replace(seen.cooldown, remaining_s=round(left, 3)))
        return replace(seen, reason=self._post.trouble) if self._post.trouble else seen

    # --- what its worker says -------------------------------------------------------------------------------------

    def appear(self) -> None:
        """The worker takes orders: have what belongs there."""
        if not self._is_made:
            self._is_made = True
            self._post.send(Make(self.number, self.name, self.spec))
        if self._is_running:
            self._post.send(Run(self.number))

    def look(self, seen: Snapshot) -> None:
        """How the engine is."""
        self._seen_at = time.monotonic()
        self._seen = replace(seen, worker=self._post.number)

    def take(self, report: Happened | Prepared | Ended) -> None:
        """Something was said about the engine."""
        match report:
            case Happened():
                self._sink(report.event)
            case Prepared():
                self._take_prepared(report)
            case Ended():
                self._is_made = False
                if report.last is not None:
                    self.look(report.last)
                self._end(RemoteEngineError(report.defect, report.frames) if report.defect else None)

    def lost(self, reason: str) -> None:
        """The worker is gone, and with it the engine if it was there."""
        if self._is_made:
            self._is_made = False
            if self._is_running:
                self._end(RemoteEngineError(reason))
            elif self._prepared is not None and not self._prepared.done():
                self._prepared.set_result(None)

    # --------------------------------------------------------------------------------------------------------------

    def _admit(self) -> None:
        self._post.admit(self)
        if self._post.is_there:
            self.appear()

    def _leave(self) -> None:
        self._post.dismiss(self)
        if self._is_made:
            self._is_made = False
            self._post.send(Drop(self.number))

    def _tell_to_end(self, order: Drain | Close) -> None:
        if self._is_made:
            self._post.send(order)
        else:
            self._end(None)  # nobody was ever let in

    def _take_prepared(self, answer: Prepared) -> None:
        if self._prepared is None or self._prepared.done():
            return
        if answer.error is None:
            self._prepared.set_result(None)
        else:
            self._is_made = False
            error = NetError(answer.error)
            error.errno = answer.errno
            self._prepared.set_exception(error)

    def _end(self, error: RemoteEngineError | None) -> None:
        waiting = self._prepared if self._prepared is not None and not self._prepared.done() else self._over
        if waiting.done():
            return
        if error is None:
            waiting.set_result(None)
        else:
            waiting.set_exception(error)

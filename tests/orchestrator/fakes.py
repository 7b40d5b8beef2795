"""An engine without sockets, steered by a test."""

from __future__ import annotations

import asyncio
import errno
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from orchestrator.config.manifest import listen_addresses
from orchestrator.supervisor.runner import stopped_snapshot
from tunnel.model.events import Event
from tunnel.model.spec import LogLevel
from tunnel.model.state import State, StateRecord
from tunnel.model.times import format_timestamp
from tunnel.runtime.sockets import NetError

if TYPE_CHECKING:
    from tunnel.model.address import Address
    from tunnel.model.events import EventSink
    from tunnel.model.snapshot import Snapshot
    from tunnel.model.spec import TunnelSpec


class FakeEngine:
    """Comes up at once; ends when it is drained and its visitor left, or when it is closed."""

    def __init__(self, name: str, spec: TunnelSpec, sink: EventSink, ports: dict[Address, object]) -> None:
        self.ports = ports
        self.adopted: list[TunnelSpec] = []
        self.name = name
        self.spec = spec
        self.sink = sink
        self.standing = StateRecord()
        self.visitor_left = asyncio.Event()
        self.visitor_left.set()
        self.drained_with: list[float | None] = []
        self.told = asyncio.Event()
        self.closed = asyncio.Event()
        self.defect: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.mute = False
        self.stubborn = False
        self.deaf = False

    async def prepare(self, predecessor: FakeEngine) -> None:
        await asyncio.sleep(0)
        for address in listen_addresses(self.spec):
            if self.ports.get(address, predecessor) not in {predecessor, self}:
                error = NetError(f"cannot listen on {address}: address in use")
                error.errno = errno.EADDRINUSE
                raise error
        self._bind()

    def _bind(self) -> None:
        for address in listen_addresses(self.spec):
            self.ports[address] = self

    def _give_up(self) -> None:
        for address in [address for address, holder in self.ports.items() if holder is self]:
            del self.ports[address]

    async def run(self) -> None:
        if any(self.ports.get(address, self) is not self for address in listen_addresses(self.spec)):
            self.standing = self.standing.transition_to(State.COOLDOWN, "address in use")
            await self._until_told()
            return
        self._bind()
        try:
            await self._serve()
        finally:
            self._give_up()

    async def _serve(self) -> None:
        self.standing = self.standing.transition_to(State.CONNECTING).transition_to(State.UP)
        self.sink(Event(ts=time.time(), tunnel=self.name, level=LogLevel.INFO, kind="state", text="up"))
        told = asyncio.create_task(self._until_told())
        try:
            await asyncio.wait([told, self.defect], return_when=asyncio.FIRST_COMPLETED)
            if self.defect.done():
                self.defect.result()
        finally:
            told.cancel()
        if self.standing.state is not State.FAILED:
            self.standing = self.standing.transition_to(State.STOPPED)

    async def _until_told(self) -> None:
        await self.told.wait()
        leaving = asyncio.create_task(self.visitor_left.wait())
        closing = asyncio.create_task(self.closed.wait())
        await asyncio.wait([leaving, closing], return_when=asyncio.FIRST_COMPLETED)
        leaving.cancel()
        closing.cancel()

    def drain(self, timeout: float | None = None) -> None:
        if self.stubborn:
            raise RuntimeError("does not listen")
        self.drained_with.append(timeout)
        self.standing = self.standing.transition_to(State.DRAINING)
        self._give_up()
        self.told.set()

    def close(self) -> None:
        if not self.deaf:
            self.told.set()
            self.closed.set()

    def retry(self) -> None:
        """Nothing here waits."""

    def adopt(self, spec: TunnelSpec) -> None:
        if self.deaf:
            raise RuntimeError("does not listen")
        self.adopted.append(spec)

    def fail(self, reason: str) -> None:
        """End as one that cannot work as it is written."""
        self.standing = self.standing.transition_to(State.FAILED, reason)
        self.told.set()

    def snapshot(self) -> Snapshot:
        if self.mute:
            raise RuntimeError("too broken to say anything")
        seen = stopped_snapshot(self.name, self.spec)
        return replace(
            seen,
            state=self.standing.state,
            reason=self.standing.reason,
            since=format_timestamp(self.standing.since),
            connections=replace(seen.connections, active=int(not self.visitor_left.is_set())),
        )


class Workshop:
    """Makes fake engines and remembers them."""

    def __init__(self) -> None:
        self.made: dict[str, list[FakeEngine]] = {}
        self.breaks_at_once: set[str] = set()
        self.ports: dict[Address, object] = {}
        """who listens where; whoever is not an engine is somebody else on this host"""

    def __call__(self, name: str, spec: TunnelSpec, sink: EventSink) -> FakeEngine:
        if name in self.breaks_at_once:
            raise ValueError("cannot even be made")
        engine = FakeEngine(name, spec, sink, self.ports)
        self.made.setdefault(name, []).append(engine)
        return engine

    def last(self, name: str) -> FakeEngine:
        """The engine that runs now, or ran last."""
        return self.made[name][-1]

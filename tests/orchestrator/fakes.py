"""Engines without sockets, controlled by a test."""

from __future__ import annotations

import asyncio
import errno
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from orchestrator.config.address_claims import address_claims
from orchestrator.supervisor.runner import stopped_snapshot
from tunnel.model.events import Event, EventKind
from tunnel.model.spec import Direction, LogLevel
from tunnel.model.state import State, StateRecord
from tunnel.model.times import format_timestamp
from tunnel.model.tunnel_test import Leg, LegResult
from tunnel.protocol.visitor_address import pack_address
from tunnel.runtime.sockets import NetError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from tunnel.model.address import Address
    from tunnel.model.events import EventSink
    from tunnel.model.snapshot import LinkView, Snapshot, TargetView, TrafficReading
    from tunnel.model.spec import TunnelSpec
    from tunnel.model.visitors import VisitorSelector, VisitorView


class FakeEngine:
    """Comes up at once; ends when it is drained and its visitor has left, or when it is closed."""

    def __init__(self, name: str, spec: TunnelSpec, sink: EventSink, ports: dict[Address, object]) -> None:
        self.ports = ports
        self.adopted: list[TunnelSpec] = []
        self.refusals: list[str | None] = []
        self.name = name
        self.spec = spec
        self.sink = sink
        self.state = StateRecord()
        self.visitor_left = asyncio.Event()
        self.visitor_left.set()
        self.drained_with: list[float | None] = []
        self.crash: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.fails_snapshot = False
        self.fails_drain = False
        self.ignores_close = False
        self.served = 0
        """visitors so far; each sent 100 bytes"""
        self.present: list[VisitorView] = []
        """what it lists, independent of ``served``"""
        self.legs = [LegResult(Leg.LINK, is_here=True, link="0123456789abcdef", target=None, duration_s=0.0125)]
        """what its test times"""
        self.targets: tuple[TargetView, ...] = ()
        """what its snapshot has"""
        self.links: tuple[LinkView, ...] = ()
        """the same"""
        self.direction: Direction | None = None
        self.drained_targets: dict[str, bool] = {}
        self.drained_links: dict[str, bool] = {}
        self._ending = asyncio.Event()
        self._closed = asyncio.Event()

    async def prepare(self, predecessor: FakeEngine) -> None:
        await asyncio.sleep(0)
        for address in self._addresses():
            if self.ports.get(address, predecessor) not in {predecessor, self}:
                error = NetError(f"cannot listen on {address}: address in use")
                error.errno = errno.EADDRINUSE
                raise error
        self._bind()

    async def run(self) -> None:
        if any(self.ports.get(address, self) is not self for address in self._addresses()):
            self._enter(State.COOLDOWN, "address in use")
            await self._wait_ended()
            return
        self._bind()
        try:
            await self._serve()
        finally:
            self._release()

    async def _serve(self) -> None:
        self._enter(State.CONNECTING)
        self._enter(State.UP)
        ended = asyncio.create_task(self._wait_ended())
        try:
            await asyncio.wait([ended, self.crash], return_when=asyncio.FIRST_COMPLETED)
            if self.crash.done():
                self.crash.result()
        finally:
            ended.cancel()
        if self.state.state is not State.FAILED:
            self._enter(State.STOPPED)

    async def _wait_ended(self) -> None:
        await self._ending.wait()
        left = asyncio.create_task(self.visitor_left.wait())
        closed = asyncio.create_task(self._closed.wait())
        await asyncio.wait([left, closed], return_when=asyncio.FIRST_COMPLETED)
        left.cancel()
        closed.cancel()

    def _addresses(self) -> list[Address]:
        return [claim.address for claim in address_claims(self.spec)]

    def _bind(self) -> None:
        for address in self._addresses():
            self.ports[address] = self

    def _release(self) -> None:
        for address in [address for address, holder in self.ports.items() if holder is self]:
            del self.ports[address]

    def _enter(self, state: State, reason: str | None = None) -> None:
        self.state = self.state.transition_to(state, reason)
        self._announce()

    def _announce(self) -> None:
        self.sink(
            Event(
                ts=time.time(), tunnel=self.name, level=LogLevel.INFO, kind=EventKind.STATE, text=self.state.state.value
            )
        )

    def drain(self, timeout: float | None = None) -> None:
        if self.fails_drain:
            raise RuntimeError("cannot be drained")
        self.drained_with.append(timeout)
        self.state = self.state.transition_to(State.DRAINING)
        asyncio.get_running_loop().call_soon(self._announce)  # as an engine, whose own task does so
        self._release()
        self._ending.set()

    def close(self) -> None:
        if not self.ignores_close:
            self._ending.set()
            self._closed.set()

    def retry(self) -> None:
        """There is no cooldown to end."""

    def set_target_drained(self, address: str, *, is_drained: bool) -> None:
        self.drained_targets[address] = is_drained

    def set_link_drained(self, ident: str, *, is_drained: bool) -> None:
        self.drained_links[ident] = is_drained

    def apply_live_settings(self, spec: TunnelSpec) -> None:
        if self.ignores_close:
            raise RuntimeError("cannot be changed")
        self.adopted.append(spec)

    async def visitors(self) -> AsyncIterator[Sequence[VisitorView]]:
        for start in range(0, len(self.present), 2):
            yield self.present[start : start + 2]

    async def test(self) -> list[LegResult]:
        return self.legs

    async def kick(self, selector: VisitorSelector) -> list[VisitorView]:
        def is_meant(one: VisitorView) -> bool:
            host, _, port = (one.address or ":0").rpartition(":")
            return selector.selects(one.id, pack_address((host.strip("[]"), int(port))))

        kicked = [one for one in self.present if is_meant(one)]
        self.present = [one for one in self.present if one not in kicked]
        return kicked

    def set_refusal(self, reason: str | None) -> None:
        self.refusals.append(reason)

    def fail(self, reason: str) -> None:
        """End as an engine that cannot work as it is configured."""
        self._enter(State.FAILED, reason)
        self._ending.set()

    def fail_dials(self, reason: str) -> None:
        """Show that the link has no data connections, as a client whose dials fail."""
        self._enter(State.CONNECTING, reason)

    def read_traffic(self) -> TrafficReading:
        return self.snapshot().traffic

    def snapshot(self) -> Snapshot:
        if self.fails_snapshot:
            raise RuntimeError("cannot be read")
        seen = stopped_snapshot(self.name, self.spec)
        return replace(
            seen,
            state=self.state.state,
            reason=self.state.reason,
            direction=self.direction,
            targets=self.targets,
            links=self.links,
            since=format_timestamp(self.state.since),
            connections=replace(seen.connections, active=int(not self.visitor_left.is_set()), total=self.served),
            bytes=replace(seen.bytes, from_visitors=100 * self.served),
        )


class FakeEngineFactory:
    """Makes fake engines and keeps them."""

    def __init__(self) -> None:
        self.made: dict[str, list[FakeEngine]] = {}
        self.crashes_at_once: set[str] = set()
        self.ports: dict[Address, object] = {}
        """what listens on each address: an engine, or anything else for another process"""

    def __call__(self, name: str, spec: TunnelSpec, sink: EventSink) -> FakeEngine:
        if name in self.crashes_at_once:
            raise ValueError("cannot even be made")
        engine = FakeEngine(name, spec, sink, self.ports)
        self.made.setdefault(name, []).append(engine)
        return engine

    def last(self, name: str) -> FakeEngine:
        """The engine that runs now, or ran last."""
        return self.made[name][-1]

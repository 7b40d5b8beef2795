"""Times the way from an egress to its targets, for a test that a user wants: lookup, dial, first byte."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Final

from tunnel.engine.tunnel_test import NO_LINK, time_link
from tunnel.model.spec import Proto
from tunnel.model.tunnel_test import LegResult, TargetTimes
from tunnel.protocol.proxy_header import encode_check_header
from tunnel.protocol.tunnel_test_messages import TargetTest, TargetTested
from tunnel.runtime import sockets
from tunnel.runtime.connect_race import connect_to_first
from tunnel.runtime.resolver import DialTarget, resolve

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunnel.engine.link import Link
    from tunnel.engine.link_events import EventTable
    from tunnel.model.address import Address
    from tunnel.model.spec import TunnelSpec
    from tunnel.runtime.reactor import Reactor

FIRST_BYTE_TIMEOUT_S: Final = 0.5
"""How long a target may take to speak first."""
_MAX_DIAL_S: Final = 10.0  # a user waits for the result
_MAX_TESTS: Final = 4  # at once, for the other ends


class EgressTests:
    """Tests the targets of one egress. What it dials is neither a visitor nor a check of a target's health."""

    def __init__(self, reactor: Reactor, spec: TunnelSpec) -> None:
        self._reactor = reactor
        self._spec = spec
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()

    def update_spec(self, spec: TunnelSpec) -> None:
        """Test the targets of another spec from now on."""
        self._spec = spec

    def register_handlers(self, table: EventTable) -> None:
        """Enter the handler of the other end's requests."""
        table.add(TargetTest, self._on_requested)

    def on_link_lost(self, link: Link) -> None:
        """Do nothing: targets are tested to the end."""

    async def run(self, links: Sequence[Link]) -> list[LegResult]:
        """Time the links, and the ways to all targets, at once. Safe to cancel."""
        over_links = asyncio.gather(*map(time_link, links))
        legs, targets = await asyncio.gather(over_links, self._test_targets())
        return [*(legs or [NO_LINK]), *(leg for times in targets for leg in times.legs(None, is_here=True))]

    async def _test_targets(self) -> list[TargetTimes]:
        spec = self._spec
        targets = [target.address for target in spec.members]
        return list(await asyncio.gather(*(self._test(target, spec) for target in targets)))

    def _on_requested(self, link: Link, request: TargetTest) -> None:
        """Answer on the data connection and then, when the targets were dialled, on the link."""
        data = link.claim(request.ident)
        if data is None:
            self._refuse(link, request, "its data connection was lost")
            return
        self._reactor.close(data.sock)  # the answer: its end has gone the way of a visitor's bytes
        if len(self._tasks) >= _MAX_TESTS:
            self._refuse(link, request, "too many tests run at once")
            return
        task = self._loop.create_task(self._answer(link, request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def close(self) -> None:
        """Stop all tests for other ends."""
        for task in self._tasks:
            task.cancel()

    @staticmethod
    def _refuse(link: Link, request: TargetTest, reason: str) -> None:
        times = TargetTimes("", is_name=False, lookup_s=None, dial_s=None, first_byte_s=None, error=reason)
        link.session.send(TargetTested(request.ident, 0, times))

    async def _answer(self, link: Link, request: TargetTest) -> None:
        results = await self._test_targets()
        for left, times in zip(reversed(range(len(results))), results, strict=True):
            link.session.send(TargetTested(request.ident, left, times))

    async def _test(self, written: Address, spec: TunnelSpec) -> TargetTimes:
        address = DialTarget(written).address
        began, lookup_s, dial_s, first_byte_s, error = self._loop.time(), None, None, None, None
        try:
            async with asyncio.timeout(min(spec.dial_timeout, _MAX_DIAL_S)):
                candidates = await resolve(address)
                lookup_s = self._loop.time() - began
                if spec.proto is Proto.UDP:  # nothing that is sent shows whether the target is there
                    return TargetTimes(str(written), address.ip is None, lookup_s, None, None, None)
                sock, _ = await connect_to_first(self._reactor, candidates)
            dial_s = self._loop.time() - began - lookup_s
            try:
                first_byte_s = await _FirstByte(self._reactor, sock).wait(encode_check_header(spec.proxy))
            finally:
                self._reactor.close(sock)
        except OSError as failure:
            error = sockets.describe_connect_error(failure)
        is_name = address.ip is None
        return TargetTimes(str(written), is_name, lookup_s if is_name else None, dial_s, first_byte_s, error)


class _FirstByte:
    """Waits until a target speaks, or closes its connection."""

    def __init__(self, reactor: Reactor, sock: socket.SocketType) -> None:
        self._sock = sock
        self._changed = asyncio.Event()
        reactor.set_handler(sock, self.ready)

    def ready(self, _events: int) -> None:
        """Handle any event of the connection."""
        self._changed.set()

    def on_handler_error(self, error: Exception) -> None:
        """Never called: the handler cannot fail."""
        raise error

    async def wait(self, header: bytes) -> float | None:
        """Return the seconds until the first byte; None for a target that waits for its visitor. Raises OSError."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        if header:
            self._sock.send(header)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_BYTE_TIMEOUT_S):
                while True:
                    self._changed.clear()  # an event from before is not repeated, so the socket is read first
                    with contextlib.suppress(BlockingIOError):
                        if not self._sock.recv(1, socket.MSG_PEEK):
                            raise ConnectionAbortedError("the target closed the connection without a byte")
                        return loop.time() - began
                    await self._changed.wait()
        return None

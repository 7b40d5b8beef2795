"""A test of a tunnel at the end that a user asks: times each leg of a visitor's way, without a visitor."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from tunnel.model.state import STATES, State
from tunnel.model.tunnel_test import Leg, LegResult
from tunnel.protocol.tunnel_test_messages import TargetTested
from tunnel.runtime.reactor import READABLE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunnel.engine.link import Link
    from tunnel.engine.link_events import EventTable
    from tunnel.engine.pool import DataConnection
    from tunnel.model.events import Event
    from tunnel.model.state import StateRecord
    from tunnel.model.tunnel_test import TargetTimes
    from tunnel.runtime.reactor import Reactor

LINK_TIMEOUT_S: Final = 5.0
_POOL_TIMEOUT_S: Final = 5.0
_POOL_POLL_S: Final = 0.005
_ANSWER_TIMEOUT_S: Final = 12.0  # longer than the other end tries to reach its targets
_MAX_TARGETS: Final = 256
NO_LINK: Final = LegResult(Leg.LINK, is_here=True, link=None, target=None, duration_s=None, error="there is no link")


async def time_link(link: Link) -> LegResult:
    """Time a round trip over the control channel."""
    began = _now()
    answers = await link.answers(LINK_TIMEOUT_S)
    error = None if answers else "the other end does not answer"
    return LegResult(Leg.LINK, True, link.ident, None, _now() - began if answers else None, error)


def explain_missing_link(legs: Sequence[LegResult], record: StateRecord, last: Event | None) -> list[LegResult]:
    """Return the legs; a missing link has the reason that ``ps`` shows, at a client also during its next attempt."""
    reason = record.reason
    if not reason:
        reason = last.text if last is not None and record.state is State.CONNECTING else STATES[record.state].meaning
    explained = NO_LINK._replace(error=f"{NO_LINK.error}: {reason}")
    return [explained if leg is NO_LINK else leg for leg in legs]


class IngressTests:
    """The tests that an ingress makes, for each link the whole way of a visitor."""

    def __init__(self, reactor: Reactor) -> None:
        self._reactor = reactor
        self._tests: dict[tuple[Link, int], _Signalled] = {}

    def register_handlers(self, table: EventTable) -> None:
        """Enter the handler of the other end's results."""
        table.add(TargetTested, self._on_tested)

    def _on_tested(self, link: Link, tested: TargetTested) -> None:
        test = self._tests.get((link, tested.ident))
        if test is not None:
            test.add(tested.times, tested.left)

    def on_link_lost(self, link: Link) -> None:
        """End the tests over a link that is lost."""
        for (tested_link, _), test in self._tests.items():
            if tested_link is link:
                test.fail("the link was lost")

    async def run(self, links: Sequence[Link]) -> list[LegResult]:
        """Test the way over each link. Safe to cancel."""
        if not links:
            return [NO_LINK]
        return [leg for legs in await asyncio.gather(*map(self._test, links)) for leg in legs]

    async def _test(self, link: Link) -> list[LegResult]:
        first = await time_link(link)
        if first.error is not None:
            return [first]
        began = _now()
        data = await _acquire(link)
        if data is None:
            error = f"there was none in {_POOL_TIMEOUT_S:g} s"
            return [first, LegResult(Leg.DATA_CONNECTION, True, link.ident, None, None, error)]
        waited = LegResult(Leg.DATA_CONNECTION, True, link.ident, None, _now() - began)
        test = self._tests[link, data.ident] = _Signalled(self._reactor, data)
        try:
            link.send_test(data.ident)
            return [first, waited, *await test.finish(link.ident)]
        finally:
            del self._tests[link, data.ident]
            self._reactor.close(data.sock)


async def _acquire(link: Link) -> DataConnection | None:
    """Return an idle data connection; visitors that wait are served first."""
    deadline = _now() + _POOL_TIMEOUT_S
    while True:
        data = link.pool.acquire()
        if data is not None or _now() >= deadline:
            return data
        await asyncio.sleep(_POOL_POLL_S)


class _Signalled:
    """A data connection for which the other end tests its targets."""

    def __init__(self, reactor: Reactor, data: DataConnection) -> None:
        loop = asyncio.get_running_loop()
        self._began = _now()
        self._returned: asyncio.Future[float] = loop.create_future()
        self._tested: asyncio.Future[None] = loop.create_future()
        self._times: list[TargetTimes] = []
        self._failure: str | None = None
        reactor.set_handler(data.sock, self.ready)

    def ready(self, events: int) -> None:
        """Handle the end of the data connection, which is the other end's first answer."""
        if events & READABLE and not self._returned.done():
            self._returned.set_result(_now() - self._began)

    def on_handler_error(self, error: Exception) -> None:
        """Fail this test alone, after a defect in it."""
        self.fail(f"internal error ({type(error).__name__}: {error})")

    def add(self, times: TargetTimes, left: int) -> None:
        """Note how a target was reached; results of ``left`` others follow."""
        self._times.append(times)
        if (not left or len(self._times) >= _MAX_TARGETS) and not self._tested.done():
            self._tested.set_result(None)

    def fail(self, reason: str) -> None:
        """End the test; ``reason`` is a sentence."""
        self._failure = self._failure or reason
        if not self._tested.done():
            self._tested.set_result(None)

    async def finish(self, link: str) -> list[LegResult]:
        """Wait for both answers, and return the legs."""
        await asyncio.wait((self._returned, self._tested), timeout=_ANSWER_TIMEOUT_S)
        returned_s = self._returned.result() if self._returned.done() else None
        error = None
        if self._failure is not None or not self._tested.done():
            error = self._failure or f"there was no answer in {_ANSWER_TIMEOUT_S:g} s"
        elif returned_s is None:
            error = "its answer over the data connection did not arrive"
        signal = LegResult(Leg.SIGNAL, True, link, None, None if error else returned_s, error)
        return [signal, *(leg for times in self._times for leg in times.legs(link, is_here=False))]


def _now() -> float:
    return asyncio.get_running_loop().time()

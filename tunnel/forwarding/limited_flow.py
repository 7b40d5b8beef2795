"""Flows whose rate is limited: they bound each read, pause where the limit permits none, and charge what they pass.

Flows without a limit have no part in this. A limited flow has another class with the same slots, so that a flow can get
or lose its limit at any time, also in the middle of a stream (``limit_flow``, ``unlimit_flow``).
"""

from __future__ import annotations

from abc import abstractmethod
from time import monotonic
from typing import TYPE_CHECKING, ClassVar, Final, cast

from tunnel.forwarding.flow import OPEN, STOPPED, Flow, FlowState
from tunnel.forwarding.rate_limiter import FlowLimit
from tunnel.forwarding.tcp import PlainFlow
from tunnel.runtime.splice import PIPE_SIZE

if TYPE_CHECKING:
    from tunnel.forwarding.rate_limiter import RateLimiter

PAUSED: Final = FlowState.PAUSED


class LimitedFlow(Flow):
    """A flow whose rate is limited. A subclass names the class of the same flow without a limit."""

    __slots__ = ()

    unlimited: ClassVar[type[Flow]]
    by_unlimited: ClassVar[dict[type[Flow], type[LimitedFlow]]] = {}
    """the subclasses by their ``unlimited``"""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        LimitedFlow.by_unlimited[cls.unlimited] = cls

    def _transfer(self) -> int:
        limit = self.limit
        allowed = limit.limiter.request(limit)
        if not allowed:
            self._pause()
            return STOPPED
        before = self._passed
        cost = self._transfer_within(allowed)
        limit.limiter.charge(limit, self._passed - before)
        return cost

    @abstractmethod
    def _transfer_within(self, allowed: int) -> int:
        """Do what ``_transfer`` of the unlimited class does, and read at most ``allowed`` bytes."""

    @abstractmethod
    def _unbind_reads(self) -> None:
        """Let reads be as large as without a limit."""

    def _pause(self) -> None:
        self.state = PAUSED

    @property
    def is_paused(self) -> bool:
        """Whether this flow waits for its limit; not after its relay has ended."""
        return self.state is PAUSED

    def end_pause(self) -> None:
        """Read on, and ask the limit for more."""
        self.state = OPEN
        self.pump(0)

    def resume(self) -> None:
        """Continue after the sink has become writable; a flow that is paused waits for its limit, not for the sink."""
        if self.state is not PAUSED:
            super().resume()

    def _count(self, sent: int) -> None:
        """Count and charge bytes that have waited for the sink."""
        limit, before = self.limit, self._passed
        super()._count(sent)
        limit.limiter.charge(limit, self._passed - before)

    def remove_limit(self) -> None:
        """Become a flow without a limit again."""
        self._unbind_reads()
        del self.limit
        flow: Flow = self
        flow.__class__ = self.unlimited
        if self._pending and self.state is OPEN:  # a record of which the limit permitted a part
            self.state = FlowState.BLOCKED
            self.resume()

    def release(self, closed_flow: Flow) -> None:
        """Drop the limit, too, which refers to this flow."""
        super().release(closed_flow)
        del self.limit


class LimitedPlainFlow(LimitedFlow, PlainFlow):
    """Copies, or splices what is worth it."""

    __slots__ = ()
    unlimited = PlainFlow

    def _transfer_within(self, allowed: int) -> int:
        if self._is_bulk:
            self._bulk.splice_bytes = allowed
            return super(LimitedFlow, self)._transfer()
        self._read_bytes = min(self.max_read_bytes, allowed)
        before = self._passed
        cost = super(LimitedFlow, self)._transfer()
        is_bulk = self._passed - before == self.max_read_bytes and self.state is OPEN
        if is_bulk and self.relay.forwarder.pipes.can_splice:
            self._start_bulk(allowed)
        return cost

    def _pause(self) -> None:
        super()._pause()
        if self._is_bulk and (pipe := self._bulk.pipe) is not None and not pipe.buffered:
            self._release_pipe()

    def _unbind_reads(self) -> None:
        self._read_bytes = self.max_read_bytes
        if self._is_bulk:
            self._bulk.splice_bytes = PIPE_SIZE


def limit_flow(flow: Flow, limiter: RateLimiter) -> None:
    """Limit the rate of a flow from its next read on; one that is limited already stays as it is."""
    if not isinstance(flow, LimitedFlow):
        flow.__class__ = LimitedFlow.by_unlimited[type(flow)]
        flow.limit = FlowLimit(cast("LimitedFlow", flow), limiter)


def unlimit_flow(flow: Flow) -> None:
    """Remove the limit of a flow that has one."""
    if isinstance(flow, LimitedFlow):
        flow.remove_limit()


def paused_s(flows: tuple[Flow, ...]) -> float | None:
    """Return the seconds for which a limit has held the more delayed of some flows back; None without a limit."""
    now = monotonic()
    return max((flow.limit.paused_s(now) for flow in flows if isinstance(flow, LimitedFlow)), default=None)

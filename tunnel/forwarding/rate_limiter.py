"""Limits of the rate of bytes of one direction of a tunnel: options ``rate`` and ``visitor_rate``.

A flow with a limit asks before each read how many bytes it may pass. If that is none, it pauses: it does not read, so
TCP slows its source down. What the flow has passed is charged afterwards, because records and slow sinks decide how
much that is. A bucket may be overdrawn, and the debt delays the next read, so the long-run average is exact.

Flows that wait for the tunnel's bucket take turns in the order of their arrival. In a turn each may pass the same
number of bytes, and what it passes too much is subtracted from its next turns (deficit round robin: M. Shreedhar and
G. Varghese, 1995).
"""

from __future__ import annotations

import heapq
from collections import deque
from itertools import count
from time import monotonic
from typing import TYPE_CHECKING, Final, Protocol

from tunnel.model.token_bucket import DebtBucket, FillRate

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from tunnel.runtime.reactor import Reactor

MIN_READ_BYTES: Final = 1 << 10
"""The least that a flow may read at once, even if fewer bytes are left: small reads cost more than they pace."""
_MAX_READ_BYTES: Final = 1 << 20  # the size of a pipe
_MIN_BURST_BYTES: Final = 1 << 11
_BURST_S: Final = 0.01  # of the tunnel's rate: what a visitor gets at once when there was none for a while
_VISITOR_BURST_S: Final = 0.1  # of a visitor's own rate
_CATCH_UP_S: Final = 0.25  # for so long, a busy event loop or a busy host may not serve the flows that wait
_MIN_TURN_BYTES, _MAX_TURN_BYTES = 1 << 10, 1 << 18
_TURN_S: Final = 0.001  # of the tunnel's rate: what a visitor may pass in its turn
_MIN_WAIT_S: Final = 0.002  # between two rounds: each costs a wake-up of the event loop
_WORTH_READING: Final = 4
"""A flow waits for this part of what it reads at once: a host that is as fast as the limit would read crumbs else."""
_ROUND_BUDGET: Final = 4096  # of the costs of a round; then other events are handled
_TURN_COST: Final = 64  # some ten microseconds, a system call or two
_SKIP_COST: Final = 1


class PausableFlow(Protocol):
    """A flow, as its limit sees it."""

    @property
    def is_paused(self) -> bool:
        """Whether the flow waits for its limit; not after its relay has ended."""

    def end_pause(self) -> None:
        """Read on, and ask for more."""

    def on_handler_error(self, error: Exception) -> None:
        """End the relay of the flow because of a defect."""


def _read_bytes(rate: FillRate) -> float:
    """Return how many bytes a visitor with this rate of its own waits for."""
    return min(rate.burst, _MAX_READ_BYTES) / 2


class FlowLimit:
    """What the limit of its direction knows of one flow."""

    __slots__ = ("_paused_s", "allowed", "credit", "flow", "limiter", "own", "paused_at")

    def __init__(self, flow: PausableFlow, limiter: RateLimiter) -> None:
        self.flow = flow
        self.limiter = limiter
        self.own: DebtBucket | None = None
        """the visitor's own bucket, if ``visitor_rate`` is set"""
        self.credit = 0
        """bytes that it may pass yet in its turn; negative: what it had too much"""
        self.paused_at: float | None = None
        """on the monotonic clock, while it waits"""
        self.allowed = 0
        """bytes of the present read"""
        self._paused_s = 0.0

    def end_pause(self, now: float) -> None:
        """Count the time in which the flow has waited."""
        if self.paused_at is not None:
            self._paused_s += now - self.paused_at
            self.paused_at = None

    def paused_s(self, now: float) -> float:
        """Return the seconds in which the flow has waited so far."""
        return self._paused_s + (0.0 if self.paused_at is None else now - self.paused_at)


class RateLimiter:
    """The limits of one direction of a tunnel. One timer for the tunnel's bucket, and one for those of all visitors."""

    def __init__(self, reactor: Reactor, clock: Callable[[], float] = monotonic) -> None:
        self._reactor = reactor
        self._clock = clock
        self._shared: DebtBucket | None = None
        self._visitor_rate: FillRate | None = None
        self._turn_bytes = _MIN_TURN_BYTES
        self._burst_bytes = float(_MIN_BURST_BYTES)
        self._queued_at = -_CATCH_UP_S  # when a flow waited for the tunnel's bucket last
        self._queue: deque[FlowLimit] = deque()  # flows that wait for the tunnel's bucket, in the order of their turns
        self._served: FlowLimit | None = None  # the flow whose turn it is
        self._waiting: list[tuple[float, int, FlowLimit]] = []  # heap of the flows that wait for their own buckets
        self._numbers = count()
        self._queue_timer: asyncio.TimerHandle | None = None
        self._waiting_timer: asyncio.TimerHandle | None = None
        self._busy_since: float | None = None
        self._busy_s = 0.0

    @property
    def paused(self) -> int:
        """Number of flows that wait; a visitor that has left meanwhile may still be counted."""
        return len(self._queue) + len(self._waiting)

    @property
    def paused_s(self) -> float:
        """Seconds so far in which at least one flow waited."""
        return self._busy_s + (0.0 if self._busy_since is None else self._clock() - self._busy_since)

    def set_rates(self, tunnel: float | None, visitor: float | None) -> None:
        """Use these rates in bytes per second, None for no limit, also for flows that wait now."""
        now = self._clock()
        if tunnel is None:
            self._shared = None
        else:
            fill_rate = FillRate(tunnel, max(_MIN_BURST_BYTES, tunnel * _CATCH_UP_S))
            self._burst_bytes = max(_MIN_BURST_BYTES, tunnel * _BURST_S)
            if self._shared is None:
                self._shared = DebtBucket(fill_rate, now)
            else:
                self._shared.available(now)
                self._shared.rate = fill_rate
            self._turn_bytes = min(max(_MIN_TURN_BYTES, int(tunnel * _TURN_S)), _MAX_TURN_BYTES)
        if visitor is None:
            self._visitor_rate = None
        else:
            burst = max(_MIN_BURST_BYTES, visitor * _VISITOR_BURST_S)
            if self._visitor_rate is None:
                self._visitor_rate = FillRate(visitor, burst)
            else:  # the buckets of present visitors share it
                self._visitor_rate.per_s, self._visitor_rate.burst = visitor, burst
        self._wake_all(now)

    def _wake_all(self, now: float) -> None:
        """Let every flow that waits ask again: the rates are others."""
        waiting, self._waiting = self._waiting, []
        if self._shared is None:
            waiting += ((0.0, 0, limit) for limit in self._queue)
            self._queue.clear()
        for *_, limit in waiting:
            self._resume(limit, now)
        if self._queue:
            self._arm_queue_timer(0.0)
        self._note_busy(now)

    # --- asked by flows -------------------------------------------------------------------------------------------

    def request(self, limit: FlowLimit) -> int:
        """Return how many bytes a flow may read now. At 0 the flow pauses, and is resumed later."""
        now = self._clock()
        allowed: float = _MAX_READ_BYTES
        rate = self._visitor_rate
        if rate is not None:
            own = limit.own
            if own is None or own.rate is not rate:
                own = limit.own = DebtBucket(rate, now)
            tokens = own.available(now)
            if tokens <= _read_bytes(rate) / _WORTH_READING:
                self._wait_for_own(limit, own, now)
                return 0
            allowed = min(allowed, tokens)
        if self._shared is not None:
            least = self._turn_bytes / _WORTH_READING
            if limit is self._served and limit.credit >= least:
                allowed = min(allowed, limit.credit)
            elif self._queue or limit is self._served or (tokens := self._available(self._shared, now)) < least:
                self._queue_up(limit, now)
                return 0
            else:
                limit.credit = 0
                allowed = min(allowed, tokens, self._turn_bytes)
        limit.allowed = max(int(allowed), MIN_READ_BYTES)
        return limit.allowed

    def _available(self, shared: DebtBucket, now: float) -> float:
        """Return the bytes in the tunnel's bucket while no flow waits for it."""
        tokens = shared.available(now)
        if tokens > self._burst_bytes and now - self._queued_at > _CATCH_UP_S:
            shared.spend(tokens - self._burst_bytes)  # nothing was held back: there is nothing to catch up on
            return self._burst_bytes
        return tokens

    def charge(self, limit: FlowLimit, passed: int) -> None:
        """Charge the bytes that a flow has passed."""
        if limit.own is not None:
            limit.own.spend(passed)
        if self._shared is not None:
            self._shared.spend(passed)
            limit.credit -= passed

    def _queue_up(self, limit: FlowLimit, now: float) -> None:
        limit.paused_at = self._queued_at = now
        self._queue.append(limit)
        self._note_busy(now)
        if self._queue_timer is None and self._served is None:
            self._arm_queue_timer(self._delay_s())

    def _delay_s(self) -> float:
        return _MIN_WAIT_S if self._shared is None else max(_MIN_WAIT_S, self._shared.delay_s(self._turn_bytes))

    def _wait_for_own(self, limit: FlowLimit, own: DebtBucket, now: float) -> None:
        limit.paused_at = now
        due = now + max(_MIN_WAIT_S, own.delay_s(_read_bytes(own.rate)))
        heapq.heappush(self._waiting, (due, next(self._numbers), limit))
        self._note_busy(now)
        if self._waiting[0][2] is limit:
            self._arm_waiting_timer(now)

    # --- rounds ---------------------------------------------------------------------------------------------------

    def _arm_queue_timer(self, delay_s: float) -> None:
        if self._queue_timer is not None:
            self._queue_timer.cancel()
        self._queue_timer = self._reactor.call_later(delay_s, self._serve_queue)

    def _arm_waiting_timer(self, now: float) -> None:
        if self._waiting_timer is not None:
            self._waiting_timer.cancel()
            self._waiting_timer = None
        if self._waiting:
            delay_s = max(_MIN_WAIT_S, self._waiting[0][0] - now)
            self._waiting_timer = self._reactor.call_later(delay_s, self._serve_waiting)

    def _serve_queue(self) -> None:
        """Give each flow in the queue a turn, one after the other, while the bucket has bytes."""
        self._queue_timer = None
        now = self._clock()
        queue, shared, budget = self._queue, self._shared, _ROUND_BUDGET
        while queue and budget > 0 and shared is not None and shared.available(now) > 0:
            limit = queue.popleft()
            limit.credit = min(limit.credit, self._turn_bytes // _WORTH_READING) + self._turn_bytes
            if limit.credit <= 0 and limit.flow.is_paused:
                queue.append(limit)
                budget -= _SKIP_COST
                continue
            budget -= _TURN_COST
            self._served = limit
            self._resume(limit, now)
            self._served = None
        if queue and self._queue_timer is None:
            self._arm_queue_timer(self._delay_s() if budget > 0 else 0.0)
        self._note_busy(now)

    def _serve_waiting(self) -> None:
        """Resume the flows whose own buckets have bytes again."""
        self._waiting_timer = None
        now = self._clock()
        waiting, budget = self._waiting, _ROUND_BUDGET
        while waiting and budget > 0 and waiting[0][0] <= now + _MIN_WAIT_S / 2:
            budget -= _TURN_COST
            self._resume(heapq.heappop(waiting)[2], now)
        if waiting and self._waiting_timer is None:
            self._arm_waiting_timer(now)
        self._note_busy(now)

    def _resume(self, limit: FlowLimit, now: float) -> None:
        limit.end_pause(now)
        flow = limit.flow
        try:
            if flow.is_paused:
                flow.end_pause()
        except Exception as error:  # noqa: BLE001  a defect in one relay must not affect the others
            flow.on_handler_error(error)

    def _note_busy(self, now: float) -> None:
        if self._queue or self._waiting:
            if self._busy_since is None:
                self._busy_since = now
        elif self._busy_since is not None:
            self._busy_s += now - self._busy_since
            self._busy_since = None

    def on_handler_error(self, error: Exception) -> None:
        """Report a defect of this limiter to the event loop."""
        raise error

    def close(self) -> None:
        """Stop the timers; flows that wait now are closed by their relays."""
        for timer in (self._queue_timer, self._waiting_timer):
            if timer is not None:
                timer.cancel()
        self._queue_timer = self._waiting_timer = None
        self._queue.clear()
        self._waiting.clear()

"""Limits on connections that have not authenticated yet: how many in total, from one address, and for how long."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import Final, Protocol


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """Limits on the pending connections of one server."""

    total: int = 1024
    per_address: int = 256
    timeout_s: float = 10.0
    """time to authenticate; TCP, TLS and the proof take less than five seconds over a slow satellite link"""


DEFAULT_ADMISSION: Final = AdmissionLimits()


class Evictable(Protocol):
    """A connection that has to authenticate."""

    @property
    def address(self) -> str:
        """The remote address, without the port."""

    def evict(self, reason: str) -> None:
        """Close the connection: its time is over, or a newer connection needs the place."""


class PendingConnections:
    """All pending connections of one server. When there are too many, the oldest is closed, never the newest.

    Rejecting the newest would let an attacker that holds all places keep the legitimate client out. Closing the
    oldest forces an attacker to outpace a handshake all the time.
    """

    def __init__(self, fd_limit: int | None = None, limits: AdmissionLimits = DEFAULT_ADMISSION) -> None:
        """``fd_limit``: file descriptors of this process; pending connections get a quarter of them at most."""
        self._limits = limits
        self._max_total = limits.total if fd_limit is None else min(limits.total, fd_limit // 4)
        self._deadlines: dict[Evictable, float] = {}  # in the order of arrival, hence of the deadlines
        self._by_address: Counter[str] = Counter()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._deadlines)

    def admit(self, connection: Evictable) -> None:
        """Add a new connection, and evict the oldest one if a limit is reached."""
        loop = asyncio.get_running_loop()
        if self._by_address[connection.address] >= self._limits.per_address:
            oldest = next(c for c in self._deadlines if c.address == connection.address)
            self._evict(oldest, "too many pending connections from this address")
        elif len(self._deadlines) >= self._max_total:
            self._evict(next(iter(self._deadlines)), "too many pending connections")
        self._deadlines[connection] = loop.time() + self._limits.timeout_s
        self._by_address[connection.address] += 1
        if self._timer is None:
            self._timer = loop.call_later(self._limits.timeout_s, self._evict_expired)

    def release(self, connection: Evictable) -> bool:
        """Remove a connection that has authenticated or is closed; whether it was pending."""
        if self._deadlines.pop(connection, None) is None:
            return False
        self._by_address[connection.address] -= 1
        if not self._by_address[connection.address]:
            del self._by_address[connection.address]
        return True

    def evict_all(self, reason: str) -> None:
        """Close all pending connections and stop the timer."""
        for connection in list(self._deadlines):
            self._evict(connection, reason)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _evict(self, connection: Evictable, reason: str) -> None:
        self.release(connection)
        connection.evict(reason)

    def _evict_expired(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        for connection, deadline in list(self._deadlines.items()):
            if deadline > now:
                self._timer = loop.call_at(deadline, self._evict_expired)
                return
            self._evict(connection, "it did not authenticate in time")

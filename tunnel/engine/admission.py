"""Connections that have not proven anything yet: few, not from one address alone, and not for long."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Final, Protocol

IN_ALL: Final = 1024
PER_ADDRESS: Final = 256
PATIENCE: Final = 10.0
"""Seconds in which a newcomer has to prove itself: TCP, TLS and the proof over a slow satellite take less than five."""


class Stranger(Protocol):
    """A connection that has to prove itself."""

    @property
    def address(self) -> str:
        """Where it comes from, without the port."""

    def dismiss(self, why: str) -> None:
        """Close it: it was silent for too long, or others need its place."""


class Strangers:
    """All of one server. Where there are too many the oldest goes, never the newcomer.

    Turning newcomers away would let whoever holds the places keep the rightful client out; this way an attacker has to
    outrun a handshake all the time.
    """

    def __init__(self, descriptors: int | None = None) -> None:
        """``descriptors``: how many this process may have; strangers get no more than a quarter of them."""
        self._most = IN_ALL if descriptors is None else min(IN_ALL, descriptors // 4)
        self._waiting: dict[Stranger, float] = {}  # in the order of their coming, hence of their deadlines
        self._by_address: Counter[str] = Counter()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def admit(self, stranger: Stranger) -> None:
        """Take a newcomer in."""
        loop = asyncio.get_running_loop()
        if self._by_address[stranger.address] >= PER_ADDRESS:
            oldest = next(s for s in self._waiting if s.address == stranger.address)
            self._dismiss(oldest, "too many unproven connections from its address")
        elif len(self._waiting) >= self._most:
            self._dismiss(next(iter(self._waiting)), "too many unproven connections")
        self._waiting[stranger] = loop.time() + PATIENCE
        self._by_address[stranger.address] += 1
        if self._timer is None:
            self._timer = loop.call_later(PATIENCE, self._sweep)

    def release(self, stranger: Stranger) -> None:
        """It has proven itself, or is gone."""
        if self._waiting.pop(stranger, None) is not None:
            self._by_address[stranger.address] -= 1
            if not self._by_address[stranger.address]:
                del self._by_address[stranger.address]

    def dismiss_all(self, why: str) -> None:
        """Close them all."""
        for stranger in list(self._waiting):
            self._dismiss(stranger, why)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _dismiss(self, stranger: Stranger, why: str) -> None:
        self.release(stranger)
        stranger.dismiss(why)

    def _sweep(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        for stranger, deadline in list(self._waiting.items()):
            if deadline > now:
                self._timer = loop.call_at(deadline, self._sweep)
                return
            self._dismiss(stranger, "it said nothing in time")

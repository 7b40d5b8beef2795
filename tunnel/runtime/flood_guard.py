"""Notices floods of datagrams from strangers, and lets the kernel drop most of them (``flood_filter``).

Reading a datagram that is then dropped costs some 5 µs, and delays everything else that the process does; in the kernel
it costs a tenth of that. So many strangers are let through as could get a place, so the chance of each stays the same.
"""

from __future__ import annotations

import contextlib
from time import monotonic
from typing import TYPE_CHECKING, Final, Protocol

from tunnel.runtime.flood_filter import (
    MAX_FLOWS,
    SourceHash,
    attach_filter,
    build_program,
    count_drops,
    detach_filter,
    find_max_instructions,
)

if TYPE_CHECKING:
    import asyncio
    import socket
    from collections.abc import Mapping

    from tunnel.model.networks import AdmittedNetworks
    from tunnel.runtime.datagram_port import DatagramFlow, FlowKey
    from tunnel.runtime.reactor import Reactor

WINDOW_S: Final = 0.1
"""How often the kernel gets another program, at most: one for 1,024 flows costs about a millisecond."""
FLOOD_RATE: Final = 5_000.0
"""Datagrams of refused strangers per second that are a flood: reading these costs some 3 % of a core."""
PASSED_RATE: Final = 1_000.0
"""Strangers per second that are let through: at most 400 flows a second give way to them."""
CALM_S: Final = 1.0
"""How long there must be fewer than a flood until all strangers are let through again."""
_STRANGERS_PER_PLACE: Final = 3.0  # more are let through where more get a place
_TOLERANCE: Final = 2.0  # by how much the number that is let through may be off
_MAX_RISE: Final = 4.0  # of the share in one window: a flood that pauses must not be read whole when it goes on
_MIN_SHARE: Final = 1e-6
_PAUSE_FACTOR: Final = 50  # times what a program took until the next one: together they take 2 % of a core
_DROPS_MODULUS: Final = 1 << 32

_source_hash: Final = SourceHash()


class FloodPolicy:
    """Decides from the counts of each window which share of strangers is let through. No I/O."""

    def __init__(self) -> None:
        self.share: float | None = None
        """the part of the strangers that is let through; None without a flood: all, and there is no filter"""
        self._calm_s = 0.0

    def end_window(self, seconds: float, *, refused: int, started: int, dropped: int) -> None:
        """Decide after so many seconds.

        Of the strangers that were let through, ``refused`` got no place and ``started`` did. The kernel has dropped
        ``dropped`` datagrams.
        """
        rate = (refused + started + dropped) / seconds
        if self.share is None:
            if refused / seconds >= FLOOD_RATE:
                self.share, self._calm_s = PASSED_RATE / rate, 0.0
            return
        self._calm_s = 0.0 if rate >= FLOOD_RATE else self._calm_s + seconds
        if self._calm_s >= CALM_S:
            self.share = None
            return
        wanted = max(PASSED_RATE, _STRANGERS_PER_PLACE * started / seconds)
        passed = max((refused + started) / seconds, wanted / _MAX_RISE)
        if not wanted / _TOLERANCE <= passed <= wanted * _TOLERANCE:
            self.share = min(1.0, max(_MIN_SHARE, self.share * wanted / passed))


class GuardedPort(Protocol):
    """The owner of a guarded socket."""

    def count_dropped(self, count: int) -> None:
        """Count datagrams that the kernel has dropped."""

    def current_networks(self) -> AdmittedNetworks:
        """Return from where strangers are admitted."""

    def on_handler_error(self, error: Exception) -> None:
        """React to a defect."""


class FloodGuard:
    """Keeps the filter of one socket, which another object owns. Has a timer only while there is a filter."""

    def __init__(
        self,
        reactor: Reactor,
        sock: socket.SocketType,
        flows: Mapping[FlowKey, DatagramFlow],
        owner: GuardedPort,
    ) -> None:
        """``flows`` are the present ones, and are read when a program is built."""
        self._reactor = reactor
        self._sock = sock
        self._flows = flows
        self._owner = owner
        self._policy = FloodPolicy()
        self._refused = 0  # in the present window
        self._began = 0.0  # when that began, on the monotonic clock
        self._drops = 0
        self._max_instructions = 0
        self._numbers: dict[DatagramFlow, int] = {}  # of the flows in the present program
        self._listed_at = 0.0  # when they were present
        self._program_of: tuple[float, AdmittedNetworks] | None = None  # what else it was built from
        self._timer: asyncio.TimerHandle | None = None
        self._next_program_at = 0.0
        self._is_usable = True

    def count_refused(self, count: int, now: float) -> None:
        """Count datagrams of strangers that got no place."""
        self._refused += count
        elapsed = now - self._began
        if elapsed < WINDOW_S or self._timer is not None:
            return
        refused, self._refused, self._began = self._refused, 0, now
        if self._is_usable and elapsed < 2 * WINDOW_S and len(self._flows) <= MAX_FLOWS:
            self._policy.end_window(elapsed, refused=refused, started=0, dropped=0)
            if self._policy.share is not None:
                self._start()

    def stop(self) -> None:
        """Let all datagrams through again. Calling it twice is allowed."""
        if self._timer is None:
            return
        self._timer.cancel()
        self._timer = None
        self._policy = FloodPolicy()
        self._numbers, self._program_of, self._next_program_at = {}, None, 0.0
        with contextlib.suppress(OSError):
            self._take_drops()
        with contextlib.suppress(OSError):  # the kernel has refused the filter
            detach_filter(self._sock)

    def _start(self) -> None:
        try:
            self._drops, self._max_instructions = count_drops(self._sock), find_max_instructions()
            self._timer = self._reactor.call_later(WINDOW_S, self._end_window)
            self._update_program()
        except OSError:  # an old kernel, or a sandbox: the strangers are read, as without a flood
            self._is_usable = False
            self.stop()

    def _end_window(self) -> None:
        now = monotonic()
        self._timer = self._reactor.call_later(WINDOW_S, self._end_window)
        refused, self._refused, seconds, self._began = self._refused, 0, now - self._began, now
        new = sum(flow not in self._numbers for flow in self._flows.values())
        started = round(new * seconds / (now - self._listed_at))
        try:
            dropped = self._take_drops()
            self._policy.end_window(seconds, refused=refused, started=started, dropped=dropped)
            if self._policy.share is None or len(self._flows) > MAX_FLOWS:
                self.stop()
            else:
                self._update_program()
        except OSError:  # the kernel has no memory for another program
            self.stop()

    def _take_drops(self) -> int:
        """Count what the kernel has dropped since the last call, and return the number."""
        before, self._drops = self._drops, count_drops(self._sock)
        dropped = (self._drops - before) % _DROPS_MODULUS
        self._owner.count_dropped(dropped)
        return dropped

    def _update_program(self) -> None:
        """Attach a program for the present flows and share, if it differs. Raises OSError."""
        began = monotonic()
        if began < self._next_program_at:
            return
        share, before, self._listed_at = self._policy.share or 0.0, self._numbers, began
        self._numbers = {
            flow: before[flow] if flow in before else _source_hash.number_of(flow.peer) for flow in self._flows.values()
        }
        program_of = share, self._owner.current_networks()
        if program_of != self._program_of or self._numbers.keys() != before.keys():
            self._program_of = program_of
            numbers, networks = self._numbers.values(), program_of[1]
            attach_filter(self._sock, build_program(_source_hash, numbers, share, *networks, self._max_instructions))
        self._next_program_at = began + _PAUSE_FACTOR * (monotonic() - began)

    def on_handler_error(self, error: Exception) -> None:
        """Pass a defect to the owner of the socket."""
        self._owner.on_handler_error(error)

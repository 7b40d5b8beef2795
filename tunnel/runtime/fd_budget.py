"""The file descriptors of this process: how many it may have, and how many of them visitors may use.

Visitors come last. The data connections and targets of present visitors must get a descriptor even when the table is
almost full. So must everything that lets operators see and control the daemon: the file, the local API, the broker.
"""

from __future__ import annotations

import os
import resource
from typing import Final, Protocol

DEFAULT_LIMIT: Final = 1024
"""Assumed where the system does not say how many descriptors a process may have: the usual limit."""

_UNLIMITED: Final = 1 << 20  # /proc/sys/fs/nr_open bounds it on Linux; some sandboxes report no limit
_MIN_RESERVE: Final = 32
_MAX_RESERVE: Final = 512
_SMALL_POOL_SHARE: Final = 32
_SHARE_OF_FREE: Final = 3
"""A dynamic threshold (Choudhury and Hahne, "Dynamic queue length thresholds", 1998): one greedy tunnel gets 3/4 of the
descriptors of visitors, two get 3/7 each, and some are free in any case."""

_PROMISED_SHARE: Final = 16
_PARTS_PER_QUESTION: Final = 16
_MAX_QUESTIONS: Final = 64  # far less than the reserve of a process that has so many tunnels


def file_descriptor_limit() -> int:
    """Return how many descriptors this process may have."""
    try:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    except (OSError, ValueError):  # a filter of system calls denies prlimit64(2)
        return DEFAULT_LIMIT
    return _UNLIMITED if limit == resource.RLIM_INFINITY else limit


class FdReservation(Protocol):
    """A part of a tunnel that will need more descriptors for the visitors it has already accepted."""

    @property
    def reserved(self) -> int:
        """One for each visitor that waits for a data connection, or data connection that waits for its target."""


class FdHolder(Protocol):
    """A part of a tunnel whose visitors use descriptors."""

    @property
    def held(self) -> int:
        """The descriptors of its visitors and of their data connections."""


class FdBudget:
    """One per reactor. Judges by the number of the descriptor opened last: the kernel assigns the lowest free one."""

    def __init__(self, probe: int) -> None:
        """``probe`` is any open descriptor; it is duplicated to find out the lowest free number."""
        self.limit: Final = file_descriptor_limit()
        self.visitor_ceiling: Final = self.limit - _reserve_size(self.limit)
        """the first descriptor number that is not for visitors"""
        self.ample_below: Final = self.visitor_ceiling // 4
        """descriptor numbers below which no question of this class needs to be asked: the answer is known

        What is reserved, and what a pool holds, never exceeds the descriptors that are open already.
        """
        self.reservations: set[FdReservation] = set()
        self._probe = probe
        self._reserved = 0  # when the reservations were last added up
        self._questions = 0  # since then

    def is_short(self, fd: int, holder: FdHolder | None = None) -> bool:
        """Whether no other visitor should be accepted, given that ``fd`` is the descriptor opened last.

        With a ``holder`` it is a visitor of that one: next to other tunnels, its visitors may hold at most
        ``_SHARE_OF_FREE`` times as many descriptors as are free. So the visitors of one tunnel, however many there
        are, leave some to the others; and each of several greedy tunnels gets the same (docs/decisions/0001).
        """
        if 2 * fd < self.visitor_ceiling:  # a reservation never exceeds the descriptors that its owner has already
            return False
        free = self.visitor_ceiling - fd - self._estimate_reserved()
        if holder is None or free <= 0 or len(self.reservations) <= 1:
            return free <= 0
        return holder.held > _SHARE_OF_FREE * free

    def allows_idle(self, fd: int, *, idle: int, wanted: int) -> bool:
        """Whether a tunnel with so many ``idle`` data connections may keep one more; ``fd`` as in ``is_short``.

        A quarter is for other tunnels: a peer that asks for a large pool must not take their descriptors. A tunnel
        may always have as many as its own configuration has ``wanted``, and a small number.
        """
        ceiling = self.visitor_ceiling * 3 // 4
        if 2 * fd < ceiling or idle < max(wanted, self.visitor_ceiling // _SMALL_POOL_SHARE):
            return True
        return fd + self._estimate_reserved() < ceiling

    def _estimate_reserved(self) -> int:
        """Return what is reserved, one more for each question since it was added up.

        Each new visitor and data connection asks, and may reserve one. With a thousand tunnels, adding up would cost a
        visitor more than everything else, so only some questions do it; with sixteen or fewer, each question does.
        """
        self._questions += 1
        if self._questions > min(len(self.reservations) // _PARTS_PER_QUESTION, _MAX_QUESTIONS):
            self._questions = 0
            self._reserved = sum(reservation.reserved for reservation in self.reservations)
        return self._reserved + self._questions

    def is_short_now(self, holder: FdHolder | None = None) -> bool:
        """Whether no other visitor should be accepted at this moment, as in ``is_short``."""
        try:
            fd = os.dup(self._probe)
        except OSError:
            return True
        os.close(fd)
        return self.is_short(fd, holder)

    def promise(self, wanted: int) -> int:
        """Return how many descriptors, ``wanted`` at most, a part of a tunnel may promise for visitors yet to come.

        It is to count them as reserved. The smaller the number that is left, the smaller the share of it.
        """
        try:
            fd = os.dup(self._probe)
        except OSError:
            return 0
        os.close(fd)
        return max(0, min(wanted, (self.visitor_ceiling - fd - self._estimate_reserved()) // _PROMISED_SHARE))

    def describe_shortage(self, holder: FdHolder) -> str:
        """Return why no visitor of a holder is accepted, as the end of a sentence."""
        if self.is_short_now():
            return str(self)
        return (
            f"its visitors hold {holder.held} of the {self.visitor_ceiling} file descriptors that visitors of this "
            "process may use, and the rest is for its other tunnels; raise the limit (ulimit -Hn, or LimitNOFILE= of "
            "its service), or set max_per_address"
        )

    def __str__(self) -> str:
        """The reason for a refusal, as the end of a sentence."""
        return (
            f"this process may have {self.limit} file descriptors and has almost none left; "
            "raise the limit (ulimit -Hn, or LimitNOFILE= of its service)"
        )


def _reserve_size(limit: int) -> int:
    return min(max(limit // 8, _MIN_RESERVE), limit // 3, _MAX_RESERVE)

"""Whether datagrams pass between client and server, as both ends find out. No I/O and no clock; see PROTOCOL.md.

The client sends probes and the server answers. Each end decides for what it sends: the client by the answers, the
server by what the client's probes say. Times are in seconds on any clock that does not jump.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from tunnel.protocol.datagram_messages import Probe

ACTIVE_INTERVAL_S: Final = 0.25
"""Between two probes while datagrams go either way, or a probe of a usable path is not answered."""
KEEPALIVE_INTERVAL_S: Final = 10.0
"""Between two probes of an idle path. A NAT keeps a mapping for two minutes (RFC 4787 REQ-5), many for 30 s only."""
SEARCH_INTERVAL_S: Final = 1.0
"""Between two probes of a path that is not usable."""
SLOW_SEARCH_INTERVAL_S: Final = 5.0
"""As before, after ``_QUICK_SEARCHES`` probes without an answer."""
UNANSWERED_S: Final = 1.25
"""How long the client waits for an answer: five probes may be lost in a row."""
SUSPECT_AFTER_S: Final = 1.0
"""How old the last answer, or probe, is when a datagram on a data connection makes an end suspect the path."""
SUSPECTED_S: Final = 0.35
"""How long an end that suspects the path waits for the next one; a client three round trips if they take longer."""
SERVER_UNPROBED_S: Final = 1.4
"""How long the server waits for a probe after it has sent something."""
SERVER_SILENT_S: Final = 2.5 * KEEPALIVE_INTERVAL_S
"""How long the server waits for a probe otherwise."""

_QUICK_SEARCHES: Final = 10
_ANSWERS_AFTER_FAILURE: Final = 3  # a path that loses many datagrams must not change at every answer
_REMEMBERED_PROBES: Final = 64


class PathProber:
    """The client's view of a path."""

    def __init__(self) -> None:
        self.is_usable = False
        """whether the client sends datagrams on the path"""
        self.round_trip_s: float | None = None
        """of the last probe that was answered"""
        self._number = 0
        self._unanswered: deque[tuple[int, float]] = deque(maxlen=_REMEMBERED_PROBES)  # number and time
        self._needed_answers = 1
        self._silent_searches = 0
        self._has_traffic = False  # since the last probe
        self._probed_at = self._answered_at = float("-inf")
        self._suspected_until: float | None = None

    def note_traffic(self) -> bool:
        """Note a datagram of a flow, either way; return whether the next probe is due earlier because of it."""
        if self._has_traffic or not self.is_usable:
            return False
        self._has_traffic = True
        return True

    @property
    def next_probe_at(self) -> float:
        """When the next probe is due."""
        if not self.is_usable:
            is_slow = self._silent_searches >= _QUICK_SEARCHES
            return self._probed_at + (SLOW_SEARCH_INTERVAL_S if is_slow else SEARCH_INTERVAL_S)
        is_active = self._has_traffic or bool(self._unanswered)
        due = self._probed_at + (ACTIVE_INTERVAL_S if is_active else KEEPALIVE_INTERVAL_S)
        return due if self._suspected_until is None else min(due, self._suspected_until)

    def suspect(self, now: float) -> bool:
        """Note that the server has not used the path for a datagram; return whether a probe is to be sent now.

        The server notices first that the path is blocked if nothing arrives that the client would answer.
        """
        if not self.is_usable or self._suspected_until is not None or now - self._answered_at < SUSPECT_AFTER_S:
            return False
        self._suspected_until = now + max(SUSPECTED_S, 3 * (self.round_trip_s or 0.0))
        return True

    def create_probe(self, now: float, full_size: int) -> Probe:
        """Return the probe that is sent now; it has ``full_size`` bytes while the path is not usable."""
        number, self._number = self._number, self._number + 1
        self._probed_at = now
        self._has_traffic = False
        self._unanswered.append((number, now))
        if not self.is_usable:
            self._silent_searches += 1
        return Probe(number, self.is_usable, 0 if self.is_usable else full_size)

    def note_answer(self, number: int, now: float) -> bool:
        """Note the answer to a probe; return whether the path has become usable."""
        sent_at = next((at for each, at in self._unanswered if each == number), None)
        if sent_at is None:
            return False  # of a probe before the last failure, or overtaken by the answer to a later one
        self.round_trip_s = now - sent_at
        self._answered_at, self._suspected_until = now, None
        while self._unanswered and self._unanswered[0][0] <= number:
            self._unanswered.popleft()
        self._silent_searches = 0
        if self.is_usable:
            return False
        self._needed_answers -= 1
        self.is_usable = self._needed_answers <= 0
        return self.is_usable

    def expire(self, now: float) -> bool:
        """Stop using the path if answers are overdue; return whether that has happened now."""
        if not self.is_usable or not self._unanswered:
            return False
        overdue_at = self._unanswered[0][1] + UNANSWERED_S
        if now < (overdue_at if self._suspected_until is None else min(overdue_at, self._suspected_until)):
            return False
        self.is_usable, self._suspected_until = False, None
        self._needed_answers = _ANSWERS_AFTER_FAILURE
        self._unanswered.clear()
        return True


class PathResponder:
    """The server's view of a path."""

    def __init__(self) -> None:
        self.is_usable = False
        """whether the server sends datagrams on the path"""
        self._probed_at = float("-inf")
        self._unprobed_since: float | None = None  # when something was sent first after the last probe
        self._suspected_until: float | None = None

    def note_probe(self, probe: Probe, now: float) -> bool:
        """Note a probe; return whether the path has changed."""
        self._probed_at = now
        self._unprobed_since = self._suspected_until = None
        was_usable, self.is_usable = self.is_usable, probe.is_usable
        return was_usable is not self.is_usable

    def note_sent(self, now: float) -> bool:
        """Note a datagram of a flow to the client; return whether the deadline has come nearer."""
        if self._unprobed_since is not None:
            return False
        self._unprobed_since = now
        return True

    def suspect(self, now: float) -> bool:
        """Note that the client has not used the path for a datagram; return whether the deadline has come nearer."""
        if not self.is_usable or self._suspected_until is not None or now - self._probed_at < SUSPECT_AFTER_S:
            return False
        self._suspected_until = now + SUSPECTED_S
        return True

    @property
    def deadline(self) -> float:
        """When the path is no longer usable unless a probe comes."""
        deadline = self._probed_at + SERVER_SILENT_S
        if self._unprobed_since is not None:
            deadline = min(deadline, self._unprobed_since + SERVER_UNPROBED_S)
        return deadline if self._suspected_until is None else min(deadline, self._suspected_until)

    def expire(self, now: float) -> bool:
        """Stop using the path if a probe is overdue; return whether that has happened now."""
        if not self.is_usable or now < self.deadline:
            return False
        self.is_usable, self._suspected_until = False, None
        return True

"""The health of one target, from the outcomes of its checks and of visitors' dials. Pure, with the caller's clock.

The words and the start are those of HAProxy. ``fall`` failures in a row take a target down, ``rise`` successes in a row
bring it back. A target is up at its start, but then a single failure takes it down. A success resets the count of
failures. A target that flaps returns only ``MAX_RETURNS`` times in ``RETURN_WINDOW_S``.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

MAX_RETURNS: Final = 3
"""How often a target may come up in ``RETURN_WINDOW_S``; so its state changes at most twice as often, and once more."""
RETURN_WINDOW_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class HealthRules:
    """How many outcomes in a row change the state."""

    fall: int = 3
    rise: int = 2


class UdpRefusals:
    """Closed ports that visitors of UDP met in a row at a target that also has visitors of TCP.

    They say nothing about TCP, so the target stays up; after ``limit`` of them, visitors of UDP avoid it for a while.
    Then the next one tries it again.
    """

    __slots__ = ("_avoided_until", "count")

    def __init__(self) -> None:
        self.count = 0
        """refusals without an answer between"""
        self._avoided_until = 0.0

    def is_avoided(self, now: float) -> bool:
        """Whether visitors of UDP get other targets at ``now``, in seconds of a monotonic clock."""
        return now < self._avoided_until

    def note_refusal(self, now: float, limit: int, pause_s: float) -> bool:
        """Count a closed port; return whether visitors of UDP avoid the target from now on, for ``pause_s``."""
        self.count += 1
        if self.count < limit or self.is_avoided(now):
            return False
        self._avoided_until = now + pause_s
        return True

    def note_answer(self) -> None:
        """Forget the refusals: the target has answered a visitor of UDP."""
        self.count = 0
        self._avoided_until = 0.0


class Health:
    """Whether a target is up, and how far it is from a change."""

    __slots__ = ("_has_succeeded", "_returns", "_rules", "changes", "failures", "is_held", "is_up", "successes")

    def __init__(self, rules: HealthRules) -> None:
        self.is_up = True
        self.failures = 0
        """in a row, up to the last outcome"""
        self.successes = 0
        """in a row since the target went down"""
        self.changes = 0
        """of the state so far"""
        self.is_held = False
        """whether the target has succeeded often enough to return, and has returned too often in the last minute"""
        self._rules = rules
        self._has_succeeded = False
        self._returns: deque[float] = deque(maxlen=MAX_RETURNS)

    def update_rules(self, rules: HealthRules) -> None:
        """Use other rules from the next outcome on."""
        self._rules = rules

    @property
    def wants_success(self) -> bool:
        """Whether a success would change anything: otherwise it need not be noted."""
        return not self._has_succeeded or self.failures > 0 or not self.is_up

    def note_success(self, now: float) -> bool:
        """Count a success at ``now`` (seconds of a monotonic clock); return whether the target came up."""
        self._has_succeeded = True
        self.failures = 0
        if self.is_up:
            return False
        self.successes += 1
        if self.successes < self._rules.rise:
            return False
        self.is_held = len(self._returns) == MAX_RETURNS and now - self._returns[0] < RETURN_WINDOW_S
        if self.is_held:
            return False
        self._returns.append(now)
        self._change(is_up=True)
        return True

    def note_failure(self) -> bool:
        """Count a failure; return whether the target went down."""
        self.successes = 0
        self.is_held = False
        self.failures += 1
        if not self.is_up or (self._has_succeeded and self.failures < self._rules.fall):
            return False
        self._change(is_up=False)
        return True

    def _change(self, *, is_up: bool) -> None:
        self.is_up = is_up
        self.successes = 0
        self.changes += 1

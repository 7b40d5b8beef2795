"""Whether somebody else speaks for our host: found out, reported, and never fought. Pure."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, Final

from orchestrator.mqtt.payloads import moment
from orchestrator.mqtt.standing import BrokerState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from orchestrator.mqtt.payloads import Origin

SILENCE: Final = 75.0
"""Seconds without a word after which a host that is said to be online is not: it speaks every 30."""


RETURN: Final = 10.0
"""Seconds in which one that our coming sent away is back."""

_COPIED: Final = (
    "another machine is on this broker as {host!r} with the id of this one, and came later: nothing is published; one "
    "of them was copied from the other: remove its state directory, and give it another name with supervisor.mqtt.host"
)
_Word = tuple[str, str]  # the boot and the moment of somebody's status


class RivalError(Exception):
    """Another host has our name, and was there first; the message is a sentence."""

    state = BrokerState.DUPLICATE


class Verdict(enum.Enum):
    """What a word on our own topics means to us."""

    NOTHING = enum.auto()
    ECHO = enum.auto()
    """our own birth came back"""
    CONTRADICTED = enum.auto()
    """somebody says that we are gone: an old connection's will, or the farewell of another"""
    CHALLENGED = enum.auto()
    """another host came with our name; it yields once it hears us"""


class Presence:
    """What is known of others on our topics. Moments are seconds of one monotonic clock.

    A copied machine has our instance and our client id as well, so that each of the two is sent away when the other
    comes. It is known by a life that began later than ours; the older of the two yields.
    """

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._rival: _Word | None = None
        self._alive_at = 0.0
        self._outlived: _Word | None = None
        self._was_born = False
        self._is_watching = False
        self._copy: _Word | None = None
        self._back_until = 0.0

    def begin(self) -> None:
        """A new connection, on which we mean to be born."""
        self._rival = self._copy = None
        self._is_watching = False

    def born(self) -> None:
        """Our birth has been heard."""
        self._was_born = True

    def watch(self, now: float) -> None:
        """A new connection, only to see whether the other is still there."""
        self._is_watching = True
        self._alive_at = now
        self._back_until = now + RETURN if self._copy is not None else 0.0

    def check(self, host: str) -> None:
        """Before birth. Raises RivalError where another host is online under our name."""
        if self._rival is not None and self._rival != self._outlived:
            raise RivalError(complaint(host))

    def is_occupied(self, now: float) -> bool:
        """Whether the other is still there: it has not said farewell, and not been silent for too long."""
        if self._rival is not None and now - self._alive_at >= SILENCE:
            self._outlived, self._rival = self._rival, None
        elif self._rival is None and now >= self._back_until:
            self._outlived = self._copy or self._outlived
        return self._rival is not None or now < self._back_until

    def heard(self, host: str, kind: str, word: Mapping[str, Any], now: float, *, is_retained: bool) -> Verdict:
        """A payload of ``status``, ``info`` or ``state`` of our host. Raises RivalError where we have to yield."""
        said = str(word.get("boot")), str(word.get("ts"))
        if kind != "status":
            if self._rival is not None and said[0] == self._rival[0] and not is_retained:
                self._alive_at = now
            return Verdict.NOTHING
        is_online = word.get("online") is True
        if said[0] == self._origin.boot:
            if is_retained:
                return Verdict.NOTHING
            return Verdict.ECHO if is_online else Verdict.CONTRADICTED
        instance = str(word.get("instance") or said[0])
        if self._is_of_a_copy(instance, word) and said != self._outlived:
            self._copy = said
            if not self._is_watching:
                raise RivalError(_COPIED.format(host=host))
        if not is_online:
            self._rival = None
            return Verdict.NOTHING if is_retained else Verdict.CONTRADICTED
        if instance == self._origin.instance and self._copy is None:
            return Verdict.NOTHING  # an earlier life of ours
        self._rival, self._alive_at = said, now
        if is_retained or self._is_watching:
            return Verdict.NOTHING
        if instance < self._origin.instance:  # both came at once: both see it the same way
            raise RivalError(complaint(host))
        return Verdict.CHALLENGED

    def _is_of_a_copy(self, instance: str, word: Mapping[str, Any]) -> bool:
        """Before our first birth it may be an earlier life of ours, by a clock that was wrong."""
        is_later = (moment(word.get("started_at")) or 0.0) > self._origin.started_at
        return self._was_born and is_later and instance == self._origin.instance


def complaint(host: str) -> str:
    """For the people of both hosts."""
    return (
        f"another host is online as {host!r} on this broker, and was there first: nothing is published; "
        "give one of them another name with supervisor.mqtt.host"
    )

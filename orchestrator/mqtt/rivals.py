"""Whether somebody else speaks for our host: found out, reported, and never fought. Pure."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, Final

from orchestrator.mqtt.standing import BrokerState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from orchestrator.mqtt.payloads import Origin

SILENCE: Final = 75.0
"""Seconds without a word after which a host that is said to be online is not: it speaks every 30."""


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
    """What is known of others on our topics. Moments are seconds of one monotonic clock."""

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._rival: str | None = None  # its boot
        self._alive_at = 0.0
        self._outlived: str | None = None
        self._is_watching = False

    def begin(self) -> None:
        """A new connection, on which we mean to be born."""
        self._rival = None
        self._is_watching = False

    def watch(self, now: float) -> None:
        """A new connection, only to see whether the other is still there."""
        self._is_watching = True
        self._alive_at = now

    def check(self, host: str) -> None:
        """Before birth. Raises RivalError where another host is online under our name."""
        if self._rival is not None and self._rival != self._outlived:
            raise RivalError(complaint(host))

    def is_occupied(self, now: float) -> bool:
        """Whether the other is still there: it has not said farewell, and not been silent for too long."""
        if self._rival is not None and now - self._alive_at >= SILENCE:
            self._outlived, self._rival = self._rival, None
        return self._rival is not None

    def heard(self, host: str, kind: str, word: Mapping[str, Any], now: float, *, is_retained: bool) -> Verdict:
        """A payload of ``status``, ``info`` or ``state`` of our host. Raises RivalError where we have to yield."""
        boot = word.get("boot")
        if kind != "status":
            if boot == self._rival and not is_retained:
                self._alive_at = now
            return Verdict.NOTHING
        is_online = word.get("online") is True
        if boot == self._origin.boot:
            if is_retained:
                return Verdict.NOTHING
            return Verdict.ECHO if is_online else Verdict.CONTRADICTED
        instance = str(word.get("instance") or boot)
        if not is_online:
            self._rival = None
            return Verdict.NOTHING if is_retained else Verdict.CONTRADICTED
        if instance == self._origin.instance:
            return Verdict.NOTHING  # an earlier life of ours
        self._rival, self._alive_at = str(boot), now
        if is_retained or self._is_watching:
            return Verdict.NOTHING
        if instance < self._origin.instance:  # both came at once: both see it the same way
            raise RivalError(complaint(host))
        return Verdict.CHALLENGED


def complaint(host: str) -> str:
    """For the people of both hosts."""
    return (
        f"another host is online as {host!r} on this broker, and was there first: nothing is published; "
        "give one of them another name with supervisor.mqtt.host"
    )

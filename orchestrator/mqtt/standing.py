"""How it stands with the broker: in one word, with the reason and since when. Pure."""

from __future__ import annotations

import enum
import time
from collections.abc import Callable
from typing import Any

from tunnel.model.times import format_timestamp


class BrokerState(enum.StrEnum):
    """What ``ps --json`` says of the broker; ``off`` where the file names none."""

    CONNECTING = "connecting"
    """the first attempt is under way"""
    ONLINE = "online"
    UNREACHABLE = "unreachable"
    """nobody answers there, or the connection was lost"""
    REFUSED = "refused"
    """the broker is there and does not want us, or does not let us do what we have to"""
    DUPLICATE = "duplicate"
    """another host has our name"""
    FAILED = "failed"
    """the fault is on our side: a file that cannot be used"""


class Record:
    """The present standing; ``since`` is when the state, not the reason, was last another one."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._since = now()
        self.state = BrokerState.CONNECTING
        self.reason: str | None = None

    @property
    def is_online(self) -> bool:
        """Whether what is said is heard."""
        return self.state is BrokerState.ONLINE

    def enter(self, state: BrokerState, reason: str | None = None) -> bool:
        """It stands so from now on; whether that is news."""
        is_news = (state, reason) != (self.state, self.reason)
        if state is not self.state:
            self._since = self._now()
        self.state, self.reason = state, reason
        return is_news

    def as_json(self) -> dict[str, Any]:
        """As ``ps --json`` shows it."""
        return {"state": self.state.value, "reason": self.reason, "since": format_timestamp(self._since)}

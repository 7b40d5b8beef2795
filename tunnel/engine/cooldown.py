"""The wait of an engine between two attempts."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from tunnel.model.events import EventKind
from tunnel.model.spec import LogLevel
from tunnel.model.wording import format_delay

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnel.model.events import EventLog


class Cooldown:
    """The wait before the next attempt, which grows with each failure in a row."""

    def __init__(self, retry_delay: Callable[[int, float], float]) -> None:
        self._retry_delay = retry_delay
        self.attempt = 0
        """failed attempts in a row"""
        self.next_attempt_at = 0.0
        """on the loop's clock"""
        self._skip = asyncio.Event()

    def start(self, max_delay_s: float, reason: str, event_log: EventLog, level: LogLevel = LogLevel.WARN) -> None:
        """Count a failed attempt, and log why it failed and when the next one is due, in ``max_delay_s`` at most."""
        self.attempt += 1
        delay_s = self._retry_delay(self.attempt, max_delay_s)
        self.next_attempt_at = asyncio.get_running_loop().time() + delay_s
        self._skip.clear()
        text = f"{reason}; next attempt {format_delay(delay_s)}"
        event_log.log_throttled(level, EventKind.STATE, reason, text, attempt=self.attempt)

    async def wait(self) -> None:
        """Wait until the next attempt is due, or ``skip`` was called."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(self.next_attempt_at):
                await self._skip.wait()

    def skip(self) -> None:
        """End the present wait."""
        self._skip.set()

    def reset(self) -> None:
        """An attempt has succeeded."""
        self.attempt = 0

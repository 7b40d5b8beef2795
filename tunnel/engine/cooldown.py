"""The wait of an engine between two attempts."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Cooldown:
    """The wait before the next attempt, which grows with each failure in a row."""

    def __init__(self, retry_delay: Callable[[int, float], float]) -> None:
        self._retry_delay = retry_delay
        self.attempt = 0
        """failed attempts in a row"""
        self.next_attempt_at = 0.0
        """on the loop's clock"""
        self._skip = asyncio.Event()

    def start(self, max_delay_s: float) -> float:
        """Count a failed attempt; the seconds until the next one."""
        self.attempt += 1
        delay_s = self._retry_delay(self.attempt, max_delay_s)
        self.next_attempt_at = asyncio.get_running_loop().time() + delay_s
        self._skip.clear()
        return delay_s

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

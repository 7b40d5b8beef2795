"""Waiting for a condition, in tests that block and in tests that run on an event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tests.support.scale import GUARD_S, time_allowed

T = TypeVar("T")

_POLL_INTERVAL_S = 0.01
_POLL_INTERVAL_ASYNC_S = 0.002


def wait_until(
    condition: Callable[[], T], what: str | Callable[[], str] = "the condition holds", *, within: float = GUARD_S
) -> T:
    """Block until ``condition`` returns something true, and return that.

    ``within`` is the promised time in seconds, extended by ``time_allowed``. ``what`` completes the sentence of the
    failure; a callable is evaluated only then, so it can show the latest output.
    """
    limit = time_allowed(within)
    deadline = time.monotonic() + limit
    while True:
        if result := condition():
            return result
        if time.monotonic() > deadline:
            raise AssertionError(_failure(what, limit))
        time.sleep(_POLL_INTERVAL_S)


async def wait_until_async(
    condition: Callable[[], object],
    what: str | Callable[[], str] = "the condition holds",
    *,
    within: float = GUARD_S,
    pause: Callable[[], Awaitable[object]] | None = None,
) -> None:
    """Let the event loop run until ``condition`` returns something true; fail after ``within`` seconds.

    ``pause`` replaces the sleep between two evaluations, for example a Textual pilot's own pause.
    """
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, _failure(what, within)
        await (asyncio.sleep(_POLL_INTERVAL_ASYNC_S) if pause is None else pause())


async def run_loop_turns(count: int) -> None:
    """Let the event loop run ``count`` turns."""
    for _ in range(count):
        await asyncio.sleep(0)


def _failure(what: str | Callable[[], str], limit: float) -> str:
    return f"not within {limit:g} s: {what if isinstance(what, str) else what()}"

"""Tasks that live and die with a block."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

Start = Callable[[Coroutine[Any, Any, None]], None]


@contextlib.asynccontextmanager
async def together() -> AsyncIterator[Start]:
    """Start tasks beside a block. They end with it; the first error of any of them ends it, and is its error."""
    tasks: list[asyncio.Task[None]] = []
    try:
        async with asyncio.TaskGroup() as group:
            yield lambda work: tasks.append(group.create_task(work))
            for task in tasks:
                task.cancel()
    except BaseExceptionGroup as group:
        raise _first(group) from None


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error

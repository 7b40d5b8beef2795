"""Background tasks that belong to a block."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

StartTask = Callable[[Coroutine[Any, Any, None]], None]


@contextlib.asynccontextmanager
async def task_scope() -> AsyncIterator[StartTask]:
    """Give a function that starts background tasks; cancel them when the block ends.

    The first error of a task cancels the block and the other tasks, and is raised instead of an exception group.
    """
    tasks: list[asyncio.Task[None]] = []
    try:
        async with asyncio.TaskGroup() as group:
            yield lambda work: tasks.append(group.create_task(work))
            for task in tasks:
                task.cancel()
    except BaseExceptionGroup as group:
        raise _first_error(group) from None


def _first_error(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error

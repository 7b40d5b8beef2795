"""Hints that something has changed in a directory: watchfiles, which asks the kernel (inotify(7)).

The library runs native threads and ends the whole process where the system does not grant one. So threads are reserved
before it starts; without them there are no hints, and the caller polls.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import threading
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from watchfiles import awatch

_DEBOUNCE_MS: Final = 400
_STEP_MS: Final = 200  # the library's default of 50 wakes a process at rest 20 times a second
_TIMEOUT_MS: Final = 5000
_NEEDED_THREADS: Final = 3
"""Two native ones of the library, and one of Python that waits for it."""


class DirectoryHints:
    """Watches directories, not what is below them, while its context is entered."""

    def __init__(self, directories: Iterable[Path], changed: asyncio.Event) -> None:
        """``changed`` is set at each change; its owner may set it too, to end a ``wait``."""
        self._directories = tuple(directories)
        self._changed = changed
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Start to watch. Raises OSError where the system grants too few threads."""
        check_threads(_NEEDED_THREADS)
        self._task = asyncio.create_task(self._set_changed_on_hints())
        self._task.add_done_callback(lambda _: self._changed.set())
        await asyncio.sleep(0)  # the task has started the watch now, with the threads that were free
        return self

    async def __aexit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        """Stop to watch; a thread of the library sees this within a fraction of a second."""
        self._stop.set()
        if self._task is not None:
            await asyncio.wait({self._task})
            if not self._task.cancelled():
                self._task.exception()

    async def wait(self, timeout_s: float) -> bool:
        """Wait for a change since the last call. Returns False after ``timeout_s`` seconds without one.

        Raises OSError once there are no hints any more: the limits of the kernel are in /proc/sys/fs/inotify.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        is_changed = self._changed.is_set()
        self._changed.clear()
        if self._task is not None and self._task.done():
            self._task.result()
        return is_changed

    async def _set_changed_on_hints(self) -> None:
        try:
            async for _ in awatch(
                *self._directories,
                watch_filter=None,
                debounce=_DEBOUNCE_MS,
                step=_STEP_MS,
                stop_event=self._stop,
                rust_timeout=_TIMEOUT_MS,
                recursive=False,
            ):
                self._changed.set()
        except UnicodeError:
            raise OSError("the name of its directory is not UTF-8") from None
        except RuntimeError as error:  # of the library, or of Python, which cannot start a thread
            raise OSError(str(error)) from error


def check_threads(count: int) -> None:
    """Raise OSError unless the system grants this process ``count`` more threads at this moment."""
    release = threading.Event()
    started: list[threading.Thread] = []
    try:
        for _ in range(count):
            thread = threading.Thread(target=release.wait, name="thread check", daemon=True)
            thread.start()
            started.append(thread)
    except RuntimeError:
        raise OSError(errno.EAGAIN, "this process may start too few threads for that; raise its pids limit") from None
    finally:
        release.set()
        for thread in started:
            thread.join()

"""Notices when the configuration file, or a file that it includes or names, has changed.

What the kernel reports is a hint and nothing more: it does not cover network file systems, and covers mounts and
symbolic links only in part. The content decides. It is read after every hint, and every two seconds without one.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from functools import partial
from typing import TYPE_CHECKING, Final

from watchfiles import awatch

from orchestrator.config.file_set import is_open_for_writing, run_in_file_thread
from orchestrator.supervisor.crash_reports import describe_crash
from tunnel.model.events import EventKind
from tunnel.model.spec import LogLevel

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from orchestrator.config.file_set import FileSet
    from orchestrator.supervisor.event_bus import EventBus

HINT_GAP_MS: Final = 200
"""A series of hints ends after this time without another one."""
MAX_HINT_SERIES_MS: Final = 400
HINT_TIMEOUT_MS: Final = 500
"""Without a hint, control returns to this module after this time."""

_SCAN_INTERVAL_S: Final = 1.9  # so that a change without a hint is noticed within two seconds
_MAX_SCAN_INTERVAL_S: Final = 60.0
_SCAN_SHARE: Final = 0.01  # of the time, at most, for scans without a hint: they read every file
_HINTED_SCAN_SHARE: Final = 0.1  # for scans after hints: a log in a watched directory changes all the time
_POLL_INTERVAL_S: Final = 0.5  # between two scans where the kernel gives no hints
_POLL_DURATION_S: Final = 30.0  # until hints are tried again
_STABLE_AFTER_S: Final = 0.15  # content that does not change for so long is complete
_MAX_UNSTABLE_S: Final = 1.0  # content that never stops changing is taken as it is after this time
_MAX_WRITING_S: Final = 10.0  # how long a process may keep the file open for writing


@contextlib.asynccontextmanager
async def watch_files(
    sources: Callable[[], FileSet], reload: Callable[[], Awaitable[object]], bus: EventBus
) -> AsyncIterator[None]:
    """Call ``reload`` whenever the files differ from what ``sources`` returns, until the context ends."""
    watcher = _Watcher(sources, reload, bus)
    task = asyncio.create_task(watcher.run())
    try:
        yield
    finally:
        watcher.stop.set()
        await asyncio.wait({task}, timeout=1.0)  # not cancelled first: a thread waits in the kernel until it sees this
        task.cancel()


class _Watcher:
    def __init__(self, sources: Callable[[], FileSet], reload: Callable[[], Awaitable[object]], bus: EventBus) -> None:
        self.stop = asyncio.Event()
        self._sources = sources
        self._reload = reload
        self._bus = bus
        self._last_tried: FileSet | None = None
        self._is_polling = False
        self._scanned_at = -_MAX_SCAN_INTERVAL_S  # on the clock time.monotonic
        self._scan_cost_s = 0.0

    async def run(self) -> None:
        while not self.stop.is_set():
            try:
                await self._watch(await run_in_file_thread(partial(_identify_directories, self._sources())))
            except (OSError, RuntimeError, UnicodeError) as error:  # of watchfiles: no watches left, odd directory
                self._warn_polling(error)
                await self._poll()
            except Exception as error:  # noqa: BLE001  a crash of a reload must not end the watch over the file
                self._bus.emit(LogLevel.ERROR, EventKind.RELOAD, describe_crash(error))
                await self._poll()

    async def _watch(self, directories: frozenset[tuple[Path, int, int]]) -> None:
        """Scan after every hint, until the directories to watch are others."""
        await self._scan()
        self._scanned_at = -_MAX_SCAN_INTERVAL_S  # scan again at once: the kernel does not watch yet
        hints: AsyncGenerator[object] = awatch(
            *{path for path, *_ in directories},
            watch_filter=None,
            debounce=MAX_HINT_SERIES_MS,
            step=HINT_GAP_MS,
            stop_event=self.stop,
            rust_timeout=HINT_TIMEOUT_MS,
            yield_on_timeout=True,
            recursive=False,
        )
        has_hint = False
        async with contextlib.aclosing(hints):
            async for changes in hints:
                self._is_polling = False
                has_hint = has_hint or bool(changes)
                if self._is_scan_due(has_hint=has_hint):
                    has_hint = False
                    await self._scan()
                    if await run_in_file_thread(partial(_identify_directories, self._sources())) != directories:
                        return

    async def _poll(self) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _POLL_DURATION_S
        while loop.time() < deadline and not self.stop.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_POLL_INTERVAL_S):
                    await self.stop.wait()
            await self._scan()

    def _is_scan_due(self, *, has_hint: bool) -> bool:
        """Whether the files are to be read: at once after a hint, else at an interval, both bounded by the cost."""
        elapsed_s = time.monotonic() - self._scanned_at
        if has_hint:
            return elapsed_s >= self._scan_cost_s / _HINTED_SCAN_SHARE
        return elapsed_s >= min(_MAX_SCAN_INTERVAL_S, max(_SCAN_INTERVAL_S, self._scan_cost_s / _SCAN_SHARE))

    async def _scan(self) -> None:
        """Read the files; reload if they are new and complete."""
        found, self._scan_cost_s = await run_in_file_thread(partial(_refresh_timed, self._sources()))
        self._scanned_at = time.monotonic()
        if found in (self._sources(), self._last_tried):
            return
        found = await self._wait_stable(found)
        if found != self._sources() and not self.stop.is_set():
            self._last_tried = found
            await self._reload()

    async def _wait_stable(self, found: FileSet) -> FileSet:
        """The files once they no longer change and no process has them open for writing."""
        loop = asyncio.get_running_loop()
        started_at = loop.time()
        while not self.stop.is_set():
            await asyncio.sleep(_STABLE_AFTER_S)
            before, found = found, await run_in_file_thread(found.refresh)
            elapsed_s = loop.time() - started_at
            is_written = elapsed_s < _MAX_WRITING_S and await run_in_file_thread(partial(_is_any_written, found))
            if not is_written and (found == before or elapsed_s > _MAX_UNSTABLE_S):
                break
        return found

    def _warn_polling(self, error: Exception) -> None:
        if not self._is_polling:
            reason = "the name of its directory is not UTF-8" if isinstance(error, UnicodeError) else str(error)
            text = (
                f"the system does not report changes of the file, so it is read every {_POLL_INTERVAL_S:g} s: {reason}"
            )
            self._bus.emit(LogLevel.WARN, EventKind.CONFIG, text)
        self._is_polling = True


def _refresh_timed(sources: FileSet) -> tuple[FileSet, float]:
    """The files with their current content, and the seconds of processor time that reading them took."""
    began_s = time.thread_time()
    return sources.refresh(), time.thread_time() - began_s


def _identify_directories(sources: FileSet) -> frozenset[tuple[Path, int, int]]:
    """The directories with device and inode: one that was replaced has to be watched again."""
    found = set()
    for path in sources.directories():
        with contextlib.suppress(OSError):
            status = path.stat()
            found.add((path, status.st_dev, status.st_ino))
    return frozenset(found)


def _is_any_written(sources: FileSet) -> bool:
    return any(is_open_for_writing(path) for path in sources.files)

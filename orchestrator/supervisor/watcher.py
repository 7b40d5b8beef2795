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

from orchestrator.config.file_set import StuckFileError, check_none_stuck, is_open_for_writing, run_in_file_thread
from orchestrator.supervisor.crash_reports import describe_crash
from orchestrator.supervisor.directory_hints import DirectoryHints
from tunnel.model.events import EventKind
from tunnel.model.files import noted_access
from tunnel.model.spec import LogLevel
from tunnel.runtime.blocking_calls import ThreadShortageError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from orchestrator.config.file_set import FileSet
    from orchestrator.supervisor.event_bus import EventBus

HINT_GAP_S: Final = 0.2
"""A series of hints ends after this time without another one."""
MAX_HINT_SERIES_S: Final = 0.4
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
        watcher.request_stop()
        await asyncio.wait({task}, timeout=1.0)  # a reload that has begun may end
        task.cancel()


class _Watcher:
    def __init__(self, sources: Callable[[], FileSet], reload: Callable[[], Awaitable[object]], bus: EventBus) -> None:
        self.stop = asyncio.Event()
        self._changed = asyncio.Event()
        self._sources = sources
        self._reload = reload
        self._bus = bus
        self._last_tried: FileSet | None = None
        self._problem = ""
        self._scanned_at = -_MAX_SCAN_INTERVAL_S  # on the clock time.monotonic
        self._scan_cost_s = 0.0

    def request_stop(self) -> None:
        """End ``run`` after the present scan."""
        self.stop.set()
        self._changed.set()

    async def run(self) -> None:
        while not self.stop.is_set():
            try:
                await self._watch()
            except (ThreadShortageError, StuckFileError) as error:
                self._warn(f"the file is not read at present: {error}")
            except OSError as error:
                text = f"the system does not report changes of the file, so it is read every {_POLL_INTERVAL_S:g} s"
                self._warn(f"{text}: {error.strerror or error}")
            except Exception as error:  # noqa: BLE001  a crash of a reload must not end the watch over the file
                self._bus.emit(LogLevel.ERROR, EventKind.RELOAD, describe_crash(error))
            await self._poll()

    async def _watch(self) -> None:
        """Scan after each hint until a stop is requested; watch other directories when the files move."""
        while not self.stop.is_set():
            check_none_stuck()
            directories = await run_in_file_thread(partial(_identify_directories, self._sources()))
            async with DirectoryHints((path for path, *_ in directories), self._changed) as hints:
                await self._scan()  # sees what changed before the kernel watched
                while await run_in_file_thread(partial(_identify_directories, self._sources())) == directories:
                    self._problem = ""
                    await self._wait_for_hint(hints)
                    if self.stop.is_set():
                        return
                    await self._scan()

    async def _wait_for_hint(self, hints: DirectoryHints) -> None:
        """Wait until a series of hints has ended, for the next regular scan, or for the end."""
        has_hint = is_series = await hints.wait(self._remaining_pause_s(has_hint=False))
        loop = asyncio.get_running_loop()
        deadline = loop.time() + MAX_HINT_SERIES_S
        while is_series and loop.time() < deadline and not self.stop.is_set():
            is_series = await hints.wait(HINT_GAP_S)
        if has_hint:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._remaining_pause_s(has_hint=True)):
                    await self.stop.wait()

    async def _poll(self) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _POLL_DURATION_S
        while loop.time() < deadline and not self.stop.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_POLL_INTERVAL_S):
                    await self.stop.wait()
            try:
                await self._scan()
            except OSError as error:
                self._warn(f"the file is not read at present: {error.strerror or error}")

    def _remaining_pause_s(self, *, has_hint: bool) -> float:
        """Return how long no scan is due: none after a hint, else an interval, both bounded by the cost of a scan."""
        elapsed_s = time.monotonic() - self._scanned_at
        pause_s = self._scan_cost_s / _HINTED_SCAN_SHARE
        if not has_hint:
            pause_s = min(_MAX_SCAN_INTERVAL_S, max(_SCAN_INTERVAL_S, self._scan_cost_s / _SCAN_SHARE))
        return max(pause_s - elapsed_s, 0.0)

    async def _scan(self) -> None:
        """Read the files; reload if they are new and complete. Raises StuckFileError while a file system hangs."""
        check_none_stuck()
        found, self._scan_cost_s = await run_in_file_thread(partial(_refresh_timed, self._sources()))
        self._scanned_at = time.monotonic()
        sources = self._sources()
        if found == sources or (found == self._last_tried and not sources.is_unread):
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

    def _warn(self, problem: str) -> None:
        if problem != self._problem:
            self._bus.emit(LogLevel.WARN, EventKind.CONFIG, problem)
        self._problem = problem


def _refresh_timed(sources: FileSet) -> tuple[FileSet, float]:
    """The files with their current content, and the seconds of processor time that reading them took."""
    began_s = time.thread_time()
    return sources.refresh(), time.thread_time() - began_s


def _identify_directories(sources: FileSet) -> frozenset[tuple[Path, int, int]]:
    """The directories with device and inode: one that was replaced has to be watched again."""
    found = set()
    for path in sources.directories():
        with contextlib.suppress(OSError), noted_access(path):
            status = path.stat()
            found.add((path, status.st_dev, status.st_ino))
    return frozenset(found)


def _is_any_written(sources: FileSet) -> bool:
    return any(is_open_for_writing(path) for path in sources.files)

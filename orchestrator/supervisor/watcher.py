"""Notices that the file, or one it comes from, is not what it was when it was read.

What the kernel reports is a hint and nothing more: it knows nothing of network file systems, and little of mounts and
links. The contents decide, looked at after every hint and every two seconds besides.
"""

from __future__ import annotations

import asyncio
import contextlib
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

_STEP: Final = 200  # milliseconds without a further hint that end a series of them
_SERIES: Final = 400  # milliseconds that a series lasts at the most
_TICK: Final = 500  # milliseconds without a hint, after which we are asked what next
_TICKS: Final = 4  # of them make the two seconds; a look at the first sees what happened before hints came
_BLIND: Final = 0.5  # seconds between two looks where there are no hints at all
_BLIND_FOR: Final = 30.0  # seconds until hints are tried again
_STILL: Final = 0.15  # seconds in which a content must not change to be a whole one
_RESTLESS: Final = 1.0  # seconds after which one that never stops changing is taken as it is
_WRITING: Final = 10.0  # seconds that somebody may take to write it


@contextlib.asynccontextmanager
async def watch_files(
    sources: Callable[[], FileSet], reload: Callable[[], Awaitable[object]], bus: EventBus
) -> AsyncIterator[None]:
    """Call ``reload`` whenever the files are not what ``sources`` says they were, until the context ends."""
    watcher = _Watcher(sources, reload, bus)
    task = asyncio.create_task(watcher.run())
    try:
        yield
    finally:
        watcher.stop.set()
        await asyncio.wait({task}, timeout=1.0)  # not cancelled first: a thread waits for the kernel, and sees this
        task.cancel()


class _Watcher:
    def __init__(self, sources: Callable[[], FileSet], reload: Callable[[], Awaitable[object]], bus: EventBus) -> None:
        self.stop = asyncio.Event()
        self._sources = sources
        self._reload = reload
        self._bus = bus
        self._tried: FileSet | None = None
        self._is_blind = False

    async def run(self) -> None:
        while not self.stop.is_set():
            try:
                await self._watch(await run_in_file_thread(partial(_places, self._sources())))
            except (OSError, RuntimeError) as error:  # what watchfiles raises: no more watches, no such directory
                self._tell_blind(error)
                await self._poll()
            except Exception as error:  # noqa: BLE001  a defect of a reload must not end the watch over the file
                self._bus.emit(LogLevel.ERROR, EventKind.RELOAD, describe_crash(error))
                await self._poll()

    async def _watch(self, places: frozenset[tuple[Path, int, int]]) -> None:
        """Look after every hint, until the directories to watch are others."""
        await self._look()
        hints: AsyncGenerator[object] = awatch(
            *{path for path, *_ in places},
            watch_filter=None,
            debounce=_SERIES,
            step=_STEP,
            stop_event=self.stop,
            rust_timeout=_TICK,
            yield_on_timeout=True,
            recursive=False,
        )
        ticks = 0
        async with contextlib.aclosing(hints):
            async for changes in hints:
                self._is_blind = False
                is_due = bool(changes) or ticks % _TICKS == 0
                ticks = 0 if changes else ticks + 1
                if is_due:
                    await self._look()
                    if await run_in_file_thread(partial(_places, self._sources())) != places:
                        return

    async def _poll(self) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + _BLIND_FOR
        while loop.time() < until and not self.stop.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_BLIND):
                    await self.stop.wait()
            await self._look()

    async def _look(self) -> None:
        seen = await run_in_file_thread(self._sources().refresh)
        if seen in (self._sources(), self._tried):
            return
        seen = await self._settled(seen)
        if seen != self._sources() and not self.stop.is_set():
            self._tried = seen
            await self._reload()

    async def _settled(self, seen: FileSet) -> FileSet:
        """The files once nobody is at work on them."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        while not self.stop.is_set():
            await asyncio.sleep(_STILL)
            before, seen = seen, await run_in_file_thread(seen.refresh)
            passed = loop.time() - began
            is_written = passed < _WRITING and await run_in_file_thread(partial(_is_written, seen))
            if not is_written and (seen == before or passed > _RESTLESS):
                break
        return seen

    def _tell_blind(self, error: Exception) -> None:
        if not self._is_blind:
            text = f"changes of the file are seen by looking at it, for the system does not report them: {error}"
            self._bus.emit(LogLevel.WARN, EventKind.CONFIG, text)
        self._is_blind = True


def _places(sources: FileSet) -> frozenset[tuple[Path, int, int]]:
    """The directories, told apart from others of the same name: one that was replaced has to be watched anew."""
    found = set()
    for path in sources.directories():
        with contextlib.suppress(OSError):
            status = path.stat()
            found.add((path, status.st_dev, status.st_ino))
    return frozenset(found)


def _is_written(sources: FileSet) -> bool:
    return any(is_open_for_writing(path) for path in sources.files)

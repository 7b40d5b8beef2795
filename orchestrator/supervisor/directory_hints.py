"""Hints that something has changed in a directory, from the kernel: inotify(7), without a thread.

The functions of the C library are called through ctypes. Libraries for this purpose run a thread of native code, which
ends the whole process where no thread can be started.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

_IN_NONBLOCK, _IN_CLOEXEC = os.O_NONBLOCK, os.O_CLOEXEC
_IN_ONLYDIR: Final = 0x0100_0000
_CHANGES: Final = 0x0000_0FCE
"""IN_MODIFY, ATTRIB, CLOSE_WRITE, MOVED_FROM, MOVED_TO, CREATE, DELETE, DELETE_SELF, MOVE_SELF"""
_READ_BYTES: Final = 64 << 10


class DirectoryHints:
    """Watches directories, not what is below them, until the context ends. Inside a running event loop."""

    def __init__(self, directories: Iterable[Path], changed: asyncio.Event) -> None:
        """``changed`` is set at each change; its owner may set it too, to end a ``wait``.

        Raises OSError where the kernel grants no watch: its limits are in /proc/sys/fs/inotify.
        """
        library = ctypes.CDLL(None, use_errno=True)
        self._changed = changed
        self._descriptor: Final = _check(library.inotify_init1(_IN_NONBLOCK | _IN_CLOEXEC))
        try:
            for directory in directories:
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # it was removed at this moment
                    _check(library.inotify_add_watch(self._descriptor, os.fsencode(directory), _CHANGES | _IN_ONLYDIR))
            asyncio.get_running_loop().add_reader(self._descriptor, self._read)
        except BaseException:
            os.close(self._descriptor)
            raise

    def __enter__(self) -> Self:
        """Return these hints; the watches exist already."""
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        """End all watches."""
        asyncio.get_running_loop().remove_reader(self._descriptor)
        os.close(self._descriptor)

    async def wait(self, timeout_s: float) -> bool:
        """Wait for a change since the last call. Returns False after ``timeout_s`` seconds without one."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        is_changed = self._changed.is_set()
        self._changed.clear()
        return is_changed

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self._descriptor, _READ_BYTES):
                self._changed.set()


def _check(result: int) -> int:
    """Return the result of a function of the C library. Raises OSError."""
    if result >= 0:
        return result
    code = ctypes.get_errno()
    if code in {errno.EMFILE, errno.ENOSPC}:
        raise OSError(code, "no inotify watch is left; raise the limits in /proc/sys/fs/inotify")
    raise OSError(code, os.strerror(code))

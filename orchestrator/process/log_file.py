"""The log file of a daemon: standard output and standard error point at it, it is reopened, and its size is bounded."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

MAX_LOG_BYTES: Final = 16 << 20
"""A larger log is renamed to FILE.1, which replaces the one before."""

_STANDARD_STREAMS: Final = (1, 2)


class LogFile:
    """The log at a path. Used by the thread that writes; may block on the disk."""

    def __init__(self, path: Path, max_bytes: int = MAX_LOG_BYTES) -> None:
        self._path = path
        self._max_bytes = max_bytes

    def open(self) -> None:
        """Open the file, create it if it is missing, and point the standard streams at it. Raises OSError."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
        descriptor = os.open(self._path, flags, 0o600)
        try:
            os.set_blocking(descriptor, True)
            for stream in _STANDARD_STREAMS:
                os.dup2(descriptor, stream)
        finally:
            os.close(descriptor)

    def reopen(self) -> None:
        """Open the file at the path again, after another program has renamed it; keep the present one on an error."""
        with contextlib.suppress(OSError):
            self.open()

    def rotate_if_large(self) -> None:
        """Rename a file that has grown too large to FILE.1 and start a new one.

        Raises OSError and keeps the present file, for example if the directory belongs to another user.
        """
        present = os.fstat(_STANDARD_STREAMS[-1])
        if present.st_size <= self._max_bytes:
            return
        with contextlib.suppress(FileNotFoundError):  # another program has renamed it
            at_path = self._path.stat()
            if (at_path.st_dev, at_path.st_ino) == (present.st_dev, present.st_ino):
                self._path.replace(self._path.with_name(f"{self._path.name}.1"))
        self.open()

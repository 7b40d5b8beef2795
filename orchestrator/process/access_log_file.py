"""The access log's file: a thread appends lines, rotates the file by its size and opens it again on request.

No visitor waits for the disk. Lines beyond a bound are dropped and counted, and so are those that a full disk does not
take; while a write hangs, all later ones are.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from tunnel.runtime import sockets

if TYPE_CHECKING:
    from pathlib import Path

MAX_QUEUED_BYTES: Final = 4 << 20
CLOSE_TIMEOUT_S: Final = 2.0


class AccessLogFile:
    """Owns the file and the thread that writes it. The public methods never block and never raise."""

    def __init__(
        self,
        path: Path,
        max_bytes: int,
        keep: int,
        on_problem: Callable[[str], None],
        *,
        max_queued_bytes: int = MAX_QUEUED_BYTES,
    ) -> None:
        """A file that would exceed ``max_bytes`` (0: no limit) becomes FILE.1, and so on up to FILE.``keep``.

        ``on_problem`` is called in any thread with a sentence when a problem appears, and with "" when it is over.
        """
        self.lines = 0
        """lines written"""
        self.lost = 0
        """lines that could not be written"""
        self._path = path
        self._max_bytes = max_bytes
        self._keep = keep
        self._on_problem = on_problem
        self._max_queued_bytes = max_queued_bytes
        self._queue: deque[tuple[bytes, int]] = deque()
        self._queued_bytes = 0  # with the part that is being written
        self._problem = ""
        self._is_reopening = False
        self._is_closing = False
        self._turn = threading.Condition()
        self._thread: threading.Thread | None = None
        self._fd = -1

    def write(self, data: bytes, lines: int) -> None:
        """Append complete lines, or drop and count them."""
        with self._turn:
            if self._queued_bytes + len(data) > self._max_queued_bytes or not self._has_thread():
                self.lost += lines
                is_full = self._queued_bytes > 0
            else:
                self._queue.append((data, lines))
                self._queued_bytes += len(data)
                self._turn.notify()
                return
        reason = "the file system does not take the lines in time" if is_full else "no thread can be started"
        self._report(f"{reason}; lines are lost")

    def reopen(self) -> None:
        """Open the file at the path again before the next line: another program may have renamed it."""
        with self._turn:
            self._is_reopening = True

    def close(self) -> None:
        """Write the queued lines, as far as the file system takes them within CLOSE_TIMEOUT_S."""
        with self._turn:
            self._is_closing = True
            self._turn.notify()
        if self._thread is not None:
            self._thread.join(CLOSE_TIMEOUT_S)

    def _has_thread(self) -> bool:
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="access log", daemon=True)
            with contextlib.suppress(RuntimeError):  # "can't start new thread"
                thread.start()
                self._thread = thread
        return self._thread is not None

    # --- in the thread --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._turn:
                while not self._queue and not self._is_closing:
                    self._turn.wait()
                if not self._queue:
                    break
                data, lines = self._queue.popleft()
                is_reopening, self._is_reopening = self._is_reopening, False
            lost, problem = self._append(data, lines, is_reopening=is_reopening)
            with self._turn:
                self._queued_bytes -= len(data)
                self.lines += lines - lost
                self.lost += lost
                is_behind = bool(self._queue)
            if problem or not is_behind:  # while lines wait, the next ones may be lost again
                self._report(problem)
        if self._fd >= 0:
            os.close(self._fd)

    def _append(self, data: bytes, lines: int, *, is_reopening: bool) -> tuple[int, str]:
        """Append lines; return how many were lost, and why."""
        try:
            self._open(is_reopening=is_reopening)
            problem = self._rotate(len(data))
            data = b"\n" * self._ends_in_line() + data
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError as error:  # the disk is full, the directory is gone, a limit of the size is reached, …
            return min(
                lines, data.count(b"\n")
            ), f"cannot write {self._path}: {sockets.describe_error(error)}; lines are lost"
        return 0, problem

    def _open(self, *, is_reopening: bool) -> None:
        if self._fd >= 0 and not is_reopening:
            return
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY
        fd = os.open(self._path, flags, 0o600)
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = fd

    def _ends_in_line(self) -> bool:
        """Whether the file's last line is incomplete: its writer was killed, or the disk was full."""
        size = os.fstat(self._fd).st_size
        return size > 0 and os.pread(self._fd, 1, size - 1) != b"\n"

    def _rotate(self, added_bytes: int) -> str:
        """Start a new file if the present one would grow too large; return what fails. The present one stays then."""
        present = os.fstat(self._fd)
        if not self._max_bytes or not present.st_size or present.st_size + added_bytes <= self._max_bytes:
            return ""
        try:
            with contextlib.suppress(FileNotFoundError):  # another program has renamed it
                at_path = self._path.stat()
                if (at_path.st_dev, at_path.st_ino) == (present.st_dev, present.st_ino):
                    self._shift()
            self._open(is_reopening=True)
        except OSError as error:
            return f"{self._path} cannot be renamed: {sockets.describe_error(error)}; it grows beyond max_size"
        return ""

    def _shift(self) -> None:
        """Rename FILE.1 to FILE.2 and so on, and FILE to FILE.1; the oldest is replaced."""
        path = self._path.resolve()  # not a symbolic link, such as /dev/stdout
        if not self._keep:
            path.unlink()
            return
        names = [path, *(path.with_name(f"{path.name}.{n}") for n in range(1, self._keep + 1))]
        for newer, older in reversed(list(itertools.pairwise(names))):
            with contextlib.suppress(FileNotFoundError):
                newer.replace(older)

    def _report(self, problem: str) -> None:
        """Report a problem that was not there before, or its end."""
        with self._turn:
            if problem == self._problem:
                return
            self._problem = problem
        self._on_problem(problem)

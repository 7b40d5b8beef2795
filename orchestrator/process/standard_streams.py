"""The standard streams at the start of a process: closed ones are opened, and non-blocking ones wait for their reader.

A process may be started without descriptor 0, 1 or 2 (``2>&-``, some job schedulers). The kernel gives such a number to
the next socket, and log lines would then be sent to a visitor or a peer. A descriptor may also be non-blocking, because
the process that made it shares the open file (open(2)); output would then be lost at the first full pipe. Imports
nothing heavy: this runs before everything else.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final, TextIO

    from _typeshed import ReadableBuffer

_REPLACEMENTS: Final = ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_RDWR))
"""How /dev/null is opened in place of a closed descriptor: output of a command is refused, its messages are dropped."""


def prepare_standard_streams() -> None:
    """Open the closed standard streams, and let writing wait where one is non-blocking; no text is unencodable."""
    open_closed_descriptors()
    sys.stdout = _usable_stream(sys.stdout, 1)
    sys.stderr = _usable_stream(sys.stderr, 2)


def open_closed_descriptors() -> None:
    """Occupy descriptors 0 to 2, so that no socket or file gets one of these numbers."""
    for number, flags in _REPLACEMENTS:
        try:
            os.fstat(number)
        except OSError:
            with contextlib.suppress(OSError):  # there is no /dev
                os.set_inheritable(os.open(os.devnull, flags), True)  # it gets the lowest free number: this one


def write_waiting(fd: int, data: ReadableBuffer) -> int:
    """Write as os.write does, and wait where a non-blocking descriptor takes no more. Returns the number of bytes."""
    while True:
        try:
            return os.write(fd, data)
        except BlockingIOError:
            poller = select.poll()
            poller.register(fd, select.POLLOUT)
            poller.poll()


class _WaitingFile(io.FileIO):
    """A descriptor that is written as if it were blocking; its mode is shared with other processes and stays."""

    def write(self, data: ReadableBuffer, /) -> int:
        return write_waiting(self.fileno(), data)


def _usable_stream(stream: TextIO | None, fd: int) -> TextIO | None:
    with contextlib.suppress(OSError):  # there is no /dev
        if isinstance(stream, io.TextIOWrapper) and os.get_blocking(fd):
            stream.reconfigure(errors="backslashreplace")
            return stream
    try:
        raw = _WaitingFile(fd, "wb", closefd=False)
    except OSError:  # closed, and there is no /dev
        return stream
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        stream.encoding if stream is not None else None,
        errors="backslashreplace",
        line_buffering=fd == 2 or os.isatty(fd),
    )

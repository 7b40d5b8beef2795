"""The one reader for every file that a user names: keys, certificates, tokens, passwords, the configuration.

A user can name anything: a FIFO without a writer, a device that never ends, a directory, a file of gigabytes. Opening
is non-blocking, only regular files are read, and the size is bounded, so that no reload, command or exit waits.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tunnel.model.errors import TunnelError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_SECRET_BYTES: Final = 64 << 10
"""Bytes of a file that holds a key, a token or a password."""
MAX_CERTIFICATE_BYTES: Final = 4 << 20
"""Bytes of a file of certificates: a CA bundle has some 200 KiB."""

LEASE_TIMEOUT_S: Final = 2.0
"""How long another process may take to return its lease on a file."""

_LEASE_POLL_INTERVAL_S: Final = 0.01
_PART_BYTES: Final = 64 << 10  # os.read allocates what it is asked for
_BOM: Final = b"\xef\xbb\xbf"
_KINDS: Final = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


_accesses: dict[int, tuple[float, str]] = {}
"""What each thread reads at the moment: since when, on the clock time.monotonic, and its path."""


class FileError(TunnelError, OSError):
    """A file that cannot be used; ``strerror`` is the reason as the end of a sentence, without the file's name."""

    def __init__(self, reason: str, code: int | None = None) -> None:
        super().__init__(code, reason)

    def __str__(self) -> str:
        return str(self.strerror)


@dataclass(frozen=True, slots=True)
class FileContent:
    """The bytes of a file."""

    data: bytes

    def text(self) -> str:
        """The content as text, without a byte order mark. Raises FileError where it is not UTF-8."""
        try:
            return self.data.removeprefix(_BOM).decode()
        except UnicodeDecodeError:
            raise FileError("it is not UTF-8 text") from None


def read_file(path: Path, max_bytes: int) -> FileContent:
    """The content of a regular file of at most ``max_bytes`` bytes. Raises FileError.

    Blocks as long as the disk takes; on an event loop, call it in a thread.
    """
    with noted_access(path):
        return _read_file(path, max_bytes)


@contextlib.contextmanager
def noted_access(path: Path | str) -> Iterator[None]:
    """Note that this thread accesses a file until the context ends; ``find_stuck_access`` names it if that hangs."""
    thread = threading.get_ident()
    _accesses[thread] = time.monotonic(), str(path)
    try:
        yield
    finally:
        _accesses.pop(thread, None)


def find_stuck_access(min_age_s: float) -> str | None:
    """Return a path that a thread has been accessing for so long, or None: a dead network file system never answers."""
    latest = time.monotonic() - min_age_s
    return next((path for since, path in tuple(_accesses.values()) if since < latest), None)


def _read_file(path: Path, max_bytes: int) -> FileContent:
    try:
        descriptor = _open(path)
    except ValueError:  # an embedded NUL
        raise FileError("a file name cannot contain a NUL character") from None
    except FileError:
        raise
    except OSError as error:
        if stat_kind := _kind_of_path(path):
            raise FileError(f"it is {stat_kind}, not a regular file") from None
        raise FileError(error.strerror or "it cannot be opened", error.errno) from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise FileError(f"it is {_kind(status.st_mode)}, not a regular file")
        data = _read_up_to(descriptor, max_bytes + 1)
    except FileError:
        raise
    except OSError as error:
        raise FileError(error.strerror or "it cannot be read", error.errno) from None
    finally:
        os.close(descriptor)
    if len(data) > max_bytes:
        raise FileError(f"it is larger than {_format_size(max_bytes)}")
    return FileContent(data)


def _open(path: Path) -> int:
    """Open a file without waiting, except for another process that has to return its lease first (fcntl(2)).

    A file server such as Samba holds a lease while a client caches the file. The attempt to open starts its return.
    Raises OSError and ValueError.
    """
    deadline = time.monotonic() + LEASE_TIMEOUT_S
    while True:
        try:
            return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise FileError("another process holds a lease on it and does not return it", error.errno) from None
        time.sleep(_LEASE_POLL_INTERVAL_S)


def read_secret(path: Path) -> str:
    """The text of a key, token or password file without surrounding white space. Raises FileError, also where empty."""
    secret = read_file(path, MAX_SECRET_BYTES).text().strip()
    if not secret:
        raise FileError("it is empty", errno.ENODATA)
    return secret


def _format_size(size: int) -> str:
    for shift, unit in ((20, "MiB"), (10, "KiB")):
        if size % (1 << shift) == 0:
            return f"{size >> shift} {unit}"
    return f"{size} bytes"


def _read_up_to(descriptor: int, max_bytes: int) -> bytes:
    parts: list[bytes] = []
    missing = max_bytes
    while missing and (part := os.read(descriptor, min(missing, _PART_BYTES))):
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def _kind_of_path(path: Path) -> str | None:
    """What a path is that could not be opened (a socket: ENXIO), where it is not a regular file."""
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116  beside the other calls of os on the same path
    except (OSError, ValueError):
        return None
    return None if stat.S_ISREG(mode) else _kind(mode)


def _kind(mode: int) -> str:
    return next((name for matches, name in _KINDS if matches(mode)), "something else")

"""One daemon per file: the lock that it holds in the state directory, and what others read there.

The kernel releases a lock however a process ends, so there is neither a race nor a stale lock. The lock file holds the
process id and the socket as JSON. It does not depend on where the socket is: two shells may differ in XDG_RUNTIME_DIR,
and a socket may be deleted. An announcement (``announcement.py``) covers environments that differ in the state
directory as well.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from orchestrator.process.announcement import Announcement, query_announcement
from orchestrator.process.running_daemon import RunningDaemon
from orchestrator.process.socket_paths import SocketPathError
from orchestrator.process.state_directory import (
    absolute_path,
    file_key,
    fixed_directories,
    hash_path,
    state_directories,
    usable_directories,
)

LOCK_TIMEOUT_S: Final = 1.0
"""A daemon that is about to end still holds its lock."""

_POLL_INTERVAL_S: Final = 0.05
_MAX_RECORD_BYTES: Final = 16 << 10


class DaemonRunningError(SocketPathError):
    """Another daemon holds a lock that this one needs; the message is a sentence."""


class DaemonLock:
    """The lock that this process holds for a file, with the record that others read."""

    def __init__(self, descriptor: int | None, announcement: Announcement, file: Path) -> None:
        self._descriptor = descriptor
        self.announcement = announcement
        self._record(RunningDaemon(os.getpid(), file))
        self._file = file

    def record_socket(self, socket: Path) -> None:
        """Write down where the socket is."""
        self._record(RunningDaemon(os.getpid(), self._file, absolute_path(socket)))

    def _record(self, daemon: RunningDaemon) -> None:
        data = daemon.as_bytes()
        self.announcement.answer = data
        if self._descriptor is not None:
            with contextlib.suppress(OSError):  # the disk is full: the lock holds all the same
                os.pwrite(self._descriptor, data, 0)
                os.ftruncate(self._descriptor, len(data))


@contextlib.contextmanager
def hold_daemon_lock(file: Path, environ: Mapping[str, str], uid: int) -> Iterator[DaemonLock]:
    """Hold the lock of a file. Raises DaemonRunningError.

    Where no state directory can be written (a container with a read-only file system), the announcement alone has to
    prevent a second daemon.
    """
    path = absolute_path(file)

    def describe() -> str:
        return describe_conflict(file, find_daemon(file, environ, uid) or RunningDaemon())

    with (
        _hold_lock(_daemon_lock_name(file), environ, uid, describe) as descriptor,
        Announcement(path) as announcement,
    ):
        lock = DaemonLock(descriptor, announcement, path)
        # This process holds the lock of the path now, so what is found runs the file under another name, or has its
        # lock in another directory.
        other = None if announcement.is_unique else query_announcement(path)
        if (other := other or _find_alias(path, environ, uid)) is not None:
            raise DaemonRunningError(describe_conflict(file, other))
        yield lock


@contextlib.contextmanager
def hold_socket_lock(socket: Path, environ: Mapping[str, str], uid: int) -> Iterator[None]:
    """Hold the lock of a socket that the user named: daemons of different files must not share it."""
    conflict = f"another daemon uses {socket}; end it with: nodepass-orch down --socket {socket}"
    with _hold_lock(f"socket-{hash_path(absolute_path(socket))}.lock", environ, uid, lambda: conflict):
        yield


def describe_conflict(file: Path, other: RunningDaemon) -> str:
    """Return why no second daemon runs a file, and the way out."""
    if other.is_foreign:
        way_out = f"end it with: kill {other.pid}" if other.pid else "it is in another container"
        return f"another user is already running {file}; {way_out}"
    pid = f" (process {other.pid})" if other.pid else ""
    alias = f" as {other.file}" if other.file and other.file != absolute_path(file) else ""
    socket = f" at {other.socket}" if other.socket else ""
    return f"a daemon is already running {file}{alias}{pid}{socket}; end it with: nodepass-orch down -f {file}"


# --- reading ----------------------------------------------------------------------------------------------------------


def find_daemon(file: Path, environ: Mapping[str, str], uid: int) -> RunningDaemon | None:
    """Return the daemon that runs a file, under this name or another one, or None."""
    path = absolute_path(file)
    for directory in _all_directories(environ, uid):
        if (daemon := _read_lock(directory / _daemon_lock_name(file))) is not None:
            # The record is empty if the disk was full when it was written; the announcement needs no disk.
            return daemon if daemon.socket else query_announcement(path) or daemon
    return query_announcement(path) or _find_alias(path, environ, uid)


def _find_alias(path: Path, environ: Mapping[str, str], uid: int) -> RunningDaemon | None:
    """Return the daemon that runs the same file under another path: through a link, or with a lock elsewhere."""
    for daemon in _list_in(_all_directories(environ, uid)):
        is_own = daemon.pid == os.getpid() and daemon.file == path
        with contextlib.suppress(OSError):
            if daemon.file is not None and not is_own and daemon.file.samefile(path):
                return daemon
    return None


def list_daemons(environ: Mapping[str, str], uid: int) -> list[RunningDaemon]:
    """Return the daemons with a lock in the state directory of this user, in the order of their files."""
    found = _list_in(state_directories(environ, uid))
    return sorted(dict.fromkeys(found), key=lambda daemon: str(daemon.file))


def find_daemon_at(socket: Path, environ: Mapping[str, str], uid: int) -> RunningDaemon | None:
    """Return the daemon whose socket is at a path, even if the socket is missing at the moment."""
    wanted = absolute_path(socket)
    return next((daemon for daemon in _list_in(_all_directories(environ, uid)) if daemon.socket == wanted), None)


def _list_in(directories: Iterable[Path]) -> Iterator[RunningDaemon]:
    for directory in directories:
        with contextlib.suppress(OSError):
            for lock_file in sorted(directory.glob("daemon-*.lock")):
                if (daemon := _read_lock(lock_file)) is not None:
                    yield daemon


def _read_lock(lock_file: Path) -> RunningDaemon | None:
    """Return the daemon that holds a lock, or None if no process does."""
    try:
        descriptor = os.open(lock_file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        with contextlib.suppress(OSError):
            return RunningDaemon.from_bytes(os.pread(descriptor, _MAX_RECORD_BYTES, 0))
        return RunningDaemon()
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return None


# --- locks ------------------------------------------------------------------------------------------------------------


def _daemon_lock_name(file: Path) -> str:
    return f"daemon-{file_key(file)}.lock"


def _all_directories(environ: Mapping[str, str], uid: int) -> list[Path]:
    """The directories to search for the lock of one file: a daemon may have been started in another environment."""
    return list(dict.fromkeys([*state_directories(environ, uid), *fixed_directories(environ, uid)]))


@contextlib.contextmanager
def _hold_lock(
    name: str, environ: Mapping[str, str], uid: int, describe_holder: Callable[[], str]
) -> Iterator[int | None]:
    """Hold a lock in the first usable state directory; yields its descriptor, or None where there is no directory."""
    for directory in usable_directories(state_directories(environ, uid), uid):
        lock_file = directory / name
        try:
            descriptor = _lock(lock_file, describe_holder)
        except OSError:  # no space, or no such file allowed there: use the next directory
            continue
        try:
            yield descriptor
        finally:
            with contextlib.suppress(OSError):
                if os.fstat(descriptor).st_ino == lock_file.stat().st_ino:
                    lock_file.unlink()  # before the lock is released: a waiting process sees that it is another file
            os.close(descriptor)
        return
    yield None


def _lock(lock_file: Path, describe_holder: Callable[[], str]) -> int:
    """Create and lock a file. Raises OSError and DaemonRunningError."""
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        descriptor = os.open(lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            if time.monotonic() > deadline:
                raise DaemonRunningError(describe_holder()) from None
            time.sleep(_POLL_INTERVAL_S)
            continue
        except OSError:
            os.close(descriptor)
            raise
        with contextlib.suppress(OSError):
            if os.fstat(descriptor).st_ino == lock_file.stat().st_ino:
                return descriptor
        os.close(descriptor)  # it was removed by its last owner between our two steps: lock the one that is there now

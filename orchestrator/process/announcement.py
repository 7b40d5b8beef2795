"""A daemon announces its file on an abstract Unix socket (unix(7)), which no environment variable and no user can move.

The lock of a file is in the state directory, and that differs between users, and between shells with another HOME or
XDG_STATE_HOME. The name of the announcement is made from the file's path and from the file system that the process
sees, so daemons in two containers that share a network do not collide. Any process of the host may use any abstract
name, so what an answer says is used only if it comes from root, from this user, or from the owner of the file. Another
process with the name prevents a start nevertheless, as it could with the address of a tunnel, and is named.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from orchestrator.process.running_daemon import RunningDaemon

_BACKLOG: Final = 16
_QUERY_TIMEOUT_S: Final = 0.5  # a daemon whose event loop is busy is known from its process id alone
_MAX_ANSWER_BYTES: Final = 16 << 10
_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred: pid, uid, gid


class Announcement:
    """Announces that this process runs a file, until the context ends; ``answer`` is sent to each query."""

    def __init__(self, file: Path) -> None:
        self.answer = b""
        self._socket: socket.socket | None = None
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            listener.bind(_name(file))
            listener.listen(_BACKLOG)
            self._socket = listener
        except OSError:  # another process has the name: a query finds out whether it counts
            listener.close()

    @property
    def is_unique(self) -> bool:
        """Whether no other process has the name."""
        return self._socket is not None

    def __enter__(self) -> Self:
        """Return this announcement, which its constructor has already made."""
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        """Withdraw the announcement: the kernel frees the name with the socket."""
        if self._socket is not None:
            self._socket.close()

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """Answer queries from the running event loop."""
        import asyncio  # noqa: PLC0415  only a daemon answers; every command sends queries

        loop = asyncio.get_running_loop()
        if self._socket is not None:
            loop.add_reader(self._socket, self._answer_all)
        try:
            yield
        finally:
            if self._socket is not None:
                loop.remove_reader(self._socket)

    def _answer_all(self) -> None:
        assert self._socket is not None  # noqa: S101  it is the one that became readable
        with contextlib.suppress(OSError):  # accepted all, or no descriptor is left
            for _ in range(_BACKLOG):
                connection, _ = self._socket.accept()
                with connection, contextlib.suppress(OSError):
                    connection.setblocking(False)
                    connection.send(self.answer)


def query_announcement(file: Path) -> RunningDaemon | None:
    """Return the daemon that announces a file, given with its absolute path, or None."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
        connection.settimeout(_QUERY_TIMEOUT_S)
        try:
            connection.connect(_name(file))
            credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            pid, uid, _ = _CREDENTIALS.unpack(credentials)
        except OSError:
            return None
        if uid not in _trusted_users(file):
            return RunningDaemon(pid or None, file, is_foreign=True)
        data = b""
        with contextlib.suppress(OSError):
            while len(data) < _MAX_ANSWER_BYTES and (part := connection.recv(_MAX_ANSWER_BYTES)):
                data += part
    return replace(RunningDaemon.from_bytes(data), pid=pid or None)


def _trusted_users(file: Path) -> set[int]:
    trusted = {0, os.getuid()}
    with contextlib.suppress(OSError):
        trusted.add(file.stat().st_uid)
    return trusted


def _name(file: Path) -> bytes:
    seen: list[object] = [os.fsencode(file)]
    for place in ("/proc/self/ns/mnt", "/"):
        with contextlib.suppress(OSError):
            found = Path(place).stat()
            seen.append((found.st_dev, found.st_ino))
    return b"\0nodepass-orch/" + hashlib.sha256(repr(seen).encode()).hexdigest()[:32].encode()

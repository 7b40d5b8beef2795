"""Where the daemon of a file has its socket, and the lock that lets only one daemon have it."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from orchestrator.errors import OrchestratorError

SOCKET_VARIABLE: Final = "NODEPASS_ORCH_SOCKET"

_MAX_PATH_BYTES: Final = 107  # of a Unix socket, unix(7)
LOCK_TIMEOUT_S: Final = 1.0
"""A daemon that is about to end still holds its lock."""


class SocketPathError(OrchestratorError):
    """No directory for the socket, or another daemon uses it; the message is a sentence."""


def explicit_socket(option: Path | None, environ: Mapping[str, str]) -> Path | None:
    """The socket that the user named: ``--socket``, else the environment variable."""
    named = option or (Path(environ[SOCKET_VARIABLE]) if environ.get(SOCKET_VARIABLE) else None)
    if named is not None and len(os.fsencode(named)) > _MAX_PATH_BYTES:
        raise SocketPathError(
            f"the socket's path is longer than {_MAX_PATH_BYTES} bytes: {named}; choose a shorter one"
        )
    return named


def default_sockets(file: Path, environ: Mapping[str, str], uid: int) -> list[Path]:
    """Where the socket of a file's daemon may be, the preferred place first.

    The place depends on the environment, and a daemon's (a service) may differ from its user's (a shell), so a reader
    has to search all of them.
    """
    whole = os.fsencode(os.path.realpath(file))
    stem = re.sub(r"[^A-Za-z0-9_.-]", "_", file.stem)[:20]
    name = f"nodepass-orch-{stem}-{hashlib.sha256(whole).hexdigest()[:12]}.sock"
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    places = [Path(runtime)] if runtime.startswith("/") else []
    if uid == 0:
        places.append(Path("/run"))
    places.append(_own_directory(uid))
    return [path for place in places if len(os.fsencode(path := place / name)) <= _MAX_PATH_BYTES]


def _own_directory(uid: int) -> Path:
    return Path("/tmp") / f"nodepass-orch-{uid}"  # noqa: S108  made with mode 0700 and checked before each use


def choose_socket(file: Path, environ: Mapping[str, str], uid: int) -> Path:
    """The first of the usual places that this user can write to. Raises SocketPathError."""
    own = _own_directory(uid)
    for path in default_sockets(file, environ, uid):
        if path.parent == own:
            with contextlib.suppress(FileExistsError):
                own.mkdir(mode=0o700)
        if _is_safe(path.parent, uid) and os.access(path.parent, os.W_OK | os.X_OK):
            return path
    raise SocketPathError("there is no directory for the socket; name one with --socket")


def find_socket(file: Path, environ: Mapping[str, str], uid: int) -> Path:
    """The first of the usual places that has a socket, or the first of all."""
    places = default_sockets(file, environ, uid)
    return next((path for path in places if _is_safe(path.parent, uid) and path.is_socket()), places[0])


def _is_safe(directory: Path, uid: int) -> bool:
    """Whether no other user can put a socket there."""
    try:
        found = directory.lstat() if directory == _own_directory(uid) else directory.stat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid in {uid, 0} and not found.st_mode & 0o022


def log_path(socket: Path, environ: Mapping[str, str]) -> Path:
    """Where a daemon in the background writes its log: in the user's state directory, named after its socket."""
    state = environ.get("XDG_STATE_HOME", "")
    home = Path(state) if state.startswith("/") else Path(os.path.expanduser("~/.local/state"))  # noqa: PTH111  raises nothing
    return home / "nodepass-orch" / f"{socket.stem}.log"


@contextlib.contextmanager
def claim_socket(socket: Path) -> Iterator[None]:
    """Hold the path of a socket for one daemon; remove what an earlier daemon left there.

    A lock on a file next to the socket does so. The kernel releases it however a process ends, so there is neither a
    race nor a stale lock. Raises SocketPathError.
    """
    lock_file = socket.with_name(f"{socket.name}.lock")
    fd = _lock(lock_file, socket)
    try:
        _clear(socket)
        yield
    finally:
        with contextlib.suppress(OSError):
            if socket.is_symlink() or socket.is_socket():
                socket.unlink()
        with contextlib.suppress(OSError):
            lock_file.unlink()  # before the lock is released: a waiting process sees that the file is another one
        os.close(fd)


def _lock(lock_file: Path, socket: Path) -> int:
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        try:
            fd = os.open(lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise SocketPathError(f"cannot make {lock_file}: {error.strerror}") from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            if time.monotonic() > deadline:
                message = f"a daemon runs already at {socket}; end it with: nodepass-orch down"
                raise SocketPathError(message) from None
            time.sleep(0.05)
            continue
        with contextlib.suppress(OSError):
            if os.fstat(fd).st_ino == lock_file.stat().st_ino:
                return fd
        os.close(fd)  # it was removed by its last owner between our two steps: lock the one that is there now


def _clear(socket: Path) -> None:
    try:
        if socket.is_symlink() or socket.is_socket():
            socket.unlink()
        elif socket.exists():
            raise SocketPathError(f"{socket} is there and is no socket; remove it or name another with --socket")
    except OSError as error:
        raise SocketPathError(f"cannot replace {socket}: {error.strerror}") from None

"""Where the daemon of a file has its socket."""

from __future__ import annotations

import contextlib
import os
import socket as sockets
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from orchestrator.errors import OrchestratorError
from orchestrator.process.state_directory import (
    file_key,
    is_safe,
    private_directory,
    state_directories,
    usable_directories,
)

SOCKET_VARIABLE: Final = "NODEPASS_ORCH_SOCKET"

_MAX_PATH_BYTES: Final = 107  # of a Unix socket, unix(7)


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
    name = f"nodepass-orch-{file_key(file)}.sock"
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    places = [Path(runtime)] if runtime.startswith("/") else []
    if uid == 0:
        places.append(Path("/run"))
    places.append(private_directory(uid))
    return [path for place in places if len(os.fsencode(path := place / name)) <= _MAX_PATH_BYTES]


def choose_socket(file: Path, environ: Mapping[str, str], uid: int) -> Path:
    """The first of the usual places that this user can write to. Raises SocketPathError."""
    own = private_directory(uid)
    for path in default_sockets(file, environ, uid):
        if path.parent == own:
            with contextlib.suppress(OSError):
                own.mkdir(mode=0o700)
        if is_safe(path.parent, uid) and os.access(path.parent, os.W_OK | os.X_OK):
            return path
    raise SocketPathError("there is no directory for the socket; name one with --socket")


def find_socket(file: Path, environ: Mapping[str, str], uid: int) -> Path:
    """The first of the usual places that has a socket, or the first of all."""
    places = default_sockets(file, environ, uid)
    return next((path for path in places if is_safe(path.parent, uid) and path.is_socket()), places[0])


def log_path(file: Path, environ: Mapping[str, str], uid: int) -> Path:
    """Where a daemon in the background writes its log: in the state directory, named after its file.

    Raises SocketPathError where no state directory can be written.
    """
    for directory in usable_directories(state_directories(environ, uid), uid):
        return directory / f"nodepass-orch-{file_key(file)}.log"
    raise SocketPathError("there is no directory for the log; set XDG_STATE_HOME to a directory of yours")


def remove_stale_socket(path: Path) -> None:
    """Remove the socket that an earlier daemon left; nothing else. Raises SocketPathError if the path is in use."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise SocketPathError(f"cannot use {path} as a socket: {error.strerror}") from None
    if not stat.S_ISSOCK(mode):
        raise SocketPathError(f"{path} is there and is no socket; remove it or name another with --socket")
    if is_listening(path):
        raise SocketPathError(f"another process listens at {path}; end it or name another socket with --socket")
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise SocketPathError(f"cannot replace {path}: {error.strerror}") from None


def is_listening(path: Path) -> bool:
    """Whether a process listens on a Unix socket; one with a full backlog does."""
    with sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM | sockets.SOCK_CLOEXEC) as probe:
        probe.setblocking(False)  # connect(2) on a Unix socket never waits then; a full backlog is EAGAIN
        try:
            probe.connect(os.fspath(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError:  # the backlog is full, or the socket belongs to another user
            return True
    return True

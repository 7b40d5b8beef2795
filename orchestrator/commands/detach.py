"""A daemon in the background: started, and waited for until it runs."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from orchestrator.client import Client
from orchestrator.process import paths

if TYPE_CHECKING:
    from pathlib import Path

PATIENCE: Final = 60.0
"""Seconds in which a daemon has to start all its tunnels."""

_LOOK: Final = 0.05
_LARGEST_LOG: Final = 16 << 20  # bytes, beyond which the next daemon begins another file
_TAIL: Final = 4096  # bytes of the log that explain a failed start


class DetachError(Exception):
    """The daemon did not come up; the message is a sentence, or what the daemon said itself."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Detached:
    """A daemon that runs in the background."""

    pid: int
    socket: Path
    log: Path


def start(file: Path, options: Sequence[str], named: Path | None, environ: Mapping[str, str]) -> Detached:
    """Run ``up FILE --no-tui OPTIONS`` in a session of its own. Returns when every tunnel was started.

    ``named`` is the socket that the user named, if he did. Raises DetachError and SocketPathError.
    """
    socket = named or paths.socket_to_offer(file, environ, os.getuid())
    if Client(socket, patience=1.0).is_ready():
        raise DetachError(f"a daemon runs already at {socket}; end it with: nodepass-orch down")
    log = paths.log_of(socket, environ)
    began = _open(log)
    command = [sys.executable, "-m", "orchestrator.cli", "up", str(file), "--no-tui", *options]
    with log.open("ab") as out:
        process = subprocess.Popen(  # noqa: S603  our own program, with arguments that it understood already
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True, env=dict(environ)
        )
    try:
        _wait(process, socket, log, began)
    except BaseException:
        process.terminate()
        raise
    process.returncode = (
        0  # it is nobody's child to wait for any more: without this, Popen warns of one that still runs
    )
    return Detached(process.pid, socket, log)


def _open(log: Path) -> int:
    """Make room for the log; the size it has now."""
    try:
        log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600))
        if (size := log.stat().st_size) <= _LARGEST_LOG:
            return size
        log.replace(log.with_name(f"{log.name}.1"))
        os.close(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise DetachError(f"cannot write the log {log}: {error.strerror}") from None
    return 0


def _wait(process: subprocess.Popen[bytes], socket: Path, log: Path, began: int) -> None:
    client = Client(socket, patience=5.0)
    deadline = time.monotonic() + PATIENCE
    while not client.is_ready():
        code = process.poll()
        if code is not None:
            said = _said(log, began)
            raise DetachError(said or f"the daemon ended with exit code {code}; its log is {log}", max(code, 1))
        if time.monotonic() > deadline:
            raise DetachError(f"the daemon did not start its tunnels within {PATIENCE:g} s; its log is {log}")
        time.sleep(_LOOK)


def _said(log: Path, began: int) -> str:
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(max(began, log.stat().st_size - _TAIL))
        return file.read().decode(errors="replace").strip().removeprefix("nodepass-orch: ")
    return ""

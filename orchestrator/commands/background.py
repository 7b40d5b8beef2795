"""Processes in the background: a daemon that outlives the command, and the demonstration under a dashboard."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from orchestrator.client import ApiClient
from orchestrator.errors import OrchestratorError
from orchestrator.process import daemon_lock, early_signals, socket_paths
from orchestrator.process.log_file import MAX_LOG_BYTES
from orchestrator.process.messages import print_message
from tunnel.runtime.python_programs import module_command, python_environment

_DAEMON_START_TIMEOUT_S: Final = 60.0
_READY_TIMEOUT_S: Final = 5.0  # for one answer of a daemon that is starting
_POLL_INTERVAL_S: Final = 0.05
_DEMO_START_TIMEOUT_S: Final = 20.0
_DEMO_STOP_TIMEOUT_S: Final = 30.0
_LOG_TAIL_BYTES: Final = 4096  # the part of the log that explains a failed start


class BackgroundStartError(OrchestratorError):
    """The process did not start; the message is a sentence, or the output of the process."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True)
class BackgroundDaemon:
    """A daemon that runs in the background."""

    pid: int
    socket: Path
    log: Path


def start_daemon(
    file: Path,
    options: Sequence[str],
    named_socket: Path | None,
    environ: Mapping[str, str],
    log: Path | None = None,
) -> BackgroundDaemon:
    """Run ``up FILE --no-tui OPTIONS`` in its own session. Returns when every enabled tunnel is started.

    ``named_socket`` is the socket that the user named, if any. Raises BackgroundStartError and SocketPathError.
    """
    locate = partial(daemon_lock.find_daemon, file, environ, os.getuid())
    if (other := locate()) is not None:
        raise BackgroundStartError(daemon_lock.describe_conflict(file, other))
    expected_socket = named_socket or socket_paths.choose_socket(file, environ, os.getuid())
    log = log or socket_paths.log_path(file, environ, os.getuid())
    early_signals.raise_on_stop_signals()
    start_offset = _prepare_log(log)
    command = module_command("orchestrator.cli", "up", str(file), "--no-tui", "--log-file", str(log), *options)
    with log.open("ab") as out:
        process = subprocess.Popen(  # noqa: S603  our own program, with arguments that click has parsed
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
            env=python_environment(environ),
        )  # fmt: skip
    client = ApiClient(expected_socket, _READY_TIMEOUT_S, locate=locate)
    try:
        _wait_until_ready(process, client, log, start_offset)
    except (KeyboardInterrupt, SystemExit):
        process.terminate()
        print_message("interrupted; no daemon runs")
        raise
    except BaseException:
        process.terminate()
        raise
    process.returncode = 0  # the daemon outlives this process: without a code, Popen warns of a child that still runs
    return BackgroundDaemon(process.pid, client.path, log)


def _prepare_log(log: Path) -> int:
    """Create the log, or rename one that is too large. Returns the size of the log that the daemon appends to."""
    try:
        log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600))
        size = log.stat().st_size
        if size > MAX_LOG_BYTES:
            with contextlib.suppress(OSError):  # in a directory of another user: the daemon reports that
                log.replace(log.with_name(f"{log.name}.1"))
                size = 0
            os.close(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise BackgroundStartError(f"cannot write the log {log}: {error.strerror}") from None
    return size


def _wait_until_ready(process: subprocess.Popen[bytes], client: ApiClient, log: Path, start_offset: int) -> None:
    """Wait until this process answers that no tunnel is starting. Raises BackgroundStartError."""
    deadline = time.monotonic() + _DAEMON_START_TIMEOUT_S
    while not _is_ready(client, process.pid):
        code = process.poll()
        if code is not None:
            output = _read_log_tail(log, start_offset)
            message = output or f"the daemon ended with exit code {code}; its log is {log}"
            raise BackgroundStartError(message, max(code, 1))
        if time.monotonic() > deadline:
            limit = f"{_DAEMON_START_TIMEOUT_S:g} s"
            raise BackgroundStartError(f"the daemon did not start its tunnels within {limit}; its log is {log}")
        time.sleep(_POLL_INTERVAL_S)


def _is_ready(client: ApiClient, pid: int) -> bool:
    with contextlib.suppress(OrchestratorError):
        return client.is_ready() and client.status()["pid"] == pid
    return False


def _read_log_tail(log: Path, start_offset: int) -> str:
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(max(start_offset, log.stat().st_size - _LOG_TAIL_BYTES))
        return file.read().decode(errors="replace").strip().removeprefix("nodepass-orch: ")
    return ""


@dataclass(slots=True)
class BackgroundDemo:
    """A demonstration in its own process; ``summary`` and ``exit_code`` are known after it ended."""

    socket: Path
    summary: str = ""
    exit_code: int = 0


@contextlib.contextmanager
def run_demo() -> Iterator[BackgroundDemo]:
    """Run a demonstration until the context ends. Raises BackgroundStartError with its log."""
    command = module_command("orchestrator.cli", "demo", "--no-tui")
    with tempfile.TemporaryDirectory(prefix="np-") as folder, (Path(folder) / "log").open("w+b") as log:
        process = subprocess.Popen(  # noqa: S603  our own program
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, start_new_session=True,
            env=python_environment({**os.environ, "TMPDIR": folder}),
        )  # fmt: skip
        try:
            socket = _wait_for_demo_socket(process, Path(folder))
            if socket is None:
                log.seek(0)
                output = log.read().decode(errors="replace")
                raise BackgroundStartError(f"the demonstration did not start:\n{output}", process.poll() or 1)
            demo = BackgroundDemo(socket)
            yield demo
        finally:
            process.send_signal(signal.SIGTERM)
            out, _ = process.communicate(timeout=_DEMO_STOP_TIMEOUT_S)
        demo.summary, demo.exit_code = out.decode(errors="replace"), process.returncode


def _wait_for_demo_socket(process: subprocess.Popen[bytes], folder: Path) -> Path | None:
    """Return the socket of a demonstration once it exists; None if the process ended or did not create it in time."""
    deadline = time.monotonic() + _DEMO_START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        for socket in folder.glob("*/*.sock"):
            return socket
        time.sleep(_POLL_INTERVAL_S)
    return None

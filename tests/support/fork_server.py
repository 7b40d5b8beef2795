"""Runs the command line in forks of a process that has imported the modules of the program.

The imports are most of the CPU of a short command and of a daemon until it serves, and tests start hundreds of both.
The rest is as in a new interpreter: arguments, environment, working directory, standard streams, network namespace,
process signals and the end of the interpreter. A test of the start needs a new interpreter: see ``can_fork``, and
tests that start ``COMMAND`` with ``subprocess``. All forks of one server have the same seed for hashes.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import fcntl
import functools
import gc
import importlib
import io
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NoReturn, TextIO

_ROOT: Final = Path(__file__).resolve().parents[2]
_LENGTH: Final = struct.Struct("!I")
_NUMBER: Final = struct.Struct("!i")
COMMAND_MODULE, DASHBOARD_MODULE = "orchestrator.cli", "tui.cli"
"""The modules that run a command line: without the dashboard, and with it."""
_READ_AT_START: Final = ("PYTHON", "LC_", "LANG", "LD_", "SSL_", "OPENSSL_", "GLIBC_", "MALLOC_", "AIOHTTP_", "TEXTUAL")
"""Variables that an interpreter, its libraries or a module read when they start."""
_OF_COMMANDS: Final = (
    "orchestrator.cli",
    "orchestrator.commands.background",
    "orchestrator.commands.command_line",
    "orchestrator.config.load",
    "orchestrator.daemon",
    "orchestrator.mqtt.publisher",
    "orchestrator.mqtt.reader",
    "orchestrator.mqtt.session",
    "orchestrator.supervisor.service",
)
_OF_DASHBOARD: Final = ("tui.cli", "tui.launch", "tui.app", "tui.sources.daemon", "tui.sources.fleet")
PRELOADED: Final = {COMMAND_MODULE: _OF_COMMANDS, DASHBOARD_MODULE: (*_OF_DASHBOARD, "orchestrator.mqtt.session")}
"""What each command line imports, at the latest when it needs it."""
_APPLIED: Final = ("PYTHONWARNINGS", "PYTHONUNBUFFERED")
_ENVIRON: Final = dict(os.environ)
"""The environment before a test changes a variable."""
_CLONE_NEWNS, _CLONE_NEWNET, _MS_BIND, _MS_REC, _MS_SLAVE = 0x20000, 0x40000000, 0x1000, 0x4000, 0x80000


def can_fork(env: Mapping[str, str]) -> bool:
    """Whether a process with this environment may start from the imported modules."""
    changed = {name for name in env.keys() | _ENVIRON.keys() if env.get(name) != _ENVIRON.get(name)}
    if env.get("PYTHONPATH") == str(_ROOT):
        changed.discard("PYTHONPATH")
    return not any(name.startswith(_READ_AT_START) for name in changed.difference(_APPLIED))


def _environ_of_server() -> dict[str, str]:
    """Return the environment of a fork server: a test that has changed a variable gets a new interpreter instead."""
    others = {name: value for name, value in os.environ.items() if not name.startswith(_READ_AT_START)}
    return others | {name: value for name, value in _ENVIRON.items() if name.startswith(_READ_AT_START)}


class ForkedProcess:
    """A process that the fork server has started; its methods are those of ``subprocess.Popen``."""

    def __init__(self, pid: int, end: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._end = end

    def poll(self) -> int | None:
        """Return the exit status if the process has ended: a negative one is a process signal."""
        return self._read_status(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit status. Raises subprocess.TimeoutExpired."""
        status = self._read_status(timeout)
        if status is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
        return status

    def send_signal(self, number: int) -> None:
        """Send a process signal if the process still runs."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the process if it still runs."""
        self.send_signal(signal.SIGKILL)

    def _read_status(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            poller = select.poll()
            poller.register(self._end, select.POLLIN)
            if poller.poll(None if timeout is None else timeout * 1000):
                status = os.read(self._end, _NUMBER.size)
                os.close(self._end)
                assert status, "the fork server has ended"
                (self.returncode,) = _NUMBER.unpack(status)
        return self.returncode


class ForkServer:
    """A process with the modules of the program; one per test process, started when it is needed first."""

    def __init__(self, module: str) -> None:
        self._requests, theirs = socket.socketpair()
        with theirs:
            fd = theirs.fileno()
            command = [sys.executable, "-m", __name__, module, str(fd)]
            self._process = subprocess.Popen(
                command, cwd=_ROOT, env=_environ_of_server(), pass_fds=[fd], stdin=subprocess.DEVNULL
            )
        self.pid = self._process.pid

    def start(
        self,
        arguments: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        streams: Sequence[int],
        namespace: str | None = None,
        on_terminal: bool = False,
    ) -> ForkedProcess:
        """Start the command with descriptors for stdin, stdout and stderr, in a network namespace if one is named.

        ``on_terminal``: as a shell does, in a session of its own that stdin controls.
        """
        end, its_end = os.pipe()
        request = {"arguments": list(arguments), "cwd": str(cwd), "env": dict(env), "namespace": namespace}
        data = json.dumps(request | {"on_terminal": on_terminal}).encode()
        try:
            socket.send_fds(self._requests, [_LENGTH.pack(len(data))], [*streams, its_end])
            self._requests.sendall(data)
        finally:
            os.close(its_end)
        answer = self._requests.recv(_NUMBER.size, socket.MSG_WAITALL)
        assert answer, "the fork server has ended"
        return ForkedProcess(_NUMBER.unpack(answer)[0], end)


@functools.cache
def fork_server(module: str = COMMAND_MODULE) -> ForkServer:
    """Return the fork server of this test process for a command line. It ends with the test process."""
    return ForkServer(module)


def run_forked(
    arguments: Sequence[str], *, cwd: Path, env: Mapping[str, str], timeout_s: float, module: str = COMMAND_MODULE
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end without input, as ``subprocess.run`` does, and return its output and exit status."""
    (out, its_out), (err, its_err) = os.pipe(), os.pipe()
    with contextlib.ExitStack() as closing:
        stdin = closing.enter_context(Path(os.devnull).open("rb"))
        ends = [closing.enter_context(os.fdopen(end)) for end in (out, err)]
        try:
            streams = (stdin.fileno(), its_out, its_err)
            process = fork_server(module).start(arguments, cwd=cwd, env=env, streams=streams)
        finally:
            os.close(its_out)
            os.close(its_err)
        readers = closing.enter_context(ThreadPoolExecutor(len(ends)))
        closing.callback(process.kill)  # the readers end with it
        texts = [readers.submit(end.read) for end in ends]
        stdout, stderr = (text.result(timeout_s) for text in texts)
        return subprocess.CompletedProcess([*arguments], process.wait(timeout_s), stdout, stderr)


# --- in the process of the server -------------------------------------------------------------------------------------


def _serve(requests: socket.socket) -> bool:
    """Fork for each request until the test process ends. Returns True in a new process, prepared for its command."""
    ends: dict[int, int] = {}
    wake, waker = socket.socketpair()
    waker.setblocking(False)
    signal.set_wakeup_fd(waker.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        ready, _, _ = select.select([requests, wake], [], [])
        if wake in ready:
            wake.recv(1 << 12)
            _report_ends(ends)
        if requests not in ready:
            continue
        header, fds, _, _ = socket.recv_fds(requests, _LENGTH.size, 4)
        if not header:
            return False
        request = json.loads(requests.recv(_LENGTH.unpack(header)[0], socket.MSG_WAITALL))
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for open_socket in (requests, wake, waker):
                open_socket.close()
            for end in ends.values():
                os.close(end)
            _prepare(request, fds)
            return True
        *streams, ends[pid] = fds
        for fd in streams:
            os.close(fd)
        requests.sendall(_NUMBER.pack(pid))


def _report_ends(ends: dict[int, int]) -> None:
    while ends:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        end = ends.pop(pid)
        with contextlib.suppress(BrokenPipeError):
            os.write(end, _NUMBER.pack(os.waitstatus_to_exitcode(status)))
        os.close(end)


def _run(main: Callable[[], int]) -> NoReturn:
    """Run the command and end the process as the interpreter does, without deleting every module first.

    The collector runs, because an exception that was never retrieved, for one, is reported when its task is deleted.
    """
    gc.enable()
    try:
        code = main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    threading._shutdown()  # type: ignore[attr-defined]  # as multiprocessing does
    atexit._run_exitfuncs()
    gc.collect()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def _prepare(request: Mapping[str, Any], fds: Sequence[int]) -> None:
    if request["on_terminal"]:
        os.setsid()
        fcntl.ioctl(fds[0], termios.TIOCSCTTY, 0)
    if request["namespace"]:
        _enter_namespace(request["namespace"])
    for number, fd in enumerate(fds[:3]):
        os.dup2(fd, number)
    for fd in fds:
        os.close(fd)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    time.tzset()
    if action := os.environ.get("PYTHONWARNINGS"):
        warnings.simplefilter(action)  # type: ignore[arg-type]  # a word such as error
    encoding, errors = sys.stdout.encoding, str(sys.stdout.errors)
    sys.stdin = open(0, encoding=encoding, errors=errors, closefd=False)  # noqa: SIM115
    is_unbuffered = bool(os.environ.get("PYTHONUNBUFFERED"))
    sys.stdout = _open_stream(1, encoding, errors, is_unbuffered=is_unbuffered)
    sys.stderr = _open_stream(2, encoding, "backslashreplace", is_unbuffered=is_unbuffered)
    sys.argv[1:] = request["arguments"]


def _open_stream(fd: int, encoding: str, errors: str, *, is_unbuffered: bool) -> TextIO:
    """Open a standard stream as the interpreter does."""
    raw = io.FileIO(fd, "w", closefd=False)
    binary: Any = raw if is_unbuffered else io.BufferedWriter(raw)
    is_line_buffered = fd == 2 or raw.isatty()
    return io.TextIOWrapper(binary, encoding, errors, line_buffering=is_line_buffered, write_through=is_unbuffered)


def _enter_namespace(name: str) -> None:
    """Do what ``ip netns exec`` does: enter the network namespace, and see its files of /etc (ip-netns(8))."""
    libc = ctypes.CDLL(None, use_errno=True)

    def check(result: int) -> None:
        if result:
            raise OSError(ctypes.get_errno(), f"cannot enter the namespace {name}")

    with Path(f"/run/netns/{name}").open() as namespace:
        check(libc.setns(namespace.fileno(), _CLONE_NEWNET))
    check(libc.unshare(_CLONE_NEWNS))
    check(libc.mount(b"", b"/", b"none", _MS_SLAVE | _MS_REC, None))
    for file in Path("/etc/netns", name).iterdir():
        check(libc.mount(os.fsencode(file), os.fsencode(Path("/etc", file.name)), b"none", _MS_BIND, None))


if __name__ == "__main__":
    _module = sys.argv[1]
    gc.disable()
    for _name in PRELOADED[_module]:
        importlib.import_module(_name)
    gc.freeze()  # the collector of a new process leaves the shared pages alone
    if _serve(socket.socket(fileno=int(sys.argv[2]))):
        _run(sys.modules[_module].main)

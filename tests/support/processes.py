"""The installed command as users run it: processes with their logs and status, on free loopback ports."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, Self, TypeVar

from tests.support.fork_server import ForkedProcess, can_fork, fork_server
from tests.support.peers import SOCKET_TIMEOUT_S, Address, Target, connect, echo, receive_all, time_to_first_byte
from tests.support.ports import free_port
from tests.support.scale import GUARD_S, time_allowed
from tests.support.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
COMMAND = (sys.executable, "-m", "orchestrator.cli")

_IN_NAMESPACE = ("ip", "netns", "exec")

NO_ENTRIES: Mapping[str, Any] = MappingProxyType({})

C = TypeVar("C", bound="Command")
Closable = TypeVar("Closable", bound="SupportsClose")


class SupportsClose(Protocol):
    """Anything that can be closed."""

    def close(self) -> None: ...


class Command:
    """One process of the command, with its standard output and its log (standard error) in files."""

    def __init__(self, name: str, arguments: Sequence[str], directory: Path, env: Mapping[str, str]) -> None:
        self.name = name
        self.log = directory / f"{name}.stderr"
        self.out = directory / f"{name}.stdout"
        self.arguments = list(arguments)
        self._env = {**os.environ, "PYTHONUNBUFFERED": "1", **env}
        self.start()

    def start(self) -> None:
        """Start the process, for the first time or again after it has ended."""
        with self.log.open("ab") as stderr, self.out.open("ab") as stdout:
            self.process = self._start(stdout.fileno(), stderr.fileno())
        self.started = time.monotonic()

    def _start(self, stdout: int, stderr: int) -> subprocess.Popen[bytes] | ForkedProcess:
        return subprocess.Popen(
            self.arguments, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, cwd=ROOT, env=self._env
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def log_text(self) -> str:
        """Return the log written so far."""
        return self.log.read_text(errors="replace")

    def stdout_text(self) -> str:
        """Return the standard output written so far."""
        return self.out.read_text(errors="replace")

    def wait_for_log(self, pattern: str, *, within: float = 5.0) -> str:
        """Wait for a log line that matches ``pattern`` and return the first one."""

        def first_match() -> str:
            return next((line for line in self.log_text().splitlines() if re.search(pattern, line)), "")

        def failure() -> str:
            return f"{self.name} logs {pattern!r}; its log:\n{self.log_text()}"

        return wait_until(first_match, within=within, what=failure)

    def signal(self, number: signal.Signals) -> None:
        """Send a process signal."""
        self.process.send_signal(number)

    def kill(self) -> None:
        """Kill the process without a chance to clean up, as a crash would."""
        self.process.kill()
        self.process.wait(GUARD_S)

    def wait_exit(self, *, within: float = 10.0) -> int:
        """Wait until the process ends without a kill and return its exit status."""
        limit = time_allowed(within)
        try:
            return self.process.wait(limit)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"{self.name} is still running after {limit:g} s; its log:\n{self.log_text()}"
            ) from None

    def rss(self) -> int:
        """Return the resident memory in bytes."""
        text = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", text).group(1)) * 1024  # type: ignore[union-attr]  # always there

    def close(self) -> None:
        """Kill the process if it runs, even if it is stopped by a signal, and reap it."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(GUARD_S)


class ProgramCommand(Command):
    """A process of this program, forked from its imported modules where nothing but a namespace is before it."""

    def __init__(
        self, name: str, prefix: Sequence[str], arguments: Sequence[str], directory: Path, env: Mapping[str, str]
    ) -> None:
        self._prefix, self._of_program = tuple(prefix), list(arguments)
        super().__init__(name, [*prefix, *COMMAND, *arguments], directory, env)

    def _start(self, stdout: int, stderr: int) -> subprocess.Popen[bytes] | ForkedProcess:
        is_namespace = len(self._prefix) == len(_IN_NAMESPACE) + 1 and self._prefix[:-1] == _IN_NAMESPACE
        if not can_fork(self._env) or (self._prefix and not is_namespace):
            return super()._start(stdout, stderr)
        namespace = self._prefix[-1] if is_namespace else None
        with open(os.devnull, "rb") as stdin:  # noqa: PTH123  a descriptor
            streams = (stdin.fileno(), stdout, stderr)
            return fork_server().start(self._of_program, cwd=ROOT, env=self._env, streams=streams, namespace=namespace)


class Daemon(ProgramCommand):
    """A process of ``up FILE --no-tui`` with its local API."""

    def __init__(
        self,
        name: str,
        prefix: Sequence[str],
        directory: Path,
        env: Mapping[str, str],
        tunnels: Mapping[str, object],
        supervisor: Mapping[str, object],
        options: Sequence[str] = (),
    ) -> None:
        self.file = directory / f"{name}.yaml"
        self._supervisor = dict(supervisor)
        self.write(tunnels)
        self.socket = directory / f"{name}.sock"
        arguments = ["up", str(self.file), "--no-tui", "--socket", str(self.socket), *options]
        super().__init__(name, prefix, arguments, directory, env)

    def write(self, tunnels: Mapping[str, object]) -> None:
        """Write the whole file with these tunnels, each a URL or an entry."""
        content = {"version": 1, "supervisor": self._supervisor, "tunnels": dict(tunnels)}
        self.file.write_text(json.dumps(content))  # JSON is YAML

    def status(self) -> dict[str, Any]:
        """Return the object that ``ps --json`` prints."""
        connection = http.client.HTTPConnection("localhost", timeout=SOCKET_TIMEOUT_S)
        connection.sock = socket.socket(socket.AF_UNIX)
        try:
            connection.sock.settimeout(SOCKET_TIMEOUT_S)
            connection.sock.connect(str(self.socket))
            connection.request("GET", "/v1/status")
            status: dict[str, Any] = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        return status

    def tunnel(self, name: str = "t") -> dict[str, Any]:
        """Return the status of one tunnel, or a made-up state while the daemon does not answer or has not added it."""
        try:
            tunnels = self.status()["tunnels"]
        except OSError:
            return {"state": "not answering"}
        return next((tunnel for tunnel in tunnels if tunnel["name"] == name), {"state": "not listed"})

    def wait_state(self, state: str, *, within: float = 5.0, name: str = "t") -> dict[str, Any]:
        """Wait until a tunnel is in this state and return its status."""
        seen: dict[str, Any] = {}

        def is_reached() -> bool:
            seen.update(self.tunnel(name))
            return bool(seen["state"] == state)

        wait_until(is_reached, within=within, what=f"{self.name} is {state}")
        return seen


@dataclass(frozen=True)
class Pair:
    """A server and a client of one tunnel, with the address for visitors and the target."""

    server: Daemon
    client: Daemon
    visitors: Address
    tunnel_port: int
    target: Target

    @property
    def ingress(self) -> Daemon:
        """The end that accepts visitors."""
        is_reverse = self.server.tunnel().get("direction") == "reverse"
        return self.server if is_reverse else self.client

    def wait_up(self, *, within: float = 5.0) -> Self:
        """Wait until both ends are up."""
        self.server.wait_state("up", within=within)
        self.client.wait_state("up", within=within)
        return self

    def connect(self, *, timeout: float = SOCKET_TIMEOUT_S) -> socket.socket:
        """Connect as a visitor."""
        return connect(self.visitors, timeout=timeout)

    def exchange(self, payload: bytes) -> bytes:
        """Return the answer to a payload and a half-close. The payload must fit the buffers on the way."""
        with self.connect() as visitor:
            visitor.sendall(payload)
            visitor.shutdown(socket.SHUT_WR)
            return receive_all(visitor)

    def time_to_first_byte(self, *, within: float) -> float:
        """Return the seconds until a visitor receives an echo, retrying as an impatient user would."""
        return time_to_first_byte(self.connect, within=within)


class ProcessHarness:
    """Starts the processes and peers of a test and ends all of them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.commands: list[Command] = []
        self._closing = contextlib.ExitStack()

    def start_url(self, text: str, *, prefix: Sequence[str] = (), env: Mapping[str, str] = NO_ENTRIES) -> Command:
        """Start the command with one URL."""
        return self._add(Command(self._unique_name("url"), [*prefix, *COMMAND, text], self.directory, env))

    def start_command(self, *arguments: str, env: Mapping[str, str] = NO_ENTRIES) -> Command:
        """Start the command with any arguments."""
        return self._add(ProgramCommand(self._unique_name("command"), (), arguments, self.directory, env))

    def start_daemon(
        self,
        tunnels: Mapping[str, object],
        *,
        name: str = "daemon",
        prefix: Sequence[str] = (),
        env: Mapping[str, str] = NO_ENTRIES,
        supervisor: Mapping[str, object] = NO_ENTRIES,
        options: Sequence[str] = (),
    ) -> Daemon:
        """Start the command with a file of tunnels."""
        return self._add(Daemon(self._unique_name(name), prefix, self.directory, env, tunnels, supervisor, options))

    def start_target(self, serve: Callable[[socket.socket], None] = echo, host: str = "127.0.0.1") -> Target:
        """Start a target that serves each connection with ``serve``."""
        return self.close_at_end(Target(serve, host))

    def close_at_end(self, resource: Closable) -> Closable:
        """Close the resource when the test ends."""
        self._closing.callback(resource.close)
        return resource

    def start_pair(
        self,
        serve: Callable[[socket.socket], None] | Target = echo,
        *,
        direction: str = "reverse",
        host: str = "127.0.0.1",
        key: str = "",
        both: str = "",
        server: str = "",
        client: str = "",
        through: Callable[[int], int] = lambda port: port,
    ) -> Pair:
        """Start both ends of a tunnel on loopback; ``both``, ``server`` and ``client`` are options of the URLs.

        ``through`` may insert a proxy: it receives the server's tunnel port and returns the port for the client.
        """
        target = serve if isinstance(serve, Target) else self.start_target(serve, host)
        shown = f"[{host}]" if ":" in host else host
        user = f"{key}@" if key else ""
        tunnel_port, visitor_port = free_port(host), free_port(host)
        ingress, egress = f"{shown}:{visitor_port}", f"{shown}:{target.port}"
        ends = (ingress, egress) if direction == "reverse" else (egress, ingress)
        server_options = "&".join(filter(None, [f"mode={direction}", both, server]))
        client_options = "&".join(filter(None, [both, client]))
        server_url = f"server://{user}{shown}:{tunnel_port}/{ends[0]}?{server_options}"
        client_url = f"client://{user}{shown}:{through(tunnel_port)}/{ends[1]}?{client_options}"
        return Pair(
            self.start_daemon({"t": server_url}, name="server"),
            self.start_daemon({"t": client_url}, name="client"),
            (host, visitor_port),
            tunnel_port,
            target,
        )

    def wait_serving(self, visitors: Address, *, within: float = 5.0) -> float:
        """Return the seconds until a visitor of this address receives an echo."""
        return time_to_first_byte(visitors, within=within)

    def check_logs(self) -> None:
        """Assert what holds for every process in every test."""
        for command in self.commands:
            log = command.log_text()
            assert "Traceback" not in log, f"a traceback reached the user of {command.name}"
            assert "never retrieved" not in log, f"an exception was lost in {command.name}"
            assert "Warning:" not in log, f"a warning of Python reached the user of {command.name}"

    def close(self) -> None:
        """End all processes and peers."""
        for command in self.commands:
            command.close()
        self._closing.close()

    def _unique_name(self, kind: str) -> str:
        return f"{kind}-{len(self.commands)}"

    def _add(self, command: C) -> C:
        self.commands.append(command)
        return command


@contextlib.contextmanager
def running_harness(directory: Path) -> Generator[ProcessHarness]:
    """Start processes and peers; at the end all of them are ended and no log shows a traceback."""
    harness = ProcessHarness(directory)
    try:
        yield harness
        harness.check_logs()
    finally:
        harness.close()

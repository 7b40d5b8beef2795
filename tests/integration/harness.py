"""The command as its users run it: processes, logs and status, on free loopback ports, always cleaned up."""

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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, Self, TypeVar

from tests.integration.peers import PATIENCE, Address, Target, connect, echo, first_byte, receive_all
from tests.ports import free_port
from tests.scale import GUARD, allowed

ROOT = Path(__file__).resolve().parents[2]
COMMAND = (sys.executable, "-m", "orchestrator.cli")

NOTHING: Mapping[str, Any] = MappingProxyType({})

T = TypeVar("T")
C = TypeVar("C", bound="Command")
Closable = TypeVar("Closable", bound="SupportsClose")


class SupportsClose(Protocol):
    """Anything that can be closed."""

    def close(self) -> None: ...


def until(condition: Callable[[], T], *, within: float, what: str) -> T:
    """What ``condition`` returns once that is true. ``within``: the seconds that are promised at full size."""
    limit = allowed(within)
    deadline = time.monotonic() + limit
    while True:
        if result := condition():
            return result
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {limit:g} s: {what}")
        time.sleep(0.01)


class Command:
    """One process of the command, with what it says."""

    def __init__(self, name: str, arguments: Sequence[str], directory: Path, env: Mapping[str, str]) -> None:
        self.name = name
        self.log = directory / f"{name}.stderr"
        self.out = directory / f"{name}.stdout"
        self._arguments = list(arguments)
        self._env = {**os.environ, "PYTHONUNBUFFERED": "1", **env}
        self.start()

    def start(self) -> None:
        """Start it, for the first time or, once it has ended, again."""
        with self.log.open("ab") as stderr, self.out.open("ab") as stdout:
            self.process = subprocess.Popen(
                self._arguments,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                cwd=ROOT,
                env=self._env,
            )
        self.started = time.monotonic()

    @property
    def pid(self) -> int:
        return self.process.pid

    def said(self) -> str:
        """All of its log so far."""
        return self.log.read_text(errors="replace")

    def printed(self) -> str:
        """All of its standard output so far."""
        return self.out.read_text(errors="replace")

    def says(self, pattern: str, *, within: float = 5.0) -> str:
        """The first line of the log that matches, once there is one."""

        def line() -> str | None:
            return next((text for text in self.said().splitlines() if re.search(pattern, text)), None)

        return until(lambda: line() or "", within=within, what=f"{self.name} says {pattern!r}; it said:\n{self.said()}")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def kill(self) -> None:
        """End it without a word, as a crash would."""
        self.process.kill()
        self.process.wait(GUARD)

    def ends(self, *, within: float = 10.0) -> int:
        """Its exit status, once it has ended by itself."""
        limit = allowed(within)
        try:
            return self.process.wait(limit)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} runs on after {limit:g} s; it said:\n{self.said()}") from None

    def rss(self) -> int:
        """Its resident memory in bytes."""
        text = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", text).group(1)) * 1024  # type: ignore[union-attr]  # always there

    def close(self) -> None:
        """End it, running or not, stopped or not."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(GUARD)


class Daemon(Command):
    """``up FILE --no-tui``, and its local API."""

    def __init__(
        self,
        name: str,
        prefix: Sequence[str],
        directory: Path,
        env: Mapping[str, str],
        tunnels: Mapping[str, str],
        supervisor: Mapping[str, object],
        options: Sequence[str] = (),
    ) -> None:
        self.file = directory / f"{name}.yaml"
        self._supervisor = dict(supervisor)
        self.write(tunnels)
        self.socket = directory / f"{name}.sock"
        arguments = [*prefix, *COMMAND, "up", str(self.file), "--no-tui", "--socket", str(self.socket)]
        super().__init__(name, [*arguments, *options], directory, env)

    def write(self, tunnels: Mapping[str, str]) -> None:
        """Write its file, whole, with these tunnels."""
        content = {"version": 1, "supervisor": self._supervisor, "tunnels": dict(tunnels)}
        self.file.write_text(json.dumps(content))  # JSON is YAML

    def status(self) -> dict[str, Any]:
        """What ``ps --json`` shows."""
        connection = http.client.HTTPConnection("localhost", timeout=PATIENCE)
        connection.sock = socket.socket(socket.AF_UNIX)
        try:
            connection.sock.settimeout(PATIENCE)
            connection.sock.connect(str(self.socket))
            connection.request("GET", "/v1/status")
            status: dict[str, Any] = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        return status

    def tunnel(self, name: str = "t") -> dict[str, Any]:
        """One tunnel of it; nothing known before the daemon answers."""
        try:
            return next(tunnel for tunnel in self.status()["tunnels"] if tunnel["name"] == name)
        except OSError:
            return {"state": "not answering"}

    def is_in(self, state: str, *, within: float = 5.0, name: str = "t") -> dict[str, Any]:
        """The tunnel, once it is in this state."""
        seen: dict[str, Any] = {}

        def there() -> bool:
            seen.update(self.tunnel(name))
            return bool(seen["state"] == state)

        until(there, within=within, what=f"{self.name} is {state}")
        return seen


@dataclass(frozen=True)
class Pair:
    """A server and a client of one tunnel, and where visitors go."""

    server: Daemon
    client: Daemon
    visitors: Address
    tunnel_port: int
    target: Target

    @property
    def entrance(self) -> Daemon:
        """The end that accepts visitors."""
        listening = self.server.tunnel()
        return self.server if listening.get("direction") == "reverse" else self.client

    def up(self, *, within: float = 5.0) -> Self:
        """Wait until both ends are."""
        self.server.is_in("up", within=within)
        self.client.is_in("up", within=within)
        return self

    def connect(self, *, timeout: float = PATIENCE) -> socket.socket:
        """A visitor."""
        return connect(self.visitors, timeout=timeout)

    def exchange(self, payload: bytes) -> bytes:
        """What comes back to a visitor for a payload and a half-close. The payload fits the buffers on the way."""
        with self.connect() as visitor:
            visitor.sendall(payload)
            visitor.shutdown(socket.SHUT_WR)
            return receive_all(visitor)

    def first_byte(self, *, within: float) -> float:
        """Seconds until a visitor gets an echo, trying anew as an impatient user would."""
        return first_byte(self.connect, within=within)


class Stage:
    """Starts what a test needs and ends all of it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.commands: list[Command] = []
        self._closing = contextlib.ExitStack()

    def url(self, text: str, *, prefix: Sequence[str] = (), env: Mapping[str, str] = NOTHING) -> Command:
        """The command with one URL."""
        return self._add(Command(self._name("url"), [*prefix, *COMMAND, text], self.directory, env))

    def run(self, *arguments: str, env: Mapping[str, str] = NOTHING) -> Command:
        """The command with any arguments."""
        return self._add(Command(self._name("command"), [*COMMAND, *arguments], self.directory, env))

    def up(
        self,
        tunnels: Mapping[str, str],
        *,
        name: str = "daemon",
        prefix: Sequence[str] = (),
        env: Mapping[str, str] = NOTHING,
        supervisor: Mapping[str, object] = NOTHING,
        options: Sequence[str] = (),
    ) -> Daemon:
        """The command with a file of tunnels."""
        return self._add(Daemon(self._name(name), prefix, self.directory, env, tunnels, supervisor, options))

    def target(self, serve: Callable[[socket.socket], None] = echo, host: str = "127.0.0.1") -> Target:
        """A target that gives each connection to ``serve``."""
        return self.keep(Target(serve, host))

    def keep(self, thing: Closable) -> Closable:
        """Close it with the rest."""
        self._closing.callback(thing.close)
        return thing

    def pair(
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
        """A tunnel on loopback: ``both``, ``server`` and ``client`` are options of the URLs.

        ``through`` may put something between: it gets the server's tunnel port and returns the one for the client.
        """
        target = serve if isinstance(serve, Target) else self.target(serve, host)
        shown = f"[{host}]" if ":" in host else host
        user = f"{key}@" if key else ""
        tunnel_port, visitor_port = free_port(host), free_port(host)
        entrance, exit_ = f"{shown}:{visitor_port}", f"{shown}:{target.port}"
        ends = (entrance, exit_) if direction == "reverse" else (exit_, entrance)
        server_options = "&".join(filter(None, [f"mode={direction}", both, server]))
        client_options = "&".join(filter(None, [both, client]))
        server_url = f"server://{user}{shown}:{tunnel_port}/{ends[0]}?{server_options}"
        client_url = f"client://{user}{shown}:{through(tunnel_port)}/{ends[1]}?{client_options}"
        return Pair(
            self.up({"t": server_url}, name="server"),
            self.up({"t": client_url}, name="client"),
            (host, visitor_port),
            tunnel_port,
            target,
        )

    def serving(self, visitors: Address, *, within: float = 5.0) -> float:
        """Seconds until a visitor gets an echo."""
        return first_byte(visitors, within=within)

    def check(self) -> None:
        """What holds for every process in every test."""
        for command in self.commands:
            assert "Traceback" not in command.said(), f"a traceback reached the user of {command.name}"
            assert "never retrieved" not in command.said(), f"an exception was lost in {command.name}"
            assert "Warning:" not in command.said(), f"a warning of Python reached the user of {command.name}"

    def close(self) -> None:
        """End all."""
        for command in self.commands:
            command.close()
        self._closing.close()

    def _name(self, kind: str) -> str:
        return f"{kind}-{len(self.commands)}"

    def _add(self, command: C) -> C:
        self.commands.append(command)
        return command

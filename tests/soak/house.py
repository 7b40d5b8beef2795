"""The tunnels of the soak: two daemons with an end of each tunnel, and a target behind each."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.soak.chronicle import Chronicle
from tests.soak.streams import Ledger, Manner, Talk, serving, visit
from tests.support.peers import Address, Target, connect
from tests.support.ports import free_port
from tests.support.processes import COMMAND, Command, Daemon
from tests.support.waiting import wait_until
from tunnel.model.options import KEY_VARIABLE
from tunnel.model.settings import NAMES

DRAIN: Final = 2.0
"""Seconds that visitors of changed entries have to finish."""
HEALING: Final = 30.0
"""Seconds after which a tunnel that does not serve again is a finding."""
POOL_MIN: Final = 4

_KEY: Final = "what-both-ends-know"
_UNSET: Final = dict.fromkeys((*(name.upper() for name in NAMES), KEY_VARIABLE, "NODEPASS_ORCH_SOCKET"), "")
_OPTIONS: Final = f"report_interval=1s&min_pool_capacity={POOL_MIN}&max_pool_capacity=256&shutdown_timeout={DRAIN:g}s"


@dataclass(frozen=True, slots=True)
class Tunnel:
    """One tunnel, known to both daemons by the same name."""

    name: str
    direction: str
    server_end: str
    """which of the two daemons has its server"""
    sealed: bool
    port: int
    door: Address
    target_port: int

    def url(self, end: str, *, variant: int = 0) -> str:
        """For the file of one end. Variants mean the same and yet need another engine."""
        is_server = end == self.server_end
        is_entrance = is_server == (self.direction == "reverse")
        where = f"127.0.0.1:{self.door[1] if is_entrance else self.target_port}"
        if is_server:
            own = f"&mode={self.direction}&data_port={('random', 'tunnel')[variant % 2]}"
            return f"server://{_KEY}@127.0.0.1:{self.port}/{where}?{_OPTIONS}&tls={int(self.sealed)}{own}"
        host = ("127.0.0.1", "localhost")[variant % 2]
        return f"client://{_KEY}@{host}:{self.port}/{where}?{_OPTIONS}&tls={int(self.sealed)}"


class Service:
    """The target of one tunnel, which may vanish and return."""

    def __init__(self, port: int, ledger: Ledger) -> None:
        self._port = port
        self._serve = serving(ledger)
        self._target: Target | None = None

    def start(self) -> None:
        """Listen again."""
        listener = wait_until(self._listener, within=10, what=f"port {self._port} can be listened on")
        self._target = Target(self._serve, listener=listener)

    def _listener(self) -> socket.socket | None:
        with contextlib.suppress(OSError):
            return socket.create_server(("127.0.0.1", self._port), backlog=1024)
        return None

    def close(self) -> None:
        """Refuse everybody, and cut whoever is there."""
        if self._target is not None:
            self._target.close()
            self._target = None


class End:
    """A daemon of the soak, under a name that outlives its processes."""

    def __init__(self, name: str, directory: Path, tunnels: Iterable[Tunnel], workers: int) -> None:
        self.name = name
        self.directory = directory
        self.urls = {tunnel.name: tunnel.url(name) for tunnel in tunnels}
        self.lock = threading.Lock()
        """held by whoever kills, freezes or ends it"""
        self._workers = workers
        self._saving = threading.Lock()
        self._said = directory.parent
        self.start()

    def start(self) -> None:
        """Run it; in a session of its own, so that Ctrl-C reaches nobody but the soak."""
        places = {name: self.directory / name.lower() for name in ("TMPDIR", "XDG_STATE_HOME", "XDG_RUNTIME_DIR")}
        for place in places.values():
            place.mkdir(mode=0o700, exist_ok=True)
        env = _UNSET | {name: str(place) for name, place in places.items()}
        supervisor = {"workers": self._workers, "drain_timeout": f"{DRAIN:g}s"}
        with self._saving:
            self.daemon = Daemon(self.name, ["setsid"], self.directory, env, self.urls, supervisor)

    def save(self, **urls: str | None) -> None:
        """Save its file with some entries changed, None: left out."""
        with self._saving:
            self.urls = {name: url for name, url in (self.urls | urls).items() if url is not None}
            self.daemon.write(self.urls)

    def spoil(self) -> None:
        """Save what is no file of tunnels."""
        with self._saving:
            self.daemon.file.write_text("version: 1\ntunnels: {half: [")

    def ask(self, method: str, path: str) -> bytes:
        """What the local API answers. Raises OSError while there is nobody to answer."""
        connection = http.client.HTTPConnection("localhost")
        connection.sock = socket.socket(socket.AF_UNIX)
        try:
            connection.sock.settimeout(10)
            connection.sock.connect(str(self.daemon.socket))
            connection.request(method, path)
            return connection.getresponse().read()
        except http.client.HTTPException as error:
            raise ConnectionError(str(error)) from None
        finally:
            connection.close()

    def status(self) -> dict[str, Any] | None:
        """What ``ps --json`` shows, if somebody answers."""
        try:
            found: dict[str, Any] = json.loads(self.ask("GET", "/v1/status"))
        except (OSError, ValueError):
            return None
        return found

    def tunnels(self) -> dict[str, dict[str, Any]]:
        """Its tunnels by name; none while nobody answers."""
        return {tunnel["name"]: tunnel for tunnel in (self.status() or {"tunnels": []})["tunnels"]}

    def command(self, *arguments: str) -> Command:
        """A command to it, as its user would give it."""
        words = ["setsid", *COMMAND, *arguments, "--socket", str(self.daemon.socket)]
        return Command(f"{self.name}-command", words, self._said, _UNSET)

    def workers(self) -> list[int]:
        """Its worker processes."""
        pid = self.daemon.pid
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            return [int(child) for child in children if b"workers.worker" in _command_line(child)]
        except OSError:
            return []

    def kill(self) -> None:
        """As a crash would; its workers end with it."""
        self.daemon.kill()

    def freeze(self) -> Callable[[], None]:
        """Stop it and its workers where they are; what it gives lets them go on."""
        pids = [self.daemon.pid, *self.workers()]
        send_signal(pids, signal.SIGSTOP)
        return lambda: send_signal(pids, signal.SIGCONT)


class SoakHarness:
    """Eight tunnels: each direction, either daemon as the server, plain and encrypted.

    The ``lasting`` daemon lives as long as the run and has all engines in its own process: what it loses is lost for
    good and seen at the end. The ``mortal`` one has workers, and dies now and then.
    """

    def __init__(self, directory: Path, chronicle: Chronicle) -> None:
        self.chronicle = chronicle
        self.ledger = Ledger()
        self.tunnels = {
            name: Tunnel(name, direction, server, sealed, free_port(), ("127.0.0.1", free_port()), free_port())
            for direction in ("reverse", "forward")
            for server in ("lasting", "mortal")
            for sealed in (False, True)
            for name in [f"{direction}-{server}-{'sealed' if sealed else 'plain'}"]
        }
        self.services = {name: Service(tunnel.target_port, self.ledger) for name, tunnel in self.tunnels.items()}
        for service in self.services.values():
            service.start()
        self.lasting = End("lasting", directory, self.tunnels.values(), workers=0)
        self.mortal = End("mortal", directory, self.tunnels.values(), workers=2)
        self.ends = (self.lasting, self.mortal)

    def is_serving(self, name: str) -> bool:
        """Whether both ends of a tunnel are up and a visitor is served."""
        if any(end.tunnels().get(name, {}).get("state") != "up" for end in self.ends):
            return False
        try:
            with connect(self.tunnels[name].door, timeout=2) as sock:
                visit(Talk(sock), Manner.ANSWER, 1, 8, 8, self.ledger, 2)
        except Exception:  # noqa: BLE001  whatever is wrong, it is tried again, and the load looks closer
            return False
        return True

    def heal(self, what: str, names: Iterable[str]) -> None:
        """Until these tunnels serve again; a finding where they do not."""
        for name in names:
            try:
                wait_until(lambda name=name: self.is_serving(name), within=HEALING, what="it serves")  # type: ignore[misc]  # mypy does not infer defaults of lambdas
            except AssertionError:
                seen = [end.tunnels().get(name, {}) for end in self.ends]
                states = ", ".join(f"{shown.get('state')} ({shown.get('reason')})" for shown in seen)
                self.chronicle.found(f"{name} did not serve within {HEALING:g} s after: {what}; its ends are {states}")

    def close(self) -> None:
        """End everything, whatever state it is in."""
        for end in self.ends:
            send_signal([end.daemon.pid, *end.workers()], signal.SIGCONT)
            end.daemon.close()
        for service in self.services.values():
            service.close()


def _command_line(pid: str) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def send_signal(pids: Iterable[int], number: signal.Signals) -> None:
    """Tell each of these processes that is still there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

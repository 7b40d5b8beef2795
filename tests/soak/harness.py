"""The tunnels of the soak: two daemons, each with one end of every tunnel, and a target for each tunnel."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import select
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.soak.datagrams import DatagramTarget, DatagramVisitor
from tests.soak.incident_log import IncidentLog
from tests.soak.losses import DropLog
from tests.soak.streams import CorruptError, TargetReports, VerifiedStream, VisitKind, serve_streams, visit
from tests.support.namespaces import Host
from tests.support.peers import Address, Target, connect
from tests.support.ports import free_port
from tests.support.processes import COMMAND, Command, Daemon
from tests.support.waiting import wait_until
from tunnel.model.options import OPTION_VARIABLES

DRAIN_S: Final = 2.0
"""Seconds that visitors of a changed entry have to finish."""
RECOVERY_S: Final = 30.0
"""Seconds within which a tunnel must serve again after a fault."""
POOL_MIN: Final = 4
DIRECTIONS: Final = ("reverse", "forward")
SERVERS: Final = ("stable", "unstable")
"""The daemons that may have the server of a tunnel."""

_KEY: Final = "npk_ZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXp7fH1-f4CBgoNtm-wx"  # of keygen: no scrypt at a restart
_UNSET: Final = dict.fromkeys((*OPTION_VARIABLES, "NODEPASS_ORCH_SOCKET"), "")
_OPTIONS: Final = f"report_interval=1s&min_pool_capacity={POOL_MIN}&max_pool_capacity=256&shutdown_timeout={DRAIN_S:g}s"


_VISITOR_OPTIONS: Final = (
    "allow=127.0.0.0/8,10.0.0.0/8&max_per_address=5000&rate_new=5000&idle_timeout=1h&max_age=24h&quota=100TB/month"
)
"""At the end that accepts visitors: every feature for them, none of which a visit of the soak reaches."""
_TCP_VISITOR_OPTIONS: Final = "rate=4gbit&visitor_rate=2gbit"
_UDP_TIMEOUT: Final = "udp_timeout=8s"
_CARRIERS: Final = ("auto", "datagram", "stream")
_FIRST_PROBE_IDENT: Final = 1 << 20  # the load has the visitors below


@dataclass(frozen=True, slots=True)
class Tunnel:
    """One tunnel, known to both daemons by the same name."""

    name: str
    direction: str
    server_daemon: str
    """name of the daemon that has the server"""
    encrypted: bool
    reuses: bool
    has_visitor_options: bool
    port: int
    visitor_address: Address
    target_ports: tuple[int, ...]
    """of a target, or of a group of targets"""
    has_second_client: bool
    shares_port: bool
    """with other servers, which need the same ``data_port``"""
    udp_carrier: str = ""
    """how datagrams travel; empty for a tunnel of TCP"""
    proto: str = "tcp"
    is_published: bool = False
    """whether its client publishes the service, and the entry of the server has the rule for it"""

    @property
    def has_tcp(self) -> bool:
        """Whether it has visitors that connect."""
        return self.proto != "udp"

    @property
    def has_udp(self) -> bool:
        """Whether it has visitors that send datagrams."""
        return self.proto != "tcp"

    @property
    def access_log_name(self) -> str:
        """Its name in the access log of the daemon that is never killed."""
        return f"{self.name}/{self.name}" if self.is_published else self.name

    def entry(self, daemon: str, *, variant: int = 0) -> dict[str, Any]:
        """Return the entry of one daemon's file. A change of variant needs a new engine, and changes no visit."""
        url = self._url(daemon, variant)
        if not self.is_published or daemon != self.server_daemon:
            return {"url": url}
        rule = {"address": "127.0.0.1", "ports": self.visitor_address[1], "services": self.name}
        return {"url": url, "keys": {"soak": _KEY}, "publish": rule}

    def _url(self, daemon: str, variant: int) -> str:
        is_server = daemon == self.server_daemon
        data_port, reuses = ("random", "tunnel")[variant % 2], self.reuses
        if is_server and (self.shares_port or self.is_published):
            data_port, reuses = "random", reuses is (variant % 2 == 0)
        options = f"{_OPTIONS}&tls={int(self.encrypted)}&reuse={int(reuses)}"
        if self.has_visitor_options and not (self.is_published or self.has_udp):
            options += "&mux=0"  # the others share connections
        is_ingress = is_server == (self.direction == "reverse")
        ports = (self.visitor_address[1],) if is_ingress else self.target_ports
        where = ",".join(f"127.0.0.1:{port}" for port in ports)
        if self.has_udp:
            options += f"&proto={self.proto}&{_UDP_TIMEOUT}&udp_carrier={self.udp_carrier}"
        if is_ingress and self.has_visitor_options:
            options += f"&{_VISITOR_OPTIONS}"
            if not self.has_udp:
                options += f"&{_TCP_VISITOR_OPTIONS}"
        if self.is_published and is_server:  # its ports are in the rule
            return f"server://127.0.0.1:{self.port}?{options}&data_port={data_port}"
        options += f"&service={self.name}"
        if self.is_published:
            options += f"&publish=127.0.0.1:{self.visitor_address[1]}"
        if is_server:
            own = f"&clients={1 + self.has_second_client}&mode={self.direction}&data_port={data_port}"
            return f"server://{_KEY}@127.0.0.1:{self.port}/{where}?{options}{own}"
        host = ("127.0.0.1", "localhost")[variant % 2]
        return f"client://{_KEY}@{host}:{self.port}/{where}?{options}"


class RestartableTarget:
    """A target of one tunnel, which can stop and start again."""

    def __init__(self, port: int, target_reports: TargetReports) -> None:
        self._port = port
        self._serve = serve_streams(target_reports)
        self._target: Target | None = None

    def start(self) -> None:
        """Listen on the port of the target again."""
        listener = wait_until(self._listener, within=10, what=f"port {self._port} can be listened on")
        self._target = Target(self._serve, listener=listener)

    def _listener(self) -> socket.socket | None:
        with contextlib.suppress(OSError):
            return socket.create_server(("127.0.0.1", self._port), backlog=1024)
        return None

    def close(self) -> None:
        """Refuse new connections and close the existing ones."""
        if self._target is not None:
            self._target.close()
            self._target = None


class SoakDaemon:
    """A daemon of the soak under a fixed name; its process may be replaced."""

    def __init__(self, name: str, directory: Path, tunnels: Iterable[Tunnel], workers: int) -> None:
        self.name = name
        self.directory = directory
        self.entries = {tunnel.name: tunnel.entry(name) for tunnel in tunnels} | {
            f"{tunnel.name}-second": tunnel.entry(name, variant=1)
            for tunnel in tunnels
            if tunnel.has_second_client and tunnel.server_daemon != name
        }
        self.lock = threading.Lock()
        """held while the process is killed, frozen or restarted, and while its file is invalid"""
        self._workers = workers
        self._saving = threading.Lock()
        self._command_directory = directory.parent
        self.access_log = directory / f"{name}-access.log"
        self.start()

    def start(self) -> None:
        """Start the process in a session of its own, so that Ctrl-C reaches only the soak."""
        places = {name: self.directory / name.lower() for name in ("TMPDIR", "XDG_STATE_HOME", "XDG_RUNTIME_DIR")}
        for place in places.values():
            place.mkdir(mode=0o700, exist_ok=True)
        env = _UNSET | {name: str(place) for name, place in places.items()}
        supervisor = {
            "workers": self._workers,
            "drain_timeout": f"{DRAIN_S:g}s",
            "access_log": {"file": str(self.access_log), "max_size": "1GB"},
        }
        with self._saving:
            self.process = Daemon(self.name, ["setsid"], self.directory, env, self.entries, supervisor)

    def save(self, **entries: dict[str, Any] | None) -> None:
        """Write the file with changed entries; None removes an entry."""
        with self._saving:
            self.entries = {name: entry for name, entry in (self.entries | entries).items() if entry is not None}
            self.process.write(self.entries)

    def write_invalid_file(self) -> None:
        """Write an invalid file."""
        with self._saving:
            self.process.file.write_text("version: 1\ntunnels: {half: [")

    def request(self, method: str, path: str) -> bytes:
        """Return the response of the local API. Raises OSError while the daemon does not answer."""
        connection = http.client.HTTPConnection("localhost")
        connection.sock = socket.socket(socket.AF_UNIX)
        try:
            connection.sock.settimeout(10)
            connection.sock.connect(str(self.process.socket))
            connection.request(method, path)
            return connection.getresponse().read()
        except http.client.HTTPException as error:
            raise ConnectionError(str(error)) from None
        finally:
            connection.close()

    def status(self) -> dict[str, Any] | None:
        """Return the object of ``ps --json``, or None while the daemon does not answer."""
        try:
            found: dict[str, Any] = json.loads(self.request("GET", "/v1/status"))
        except (OSError, ValueError):
            return None
        return found

    def tunnels(self) -> dict[str, dict[str, Any]]:
        """Return the tunnels by name, or nothing while the daemon does not answer."""
        return {tunnel["name"]: tunnel for tunnel in (self.status() or {"tunnels": []})["tunnels"]}

    def command(self, *arguments: str) -> Command:
        """Start a command for this daemon, as its user would."""
        words = ["setsid", *COMMAND, *arguments, "--socket", str(self.process.socket)]
        return Command(f"{self.name}-command", words, self._command_directory, _UNSET)

    def workers(self) -> list[int]:
        """Return the process ids of the workers."""
        pid = self.process.pid
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            return [int(child) for child in children if b"workers.worker" in _command_line(child)]
        except OSError:
            return []

    def kill(self) -> None:
        """Kill the process, as a crash would; its workers end with it."""
        self.process.kill()

    def freeze(self) -> Callable[[], None]:
        """Stop (SIGSTOP) the process and its workers; return a function that resumes them."""
        pids = [self.process.pid, *self.workers()]
        send_signal(pids, signal.SIGSTOP)
        return lambda: send_signal(pids, signal.SIGCONT)


class SoakHarness:
    """Eight tunnels of TCP: each direction, either daemon as the server, plain and encrypted; half of them use data
    connections again, and half have every option for visitors. Six tunnels of UDP: each direction and carrier. One of
    TCP and UDP, whose targets are lost for one of both. One of TCP that its client publishes. Both daemons have access
    logs and histories. The servers of the stable daemon share one tunnel port. Tunnels that use data connections again
    have two targets, encrypted reverse ones of TCP two clients.

    The ``stable`` daemon runs for the whole soak with all engines in its own process, so that every leak is visible
    at the end. The ``unstable`` daemon has workers and is killed and restarted repeatedly.
    """

    def __init__(self, directory: Path, incidents: IncidentLog, host: Host | None) -> None:
        """``host`` is the network namespace in which the soak runs, if it has one of its own."""
        self.incidents = incidents
        self.host = host
        self.target_reports = TargetReports()
        shared_port = free_port()
        tunnels = (
            *_tcp_tunnels(shared_port),
            *_udp_tunnels(shared_port),
            _create_tunnel_of_both(shared_port),
            _create_published_tunnel(),
        )
        self.tunnels = {tunnel.name: tunnel for tunnel in tunnels}
        self.drop_log = DropLog()
        self.services = {
            name: [
                target_class(port, self.target_reports)
                for target_class, is_needed in ((RestartableTarget, tunnel.has_tcp), (DatagramTarget, tunnel.has_udp))
                for port in tunnel.target_ports
                if is_needed
            ]
            for name, tunnel in self.tunnels.items()
        }
        self._probe_idents = itertools.count(_FIRST_PROBE_IDENT)
        for targets in self.services.values():
            for target in targets:
                target.start()
        self.stable = SoakDaemon("stable", directory, self.tunnels.values(), workers=0)
        self.unstable = SoakDaemon("unstable", directory, self.tunnels.values(), workers=2)
        self.daemons = (self.stable, self.unstable)

    @contextlib.contextmanager
    def blocked_udp(self, port: int) -> Iterator[None]:
        """Drop the datagrams from and to a port, as a firewall that allows TCP alone. Needs a host of its own."""
        if self.host is None:
            raise ValueError("the firewall of this machine is not for tests")
        rules = [("INPUT", "-p", "udp", side, str(port), "-j", "DROP") for side in ("--dport", "--sport")]
        for rule in rules:
            self.host.run("iptables", "-A", *rule)
        try:
            yield
        finally:
            for rule in rules:
                self.host.run("iptables", "-D", *rule)

    def has_carrier(self, names: Iterable[str], carrier: str) -> bool:
        """Whether the datagrams of these tunnels travel in this way on all their links, as both ends say."""
        shown = [daemon.tunnels() for daemon in self.daemons]
        links = [link for name in names for tunnels in shown for link in tunnels.get(name, {"links": []})["links"]]
        return bool(links) and all(link["udp_carrier"] == carrier for link in links)

    def is_serving(self, name: str) -> bool:
        """Whether both ends of a tunnel are up and a visitor is served."""
        if any(daemon.tunnels().get(name, {}).get("state") != "up" for daemon in self.daemons):
            return False
        tunnel = self.tunnels[name]
        if tunnel.has_udp and not self._answers_datagrams(tunnel):
            return False
        return not tunnel.has_tcp or self._serves_connections(tunnel)

    def _serves_connections(self, tunnel: Tunnel) -> bool:
        try:
            with connect(tunnel.visitor_address, timeout=2) as sock:
                visit(VerifiedStream(sock), VisitKind.TARGET_CLOSES, 1, 8, 8, self.target_reports, 2)
        except Exception:  # noqa: BLE001  any failure is retried, and the load reports details
            return False
        return True

    def _answers_datagrams(self, tunnel: Tunnel) -> bool:
        with DatagramVisitor(next(self._probe_idents), tunnel.name, tunnel.visitor_address) as visitor:
            visitor.send([200])
            if not select.select([visitor.sock], [], [], 2)[0]:
                return False
            with contextlib.suppress(CorruptError):  # the load reports details
                visitor.receive()
            return visitor.answered == 1

    def wait_recovered(self, what: str, names: Iterable[str]) -> None:
        """Wait until these tunnels serve again; record a finding for each that does not."""
        for name in names:
            try:
                wait_until(lambda name=name: self.is_serving(name), within=RECOVERY_S, what="the tunnel serves")  # type: ignore[misc]  # mypy does not infer defaults of lambdas
            except AssertionError:
                seen = [daemon.tunnels().get(name, {}) for daemon in self.daemons]
                states = ", ".join(f"{shown.get('state')} ({shown.get('reason')})" for shown in seen)
                self.incidents.record_finding(
                    f"{name} did not serve within {RECOVERY_S:g} s after: {what}; its ends are {states}"
                )

    def close(self) -> None:
        """End all processes and targets, in whatever state they are."""
        for daemon in self.daemons:
            send_signal([daemon.process.pid, *daemon.workers()], signal.SIGCONT)
            daemon.process.close()
        for targets in self.services.values():
            for target in targets:
                target.close()


def _tcp_tunnels(shared_port: int) -> Iterator[Tunnel]:
    for direction, server, encrypted in itertools.product(DIRECTIONS, SERVERS, (False, True)):
        reuses = (direction == "reverse") == (server == "stable")
        yield Tunnel(
            f"{direction}-{server}-{'encrypted' if encrypted else 'plain'}",
            direction,
            server,
            encrypted,
            reuses,
            reuses is encrypted,
            shared_port if server == "stable" else free_port(),
            ("127.0.0.1", free_port()),
            tuple(free_port() for _ in range(1 + reuses)),
            has_second_client=direction == "reverse" and encrypted,
            shares_port=server == "stable",
        )


def _create_published_tunnel() -> Tunnel:
    return Tunnel(
        "published",
        "reverse",
        "stable",  # a server with workers lets no client publish
        encrypted=True,
        reuses=False,
        has_visitor_options=True,
        port=free_port(),
        visitor_address=("127.0.0.1", free_port()),
        target_ports=(free_port(),),
        has_second_client=False,
        shares_port=False,
        is_published=True,
    )


def _udp_tunnels(shared_port: int) -> Iterator[Tunnel]:
    for direction, (number, carrier) in itertools.product(DIRECTIONS, enumerate(_CARRIERS)):
        server = SERVERS[(direction == "reverse") != (number % 2 == 0)]
        yield Tunnel(
            f"udp-{direction}-{carrier}",
            direction,
            server,
            encrypted=(direction, carrier) != ("forward", "stream"),
            reuses=carrier == "stream",
            has_visitor_options=direction == "reverse",
            port=shared_port if server == "stable" else free_port(),
            visitor_address=("127.0.0.1", free_port()),
            target_ports=tuple(free_port() for _ in range(1 + (carrier == "stream"))),
            has_second_client=(direction, carrier) == ("reverse", "auto"),
            shares_port=server == "stable",
            udp_carrier=carrier,
            proto="udp",
        )


def _create_tunnel_of_both(shared_port: int) -> Tunnel:
    return Tunnel(
        "both-reverse",
        "reverse",
        "stable",
        encrypted=True,
        reuses=True,
        has_visitor_options=True,
        port=shared_port,
        visitor_address=("127.0.0.1", free_port()),
        target_ports=(free_port(), free_port()),
        has_second_client=False,
        shares_port=True,
        udp_carrier="auto",
        proto="both",
    )


def _command_line(pid: str) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def send_signal(pids: Iterable[int], number: signal.Signals) -> None:
    """Send a process signal to each process that still exists."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

"""Hosts of our own: network namespaces with names and addresses as the examples write them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import socket
import subprocess
from collections.abc import Generator, Mapping
from pathlib import Path

from tests.integration.peers import PATIENCE, Address

_CLONE_NEWNET = 0x40000000


def missing() -> str | None:
    """Why there can be no namespaces here, or None."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for tool in ("ip", "iptables"):
        if not shutil.which(tool):
            return f"{tool} is not installed"
    probe = f"np-probe-{os.getpid()}"
    added = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
    if added.returncode:
        return f"no network namespaces here: {added.stderr.strip()}"
    _run("ip", "netns", "del", probe)
    return None


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


class Host:
    """One namespace. Sockets made inside it stay in it, whoever uses them."""

    def __init__(self, name: str, names: Mapping[str, str]) -> None:
        self.name = name
        self.prefix = ("ip", "netns", "exec", name)
        _run("ip", "netns", "add", name)
        self._hosts = Path("/etc/netns") / name
        self._hosts.mkdir(parents=True)
        lines = [f"{address} {host}\n" for host, address in names.items()]
        (self._hosts / "hosts").write_text("127.0.0.1 localhost\n" + "".join(lines))
        self.run("ip", "link", "set", "lo", "up")

    def run(self, *command: str) -> None:
        """Run a command inside."""
        _run(*self.prefix, *command)

    def read(self, path: str) -> str:
        """A file as it looks from inside; those of /proc/net differ from host to host."""
        with self.entered():
            return Path(path.replace("/proc/net", "/proc/thread-self/net")).read_text()

    def set(self, name: str, value: int) -> None:
        """Set a sysctl, named as below /proc/sys."""
        with self.entered():
            (Path("/proc/sys") / name).write_text(str(value))

    def close(self) -> None:
        """Remove it and everything in it."""
        subprocess.run(["ip", "netns", "del", self.name], check=False, capture_output=True)
        shutil.rmtree(self._hosts, ignore_errors=True)
        with contextlib.suppress(OSError):
            self._hosts.parent.rmdir()

    @contextlib.contextmanager
    def entered(self) -> Generator[None]:
        """Let this thread be inside: what it opens belongs to this host."""
        libc = ctypes.CDLL(None, use_errno=True)
        with Path("/proc/thread-self/ns/net").open() as home, Path(f"/run/netns/{self.name}").open() as here:
            if libc.setns(here.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "cannot enter the namespace")
            try:
                yield
            finally:
                libc.setns(home.fileno(), _CLONE_NEWNET)

    def listener(self, address: Address) -> socket.socket:
        """A listening socket inside."""
        with self.entered():
            return socket.create_server(address, backlog=4096)

    def connect(self, address: Address, *, timeout: float = PATIENCE) -> socket.socket:
        """A connection from inside."""
        with self.entered():
            sock = socket.socket()
        sock.settimeout(timeout)
        try:
            sock.connect(address)
        except OSError:
            sock.close()
            raise
        return sock


End = tuple[Host, str, str]
"""One end of a wire: a host, the name of the device on it, its address."""


class Network:
    """A client's host, a server's host, and one behind the server: 10.1.0.2 - 10.1.0.1, 10.2.0.1 - 10.2.0.2."""

    behind = ("internal-web", "db-server", "api-gateway", "backend", "web-app", "app", "service")

    def __init__(self) -> None:
        mark = f"np{os.getpid()}"
        self._closing = contextlib.ExitStack()
        with contextlib.ExitStack() as undo:
            self.client = self._host(f"{mark}-client", {"server-host": "10.1.0.1", "nodepass-server": "10.1.0.1"}, undo)
            self.server = self._host(f"{mark}-server", dict.fromkeys(self.behind, "10.2.0.2"), undo)
            self.backend = self._host(f"{mark}-backend", {}, undo)
            self.join((self.server, "client0", "10.1.0.1"), (self.client, "server0", "10.1.0.2"), undo)
            self._cable((self.server, "backend0", "10.2.0.1"), (self.backend, "server0", "10.2.0.2"))
            self._closing = undo.pop_all()

    def _host(self, name: str, names: Mapping[str, str], undo: contextlib.ExitStack) -> Host:
        host = Host(name, names)
        undo.callback(host.close)
        return host

    def join(self, server: End, client: End, undo: contextlib.ExitStack) -> None:
        """Make the wire between the server's host and the client's; ``undo`` may be told how to take it away."""
        self._cable(server, client)

    def _cable(self, left: End, right: End) -> None:
        _run(
            "ip", "link", "add", left[1], "netns", left[0].name, "type", "veth",
            "peer", "name", right[1], "netns", right[0].name,
        )  # fmt: skip
        for host, device, address in (left, right):
            host.run("ip", "address", "add", f"{address}/24", "dev", device)
            host.run("ip", "link", "set", device, "up")

    def only_reachable(self, port: int | None, verdict: str = "DROP") -> None:
        """Let the client's host reach one port of the server's host and no other; None: all of them again."""
        self.server.run("iptables", "-F", "INPUT")
        if port is not None:
            rule = f"-A INPUT -i client0 -p tcp ! --dport {port} -j {verdict}"
            self.server.run("iptables", *rule.split())

    def close(self) -> None:
        """Remove all."""
        self._closing.close()

"""Network namespaces as hosts, with the host names and addresses that the documentation's examples use."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import socket
import subprocess
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path

from tests.support.peers import SOCKET_TIMEOUT_S, Address

_CLONE_NEWNET = 0x40000000


def missing() -> str | None:
    """Return why network namespaces cannot be made here, or None if they can."""
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
    """One namespace. A socket made inside stays inside, whichever thread uses it."""

    def __init__(self, name: str, names: Mapping[str, str]) -> None:
        self.name = name
        self.prefix = ("ip", "netns", "exec", name)
        _run("ip", "netns", "add", name)
        self._etc = Path("/etc/netns") / name
        self._etc.mkdir(parents=True)
        self._names = dict(names)
        self.set_names([])
        self.run("ip", "link", "set", "lo", "up")

    def set_names(self, more: Iterable[tuple[str, str]], name_server: str | None = None) -> None:
        """Give programs that start from now on more names, as pairs (name, address), and another name server."""
        lines = [f"{address} {host}\n" for host, address in [("localhost", "127.0.0.1"), *self._names.items(), *more]]
        (self._etc / "hosts").write_text("".join(lines))
        resolv = self._etc / "resolv.conf"
        resolv.unlink(missing_ok=True)
        if name_server is not None:
            resolv.write_text(f"nameserver {name_server}\n")

    def run(self, *command: str) -> None:
        """Run a command inside the namespace."""
        _run(*self.prefix, *command)

    def read(self, path: str) -> str:
        """Read a file from inside the namespace; the files of /proc/net differ between namespaces."""
        with self.entered():
            return Path(path.replace("/proc/net", "/proc/thread-self/net")).read_text()

    def set(self, name: str, value: int | str) -> None:
        """Set a sysctl; ``name`` is its path below /proc/sys."""
        with self.entered():
            (Path("/proc/sys") / name).write_text(str(value))

    def close(self) -> None:
        """Remove the namespace with everything in it."""
        subprocess.run(["ip", "netns", "del", self.name], check=False, capture_output=True)
        shutil.rmtree(self._etc, ignore_errors=True)
        with contextlib.suppress(OSError):
            self._etc.parent.rmdir()

    @contextlib.contextmanager
    def entered(self) -> Generator[None]:
        """Move this thread into the namespace: the sockets it opens belong to this host."""
        libc = ctypes.CDLL(None, use_errno=True)
        with Path("/proc/thread-self/ns/net").open() as home, Path(f"/run/netns/{self.name}").open() as here:
            if libc.setns(here.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "cannot enter the namespace")
            try:
                yield
            finally:
                libc.setns(home.fileno(), _CLONE_NEWNET)

    def listener(self, address: Address) -> socket.socket:
        """Return a listening socket inside the namespace."""
        with self.entered():
            return socket.create_server(address, backlog=4096)

    def connect(self, address: Address, *, timeout: float = SOCKET_TIMEOUT_S) -> socket.socket:
        """Return a connection made from inside the namespace."""
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
"""One end of a cable: the host, the name of its network device, its address."""


class Network:
    """The client's host, the server's host, and a host behind the server: 10.1.0.2 - 10.1.0.1, 10.2.0.1 - 10.2.0.2."""

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
        """Connect the server's host with the client's; ``undo`` receives what must be undone at the end."""
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
        """Let the client's host reach one port of the server's host and no other, or all ports for None."""
        self.server.run("iptables", "-F", "INPUT")
        if port is not None:
            rule = f"-A INPUT -i client0 -p tcp ! --dport {port} -j {verdict}"
            self.server.run("iptables", *rule.split())

    def close(self) -> None:
        """Remove all hosts of the network."""
        self._closing.close()

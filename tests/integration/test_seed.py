"""Every command line, container and compose example of the original, as written, on hosts with those names."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Generator
from dataclasses import dataclass, field

import pytest

from tests.support import namespaces
from tests.support.namespaces import Network
from tests.support.peers import Address, Target, echo, round_trip
from tests.support.processes import ProcessHarness
from tests.support.scale import time_allowed
from tests.support.waiting import wait_until

reason = namespaces.missing()
pytestmark = pytest.mark.skipif(reason is not None, reason=f"the original's examples were not run: {reason}")


@pytest.fixture(scope="module")
def network() -> Generator[Network]:
    network = Network()
    try:
        yield network
    finally:
        network.close()


@dataclass(frozen=True)
class Example:
    """Two command lines, with their ``-e`` variables; the target's host and port; the visitor's host and address."""

    name: str
    server: str
    client: str
    target: tuple[str, int]
    visitor: tuple[str, Address]
    server_env: dict[str, str] = field(default_factory=dict)
    client_env: dict[str, str] = field(default_factory=dict)


def forward(name: str, server: str, client: str, port: int, **env: dict[str, str]) -> Example:
    """A service behind the server, visited at the client's own address."""
    return Example(name, server, client, ("backend", port), ("client", ("127.0.0.1", port)), **env)


EXAMPLES = [
    Example(
        "basic",
        "server://10.1.0.1:10101/10.1.0.1:8080?log=debug",
        "client://10.1.0.1:10101/127.0.0.1:8080?log=warn",
        target=("client", 8080),
        visitor=("server", ("10.1.0.1", 8080)),
    ),
    Example(
        "container",
        "server://0.0.0.0:10101/0.0.0.0:8080?log=debug",
        "client://server-host:10101/0.0.0.0:8080",
        target=("client", 8080),
        visitor=("server", ("127.0.0.1", 8080)),
    ),
    Example(
        "container with variables",
        "server://0.0.0.0:10101/0.0.0.0:8080",
        "client://server-host:10101/0.0.0.0:8080?log=debug",
        target=("client", 8080),
        visitor=("server", ("10.2.0.1", 8080)),
        server_env={"MAX_POOL_CAPACITY": "2048", "REPORT_INTERVAL": "2s"},
        client_env={"MIN_POOL_CAPACITY": "16", "CLIENT_COOLDOWN": "10s"},
    ),
    forward("web service", "server://0.0.0.0:10101/internal-web:3000", "client://server-host:10101/0.0.0.0:3000", 3000),
    forward("database", "server://0.0.0.0:10101/db-server:5432", "client://server-host:10101/0.0.0.0:5432", 5432),
    forward(
        "API gateway",
        "server://0.0.0.0:10101/api-gateway:8080",
        "client://server-host:10101/0.0.0.0:8080",
        8080,
        server_env={"MAX_POOL_CAPACITY": "4096", "SEMAPHORE_LIMIT": "2048", "REPORT_INTERVAL": "1s"},
        client_env={"MAX_POOL_CAPACITY": "4096"},
    ),
    forward(
        "compose",
        "server://0.0.0.0:10101/backend:8080",
        "client://nodepass-server:10101/0.0.0.0:8080",
        8080,
        server_env={"MAX_POOL_CAPACITY": "2048", "REPORT_INTERVAL": "5s"},
        client_env={"MIN_POOL_CAPACITY": "16"},
    ),
    forward(
        "compose, several services",
        "server://0.0.0.0:10101/web-app:3000?log=debug",
        "client://server-host:10101/0.0.0.0:3000",
        3000,
        server_env={"SEMAPHORE_LIMIT": "4096", "MAX_POOL_CAPACITY": "4096"},
    ),
    forward(
        "variables with the binary",
        "server://0.0.0.0:10101/app:8080",
        "client://server-host:10101/0.0.0.0:8080",
        8080,
        server_env={"MAX_POOL_CAPACITY": "4096", "SERVER_COOLDOWN": "10s"},
    ),
    forward(
        "variables with a container",
        "server://0.0.0.0:10101/service:8080",
        "client://server-host:10101/0.0.0.0:8080",
        8080,
        server_env={"REPORT_INTERVAL": "2s", "MAX_POOL_CAPACITY": "2048"},
    ),
]


CASES = [
    pytest.param(example, reachable, id=f"{example.name}, {reachable}")
    for example in EXAMPLES
    for reachable in ("every port", "the tunnel port alone", "the tunnel port alone, others refused")
    if "refused" not in reachable or example.name in {"basic", "web service"}
]


@pytest.mark.parametrize(("example", "reachable"), CASES)
def test_an_example_works_as_written(
    harness: ProcessHarness, network: Network, example: Example, reachable: str
) -> None:
    hosts = {"client": network.client, "server": network.server, "backend": network.backend}
    if reachable == "every port":
        network.only_reachable(None)
    else:
        network.only_reachable(10101, "REJECT" if "refused" in reachable else "DROP")
    where, port = example.target
    target = harness.close_at_end(Target(echo, listener=hosts[where].listener(("0.0.0.0", port))))
    server = harness.start_url(example.server, prefix=network.server.prefix, env=example.server_env)
    server.wait_for_log("listening")
    client = harness.start_url(example.client, prefix=network.client.prefix, env=example.client_env)
    began = time.monotonic()
    visitor_host, address = example.visitor

    def served() -> bool:
        token = os.urandom(8)
        with contextlib.suppress(OSError), hosts[visitor_host].connect(address, timeout=1) as visitor:
            return round_trip(visitor, token) == token
        return False

    wait_until(served, within=3, what="a visitor gets an echo")
    assert time.monotonic() - began < time_allowed(2.5)
    for _ in range(50):
        with hosts[visitor_host].connect(address) as visitor:
            assert round_trip(visitor, b"again") == b"again"
    assert target.accepted >= 51
    for command in (server, client):
        command.signal(signal.SIGTERM)
        assert command.wait_exit() == 0


@pytest.mark.parametrize("cut", ["DROP"])
def test_a_dead_network_is_noticed_and_traffic_returns(harness: ProcessHarness, network: Network, cut: str) -> None:
    """The wire goes silent, with no reset and no end: pings find out; when it is back, so is the tunnel."""
    network.only_reachable(None)
    harness.close_at_end(Target(echo, listener=network.backend.listener(("0.0.0.0", 8080))))
    variables = {"REPORT_INTERVAL": "300ms", "CLIENT_COOLDOWN": "1s"}
    server = harness.start_daemon(
        {"t": "server://abcdefgh@0.0.0.0:10101/backend:8080"}, prefix=network.server.prefix, env=variables
    )
    client = harness.start_daemon(
        {"t": "client://abcdefgh@server-host:10101/0.0.0.0:8080"}, prefix=network.client.prefix, env=variables
    )
    link = client.wait_state("up")["link"]
    server.wait_state("up")
    network.server.run("iptables", "-A", "INPUT", "-i", "client0", "-j", cut)
    for end in (server, client):
        wait_until(lambda: end.tunnel()["state"] != "up", within=4, what=f"{end.name} notices")  # noqa: B023  called at once
    network.only_reachable(None)
    wait_until(lambda: client.tunnel()["link"] not in {link, None}, within=5, what="there is a new link")
    client.wait_state("up")
    with network.client.connect(("127.0.0.1", 8080)) as visitor:
        assert round_trip(visitor, b"back") == b"back"

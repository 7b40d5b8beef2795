"""A tunnel with several targets, whose engine runs in a worker: steered by commands and by the file."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable

from orchestrator.client import ApiClient
from tests.support.peers import connect
from tests.support.ports import free_port
from tests.support.processes import ProcessHarness
from tests.support.waiting import wait_until


def named(name: bytes) -> Callable[[socket.socket], None]:
    """Return what answers the first byte of a visitor with the name of the target."""

    def serve(sock: socket.socket) -> None:
        if sock.recv(1):
            sock.sendall(name)

    return serve


def visits(port: int, count: int) -> Counter[bytes]:
    """Return how many visitors each target has served."""
    served = Counter[bytes]()
    for _ in range(count):
        with connect(("127.0.0.1", port)) as sock:
            sock.sendall(b"?")
            served[sock.recv(1)] += 1
    return served


def test_a_target_is_drained_and_started_again_in_a_worker(harness: ProcessHarness) -> None:
    one, other = (harness.start_target(named(name)) for name in (b"a", b"b"))
    tunnel_port, visitor_port = free_port(), free_port()
    daemon = harness.start_daemon(
        {
            "srv": f"server://127.0.0.1:{tunnel_port}/127.0.0.1:{visitor_port}?mode=reverse",
            "t": f"client://127.0.0.1:{tunnel_port}/127.0.0.1:{one.port},127.0.0.1:{other.port}",
        },
        supervisor={"workers": 1},
    )
    for name in ("srv", "t"):
        daemon.wait_state("up", name=name, within=20)
    assert visits(visitor_port, 4) == {b"a": 2, b"b": 2}
    client = ApiClient(daemon.socket)
    address = f"127.0.0.1:{one.port}"
    wait_until(lambda: not daemon.tunnel()["targets"][0]["visitors"], within=20, what="the last visitors have left")
    answer = client.command("drain", "t", target=address)
    assert answer["text"] == f"the target {address} gets no new visitors"
    wait_until(lambda: daemon.tunnel()["targets"][0]["state"] == "drained", within=5, what="the target is drained")
    assert visits(visitor_port, 4) == {b"b": 4}
    client.command("start", "t", target=address)
    wait_until(lambda: daemon.tunnel()["targets"][0]["state"] == "up", within=5, what="the target is up")
    assert visits(visitor_port, 4) == {b"a": 2, b"b": 2}

"""Several clients of one server: one is killed, and one is black-holed, while visitors come."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Generator
from typing import Self

import pytest

from tests.faults.conftest import FigureRecorder
from tests.faults.hosts import KEY, SERVER, NamespaceHosts
from tests.support.ports import free_port
from tests.support.processes import ProcessHarness
from tests.support.scale import IS_FULL_SCALE
from tests.support.waiting import wait_until

VISITORS = 10_000 if IS_FULL_SCALE else 600
VISITORS_AT_ONCE = 4
SILENCE_LIMIT_S = 20.0
"""How long a visitor may wait for a link that is lost without a word: the server misses three answers of 1 s."""


def named(name: bytes) -> Callable[[socket.socket], None]:
    """Return what serves one visitor: its greeting is the name of the client."""
    return lambda sock: sock.sendall(name)


class Visitors:
    """Visitors that come one after the other, send nothing, and wait for the greeting."""

    def __init__(self, connect: Callable[[], socket.socket]) -> None:
        self.served: list[str] = []
        self.slowest_s = 0.0
        self._connect = connect
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._visit) for _ in range(VISITORS_AT_ONCE)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _visit(self) -> None:
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                with self._connect() as sock:
                    self.served.append(sock.recv(1).decode() or "end")
            except OSError as error:
                self.served.append(type(error).__name__)
            self.slowest_s = max(self.slowest_s, time.monotonic() - began)

    def wait_served(self, count: int) -> None:
        """Wait until as many more visitors have come and gone."""
        before = len(self.served)
        wait_until(lambda: len(self.served) >= before + count, within=240, what=f"{count} more visitors have come")


@pytest.fixture
def restored(hosts: NamespaceHosts) -> Generator[NamespaceHosts]:
    yield hosts
    hosts.restore()


@pytest.mark.case("one client of three is killed, one black-holed", deadline=300)
def test_a_client_that_is_killed_or_silent_costs_no_visitor_that_has_sent_nothing(
    harness: ProcessHarness, restored: NamespaceHosts, record_figure: FigureRecorder
) -> None:
    """Seen to fail: without another launch, visitors of the silent client wait until their own limit, and then fail."""
    hosts = restored
    tunnel_port, visitor_port = free_port(), free_port()
    url = f"server://{KEY}@{SERVER}:{tunnel_port}/127.0.0.1:{visitor_port}?mode=reverse&clients=3&report_interval=1s"
    server = harness.start_daemon({"t": url}, name="server", prefix=hosts.server.prefix)
    clients = {}
    for name, host in (("a", hosts.server), ("b", hosts.server), ("c", hosts.client)):
        target = hosts.target(harness, host, named(name.encode()))
        client = f"client://{KEY}@{SERVER}:{tunnel_port}/127.0.0.1:{target.port}?report_interval=1s"
        clients[name] = harness.start_daemon({"t": client}, name=name, prefix=host.prefix)

    def count_up() -> int:
        return sum(link["state"] == "up" for link in server.tunnel().get("links", ()))

    wait_until(lambda: count_up() == 3, within=40, what="all clients serve")
    with Visitors(lambda: hosts.server.connect(("127.0.0.1", visitor_port), timeout=SILENCE_LIMIT_S)) as visitors:
        visitors.wait_served(VISITORS // 3)
        os.kill(clients["a"].pid, signal.SIGKILL)
        wait_until(lambda: count_up() == 2, within=20, what="the killed client is gone")
        visitors.wait_served(VISITORS // 3)
        hosts.silence("in", "out")
        wait_until(lambda: count_up() == 1, within=30, what="the silent client is given up")
        visitors.wait_served(VISITORS // 3)
    counts = {name: visitors.served.count(name) for name in sorted(set(visitors.served))}
    assert set(counts) == {"a", "b", "c"}, counts
    redispatched = server.tunnel()["counters"]["redispatched"]
    assert redispatched > 0
    assert server.tunnel()["connections"]["failed"] == 0
    record_figure(
        f"{sum(counts.values())} visitors, 0 failed, {redispatched} served by another client, "
        f"the slowest after {visitors.slowest_s:.1f} s"
    )
